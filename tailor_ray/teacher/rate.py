"""`Rate`: requests a second that an endpoint is offered, raised and lowered by how its calls end.

In: grants, successes and refusals (429) with their times. Out: `rate`, and `paused_until`. With a ceiling given it
starts there; without one it starts low and doubles each second (slow start) until the first refusal or rising
latency, then grows by steps and is cut on the next. Refusals of requests that were on their way when the rate was cut
count once. While an endpoint refuses everything, one request at a time probes it.
"""

from __future__ import annotations

import math
from collections import deque

START = 16.0  # requests a second, where no limit is given
FAST = 128.0  # above it slow start is no longer exponential: a minute's worth would go in a few seconds
FASTER = 0.15  # of FAST a second: of 6,000 a minute found with a minute's window, 1.6 % are refused; 2.1 % by 0.25
FLOOR = 0.05  # one request in 20 s keeps looking for the end of a storm
BUCKET_S = 0.25
EVIDENCE = 20  # successes before a refusal from which a minute's worth can be told
LONGEST_WINDOW_S = 120.0  # a storm that lasts longer was none of a limit by the minute
LONG_PAUSE_S = 1.0  # a longer refusal means that a minute's worth is used up, not that the rate is a little high


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


class Rate:
    """See the module's contract. `find` looks for the rate; else `ceiling` (may be infinite) is taken as known."""

    def __init__(self, ceiling: float, find: bool, now: float, ahead_s: float = 0.0) -> None:
        """`ahead_s`: grants are given out so long before they are sent."""
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
        """Raise the rate by the time passed, if it is what holds the sender back."""
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
            self._watch_latency(sent, now)

    def refused(self, sent: float, now: float, retry_after: float | None) -> None:
        """A 429: pause, and cut the rate once for all requests that were on their way."""
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

    def _watch_latency(self, sent: float, now: float) -> None:
        seconds = now - sent
        self._latency = seconds if self._latency == 0.0 else 0.95 * self._latency + 0.05 * seconds
        self._base_latency = min(self._base_latency * 1.0005, self._latency)
        rising = self._latency > 3.0 * self._base_latency + 0.5
        if rising and sent > self._cut_at:
            self._cut(now, 0.9)
