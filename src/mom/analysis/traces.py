"""Routing traces: the choices of every token of a text, round by round, in two Parquet files.

``routing.parquet`` has a row for each assignment: one of the K choices of a token in one pool of one round.

    token      int64   the token's row in tokens.parquet
    document   int32   its document, counted from 0
    position   int32   its position in the window that the model saw
    token_id   int32
    stage      int16
    round      int16   within the stage
    kind       string  name of the pool, such as attention or ffn
    place      int8    rank among the K choices, best first
    choice     int16   index in the pool; the number of modules there means SKIP
    weight     float32 weight of the choice

``tokens.parquet`` has a row for each token, in the order of the text: ``token``, ``window``, ``position``,
``document``, ``token_id``; ``loss``, the cross-entropy of the next token in nats (null at the end of a window, where
nothing is predicted); ``next_id``, that token; ``predicted_id`` and ``predicted_probability``, the model's most likely
one (IDs are -1 and the probability null where nothing is predicted); and the token's own ``effective_depth``,
``weighted_depth``, and ``modules_per_token`` (:func:`mom.metrics.depth.depth_metrics`).

Both files carry a :class:`Header` in their metadata. Rows are written in groups of :data:`GROUP_TOKENS` tokens, and a
group of ``routing.parquet`` belongs to one stage, round, and pool, so that readers can skip the others. Writing and
reading keep only one such group of tokens in memory.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mom.model import MoMConfig
from mom.model.layout import PoolLayout
from mom.runs.files import atomic_file

ROUTING, TOKENS = "routing.parquet", "tokens.parquet"
GROUP_TOKENS = 16_384
"""Tokens to collect in memory before their rows are written."""

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
        ("next_id", pa.int32()),
        ("predicted_id", pa.int32()),
        ("predicted_probability", pa.float32()),
        ("effective_depth", pa.float32()),
        ("weighted_depth", pa.float32()),
        ("modules_per_token", pa.float32()),
    ]
)
_KEY = b"mom"


@dataclass(frozen=True)
class Header:
    """The model and text of a trace.

    Attributes:
        model: the model's configuration, :class:`~mom.model.MoMConfig` as a dictionary.
        source: origin of the weights.
        text: origin of the text.
        stages: the stages in ``routing.parquet``; depths in ``tokens.parquet`` include all stages.
    """

    model: Mapping[str, Any]
    source: str
    text: str
    stages: Sequence[int]

    @cached_property
    def config(self) -> MoMConfig:
        """The model's configuration."""
        return MoMConfig.from_dict(dict(self.model))

    @cached_property
    def pools(self) -> dict[str, PoolLayout]:
        """The pools of a stage by name, in the order of a round."""
        return {layout.name: layout for layout in self.config.pools()}

    def num_modules(self, kind: str) -> int:
        """Return the number of modules in a pool, which is also the index of SKIP."""
        return self.pools[kind].num_modules

    @property
    def num_rounds(self) -> int:
        """Rounds in a stage."""
        return self.config.num_rounds


class Records(NamedTuple):
    """Routing of a forward pass over B windows of T tokens, flattened to M = B·T tokens.

    Attributes:
        columns: columns of ``tokens.parquet`` except ``token``, each [M].
        choice: for each pool, [M, rounds of all stages, K].
        weight: likewise.
    """

    columns: dict[str, np.ndarray]
    choice: dict[str, np.ndarray]
    weight: dict[str, np.ndarray]


class TraceWriter:
    """Writes both files, which appear when the context ends without an error.

    Args:
        folder: an existing folder.
        header: written into the metadata of both files.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.header = header
        self.num_tokens = 0
        """Tokens added so far."""
        self.num_held = 0
        """Tokens still in memory; fewer than :data:`GROUP_TOKENS` between calls of :meth:`add`."""
        self._held: list[Records] = []
        self._files = ExitStack()
        paths = [self._files.enter_context(atomic_file(folder / name)) for name in (ROUTING, TOKENS)]
        metadata = {_KEY: json.dumps(dataclasses.asdict(header))}
        self._routing, self._tokens = (
            self._files.enter_context(
                pq.ParquetWriter(path, schema.with_metadata(metadata), compression="zstd")
            )
            for path, schema in zip(paths, (ROUTING_SCHEMA, TOKENS_SCHEMA), strict=True)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._files.__exit__(kind, error, trace)
            return
        with self._files:
            self._flush()

    def add(self, records: Records) -> None:
        """Add a batch; write the tokens in memory once there are :data:`GROUP_TOKENS` or more."""
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
        columns = {name: np.concatenate([records.columns[name] for records in self._held]) for name in names}
        columns["token"] = np.arange(self.num_tokens - self.num_held, self.num_tokens)
        self._tokens.write_table(_table(columns, TOKENS_SCHEMA))
        own = {name: columns[name] for name in ("token", "document", "position", "token_id")}
        rounds = self.header.num_rounds
        for stage in self.header.stages:
            for number in range(rounds):
                for pool in self.header.pools:
                    # One round of one pool at a time: (tokens, K)
                    choice, weight = (
                        np.concatenate(
                            [
                                getattr(records, name)[pool][:, stage * rounds + number]
                                for records in self._held
                            ]
                        )
                        for name in ("choice", "weight")
                    )
                    self._routing.write_table(_round_table(own, stage, number, pool, choice, weight))
        self._held, self.num_held = [], 0


class Traces:
    """Recorded traces, read from their folder.

    Args:
        folder: a folder with both files.

    Raises:
        FileNotFoundError: there is no ``tokens.parquet``.
        ValueError: the files were not written by task=analyze.
    """

    def __init__(self, folder: str | Path) -> None:
        self._routing, self._tokens = (Path(folder) / name for name in (ROUTING, TOKENS))
        found = pq.read_schema(self._tokens).metadata or {}
        if _KEY not in found or not self._routing.is_file():
            raise ValueError(f"folder {folder} must contain {ROUTING} and {TOKENS} written by task=analyze")
        self.header = Header(**json.loads(found[_KEY]))
        self.num_tokens: int = pq.read_metadata(self._tokens).num_rows

    def tokens(self, columns: Sequence[str] | None = None, first: int | None = None) -> pa.Table:
        """Read ``tokens.parquet``, or some of its columns, for all or only the ``first`` tokens."""
        return pq.read_table(
            self._tokens,
            columns=None if columns is None else list(columns),
            filters=None if first is None else pc.field("token") < first,
        )

    def token_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read ``tokens.parquet`` in batches."""
        with pq.ParquetFile(self._tokens) as file:
            yield from file.iter_batches(GROUP_TOKENS, columns=None if columns is None else list(columns))

    def routing(
        self, columns: Sequence[str] | None = None, first: int | None = None, **equal: int | str
    ) -> pa.Table:
        """Read rows of ``routing.parquet``, such as ``routing(stage=0, round=5, kind="ffn")``.

        Args:
            columns: the columns to read; ``None`` reads all.
            first: read only this many tokens.
            equal: required values of columns.
        """
        wanted = [pc.field(name) == value for name, value in equal.items()]
        if first is not None:
            wanted.append(pc.field("token") < first)
        condition = reduce(operator.and_, wanted) if wanted else None
        return pq.read_table(
            self._routing, columns=None if columns is None else list(columns), filters=condition
        )

    def steps(self, first: int | None = None) -> Iterator[tuple[int, int, str, pa.Table]]:
        """Read ``routing.parquet`` group by group, with each group's stage, round, and pool.

        A group holds consecutive tokens, with the K assignments of each token together. With ``first``, groups that
        start after this many tokens are skipped; other groups are complete.
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
    own: Mapping[str, np.ndarray], stage: int, number: int, pool: str, choice: np.ndarray, weight: np.ndarray
) -> pa.Table:
    """Build the rows of one round of one pool; ``choice`` and ``weight`` are [tokens, K]."""
    tokens, top_k = choice.shape
    rows = tokens * top_k
    columns: dict[str, Any] = {name: np.repeat(values, top_k) for name, values in own.items()}
    columns |= {
        "stage": np.full(rows, stage),
        "round": np.full(rows, number),
        "kind": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), [pool]),
        "place": np.tile(np.arange(top_k), tokens),
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
