"""What every task hands over: its splits, its demos and what was found while reading.

Always holds. `train`, `validation` and `test` can be iterated any number of times. They give the same questions in the
same order each time. Ids are unique over all three, and no text is in two of them. A split may stream from disk, so
nothing may count on its length or hold it whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tailor_ray.answers import Grader
from tailor_ray.records import AnswerKind, Question


@dataclass(frozen=True)
class Findings:
    """What was left out of the splits, and why; every list names at most `LISTED` items, the counts are whole."""

    skipped: int = 0  # rows that broke a rule
    skipped_rows: tuple[str, ...] = ()  # "file, line N: rule"
    contaminated: int = 0  # training rows that overlap with a test question
    contaminated_rows: tuple[dict[str, Any], ...] = ()  # {"train", "test", "how", "overlap"}

    def to_json(self) -> dict[str, Any]:
        """As the manifest of the questions records it."""
        return {
            "skipped": self.skipped,
            "skipped_rows": list(self.skipped_rows),
            "contaminated": self.contaminated,
            "contaminated_rows": list(self.contaminated_rows),
        }


LISTED = 1000
SOLVED = "####"  # stands before the answer in GSM8K's solutions


@dataclass(frozen=True)
class TaskData:
    """A task, ready to be asked."""

    name: str
    answer_kind: AnswerKind
    demos: tuple[Question, ...]  # each with its rationale
    train: Iterable[Question]
    validation: Iterable[Question]
    test: Iterable[Question]
    grader: Grader
    findings: Findings = field(default_factory=Findings)


def demo(text: str, rationale: str, answer: str, choices: str | None = None) -> Question:
    """A worked question that shows the student the form.

    `choices` is JSON, as in `Question`. Its id never meets that of a real question.
    """
    return Question(id=f"demo: {text[:40]}", text=text, answer=answer, choices=choices, rationale=rationale)


def split_solution(solution: str) -> tuple[str | None, str]:
    """The rationale and the answer of a solution in GSM8K's layout.

    That has <<calculator>> notes, which are removed, and a last line "#### N". Returns None for an empty rationale.
    """
    rationale, _, answer = solution.rpartition(SOLVED)
    return re.sub(r"<<[^>]*>>", "", rationale).strip() or None, plain_number(answer)


def plain_number(value: Any) -> str:
    """A gold number as the local files have it.

    Returns it without commas, and 18.0 as 18.
    """
    text = written_number(value) if isinstance(value, float | Decimal) else str(value)
    return text.replace(",", "").strip().removesuffix(".0")


def written_number(value: float | Decimal) -> str:
    """A number of a data file with every digit that it has there.

    Returns 9007199254740991.0 as 9007199254740991, and one of more than 40 digits as Python writes it.
    """
    exact = value if isinstance(value, int) else Decimal(str(value))
    if isinstance(exact, int) or not exact.is_finite() or abs(exact.adjusted()) > 40:
        return str(value)  # the grader says what is wrong with the longest
    text = f"{exact:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
