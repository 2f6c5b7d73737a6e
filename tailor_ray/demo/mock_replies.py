"""What the mock teacher says: it reads the prompt that it was sent, and answers from it alone.

In: a chat request's body. Out: the reply's text. The question and the student's attempt are taken out of the prompt;
arithmetic is solved, other questions are looked up in recorded rationales. Whether an answer is to be wrong is said
by the caller. The same request gives the same reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor_ray.errors import DataError
from tailor_ray.prompts.teacher import section, with_choices
from tailor_ray.records import Question
from tailor_ray.tasks.arithmetic import find_error, solve

_LAST_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?=\D*\Z)")
STYLES = 3


@dataclass(frozen=True, slots=True)
class Known:
    """A question's way to its answer. `feedback` says where an attempt goes wrong."""

    rationale: str
    answer: str
    feedback: str


class Answers:
    """Recorded rationales by question text."""

    def __init__(self, rows: Mapping[str, tuple[str, str]]) -> None:
        self._rows = rows

    @classmethod
    def read(cls, path: str) -> Answers:
        """Read JSONL with `question`, `answer`, `rationale` (null: a short statement) and, if any, `choices`."""
        rows = {}
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"the mock teacher's answers {path} cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                choices = json.dumps(row["choices"]) if row.get("choices") else None
                question = Question("", str(row["question"]), str(row["answer"]), choices)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: needs question and answer ({error})") from None
            rationale = row.get("rationale") or f"Working through the question gives {question.answer}."
            rows[_spaces(with_choices(question))] = (rationale, question.answer)
        return cls(rows)

    def find(self, question: str, attempt: str) -> Known | None:
        row = self._rows.get(_spaces(question))
        if row is None:
            return None
        rationale, answer = row
        found = _LAST_NUMBER.search(attempt)
        ends = f"It ends with {found.group(0)}" if found else "It reaches no answer"
        return Known(rationale, answer, f"{ends}, where the steps lead to {answer}.")


def compose(body: Mapping[str, Any], answers: Answers | None, wrong: bool, draw: int) -> str:
    """The reply to a request; `draw` is a number of the request's hash, by which wordings and errors vary."""
    messages: Sequence[Mapping[str, Any]] = body.get("messages", [])
    question = section(messages, "question") or _last_user(messages)
    attempt = section(messages, "attempt")
    known = answers.find(question, attempt or "") if answers else _solve(question, attempt or "", draw)
    reasoning = section(messages, "reasoning")
    if reasoning is not None:
        return f"<score>{5 if known and known.answer in reasoning else 1}</score>"
    if known is None:
        known = Known("This question is not one that I can solve.", "unknown", "The question is not clear to me.")
    if wrong:
        known = _spoil(known, draw)
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    if schema:
        fields = {"feedback": known.feedback, "rationale": known.rationale, "answer": known.answer}
        return json.dumps({name: fields.get(name, "") for name in schema.get("properties", {})})
    first = f"<feedback>{known.feedback}</feedback>\n" if attempt is not None else ""
    return f"{first}<rationale>{known.rationale}</rationale>\n<answer>{known.answer}</answer>"


def _solve(question: str, attempt: str, draw: int) -> Known | None:
    solution = solve(question, draw % STYLES)
    if solution is None:
        return None
    return Known(solution.rationale, solution.answer, find_error(solution, attempt))


def _spoil(known: Known, draw: int) -> Known:
    """The same way with another conclusion."""
    flipped = {"yes": "no", "no": "yes"}
    letters = "abcde"
    answer = known.answer
    if answer.lower() in flipped:
        other = flipped[answer.lower()]
    elif answer.lower() in letters:
        other = letters[(letters.index(answer.lower()) + 1 + draw % 4) % 5]
    else:
        try:
            other = f"{float(answer.replace(',', '')) + 1 + draw % 9:g}"
        except ValueError:
            other = f"not {answer}"
    rationale = re.sub(rf"(?<![\w.]){re.escape(answer)}(?![\w.]*\w)", other, known.rationale)
    return Known(rationale, other, known.feedback)


def _last_user(messages: Sequence[Mapping[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return ""


def _spaces(text: str) -> str:
    return " ".join(text.split())
