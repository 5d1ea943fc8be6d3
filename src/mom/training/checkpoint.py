"""Checkpoints: write them atomically, read them without running code, and check them before resuming."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from mom.callbacks.checkpoints import INSIDE_ACCUMULATION, RESULTS
from mom.callbacks.resume import STOPPED_EARLY
from mom.errors import UsageError, as_written
from mom.interop.loading import CLASSIFIER
from mom.interop.weights import read_checkpoint as load_plain
from mom.model import MoMConfig
from mom.runs.directory import CHECKPOINTS
from mom.runs.files import atomic_file, sync, temporary_path

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
TRAINING_STATE = ("optimizer_states", "lr_schedulers", "loops")
# Options that do not change what the weights mean or how they train.
NOT_ARCHITECTURE = frozenset({"initializer_range"})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file in the same folder, syncs it to disk, then renames it.

    A checkpoint's name therefore always refers to a complete file. A replaced ``last.ckpt`` is kept as
    ``previous.ckpt``, in case the disk loses a file that it reported as written. Reads plain data only
    (``weights_only=True``); PyTorch rejects a pickle that contains code.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``, replacing an existing file, which stays if this fails.

        Raises:
            OSError: the disk is full, with the bytes that are needed and free.
        """
        if storage_options is not None:
            raise TypeError(
                "AtomicCheckpointIO writes to a local folder and does not support storage_options"
            )
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, _num_bytes(checkpoint)) as temporary:
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
        """Read plain data, regardless of ``weights_only``."""
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


def _num_bytes(content: Any) -> int:
    """Return the bytes of all tensors in nested plain data."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        content = content.values()
    elif not isinstance(content, list | tuple):
        return 0
    return sum(map(_num_bytes, content))


def _keep(path: Path, name: Path) -> None:
    """Give the file a second name; without hard links in the file system, it loses the first."""
    # A process killed after linking the file, but before replacing it, leaves both names on the same file.
    if name.exists() and name.samefile(path):
        return
    link = temporary_path(name)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, name)
    else:
        os.replace(link, name)


class ResumePoint(NamedTuple):
    """A checkpoint to resume training from.

    Attributes:
        path: the file.
        step: optimizer steps taken before it was written.
        model_config: the fields of its model's configuration.
        num_labels: outputs of its classifier; ``None`` for a language model.
        results: final metrics, if training had ended; else ``None``.
        stopped_early: whether it ended before its number of steps.
        data: the state of the data module; empty if there is none.
    """

    path: Path
    step: int
    model_config: dict[str, Any]
    num_labels: int | None
    results: dict[str, float] | None = None
    stopped_early: bool = False
    data: Mapping[str, Any] = MappingProxyType({})

    def is_finished(self, max_steps: int) -> bool:
        """Return whether nothing is left to train of ``max_steps`` steps."""
        return self.results is not None and (self.step == max_steps or self.stopped_early)


def read_checkpoint(path: str | Path, option: str = "ckpt") -> ResumePoint:
    """Read a checkpoint and check that training can resume from it.

    Args:
        path: the file.
        option: the option that names it, for the error.

    Raises:
        UsageError: it is missing or damaged, contains code, or was not written by :class:`TrainingModule`.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"{option} must be a checkpoint file, such as {CHECKPOINTS}/{LAST} in a run directory, got {path}"
        )
    checkpoint = load_plain(path, option)
    missing = [name for name in (*TRAINING_STATE, "global_step") if name not in checkpoint]
    if missing:
        raise UsageError(f"cannot resume from {option}={path}: it has no {', '.join(missing)}")
    if checkpoint.get(INSIDE_ACCUMULATION, False):
        raise UsageError(
            f"cannot resume from {option}={path}, saved during gradient accumulation; use {LAST}, or pass the file as "
            "init to start from its weights"
        )
    classifier = checkpoint["state_dict"].get(CLASSIFIER)
    return ResumePoint(
        path,
        checkpoint["global_step"],
        checkpoint["hyper_parameters"]["model_config"],
        None if classifier is None else classifier.shape[0],
        checkpoint.get(RESULTS),
        checkpoint.get(STOPPED_EARLY, False),
        next((checkpoint[name] for name in checkpoint if name.endswith("DataModule")), {}),
    )


def last_checkpoint(folder: str | Path) -> ResumePoint | None:
    """Return the newest usable checkpoint in a folder: ``last.ckpt``, or, with a warning, ``previous.ckpt``.

    Returns:
        The checkpoint; ``None`` if neither file exists.

    Raises:
        UsageError: there are checkpoints, but training cannot resume from them.
    """
    errors = []
    for name in (LAST, PREVIOUS):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            resume = read_checkpoint(path, "resume")
        except UsageError as error:
            errors.append(error)
            continue
        if errors:
            log.warning("%s; resuming from %s (step %d) instead", errors[0], path, resume.step)
        return resume
    if errors:
        raise errors[0]
    return None


def check_architecture(resume: ResumePoint, model_config: Mapping[str, Any]) -> None:
    """Reject a checkpoint whose model differs from the requested one, and list the options that differ."""
    # Compare only the options of MoMConfig: transformers adds fields, which change with its version. Options that an
    # older checkpoint lacks get their defaults.
    found, wanted = (
        MoMConfig.from_dict(dict(fields)).as_mapping() for fields in (resume.model_config, model_config)
    )
    differing = [
        name
        for name in {**wanted, **found}
        if name not in NOT_ARCHITECTURE and found.get(name) != wanted.get(name)
    ]
    if differing:
        raise UsageError(
            f"ckpt={resume.path} has {list_options(found, differing)}, but the requested model has "
            f"{list_options(wanted, differing)}"
        )


def list_options(options: Mapping[str, Any], names: Sequence[str]) -> str:
    """Format options as users type them: ``d_model=64, top_k=2``."""
    return ", ".join(f"{name}={as_written(options.get(name))}" for name in names)


def check_head(resume: ResumePoint, num_labels: int | None) -> None:
    """Reject a checkpoint that is not a classifier with ``num_labels`` outputs (``None``: a language model)."""
    if resume.num_labels != num_labels:
        raise UsageError(f"ckpt={resume.path} is {_head(resume.num_labels)}, not {_head(num_labels)}")


def _head(num_labels: int | None) -> str:
    return "a language model" if num_labels is None else f"a classifier with {num_labels} label(s)"
