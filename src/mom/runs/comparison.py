"""Compare groups of runs that differ in options: mean and std over seeds, and paired differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from mom.errors import UsageError, as_written, nearest
from mom.runs.records import Run, is_within

NOT_OPTIONS = (
    "seed",
    "run_dir",
    "resume",
    "ckpt",
    "debug",
    "logger",
    "launcher",
    "search",
    "data.cache_dir",
    "data.num_processes",
    "data.num_workers",
    "trainer.enable_progress_bar",
    "callbacks.progress_bar",
    "callbacks.prune",
)
"""Options, and groups of them, that do not affect what a run measures."""

ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Paired:
    """Differences between partners with the same seed.

    Args:
        pairs: how many.
        mean: of the differences.
        error: standard error of the mean; None for one pair.
        low: lower end of the confidence interval of the mean (Student's t); None for one pair.
        high: upper end.
    """

    pairs: int
    mean: float
    error: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Args:
        options: values of the options in which the groups differ.
        values: the metric of each seed.
        costs: the cost metric of each seed; empty without one.
        folders: the run directories, or rows of tables.
        others: the value that each seed is compared with, for the seeds that have a partner.
        difference: paired difference from those; None without partners.
    """

    options: tuple[str, ...]
    values: Mapping[int, float]
    costs: Mapping[int, float]
    folders: tuple[Path, ...]
    others: Mapping[int, float] = dataclasses.field(default_factory=dict)
    difference: Paired | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def cost(self) -> float | None:
        """Mean of the cost metric over the seeds; None without such a metric."""
        return float(np.mean(list(self.costs.values()))) if self.costs else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (divided by n − 1); None for one seed."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Groups, best first.

    Args:
        options: the options in which the groups differ; of those that always change together, one.
        together: for each option in ``options``, the others that change with it.
        groups: best first.
        baseline: indices of the groups that the others are compared with; several form a curve.
        left_out: runs without the metrics, and the reason for each.
    """

    options: tuple[str, ...]
    together: Mapping[str, tuple[str, ...]]
    groups: tuple[Group, ...]
    baseline: tuple[int, ...]
    left_out: tuple[tuple[Run, str], ...]


def compare(
    runs: Sequence[Run],
    metric: str,
    *,
    largest_is_best: bool = False,
    baseline: Sequence[Path] = (),
    cost_metric: str | None = None,
    reference_metric: str | None = None,
    group_by: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    confidence: float = 0.95,
) -> Comparison:
    """Group runs by the options in which they differ and compare the groups over their seeds.

    Args:
        runs: the runs to compare.
        metric: a name in ``summary.json``.
        largest_is_best: whether the groups are ordered from the largest mean downwards.
        baseline: a run; every group is compared with that run's group, seed by seed. With ``cost_metric``
            the folders of several, whose groups are the points of a curve.
        cost_metric: a metric that says what a run cost. A run is compared with the curve of its seed at its own cost,
            linear between neighbors over the logarithm of the cost; outside of the curve it has no partner.
        reference_metric: another metric; every run is compared with its own.
        group_by: the options to group by; None takes all in which the runs differ.
        ignore: options, or groups of them, in which the runs of a group may differ beside the seed.
        confidence: of the interval around the mean difference.

    Raises:
        UsageError: no run has the metrics, no run is of the baseline, or two runs of a group share a seed.
    """
    counted, left_out = list(runs), []
    for option, name in (
        ("metric", metric),
        ("cost_metric", cost_metric),
        ("reference_metric", reference_metric),
    ):
        if name is None:
            continue
        lacking = [run for run in counted if run.value(name) is None]
        if len(lacking) == len(counted):
            names = sorted({name for run in runs for name in run.summary})
            close = nearest(name, names)
            hint = f"; did you mean {close}?" if close else ""
            raise UsageError(f"task.{option}={name} is not in the summary.json of any finished run{hint}")
        if option != "reference_metric":  # a run without a partner still counts towards its group's mean
            left_out += [(run, run.why_not(name)) for run in lacking]
            counted = [run for run in counted if run not in lacking]
    options, together = _differing(counted, group_by, ignore)
    gathered: dict[tuple[str, ...], dict[int, Run]] = {}
    for run in counted:
        members = gathered.setdefault(tuple(run.options.get(name, ABSENT) for name in options), {})
        if run.seed in members:
            raise UsageError(
                f"{members[run.seed].folder} and {run.folder} have the same options and seed; "
                "drop one of them, or name the options in which they differ in task.group_by"
            )
        members[run.seed] = run
    groups = [
        Group(
            key,
            _values(members, metric),
            _values(members, cost_metric),
            tuple(run.folder for run in members.values()),
        )
        for key, members in gathered.items()
    ]
    groups.sort(key=lambda group: -group.mean if largest_is_best else group.mean)
    chosen = tuple(sorted({_index_of(folder, groups) for folder in baseline}))
    if cost_metric is not None and len(chosen) < 2:
        raise UsageError(
            "task.cost_metric requires task.baseline to name runs of at least two groups, "
            f"got {as_written([str(one) for one in baseline])}"
        )
    for index, group in enumerate(groups):
        if reference_metric is not None:
            others = _values(gathered[group.options], reference_metric)
        elif index in chosen:
            continue
        elif cost_metric is not None:
            others = _interpolated([groups[one] for one in chosen], group.costs)
        else:
            others = dict(groups[chosen[0]].values) if chosen else {}
        difference = paired(group.values, others, confidence)
        groups[index] = dataclasses.replace(group, others=others, difference=difference)
    return Comparison(options, together, tuple(groups), chosen, tuple(left_out))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95) -> Paired | None:
    """Return the mean difference ``ours − theirs`` over the seeds that both have; None if there are none.

    Its interval is Student's t with one degree of freedom less than there are pairs.
    """
    differences = np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    number = len(differences)
    if number == 0:
        return None
    mean = float(differences.mean())
    if number == 1:
        return Paired(1, mean, None, None, None)
    error = float(differences.std(ddof=1) / math.sqrt(number))
    width = float(stats.t.ppf((1 + confidence) / 2, number - 1)) * error
    return Paired(number, mean, error, mean - width, mean + width)


def _differing(
    runs: Sequence[Run], group_by: Sequence[str] | None, ignore: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the options that tell runs apart, one of each set that changes together, and the rest of that set."""
    names = list(dict.fromkeys(name for run in runs for name in run.options))
    for option, wanted in (("group_by", group_by or ()), ("ignore", ignore)):
        for one in wanted:
            if not any(is_within(name, one) for name in names):
                close = nearest(one, names)
                hint = f"; did you mean {close}?" if close else ""
                raise UsageError(f"task.{option} must list options of the runs, got {one}{hint}")
    if group_by is not None:
        return tuple(name for one in group_by for name in names if is_within(name, one)), {}
    columns: dict[str, list[str]] = {}
    for name in names:
        if not any(is_within(name, one) for one in (*NOT_OPTIONS, *ignore)):
            values = [run.options.get(name, ABSENT) for run in runs]
            if len(set(values)) > 1:
                columns[name] = values
    together: dict[str, tuple[str, ...]] = {}
    shown = list(columns)
    for name in columns:
        leader = next((one for one in shown if one != name and _follows(name, one, columns)), None)
        if leader is not None:
            shown.remove(name)
            together[leader] = (*together.get(leader, ()), name, *together.pop(name, ()))
    return tuple(shown), together


def _follows(name: str, leader: str, columns: Mapping[str, Sequence[str]]) -> bool:
    """Whether an option need not be shown because another tells it.

    It changes exactly when the other does; or it is of the same group and has one value for each of the
    other's, as the options have that come with a choice of the group; or it has one value wherever it and the
    other are options at all.
    """
    pairs = len(set(zip(columns[name], columns[leader], strict=True)))
    of_one_group = name.partition(".")[0] == leader.partition(".")[0]
    is_constant = len(set(columns[name]) - {ABSENT}) == 1
    leads = pairs == len(set(columns[leader]))
    is_led_too = pairs == len(set(columns[name]))
    earlier = list(columns).index(leader) < list(columns).index(name)
    return leads and (earlier if is_led_too else of_one_group or is_constant)


def _values(members: Mapping[int, Run], metric: str | None) -> dict[int, float]:
    """Return a metric for each seed that has it; an empty mapping without a metric."""
    found = {} if metric is None else {seed: run.value(metric) for seed, run in sorted(members.items())}
    return {seed: value for seed, value in found.items() if value is not None}


def _interpolated(curve: Sequence[Group], costs: Mapping[int, float]) -> dict[int, float]:
    """Interpolate the curve of each seed at that seed's cost; seeds outside their curve are skipped."""
    found = {}
    for seed, cost in costs.items():
        points = sorted((group.costs[seed], group.values[seed]) for group in curve if seed in group.values)
        if points and points[0][0] <= cost <= points[-1][0]:
            at, values = zip(*points, strict=True)
            found[seed] = float(np.interp(math.log(cost), np.log(at), values))
    return found


def _index_of(baseline: Path, groups: Sequence[Group]) -> int:
    for index, group in enumerate(groups):
        if baseline.resolve() in [folder.resolve() for folder in group.folders]:
            return index
    raise UsageError(f"task.baseline must be one of the finished runs that are compared, got {baseline}")
