"""Load any supported model: our checkpoints, exported folders, the authors' folders, GPT-2, Llama, and Qwen3."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mom.errors import UsageError, first_line
from mom.interop.authors import load_authors_checkpoint
from mom.interop.hugging_face import LLAMA_FAMILIES, from_gpt2, from_llama
from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification
from mom.model.registry import InvalidOption

Model = TypeVar("Model", MoMForCausalLM, MoMForSequenceClassification)

_PREFIX = "model."  # prefix of the model's weights in a Lightning checkpoint
CLASSIFIER = f"{_PREFIX}score.weight"
"""Name of the weights that only checkpoints of classifiers have."""
MEASURED_WITH = "measured_with"
"""Checkpoint key: model options that a schedule had replaced when the checkpoint was saved."""
_ALLOWED = "a checkpoint (.ckpt) of a run, an exported folder, a GPT-2, Llama or Qwen3 folder, or a Hub id"


def load_model(source: str | Path, option: str = "init", *, as_measured: bool = True) -> MoMForCausalLM:
    """Load the weights and configuration of a language model.

    Inside ``torch.device("meta")`` weights are not read.

    Args:
        source: a run's ``.ckpt``; a folder with the ``config.json`` of an exported model, of the authors' code, or of
            a Hugging Face GPT-2, Llama, or Qwen3; or a Hub ID.
        option: the option to name in errors.
        as_measured: load a ``.ckpt`` saved during a schedule of the temperature, K, or the number of rounds with the
            values at that step, so that it reproduces its validation; else with the configured values and all
            weights, to train on.

    Raises:
        UsageError: the source is missing, damaged, or not supported.
    """
    path = Path(source)
    if path.is_file():
        return _from_lightning(path, option, as_measured)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"{option} must be {_ALLOWED}, got {source}: the folder has no config.json")
    if not path.is_dir() and (path.suffix == ".ckpt" or path.is_absolute() or str(source).startswith(".")):
        raise UsageError(f"{option} must be {_ALLOWED}, got {source}: no such file or folder")
    return _from_hugging_face(source, option)


def load_classifier(
    source: str | Path,
    labels: Sequence[str],
    *,
    dropout: float | None = None,
    option: str = "init",
    as_measured: bool = True,
) -> MoMForSequenceClassification:
    """Load a classifier, or put a fresh classifier on the body of a language model.

    Args:
        source: as for :func:`load_model`, or a checkpoint or folder of a classifier.
        labels: names of the classes in order; empty for a regression.
        dropout: replaces the dropout in the loaded configuration.
        option: the option to name in errors.
        as_measured: as for :func:`load_model`.

    Raises:
        UsageError: as for :func:`load_model`, or a classifier with another number of labels.
    """
    count = max(1, len(labels))
    theirs = find_classifier(source, option, as_measured=as_measured)
    if theirs is not None and theirs.config.num_labels != count:
        raise UsageError(
            f"{option}={source} must be a language model or a classifier with {count} label(s), got one with "
            f"{theirs.config.num_labels}"
        )
    start = load_model(source, option, as_measured=as_measured) if theirs is None else theirs
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


def find_classifier(
    source: str | Path, option: str = "init", *, as_measured: bool = True
) -> MoMForSequenceClassification | None:
    """Load the classifier in a checkpoint or folder as :func:`load_model` does; return ``None`` for another model."""
    path = Path(source)
    if path.is_file():
        checkpoint = read_checkpoint(path, option)
        if CLASSIFIER not in checkpoint["state_dict"]:
            return None
        return _with_weights(checkpoint, MoMForSequenceClassification, path, option, as_measured)
    config = path / "config.json"
    if config.is_file() and '"MoMForSequenceClassification"' in config.read_text(encoding="utf-8"):
        return _without_code(MoMForSequenceClassification.from_pretrained(source))
    return None


def read_checkpoint(path: Path, option: str) -> dict[str, Any]:
    """Read a Lightning checkpoint of a run, without running any code it may contain.

    Tensors are memory-mapped, so unused tensors take no memory.

    Raises:
        UsageError: the file is damaged or not a run's checkpoint.
    """

    def problem(reason: str) -> UsageError:
        return UsageError(f"cannot load {option}={path}: {reason}")

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises anything on bytes that are not a pickle
        # PyTorch's own message is a page about the history of this check and ways to disable it.
        is_damaged = isinstance(error, OSError | RuntimeError)
        reason = first_line(error)[:160] if is_damaged else "not a checkpoint, or more than plain data"
        raise problem(f"not a complete checkpoint of a run ({reason})") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise problem("not a checkpoint of a run (it has no state_dict)")
    if "model_config" not in checkpoint.get("hyper_parameters", {}):
        raise problem("not a checkpoint of a mom run (it has no model configuration)")
    return checkpoint


def _from_lightning(path: Path, option: str, as_measured: bool) -> MoMForCausalLM:
    checkpoint = read_checkpoint(path, option)
    if CLASSIFIER in checkpoint["state_dict"]:
        raise _not_a_language_model(path, option)
    return _with_weights(checkpoint, MoMForCausalLM, path, option, as_measured)


def _with_weights(
    checkpoint: dict[str, Any], kind: type[Model], path: Path, option: str, as_measured: bool
) -> Model:
    """Build a model from a checkpoint's configuration and load its weights."""
    configured = checkpoint["hyper_parameters"]["model_config"]
    measured = checkpoint.get(MEASURED_WITH, {}) if as_measured else {}
    try:
        model = kind(MoMConfig(**{**configured, **measured}))
    except InvalidOption as error:  # such as a kind of router that only a plugin registers
        raise UsageError(f"cannot load {option}={path}: {error}") from None
    state = {
        name.removeprefix(_PREFIX): value.to(model.device)
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    if "num_rounds" in measured:
        state = _first_rounds(state, model, configured["num_rounds"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(
            f"cannot load {option}={path}: its weights do not fit its configuration ({first_line(error)[:160]})"
        ) from None
    return model


def _first_rounds(state: dict[str, Tensor], model: Model, num_rounds: int) -> dict[str, Tensor]:
    """Cut tables that have a row for each of ``num_rounds`` rounds to the rounds of the model."""
    rounds = model.config.num_rounds
    wanted = model.state_dict()
    cut = dict(state)
    for name, table in state.items():
        if name in wanted and len(table.shape) and len(table) == num_rounds and len(wanted[name]) == rounds:
            cut[name] = table[:rounds]
    return cut


def _from_hugging_face(source: str | Path, option: str) -> MoMForCausalLM:
    from transformers import AutoConfig, GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM

    if (Path(source) / "config.json").is_file():
        try:
            kind = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError) as error:
            raise UsageError(
                f"cannot load {option}={source}: its config.json is not valid ({first_line(error)[:160]})"
            ) from None
        if kind == "gpt2-mot":
            return load_authors_checkpoint(source)
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type == MoMConfig.model_type:
            if config.architectures == [MoMForSequenceClassification.__name__]:
                raise _not_a_language_model(source, option)
            return _without_code(_pretrained(MoMForCausalLM, source, config))
        if config.model_type == "gpt2":
            return from_gpt2(_pretrained(GPT2LMHeadModel, source, config))
        if config.model_type in LLAMA_FAMILIES:
            kind = LlamaForCausalLM if config.model_type == "llama" else Qwen3ForCausalLM
            return from_llama(_pretrained(kind, source, config))
    except UsageError:
        raise
    except InvalidOption as error:
        raise UsageError(f"cannot load {option}={source}: {error}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{option} must be {_ALLOWED}, got {source}: {first_line(error)[:160]}") from None
    raise UsageError(f"{option} must be {_ALLOWED}, got {source}: a model of type {config.model_type}")


def _not_a_language_model(source: str | Path, option: str) -> UsageError:
    return UsageError(f"{option}={source} must be a language model, not a classifier")


def _pretrained(kind: Any, source: str | Path, config: Any) -> Any:
    """Call ``from_pretrained``; inside ``torch.device("meta")``, where that fails, only build the model."""
    return kind(config) if torch.get_default_device().type == "meta" else kind.from_pretrained(source)


def _without_code(model: Model) -> Model:
    """Remove the marks of an exported folder from the configuration, since saving the model does not write one."""
    for mark in ("auto_map", "mom_version"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    return model
