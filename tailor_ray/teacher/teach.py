"""The teaching stage: parts of the exam in, lessons and requests out, while the exam still goes on.

Part i of the exam leaves two parts i, once all its asks are done. In `log/`, `requests-i` says how each request ended.
`lessons-i` holds what was accepted, near-duplicates left out. What is in them depends on the part and on the replies.
It does not depend on the order in which these came. A restart skips the parts that are there and gets earlier replies
from the ledger. In memory are the parts that are not wholly answered, and a record of each other one.

A part is committed when each of its asks has a verdict. Those that got none leave their part open. The stage stops
where nothing else is left to do. Of a part with requests that a server refused as such (a 400), the next driver asks
those again. Where too few lessons are accepted, the stage fails early and takes back the parts it had committed.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import pyarrow as pa

from tailor_ray.answers import Grader
from tailor_ray.config.base import result_settings
from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.layout import LESSONS, LOG, REQUESTS
from tailor_ray.records import LESSON_SCHEMA, Attempt, Question, to_table
from tailor_ray.statistics import wilson_interval
from tailor_ray.storage import Part, PartsDigest, Store, commit_part, committed_parts, drop_part
from tailor_ray.teacher.asks import Ask, Asker
from tailor_ray.teacher.batch import BatchPool
from tailor_ray.teacher.budget import Spend, check_prices
from tailor_ray.teacher.client import TeacherRequest, canonical
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.errors import undecided_error, yield_error
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.outcomes import Category, codes
from tailor_ray.teacher.parts import REQUEST_SCHEMA, End, Intake, lesson_rows, part_metrics, request_rows
from tailor_ray.teacher.pool import TeacherPool
from tailor_ray.teacher.preflight import FEEDBACK, RATIONALE, Amount, Learned, Sizes, learn, reply_guess, round_amount

log = logging.getLogger(__name__)

EARLY = 50  # asks after which the yield is looked at while the stage goes on
SURE_Z = 3.3  # by so many standard errors it must then be too low: once in 2,000 stages that would just have passed
FRUITLESS = 14.0  # n asks in a row without a lesson, where n times the least share is as much: once in a million
SCARCE = 1.25  # by so much a forecast may be too low before a budget is taken to last
# Ends of requests that are final for one driver only.
AGAIN = codes(Category.BAD_REQUEST, Category.RETRYABLE)
SUMMED = (
    "wanted", "taught", "requests", "from_ledger", "accepted", "rejected", "failed",
    "input_tokens", "output_tokens", "reasoning_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of the exam, read. `taught` are those of its questions that have a lesson of an earlier round."""

    index: int
    questions: list[Question]
    attempts: list[Attempt]
    taught: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TeachJob:
    """What one round teaches. `questions`, how many its exam asks, is what its cost is forecast from on the way."""

    config: TeacherConfig
    round: int
    grader: Grader
    read: Callable[[Part], Shard]  # called with an exam part's record when it is that part's turn
    questions: int | None = None
    on_progress: Callable[[dict[str, int]], None] | None = None  # called with counts so far, from the caller's thread


class Pool(Protocol):
    """What answers requests: over HTTP as they come, in batches, or, for a benchmark, at once."""

    def submit(self, requests: Sequence[TeacherRequest]) -> None:
        """Ask these, from any thread. What the ledger answers is told at once."""

    def hold(self) -> None:
        """Send nothing until all parts have come, so that what is worth most goes first."""

    def flush(self) -> None:
        """No more parts come: what waits may be sent."""

    def lasts(self, round_total: Spend) -> bool:
        """Whether the budget allows a round that takes so much in all."""

    def close(self) -> None:
        """Begin nothing more, and leave once nothing that was begun can be lost."""


Tell = Callable[[list[Settled] | BaseException], None]


def open_pool(job: TeachJob, ledger: Ledger, tell: Tell) -> Pool:
    """The pool that the settings of the `job` ask for.

    `tell` hears of settled requests, or of the error after which none come.
    """
    kind = BatchPool if job.config.mode == "batch" else TeacherPool
    return kind(job.config, ledger, job.round, tell, tell)


@dataclass(slots=True)
class AskCounts:
    """Asks that are done, by reason where they failed, and the server's words for it."""

    count: int = 0
    taught: int = 0
    fruitless: int = 0  # since the last one that was accepted
    reasons: Counter[str] = field(default_factory=Counter)
    words: dict[str, str] = field(default_factory=dict)  # the last ones, by reason

    def add(self, ask: Ask) -> None:
        self.count += 1
        self.fruitless += 1
        if ask.accepted is not None:
            self.taught += 1
            self.fruitless = 0
            return
        last = ask.ended[-1]
        reason = last.reason or last.outcome
        self.reasons[reason] += 1
        if last.settled.row.detail:
            self.words[reason] = last.settled.row.detail

    def add_part(self, metrics: dict[str, Any]) -> None:
        """A part of an earlier driver."""
        self.count += metrics["wanted"]
        self.taught += metrics["taught"]
        self.reasons.update(metrics["reasons"])


@dataclass(slots=True)
class _OpenPart:
    """A part whose asks are not all done."""

    index: int
    digest: str
    asks: list[Ask]
    left: int
    undecided: int = 0  # of those left: they got no verdict


@dataclass(slots=True)
class _State:
    """The stage so far: sums, whatever the number of rows."""

    parts: int = 0  # taken
    ended: bool = False  # the exam
    questions: int = 0  # of the parts taken
    held: bool = False
    done: list[Part] = field(default_factory=list)  # lessons parts, without what is remembered of them
    stuck: int = 0  # parts that lack nothing but asks without a verdict
    undecided: dict[str, Settled] = field(default_factory=dict)
    done_asks: AskCounts = field(default_factory=AskCounts)
    waiting: defaultdict[str, list[tuple[_OpenPart, Ask]]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    lessons: Counter[str] = field(default_factory=Counter)  # wanted, by the teacher that is asked first
    characters: Counter[str] = field(default_factory=Counter)  # of their first requests
    reply_tokens: float = 0.0  # guessed for all of them
    sums: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    cost_usd: Fraction = Fraction()  # exact, so that the order in which parts end does not show

    def add(self, part: Part) -> None:
        """A part whose lessons are committed."""
        metrics = part.info["metrics"]
        self.sums.update({name: metrics[name] for name in SUMMED})
        self.reasons.update(metrics["reasons"])
        self.cost_usd += Fraction(metrics["cost_usd"])
        self.done.append(Part(part.index, part.entry, {}))

    def metrics(self) -> dict[str, Any]:
        sums = {name: self.sums[name] for name in SUMMED}
        return {**sums, "cost_usd": float(self.cost_usd), "reasons": dict(sorted(self.reasons.items()))}


def teach(
    job: TeachJob,
    intake: Intake,
    out: Store,
    ledger: Ledger,
    open_pool: Callable[[TeachJob, Ledger, Tell], Pool] = open_pool,
) -> tuple[dict[str, Any], PartsDigest]:
    """Teach one round; returns the stage's metrics and the digest of its lessons parts.

    The ledger is open for the whole run; what the round added is in storage when this returns. Raises Stopped (budget,
    quota; all is kept), TeacherAccessError, or StageError when too few lessons are accepted.
    """
    check_prices(job.config)
    if job.config.mode == "batch":
        intake.open()  # a batch is sent when all parts are in
    learned = learn(ledger.settled_before(job.round))
    pool = open_pool(job, ledger, intake.tell)
    stage = _Stage(job, out, pool, intake, learned)
    try:
        state = stage.run()
    finally:
        pool.close()
    ledger.flush()
    stage.check_yield(final=True)
    metrics = state.metrics()
    metrics["forecast"] = asdict(_forecast(job, state, learned))
    return metrics, PartsDigest.of(state.done)


def _forecast(job: TeachJob, state: _State, learned: Learned, share: float = 1.0) -> Amount:
    """What was to be expected when the parts came, from the rounds before; `share` is how much of them has come."""
    bodies = {model: state.characters[model] / lessons for model, lessons in state.lessons.items()}
    sizes = Sizes(bodies, state.reply_tokens / max(1, state.lessons.total()))
    kind = RATIONALE if job.round == 1 else FEEDBACK
    return round_amount(job.config, kind, state.lessons[job.config.model] / share, sizes, learned)


class _Stage:
    """Takes events in the caller's thread, until the last part's lessons are committed."""

    def __init__(self, job: TeachJob, out: Store, pool: Pool, intake: Intake, learned: Learned) -> None:
        self._job = job
        self._intake = intake
        self._out = out
        self._pool = pool
        self._learned = learned
        self._asker = Asker(job.config, job.grader, job.round)
        self._settings = hashlib.sha256(canonical(result_settings(job.config)).encode()).hexdigest()
        self._state = _State()
        requests = {part.index for part in committed_parts(out.child(LOG), REQUESTS)}
        self._earlier = {part.index: part for part in committed_parts(out, LESSONS) if part.index in requests}

    def run(self) -> _State:
        state = self._state
        while not state.ended or len(state.done) < state.parts:
            if state.ended and len(state.done) + state.stuck == state.parts:
                words = [f"{one.row.outcome}: {one.row.detail}" for one in state.undecided.values()]
                raise undecided_error(words, self._job.config.max_attempts)
            event = self._intake.take()
            if isinstance(event, Part):
                self._take_shard(self._job.read(event))
            elif isinstance(event, End):
                state.ended = True
                self._pool.flush()
            else:
                self._take_settled(event)
                self.check_yield()
            if self._job.on_progress is not None:
                self._job.on_progress(dict(state.counts))
        return state

    def _take_shard(self, shard: Shard) -> None:
        asks = self._asker.asks(shard.questions, shard.attempts, shard.taught)
        # What the part asks for: lessons of other questions or mistakes are not taken for its own.
        wanted = [[*ask.order, ask.question.text, ask.mistake.text if ask.mistake else None] for ask in asks]
        digest = hashlib.sha256(canonical(wanted).encode("utf-8", "replace")).hexdigest()
        work = _OpenPart(shard.index, digest, asks, len(asks))
        first = [(work, ask, self._asker.first(ask)) for ask in asks]
        state = self._state
        state.parts += 1
        state.questions += len(shard.questions)
        state.counts["wanted"] += len(first)
        for _, ask, request in first:
            state.reply_tokens += reply_guess(ask.question)
            state.lessons[request.model] += 1
            state.characters[request.model] += len(request.body)
        self._hold_if_scarce()
        earlier = self._earlier.pop(shard.index, None)
        info = earlier.info if earlier is not None else {}
        asked_alike = info.get("settings") in (None, self._settings)
        if earlier is not None and info["digest"] == digest and asked_alike and not info.get("passing"):
            self._state.counts["done"] += len(asks)
            self._state.done_asks.add_part(earlier.info["metrics"])
            self._finish(earlier)
        elif not asks:
            self._commit(work)
        else:
            self._send([(work, ask, request) for work, ask, request in first if ask.sample == 0])

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
        self._intake.open()

    def _send(self, wanted: Sequence[tuple[_OpenPart, Ask, TeacherRequest]]) -> None:
        """Requests that two asks share are sent once, and answer both."""
        new = {}
        for work, ask, request in wanted:
            if request.key not in self._state.waiting:
                new[request.key] = request
            self._state.waiting[request.key].append((work, ask))
            if request.key in self._state.undecided:
                self._leave_open(work, ask)
        self._pool.submit(list(new.values()))

    def _take_settled(self, settled: list[Settled]) -> None:
        following = []
        for one in settled:
            if one.undecided:
                self._state.undecided[one.request.key] = one
                for work, ask in self._state.waiting[one.request.key]:
                    self._leave_open(work, ask)
                continue
            for work, ask in self._state.waiting.pop(one.request.key):
                request = self._asker.advance(ask, one)
                self._state.counts[ask.ended[-1].outcome] += 1
                if request is not None:
                    following.append((work, ask, request))
                    continue
                waited = self._asker.following(ask)
                if waited is not None and ask.then is not None:
                    following.append((work, ask.then, waited))
                work.left -= 1
                self._state.counts["done"] += 1
                self._state.done_asks.add(ask)
                if work.left == 0:
                    self._commit(work)
                elif work.left == work.undecided:
                    self._set_aside()
        self._send(following)

    def _leave_open(self, work: _OpenPart, ask: Ask) -> None:
        """One more of the part's asks is without a verdict, and with it those that wait for it."""
        work.undecided += 1 + ask.waiting
        if work.left == work.undecided:
            self._set_aside()

    def _set_aside(self) -> None:
        """A part to which nothing more can happen no longer holds the exam back."""
        self._state.stuck += 1
        self._intake.leave()

    def _commit(self, work: _OpenPart) -> None:
        """Write the part's two parts; the lessons last, since their record makes it done."""
        asks = sorted(work.asks, key=lambda ask: ask.order)
        lessons, duplicates = lesson_rows(asks, self._job.round)
        requests = request_rows(asks, self._job.round, duplicates)
        commit_part(self._out.child(LOG), REQUESTS, work.index, pa.Table.from_pylist(requests, schema=REQUEST_SCHEMA))
        info = {
            "digest": work.digest,
            "settings": self._settings,
            "passing": sum(ask.accepted is None and ask.ended[-1].settled.row.outcome in AGAIN for ask in asks),
            "metrics": part_metrics(asks, requests, self._job.round),
        }
        self._finish(commit_part(self._out, LESSONS, work.index, to_table(lessons, LESSON_SCHEMA), info))

    def _finish(self, part: Part) -> None:
        self._state.add(part)
        self._intake.leave()

    def check_yield(self, final: bool = False) -> None:
        """Raise where the share of wanted lessons that are accepted is below the configured one, or certain to be.

        What was committed is taken back first: replies stay in the ledger, and settings may be changed.
        """
        asks, least = self._state.done_asks, self._job.config.min_accepted_share
        if not asks.count or not least:
            return
        accepted = f"{asks.taught} of {'' if final else 'the first '}{asks.count}"
        if final:
            low = asks.taught / asks.count < least
        elif asks.fruitless * least >= FRUITLESS:
            low, accepted = True, f"0 of the last {asks.fruitless}"
        else:
            sure = wilson_interval(asks.taught, asks.count, SURE_Z)[1] < least
            low = asks.count >= EARLY and (sure or not asks.taught)
        if not low:
            return
        error = yield_error(accepted, asks.reasons, asks.words, AGAIN, least)
        for part in self._state.done:
            drop_part(self._out, LESSONS, part.index)
        raise error
