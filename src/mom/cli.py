"""The command line: compose the request, check it, make the run directory, run the task, tell how it ended.

Exit codes: 0 the run succeeded, 1 it failed, 2 the request was wrong, 130 it was interrupted. A wrong request
prints one line and leaves nothing behind.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mom.config import RunConfig, bind
from mom.config.composition import CONFIG_NAME, added_config_dir, explain, is_composition_error
from mom.errors import JobsFailed, RequestError, UsageError
from mom.runs.directory import RUN_DIR_VARIABLE, RunDirectory, holds_checkpoints
from mom.runs.provenance import start_of_run

SUCCEEDED, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130


def main(config_dir: Path) -> int:
    """Run what ``sys.argv`` asks for and return the exit code.

    Args:
        config_dir: the folder of the Hydra configuration, with ``config.yaml`` in it.
    """
    # Hydra raises its errors instead of printing them over several lines; they are told in one line below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Its warnings about each retry would bury the one line about a name that cannot be found.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    launch = _Launch()
    overrides: list[str] = []
    debug = False
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        overrides = _parsed_overrides()
        debug = "debug=true" in (override.lower() for override in overrides)
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=CONFIG_NAME)(launch.run)()
    except KeyboardInterrupt:
        return INTERRUPTED
    except JobsFailed:
        return FAILED
    except Exception as error:
        if launch.started or not is_composition_error(error):
            raise
        refusal = explain(error, config_dir, overrides)
        refusal.__cause__ = None if refusal is error else error
        _tell(refusal, debug)
        return WRONG_REQUEST
    return launch.exit_code


class _Launch:
    """The run of this process and how it ended.

    Errors end here and not in Hydra, which would print lines of its own. Under ``-m`` Hydra hands the jobs to
    ``hydra_plugins.mom_sweeps``, and each comes back here in a process of its own.
    """

    def __init__(self) -> None:
        self.started = False
        self.exit_code = SUCCEEDED

    def run(self, composed_config: DictConfig) -> None:
        """Carry out one request; called by Hydra."""
        self.started = True
        try:
            self.exit_code = _run(composed_config)
        finally:
            os.environ.pop(RUN_DIR_VARIABLE, None)


def _run(composed_config: DictConfig) -> int:
    """Check one request and carry it out; returns its exit code."""
    debug = composed_config.get("debug") is True
    run: RunDirectory | None = None
    try:
        _check_single(composed_config)
        config = bind(composed_config)
        _check_unoccupied(config)
        config.check_buildable()
        task = importlib.import_module(f"mom.tasks.{config.task.name}")
        run = _open_run(config, composed_config)
        summary = task.run(config, run)
        run.write_summary(summary)
        run.status("succeeded")
    except UsageError as error:
        _tell(error, debug)
        if run is not None and not run.remove_if_unused():
            _record(run, "failed", error)
        return WRONG_REQUEST
    except (KeyboardInterrupt, SystemExit) as error:
        if not _is_interrupt(error):
            raise
        if run is not None:
            _record(run, "interrupted", None)
        raise KeyboardInterrupt from error
    except Exception as error:
        traceback.print_exc()
        if run is not None:
            _record(run, "failed", error)
        return FAILED
    return SUCCEEDED


def _check_single(composed_config: DictConfig) -> None:
    """Refuse to run one job where the configuration asks for many."""
    grid = HydraConfig.get().sweeper.get("params")
    if grid:
        raise RequestError("sweep", ", ".join(map(str, grid)), "the flag -m, which runs every combination")
    if "search" in composed_config:
        raise RequestError("search", composed_config.search.sampler, "the flag -m, which runs many trials")


def _check_unoccupied(config: RunConfig) -> None:
    """Refuse a folder with the checkpoints of another run, which a fresh start would mix with its own."""
    # A task that trains mixes its checkpoints with those there; the others only read the weights of init.
    trains = config.task.resumes or config.init is None
    starts_afresh = trains and config.ckpt is None and config.resume is None
    is_child = RUN_DIR_VARIABLE in os.environ
    if starts_afresh and not is_child and holds_checkpoints(config.run_dir):
        raise RequestError(
            "run_dir", config.run_dir, "a folder without another run's checkpoints, or resume=auto"
        )


def _open_run(config: RunConfig, composed_config: DictConfig) -> RunDirectory:
    """Make the run directory, tell child processes where it is, and write down what was asked for."""
    run = RunDirectory(config.run_dir)
    os.environ[RUN_DIR_VARIABLE] = config.run_dir
    resolved = OmegaConf.to_container(composed_config, resolve=True)
    assert isinstance(resolved, dict)
    run.write_config({**{str(name): value for name, value in resolved.items()}, "run_dir": config.run_dir})
    run.write_provenance(start_of_run())
    run.status("running")
    return run


def _parsed_overrides() -> list[str]:
    """Return the overrides, ``--config-dir`` as the one it stands for; an unknown flag is a wrong request."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        # argparse says "unrecognized arguments: --foo" or "argument --cfg/-c: invalid choice: …"
        subject, _, reason = message.partition(": ")
        if subject == "unrecognized arguments":
            subject, reason = reason, "no such flag"
        raise RequestError(subject.removeprefix("argument "), reason, "see python run.py --help")

    parser.error = refuse  # type: ignore[method-assign]
    found = parser.parse_intermixed_args()
    # Hydra's own parser wants the overrides in one piece: `a=1 -m b=2,3` becomes `a=1 b=2,3 -m`.
    flags = sys.argv[1:]
    for override in found.overrides:
        flags.remove(override)
    sys.argv[1:] = [*found.overrides, *flags]
    return [*added_config_dir(found.config_dir), *found.overrides]


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End a run on SIGTERM as on Ctrl-C, so that whoever handles that (saving a checkpoint) handles both."""
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _is_interrupt(error: BaseException) -> bool:
    """Whether an exit is Ctrl-C or SIGTERM; Lightning turns both into a SystemExit of its own."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "SIGTERMException":
        return True
    return error.__context__ is not None and _is_interrupt(error.__context__)


def _record(run: RunDirectory, state: str, error: Exception | None) -> None:
    """Write how a run ended; a disk that is full must not hide why."""
    try:
        run.status(state, error)  # type: ignore[arg-type]
    except UsageError as reason:
        print(f"status.json could not be written: {reason}", file=sys.stderr)


def _tell(error: UsageError, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
