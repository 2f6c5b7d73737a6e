"""The ledger's files: merging leaves each row once, a kill in the middle of it too, and reading stays bounded."""

import duckdb
import pytest

from tailor_ray.ops.ledger import newest_rows
from tailor_ray.storage import Store
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerFiles
from tests.teacher.helpers import commit_and_flush, killed, row, write


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    return Store.open(str(tmp_path / "run" / "teacher"))


def sealed(numbers, **changes):
    return [row(number, **changes).sealed_values() for number in numbers]


def listed(store):
    """(number, attempts) as anybody's DuckDB sees them."""
    return duckdb.sql(f"select cast(sent as int), attempts from '{store.root}/*.parquet' order by all").fetchall()


WANTED = [(n, 2 if n % 3 == 0 or n >= 30 else 1) for n in range(40)]


def prepare(store, monkeypatch):
    """Three merged files of 10 rows, and segments with newer rows of some of them and with rows of their own."""
    monkeypatch.setattr("tailor_ray.teacher.ledger_rows.ROWS_PER_FILE", 10)
    files = LedgerFiles(store)
    files.write_segment(sealed(range(30), outcome="timeout", reply=None))
    files.compact()
    assert len([name for name in store.files() if name.startswith("ledger-")]) == 3
    files.write_segment(sealed([*range(0, 30, 3), 1], outcome="timeout", reply=None, attempts=1))
    files.write_segment(sealed([*range(0, 30, 3), *range(30, 40)], attempts=2))


class Killed(Exception):
    pass


class Mortal(Store):
    """Dies before its `left`-th change."""

    left = 0

    def check(self):
        type(self).left -= 1
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize("changes", range(12))
def test_a_merge_that_is_killed_leaves_no_row_twice_and_loses_none(store, monkeypatch, changes):
    prepare(store, monkeypatch)
    mortal = Mortal.open(store.uri)
    Mortal.left = changes
    try:
        LedgerFiles(mortal).compact()
    except Killed:
        assert sorted((int(one.sent), one.attempts) for one in LedgerFiles(store).read()) == WANTED
        LedgerFiles(store).compact()
    assert listed(store) == WANTED
    assert all(name.startswith("ledger-") for name in store.files() if name.endswith(".parquet"))


def test_many_segments_are_merged_some_at_a_time(store, monkeypatch):
    monkeypatch.setattr("tailor_ray.teacher.ledger_rows.ROWS_PER_MERGE", 20)
    did = []

    class Noting(Store):
        def write_bytes(self, name, data):
            did.append(f"write {name.partition('-')[0]}")
            return super().write_bytes(name, data)

        def delete(self, name):
            did.append(f"delete {name.partition('-')[0]}")
            super().delete(name)

    files = LedgerFiles(Noting.open(store.uri))
    for start in range(0, 100, 10):
        files.write_segment(sealed(range(start, start + 10)))
    assert files.is_merge_due
    did.clear()
    files.compact()
    assert did == ["write ledger", "delete segment", "delete segment"] * 5
    assert listed(store) == [(n, 1) for n in range(100)]
    assert not files.is_merge_due


def test_the_newest_rows_are_found_in_any_file(store):
    files = LedgerFiles(store)
    files.write_segment(sealed(range(50, 100)))
    files.write_segment(sealed(range(50)))
    assert [int(one.sent) for one in newest_rows(store, 3)] == [97, 98, 99]


def test_a_forecast_learns_from_a_bounded_sample(store, monkeypatch):
    monkeypatch.setattr("tailor_ray.teacher.ledger.SAMPLE", 40)
    rows = [row(n, round=1 + n % 2) for n in range(100)]
    ledger = write(store, [*rows, row(200, outcome="timeout")], close=False)
    assert ledger.settled_before(1) == []
    assert {one.key for one in ledger.settled_before(2)} == {rows[n].key for n in range(0, 40, 2)}
    assert len(ledger.settled_before(3)) == 40
    ledger.close()


def test_only_what_storage_lacks_is_written_to_it(store):
    """A driver that was killed had two rows flushed and two not, one of these newer than what is in storage."""
    killed(commit_and_flush, store, [row(1), row(2, outcome="timeout", reply=None)], [row(2, attempts=2), row(3)])
    before = set(store.files())
    again = Ledger(store)
    (name,) = set(store.files()) - before
    assert sorted(duckdb.sql(f"select cast(sent as int) from '{store.root}/{name}'").fetchall()) == [(2,), (3,)]
    again.close()
    assert listed(store) == [(1, 1), (2, 2), (3, 1)]
