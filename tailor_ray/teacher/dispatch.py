"""The pool's decisions, without its network: which request is sent next, by whom, when, and what follows from its end.

In: requests, rooms of actors, outcomes, deaths. Out: leases to send, and settled requests with their ledger rows.
What always holds: a request is with at most one actor; before a lease goes out its governor granted it, the budget
reserved its worst case, and its row is staged as pending; every request given in comes out settled once, or the pool
stops with an error that says why. The caller commits the ledger before it acts on what comes out, and tells the time.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tailor_ray.config.teacher import EndpointConfig, PriceConfig, TeacherConfig
from tailor_ray.errors import Stopped, TailorError, TeacherAccessError
from tailor_ray.teacher.budget import Budget, Spend
from tailor_ray.teacher.governor import WINDOW_S, Governor, Grant
from tailor_ray.teacher.journal import Heard
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_row import LedgerRow
from tailor_ray.teacher.outcomes import Fate, Outcome
from tailor_ray.teacher.pricing import outcome_usd, price_of, worst_usd
from tailor_ray.teacher.request import TeacherRequest

BACKOFF_S = 0.5  # doubled with each attempt, with jitter, up to
BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Lease:
    """One attempt that an actor is to make, `delay` seconds from when it was given. `attempt` is its row's number."""

    key: str
    model: str
    body: str
    delay: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A request's end. `row` is what the ledger says of it."""

    request: TeacherRequest
    row: LedgerRow
    from_ledger: bool


@dataclass(slots=True)
class _Open:
    """A request that is not settled yet."""

    request: TeacherRequest
    row: LedgerRow
    worst: Spend
    attempts: int = 0
    first: float = 0.0  # when its first attempt was given out
    grant: Grant | None = None
    actor: str | None = None


@dataclass(slots=True)
class _Lane:
    """One endpoint: its limits, its price and its queue."""

    endpoint: EndpointConfig
    governor: Governor
    price: PriceConfig | None
    ready: list[tuple[tuple[float, int, str], int, str]] = field(default_factory=list)
    delayed: list[tuple[float, int, str]] = field(default_factory=list)


class Dispatcher:
    """See the module's contract. Not thread-safe: the pool's loop owns it."""

    def __init__(self, config: TeacherConfig, ledger: Ledger, budget: Budget, now: float) -> None:
        self._config = config
        self._ledger = ledger
        self.budget = budget
        self._lanes = {
            endpoint.model: _Lane(endpoint, Governor(endpoint, now), price_of(endpoint))
            for endpoint in config.endpoints
        }
        for model, earlier in ledger.recent(WINDOW_S).items():
            if model in self._lanes:
                self._lanes[model].governor.remember(earlier, now)
        self._open: dict[str, _Open] = {}
        self._held: defaultdict[str, set[str]] = defaultdict(set)  # actor -> keys
        self._order = itertools.count()
        self._jitter = random.Random(0)  # spreads retries; decides nothing that is kept
        self.stop: TailorError | None = None

    def submit(self, requests: Sequence[TeacherRequest]) -> list[Settled]:
        """Queue what the ledger does not answer; returns what it does. A request that is open already is left out."""
        rows = self._ledger.get([request.key for request in requests])
        settled = []
        for request in requests:
            row = rows.get(request.key)
            if row is not None and row.is_final:
                settled.append(Settled(request, row, from_ledger=True))
            elif request.key not in self._open:
                self._enqueue(request, row)
        return settled

    def lease(self, actor: str, model: str, room: int, now: float) -> list[Lease]:
        """At most `room` attempts for this actor to make; may set `stop` when the budget allows none any more."""
        lane = self._lanes[model]
        while lane.delayed and lane.delayed[0][0] <= now:
            _, order, key = heapq.heappop(lane.delayed)
            heapq.heappush(lane.ready, (self._open[key].request.priority, order, key))
        leases: list[Lease] = []
        while lane.ready and len(leases) < room and self.stop is None:
            item = self._open[lane.ready[0][2]]
            if not self._affordable(item):
                break
            grant = lane.governor.reserve(item.request.worst_tokens, now)
            if grant is None:
                break
            heapq.heappop(lane.ready)
            leases.append(self._give(item, grant, actor, now))
        self._ledger.stage(self._open[lease.key].row for lease in leases)
        return leases

    def settle(self, outcomes: Iterable[Outcome], now: float) -> list[Settled]:
        """Take in how attempts ended; returns the requests that are settled by it."""
        settled = []
        for outcome in outcomes:
            item = self._open.get(outcome.key)
            if item is None or item.grant is None:
                continue  # an actor given up for dead was only slow: its lease was already counted as lost
            done = self._end_attempt(item, outcome, now)
            if done:
                settled.append(Settled(item.request, item.row, from_ledger=False))
        return settled

    def actor_died(self, actor: str, heard: Heard, now: float) -> list[Settled]:
        """Give a dead actor's leases back, save for what it had `heard`; what the others may have cost is counted."""
        outcomes = []
        for key in self._held[actor]:
            outcome, _ = heard.get((key, self._open[key].row.attempts), (None, 0.0))
            outcomes.append(outcome or Outcome(key, "actor_died", detail="the actor that held the request died"))
        return self.settle(outcomes, now)

    def room(self, actor: str, model: str, share: int) -> int:
        """How many more attempts to give an actor that makes `share` at once: those and a few to go on with."""
        held = sum(1 for key in self._held[actor] if self._open[key].request.model == model)
        ahead = self._lanes[model].governor.ahead()
        return share + min(share // 4 + 4, ahead) - held

    @property
    def open_count(self) -> int:
        return len(self._open)

    def holds(self, actor: str) -> bool:
        return bool(self._held[actor])

    @property
    def leased_count(self) -> int:
        return sum(len(keys) for keys in self._held.values())

    def _enqueue(self, request: TeacherRequest, row: LedgerRow | None) -> None:
        lane = self._lanes[request.model]
        worst = Spend(worst_usd(lane.price, request.prompt_tokens, request.max_tokens), request.worst_tokens)
        if row is None:
            row = LedgerRow(
                key=request.key, outcome="pending", model=request.model, question_id=request.question_id,
                round=request.round, request=request.body,
            )  # fmt: skip
        self._open[request.key] = _Open(request, replace(row, round=request.round), worst)
        heapq.heappush(lane.ready, (request.priority, next(self._order), request.key))

    def _affordable(self, item: _Open) -> bool:
        """Whether the budget allows one more attempt; if it never will, since nothing is in flight, stop."""
        cap = self.budget.binding(item.worst)
        if cap is not None and self.leased_count == 0:
            self.stop = Stopped(self.budget.exhausted_message(cap, item.worst))
        return cap is None

    def _give(self, item: _Open, grant: Grant, actor: str, now: float) -> Lease:
        self.budget.reserve(item.worst)
        item.grant, item.actor = grant, actor
        item.first = item.first or now
        item.attempts += 1
        item.row = replace(
            item.row,
            outcome="pending",
            pending_tokens=item.worst.tokens,
            pending_usd=item.worst.usd,
            attempts=item.row.attempts + 1,
        )
        self._held[actor].add(item.request.key)
        request = item.request
        return Lease(request.key, request.model, request.body, max(grant.at - now, 0.0), item.row.attempts)

    def _end_attempt(self, item: _Open, outcome: Outcome, now: float) -> bool:
        """Settle money, limits and row; True when the request is settled, False when it is queued again."""
        lane = self._lanes[item.request.model]
        assert item.grant is not None
        usage = outcome.usage
        lane.governor.settle(item.grant, now, usage.input + usage.output if usage else None)
        self._tell_rate(lane, item.grant, outcome, now)
        self._pay(item, lane, outcome)
        if item.actor is not None:
            self._held[item.actor].discard(item.request.key)
        item.grant = item.actor = None
        again = outcome.rule.fate is Fate.RETRY and self._may_retry(item, now)
        if outcome.rule.fate in (Fate.ACCESS, Fate.QUOTA):
            self._end_run(lane.endpoint, outcome)
        self._ledger.stage([item.row])
        if again:
            wait = self._backoff(item.attempts, outcome.retry_after)
            heapq.heappush(lane.delayed, (now + wait, next(self._order), item.request.key))
            return False
        del self._open[item.request.key]
        return True

    def _pay(self, item: _Open, lane: _Lane, outcome: Outcome) -> None:
        """Move the reservation to what the attempt cost, or, where nobody knows, to its worst case."""
        row = item.row.after(outcome, outcome_usd(lane.endpoint, outcome))
        self.budget.settle(item.worst, row.spend - item.row.spend)
        item.row = row

    def _tell_rate(self, lane: _Lane, grant: Grant, outcome: Outcome, now: float) -> None:
        rate = lane.governor.rate
        if outcome.code == "http_429":
            rate.refused(grant.at, now, outcome.retry_after)
        elif outcome.rule.fate in (Fate.ANSWERED, Fate.REQUEST):
            rate.succeeded(grant.at, now)
        elif outcome.retry_after:
            rate.pause(now, outcome.retry_after)  # a 503 that says when to come back

    def _may_retry(self, item: _Open, now: float) -> bool:
        return item.attempts < self._config.max_attempts and now - item.first < self._config.retry_for_s

    def _backoff(self, attempts: int, retry_after: float | None) -> float:
        wait = min(BACKOFF_S * 2.0 ** (attempts - 1), BACKOFF_MAX_S) * self._jitter.uniform(0.5, 1.0)
        return max(wait, retry_after or 0.0)

    def _end_run(self, endpoint: EndpointConfig, outcome: Outcome) -> None:
        error = quota_error if outcome.rule.fate is Fate.QUOTA else access_error
        self.stop = self.stop or error(endpoint, outcome.detail)


def quota_error(endpoint: EndpointConfig, detail: str) -> Stopped:
    """The endpoint answers no more until somebody pays."""
    return Stopped(
        f"the teacher at {endpoint.base_url} says that the quota is used up ({detail}); all replies are kept: add "
        "quota and run the same command"
    )


def access_error(endpoint: EndpointConfig, detail: str) -> TeacherAccessError:
    """The endpoint refuses us for the whole run: what to look at."""
    return TeacherAccessError(
        f"the teacher refuses us: {detail}; check teacher.base_url={endpoint.base_url!r}, the key in the environment "
        f"variable {endpoint.api_key_env} (teacher.api_key_env) and teacher.model={endpoint.model!r}"
    )
