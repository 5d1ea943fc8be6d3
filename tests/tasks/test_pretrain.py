"""The pretrain task: its phases, its summary, and requests rejected before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mom.data.tokenizer import (
    load_tokenizer,
    tokenizer_identity,
    train_tokenizer,
    vocabulary_identity,
    vocabulary_size,
)
from mom.errors import UsageError
from mom.interop import load_model
from mom.runs.directory import RunDirectory
from mom.tasks import pretrain
from tests.helpers.runs import tiny_request


def run(folder: Path, name: str = "run", **changes):
    config = tiny_request(folder, run_dir=str(folder / name), **changes)
    return pretrain.run(config, RunDirectory(folder / name))


def files(folder: Path) -> set[str]:
    """Return every file except ``previous.ckpt``, which exists only if a phase saved twice."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith("previous.ckpt")}


PHASE_FILES = {
    "metrics.csv",
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
}
OWN_FILES = PHASE_FILES | {"config.yaml", "status.json", "summary.json"}


def test_two_phases_and_a_baseline(tmp_path, capsys):
    summary = run(tmp_path)
    expected = {f"{phase}/{name}" for phase in ("plain", "baseline") for name in OWN_FILES} | PHASE_FILES
    assert files(tmp_path / "run") == expected

    assert {"val/loss", "val/perplexity", "val/bits_per_byte", "baseline/val/loss", "plain/val/loss"} <= set(
        summary
    )
    assert {"depth/effective", "depth/weighted", "routing/attention/skip_rate"} <= set(summary)
    assert {"parameters", "throughput/tokens_per_second", "data/fingerprint"} <= set(summary)
    assert summary["depth/graph"] == 1 + 1 + 1 + 3  # bottom, anchor, top, rounds
    assert summary["baseline/depth/graph"] == summary["baseline/depth/effective"] == 1 + 2 + 1 + 1
    assert json.loads((tmp_path / "run" / "baseline" / "summary.json").read_text())["steps"] == 6
    assert summary["plain/steps"] == 2
    assert all(isinstance(value, int | float | str) for value in summary.values())

    out = capsys.readouterr().out
    for shown in (
        "MoM",
        "plain baseline",
        f"{summary['val/loss']:.4f}",
        f"{summary['baseline/val/loss']:.4f}",
    ):
        assert shown in out
    assert f"Written to {tmp_path / 'run'}" in out

    plain = load_model(tmp_path / "run" / "plain" / "checkpoints" / "last.ckpt")
    mom = load_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    vocabulary = vocabulary_identity(load_tokenizer(str(tmp_path / "run" / "tokenizer")))
    assert plain.config.vocabulary == mom.config.vocabulary == vocabulary
    assert (plain.config.num_stages, mom.config.num_stages) == (0, 1)
    assert sum(p.numel() for p in mom.parameters()) == summary["parameters"]
    assert mom.config.eos_token_id is not None


def test_the_same_request_gives_the_same_numbers(tmp_path):
    first, second = (run(tmp_path, name) for name in ("a", "b"))
    timed = {name for name in first if name.endswith(("throughput/tokens_per_second", "throughput/mfu"))}
    assert len(timed) == 3 * 2  # tokens per second and MFU of each phase
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }


def test_a_plain_model_has_one_phase(tmp_path, capsys):
    summary = run(tmp_path, model={"num_stages": 0})
    assert files(tmp_path / "run") == PHASE_FILES
    assert summary["depth/effective"] == summary["depth/graph"] == 2
    assert not any(name.startswith(("routing/", "baseline/", "plain/")) for name in summary)
    assert "MoM" not in capsys.readouterr().out


def test_without_plain_steps_the_mom_starts_from_scratch(tmp_path):
    summary = run(tmp_path, task={"plain_steps": 0})
    assert files(tmp_path / "run") == PHASE_FILES
    assert "routing/ffn/skip_rate" in summary


def test_phase_one_may_come_from_elsewhere(tmp_path):
    run(tmp_path, "first")
    plain = tmp_path / "first" / "plain" / "checkpoints" / "last.ckpt"
    summary = run(tmp_path, "second", init=str(plain), task={"baseline": False})
    assert files(tmp_path / "second") == PHASE_FILES
    # The same plain weights and seed give the same second phase.
    once, twice = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("first", "second")
    )
    assert all(torch.equal(weight, twice[name]) for name, weight in once.items())
    assert not any(key.startswith(("baseline/", "plain/")) for key in summary)

    summary = run(tmp_path, "third", init=str(plain))
    assert "baseline/val/loss" in summary
    assert "plain/val/loss" not in summary


def test_weights_of_the_same_kind_are_trained_on(tmp_path):
    first = run(tmp_path, "first", task={"plain_steps": 0}, trainer={"max_steps": 12})
    second = run(tmp_path, "second", init=str(tmp_path / "first" / "checkpoints" / "last.ckpt"))
    assert files(tmp_path / "second") == PHASE_FILES
    assert second["val/loss"] < first["val/loss"]


def test_the_tokenizer_is_that_of_the_weights(tmp_path, monkeypatch):
    run(tmp_path, "first", task={"plain_steps": 0}, trainer={"max_steps": 1})
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    # Another text, on which another tokenizer of the same size would be trained.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("zzzz qqqq " * 4000 + "\n\n" + "some other words " * 4000)
    other = {"corpus": "text", "path": str(tmp_path / "other")}
    run(tmp_path, "second", init=str(last), data=other, trainer={"max_steps": 1})
    first, second = (load_tokenizer(str(tmp_path / name / "tokenizer")) for name in ("first", "second"))
    assert tokenizer_identity(first) == tokenizer_identity(second)

    trained = train_tokenizer(["zzzz qqqq " * 4000], vocabulary_size(first))
    trained.save_pretrained(str(tmp_path / "theirs"))
    given = {**other, "tokenizer": str(tmp_path / "theirs")}
    with pytest.raises(
        UsageError, match=r"^data.tokenizer must be the tokenizer of .*last.ckpt, .* ID \d+ is "
    ):
        run(tmp_path, "third", init=str(last), data=given)
    moved = tmp_path / "moved.ckpt"
    last.rename(moved)
    with pytest.raises(UsageError, match=r"^no tokenizer found with .*moved.ckpt; set data.tokenizer"):
        run(tmp_path, "fourth", init=str(moved), data=other)


@pytest.mark.parametrize(
    "model", [{"num_heads": 4}, {"layer_norm_epsilon": 1e-6}, {"tie_word_embeddings": False}], ids=str
)
def test_blocks_that_compute_another_function_are_rejected(tmp_path, model):
    run(tmp_path, "first", task={"plain_steps": 0}, trainer={"max_steps": 1})
    last = str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    (name,) = model
    with pytest.raises(UsageError, match=f"^model.{name} must be .*, as in the model of init, got "):
        run(tmp_path, "second", init=last, model=model)


def test_ckpt_resumes_and_resume_finds_the_checkpoint(tmp_path):
    reference = run(tmp_path, "reference", trainer={"max_steps": 6})
    last = tmp_path / "reference" / "checkpoints" / "last.ckpt"
    longer = run(tmp_path, "longer", ckpt=str(last), trainer={"max_steps": 8})
    assert longer["steps"] == 8
    assert files(tmp_path / "longer") == PHASE_FILES
    again = run(tmp_path, "reference", resume="auto")
    assert again["val/loss"] == reference["val/loss"]
    assert again["baseline/val/loss"] == reference["baseline/val/loss"]
    fresh = run(tmp_path, "fresh", resume="auto", task={"plain_steps": 0})
    assert fresh["steps"] == 6


@pytest.mark.parametrize("option", ["ckpt", "init"])
def test_bad_checkpoints_are_rejected_before_the_data_is_touched(tmp_path, monkeypatch, option):
    monkeypatch.setattr(
        pretrain, "LanguageModelingDataModule", lambda *_: pytest.fail("the data was touched")
    )
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(b"PK\x03\x04 torn")
    for path in (torn, tmp_path / "missing.ckpt"):
        with pytest.raises(UsageError, match=option):
            run(tmp_path, **{option: str(path)})


def test_a_checkpoint_of_another_architecture_is_rejected_before_the_data_is_touched(tmp_path, monkeypatch):
    run(tmp_path, "first", task={"plain_steps": 0}, trainer={"max_steps": 1})
    last = str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    monkeypatch.setattr(
        pretrain, "LanguageModelingDataModule", lambda *_: pytest.fail("the data was touched")
    )
    with pytest.raises(UsageError, match=r"^ckpt=.*num_rounds=3.*num_rounds=2"):
        run(tmp_path, "second", ckpt=last, model={"num_rounds": 2})


def test_weights_of_another_architecture_are_rejected_before_training(tmp_path):
    run(tmp_path, "first", task={"plain_steps": 0}, trainer={"max_steps": 1})
    last = str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    with pytest.raises(UsageError, match=r"^init has .*d_model=16.*d_model=32"):
        run(tmp_path, "second", init=last, model={"d_model": 32})
    assert files(tmp_path / "second") == set()
