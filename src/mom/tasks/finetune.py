"""Fine-tune a model on GLUE (one task, or several tasks and seeds and the row that papers print) or on XSum."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from lightning.pytorch import seed_everything

from mom.config import FinetuneConfig, GlueConfig, RunConfig, XsumConfig
from mom.config.checks import check_length
from mom.console import announce
from mom.data.glue import TASKS, GlueDataModule
from mom.data.tokenizer import load_model_tokenizer
from mom.data.xsum import XsumDataModule
from mom.errors import RequestError
from mom.evaluation.glue import glue_row, measure_glue, print_task
from mom.evaluation.xsum import measure_xsum
from mom.interop import load_classifier, load_model
from mom.runs.directory import RunDirectory
from mom.training.checkpoint import BEST, CHECKPOINTS, check_architecture, check_head
from mom.training.classification import ClassificationModule
from mom.training.fit import fit_module
from mom.training.language_modeling import SummarizationModule
from mom.training.module import TrainingModule
from mom.training.phases import checkpoint_to_resume, finished_results, initialize_from, subrun
from mom.training.trainer import num_processes


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Fine-tune, take the best checkpoint by the validation score, measure it, predict the test set.

    For XSum the score is minus the loss, and what is measured is ROUGE of generated summaries.

    For GLUE with ``task.tasks`` or ``task.seeds`` every combination is trained in a folder of its own,
    ``<task>/seed_<n>``, from the same weights, and the row of means and deviations is printed.

    With ``ckpt``, or ``resume=auto`` and a ``last.ckpt`` in the run directory, training goes on from there. Of
    several trainings ``resume=auto`` takes up the one that was interrupted, and trains none again that is done.

    Args:
        config: the request.
        run: the run's directory.

    Returns:
        For one training: ``val/score``, ``val/<metric>`` (times 100, of the best checkpoint), ``steps``,
        ``majority/<metric>`` (of the commonest label) and what else the trainer measured. For several:
        what :func:`mom.evaluation.glue.glue_row` returns. For XSum: ``val/loss``, ``val/rouge1``,
        ``val/rouge2``, ``val/rougeL`` and the same of the first sentence under ``lead/val/``; with a test split
        ``test/…`` too.

    Raises:
        RequestError: weights, tokenizer or data that cannot be used, before anything is trained.
    """
    task, data = config.task, config.data
    assert isinstance(task, FinetuneConfig)
    # The best weights are put back into the whole model, which no process has.
    if config.trainer.strategy == "fsdp":
        raise RequestError("trainer.strategy", "fsdp", "auto or ddp for task=finetune")
    if isinstance(data, XsumConfig):
        return finetune_xsum(config, task, data, run)
    assert isinstance(data, GlueConfig)
    return finetune_glue(config, task, data, run)


def weights_to_start_from(config: RunConfig) -> tuple[str, str]:
    """The option that names the weights, ``init`` or else ``ckpt``, and its value."""
    if config.init is not None:
        return "init", config.init
    assert config.ckpt is not None
    return "ckpt", config.ckpt


def finetune_glue(
    config: RunConfig, task: FinetuneConfig, data: GlueConfig, run: RunDirectory
) -> dict[str, Any]:
    """GLUE; see :func:`run`."""
    option, init = weights_to_start_from(config)
    several = task.tasks is not None or task.seeds is not None
    if several and config.ckpt is not None:
        raise RequestError(
            "ckpt", config.ckpt, "null with task.tasks or task.seeds; resume=auto goes on with each of them"
        )
    names = task.tasks or [data.name]
    # Everything is read before anything is trained: the ninth task's missing file ends the run now.
    model = load_classifier(init, TASKS[names[0]].labels, option=option)
    check_length(data.sequence_length, model.config.max_positions)
    tokenizer = load_model_tokenizer(init, data.tokenizer, model.config)
    of_task = {name: dataclasses.replace(data, name=name) for name in names}
    modules = {name: GlueDataModule(of_task[name], config.seed, tokenizer) for name in names}
    for name in names[1:]:
        load_classifier(init, TASKS[name].labels)
    if not several:
        summary = finetune(config, modules[data.name], run)
        print_task(TASKS[data.name], summary, run.path)
        return summary
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        for seed in task.seeds or [config.seed]:
            done = finished_results(run, f"{name}/seed_{seed}") if config.resume == "auto" else None
            if done is not None:
                announce(f"{name}, seed {seed}: done before, {done['steps']} steps")
                scores[name].append(done)
                continue
            announce(f"{name}, seed {seed}")
            one = dataclasses.replace(config, seed=seed, data=of_task[name])
            directory = RunDirectory(run.path / name / f"seed_{seed}")
            plain = {"task": "finetune", "init": init, "data.name": name, "seed": seed}
            with subrun(directory, plain) as results:
                modules[name].seed = seed
                results.update(finetune(one, modules[name], directory))
            scores[name].append(dict(results))
    return glue_row(scores, init, run.path)


def finetune(config: RunConfig, data: GlueDataModule, directory: RunDirectory) -> dict[str, Any]:
    """One training on one task with one seed; see :func:`run`."""
    task = config.task
    assert isinstance(task, FinetuneConfig)
    glue = data.task
    resume = checkpoint_to_resume(config, directory)
    option, init = weights_to_start_from(config)
    seed_everything(config.seed, workers=True, verbose=False)  # the fresh classifier's weights
    model = load_classifier(init, glue.labels, dropout=task.dropout, option=option)
    if resume is not None:
        check_head(resume, glue.num_labels)
        check_architecture(resume, model.config.to_dict())
    module = ClassificationModule(
        model,
        dataclasses.asdict(config.optimizer),
        glue.metrics,
        sets=glue.validations,
    )
    steps = min(
        config.trainer.max_steps,
        num_steps(config, data.num_train_batches(num_processes(config)), task.epochs),
    )
    results = fit_module(
        config, module, data, data.tokenizer, directory, phase=glue.name, max_steps=steps, resume=resume
    )
    take_best(module, directory)
    return {**results, **measure_glue(config, module, data, directory, logged=False)}


def take_best(module: TrainingModule, directory: RunDirectory) -> None:
    """Put the weights of ``best.ckpt`` into a module; without one the last weights stay."""
    best = directory.path / CHECKPOINTS / BEST
    if best.is_file():
        module.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])


def num_steps(config: RunConfig, num_batches: int, epochs: float) -> int:
    """Optimizer steps in so many passes over a process's ``num_batches`` batches, as the trainer limits them."""
    limit = config.trainer.limit_train_batches
    if isinstance(limit, int):
        num_batches = min(num_batches, limit)
    elif limit is not None:
        num_batches = int(num_batches * limit)
    return max(1, math.ceil(epochs * num_batches / config.trainer.accumulate_grad_batches))


def finetune_xsum(
    config: RunConfig, task: FinetuneConfig, data: XsumConfig, run: RunDirectory
) -> dict[str, Any]:
    """XSum; see :func:`run`."""
    for name, given in (("tasks", task.tasks), ("seeds", task.seeds)):
        if given is not None:
            raise RequestError(f"task.{name}", given, "null for data=xsum")
    resume = checkpoint_to_resume(config, run)
    option, init = weights_to_start_from(config)
    model = load_model(init, option)
    check_length(data.sequence_length, model.config.max_positions)
    if task.dropout is not None:
        changed = copy.deepcopy(model.config)
        changed.dropout = task.dropout
        model = initialize_from(model, changed)
    if resume is not None:
        check_head(resume, None)
        check_architecture(resume, model.config.to_dict())
    tokenizer = load_model_tokenizer(init, data.tokenizer, model.config)
    examples = XsumDataModule(data, config.seed, tokenizer)
    module = SummarizationModule(model.config.to_dict(), dataclasses.asdict(config.optimizer), model)
    steps = min(
        config.trainer.max_steps,
        num_steps(config, examples.num_train_batches(num_processes(config)), task.epochs),
    )
    results = fit_module(
        config, module, examples, tokenizer, run, phase="xsum", max_steps=steps, resume=resume
    )
    take_best(module, run)
    return {**results, **measure_xsum(config, module, examples, run, logged=False)}
