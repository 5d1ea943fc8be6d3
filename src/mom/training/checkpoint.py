"""Checkpoints: written whole or not at all, read without running anything, refused when they do not fit."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from mom.callbacks.checkpoints import INSIDE_ACCUMULATION
from mom.errors import RequestError, UsageError
from mom.interop.loading import CLASSIFIER
from mom.interop.loading import read_checkpoint as load_plain
from mom.model import MoMConfig
from mom.runs.files import atomic_file, sync, temporary_path

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
TRAINING_STATE = ("optimizer_states", "lr_schedulers", "loops")
# Options that do not change what the weights mean or how they train.
NOT_ARCHITECTURE = frozenset({"initializer_range"})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name in the same folder, syncs to disk, then renames.

    So a checkpoint's name always stands for a whole file: the new one or the one before. The ``last.ckpt``
    before the new one stays as ``previous.ckpt``, for a disk that loses what it said it had. Reads plain data
    only (``weights_only=True``); a pickle that carries code is refused by PyTorch.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``, replacing what is there.

        Raises:
            TypeError: if ``storage_options`` are given.
            OSError: if it cannot be written; nothing is left behind and the file before stays.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes to a local folder and takes no storage_options")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
            if path.name == LAST and path.is_file():
                sync(temporary)
                _keep(path, path.with_name(PREVIOUS))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read plain data, whatever ``weights_only`` says."""
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


def _keep(path: Path, name: Path) -> None:
    """Give the file a second name, whatever had it before; with links ``path`` stands all the while."""
    link = temporary_path(name)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        os.replace(path, name)
    else:
        os.replace(link, name)


class Resume(NamedTuple):
    """A checkpoint to go on from.

    Attributes:
        path: the file.
        step: optimizer steps behind it.
        model_config: the fields of its model's configuration.
        num_labels: outputs of its classifier; ``None`` for a language model.
    """

    path: Path
    step: int
    model_config: dict[str, Any]
    num_labels: int | None


def read_checkpoint(path: str | Path, option: str = "ckpt") -> Resume:
    """Read a checkpoint whole and see that training can go on from it.

    Args:
        path: the file.
        option: the option that named it, for the error.

    Raises:
        RequestError: if it is missing, torn, holds code, or was not written by this program's training.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(
            option, path, "a checkpoint file, such as checkpoints/last.ckpt in a run directory"
        )
    _check_sums(path, option)
    checkpoint = load_plain(path, option)
    missing = [name for name in TRAINING_STATE if name not in checkpoint]
    if missing:
        raise RequestError(option, path, f"a checkpoint of training; this one has no {', '.join(missing)}")
    if checkpoint.get(INSIDE_ACCUMULATION, False):
        raise RequestError(
            option,
            path,
            f"a checkpoint between two optimizer steps, such as {LAST}; this one was taken inside an "
            "accumulation window (init starts from its weights)",
        )
    classifier = checkpoint["state_dict"].get(CLASSIFIER)
    return Resume(
        path,
        checkpoint["global_step"],
        checkpoint["hyper_parameters"]["model_config"],
        None if classifier is None else classifier.shape[0],
    )


def _check_sums(path: Path, option: str) -> None:
    """Refuse a file whose contents are not what was written; PyTorch's loader does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError):
        return  # no checkpoint at all, or half of one: the loader will say so
    if damaged is not None:
        raise RequestError(option, path, f"a whole checkpoint of a run ({damaged} is damaged)")


def last_checkpoint(folder: str | Path) -> Resume | None:
    """The newest checkpoint of a phase that training can go on from: ``last.ckpt``, or if that one is damaged
    ``previous.ckpt``, which the log then says.

    Args:
        folder: of the checkpoints.

    Returns:
        ``None`` where there is neither.

    Raises:
        RequestError: ``resume``, if what is there cannot be used.
    """
    refusals = []
    for name in (LAST, PREVIOUS):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            resume = read_checkpoint(path, "resume")
        except UsageError as refusal:
            refusals.append(refusal)
            continue
        if refusals:
            log.warning("%s; going on from %s (step %d)", refusals[0], path, resume.step)
        return resume
    if refusals:
        raise refusals[0]
    return None


def check_architecture(resume: Resume, model_config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model than the one asked for.

    Args:
        resume: as :func:`read_checkpoint` returns it.
        model_config: the resolved fields of the model asked for.

    Raises:
        RequestError: naming the fields that differ.
    """
    # Its own options only: transformers adds fields, which change with its version. Options that an older checkpoint
    # lacks have their defaults.
    found, wanted = (
        MoMConfig.from_dict(dict(fields)).as_mapping() for fields in (resume.model_config, model_config)
    )
    differing = [
        name
        for name in {**wanted, **found}
        if name not in NOT_ARCHITECTURE and found.get(name) != wanted.get(name)
    ]
    if differing:
        theirs = ", ".join(f"{name} {found.get(name)}" for name in differing)
        ours = ", ".join(f"{name} {wanted.get(name)}" for name in differing)
        raise RequestError(
            "ckpt",
            f"{resume.path} of a model with {theirs}",
            f"a checkpoint of the model asked for, with {ours}",
        )


def check_head(resume: Resume, num_labels: int | None) -> None:
    """Refuse a checkpoint of a classifier with other outputs, or of a language model in the place of one.

    Args:
        resume: as :func:`read_checkpoint` returns it.
        num_labels: outputs of the classifier asked for; ``None`` for a language model.

    Raises:
        RequestError: naming both.
    """
    if resume.num_labels != num_labels:
        found, wanted = (_kind(count) for count in (resume.num_labels, num_labels))
        raise RequestError("ckpt", f"{resume.path} of {found}", f"a checkpoint of {wanted}")


def _kind(num_labels: int | None) -> str:
    return "a language model" if num_labels is None else f"a classifier of {num_labels} label(s)"
