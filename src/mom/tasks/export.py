"""Write a model as a folder that transformers loads by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mom.config import RunConfig
from mom.data.tokenizer import load_model_tokenizer
from mom.interop import load_model
from mom.interop.export import export_model, model_card
from mom.interop.loading import find_classifier
from mom.runs.directory import RunDirectory

FOLDER = "export"


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Export the model of ``init``, a language model or a classifier, to ``export/`` in the run directory.

    The model card holds what the run that made the weights measured, if its ``summary.json`` lies where a run
    puts it.

    Args:
        config: the request.
        run: the run's directory.

    Returns:
        ``export/folder`` and ``parameters``.

    Raises:
        RequestError: weights or tokenizer that cannot be used, or no room.
    """
    assert config.init is not None
    model = find_classifier(config.init) or load_model(config.init)
    tokenizer = load_model_tokenizer(config.init, config.data.tokenizer, model.config)
    model.config.bos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        assert model.generation_config is not None
        model.generation_config.bos_token_id = tokenizer.eos_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.eos_token_id
    results, origin = recorded_results(Path(config.init))
    folder = run.path / FOLDER
    title = f"mom-{Path(config.run_dir).name}"
    export_model(model.eval(), tokenizer, folder, model_card(model, title, results, origin))
    print(f"Written to {folder}", flush=True)
    return {"export/folder": str(folder), "parameters": sum(one.numel() for one in model.parameters())}


def recorded_results(init: Path) -> tuple[dict[str, Any] | None, str]:
    """The summary of the run that a checkpoint belongs to, and a sentence on what it is of.

    A run's summary tells of its last weights, a fine-tuning's of its best; for another checkpoint of the run
    it tells nothing, so there are no results.
    """
    run = init.absolute().parent.parent
    summary, config = run / "summary.json", run / "config.yaml"
    if not (init.is_file() and summary.is_file() and config.is_file()):
        return None, ""
    request = yaml.safe_load(config.read_text(encoding="utf-8"))
    task = request.get("task")
    name = task.get("name") if isinstance(task, dict) else task
    measured = "best.ckpt" if name == "finetune" else "last.ckpt"
    if init.name != measured:
        return None, ""
    data = request.get("data") if isinstance(request.get("data"), dict) else {}
    of_data = " ".join(str(data[key]) for key in ("kind", "corpus", "name") if data.get(key))
    origin = f"On the validation data of the run that made these weights ({' '.join(filter(None, (name, of_data)))})."
    return json.loads(summary.read_text(encoding="utf-8")), origin
