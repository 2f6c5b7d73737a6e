"""The ledger in the run's storage: parquet files that DuckDB and pandas read as they are.

`segment-*.parquet` hold what was settled within a flush; `compact` merges them into `ledger-*.parquet` of at most
ROWS_PER_FILE rows, so that a damaged file loses few, and takes the older rows of the same requests out of earlier
files. Of a row that is in several files the one that got further counts (`LedgerRow.standing`). In memory there are 8
bytes for each row in storage, and the rows of one merge.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailor_ray.storage import Store
from tailor_ray.teacher.ledger_row import SCHEMA, LedgerRow, Values, is_whole

log = logging.getLogger(__name__)

ROWS_PER_FILE = 4096
ROWS_PER_GROUP = 256
ROWS_PER_MERGE = 4 * ROWS_PER_FILE  # of segments, read at a time; with their texts some 50 MiB
SEGMENTS_PER_MERGE = 200  # 100 s of flushes


class LedgerFiles:
    """Reading, appending and merging; one thread may append while another merges."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._segments: dict[str, int] = {}  # rows of those written and not merged yet
        self._written = 0
        self._hashes: dict[str, np.ndarray] = {}  # of the keys in each file, sorted
        self._damaged: set[str] = set()  # names of files

    @property
    def is_merge_due(self) -> bool:
        return len(self._segments) >= SEGMENTS_PER_MERGE or sum(list(self._segments.values())) >= ROWS_PER_MERGE

    def compact_if_due(self) -> None:
        if self.is_merge_due:
            self.compact()

    def write_segment(self, rows: Sequence[Values]) -> None:
        self._written += 1
        name = f"segment-{int(time.time() * 1000):013d}-{self._written:05d}.parquet"
        self._write(name, table_of(rows))
        self._segments[name] = len(rows)

    def read(self) -> Iterator[LedgerRow]:
        """Each request's row once, file by file; damage is logged with the file's name and left out."""
        names = self._names()
        hashes = np.sort(np.concatenate([np.empty(0, np.int64), *map(self._hashes_of, names)]))
        repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        best: dict[str, LedgerRow] = {}
        for name in names:
            for row in (LedgerRow(*values) for values in self._read_file(name)):
                if hash(row.key) not in repeated:
                    yield row
                elif row.key not in best or row.standing > best[row.key].standing:
                    best[row.key] = row
        yield from best.values()

    def read_files(self) -> Iterator[list[Values]]:
        """The whole rows file by file; a key may come more than once."""
        for name in self._names():
            yield self._read_file(name)

    def compact(self) -> None:
        """Merge all segments, so that each row is there once.

        Files that were found damaged go to the folder `damaged`; what was whole in them is kept.
        """
        names = self._names()
        segments = [name for name in names if name.startswith("segment-")]
        while segments:
            count = rows = 0
            while count < len(segments) and (not count or rows < ROWS_PER_MERGE):
                rows += len(self._hashes_of(segments[count]))
                count += 1
            self._merge(segments[:count])
            segments = segments[count:]
        for name in self._damaged & set(names):  # found while reading, and not by a merge
            self._rewrite(name, frozenset())

    def drop(self, keys: frozenset[str]) -> None:
        """Take these keys' rows out of all files."""
        hashes = np.sort(_hash_keys(keys))
        for name in self._names():
            if _overlap(self._hashes_of(name), hashes):
                self._rewrite(name, keys)

    def _merge(self, segments: Sequence[str]) -> None:
        """First the rows are in new files, then out of the older ones, then their segments go: a kill loses none.

        An older file is written again under its own name, so that doing all this once more leaves no row twice.
        """
        tables = [self._read_table(name) for name in segments]
        keys = frozenset(key for table in tables for key in table["key"].to_pylist())
        hashes = np.sort(_hash_keys(keys))
        older = [name for name in self._names() if name not in segments and _overlap(self._hashes_of(name), hashes)]
        tables += [_only(self._read_table(name), keys, inside=True) for name in older]
        merged = _furthest(pa.concat_tables(tables))
        stamp = int(time.time() * 1000)
        for number, start in enumerate(range(0, len(merged), ROWS_PER_FILE)):
            self._write(f"ledger-{stamp:013d}-{number:05d}.parquet", merged.slice(start, ROWS_PER_FILE))
        for name in older:
            self._rewrite(name, keys)
        for name in segments:
            self._set_aside(name)
            self._drop(name)
            self._segments.pop(name, None)

    def _rewrite(self, name: str, without: frozenset[str]) -> None:
        """The file without these keys' rows, or none if it held nothing else."""
        left = _only(self._read_table(name), without, inside=False)
        self._set_aside(name)
        if len(left):
            self._write(name, left)
        else:
            self._drop(name)

    def _set_aside(self, name: str) -> None:
        if name in self._damaged:
            self.store.write_bytes(f"damaged/{name}", self.store.read_bytes(name))
            self._damaged.discard(name)

    def _drop(self, name: str) -> None:
        self.store.delete(name)
        self._hashes.pop(name, None)

    def _write(self, name: str, table: pa.Table) -> None:
        self.store.write_bytes(name, encode(table))
        self._hashes[name] = np.sort(_hash_keys(table["key"].to_pylist()))

    def _hashes_of(self, name: str) -> np.ndarray:
        if name not in self._hashes:
            try:
                table = pq.read_table(io.BytesIO(self.store.read_bytes(name)), columns=["key"])
                self._hashes[name] = np.sort(_hash_keys(table["key"].to_pylist()))
            except (pa.ArrowException, OSError, ValueError, KeyError):
                self._hashes[name] = np.sort(_hash_keys(values[0] for values in self._read_file(name)))
        return self._hashes[name]

    def _names(self) -> list[str]:
        return [name for name in self.store.files() if name.endswith(".parquet")]

    def _read_table(self, name: str) -> pa.Table:
        """Its rows unchecked, for who reads them checks them; of a file known to be damaged the whole ones."""
        if name not in self._damaged:
            try:
                return pq.read_table(io.BytesIO(self.store.read_bytes(name))).select(SCHEMA.names).cast(SCHEMA)
            except (pa.ArrowException, OSError, ValueError, KeyError):
                pass
        return table_of(self._read_file(name))

    def _read_file(self, name: str) -> list[Values]:
        """Its whole rows; a damaged file is remembered."""
        rows: list[Values] = []
        lost = 0
        try:
            file = pq.ParquetFile(io.BytesIO(self.store.read_bytes(name)))
            groups = file.num_row_groups
        except (pa.ArrowException, OSError) as error:
            log.warning("the ledger file %s/%s cannot be read (%s): its rows are lost", self.store.uri, name, error)
            self._damaged.add(name)
            return []
        for group in range(groups):
            try:
                found = _values(file.read_row_group(group))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s/%s, row group %d: %s", self.store.uri, name, group, error)
                lost += file.metadata.row_group(group).num_rows
                continue
            whole = [values for values in found if is_whole(values)]
            lost += len(found) - len(whole)
            rows += whole
        if lost:
            self._damaged.add(name)
            said = "%d rows of the ledger file %s/%s are damaged: those replies are lost and asked again"
            log.warning(said, lost, self.store.uri, name)
        self._hashes[name] = np.sort(_hash_keys(values[0] for values in rows))
        return rows


def table_of(rows: Iterable[Values]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)


def decode(table: pa.Table) -> list[LedgerRow]:
    return [LedgerRow(*values) for values in _values(table)]


def encode(table: pa.Table) -> bytes:
    """Rows as one parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS_PER_GROUP)
    return buffer.getvalue()


def _values(table: pa.Table) -> list[Values]:
    return list(zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True))


def _hash_keys(keys: Iterable[str]) -> np.ndarray:
    """Eight bytes each, for this process alone: Python's own hash."""
    return np.fromiter(map(hash, keys), np.int64)


def _overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sorted arrays have a value in common."""
    if not len(one) or not len(other):
        return False
    at = np.searchsorted(other, one)
    return bool(np.any(other[np.minimum(at, len(other) - 1)] == one))


def _only(table: pa.Table, keys: frozenset[str], inside: bool) -> pa.Table:
    """The rows whose keys are among these, or those whose keys are not."""
    return table.filter(pa.array([(key in keys) is inside for key in table["key"].to_pylist()], pa.bool_()))


def _furthest(table: pa.Table) -> pa.Table:
    """One row for each key, the one that got further; of several a damaged one does not count."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(table["key"].to_pylist()):
        places.setdefault(key, []).append(place)
    if len(places) == len(table):
        return table
    kept = []
    for some in places.values():
        if len(some) > 1:
            rows = decode(table.take(some))
            order = sorted(range(len(some)), key=lambda n: (rows[n].is_whole(), rows[n].standing))
            some = [some[order[-1]]]
        kept += some
    return table.take(kept)
