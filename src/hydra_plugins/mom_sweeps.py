"""Hydra's ``-m`` for mom: a sweeper of grids and a launcher that makes a process of each job.

Hydra finds plugins in modules of the namespace ``hydra_plugins`` alone and imports them at every start, so what
they need is imported when they work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class JobSweeper(BasicSweeper):
    """Hydra's own sweeper, or a search; leaves nothing behind where the request was wrong."""

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every combination of the comma-separated values, or with ``search=…`` the trials of a search.

        The options are those in ``hydra.sweeper.params`` and, over them, ``arguments``.

        Raises:
            RequestError: a job that cannot be, or without a search an interval, which only that draws from.
        """
        from mom.errors import RequestError

        assert self.config is not None and self.hydra_context is not None
        given = [*self._parse_config(), *arguments]
        with nothing_left_behind(Path(self.config.hydra.sweep.dir)):
            if "search" in self.config:
                from mom.sweeps.search import search

                return search(self.config, given, partial(composed, self.hydra_context, self.config))
            for one in OverridesParser.create().parse_overrides(given):
                if one.is_sweep_override() and not one.is_discrete_sweep():
                    raise RequestError(
                        one.get_key_element(),
                        str(one.input_line).partition("=")[2],
                        "values with commas between them, or with search=tpe an interval to draw from",
                    )
            return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """The launcher composes every job before it starts the first."""


class JobLauncher(Launcher):
    """Runs each job as ``python run.py`` with its overrides and a folder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives every launcher; the task function runs in the jobs' own processes."""
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, carry them out, and print a table of them.

        Raises:
            RequestError: a job that cannot be; none was started.
            JobsFailed: some failed.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running jobs have ended.
        """
        from mom.sweeps.grid import sweep

        assert self.config is not None and self.hydra_context is not None
        compose = partial(composed, self.hydra_context, self.config)
        sweep([compose(list(job), initial_job_idx + i) for i, job in enumerate(job_overrides)])
        return []


def composed(
    hydra_context: HydraContext, config: DictConfig, overrides: list[str], number: int
) -> tuple[list[str], DictConfig]:
    """A job's overrides and what they compose to, with its number."""
    job = hydra_context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id = str(number)
        job.hydra.job.num = number
    return overrides, job


@contextlib.contextmanager
def nothing_left_behind(folder: Path) -> Any:
    """Remove a sweep's folder, and the one it needed, where no job was started in it."""
    try:
        yield
    finally:
        if folder.is_dir() and all(one.name == "multirun.yaml" for one in folder.iterdir()):
            (folder / "multirun.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the parent may hold other sweeps
                folder.rmdir()
                folder.parent.rmdir()
