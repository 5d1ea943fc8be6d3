"""Damaged and hostile files of weights: one line that names the file, no code, and never other weights."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from mom.errors import UsageError
from mom.interop import load_model, weights
from mom.interop.loading import find_classifier
from mom.interop.weights import read_config, read_pretrained, save_model
from mom.model import MoMForCausalLM
from mom.training.checkpoint import read_checkpoint
from tests.helpers.models import small_model
from tests.interop.test_loading import checkpoint_of

TRAINING = {"optimizer_states": [], "lr_schedulers": [], "loops": {}, "global_step": 3}


class Payload:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran-code"),))


@pytest.fixture(scope="module")
def model() -> MoMForCausalLM:
    return small_model()


@pytest.fixture(scope="module")
def saved(model: MoMForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the model as a checkpoint and as a folder, and a GPT-2, to copy and damage."""
    root = tmp_path_factory.mktemp("saved")
    (root / "run").mkdir()
    checkpoint_of(model, root / "run" / "last.ckpt", **TRAINING)
    (root / "ours").mkdir()
    save_model(model, root / "ours")
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    return {name: root / name for name in ("run", "ours", "gpt2")}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rejection(source: Path) -> str:
    """Return the error for a source, which must be one line that names it, whoever reads it."""
    messages = set()
    readers = [load_model, find_classifier] if source.is_dir() else [load_model, read_checkpoint]
    for read in readers:
        try:
            read(source)
        except UsageError as error:
            messages.add(str(error).replace("ckpt=", "init="))
    assert not Path("ran-code").exists()
    (message,) = messages
    assert "\n" not in message and str(source) in message
    return message


def copied(source: Path, folder: Path, **fields: Any) -> Path:
    """Copy a folder of weights and change fields of its ``config.json``."""
    target = Path(shutil.copytree(source, folder))
    config = target / "config.json"
    if fields:
        config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    return target


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), cut=st.booleans())
@example(place=0.5, mask=255, cut=False)
@pytest.mark.parametrize("name", ["run", "ours"])
def test_damage_anywhere_is_noticed(
    name: str, place: float, mask: int, cut: bool, model: MoMForCausalLM, saved: dict[str, Path], inside: Path
) -> None:
    folder = copied(saved[name], inside / "copy")
    file = folder / ("last.ckpt" if name == "run" else "model.safetensors")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= mask
    file.write_bytes(content[: int(place * len(content))] if cut else content)
    os.utime(file, ns=(mask, int(place * 1e18)))  # a file with another time is another file
    source = file if name == "run" else folder
    message = ""
    try:
        loaded = load_model(source)
        # A byte that means nothing, such as a time in the archive's directory.
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    except UsageError as error:
        message = str(error)
    shutil.rmtree(folder)
    assert not message or ("\n" not in message and str(source) in message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": [1]}, "its state_dict must be a dict, got list"),
        ({"state_dict": None}, "its state_dict must be a dict, got NoneType"),
        ({"state_dict": {"model.a": 3}}, "its state_dict must be a mapping from names to tensors"),
        ({"state_dict": {3: torch.ones(1)}}, "its state_dict must be a mapping from names to tensors"),
        ({"hyper_parameters": []}, "it has no model configuration"),
        ({"hyper_parameters": {"model_config": []}}, "its model_config must be a mapping"),
        ({"hyper_parameters": {"model_config": {3: 3}}}, "its model_config must be a mapping"),
        ({"measured_with": [3]}, "its measured_with must be a dict, got list"),
        ({"global_step": "x"}, "its global_step must be an int, got str"),
        ({"loops": 3}, "its loops must be a dict, got int"),
        ({"evil": Payload()}, "not a checkpoint, or more than plain data"),
        ({"optimizer_states": [{"state": Payload()}]}, "not a checkpoint, or more than plain data"),
    ],
)
def test_a_checkpoint_of_another_shape_is_rejected(
    changes: dict[str, Any], message: str, model: MoMForCausalLM, inside: Path
) -> None:
    assert message in rejection(checkpoint_of(model, inside / "last.ckpt", **{**TRAINING, **changes}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": "x"}, "d_model must be an integer"),
        ({"d_model": 10**9}, "allocate"),
        ({"num_rounds": -1}, "num_rounds must be"),
        ({"pools": 3}, "pools must be"),
        ({}, "its weights do not fit its configuration"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(
    fields: dict[str, Any], message: str, model: MoMForCausalLM, inside: Path
) -> None:
    configured = {**model.config.to_dict(), **fields} if fields else {}
    path = checkpoint_of(model, inside / "last.ckpt", hyper_parameters={"model_config": configured})
    with pytest.raises(UsageError, match=message) as error:
        load_model(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02]q\x00.", b"PK\x03\x04" + bytes(100)])
def test_what_is_not_an_archive_is_no_checkpoint(content: bytes, inside: Path) -> None:
    (inside / "last.ckpt").write_bytes(content)
    assert "not a complete checkpoint of a run (File is not a zip file)" in rejection(inside / "last.ckpt")


@pytest.mark.parametrize("name", ["ours", "gpt2"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b'{"model_type": 3}',
        b'{"a":' * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b"\xff\xfe",
        b"{}",
    ],
)
def test_a_damaged_configuration_is_one_line(
    name: str, content: bytes, saved: dict[str, Path], inside: Path
) -> None:
    folder = copied(saved[name], inside / "copy")
    (folder / "config.json").write_bytes(content)
    rejection(folder)


@pytest.mark.parametrize("name", ["ours", "gpt2"])
def test_incomplete_weights_are_never_filled_with_random_ones(
    name: str, saved: dict[str, Path], inside: Path
) -> None:
    file = copied(saved[name], inside / "copy") / "model.safetensors"
    weights = load_file(file)
    first = min(weights)
    save_file({key: value for key, value in weights.items() if key != first}, file, metadata={"format": "pt"})
    assert f"1 weights are missing, such as {first}" in rejection(file.parent)
    save_file(weights | {first: torch.zeros(3)}, file, metadata={"format": "pt"})
    assert "a weight has another shape than config.json says" in rejection(file.parent)
    for content in (b"", b"\xff" * 100, b"\x08" + bytes(7) + b"[1,2,3] "):
        file.write_bytes(content)
        assert "not a complete .safetensors file" in rejection(file.parent)
    file.unlink()
    rejection(file.parent)
    torch.save({"weights": Payload()}, file.with_name("pytorch_model.bin"))
    assert "a file holds more than plain data" in rejection(file.parent)


@pytest.mark.parametrize("name", ["ours", "gpt2"])
def test_no_configuration_names_code_to_run(
    name: str, saved: dict[str, Path], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = ModuleType("kernels")  # transformers downloads and imports kernels that a configuration names

    def ran(*args: Any, **options: Any) -> None:
        Path("ran-code").touch()
        raise AssertionError("ran foreign code")

    kernels.get_kernel = kernels.load_kernel = ran  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    monkeypatch.setattr("builtins.input", ran)
    classes = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
    expected = load_model(saved[name])
    for number, fields in enumerate(
        (
            {"attn_implementation": "evil/kernel"},
            {"_attn_implementation": "evil/kernel"},
            {"auto_map": classes},
        )
    ):
        folder = copied(saved[name], inside / f"copy{number}", **fields)
        (folder / "evil.py").write_text("import pathlib; pathlib.Path('ran-code').touch()\n")
        loaded = load_model(folder)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
    folder = copied(saved[name], inside / "foreign", model_type="evil", auto_map=classes)
    (folder / "evil.py").write_text("import pathlib; pathlib.Path('ran-code').touch()\n")
    assert "requires code of its own, which is never run" in rejection(folder)
    folder = copied(saved[name], inside / "quantized", quantization_config={"quant_method": "bitsandbytes"})
    assert "quantized weights are not supported" in rejection(folder)
    folder = copied(saved[name], inside / "adapter")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil"}')
    assert "it has an adapter" in rejection(folder)


def test_a_checkpoint_cannot_name_a_kernel(model: MoMForCausalLM, inside: Path) -> None:
    configured = {**model.config.to_dict(), "attn_implementation": "evil/kernel"}
    path = checkpoint_of(model, inside / "last.ckpt", hyper_parameters={"model_config": configured})
    assert load_model(path).config._attn_implementation != "evil/kernel"


def test_weights_changed_on_purpose_load(model: MoMForCausalLM, inside: Path) -> None:
    (inside / "ours").mkdir()
    save_model(model, inside / "ours")
    loaded = load_model(inside / "ours")
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    loaded.save_pretrained(inside / "ours")
    again = load_model(inside / "ours")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), loaded.parameters(), strict=True))


def test_a_run_directory_is_told_apart(model: MoMForCausalLM, inside: Path) -> None:
    (inside / "run" / "checkpoints").mkdir(parents=True)
    checkpoint_of(model, inside / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(UsageError, match=r"a run directory; its weights are .*run/checkpoints/last.ckpt$"):
        load_model(inside / "run")


def test_weights_in_the_hubs_cache_are_verified(
    model: MoMForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "snapshots" / ("a" * 40)
    save_model(model, folder)
    monkeypatch.setattr(weights, "_snapshot", lambda name, config: folder)
    config = read_config(folder, "init")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    loaded = model, {"missing_keys": []}
    monkeypatch.setattr(MoMForCausalLM, "from_pretrained", lambda *_, **__: loaded)
    with pytest.raises(UsageError, match=r"^cannot load init=.*model.safetensors: its content does not have"):
        read_pretrained(MoMForCausalLM, "user/tiny", config, "init")
