"""What a run is to do, as data: each stage with the settings and the earlier stages that its result depends on.

A stage is done when its manifest names the same spec and the same inputs. Whatever changes the result is hashed. Paths,
limits and retry settings are not. Nothing here touches a file or Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from tailor_ray.config import RunConfig
from tailor_ray.layout import BASE_STUDENT, QUESTIONS, StageId, student_after

EXAMPLE_SETTINGS = (
    *("lessons", "replay_share", "feedback", "max_negatives", "max_positives", "own_positives", "gold_rationales"),
    *("rationales", "choose", "fit_by", "critique", "own_correct", "own_correct_weight", "max_length", "rationale_cap"),
)  # of the section `training`: what an example is made of


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage: `settings` are those that change its result, `after` are the stages it reads."""

    id: StageId
    settings: Mapping[str, Any]
    after: tuple[StageId, ...]

    def digest(self) -> str:
        text = json.dumps(plain(self.settings), sort_keys=True)
        return hashlib.sha256(f"{self.id.name} {self.id.round} {text}".encode()).hexdigest()


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON brings them back."""
    found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return found


def stages_of(config: RunConfig, round_: int) -> tuple[StageSpec, ...]:
    """The stages of round `round_` in the order of their work; round 0 prepares and scores the student as given."""
    settings = config.results()
    evaluate = StageSpec(
        StageId(round_, "evaluate"),
        {"evaluation": settings["evaluation"], "student": _served(settings), "seed": config.seed},
        (QUESTIONS, BASE_STUDENT, *_once(student_after(round_))),
    )
    if round_ == 0:
        questions = {"task": settings["task"], "shard": config.exam.shard_questions, "seed": config.seed}
        student = {"student": settings["student"], "seed": config.seed}
        return StageSpec(QUESTIONS, questions, ()), StageSpec(BASE_STUDENT, student, ()), evaluate
    return (*_lessons(config, settings, round_), evaluate)


def _lessons(config: RunConfig, settings: dict[str, Any], round_: int) -> tuple[StageSpec, ...]:
    exam, teach, examples, train = (StageId(round_, name) for name in ("exam", "teach", "examples", "train"))
    taught = tuple(StageId(number, "teach") for number in range(1, round_))
    last_exam = (StageId(round_ - 1, "exam"),) if round_ > 1 else ()
    served, seed = _served(settings), config.seed
    # Round 1 asks for no feedback in any case, and has none to learn from or to leave out.
    asked = {} if round_ == 1 or config.training.feedback else {"max_mistakes": 0}
    later = () if round_ > 1 else ("feedback", "critique")
    built = {name: settings["training"][name] for name in EXAMPLE_SETTINGS if name not in later}
    trained = {name: value for name, value in settings["training"].items() if name not in EXAMPLE_SETTINGS}
    return (
        StageSpec(
            exam,
            {"exam": settings["exam"], "student": served, "seed": seed},
            (QUESTIONS, BASE_STUDENT, *_once(student_after(round_ - 1)), *last_exam),
        ),
        StageSpec(teach, {"teacher": settings["teacher"] | asked, "seed": seed}, (QUESTIONS, exam, *taught)),
        StageSpec(
            examples,
            {"training": built | {"pairs": config.training.pairs}, "student": served, "seed": seed},
            (QUESTIONS, BASE_STUDENT, exam, teach, *taught),
        ),
        StageSpec(
            train,
            {"training": trained, "student": served, "seed": seed},
            (QUESTIONS, BASE_STUDENT, *_once(student_after(round_ - 1)), examples, teach, *taught),
        ),
    )


def _once(stage: StageId) -> tuple[StageId, ...]:
    """The stage, unless it is the one that is named in any case."""
    return () if stage == BASE_STUDENT else (stage,)


def _served(settings: dict[str, Any]) -> dict[str, Any]:
    """How the student is prompted and run; what it is made of comes in by its stage's hash."""
    made_of = ("model", "revision", "tiny")
    return {name: value for name, value in settings["student"].items() if name not in made_of}


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The settings that differ between `old` and `new`.

    Returns texts `section.name: old → new`, the names below `path`. Lists of sections are compared by place.
    """
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changed_settings(before, after, f"{path}{name}.")
        elif _are_sections(before) and _are_sections(after) and len(before) == len(after):
            for place, (one, other) in enumerate(zip(before, after, strict=True)):
                lines += changed_settings(one, other, f"{path}{name}.{place}.")
        elif before != after:
            lines.append(f"{path}{name}: {before!r} → {after!r}")
    return lines


def _are_sections(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
