"""Options of the tasks that read finished runs: compare, runs, dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mom.config.section import TaskConfig
from mom.errors import UsageError, as_written


@dataclass(frozen=True)
class CompareConfig(TaskConfig):
    """Compare finished runs.

    Args:
        runs: run directories, directories that contain some (such as a sweep's), tables of runs, or patterns of these.
        metric: a name in ``summary.json``.
        mode: whether the smallest or the largest mean is best.
        baseline: a run, as a directory or a row of a table, whose group every other group is compared with, seed by
            seed. With ``cost_metric`` several runs, whose groups are the points of a curve.
        cost_metric: the metric of a run's cost, such as ``throughput/training_flops``: each run is compared with the
            baselines' curve at the same cost.
        reference_metric: another metric of the same run to compare with, such as ``baseline/val/loss``.
        group_by: options to group by; None is all options in which the runs differ.
        ignore: options or groups, besides the seed, in which the runs of a group may differ.
        confidence: confidence level of the interval of the mean difference.
        save_runs: a ``.csv`` file to write the runs to, one row each, which ``runs`` can read later.
    """

    top_level: ClassVar[tuple[str, ...]] = ("runs",)
    computes: ClassVar[bool] = False

    name: Literal["compare"] = "compare"
    runs: str | list[str] | None = None
    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    baseline: str | list[str] | None = None
    cost_metric: str | None = None
    reference_metric: str | None = None
    group_by: list[str] | None = None
    ignore: list[str] | None = None
    confidence: float = 0.95
    save_runs: str | None = None

    def _check(self) -> None:
        self._range("confidence", gt=0, lt=1)
        if not self.runs:
            raise UsageError(
                "task=compare requires runs: run directories, tables of runs, or patterns of these"
            )
        if self.save_runs is not None and not self.save_runs.endswith(".csv"):
            raise UsageError(f"task.save_runs must end in .csv, got {as_written(self.save_runs)}")
        if self.baseline is not None and self.reference_metric is not None:
            raise UsageError(
                "task.reference_metric cannot be combined with task.baseline: each run is compared with one partner"
            )
        if self.baseline == []:
            raise UsageError("task.baseline must name a run, or be null, got []")
        if self.cost_metric is None and len(self.baselines()) > 1:
            raise UsageError(
                f"task.baseline must name one run unless task.cost_metric is set, got {as_written(self.baseline)}"
            )
        if self.cost_metric is not None and len(self.baselines()) < 2:
            raise UsageError(
                "task.cost_metric requires task.baseline to name at least two runs, "
                f"got {as_written(self.baseline)}"
            )

    def baselines(self) -> list[str]:
        """Return ``baseline`` as a list."""
        if self.baseline is None:
            return []
        return [self.baseline] if isinstance(self.baseline, str) else self.baseline


@dataclass(frozen=True)
class RunsConfig(TaskConfig):
    """List the runs in folders.

    Args:
        runs: folders to search; None searches ``outputs`` and ``multirun``.
        match: part of a run's name, or a pattern with ``*``; None lists all.
        status: list only runs with this status.
        of_task: list only runs of this task.
        tag: list only runs with this tag.
        sort: column to sort by; the newest, the smallest, or the first in the alphabet comes first.
        reverse: reverse this order.
        limit: maximum number of rows; None lists all.
    """

    top_level: ClassVar[tuple[str, ...]] = ("runs",)
    computes: ClassVar[bool] = False
    keeps_record: ClassVar[bool] = False

    name: Literal["runs"] = "runs"
    runs: str | list[str] | None = None
    match: str | None = None
    status: Literal["running", "succeeded", "failed", "interrupted"] | None = None
    of_task: str | None = None
    tag: str | None = None
    sort: Literal["age", "name", "task", "status", "step", "loss"] = "age"
    reverse: bool = False
    limit: int | None = 30

    def _check(self) -> None:
        self._range("limit", ge=1)


@dataclass(frozen=True)
class DashboardConfig(TaskConfig):
    """Create a Weights & Biases workspace.

    Args:
        entity: user or team that owns the workspace; None is the default of the logged-in user.
        project: project of the runs.
    """

    computes: ClassVar[bool] = False

    name: Literal["dashboard"] = "dashboard"
    entity: str | None = None
    project: str = "mom"
    title: str = "Mixture-of-Modules"

    def _check(self) -> None:
        for name in ("entity", "project", "title"):
            if getattr(self, name) == "":
                raise UsageError(f"task.{name} must be a name, got ''")
