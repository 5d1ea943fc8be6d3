"""Hyperparameter search: trials sampled by Optuna, each a job, pruned by their validation metric."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from mom.config.launcher import LauncherConfig, launcher_section
from mom.config.search import SearchConfig
from mom.console import print_table, standard_output
from mom.errors import JobsFailed, UsageError
from mom.sweeps.grid import plan
from mom.sweeps.jobs import Job, configures_sweep
from mom.sweeps.launchers import check_launcher, run_jobs
from mom.sweeps.report import print_job_finished, print_job_started
from mom.sweeps.study import JOURNAL, PRUNED_AT, open_study, search_space

if TYPE_CHECKING:
    import optuna

Compose = Callable[[list[str], int], tuple[list[str], DictConfig]]

_SHOWN = 10
_OVERRIDES, _REASON, _FOLDER = "overrides", "why", "folder"


def search(config: DictConfig, overrides: Sequence[str], compose: Compose) -> None:
    """Sample and run trials until there are as many as requested; then print the best.

    A search that is started again in the same directory continues: finished trials count, and an interrupted one is
    resumed.

    Args:
        config: the composed configuration of the search, including Hydra's part.
        overrides: the command line, with the options to sample in Hydra's sweep grammar.
        compose: composes the configuration of a job from its overrides and its number.

    Raises:
        UsageError: if there is nothing to sample or the first trial is invalid; no trial was started.
        JobsFailed: if trials failed.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running trials have ended.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError(
            f"search={config.search.sampler} requires optuna: pip install 'mixture-of-modules[sweep]'"
        )
    options, launcher = _sections(config)
    check_launcher(launcher)
    sampled, fixed = search_space([text for text in overrides if not configures_sweep(text)])
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    is_new = not (folder / JOURNAL).exists()
    try:
        study = open_study(folder / JOURNAL, options)
        completed = _run_trials(study, options, launcher, folder, sampled, fixed, compose)
    except UsageError:
        if is_new:
            (folder / JOURNAL).unlink(missing_ok=True)
        raise
    _print_best(study, options, fixed, folder)
    if not completed:
        raise KeyboardInterrupt
    trials = study.get_trials(deepcopy=False)
    failed = sum(trial.state.name == "FAIL" for trial in trials)
    if failed:
        raise JobsFailed(failed, len(trials))


def _sections(config: DictConfig) -> tuple[SearchConfig, LauncherConfig]:
    search, launcher = (OmegaConf.to_container(config[name], resolve=True) for name in ("search", "launcher"))
    assert isinstance(search, dict) and isinstance(launcher, dict)
    return (
        SearchConfig.from_mapping({str(name): value for name, value in search.items()}),
        launcher_section({str(name): value for name, value in launcher.items()}),
    )


def _run_trials(
    study: optuna.Study,
    options: SearchConfig,
    launcher: LauncherConfig,
    folder: Path,
    sampled: dict[str, optuna.distributions.BaseDistribution],
    fixed: list[str],
    compose: Compose,
) -> bool:
    """Run trials until there are enough; return false if the search was stopped."""
    unfinished = [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
    while True:
        ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        wanted = min(options.trials_at_once, options.num_trials - ended)
        if wanted < 1:
            return True
        numbers, unfinished = unfinished[:wanted], unfinished[wanted:]
        while len(numbers) < wanted:
            trial = study.ask(sampled)
            trial.set_user_attr(_OVERRIDES, [f"{name}={value}" for name, value in trial.params.items()])
            numbers.append(trial.number)
        jobs: dict[int, Job] = {}
        for number in numbers:
            try:
                jobs[number] = _job(study, number, folder, fixed, compose, launcher)
            except UsageError as error:
                if ended == 0 and number == 0:
                    raise
                _fail(study, number, str(error))
        numbers_of = {job.folder: number for number, job in jobs.items()}

        def on_end(job: Job, numbers_of: dict[Path, int] = numbers_of) -> None:
            print_job_finished(job, "pruned" if _is_pruned(study, numbers_of[job.folder], job) else None)

        completed = run_jobs(list(jobs.values()), launcher, folder, print_job_started, on_end)
        for number, job in jobs.items():
            _record_result(study, number, job, options.metric)
        if not completed:
            return False


def _job(
    study: optuna.Study,
    number: int,
    folder: Path,
    fixed: list[str],
    compose: Compose,
    launcher: LauncherConfig,
) -> Job:
    """Return the checked job of a trial."""
    attributes = study.get_trials(deepcopy=False)[number].user_attrs
    if _OVERRIDES not in attributes:
        raise UsageError(
            f"cannot resume trial {number}: the search ended before it recorded the trial's options"
        )
    overrides, config = compose(
        [
            *fixed,
            *attributes[_OVERRIDES],
            "+callbacks.prune._target_=mom.sweeps.pruning.PruneTrial",
            f"+callbacks.prune.journal='{folder / JOURNAL}'",
            f"+callbacks.prune.trial={number}",
        ],
        number,
    )
    (job,), (typed,) = plan([(overrides, config)])
    typed.check_buildable(devices=not launcher.is_remote)
    study._storage.set_trial_user_attr(_id(study, number), _FOLDER, str(job.folder))
    return dataclasses.replace(job, label=" ".join(attributes[_OVERRIDES]))


def _record_result(study: optuna.Study, number: int, job: Job, metric: str) -> None:
    """Record in the study how a trial ended; an interrupted one can be resumed later."""
    from optuna.trial import TrialState

    value = job.summary.get(metric)
    if job.state == "succeeded" and isinstance(value, int | float):
        study.tell(number, float(value))
    elif _is_pruned(study, number, job):
        study.tell(number, state=TrialState.PRUNED)
    elif job.state in ("succeeded", "failed"):
        _fail(study, number, job.error or f"its summary.json has no number {metric}")


def _is_pruned(study: optuna.Study, number: int, job: Job) -> bool:
    """Return whether the pruner rather than a signal ended a trial."""
    return job.state == "interrupted" and PRUNED_AT in study.get_trials(deepcopy=False)[number].user_attrs


def _fail(study: optuna.Study, number: int, reason: str) -> None:
    from optuna.trial import TrialState

    study._storage.set_trial_user_attr(_id(study, number), _REASON, reason)
    study.tell(number, state=TrialState.FAIL)


def _id(study: optuna.Study, number: int) -> int:
    return study.get_trials(deepcopy=False)[number]._trial_id


def _print_best(study: optuna.Study, options: SearchConfig, fixed: list[str], folder: Path) -> None:
    """Print a table of the best trials, the errors of failed ones, and the command of the best."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    complete.sort(key=lambda trial: trial.values[0], reverse=options.mode == "max")
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.state.name.lower()] = counts.get(trial.state.name.lower(), 0) + 1
    console = standard_output()
    listed = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    table = Table(title=f"{len(trials)} trials: {listed}", title_justify="left")
    names = list(dict.fromkeys(name for trial in complete[:_SHOWN] for name in trial.params))
    for header in (options.metric, *names, "folder"):
        table.add_column(header, justify="right" if header == options.metric else "left", overflow="fold")
    for trial in complete[:_SHOWN]:
        values = [_format(trial.params.get(name, "–")) for name in names]
        table.add_row(f"{trial.value:.4f}", *values, trial.user_attrs.get(_FOLDER, "–"))
    console.print()
    print_table(table, console)
    lines = [
        f"trial {trial.number}: {trial.user_attrs[_REASON]}"
        for trial in trials
        if _REASON in trial.user_attrs
    ]
    if complete:
        lines.append(f"Best trial: python run.py {' '.join([*fixed, *complete[0].user_attrs[_OVERRIDES]])}")
    for line in (*lines, f"Written to {folder}"):
        console.print(line, soft_wrap=True, highlight=False)


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
