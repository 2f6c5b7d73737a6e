"""The exam, and with one greedy sample the evaluation: question parts in, attempt parts out.

Ray Data streams slices of the committed question parts through `Examiner` tasks, which ask the engines and grade; the
driver puts each part's attempts back in order and commits them as soon as they are complete. What always holds:
attempt part i holds exactly one row for each sample of each question of question part i, in question order, whatever
happened to the engines; a committed part is neither read nor run again; an attempt's seed depends on the run's seed,
the round, the question and the sample alone. Memory holds a few shards, not the data.

So the same seed gives the same attempts whatever the shards, their order or the number of engines, as far as an engine
computes a sequence alike in every company: on CPU in float32 it did in all tests. In half precision, on GPUs, and
between kinds of hardware, sums are taken in an order that depends on what else is decoded; a close call between two
tokens may then fall the other way, and that sample goes on differently.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute

from tailor_ray.answers import Grade, Grader
from tailor_ray.errors import StageError
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import ATTEMPT_SCHEMA, Question, Verdict, from_table
from tailor_ray.storage import FileEntry, Part, Store, commit_part, committed_parts, read_part
from tailor_ray.student.sampling import Completions, Sampling, sample_seed, unaskable
from tailor_ray.tasks.base import LISTED

log = logging.getLogger(__name__)
HOLD_AFTER_S = 1.0


class Engines(Protocol):
    """What an exam needs of an engine pool; picklable."""

    engines: int
    max_num_seqs: int

    def begin_stage(self, max_restarts: int) -> None: ...
    def restarts(self) -> int: ...
    def hold(self, held: bool) -> None: ...
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

    def sampling(self) -> Sampling:
        return Sampling(
            self.temperature, self.top_p, self.max_new_tokens, self.prompt.stop, self.prompt.style == "plain"
        )


def run_exam(
    pool: Engines, job: ExamJob, questions: Store, out: Store, on_part: Callable[[Part], None]
) -> dict[str, Any]:
    """Answer every question part that has no attempt part yet; `on_part` gets every part once.

    Where `on_part` blocks, because the teacher is slower than the exam, the engines are given nothing more to do
    meanwhile: what is under way ends, and the rest is neither read nor asked until it returns.
    Returns the counts over all parts, those of an earlier try included. Raises StageError when engines die more
    often than `max_engine_restarts`, CorruptionError for a damaged question part.
    """
    started = time.monotonic()
    asked = committed_parts(questions, job.split)
    done = {part.index: part for part in committed_parts(out, job.prefix)}
    todo = [part for part in asked if part.index not in done]
    pool.begin_stage(job.max_engine_restarts)
    totals = Totals(job.samples)
    for part in done.values():
        totals.add(part)
        on_part(part)
    for index, table in _complete(_stream(pool, job, questions, todo), todo, job.samples):
        part = commit_part(out, job.prefix, index, table, _info(table))
        totals.add(part)
        _hand_on(pool, on_part, part)
    metrics = totals.metrics()
    return metrics | {"engine_restarts": pool.restarts(), "seconds_engine": round(time.monotonic() - started, 3)}


def _hand_on(pool: Engines, on_part: Callable[[Part], None], part: Part) -> None:
    """Call `on_part`, and hold the engines while it blocks.

    Ray Data alone would have the exam run ahead until its object store is full, of work that is not committed yet.
    """
    handed = threading.Event()

    def hold() -> None:
        if not handed.wait(HOLD_AFTER_S):
            pool.hold(True)
            handed.wait()
            pool.hold(False)

    thread = threading.Thread(target=hold, name="tailor-hold", daemon=True)
    thread.start()
    try:
        on_part(part)
    finally:
        handed.set()
        thread.join()


class Totals:
    """Counts over committed parts, from what their records say; in whatever order they come."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._counts: Counter[str] = Counter({verdict.value: 0 for verdict in Verdict})
        self._quarantined: set[str] = set()
        self._disputed: list[tuple[tuple[int, int], dict[str, Any]]] = []  # the first LISTED

    def add(self, part: Part) -> None:
        self._counts.update(part.info["counts"])
        self._quarantined.update(part.info["quarantined"])
        listed = enumerate(part.info["disputed_attempts"][:LISTED])
        self._disputed += [((part.index, place), attempt) for place, attempt in listed]
        self._disputed = sorted(self._disputed, key=itemgetter(0))[:LISTED]

    def metrics(self) -> dict[str, Any]:
        attempts = sum(self._counts[verdict.value] for verdict in Verdict)
        return {
            "questions": attempts // self._samples,
            "attempts": attempts,
            **self._counts,
            "quarantined": sorted(self._quarantined),
            "disputed_attempts": [attempt for _, attempt in self._disputed],  # the parts have all of them
        }


def _info(table: pa.Table) -> dict[str, Any]:
    """What a part's record says: verdicts and tokens counted, questions quarantined, attempts disputed."""
    counts = Counter(table["verdict"].to_pylist())
    counts["prompt_tokens"] = sum(table["prompt_tokens"].to_pylist())
    counts["output_tokens"] = sum(table["output_tokens"].to_pylist())
    quarantined = []
    if counts[Verdict.ERROR]:
        rows = zip(table["question_id"].to_pylist(), table["detail"].to_pylist(), strict=True)
        quarantined = sorted({name for name, detail in rows if (detail or "").startswith("quarantined")})
    disputed = table.filter(pa.compute.equal(table["verdict"], Verdict.DISPUTED.value))
    listed = disputed.select(["question_id", "sample", "answer", "detail"]).to_pylist()
    return {"counts": dict(counts), "quarantined": quarantined, "disputed_attempts": listed}


def _stream(pool: Engines, job: ExamJob, questions: Store, todo: list[Part]) -> Iterator[pa.Table]:
    """Attempts in blocks of the order in which engines end them, with columns `part` and `row` of their question."""
    if not todo:
        return
    import ray

    from tailor_ray.student.remote import own_errors

    slices = _slices(todo, pool, job.samples)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # so that our errors arrive as what they are
    context.execution_no_progress_timeout_s = -1  # a slow teacher may hold the exam for hours; engines have own bounds
    tasks, blocks = _tasks(len(slices), pool.engines)
    attempts = ray.data.from_items(slices, override_num_blocks=blocks).map_batches(
        Examiner(pool, job, questions),
        batch_size=None,  # a number would put blocks together until it is reached: one task would ask what two could
        batch_format="pyarrow",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=tasks),
    )
    try:
        with own_errors():
            yield from attempts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except ray.exceptions.WorkerCrashedError as error:
        raise StageError(f"the workers that grade the exam died: {error}; run it again") from error


def _slices(todo: list[Part], pool: Engines, samples: int) -> list[dict[str, Any]]:
    """Part, first row and rows of each batch: at most half of what one engine decodes at once, and work for all."""
    total = sum(part.entry.rows or 0 for part in todo)
    size = max(1, min(pool.max_num_seqs // (2 * samples), -(-total // (2 * pool.engines))))
    return [
        {"rows": size, "part": part.index, "file": asdict(part.entry), "start": start}
        for part in todo
        for start in range(0, part.entry.rows or 0, size)
    ]


def _tasks(slices: int, engines: int) -> tuple[int, int]:
    """Tasks at a time, and blocks of slices; a task asks all slices of its block at once.

    Few tasks of several threads: a process's import of ray.data alone costs 3 s of CPU, and the processes of two
    tasks stay for the next stage. Together they ask twice what the engines decode at once, to keep these busy.
    """
    tasks = max(2, engines // 2)
    threads = -(-2 * engines // tasks) + 1
    blocks = max(-(-slices // threads), min(tasks, slices))
    return min(blocks, tasks), blocks


class Examiner:
    """Asks the engines several slices at once and grades what they say. Picklable."""

    def __init__(self, pool: Engines, job: ExamJob, questions: Store) -> None:
        self._pool, self._job, self._questions = pool, job, questions

    def __call__(self, batch: pa.Table) -> pa.Table:
        slices = batch.to_pylist()
        with ThreadPoolExecutor(len(slices)) as threads:
            return pa.concat_tables(list(threads.map(self._examine, slices)))

    def _examine(self, slice_: dict[str, Any]) -> pa.Table:
        part = Part(slice_["part"], FileEntry(**slice_["file"]), {})
        asked = from_table(read_part(self._questions, part).slice(slice_["start"], slice_["rows"]), Question)
        seeds = [self._seeds(question) for question in asked]
        prompts = [self._job.prompt.render(question) if askable(question) else "" for question in asked]
        said = self._pool.answer([question.id for question in asked], prompts, seeds, self._job.sampling())
        graded = self._table(asked, seeds, said)
        rows = [slice_["start"] + row for row in range(len(asked)) for _ in range(self._job.samples)]
        return graded.append_column("part", pa.array([slice_["part"]] * len(rows), pa.int32())).append_column(
            "row", pa.array(rows, pa.int32())
        )

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
                grade = self._job.grader.grade(question, text, reason)
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


def _complete(blocks: Iterator[pa.Table], todo: list[Part], samples: int) -> Iterator[tuple[int, pa.Table]]:
    """Each part's attempts once all of them have come, in question order."""
    missing = {part.index: (part.entry.rows or 0) * samples for part in todo}
    waiting: dict[int, list[pa.Table]] = {}
    for index, rows in list(missing.items()):
        if rows == 0:
            yield index, ATTEMPT_SCHEMA.empty_table()
            del missing[index]
    for block in blocks:
        for index in block["part"].unique().to_pylist():
            rows = block.filter(pa.compute.equal(block["part"], index))
            waiting.setdefault(index, []).append(rows)
            missing[index] -= rows.num_rows
            if missing[index] == 0:
                table = pa.concat_tables(waiting.pop(index)).sort_by([("row", "ascending"), ("sample", "ascending")])
                yield index, table.select(ATTEMPT_SCHEMA.names).cast(ATTEMPT_SCHEMA).combine_chunks()
                del missing[index]
    if missing:
        raise StageError(f"the exam ended without the attempts on question parts {sorted(missing)}; run it again")
