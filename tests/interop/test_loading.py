"""Loading models: all supported kinds, and errors for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mom.errors import UsageError
from mom.interop import load_model
from tests.helpers.models import small_model, tokens
from tests.helpers.plugins import THREE_POOLS, causal_conv
from tests.interop.test_hugging_face import random_gpt2

GOLDEN = Path(__file__).parents[1] / "golden"


def checkpoint_of(model, path: Path, **changes) -> Path:
    """Write a checkpoint as Lightning does."""
    content = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "hyper_parameters": {"model_config": model.config.to_dict()},
    }
    torch.save(content | changes, path)
    return path


def test_loads_our_checkpoints_and_exported_folders(tmp_path):
    model, ids = small_model(), tokens(2, 8)
    expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "exported")
    for source in (checkpoint_of(model, tmp_path / "last.ckpt"), tmp_path / "exported"):
        assert torch.equal(load_model(source).eval()(input_ids=ids).logits, expected)


def test_loads_the_authors_folders_and_any_gpt2(tmp_path):
    assert load_model(GOLDEN / "gru_top2").config.num_rounds == 4
    gpt2, ids = random_gpt2(), tokens(2, 8)
    gpt2.save_pretrained(tmp_path)
    torch.testing.assert_close(load_model(tmp_path).eval()(input_ids=ids).logits, gpt2(input_ids=ids).logits)


class Payload:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("ran-code"),))


def test_an_error_names_what_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = checkpoint_of(small_model(), tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty").mkdir()
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    torch.save(
        {"state_dict": {}, "hyper_parameters": {"model_config": {}}, "evil": Payload()},
        tmp_path / "evil.ckpt",
    )
    checkpoint_of(
        small_model(), tmp_path / "unfit.ckpt", state_dict={"model.lm_head.weight": torch.zeros(2, 2)}
    )
    for name, message in {
        "torn.ckpt": "not a complete checkpoint of a run",
        "text.ckpt": "not a complete checkpoint of a run",
        "foreign.ckpt": "it has no state_dict",
        "other.ckpt": "it has no model configuration",
        "evil.ckpt": "not a complete checkpoint of a run",
        "unfit.ckpt": "its weights do not fit its configuration",
        "empty": "the folder has no config.json",
        "missing.ckpt": "no such file or folder",
    }.items():
        with pytest.raises(UsageError) as error:
            load_model(tmp_path / name)
        assert str(error.value).startswith(("init must be ", "cannot load init=")) and message in str(
            error.value
        ), name
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran-code").exists()


def test_one_line_names_a_kind_that_is_not_registered(tmp_path):
    with causal_conv():
        model = small_model(pools=THREE_POOLS)
        checkpoint = checkpoint_of(model, tmp_path / "last.ckpt")
        model.save_pretrained(tmp_path / "exported")
    for source in (checkpoint, tmp_path / "exported"):
        with pytest.raises(UsageError, match=r"^(cannot load init=|init must be ).*causal_conv") as error:
            load_model(source)
        assert "\n" not in str(error.value)
    with causal_conv():
        assert load_model(checkpoint).config.pools()[1].label == "convolution"
