"""Jobs of a sweep: their configurations, run directories, and states."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser

from mom.errors import UsageError
from mom.runs.directory import CONFIG, error_line, read_request, read_status, read_summary

_NOT_COMPARED = ("run_dir", "name", "tags", "notes", "resume", "debug", "launcher", "search")
"""Top-level options that may differ between two attempts at the same job."""

_SWEEP_OPTIONS = ("launcher", "sweep", "search")

State = Literal["waiting", "running", "succeeded", "failed", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        overrides: overrides on the command line, without those that configure the sweep.
        label: the overrides that differ between the jobs of the sweep.
        config: the resolved configuration.
        folder: the run directory.
        resumes: whether the task can resume from its last checkpoint.
        devices: GPUs that the job may use (the value of ``CUDA_VISIBLE_DEVICES``); None for all.
    """

    overrides: tuple[str, ...]
    label: str
    config: Mapping[str, Any]
    folder: Path
    resumes: bool
    devices: str | None = None

    @property
    def state(self) -> State:
        """The state in ``status.json``; ``waiting`` if there is none."""
        return read_status(self.folder).get("state", "waiting")

    @property
    def error(self) -> str | None:
        """Why the job failed, in one line; None if it did not."""
        return error_line(read_status(self.folder))

    @property
    def summary(self) -> dict[str, Any]:
        """The run's final metrics; empty if it has not ended."""
        return read_summary(self.folder)


def configures_sweep(override: str) -> bool:
    """Return whether an override configures the sweep rather than its jobs."""
    return _group(override) in _SWEEP_OPTIONS


def is_compared(override: str) -> bool:
    """Return whether an override must be the same in two attempts at the same job."""
    return _group(override) not in (*_NOT_COMPARED, "hydra")


def _group(override: str) -> str:
    key = OverridesParser.create().parse_override(override).get_key_element().lstrip("+~")
    return key.partition(".")[0]


def labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return for each job the overrides that not all jobs share."""
    common = set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(override for override in job if override not in common) for job in jobs]


def assign_folders(configs: Sequence[Mapping[str, Any]], wanted: Sequence[Path], root: Path) -> list[Path]:
    """Return the run directory of each job: that of an earlier attempt at the same configuration, or a new one.

    Args:
        configs: resolved configuration of each job.
        wanted: directory that Hydra would assign to each job.
        root: the sweep's directory.

    Raises:
        UsageError: if two jobs have the same configuration.
    """
    earlier = [path.parent for path in sorted(root.glob(f"**/{CONFIG}"))]
    known = {
        _fingerprint(request): folder for folder in earlier if (request := read_request(folder)) is not None
    }
    taken = set(known.values())
    seen: dict[str, int] = {}
    for number, (config, default) in enumerate(zip(configs, wanted, strict=True)):
        key = _fingerprint(config)
        if key in seen:
            raise UsageError(f"jobs {seen[key]} and {number} of the sweep have the same configuration")
        seen[key] = number
        if key not in known:
            candidates = (default, *(root / str(index) for index in range(len(configs) + len(taken))))
            known[key] = next(path for path in candidates if path not in taken)
            taken.add(known[key])
    return [known[key] for key in seen]


def _fingerprint(config: Mapping[str, Any]) -> str:
    """Return a string that identifies a job by its configuration."""
    compared = {name: value for name, value in config.items() if name not in _NOT_COMPARED}
    return json.dumps(compared, sort_keys=True)
