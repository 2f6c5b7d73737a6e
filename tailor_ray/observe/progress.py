"""Progress of the stages under way: live bars on a terminal, a line every few seconds in a log. All on stderr.

In: `with progress.stage("round 1 exam", total=2048, unit="samples") as bar: bar.advance(n)`, from any thread. Stages
may overlap. Out: only what a person reads. `tailor-ray status` finds the same in the run's folder. A stage leaves one
last line with its time and rate when it ends. A log gets a line per minute once ten minutes are over.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

log = logging.getLogger(__name__)

CALM_AFTER_S, CALM_S = 600.0, 60.0
RECORD_EVERY_S = 10.0
# The rate shown is that of the last half minute, for engines warm up and teachers slow down, and of eight counts at
# least: a training step of a large student takes half a minute by itself.
RATE_WINDOW_S, RATE_COUNTS = 30.0, 8


class Bar:
    """One stage's count. `total` None means that the end is not known yet; `update` may set it later."""

    def __init__(self, name: str, total: int | None, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.unit = unit
        self.total = total
        self.done = 0
        self.note = ""
        self.started, self.since = clock(), time.time()
        self._clock = clock
        self.worked = 0  # `done` without what an earlier try had done; a rate counts this alone
        self._lock = threading.Lock()
        self._marks: list[tuple[float, int]] = [(self.started, 0)]

    def advance(self, n: int = 1) -> None:
        with self._lock:
            self._set(self.done + n)

    def update(self, *, done: int | None = None, total: int | None = None, note: str | None = None) -> None:
        """Set what is given: `done` units, their `total` once it is known, a short remark.

        A count that goes down is work to do again.
        """
        with self._lock:
            if done is not None:
                self._set(done)
            if total is not None:
                self.total = total
            if note is not None:
                self.note = note

    def found(self, n: int) -> None:
        """Count `n` units that an earlier try had done: they are no speed, so the rate leaves them out."""
        with self._lock:
            self.done += n

    def _set(self, done: int) -> None:
        """A count that goes down is work to do again: no speed either, and what was worked stays worked."""
        self.worked += max(0, done - self.done)
        self.done = done
        now = self._clock()
        at, worked = self._marks[-1]
        if self.worked > worked and (now - at >= 0.5 or len(self._marks) == 1):
            self._marks.append((now, self.worked))
        while len(self._marks) > RATE_COUNTS and now - self._marks[1][0] > RATE_WINDOW_S:
            del self._marks[0]

    def rate(self) -> float:
        """Units a second, lately; 0.0 before anything was done."""
        with self._lock:
            since, worked = self._marks[0]
            elapsed = self._clock() - since
            return (self.worked - worked) / elapsed if elapsed > 0 else 0.0

    def seconds_left(self) -> float | None:
        """How long the rest takes at the present rate; None while rate or total is unknown."""
        rate = self.rate()
        if self.total is None or rate <= 0:
            return None
        return max(0, self.total - self.done) / rate

    def line(self) -> str:
        """The stage in one line, as a log shows it."""
        parts = [f"{self.name}: {self.done:,}"]
        if self.total is not None:
            share = f" ({self.done / self.total:.0%})" if self.total else ""
            parts[0] += f"/{self.total:,}{share}"
        parts[0] += f" {self.unit}".rstrip()
        if self.done:
            parts.append(rate_text(self.rate(), self.unit))
        left = self.seconds_left()
        parts.append(f"{duration(left)} left" if left is not None else f"{duration(self.seconds())} so far")
        return ", ".join([*parts, self.note] if self.note else parts)

    def seconds(self) -> float:
        return self._clock() - self.started

    def facts(self) -> dict[str, Any]:
        """The stage as plain data: its count, `since` in seconds since the epoch, its `rate` per second, its `line`."""
        names = ("name", "done", "total", "unit", "note", "since")
        return {name: getattr(self, name) for name in names} | {"rate": self.rate(), "line": self.line()}


class Progress:
    """All stages of one driver. Use as a context manager, or call `close()`; both may happen more than once.

    `live` None decides by whether `stream` is a terminal.
    """

    def __init__(
        self,
        log_every_s: float = 10.0,
        stream: TextIO | None = None,
        live: bool | None = None,
        record: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> None:
        """`record` gets the stages under way, as plain data, about every ten seconds and when one ends."""
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty() if live is None else live
        self._log_every_s = log_every_s
        self._record = record
        self._begun, self._recorded = time.monotonic(), 0.0
        self._lock = threading.Lock()
        self._bars: list[Bar] = []
        self._tasks: dict[int, TaskID] = {}
        self._rich: RichProgress | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Bar]:
        """Show a stage for as long as the block runs; the last line says whether it ended well.

        `total` counts `unit`s; None means that the end is not known yet. Yields the bar that the block moves on.
        """
        bar = Bar(name, total, unit)
        self._open(bar)
        ended = "stopped"
        try:
            yield bar
            ended = "done"
        finally:
            self._end(bar, ended)

    def say(self, text: str) -> None:
        """One line for the person who watches, above the bars."""
        with self._lock:
            if self._rich is not None:
                self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self._stream.write(f"{text}\n")
                self._stream.flush()

    def close(self) -> None:
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        with self._lock:
            if self._rich is not None:
                self._rich.stop()
                self._rich = None
            self._thread = None

    def _open(self, bar: Bar) -> None:
        log.info("%s begins", bar.name)
        with self._lock:
            self._bars.append(bar)
            if self._live and self._rich is None:
                self._rich = _rich_progress(self._stream)
                self._rich.start()
            if self._rich is not None:
                task = self._rich.add_task(bar.name, total=bar.total, bar=bar)
                self._tasks[id(bar)] = task
            if self._thread is None:
                self._stop.clear()
                self._thread = threading.Thread(target=self._refresh, name="tailor-progress", daemon=True)
                self._thread.start()

    def _end(self, bar: Bar, ended: str) -> None:
        with self._lock:
            self._bars.remove(bar)
            if self._rich is not None:
                self._rich.remove_task(self._tasks.pop(id(bar)))
        seconds = bar.seconds()
        pace = f", {rate_text(bar.worked / seconds, bar.unit)}" if seconds > 0 and bar.worked else ""
        remark = f", {bar.note}" if bar.note else ""
        text = f"{bar.name}: {ended}, {bar.done:,} {bar.unit}".rstrip() + f" in {duration(seconds)}{pace}{remark}"
        log.info("%s", text)
        self.say(text)
        self._note_down(now=True)

    def _note_down(self, now: bool = False) -> None:
        """For `tailor-ray status`; a failure is no matter for the run."""
        if self._record is None or not (now or time.monotonic() - self._recorded >= RECORD_EVERY_S):
            return
        self._recorded = time.monotonic()
        with self._lock:
            bars = list(self._bars)
        try:
            self._record([bar.facts() for bar in bars])
        except Exception as error:  # noqa: BLE001 — whatever the storage raises
            log.info("the progress could not be written down: %s", error)

    def _refresh(self) -> None:
        while True:
            calm = not self._live and time.monotonic() - self._begun > CALM_AFTER_S
            pause = 0.2 if self._live else max(self._log_every_s, CALM_S) if calm else self._log_every_s
            if self._stop.wait(pause):
                return
            self._note_down()
            with self._lock:
                bars = list(self._bars)
                if self._rich is not None:
                    for bar in bars:
                        self._rich.update(self._tasks[id(bar)], completed=bar.done, total=bar.total)
                    continue
            for bar in bars:
                self.say(f"{time.strftime('%H:%M:%S')} {bar.line()}")


def duration(seconds: float) -> str:
    """`seconds` as a person says them: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate_text(rate: float, unit: str) -> str:
    """A pace as a person says it: 1,235 samples/s, 0.5 samples/s, 45 s each.

    `rate` is in units per second; `unit` may be empty.
    """
    if 0 < rate < 0.1:
        return f"{duration(1 / rate)} each"
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
    return f"{shown} {unit}/s" if unit else f"{shown}/s"


def _rich_progress(stream: TextIO) -> RichProgress:
    """Bars with count, rate and time left, all from our own Bar: rich's speed forgets that resumed work is no speed."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Facts(ProgressColumn):
        def render(self, task: Task) -> Text:
            bar: Bar = task.fields["bar"]
            total = f"/{bar.total:,}" if bar.total is not None else ""
            left = bar.seconds_left()
            time_left = f"{duration(left)} left" if left is not None else duration(bar.seconds())
            text = Text(f"{bar.done:,}{total} {bar.unit}  ", style="default")
            text.append(f"{rate_text(bar.rate(), '')}  ", style="cyan")
            text.append(time_left, style="green")
            if bar.note:
                text.append(f"  {bar.note}", style="dim")
            return text

    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Facts(),
    ]
    console = Console(file=stream, force_terminal=True)
    return RichProgress(*columns, console=console, refresh_per_second=5, redirect_stdout=False)
