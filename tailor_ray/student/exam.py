"""The exam, and with one greedy sample the evaluation: question parts in, attempt parts out.

Ray Data streams the records of question parts through `Examiner` tasks on any node. A task reads its part, asks the
engines in slices, grades, writes the attempt part and passes on its record.

Always holds. Attempt part i has exactly one row for each sample of each question of question part i, in question order,
whatever happened to the engines. A committed part is neither read nor run again. An attempt's seed depends on the run's
seed, the round, the question and the sample alone. The driver sees records and no rows. A bounded number of parts is
under way. A task begins the next one when the driver has taken over enough of those before. So an exam does not run
away from a slow teacher.

The same seed gives the same attempts whatever the parts, their order or the number of engines, as far as an engine
computes a sequence alike in every company. On CPU in float32 it did in all tests. In half precision, on GPUs, and
between kinds of hardware, sums are taken in an order that depends on what else is decoded. A close call between two
tokens may then fall the other way, and that sample goes on differently.

A part is what is answered, taught and committed together. It is to be some seconds' to a minute's work of the engines.
A small exam of training questions is to have several parts. So teaching begins while it goes on. Other exams have few,
for several parts at a time take as many processes. The size depends on the settings alone, so a run is the same on
every cluster.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Protocol, cast

import pyarrow as pa

from tailor_ray.answers.grader import CHANGES
from tailor_ray.config import RunConfig
from tailor_ray.errors import StageError
from tailor_ray.layout import answered_folder
from tailor_ray.records import Verdict
from tailor_ray.storage import Part, PartsDigest, Store, committed_parts, stage_parts
from tailor_ray.student.examiner import Engines, Examiner, ExamJob, Parallelism, PartialAnswers
from tailor_ray.tasks.base import LISTED

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0  # at how many samples the engines have answered


class Count(Protocol):
    """Where it is said how many samples are answered (`observe.progress.Bar`)."""

    done: int

    def found(self, n: int) -> None: ...
    def update(self, *, done: int) -> None: ...


def run_exam(
    pool: Engines,
    job: ExamJob,
    questions: Store,
    out: Store,
    on_part: Callable[[Part], None],
    count: Count | None = None,
) -> tuple[dict[str, Any], PartsDigest]:
    """Answer every question part that has no attempt part yet.

    `questions` holds the question parts of `job.split`, and `out` gets the attempt parts. `on_part` gets the record of
    every part once, those of an earlier try included. While it blocks, because the teacher is slower than the exam, the
    parts under way end and no other begins. `count` is told of samples as they are answered.

    Returns the counts over all parts and their digest. Raises StageError when engines die more often than
    `job.max_engine_restarts`, and CorruptionError for a damaged question part.
    """
    started = time.monotonic()
    asked = stage_parts(questions, job.split)
    done = {part.index: part for part in committed_parts(out, job.prefix)}
    todo = [part for part in asked if part.index not in done]
    parallelism = Parallelism.of(pool, job.samples, todo)
    pool.begin_stage(job.max_engine_restarts, parallelism.parts * parallelism.block)
    totals = Totals(job.samples)
    with _counting(pool, count, sum(part.rows for part in done.values()) + PartialAnswers.rows(out, job.prefix)):
        for part in done.values():
            totals.add(part)
            on_part(part)
        for part in _stream(Examiner(pool, job, questions, out, parallelism), todo):
            totals.add(part)
            on_part(part)
            pool.leave_part(part.index)
    missing = {part.index for part in asked} - totals.entries.keys()
    if missing:
        raise StageError(f"the exam ended without the attempts on question parts {sorted(missing)[:8]}; run it again")
    out.delete(answered_folder(job.prefix))
    metrics = totals.metrics()
    if count is not None:
        count.update(done=metrics["attempts"])
    metrics |= {"engine_restarts": pool.restarts(), "seconds_engine": round(time.monotonic() - started, 3)}
    return metrics, PartsDigest.of(totals.entries.values())


@contextmanager
def _counting(pool: Engines, count: Count | None, found: int) -> Iterator[None]:
    """Meanwhile `count` is told, about once a second, of samples that are answered; `found` were before."""
    if count is None:
        yield
        return
    count.found(found)
    over = threading.Event()

    def look(count: Count) -> None:
        while not over.wait(LOOK_EVERY_S):
            count.update(done=max(count.done, found + pool.answered()))

    thread = threading.Thread(target=look, args=(count,), name="exam-count", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Totals:
    """Counts over committed parts, from what their records say; in whatever order they come."""

    def __init__(self, samples: int) -> None:
        self.entries: dict[int, Part] = {}  # without what their records say
        self._samples = samples
        self._counts: Counter[str] = Counter({verdict.value: 0 for verdict in Verdict})
        self._mistaken = 0
        self._changes: Counter[str] | None = None
        self._quarantined: list[str] = []
        self._disputed: list[tuple[tuple[int, int], dict[str, Any]]] = []  # the first LISTED

    def add(self, part: Part) -> None:
        """Count a committed part of whichever index, once."""
        self.entries[part.index] = Part(part.index, part.entry, {})
        self._counts.update(part.info["counts"])
        self._mistaken += part.info["mistaken_questions"]
        if part.info["changes"] is not None:
            self._changes = (self._changes or Counter(dict.fromkeys(CHANGES, 0))) + Counter(part.info["changes"])
        self._quarantined += part.info["quarantined"]
        listed = enumerate(part.info["disputed_attempts"])
        self._disputed += [((part.index, place), attempt) for place, attempt in listed]
        self._disputed = sorted(self._disputed, key=itemgetter(0))[:LISTED]

    def metrics(self) -> dict[str, Any]:
        """The counts, and the attempts that are listed, as the exam's manifest records them."""
        attempts = sum(self._counts[verdict.value] for verdict in Verdict)
        return {
            "questions": attempts // self._samples,
            "attempts": attempts,
            **self._counts,
            "mistaken_questions": self._mistaken,
            "changes": None if self._changes is None else {name: self._changes[name] for name in CHANGES},
            "quarantined": sorted(self._quarantined),
            "disputed_attempts": [attempt for _, attempt in self._disputed],
        }


def _stream(examiner: Examiner, todo: list[Part]) -> Iterator[Part]:
    """Records of attempt parts in the order in which their tasks end."""
    if not todo:
        return
    import ray

    from tailor_ray.student.supervisor import own_errors

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # so that our errors arrive as what they are
    context.execution_no_progress_timeout_s = -1  # a slow teacher may hold the exam for hours; engines have own bounds
    parts = ray.data.from_items(
        [{"part": part.to_json()} for part in todo], override_num_blocks=-(-len(todo) // examiner.parallelism.block)
    )
    records = parts.map_batches(
        cast(Any, examiner),  # Ray's types know a function, not an object that is called
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=min(examiner.parallelism.parts, len(todo))),
    )
    try:
        with own_errors():
            for batch in records.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from map(Part.from_json, cast(pa.Table, batch)["part"].to_pylist())
    except ray.exceptions.WorkerCrashedError as error:
        raise StageError(f"the workers that grade the exam died: {error}; run it again") from error


# How many questions are one part.

TOKENS_PER_ENGINE = 32_768  # the most that a part's answers hold: 10 s of a GPU's engine, two minutes of a CPU's
ENGINES = 2  # what `student.engines: auto` counts as
MOST = 1024  # questions
PARTS = 16  # that training questions have at least, if that leaves FEWEST questions in each
FEWEST = 8


def questions_per_part(config: RunConfig, split: str, questions: int) -> int:
    """The size of a part: `exam.shard_questions`, or what suits the work where that is `auto`.

    `split` is train, validation or test, and `questions` how many it has. Every count of `enough_to_know` questions and
    more gives the same size, so a longer split need not be counted first.
    """
    if config.exam.shard_questions != "auto":
        return config.exam.shard_questions
    most = _by_tokens(config, split)
    parts = PARTS if split == "train" else max(1, -(-questions // most))
    return min(most, max(FEWEST, -(-questions // parts)))


def enough_to_know(config: RunConfig, split: str) -> int:
    """From how many questions of `split` on the size of a part no longer depends on their number."""
    return PARTS * _by_tokens(config, split)


def _by_tokens(config: RunConfig, split: str) -> int:
    engines = ENGINES if config.student.engines == "auto" else config.student.engines
    tokens = config.evaluation.max_new_tokens
    if split == "train":
        tokens = config.exam.samples * config.exam.max_new_tokens
    return max(1, min(MOST, TOKENS_PER_ENGINE * engines // tokens))
