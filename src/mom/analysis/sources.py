"""Sources of the windows that an analysis records: a text, or the examples of a control."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from mom.analysis.difficulty import Groups
from mom.analysis.recording import Window, batch_windows, split_windows, stack_windows
from mom.analysis.samples import Batch
from mom.config import DataConfig
from mom.data.controls import Control
from mom.data.controls.batches import ControlDataModule
from mom.data.controls.control import IGNORED
from mom.data.prepare import prepare
from mom.data.tokenizer import find_tokenizer, load_model_tokenizer
from mom.errors import UsageError
from mom.model import MoMConfig


@dataclass(frozen=True)
class Source:
    """Windows to analyze.

    Attributes:
        name: what they are, for readers.
        fingerprint: hash of the data.
        length: maximum tokens in a window.
        num_tokens: tokens of all windows.
        batch_size: windows in a batch.
        tokenizer: the model's; ``None`` if tokens are only numbers.
        windows: returns the windows in order.
        knows_choices: whether the windows have right modules.
        attributes: what else is known about the tokens of all windows, [tokens] by name; negative is unknown.
        groups: groups of the tokens of all windows by name.
    """

    name: str
    fingerprint: str
    length: int
    num_tokens: int
    batch_size: int
    tokenizer: PreTrainedTokenizerFast | None
    windows: Callable[[], Iterator[Window]]
    knows_choices: bool = False
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: Mapping[str, Groups] = field(default_factory=dict)

    def batches(self, num_tokens: int | None) -> Iterator[list[Window]]:
        """Return batches of the first windows, of at most ``num_tokens`` tokens; all for ``None``."""
        return batch_windows(self.windows(), self.batch_size, num_tokens)

    def sample(self, num_tokens: int, device: torch.device) -> list[Batch]:
        """Return the first windows as batches for interventions, without windows that predict nothing."""
        batches = self.batches(num_tokens) if num_tokens else iter(())
        stacked = (stack_windows(batch, device) for batch in batches)
        return [batch for batch in stacked if (batch.labels[:, 1:] != IGNORED).any()]


def text_source(data: DataConfig, split: str, source: str, config: MoMConfig, corpus: str = "") -> Source:
    """Return the windows of a split of a text, with the tokenizer of the model in ``source``.

    Args:
        data: one corpus.
        split: documents to read.
        source: a checkpoint or folder.
        config: the model's configuration.
        corpus: its name in a mixture.

    Raises:
        UsageError: the tokenizer or the data cannot be used.
    """
    tokenizer = load_model_tokenizer(source, data.tokenizer, config)
    prepared = prepare(dataclasses.replace(data, tokenizer=find_tokenizer(source, data.tokenizer)))
    files = prepared.split_files(split)
    return Source(
        name=", ".join(filter(None, [corpus, data.path or data.corpus, split])),
        fingerprint=prepared.fingerprint,
        length=data.sequence_length,
        num_tokens=sum(file.count for file in files),
        batch_size=data.batch_size,
        tokenizer=tokenizer,
        windows=lambda: split_windows(files, data.sequence_length, tokenizer.eos_token_id),
    )


def control_source(control: Control, split: str, option: str, config: MoMConfig, seed: int) -> Source:
    """Return the examples of a control in random order, each in a window of its own.

    The attributes are the bucket, the answer that a token predicts, and the right module in each pool for which it is
    known; tokens are grouped by bucket.

    Raises:
        UsageError: the model or the split does not fit the control.
    """
    if split == "all":
        raise UsageError(f"task.split must be validation or train with data=control/{control.name}, got all")
    if control.vocab_size > config.vocab_size:
        raise UsageError(
            f"{option} must be a model with at least {control.vocab_size} tokens for data=control/{control.name}, "
            f"got {config.vocab_size}"
        )
    data = ControlDataModule(control, seed)
    examples = data.training if split == "train" else data.validation
    order = torch.randperm(len(examples.input_ids), generator=torch.Generator().manual_seed(seed))
    ids, labels = examples.input_ids[order].numpy(), examples.labels[order].numpy()
    right = {pool: given[order].numpy() for pool, given in (examples.choices or {}).items()}
    bucket = np.repeat(examples.bucket[order].numpy(), ids.shape[1])
    answer = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], IGNORED)], axis=1)

    def windows() -> Iterator[Window]:
        for row in range(len(ids)):
            known = {pool: given[row] for pool, given in right.items()}
            yield Window(ids[row], np.full(ids.shape[1], row), labels[row], known)

    names: dict[str, Any] = {f"right_{pool}": given.ravel() for pool, given in right.items()}
    return Source(
        name=f"control/{control.name}, {split}",
        fingerprint=data.fingerprint,
        length=ids.shape[1],
        num_tokens=ids.size,
        batch_size=control.batch_size,
        tokenizer=None,
        windows=windows,
        knows_choices=bool(right),
        attributes={"bucket": bucket, "answer": answer.ravel(), **names},
        groups={"bucket": Groups(bucket, control.buckets)} if split == "validation" else {},
    )
