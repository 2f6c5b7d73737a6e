"""Outages by a clock of our own: nothing is lost to a server that is gone for 100 s, for ten minutes or for ever."""

import heapq
import itertools

import pytest

from tailor_ray.config.teacher import PriceConfig
from tailor_ray.errors import Stopped
from tailor_ray.teacher.budget import Budget
from tailor_ray.teacher.dispatch import Dispatcher
from tailor_ray.teacher.errors import Outage
from tailor_ray.teacher.limits import BREAK_AFTER
from tailor_ray.teacher.outcomes import Outcome, Usage
from tests.teacher.helpers import config, request

MODEL = "mock-teacher"


class Played:
    """A driver whose calls are answered by `serve(number, key, now)` -> (code, seconds, more), on a virtual clock."""

    def __init__(self, ledger, count, serve, **settings):
        self.config = config(**{"requests_per_minute": 60_000.0, **settings})
        self.subject = Dispatcher(self.config, ledger, Budget(self.config, ledger.spent(), ledger.spent(1)), 0.0)
        self.ledger, self.serve, self.calls = ledger, serve, []
        self.settled = self.subject.submit([request(self.config, number=n) for n in range(count)])

    def run(self, until=20_000.0):
        now, flying, order = 0.0, [], itertools.count()
        while self.subject.open_count and not (self.subject.stop and not flying) and now < until:
            while flying and flying[0][0] <= now:
                _, _, outcome = heapq.heappop(flying)
                self.settled += self.subject.settle([outcome], now)
            room = 64 - len(flying)
            for assignment in self.subject.assign("a", MODEL, room, now) if room > 0 else []:
                code, seconds, more = self.serve(len(self.calls), assignment.key, now)
                self.calls.append((now, assignment.key, code))
                usage = Usage(30, 0, 5) if code == "answered" else None
                outcome = Outcome(
                    code, f"it said {code}", "text" if usage else None, "stop", usage, key=assignment.key, **more
                )
                heapq.heappush(flying, (now + assignment.delay + seconds, next(order), outcome))
            now = min([now + 0.5, *(at for at, _, _ in flying[:1])])
        self.ledger.commit()
        return self

    @property
    def answered(self):
        return {one.request.key for one in self.settled if one.row.outcome == "answered" and not one.undecided}


def gone(begins, lasts, code="refused_connection", seconds=0.01):
    return lambda _, __, now: (code, seconds, {}) if begins <= now < begins + lasts else ("answered", 0.2, {})


@pytest.mark.parametrize("lasts", [100.0, 600.0])
@pytest.mark.parametrize(("code", "seconds"), [("refused_connection", 0.01), ("timeout", 30.0), ("http_5xx", 0.1)])
def test_no_request_is_lost_to_a_server_that_is_gone_for_a_while(ledger, lasts, code, seconds):
    played = Played(ledger, 2000, gone(3.0, lasts, code, seconds)).run()
    assert played.subject.stop is None
    assert len(played.answered) == 2000
    assert not any(one.undecided for one in played.settled)
    during = [at for at, _, failed in played.calls if failed == code]
    assert len(during) <= 64 + 16 + lasts / 25.0 + 12  # what was on its way, and then one probe after the other
    if seconds < 1:
        late = [at for at in during if at > 10.0]
        assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(late))


@pytest.mark.parametrize("code", ["refused_connection", "timeout", "malformed_json", "http_5xx", "http_429"])
def test_a_server_that_is_gone_for_ever_stops_the_run_with_its_words_and_the_next_start_loses_nothing(ledger, code):
    played = Played(ledger, 500, gone(0.7, 1e9, code), price=PriceConfig(input=1.0, output=1.0)).run()
    assert isinstance(played.subject.stop, Outage)
    assert isinstance(played.subject.stop, Stopped)
    assert f"it said {code}" in str(played.subject.stop)
    assert 890 <= played.calls[-1][0] <= 1000
    assert all(one.row.outcome == "answered" for one in played.settled)  # no other end was handed to an ask
    assert len(played.calls) < 500 + 64 + 900
    again = Played(ledger, 500, gone(0.0, 0.0)).run()
    assert len(again.answered) == 500


def test_a_few_requests_wait_out_an_outage_as_many_do(ledger):
    played = Played(ledger, 3, gone(0.0, 300.0)).run()
    assert len(played.answered) == 3
    assert played.subject.stop is None


def test_failures_here_and_there_break_nothing_for_long(ledger):
    played = Played(ledger, 1000, lambda n, *_: ("http_5xx" if n % 3 == 0 else "answered", 0.2, {})).run(300.0)
    assert len(played.answered) == 1000


def test_calls_of_an_outage_are_given_back(ledger):
    """Attempts and seconds of an outage are no request's own, however few both may be."""
    played = Played(ledger, 200, gone(1.0, 200.0), max_attempts=2, retry_for_s=20.0).run()
    assert len(played.answered) == 200 - sum(one.undecided for one in played.settled)
    assert sum(one.undecided for one in played.settled) <= BREAK_AFTER


@pytest.mark.parametrize(("wait", "stops"), [(600.0, False), (4 * 3600.0, True)])
def test_a_long_retry_after_is_waited_for_within_a_bound_and_told_with_the_time_of_day(ledger, caplog, wait, stops):
    def serve(number, _, now):
        return ("http_429", 0.1, {"retry_after": wait}) if number >= 40 and now < wait else ("answered", 0.1, {})

    played = Played(ledger, 100, serve).run()
    assert "asks to come back at 2" in caplog.text
    if stops:
        assert "(in 4.0 h)" in str(played.subject.stop)
        assert "teacher.outage_s" in str(played.subject.stop)
    else:
        assert len(played.answered) == 100


def test_a_storm_of_minutes_is_not_taken_for_the_window_of_a_limit(ledger):
    """The rate that is found again is that of before, not a storm's length longer."""
    played = Played(ledger, 6000, gone(5.0, 500.0, "http_429"), requests_per_minute=None).run()
    assert len(played.answered) == 6000
    after = [at for at, _, code in played.calls if code == "answered" and at > 505.0]
    assert after[-1] - after[0] < 400.0


@pytest.mark.parametrize(
    "code", ["insufficient_quota", "http_402", "http_401", "http_403", "http_400", "http_other", "no_content"]
)
def test_quota_key_or_good_will_that_end_in_the_middle_lose_nothing(ledger, code):
    played = Played(ledger, 300, lambda n, *_: ("answered" if n < 100 else code, 0.2, {})).run()
    assert isinstance(played.subject.stop, Stopped)
    assert all(one.row.outcome == "answered" for one in played.settled)
    again = Played(ledger, 300, gone(0.0, 0.0)).run()
    assert len(again.answered) == 300


@pytest.mark.parametrize("first", [True, False])
def test_one_request_that_is_refused_by_403_ends_nothing(ledger, first):
    wanted = request(config(), number=0 if first else 50).key
    played = Played(ledger, 100, lambda _, key, __: ("http_403" if key == wanted else "answered", 0.2, {})).run()
    assert played.subject.stop is None
    assert len(played.answered) == 99
    assert {one.row.outcome for one in played.settled if one.request.key == wanted} == {"denied"}


@pytest.mark.parametrize("code", ["http_403", "http_400", "no_content"])
def test_requests_that_are_refused_here_and_there_end_nothing(ledger, code):
    refused = {request(config(), number=number).key for number in range(0, 400, 4)}
    played = Played(ledger, 400, lambda _, key, __: (code if key in refused else "answered", 0.2, {})).run()
    assert played.subject.stop is None
    assert len(played.answered) == 300
    assert len(played.settled) == 400


def test_what_was_refused_to_an_earlier_driver_too_does_not_stop_the_next(ledger):
    """Requests that are refused for themselves are the first that a resumed run asks again."""
    refused = {request(config(), number=number).key for number in range(60, 100)}

    def serve(_, key, __):
        return ("http_400" if key in refused else "answered", 0.2, {})

    stops = [Played(ledger, 100, serve).run().subject.stop for _ in range(6)]
    assert stops[0] is not None
    assert stops[-1] is None


@pytest.mark.parametrize("others", ["http_400", "http_5xx", "content_filter"])
def test_a_request_that_is_refused_by_403_before_any_reply_is_not_waited_for_for_ever(ledger, others):
    wanted = request(config(), number=0).key
    played = Played(
        ledger, 2, lambda _, key, __: ("http_403" if key == wanted else others, 0.2, {}), max_attempts=3
    ).run(2000.0)
    assert played.subject.stop is not None or not played.subject.open_count


def test_a_key_that_opens_nothing_ends_the_run_at_once(ledger):
    played = Played(ledger, 100, lambda *_: ("http_403", 0.2, {})).run()
    assert "teacher.api_key_env" in str(played.subject.stop)
    assert len(played.calls) <= 80


def test_a_gateway_that_now_and_then_refuses_the_key_ends_nothing(ledger):
    played = Played(ledger, 300, lambda n, *_: ("http_401" if n % 20 == 19 else "answered", 0.2, {})).run()
    assert played.subject.stop is None
    assert len(played.answered) == 300


def test_a_process_that_may_open_no_more_files_goes_on_with_fewer_calls(ledger):
    flying = []

    def serve(_, __, now):
        flying[:] = [end for end in flying if end > now]
        if len(flying) >= 20:
            return "no_sockets", 0.0, {}
        flying.append(now + 0.4)
        return "answered", 0.4, {}

    played = Played(ledger, 500, serve).run()
    assert len(played.answered) == 500
    assert sum(code == "no_sockets" for _, _, code in played.calls) < 300
