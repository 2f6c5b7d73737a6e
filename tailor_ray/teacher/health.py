"""`Health` of one endpoint: whether it answers anybody, and how carefully it is asked while it does not.

In: how calls ended, and when. Out: whether another may be sent, and whether the outage has lasted too long. After
BREAK_AFTER failures without a success the endpoint counts as down: one probe at a time, at growing intervals. Time in
which it is down is nobody's: `clock` stands still meanwhile, and calls that failed then are given back to their
requests. After it answers again, calls in flight grow from one, twice as many with each success.
"""

from __future__ import annotations

import math
import time

from tailor_ray.errors import Stopped

BREAK_AFTER = 8  # of servers that fail at every third call one in 6,500 series is so long, and ends with a success
PROBE_S, PROBE_MAX_S = 1.0, 30.0
LONG_PAUSE_S = 60.0  # from which a pause is told


class Outage(Stopped):
    """A teacher answers nobody, for longer than is waited."""


class Health:
    """See the module's contract. Nothing here reads the clock by which calls are timed: the caller says what it is."""

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
        """`answered`: by a reply, which no wrong key gets."""
        if self._down and self._since is not None:
            self._lost_s += now - self._since
        self._window = self._window * 2 if self._window < 1e4 else math.inf
        self._failures = self._probes = self.denied = 0
        self._since, self._down, self.answered = None, False, self.answered or answered

    def failed(self, words: str, now: float) -> bool:
        """Take note of a failure; True when it breaks here, so that the calls of the series are given back."""
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
        """This machine could not hold as many calls as were in flight: go on with fewer. False when it does already."""
        most = max(0.75 * in_flight, 1.0)
        lower, self._most = most < self._most, min(self._most, most)
        return lower


def clock_time(seconds: float) -> str:
    """The time of day in so many seconds, and how long that is."""
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    return f"{until} (in {seconds / 3600:.1f} h)" if seconds >= 3600 else f"{until} (in {seconds / 60:.0f} min)"
