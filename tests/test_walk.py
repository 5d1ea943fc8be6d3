"""A newcomer's walk along the printed commands: own text, figures, an export, and a process that loads it."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tests.helpers import processes

LOAD = """
import sys
sys.modules["mom"] = None  # importing it fails
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
given = tokenizer("The if statement", return_tensors="pt")
print(tokenizer.decode(model.generate(**given, max_new_tokens=8)[0]))
"""
SMALL = [
    *("model.d_model=32", "model.num_heads=2", "data.tokenizer_vocab_size=300", "data.sequence_length=64"),
    *("data.batch_size=2", "trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.accelerator=cpu"),
]
BRIEF = ["task.num_tokens=500", "task.ablation=none", "task.value_tokens=0", "task.regret_budget=0"]


@pytest.fixture
def variables(tmp_path):
    """Return the environment variables of the walk."""
    hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    return {"MOM_CACHE": str(tmp_path / "cache"), "COLUMNS": "80", **hub}


@pytest.fixture
def say(tmp_path, variables):
    """Run a command line in the empty folder, and return what it printed."""

    def run(*line: str) -> str:
        done = subprocess.run(
            line,
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def say_forked(tmp_path, variables):
    """Run a command line in a process that need not import the libraries, and return what it printed."""

    def run(*line: str) -> str:
        assert line[:3] == (sys.executable, "-m", "mom")
        done = processes.run(line[1:], tmp_path, tmp_path / "output.txt", **variables)
        assert done.code == 0, f"{shlex.join(line)}\n{done.output}"
        return done.output

    return run


def commands(printed: str) -> dict[str, list[str]]:
    """Return the commands that were printed under "Next:", by their task."""
    lines = [shlex.split(line) for line in printed.partition("\nNext:\n")[2].splitlines() if line.strip()]
    return {line[3].removeprefix("task="): line for line in lines}


def test_from_own_text_to_an_export_that_loads_elsewhere(tmp_path, say, say_forked):
    (tmp_path / "mine").mkdir()
    for name, text in list(topics.items())[:40]:
        (tmp_path / "mine" / f"{name}.txt").write_text(text, encoding="utf-8")

    printed = say(sys.executable, "-m", "mom", "data=text", "data.path=mine", "run_dir=first", *SMALL)
    following = commands(printed)
    assert list(following) == ["generate", "evaluate", "analyze", "export"]
    figures = {path.name for path in (tmp_path / "first" / "figures").glob("*.png")}
    assert figures

    assert "The" in say_forked(*following["generate"])
    say_forked(*following["evaluate"])
    say_forked(*following["analyze"], *BRIEF)
    (report,) = Path(tmp_path).glob("outputs/analyze/*/report.html")
    assert report.stat().st_size > 10_000

    loaded = commands(say(*following["export"]))
    (folder,) = Path(tmp_path).glob("outputs/export/*/export")
    with open(tmp_path / "first" / "metrics.csv", encoding="utf-8") as lines:
        best = min(float(row["val/loss"]) for row in csv.DictReader(lines) if row["val/loss"])
    assert f"| val/loss | {best:.4f} |" in (folder / "README.md").read_text(encoding="utf-8")
    assert say(sys.executable, "-c", LOAD, str(folder)).startswith("The if statement")
    assert (
        list(loaded) == ["generate"] and loaded["generate"][-1] == "prompt=The"
    )  # as the text that it learned
    say(*loaded["generate"])
