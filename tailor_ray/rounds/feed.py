"""The feed from exam to teacher: committed shards pass through a bounded queue to one consuming thread.

`put` blocks while the consumer is behind by `DEPTH` shards, which holds the exam back; an error of either side
ends the other one and is raised in the thread that waits.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from tailor_ray.storage import Part

T = TypeVar("T")
DEPTH = 16  # shards; 16 × 256 questions × 4 samples is what a slow teacher may have waiting in memory


class Abandoned(Exception):
    """Raised inside the consumer when the producer failed: it ends the consumer without a result."""


class Feed:
    """One producer, one consumer."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._queue: queue.Queue[Part | Abandoned | None] = queue.Queue(depth)
        self._consumer: Consumer | None = None

    def put(self, part: Part) -> None:
        """Hand a shard on; raises the consumer's error when it has failed."""
        self._offer(part)

    def close(self) -> None:
        """No more shards will come."""
        self._offer(None)

    def consume(self, work: Callable[[Iterator[Part]], T]) -> Consumer[T]:
        """Start `work` on the shards in a thread of its own."""
        self._consumer = Consumer(work, self._iterate(), self._abandon)
        return self._consumer

    def _offer(self, item: Part | None) -> None:
        while True:
            if self._consumer is not None:
                self._consumer.raise_if_failed()
                if not self._consumer.is_alive():
                    return
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _iterate(self) -> Iterator[Part]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Abandoned):
                raise item
            yield item

    def _abandon(self) -> None:
        """Drop what waits and make the consumer's next read raise."""
        while True:
            try:
                self._queue.put_nowait(Abandoned())
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue


class Consumer(Generic[T]):
    """The consuming thread. Leaving its `with` block by an error ends it; by the end, waits for it."""

    def __init__(
        self, work: Callable[[Iterator[Part]], T], shards: Iterator[Part], abandon: Callable[[], None]
    ) -> None:
        self._work = work
        self._shards = shards
        self._abandon = abandon
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tailor-teach", daemon=True)

    def __enter__(self) -> Consumer[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._abandon()
            self._thread.join(timeout=30)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> T:
        """Wait for the thread; raises its error."""
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)  # a plain join would not let a signal's handler run
        self.raise_if_failed()
        return self._result  # type: ignore[return-value]

    def raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._result = self._work(self._shards)
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that waits
            self._error = error
