"""The finetune task on XSum."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mom.config import bind
from mom.errors import UsageError
from mom.evaluation.xsum import rouge
from mom.interop import load_model
from mom.runs.directory import RunDirectory
from mom.tasks import finetune
from tests.helpers.checkpoints import request, write_run
from tests.helpers.runs import OPTIMIZER
from tests.helpers.xsum_files import articles, write_xsum
from tests.tasks.test_finetune import CHECKPOINT


def tuned(folder: Path, init: Path, task: dict[str, Any] | None = None, **data: Any) -> tuple[dict, Path]:
    groups = {
        "kind": "xsum",
        "path": str(folder / "xsum"),
        "sequence_length": 48,
        "separator": "|",
        "max_summary_tokens": 6,
        "batch_size": 2,
    }
    whole = request(
        folder,
        {"name": "finetune", "epochs": 2.0, **(task or {})},
        data=groups | data,
        init=str(init),
        optimizer=OPTIMIZER | {"betas": [0.9, 0.95]},
        callbacks={"checkpoint": CHECKPOINT},
        trainer={"max_steps": 100, "val_check_interval": 1.0},
    )
    config = bind(whole)
    return finetune.run(config, RunDirectory(config.run_dir)), Path(config.run_dir)


def test_loss_summaries_and_rouge(tmp_path, capsys):
    write_xsum(tmp_path / "xsum")
    init = write_run(tmp_path / "first", num_rounds=2)
    summary, run = tuned(tmp_path, init, {"dropout": 0.1}, limit_summaries=4)

    assert summary["steps"] == 8
    assert (summary["val/summaries"], summary["test/summaries"]) == (4, 3)
    lines = (run / "summaries" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    given = articles(5, seed=10)[:4]
    assert [row["reference"] for row in rows] == [row["summary"] for row in given]
    measured = rouge([row["prediction"] for row in rows], [row["reference"] for row in rows])
    assert {name: summary[f"val/{name}"] for name in measured} == measured
    leads = [row["document"].split(". ")[0] + "." for row in given]
    assert summary["lead/val/rouge1"] == pytest.approx(
        rouge(leads, [row["summary"] for row in given])["rouge1"]
    )
    out = capsys.readouterr().out
    assert f"validation {given[0]['id']}" in out
    assert f"{summary['lead/val/rougeL']:.2f}" in out

    # The loss of the best checkpoint on the summaries' tokens.
    best = load_model(run / "checkpoints" / "best.ckpt").eval()
    assert best.config.dropout == 0.1
    data = finetune.XsumDataModule(
        bind(
            request(
                tmp_path,
                {"name": "finetune"},
                init="x",
                data={
                    "kind": "xsum",
                    "path": str(tmp_path / "xsum"),
                    "sequence_length": 48,
                    "separator": "|",
                    "max_summary_tokens": 6,
                    "batch_size": 1,
                },
            )
        ).data,
        1,
        finetune.load_model_tokenizer(str(init), None, best.config),
    )
    nats, count = 0.0, 0
    for row in data.splits["validation"]:
        ids = torch.tensor([[*row.prompt, *row.summary]])
        with torch.no_grad():
            log_p = best(input_ids=ids).logits[0].log_softmax(-1)
        for position in range(len(row.prompt), ids.shape[1]):
            nats -= float(log_p[position - 1, ids[0, position]])
            count += 1
    assert summary["val/loss"] == pytest.approx(nats / count, rel=1e-4)
    assert summary["val/perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-3)
    assert summary["val/score"] == pytest.approx(-summary["val/loss"])


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({"seeds": [1, 2]}, {}, r"task.seeds cannot be combined with data=xsum"),
        ({}, {"sequence_length": 65}, "data.sequence_length must be at most 64, .*, got 65"),
    ],
)
def test_wrong_requests_are_rejected_before_training(tmp_path, monkeypatch, task, data, message):
    write_xsum(tmp_path / "xsum")
    monkeypatch.setattr(finetune, "fit_module", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UsageError, match=f"^{message}"):
        tuned(tmp_path, write_run(tmp_path / "first"), task, **data)


def test_without_a_length_that_of_the_model_is_taken(tmp_path):
    write_xsum(tmp_path / "xsum")
    init = write_run(tmp_path / "first", num_rounds=2)  # 64 positions, fewer than the 512 of a larger model
    summary, _ = tuned(tmp_path, init, {"epochs": 1.0}, sequence_length=None, limit_summaries=1)

    assert summary["val/summaries"] == 1 and math.isfinite(summary["val/loss"])
