"""Load any supported model: our checkpoints, exported folders, the authors' folders, GPT-2, Llama, and Qwen3."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from mom.errors import UsageError, first_line
from mom.interop.authors import load_authors_checkpoint
from mom.interop.hugging_face import LLAMA_FAMILIES, from_gpt2, from_llama
from mom.interop.weights import (
    MEASURED_WITH,
    load_errors,
    read_checkpoint,
    read_config,
    read_fields,
    read_pretrained,
    without_code,
)
from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification
from mom.runs.sources import SOURCES, check_source

Model = TypeVar("Model", MoMForCausalLM, MoMForSequenceClassification)

_PREFIX = "model."  # prefix of the model's weights in a Lightning checkpoint
CLASSIFIER = f"{_PREFIX}score.weight"
"""Name of the weights that only checkpoints of classifiers have."""


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
    check_source(source, option)
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
    if (path / "config.json").is_file():
        fields = read_fields(path, option)
        if fields.get("architectures") == [MoMForSequenceClassification.__name__]:
            config = read_config(path, option)
            return _without_marks(read_pretrained(MoMForSequenceClassification, path, config, option))
    return None


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
    with load_errors(path, option):
        model = kind(MoMConfig(**without_code({**configured, **measured})))
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
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM

    if Path(source).is_dir() and read_fields(Path(source), option).get("model_type") == "gpt2-mot":
        return load_authors_checkpoint(source)
    config = read_config(source, option)
    if config.model_type == MoMConfig.model_type:
        if config.architectures == [MoMForSequenceClassification.__name__]:
            raise _not_a_language_model(source, option)
        return _without_marks(read_pretrained(MoMForCausalLM, source, config, option))
    with load_errors(source, option):
        if config.model_type == "gpt2":
            return from_gpt2(read_pretrained(GPT2LMHeadModel, source, config, option))
        if config.model_type in LLAMA_FAMILIES:
            kind = LlamaForCausalLM if config.model_type == "llama" else Qwen3ForCausalLM
            return from_llama(read_pretrained(kind, source, config, option))
    raise UsageError(f"{option} must be {SOURCES}, got {source}: a model of type {config.model_type}")


def _not_a_language_model(source: str | Path, option: str) -> UsageError:
    return UsageError(f"{option}={source} must be a language model, not a classifier")


def _without_marks(model: Model) -> Model:
    """Remove the marks of an exported folder from the configuration, since saving the model does not write one."""
    for mark in ("auto_map", "mom_version"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    return model
