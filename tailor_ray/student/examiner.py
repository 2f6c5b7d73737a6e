"""One question part in, one attempt part out: what a task of the exam does, on any node.

Always holds. The attempt part has exactly one row for each sample of each question, in question order, whatever
happened to the engines. What engines have answered of a part that is not whole yet lies beside it, sealed. It is not
asked again after a kill.

Threads wait for engines and do nothing else. The task's own thread renders prompts and grades texts: what these load at
first use must not be loaded by several threads at once.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute

from tailor_ray.answers import Grade, Grader
from tailor_ray.answers.grader import compare
from tailor_ray.layout import ATTEMPTS, answered_folder
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import ATTEMPT_SCHEMA, Question, Verdict, from_table
from tailor_ray.storage import Part, Store, commit_part, committed_parts, find_part, read_part
from tailor_ray.storage.commits import part_name
from tailor_ray.student.sampling import Completions, Sampling, sample_seed, unaskable

log = logging.getLogger(__name__)
MOST_PARTS_PER_TASK = 4
PARTS_PER_TASK_FROM = 16  # so many times as many parts as tasks, so that the last tasks end together
DISPUTED_PER_PART = 20  # attempts that a part's record lists; the part has all of them
SAVE_EVERY_S = 1.0  # answers that came faster than this are saved together: a kill loses at most so much of them


class Engines(Protocol):
    """What an exam needs of an engine pool; picklable."""

    engines: int
    max_num_seqs: int

    def begin_stage(self, max_restarts: int, room: int = 0) -> None: ...
    def enter_part(self, index: int) -> None: ...
    def leave_part(self, index: int) -> None: ...
    def restarts(self) -> int: ...
    def answered(self) -> int: ...
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
        """How the engines sample it; a chat template has written its special tokens itself."""
        return Sampling(
            self.temperature, self.top_p, self.max_new_tokens, self.prompt.stop, self.prompt.style == "plain"
        )


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How an exam is spread: questions of a slice, slices that a task asks at a time, tasks at a time, parts of one.

    A task does one part, or several of an exam that has so many that Ray's work for each task would show.
    """

    slice: int
    threads: int
    parts: int
    block: int

    @classmethod
    def of(cls, pool: Engines, samples: int, todo: list[Part]) -> Parallelism:
        """How to spread `todo`, the question parts that are still to be answered with so many `samples` each.

        A slice fills at most half of what one engine decodes at once, and there is work for all engines. Parts under
        way ask together about twice what the engines decode at once, to keep these busy.
        """
        total = sum(part.rows for part in todo)
        largest = max((part.rows for part in todo), default=1)
        size = max(1, min(pool.max_num_seqs // (2 * samples), -(-total // (2 * pool.engines))))
        wanted = 2 * pool.engines + 2
        threads = max(1, min(wanted, -(-largest // size)))
        tasks = max(2, 1 + -(-wanted // threads))
        return cls(size, threads, tasks, max(1, min(MOST_PARTS_PER_TASK, len(todo) // (PARTS_PER_TASK_FROM * tasks))))


class PartialAnswers:
    """The answers to a part that is not whole yet, as parts of a folder of their own: block i begins at question i.

    They are read by whoever is given the part again, and removed when the part is committed.
    """

    ROWS = "from"

    def __init__(self, out: Store, prefix: str, index: int) -> None:
        self._parent = out.child(answered_folder(prefix))
        self._name = part_name(prefix, index)
        self._store = self._parent.child(self._name)
        self._there = False

    @classmethod
    def rows(cls, out: Store, prefix: str) -> int:
        """How many rows lie below `out` of all parts that are not whole, by their blocks' records."""
        parent = out.child(answered_folder(prefix))
        names = parent.folders()
        return sum(block.rows for name in names for block in committed_parts(parent.child(name), cls.ROWS, False))

    def read(self) -> Iterator[pa.Table]:
        """The blocks that an earlier try left. Raises CorruptionError for a damaged one."""
        for block in committed_parts(self._store, self.ROWS):
            self._there = True
            yield read_part(self._store, block)

    def save(self, start: int, tables: Sequence[pa.Table]) -> None:
        """Commit graded rows as the block that begins at question `start` of the part."""
        commit_part(self._store, self.ROWS, start, pa.concat_tables(tables))
        self._there = True

    def remove(self) -> None:
        """Delete the blocks: the part is committed."""
        if self._there:
            self._parent.delete(self._name)


class Examiner:
    """Answers, grades and writes whole parts. Picklable."""

    def __init__(self, pool: Engines, job: ExamJob, questions: Store, out: Store, parallelism: Parallelism) -> None:
        self._pool, self._job, self._questions, self._out = pool, job, questions, out
        self.parallelism = parallelism

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Ray Data's edge: a column of question parts in, one of attempt parts out."""
        return {"part": [self.examine(Part.from_json(text)).to_json() for text in batch["part"]]}

    def examine(self, part: Part) -> Part:
        """Answer, grade and commit one question part.

        Returns the record of the attempt part. Raises StageError when engines die more often than allowed, and
        CorruptionError when the part, or that of the round before, is damaged.
        """
        job = self._job
        self._pool.enter_part(part.index)
        asked = from_table(read_part(self._questions, part), Question)
        answered = PartialAnswers(self._out, job.prefix, part.index)
        tables = [ATTEMPT_SCHEMA.empty_table(), *self._found(asked, answered)]
        known = {name for table in tables for name in table["question_id"].to_pylist()}
        rest = [place for place, question in enumerate(asked) if question.id not in known]
        tables += self._ask(asked, rest, answered)
        table = in_question_order(pa.concat_tables(tables), [question.id for question in asked])
        before = None
        if job.before is not None:
            earlier = find_part(job.before, ATTEMPTS, part.index)
            before = read_part(job.before, earlier, ["question_id", "verdict"])
        made = commit_part(self._out, job.prefix, part.index, table, part_info(table, before))
        answered.remove()
        return made

    def _found(self, asked: Sequence[Question], answered: PartialAnswers) -> Iterator[pa.Table]:
        """What an earlier try left of this part, as far as it answers what is asked now."""
        seeds = {question.id: self._seeds(question) for question in asked}
        for table in answered.read():
            names = list(dict.fromkeys(table["question_id"].to_pylist()))
            wanted = [seed for name in names for seed in seeds.get(name, ())]
            if table.schema == ATTEMPT_SCHEMA and wanted == table["seed"].to_pylist():
                yield table
            else:
                log.warning("answers of another exam lie beside part %s and are left", part_name(self._job.prefix, 0))

    def _ask(self, asked: Sequence[Question], places: Sequence[int], answered: PartialAnswers) -> Iterator[pa.Table]:
        """Ask the questions at these places in slices; graded rows, slice by slice as engines answer them."""
        slices = [
            places[start : start + self.parallelism.slice] for start in range(0, len(places), self.parallelism.slice)
        ]
        unsaved: dict[int, pa.Table] = {}
        saved = time.monotonic()
        with ThreadPoolExecutor(self.parallelism.threads) as threads:
            waiting: dict[Future[Completions], Sequence[int]] = {}
            for one in slices:
                these = [asked[place] for place in one]
                prompts = [self._job.prompt.render(question) if askable(question) else "" for question in these]
                names, seeds = [question.id for question in these], [self._seeds(question) for question in these]
                waiting[threads.submit(self._pool.answer, names, prompts, seeds, self._job.sampling())] = one
            try:
                for left, future in zip(range(len(waiting) - 1, -1, -1), as_completed(waiting), strict=True):
                    one = waiting[future]
                    table = self._table([asked[place] for place in one], future.result())
                    yield table
                    unsaved[one[0]] = table
                    if left and time.monotonic() - saved >= SAVE_EVERY_S:
                        answered.save(min(unsaved), list(unsaved.values()))
                        unsaved, saved = {}, time.monotonic()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _seeds(self, question: Question) -> list[int]:
        return [
            sample_seed(self._job.seed, self._job.round, question.id, sample) for sample in range(self._job.samples)
        ]

    def _table(self, asked: list[Question], said: Completions) -> pa.Table:
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
            [seed for question in asked for seed in self._seeds(question)],
            said.prompt_tokens,
            said.output_tokens,
            details,
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ATTEMPT_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=ATTEMPT_SCHEMA)


def in_question_order(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """Attempts by the place of their question in `names`, then by sample.

    Returns a table of one chunk per column.
    """
    places = pa.compute.index_in(table["question_id"], pa.array(names, pa.string()))
    order = pa.compute.sort_indices(
        pa.table({"place": places, "sample": table["sample"]}),
        sort_keys=[("place", "ascending"), ("sample", "ascending")],
    )
    return table.take(order).combine_chunks()


def part_info(table: pa.Table, before: pa.Table | None) -> dict[str, Any]:
    """What an attempt part's record says of the attempts in `table`.

    `before` has the columns question_id and verdict of the same part of the exam before, if there was one. Returns
    verdicts and tokens counted, mistaken questions, what became of the last mistakes, quarantined questions, and the
    first DISPUTED_PER_PART disputed attempts.
    """
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


def askable(question: Question) -> bool:
    """Whether the question is text that a student can be asked."""
    return unaskable(question.text) is None
