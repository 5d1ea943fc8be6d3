"""Hyperparameter search: trials sampled by Optuna, each a job, pruned by their validation metric."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mom.config.launcher import LauncherConfig, launcher_section
from mom.config.search import SearchConfig
from mom.console import MISSING, build_table, print_line, print_table
from mom.errors import JobsFailed, UsageError
from mom.runs.owner import own
from mom.runs.program import command_line
from mom.runs.signals import Interrupted
from mom.sweeps.grid import plan, to_plain
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
    """Sample and run trials until there are ``search.num_trials``, then print the best.

    A search restarted in the same directory continues: finished trials count, and interrupted trials are resumed.

    Args:
        config: the composed configuration of the search, including the ``hydra`` group.
        overrides: the command line, with the options to sample in Hydra's sweep grammar.
        compose: composes the configuration of a job from its overrides and its number.

    Raises:
        UsageError: if there is nothing to sample, the first trial is invalid, another search runs in the directory, or
            its trials cannot be compared with those of this one; no trial was started.
        JobsFailed: if trials failed.
        Interrupted: after a signal, once the running trials have ended.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError(
            f"search={config.search.sampler} requires optuna: pip install 'mixture-of-modules[sweep]'"
        )
    options = SearchConfig.from_mapping(to_plain(config.search))
    launcher = launcher_section(to_plain(config.launcher))
    check_launcher(launcher)
    space = search_space([text for text in overrides if not configures_sweep(text)])
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with own(folder, "hydra.sweep.dir"):
        is_new = not (folder / JOURNAL).exists()
        try:
            study = open_study(folder / JOURNAL, options, space)
            current = _Search(study, options, launcher, folder, space.fixed, compose)
            stopped_by = current.run(space.sampled)
        except UsageError:
            if is_new:
                (folder / JOURNAL).unlink(missing_ok=True)
            raise
    current.print_best()
    if stopped_by:
        raise Interrupted(stopped_by)
    failed = sum(trial.state.name == "FAIL" for trial in current.trials)
    if failed:
        raise JobsFailed(failed, len(current.trials))


@dataclasses.dataclass
class _Search:
    """A search: its study, and the parts from which it builds every trial.

    Args:
        study: record of the trials.
        options: how trials are sampled.
        launcher: where the trials run.
        folder: the search's directory.
        fixed: overrides that all trials share.
        compose: see :func:`search`.
    """

    study: optuna.Study
    options: SearchConfig
    launcher: LauncherConfig
    folder: Path
    fixed: list[str]
    compose: Compose

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials so far, by number."""
        return self.study.get_trials(deepcopy=False)

    def run(self, sampled: dict[str, optuna.distributions.BaseDistribution]) -> int:
        """Run trials until there are enough; return the number of the signal that stopped the search, or 0."""
        unfinished = [trial.number for trial in self.trials if trial.state.name == "RUNNING"]
        while True:
            ended = sum(trial.state.is_finished() for trial in self.trials)
            wanted = min(self.options.trials_at_once, self.options.num_trials - ended)
            if wanted < 1:
                return 0
            numbers, unfinished = unfinished[:wanted], unfinished[wanted:]
            while len(numbers) < wanted:
                trial = self.study.ask(sampled)
                trial.set_user_attr(_OVERRIDES, [f"{name}={value}" for name, value in trial.params.items()])
                numbers.append(trial.number)
            jobs: dict[int, Job] = {}
            for number in numbers:
                try:
                    jobs[number] = self._job(number)
                except UsageError as error:
                    if ended == 0 and number == 0:
                        raise
                    self._fail(number, str(error))
            numbers_of = {job.folder: number for number, job in jobs.items()}

            def on_end(job: Job, numbers_of: dict[Path, int] = numbers_of) -> None:
                pruned = self._is_pruned(numbers_of[job.folder], job)
                print_job_finished(job, "pruned" if pruned else None)

            stopped_by = run_jobs(list(jobs.values()), self.launcher, self.folder, print_job_started, on_end)
            for number, job in jobs.items():
                self._record_result(number, job)
            if stopped_by:
                return stopped_by

    def _job(self, number: int) -> Job:
        """Return the checked job of a trial."""
        sampled = self.trials[number].user_attrs.get(_OVERRIDES)
        if sampled is None:
            raise UsageError(
                f"cannot resume trial {number}: the search ended before it recorded the trial's options"
            )
        pruning = [
            "+callbacks.prune._target_=mom.sweeps.pruning.PruneTrial",
            f"+callbacks.prune.journal='{self.folder / JOURNAL}'",
            f"+callbacks.prune.trial={number}",
        ]
        (job,), (typed,) = plan([self.compose([*self.fixed, *sampled, *pruning], number)])
        typed.check_buildable(devices=not self.launcher.is_remote)
        self._set_attribute(number, _FOLDER, str(job.folder))
        return dataclasses.replace(job, label=" ".join(sampled))

    def _record_result(self, number: int, job: Job) -> None:
        """Record how a trial ended, except an interrupted trial, which can be resumed later."""
        from optuna.trial import TrialState

        value = job.summary.get(self.options.metric)
        if job.state == "succeeded" and isinstance(value, int | float):
            self.study.tell(number, float(value))
        elif self._is_pruned(number, job):
            self.study.tell(number, state=TrialState.PRUNED)
        elif job.state in ("succeeded", "failed"):
            self._fail(number, job.error or f"its summary.json has no number {self.options.metric}")

    def _is_pruned(self, number: int, job: Job) -> bool:
        """Return whether a trial was interrupted by the pruner rather than by a signal."""
        return job.state == "interrupted" and PRUNED_AT in self.trials[number].user_attrs

    def _fail(self, number: int, reason: str) -> None:
        from optuna.trial import TrialState

        self._set_attribute(number, _REASON, reason)
        self.study.tell(number, state=TrialState.FAIL)

    def _set_attribute(self, number: int, name: str, value: str) -> None:
        self.study._storage.set_trial_user_attr(self.trials[number]._trial_id, name, value)

    def print_best(self) -> None:
        """Print a table of the best trials, the errors of failed trials, and the command of the best trial."""
        complete = [trial for trial in self.trials if trial.state.name == "COMPLETE"]
        complete.sort(key=lambda trial: trial.values[0], reverse=self.options.mode == "max")
        counts = Counter(trial.state.name.lower() for trial in self.trials)
        listed = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        names = list(dict.fromkeys(name for trial in complete[:_SHOWN] for name in trial.params))
        rows = []
        for trial in complete[:_SHOWN]:
            values = [_format(trial.params.get(name, MISSING)) for name in names]
            rows.append([f"{trial.value:.4f}", *values, trial.user_attrs.get(_FOLDER)])
        headings = [self.options.metric, *names, "folder"]
        title = f"{len(self.trials)} trials: {listed}"
        table = build_table(headings, rows, title=title, texts=len(headings))
        table.columns[0].justify = "right"
        print()
        print_table(table)
        for trial in self.trials:
            if _REASON in trial.user_attrs:
                print_line(f"trial {trial.number}: {trial.user_attrs[_REASON]}")
        if complete:
            best = [*self.fixed, *complete[0].user_attrs[_OVERRIDES]]
            print_line(f"Best trial: {command_line(best)}")
        print_line(f"Written to {self.folder}")


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
