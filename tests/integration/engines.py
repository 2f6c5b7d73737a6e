"""A small random student on disk and the engine pool over it, shared by every test that needs real generations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmarks.stand_ins import make_student
from tailor_ray.answers import Grader
from tailor_ray.config.student import StudentConfig
from tailor_ray.models import ModelRef, identify
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import QUESTION_SCHEMA, AnswerKind, Attempt, Question, from_table, to_table
from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest, commit_part, committed_parts, read_part
from tailor_ray.student.exam import ExamJob
from tailor_ray.student.pool import EnginePool


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two students that differ in their weights alone."""
    folder = tmp_path_factory.mktemp("students")
    return make_student(folder / "first", seed=0), make_student(folder / "second", seed=1)


@pytest.fixture(scope="session")
def engine_pool(ray_cluster: None, students: tuple[Path, Path]) -> Iterator[EnginePool]:
    """Two engines for the whole session; a test loads the student that it wants first."""
    pool = EnginePool(StudentConfig(engines=2, kv_cache_gib=0.125, max_model_len=512), seed=7)
    pool.serve(ref(students[0]))
    yield pool
    pool.stop()


def ref(folder: Path) -> ModelRef:
    """The reference of a local model folder."""
    return identify(str(folder))


def write_questions(store: Store, questions: Sequence[Question], size: int) -> None:
    """Training questions as the questions stage leaves them: parts, then the manifest."""
    parts = [
        commit_part(store, "train", index, to_table(questions[start : start + size], QUESTION_SCHEMA))
        for index, start in enumerate(range(0, len(questions), size))
    ]
    commit_manifest(
        store, Manifest("questions", 0, "", {}, {"train": PartsDigest.of(parts)}, 0.0, {"train": len(questions)})
    )


def exam_job(**changes: Any) -> ExamJob:
    """A short exam of two samples a question."""
    job = ExamJob(
        prefix="attempts",
        split="train",
        prompt=StudentPrompt("plain", AnswerKind.NUMBER),
        grader=Grader(AnswerKind.NUMBER),
        samples=2,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=16,
        seed=7,
        round=1,
    )
    return replace(job, **changes)


def attempts(store: Store, prefix: str = "attempts") -> list[Attempt]:
    return [row for part in committed_parts(store, prefix) for row in from_table(read_part(store, part), Attempt)]
