"""The run directory: its name, and the files that describe the run."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from mom.errors import UsageError, first_line
from mom.runs.console_log import CONSOLE_LOG
from mom.runs.files import read_json, remove_temporary, write_json_atomic, write_text_atomic
from mom.runs.owner import LOCK, own, owner_has_died

RUN_DIR_VARIABLE = "MOM_RUN_DIR"
"""Environment variable that passes the run directory from the launched process to its child ranks."""

State = Literal["running", "succeeded", "failed", "interrupted"]

_RANK_VARIABLES = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
_WORLD_VARIABLES = ("WORLD_SIZE", "SLURM_NTASKS")
CONFIG, STATUS, PROVENANCE, SUMMARY = "config.yaml", "status.json", "provenance.json", "summary.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run or phase with its checkpoints."""
MODEL_FOLDERS = {"export": "export", "upcycle": "model"}
"""The tasks that write a model as a folder, and that folder's name in their run directories."""
_LARGEST_CONFIG = 1 << 22  # bytes
_OWN_FILES = {CONFIG, STATUS, PROVENANCE, LOCK, CONSOLE_LOG}


def process_rank() -> int:
    """Return the rank that the launcher gave this process, or any number above 0 if that is not known to be 0.

    A single process has rank 0. Without a launcher, Lightning knows only the ranks of the node and within it.
    """
    ranks = [int(os.environ[name]) for name in _RANK_VARIABLES if os.environ.get(name, "").isdigit()]
    return ranks[0] if "RANK" in os.environ and ranks else max(ranks, default=0)


def new_run_dir(task: str, name: str | None = None) -> str:
    """Return a unique path: ``outputs/<task>/<date>_<time>-<4 hex digits>``, with ``-<name>`` if there is a name."""
    moment = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    end = "" if name is None else f"-{name}"
    return str(Path("outputs") / task / f"{moment}-{secrets.token_hex(2)}{end}")


def choose_run_dir(task: str, given: str | None, name: str | None = None) -> str:
    """Return the given run directory, that of the launching process, or a new name.

    Raises:
        UsageError: a launcher started several processes, each of which would choose a different name.
    """
    if given == "":
        raise UsageError("run_dir must be the name of a directory or null, got ''")
    if given is not None:
        return given
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited:
        return inherited
    if any(int(os.environ.get(name, "1")) > 1 for name in _WORLD_VARIABLES):
        raise UsageError("run_dir must be set when torchrun or SLURM starts several processes, got null")
    return new_run_dir(task, name)


def holds_checkpoints(path: str | Path) -> bool:
    """Return whether a directory has checkpoints of a run or its phases; false if it cannot be read."""
    try:
        folders = (Path(path), *(inner for inner in Path(path).iterdir() if inner.is_dir()))
        return any(any((folder / CHECKPOINTS).glob("*")) for folder in folders)
    except OSError:
        return False


def latest_checkpoint() -> Path | None:
    """Return the best (or else the last) checkpoint of the newest run in ``outputs``; None if there is none."""
    found = Path("outputs").glob(f"*/*/{CHECKPOINTS}/*.ckpt")
    with contextlib.suppress(OSError):
        folder = max((path.parent for path in found), key=lambda path: path.stat().st_mtime, default=None)
        if folder is not None:
            return next(
                (folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).exists()), None
            )
    return None


@contextlib.contextmanager
def run_dir_errors(path: Path) -> Iterator[None]:
    """Convert errors in writing to a run directory to a :class:`~mom.errors.UsageError` that names it."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write to run_dir {path}: {error.strerror or error}") from error


class RunDirectory:
    """A run's directory and the files that describe the run.

    The files are ``config.yaml`` (resolved), ``status.json`` (``running``, ``succeeded``, ``failed``, or
    ``interrupted``, with the error), ``provenance.json``, and ``summary.json`` (final numbers). Only the first process
    writes; on other ranks the methods do nothing, so callers need not check.

    Args:
        path: the directory; created with its parents by the first process if it does not exist.

    Raises:
        UsageError: if it cannot be created or written to; so do all methods that write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.writes = process_rank() == 0
        self._created: list[Path] = []
        self._was_empty = False
        if not self.writes:
            return
        with run_dir_errors(self.path):
            try:
                self._created = _missing_parents(self.path)
                self._was_empty = bool(self._created) or not any(self.path.iterdir())
                self.path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.path) as probe:
                    probe.write(b"\0")
            except OSError:
                self.remove_if_unused()
                raise

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the directory (:func:`mom.runs.owner.own`), without what killed processes left of unfinished writes.

        Raises:
            UsageError: another process owns it.
        """
        with contextlib.ExitStack() as stack:
            if self.writes:
                with run_dir_errors(self.path):
                    stack.enter_context(own(self.path))
                    remove_temporary(self.path, unless=LOCK)
            yield

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write plain data to ``config.yaml``, in the given order."""
        self.write_text(
            CONFIG, yaml.dump(dict(config), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
        )

    def write_provenance(self, record: Mapping[str, Any]) -> None:
        """Write ``provenance.json``; see :func:`mom.runs.provenance.start_of_run`."""
        self.write_text(PROVENANCE, json.dumps(dict(record), indent=2) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write final numbers (or short strings) by name to ``summary.json``."""
        self._write(write_json_atomic, SUMMARY, dict(summary))

    def status(self, state: State, error: BaseException | str | None = None) -> None:
        """Write the state, the time, and the type and message of an error to ``status.json``."""
        record: dict[str, Any] = {"state": state, "error": None}
        if isinstance(error, BaseException):
            record["error"] = {"type": type(error).__name__, "message": str(error)}
        elif error is not None:
            record["error"] = {"type": "", "message": error}
        record["time"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.write_text(STATUS, json.dumps(record, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically, creating the directories in its name."""
        self._write(write_text_atomic, name, text)

    def remove_if_unused(self) -> bool:
        """Remove the directory if this run created it and stored no results in it; return whether it did."""
        if not self._was_empty or not self.writes:
            return False
        files = [file for file in self.path.rglob("*") if not file.is_dir()] if self.path.is_dir() else []
        if any(file.parent != self.path or file.name not in _OWN_FILES for file in files):
            return False
        for file in files:
            file.unlink(missing_ok=True)
        for folder in self._created:
            # Only empty directories are left inside; a parent may contain another run that started meanwhile.
            with contextlib.suppress(OSError):
                shutil.rmtree(folder) if folder == self.path else folder.rmdir()
        return True

    def _write(self, write: Callable[[Path, Any], None], name: str, content: Any) -> None:
        if not self.writes:
            return
        path = self.path / name
        with run_dir_errors(self.path):
            if path.parent != self.path:
                path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content)


def check_owner(path: str | Path, task: str) -> None:
    """Reject a run directory that holds the files of another task, which this one would replace.

    Raises:
        UsageError: a run of another task, or a phase of a run, wrote to the directory.
    """
    config = read_config(Path(path))
    if not config:
        return
    given = config.get("task")
    owner = given.get("name") if isinstance(given, dict) else given
    if owner != task:
        held = "a phase of a run" if owner is None else f"a run of task={owner}"
        raise UsageError(f"run_dir {path} holds {held}; choose another directory, such as {path}-{task}")


def read_request(folder: Path) -> dict[str, Any] | None:
    """Read the resolved configuration of a run; ``None`` if the folder has none, as that of a phase.

    Raises:
        UsageError: the file is damaged.
    """
    config = read_config(folder)
    return config if "task" in config else None


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.yaml`` of a run or phase; empty if there is none."""
    path = folder / CONFIG
    try:
        if not path.is_file():
            return {}
        if (size := path.stat().st_size) > _LARGEST_CONFIG:
            raise UsageError(f"cannot read {path}: it has {size:,} bytes, more than any configuration")
        config = yaml.load(path.read_bytes(), _PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, UsageError):
            raise
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        reason = getattr(error, "problem", None) or first_line(error)
        raise UsageError(f"cannot read {path}: not valid YAML ({reason}{place})") from error
    return config if isinstance(config, dict) else {}


class _PlainLoader(yaml.SafeLoader):
    """Loader of plain data without aliases, with which a short file could stand for any amount of data."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Reject a reference to another part of the file."""
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.MarkedYAMLError(problem="a reference", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _PlainDumper(yaml.SafeDumper):
    """Dumper of plain data that repeats what occurs twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing becomes a reference."""
        return True


def read_status(folder: Path) -> dict[str, Any]:
    """Read the ``state``, ``error``, and ``time`` of a run; empty if it has no ``status.json``.

    A run whose process was killed could not record that; it is ``interrupted``.
    """
    status = read_json(folder / STATUS)
    if status.get("state") == "running" and owner_has_died(folder):
        return {**status, "state": "interrupted", "error": {"type": "", "message": "its process died"}}
    return status


def has_recorded_end(folder: Path) -> bool:
    """Return whether the last process of a run recorded how it ended, rather than being killed."""
    return read_json(folder / STATUS).get("state", "running") != "running"


def error_line(status: Mapping[str, Any]) -> str | None:
    """Return the error in a status as one line; ``None`` if there is none."""
    error = status.get("error")
    if not error:
        return None
    return " ".join((f"{error['type']}: {error['message']}" if error["type"] else error["message"]).split())


def read_summary(folder: Path) -> dict[str, Any]:
    """Read the final metrics of a run; empty if it has not finished."""
    return read_json(folder / SUMMARY)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read the command that started a run and the commit of its code; empty if they were not recorded."""
    return read_json(folder / PROVENANCE)


def _missing_parents(path: Path) -> list[Path]:
    """Return the directory and those of its parents that do not exist yet, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]
