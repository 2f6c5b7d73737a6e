"""A 429 storm over real sockets, with and without Retry-After: the offered rate falls and recovers, nothing is lost."""

import asyncio
import json
import time

import pytest

from tailor_ray.config.teacher import MockConfig
from tailor_ray.demo.mock_server import MockOptions, start_mock
from tailor_ray.storage import Store
from tailor_ray.teacher.budget import Budget
from tailor_ray.teacher.dispatch import Dispatcher
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.pool import TeacherActor
from tests.teacher.helpers import config, request

MODEL = "mock-teacher"
BEGINS, LASTS = 0.5, 1.5
PACE = 60  # requests a second that the limit allows


async def ask_all(url, ledger, count):
    """The pool's loop around one actor, without Ray between them; returns the settled requests."""
    chosen = config(base_url=url, requests_per_minute=60 * PACE, budget_tokens=10**6)
    actor = TeacherActor(chosen.teachers, {MODEL: 32})
    await actor.ready()
    subject = Dispatcher(chosen, ledger, Budget(chosen, ledger.spent(), ledger.spent(1)), time.monotonic())
    subject.submit([request(number=number) for number in range(count)])
    settled = []
    while subject.open_count:
        assignments = subject.assign("a", MODEL, subject.room("a", MODEL, 32), time.monotonic())
        await asyncio.to_thread(ledger.commit)
        settled += subject.settle(await actor.exchange(assignments, 0.1), time.monotonic())
    assert subject.stop is None
    await actor.close()
    return settled, subject.budget


@pytest.mark.parametrize("says_when", [True, False])
async def test_the_rate_falls_and_recovers(tmp_path, monkeypatch, says_when):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    log, ledger = tmp_path / "log.jsonl", Ledger(Store.open(str(tmp_path / "teacher")))
    storm = {"storm": (BEGINS, LASTS), "storm_says_when": says_when}
    runner, url = await start_mock(MockOptions(MockConfig(access_log=str(log)), **storm))
    settled, budget = await ask_all(url, ledger, 90)
    await runner.cleanup()
    assert [one.row.outcome for one in settled] == ["answered"] * 90
    assert budget.reserved.tokens == 0
    assert budget.run_spent.tokens == sum(one.row.input_tokens + one.row.output_tokens for one in settled)
    assert all(one.row.lost_tokens == 0 for one in settled)  # a refusal costs nothing
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    refused = sorted(call["time"] for call in calls if call["status"] == 429)
    assert 1 <= len(refused) <= 0.75 * LASTS * PACE  # offered all the while, it would have been all of them
    late = [at for at in refused if at > refused[0] + 0.5]
    assert len(late) <= (1 if says_when else 6)  # nothing, or one probe after the other
    after = sorted(call["time"] for call in calls if call["status"] == 200 and call["time"] > refused[-1])
    assert max(sum(at <= one < at + 1.0 for one in after) for at in after) >= 2 * max(len(late), 3)
    ledger.close()
