"""Task ``finetune``: fine-tune a model on GLUE (one task, or several tasks and seeds), XSum, or your own file."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

from lightning.pytorch import seed_everything

from mom.config import ClassificationConfig, FinetuneConfig, GlueConfig, RunConfig, XsumConfig
from mom.config.checks import check_length
from mom.console import announce
from mom.data.classification import find_task, labeled_data
from mom.data.glue import TASKS, GlueDataModule
from mom.data.tokenizer import load_model_tokenizer
from mom.data.xsum import XsumDataModule
from mom.errors import UsageError
from mom.evaluation.glue import glue_row, measure_glue, print_task
from mom.evaluation.xsum import measure_xsum
from mom.interop import load_classifier, load_model
from mom.interop.loading import find_classifier
from mom.runs.directory import CHECKPOINTS, RunDirectory
from mom.training.checkpoint import BEST, ResumePoint, check_architecture, check_head
from mom.training.classification import ClassificationModule
from mom.training.fit import fit_module
from mom.training.language_modeling import SummarizationModule
from mom.training.module import TrainingModule
from mom.training.phases import checkpoint_to_resume, finished_results, initialize_from, subrun
from mom.training.trainer import num_processes


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Fine-tune, load the checkpoint with the best validation score, and measure it.

    For GLUE, predictions for the test sets are written, too. With ``task.tasks`` or ``task.seeds`` each combination
    starts from the same weights and trains in its own directory, ``<task>/seed_<n>``; a row of means and standard
    deviations is printed. For XSum the score is the negative loss, and ROUGE of generated summaries is measured.

    Training resumes from ``ckpt``, or with ``resume=auto`` from ``last.ckpt`` in the run directory if it exists. With
    several combinations, ``resume=auto`` skips finished combinations and resumes an interrupted one.

    Returns:
        For one GLUE task and seed: ``val/score``, ``val/<metric>`` (times 100, of the best checkpoint), ``steps``,
        ``majority/<metric>`` (always predicting the majority class), and the other final metrics. For several: the
        results of :func:`mom.evaluation.glue.glue_row`. For XSum: ``val/loss`` and the results of
        :func:`mom.evaluation.xsum.measure_summaries`.

    Raises:
        UsageError: weights, tokenizer, or data cannot be used; raised before training.
    """
    task, data = config.task, config.data
    assert isinstance(task, FinetuneConfig)
    # The best weights are loaded into the full model, but under FSDP each process has only a shard.
    if config.trainer.strategy == "fsdp":
        raise UsageError("trainer.strategy must be auto or ddp for task=finetune, got fsdp")
    if isinstance(data, XsumConfig):
        return finetune_xsum(config, task, data, run)
    if isinstance(data, ClassificationConfig):
        return finetune_own(config, task, data, run)
    assert isinstance(data, GlueConfig)
    return finetune_glue(config, task, data, run)


def finetune_own(
    config: RunConfig, task: FinetuneConfig, data: ClassificationConfig, run: RunDirectory
) -> dict[str, Any]:
    """Fine-tune on your own labeled texts; see :func:`run`."""
    for name, value in (("tasks", task.tasks), ("seeds", task.seeds)):
        if value is not None:
            raise UsageError(f"task.{name} cannot be combined with data=classification")
    option, init, as_measured = _initial_weights(config)
    labels = find_task(data).labels
    model = load_classifier(init, labels, option=option, as_measured=as_measured)
    check_length(data.sequence_length, model.config.max_positions)
    examples = labeled_data(data, config.seed, load_model_tokenizer(init, data.tokenizer, model.config))
    summary = finetune(config, examples, run)
    print_task(examples.task, summary, run.path)
    return summary


def finetune_glue(
    config: RunConfig, task: FinetuneConfig, data: GlueConfig, run: RunDirectory
) -> dict[str, Any]:
    """Fine-tune on GLUE; see :func:`run`."""
    option, init, as_measured = _initial_weights(config)
    is_sweep = task.tasks is not None or task.seeds is not None
    if is_sweep and config.ckpt is not None:
        raise UsageError(
            "ckpt cannot be combined with task.tasks or task.seeds; resume=auto resumes each of them"
        )
    names = task.tasks or [data.name]
    # Read all data before training, so that a missing file of the ninth task is reported now.
    model = load_classifier(init, TASKS[names[0]].labels, option=option, as_measured=as_measured)
    check_length(data.sequence_length, model.config.max_positions)
    tokenizer = load_model_tokenizer(init, data.tokenizer, model.config)
    sections = {name: dataclasses.replace(data, name=name) for name in names}
    modules = {name: labeled_data(sections[name], config.seed, tokenizer) for name in names}
    for name in names[1:]:
        load_classifier(init, TASKS[name].labels)
    if not is_sweep:
        summary = finetune(config, modules[data.name], run)
        print_task(TASKS[data.name], summary, run.path)
        return summary
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        for seed in task.seeds or [config.seed]:
            finished = finished_results(run, f"{name}/seed_{seed}") if config.resume == "auto" else None
            if finished is not None:
                announce(f"{name}, seed {seed}: already trained for {finished['steps']} steps, skipping")
                scores[name].append(finished)
                continue
            announce(f"{name}, seed {seed}")
            directory = RunDirectory(run.path / name / f"seed_{seed}")
            with subrun(
                directory, {"task": "finetune", "init": init, "data.name": name, "seed": seed}
            ) as results:
                modules[name].seed = seed
                own_config = dataclasses.replace(config, seed=seed, data=sections[name])
                results.update(finetune(own_config, modules[name], directory))
            scores[name].append(dict(results))
    return glue_row(scores, init, run.path)


def finetune(config: RunConfig, data: GlueDataModule, directory: RunDirectory) -> dict[str, Any]:
    """Fine-tune on one GLUE task with one seed; see :func:`run`."""
    task = config.task
    assert isinstance(task, FinetuneConfig)
    glue = data.task
    resume = checkpoint_to_resume(config, directory)
    option, init, as_measured = _initial_weights(config)
    seed_everything(config.seed, workers=True, verbose=False)  # for the new classifier's weights
    model = load_classifier(init, glue.labels, dropout=task.dropout, option=option, as_measured=as_measured)
    if resume is not None:
        check_head(resume, glue.num_labels)
        check_architecture(resume, model.config.to_dict())
    optimizer = dataclasses.asdict(config.optimizer)
    module = ClassificationModule(model, optimizer, glue.metrics, sets=glue.validations)
    results = _fit(config, task, module, data, directory, glue.name, resume)
    return {**results, **measure_glue(config, module, data, directory, logged=False)}


def finetune_xsum(
    config: RunConfig, task: FinetuneConfig, data: XsumConfig, run: RunDirectory
) -> dict[str, Any]:
    """Fine-tune on XSum; see :func:`run`."""
    for name, value in (("tasks", task.tasks), ("seeds", task.seeds)):
        if value is not None:
            raise UsageError(f"task.{name} cannot be combined with data=xsum or data=text_to_text")
    resume = checkpoint_to_resume(config, run)
    option, init, as_measured = _initial_weights(config)
    model = load_model(init, option, as_measured=as_measured)
    data = data.fitted(model.config.max_positions)
    check_length(data.window, model.config.max_positions)
    if task.dropout is not None:
        changed = copy.deepcopy(model.config)
        changed.dropout = task.dropout
        model = initialize_from(model, changed)
    if resume is not None:
        check_head(resume, None)
        check_architecture(resume, model.config.to_dict())
    examples = XsumDataModule(data, config.seed, load_model_tokenizer(init, data.tokenizer, model.config))
    module = SummarizationModule(model.config.to_dict(), dataclasses.asdict(config.optimizer), model)
    results = _fit(config, task, module, examples, run, "xsum", resume)
    return {**results, **measure_xsum(config, module, examples, run, logged=False)}


def num_steps(config: RunConfig, num_batches: int, epochs: float) -> int:
    """Return the optimizer steps of ``epochs`` passes over ``num_batches`` batches, or ``limit_train_batches``.

    An epoch ends with an optimizer step, even if that has fewer than ``accumulate_grad_batches`` micro-batches.
    """
    limit = config.trainer.limit_train_batches
    if isinstance(limit, int):
        num_batches = min(num_batches, limit)
    elif limit is not None:
        num_batches = int(num_batches * limit)
    part, whole = math.modf(epochs)
    accumulate = config.trainer.accumulate_grad_batches
    steps = [math.ceil(round(share * num_batches, 6) / accumulate) for share in (1, part)]
    return max(1, int(whole) * steps[0] + steps[1])


def _initial_weights(config: RunConfig) -> tuple[str, str, bool]:
    """Return the option that names the weights, ``init`` or else ``ckpt``, its value, and whether to load as measured.

    A fine-tuning starts from the model as it was measured, but resumes with the options that it was configured with.
    """
    if config.init is not None:
        return "init", config.init, True
    assert config.ckpt is not None
    return "ckpt", config.ckpt, False


def _fit(
    config: RunConfig,
    task: FinetuneConfig,
    module: TrainingModule,
    data: GlueDataModule | XsumDataModule,
    directory: RunDirectory,
    phase: str,
    resume: ResumePoint | None,
) -> dict[str, float]:
    """Train for the requested epochs, then load the model of ``best.ckpt`` as it was measured, if there is one."""
    steps = num_steps(config, data.num_train_batches(num_processes(config)), task.epochs)
    max_steps = min(config.trainer.max_steps, steps)
    results = fit_module(
        config, module, data, data.tokenizer, directory, phase=phase, max_steps=max_steps, resume=resume
    )
    best = directory.path / CHECKPOINTS / BEST
    if best.is_file():
        module.model = find_classifier(best) or load_model(best)
    return results
