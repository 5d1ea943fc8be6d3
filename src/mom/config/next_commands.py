"""The commands that make sense after a run, to be pasted into a shell."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mom.config.composition import CONFIG_NAME
from mom.config.overrides import without, written_overrides
from mom.config.plugins import OPTION
from mom.config.request import RunConfig
from mom.runs.describe import run_of_weights
from mom.runs.directory import CHECKPOINTS, CONFIG, MODEL_FOLDERS, read_config
from mom.runs.program import command_line, config_dir_flags

IS_JOB = "hydra.mode=RUN"
"""Override of the jobs of a sweep, whose commands are not for users."""

_TASKS = {
    "pretrain": ("generate", "evaluate", "analyze", "export"),
    "upcycle": ("generate", "export"),
    "finetune": ("evaluate", "export"),
    "export": ("generate",),
}
"""What can be done with the weights that a task writes."""
_NOT_REPEATED = ("tokenizer_vocab_size", "num_processes", "num_workers")
"""Options of data that do not change what is read with the tokenizer that the run saved."""
_READ_DATA = ("evaluate", "analyze")
_PYTHON = ("python_stdlib", "python_packages")
"""Corpora of source code."""


def next_commands(config: RunConfig, composed: DictConfig, *, ended: bool) -> list[str]:
    """Return the commands.

    Args:
        config: the request of the run.
        composed: the configuration that Hydra composed for it.
        ended: whether the run succeeded; otherwise the first command resumes it, if its task can.
    """
    if IS_JOB in sys.argv[1:]:
        return []
    return [*_resume(config, ended), *_use(config, composed), *_compare(config)]


def _resume(config: RunConfig, ended: bool) -> Iterator[str]:
    if not ended and config.task.resumes:
        again = without(sys.argv[1:], "run_dir", "resume", "ckpt")
        yield command_line([*again, *written_overrides({"run_dir": config.run_dir}), "resume=auto"])


def _use(config: RunConfig, composed: DictConfig) -> Iterator[str]:
    weights = _weights(config)
    if weights is None:
        return
    plugins = {OPTION: config.plugins} if config.plugins else {}
    given = written_overrides({**plugins, "init": str(weights)})
    reads_text = config.data.kind not in ("control", "glue") or config.task.name != "pretrain"
    for task in _TASKS[config.task.name]:
        if task == "generate" and not reads_text:
            continue
        if task in _READ_DATA:
            yield command_line([f"task={task}", *given, *_data(composed), *config_dir_flags()])
        else:
            more = [f"prompt={_opening(config)}"] if task == "generate" else []
            yield command_line([f"task={task}", *given, *more])


def _opening(config: RunConfig) -> str:
    """Return a prompt in the language of the data that the model was trained on."""
    corpus = getattr(config.data, "corpus", None)
    if config.task.name == "export" and config.init is not None:
        data = read_config(run_of_weights(config.init)).get("data")
        corpus = data.get("corpus") if isinstance(data, Mapping) else None
    return "def main():" if corpus in _PYTHON else "The"


def _weights(config: RunConfig) -> Path | None:
    """Return what a run wrote that later tasks start from: its best checkpoint, or the folder of a model."""
    if config.task.name not in _TASKS:
        return None
    folder = Path(config.run_dir)
    if config.task.name in MODEL_FOLDERS:
        return folder / MODEL_FOLDERS[config.task.name]
    found = (folder / CHECKPOINTS / name for name in ("best.ckpt", "last.ckpt"))
    return next((path for path in found if path.is_file()), None)


def _data(composed: DictConfig) -> list[str]:
    """Return the overrides with which another task reads the same data."""
    choices = HydraConfig.get().runtime.choices
    choice = [] if choices.get("data") == "python_stdlib" else [f"data={choices['data']}"]
    default = _plain(compose(CONFIG_NAME, overrides=choice).data)
    given = {name: value for name, value in _plain(composed.data).items() if name not in _NOT_REPEATED}
    return [*choice, *written_overrides(dict(_changed(given, default, "data.")))]


def _plain(node: DictConfig) -> Mapping[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _changed(given: Mapping[str, Any], default: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the options that differ from the default; a group that is null there is one option."""
    for name, value in given.items():
        known = default.get(name)
        if isinstance(value, Mapping) and value and isinstance(known, Mapping):
            yield from _changed(value, known, f"{prefix}{name}.")
        elif value != known:
            yield f"{prefix}{name}", value


def _compare(config: RunConfig) -> Iterator[str]:
    """Yield the comparison with the other runs in the same folder, if it has some."""
    parent = Path(config.run_dir).parent
    if config.task.name not in ("pretrain", "finetune") or parent == Path():
        return
    others = (path for path in parent.glob(f"*/{CONFIG}") if path.parent.name != Path(config.run_dir).name)
    if next(others, None) is not None:
        yield command_line(["task=compare", *written_overrides({"runs": str(parent)})])
