"""The evaluation harness on a local task, against log-likelihoods summed by hand."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mom.config import bind
from mom.errors import UsageError
from mom.evaluation.harness import adapter, flat, folders_of, task_manager
from mom.interop import load_model
from mom.runs.directory import RunDirectory
from mom.tasks import evaluate, export
from tests.helpers.checkpoints import request, small_tokenizer, write_run

ROWS = [
    {"question": "module router", "choices": ["skip", "token pool", "λ"], "answer": 0},
    {"question": "round", "choices": ["anchor anchor anchor", "naïve"], "answer": 1},
    {"question": "token pool skip", "choices": ["router", "assembly", "round"], "answer": 2},
]


@pytest.fixture
def init(tmp_path) -> Path:
    return write_run(tmp_path / "first")


@pytest.fixture
def model(init):
    return load_model(init).eval()


def task_files(folder: Path) -> Path:
    """Write a multiple-choice task of the harness and its data."""
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "tiny.yaml").write_text(
        f"""task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "rows.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
        encoding="utf-8",
    )
    return folder


def evaluated(folder: Path, init: Path, **task: Any) -> dict[str, Any]:
    config = bind(request(folder, {"name": "evaluate", **task}, init=str(init)))
    return evaluate.run(config, RunDirectory(config.run_dir))


def log_p(model, ids: list[int], begin: int) -> float:
    """Return log p of ``ids[begin:]`` given the tokens before them, from one forward pass."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(scores[position - 1, ids[position]]) for position in range(begin, len(ids)))


def asked(name: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=name, doc={}, arguments=arguments, idx=0)


def test_log_likelihoods_are_those_by_hand_whatever_the_batch(model):
    tokenizer = small_tokenizer()
    pairs = [(row["question"], " " + choice) for row in ROWS for choice in row["choices"]]
    expected = []
    for question, choice in pairs:
        before, whole = (tokenizer(text)["input_ids"] for text in (question, question + choice))
        expected.append(log_p(model, whole, len(before)))
    for batch_size in (1, 3):
        found = adapter(model, tokenizer, batch_size).loglikelihood(
            [asked("loglikelihood", *pair) for pair in pairs], disable_tqdm=True
        )
        assert [value for value, _ in found] == pytest.approx(expected, rel=1e-4)


def test_rolling_windows_predict_every_token_once(model):
    tokenizer = small_tokenizer()
    text = "module router assembly round token anchor pool skip naïve λ " * 8
    ids = tokenizer(text)["input_ids"]
    length = model.config.max_positions
    assert len(ids) > 2 * length
    # Windows of the model's length, the first after the end-of-text token; the last is moved back to be full.
    stream = [tokenizer.eos_token_id, *ids]
    total, done = 0.0, 0
    while done < len(ids):
        end = min(done + length, len(ids))
        start = max(0, end - length)
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([stream[start:end]])).logits[0].double().log_softmax(-1)
        total += sum(float(scores[position - start, ids[position]]) for position in range(done, end))
        done = end
    for batch_size in (1, 4):
        (found,) = adapter(model, tokenizer, batch_size).loglikelihood_rolling(
            [asked("loglikelihood_rolling", text)], disable_tqdm=True
        )
        assert found == pytest.approx(total, rel=1e-4)


def test_a_local_task_from_the_request_to_the_summary(tmp_path, init, model, capsys):
    tokenizer = small_tokenizer()
    right = 0
    for row in ROWS:
        before = len(tokenizer(row["question"])["input_ids"])
        scores = [
            log_p(model, tokenizer(f"{row['question']} {choice}")["input_ids"], before)
            for choice in row["choices"]
        ]
        right += scores.index(max(scores)) == row["answer"]
    task = {
        "name": "evaluate",
        "harness": ["tiny_choice"],
        "harness_path": str(task_files(tmp_path / "tasks")),
    }
    summary = evaluated(tmp_path, init, **task)

    assert summary["harness/tiny_choice/acc"] == pytest.approx(right / len(ROWS))
    assert summary["harness/tiny_choice/samples"] == len(ROWS)
    assert "tiny_choice/acc" in capsys.readouterr().out


def test_an_unknown_task_is_one_line(tmp_path, init):
    path = str(task_files(tmp_path / "tasks"))
    for task, message in (
        (
            {"harness": ["tiny_chioce"], "harness_path": path},
            "harness must name tasks of lm-eval .*, got tiny_chioce; did you mean tiny_choice",
        ),
        (
            {"harness": ["tiny_choice"], "harness_path": "no/where"},
            "task.harness_path must be a folder .*, got no/where",
        ),
        ({"harness": []}, "harness must name at least one task"),
        ({"harness_limit": 3}, "task.harness_limit requires harness"),
        ({"harness": ["tiny_choice"], "stride": 4}, "task.stride cannot be combined with harness"),
    ):
        with pytest.raises(UsageError, match=f"^{message}"):
            evaluated(tmp_path, init, **task)


def test_only_the_files_that_a_task_needs_are_parsed():
    manager = task_manager(["lambada_openai"])
    assert "lambada_openai" in manager.all_subtasks
    assert len(manager.all_tasks) < 100


def test_the_files_found_are_those_that_the_harness_takes(tmp_path):
    from lm_eval.tasks import TaskManager

    for place, text in (
        ("b/one.yaml", "task: one\n"),
        ("b/deep/first.yaml", "# task: two\noutput_type: generate_until\ntask: 'two' # here\r\n"),
        ("c/again.yaml", "task: two\ntag: many\n"),
        ("d/group.yaml", "group: all\ntask:\n  - one\n  - task: three\n"),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text, encoding="utf-8")
    index = TaskManager(include_path=str(tmp_path), include_defaults=False).task_index
    for name in ("one", "two"):
        assert folders_of([name], tmp_path) == [index[name].yaml_path.parent]
    assert folders_of(["two", "one"], tmp_path) == [tmp_path / "b"]
    assert all(folders_of([name, "one"], tmp_path) is None for name in ("three", "all", "many", "four"))


def test_a_group_or_an_unknown_name_takes_all_files(monkeypatch):
    asked = []
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **options: asked.append(options))
    task_manager(["mmlu"])
    task_manager(["no_such_task"])
    assert asked == [{}, {}]


def test_without_the_extra_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(
        UsageError, match=r"^harness requires lm-eval: pip install 'mixture-of-modules\[harness\]'"
    ):
        adapter(model, small_tokenizer(), 1)


def test_results_are_flat():
    found = {
        "results": {
            "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1, "sample_len": 4}
        },
        "n-samples": {"a": {"original": 9, "effective": 4}},
    }
    assert flat(found) == {"harness/a/acc": 0.5, "harness/a/em,strict": 1.0, "harness/a/samples": 4.0}


def test_the_tool_itself_evaluates_an_exported_folder(tmp_path, init):
    """``lm_eval --model hf``, from the command line, in a process without this package."""
    config = bind(request(tmp_path, {"name": "export"}, init=str(init)))
    folder = export.run(config, RunDirectory(config.run_dir))["export/folder"]
    tasks = task_files(tmp_path / "tasks")
    ours = evaluated(tmp_path, init, harness=["tiny_choice"], harness_path=str(tasks))
    hidden = "import sys, runpy; sys.modules['mom'] = None; runpy.run_module('lm_eval', run_name='__main__')"
    options = {
        "--model": "hf",
        "--model_args": f"pretrained={folder},trust_remote_code=True",
        "--include_path": str(tasks),
        "--tasks": "tiny_choice",
        "--device": "cpu",
        "--output_path": str(tmp_path / "out.json"),
    }
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", hidden, *itertools.chain.from_iterable(options.items())]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("out*.json")
    found = json.loads(path.read_text())["results"]["tiny_choice"]["acc,none"]
    assert found == pytest.approx(ours["harness/tiny_choice/acc"])
