"""A request's row in the ledger, and the parquet files of rows in the run's storage.

A row has a hash of its content, and the same columns in SQLite and in parquet. DuckDB and pandas read the files as they
are. `segment-*.parquet` hold what was settled within a flush. `compact` merges them into `ledger-*.parquet`, and takes
older rows of the same requests out of earlier files. A file has at most ROWS_PER_FILE rows, so that a damaged one loses
few. Of a row that is in several files the one that got further counts (`LedgerRow.standing`). In memory there are 8
bytes for each row in storage, and the rows of one merge.
"""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailor_ray.storage import Store
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.client import TeacherRequest, cap_of
from tailor_ray.teacher.outcomes import Category, Outcome, Usage, codes

log = logging.getLogger(__name__)

ROWS_PER_FILE = 4096
ROWS_PER_GROUP = 256
ROWS_PER_MERGE = 4 * ROWS_PER_FILE  # of segments, read at a time; with their texts some 50 MiB
SEGMENTS_PER_MERGE = 200  # 100 s of flushes
# Outcomes that are the request's last word: the same request is not sent again. All others are.
FINAL = codes(Category.ANSWERED, Category.REFUSED)
ANSWERED = codes(Category.ANSWERED)
CUT = "length"

Values = tuple[Any, ...]  # a row in the order of COLUMNS; its hash is the last


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A request and what became of it. `outcome` is a code of `outcomes.TABLE`, or `pending` or `lost`."""

    key: str
    outcome: str
    model: str
    question_id: str
    round: int  # that paid for it last; 0 for a reply taken in from another ledger
    request: str  # the body sent, canonical JSON
    reply: str | None = None
    finish_reason: str | None = None
    detail: str = ""
    input_tokens: int = 0  # of the replies that came, as the server counted
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0
    lost_tokens: int = 0  # worst case of attempts whose bill is not known
    lost_usd: float = 0.0
    pending_tokens: int = 0  # worst case of the attempt in flight
    pending_usd: float = 0.0
    attempts: int = 0
    sent: float = 0.0  # UNIX time of the first attempt
    settled: float = 0.0  # UNIX time of the last end
    seconds: float = 0.0  # of the last attempt
    mode: str = "online"
    row_hash: str = ""

    @classmethod
    def of(cls, request: TeacherRequest) -> LedgerRow:
        return cls(request.key, "pending", request.model, request.question_id, request.round, request.body)

    def sending(self, worst: Spend) -> LedgerRow:
        """This row while one more attempt is in flight, which costs at most `worst`."""
        row = replace(self, outcome="pending", attempts=self.attempts + 1)
        return replace(row, pending_tokens=worst.tokens, pending_usd=worst.usd)

    @property
    def is_final(self) -> bool:
        """Whether the same request with the same cap is not sent again."""
        return self.outcome in FINAL or self.outcome == CUT

    def answers(self, max_tokens: int) -> bool:
        """Whether it is the last word on its request with this cap: what was cut by a smaller one is asked again."""
        return self.outcome in FINAL or (self.outcome == CUT and cap_of(self.request) >= max_tokens)

    @property
    def standing(self) -> tuple[int, int, int, float]:
        """Of two rows of one request the greater one is kept: by how far it got, not by the clocks of two nodes.

        A last word beats anything else, so that no reply is lost that was paid for; then more attempts beat fewer.
        """
        ended = 2 if self.outcome not in ("pending", "lost") else int(self.outcome == "lost")
        return (self.outcome in FINAL) + (self.outcome in ANSWERED), self.attempts, ended, self.settled

    def values(self) -> Values:
        """In the order and the types of the columns: an int given for a float would change the hash on its way back."""
        values = list(_GET(self))
        for place in _REAL_AT:
            values[place] = float(values[place])
        return tuple(values)

    def sealed_values(self) -> Values:
        """The values with the hash of what they are now."""
        values = self.values()
        return (*values[:-1], hash_of(values))

    def sealed(self) -> LedgerRow:
        return LedgerRow(*self.sealed_values())

    def is_whole(self) -> bool:
        return is_whole(self.values())

    @property
    def spend(self) -> Spend:
        """Of its attempts so far, those whose bill is not known at their worst case; without what is in flight."""
        tokens = self.input_tokens + self.output_tokens + self.lost_tokens
        return Spend(self.cost_usd + self.lost_usd, tokens)

    def ended(self, how: Outcome, cost: float, now: float) -> LedgerRow:
        """This row after its attempt in flight ended, at the UNIX time `now`.

        `cost` are the dollars that the reply's usage comes to. Where it says none and may be billed, what was pending
        counts as lost.
        """
        usage = how.usage or Usage()
        unknown = how.usage is None and how.rule.may_be_billed
        return replace(
            self, outcome=how.code, reply=how.text, finish_reason=how.finish_reason, detail=how.detail,
            input_tokens=self.input_tokens + usage.input, cached_tokens=self.cached_tokens + usage.cached,
            output_tokens=self.output_tokens + usage.output, cost_usd=self.cost_usd + cost,
            reasoning_tokens=self.reasoning_tokens + usage.reasoning,
            lost_tokens=self.lost_tokens + (self.pending_tokens if unknown else 0),
            lost_usd=self.lost_usd + (self.pending_usd if unknown else 0.0),
            pending_tokens=0, pending_usd=0.0, settled=now,
        )  # fmt: skip

    def after(self, outcome: Outcome, cost: float) -> LedgerRow:
        """This row after an online attempt, with its times."""
        row = self.ended(outcome, cost, outcome.sent + outcome.seconds)
        return replace(row, sent=self.sent or outcome.sent, seconds=outcome.seconds)

    def unsent(self) -> LedgerRow:
        """This row where its attempt was prepared and never made."""
        return replace(self, outcome="unsent", attempts=self.attempts - 1, pending_tokens=0, pending_usd=0.0)

    def lost(self, now: float) -> LedgerRow:
        """This row after its attempt in flight was lost: its worst case is counted."""
        tokens, usd = self.lost_tokens + self.pending_tokens, self.lost_usd + self.pending_usd
        row = replace(self, outcome="lost", lost_tokens=tokens, lost_usd=usd, settled=now)
        return replace(row, pending_tokens=0, pending_usd=0.0)


def hash_of(values: Values) -> str:
    """What the row's hash must be: of its numbers in binary and its texts with their lengths, which JSON would escape.

    Raises struct.error, TypeError or AttributeError when a value is of another type than its column.
    """
    texts = [b"" if values[place] is None else values[place].encode("utf-8", "surrogatepass") for place in _TEXT_AT]
    sizes = [-1 if values[place] is None else len(text) for place, text in zip(_TEXT_AT, texts, strict=True)]
    return hashlib.sha256(b"".join((_PACK(*_NUMBERS(values), *sizes), *texts))).hexdigest()


def is_whole(values: Values) -> bool:
    """Whether a row's values, from disk, have the hash that they were written with."""
    try:
        return bool(values[-1] == hash_of(values))
    except (struct.error, TypeError, AttributeError):
        return False


_SQL = {"str": "TEXT NOT NULL", "str | None": "TEXT", "int": "INTEGER NOT NULL", "float": "REAL NOT NULL"}
_ARROW = {"str": pa.string(), "str | None": pa.string(), "int": pa.int64(), "float": pa.float64()}
COLUMNS: dict[str, str] = {field.name: _SQL[str(field.type)] for field in fields(LedgerRow)}
SCHEMA = pa.schema([pa.field(field.name, _ARROW[str(field.type)]) for field in fields(LedgerRow)])
_GET = attrgetter(*COLUMNS)
_HASHED = list(COLUMNS.values())[:-1]
_REAL_AT = [place for place, kind in enumerate(_HASHED) if kind.startswith("REAL")]
_TEXT_AT = [place for place, kind in enumerate(_HASHED) if kind.startswith("TEXT")]
_NUMBERS = itemgetter(*(place for place in range(len(_HASHED)) if place not in _TEXT_AT))
_KINDS = "".join("d" if place in _REAL_AT else "q" for place in range(len(_HASHED)) if place not in _TEXT_AT)
_PACK = struct.Struct(f"<{_KINDS}{len(_TEXT_AT)}q").pack


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
        return map(self._read_file, self._names())

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
        hashes = _hash_keys(keys)
        for name in self._names():
            if _overlap(self._hashes_of(name), hashes):
                self._rewrite(name, keys)

    def _merge(self, segments: Sequence[str]) -> None:
        """First the rows are in new files, then out of the older ones, then their segments go: a kill loses none.

        An older file is written again under its own name, so that doing all this once more leaves no row twice.
        """
        tables = [self._read_table(name) for name in segments]
        keys = frozenset(key for table in tables for key in table["key"].to_pylist())
        hashes = _hash_keys(keys)
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
        self._hashes[name] = _hash_keys(table["key"].to_pylist())

    def _hashes_of(self, name: str) -> np.ndarray:
        if name not in self._hashes:
            try:
                table = pq.read_table(io.BytesIO(self.store.read_bytes(name)), columns=["key"])
                keys = table["key"].to_pylist()
            except (pa.ArrowException, OSError, ValueError, KeyError):
                keys = [values[0] for values in self._read_file(name)]
            self._hashes[name] = _hash_keys(keys)
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
        except (pa.ArrowException, OSError) as error:
            log.warning("the ledger file %s/%s cannot be read (%s): its rows are lost", self.store.uri, name, error)
            self._damaged.add(name)
            return []
        for group in range(file.num_row_groups):
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
        self._hashes[name] = _hash_keys(values[0] for values in rows)
        return rows


def table_of(rows: Iterable[Values]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)


def decode(table: pa.Table) -> list[LedgerRow]:
    return [LedgerRow(*values) for values in _values(table)]


def encode(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS_PER_GROUP)
    return buffer.getvalue()


def _values(table: pa.Table) -> list[Values]:
    return list(zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True))


def _hash_keys(keys: Iterable[str]) -> np.ndarray:
    """Eight bytes each, sorted, for this process alone: Python's own hash."""
    return np.sort(np.fromiter(map(hash, keys), np.int64))


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

    def standing(place: int) -> tuple[Any, ...]:
        (row,) = decode(table.slice(place, 1))
        return row.is_whole(), row.standing

    return table.take([max(reversed(some), key=standing) if len(some) > 1 else some[0] for some in places.values()])
