"""The pool's decisions, without its network: who sends which request when, and what follows from its end.

In: requests, rooms of actors, outcomes, deaths. Out: assignments to send, and settled requests with their ledger rows.

- A request is with at most one actor.
- Before an assignment goes out its limiter granted it, the budget reserved its worst case, and its row is pending.
- Every request given in comes out settled once, or the pool stops with an error that says why.
- What ended without a verdict (an outage, a used-up quota, a refused key) never comes out as one. It is sent again, or
  stays for the next driver. It comes out `undecided` where it failed too often while others were answered.

The caller commits the ledger before it acts on what comes out, and tells the time.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import Stopped, TailorError
from tailor_ray.teacher.budget import Budget, Spend, WorstCase, outcome_usd
from tailor_ray.teacher.client import TeacherRequest
from tailor_ray.teacher.errors import access_error, clock_time, denied_error, outage_error, quota_error, refusal_error
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerRow
from tailor_ray.teacher.limits import WINDOW_S, Grant, Health, RateLimiter
from tailor_ray.teacher.outcomes import NO_VERDICT, Category, JournalEntries, Outcome, codes

log = logging.getLogger(__name__)

BACKOFF_S = 0.5  # doubled with each attempt, with jitter, up to
BACKOFF_MAX_S = 30.0
LONG_PAUSE_S = 60.0  # from which a pause is told
DENIALS = 3  # in a row before an endpoint is taken to refuse us, and not one request
REFUSALS = 16  # in a row after replies: where every second request is refused for itself, once in 65,000
PASSING = codes(Category.RETRYABLE)  # what another attempt may not meet
REFUSED = codes(Category.BAD_REQUEST) | {"http_403"}  # a request, and by a 403 perhaps us


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt that an actor is to make, `delay` seconds from when it was given. `attempt` is its row's number."""

    key: str
    model: str
    body: str
    delay: float
    attempt: int
    sent_as: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """A request's end. `row` is what the ledger says of it; an `undecided` one got no verdict in all its attempts."""

    request: TeacherRequest
    row: LedgerRow
    from_ledger: bool
    undecided: bool = False


@dataclass(slots=True)
class _Open:
    """A request that is not settled yet."""

    request: TeacherRequest
    row: LedgerRow
    gave_up_before: bool  # an earlier driver left it after all its attempts
    refused_before: bool  # … or had it refused
    worst: Spend = field(default_factory=Spend)
    attempts: int = 0
    first: float | None = None  # when its first attempt was given out, by the endpoint's clock
    grant: Grant | None = None
    actor: str | None = None


@dataclass(slots=True)
class _Lane:
    """One endpoint: its limits, its price, its health and its queue."""

    endpoint: EndpointConfig
    limiter: RateLimiter
    worst: WorstCase
    health: Health
    ready: list[tuple[tuple[float, int, str], int, str]] = field(default_factory=list)
    delayed: list[tuple[float, int, str]] = field(default_factory=list)
    open: int = 0  # requests that are not settled
    series: list[str] = field(default_factory=list)  # requests that failed since the last success
    empty: int = 0  # replies without text to first tries, since the last reply with one
    refused: dict[str, _Open] = field(default_factory=dict)  # held back until one is answered: is it them, or us?


class Dispatcher:
    """See the module's contract. Not thread-safe: the pool's loop owns it. Times are seconds of one monotonic clock."""

    def __init__(self, config: TeacherConfig, ledger: Ledger, budget: Budget, now: float) -> None:
        """The ledger tells what was asked before, of which the last minute counts for the limits."""
        self._config = config
        self._ledger = ledger
        self.budget = budget
        largest = ledger.largest_outputs()
        self._lanes = {
            endpoint.model: _Lane(
                endpoint,
                RateLimiter(endpoint, now),
                WorstCase(endpoint, seen_output=largest.get(endpoint.model)),
                Health(config.outage_s),
            )
            for endpoint in config.teachers
        }
        for model, earlier in ledger.recent(WINDOW_S).items():
            if model in self._lanes:
                self._lanes[model].limiter.remember(earlier, now)
        self._open: dict[str, _Open] = {}
        self._held: defaultdict[str, set[str]] = defaultdict(set)  # actor -> keys
        self._order = itertools.count()
        self._jitter = random.Random(0)  # spreads retries; decides nothing that is kept
        self.stop: TailorError | None = None

    def submit(self, requests: Sequence[TeacherRequest]) -> list[Settled]:
        """Queue those of the `requests` that the ledger does not answer.

        Returns what it answers. A request that is open already is left out.
        """
        rows = self._ledger.find(requests)
        settled = []
        for request in requests:
            row = rows.get(request.key)
            if row is not None and row.answers(request.max_tokens):
                settled.append(Settled(request, row, from_ledger=True))
            elif request.key not in self._open:
                lane = self._lanes[request.model]
                gave_up = row is not None and row.attempts >= self._config.max_attempts and row.outcome in PASSING
                refused = row is not None and row.outcome in REFUSED
                row = replace(row or LedgerRow.of(request), key=request.key, round=request.round, request=request.body)
                self._open[request.key] = _Open(request, row, gave_up, refused)
                lane.open += 1
                heapq.heappush(lane.ready, (request.priority, next(self._order), request.key))
        return settled

    def assign(self, actor: str, model: str, room: int, now: float) -> list[Assignment]:
        """At most `room` attempts at the `model`'s requests for this actor to make, the most valuable first.

        Their rows are staged as pending, and their worst case is reserved. Sets `stop` when the budget allows none any
        more.
        """
        lane = self._lanes[model]
        while lane.delayed and lane.delayed[0][0] <= now:
            _, order, key = heapq.heappop(lane.delayed)
            heapq.heappush(lane.ready, (self._open[key].request.priority, order, key))
        assignments: list[Assignment] = []
        while lane.ready and len(assignments) < room and self.stop is None:
            item = self._open[lane.ready[0][2]]
            item.worst = lane.worst.of(item.request.prompt_tokens, item.request.max_tokens)
            if not lane.health.allows(lane.limiter.in_flight, now):
                break
            alone = self.assigned_count == 0
            cap = self.budget.binding(item.worst, 1.0 if alone else lane.worst.slack)
            if cap is not None and alone:  # nothing is in flight that may cost less
                self.stop = Stopped(self.budget.exhausted_message(cap, item.worst))
            if cap is not None:
                break
            grant = lane.limiter.reserve(item.worst.tokens, now)
            if grant is None:
                break
            heapq.heappop(lane.ready)
            assignments.append(self._give(item, lane, grant, actor, now))
        self._ledger.stage(self._open[assignment.key].row for assignment in assignments)
        return assignments

    def settle(self, outcomes: Iterable[Outcome], now: float) -> list[Settled]:
        """Take in how attempts ended; returns the requests that are settled by it.

        Outcomes of assignments that were given up are left out. Sets `stop` where an outcome ends the run.
        """
        settled: list[Settled] = []
        for outcome in outcomes:
            item = self._open.get(outcome.key)
            if item is None or item.grant is None:
                continue  # an actor given up for dead was only slow: its assignment was already counted as lost
            settled += self._end_attempt(item, outcome, now)
        return settled

    def actor_died(self, actor: str, journaled: JournalEntries, now: float) -> list[Settled]:
        """Give a dead actor's assignments back, save for what it `journaled`.

        What the others may have cost is counted. Returns the requests that are settled by it.
        """
        outcomes = []
        for key in self._held[actor]:
            outcome, _ = journaled.get((key, self._open[key].row.attempts), (None, 0.0))
            outcomes.append(outcome or Outcome("actor_died", "the actor that held the request died", key=key))
        return self.settle(outcomes, now)

    def room(self, actor: str, model: str, share: int) -> int:
        """How many more attempts to give an actor.

        It is to hold the `share` that it makes at once, and a few to go on with.
        """
        held = sum(1 for key in self._held[actor] if self._open[key].request.model == model)
        ahead = self._lanes[model].limiter.ahead()
        return share + min(share // 4 + 4, ahead) - held

    @property
    def open_count(self) -> int:
        return len(self._open)

    def holds(self, actor: str) -> bool:
        return bool(self._held[actor])

    @property
    def assigned_count(self) -> int:
        return sum(len(keys) for keys in self._held.values())

    def _give(self, item: _Open, lane: _Lane, grant: Grant, actor: str, now: float) -> Assignment:
        self.budget.reserve(item.worst)
        item.grant, item.actor = grant, actor
        item.first = lane.health.clock(now) if item.first is None else item.first
        item.attempts += 1
        item.row = item.row.sending(item.worst)
        self._held[actor].add(item.request.key)
        request = item.request
        delay = max(grant.at - now, 0.0)
        return Assignment(request.key, request.model, request.body, delay, item.row.attempts, request.sent_as)

    def _end_attempt(self, item: _Open, outcome: Outcome, now: float) -> list[Settled]:
        """Settle money, limits and row; returns the request, if it is settled, and others that are by its end."""
        lane = self._lanes[item.request.model]
        assert item.grant is not None
        usage = outcome.usage
        lane.limiter.settle(item.grant, now, usage.input + usage.output if usage else None)
        rate = lane.limiter.rate
        if outcome.code == "http_429":
            rate.refused(item.grant.at, now, outcome.retry_after)
        elif outcome.rule.category not in NO_VERDICT:
            rate.succeeded(item.grant.at, now)
        elif outcome.retry_after:
            rate.pause(now, outcome.retry_after)  # a 503 that says when to come back
        self._pay(item, lane, outcome)
        if item.actor is not None:
            self._held[item.actor].discard(item.request.key)
        item.grant = item.actor = None
        self._ledger.stage([item.row])
        settled = self._judge(item, lane, outcome, now)
        if lane.refused and len(lane.refused) == lane.open and self.stop is None:
            if lane.health.answered:  # there is nobody left to wait for
                settled += self._release(lane)
            else:
                self.stop = access_error(lane.endpoint, outcome.detail)
        return settled

    def _judge(self, item: _Open, lane: _Lane, outcome: Outcome, now: float) -> list[Settled]:
        """What follows for the request, and for those whose refusal waited for an answer to another."""
        if outcome.rule.category in NO_VERDICT and outcome.code != "http_403":
            return self._without_verdict(item, lane, outcome, now)
        lane.series.clear()
        lane.health.succeeded(now, answered=outcome.code not in REFUSED)
        answered = lane.health.answered
        if self.stop is not None and outcome.code in REFUSED:
            return []  # it stays open: the next driver asks again
        if item.attempts < (outcome.rule.tries or 1):
            lane.empty += 1
            if answered and lane.empty >= REFUSALS:
                self.stop = refusal_error(lane.endpoint, outcome.code, outcome.detail, answered)
            self._delay(item, lane, outcome, now)
            return []
        if outcome.code not in REFUSED:
            lane.empty = 0
            return [*self._release(lane), self._close(item)]
        if outcome.rule.tries or not (answered or outcome.code == "http_403"):
            return [self._close(item)]
        lane.refused[item.request.key] = item
        news = sum(not one.refused_before for one in lane.refused.values())
        if news >= (REFUSALS if answered else DENIALS):
            self.stop = refusal_error(lane.endpoint, outcome.code, outcome.detail, answered)
        return []

    def _without_verdict(self, item: _Open, lane: _Lane, outcome: Outcome, now: float) -> list[Settled]:
        """Queue the request again, unless it failed too often; stop where nobody is answered any more."""
        self._note_health(item, lane, outcome, now)
        if self.stop is not None:
            return []  # it stays open: the next driver asks again
        spent = lane.health.clock(now) - (item.first or 0.0)
        if item.attempts < self._config.max_attempts and spent < self._config.retry_for_s:
            self._delay(item, lane, outcome, now)
            return []
        # What two drivers could not get, while others were answered, is the request's own fault.
        return [self._close(item, undecided=not (item.gave_up_before and lane.health.answered))]

    def _note_health(self, item: _Open, lane: _Lane, outcome: Outcome, now: float) -> None:
        """What an attempt without a verdict says of the endpoint; calls that it fails at are not the request's."""
        health, code, words = lane.health, outcome.code, f"{outcome.code}: {outcome.detail}"
        if outcome.rule.category is Category.QUOTA:
            self.stop = self.stop or quota_error(lane.endpoint, outcome.detail)
        elif outcome.rule.category is Category.ACCESS:
            health.denied += 1
            if not health.answered or health.denied >= DENIALS:
                error = denied_error if health.answered else access_error
                self.stop = self.stop or error(lane.endpoint, outcome.detail)
            item.attempts -= 1
            health.failed(words, now)
        elif code == "http_429":
            item.attempts -= 1
            health.refused(words, now)
        elif code == "no_sockets":
            item.attempts -= 1
            if health.narrow(lane.limiter.in_flight + 1):
                log.warning("%s: fewer calls at once; raise `ulimit -n` or lower teacher.max_in_flight", outcome.detail)
        elif code not in ("actor_died", "expired"):
            lane.series.append(item.request.key)
            if health.failed(words, now):
                for key in lane.series:
                    if key in self._open:
                        self._open[key].attempts -= 1
                log.warning("%s at %s answers nobody (%s)", lane.endpoint.model, lane.endpoint.base_url, words)
            elif health.is_broken:
                item.attempts -= 1
        wait = outcome.retry_after or 0.0
        if wait > LONG_PAUSE_S:
            log.warning("%s asks to come back at %s", lane.endpoint.model, clock_time(wait))
        if wait > self._config.outage_s or health.is_over(now):
            self.stop = self.stop or outage_error(lane.endpoint, health.words, self._config.outage_s, wait)

    def _release(self, lane: _Lane) -> list[Settled]:
        """Those held back were refused for themselves: somebody else was answered."""
        settled = []
        for item in lane.refused.values():
            if item.row.outcome == "http_403":
                item.row = replace(item.row, outcome="denied")
                self._ledger.stage([item.row])
            settled.append(self._close(item))
        lane.refused.clear()
        return settled

    def _close(self, item: _Open, undecided: bool = False) -> Settled:
        del self._open[item.request.key]
        self._lanes[item.request.model].open -= 1
        return Settled(item.request, item.row, from_ledger=False, undecided=undecided)

    def _pay(self, item: _Open, lane: _Lane, outcome: Outcome) -> None:
        """Move the reservation to what the attempt cost, or, where nobody knows, to its worst case."""
        request = item.request
        unknown = lane.worst.learn(request.prompt_tokens, request.max_tokens, outcome, item.worst)
        item.row = replace(item.row, pending_usd=unknown.usd, pending_tokens=unknown.tokens)
        row = item.row.after(outcome, outcome_usd(lane.endpoint, outcome))
        self.budget.settle(item.worst, row.spend - item.row.spend)
        item.row = row

    def _delay(self, item: _Open, lane: _Lane, outcome: Outcome, now: float) -> None:
        wait = min(BACKOFF_S * 2.0 ** max(item.attempts - 1, 0), BACKOFF_MAX_S) * self._jitter.uniform(0.5, 1.0)
        wait = max(wait, outcome.retry_after or 0.0)
        heapq.heappush(lane.delayed, (now + wait, next(self._order), item.request.key))
