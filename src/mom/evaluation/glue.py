"""What comes out of GLUE: a table of one task, the row that papers print, the files that GLUE takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from mom.config import RunConfig
from mom.console import print_report, standard_output
from mom.data.glue import TASKS, GlueDataModule, GlueTask
from mom.errors import RequestError
from mom.evaluation.measure import evaluate_module, predict
from mom.metrics.glue import build_metrics, percent
from mom.runs.directory import RunDirectory
from mom.training.classification import ClassificationModule


def print_task(task: GlueTask, results: Mapping[str, Any], directory: Path) -> None:
    """Print the validation metrics beside those of the commonest label, or the mean one of a regression."""
    table = Table(title=f"{task.folder}, validation (× 100)", title_justify="left")
    table.add_column("")
    table.add_column("fine-tuned", justify="right")
    table.add_column("commonest label" if task.labels else "mean label", justify="right")
    for name in metric_names(task):
        table.add_row(name, f"{results[f'val/{name}']:.2f}", f"{results[f'majority/{name}']:.2f}")
    print_report(table, directory)


def metric_names(task: GlueTask) -> list[str]:
    """Names of the metrics of every validation set, ``accuracy_matched`` for MNLI's first."""
    return [f"{name}{suffix}" for suffix in task.validations for name in task.metrics]


def glue_row(
    scores: Mapping[str, Sequence[Mapping[str, float]]], title: str, directory: Path
) -> dict[str, float]:
    """Print one row: each task's metrics as mean ± deviation over seeds, and the average over tasks.

    A task with two metrics (or, MNLI, two sets) stands in the average with their mean. A second row tells the same of
    always answering the commonest label, or the mean one of a regression.

    Args:
        scores: for each task the results of every seed, with ``val/score``, ``val/<metric>`` and
            ``majority/<metric>``.
        title: over the table.
        directory: where everything was written.

    Returns:
        ``<task>/<metric>/mean`` and ``/deviation``, the same of ``<task>/score``, ``<task>/<metric>/majority``,
        ``glue/average``, ``glue/majority`` and ``glue/seeds``. The deviation is that of a sample; 0 with one seed.
    """
    table = Table(title=f"{title}: GLUE, validation (× 100)", title_justify="left")
    table.add_column("")
    tuned, commonest = ["fine-tuned"], ["commonest label"]
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
        sets = "-m/mm" if len(TASKS[name].validations) > 1 else ""  # as papers call MNLI's two
        table.add_column(f"{TASKS[name].folder}{sets}\n{'/'.join(TASKS[name].metrics)}", justify="right")
        tuned.append(" / ".join(_with_deviation(summary, f"{name}/{metric}", len(runs)) for metric in names))
        commonest.append(" / ".join(f"{summary[f'{name}/{metric}/majority']:.1f}" for metric in names))
    summary["glue/average"] = statistics.fmean(summary[f"{name}/score/mean"] for name in scores)
    summary["glue/majority"] = statistics.fmean(majorities)
    summary["glue/seeds"] = float(len(next(iter(scores.values()))))
    table.add_column("average", justify="right")
    table.add_row(*tuned, f"{summary['glue/average']:.1f}")
    table.add_row(*commonest, f"{summary['glue/majority']:.1f}")
    # Wide enough for nine tasks, whatever the terminal: a file of the output must hold the row whole.
    print_report(table, directory, standard_output(max(220, standard_output().width)))
    return summary


def _with_deviation(summary: Mapping[str, float], metric: str, num_seeds: int) -> str:
    deviation = f"±{summary[f'{metric}/deviation']:.1f}" if num_seeds > 1 else ""
    return f"{summary[f'{metric}/mean']:.1f}{deviation}"


def write_submission(task: GlueTask, split: str, values: Sequence[float], directory: RunDirectory) -> None:
    """Write the predictions for a test set as GLUE's site takes them: ``submission/RTE.tsv``.

    Two columns, ``index`` from 0 and ``prediction``: the class's number, its name (MNLI, QNLI, RTE), or the
    score from 0 to 5 with three digits (STS-B). MNLI's two files are ``MNLI-m`` and ``MNLI-mm``.

    Raises:
        RequestError: ``run_dir``, if it cannot be written.
    """
    if not directory.writes:
        return
    suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
    lines = ["index\tprediction"]
    for index, value in enumerate(values):
        if not task.labels:
            shown = f"{min(5.0, max(0.0, value)):.3f}"
        else:
            shown = task.labels[int(value)] if task.names_in_submission else str(int(value))
        lines.append(f"{index}\t{shown}")
    path = directory.path / "submission" / f"{task.folder}{suffix}.tsv"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as reason:
        raise RequestError("run_dir", path.parent, f"a folder that can be written: {reason}") from reason


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
        values = predict(config, module, data.full_dataloader(split), directory)
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
