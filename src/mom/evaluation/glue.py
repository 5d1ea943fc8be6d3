"""GLUE: validate a classifier, print its scores, and write submission files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mom.config import RunConfig
from mom.console import build_table, print_report, standard_output
from mom.data.glue import TASKS, GlueDataModule, GlueTask
from mom.evaluation.measure import evaluate_module, predict
from mom.metrics.glue import build_metrics, percent
from mom.runs.directory import RunDirectory
from mom.training.classification import ClassificationModule


def print_task(task: GlueTask, results: Mapping[str, Any], directory: Path) -> None:
    """Print the validation metrics next to those of the majority class, or of the mean label for a regression."""
    headings = ["", "fine-tuned", "majority class" if task.labels else "mean label"]
    rows = [
        [name, f"{results[f'val/{name}']:.2f}", f"{results[f'majority/{name}']:.2f}"]
        for name in metric_names(task)
    ]
    print_report(build_table(headings, rows, title=f"{task.folder}, validation (× 100)"), directory)


def metric_names(task: GlueTask) -> list[str]:
    """Return the names of the metrics of all validation sets, such as ``accuracy_matched`` for MNLI."""
    return [f"{name}{suffix}" for suffix in task.validations for name in task.metrics]


def glue_row(
    scores: Mapping[str, Sequence[Mapping[str, float]]], title: str, directory: Path
) -> dict[str, float]:
    """Print the row that papers report: each task's mean ± standard deviation over seeds, and the average over tasks.

    A task with two metrics, or two sets (MNLI), enters the average with their mean. A second row shows the scores of
    always predicting the majority class, or the mean label for a regression.

    Args:
        scores: the results of all seeds for each task, with ``val/score``, ``val/<metric>``, and ``majority/<metric>``.
        title: name of the model.
        directory: where the results were written.

    Returns:
        ``<task>/<metric>/mean`` and ``/deviation`` (sample standard deviation; 0 for one seed), the same for
        ``<task>/score``, ``<task>/<metric>/majority``, ``glue/average``, ``glue/majority``, and ``glue/seeds``.
    """
    headings = [""]
    tuned, baseline = ["fine-tuned"], ["majority class"]
    majorities = []
    summary: dict[str, float] = {}
    for name, runs in scores.items():
        names = metric_names(TASKS[name])
        for metric in ("score", *names):
            values = [run[f"val/{metric}"] for run in runs]
            summary[f"{name}/{metric}/mean"] = statistics.fmean(values)
            summary[f"{name}/{metric}/deviation"] = statistics.stdev(values) if len(values) > 1 else 0.0
        summary |= {f"{name}/{metric}/majority": runs[0][f"majority/{metric}"] for metric in names}
        majorities.append(statistics.fmean(summary[f"{name}/{metric}/majority"] for metric in names))
        sets = "-m/mm" if len(TASKS[name].validations) > 1 else ""  # what papers call MNLI's two sets
        headings.append(f"{TASKS[name].folder}{sets}\n{'/'.join(TASKS[name].metrics)}")
        tuned.append(" / ".join(_with_deviation(summary, f"{name}/{metric}", len(runs)) for metric in names))
        baseline.append(" / ".join(f"{summary[f'{name}/{metric}/majority']:.1f}" for metric in names))
    summary["glue/average"] = statistics.fmean(summary[f"{name}/score/mean"] for name in scores)
    summary["glue/majority"] = statistics.fmean(majorities)
    summary["glue/seeds"] = float(len(next(iter(scores.values()))))
    tuned.append(f"{summary['glue/average']:.1f}")
    baseline.append(f"{summary['glue/majority']:.1f}")
    headings.append("average")
    table = build_table(headings, [tuned, baseline], title=f"{title}: GLUE, validation (× 100)")
    # Wide enough for nine tasks, regardless of the terminal.
    print_report(table, directory, standard_output(max(220, standard_output().width)))
    return summary


def _with_deviation(summary: Mapping[str, float], metric: str, num_seeds: int) -> str:
    deviation = f"±{summary[f'{metric}/deviation']:.1f}" if num_seeds > 1 else ""
    return f"{summary[f'{metric}/mean']:.1f}{deviation}"


def write_submission(task: GlueTask, split: str, values: Sequence[float], directory: RunDirectory) -> None:
    """Write the predictions for a test set in the GLUE website's format, such as ``submission/RTE.tsv``.

    The columns are ``index``, from 0, and ``prediction``: the number of the class, its name (MNLI, QNLI, RTE), or a
    score from 0 to 5 with three decimals (STS-B). MNLI's two files are ``MNLI-m`` and ``MNLI-mm``.
    """
    suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
    lines = ["index\tprediction"]
    for index, value in enumerate(values):
        if not task.labels:
            shown = f"{value:.6g}" if task.names_in_submission else f"{min(5.0, max(0.0, value)):.3f}"
        else:
            shown = task.labels[int(value)] if task.names_in_submission else str(int(value))
        lines.append(f"{index}\t{shown}")
    directory.write_text(f"submission/{task.folder}{suffix}.tsv", "\n".join(lines) + "\n")


def measure_glue(
    config: RunConfig,
    module: ClassificationModule,
    data: GlueDataModule,
    directory: RunDirectory,
    *,
    logged: bool,
) -> dict[str, Any]:
    """Validate a classifier (:func:`~mom.evaluation.measure.evaluate_module`), and write a GLUE submission.

    Returns:
        ``val/loss``, ``val/score``, ``val/<metric>`` (times 100), and the results of :func:`majority`.
    """
    name = data.task.name
    measured = evaluate_module(config, module, data.val_dataloader(), directory, phase=name, logged=logged)
    for split in data.tests:
        values = predict(config, module, data.full_dataloader(split), directory)
        write_submission(data.task, split, values, directory)
    return {**measured, **majority(data)}


def majority(data: GlueDataModule) -> dict[str, float]:
    """Return the validation metrics of always predicting the majority class of the training set (or the mean label)."""
    glue = data.task
    labels = [label for _, label in data.splits["train"] if label is not None]
    prediction = statistics.mode(labels) if glue.labels else statistics.fmean(labels)
    measured: dict[str, float] = {}
    for suffix, split in zip(glue.validations, data.validations, strict=True):
        metrics = build_metrics(glue.metrics, glue.num_labels)
        truth = torch.tensor([label for _, label in data.splits[split]])
        metrics.update(torch.full_like(truth, prediction), truth)
        measured |= {f"majority/{name}{suffix}": value for name, value in percent(metrics).items()}
    return measured
