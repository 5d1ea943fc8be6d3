"""The commands of the documentation, run with small models for two steps, in a folder with the files that they name."""

from __future__ import annotations

import builtins
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from mom.config import bind
from mom.runs.directory import RunDirectory
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer, write_run
from tests.helpers.commands import ROOT, commands, request
from tests.helpers.glue_files import write_glue
from tests.helpers.models import small_model
from tests.helpers.reduced import REDUCED
from tests.helpers.runs import write_record
from tests.helpers.texts import some_texts
from tests.helpers.xsum_files import articles
from tests.test_docs import DOCS, OTHERS, PAGES

# What is not run here: where it is, or what it needs.
ELSEWHERE = {
    r"runs=docs/results/": "tests/test_results.py compares what it prints with the page",
    r"_large|cluster=|models=\[(mom_small|gpt2_tiny)": "tests/tasks/test_cost.py, tests/test_presets.py",
    r"launcher=slurm": "tests/sweeps/test_launchers.py",
    r"trainer=ddp": "tests/distributed/test_launchers.py",
    r"harness=": "tests/evaluation/test_harness.py",
    r"push_to_hub=": "tests/tasks/test_export.py, with a server of its own",
    r"init=gpt2|data=glue data.name=mrpc$": "it downloads",
    r"data=datasets data\.path=…": "tests/data/test_corpora.py",
    r"mlflow|my_package": "a package of the reader's",
}
# Options that leave an experiment as tests/test_experiments.py runs it.
NO_CHANGE = {"experiment", "seed", "run_dir", "init", "data.path", "hydra.sweep.dir"}
SMALL_TASK: dict[str, dict[str, Any]] = {
    "analyze": {
        "num_tokens": 100,
        "ablation": "none",
        "value_tokens": 0,
        "regret_budget": 0,
        "similarity_inputs": 0,
    },
    "generate": {"max_new_tokens": 3},
    "finetune": {"epochs": 1.0},
}
SMALL_DATA: dict[str, dict[str, Any]] = {
    "control": {"batch_size": 4},
    "language_modeling": {
        "tokenizer_vocab_size": VOCABULARY,
        "sequence_length": 16,
        "batch_size": 2,
        "num_processes": 1,
        "max_bytes": 20_000,
    },
    "glue": {"batch_size": 2, "sequence_length": 16},
    "classification": {"batch_size": 2, "sequence_length": 16},
    "xsum": {"batch_size": 2, "sequence_length": 32, "max_summary_tokens": 3},
}


def options(command: str) -> frozenset[str]:
    """Return what a command asks for, apart from the weights it starts from and the folder it writes to."""
    words = shlex.split(command, comments=True)
    return frozenset(
        word for word in words if word.split("=")[0] not in ("init", "run_dir", "hydra.sweep.dir")
    )


def left_out(command: str) -> bool:
    """Tell whether a command only names an experiment, or is none by itself."""
    given = {word.split("=")[0] for word in shlex.split(command, comments=True) if "=" in word}
    return bool(OTHERS.search(command)) or ("experiment" in given and given <= NO_CHANGE)


# One command of those that ask for the same.
COMMANDS = {
    options(command): (command, page)
    for page in [*PAGES, *sorted(DOCS.glob("variants/*.md"))]
    for command in commands(page)
    if not left_out(command)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: texts, data for fine-tuning, weights, and some runs to compare."""
    root = tmp_path_factory.mktemp("reader")
    for name in ("my_texts", "notes"):
        (root / name).mkdir()
        for number, text in enumerate(some_texts(30)):
            (root / name / f"{number}.txt").write_text(text, encoding="utf-8")
    write_glue(root / "glue", "mrpc")
    rows = articles(20)
    (root / "xsum.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = [{"question": row["document"], "answer": row["summary"]} for row in rows]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    reviews = [f"{number % 2 + 1},review {number}\n" for number in range(20)]
    (root / "reviews.csv").write_text("stars,text\n" + "".join(reviews), encoding="utf-8")
    (root / "prompts.txt").write_text("The module\nA router\n", encoding="utf-8")
    (root / "opening.txt").write_text("The module", encoding="utf-8")
    write_run(root / "model")
    control = bind(reduced(request("experiment=control/facts arm=mom"), root, root / "control"))
    importlib.import_module("mom.tasks.pretrain").run(control, RunDirectory(control.run_dir))
    plain = {"d_model": 16, "num_heads": 2, "num_stages": 0, "num_bottom_blocks": 8, "num_top_blocks": 0}
    write_run(root / "plain_model", small_model(vocab_size=VOCABULARY, **plain), small_tokenizer())
    for runs in ("multirun/some", "multirun/routers", "multirun/control/facts", "plain", "mom"):
        for job in range(3):
            metrics = {"val/loss": 3 + job, "val/exact_match/hop2_held_out": job / 4}
            metrics["throughput/training_flops"] = 1e9 * job + 1e9
            router = "gru" if runs == "mom" else "linear"
            changes = {"router.router": router, "trainer.max_steps": 100 * job, "seed": 0}
            write_record(root / runs / str(job), changes, metrics)
    return root


def end_of_input(*_: object) -> str:
    """Stand in for a reader who ends a dialog at once."""
    raise EOFError


def reduced(config: DictConfig, root: Path, run_dir: Path) -> DictConfig:
    """The same request for a small model and a few tokens, from the reader's weights."""
    OmegaConf.set_struct(config, False)
    task, data = config.task.name, config.data.kind
    changes: dict[str, Any] = {**REDUCED, "run_dir": str(run_dir), "task": SMALL_TASK.get(task, {})}
    changes["data"] = SMALL_DATA[data]
    if data == "language_modeling":
        changes["data"] = changes["data"] | {"cache_dir": str(root / "cache"), "validation_fraction": 0.3}
        if config.data.corpus == "datasets":  # what would be downloaded
            changes["data"] |= {"corpus": "text", "path": str(root / "my_texts"), "tokenizer": None}
    if data == "control":
        changes["model"] = REDUCED["model"] | {"max_positions": config.model.max_positions}
    if config.init is not None:
        source = {"upcycle": "plain_model"}.get(task, "control" if data == "control" else "model")
        changes["init"] = str(root / source / "checkpoints" / "last.ckpt")
    if config.optimizer.get("scheduler") is not None:  # it replaces warm-up too
        del changes["optimizer"]
    if "callbacks" in config:
        changes["callbacks"] = {"figures": None}
        if OmegaConf.select(config, "callbacks.top_k.start") is not None:
            changes["callbacks"]["top_k"] = {"last_step": 1}
    merged = OmegaConf.merge(config, changes)
    assert isinstance(merged, DictConfig)
    return merged


@pytest.mark.usefixtures("without_plugins", "own_place")
@pytest.mark.parametrize(
    "command",
    [pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}") for command, page in COMMANDS.values()],
)
def test_a_command_of_a_page_runs(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pattern, reason in ELSEWHERE.items():
        if re.search(pattern, command):
            pytest.skip(reason)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", end_of_input)
    config = bind(reduced(request(command), folder, tmp_path / "run"))
    task = importlib.import_module(f"mom.tasks.{config.task.name}")

    if not config.task.keeps_record:
        task.run(config)
        return
    summary = task.run(config, RunDirectory(config.run_dir))
    json.dumps(summary)
