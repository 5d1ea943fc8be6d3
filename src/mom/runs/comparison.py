"""Compare groups of runs that differ in options: mean and std over seeds, and paired differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from mom.errors import UsageError, as_written, did_you_mean
from mom.runs.records import Run, is_within

NOT_OPTIONS = (
    "seed",
    "run_dir",
    "name",
    "tags",
    "notes",
    "resume",
    "ckpt",
    "debug",
    "logger",
    "launcher",
    "search",
    "cluster",
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
    """Mean difference over pairs of runs with the same seed, and its confidence interval (Student's t).

    The standard error ``error`` and the bounds of the interval, ``low`` and ``high``, are None for a single pair.
    """

    pairs: int
    mean: float
    error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Args:
        options: values of the options in which the groups differ.
        runs: the run of each seed.
        values: the metric of each seed.
        costs: the cost metric of each seed; empty without one.
        others: the reference value of each seed that has one.
        difference: paired difference from the reference values; None without any.
    """

    options: tuple[str, ...]
    runs: Mapping[int, Run]
    values: Mapping[int, float]
    costs: Mapping[int, float]
    others: Mapping[int, float] = dataclasses.field(default_factory=dict)
    difference: Paired | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return _mean(self.values.values())

    @property
    def cost(self) -> float | None:
        """Mean of the cost metric over the seeds; None without such a metric."""
        return _mean(self.costs.values()) if self.costs else None

    @property
    def partner(self) -> float | None:
        """Mean of the reference values; None without any."""
        return _mean(self.others.values()) if self.others else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (divided by n − 1); None for one seed."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The groups of a set of runs.

    Args:
        options: the options in which the groups differ; one option of each set that always changes together.
        together: for each option in ``options``, the others that change with it.
        groups: best first.
        baseline: indices of the groups that the others are compared with; several form a curve.
        left_out: skipped runs without the metrics, with the reason for each.
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

    The arguments are the options of :class:`mom.config.CompareConfig`. The baselines' curve is interpolated linearly
    over the logarithm of the cost, for each seed; a run outside the curve has no reference value.

    Raises:
        UsageError: no run has the metrics, the baseline is not among the runs, or two runs of a group share a seed.
    """
    counted, left_out = list(runs), []
    wanted = {"metric": metric, "cost_metric": cost_metric, "reference_metric": reference_metric}
    for option, name in wanted.items():
        if name is None:
            continue
        lacking = [run for run in counted if run.value(name) is None]
        if len(lacking) == len(counted):
            hint = did_you_mean(name, sorted({name for run in runs for name in run.summary}))
            raise UsageError(f"task.{option}={name} is not in the summary.json of any finished run{hint}")
        if (
            option != "reference_metric"
        ):  # a run without a reference value still counts towards its group's mean
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
    groups = []
    for key, members in gathered.items():
        by_seed = dict(sorted(members.items()))
        groups.append(Group(key, by_seed, _values(by_seed, metric), _values(by_seed, cost_metric)))
    groups.sort(key=lambda group: group.mean, reverse=largest_is_best)
    chosen = tuple(sorted({_index_of(folder, groups) for folder in baseline}))
    if cost_metric is not None and len(chosen) < 2:
        raise UsageError(
            "task.cost_metric requires task.baseline to name runs of at least two groups, "
            f"got {as_written([str(folder) for folder in baseline])}"
        )
    curve = [groups[index] for index in chosen]
    for index, group in enumerate(groups):
        if reference_metric is not None:
            others = _values(group.runs, reference_metric)
        elif index in chosen or not chosen:
            continue
        elif cost_metric is not None:
            others = _interpolated(curve, group.costs)
        else:
            others = dict(curve[0].values)
        difference = paired(group.values, others, confidence)
        groups[index] = dataclasses.replace(group, others=others, difference=difference)
    return Comparison(options, together, tuple(groups), chosen, tuple(left_out))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95) -> Paired | None:
    """Return the mean difference ``ours − theirs`` over the seeds that both have; None if there are none.

    The interval is Student's t with n − 1 degrees of freedom for n pairs.
    """
    from scipy import stats  # local because it takes a second to import

    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    number = len(differences)
    if number < 2:
        return Paired(1, *differences) if differences else None
    mean = _mean(differences)
    error = float(stats.sem(differences))
    width = float(stats.t.ppf((1 + confidence) / 2, number - 1)) * error
    return Paired(number, mean, error, mean - width, mean + width)


def _differing(
    runs: Sequence[Run], group_by: Sequence[str] | None, ignore: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the options in which runs differ, one of each set that changes together, and the rest of each set."""
    names = list(dict.fromkeys(name for run in runs for name in run.options))
    for option, wanted in (("group_by", group_by or ()), ("ignore", ignore)):
        for prefix in wanted:
            if not any(is_within(name, prefix) for name in names):
                hint = did_you_mean(prefix, names)
                raise UsageError(f"task.{option} must list options of the runs, got {prefix}{hint}")
    if group_by is not None:
        return tuple(name for prefix in group_by for name in names if is_within(name, prefix)), {}
    columns = {
        name: [run.options.get(name, ABSENT) for run in runs]
        for name in names
        if not is_within(name, *NOT_OPTIONS, *ignore)
    }
    columns = {name: values for name, values in columns.items() if len(set(values)) > 1}
    together: dict[str, tuple[str, ...]] = {}
    shown = list(columns)
    for name in columns:
        leader = next((other for other in shown if other != name and _follows(name, other, columns)), None)
        if leader is not None:
            shown.remove(name)
            together[leader] = (*together.get(leader, ()), name, *together.pop(name, ()))
    return tuple(shown), together


def _follows(name: str, leader: str, columns: Mapping[str, Sequence[str]]) -> bool:
    """Return whether an option is redundant next to ``leader``, whose value determines it.

    Either both always change together; or both are in one group, as options that come with a choice of the group;
    or the option has a single value in all runs that have it; or the leader is ``arm``, which names the model.
    """
    pairs = len(set(zip(columns[name], columns[leader], strict=True)))
    if pairs > len(set(columns[leader])) or name == "arm":
        return False
    if leader == "arm":
        return True
    if pairs == len(set(columns[name])):  # each determines the other: show the first
        return list(columns).index(leader) < list(columns).index(name)
    in_one_group = name.partition(".")[0] == leader.partition(".")[0]
    return in_one_group or len(set(columns[name]) - {ABSENT}) == 1


def _mean(values: Collection[float]) -> float:
    return float(np.mean(list(values)))


def _values(members: Mapping[int, Run], metric: str | None) -> dict[int, float]:
    """Return a metric for each seed that has it; an empty mapping without a metric."""
    found = {} if metric is None else {seed: run.value(metric) for seed, run in members.items()}
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
        if any(run.folder.resolve() == baseline.resolve() for run in group.runs.values()):
            return index
    raise UsageError(f"task.baseline must be one of the finished runs that are compared, got {baseline}")
