"""The simpler problems that the tiny student is schooled on.

They are chains of calculations, and some families in the words of the task's rationales. They teach the form of a
question and an answer, the calculations, how some word problems are read and how a solution is worded.

Other families are left to the rounds, and so are problems without countable objects. So the schooled student gets some
of the task right and has something to be taught. No school problem can be a question of the task. It is either a bare
chain or about objects that the task does not know.
"""

from __future__ import annotations

from dataclasses import replace

from tailor_ray.demo.arithmetic.families import FAMILIES
from tailor_ray.demo.arithmetic.language import Family

OBJECTS = ("bells", "birds", "candles", "caps", "cups", "dolls", "hats", "kites", "lemons", "ropes")
# Families that the school knows, by the wordings that name an object.
KNOWN = ("take_away", "rows", "gain_and_loss", "packs_and_more", "share", "fewer_together")
WORDINGS = 3  # of a family's rationale


def _chain(operators: str, numbers: dict[str, tuple[int, int]]) -> Family:
    """Calculations in a row, each on the result before: many calculations in few tokens."""
    names = list(numbers)
    results = "uvwxyz"[: len(operators)]
    lefts = [names[0], *results]
    parts = list(zip(results, lefts, operators, names[1:], strict=False))
    steps = tuple(f"{result} = {left} {operator} {right}" for result, left, operator, right in parts)
    solved = " ".join(f"{{{left}}} {operator} {{{right}}} = {{{result}}}." for result, left, operator, right in parts)
    shown = f"{{{names[0]}}}" + "".join(f" {op} {{{n}}}" for op, n in zip(operators, names[1:], strict=True))
    return Family(f"chain {operators}", numbers, steps, (f"What is {shown}?",), (solved,))


CHAINS = (
    _chain("+-+-", {"a": (2, 30), "b": (2, 9), "c": (2, 9), "d": (2, 9), "e": (2, 9)}),
    _chain("-+-+", {"a": (5, 40), "b": (2, 9), "c": (2, 9), "d": (2, 9), "e": (2, 9)}),
    _chain("+-+", {"a": (5, 30), "b": (5, 15), "c": (2, 15), "d": (5, 15)}),
    _chain("*+-", {"a": (2, 9), "b": (2, 9), "c": (2, 9), "d": (2, 9)}),
    _chain("/*-", {"a": (4, 40), "b": (2, 5), "c": (2, 6), "d": (2, 9)}),
)


def _known(family: Family, wording: int) -> Family:
    """The family about other objects, solved in one of its wordings."""
    questions = tuple(text for text in family.questions if "{item}" in text)
    rationale = family.rationales[wording]
    return replace(
        family, name=f"school {family.name} {wording}", questions=questions, rationales=(rationale,), objects=OBJECTS
    )


# Nearly half of it are chains, for calculations take the most practice.
SCHOOL = (
    *CHAINS * WORDINGS,
    *(_known(one, wording) for one in FAMILIES if one.name in KNOWN for wording in range(WORDINGS)),
)
