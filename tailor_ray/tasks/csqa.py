"""CommonsenseQA: one of five choices. The hub's test split has no answers, so its validation split is the test."""

from __future__ import annotations

import json

from tailor_ray.config.task import TaskConfig
from tailor_ray.records import AnswerKind, Question
from tailor_ray.tasks.base import TaskData, demo
from tailor_ray.tasks.hub import HubSet, load_public
from tailor_ray.tasks.sources import Row

ANSWER_KIND = AnswerKind.CHOICE


def _demo(text: str, choices: tuple[str, str, str, str, str], rationale: str, answer: str) -> Question:
    return demo(text, rationale, answer, json.dumps(dict(zip("abcde", choices, strict=True))))


DEMOS = (
    _demo(
        "Where would you most likely keep milk so that it stays fresh?",
        ("cupboard", "refrigerator", "garage", "window sill", "bookshelf"),
        "Milk turns sour when it is warm. Of these places only the refrigerator is cold.",
        "b",
    ),
    _demo(
        "What does a person who is out of breath after running want to do?",
        ("read", "shout", "rest", "eat soup", "sprint"),
        "Running tires the body, and being out of breath shows it. Someone who is tired wants to recover, "
        "which is to rest.",
        "c",
    ),
    _demo(
        "The hikers heard thunder, so what did they look for?",
        ("a lake", "a tall tree", "shelter", "a kite", "the summit"),
        "Thunder means that lightning is near. A lake, a tall tree and the summit draw lightning, and a kite is no "
        "help. Shelter protects them.",
        "c",
    ),
    _demo(
        "What do you use to cut a slice of bread?",
        ("spoon", "napkin", "plate", "cup", "knife"),
        "Cutting needs a sharp edge. A knife is the only thing here that has one.",
        "e",
    ),
)


def from_hub(row: Row, default_id: str) -> Row:
    return {
        "id": row.get("id") or f"csqa-{default_id}",
        "question": row["question"].strip(),
        "answer": row["answerKey"],
        "choices": row["choices"],  # {"label": ["A", …], "text": […]}
    }


HUB = HubSet("tau/commonsense_qa", from_hub, test="validation")


def load(config: TaskConfig, seed: int) -> TaskData:
    return load_public(config, seed, ANSWER_KIND, DEMOS, HUB)
