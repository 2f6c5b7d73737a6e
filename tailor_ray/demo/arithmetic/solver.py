"""Solves word problems by reading them, and says where an attempt went wrong.

In: the text of a question, and of a student's attempt. Out: a `Solution`, an explanation.

Always holds: the answer comes from the text alone, by the rules of its family. A text that no wording reads gives None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tailor_ray.demo.arithmetic.families import FAMILIES
from tailor_ray.demo.arithmetic.language import Family, Slots, Step, calculate

_EQUATION = re.compile(r"(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_LAST_NUMBER = re.compile(r"\d+(?!.*\d)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Solution:
    """How a question is solved; `rationale` is in words and ends before its conclusion, `answer` is that."""

    family: str
    steps: tuple[Step, ...]
    rationale: str
    answer: str


def solve(question: str, style: int = 0) -> Solution | None:
    """Read the question and solve it.

    `style` chooses between equally right wordings of the rationale. Returns None when the text is no question of the
    task, or has no whole-number solution.
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
    """The family that a question belongs to, and what its slots hold; None for a text of no family."""
    for family in FAMILIES:
        for wording in family.wordings:
            slots = wording.read(question)
            if slots is not None:
                return family, slots
    return None


def other_ways(question: str) -> list[Solution]:
    """The question's solutions by other routes or in other words than `solve` gives.

    Returns none for what it cannot solve.
    """
    found = read(question)
    if found is None:
        return []
    family, slots = found
    numbers = {slot: int(text) for slot, text in slots.items() if text.isdigit()}
    ways = []
    for way in family.others:
        steps = family.solve(numbers, way)
        if steps is not None and all(step.result > 0 for step in steps):
            texts = [family.rationale(slots, steps, style, way) for style in range(len(way.rationales))]
            ways += [Solution(family.name, steps, text, str(steps[-1].result)) for text in texts]
    return ways


@dataclass(frozen=True, slots=True)
class FaultyStep:
    """Where an attempt first leaves the way: what is `said` of it, the wrong `step` as it stands in the attempt from
    `start` on, and how many right steps are `done` before. A `slip` is a right calculation with a wrong result."""

    said: str
    step: str
    start: int
    done: int
    slip: bool = False


def first_fault(solution: Solution, attempt: str) -> FaultyStep:
    """Where `attempt` first leaves the way to `solution`.

    Returns the first wrong step; of an attempt without one, its conclusion.
    """
    found = list(_EQUATION.finditer(attempt))
    if not found:
        said = f"The attempt shows no calculation. It should begin with {solution.steps[0]}."
        return _conclusion(attempt, 0, 0, said)
    shown = [Step(int(left), op, int(right), int(result)) for left, op, right, result in (m.groups() for m in found)]
    for i, (step, match) in enumerate(zip(shown, found, strict=True)):
        begin = _sentence(attempt, found[i - 1].end() if i else 0, match.start())
        true = calculate(step.left, step.operator, step.right)
        if true != step.result:
            should = f"it should give {true}" if true is not None else f"{step.left} is not divisible by {step.right}"
            slip = i < len(solution.steps) and _same(replace(step, result=true or 0), solution.steps[i])
            begin = match.start() if slip else begin
            said = f"The calculation {step} is wrong: {should}."
            return FaultyStep(said, attempt[begin : match.end()], begin, min(i, len(solution.steps)), slip)
        if i >= len(solution.steps):
            said = f"The problem is solved after {solution.steps[-1]}, but the attempt goes on with {step}."
            return FaultyStep(said, attempt[begin : match.end()], begin, i)
        if not _same(step, solution.steps[i]):
            said = f"Step {i + 1} should be {solution.steps[i]}, but the attempt calculates {step}."
            return FaultyStep(said, attempt[begin : match.end()], begin, i)
    if len(shown) < len(solution.steps):
        said = f"The attempt stops after {shown[-1]}. The step {solution.steps[len(shown)]} is missing."
    elif (concluded := _LAST_NUMBER.search(attempt)) and concluded[0] != solution.answer:
        said = f"The steps are right, but the attempt concludes {concluded[0]} and not {solution.answer}."
    else:
        said = f"The steps are right, but the attempt does not conclude that the answer is {solution.answer}."
    return _conclusion(attempt, found[-1].end(), len(shown), said)


def _conclusion(attempt: str, after: int, done: int, said: str) -> FaultyStep:
    """What the attempt says behind its last right step's sentence, as its wrong one; else all of it."""
    sentence = _SENTENCE_END.search(attempt, after) if after else None
    after = sentence.end() if sentence else after
    words = re.compile(r"[\w(][^\n]*").search(attempt, after)
    if words is None:
        return FaultyStep(said, attempt.strip(), len(attempt) - len(attempt.lstrip()), 0)
    return FaultyStep(said, words[0].rstrip(), words.start(), done)


def _sentence(attempt: str, after: int, before: int) -> int:
    """Where the sentence begins in which something stands, behind what came before it."""
    between = attempt[after:before]
    end = max((match.end() for match in re.finditer(r"[.!?;,]\s+|\n\s*", between)), default=0)
    return after + end + len(between[end:]) - len(between[end:].lstrip(" .;,"))


def _same(one: Step, other: Step) -> bool:
    """Equal, or equal but for the order of the operands where that does not matter."""
    swapped = Step(one.right, one.operator, one.left, one.result)
    return one == other or (one.operator in "+*" and swapped == other)
