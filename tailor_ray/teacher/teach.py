"""The teaching stage: exam shards in, lessons and a record of every request out, while the exam still goes on.

For each shard two parts are committed once all its asks are done: `requests-*` (how each request ended) and
`lessons-*` (what was accepted, near-duplicates left out). What is written depends on the shard and on the replies, not
on the order in which replies came. A restart skips shards whose parts are there and gets earlier replies from the
ledger.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tailor_ray.answers import Grader
from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.errors import StageError
from tailor_ray.records import LESSON_SCHEMA, Attempt, Question, to_table
from tailor_ray.storage import Part, Store, commit_part, committed_parts
from tailor_ray.teacher.asks import Ask, Asker
from tailor_ray.teacher.batch import BatchPool
from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.forecast import FEEDBACK, RATIONALE, Amount, Learned, Sizes, learn, reply_guess, round_amount
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.pool import TeacherPool
from tailor_ray.teacher.pricing import check_prices
from tailor_ray.teacher.request import TeacherRequest, canonical
from tailor_ray.teacher.written import REQUEST_SCHEMA, lesson_rows, request_rows, shard_metrics

log = logging.getLogger(__name__)

Shard = tuple[list[Question], list[Attempt]]
LESSONS, REQUESTS = "lessons", "requests"
OPEN_SHARDS = 16  # taken in and not wholly answered: among these the mistakes worth most go first, the exam waits
SCARCE = 1.25  # by so much a forecast may be too low before a budget is taken to last


@dataclass(frozen=True)
class TeachJob:
    """What one round teaches. `taught` are questions that have a lesson from an earlier round; `questions`, how many
    the round's exam asks, is what its cost is forecast from while it goes on."""

    config: TeacherConfig
    round: int
    grader: Grader
    taught: frozenset[str] = frozenset()
    questions: int | None = None
    on_progress: Callable[[dict[str, int]], None] | None = None  # called with counts so far, from the caller's thread


@dataclass(slots=True)
class _Work:
    """A shard whose asks are not all done."""

    index: int
    digest: str
    asks: list[Ask]
    left: int


@dataclass(slots=True)
class _State:
    """The stage so far."""

    shards: int | None = None  # how many there are, once the exam is over
    seen: int = 0
    questions: int = 0  # of the shards seen
    held: bool = False
    parts: list[Part] = field(default_factory=list)
    waiting: defaultdict[str, list[tuple[_Work, Ask]]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    lessons: Counter[str] = field(default_factory=Counter)  # wanted, by the teacher that is asked first
    characters: Counter[str] = field(default_factory=Counter)  # of their first requests
    reply_tokens: float = 0.0  # guessed for all of them


def teach(job: TeachJob, shards: Iterable[Shard], store: Store, ledger: Store) -> dict[str, Any]:
    """Teach one round; returns the stage's metrics.

    `shards` may block until the exam commits the next one. Raises Stopped (budget, quota; all is kept),
    TeacherAccessError, or StageError when too few lessons are accepted.
    """
    check_prices(job.config)
    book = Ledger(ledger, keep_batches=job.config.mode == "batch")
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    learned = learn(book.settled_before(job.round))
    pool = _open_pool(job, book, ledger, events)
    gate = Gate(None if job.config.mode == "batch" else OPEN_SHARDS)  # a batch is sent when all shards are in
    threading.Thread(target=_feed, args=(shards, events, gate), name="teach-feed", daemon=True).start()
    try:
        state = _Stage(job, store, pool, gate, learned).run(events)
    finally:
        gate.close()
        pool.close()
        book.close()
    metrics = total_metrics([part.info["metrics"] for part in state.parts])
    metrics["forecast"] = asdict(_forecast(job, state, learned))
    check_yield(metrics, job.config)
    return metrics


def _forecast(job: TeachJob, state: _State, learned: Learned, share: float = 1.0) -> Amount:
    """What was to be expected when the shards came, from the rounds before; `share` is how much of them has come."""
    bodies = {model: state.characters[model] / lessons for model, lessons in state.lessons.items()}
    sizes = Sizes(bodies, state.reply_tokens / max(1, state.lessons.total()))
    kind = RATIONALE if job.round == 1 else FEEDBACK
    return round_amount(job.config, kind, state.lessons[job.config.model] / share, sizes, learned)


def _open_pool(
    job: TeachJob, book: Ledger, ledger: Store, events: queue.SimpleQueue[tuple[str, Any]]
) -> TeacherPool | BatchPool:
    def on_settled(settled: list[Settled]) -> None:
        events.put(("settled", settled))

    def on_error(error: BaseException) -> None:
        events.put(("error", error))

    if job.config.mode == "batch":
        return BatchPool(job.config, book, ledger, job.round, on_settled, on_error)
    return TeacherPool(job.config, book, job.round, on_settled, on_error)


class Gate:
    """Lets at most `room` shards in at a time; None is no bound."""

    def __init__(self, room: int | None) -> None:
        self._room = room
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def enter(self) -> bool:
        """Wait for room; False when the gate was closed and nobody takes shards any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._room is None or self._inside < self._room)
            self._inside += 1
            return not self._closed

    def open(self) -> None:
        """No bound from now on."""
        with self._changed:
            self._room = None
            self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


class _Stage:
    """Takes events in the caller's thread, until the last shard's parts are committed."""

    def __init__(
        self,
        job: TeachJob,
        store: Store,
        pool: TeacherPool | BatchPool,
        gate: Gate,
        learned: Learned,
    ) -> None:
        self._job = job
        self._gate = gate
        self._store = store
        self._pool = pool
        self._learned = learned
        self._asker = Asker(job.config, job.grader, job.round)
        self._state = _State()
        lessons = {part.index: part for part in committed_parts(store, LESSONS)}
        requests = {part.index for part in committed_parts(store, REQUESTS)}
        self._done = {index: part for index, part in lessons.items() if index in requests}

    def run(self, events: queue.SimpleQueue[tuple[str, Any]]) -> _State:
        while self._state.shards is None or len(self._state.parts) < self._state.shards:
            what, value = events.get()
            if what == "shard":
                self._take_shard(value)
            elif what == "settled":
                self._take_settled(value)
            elif what == "end":
                self._state.shards = value
                self._pool.flush()
            else:
                raise value
            if self._job.on_progress is not None:
                self._job.on_progress(dict(self._state.counts))
        return self._state

    def _take_shard(self, shard: Shard) -> None:
        questions, attempts = shard
        index = self._state.seen
        self._state.seen += 1
        self._state.questions += len(questions)
        asks = self._asker.asks(questions, attempts, self._job.taught)
        self._state.counts["wanted"] += len(asks)
        work = _Work(index, _digest(asks), asks, len(asks))
        first = [(work, ask, self._asker.first(ask)) for ask in asks]
        for _, ask, request in first:
            self._state.reply_tokens += reply_guess(ask.question)
            self._state.lessons[request.model] += 1
            self._state.characters[request.model] += len(request.body)
        self._hold_if_scarce()
        done = self._done.get(index)
        if done is not None and done.info["digest"] == work.digest:
            self._state.counts["done"] += len(asks)
            self._finish(done)
            return
        if not asks:
            self._commit(work)
            return
        self._send(first)

    def _hold_if_scarce(self) -> None:
        """Where the budget will not last for the round, its exam ends first, for the worst mistakes may come last."""
        if self._state.held or not (self._job.questions and self._state.questions):
            return
        amount = _forecast(self._job, self._state, self._learned, self._state.questions / self._job.questions)
        tokens = amount.input_tokens + amount.output_tokens
        if self._pool.lasts(Spend(SCARCE * amount.cost_usd, round(SCARCE * tokens))):
            return
        log.warning(
            "teaching round %d is forecast to take %.2f dollars and %d tokens, for which the teacher's budget may not "
            "last: it begins when the exam is over, with the mistakes worth most",
            self._job.round, amount.cost_usd, tokens,
        )  # fmt: skip
        self._state.held = True
        self._pool.hold()
        self._gate.open()

    def _send(self, wanted: Sequence[tuple[_Work, Ask, TeacherRequest]]) -> None:
        """Requests that two asks share are sent once, and answer both."""
        new = {}
        for work, ask, request in wanted:
            if request.key not in self._state.waiting:
                new[request.key] = request
            self._state.waiting[request.key].append((work, ask))
        self._pool.submit(list(new.values()))

    def _take_settled(self, settled: Sequence[Settled]) -> None:
        following = []
        for one in settled:
            for work, ask in self._state.waiting.pop(one.request.key):
                request = self._asker.advance(ask, one)
                self._state.counts[ask.ended[-1].outcome] += 1
                if request is not None:
                    following.append((work, ask, request))
                    continue
                work.left -= 1
                self._state.counts["done"] += 1
                if work.left == 0:
                    self._commit(work)
        self._send(following)

    def _commit(self, work: _Work) -> None:
        """Write the shard's two parts; the lessons last, since their record makes the shard done."""
        asks = sorted(work.asks, key=lambda ask: ask.order)
        lessons, duplicates = lesson_rows(asks, self._job.round)
        requests = request_rows(asks, self._job.round, duplicates)
        commit_part(self._store, REQUESTS, work.index, _table(requests))
        info = {"digest": work.digest, "metrics": shard_metrics(asks, requests, self._job.round)}
        self._finish(commit_part(self._store, LESSONS, work.index, to_table(lessons, LESSON_SCHEMA), info))

    def _finish(self, part: Part) -> None:
        self._state.parts.append(part)
        self._gate.leave()


def total_metrics(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum the shards' metrics; `reasons` by name."""
    total: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for metrics in shards:
        reasons.update(metrics["reasons"])
        total.update({name: value for name, value in metrics.items() if name != "reasons"})
    names = ("wanted", "taught", "requests", "from_ledger", "accepted", "rejected", "failed", "input_tokens")
    out: dict[str, Any] = {name: total[name] for name in (*names, "output_tokens", "reasoning_tokens")}
    return {**out, "cost_usd": float(total["cost_usd"]), "reasons": dict(sorted(reasons.items()))}


def check_yield(metrics: dict[str, Any], config: TeacherConfig) -> None:
    """Raise StageError when the share of wanted lessons that were accepted is below the configured one."""
    wanted, taught = metrics["wanted"], metrics["taught"]
    if wanted and taught / wanted < config.min_accepted_share:
        reasons = ", ".join(f"{reason} {count}" for reason, count in metrics["reasons"].items()) or "none"
        raise StageError(
            f"only {taught} of {wanted} lessons were accepted, below teacher.min_accepted_share="
            f"{config.min_accepted_share}; reasons: {reasons}. Look at the requests of this round, mend the prompt or "
            "the teacher, or lower the setting"
        )


def _feed(shards: Iterable[Shard], events: queue.SimpleQueue[tuple[str, Any]], gate: Gate) -> None:
    count = 0
    try:
        for shard in shards:
            if not gate.enter():
                return
            events.put(("shard", shard))
            count += 1
    except BaseException as error:  # noqa: BLE001  the stage raises it in its own thread
        events.put(("error", error))
        return
    events.put(("end", count))


def _digest(asks: Sequence[Ask]) -> str:
    """What the shard asks for: parts of other questions or mistakes are not taken for its own."""
    wanted = [[*ask.order, ask.question.text, ask.mistake.text if ask.mistake else None] for ask in asks]
    return hashlib.sha256(canonical(wanted).encode("utf-8", "replace")).hexdigest()


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=REQUEST_SCHEMA)
