"""The governor of one endpoint: when the next request may be sent.

In: the clock, each request's estimated tokens, and how calls ended. Out: a Grant with the time to send at, or None
for "not yet". Always holds, with limits given: in no window of WINDOW_S seconds are more requests or tokens granted
than a minute allows; grants are spread over the minute rather than spent at its start. Whether limits are given or
not, a 429 pauses all sending for as long as the server asks and lowers the rate, which then grows again. Nothing here
reads a clock or sleeps: the caller says what time it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.teacher.rate import Rate

# Half a second over the minute: of two requests granted 60.5 s apart, the later may be 0.5 s faster on its way.
WINDOW_S = 60.5
# Pacing at 99 % of the limit leaves 1 % of a minute, 0.6 s, for the burst and for uneven ways.
PACE = 0.99
# Grants may run ahead of an even pace by so many seconds' worth, so that they can be handed out in batches.
BURST_S = 0.1
# Grants are made at most so far ahead of their time to send; less where each one too many may be refused.
HORIZON_S = 0.25
HORIZON_FINDING_S = 0.1


@dataclass(slots=True, eq=False)
class Grant:
    """Permission to send one attempt at `at`; `tokens` is amended when the reply says what it took."""

    at: float
    tokens: float


class Window:
    """Sliding log: the sum of what grants weigh stays within the limit in any WINDOW_S seconds."""

    def __init__(self, limit: float, weigh: Callable[[Grant], float]) -> None:
        self.limit = limit
        self._weigh = weigh
        self._sum = 0.0
        self._log: deque[Grant] = deque()

    def earliest(self, now: float, amount: float) -> float:
        """The first time at which `amount` fits; an amount above the limit waits for an empty window."""
        self.expire(now)
        excess = self._sum + min(amount, self.limit) - self.limit
        at = now
        for grant in self._log:
            if excess <= 1e-9:
                break
            excess -= self._weigh(grant)
            at = grant.at + WINDOW_S
        return at

    def add(self, grant: Grant) -> None:
        self._log.append(grant)
        self._sum += self._weigh(grant)

    def amend(self, grant: Grant, difference: float, now: float) -> None:
        """Call after the grant was changed by `difference`, with `expire` called before."""
        if grant.at + WINDOW_S > now:
            self._sum += difference

    def expire(self, now: float) -> None:
        while self._log and self._log[0].at + WINDOW_S <= now:
            self._sum -= self._weigh(self._log.popleft())
        if not self._log:
            self._sum = 0.0  # no rounding error survives an empty window


class Pacer:
    """Spreads amounts evenly: `next` is the time at which an even pace would send the next one."""

    def __init__(self, now: float) -> None:
        self.next = now

    def earliest(self, now: float) -> float:
        return max(now, self.next - BURST_S)

    def take(self, at: float, seconds: float) -> None:
        self.next = max(self.next, at) + seconds


class Governor:
    """One endpoint's limits for the whole run, whatever the number of actors."""

    def __init__(self, endpoint: EndpointConfig, now: float) -> None:
        requests, tokens = endpoint.requests_per_minute, endpoint.tokens_per_minute
        ceiling = requests * PACE / 60.0 if requests else math.inf
        find = requests is None and tokens is None
        self._horizon = HORIZON_FINDING_S if find else HORIZON_S
        self.rate = Rate(ceiling, find, now, ahead_s=self._horizon)
        self.in_flight = 0
        self._requests = Window(requests, lambda _: 1.0) if requests else None
        self._tokens = Window(tokens, lambda grant: grant.tokens) if tokens else None
        self._pacer = Pacer(now)
        self._token_pacer = Pacer(now)
        self._mean_tokens = 0.0  # moving average of what requests really took: the pace goes by it

    def remember(self, earlier: Iterable[tuple[float, int]], now: float) -> None:
        """Count attempts of an earlier round or driver, oldest first: (seconds ago, tokens). Their minute is ours."""
        for ago, tokens in earlier:
            grant = Grant(now - ago, float(tokens))
            for window in (self._requests, self._tokens):
                if window is not None:
                    window.add(grant)

    def reserve(self, tokens: int, now: float) -> Grant | None:
        """Permission to send one attempt that takes at most `tokens`; None when it is not yet time to ask."""
        self.rate.grow(now)
        if self.rate.probing and self.in_flight > 0:
            return None
        at = self._earliest(tokens, now)
        if at > now + self._horizon:
            return None
        grant = Grant(at, float(tokens))
        self._pacer.take(at, 1.0 / self.rate.rate)
        if self._requests:
            self._requests.add(grant)
        if self._tokens:
            self._tokens.add(grant)
            pace = self._tokens.limit * PACE / 60.0
            self._token_pacer.take(at, min(self._mean_tokens or tokens, tokens, self._tokens.limit) / pace)
        self.rate.granted(now)
        self.in_flight += 1
        return grant

    def ahead(self) -> int:
        """How many grants may wait at an actor: were they all sent late and at once, the limit would still hold."""
        return max(1, int(min(self.rate.rate, 1e6) * self._horizon))

    def settle(self, grant: Grant, now: float, tokens: int | None) -> None:
        """An attempt ended; `tokens` is what it took, None when that is not known."""
        self.in_flight -= 1
        if tokens is None:
            return
        self._mean_tokens = tokens if not self._mean_tokens else 0.98 * self._mean_tokens + 0.02 * tokens
        if self._tokens:
            self._tokens.expire(now)
            difference = tokens - grant.tokens
            grant.tokens = float(tokens)
            self._tokens.amend(grant, difference, now)

    def _earliest(self, tokens: int, now: float) -> float:
        at = max(self._pacer.earliest(now), self.rate.paused_until)
        if self._requests:
            at = max(at, self._requests.earliest(now, 1.0))
        if self._tokens:
            at = max(at, self._tokens.earliest(now, float(tokens)), self._token_pacer.earliest(now))
        return at
