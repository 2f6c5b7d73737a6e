"""The ledger: one row per distinct request, whatever happens to it, kept on the node and in the run's storage.

Before an attempt is sent its row says so, with the worst that it may cost (`pending_*`); when it ends the row says
how. `commit` makes both durable on the node (SQLite, WAL, fsync) before anyone acts on them, many rows at a time.
A flusher writes settled rows as parquet to the run's storage within a second, and another thread merges those files. A
driver that died leaves rows that are pending: the next one takes what the actors' journals say of them, counts the
others' worst case as lost money and asks again.

Every row carries a hash of its content: a damaged one is not used, and the loss is logged.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from tailor_ray.errors import StageError, TailorError
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.journal import Heard, read_journals
from tailor_ray.teacher.ledger_files import LedgerFiles
from tailor_ray.teacher.ledger_row import COLUMNS, FINAL, LedgerRow

log = logging.getLogger(__name__)

IDENTITY = "ledger.json"
FLUSH_S = 0.5
_NAMES = ", ".join(COLUMNS)
_INSERT = f"INSERT INTO ledger ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"
_REPLACE = f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS if name != 'key')}"
_UNLESS_OLDER = f"{_REPLACE} WHERE excluded.settled > ledger.settled"
SEGMENTS_MERGED = 200  # 100 s of flushes


class Ledger:
    """Open on one driver at a time (the run's lease sees to that). Safe to use from several threads."""

    def __init__(self, store: Store, keep_batches: bool = False) -> None:
        """Open or make the ledger in `store`, taking in what a driver that died left on this node.

        `keep_batches`: rows in a batch are still answered; otherwise they count as lost like calls in flight.
        """
        self._lock = threading.RLock()
        self._files = LedgerFiles(store)
        self._path = node_cache() / "ledgers" / f"{_identity(store)}.sqlite"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._staged: list[LedgerRow] = []
        self._unflushed: dict[str, LedgerRow] = {}
        self._failure: BaseException | None = None
        self._db = self._open_database()
        self._recover(keep_batches)
        self._stop = threading.Event()
        loops = {"ledger-flush": self._flush_loop, "ledger-merge": self._merge_loop}
        self._threads = [threading.Thread(target=loop, name=name, daemon=True) for name, loop in loops.items()]
        for thread in self._threads:
            thread.start()

    def get(self, keys: Sequence[str]) -> dict[str, LedgerRow]:
        """Rows by key; keys without a row, or with a damaged one, are absent."""
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
            wanted = set(keys)
            found.update({row.key: row for row in self._staged if row.key in wanted})
        return found

    def stage(self, rows: Iterable[LedgerRow]) -> None:
        """Put rows into the next commit."""
        with self._lock:
            self._staged.extend(row.sealed() for row in rows)

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
                    values = [row.values() for row in self._staged]
                    self._db.executemany(f"{_INSERT} ON CONFLICT (key) {_REPLACE}", values)
            except sqlite3.Error as error:
                raise StageError(
                    f"the ledger {self._path} cannot be written: {error}; make space there, or point "
                    "TAILOR_RAY_CACHE at another local disk, and run the same command"
                ) from error
            self._unflushed.update({row.key: row for row in self._staged if row.outcome != "pending"})
            self._staged = []

    def journal(self, actor: str) -> str:
        """Where on this node an actor keeps its journal, without the endings."""
        return str(self._path.with_suffix(f".{actor}"))

    def heard(self, actor: str = "*") -> Heard:
        """What the journals of this actor, or of all, say."""
        return read_journals(self._path.parent.glob(f"{self._path.stem}.{actor}.*.jsonl"))

    def rows(self) -> list[LedgerRow]:
        """All rows, oldest first."""
        with self._lock:
            return list(self._select("ORDER BY sent, key"))

    def spent(self, round_: int | None = None) -> Spend:
        """What all attempts of this run cost, those whose bill is not known at their worst case."""
        where, values = ("WHERE round > 0", ()) if round_ is None else ("WHERE round = ?", (round_,))
        query = (
            "SELECT total(cost_usd + lost_usd + pending_usd), "
            f"total(input_tokens + output_tokens + lost_tokens + pending_tokens) FROM ledger {where}"
        )
        with self._lock:
            usd, tokens = self._db.execute(query, values).fetchone()
        return Spend(float(usd), int(tokens))

    def settled_before(self, round_: int) -> Iterator[LedgerRow]:
        """Rows of earlier rounds that have their last word, one by one: a long ledger need not fit into memory."""
        final = ",".join(f"'{outcome}'" for outcome in sorted(FINAL))
        yield from self._select(f"WHERE outcome IN ({final}) AND round < {round_:d}")

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
        new = [
            _answered_by(known[key], row) if key in known else replace(row, round=0)
            for key, row in whole.items()
            if key not in known or not known[key].is_final
        ]
        self.stage(new)
        self.commit()
        return len(new)

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
                self._unflushed = {row.key: row for row in rows} | self._unflushed
            raise

    def close(self, compact: bool = True) -> None:
        """Flush, merge the segments, and drop the copy on the node, which storage now holds whole."""
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
        stored: dict[str, float] = {}  # when settled, by key
        for rows in self._files.read_files():
            stored.update({row.key: max(row.settled, stored.get(row.key, 0.0)) for row in rows})
            with self._lock, self._db:
                self._db.executemany(f"{_INSERT} ON CONFLICT (key) {_UNLESS_OLDER}", [row.values() for row in rows])
        kept = "batch" if keep_batches else None
        heard, lost = self.heard(), 0
        for row in [row for row in self._select("WHERE outcome = 'pending'") if row.mode != kept]:
            outcome, cost = heard.get((row.key, row.attempts), (None, 0.0))
            if outcome is None:
                self.stage([row.lost(time.time())])
                lost += 1
            else:
                self.stage([row.after(outcome, cost)])
        self.commit()
        if lost:
            log.warning("%d requests were in flight when the last driver ended: counted as lost", lost)
        known = self._db.execute("SELECT key, settled FROM ledger WHERE outcome != 'pending'").fetchall()
        missing = [key for key, settled in known if stored.get(key) != settled]
        self._unflushed.update(self.get(missing))

    def _drop_damaged(self) -> None:
        """Storage has most of them; what it has not is asked again."""
        damaged = [row.key for row in self._select("") if not row.is_whole()]
        for key in damaged:
            log.warning("ledger row %s on this node does not have its hash: taken from storage, or asked again", key)
        with self._lock, self._db:
            self._db.executemany("DELETE FROM ledger WHERE key = ?", [(key,) for key in damaged])

    def _select(self, where: str) -> Iterator[LedgerRow]:
        with self._lock:
            yield from (LedgerRow(*row) for row in self._db.execute(f"SELECT {_NAMES} FROM ledger {where}"))

    def _flush_loop(self) -> None:
        self._repeat(self.flush)

    def _merge_loop(self) -> None:
        """A thread of its own: merging may take seconds on an object store, and rows must not wait for it."""

        def merge() -> None:
            if self._files.segments >= SEGMENTS_MERGED:
                self._files.compact()

        self._repeat(merge)

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


def _answered_by(known: LedgerRow, other: LedgerRow) -> LedgerRow:
    """Our row with the other's last word; what we paid for it without getting one stays paid."""
    return replace(
        known,
        outcome=other.outcome,
        reply=other.reply,
        finish_reason=other.finish_reason,
        detail=other.detail,
        settled=time.time(),
    )


def _identity(store: Store) -> str:
    """The ledger's own name, made once: a run folder deleted and made again does not find the old copy."""
    if not store.exists(IDENTITY):
        store.write_json(IDENTITY, {"id": uuid.uuid4().hex})
    return str(store.read_json(IDENTITY)["id"])


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE", timeout=30.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    db.execute(f"CREATE TABLE IF NOT EXISTS ledger ({columns}, PRIMARY KEY (key)) WITHOUT ROWID")
    if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
        db.close()
        raise sqlite3.DatabaseError("quick_check found damage")
    return db


def _remove_database(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
