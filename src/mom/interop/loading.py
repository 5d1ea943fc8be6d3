"""One way to load a model to start from: our checkpoints, exported folders, the authors' folders, any GPT-2."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from mom.errors import RequestError, UsageError
from mom.interop.authors import load_authors_checkpoint
from mom.interop.gpt2 import from_gpt2
from mom.interop.llama import KINDS, from_llama
from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification

Model = TypeVar("Model", MoMForCausalLM, MoMForSequenceClassification)

# Of the model's weights in a Lightning checkpoint.
_PREFIX = "model."
CLASSIFIER = f"{_PREFIX}score.weight"
"""The weights in a checkpoint that only a classifier has."""
_ALLOWED = "a checkpoint (.ckpt) of a run, an exported folder, a GPT-2, Llama or Qwen3 folder, or a Hub id"


def load_model(source: str | Path, option: str = "init") -> MoMForCausalLM:
    """Load weights and configuration, whatever they were saved by.

    Inside ``torch.device("meta")`` the model comes without its weights, and those are not read.

    Args:
        source: a run's ``.ckpt``; a folder with a ``config.json`` of ours, of the authors' code or of a Hugging
            Face GPT-2, Llama or Qwen3; or the Hub id of ours or one of these.
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


def load_classifier(
    source: str | Path, labels: Sequence[str], *, dropout: float | None = None, option: str = "init"
) -> MoMForSequenceClassification:
    """Load a classifier, or a language model's body with a fresh classifier on it.

    Args:
        source: as :func:`load_model` takes it, or a checkpoint or folder of a classifier.
        labels: names of the classes by their number; empty for a regression.
        dropout: in the place of the weights' own.
        option: the option to name in errors.

    Raises:
        RequestError: as :func:`load_model`, or a classifier with another number of labels.
    """
    count = max(1, len(labels))
    theirs = find_classifier(source, option)
    if theirs is not None and theirs.config.num_labels != count:
        raise RequestError(
            option,
            f"{source}, a classifier of {theirs.config.num_labels} label(s)",
            f"a classifier of {count} label(s), or a language model",
        )
    start = load_model(source, option) if theirs is None else theirs
    config = copy.deepcopy(start.config)
    config.num_labels = count
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}
    if dropout is not None:
        config.dropout = dropout
    model = MoMForSequenceClassification(config)
    model.model.load_state_dict(start.model.state_dict())
    if theirs is not None:
        model.score.load_state_dict(theirs.score.state_dict())
    return model


def find_classifier(source: str | Path, option: str = "init") -> MoMForSequenceClassification | None:
    """The classifier in ``source``, a checkpoint or a folder; None if what is there is something else."""
    path = Path(source)
    if path.is_file():
        checkpoint = read_checkpoint(path, option)
        if CLASSIFIER not in checkpoint["state_dict"]:
            return None
        return _with_weights(checkpoint, MoMForSequenceClassification, path, option)
    config = path / "config.json"
    if config.is_file() and '"MoMForSequenceClassification"' in config.read_text(encoding="utf-8"):
        return _without_code(MoMForSequenceClassification.from_pretrained(source))
    return None


def read_checkpoint(path: Path, option: str) -> dict[str, Any]:
    """A Lightning checkpoint of ours as a dictionary, read without running any code that it may hold.

    Its tensors are mapped, not read: what is not used of them takes no memory.

    Raises:
        RequestError: not a whole checkpoint, or not one of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what the unpickler raises on bytes that are no pickle is anything at all
        # PyTorch's own words for this are a page about its history and how to switch the check off.
        told = isinstance(error, OSError | RuntimeError)
        reason = _first_line(error) if told else "not one, or it holds more than plain data"
        raise RequestError(option, path, f"a whole checkpoint of a run ({reason})") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise RequestError(option, path, "a checkpoint of a run (it holds no state_dict)")
    if "model_config" not in checkpoint.get("hyper_parameters", {}):
        raise RequestError(option, path, "a checkpoint of a run of mom (it holds no model configuration)")
    return checkpoint


def _from_lightning(path: Path, option: str) -> MoMForCausalLM:
    checkpoint = read_checkpoint(path, option)
    if CLASSIFIER in checkpoint["state_dict"]:
        raise RequestError(option, f"{path}, a classifier", "the weights of a language model")
    return _with_weights(checkpoint, MoMForCausalLM, path, option)


def _with_weights(checkpoint: dict[str, Any], kind: type[Model], path: Path, option: str) -> Model:
    """A model of a kind by a checkpoint's configuration, with its weights."""
    model = kind(MoMConfig(**checkpoint["hyper_parameters"]["model_config"]))
    state = {
        name.removeprefix(_PREFIX): value.to(model.device)
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RequestError(
            option, path, f"weights that fit its own configuration ({_first_line(error)})"
        ) from None
    return model


def _from_hugging_face(source: str | Path, option: str) -> MoMForCausalLM:
    from transformers import AutoConfig, GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM

    if (Path(source) / "config.json").is_file():
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
            if config.architectures == [MoMForSequenceClassification.__name__]:
                raise RequestError(option, f"{source}, a classifier", "the weights of a language model")
            return _without_code(_pretrained(MoMForCausalLM, source, config))
        if config.model_type == "gpt2":
            return from_gpt2(_pretrained(GPT2LMHeadModel, source, config))
        if config.model_type in KINDS:
            kind = LlamaForCausalLM if config.model_type == "llama" else Qwen3ForCausalLM
            return from_llama(_pretrained(kind, source, config))
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(option, source, f"{_ALLOWED} ({_first_line(error)})") from None
    raise RequestError(option, source, f"{_ALLOWED}; not a model of type {config.model_type}")


def _pretrained(kind: Any, source: str | Path, config: Any) -> Any:
    """``from_pretrained``, which refuses to work inside ``torch.device("meta")``; there only its configuration."""
    return kind(config) if torch.get_default_device().type == "meta" else kind.from_pretrained(source)


def _without_code(model: Model) -> Model:
    """Forget where an exported folder kept the code: what is saved from here on is not that folder."""
    if hasattr(model.config, "auto_map"):
        del model.config.auto_map
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
