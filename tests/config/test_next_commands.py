"""The commands that a run prints at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mom.config import RunConfig
from mom.runs.directory import RunDirectory
from tests.helpers.command_line import SMALL, Task, by_key


def test_the_end_names_the_next_commands(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        (run.path / "checkpoints").mkdir(exist_ok=True)
        (run.path / "checkpoints" / "best.ckpt").touch()
        return {}

    def following(*line: str, code: int, task: Task) -> list[str]:
        assert launch(*SMALL, *line, task=task) == code
        return [text.strip() for text in capsys.readouterr().out.partition("Next:\n")[2].splitlines()]

    monkeypatch.setattr(sys, "orig_argv", ["python"])
    text = ["data=text", "data.path=a b(1).txt", "data.sequence_length=64", "data.tokenizer_vocab_size=999"]
    init = "init=runs/a/checkpoints/best.ckpt"
    data = "data=text data.path=\"'a b(1).txt'\" data.sequence_length=64"
    assert following("run_dir=runs/a", *text, code=0, task=task) == [
        f"python run.py task=generate {init} prompt=The",
        f"python run.py task=evaluate {init} {data}",
        f"python run.py task=analyze {init} {data}",
        f"python run.py task=export {init}",
    ]
    Path("listed_plugin.py").touch()
    monkeypatch.syspath_prepend(".")
    lines = following("run_dir=plugin", "plugins=[listed_plugin]", *text, code=0, task=task)
    assert lines[0] == (
        "python run.py task=generate plugins='[listed_plugin]' init=plugin/checkpoints/best.ckpt prompt=The"
    )
    part = "{library: {corpus: python_stdlib, weight: 3}, notes: {corpus: text, path: notes/}}"
    mixed = "data.mixture='{library:{corpus:python_stdlib,weight:3},notes:{corpus:text,path:notes/}}'"
    lines = following("run_dir=mixed", "data=mixture", f"data.mixture={part}", code=0, task=task)
    assert lines[1] == (f"python run.py task=evaluate init=mixed/checkpoints/best.ckpt data=mixture {mixed}")
    resume = "python run.py model.d_model=16 model.num_heads=2 data=control/facts run_dir=runs/b resume=auto"
    control = ["data=control/facts", "resume=auto", "run_dir=runs/b"]
    assert following(*control, code=130, task=by_key) == [resume, "python run.py task=compare runs=runs"]
    assert following("hydra.mode=RUN", *control, code=0, task=task) == []
    Path("runs/b/checkpoints/best.ckpt").rename("runs/b/checkpoints/last.ckpt")
    lines = following(*control, code=1, task=lambda config, run: {"x": 1 / 0})
    assert lines == [
        resume,
        "python run.py task=evaluate init=runs/b/checkpoints/last.ckpt data=control/facts",
        "python run.py task=analyze init=runs/b/checkpoints/last.ckpt data=control/facts",
        "python run.py task=export init=runs/b/checkpoints/last.ckpt",
        "python run.py task=compare runs=runs",
    ]
