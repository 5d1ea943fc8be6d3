"""Optuna study of a search: a file in the sweep's directory, written by the search and its trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from mom.config.search import SearchConfig
from mom.errors import UsageError

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.journal"
PRUNED_AT = "pruned_at"
"""Attribute of a pruned trial: the optimizer step at which it stopped."""

_NAME, _OPTIONS = "search", "options"


def open_study(journal: Path, search: SearchConfig) -> optuna.Study:
    """Open the study in a journal, or create it.

    The seed depends on the number of trials so far, so that a restart does not sample the first trials again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(journal),
        study_name=_NAME,
        direction="minimize" if search.mode == "min" else "maximize",
        load_if_exists=True,
    )
    seed = (search.seed + len(study.get_trials(deepcopy=False))) % 2**32
    study.sampler = optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "tpe":
        study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=search.startup_trials, constant_liar=search.trials_at_once > 1
        )
    study.set_user_attr(_OPTIONS, dataclasses.asdict(search))
    return study


def open_trial(journal: str | Path, number: int) -> optuna.Trial:
    """Open a trial in the trial's own process, with the pruner of the search."""
    import optuna

    if not Path(journal).is_file():
        raise UsageError(f"callbacks.prune.journal must be the journal of a search, got {journal}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
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


def search_space(
    overrides: Sequence[str],
) -> tuple[dict[str, optuna.distributions.BaseDistribution], list[str]]:
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
    return sampled, fixed


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


def _storage(journal: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(journal)))
