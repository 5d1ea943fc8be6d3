"""For every test: no network, fixed examples, a private cache, PyTorch on one thread, and a stderr that stays open."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import absl.logging
import hypothesis
import pytest
from hydra.core.global_hydra import GlobalHydra

from mom.cli import main
from mom.model import registry
from mom.runs.signals import SIGNALS

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")

# Set before anything imports the libraries that read them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
_cache = tempfile.mkdtemp(prefix="mom-cache-")
os.environ["MOM_CACHE"] = _cache
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

# Under nohup and in the background these are ignored, and would be in the processes that tests start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# absl (of rouge-score and tensorboard) remembers the stderr it was imported under, which is pytest's capture file,
# and closes it when Hydra sets up logging in a test that captures in another way.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_collection_finish():
    """Let the garbage collector skip the libraries, which stay: going through them takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def handlers_of_this_test_only():
    """Take away logging handlers that a test leaves behind: they write to its captured stderr, which is closed."""
    loggers = [logging.getLogger(name) for name in (None, "mom", "lightning", "lightning.pytorch")]
    before = [(one, list(one.handlers), one.level) for one in loggers]
    yield
    for one, handlers, level in before:
        one.handlers[:] = handlers
        one.setLevel(level)


@pytest.fixture(autouse=True)
def signals_of_this_test_only():
    """Restore the handlers of signals that the command line sets for its process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def without_plugins(monkeypatch):
    """Unregister the kinds that a test registers."""
    for name in [name for name in sys.modules if name.startswith("examples.")]:
        monkeypatch.delitem(sys.modules, name)
    kinds = dict(registry.routers), dict(registry.pools)
    yield
    for registered, before in zip((registry.routers, registry.pools), kinds, strict=True):
        for name in set(registered) - set(before):
            del registered[name]


@pytest.fixture
def own_place(tmp_path, monkeypatch):
    """An empty working folder, one process, and its variables as they were."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE", "MOM_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HYDRA_FULL_ERROR": "", "HF_HUB_VERBOSITY": "", "TQDM_DELAY": "0"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def launch(own_place, monkeypatch):
    """Run the command line with a stand-in for the task, so that nothing is trained."""

    def run(*line, task=lambda config, run: {"val/loss": 1.0}):
        monkeypatch.setitem(sys.modules, "mom.tasks.pretrain", SimpleNamespace(run=task))
        monkeypatch.setattr(sys, "argv", ["run.py", *line])
        return main(ROOT / "conf")

    return run
