"""Read offline runs of wandb, which has no reader in Python since 0.31.

The file is LevelDB's log (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7
bytes: blocks of 32 KiB, in them chunks of checksum (4 bytes), length (2), kind (1), and a part of a record.
"""

from __future__ import annotations

import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, FILE_HEADER, CHUNK_HEADER = 32 * 1024, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(folder: Path) -> list[Record]:
    """Return the records of the only offline run in a logger's folder."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    content, position = path.read_bytes(), FILE_HEADER
    assert content.startswith(b":W&B")
    records, parts = [], b""
    while position + CHUNK_HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < CHUNK_HEADER:  # the rest of a block is padding
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += CHUNK_HEADER
        parts = (
            content[position : position + length]
            if kind in (FULL, FIRST)
            else parts + content[position : position + length]
        )
        position += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            records.append(record)
    return records
