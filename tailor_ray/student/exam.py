"""The exam, and with one greedy sample the evaluation: question parts in, attempt parts out.

Ray Data streams the records of question parts through `Examiner` tasks on any node. A task reads its part, asks the
engines in slices, grades, writes the attempt part and passes on its record. What always holds: attempt part i holds
exactly one row for each sample of each question of question part i, in question order, whatever happened to the
engines; a committed part is neither read nor run again; an attempt's seed depends on the run's seed, the round, the
question and the sample alone; the driver sees records and no rows. A bounded number of parts is under way: a task
begins the next one when the driver has taken over enough of those before, so an exam does not run away from a slow
teacher.

So the same seed gives the same attempts whatever the parts, their order or the number of engines, as far as an engine
computes a sequence alike in every company: on CPU in float32 it did in all tests. In half precision, on GPUs, and
between kinds of hardware, sums are taken in an order that depends on what else is decoded; a close call between two
tokens may then fall the other way, and that sample goes on differently.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute

from tailor_ray.answers import Grade, Grader
from tailor_ray.answers.standing import CHANGES, compare
from tailor_ray.errors import StageError
from tailor_ray.layout import ATTEMPTS
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import ATTEMPT_SCHEMA, Question, Verdict, from_table
from tailor_ray.storage import (
    Part,
    PartsDigest,
    Store,
    commit_part,
    committed_parts,
    find_part,
    read_part,
    stage_parts,
)
from tailor_ray.student.sampling import Completions, Sampling, sample_seed, unaskable
from tailor_ray.tasks.base import LISTED

log = logging.getLogger(__name__)
MOST_PARTS_PER_TASK = 4
PARTS_PER_TASK_FROM = 16  # so many times as many parts as tasks, so that the last tasks end together
DISPUTED_PER_PART = 20  # attempts that a part's record lists; the part has all of them


class Engines(Protocol):
    """What an exam needs of an engine pool; picklable."""

    engines: int
    max_num_seqs: int

    def begin_stage(self, max_restarts: int, room: int = 0) -> None: ...
    def enter_part(self, index: int) -> None: ...
    def leave_part(self, index: int) -> None: ...
    def restarts(self) -> int: ...
    def answer(self, ids: list[str], prompts: list[str], seeds: list[list[int]], sampling: Sampling) -> Completions: ...


@dataclass(frozen=True)
class ExamJob:
    """What is asked, how it is sampled and graded. Picklable."""

    prefix: str  # of the attempt parts
    split: str  # of the question parts
    prompt: StudentPrompt
    grader: Grader
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int  # the run's
    round: int
    max_engine_restarts: int = 3
    before: Store | None = None  # the exam of the round before, to say what became of its mistakes

    def sampling(self) -> Sampling:
        return Sampling(
            self.temperature, self.top_p, self.max_new_tokens, self.prompt.stop, self.prompt.style == "plain"
        )


def run_exam(
    pool: Engines, job: ExamJob, questions: Store, out: Store, on_part: Callable[[Part], None]
) -> tuple[dict[str, Any], PartsDigest]:
    """Answer every question part that has no attempt part yet; `on_part` gets the record of every part once.

    While `on_part` blocks, because the teacher is slower than the exam, the parts under way end and no other begins.
    Returns the counts over all parts, those of an earlier try included, and their digest. Raises StageError when
    engines die more often than `max_engine_restarts`, CorruptionError for a damaged question part.
    """
    started = time.monotonic()
    asked = stage_parts(questions, job.split)
    done = {part.index: part for part in committed_parts(out, job.prefix)}
    todo = [part for part in asked if part.index not in done]
    shape = Shape.of(pool, job.samples, todo)
    pool.begin_stage(job.max_engine_restarts, shape.parts * shape.block)
    totals = Totals(job.samples)
    for part in done.values():
        totals.add(part)
        on_part(part)
    for part in _stream(Examiner(pool, job, questions, out, shape), todo):
        totals.add(part)
        on_part(part)
        pool.leave_part(part.index)
    missing = {part.index for part in asked} - totals.entries.keys()
    if missing:
        raise StageError(f"the exam ended without the attempts on question parts {sorted(missing)[:8]}; run it again")
    metrics = totals.metrics()
    metrics |= {"engine_restarts": pool.restarts(), "seconds_engine": round(time.monotonic() - started, 3)}
    return metrics, PartsDigest.of(totals.entries.values())


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


def part_info(table: pa.Table, before: pa.Table | None) -> dict[str, Any]:
    """What an attempt part's record says: verdicts and tokens counted, mistakes and what became of the last ones."""
    counts = Counter(table["verdict"].to_pylist())
    counts["prompt_tokens"] = pa.compute.sum(table["prompt_tokens"]).as_py() or 0
    counts["output_tokens"] = pa.compute.sum(table["output_tokens"]).as_py() or 0
    quarantined = []
    if counts[Verdict.ERROR]:
        rows = zip(table["question_id"].to_pylist(), table["detail"].to_pylist(), strict=True)
        quarantined = sorted({name for name, detail in rows if (detail or "").startswith("quarantined")})
    wrong = table.filter(pa.compute.equal(table["verdict"], Verdict.WRONG.value))
    disputed = table.filter(pa.compute.equal(table["verdict"], Verdict.DISPUTED.value)).slice(0, DISPUTED_PER_PART)
    return {
        "counts": dict(counts),
        "mistaken_questions": len(wrong["question_id"].unique()),
        "changes": None if before is None else compare(before, table),
        "quarantined": quarantined,
        "disputed_attempts": disputed.select(["question_id", "sample", "answer", "detail"]).to_pylist(),
    }


@dataclass(frozen=True, slots=True)
class Shape:
    """How an exam is spread: questions of a slice, slices that a task asks at a time, tasks at a time, parts of one.

    A task does one part, or several of an exam that has so many that Ray's work for each task would show.
    """

    slice: int
    threads: int
    parts: int
    block: int

    @classmethod
    def of(cls, pool: Engines, samples: int, todo: list[Part]) -> Shape:
        """A slice fills at most half of what one engine decodes at once, and there is work for all engines.

        Parts under way ask together about twice what the engines decode at once, to keep these busy.
        """
        total = sum(part.rows for part in todo)
        largest = max((part.rows for part in todo), default=1)
        size = max(1, min(pool.max_num_seqs // (2 * samples), -(-total // (2 * pool.engines))))
        wanted = 2 * pool.engines + 2
        threads = max(1, min(wanted, -(-largest // size)))
        tasks = max(2, 1 + -(-wanted // threads))
        return cls(size, threads, tasks, max(1, min(MOST_PARTS_PER_TASK, len(todo) // (PARTS_PER_TASK_FROM * tasks))))


def _stream(examiner: Examiner, todo: list[Part]) -> Iterator[Part]:
    """Records of attempt parts in the order in which their tasks end."""
    if not todo:
        return
    import ray

    from tailor_ray.student.remote import own_errors

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # so that our errors arrive as what they are
    context.execution_no_progress_timeout_s = -1  # a slow teacher may hold the exam for hours; engines have own bounds
    parts = ray.data.from_items(
        [{"part": part.to_json()} for part in todo], override_num_blocks=-(-len(todo) // examiner.shape.block)
    )
    records = parts.map_batches(
        cast(Any, examiner),  # Ray's types know a function, not an object that is called
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=min(examiner.shape.parts, len(todo))),
    )
    try:
        with own_errors():
            for batch in records.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from map(Part.from_json, cast(pa.Table, batch)["part"].to_pylist())
    except ray.exceptions.WorkerCrashedError as error:
        raise StageError(f"the workers that grade the exam died: {error}; run it again") from error


class Examiner:
    """Answers, grades and writes whole parts. Picklable."""

    def __init__(self, pool: Engines, job: ExamJob, questions: Store, out: Store, shape: Shape) -> None:
        self._pool, self._job, self._questions, self._out = pool, job, questions, out
        self.shape = shape

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Ray Data's edge: a column of question parts in, one of attempt parts out."""
        return {"part": [self.examine(Part.from_json(text)).to_json() for text in batch["part"]]}

    def examine(self, part: Part) -> Part:
        job = self._job
        self._pool.enter_part(part.index)
        asked = from_table(read_part(self._questions, part), Question)
        slices = [asked[start : start + self.shape.slice] for start in range(0, len(asked), self.shape.slice)]
        if slices:
            job.prompt.prepare()  # a chat template is read before there are threads
        with ThreadPoolExecutor(self.shape.threads) as threads:
            tables = [ATTEMPT_SCHEMA.empty_table(), *threads.map(self._ask, slices)]
        table = pa.concat_tables(tables).combine_chunks()
        before = None
        if job.before is not None:
            earlier = find_part(job.before, ATTEMPTS, part.index)
            before = read_part(job.before, earlier, ["question_id", "verdict"])
        return commit_part(self._out, job.prefix, part.index, table, part_info(table, before))

    def _ask(self, asked: list[Question]) -> pa.Table:
        seeds = [self._seeds(question) for question in asked]
        prompts = [self._job.prompt.render(question) if askable(question) else "" for question in asked]
        said = self._pool.answer([question.id for question in asked], prompts, seeds, self._job.sampling())
        return self._table(asked, seeds, said)

    def _seeds(self, question: Question) -> list[int]:
        return [
            sample_seed(self._job.seed, self._job.round, question.id, sample) for sample in range(self._job.samples)
        ]

    def _table(self, asked: list[Question], seeds: list[list[int]], said: Completions) -> pa.Table:
        samples = self._job.samples
        each = [question for question in asked for _ in range(samples)]
        answers: list[str | None] = []
        verdicts: list[str] = []
        details: list[str | None] = []
        for question, text, reason, error in zip(each, said.texts, said.finish_reasons, said.errors, strict=True):
            if error is None:
                grade = self._job.grader.grade(question, self._job.prompt.begun + text, reason)
            else:
                grade = Grade(Verdict.ERROR, None, unaskable(question.text) or error)
            answers.append(grade.answer)
            verdicts.append(grade.verdict.value)
            details.append(grade.detail)
        columns = [
            [question.id for question in each],
            list(range(samples)) * len(asked),
            said.texts,
            said.finish_reasons,
            answers,
            verdicts,
            [seed for group in seeds for seed in group],
            said.prompt_tokens,
            said.output_tokens,
            details,
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ATTEMPT_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=ATTEMPT_SCHEMA)


def askable(question: Question) -> bool:
    return unaskable(question.text) is None
