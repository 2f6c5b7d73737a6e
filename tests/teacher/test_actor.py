"""A teacher actor's journal: what it wrote outlives it and its driver, and is settled once."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tailor_ray.config.teacher import EndpointConfig, MockConfig, PriceConfig
from tailor_ray.demo.mock_server import MockOptions, start_mock
from tailor_ray.storage import Store
from tailor_ray.storage.store import node_cache
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.dispatch import Assignment
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.outcomes import Journal, Outcome, Usage, read_journals
from tailor_ray.teacher.pool import Driver, TeacherActor
from tests.integration.teaching import answered
from tests.teacher.helpers import killed, row, write
from tests.teacher.test_dispatch import MODEL, answer, make, request

ENTRY = Outcome("answered", key="k", text="é\u2028 <b>", usage=Usage(10, 1, 5, 2), sent=1.0, seconds=0.5)


@pytest.fixture
def stem(tmp_path):
    return str(tmp_path / "ledger.teacher-0")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    return Store.open(str(tmp_path / "run" / "teacher"))


def read(stem):
    return read_journals(Path(stem).parent.glob("*.jsonl"))


def test_what_is_committed_is_dropped_and_nothing_that_ended_meanwhile(stem):
    journal, said = Journal(stem), [replace(ENTRY, key=str(n)) for n in range(4)]
    journal.write(1, said[0], 0.25)
    journal.hand_over()
    journal.write(2, said[1], 0.5)  # while the driver commits the first
    assert read(stem) == {("0", 1): (said[0], 0.25), ("1", 2): (said[1], 0.5)}
    journal.committed()
    assert read(stem) == {("1", 2): (said[1], 0.5)}
    journal.write(1, said[2], 0.0)
    journal.hand_over()
    journal.write(1, said[3], 0.0)
    journal.committed()
    assert list(read(stem)) == [("3", 1)]


def test_a_line_that_a_kill_cut_short_is_not_heard_and_the_others_are(stem):
    journal = Journal(stem)
    journal.write(1, ENTRY, 0.0)
    journal.write(1, replace(ENTRY, key="cut"), 0.0)
    path = Path(f"{stem}.0.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    assert list(read(stem)) == [("k", 1)]


def test_a_new_actor_begins_an_empty_journal(stem):
    Journal(stem).write(1, ENTRY, 0.0)
    Journal(stem)
    assert read(stem) == {}


def test_a_dead_actors_replies_are_settled_and_only_the_rest_is_asked_again(tmp_path, store):
    ledger = Ledger(store)
    subject = make(ledger, price=PriceConfig(input=1.0, output=1.0))
    subject.submit([request(number=n) for n in range(3)])
    first, second, third = subject.assign("a", MODEL, 3, 0.0)
    journaled = {
        (first.key, 1): (answer(first.key, usage=Usage(10, 0, 5)), 0.0),
        (second.key, 0): (answer(second.key), 0.0),  # of an attempt before this one
    }
    (settled,) = subject.actor_died("a", journaled, 1.0)
    assert (settled.row.key, settled.row.outcome, settled.row.lost_tokens) == (first.key, "answered", 0)
    assert settled.row.cost_usd == pytest.approx(15e-6)
    assert {assignment.key for assignment in subject.assign("b", MODEL, 3, 5.0)} == {second.key, third.key}
    ledger.close()


def hear(store):
    """Of a driver with one actor."""
    pending = {"outcome": "pending", "reply": None, "pending_usd": 0.25, "pending_tokens": 100, "settled": 0.0}
    rows = [replace(row(n), **pending, sent=0.0, attempts=n + 1) for n in range(3)]
    ledger = write(store, rows, close=False)
    journal = Journal(ledger.journal("teacher-0"))
    journal.write(1, replace(ENTRY, key=row(0).key), 0.125)
    journal.write(2, replace(ENTRY, key=row(2).key, code="http_5xx", text=None, usage=None), 0.0)
    return ledger, journal


def test_a_killed_driver_finds_what_its_actors_heard(store):
    """One was written down, one was cut off, one has ended before and its old attempt is still in the journal."""
    keys = [row(n).key for n in range(3)]
    killed(hear, store)
    ledger = Ledger(store)
    rows = ledger.get(keys)
    assert [rows[key].outcome for key in keys] == ["answered", "lost", "lost"]
    assert (rows[keys[0]].reply, rows[keys[0]].sent, rows[keys[0]].settled) == (ENTRY.text, 1.0, 1.5)
    assert all(one.is_whole() for one in rows.values())
    assert ledger.spent() == Spend(0.125 + 0.25 + 0.25, 15 + 100 + 100)
    ledger.close()
    assert not list((node_cache() / "ledgers").glob("*.jsonl"))


@pytest.fixture
async def server(tmp_path):
    """A mock teacher's endpoint, and the log of who was answered."""
    log = tmp_path / "access.jsonl"
    runner, url = await start_mock(MockOptions(MockConfig(access_log=str(log))))
    yield EndpointConfig(base_url=url), log
    await runner.cleanup()


@pytest.fixture
def driver(monkeypatch, stem):
    """This process as the driver of an actor on its node."""
    # The method alone: where this process is a driver of Ray too, Ray's own threads ask the context for more.
    monkeypatch.setattr("ray.runtime_context.RuntimeContext.get_node_id", lambda _: "here")
    return Driver("here", os.getpid(), stem)


def assign(endpoint, count):
    return [Assignment(str(n), endpoint.model, request(number=n).body, 0.0, 1) for n in range(count)]


async def take(actor, assignments, log):
    """What comes of them, and how many were answered before the driver came again."""
    came = await actor.exchange(assignments, 5.0)
    await asyncio.sleep(0.3)
    at_first = sum(answered(log).values())
    while len(came) < len(assignments):
        came += await actor.exchange([], 5.0)
    return came, at_first


def test_a_journal_on_a_full_disk_says_so(stem):
    for turn in (0, 1):
        Path(f"{stem}.{turn}.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Journal(stem).write(1, ENTRY, 0.0)


async def test_a_full_disk_costs_no_reply(server, driver, caplog, monkeypatch):
    """Its slot is free only when the driver has the reply, as without a journal."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "write", full)
    endpoint, log = server
    actor = TeacherActor([endpoint], {endpoint.model: 2}, driver)
    await actor.ready()
    came, at_first = await take(actor, assign(endpoint, 6), log)
    await actor.close()
    assert at_first == 2
    assert {outcome.code for outcome in came} == {"answered"}
    assert "cannot be written: [Errno 28]" in caplog.text


@pytest.mark.parametrize("kept", [False, True])
async def test_a_slot_is_free_once_its_reply_is_written_down_here_or_by_the_driver(server, driver, kept):
    """Without a journal, as on another node than the driver's, no more is asked until the driver comes again."""
    endpoint, log = server
    actor = TeacherActor([endpoint], {endpoint.model: 2}, driver if kept else replace(driver, node="elsewhere"))
    await actor.ready()
    assignments = assign(endpoint, 6)
    came, at_first = await take(actor, assignments, log)
    await actor.close()
    assert at_first == (6 if kept else 2)
    assert {outcome.key for outcome in came} == {assignment.key for assignment in assignments}
    assert {outcome.code for outcome in came} == {"answered"}


async def test_a_folder_out_of_reach_is_said_and_costs_the_journal_alone(server, driver, tmp_path, caplog):
    endpoint, log = server
    elsewhere = replace(driver, journal=str(tmp_path / "elsewhere" / "ledger.teacher-0"))
    actor = TeacherActor([endpoint], {endpoint.model: 2}, elsewhere)
    await actor.ready()
    assert "keeps no journal" in caplog.text
    came, at_first = await take(actor, assign(endpoint, 3), log)
    await actor.close()
    assert at_first == 2
    assert [outcome.code for outcome in came] == ["answered"] * 3
