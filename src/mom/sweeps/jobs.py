"""The jobs of a sweep: what each asks for, which folder is its own, and what became of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from mom.errors import RequestError
from mom.runs.files import read_json

NOT_COMPARED = ("run_dir", "resume", "debug", "launcher", "search")
"""Top-level options that may differ between two attempts at one job."""

_HOW = ("launcher", "sweep", "search")

State = Literal["waiting", "running", "succeeded", "failed", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        overrides: of the command line, without those about how the sweep is carried out.
        label: those in which the jobs of the sweep differ.
        config: the resolved configuration that they compose to.
        folder: the run directory.
        resumes: whether the task can go on from its last checkpoint.
        devices: the GPUs this job may see (the value of ``CUDA_VISIBLE_DEVICES``); None for all.
    """

    overrides: tuple[str, ...]
    label: str
    config: Mapping[str, Any]
    folder: Path
    resumes: bool
    devices: str | None = None

    @property
    def state(self) -> State:
        """What ``status.json`` says; ``waiting`` where there is none."""
        return read_status(self.folder).get("state", "waiting")

    @property
    def error(self) -> str | None:
        """Why it failed, in one line."""
        error = read_status(self.folder).get("error")
        if error is None:
            return None
        told = f"{error['type']}: {error['message']}" if error["type"] else error["message"]
        return " ".join(told.split())

    @property
    def summary(self) -> dict[str, Any]:
        """The final numbers; none where the run has not ended."""
        return read_json(self.folder / "summary.json")


def read_status(folder: Path) -> dict[str, Any]:
    """What a run directory's ``status.json`` holds; nothing where there is none."""
    return read_json(folder / "status.json")


def is_about_sweep(override: str) -> bool:
    """Whether an override says how to sweep and not what a job does."""
    key = OverridesParser.create().parse_override(override).get_key_element().lstrip("+~")
    return key.partition(".")[0] in _HOW


def labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """For each job the overrides that not all jobs have in common."""
    common = set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(one for one in job if one not in common) for job in jobs]


def place(configs: Sequence[Mapping[str, Any]], wanted: Sequence[Path], root: Path) -> list[Path]:
    """The folder of each job: the one of an earlier attempt at the same configuration, else a new one.

    Args:
        configs: the resolved configuration of each job.
        wanted: the folder Hydra would give each.
        root: the sweep's folder.

    Raises:
        RequestError: if two jobs are the same.
    """
    known = earlier_attempts(root)
    taken = set(known.values())
    folders: list[Path] = []
    seen: dict[str, int] = {}
    for number, (config, hydras) in enumerate(zip(configs, wanted, strict=True)):
        key = fingerprint(config)
        if key in seen:
            raise RequestError(
                "sweep", f"jobs {seen[key]} and {number} have the same configuration", "jobs that differ"
            )
        seen[key] = number
        if key not in known:
            free = (root / str(index) for index in range(len(configs) + len(taken) + 1))
            known[key] = hydras if hydras not in taken else next(one for one in free if one not in taken)
            taken.add(known[key])
        folders.append(known[key])
    return folders


def earlier_attempts(root: Path) -> dict[str, Path]:
    """The run directories in a sweep's folder by what they were asked for."""
    found: dict[str, Path] = {}
    for path in sorted(root.glob("**/config.yaml")):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(given, dict) and "task" in given:  # the folder of a phase has no task
            found[fingerprint(given)] = path.parent
    return found


def fingerprint(config: Mapping[str, Any]) -> str:
    """What a resolved configuration asks for, as a text that is the same for the same request."""
    compared = {name: value for name, value in config.items() if name not in NOT_COMPARED}
    return json.dumps(compared, sort_keys=True)
