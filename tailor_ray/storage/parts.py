"""Parts: a stage's rows as numbered parquet files, each committed by itself.

`prefix-00007.parquet` is written first, then the sealed record `prefix-00007.json` with its hash and rows: the
part exists when the record does. A stage killed half-way finds its committed parts and does only the others.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailor_ray.errors import CorruptionError
from tailor_ray.storage.manifest import seal, unseal
from tailor_ray.storage.store import FileEntry, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """One committed part; `info` is what the stage wants to remember of it (counts, seconds)."""

    index: int
    entry: FileEntry
    info: dict[str, Any]


def part_name(prefix: str, index: int) -> str:
    return f"{prefix}-{index:05d}"


def commit_part(store: Store, prefix: str, index: int, table: pa.Table, info: Mapping[str, Any] | None = None) -> Part:
    """Write rows and then their record; doing it again with the same rows gives the same files."""
    name = part_name(prefix, index)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    written = store.write_bytes(f"{name}.parquet", data)
    entry = FileEntry(written.path, written.sha256, written.bytes, table.num_rows)
    part = Part(index, entry, dict(info or {}))
    store.write_bytes(f"{name}.json", seal(asdict(part)))
    return part


def committed_parts(store: Store, prefix: str, verify: bool = True) -> list[Part]:
    """The committed parts by index. A torn or damaged one is left out and logged, so that it is made again."""
    pattern = re.compile(re.escape(prefix) + r"-(\d{5,})\.json")
    parts = []
    for name in store.files():
        if not pattern.fullmatch(name):
            continue
        try:
            parts.append(_read_record(store, name, verify))
        except CorruptionError as error:
            log.warning("%s; this part is made again", error)
    return sorted(parts, key=lambda part: part.index)


def _read_record(store: Store, name: str, verify: bool) -> Part:
    record = unseal(store.read_bytes(name), f"{store.uri}/{name}")
    part = Part(record["index"], FileEntry(**record["entry"]), record["info"])
    if verify and (not store.exists(part.entry.path) or store.hash_file(part.entry.path) != part.entry.sha256):
        raise CorruptionError(f"{store.uri}/{part.entry.path} does not have the hash that {name} records")
    return part


def read_part(store: Store, part: Part) -> pa.Table:
    """The part's rows; raises CorruptionError when the bytes are not the committed ones."""
    data = store.read_bytes(part.entry.path)
    if hashlib.sha256(data).hexdigest() != part.entry.sha256:
        raise CorruptionError(f"{store.uri}/{part.entry.path} does not have the hash that it was committed with")
    return pq.read_table(io.BytesIO(data))
