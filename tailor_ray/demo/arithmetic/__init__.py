"""The built-in task: word problems of one to three steps, generated from a seed, so that a run needs no data.

In: the seed and how many questions are wanted. Out: splits that share no question text. Each question has its answer
and a rationale in a short, regular style. There are simpler problems too, on which the tiny student is schooled. By
`solve`, `other_ways` and `first_fault` the mock teacher works from the text that it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tailor_ray.answers import Grader
from tailor_ray.config.task import TaskConfig
from tailor_ray.demo.arithmetic.families import FAMILIES
from tailor_ray.demo.arithmetic.language import Family
from tailor_ray.demo.arithmetic.school import SCHOOL
from tailor_ray.demo.arithmetic.solver import FaultyStep, Solution, first_fault, other_ways, solve
from tailor_ray.records import AnswerKind, Question
from tailor_ray.tasks.base import TaskData, demo

__all__ = [
    "ANSWER_KIND",
    "DEMOS",
    "FaultyStep",
    "Solution",
    "first_fault",
    "load",
    "other_ways",
    "sample_questions",
    "school_questions",
    "solve",
]

ANSWER_KIND = AnswerKind.NUMBER
TRAIN, TEST = 2000, 500  # questions, where task.limit_train and task.limit_test say nothing


def load(config: TaskConfig, seed: int) -> TaskData:
    """Generate the splits of the configured sizes.

    Test comes first and train last, so that a longer train leaves the others as they are.
    """
    train = config.limit_train or TRAIN
    held_out = min(config.max_validation, max(1, round(config.validation_share * train)))
    seen = {question.text for question in DEMOS}
    test = generate(FAMILIES, config.limit_test or TEST, seed, "test", seen)
    validation = generate(FAMILIES, held_out, seed, "validation", seen)
    return TaskData(
        name="arithmetic",
        answer_kind=ANSWER_KIND,
        demos=config.own_demos() or DEMOS,
        train=generate(FAMILIES, train, seed, "train", seen),
        validation=validation,
        test=test,
        grader=Grader(config.answer_kind or ANSWER_KIND, config.answer_function),
    )


def school_questions(count: int, seed: int) -> list[Question]:
    """Simpler problems with rationales, for schooling a student from scratch.

    Returns `count` of them; texts may repeat.
    """
    return generate(SCHOOL, count, seed, "school", None)


def sample_questions(count: int, seed: int) -> list[Question]:
    """Questions like the task's, of no split.

    Returns `count` of them; texts may repeat.
    """
    return generate(FAMILIES, count, seed, "sample", None)


def generate(families: Sequence[Family], count: int, seed: int, split: str, seen: set[str] | None) -> list[Question]:
    """Draw questions of random families.

    None has a text in `seen`, which grows by the new ones; without it texts may repeat. `split` goes into their ids and
    the seed. Returns `count` questions.
    """
    rng = Random(f"{split}/{seed}")
    questions: list[Question] = []
    while len(questions) < count:
        family = rng.choice(families)
        slots, steps = family.draw(rng)
        text = rng.choice(family.wordings).write(slots)
        if seen is not None:
            if text in seen:
                continue
            seen.add(text)
        rationale, answer = family.rationale(slots, steps, style=0), str(steps[-1].result)
        questions.append(Question(f"{split}-{len(questions):05d}", text, answer, rationale=rationale))
    return questions


DEMOS = tuple(
    demo(question.text, question.rationale or "", question.answer)
    for i, family in enumerate(FAMILIES[:5])
    for question in generate([family], 1, i, "demo", None)
)
