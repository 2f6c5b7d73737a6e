"""The dispatcher by a clock of our own: order, retries, deaths, and a bill that never exceeds the budget by a cent."""

import random
import time
from dataclasses import replace

import pytest

from tailor_ray.config.teacher import PriceConfig
from tailor_ray.errors import Stopped, TeacherAccessError
from tailor_ray.storage import Store
from tailor_ray.teacher.budget import Budget, Spend, cost_usd
from tailor_ray.teacher.dispatch import Dispatcher
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.outcomes import Outcome, Usage, read_usage
from tests.teacher.helpers import config, request

MODEL = "mock-teacher"
FREE = {"requests_per_minute": 1e9}


def make(ledger, **settings):
    chosen = config(**{**FREE, **settings})
    return Dispatcher(chosen, ledger, Budget(chosen, ledger.spent(), ledger.spent(1)), 0.0)


def answer(key, code="answered", usage=None, **more):
    usage = usage or (Usage(10, 0, 5) if code == "answered" else None)
    text = "text" if code == "answered" else None
    return Outcome(code, text=text, usage=usage, key=key, sent=1.0, seconds=0.1, **more)


def test_the_most_valuable_questions_go_first(ledger):
    subject = make(ledger)
    order = [(-0.5, 0, "b"), (-1.0, 1, "c"), (-1.0, 0, "d"), (0.0, 0, "a")]
    subject.submit([request(number=n, priority=p) for n, p in enumerate(order)])
    assignments = subject.assign("a", MODEL, 10, 0.0)
    sent = [
        order[int(row.question_id[1:])]
        for assignment in assignments
        for row in [ledger.get([assignment.key])[assignment.key]]
    ]
    assert sent == sorted(order)


def test_a_assignment_is_pending_in_the_ledger_before_it_goes_out(ledger):
    subject = make(ledger, price=PriceConfig(input=1.0, output=2.0))
    wanted = request()
    subject.submit([wanted])
    (assignment,) = subject.assign("a", MODEL, 1, 0.0)
    ledger.commit()
    (row,) = ledger.rows()
    assert (row.key, row.outcome, row.attempts, row.pending_tokens) == (
        assignment.key,
        "pending",
        1,
        wanted.worst_tokens,
    )
    assert row.pending_usd == pytest.approx((wanted.prompt_tokens + 2 * wanted.max_tokens) / 1e6)
    assert subject.assign("b", MODEL, 1, 0.0) == []
    (settled,) = subject.settle([answer(assignment.key)], 1.0)
    ledger.commit()
    assert ledger.rows() == [settled.row.sealed()]
    assert settled.row.cost_usd == pytest.approx((10 + 2 * 5) / 1e6)
    assert subject.budget.reserved.tokens == 0


def test_the_ledger_answers_what_it_knows(ledger):
    subject = make(ledger)
    subject.submit([request()])
    (assignment,) = subject.assign("a", MODEL, 1, 0.0)
    subject.settle([answer(assignment.key)], 1.0)
    ledger.commit()
    (known,) = make(ledger).submit([request()])
    assert known.from_ledger
    assert known.row.reply == "text"


def fail_at(ledger, poison, healthy, code="http_5xx"):
    """One request always fails while others are answered; returns how it ended, and how often it was tried."""
    subject = make(ledger, max_attempts=3)
    subject.submit([poison, *healthy])
    now, tries, ended = 0.0, 0, None
    while ended is None:
        for assignment in subject.assign("a", MODEL, 2, now):
            tries += assignment.key == poison.key
            outcome = (
                answer(assignment.key, code, detail="HTTP 500")
                if assignment.key == poison.key
                else answer(assignment.key)
            )
            ended = next((one for one in subject.settle([outcome], now) if one.request == poison), ended)
        now += 1.0
    ledger.commit()
    return ended, tries


def test_what_fails_too_often_is_left_undecided_and_given_up_by_the_second_driver_that_answers_others(ledger):
    healthy = [request(number=n) for n in range(1, 40)]
    ended, tries = fail_at(ledger, request(), healthy)
    assert (tries, ended.undecided, ended.row.outcome, ended.row.attempts) == (3, True, "http_5xx", 3)
    assert not ended.row.is_final
    more = [request(number=n) for n in range(40, 80)]
    ended, tries = fail_at(ledger, request(), more)
    assert (tries, ended.undecided, ended.row.attempts) == (3, False, 6)
    assert make(ledger).submit([request()]) == []  # not for ever: the next one asks again


def test_retries_are_bounded_by_time(ledger):
    subject = make(ledger, max_attempts=100, retry_for_s=10.0)
    subject.submit([request(), *(request(number=n) for n in range(1, 200))])
    now, ended = 0.0, []
    while not ended:
        for assignment in subject.assign("a", MODEL, 2, now):
            poison = assignment.key == request().key
            ended += [one for one in subject.settle([answer(assignment.key, "timeout" if poison else "answered")], now)
                      if one.undecided]  # fmt: skip
        now += 0.5
    assert ended[0].request == request()
    assert 10.0 <= now <= 50.0


def test_the_minute_of_an_earlier_round_or_driver_counts(ledger):
    subject, now = make(ledger, requests_per_minute=6), 0.0
    subject.submit([request(number=n) for n in range(6)])
    while subject.open_count:
        for assignment in subject.assign("a", MODEL, 10, now):
            subject.settle([replace(answer(assignment.key), sent=time.time())], now)
        now += 10.0
    ledger.commit()
    later = make(ledger, requests_per_minute=6)  # its clock begins at 0, the ledger knows what was sent just now
    later.submit([request(number=n) for n in range(6, 9)])
    assert later.assign("a", MODEL, 10, 0.0) == later.assign("a", MODEL, 10, 55.0) == []
    assert len(later.assign("a", MODEL, 10, 61.0)) == 1
    other = make(ledger, requests_per_minute=6, model="other")
    assert other.submit([request(config(model="other"))]) == []
    assert len(other.assign("a", "other", 10, 0.0)) == 1  # another model's minute is its own


def test_a_filtered_reply_is_terminal_and_kept(ledger):
    subject = make(ledger)
    subject.submit([request()])
    (assignment,) = subject.assign("a", MODEL, 1, 0.0)
    (settled,) = subject.settle([answer(assignment.key, "content_filter", usage=Usage(10, 0, 0))], 0.1)
    assert settled.row.is_final
    ledger.commit()
    (known,) = make(ledger).submit([request()])
    assert known.row.outcome == "content_filter"


def test_a_dead_actors_assignments_go_to_another_and_are_counted_at_their_worst(ledger):
    subject = make(ledger, price=PriceConfig(input=1.0, output=1.0))
    wanted = [request(number=n) for n in range(4)]
    subject.submit(wanted)
    first = subject.assign("a", MODEL, 4, 0.0)
    assert subject.actor_died("a", {}, 1.0) == []
    again = subject.assign("b", MODEL, 4, 5.0)
    assert {assignment.key for assignment in again} == {assignment.key for assignment in first}
    settled = subject.settle([answer(assignment.key) for assignment in again], 6.0)
    assert len(settled) == 4
    assert all(one.row.attempts == 2 for one in settled)
    assert all(one.row.lost_tokens == one.request.worst_tokens for one in settled)
    assert subject.settle([answer(first[0].key)], 7.0) == []  # a late reply of the dead counts nothing twice


@pytest.mark.parametrize(
    ("code", "error", "names"),
    [
        ("http_401", TeacherAccessError, ["teacher.base_url", "teacher.api_key_env", "teacher.model"]),
        ("http_404", TeacherAccessError, ["teacher.model"]),
        ("insufficient_quota", Stopped, ["quota"]),
    ],
)
def test_what_ends_the_run(ledger, code, error, names):
    subject = make(ledger)
    subject.submit([request(number=n) for n in range(3)])
    assignments = subject.assign("a", MODEL, 1, 0.0)
    subject.settle([answer(assignments[0].key, code)], 0.1)
    assert isinstance(subject.stop, error)
    assert all(name in str(subject.stop) for name in names)
    assert subject.assign("a", MODEL, 2, 1.0) == []


class Bank:
    """What the server bills: the usage of each attempt that it served, whether or not the reply arrived."""

    def __init__(self, seed, price):
        self.draw, self.price = random.Random(seed), price
        self.usd, self.tokens, self.most = 0.0, 0, 0.0

    def serve(self, assignment, wanted):
        """One attempt; returns its outcome, or None when the driver dies before it arrives."""
        what = self.draw.choice(["good"] * 6 + ["lost", "refused", "garbled", "length", "killed"])
        if what == "refused":
            return answer(assignment.key, "http_429")
        cached = self.draw.randint(0, 40)
        usage = Usage(self.draw.randint(cached, wanted.prompt_tokens), cached, self.draw.randint(1, wanted.max_tokens))
        self.usd += cost_usd(self.price, usage)
        self.tokens += usage.input + usage.output
        if what == "lost":
            return answer(assignment.key, "timeout")
        if what == "garbled":
            return answer(assignment.key, "malformed_json")
        if what == "killed":
            return None
        return answer(assignment.key, "length" if what == "length" else "answered", usage=usage)


def spend_all(ledger, wanted, bank, seed, **settings):
    """Run until all is settled or the budget stops; drivers die now and then. Returns the last and the ledger."""
    draw = random.Random(seed)
    subject, now, by_key = make(ledger, max_attempts=50, **settings), 0.0, {one.key: one for one in wanted}
    subject.submit(wanted)
    while subject.open_count and subject.stop is None:
        assignments = subject.assign("a", MODEL, draw.randint(1, 6), now)
        ledger.commit()
        outcomes = [bank.serve(assignment, by_key[assignment.key]) for assignment in assignments]
        if None in outcomes:  # SIGKILL: nothing of this batch arrives; a new driver finds pending rows
            ledger.close(compact=False)
            ledger = Ledger(ledger.store)
            subject = make(ledger, max_attempts=50, **settings)
            subject.submit(wanted)
        else:
            subject.settle(outcomes, now)
            ledger.commit()
        now += 40.0
    return subject, ledger


def tightest(price, wanted, seed):
    """One of the four budgets, worth a few of the dearest requests, and the same raised far."""
    setting = ("budget_usd", "round_budget_usd", "budget_tokens", "round_budget_tokens")[seed % 4]
    if "usd" in setting:
        worst = max(cost_usd(price, Usage(one.prompt_tokens, 0, one.max_tokens)) for one in wanted)
    else:
        worst = max(one.worst_tokens for one in wanted)
    cap = worst * random.Random(seed).uniform(1, 12)
    cap, raised = (cap, cap + 1000 * worst) if "usd" in setting else (int(cap), int(cap) + 1000 * worst)
    return setting, cap, raised


@pytest.mark.parametrize("block", range(4))
def test_the_bill_never_exceeds_the_budget_by_a_cent_and_a_raise_goes_on(tmp_path, monkeypatch, block):
    """200 seeds of random prices, usages, losses and kills, under each of the four budgets."""
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    stopped = 0
    for seed in range(block * 50, block * 50 + 50):
        draw = random.Random(seed)
        price = PriceConfig(
            input=draw.uniform(0.1, 20), output=draw.uniform(0.1, 80), cached_input=draw.uniform(0, 0.1)
        )
        wanted = [request(config(max_tokens=60), number=n) for n in range(12)]
        setting, cap, raised = tightest(price, wanted, seed)
        bank, ledger = Bank(seed, price), Ledger(Store.open(str(tmp_path / f"ledger-{seed}")))
        settings = {"price": price, "max_tokens": 60}
        subject, ledger = spend_all(ledger, wanted, bank, seed, **{setting: cap}, **settings)
        billed, counted = (bank.usd, ledger.spent().usd) if "usd" in setting else (bank.tokens, ledger.spent().tokens)
        assert billed - 1e-9 <= counted <= cap + 1e-9, seed  # what we count is never less than what is billed
        if subject.stop is not None:
            stopped += 1
            assert isinstance(subject.stop, Stopped)
            assert f"teacher.{setting}" in str(subject.stop)
        subject, ledger = spend_all(ledger, wanted, bank, seed + 1000, **{setting: raised}, **settings)
        assert subject.stop is None
        assert sum(row.is_final for row in ledger.rows()) == len(wanted)
        assert (bank.usd if "usd" in setting else bank.tokens) <= raised
        ledger.close()
    assert 10 <= stopped < 50  # both ends of the property are seen


class Liar(Bank):
    """A server that ignores caps, counts less than it bills, or says nothing; what it bills shows in some replies."""

    def serve(self, assignment, wanted):
        """Bills up to six times the cap; `largest` is the dearest reply in dollars and in tokens."""
        output = self.draw.randint(1, 6 * wanted.max_tokens)
        bill = Usage(self.draw.randint(1, wanted.prompt_tokens), 0, output)
        text = "word" * output
        form = self.draw.choice(["total", "cost", "honest", "none", "lost"])
        if form in ("none", "lost"):
            bill = Usage(bill.input, 0, min(output, wanted.max_tokens))
        usd = cost_usd(self.price, bill)
        self.usd, self.tokens = self.usd + usd, self.tokens + bill.input + bill.output
        self.most = max(self.most, usd)
        said = {
            "total": {"prompt_tokens": bill.input, "completion_tokens": 1, "total_tokens": bill.input + bill.output},
            "cost": {"prompt_tokens": bill.input, "completion_tokens": bill.output, "cost": usd},
            "honest": {"prompt_tokens": float(bill.input), "completion_tokens": float(bill.output)},
        }.get(form)
        if form == "lost":
            return answer(assignment.key, "timeout")
        return replace(answer(assignment.key), text=text[: 4 * bill.output], usage=read_usage(said))


@pytest.mark.parametrize("block", range(3))
def test_a_dishonest_server_exceeds_the_budget_by_no_more_than_the_reply_that_showed_it(tmp_path, monkeypatch, block):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    for seed in range(block * 40, block * 40 + 40):
        draw = random.Random(seed)
        price = PriceConfig(input=draw.uniform(0.1, 20), output=draw.uniform(0.1, 80))
        wanted = [request(config(max_tokens=60), number=n) for n in range(30)]
        worst = cost_usd(price, Usage(wanted[0].prompt_tokens, 0, 60))
        liar, ledger = Liar(seed, price), Ledger(Store.open(str(tmp_path / f"ledger-{seed}")))
        cap = worst * draw.uniform(1, 60)
        _, ledger = spend_all(ledger, wanted, liar, seed, price=price, max_tokens=60, budget_usd=cap)
        assert liar.usd <= cap + liar.most + 1e-9, seed
        assert ledger.spent().usd >= liar.usd - 1e-9
        ledger.close(compact=False)


@pytest.mark.parametrize("setting", ["budget_tokens", "round_budget_tokens", "round_budget_usd", "budget_usd"])
def test_each_budget_stops_cleanly_and_names_its_setting(ledger, setting):
    wanted = [request(number=n) for n in range(10)]
    worst = wanted[0].worst_tokens
    limit = worst * 2.5 if "tokens" in setting else worst * 2.5 / 1e6
    subject = make(
        ledger, price=PriceConfig(input=1, output=1), **{setting: int(limit) if "tokens" in setting else limit}
    )
    subject.submit(wanted)
    assignments = subject.assign("a", MODEL, 10, 0.0)
    assert len(assignments) == 1  # a server that was never heard of may ignore the cap: more is left free
    assert subject.stop is None  # waits for what is in flight, which may give some back
    for now in (1.0, 2.0):
        subject.settle([answer(assignment.key, usage=Usage(worst - 1, 0, 1)) for assignment in assignments], now)
        assignments = subject.assign("a", MODEL, 10, now)
    assert f"teacher.{setting}" in str(subject.stop)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, None),
        ({"budget_tokens": 500}, 200),  # 300 went into earlier rounds
        ({"round_budget_tokens": 150}, 150),
        ({"budget_tokens": 500, "round_budget_tokens": 450}, 200),
        ({"budget_usd": 5.0}, 200),
        ({"round_budget_usd": 1.5}, 150),
    ],
)
def test_a_budget_lasts_for_a_round_that_takes_no_more_than_is_left_for_it(settings, most):
    """What the round has taken already is part of what it takes."""
    budget = Budget(config(**settings), run_spent=Spend(4.0, 400), round_spent=Spend(1.0, 100))
    assert budget.lasts(Spend((most or 10**6) / 100, most or 10**6))
    assert most is None or not budget.lasts(Spend((most + 1) / 100, most + 1))


def test_reservations_given_back_are_spent_again(ledger):
    wanted = [request(number=n) for n in range(30)]
    subject = make(ledger, budget_tokens=wanted[0].worst_tokens * 2)
    subject.submit(wanted)
    now = 0.0
    while subject.open_count and subject.stop is None:
        subject.settle([answer(assignment.key) for assignment in subject.assign("a", MODEL, 10, now)], now)
        now += 1.0
    assert subject.budget.run_spent == Spend(0.0, 30 * 15)
    assert subject.stop is None
