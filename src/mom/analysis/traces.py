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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mom.metrics.routing import POOLS
from mom.model import MoMConfig
from mom.runs.files import atomic_file

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


class TraceWriter:
    """Writes both files, which appear once the context ends without an error.

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
