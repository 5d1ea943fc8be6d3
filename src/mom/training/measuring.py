"""What fine-tuning and evaluation measure of a model on GLUE and on XSum, beside the simplest of answers."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from mom.config import DataSection, RunConfig
from mom.data.classification import GlueDataModule
from mom.data.xsum import XsumDataModule
from mom.errors import RequestError
from mom.evaluation.glue import write_submission
from mom.evaluation.measure import evaluate_module, predict
from mom.evaluation.xsum import measure_summaries
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.classification import ClassificationModule, build_metrics, percent
from mom.training.summarization import SummarizationModule


def measure_glue(
    config: RunConfig,
    module: ClassificationModule,
    data: GlueDataModule,
    directory: RunDirectory,
    *,
    logged: bool,
) -> dict[str, Any]:
    """Validate a classifier and predict the test sets there are, in the form that GLUE's site takes.

    Args:
        config: the request.
        module: the classifier.
        data: its task.
        directory: where to write.
        logged: see :func:`mom.evaluation.measure.evaluate_module`.

    Returns:
        ``val/loss``, ``val/score``, ``val/<metric>`` (times 100) and what :func:`majority` returns.
    """
    name = data.task.name
    measured = evaluate_module(config, module, data.val_dataloader(), directory, phase=name, logged=logged)
    for split in data.tests:
        values = predict(config, module, data.whole(split), directory)
        write_submission(data.task, split, values, directory)
    return {**measured, **majority(data)}


def majority(data: GlueDataModule) -> dict[str, float]:
    """The validation metrics of always answering the commonest training label (a regression: the mean)."""
    glue = data.task
    labels = [label for _, label in data.splits["train"] if label is not None]
    answer = statistics.mode(labels) if glue.labels else statistics.fmean(labels)
    measured: dict[str, float] = {}
    for suffix, split in zip(glue.validations, data.validations, strict=True):
        metrics = build_metrics(glue.metrics, glue.num_labels)
        truth = torch.tensor([label for _, label in data.splits[split]])
        metrics.update(torch.full_like(truth, answer), truth)
        measured |= {f"majority/{name}{suffix}": value for name, value in percent(metrics).items()}
    return measured


def measure_xsum(
    config: RunConfig,
    module: SummarizationModule,
    data: XsumDataModule,
    directory: RunDirectory,
    *,
    logged: bool,
) -> dict[str, Any]:
    """Validate a language model on summaries, then generate them and compare.

    Args:
        config: the request.
        module: the language model.
        data: the articles.
        directory: where to write.
        logged: see :func:`mom.evaluation.measure.evaluate_module`.

    Returns:
        ``val/loss``, ``val/score`` and what :func:`mom.evaluation.xsum.measure_summaries` returns.
    """
    assert isinstance(module.model, MoMForCausalLM)
    measured = evaluate_module(config, module, data.val_dataloader(), directory, phase="xsum", logged=logged)
    return {**measured, **measure_summaries(config, module.model, data, directory)}


def check_length(data: DataSection, config: MoMConfig) -> None:
    """Refuse examples or windows longer than the model's positions."""
    if data.sequence_length > config.max_positions:
        raise RequestError(
            "data.sequence_length",
            data.sequence_length,
            f"at most {config.max_positions}, the positions of the model",
        )
