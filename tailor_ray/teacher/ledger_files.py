"""The ledger in the run's storage: parquet files that DuckDB and pandas read as they are.

`segment-*.parquet` hold what was settled within a flush; `compact` merges them into `ledger-*.parquet` of at most
ROWS_A_FILE rows, so that a damaged file loses few. A row that is in several files is the one settled last.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tailor_ray.storage import Store
from tailor_ray.teacher.ledger_row import SCHEMA, LedgerRow

log = logging.getLogger(__name__)

ROWS_A_FILE = 4096
ROWS_A_GROUP = 256


class LedgerFiles:
    """Reading, appending and merging; one thread may append while another merges."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.segments = 0  # written and not merged yet
        self._written = 0
        self._keys: dict[str, frozenset[str]] = {}  # of files written here: merging need not read them again
        self._damaged: set[str] = set()  # names of files

    def write_segment(self, rows: Sequence[LedgerRow]) -> None:
        self._written += 1
        self._write(f"segment-{int(time.time() * 1000):013d}-{self._written:05d}.parquet", rows)
        self.segments += 1

    def read(self) -> dict[str, LedgerRow]:
        """Whole rows by key; damage is logged with the file's name and left out."""
        return self._newest(self._names())

    def read_files(self) -> Iterator[list[LedgerRow]]:
        """The same file by file, so that a long ledger need not fit into memory; a key may come more than once."""
        for name in self._names():
            yield self._read_file(name)

    def compact(self) -> None:
        """Merge segments, and the files that hold older rows of the same requests, so that each row is there once.

        Files that were found damaged go to the folder `damaged`; what was whole in them is merged.
        """
        names = self._names()
        segments = [name for name in names if name.startswith("segment-")]
        keys = {key for name in segments for key in self._keys_of(name)}
        older = [
            name
            for name in names
            if not name.startswith("segment-") and (name in self._damaged or not keys.isdisjoint(self._keys_of(name)))
        ]
        old = older + segments
        rows = sorted(self._newest(old).values(), key=lambda row: (row.sent, row.key))
        stamp = int(time.time() * 1000)
        for number, start in enumerate(range(0, len(rows), ROWS_A_FILE)):
            name = f"ledger-{stamp:013d}-{number:05d}.parquet"
            self._write(name, rows[start : start + ROWS_A_FILE])
        for name in old:
            self._keys.pop(name, None)
            if name in self._damaged:
                self.store.write_bytes(f"damaged/{name}", self.store.read_bytes(name))
            self.store.delete(name)
        self._damaged.difference_update(old)
        self.segments = max(0, self.segments - len(segments))

    def _newest(self, names: Sequence[str]) -> dict[str, LedgerRow]:
        newest: dict[str, LedgerRow] = {}
        for name in names:
            for row in self._read_file(name):
                if row.key not in newest or row.settled >= newest[row.key].settled:
                    newest[row.key] = row
        return newest

    def _write(self, name: str, rows: Sequence[LedgerRow]) -> None:
        self.store.write_bytes(name, encode(rows))
        self._keys[name] = frozenset(row.key for row in rows)

    def _keys_of(self, name: str) -> frozenset[str]:
        if name not in self._keys:
            try:
                table = pq.read_table(io.BytesIO(self.store.read_bytes(name)), columns=["key"])
            except (pa.ArrowException, OSError, KeyError):
                self._damaged.add(name)
                return frozenset()
            self._keys[name] = frozenset(table["key"].to_pylist())
        return self._keys[name]

    def _names(self) -> list[str]:
        return [name for name in self.store.files() if name.endswith(".parquet")]

    def _read_file(self, name: str) -> list[LedgerRow]:
        """Its whole rows; a damaged file is remembered."""
        rows: list[LedgerRow] = []
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
                found = decode(file.read_row_group(group))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s/%s, row group %d: %s", self.store.uri, name, group, error)
                lost += file.metadata.row_group(group).num_rows
                continue
            whole = [row for row in found if row.is_whole()]
            lost += len(found) - len(whole)
            rows += whole
        if lost:
            self._damaged.add(name)
            said = "%d rows of the ledger file %s/%s are damaged: those replies are lost and asked again"
            log.warning(said, lost, self.store.uri, name)
        return rows


def encode(rows: Sequence[LedgerRow]) -> bytes:
    """Rows as one parquet file."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    buffer = io.BytesIO()
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS_A_GROUP)
    return buffer.getvalue()


def decode(table: pa.Table) -> list[LedgerRow]:
    return [LedgerRow(**row) for row in table.to_pylist()]
