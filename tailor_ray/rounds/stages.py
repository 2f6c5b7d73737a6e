"""The stages: each reads what earlier manifests name, writes its own folder, and returns its files and metrics.

The runner decides what runs and commits the manifest; nothing here does. A stage killed half-way is called again
and finds its committed parts, ledger rows or checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tailor_ray.observe import live
from tailor_ray.records import (
    QUESTION_SCHEMA,
    TRAIN_EXAMPLE_SCHEMA,
    Attempt,
    Lesson,
    Question,
    R,
    from_table,
    to_table,
)
from tailor_ray.rounds.card import write_card
from tailor_ray.rounds.feed import Feed
from tailor_ray.rounds.session import Session
from tailor_ray.rounds.spec import QUESTIONS, StageId, student_after
from tailor_ray.storage import FileEntry, Part, Store, commit_part, committed_parts, read_part
from tailor_ray.student.model import folder_sha256

log = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage made: its files (paths relative to its folder) and the metrics that the report shows."""

    files: tuple[FileEntry, ...]
    metrics: dict[str, Any]


def questions(run: Session, stage: StageId) -> Outcome:
    """Write the task's splits as parts of `exam.shard_questions` rows, so that exam part i answers question part i."""
    out = run.folder(stage)
    counts: dict[str, Any] = {}
    files: list[FileEntry] = []
    for split in SPLITS:
        parts = _write_questions(out, split, getattr(run.task, split), run.config.exam.shard_questions)
        counts[split] = sum(part.entry.rows or 0 for part in parts)
        files += [part.entry for part in parts]
    run.check_splits(counts)
    return Outcome(tuple(files), {**counts, "findings": run.task.findings.to_json()})


def _write_questions(out: Store, split: str, rows: Iterable[Question], size: int) -> list[Part]:
    iterator = iter(rows)
    parts: list[Part] = []
    while batch := list(islice(iterator, size)):
        parts.append(commit_part(out, split, len(parts), to_table(batch, QUESTION_SCHEMA)))
    return parts


def student(run: Session, stage: StageId) -> Outcome:
    """Make the tiny student, or record the content hash of the one that was given."""
    out = run.folder(stage)
    if run.config.student.model == "tiny":
        files, metrics = run.make_tiny_student(out)
        return Outcome(files, {**metrics, "path": f"{out.uri}/student"})
    given = {"path": run.config.student.model, "sha256": folder_sha256(run.given_student)}
    return Outcome((out.write_json("student.json", given),), given)


def exam(run: Session, stage: StageId, on_part: Callable[[Part], None] = lambda _: None) -> Outcome:
    """The student answers every training question several times; each shard is committed and handed on at once."""
    checksum = run.serve_student(student_after(stage.round - 1))
    out = run.folder(stage)
    metrics = run.examine(out, "attempts", "train", stage, on_part)
    return Outcome(_entries(out, "attempts"), {**metrics, "student_sha256": checksum})


def teach(run: Session, stage: StageId, shards: Iterable[Part]) -> Outcome:
    """The teacher answers for the shards as they come; done when the last shard's lessons are committed."""
    from tailor_ray.teacher.teach import teach as ask_teacher

    run.connect()
    out = run.folder(stage)
    exam_folder, question_folder = run.folder(StageId(stage.round, "exam")), run.folder(QUESTIONS)
    question_parts = {part.index: part for part in committed_parts(question_folder, "train", verify=False)}

    def joined() -> Iterator[tuple[list[Question], list[Attempt]]]:
        for part in shards:
            asked = from_table(read_part(question_folder, question_parts[part.index]), Question)
            yield asked, from_table(read_part(exam_folder, part), Attempt)

    taught = frozenset(
        lesson.question_id
        for number in range(1, stage.round)
        for lesson in _rows(run.folder(StageId(number, "teach")), "lessons", Lesson)
    )
    with run.progress.stage(str(stage), unit="lessons") as bar:
        questions = sum(part.entry.rows or 0 for part in question_parts.values())
        job = run.teach_job(
            stage,
            taught,
            questions,
            lambda counts: bar.update(done=counts.get("done", 0), total=counts.get("wanted", 0)),
        )
        metrics = ask_teacher(job, joined(), out, run.store.child("teacher"))
    return Outcome((*_entries(out, "lessons"), *_entries(out, "requests")), metrics)


def train(run: Session, stage: StageId) -> Outcome:
    """The student learns from all accepted lessons so far and from its latest mistakes."""
    from tailor_ray.training.examples import build_examples

    out = run.folder(stage)
    lessons = [
        lesson
        for number in range(1, stage.round + 1)
        for lesson in _rows(run.folder(StageId(number, "teach")), "lessons", Lesson)
    ]
    examples, counts = build_examples(
        questions=_rows(run.folder(QUESTIONS), "train", Question),
        lessons=lessons,
        attempts=_rows(run.folder(StageId(stage.round, "exam")), "attempts", Attempt),
        prompt=run.prompt,
        config=run.config.training,
        round=stage.round,
        seed=run.config.seed,
    )
    part = commit_part(out, "examples", 0, to_table(examples, TRAIN_EXAMPLE_SCHEMA), counts)
    run.connect()
    run.release_engines()
    export = live.Training()

    def show(done: int, steps: int, figures: dict[str, Any]) -> None:
        bar.update(done=done, total=steps)
        export(done, steps, figures)

    with run.progress.stage(str(stage), unit="steps") as bar:
        result = run.train(stage, show)
    return Outcome((part.entry, *result.files), {**counts, **result.metrics})


def evaluate(run: Session, stage: StageId) -> Outcome:
    """Greedy answers on validation, which decides when to stop, and on test, for the report alone.

    A trained student is first compared with what transformers makes of it, and gets its model card at the end.
    """
    checksum = run.serve_student(student_after(stage.round))
    out = run.folder(stage)
    metrics: dict[str, Any] = {}
    if stage.round:
        metrics["agreement"] = run.check_agreement(student_after(stage.round))
    files: tuple[FileEntry, ...] = ()
    for split in ("validation", "test"):
        metrics[split] = run.score(out, split, stage)
        files += _entries(out, split)
    if stage.round:
        write_card(run.store, run.config, stage.round, metrics)
    return Outcome(files, {**metrics, "student_sha256": checksum})


def mine(run: Session, exam_stage: StageId, teach_stage: StageId, commit: Callable[[StageId, Outcome], None]) -> None:
    """Exam and teaching at the same time: the teacher starts with the first committed shard."""
    run.connect()  # before there are two threads that would
    feed = Feed()
    teaching = feed.consume(lambda shards: teach(run, teach_stage, shards))
    with teaching:
        commit(exam_stage, exam(run, exam_stage, feed.put))
        feed.close()
        outcome = teaching.result()
    commit(teach_stage, outcome)


def teach_committed(run: Session, stage: StageId) -> Outcome:
    """Teaching alone, when its exam was committed before the run was stopped."""
    return teach(run, stage, committed_parts(run.folder(StageId(stage.round, "exam")), "attempts", verify=False))


def _entries(store: Store, prefix: str) -> tuple[FileEntry, ...]:
    return tuple(part.entry for part in committed_parts(store, prefix, verify=False))


def _rows(store: Store, prefix: str, record: type[R]) -> list[R]:
    return [row for part in committed_parts(store, prefix) for row in from_table(read_part(store, part), record)]


WORK: dict[str, Callable[[Session, StageId], Outcome]] = {
    "questions": questions,
    "student": student,
    "exam": exam,
    "teach": teach_committed,
    "train": train,
    "evaluate": evaluate,
}
"""What does a stage by itself; exam and teaching together are `mine`."""
