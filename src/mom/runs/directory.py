"""A run's folder: its name, the files the command line keeps there, and writes that are never partial."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from mom.errors import RequestError
from mom.runs.files import write_json_atomic, write_text_atomic

RUN_DIR_VARIABLE = "MOM_RUN_DIR"
"""Environment variable by which the process that was launched tells its child ranks where the run is."""

State = Literal["running", "succeeded", "failed", "interrupted"]

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_WORLD_VARIABLES = ("WORLD_SIZE", "SLURM_NTASKS")
_OWN_FILES = {"config.yaml", "status.json", "provenance.json"}


def process_rank() -> int:
    """Rank of this process as its launcher told it; 0 where there is one process."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if os.environ.get(name, "").isdigit()), 0)


def new_run_dir(task: str) -> str:
    """A name no other launch takes: ``outputs/<task>/<date>_<time>-<4 hex digits>``."""
    moment = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return str(Path("outputs") / task / f"{moment}-{secrets.token_hex(2)}")


def choose_run_dir(task: str, given: str | None) -> str:
    """The folder of this run: the one given, the launching process's, or a new name.

    Raises:
        RequestError: if several processes were started from outside and none can know the others' name.
    """
    if given == "":
        raise RequestError("run_dir", "''", "the name of a folder, or null for a new one")
    if given is not None:
        return given
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited:
        return inherited
    if any(int(os.environ.get(name, "1")) > 1 for name in _WORLD_VARIABLES):
        raise RequestError(
            "run_dir", "null", "one folder for all the processes that were started (run_dir=…)"
        )
    return new_run_dir(task)


def holds_checkpoints(path: str | Path) -> bool:
    """Whether a folder holds checkpoints of a run or of its phases (False where it cannot be read)."""
    try:
        folders = (Path(path), *(one for one in Path(path).iterdir() if one.is_dir()))
        return any(any((folder / "checkpoints").glob("*")) for folder in folders)
    except OSError:
        return False


class RunDirectory:
    """A run's folder and the files the command line keeps in it.

    ``config.yaml`` (resolved), ``status.json`` (``running``, ``succeeded``, ``failed`` or ``interrupted``,
    with the error) and ``summary.json`` (flat, final numbers). Only the first process writes; on the other
    ranks every method is silent, so that callers need not ask.

    Args:
        path: the folder; made with its parents if it is not there.

    Raises:
        RequestError: ``run_dir``, if it cannot be made or written, with the reason.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.writes = process_rank() == 0
        self._made: list[Path] = []
        self._was_empty = False
        try:
            self._made = _missing_parents(self.path)
            self._was_empty = bool(self._made) or not any(self.path.iterdir())
            self.path.mkdir(parents=True, exist_ok=True)
            if self.writes:
                with tempfile.TemporaryFile(dir=self.path) as probe:
                    probe.write(b"\0")
        except OSError as reason:
            self.remove_if_unused()
            raise self._refusal(reason) from reason

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, plain data in the order given."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._write("config.yaml", text)

    def write_provenance(self, record: Mapping[str, Any]) -> None:
        """Write ``provenance.json``: the command that started the run, and the commit of the code."""
        self._write("provenance.json", json.dumps(dict(record), indent=2) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``: flat names to final numbers (or short texts)."""
        if self.writes:
            try:
                write_json_atomic(self.path / "summary.json", dict(summary))
            except OSError as reason:
                raise self._refusal(reason) from reason

    def status(self, state: State, error: BaseException | str | None = None) -> None:
        """Write ``status.json``: the state and, if there is one, the error's type and message."""
        record: dict[str, Any] = {"state": state, "error": None}
        if isinstance(error, BaseException):
            record["error"] = {"type": type(error).__name__, "message": str(error)}
        elif error is not None:
            record["error"] = {"type": "", "message": error}
        record["time"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._write("status.json", json.dumps(record, indent=2) + "\n")

    def remove_if_unused(self) -> bool:
        """Undo the making of a folder in which nothing happened; what was there before is left alone.

        Returns:
            Whether every trace is gone. A folder that holds any result, even a partial one, is kept.
        """
        if not self._was_empty or not self.writes:
            return False
        held = [one for one in self.path.rglob("*") if not one.is_dir()] if self.path.is_dir() else []
        if any(one.parent != self.path or one.name not in _OWN_FILES for one in held):
            return False
        for one in held:
            one.unlink(missing_ok=True)
        for folder in self._made:
            # Folders inside are empty by now; a parent may hold another run that has begun meanwhile.
            with contextlib.suppress(OSError):
                shutil.rmtree(folder) if folder == self.path else folder.rmdir()
        return True

    def _write(self, name: str, text: str) -> None:
        if not self.writes:
            return
        try:
            write_text_atomic(self.path / name, text)
        except OSError as reason:
            raise self._refusal(reason) from reason

    def _refusal(self, reason: OSError) -> RequestError:
        why = reason.strerror or str(reason)
        return RequestError("run_dir", self.path, f"a folder that can be written: {why}")


def _missing_parents(path: Path) -> list[Path]:
    """The folder and those of its parents that do not exist yet, innermost first."""
    return [one for one in (path, *path.parents) if not one.exists()]
