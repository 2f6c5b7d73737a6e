"""Limits over any sliding minute, settled estimates, and the rate that falls and rises, all by a clock of our own."""

import random
from bisect import bisect_left
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.teacher.limits import HORIZON_S, START, WINDOW_S, AdaptiveRate, Meter, RateLimiter


def limiter(**limits):
    return RateLimiter(EndpointConfig(**limits), now=0.0)


def most_in_a_minute(events):
    """The greatest sum of amounts in a window of 60 s that begins at an event."""
    times = [at for at, _ in events]
    sums = [0.0]
    for _, amount in events:
        sums.append(sums[-1] + amount)
    return max(sums[bisect_left(times, at + 60.0)] - sums[i] for i, at in enumerate(times))


def drive(subject, seconds, tokens, settle_after=0.2, actual=None, step=0.02):
    """Ask as often as allowed; every call settles `settle_after` seconds after it was sent. Returns (time, taken)."""
    sent, open_calls, now = [], [], 0.0
    while now < seconds:
        while open_calls and open_calls[0][0] <= now:
            _, grant, entry = open_calls.pop(0)
            taken = actual() if actual else grant.tokens
            entry[1] = taken
            subject.settle(grant, now, int(taken))
        worst = tokens() if callable(tokens) else tokens
        while (grant := subject.reserve(worst, now)) is not None:
            entry = [grant.at, float(worst)]
            sent.append(entry)
            open_calls.append((grant.at + settle_after, grant, entry))
            open_calls.sort(key=lambda item: item[0])
            worst = tokens() if callable(tokens) else tokens
        now += step
    return sorted((at, taken) for at, taken in sent)


def test_a_known_request_limit_is_used_and_never_exceeded():
    sent = drive(limiter(requests_per_minute=6000), 150, tokens=100)
    assert most_in_a_minute([(at, 1) for at, _ in sent]) <= 6000
    late = [at for at, _ in sent if at >= 10]
    assert (len(late) - 1) / (late[-1] - late[0]) >= 0.985 * 100  # a second


def test_grants_are_spread_over_the_minute():
    sent = drive(limiter(requests_per_minute=6000), 30, tokens=100)
    in_first_second = sum(at < 1.0 for at, _ in sent)
    assert 95 <= in_first_second <= 112  # 99 a second and a burst of a tenth of a second


@settings(max_examples=25)
@given(limit=st.integers(1, 3000), seed=st.integers(0, 10**6))
def test_no_sliding_minute_exceeds_the_limit_when_the_sender_comes_and_goes(limit, seed):
    draw = random.Random(seed)
    subject = limiter(requests_per_minute=limit)
    sent, now = [], 0.0
    while now < 200:
        for _ in range(draw.randrange(400)):
            grant = subject.reserve(10, now)
            if grant is None:
                break
            sent.append((grant.at, 1))
            subject.settle(grant, now, 10)
        now += draw.choice([0.01, 0.1, 1.0, 20.0])
    assert most_in_a_minute(sorted(sent)) <= limit


def test_token_limit_holds_and_estimates_are_given_back():
    draw = random.Random(1)
    subject = limiter(tokens_per_minute=60_000)
    sent = drive(subject, 150, tokens=lambda: draw.randint(600, 900), actual=lambda: draw.randint(100, 300))
    assert most_in_a_minute(sent) <= 60_000
    late = [(at, taken) for at, taken in sent if 80 <= at < 140]
    assert sum(taken for _, taken in late) >= 0.9 * 60_000  # worst cases alone would use under a third


def test_a_request_larger_than_the_limit_waits_for_an_empty_window():
    subject = limiter(tokens_per_minute=1000)
    first = subject.reserve(5000, 0.0)
    assert first is not None
    assert subject.reserve(5000, 1.0) is None
    assert subject.reserve(5000, WINDOW_S + 1.0) is not None


def test_retry_after_pauses_everything_and_the_rate_recovers():
    subject = limiter(requests_per_minute=6000)
    grant = subject.reserve(1, 0.0)
    subject.rate.refused(grant.at, 0.1, retry_after=5.0)
    subject.settle(grant, 0.1, None)
    assert subject.reserve(1, 3.0) is None
    now, sent = 5.0, []
    while now < 120:
        grant = subject.reserve(1, now)
        if grant is not None:
            sent.append(grant.at)
            subject.settle(grant, grant.at, 1)
            subject.rate.succeeded(grant.at, grant.at + 0.1)
        now += 0.005
    assert min(sent) >= 5.1
    assert sum(100 <= at < 101 for at in sent) >= 90  # of 99: recovered from the storm


class Server:
    """A server's own limiter: so many in any `window` seconds; says when to come back, or does not."""

    def __init__(self, limit, window, says_when):
        self.limit, self.window, self.says_when, self.times = limit, window, says_when, deque()

    def call(self, at):
        while self.times and self.times[0] <= at - self.window:
            self.times.popleft()
        if len(self.times) < self.limit:
            self.times.append(at)
            return True, None
        return False, (self.times[0] + self.window - at if self.says_when else None)


@pytest.mark.parametrize("says_when", [True, False])
@pytest.mark.parametrize(("limit", "window"), [(100, 1.0), (6000, 60.0), (20, 1.0)])
def test_an_unknown_limit_is_found(limit, window, says_when):
    server, subject = Server(limit, window, says_when), limiter()
    events, answers, refused, now = [], [], 0, 0.0
    while now < 180:
        while events and events[0][0] <= now:
            at, sent, grant, (good, wait) = events.pop(0)
            if good:
                subject.rate.succeeded(sent, at)
                answers.append(sent)
            else:
                refused += 1
                subject.rate.refused(sent, at, wait)
            subject.settle(grant, at, 10 if good else None)
        while subject.in_flight < 256 and (grant := subject.reserve(10, now)) is not None:
            events.append((grant.at + 0.2, grant.at, grant, server.call(grant.at)))
        events.sort(key=lambda event: event[0])
        now += 0.02
    a_second = limit / window
    assert len(answers) / 180 >= 0.8 * a_second
    assert refused / (refused + len(answers)) < 0.02


def test_without_a_limit_the_rate_grows_while_nothing_refuses():
    subject = limiter()
    drive(subject, 6, tokens=1)
    assert subject.rate.rate > 8 * START


def test_rising_latency_lowers_a_rate_that_is_sought():
    rate = AdaptiveRate(ceiling=float("inf"), find=True, now=0.0)
    now = 0.0
    for _ in range(200):
        now += 0.01
        rate.granted(now)
        rate.grow(now)
        rate.succeeded(now - 0.2, now)
    high = rate.rate
    for _ in range(200):
        now += 0.01
        rate.granted(now)
        rate.grow(now)
        rate.succeeded(now - 3.0, now)
    assert rate.rate < high * 4  # slow start would have doubled it twice more
    cut = rate.rate
    for _ in range(200):
        now += 0.01
        for _ in range(4):  # so that the rate is what holds the sender back
            rate.granted(now)
        rate.grow(now)
    assert cut < rate.rate < 1.1 * cut  # slow start is over


def test_refusals_that_were_on_their_way_cut_the_rate_once():
    rate = AdaptiveRate(ceiling=100.0, find=False, now=0.0)
    for number in range(20):
        rate.refused(sent=0.5 + number * 0.01, now=1.0 + number * 0.01, retry_after=0.1)
    assert rate.rate >= 50.0


def test_while_all_is_refused_one_request_probes():
    subject = limiter(requests_per_minute=6000)
    now = 0.0
    for _ in range(3):
        while (grant := subject.reserve(1, now)) is None:
            now += 0.1
        subject.rate.refused(grant.at, now + 0.1, None)
        subject.settle(grant, now + 0.1, None)
        now += 0.2
    while (grant := subject.reserve(1, now)) is None:
        now += 0.1
    assert subject.reserve(1, now + HORIZON_S) is None
    subject.rate.succeeded(grant.at, now + 0.3)
    subject.settle(grant, now + 0.3, 1)
    assert subject.reserve(1, now + 30) is not None


def test_meter_counts_the_last_seconds():
    meter = Meter()
    for number in range(100):
        meter.add(number * 0.1)
    assert 9 <= meter.count(9.9, 1.0) <= 13
    assert meter.count(9.9, 60) == 100
    meter.add(100.0)
    assert meter.count(100.0, 60) == 1
