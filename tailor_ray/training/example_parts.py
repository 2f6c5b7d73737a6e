"""The parts of the stage `examples`: made by one Ray task per part, read by workers from their node's copy.

In: part i of the questions, of every round's lessons and of the latest exam's attempts. Out: part i of the examples,
texts beside token ids. Its record has counts, and what a training plan needs of its rows.

Always holds. A part depends on the same parts of earlier stages alone. The driver sees counts, never rows. Parts that
were committed before are kept, after their rows were found to be whole.

`node_rows` reads them. The workers of a node verify and copy each part to it once, into an Arrow file of its token ids.
Files are mapped. So a worker holds no more in memory than the step's own rows and what the page cache keeps. The copy
is reused by a retry. It goes with the end of the training or, where that was killed, with the next training there.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock

from tailor_ray.errors import CorruptionError, TailorError
from tailor_ray.layout import ATTEMPTS, EXAMPLES, LESSONS, SPLITS
from tailor_ray.models import ModelRef, resolve
from tailor_ray.records import TRAIN_EXAMPLE_SCHEMA, Lesson, Question, R, TrainExample, from_table, to_table
from tailor_ray.storage import Part, PartsDigest, Store, commit_part, find_part, read_part
from tailor_ray.storage.store import node_cache
from tailor_ray.training.examples import Prompt, build_examples
from tailor_ray.training.plan import PLANNING, PartShape
from tailor_ray.training.tokens import ID_COLUMNS, TOKEN_SCHEMA, Rows, TokenExample, token_limit, tokenize_examples

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig

log = logging.getLogger(__name__)

NAMED = 100  # question ids that a record names of those that were truncated or skipped
RETRIES = 3  # of a part whose node was lost
PARTS_PER_PROCESS = 8  # at least: one part takes about a tenth of the time in which a process imports the libraries
LEFT_OUT = {
    "truncated": "their rationale was cut at training.max_length",
    "skipped": "their prompt leaves no room for a rationale: raise training.max_length",
}
TOKEN_COLUMNS = (*ID_COLUMNS, "shared")  # beside the texts' own columns
SCHEMA = pa.schema([*TRAIN_EXAMPLE_SCHEMA, *(TOKEN_SCHEMA.field(name) for name in TOKEN_COLUMNS)])


@dataclass(frozen=True)
class ExamplesJob:
    """What a round's examples are made of; picklable.

    `student` is whose tokenizer is used, and by whom lessons are chosen that are to fit; `special_tokens` says whether
    the tokenizer adds its own to a prompt (off for chat templates, which write them). `questions`, `lessons` (by round,
    ascending) and `attempts` are folders of committed stages, `out` is the stage's own. `latest` is the newest round
    that has lessons. `branches` says that lessons go on from a mistake's right beginning, which is no negative then.
    """

    config: TrainingConfig
    prompt: Prompt
    student: ModelRef
    special_tokens: bool
    questions: Store
    lessons: Mapping[int, Store]
    attempts: Store
    out: Store
    seed: int
    round: int
    latest: int
    branches: bool = False


def make_examples(
    job: ExamplesJob, count: int, on_part: Callable[[Part], None] = lambda _: None
) -> tuple[PartsDigest, dict[str, Any]]:
    """Make all `count` parts, with Ray initialised.

    `on_part` gets the record of each as it is done. Returns what the manifest says of the parts, and the sums of their
    counts: those of `build_examples`, `with_pair_trained`, `boundary_moved` (a token reached over the prompt's end),
    `truncated` and `skipped`. For the last two the first question ids are listed as `truncated_ids` and `skipped_ids`.
    Errors of ours arrive as they were raised in the task.
    """
    counts: Counter[str] = Counter()
    named: dict[str, list[tuple[int, str]]] = {what: [] for what in LEFT_OUT}
    parts = []
    for part in _run(job, count):
        counts.update(part.info["counts"])
        for what, ids in named.items():
            named[what] = sorted([*ids, *((part.index, name) for name in part.info[f"{what}_ids"])])[:NAMED]
        parts.append(replace(part, info={}))
        on_part(part)
    for what, ids in named.items():
        if ids:
            more = f" and {counts[what] - 8} more" if counts[what] > 8 else ""
            names = ", ".join(name for _, name in ids[:8])
            log.warning("%d examples were %s, %s: %s%s", counts[what], what, LEFT_OUT[what], names, more)
    ids_of = {f"{what}_ids": [name for _, name in ids] for what, ids in named.items()}
    return PartsDigest.of(parts), {**counts, **ids_of}


def write_examples(job: ExamplesJob, index: int) -> Part:
    """Make part `index`. Raises CorruptionError for a damaged part of an earlier stage, ModelError for the student."""
    tokenizer, max_length = _tokenizer(job.student, job.config.max_length)
    examples, counts = build_examples(
        questions=_rows(job.questions, SPLITS[0], index, Question),
        lessons=[row for folder in job.lessons.values() for row in _rows(folder, LESSONS, index, Lesson)],
        attempts=_answered(job.attempts, index),
        prompt=job.prompt,
        config=job.config,
        seed=job.seed,
        round=job.round,
        latest=job.latest,
        fit=partial(_fit, job, tokenizer, max_length),
    )
    arguments = (job.config, job.special_tokens, counts, job.branches)
    return commit_examples(job.out, index, examples, tokenizer, max_length, *arguments)


def _fit(job: ExamplesJob, tokenizer: Any, max_length: int, rows: Sequence[tuple[str, str]]) -> list[float]:
    from tailor_ray.training.forward import fit_scores, student_on_cpu

    if not rows:
        return []
    student = student_on_cpu(job.student)
    return fit_scores(student, tokenizer, rows, max_length, job.special_tokens, job.config.fit_by)


def commit_examples(
    out: Store,
    index: int,
    examples: Sequence[TrainExample],
    tokenizer: Any,
    max_length: int,
    config: TrainingConfig,
    special_tokens: bool = True,
    counts: Mapping[str, int] = MappingProxyType({}),
    branches: bool = False,
) -> Part:
    """Tokenize and write part `index` below `out`.

    `max_length` bounds prompt plus completion, in tokens. `special_tokens` and `branches` are as in
    `tokenize_examples`. Returns its record, which adds to `counts` what became of the examples.
    """
    data = tokenize_examples(
        examples, tokenizer, max_length, config.rationale_cap, config.pairs, special_tokens, branches
    )
    texts = to_table([examples[row] for row in data.kept], TRAIN_EXAMPLE_SCHEMA)
    tokens = [data.table.column(name) for name in TOKEN_COLUMNS]
    table = pa.Table.from_arrays([*texts.columns, *tokens], schema=SCHEMA)
    shape = PartShape.of(data.table)
    info: dict[str, Any] = {PLANNING: shape.to_info()}
    info["counts"] = {**counts, "with_pair_trained": int((shape.lengths[3] > 0).sum())}
    info["counts"]["boundary_moved"] = data.moved
    for what, ids in (("truncated", data.truncated), ("skipped", data.skipped)):
        info["counts"][what] = len(ids)
        info[f"{what}_ids"] = ids[:NAMED]
    return commit_part(out, EXAMPLES, index, table, info)


def _run(job: ExamplesJob, count: int) -> Iterator[Part]:
    """The parts' records as they are done, by Ray tasks on all nodes: one per CPU at most, two where storage is far."""
    import ray

    # engines may hold all CPUs while nothing is asked of them, so a task reserves none
    work = ray.remote(keep_or_write).options(num_cpus=0, scheduling_strategy="SPREAD", max_retries=RETRIES)
    most = int(ray.cluster_resources().get("CPU", 1)) * (1 if job.out.is_local else 2)
    given, at_once = ray.put(job), min(most, -(-count // PARTS_PER_PROCESS))
    running: list[Any] = []
    for index in range(count):
        running.append(work.remote(given, index))
        if len(running) >= at_once:
            done, running = ray.wait(running)
            yield _or_raise(ray.get(done[0]))
    while running:
        done, running = ray.wait(running)
        yield _or_raise(ray.get(done[0]))


def _or_raise(result: Part | TailorError) -> Part:
    if isinstance(result, TailorError):
        raise result
    return result


def keep_or_write(job: ExamplesJob, index: int) -> Part | TailorError:
    """The record of part `index` without what the driver has no use for, or what went wrong."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks share out the cores
    try:
        part = _kept(job.out, index) or write_examples(job, index)
    except TailorError as error:
        return error
    return replace(part, info={name: value for name, value in part.info.items() if name != PLANNING})


def _kept(out: Store, index: int) -> Part | None:
    """The part, if it is there and whole."""
    try:
        part = find_part(out, EXAMPLES, index)
        read_part(out, part, ["question_id"])
    except CorruptionError:
        return None
    return part


class _Answered(NamedTuple):
    question_id: str
    text: str
    verdict: str


def _answered(exam: Store, index: int) -> Iterator[_Answered]:
    table = read_part(exam, find_part(exam, ATTEMPTS, index), _Answered._fields)
    return map(_Answered, *(table[name].to_pylist() for name in _Answered._fields))


def _rows(store: Store, prefix: str, index: int, record: type[R]) -> list[R]:
    return from_table(read_part(store, find_part(store, prefix, index)), record)


@lru_cache(maxsize=1)
def _tokenizer(student: ModelRef, max_length: int) -> tuple[Any, int]:
    """The student's tokenizer, and the tokens of prompt plus completion; once per process, for both take seconds."""
    from transformers import AutoConfig, AutoTokenizer

    folder = resolve(student)
    return AutoTokenizer.from_pretrained(folder), token_limit(AutoConfig.from_pretrained(folder), max_length)


# The rows that a worker trains on.

OPEN_PARTS = 256  # mapped at a time, each with a file descriptor; to map one takes some 0.1 ms
Together = Callable[[Callable[[], Any]], Any]


class NodeRows:
    """All rows of some parts by number; `counts` are the parts' rows, `open_part` gives those of one."""

    def __init__(self, counts: Sequence[int], open_part: Callable[[int], Rows]) -> None:
        self._ends = np.cumsum(counts)
        self._counts = counts
        self._open = lru_cache(OPEN_PARTS)(open_part)

    def take(self, indices: Iterable[int]) -> list[TokenExample]:
        places = ((index, int(np.searchsorted(self._ends, index, side="right"))) for index in indices)
        return [self._open(part)[index - int(self._ends[part]) + self._counts[part]] for index, part in places]


@contextmanager
def node_rows(
    store: Store, parts: Sequence[Part], local_rank: int, local_workers: int, together: Together
) -> Iterator[NodeRows]:
    """The rows of all parts, of which this worker copies its share to the node.

    `store` holds `parts`. This is worker `local_rank` of the `local_workers` of its node. `together` runs its share and
    returns when all workers did theirs. Raises CorruptionError for a damaged part.
    """
    name = hashlib.sha256(f"{store.uri} {PartsDigest.of(parts).sha256}".encode()).hexdigest()[:32]
    with _held(node_cache() / "examples", name) as folder:
        together(lambda: _copy(store, parts[local_rank::local_workers], folder))
        files = [_file(part, folder) for part in parts]

        def mapped(number: int) -> Rows:
            return Rows(pa.ipc.open_file(pa.memory_map(str(files[number]))).get_batch(0))

        yield NodeRows([part.rows for part in parts], mapped)


def _file(part: Part, folder: Path) -> Path:
    return folder / Path(part.entry.path).with_suffix(".arrow").name


def _copy(store: Store, parts: Sequence[Part], folder: Path) -> None:
    """Those that are not there yet."""
    for part in parts:
        target = _file(part, folder)
        if target.exists():
            continue
        table = read_part(store, part, TOKEN_SCHEMA.names).combine_chunks()
        temporary = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        temporary.rename(target)


@contextmanager
def _held(base: Path, name: str) -> Iterator[Path]:
    """The folder `name`, safe from being removed while this lasts; those that nobody holds are removed.

    It is removed itself when its last holder ends well, and kept for a retry when one is cut off.
    """
    folder = base / name
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / ".lock"):
        for other in base.iterdir():
            if other.is_dir() and other != folder:
                _remove_unheld(other)
        holding = _lock_file(folder)
        fcntl.flock(holding, fcntl.LOCK_SH)  # goes with the process, however it ends
        folder.mkdir(exist_ok=True)
    try:
        yield folder
    except BaseException:
        holding.close()
        raise
    with FileLock(base / ".lock"):
        holding.close()
        _remove_unheld(folder)


def _lock_file(folder: Path) -> IO[bytes]:
    return folder.with_name(f"{folder.name}.held").open("ab")


def _remove_unheld(folder: Path) -> None:
    with _lock_file(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder, ignore_errors=True)
        Path(file.name).unlink()
