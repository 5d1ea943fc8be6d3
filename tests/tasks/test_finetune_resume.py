"""Fine-tuning that was killed and resumed gives the same results as without interruption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mom.config import bind
from mom.errors import UsageError
from mom.runs.directory import RunDirectory
from mom.tasks import finetune
from mom.training import fit
from tests.distributed.scenarios import is_timed
from tests.helpers.checkpoints import request, write_run
from tests.helpers.glue_files import write_glue
from tests.helpers.runs import OPTIMIZER
from tests.helpers.xsum_files import write_xsum
from tests.tasks.test_finetune import CHECKPOINT
from tests.tasks.test_pretrain_resume import FailAt, Killed, curve

# Nine and eight rows in batches of two, two batches per step: epochs end during gradient accumulation.
DATA = {
    "cola": {"kind": "glue", "name": "cola", "path": "glue", "sequence_length": 16, "batch_size": 2},
    "xsum": {
        "kind": "xsum",
        "path": "xsum",
        "sequence_length": 40,
        "separator": "|",
        "max_summary_tokens": 3,
        "batch_size": 2,
        "limit_summaries": 2,
    },
}
STOPPING = {
    "_target_": "lightning.pytorch.callbacks.EarlyStopping",
    "monitor": "val/score",
    "mode": "max",
    "patience": 4,
}
SLOW = OPTIMIZER | {"betas": [0.9, 0.95], "lr": 1e-9}  # no validation is better than the first


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Create weights, data sets, and an uninterrupted run on each data set."""
    folder = tmp_path_factory.mktemp("finetune")
    write_run(folder / "first", num_rounds=2)
    write_glue(folder / "glue", "cola", {"train": 9, "dev": 4, "test": 2})
    write_glue(folder / "glue", "mnli", {"train": 9, "dev": 3, "test": 2})
    write_xsum(folder / "xsum", train=8, validation=3)
    for name in DATA:
        run(folder, f"full-{name}", name)
    return folder


def run(
    folder: Path,
    run_dir: str,
    name: str,
    task: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    patience: int = 4,
    interval: int | float = 3,
    **changes: Any,
) -> dict[str, Any]:
    groups = DATA[name] | (data or {})
    groups["path"] = str(folder / groups["path"])
    groups = request(
        folder,
        {"name": "finetune", "epochs": 3.0, "dropout": 0.1, **(task or {})},
        data=groups,
        optimizer=OPTIMIZER | {"betas": [0.9, 0.95]},
        callbacks={"checkpoint": CHECKPOINT, "early_stopping": STOPPING | {"patience": patience}},
        trainer={"max_steps": 100, "val_check_interval": interval, "accumulate_grad_batches": 2},
        logger={"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "", "version": ""}},
        init=str(folder / "first" / "checkpoints" / "last.ckpt"),
    )
    config = bind(groups | {"run_dir": str(folder / run_dir)} | changes)
    return finetune.run(config, RunDirectory(config.run_dir))


def killed(monkeypatch, folder: Path, run_dir: str, name: str, **changes: Any) -> None:
    """Start a run that dies after three steps, during gradient accumulation."""
    build = fit.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(fit, "build_callbacks", lambda *given: [FailAt(3, 1), *build(*given)])
        with pytest.raises(Killed):
            run(folder, run_dir, name, **changes)


def without_time(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if not is_timed(name)}


def assert_equal_runs(first: Path, second: Path) -> None:
    """Compare the last and best weights, the optimizer, the curves, and the summaries, bit for bit."""
    for kind in ("last", "best"):
        one, two = (
            torch.load(where / "checkpoints" / f"{kind}.ckpt", weights_only=True) for where in (first, second)
        )
        assert one["global_step"] == two["global_step"]
        for name, weight in one["state_dict"].items():
            assert torch.equal(weight, two["state_dict"][name]), (kind, name)
        for index, state in one["optimizer_states"][0]["state"].items():
            for name, value in state.items():
                assert torch.equal(value, two["optimizer_states"][0]["state"][index][name]), (kind, index)
    assert curve(first) == curve(second)
    for folder in ("submission", "summaries"):
        files = sorted(path.relative_to(first) for path in (first / folder).glob("*"))
        assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


@pytest.mark.parametrize("name", list(DATA))
@pytest.mark.parametrize("how", ["resume", "ckpt"])
def test_what_was_killed_ends_as_it_would_have_ended(folder, monkeypatch, name, how):
    run_dir = f"killed-{name}-{how}"
    killed(monkeypatch, folder, run_dir, name)
    last = folder / run_dir / "checkpoints" / "last.ckpt"
    assert 0 < torch.load(last, weights_only=True)["global_step"] <= 3
    changes = {"resume": "auto"} if how == "resume" else {"ckpt": str(last), "init": None}
    run(folder, run_dir, name, **changes)
    assert_equal_runs(folder / f"full-{name}", folder / run_dir)


def test_what_was_killed_after_an_epochs_validation_ends_as_it_would_have_ended(folder, monkeypatch):
    """Early stopping and the best checkpoint read that validation's score after the checkpoint was saved."""
    options = {"interval": 1.0, "optimizer": SLOW}
    run(folder, "full-epochs", "cola", **options)
    killed(monkeypatch, folder, "killed-epochs", "cola", **options)
    saved = torch.load(folder / "killed-epochs" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    run(folder, "killed-epochs", "cola", **options, resume="auto")
    assert_equal_runs(folder / "full-epochs", folder / "killed-epochs")
    # The best checkpoint is written again at the end of that epoch, before the next one has begun.
    one, two = (
        torch.load(folder / name / "checkpoints" / "best.ckpt", weights_only=True)
        for name in ("full-epochs", "killed-epochs")
    )
    assert one["GlueDataModule"] == two["GlueDataModule"]
    assert one["validated"] == two["validated"]
    states = [checkpoint["callbacks"]["RandomState"]["ranks"][0]["cpu"] for checkpoint in (one, two)]
    assert torch.equal(*states)


def test_what_stopped_early_is_not_trained_on(folder):
    options = {"patience": 1, "task": {"epochs": 30.0}, "optimizer": SLOW}
    first = run(folder, "early", "cola", **options)
    assert first["steps"] < 30
    again = run(folder, "early", "cola", **options, resume="auto")
    assert without_time(again) == without_time(first)


def test_the_interrupted_combination_is_resumed_and_finished_ones_are_skipped(folder, monkeypatch):
    several = {"task": {"seeds": [1, 2], "epochs": 2.0}}
    reference = run(folder, "seeds", "cola", **several)
    # As if the second had been killed just before it wrote its results.
    shutil.copytree(folder / "seeds", folder / "seeds-killed")
    second = folder / "seeds-killed" / "cola" / "seed_2"
    shutil.rmtree(second)
    config = {"task": {"epochs": 2.0}, "seed": 2}
    killed(monkeypatch, folder, str(second), "cola", **config)
    first = folder / "seeds-killed" / "cola" / "seed_1" / "checkpoints" / "last.ckpt"
    before = first.stat().st_mtime_ns

    assert run(folder, "seeds-killed", "cola", **several, resume="auto") == reference
    assert first.stat().st_mtime_ns == before
    assert_equal_runs(folder / "seeds" / "cola" / "seed_2", second)


@pytest.mark.parametrize(
    ("name", "ckpt", "changes", "message"),
    [
        ("cola", "full-cola", {"task": {"seeds": [1, 2]}}, "ckpt cannot be combined with task.tasks or task.seeds"),
        (
            "cola",
            "full-xsum",
            {},
            r"ckpt=.* is a language model, not a classifier with 2 label\(s\)",
        ),
        ("xsum", "full-cola", {}, "ckpt=.* must be a language model, not a classifier"),
        ("cola", "full-cola", {"data": {"name": "mnli"}}, r"ckpt=.* a classifier with 3 label\(s\), got one with 2"),
        ("cola", "full-cola", {"data": {"sequence_length": 17}}, r"data.sequence_length must be 16 as .* got 17"),
        ("xsum", "full-xsum", {"data": {"separator": "#"}}, r"cannot resume with data.path=.*xsum: "),
        ("cola", "full-cola", {"seed": 5}, "seed must be 0 as in the checkpoint, got 5"),
        ("cola", "full-cola", {"task": {"dropout": 0.2}}, "ckpt=.* has dropout=0.1, but .*dropout=0.2"),
        ("cola", "first", {}, "cannot resume from ckpt=.*: it has no optimizer_states"),
    ],
)  # fmt: skip
def test_checkpoints_that_training_cannot_go_on_from(folder, name, ckpt, changes, message):
    path = folder / ckpt / "checkpoints" / "last.ckpt"
    with pytest.raises(UsageError, match=f"^{message}"):
        run(folder, "rejected", name, **changes, ckpt=str(path), init=None)


def test_a_run_on_other_data_is_not_resumed(folder):
    with pytest.raises(
        UsageError, match=r"^ckpt=.* is a classifier with 2 label\(s\), not a classifier with 3"
    ):
        run(folder, "full-cola", "cola", data={"name": "mnli"}, resume="auto")
