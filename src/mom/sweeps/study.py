"""The Optuna study of a search: one file in the sweep's folder, which the search and its trials write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from mom.config.search import SearchConfig
from mom.errors import RequestError

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.journal"
PRUNED_AT = "pruned_at"
"""What a trial notes when it ends itself: the optimizer step."""

_NAME, _OPTIONS = "search", "options"


def open_study(journal: Path, search: SearchConfig) -> optuna.Study:
    """The study in a journal, made if it is not there.

    Its random numbers go on from the trials there are, so that a second start does not draw the first's again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(journal)
    made = {one.study_name: len(storage.get_all_trials(one._study_id)) for one in storage.get_all_studies()}
    seed = (search.seed + made.get(_NAME, 0)) % 2**32
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "tpe":
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=search.startup_trials, constant_liar=search.trials_at_once > 1
        )
    study = optuna.create_study(
        storage=storage,
        study_name=_NAME,
        sampler=sampler,
        direction="minimize" if search.mode == "min" else "maximize",
        load_if_exists=True,
    )
    study.set_user_attr(_OPTIONS, dataclasses.asdict(search))
    return study


def open_trial(journal: str | Path, number: int) -> optuna.Trial:
    """A trial as its own process sees it, with the pruner of the search.

    Raises:
        RequestError: ``callbacks.prune``, if there is no such trial.
    """
    import optuna

    if not Path(journal).is_file():
        raise RequestError("callbacks.prune.journal", journal, "the journal of a search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=_NAME, storage=_storage(Path(journal)))
    search = SearchConfig(**study.user_attrs[_OPTIONS])
    study.pruner = optuna.pruners.NopPruner()
    if search.pruner == "median":
        study.pruner = optuna.pruners.MedianPruner(search.startup_trials, search.warmup_steps)
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise RequestError("callbacks.prune.trial", number, f"below {len(trials)}, the trials of the search")
    return optuna.Trial(study, trials[number]._trial_id)


def space(overrides: Sequence[str]) -> tuple[dict[str, optuna.distributions.BaseDistribution], list[str]]:
    """What to draw, by Hydra's grammar of sweeps, and the overrides that stay as they are.

    ``a,b,c`` is one of them, ``range(1,5)`` an integer below 5, ``interval(0,1)`` a number between,
    ``int(interval(1,9))`` an integer between, and ``tag(log,interval(…))`` either on a logarithmic scale.

    Raises:
        RequestError: an interval that cannot be, or nothing to draw.
    """
    drawn = {}
    fixed = []
    for one in OverridesParser.create().parse_overrides(list(overrides)):
        if one.is_sweep_override():
            drawn[one.get_key_element()] = _distribution(one)
        else:
            fixed.append(str(one.input_line))
    if not drawn:
        raise RequestError("search", "nothing to draw", "options such as optimizer.lr=interval(1e-4,1e-2)")
    return drawn, fixed


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
        written = str(override.input_line).partition("=")[2]
        raise RequestError(
            override.get_key_element(), written, f"what can be drawn from: {reason}"
        ) from reason


def _storage(journal: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(journal)))
