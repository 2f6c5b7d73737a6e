"""`tailor-ray ledger`: what a team sees of a run's ledger, and how it shares one."""

import json

import pytest

from tailor_ray.errors import DataError, RunFolderError, UserError
from tailor_ray.ops import ledger as command
from tailor_ray.storage import Lease, Store
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.ledger import Ledger
from tests.teacher.helpers import row


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A run whose ledger holds three replies and a failure."""
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    ledger = Ledger(Store.open(f"{tmp_path}/ours/teacher"))
    ledger.stage([row(n, cost_usd=0.25, input_tokens=10) for n in (1, 2, 3)])
    ledger.stage([row(4, outcome="http_5xx", round=2)])
    ledger.commit()
    ledger.close()
    return f"{tmp_path}/ours"


def read(lines):
    return [json.loads(line) for line in lines.splitlines()]


def test_rows_are_listed_and_totalled(ours):
    newest = read(command.list_rows(ours, 2))
    assert [one["key"] for one in newest] == [row(3).key, row(4).key]
    assert newest[0]["outcome"] == "answered"
    first, second = read(command.total(ours))
    assert (first["round"], first["requests"], first["cost_usd"], first["input_tokens"]) == (1, 3, 0.75, 30)
    assert (second["round"], second["outcome"]) == (2, "http_5xx")


def test_what_is_no_run_is_said_and_stays_as_it_was(tmp_path):
    nowhere, file = f"{tmp_path}/nowhere", tmp_path / "rows.parquet"
    for ask in (
        lambda: command.list_rows(nowhere, 2),
        lambda: command.total(nowhere),
        lambda: command.export(nowhere, file),
        lambda: command.forget(nowhere, ["length"]),
    ):
        with pytest.raises(DataError, match=r"nowhere is not a run folder: it has no run\.yaml"):
            ask()
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read: there is no such file"):
        command.take_in(nowhere, file)
    assert list(tmp_path.iterdir()) == []


def test_another_run_takes_replies_in_and_asks_for_none_of_them(ours, tmp_path):
    file, theirs = tmp_path / "rows.parquet", f"{tmp_path}/theirs"
    assert command.export(ours, file) == f"4 rows written to {file}"
    assert command.take_in(theirs, file) == f"3 new rows taken in from {file}"  # a failure is no reply
    assert command.take_in(theirs, file).startswith("0 new rows")
    ledger = Ledger(Store.open(f"{theirs}/teacher"))
    assert set(ledger.get([row(n).key for n in range(6)])) == {row(n).key for n in (1, 2, 3)}
    assert ledger.spent() == Spend()  # another run paid for them: they take nothing from this one's budget
    ledger.close()
    assert [line["round"] for line in read(command.total(theirs))] == [0]


def test_nothing_is_taken_in_while_a_driver_is_at_work(ours, tmp_path):
    file = tmp_path / "rows.parquet"
    command.export(ours, file)
    with Lease.acquire(Store.open(ours)), pytest.raises(RunFolderError, match="in use"):
        command.take_in(ours, file)


def test_replies_are_forgotten_by_outcome_and_what_they_cost_is_not(ours):
    with pytest.raises(UserError, match=r"'content_filter'; there are: answered, http_5xx"):
        command.forget(ours, ["content_filter"])
    assert command.forget(ours, ["answered"]).startswith("3 replies forgotten")
    ledger = Ledger(Store.open(f"{ours}/teacher"))
    assert sorted(one.outcome for one in ledger.rows()) == ["forgotten"] * 3 + ["http_5xx"]
    assert not any(one.is_final or one.reply for one in ledger.get([row(n).key for n in (1, 2, 3)]).values())
    assert ledger.spent().usd == 0.75
    ledger.close()
    totals = {one["outcome"]: one["cost_usd"] for one in read(command.total(ours))}
    assert totals["forgotten"] == 0.75
    with Lease.acquire(Store.open(ours)), pytest.raises(RunFolderError, match="in use"):
        command.forget(ours, ["http_5xx"])
