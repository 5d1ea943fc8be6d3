"""Hydra's ``-m`` for mom: a sweeper for grids and searches, and a launcher that runs each job in its own process.

Hydra finds plugins only in the namespace package ``hydra_plugins`` and imports all of them at every start, so imports
of ``mom`` are local to the functions that need them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

LARGEST_SWEEP = 10_000
"""Jobs of a sweep. All are composed and checked before the first starts, in about a quarter of a second each."""


class JobSweeper(BasicSweeper):
    """Sweeper for grids, as in Hydra's basic sweeper, and for searches; an invalid request leaves no files behind."""

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every combination of the comma-separated values, or the trials of a search (``search=…``).

        ``arguments`` override the options in ``hydra.sweeper.params``.

        Raises:
            UsageError: for an invalid job, or an interval without a search to sample from it.
        """
        from mom.errors import UsageError

        assert self.config is not None and self.hydra_context is not None
        given = [*self._parse_config(), *arguments]
        with remove_if_unused(Path(self.config.hydra.sweep.dir)):
            if "search" in self.config:
                from mom.sweeps.search import search

                return search(self.config, given, partial(compose_job, self.hydra_context, self.config))
            count = 1
            for override in OverridesParser.create().parse_overrides(given):
                count *= number_of_values(override)
                if override.is_sweep_override() and not override.is_discrete_sweep():
                    raise UsageError(
                        f"{override.get_key_element()} must be comma-separated values, got "
                        f"{str(override.input_line).partition('=')[2]}; add search=tpe to sample from an interval"
                    )
            if count > LARGEST_SWEEP:  # Hydra would list them all in memory
                raise UsageError(
                    f"a sweep must have at most {LARGEST_SWEEP:,} jobs, got {count:,}; search=random runs some of them"
                )
            return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Skip Hydra's check: the launcher composes every job before it starts the first."""


class JobLauncher(Launcher):
    """Launcher that runs each job in its own process and run directory."""

    def __init__(self) -> None:
        super().__init__()
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the configuration; the task function is not needed, because jobs run in their own processes."""
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, run them, and print a table; see :func:`mom.sweeps.grid.run_sweep`."""
        from mom.sweeps.grid import run_sweep

        assert self.config is not None and self.hydra_context is not None
        compose = partial(compose_job, self.hydra_context, self.config)
        run_sweep([compose(list(job), initial_job_idx + i) for i, job in enumerate(job_overrides)])
        return []


def number_of_values(override: Override) -> int:
    """Return the number of values of an override in a sweep, without listing them."""
    swept = override.value()
    if isinstance(swept, RangeSweep):
        assert swept.start is not None and swept.stop is not None
        return max(0, math.ceil((swept.stop - swept.start) / swept.step))
    return len(swept.list) if isinstance(swept, ChoiceSweep) else 1


def compose_job(
    hydra_context: HydraContext, config: DictConfig, overrides: list[str], number: int
) -> tuple[list[str], DictConfig]:
    """Return a job's overrides and the configuration composed from them, with its number."""
    job = hydra_context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id = str(number)
        job.hydra.job.num = number
    return overrides, job


@contextlib.contextmanager
def remove_if_unused(directory: Path) -> Any:
    """Remove a sweep's directory, and its parent if empty, if no job was started in it."""
    try:
        yield
    finally:
        if directory.is_dir() and all(path.name == "multirun.yaml" for path in directory.iterdir()):
            (directory / "multirun.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the parent may contain other sweeps
                directory.rmdir()
                directory.parent.rmdir()
