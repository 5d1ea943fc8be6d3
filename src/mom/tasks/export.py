"""Task ``export``: write a model as a folder that transformers loads without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mom.config import RunConfig
from mom.console import announce
from mom.data.tokenizer import load_model_tokenizer
from mom.interop import load_model
from mom.interop.export import export_model, model_card
from mom.interop.loading import find_classifier
from mom.runs.directory import RunDirectory, read_request, read_summary
from mom.training.checkpoint import BEST, LAST

FOLDER = "export"


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Export the language model or classifier in ``init`` to ``export/`` in the run directory.

    If ``init`` is a run's checkpoint, the model card contains the results of that run.

    Returns:
        ``export/folder`` and ``parameters``.

    Raises:
        UsageError: the weights or the tokenizer cannot be used, or the folder cannot be written.
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
    results, origin = run_results(Path(config.init))
    folder = run.path / FOLDER
    title = f"mom-{Path(config.run_dir).name}"
    export_model(model.eval(), tokenizer, folder, model_card(model, title, results, origin))
    announce(f"Written to {folder}")
    return {"export/folder": str(folder), "parameters": model.num_parameters()}


def run_results(init: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the results of the run that wrote a checkpoint, and a sentence on where they were measured.

    A run's summary describes its last weights, or after fine-tuning its best; other checkpoints have no results.
    """
    directory = init.absolute().parent.parent
    request, summary = read_request(directory), read_summary(directory)
    if not init.is_file() or request is None or not summary:
        return None, ""
    task, data = request["task"], request.get("data")
    name = task.get("name") if isinstance(task, dict) else task
    if init.name != (BEST if name == "finetune" else LAST):
        return None, ""
    source = (
        [str(data[key]) for key in ("kind", "corpus", "name") if data.get(key)]
        if isinstance(data, dict)
        else []
    )
    where = " ".join(filter(None, (name, *source)))
    return summary, f"On the validation data of the run that produced these weights ({where})."
