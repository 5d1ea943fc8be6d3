"""Routing traces: what every token of a text chose, round by round, in two columnar files.

``routing.parquet`` holds a row for each place of each step (one token in one pool of one round):

    token      int64   the token's row in tokens.parquet
    document   int32   the document it stands in, counted from 0
    position   int32   its place in the window that the model saw
    token_id   int32
    stage      int16
    round      int16   within the stage
    kind       string  attention or ffn
    place      int8    which of the K choices, best first
    choice     int16   index in the pool; the number of modules there means SKIP
    weight     float32 the weight of the choice

``tokens.parquet`` a row for each token, in the order of the text: ``token``, ``window``, ``position``,
``document``, ``token_id``; ``loss``, of the next token as predicted at this position, in nats (null at a window's
end, where nothing is predicted); ``effective_depth``, ``weighted_depth`` and ``modules_per_token`` as DESIGN §3
defines them, of this token.

Both carry a :class:`Header` in their metadata. Rows are written in groups of :data:`GROUP_TOKENS` tokens, and a
group of ``routing.parquet`` is of one stage, round and kind, so that a reader who wants one of them skips the
rest. Neither writing nor reading holds more than one such batch of tokens, however long the text is.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from mom.callbacks.statistics import POOLS
from mom.data.token_file import TokenFile
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.loss import CHUNK_TOKENS

ROUTING, TOKENS = "routing.parquet", "tokens.parquet"
GROUP_TOKENS = 16_384
"""So many tokens are held in memory, at least, before their rows are written."""

_KIND = pa.dictionary(pa.int8(), pa.string())
ROUTING_SCHEMA = pa.schema(
    [
        ("token", pa.int64()),
        ("document", pa.int32()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("stage", pa.int16()),
        ("round", pa.int16()),
        ("kind", _KIND),
        ("place", pa.int8()),
        ("choice", pa.int16()),
        ("weight", pa.float32()),
    ]
)
TOKENS_SCHEMA = pa.schema(
    [
        ("token", pa.int64()),
        ("window", pa.int32()),
        ("position", pa.int32()),
        ("document", pa.int32()),
        ("token_id", pa.int32()),
        ("loss", pa.float32()),
        ("effective_depth", pa.float32()),
        ("weighted_depth", pa.float32()),
        ("modules_per_token", pa.float32()),
    ]
)
_KEY = b"mom"


@dataclass(frozen=True)
class Header:
    """What the traces are of.

    Attributes:
        model: the configuration, :class:`~mom.model.MoMConfig` as a dictionary.
        source: where the weights are from.
        text: what was read.
        stages: the stages in ``routing.parquet``; ``tokens.parquet`` counts all.
    """

    model: Mapping[str, Any]
    source: str
    text: str
    stages: Sequence[int]

    @property
    def config(self) -> MoMConfig:
        """The model's configuration."""
        return MoMConfig.from_dict(dict(self.model))

    def num_modules(self, kind: str) -> int:
        """Modules in a pool of a kind; the choice of this index is SKIP."""
        return int(self.model[f"num_{kind}_modules"])

    @property
    def num_rounds(self) -> int:
        """Rounds in a stage."""
        return int(self.model["num_rounds"])


class Window(NamedTuple):
    """Tokens that the model sees together: ``ids`` [T] and the ``document`` [T] each stands in, both int64."""

    ids: np.ndarray
    document: np.ndarray


class Records(NamedTuple):
    """What a forward over B windows of T tokens says, flattened to M = B·T tokens.

    Attributes:
        columns: those of ``tokens.parquet`` but ``token``, each [M].
        choice: by kind, [M, rounds of all stages, K].
        weight: likewise.
    """

    columns: dict[str, np.ndarray]
    choice: dict[str, np.ndarray]
    weight: dict[str, np.ndarray]


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
    """Each token's own depths, [B, T]; over tokens their means are :func:`~mom.callbacks.statistics.depth_metrics`.

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


class TraceWriter:
    """Writes both files under temporary names and renames them when the context ends without an error.

    Args:
        folder: where the files go.
        header: into their metadata.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.header = header
        self.num_tokens = 0
        """Tokens that were added."""
        self.num_held = 0
        """Tokens that are still in memory: below :data:`GROUP_TOKENS` between two calls of :meth:`add`."""
        self._held: list[Records] = []
        self._final = [folder / name for name in (ROUTING, TOKENS)]
        mark = secrets.token_hex(4)
        self._paths = [path.with_name(f".{path.name}.{mark}.tmp") for path in self._final]
        metadata = {_KEY: json.dumps(dataclasses.asdict(header))}
        self._routing, self._tokens = (
            pq.ParquetWriter(path, schema.with_metadata(metadata), compression="zstd")
            for path, schema in zip(self._paths, (ROUTING_SCHEMA, TOKENS_SCHEMA), strict=True)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            self._routing.close()
            self._tokens.close()
            for path, final in zip(self._paths, self._final, strict=True):
                if error is None:
                    path.replace(final)
                else:
                    path.unlink(missing_ok=True)

    def add(self, records: Records) -> None:
        """Take a batch in; what is held is written once it is :data:`GROUP_TOKENS` tokens or more."""
        size = len(records.columns["token_id"])
        self._held.append(records)
        self.num_held += size
        self.num_tokens += size
        if self.num_held >= GROUP_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        names = [name for name in TOKENS_SCHEMA.names if name != "token"]
        columns = {name: np.concatenate([one.columns[name] for one in self._held]) for name in names}
        columns["token"] = np.arange(self.num_tokens - self.num_held, self.num_tokens)
        self._tokens.write_table(_table(columns, TOKENS_SCHEMA))
        own = {name: columns[name] for name in ("token", "document", "position", "token_id")}
        rounds = self.header.num_rounds
        for stage in self.header.stages:
            for number in range(rounds):
                for kind in POOLS:
                    # One round of one pool at a time: (tokens, K)
                    choice, weight = (
                        np.concatenate(
                            [getattr(one, name)[kind][:, stage * rounds + number] for one in self._held]
                        )
                        for name in ("choice", "weight")
                    )
                    self._routing.write_table(_round_table(own, stage, number, kind, choice, weight))
        self._held, self.num_held = [], 0


class Traces:
    """Recorded traces, read from their folder.

    Args:
        folder: with both files.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: they hold no :class:`Header`, so were not written here.
    """

    def __init__(self, folder: str | Path) -> None:
        self._routing, self._tokens = (Path(folder) / name for name in (ROUTING, TOKENS))
        found = pq.read_schema(self._tokens).metadata or {}
        if _KEY not in found or not self._routing.is_file():
            raise ValueError(f"folder: {folder}; one with {ROUTING} and {TOKENS} of task=analyze")
        self.header = Header(**json.loads(found[_KEY]))
        self.num_tokens: int = pq.read_metadata(self._tokens).num_rows

    def tokens(self, columns: Sequence[str] | None = None, first: int | None = None) -> pa.Table:
        """``tokens.parquet``, or some of its columns, of all tokens or the ``first`` ones."""
        return pq.read_table(
            self._tokens,
            columns=None if columns is None else list(columns),
            filters=None if first is None else pc.field("token") < first,
        )

    def token_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """``tokens.parquet`` piece by piece."""
        with pq.ParquetFile(self._tokens) as file:
            yield from file.iter_batches(GROUP_TOKENS, columns=None if columns is None else list(columns))

    def routing(
        self, columns: Sequence[str] | None = None, first: int | None = None, **equal: int | str
    ) -> pa.Table:
        """Rows of ``routing.parquet``, such as ``routing(stage=0, round=5, kind="ffn")``.

        Args:
            columns: which; None is all.
            first: of the first so many tokens only.
            equal: what columns have to be.
        """
        wanted = [pc.field(name) == value for name, value in equal.items()]
        if first is not None:
            wanted.append(pc.field("token") < first)
        condition = None
        for one in wanted:
            condition = one if condition is None else condition & one
        return pq.read_table(
            self._routing, columns=None if columns is None else list(columns), filters=condition
        )

    def steps(self, first: int | None = None) -> Iterator[tuple[int, int, str, pa.Table]]:
        """Stage, round and kind of each group of ``routing.parquet``, and its rows, one group at a time.

        The rows of a group are of consecutive tokens, the K places of each together.

        Args:
            first: leave out groups after the first so many tokens; one that begins before comes whole.
        """
        with pq.ParquetFile(self._routing) as file:
            place = {name: index for index, name in enumerate(ROUTING_SCHEMA.names)}
            for group in range(file.num_row_groups):
                least = file.metadata.row_group(group).column(place["token"]).statistics.min
                if first is not None and least >= first:
                    continue
                rows = file.read_row_group(group)
                stage, number, kind = (rows[name][0].as_py() for name in ("stage", "round", "kind"))
                yield stage, number, kind, rows


def _round_table(
    own: Mapping[str, np.ndarray], stage: int, number: int, kind: str, choice: np.ndarray, weight: np.ndarray
) -> pa.Table:
    """Rows of one round of one pool; ``choice`` and ``weight`` are [tokens, K]."""
    tokens, places = choice.shape
    rows = tokens * places
    columns: dict[str, Any] = {name: np.repeat(values, places) for name, values in own.items()}
    columns |= {
        "stage": np.full(rows, stage),
        "round": np.full(rows, number),
        "kind": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), [kind]),
        "place": np.tile(np.arange(places), tokens),
        "choice": choice.ravel(),
        "weight": weight.ravel(),
    }
    return _table(columns, ROUTING_SCHEMA)


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = [
        columns[field.name]
        if isinstance(columns[field.name], pa.Array)
        else pa.array(columns[field.name].astype(field.type.to_pandas_dtype()), from_pandas=True)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _flat(tensor: Tensor, dtype: Any = None) -> np.ndarray:
    """[B, T, …] on any device → [B·T, …] as an array."""
    return (
        tensor.flatten(0, 1).cpu().numpy().astype(dtype, copy=False)
        if dtype
        else (tensor.flatten(0, 1).cpu().numpy())
    )
