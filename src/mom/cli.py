"""Command line: compose and check the configuration, create the run directory, run the task, record how it ended.

Exit codes: 0 success, 1 run failed, 2 invalid request, 128 + n stopped by signal n (Ctrl-C: 130). An invalid request
prints one line and leaves no files behind.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mom.config import RunConfig, bind
from mom.config.composition import (
    CONFIG_NAME,
    added_config_dir,
    explain,
    help_text,
    is_composition_error,
    prepare_composition,
)
from mom.config.next_commands import IS_JOB, next_commands
from mom.config.overrides import as_typed, without_stages
from mom.errors import JobsFailed, RunFailed, UsageError, first_line
from mom.runs.console_log import CONSOLE_LOG, kept
from mom.runs.directory import RUN_DIR_VARIABLE, RunDirectory, check_owner, holds_checkpoints
from mom.runs.failures import explained
from mom.runs.files import disk_full, is_disk_full
from mom.runs.program import typed
from mom.runs.provenance import start_of_run
from mom.runs.signals import Interrupted, exit_code, handle_signals, ignore_signals, interrupt
from mom.runs.sources import check_source

log = logging.getLogger(__name__)

SUCCEEDED, FAILED, INVALID_REQUEST = 0, 1, 2


def main(config_dir: Path) -> int:
    """Run the command line in ``sys.argv``, with the ``config.yaml`` in ``config_dir``, and return the exit code."""
    # Make Hydra raise its multi-line errors instead of printing them; we print a single line below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # The Hub warns about every retry, which would bury our one-line error about a missing name.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Libraries draw their progress bars even for what takes a moment.
    os.environ.setdefault("TQDM_DELAY", "2")
    launch = _Launch()
    overrides: list[str] = []
    debug = False
    handle_signals(interrupt)
    try:
        overrides = _parse_overrides()
        debug = "debug=true" in (override.lower() for override in overrides)
        prepare_composition(config_dir, overrides)
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text(config_dir, overrides))
            return SUCCEEDED
        if not _is_alone(overrides) or not _run_composed(config_dir, overrides, launch):
            _collect_garbage_again()
            hydra.main(version_base="1.3", config_path=str(config_dir), config_name=CONFIG_NAME)(launch.run)()
    except KeyboardInterrupt as error:
        return exit_code(_signal_of(error) or signal.SIGINT)
    except JobsFailed:
        return FAILED
    except Exception as error:
        if launch.started or not is_composition_error(error):
            raise
        usage_error = explain(error, config_dir, overrides)
        usage_error.__cause__ = None if usage_error is error else error
        _print_error(usage_error, debug)
        return INVALID_REQUEST
    return launch.exit_code


def _collect_garbage_again() -> None:
    """Turn the garbage collector on again after the imports, and let it skip what they made."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


class _Launch:
    """The run of this process and its exit code.

    Errors are handled here because Hydra would print its own messages. With ``-m``, Hydra passes the jobs to
    ``hydra_plugins.mom_sweeps``, which starts this command line again for each job, in its own process.
    """

    def __init__(self) -> None:
        self.started = False
        self.exit_code = SUCCEEDED

    def run(self, composed_config: DictConfig) -> None:
        """Run one request; called by Hydra."""
        self.started = True
        try:
            self.exit_code = _run(composed_config)
        finally:
            os.environ.pop(RUN_DIR_VARIABLE, None)


def _is_alone(overrides: list[str]) -> bool:
    """Return whether the command line has no flags and asks for no sweep, which a file may turn on too."""
    if sys.argv[1:] != overrides:
        return False
    parsed = OverridesParser.create().parse_overrides(overrides)
    modes = {override.input_line for override in parsed if override.key_or_group == "hydra.mode"}
    return modes <= {IS_JOB} and not any(override.is_sweep_override() for override in parsed)


def _run_composed(config_dir: Path, overrides: list[str], launch: _Launch) -> bool:
    """Compose and run a single request, or return False if it changes Hydra's own settings.

    ``hydra.main`` composes every request twice, first only to learn ``hydra.mode``, which takes a third of a refusal.
    """
    with initialize_config_dir(str(config_dir), job_name=Path(__file__).stem, version_base="1.3"):
        config = compose(CONFIG_NAME, overrides=overrides, return_hydra_config=True)
        settings = config.hydra
        changed = (
            settings.mode not in (None, RunMode.RUN),
            settings.output_subdir is not None,
            settings.run.dir != ".",
            settings.job.chdir,
            settings.job.env_set,
            settings.callbacks,
        )
        if any(changed):
            return False
        with read_write(settings.runtime), open_dict(settings.runtime):
            settings.runtime.output_dir = os.getcwd()
        HydraConfig.instance().set_config(config)
        configure_log(settings.job_logging, settings.verbose)
        launch.run(OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"]))
    return True


def _run(composed_config: DictConfig) -> int:
    """Check and run one request; return the exit code."""
    with contextlib.ExitStack() as stack:
        return _run_and_record(composed_config, stack)


def _run_and_record(composed_config: DictConfig, stack: contextlib.ExitStack) -> int:
    """Run one request, and record how it ended; ``stack`` is closed after that."""
    debug = composed_config.get("debug") is True
    run: RunDirectory | None = None
    config: RunConfig | None = None
    try:
        _check_single(composed_config)
        config = bind(composed_config)
        _check_run_dir(config)
        if config.init is not None:
            check_source(config.init)
        config.check_buildable()
        task = importlib.import_module(f"mom.tasks.{config.task.name}")
        _collect_garbage_again()
        if not config.task.keeps_record:
            with explained():
                task.run(config)
            return SUCCEEDED
        opened = RunDirectory(config.run_dir)
        stack.enter_context(opened.owned())
        run = opened  # from here on, its end is recorded
        _record_start(config, composed_config, run, stack)
        if run.writes:
            _warn_without_effect(config)
        with explained():
            summary = task.run(config, run)
        ignore_signals()  # the run has ended; only its record is missing
        run.write_summary(summary)
        run.status("succeeded")
        _print_next(config, composed_config, run, ended=True)
    except UsageError as error:
        ignore_signals()
        _print_error(error, debug)
        if run is not None and not run.remove_if_unused():
            _record(run, "failed", error)
        return INVALID_REQUEST
    except (KeyboardInterrupt, SystemExit) as error:
        number = _signal_of(error)
        if number is None:
            raise
        ignore_signals()
        if run is not None:
            _record(run, "interrupted", None)
            _print_next(config, composed_config, run, ended=False)
        return exit_code(number)
    except RunFailed as error:
        ignore_signals()
        _print_error(error, debug)
        if run is not None:
            run.writes |= error.records
            _record(run, "failed", error)
            if holds_checkpoints(run.path):
                _print_next(config, composed_config, run, ended=False)
        return FAILED
    except Exception as error:
        ignore_signals()
        if run is not None and is_disk_full(error):
            error = _disk_full(run, error)
            _print_error(error, debug)
        else:
            traceback.print_exc()
        if run is not None:
            _record(run, "failed", error)
            if holds_checkpoints(run.path):
                _print_next(config, composed_config, run, ended=False)
        return FAILED
    return SUCCEEDED


def _check_single(composed_config: DictConfig) -> None:
    """Reject a sweep or a search without the flag -m."""
    grid = HydraConfig.get().sweeper.get("params")
    if grid:
        raise UsageError(f"the sweep over {', '.join(map(str, grid))} requires the flag -m")
    if "search" in composed_config:
        raise UsageError(f"search={composed_config.search.sampler} requires the flag -m")


def _check_run_dir(config: RunConfig) -> None:
    """Reject a run directory of another task, or with checkpoints of another run: a run would mix them with its own."""
    # Only tasks that train write checkpoints; the others just read the weights in init.
    trains = config.task.resumes or config.init is None
    starts_fresh = trains and config.ckpt is None and config.resume is None
    is_child = RUN_DIR_VARIABLE in os.environ
    if not is_child and config.task.keeps_record:
        check_owner(config.run_dir, config.task.name)
    if starts_fresh and not is_child and holds_checkpoints(config.run_dir):
        raise UsageError(
            f"run_dir {config.run_dir} already has checkpoints; choose another directory or pass resume=auto"
        )


def _warn_without_effect(config: RunConfig) -> None:
    """Warn about options of routing for a plain transformer; a sweep over models may well give them to all."""
    if config.task.takes_chosen_model() and not config.model.get("num_stages"):
        given = without_stages(HydraConfig.get().overrides.task)
        if given:
            verb = "has" if len(given) == 1 else "have"
            log.warning(
                "%s %s no effect: the model has no stages (model.num_stages=0)", ", ".join(given), verb
            )


def _record_start(
    config: RunConfig, composed_config: DictConfig, run: RunDirectory, stack: contextlib.ExitStack
) -> None:
    """Pass the run directory's path to child processes, write the resolved configuration, and keep the output."""
    os.environ[RUN_DIR_VARIABLE] = config.run_dir
    resolved = OmegaConf.to_container(composed_config, resolve=True)
    assert isinstance(resolved, dict)
    run.write_config({**{str(name): value for name, value in resolved.items()}, "run_dir": config.run_dir})
    started = start_of_run()
    run.write_provenance(started)
    run.status("running")
    if run.writes:
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        stack.enter_context(kept(run.path / CONSOLE_LOG, f"{now}  {started['command']}"))


def _parse_overrides() -> list[str]:
    """Check Hydra's flags and return the overrides, including the one equivalent to ``--config-dir``."""
    parser = get_args_parser()

    def reject(message: str) -> NoReturn:
        # argparse says "unrecognized arguments: --foo" or "argument --cfg/-c: invalid choice: …"
        subject, _, reason = message.partition(": ")
        if subject == "unrecognized arguments":
            raise UsageError(f"unknown flag {reason}; see {typed()} --help")
        raise UsageError(f"{subject.removeprefix('argument ')}: {reason}; see {typed()} --help")

    parser.error = reject  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args()
    # Hydra's own parser needs the overrides together: `a=1 -m b=2,3` becomes `a=1 b=2,3 -m`.
    flags = sys.argv[1:]
    for override in parsed.overrides:
        flags.remove(override)
    overrides = as_typed(parsed.overrides, is_sweep=parsed.multirun)
    sys.argv[1:] = [*overrides, *flags]
    return [*added_config_dir(parsed.config_dir), *overrides]


def _signal_of(error: BaseException) -> int | None:
    """Return the signal that caused an exit, which Lightning turns into a SystemExit; None if none did."""
    if isinstance(error, KeyboardInterrupt):
        return error.number if isinstance(error, Interrupted) else signal.SIGINT
    return None if error.__context__ is None else _signal_of(error.__context__)


def _disk_full(run: RunDirectory, error: Exception) -> UsageError:
    """Return one line for a full disk, with the file and the bytes that it needs if they are known."""
    cause = disk_full(run.path, "more")
    if isinstance(error, OSError) and error.filename is not None:
        cause = error if "bytes" in (error.strerror or "") else disk_full(Path(error.filename), "more")
    reason = UsageError(f"{cause.strerror}; free some space and resume with resume=auto run_dir={run.path}")
    reason.__cause__ = error
    return reason


def _record(run: RunDirectory, state: str, error: Exception | None) -> None:
    """Record how a run ended; if the disk is full, print that without hiding the original error."""
    try:
        run.status(state, error)  # type: ignore[arg-type]
    except UsageError as reason:
        print(f"cannot write status.json: {reason}", file=sys.stderr)


def _print_next(
    config: RunConfig | None, composed_config: DictConfig, run: RunDirectory, *, ended: bool
) -> None:
    """Print the commands that make sense after this run, whose end is recorded and does not depend on them."""
    if config is None or not run.writes:
        return
    try:
        commands = next_commands(config, composed_config, ended=ended)
    except Exception as error:  # composing them reads the user's configuration files again
        print(f"cannot tell the next commands: {first_line(error)}", file=sys.stderr)
        return
    if commands:
        print("\nNext:" if ended else f"\n{run.path} is not finished. Next:")
    for command in commands:
        print(f"  {command}")


def _print_error(error: Exception, debug: bool) -> None:
    """Print a one-line error, after its traceback if ``debug`` is set."""
    if debug:
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
