"""The simpler problems that the tiny student is schooled on.

They are chains of calculations, and some families, dryly solved. They teach the form of a question and an answer. They
teach the calculations, and how some word problems are read, in a style without words.

Other families are left to the rounds, and so are problems without countable objects and rationales in words. So the
schooled student gets some of the task right and has something to be taught. No school problem can be a question of the
task. It is either a bare chain or about objects that the task does not know.
"""

from __future__ import annotations

from dataclasses import replace

from tailor_ray.demo.arithmetic.families import FAMILIES
from tailor_ray.demo.arithmetic.language import Family

OBJECTS = ("bells", "birds", "candles", "caps", "cups", "dolls", "hats", "kites", "lemons", "ropes")
# Families that the school knows, by the wordings that name an object.
KNOWN = ("take_away", "rows", "gain_and_loss", "packs_and_more", "share", "fewer_together")


def _dry(steps: tuple[str, ...]) -> tuple[str]:
    """A rationale of the calculations alone: "12 + 7 = 19. 19 - 5 = 14."."""
    shown = []
    for step in steps:
        target, _, left, operator, right = step.split()
        shown.append(f"{{{left}}} {operator} {{{right}}} = {{{target}}}.")
    return (" ".join(shown),)


def _chain(operators: str, numbers: dict[str, tuple[int, int]]) -> Family:
    """Calculations in a row, each on the result before: many calculations in few tokens."""
    names = list(numbers)
    results = "uvwxyz"[: len(operators)]
    lefts = [names[0], *results]
    steps = tuple(
        f"{result} = {left} {operator} {right}"
        for result, left, operator, right in zip(results, lefts, operators, names[1:], strict=False)
    )
    shown = f"{{{names[0]}}}" + "".join(f" {op} {{{n}}}" for op, n in zip(operators, names[1:], strict=True))
    return Family(f"chain {operators}", numbers, steps, (f"What is {shown}?",), _dry(steps))


CHAINS = (
    _chain("+-+-", {"a": (2, 30), "b": (2, 9), "c": (2, 9), "d": (2, 9), "e": (2, 9)}),
    _chain("-+-+", {"a": (5, 40), "b": (2, 9), "c": (2, 9), "d": (2, 9), "e": (2, 9)}),
    _chain("+-+", {"a": (5, 30), "b": (5, 15), "c": (2, 15), "d": (5, 15)}),
    _chain("*+-", {"a": (2, 9), "b": (2, 9), "c": (2, 9), "d": (2, 9)}),
    _chain("/*-", {"a": (4, 40), "b": (2, 5), "c": (2, 6), "d": (2, 9)}),
)


def _known(family: Family) -> Family:
    """The family about other objects, with a dry rationale."""
    wordings = tuple(text for text in family.questions if "{item}" in text)
    return replace(
        family, name=f"school {family.name}", questions=wordings, rationales=_dry(family.steps), objects=OBJECTS
    )


SCHOOL = (*CHAINS, *(_known(family) for family in FAMILIES if family.name in KNOWN))
