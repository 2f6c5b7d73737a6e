"""What a run is to do, as data: each stage with the settings and the earlier stages that its result depends on.

A stage is done when its manifest names the same spec and the same inputs; whatever changes the result is hashed,
paths, limits and retry settings are not. Nothing here touches a file or Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tailor_ray.config import RunConfig


@dataclass(frozen=True, slots=True, order=True)
class StageId:
    """A stage of a round, and the folder that it owns."""

    round: int
    name: str

    @property
    def folder(self) -> tuple[str, str, str]:
        return ("rounds", f"{self.round:02d}", self.name)

    def __str__(self) -> str:
        return f"round {self.round} {self.name}"


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage: `settings` are those that change its result, `after` are the stages it reads."""

    id: StageId
    settings: Mapping[str, Any]
    after: tuple[StageId, ...]

    def digest(self) -> str:
        text = json.dumps(self.settings, sort_keys=True, default=str)
        return hashlib.sha256(f"{self.id.name} {self.id.round} {text}".encode()).hexdigest()


QUESTIONS = StageId(0, "questions")
BASE_STUDENT = StageId(0, "student")


def student_after(round_: int) -> StageId:
    """The stage that holds the student as it is after a round."""
    return BASE_STUDENT if round_ == 0 else StageId(round_, "train")


def stages_of(config: RunConfig, round_: int) -> tuple[StageSpec, ...]:
    """The stages of one round in order. Round 0 prepares and scores the student as given."""
    settings = config.results()
    evaluate = StageSpec(
        StageId(round_, "evaluate"),
        {"evaluation": settings["evaluation"], "student": _served(settings), "seed": config.seed},
        (QUESTIONS, student_after(round_)),
    )
    if round_ == 0:
        questions = {"task": settings["task"], "shard": config.exam.shard_questions, "seed": config.seed}
        student = {"student": settings["student"], "seed": config.seed}
        return StageSpec(QUESTIONS, questions, ()), StageSpec(BASE_STUDENT, student, ()), evaluate
    return (*_lessons(config, settings, round_), evaluate)


def _lessons(config: RunConfig, settings: dict[str, Any], round_: int) -> tuple[StageSpec, ...]:
    exam, teach, train = (StageId(round_, name) for name in ("exam", "teach", "train"))
    earlier = tuple(StageId(number, name) for number in range(1, round_) for name in ("exam", "teach"))
    return (
        StageSpec(
            exam,
            {"exam": settings["exam"], "student": _served(settings), "seed": config.seed},
            (QUESTIONS, student_after(round_ - 1)),
        ),
        StageSpec(teach, {"teacher": settings["teacher"], "seed": config.seed}, (QUESTIONS, exam, *earlier)),
        StageSpec(
            train,
            {"training": _trained(settings, round_), "student": _served(settings), "seed": config.seed},
            (QUESTIONS, BASE_STUDENT, student_after(round_ - 1), exam, teach, *earlier),
        ),
    )


def _served(settings: dict[str, Any]) -> dict[str, Any]:
    """How the student is prompted and run; what it is made of comes in by its stage's hash."""
    made_of = ("model", "revision", "tiny")
    return {name: value for name, value in settings["student"].items() if name not in made_of}


def _trained(settings: dict[str, Any], round_: int) -> dict[str, Any]:
    """How the student is trained; round 1 has no lessons of kind feedback to learn from or to leave out."""
    return {name: value for name, value in settings["training"].items() if round_ > 1 or name != "feedback"}


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The settings that differ, as `section.name: old → new`."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changed_settings(before, after, f"{path}{name}.")
        elif before != after:
            lines.append(f"{path}{name}: {before!r} → {after!r}")
    return lines
