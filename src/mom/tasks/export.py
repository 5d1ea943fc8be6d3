"""Task ``export``: write a model as a folder that transformers loads without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mom.callbacks.checkpoints import RESULTS
from mom.config import ExportConfig, RunConfig
from mom.console import announce
from mom.data.tokenizer import load_model_tokenizer
from mom.interop import load_model
from mom.interop.card import Provenance, describe_training_data, model_card
from mom.interop.export import check_push, export_model, push
from mom.interop.loading import find_classifier
from mom.interop.weights import VALIDATED, read_checkpoint
from mom.runs.directory import MODEL_FOLDERS, RunDirectory, read_request, read_summary
from mom.training.checkpoint import BEST, LAST

FOLDER = MODEL_FOLDERS["export"]


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Export the language model or classifier in ``init`` to ``export/`` in the run directory.

    If ``init`` is a run's checkpoint, the model card has what was measured of these weights. With ``push_to_hub``, the
    folder is also pushed to the Hub.

    Returns:
        ``export/folder``, ``parameters``, and ``export/hub`` if it was pushed.

    Raises:
        UsageError: the weights or the tokenizer cannot be used, or the folder cannot be written.
    """
    task = config.task
    assert isinstance(task, ExportConfig) and config.init is not None
    if task.push_to_hub is not None:
        check_push(task.push_to_hub)
    model = find_classifier(config.init) or load_model(config.init)
    tokenizer = load_model_tokenizer(config.init, config.data.tokenizer, model.config)
    model.config.bos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        assert model.generation_config is not None
        model.generation_config.bos_token_id = tokenizer.eos_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.eos_token_id
    provenance = provenance_of(Path(config.init))
    folder = run.path / FOLDER
    repo = task.push_to_hub
    title = repo.split("/")[1] if repo else provenance.run or Path(config.init).name
    place = repo or str(folder)
    card = model_card(model.eval(), provenance, title=title, place=place, license_name=task.license)
    export_model(model, tokenizer, folder, card)
    announce(f"Written to {folder}")
    results: dict[str, Any] = {"export/folder": str(folder), "parameters": model.num_parameters()}
    if repo is not None:
        results["export/hub"] = push(folder, repo, private=task.private)
        announce(f"Pushed to {results['export/hub']}")
    return results


def provenance_of(init: Path) -> Provenance:
    """Return what is known about the training of the weights in a checkpoint of a run; nothing about other weights.

    A checkpoint records the last validation if it was saved there. The summary of a run describes its last weights, or
    after fine-tuning its best.
    """
    if not init.is_file():
        return Provenance()
    directory = init.absolute().parent.parent
    request = read_request(directory)
    phase = None
    if request is None and (request := read_request(directory.parent)) is not None:
        phase = directory.name  # such as plain, the first phase
    checkpoint = read_checkpoint(init, "init")
    summary = read_summary(directory)
    name = _task_name(request)
    describes = summary if init.name == (BEST if name == "finetune" else LAST) else {}
    measured = checkpoint.get(VALIDATED) or {}
    results = describes or measured or checkpoint.get(RESULTS) or {}
    callbacks = checkpoint.get("callbacks")
    counted = callbacks.get("ThroughputMonitor", {}) if isinstance(callbacks, dict) else {}
    run = directory if phase is None else directory.parent
    data = describe_training_data((request or {}).get("data"), read_summary(run) or summary)
    where = " ".join(filter(None, (f"task={name}" if name else None, data)))
    return Provenance(
        run=None if request is None else "/".join(filter(None, (run.name, phase))),
        data=data,
        steps=checkpoint.get("global_step"),
        tokens=counted.get("tokens"),
        training_flops=counted.get("flops"),
        results=results,
        measured_on="On the validation data of the run that produced these weights"
        + (f" ({where})." if where else "."),
    )


def _task_name(request: dict[str, Any] | None) -> str | None:
    """Return the task of a run's configuration."""
    task = (request or {}).get("task")
    return task.get("name") if isinstance(task, dict) else task
