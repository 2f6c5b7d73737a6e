"""Templates that both write and read: a wording renders a word problem, and the same wording parses it back.

In: `Family` values, which are data (see `families.py` and `school.py`). Out: rendered texts, and the slots of texts.

Always holds. `wording.read(wording.write(slots)) == slots` for every drawn `slots`. Each step of a reading is a
whole-number calculation. Nothing here knows which question was generated, so a reader only has the text.

A slot is `{name}` in braces. One letter is a number (given, or the result of a step). The others are words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

SHE = ("Anna", "Clara", "Emma", "Grace", "Ivy", "Julia", "Lena", "Maria", "Nina", "Rosa", "Sara", "Zoe")
HE = ("Adam", "Ben", "Carl", "David", "Felix", "Hugo", "Jack", "Leo", "Max", "Omar", "Paul", "Tom")
ITEMS = (
    "apples", "balls", "beads", "books", "buttons", "cards", "coins", "cookies", "eggs", "flowers", "marbles",
    "nuts", "oranges", "pears", "pencils", "plums", "shells", "stamps", "stickers", "stones",
)  # fmt: skip

_WORD_PATTERNS = {
    "name": r"[A-Z][a-z]+",
    "friend": r"[A-Z][a-z]+",
    "item": r"[a-z]+",
    "other": r"[a-z]+",
    "he": r"he|she",
    "He": r"He|She",
    "his": r"his|her",
}
_SLOT = re.compile(r"\{(\w+)\}")
_SPACES = re.compile(r"\s+")

Slots = dict[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One calculation on whole numbers; `str()` gives "12 + 7 = 19"."""

    left: int
    operator: str  # one of + - * /
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


def calculate(left: int, operator: str, right: int) -> int | None:
    """The whole-number result, or None where there is none (5 / 2, 5 / 0)."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left // right if right and left % right == 0 else None


@dataclass(frozen=True)
class Wording:
    """One template of a question."""

    template: str

    def write(self, slots: Mapping[str, str]) -> str:
        return _SLOT.sub(lambda match: slots[match[1]], self.template)

    def read(self, text: str) -> Slots | None:
        """The slots of a text written by this wording, else None; white space is not significant."""
        match = self._pattern.fullmatch(_SPACES.sub(" ", text.strip()))
        return match.groupdict() if match else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        pattern, seen = "", set()
        for i, part in enumerate(_SLOT.split(self.template)):
            if i % 2 == 0:
                pattern += re.escape(part)
            elif part in seen:
                pattern += f"(?P={part})"
            else:
                seen.add(part)
                pattern += f"(?P<{part}>{_WORD_PATTERNS.get(part, '[0-9]+')})"
        return re.compile(pattern)


@dataclass(frozen=True)
class Way:
    """How problems of a family are solved, and wordings of it."""

    steps: tuple[str, ...]
    rationales: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Word problems of one structure: how they are worded, which numbers fit, how they are solved."""

    name: str
    numbers: Mapping[str, tuple[int, int]]  # slot → inclusive range
    steps: tuple[str, ...]  # "x = a + b"; operands are slots or literals; the last result is the answer
    questions: tuple[str, ...]
    rationales: tuple[str, ...]  # wordings of the solution; each shows every step as "{a} + {b} = {x}"
    others: tuple[Way, ...] = ()  # other routes and wordings, for whoever has heard the first
    largest: int = 100  # no result is above it, none below 2 (so that plurals are right)
    objects: tuple[str, ...] = ITEMS
    wordings: tuple[Wording, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "wordings", tuple(Wording(text) for text in self.questions))

    def draw(self, rng: Random) -> tuple[Slots, tuple[Step, ...]]:
        """Random words and numbers, and the steps, each of which comes out whole and within bounds."""
        people = [(name, "she", "her") for name in SHE] + [(name, "he", "his") for name in HE]
        (name, he, his), (friend, _, _) = rng.sample(people, 2)
        item, other = rng.sample(self.objects, 2)
        words = {
            "name": name,
            "friend": friend,
            "he": he,
            "He": he.capitalize(),
            "his": his,
            "item": item,
            "other": other,
        }
        while True:
            numbers = {slot: rng.randint(low, high) for slot, (low, high) in self.numbers.items()}
            steps, others = self.solve(numbers), [self.solve(numbers, way) for way in self.others]
            # each other way is one for the question too: it ends, and nothing runs out on it
            if steps is None or not all(way and min(step.result for step in way) > 0 for way in others):
                continue
            if all(2 <= step.result <= self.largest for step in steps):
                return words | {slot: str(number) for slot, number in numbers.items()}, steps

    def solve(self, numbers: Mapping[str, int], way: Way | None = None) -> tuple[Step, ...] | None:
        """The steps with their results, the family's or another way's; None where a division leaves a remainder."""
        known, done = dict(numbers), []
        for text in (way or self).steps:
            target, _, left_slot, operator, right_slot = text.split()
            left, right = (known[slot] if slot.isalpha() else int(slot) for slot in (left_slot, right_slot))
            result = calculate(left, operator, right)
            if result is None:
                return None
            known[target] = result
            done.append(Step(left, operator, right, result))
        return tuple(done)

    def rationale(self, slots: Mapping[str, str], steps: tuple[Step, ...], style: int, way: Way | None = None) -> str:
        """The solution in words; `style` counts through the wordings, over and over."""
        chosen = way or self
        results = {text.split()[0]: str(step.result) for text, step in zip(chosen.steps, steps, strict=True)}
        return Wording(chosen.rationales[style % len(chosen.rationales)]).write({**slots, **results})
