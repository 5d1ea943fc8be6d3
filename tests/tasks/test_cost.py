"""The cost task: estimates against the built model, and measured memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

from mom.cli import main
from mom.config import bind
from mom.cost.estimate import flops_per_token, measured_usage, num_parameters
from mom.errors import UsageError
from mom.model import MoMConfig
from mom.runs.directory import RunDirectory
from mom.tasks import cost
from tests.helpers.checkpoints import request, write_run
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.runs import SMALL_MODEL
from tests.helpers.texts import some_texts, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


def measure_cost(
    folder: Path, task: dict[str, Any] | None = None, **groups: Any
) -> tuple[dict[str, Any], dict]:
    """Run the task, return the summary and ``cost.json``."""
    groups = {
        "model": SMALL_MODEL,
        "router": {"router": "gru", "router_dim": 8},
        "data": {"sequence_length": 16, "batch_size": 2, "tokenizer_vocab_size": 300},
    } | groups
    whole = request(folder, {"name": "cost", **(task or {})}, **groups)
    config = bind(whole)
    run = RunDirectory(config.run_dir)
    return cost.run(config, run), json.loads((run.path / "cost.json").read_text())


def test_numbers_of_a_configuration(tmp_path, capsys):
    summary, file = measure_cost(tmp_path)
    config = small_config(**SMALL_MODEL, vocab_size=300, temperature=1.0)
    flops = flops_per_token(config, 16)
    assert summary["flops/forward"] == 16 * flops.total == sum(summary[f"flops/{part}"] for part in PARTS)
    assert summary["depth/graph"] == config.graph_depth
    assert summary["kv_cache/bytes_per_token"] == 2 * config.graph_depth * 16 * 4
    assert "flops/forward_actual" not in summary and "memory/training" not in summary
    assert file["models"]["model"].items() <= summary.items()
    out = capsys.readouterr().out
    assert "2 × 16 tokens" in out and f"{summary['parameters']:,}" in out
    parts = ("parameters", "optimizer", "gradients", "activations")
    assert summary["training/total"] == sum(summary[f"training/{part}"] for part in parts)


PARTS = ("blocks", "modules", "attention", "routers", "head")


def test_a_checkpoint_tells_what_it_really_uses(tmp_path):
    model = small_model(vocab_size=300, max_positions=64)
    init = write_run(tmp_path / "of", model)
    summary, file = measure_cost(tmp_path, init=str(init))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        used = [
            measured_usage(model.config, model(input_ids=ids, output_routing=True).routing)
            for ids in [torch.randint(300, (2, 16), generator=generator) for _ in range(4)]
        ]
    assert summary["usage/attention"] == pytest.approx(sum(one["attention"] for one in used) / 4)
    assert 1 <= summary["usage/ffn"] < 2  # SKIP has some of the assignments
    usage = {name: summary[f"usage/{name}"] for name in ("attention", "ffn")}
    assert summary["flops/forward_actual"] == 16 * flops_per_token(model.config, 16, usage).total
    assert summary["flops/forward_actual"] < summary["flops/forward"]
    assert file["settings"]["routed_on"] == "random"

    texts = tmp_path / "texts.jsonl"
    write_jsonl(texts, some_texts(40))
    data = {"corpus": "text", "path": str(texts), "cache_dir": str(tmp_path / "cache"), "num_processes": 1}
    data |= {"sequence_length": 16, "batch_size": 2, "validation_fraction": 0.3}
    on_text, file = measure_cost(tmp_path, {"routed_on": "validation"}, init=str(init), data=data)
    assert on_text["usage/attention"] != summary["usage/attention"]
    assert file["settings"]["routed_on"] == "validation"


def test_usage_is_a_mean_over_tokens_if_batches_differ(tmp_path, monkeypatch):
    model = small_model(vocab_size=300, max_positions=64)
    init = write_run(tmp_path / "of", model)
    ids = tokens(8, 16, vocab_size=300)
    monkeypatch.setattr(cost, "_validation_batches", lambda config: [ids[:7], ids[7:]])
    summary, _ = measure_cost(tmp_path, {"routed_on": "validation"}, init=str(init))
    with torch.no_grad():
        used = measured_usage(model.config, model(input_ids=ids, output_routing=True).routing)
    assert {name: summary[f"usage/{name}"] for name in used} == pytest.approx(used)


def test_several_models_by_name_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
    line = ["task=cost", "models=[gpt2_small,mom_small]", "model.vocab_size=50257", "run_dir=costs"]
    line += ["data.sequence_length=128"]
    monkeypatch.setattr("sys.argv", ["run.py", *line])
    try:
        assert main(ROOT / "conf") == 0
        summary = json.loads((tmp_path / "costs/summary.json").read_text())
        assert summary["gpt2_small/parameters"] == 124_439_808
        assert summary["mom_small/depth/graph"] == 12
        assert set(json.loads((tmp_path / "costs/cost.json").read_text())["models"]) == {
            "gpt2_small",
            "mom_small",
        }
        monkeypatch.setattr("sys.argv", ["run.py", "task=cost", "models=[gpt3]"])
        capsys.readouterr()
        assert main(ROOT / "conf") == 2
        assert capsys.readouterr().err.startswith("error: models must be one of ")
    finally:
        GlobalHydra.instance().clear()


def test_a_model_shorter_than_the_sequence_is_rejected(tmp_path):
    init = write_run(tmp_path / "of", small_model(vocab_size=300, max_positions=8))
    with pytest.raises(
        UsageError, match=r"data.sequence_length must be at most 8, the positions of .*, got 16"
    ):
        measure_cost(tmp_path, init=str(init))


def on_the_line(tmp_path, monkeypatch, *overrides: str) -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
    monkeypatch.setattr("sys.argv", ["run.py", "task=cost", *overrides])
    try:
        return main(ROOT / "conf")
    finally:
        GlobalHydra.instance().clear()


def test_numbers_do_not_break_at_80_columns(tmp_path, monkeypatch, capsys):
    names = ["gpt2_tiny", "mixture_of_depths"]
    line = [f"models=[{','.join(names)}]", "router=linear", "run_dir=costs", "model.vocab_size=50257"]
    line += ["cluster=h100x8", "task.num_tokens=1e9"]

    def narrow(width: int | None = None) -> Console:
        return Console(width=80, force_terminal=True, color_system=None, markup=False)

    monkeypatch.setattr("mom.console.standard_output", narrow)
    assert on_the_line(tmp_path, monkeypatch, *line) == 0

    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "costs/summary.json").read_text())
    assert max(map(len, out.splitlines()[:-1])) <= 80 and "…" not in out
    words = out.split()
    assert words.count("gpt2_tiny") == 8  # a row in each of four tables, and two in each of the plan's
    for name in names:
        assert f"{summary[f'{name}/parameters']:,}" in words
        assert words.count(name) >= 4  # only a name may go on in another line
        rate = summary[f"{name}/plan/ddp/tokens"] / summary[f"{name}/plan/ddp/step"]
        assert f"{rate:,.0f}" in words


# A process starts with its parent's peak of memory, so this small one stands between it and the tests.
MEASURED = """
import json, os, subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[1:]])
_, status, used = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss, used.ru_utime]))
"""


def test_large_models_cost_neither_memory_nor_minutes(tmp_path):
    """Two models as large as GPT-2 large, whose weights alone would take 3 GB each."""
    line = ["task=cost", "models=[gpt2_large,mom_large_deep]", "model.vocab_size=50257"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "-m", "mom", *line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    code, peak, seconds = json.loads(done.stdout.splitlines()[-1])

    assert code == 0 and "774,030,080" in done.stdout
    assert peak * (1 if sys.platform == "darwin" else 1024) < 1.5e9
    assert seconds < 60  # about 16 seconds on a slow core; it was over 10 minutes with real weights


def test_a_plan_requires_its_task(tmp_path, monkeypatch, capsys):
    assert on_the_line(tmp_path, monkeypatch, "task=prepare", "cluster=h100x8") == 2
    assert "cluster requires task=cost, which plans for it, got task=prepare" in capsys.readouterr().err


def test_options_of_the_model_apply_to_every_model_by_name(tmp_path, monkeypatch):
    studies = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"
    line = ["models=[gpt2_tiny,mom_tiny]", "model.num_rounds=2", "experiment=study/larger", "init=null"]
    assert on_the_line(tmp_path, monkeypatch, *line, "run_dir=costs", "--config-dir", str(studies)) == 0

    summary = json.loads((tmp_path / "costs/summary.json").read_text())
    # d_model is that of the experiment.
    shape = {"max_positions": 256, "d_model": 256, "num_heads": 8, "vocab_size": 300}
    plain = MoMConfig(**shape, num_stages=0, num_bottom_blocks=8, num_top_blocks=0)
    assert summary["gpt2_tiny/parameters"] == num_parameters(plain)
    assert summary["mom_tiny/depth/graph"] == 6


def test_models_by_name_may_be_longer_than_the_chosen_one(tmp_path, monkeypatch):
    line = ["models=[gpt2_small,mom_small]", "data.sequence_length=1024", "run_dir=costs"]
    assert on_the_line(tmp_path, monkeypatch, *line) == 0


def test_a_pool_within_a_budget(tmp_path, monkeypatch, capsys):
    line = ["budget=params", "reference_model=gpt2_tiny", "run_dir=costs"]
    assert on_the_line(tmp_path, monkeypatch, *line) == 0
    summary = json.loads((tmp_path / "costs/summary.json").read_text())
    assert summary["field"] == "modules" and summary["params"] <= summary["limit"]
    override = f"model.num_attention_modules={summary['chosen']} model.num_ffn_modules={summary['chosen']}"
    assert f"Use: {override}\n" in capsys.readouterr().out
    models = json.loads((tmp_path / "costs/cost.json").read_text())["models"]
    assert models[str(summary["chosen"] + 1)]["params"] > summary["limit"]

    assert on_the_line(tmp_path, monkeypatch, *override.split(), "run_dir=again") == 0
    assert json.loads((tmp_path / "again/summary.json").read_text())["parameters"] == summary["params"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["budget=params"], "budget requires reference_model: "),
        (["reference_model=gpt2_tiny"], "reference_model requires budget: one of params, flops, memory"),
        (
            ["budget=params", "reference_model=gpt2_smal"],
            "reference_model must be one of early_exit, ",
        ),
        (
            ["budget=time", "reference_model=gpt2_tiny"],
            "task.budget must be one of params, flops, memory, null",
        ),
        (
            ["budget=params", "reference_model=gpt2_tiny", "models=[mom_tiny]"],
            "models cannot be combined with budget",
        ),
        (["task.solve_for=top_k"], "task.solve_for requires budget"),
        (
            ["model=gpt2_tiny", "budget=params", "reference_model=gpt2_tiny"],
            "model.num_stages must be at least 1 with budget, got 0",
        ),
        (
            ["budget=params", "reference_model=gpt2_tiny", "model.d_model=512"],
            "cannot meet budget=params: with any modules the model costs more than gpt2_tiny",
        ),
        (
            [
                "budget=params",
                "reference_model=gpt2_small",
                "task.solve_for=rounds",
                "router.router_prior=none",
            ],
            "task.solve_for=rounds cannot be combined with budget=params: 4096 rounds still cost less than gpt2_small",
        ),
        (
            ["model=layer_skip", "budget=params", "reference_model=gpt2_tiny"],
            "task.solve_for must be top_k or rounds if rounds have modules of their own",
        ),
        (
            ["models=[mom_tiny,universal]", "model.top_k=2"],
            "model.top_k must be between 1 and 1, ",
        ),
        (["models=[mom_tiny]", "model.vocab_size=0"], "model.vocab_size must be "),
    ],
)
def test_budgets_that_cannot_be(line, said, tmp_path, monkeypatch, capsys):
    assert on_the_line(tmp_path, monkeypatch, *line, "run_dir=costs") == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
