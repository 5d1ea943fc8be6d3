"""Optuna study of a search: a file in the sweep's directory, written by the search and its trials."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from mom.config.search import SearchConfig
from mom.errors import UsageError, first_line
from mom.sweeps.jobs import is_compared

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.journal"
PRUNED_AT = "pruned_at"
"""Attribute of a pruned trial: the optimizer step at which it stopped."""

_NAME, _OPTIONS, _FIXED = "search", "options", "fixed"
_SAME = ("metric", "mode")
"""Options of a search without which its trials cannot be compared."""


def open_study(journal: Path, search: SearchConfig, space: Space | None = None) -> optuna.Study:
    """Open the study in a journal, or create it.

    The seed depends on the number of trials so far, so that a restart does not sample the first trials again. The last
    line of a journal is cut off if it is incomplete, as a full disk or a power failure leaves it.

    Args:
        journal: the file.
        search: how trials are sampled.
        space: what is sampled, to check that the trials in the journal are of the same request.

    Raises:
        UsageError: the journal is damaged, or its trials cannot be compared with those of this search.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _journal_errors(journal):
        study = optuna.create_study(
            storage=_storage(journal, is_repaired=True),
            study_name=_NAME,
            direction="minimize" if search.mode == "min" else "maximize",
            load_if_exists=True,
        )
        if space is not None:
            _check_same(study, journal, search, space)
            study.set_user_attr(_FIXED, sorted(filter(is_compared, space.fixed)))
    seed = (search.seed + len(study.get_trials(deepcopy=False))) % 2**32
    study.sampler = optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "tpe":
        study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=search.startup_trials, constant_liar=search.trials_at_once > 1
        )
    study.set_user_attr(_OPTIONS, dataclasses.asdict(search))
    return study


def _check_same(study: optuna.Study, journal: Path, search: SearchConfig, space: Space) -> None:
    """Reject a search that samples or measures otherwise than the trials in the journal."""
    from optuna.distributions import check_distribution_compatibility

    trials, before = study.get_trials(deepcopy=False), study.user_attrs
    if not trials or _OPTIONS not in before:
        return
    for name in _SAME:
        wanted, got = before[_OPTIONS].get(name), getattr(search, name)
        if wanted != got:
            raise UsageError(f"search.{name} must be {wanted} as in {journal}, got {got}")
    fixed = sorted(filter(is_compared, space.fixed))
    if differing := sorted({*before.get(_FIXED, fixed)} ^ {*fixed}):
        raise UsageError(
            f"the trials in {journal} cannot be compared with those of another request, which differs in "
            f"{', '.join(differing)}; choose another hydra.sweep.dir"
        )
    for name, earlier in trials[-1].distributions.items():
        try:
            check_distribution_compatibility(earlier, space.sampled.get(name, earlier))
        except ValueError:
            raise UsageError(
                f"{name} must be sampled as in {journal}; choose another hydra.sweep.dir to sample it otherwise"
            ) from None


def open_trial(journal: str | Path, number: int) -> optuna.Trial:
    """Open a trial in the trial's own process, with the pruner of the search."""
    import optuna

    if not Path(journal).is_file():
        raise UsageError(f"callbacks.prune.journal must be the journal of a search, got {journal}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _journal_errors(Path(journal)):
        study = optuna.load_study(study_name=_NAME, storage=_storage(Path(journal)))
    search = SearchConfig(**study.user_attrs[_OPTIONS])
    study.pruner = optuna.pruners.NopPruner()
    if search.pruner == "median":
        study.pruner = optuna.pruners.MedianPruner(search.startup_trials, search.warmup_steps)
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise UsageError(
            f"callbacks.prune.trial must be below {len(trials)}, the number of trials, got {number}"
        )
    return optuna.Trial(study, trials[number]._trial_id)


class Space(NamedTuple):
    """What a search samples.

    Attributes:
        sampled: distributions by option.
        fixed: the other overrides, which all trials share.
    """

    sampled: dict[str, optuna.distributions.BaseDistribution]
    fixed: list[str]


def search_space(overrides: Sequence[str]) -> Space:
    """Separate the options to sample, in Hydra's sweep grammar, from the fixed overrides.

    ``a,b,c`` samples one of the values, ``range(1,5)`` an integer from 1 to 4, ``interval(0,1)`` a number between the
    bounds, ``int(interval(1,9))`` an integer between them, and ``tag(log,interval(…))`` samples on a logarithmic scale.

    Raises:
        UsageError: for an invalid interval, or if there is nothing to sample.
    """
    sampled = {}
    fixed = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            sampled[override.get_key_element()] = _distribution(override)
        else:
            fixed.append(str(override.input_line))
    if not sampled:
        raise UsageError("a search requires an option to sample, such as optimizer.lr=interval(1e-4,1e-2)")
    return Space(sampled, fixed)


def _distribution(override: Override) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    swept = override.value()
    try:
        if isinstance(swept, IntervalSweep):
            low, high = swept.start, swept.end
            assert low is not None and high is not None
            is_log = "log" in swept.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=is_log)
            return FloatDistribution(low, high, log=is_log)
        if isinstance(swept, RangeSweep):
            numbers = list(swept.range())
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(int(numbers[0]), int(numbers[-1]), step=abs(int(swept.step)))
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as reason:
        raise UsageError(f"cannot sample {override.input_line}: {reason}") from reason


@contextlib.contextmanager
def _journal_errors(journal: Path) -> Iterator[None]:
    """Turn what Optuna raises on a damaged journal into a :class:`~mom.errors.UsageError` that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot read {journal}: {_damage(journal) or first_line(error)}") from error


def _damage(journal: Path) -> str | None:
    """Return the first line of a journal that is not a record; ``None`` if all are."""
    with contextlib.suppress(OSError), journal.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line)
            except ValueError as error:
                return (
                    f"line {number} is damaged ({first_line(error)}); remove it to lose only what it recorded"
                )
    return None


def _storage(journal: Path, *, is_repaired: bool = False) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(journal))
    if is_repaired and journal.exists():
        lock.acquire()
        try:
            _cut_incomplete_line(journal)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(journal), lock))


def _cut_incomplete_line(journal: Path) -> None:
    content = journal.read_bytes()
    if not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
