"""`Intake`: the one bounded queue between exam and teacher, and what ends either of them when the other fails.

The exam's thread puts in the records of attempt parts, the pool's threads tell how requests ended, and the teaching
takes both in the order of their coming. `put` blocks while `room` parts are inside, from when they were put in until
they are wholly answered: so a slow teacher holds the exam back. `tell` never blocks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Generic, TypeVar

from tailor_ray.storage import Part
from tailor_ray.teacher.dispatch import Settled

T = TypeVar("T")
OPEN_PARTS = 16  # inside at a time: among these the mistakes worth most go first
JOIN_S = 30.0  # for the calls in flight, when the exam failed


class End(Enum):
    """What `take` returns after the last part."""

    OF_EXAM = "end of exam"


class Abandoned(Exception):
    """Raised inside the teaching when the exam failed: it ends without a result."""


class Intake:
    """One exam, one teaching, any number of threads that tell. Made anew for each round."""

    def __init__(self, room: int | None = OPEN_PARTS) -> None:
        """`room` None is no bound."""
        self._room = room
        self._inside = 0
        self._waiting: deque[Part | list[Settled] | End] = deque()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None  # for the teaching: of the exam, or of the pool
        self._over: BaseException | None = None  # for the exam: why nobody takes parts any more

    def put(self, part: Part) -> None:
        """Hand a part on, when there is room; raises what ended the teaching."""
        with self._changed:
            self._changed.wait_for(lambda: self._over is not None or self._room is None or self._inside < self._room)
            if self._over is not None:
                raise self._over
            self._inside += 1
            self._waiting.append(part)
            self._changed.notify_all()

    def end(self) -> None:
        """The exam is over: no more parts come."""
        self._add(End.OF_EXAM)

    def fail(self, error: BaseException) -> None:
        """The exam failed: the teaching ends without a result, whatever still waits."""
        abandoned = Abandoned(f"the exam failed: {error}")
        abandoned.__cause__ = error
        self.tell(abandoned)

    def tell(self, event: list[Settled] | BaseException) -> None:
        """Requests that ended, or the error that ends the teaching."""
        if isinstance(event, list):
            self._add(event)
            return
        with self._changed:
            self._failure = self._failure or event
            self._changed.notify_all()

    def take(self) -> Part | list[Settled] | End:
        """What comes next, waiting for it; raises an error that was told, at once."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._waiting)
            if self._failure is not None:
                raise self._failure
            return self._waiting.popleft()

    def leave(self) -> None:
        """A part that was taken is wholly answered and committed."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def open(self) -> None:
        """No bound from now on."""
        with self._changed:
            self._room = None
            self._changed.notify_all()

    @contextmanager
    def teaching(self, work: Callable[[], T]) -> Iterator[Teaching[T]]:
        """Run `work`, which takes from this intake, in a thread; leaving the block by an error ends it."""
        teaching = Teaching(work, self._close)
        teaching.start()
        try:
            yield teaching
        except BaseException as error:
            self.fail(error)
            teaching.join(timeout=JOIN_S)
            raise

    def _add(self, event: Part | list[Settled] | End) -> None:
        with self._changed:
            self._waiting.append(event)
            self._changed.notify_all()

    def _close(self, why: BaseException) -> None:
        with self._changed:
            self._over = why
            self._changed.notify_all()


class Teaching(threading.Thread, Generic[T]):
    """The thread that teaches. A daemon, so that a driver which is told to end need not wait for a call."""

    def __init__(self, work: Callable[[], T], on_end: Callable[[BaseException], None]) -> None:
        super().__init__(name="tailor-teach", daemon=True)
        self._work = work
        self._on_end = on_end
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that waits
            self._error = error
        self._on_end(self._error or RuntimeError("the teaching is over and takes no more parts"))

    def result(self) -> T:
        """Wait for the end of the work; raises its error."""
        while self.is_alive():
            self.join(timeout=0.5)  # a plain join would not let a signal's handler run
        if self._error is not None:
            raise self._error
        return self._result[0]
