"""The ledger survives: SIGKILL, damage in SQLite and parquet, a full disk, a lost node; and it is read as parquet."""

import logging
import os
import resource
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from tailor_ray.errors import LeaseLost, StageError
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerFiles, decode, encode, table_of
from tests.teacher.helpers import ROW, commit_and_flush, killed, row, write


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    return Store.open(str(tmp_path / "run" / "teacher"))


IN_FLIGHT = {"outcome": "pending", "reply": None, "pending_usd": 0.25, "pending_tokens": 100, "settled": 0.0}


def node_copy():
    (path,) = (node_cache() / "ledgers").glob("*.sqlite")
    return path


def lose_node():
    for path in (node_cache() / "ledgers").iterdir():
        path.unlink()


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def keys(store):
    """Of the rows in storage."""
    return {row.key for row in LedgerFiles(store).read()}


def read(store):
    ledger = Ledger(store)
    rows = ledger.rows()
    ledger.close()
    return rows


def test_rows_come_back_as_they_were_from_the_node_and_from_storage(store):
    rows = [row(n, cost_usd=0.1 * n, input_tokens=n) for n in range(5)]
    ledger = write(store, rows, close=False)
    assert [r.key for r in ledger.rows()] == [r.key for r in rows]
    assert ledger.get([rows[3].key, "nobody"]) == {rows[3].key: rows[3].sealed()}
    ledger.close()
    assert read(store) == [r.sealed() for r in rows]


def test_a_row_is_in_storage_within_a_second_and_readable_by_duckdb_and_pandas(store):
    ledger = write(store, [row(1, cost_usd=0.25)], close=False)
    wait_for(lambda: any(name.endswith(".parquet") for name in store.files()), seconds=3.0)  # 0.5 s, and a busy machine
    pattern = f"{store.root}/*.parquet"
    assert duckdb.sql(f"select key, cost_usd from '{pattern}'").fetchall() == [(row(1).key, 0.25)]
    (name,) = [name for name in store.files() if name.endswith(".parquet")]
    assert pd.read_parquet(f"{store.root}/{name}").reply[0] == ROW.reply
    ledger.close()


def test_a_request_is_one_row_after_closing_whatever_happened_to_it(store):
    ledger = Ledger(store)
    for attempt in range(3):
        ledger.stage([row(1, outcome="http_5xx" if attempt < 2 else "answered", attempts=attempt + 1, settled=attempt)])
        ledger.commit()
        ledger.flush()
    ledger.close()
    assert duckdb.sql(f"select attempts, outcome from '{store.root}/*.parquet'").fetchall() == [(3, "answered")]


def die_between_commits(store):
    ledger = write(store, [row(1, cost_usd=0.5, output_tokens=7), row(2, **IN_FLIGHT)], close=False)
    ledger.stage([row(3)])
    return ledger


def test_a_killed_driver_loses_no_commit_and_what_was_in_flight_is_counted(store):
    killed(die_between_commits, store)
    ledger = Ledger(store)
    first, second = ledger.rows()
    assert first == row(1, cost_usd=0.5, output_tokens=7).sealed()
    assert (second.outcome, second.lost_usd, second.lost_tokens, second.pending_usd) == ("lost", 0.25, 100, 0.0)
    assert not second.is_final
    assert ledger.spent() == Spend(0.75, 107)
    assert ledger.spent(round_=2) == Spend(0.0, 0)
    ledger.close()
    lose_node() if (node_cache() / "ledgers").exists() else None
    assert len(read(store)) == 2


def test_losing_the_node_loses_nothing_that_was_flushed(store):
    killed(commit_and_flush, store, [row(1), row(2)])
    lose_node()
    assert [r.key for r in read(store)] == [row(1).key, row(2).key]


def test_a_changed_row_in_sqlite_is_found_and_taken_from_storage(store, caplog):
    ledger = write(store, [row(1), row(2)], close=False)
    ledger.flush()
    with closing(sqlite3.connect(node_copy())) as forger, forger:
        forger.execute("UPDATE ledger SET reply = 'forged' WHERE key = ?", [row(1).key])
    with caplog.at_level(logging.WARNING):
        assert ledger.get([row(1).key]) == {}
    assert row(1).key in caplog.text
    ledger.close(compact=False)  # which leaves the node's copy as it is
    assert {r.reply for r in read(store)} == {ROW.reply}


def test_a_damaged_database_is_set_aside_and_made_again_from_storage(store, caplog):
    ledger = write(store, [row(n) for n in range(200)], close=False)
    ledger.close(compact=False)
    path = node_copy()
    data = bytearray(path.read_bytes())
    data[4096:12288] = os.urandom(8192)
    path.write_bytes(data)
    assert len(read(store)) == 200
    assert "damaged" in caplog.text


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_a_damaged_file_in_storage_loses_little_and_says_so(store, caplog, harm):
    write(store, [row(n, reply=f"reply {n} " * 30) for n in range(1000)])
    (name,) = [name for name in store.files() if name.endswith(".parquet")]
    data = bytearray(store.read_bytes(name))
    if harm == "flip":
        for position in range(len(data) // 4, len(data) // 4 + 64):
            data[position] ^= 0xFF
    store.write_bytes(name, {"flip": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}[harm])
    rows = read(store)
    assert name in caplog.text
    assert "lost" in caplog.text
    assert len(rows) >= (700 if harm == "flip" else 0)
    assert all(r.is_whole() for r in rows)
    assert store.files("damaged") == [name]


def test_a_forged_row_in_parquet_is_left_out(store, caplog):
    good, forged = row(1).sealed(), replace(row(2).sealed(), reply="forged")
    store.write_bytes("segment-1-1.parquet", encode(table_of(one.values() for one in (good, forged))))
    assert list(LedgerFiles(store).read()) == [good]
    assert "1 rows" in caplog.text


def test_parquet_round_trip_keeps_the_hash():
    import io

    import pyarrow.parquet as pq

    sealed = row(1, cost_usd=1e-7 / 3, seconds=0.1 + 0.2).sealed()
    (back,) = decode(pq.read_table(io.BytesIO(encode(table_of([sealed.values()])))))
    assert back == sealed
    assert back.is_whole()


def test_segments_are_merged_and_files_stay_small(store):
    files = LedgerFiles(store)
    for start in range(0, 9000, 1500):
        files.write_segment([row(n).sealed_values() for n in range(start, start + 1500)])
    files.compact()
    names = [name for name in store.files() if name.endswith(".parquet")]
    assert all(name.startswith("ledger-") for name in names)
    assert len(names) == 3
    assert len(list(files.read())) == 9000


def test_rows_reach_storage_while_files_are_merged(store, monkeypatch):
    """Merging is held up at a store that reads slowly; what is settled meanwhile is in storage all the same."""
    merging, go_on = threading.Event(), threading.Event()

    class Slow(Store):
        def read_bytes(self, name):
            if threading.current_thread().name == "ledger-merge":
                merging.set()
                assert go_on.wait(30)
            return super().read_bytes(name)

    monkeypatch.setattr("tailor_ray.teacher.ledger_rows.SEGMENTS_PER_MERGE", 2)
    ledger = Ledger(Slow.open(store.uri))
    for number in (1, 2):
        ledger.stage([row(number)])
        ledger.commit()
        ledger.flush()
    assert merging.wait(30)
    ledger.stage([row(3)])
    ledger.commit()
    wait_for(lambda: row(3).key in keys(store))
    go_on.set()
    wait_for(lambda: any(name.startswith("ledger-") for name in store.files() if name.endswith(".parquet")))
    ledger.close()
    assert not [name for name in store.files() if name.startswith("segment-")]
    assert len(list(LedgerFiles(store).read())) == 3


def test_import_takes_what_is_whole_final_and_new(store, tmp_path):
    ledger = write(store, [row(1), row(2, outcome="timeout", reply=None, lost_usd=0.5)], close=False)
    theirs = [
        row(1, reply="other").sealed(),
        row(2, reply="now").sealed(),
        row(3, cost_usd=2.0).sealed(),
        row(4, outcome="timeout").sealed(),
        replace(row(5).sealed(), reply="forged"),
    ]
    assert ledger.add(theirs) == 2
    found = {r.key: r.reply for r in ledger.rows()}
    assert found == {row(1).key: ROW.reply, row(2).key: "now", row(3).key: ROW.reply}
    assert ledger.spent().usd == 0.5  # ours, although another's reply takes the place of what we lost
    ledger.close()


@pytest.mark.parametrize("ahead", ["the node", "the storage"])
def test_a_clock_that_is_fast_loses_no_paid_reply(store, ahead):
    """Of one request's rows the one that got further wins, whatever time its node thought it was."""
    lost = row(1, outcome="lost", reply=None, lost_usd=0.5, settled=9e9)
    retried = row(2, outcome="timeout", reply=None, attempts=2, settled=1.0)
    early = row(2, outcome="http_5xx", reply=None, attempts=1, settled=9e9)
    there, here = ([lost, early], [row(1), retried]) if ahead == "the storage" else ([row(1), retried], [lost, early])
    killed(write, store, here, False)
    for name in store.files():  # had it been killed before it flushed
        if name.endswith(".parquet"):
            store.delete(name)
    LedgerFiles(store).write_segment([one.sealed_values() for one in there])
    assert read(store) == [row(1).sealed(), retried.sealed()]
    assert list(LedgerFiles(store).read()) == [row(1).sealed(), retried.sealed()]
    LedgerFiles(store).write_segment([lost.sealed_values(), early.sealed_values()])
    LedgerFiles(store).write_segment([retried.sealed_values(), early.sealed_values()])
    LedgerFiles(store).compact()
    assert list(LedgerFiles(store).read()) == [row(1).sealed(), retried.sealed()]


def test_a_run_folder_made_again_does_not_find_the_old_ledger(store):
    killed(write, store, [row(1)], False)
    for name in store.files():
        store.delete(name)
    assert read(store) == []


def test_a_full_disk_fails_loudly_keeps_the_last_commit_and_goes_on_with_space(tmp_path):
    """RLIMIT_FSIZE makes writes fail as a full disk does."""
    cache, root = tmp_path / "cache", tmp_path / "run"
    script = textwrap.dedent(
        f"""
        import resource, sys
        from tests.teacher.helpers import row
        from tailor_ray.errors import LeaseLost, StageError
        from tailor_ray.storage import Store
        from tailor_ray.teacher.ledger import Ledger
        ledger = Ledger(Store.open({str(root)!r}))
        ledger.stage([row(1)])
        ledger.commit()
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            for n in range(2, 1000):
                ledger.stage([row(n, reply="x" * 5000)])
                ledger.commit()
        except StageError as error:
            print(n, error, flush=True)
            import os
            os._exit(3)
        """
    )
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TAILOR_RAY_CACHE": str(cache)}
    ended = subprocess.run([sys.executable, "-c", script], check=False, env=env, capture_output=True, text=True)
    assert ended.returncode == 3, ended.stderr
    number, message = ended.stdout.split(" ", 1)
    assert "TAILOR_RAY_CACHE" in message
    assert str(cache) in message
    os.environ["TAILOR_RAY_CACHE"], before = str(cache), os.environ["TAILOR_RAY_CACHE"]
    try:
        assert len(read(Store.open(str(root)))) == int(number) - 1
    finally:
        os.environ["TAILOR_RAY_CACHE"] = before


def test_a_flush_that_storage_has_no_room_for_is_made_up_for(store, monkeypatch):
    monkeypatch.setattr("tailor_ray.teacher.ledger.FLUSH_S", 3600.0)
    ledger = write(store, [row(1)], close=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            ledger.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert keys(store) == set()
    ledger.flush()
    assert keys(store) == {row(1).key}
    ledger.close()


def test_storage_that_cannot_be_written_stops_the_run_with_the_rows_safe(store):
    def full():
        raise OSError(28, "No space left on device")

    write(store, [])
    ledger = write(store.guarded(full), [row(1)], close=False)
    with pytest.raises(StageError, match=r"safe in .*sqlite"):
        wait_for(ledger.commit)
    with pytest.raises(StageError, match="No space left on device"):
        ledger.close()
    assert keys(store) == set()
    assert [one.key for one in read(store)] == [row(1).key]


def test_a_lost_lease_stops_the_ledger_as_such(store):
    lost = []

    def guard():
        if lost:
            raise LeaseLost("another driver took the run over")

    ledger = write(store.guarded(guard), [row(1)], close=False)
    wait_for(lambda: keys(store))
    lost.append(True)
    ledger.stage([row(2)])
    ledger.commit()
    with pytest.raises(LeaseLost):
        wait_for(ledger.commit)
    with pytest.raises(LeaseLost):
        ledger.close()
    assert keys(store) == {row(1).key}


def test_the_database_is_one_that_fsyncs(store, monkeypatch):
    made, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *values, **more: made.append(connect(*values, **more)) or made[-1])
    ledger = Ledger(store)
    (db,) = made
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    ledger.close()
