"""The queue between exam and teacher, and what a part of the exam leaves behind.

`Intake` is the one bounded queue between exam and teacher. It ends either of them when the other fails. The exam's
thread puts in the records of attempt parts, and the pool's threads tell how requests ended. The teaching takes both in
the order of their coming. `put` blocks while `room` parts are inside, from when they were put in until they are wholly
answered. So a slow teacher holds the exam back. `tell` never blocks.

A part leaves its lessons, a row for each request, and its counts.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Generic, TypeVar

import pyarrow as pa

from tailor_ray.records import Lesson
from tailor_ray.storage import Part
from tailor_ray.teacher.asks import Ask, RequestEnd, is_near_duplicate
from tailor_ray.teacher.dispatch import Settled

T = TypeVar("T")
OPEN_PARTS = 16  # inside at a time: among these the mistakes worth most go first
JOIN_S = 30.0  # for the calls in flight, when the exam failed
_TEXT, _NUMBER, _COUNT, _REAL = pa.string(), pa.int32(), pa.int64(), pa.float64()
_COLUMNS = {
    "question_id": _TEXT, "kind": _TEXT, "round": _NUMBER, "mistake_sample": _NUMBER, "sample": _NUMBER,
    "ask": _NUMBER,  # 1 for the first try at the lesson
    "model": _TEXT, "request_key": _TEXT,
    "outcome": _TEXT,  # accepted, rejected or failed
    "reason": _TEXT, "from_ledger": pa.bool_(), "attempts": _NUMBER,
    "input_tokens": _COUNT, "cached_tokens": _COUNT, "output_tokens": _COUNT, "reasoning_tokens": _COUNT,
    "cost_usd": _REAL,  # lost attempts at their worst case included
    "paid_round": _NUMBER, "seconds": _REAL,
}  # fmt: skip
_MAY_LACK = ("mistake_sample", "reason")
REQUEST_SCHEMA = pa.schema([pa.field(name, kind, nullable=name in _MAY_LACK) for name, kind in _COLUMNS.items()])
PAID = ("input_tokens", "output_tokens", "reasoning_tokens", "cost_usd")
FROM_ROW = ("model", "attempts", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "seconds")


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
        """Hand a `part` on, waiting until there is room.

        Raises what ended the teaching.
        """
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
        """Tell of an `event`: requests that ended, or the error that ends the teaching.

        It never blocks.
        """
        if isinstance(event, list):
            self._add(event)
            return
        with self._changed:
            self._failure = self._failure or event
            self._changed.notify_all()

    def take(self) -> Part | list[Settled] | End:
        """What comes next, waiting for it.

        Raises an error that was told, at once.
        """
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
        """Run `work`, which takes from this intake, in a thread.

        Yields the thread. Leaving the block by an error ends it.
        """
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
        """Wait for the end of the work.

        Returns what it returned, or raises its error.
        """
        while self.is_alive():
            self.join(timeout=0.5)  # a plain join would not let a signal's handler run
        if self._error is not None:
            raise self._error
        return self._result[0]


def lesson_rows(asks: Sequence[Ask], round_: int) -> tuple[list[Lesson], set[int]]:
    """The accepted lessons of a part's asks, in their order, less near-duplicates of the same question's earlier ones.

    Returns them and the identities (`id(ask)`) of the asks that were dropped.
    """
    lessons: list[Lesson] = []
    duplicates: set[int] = set()
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for ask in asks:
        if ask.accepted is None:
            continue
        if is_near_duplicate(ask.accepted.rationale, texts[ask.question.id]):
            duplicates.add(id(ask))
            continue
        texts[ask.question.id].append(ask.accepted.rationale)
        lessons.append(_lesson(ask, round_))
    return lessons, duplicates


def request_rows(asks: Sequence[Ask], round_: int, duplicates: set[int]) -> list[dict[str, Any]]:
    """A row of REQUEST_SCHEMA for each request of each ask.

    The last one of an ask among the `duplicates` of `lesson_rows` is rejected as a duplicate.
    """
    rows = []
    for ask in asks:
        for ended in ask.ended:
            dropped = ended.outcome == "accepted" and id(ask) in duplicates
            outcome, reason = ("rejected", "duplicate") if dropped else (ended.outcome, ended.reason)
            rows.append(_request(ask, ended, round_) | {"outcome": outcome, "reason": reason})
    return rows


def part_metrics(asks: Sequence[Ask], rows: Sequence[dict[str, Any]], round_: int) -> dict[str, Any]:
    """Counts of the part's asks and of their request `rows`.

    Tokens and dollars are those that this round paid, each request's once.
    """
    paid = {row["request_key"]: row for row in rows if row["paid_round"] == round_}
    outcomes = Counter(row["outcome"] for row in rows)
    return {
        "wanted": len(asks),
        "taught": sum(ask.accepted is not None for ask in asks),
        "requests": len(rows),
        "from_ledger": sum(row["from_ledger"] for row in rows),
        **{name: outcomes[name] for name in ("accepted", "rejected", "failed")},
        **{name: sum(row[name] for row in paid.values()) for name in PAID},
        "reasons": dict(Counter(row["reason"] for row in rows if row["reason"])),
    }


def _lesson(ask: Ask, round_: int) -> Lesson:
    assert ask.accepted is not None
    row = next(ended.settled.row for ended in ask.ended if ended.outcome == "accepted")
    return Lesson(
        question_id=ask.question.id,
        kind=ask.kind,
        round=round_,
        text=ask.accepted.rationale,
        answer=ask.accepted.answer,
        feedback=ask.accepted.feedback,
        mistake=ask.mistake.text if ask.mistake else None,
        mistake_sample=ask.mistake.sample if ask.mistake else None,
        model=row.model,
        request_key=row.key,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=row.cost_usd + row.lost_usd,
    )


def _request(ask: Ask, ended: RequestEnd, round_: int) -> dict[str, Any]:
    row = ended.settled.row
    return {
        "question_id": ask.question.id,
        "kind": ask.kind.value,
        "round": round_,
        "mistake_sample": ask.mistake.sample if ask.mistake else None,
        "sample": ask.sample,
        "ask": ended.number,
        "request_key": row.key,
        "from_ledger": ended.settled.from_ledger,
        "cost_usd": row.cost_usd + row.lost_usd,
        "paid_round": row.round,
        **{name: getattr(row, name) for name in FROM_ROW},
    }
