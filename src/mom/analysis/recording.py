"""Record routing traces: run a model over the windows of a text and write its routing to two files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mom.analysis.samples import Batch, run_batch
from mom.analysis.traces import Header, Records, Traces, TraceWriter
from mom.data.token_files import TokenFile
from mom.metrics.depth import token_depths
from mom.model import MoMConfig, MoMForCausalLM


class Window(NamedTuple):
    """A sequence for the model.

    Attributes:
        ids: the tokens, int64 [T].
        document: the document of each token, int64 [T].
        labels: the tokens to predict, each at its own position, int64 [T]; -100 elsewhere. ``None`` predicts all.
        choices: the right modules by pool, int64 [T], if they are known; -1 where none is.
    """

    ids: np.ndarray
    document: np.ndarray
    labels: np.ndarray | None = None
    choices: Mapping[str, np.ndarray] | None = None

    def first(self, length: int) -> Window:
        """Return the first tokens."""
        labels = None if self.labels is None else self.labels[:length]
        choices = self.choices and {pool: given[:length] for pool, given in self.choices.items()}
        return Window(self.ids[:length], self.document[:length], labels, choices)


def split_windows(files: Sequence[TokenFile], length: int, end_of_text: int | None) -> Iterator[Window]:
    """Split a text into consecutive windows of T tokens; the last window of each file may be shorter.

    ``end_of_text`` is the ID that ends a document; ``None`` counts each file as a document.
    """
    ended = 0
    for file in files:
        for start in range(0, file.count, length):
            ids = file.read(start, start + length).astype(np.int64)
            ends = np.zeros(len(ids), dtype=np.int64) if end_of_text is None else ids == end_of_text
            before = ended + np.concatenate([[0], np.cumsum(ends)])
            yield Window(ids, before[:-1])
            ended = int(before[-1])
        if file.count and not ends[-1]:
            ended += 1


def batch_windows(windows: Iterator[Window], size: int, num_tokens: int | None) -> Iterator[list[Window]]:
    """Group windows of the same length into batches of at most ``size``, up to ``num_tokens`` tokens in total."""
    left = num_tokens
    batch: list[Window] = []
    for window in windows:
        if left is not None:
            window = window.first(left)
            left -= len(window.ids)
        if batch and (len(batch) == size or len(batch[0].ids) != len(window.ids)):
            yield batch
            batch = []
        if len(window.ids):
            batch.append(window)
        if left == 0:
            break
    if batch:
        yield batch


def stack_windows(windows: Sequence[Window], device: torch.device | str) -> Batch:
    """Return windows of the same length as a batch on a device."""

    def stack(rows: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(rows).astype(np.int64, copy=False)).to(device)

    ids = stack([window.ids for window in windows])
    known = [window.choices for window in windows if window.choices]
    # A router that needs choices takes module 0 where none is right.
    choices = {pool: stack([given[pool] for given in known]).clamp(min=0) for pool in (known or [{}])[0]}
    labels = [window.ids if window.labels is None else window.labels for window in windows]
    return Batch(ids, stack(labels), choices or None)


@torch.inference_mode()
def read_batch(model: MoMForCausalLM, batch: Sequence[Window], first_window: int) -> Records:
    """Run the model over a batch and return its routing, losses, and depths.

    Args:
        model: a model with stages, in evaluation mode.
        batch: windows of equal length.
        first_window: number of the batch's first window in the text.
    """
    inputs = stack_windows(batch, model.device)
    size, length = inputs.ids.shape
    found = run_batch(model, inputs)
    loss, routing = found.loss, found.routing
    following = torch.full_like(inputs.ids, -1)
    following[:, :-1] = inputs.labels[:, 1:].clamp(min=-1)  # nothing is predicted: -100
    columns = {
        "window": np.repeat(np.arange(first_window, first_window + size), length),
        "position": np.tile(np.arange(length), size),
        "document": np.concatenate([window.document for window in batch]),
        "token_id": _flat(inputs.ids),
        "loss": _flat(loss),
        "next_id": _flat(following),
        "predicted_id": _flat(found.predicted),
        "predicted_probability": _flat(found.probability),
        **{name: _flat(depth) for name, depth in depths(routing, model.config).items()},
    }
    choice, weight = {}, {}
    for layout in model.config.pools():
        records = [getattr(decided, layout.name) for decided in routing]
        selected = torch.stack([record.selected for record in records], dim=2)  # (B, T, R, K)
        weights = torch.stack([record.weights for record in records], dim=2)
        choice[layout.name] = _flat(selected).astype(np.int16, copy=False)
        weight[layout.name] = _flat(weights).astype(np.float32, copy=False)
    return Records(columns, choice, weight)


def depths(routing: Sequence[Any], config: MoMConfig) -> dict[str, Tensor]:
    """Return each token's depths, [B, T]; :func:`~mom.metrics.depth.depth_metrics` computes their means."""
    found = token_depths(routing, fixed_depth=config.fixed_depth)
    names = {"effective_depth": "effective", "weighted_depth": "weighted", "modules_per_token": "modules"}
    return {column: found[name] for column, name in names.items()}


def record(
    model: MoMForCausalLM,
    batches: Iterator[list[Window]],
    folder: Path,
    header: Header,
    *,
    context: Callable[[], AbstractContextManager] = torch.no_grad,
    on_progress: Callable[[int], object] = lambda tokens: None,
) -> Traces:
    """Record the routing of a model on a text, and write both files atomically.

    Args:
        model: a model with stages, which is put into evaluation mode.
        batches: batches of :func:`batch_windows`, consumed lazily.
        folder: an existing folder for the files.
        header: describes the model and the text.
        context: entered around each forward pass, for autocast.
        on_progress: called after each batch with the number of its tokens.
    """
    model.eval()
    window = 0
    with TraceWriter(folder, header) as writer:
        for batch in batches:
            with context():
                records = read_batch(model, batch, window)
            window += len(batch)
            writer.add(records)
            on_progress(len(records.columns["token_id"]))
    return Traces(folder)


def _flat(tensor: Tensor) -> np.ndarray:
    """Turn [B, T, …] on any device into an array [B·T, …]."""
    return tensor.flatten(0, 1).cpu().numpy()
