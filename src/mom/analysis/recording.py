"""Recording routing traces: a text in windows through a model, its records into the two files of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mom.analysis.traces import Header, Records, Traces, TraceWriter
from mom.data.token_files import TokenFile
from mom.metrics.routing import POOLS
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.losses import CHUNK_TOKENS


class Window(NamedTuple):
    """Tokens that the model sees together: ``ids`` [T] and the ``document`` [T] each stands in, both int64."""

    ids: np.ndarray
    document: np.ndarray


def windows_of(files: Sequence[TokenFile], length: int, end_of_text: int | None) -> Iterator[Window]:
    """The text from its beginning in windows that do not overlap; the last of each file is as long as it is.

    Args:
        files: tokens, one file after the other.
        length: T.
        end_of_text: the id that ends a document; None counts each file as one.
    """
    ended = 0
    for file in files:
        for start in range(0, file.count, length):
            ids = file.tokens[start : start + length].astype(np.int64)
            ends = np.zeros(len(ids), dtype=np.int64) if end_of_text is None else ids == end_of_text
            before = ended + np.concatenate([[0], np.cumsum(ends)])
            yield Window(ids, before[:-1])
            ended = int(before[-1])
        if file.count and not ends[-1]:
            ended += 1


def batches_of(windows: Iterator[Window], size: int, num_tokens: int | None) -> Iterator[list[Window]]:
    """Windows of one length together, at most ``size`` of them, up to ``num_tokens`` tokens in all."""
    left = num_tokens
    batch: list[Window] = []
    for window in windows:
        if left is not None:
            window = Window(*(one[:left] for one in window))
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


@torch.inference_mode()
def read_batch(model: MoMForCausalLM, batch: Sequence[Window], first_window: int) -> Records:
    """Run the model over a batch and keep what it decided.

    Args:
        model: in evaluation mode, with stages.
        batch: windows of one length.
        first_window: number of the batch's first.
    """
    ids = torch.from_numpy(np.stack([one.ids for one in batch])).to(model.device)  # (B, T)
    size, length = ids.shape
    output = model.model(input_ids=ids, use_cache=False, output_routing=True)
    columns = {
        "window": np.repeat(np.arange(first_window, first_window + size), length),
        "position": np.tile(np.arange(length), size),
        "document": np.concatenate([one.document for one in batch]),
        "token_id": _flat(ids),
        "loss": _flat(next_token_losses(model, output.last_hidden_state, ids)),
        **{name: _flat(depth) for name, depth in depths(output.routing, model.config).items()},
    }
    choice, weight = {}, {}
    for kind in POOLS:
        records = [getattr(one, kind) for one in output.routing]
        choice[kind] = _flat(torch.stack([one.selected for one in records], dim=2), np.int16)  # (M, R, K)
        weight[kind] = _flat(torch.stack([one.weights for one in records], dim=2), np.float32)
    return Records(columns, choice, weight)


def depths(routing: Sequence[Any], config: MoMConfig) -> dict[str, Tensor]:
    """Each token's own depths, [B, T]; over tokens their means are :func:`~mom.metrics.depth.depth_metrics`.

    Args:
        routing: the records of all rounds, one at least.
        config: the model's configuration.
    """
    fixed = config.graph_depth - config.num_stages * config.num_rounds
    shape, device = routing[0].ffn.selected.shape[:2], routing[0].ffn.selected.device
    effective = torch.full(shape, float(fixed), device=device)
    weighted, modules = effective.clone(), 2 * effective
    for record in routing:
        for kind in POOLS:
            choice = getattr(record, kind)
            taken = choice.selected < getattr(config, f"num_{kind}_modules")  # (B, T, K)
            effective += 0.5 * taken.any(dim=-1)
            weighted += 0.5 * (choice.weights * taken).sum(dim=-1)
            modules += taken.sum(dim=-1)
    return {"effective_depth": effective, "weighted_depth": weighted, "modules_per_token": modules}


def next_token_losses(model: MoMForCausalLM, hidden: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of each next token, in nats, [B, T]; NaN at the end. Logits stand in memory in chunks.

    Args:
        model: whose head it is.
        hidden: [B, T, D].
        ids: [B, T].
    """
    losses = torch.full(ids.shape, float("nan"), device=ids.device)
    before, target = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    chunks = [
        F.cross_entropy(model.lm_head(rows).float(), labels, reduction="none")
        for rows, labels in zip(before.split(CHUNK_TOKENS), target.split(CHUNK_TOKENS), strict=True)
        if len(rows)
    ]
    if chunks:
        losses[:, :-1] = torch.cat(chunks).view(ids.shape[0], -1)
    return losses


def record(
    model: MoMForCausalLM,
    batches: Iterator[list[Window]],
    folder: Path,
    header: Header,
    *,
    context: Callable[[], AbstractContextManager] = torch.no_grad,
    told: Callable[[int], object] = lambda tokens: None,
) -> Traces:
    """Record the routing of a model on a text, and write both files whole or not at all.

    Args:
        model: with stages; put into evaluation mode.
        batches: of :func:`batches_of`; taken one at a time.
        folder: where the files go; it exists.
        header: what is recorded.
        context: entered around each forward, for autocast.
        told: called after each batch with the number of its tokens.
    """
    model.eval()
    window = 0
    with TraceWriter(folder, header) as writer:
        for batch in batches:
            with context():
                records = read_batch(model, batch, window)
            window += len(batch)
            writer.add(records)
            told(len(records.columns["token_id"]))
    return Traces(folder)


def _flat(tensor: Tensor, dtype: Any = None) -> np.ndarray:
    """[B, T, …] on any device → [B·T, …] as an array."""
    return (
        tensor.flatten(0, 1).cpu().numpy().astype(dtype, copy=False)
        if dtype
        else (tensor.flatten(0, 1).cpu().numpy())
    )
