"""The limits of one endpoint: when the next request may be sent, how fast, and whether at all.

In: the clock, each request's estimated tokens, and how calls ended. Out: a Grant with the time to send at, or None for
"not yet".

With limits given, in no window of WINDOW_S seconds are more requests or tokens granted than a minute allows. Grants are
spread over the minute rather than spent at its start. Whether limits are given or not, a 429 pauses all sending for as
long as the server asks. It lowers the rate, which then grows again.

Without a limit the rate starts low. It doubles each second (slow start) until the first refusal or rising latency. Then
it grows by steps and is cut on the next. Refusals of requests that were on their way when it was cut count once. While
an endpoint refuses everything, one request at a time probes it.

Nothing here reads the clock by which calls are timed, or sleeps: the caller says what time it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tailor_ray.config.teacher import EndpointConfig

START = 16.0  # requests a second, where no limit is given
FAST = 128.0  # above it slow start is no longer exponential: a minute's worth would go in a few seconds
FASTER = 0.15  # of FAST a second: of 6,000 a minute found with a minute's window, 1.6 % are refused; 2.1 % by 0.25
FLOOR = 0.05  # one request in 20 s keeps looking for the end of a storm
BUCKET_S = 0.25
EVIDENCE = 20  # successes before a refusal from which a minute's worth can be told
LONGEST_WINDOW_S = 120.0  # a storm that lasts longer was none of a limit by the minute
LONG_PAUSE_S = 1.0  # a longer refusal means that a minute's worth is used up, not that the rate is a little high
# Half a second over the minute: of two requests granted 60.5 s apart, the later may be 0.5 s faster on its way.
WINDOW_S = 60.5
# Pacing at 99 % of the limit leaves 1 % of a minute, 0.6 s, for the burst and for uneven ways.
PACE = 0.99
# Grants may run ahead of an even pace by so many seconds' worth, so that they can be handed out in batches.
BURST_S = 0.1
# Grants are made at most so far ahead of their time to send; less where each one too many may be refused.
HORIZON_S = 0.25
HORIZON_FINDING_S = 0.1

BREAK_AFTER = 8  # of servers that fail at every third call one in 6,500 series is so long, and ends with a success
PROBE_S, PROBE_MAX_S = 1.0, 30.0


class Meter:
    """Counts of the last minute in buckets of BUCKET_S."""

    def __init__(self) -> None:
        self._buckets: deque[list[float]] = deque()  # [start, count]

    def add(self, now: float) -> None:
        start = math.floor(now / BUCKET_S) * BUCKET_S
        if self._buckets and self._buckets[-1][0] >= start:
            self._buckets[-1][1] += 1
        else:
            self._buckets.append([start, 1])
        while self._buckets[0][0] < now - 60.0:
            self._buckets.popleft()

    def count(self, now: float, seconds: float) -> float:
        """Events of the last `seconds` (at most 60)."""
        total = 0.0
        for start, count in reversed(self._buckets):
            if start <= now - seconds:
                break
            total += count
        return total


class AdaptiveRate:
    """Requests a second that an endpoint is offered, raised and lowered by how its calls end."""

    def __init__(self, ceiling: float, find: bool, now: float, ahead_s: float = 0.0) -> None:
        """`ceiling` are requests a second; `find` starts below it and looks for the rate. Grants are given out
        `ahead_s` seconds before they are sent."""
        self.ceiling = ceiling
        self.rate = min(START, ceiling) if find else ceiling
        self.paused_until = now
        self.probing = False  # one request at a time until the first success
        self._find = find
        self._ahead = ahead_s
        self._on_way_until = -math.inf  # requests sent before were granted at the rate that was then cut
        self._slow_start = find
        self._started = now
        self._grown = now
        self._cut_at = -math.inf
        self._mark = math.inf  # the rate that was last refused
        self._storm: tuple[float, float] | None = None  # its start, and what a minute before had given
        self._strikes = 0  # refusals in a row, on-the-way ones counted once
        self._granted = Meter()
        self._succeeded = Meter()
        self._latency = 0.0  # moving average of successes
        self._base_latency = math.inf  # the lowest that average was, forgotten slowly

    def granted(self, now: float) -> None:
        self._granted.add(now)

    def grow(self, now: float) -> None:
        """Raise the rate by the time passed until `now`, if it is what holds the sender back."""
        seconds, self._grown = now - self._grown, now
        if self.rate >= self.ceiling or self.probing or now < self.paused_until or seconds <= 0:
            return
        if self._granted.count(now, 1.0) < 0.5 * min(self.rate, 1e6) and self.rate > 2:
            return
        if self._slow_start:
            doubled = self.rate * 2.0**seconds if self.rate < FAST else self.rate + FASTER * FAST * seconds
            self.rate = min(doubled, self.ceiling)
            return
        # Quickly back to just below the rate that was refused, slowly past it, and faster once all has long been quiet;
        # later where the limit is not known, for a server that counts by the minute tells late.
        share = 0.02 if self.rate < 0.9 * self._mark else 0.0025
        quiet = now - self._cut_at - (60.0 if self._find else 0.0)
        share *= 2.0 ** min(max(quiet, 0.0) / 10.0, 6.0)
        known = self.ceiling if math.isfinite(self.ceiling) else 0.0
        step = share * max(min(self._mark, 1e6), 0.1 * known, 0.5)
        self.rate = min(self.rate + step * seconds, self.ceiling)

    def succeeded(self, sent: float, now: float) -> None:
        self._succeeded.add(now)
        if self._storm is not None and sent >= self.paused_until - 1e-6:
            self._end_storm(now)
        if self._find:
            seconds = now - sent
            self._latency = seconds if self._latency == 0.0 else 0.95 * self._latency + 0.05 * seconds
            self._base_latency = min(self._base_latency * 1.0005, self._latency)
            if self._latency > 3.0 * self._base_latency + 0.5 and sent > self._cut_at:
                self._cut(now, 0.9)

    def refused(self, sent: float, now: float, retry_after: float | None) -> None:
        """Take note of a 429 to a request that was `sent` then: pause, and cut the rate.

        It is cut once for all requests that were on their way. `retry_after` are the seconds that the server asks to
        wait, None where it does not say.
        """
        if sent < self._on_way_until:
            if retry_after is not None:
                self.pause(now, retry_after)
            return
        self._strikes += 1
        self.pause(now, 0.25 * 2.0 ** min(self._strikes - 1, 5) if retry_after is None else retry_after)
        self.probing = True
        self._on_way_until = now + self._ahead
        if self._storm is None:  # the probes of a storm say nothing more about the rate
            self._storm = (now, self._succeeded.count(now, 60.0))
            self._cut(now, 0.8)

    def pause(self, now: float, seconds: float) -> None:
        """Send nothing for so long, or for as long as was said before."""
        self.paused_until = max(self.paused_until, now + seconds)

    def _cut(self, now: float, share: float) -> None:
        recent = self._succeeded.count(now, 1.0)
        known = self.rate if math.isfinite(self.rate) else max(recent, 1.0)
        self._mark, self._cut_at, self._slow_start = known, now, False
        self.rate = max(min(share * known, recent), 0.5 * known, FLOOR)

    def _end_storm(self, now: float) -> None:
        """After a long refusal the rate is what the minute gave, spread over the time until it gave again; and a
        little later than that, for what was sent slowly at first also frees slowly."""
        assert self._storm is not None
        began, given = self._storm
        lasted = min(now - began, LONGEST_WINDOW_S)
        if lasted >= LONG_PAUSE_S and given >= EVIDENCE:
            before = min(began - self._started, 60.0)
            self.rate = min(max(0.95 * given / (before + lasted), FLOOR), self.ceiling)
            self._mark, self._cut_at = self.rate / 0.95, now
            self.paused_until = now + 0.05 * lasted
        self._storm, self._strikes, self.probing = None, 0, False


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
        """The first time at which `amount` fits.

        An amount above the limit waits for an empty window.
        """
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


class RateLimiter:
    """One endpoint's limits for the whole run, whatever the number of actors."""

    def __init__(self, endpoint: EndpointConfig, now: float) -> None:
        requests, tokens = endpoint.requests_per_minute, endpoint.tokens_per_minute
        ceiling = requests * PACE / 60.0 if requests else math.inf
        find = requests is None and tokens is None
        self._horizon = HORIZON_FINDING_S if find else HORIZON_S
        self.rate = AdaptiveRate(ceiling, find, now, ahead_s=self._horizon)
        self.in_flight = 0
        self._requests = Window(requests, lambda _: 1.0) if requests else None
        self._tokens = Window(tokens, lambda grant: grant.tokens) if tokens else None
        self._pacer = Pacer(now)
        self._token_pacer = Pacer(now)
        self._mean_tokens = 0.0  # moving average of what requests really took: the pace goes by it

    def remember(self, earlier: Iterable[tuple[float, int]], now: float) -> None:
        """Count attempts of an `earlier` round or driver, for their minute is ours.

        Each is (seconds ago, tokens), the oldest first.
        """
        for ago, tokens in earlier:
            grant = Grant(now - ago, float(tokens))
            for window in (self._requests, self._tokens):
                if window is not None:
                    window.add(grant)

    def reserve(self, tokens: int, now: float) -> Grant | None:
        """Permission to send one attempt that takes at most `tokens`, prompt and reply together.

        None when it is not yet time to ask. Each grant must be settled once.
        """
        self.rate.grow(now)
        if self.rate.probing and self.in_flight > 0:
            return None
        at = max(self._pacer.earliest(now), self.rate.paused_until)
        if self._requests:
            at = max(at, self._requests.earliest(now, 1.0))
        if self._tokens:
            at = max(at, self._tokens.earliest(now, float(tokens)), self._token_pacer.earliest(now))
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
        """How many grants may wait at an actor.

        Were they all sent late and at once, the limit would still hold.
        """
        return max(1, int(min(self.rate.rate, 1e6) * self._horizon))

    def settle(self, grant: Grant, now: float, tokens: int | None) -> None:
        """Take note that the attempt of this `grant` ended.

        `tokens` is what it took, None when that is not known.
        """
        self.in_flight -= 1
        if tokens is None:
            return
        self._mean_tokens = tokens if not self._mean_tokens else 0.98 * self._mean_tokens + 0.02 * tokens
        if self._tokens:
            self._tokens.expire(now)
            difference = tokens - grant.tokens
            grant.tokens = float(tokens)
            self._tokens.amend(grant, difference, now)


class Health:
    """Whether an endpoint answers anybody, and how carefully it is asked while it does not.

    After BREAK_AFTER failures without a success it counts as down: one probe at a time, at growing intervals. Time in
    which it is down is nobody's: `clock` stands still meanwhile, and calls that failed then are given back to their
    requests. After it answers again, calls in flight grow from one, twice as many with each success.
    """

    def __init__(self, outage_s: float) -> None:
        self.answered = False  # whether it has answered anybody, ever
        self.denied = 0  # times that it refused our key, address or model since it last answered
        self.words = ""  # what was said last instead of an answer
        self._outage_s = outage_s
        self._failures = 0
        self._since: float | None = None  # of the first failure or refusal since the last success
        self._down = False  # time does not count
        self._window = math.inf  # calls in flight at most, growing again after an outage
        self._most = math.inf  # calls that this machine can hold
        self._probe_at = -math.inf
        self._probes = 0
        self._lost_s = 0.0

    @property
    def is_broken(self) -> bool:
        return self._failures >= BREAK_AFTER

    def allows(self, in_flight: int, now: float) -> bool:
        """Whether one more call may be sent."""
        if self.is_broken:
            return in_flight == 0 and now >= self._probe_at
        return in_flight < min(self._window, self._most)

    def clock(self, now: float) -> float:
        """Seconds in which it was there."""
        return (self._since if self._down and self._since is not None else now) - self._lost_s

    def succeeded(self, now: float, answered: bool = True) -> None:
        """Take note of an end that shows the endpoint to be there.

        `answered` says that it was a reply, which no wrong key gets.
        """
        if self._down and self._since is not None:
            self._lost_s += now - self._since
        self._window = self._window * 2 if self._window < 1e4 else math.inf
        self._failures = self._probes = self.denied = 0
        self._since, self._down, self.answered = None, False, self.answered or answered

    def failed(self, words: str, now: float) -> bool:
        """Take note of a failure, and of the `words` that say it.

        Returns True when it breaks here, so that the calls of the series are given back.
        """
        self.words = words
        self._since = now if self._since is None else self._since
        self._failures += 1
        if not self.is_broken:
            return False
        self._down, self._window = True, 1.0
        self._probe_at = now + min(PROBE_S * 2.0**self._probes, PROBE_MAX_S)
        self._probes = min(self._probes + 1, 10)
        return self._failures == BREAK_AFTER

    def refused(self, words: str, now: float) -> None:
        """Take note of a 429: it is there, and answers nobody; how fast to ask is for the rate to say."""
        self.words = words
        self._since = now if self._since is None else self._since
        self._down = True

    def is_over(self, now: float) -> bool:
        """Whether it has answered nobody for longer than is waited."""
        return self._down and self._since is not None and now - self._since >= self._outage_s

    def narrow(self, in_flight: int) -> bool:
        """Go on with fewer calls: this machine could not hold as many as were `in_flight`.

        Returns False when it does so already.
        """
        most = max(0.75 * in_flight, 1.0)
        lower, self._most = most < self._most, min(self._most, most)
        return lower
