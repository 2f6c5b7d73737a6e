"""The ledger: one row per distinct request, on the node and in the run's storage.

Before an attempt is sent its row says so, with the worst that it may cost (`pending_*`). When it ends the row says how.
`commit` makes both durable on the node (SQLite, WAL, fsync) before anyone acts on them. It takes many rows at a time. A
flusher writes settled rows as parquet to the run's storage within a second. Another thread merges those files. A driver
that died leaves rows that are pending. The next one takes what the actors' journals say of them. It counts the others'
worst case as lost money and asks again.

It is opened once for a run, since that copies storage's rows to the node's disk. In memory are the rows of the next
commit and flush. Every other row takes 8 bytes. All else is read from the node's disk when it is asked for. Every row
carries a hash of its content. A damaged one is not used, and the loss is logged.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from tailor_ray.errors import StageError, TailorError
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.client import TeacherRequest
from tailor_ray.teacher.ledger_rows import (
    ANSWERED,
    COLUMNS,
    CUT,
    FINAL,
    ROWS_PER_FILE,
    LedgerFiles,
    LedgerRow,
    Values,
    is_whole,
)
from tailor_ray.teacher.outcomes import JournalEntries, read_journals

log = logging.getLogger(__name__)

IDENTITY = "ledger.json"
FLUSH_S = 0.5
_NAMES = ", ".join(COLUMNS)
_INSERT = f"INSERT INTO ledger ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"
_REPLACE = f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS if name != 'key')}"
_KEY, _OUTCOME, _HASH = (list(COLUMNS).index(name) for name in ("key", "outcome", "row_hash"))
SAMPLE = 20_000  # rows that a forecast learns from
WAL_PAGES = 10_000  # 40 MiB between checkpoints: by SQLite's own 1,000 nearly every commit would make one
CACHE_KIB = 32 * 1024


def _standing(table: str) -> str:
    """`LedgerRow.standing` as a row value of SQLite."""
    outcome = f"{table}.outcome"
    final, answered = (f"{outcome} IN ({','.join(map(repr, sorted(codes)))})" for codes in (FINAL, ANSWERED))
    ended = f"({outcome} != 'pending') + ({outcome} NOT IN ('pending', 'lost'))"
    return f"(({final}) + ({answered}), {table}.attempts, {ended}, {table}.settled)"


_IF_FURTHER = f"{_REPLACE} WHERE {_standing('excluded')} > {_standing('ledger')}"


class Ledger:
    """Open on one driver at a time (the run's lease sees to that). Safe to use from several threads."""

    def __init__(self, store: Store, keep_batches: bool = False) -> None:
        """Open or make the ledger in `store`, taking in what a driver that died left on this node.

        `keep_batches`: rows in a batch are still answered; otherwise they count as lost like calls in flight.
        """
        self._lock = threading.RLock()
        self._files = LedgerFiles(store)
        if not store.exists(IDENTITY):  # a run folder deleted and made again is not to find the old copy
            store.write_json(IDENTITY, {"id": uuid.uuid4().hex})
        self._path = node_cache() / "ledgers" / f"{store.read_json(IDENTITY)['id']}.sqlite"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._staged: dict[str, Values] = {}
        self._unflushed: dict[str, Values] = {}
        self._failure: BaseException | None = None
        self._db = self._open_database()
        self._recover(keep_batches)
        self._stop = threading.Event()
        # Merging has a thread of its own: it may take seconds on an object store, and rows must not wait for it.
        loops = {"ledger-flush": self.flush, "ledger-merge": self._files.compact_if_due}
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True) for name, work in loops.items()
        ]
        for thread in self._threads:
            thread.start()

    @property
    def store(self) -> Store:
        return self._files.store

    def get(self, keys: Sequence[str]) -> dict[str, LedgerRow]:
        """Rows by key.

        Those of the `keys` that have no row, or a damaged one, are absent.
        """
        found: dict[str, LedgerRow] = {}
        with self._lock:
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT {_NAMES} FROM ledger WHERE key IN ({marks})"
                for row in (LedgerRow(*values) for values in self._db.execute(query, some)):
                    if row.is_whole():
                        found[row.key] = row
                    else:
                        log.warning("ledger row %s does not have its hash: its reply is lost and asked again", row.key)
            found.update({key: LedgerRow(*self._staged[key]) for key in keys if key in self._staged})
        return found

    def find(self, requests: Sequence[TeacherRequest]) -> dict[str, LedgerRow]:
        """Rows by the keys of the `requests`.

        The answers of a ledger made before 0.2 are found too.
        """
        found = self.get([request.key for request in requests])
        older = {request.sent_as: request for request in requests if request.key not in found}
        for key, row in self.get(list(older)).items():
            if row.answers(older[key].max_tokens):
                found[older[key].key] = row
        return found

    def stage(self, rows: Iterable[LedgerRow]) -> None:
        with self._lock:
            self._staged.update((row.key, row.sealed_values()) for row in rows)

    @property
    def has_staged(self) -> bool:
        return bool(self._staged)

    def commit(self) -> None:
        """Make all staged rows durable on this node. Raises StageError when the disk refuses them."""
        with self._lock:
            self._check()
            if not self._staged:
                return
            try:
                with self._db:
                    self._db.executemany(f"{_INSERT} ON CONFLICT (key) {_REPLACE}", list(self._staged.values()))
            except sqlite3.Error as error:
                raise StageError(
                    f"the ledger {self._path} cannot be written: {error}; make space there, or point "
                    "TAILOR_RAY_CACHE at another local disk, and run the same command"
                ) from error
            self._unflushed.update({key: row for key, row in self._staged.items() if row[_OUTCOME] != "pending"})
            self._staged = {}

    def journal(self, actor: str) -> str:
        """Where on this node an actor keeps its journal, without the endings."""
        return str(self._path.with_suffix(f".{actor}"))

    def journaled(self, actor: str = "*") -> JournalEntries:
        """What the journals of this actor, or of all, say."""
        return read_journals(self._path.parent.glob(f"{self._path.stem}.{actor}.*.jsonl"))

    def rows(self) -> list[LedgerRow]:
        """All rows, oldest first."""
        return self._select("ledger ORDER BY sent, key")

    def spent(self, round_: int | None = None) -> Spend:
        """What all attempts of this run cost, or those of the round `round_`.

        One whose bill is not known counts at its worst case.
        """
        where, values = ("WHERE round > 0", ()) if round_ is None else ("WHERE round = ?", (round_,))
        query = (
            "SELECT total(cost_usd + lost_usd + pending_usd), "
            f"total(input_tokens + output_tokens + lost_tokens + pending_tokens) FROM ledger {where}"
        )
        with self._lock:
            usd, tokens = self._db.execute(query, values).fetchone()
        return Spend(float(usd), int(tokens))

    def settled_before(self, round_: int) -> list[LedgerRow]:
        """Rows of earlier rounds that have their last word, from a sample of at most SAMPLE rows of the ledger.

        It is the first ones by key: a key is a sha256, so they are a uniform sample, and reading them takes the same
        time however long the ledger is.
        """
        final = ",".join(f"'{outcome}'" for outcome in sorted({*FINAL, CUT}))
        some = f"(SELECT {_NAMES} FROM ledger ORDER BY key LIMIT {SAMPLE})"
        return self._select(f"{some} WHERE outcome IN ({final}) AND round < {round_:d}")

    def largest_outputs(self) -> dict[str, int]:
        """Tokens of the largest reply that came at the first attempt, by model.

        A model without any is absent.
        """
        query = "SELECT model, max(output_tokens) FROM ledger WHERE output_tokens > 0 AND attempts = 1 GROUP BY model"
        with self._lock:
            return dict(self._db.execute(query).fetchall())

    def recent(self, seconds: float) -> dict[str, list[tuple[float, int]]]:
        """Online attempts of the last `seconds` by model, oldest first: how long ago, and tokens at most.

        A row tells the time of its last attempt; its earlier ones are counted there if the first was recent too.
        """
        now = time.time()
        tokens = "input_tokens + output_tokens + lost_tokens + pending_tokens"
        last = "iif(outcome = 'pending', ?, settled - iif(outcome = 'lost', 0, seconds))"
        query = (
            f"SELECT model, {last} AS last, iif(sent > ?, attempts, 1), {tokens} FROM ledger "
            "WHERE mode = 'online' AND last > ? ORDER BY last"
        )
        found: dict[str, list[tuple[float, int]]] = {}
        with self._lock:
            rows = self._db.execute(query, (now, now - seconds, now - seconds)).fetchall()
        for model, at, attempts, most in rows:
            ago = max(now - at, 0.0)
            found.setdefault(model, []).extend([(ago, most), *[(ago, 0)] * (attempts - 1)])
        return found

    def add(self, rows: Iterable[LedgerRow]) -> int:
        """Take in rows of another ledger, as of round 0, for they were paid for elsewhere.

        Those that are damaged or already here are left. Returns how many came in.
        """
        whole = {row.key: row for row in rows if row.is_whole() and row.is_final}
        known = self.get(list(whole))
        new = []
        for key, row in whole.items():
            if key not in known:
                new.append(replace(row, round=0))
            elif not known[key].is_final:  # what we paid for it without getting a last word stays paid
                words = {name: getattr(row, name) for name in ("outcome", "reply", "finish_reason", "detail")}
                new.append(replace(known[key], **words, settled=time.time()))
        self.stage(new)
        self.commit()
        return len(new)

    def forget(self, outcomes: Collection[str]) -> int:
        """Drop the replies of rows that ended so: their requests are asked again. What they cost stays counted.

        Returns how many. The caller holds the run's lease, and nobody asks meanwhile.
        """
        marks = ",".join("?" * len(outcomes))
        with self._lock:
            found = self._db.execute(f"SELECT {_NAMES} FROM ledger WHERE outcome IN ({marks})", tuple(outcomes))
            rows = [LedgerRow(*values) for values in found.fetchall()]
        self.stage(replace(row, outcome="forgotten", reply=None, finish_reason=None) for row in rows)
        self.commit()
        self._files.drop(frozenset(row.key for row in rows))
        self.flush()
        return len(rows)

    def flush(self) -> None:
        """Write what is settled and not yet in storage as one segment."""
        with self._lock:
            rows, self._unflushed = list(self._unflushed.values()), {}
        if not rows:
            return
        try:
            self._files.write_segment(rows)
        except BaseException:
            with self._lock:
                self._unflushed = {row[_KEY]: row for row in rows} | self._unflushed
            raise

    def close(self, compact: bool = True) -> None:
        """Flush, and end the threads.

        Unless `compact` is False, merge the segments and drop the copy on the node, which storage then holds whole.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._check()
            self.commit()
            self.flush()
            pending = self._db.execute("SELECT count(*) FROM ledger WHERE outcome = 'pending'").fetchone()[0]
            if compact:
                self._files.compact()
            self._db.close()
            if compact and not pending:
                _remove_database(self._path)
                for journal in self._path.parent.glob(f"{self._path.stem}.*.jsonl"):
                    journal.unlink()

    def _open_database(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            aside = self._path.with_suffix(f".damaged-{int(time.time())}")
            log.warning(
                "the ledger's copy %s is damaged (%s): moved to %s, rows come from storage", self._path, error, aside
            )
            self._path.replace(aside)
            _remove_database(self._path)
            return _connect(self._path)

    def _recover(self, keep_batches: bool) -> None:
        """Join storage's rows with this node's; count what was in flight when the last driver died as lost."""
        self._drop_damaged()
        self._take_stored()
        kept = "batch" if keep_batches else None
        batches = self.store.child("batches")
        records = [batches.read_json(name) for name in batches.files() if name.endswith(".json")]
        unsubmitted = [one for one in records if not (one["batch"] or one.get("submitted", True))]
        journaled, lost, unsent = self.journaled(), 0, {key for one in unsubmitted for key in one["keys"]}
        for row in [row for row in self._select("ledger WHERE outcome = 'pending'") if row.mode != kept]:
            outcome, cost = journaled.get((row.key, row.attempts), (None, 0.0))
            if row.key in unsent:
                self.stage([row.unsent()])
            elif outcome is None:
                self.stage([row.lost(time.time())])
                lost += 1
            else:
                self.stage([row.after(outcome, cost)])
        self.commit()
        if lost:
            log.warning("%d requests were in flight when the last driver ended: counted as lost", lost)

    def _take_stored(self) -> None:
        """Take in what storage has, and write to it what only this node has, since its last driver was killed."""
        left_over = self._db.execute("SELECT EXISTS (SELECT 1 FROM ledger)").fetchone()[0]
        self._db.execute("CREATE TEMP TABLE stored (row_hash TEXT PRIMARY KEY) WITHOUT ROWID")  # on disk, as all is
        for rows in self._files.read_files():
            with self._db:
                self._db.executemany(f"{_INSERT} ON CONFLICT (key) {_IF_FURTHER}", rows)
                if left_over:
                    self._db.executemany("INSERT OR IGNORE INTO stored VALUES (?)", ([row[_HASH]] for row in rows))
        if left_over:
            missing = "outcome != 'pending' AND row_hash NOT IN (SELECT row_hash FROM stored)"
            found = self._db.execute(f"SELECT {_NAMES} FROM ledger WHERE {missing}")
            while rows := found.fetchmany(ROWS_PER_FILE):
                self._files.write_segment(rows)
        self._db.execute("DROP TABLE stored")

    def _drop_damaged(self) -> None:
        """Storage has most of them; what it has not is asked again."""
        every = self._db.execute(f"SELECT {_NAMES} FROM ledger")
        damaged = [values[_KEY] for values in every if not is_whole(values)]
        for key in damaged:
            log.warning("ledger row %s on this node does not have its hash: taken from storage, or asked again", key)
        with self._lock, self._db:
            self._db.executemany("DELETE FROM ledger WHERE key = ?", [(key,) for key in damaged])

    def _select(self, source: str) -> list[LedgerRow]:
        with self._lock:
            return [LedgerRow(*values) for values in self._db.execute(f"SELECT {_NAMES} FROM {source}")]

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.wait(FLUSH_S):
            try:
                work()
            except (OSError, pa.ArrowException, TailorError) as error:
                self._failure = error
                return

    def _check(self) -> None:
        if isinstance(self._failure, TailorError):  # the run's lease is lost: that says it all
            raise self._failure
        if self._failure is not None:
            raise StageError(
                f"the ledger cannot be written to {self._files.store.uri}: {self._failure}; its rows are safe in "
                f"{self._path} on this node; run the same command here once there is space"
            ) from self._failure


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE", timeout=30.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
    db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    # Rows lie in the order of their coming, for keys are random: in theirs each commit would write a page for each row.
    db.execute(f"CREATE TABLE IF NOT EXISTS ledger ({columns}, PRIMARY KEY (key))")
    if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
        db.close()
        raise sqlite3.DatabaseError("quick_check found damage")
    return db


def _remove_database(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
