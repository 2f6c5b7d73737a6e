"""Solves word problems by reading them, and says where an attempt went wrong.

In: the text of a question, and of a student's attempt. Out: a `Solution`, an explanation. What always holds: the
answer comes from the text alone, by the rules of its family; a text that no wording reads gives None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tailor_ray.tasks.arithmetic.families import FAMILIES
from tailor_ray.tasks.arithmetic.language import Family, Slots, Step, calculate

_EQUATION = re.compile(r"(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)")
_LAST_NUMBER = re.compile(r"\d+(?!.*\d)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Solution:
    """How a question is solved; `rationale` is in words and ends before its conclusion, `answer` is that."""

    family: str
    steps: tuple[Step, ...]
    rationale: str
    answer: str


def solve(question: str, style: int = 0) -> Solution | None:
    """Read the question and solve it; `style` chooses between equally right wordings of the rationale.

    None when the text is no question of the task, or has no whole-number solution.
    """
    found = read(question)
    if found is None:
        return None
    family, slots = found
    steps = family.solve({slot: int(text) for slot, text in slots.items() if text.isdigit()})
    if steps is None:
        return None
    return Solution(family.name, steps, family.rationale(slots, steps, style), str(steps[-1].result))


def read(question: str) -> tuple[Family, Slots] | None:
    """The family that a question belongs to, and what its slots hold."""
    for family in FAMILIES:
        for wording in family.wordings:
            slots = wording.read(question)
            if slots is not None:
                return family, slots
    return None


def find_error(solution: Solution, attempt: str) -> str:
    """In one sentence, where the attempt first leaves the way to the answer."""
    shown = [Step(int(left), op, int(right), int(result)) for left, op, right, result in _EQUATION.findall(attempt)]
    if not shown:
        return f"The attempt shows no calculation. It should begin with {solution.steps[0]}."
    for i, step in enumerate(shown):
        true = calculate(step.left, step.operator, step.right)
        if true != step.result:
            should = f"it should give {true}" if true is not None else f"{step.left} is not divisible by {step.right}"
            return f"The calculation {step} is wrong: {should}."
        if i >= len(solution.steps):
            return f"The problem is solved after {solution.steps[-1]}, but the attempt goes on with {step}."
        if not _same(step, solution.steps[i]):
            return f"Step {i + 1} should be {solution.steps[i]}, but the attempt calculates {step}."
    if len(shown) < len(solution.steps):
        return f"The attempt stops after {shown[-1]}. The step {solution.steps[len(shown)]} is missing."
    concluded = _LAST_NUMBER.search(attempt)
    if concluded and concluded[0] != solution.answer:
        return f"The steps are right, but the attempt concludes {concluded[0]} and not {solution.answer}."
    return f"The steps are right, but the attempt does not conclude that the answer is {solution.answer}."


def _same(one: Step, other: Step) -> bool:
    """Equal, or equal but for the order of the operands where that does not matter."""
    swapped = Step(one.right, one.operator, one.left, one.result)
    return one == other or (one.operator in "+*" and swapped == other)
