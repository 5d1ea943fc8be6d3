"""One way to load a model to start from: our checkpoints, exported folders, the authors' folders, any GPT-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mom.errors import RequestError
from mom.interop.authors import load_authors_checkpoint
from mom.interop.gpt2 import from_gpt2
from mom.model import MoMConfig, MoMForCausalLM

_ALLOWED = "a checkpoint (.ckpt) of a run, an exported folder, a GPT-2 folder or a Hub id"


def load_model(source: str | Path, option: str = "init") -> MoMForCausalLM:
    """Load weights and configuration, whatever they were saved by.

    Args:
        source: a run's ``.ckpt``; a folder with a ``config.json`` of ours, of the authors' code or of a Hugging
            Face GPT-2; or the Hub id of either of ours or GPT-2.
        option: the option to name in errors.

    Raises:
        RequestError: nothing there, damaged, or of another kind.
    """
    path = Path(source)
    if path.is_file():
        return _from_lightning(path, option)
    if path.is_dir() and not (path / "config.json").is_file():
        raise RequestError(option, source, f"a folder with a config.json; {_ALLOWED}")
    if not path.is_dir() and (path.suffix == ".ckpt" or path.is_absolute() or str(source).startswith(".")):
        raise RequestError(option, source, f"a file or folder that exists; {_ALLOWED}")
    return _from_hugging_face(source, option)


def read_checkpoint(path: Path, option: str) -> dict[str, Any]:
    """A Lightning checkpoint of ours as a dictionary, read without running any code that it may hold.

    Raises:
        RequestError: not a whole checkpoint, or not one of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler raises on bytes that are no pickle is anything at all
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RequestError(option, path, f"a whole checkpoint of a run ({reason[:120]})") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise RequestError(option, path, "a checkpoint of a run (it holds no state_dict)")
    if "model_config" not in checkpoint.get("hyper_parameters", {}):
        raise RequestError(option, path, "a checkpoint of a run of mom (it holds no model configuration)")
    return checkpoint


def _from_lightning(path: Path, option: str) -> MoMForCausalLM:
    checkpoint = read_checkpoint(path, option)
    model = MoMForCausalLM(MoMConfig(**checkpoint["hyper_parameters"]["model_config"]))
    prefix = "model."
    state = {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RequestError(
            option, path, f"weights that fit its own configuration ({_first_line(error)})"
        ) from None
    return model


def _from_hugging_face(source: str | Path, option: str) -> MoMForCausalLM:
    from transformers import AutoConfig, GPT2LMHeadModel

    _register()
    if (Path(source) / "config.json").is_file():
        import json

        try:
            kind = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError) as error:
            raise RequestError(
                option, source, f"a folder whose config.json can be read ({_first_line(error)})"
            ) from None
        if kind == "gpt2-mot":
            return load_authors_checkpoint(source)
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type == MoMConfig.model_type:
            return MoMForCausalLM.from_pretrained(source)
        if config.model_type == "gpt2":
            return from_gpt2(GPT2LMHeadModel.from_pretrained(source))
    except RequestError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(option, source, f"{_ALLOWED} ({_first_line(error)})") from None
    raise RequestError(option, source, f"{_ALLOWED}; not a model of type {config.model_type}")


def _register() -> None:
    """Tell transformers' Auto classes about ours; saying so twice is allowed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoConfig.register(MoMConfig.model_type, MoMConfig, exist_ok=True)
    AutoModelForCausalLM.register(MoMConfig, MoMForCausalLM, exist_ok=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
