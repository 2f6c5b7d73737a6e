"""What the mock teacher says: it reads the prompt that it was sent, and answers from it alone.

In: a chat request's body. Out: the reply's text. The question and the student's attempt are taken out of the prompt;
arithmetic is solved, other questions are looked up in recorded rationales. A first lesson goes the usual way, another
one a way that was not shown; a correction follows the student's way, in other words than the first lesson's. Whether
an answer is to be wrong is said by the caller. The same request gives the same reply.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor_ray.demo.arithmetic import FaultyStep, Solution, first_fault, other_ways, solve
from tailor_ray.errors import DataError
from tailor_ray.prompts.teacher import section, with_choices
from tailor_ray.records import Question

_LAST_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?=\D*\Z)")
STYLES = 3
OPENERS = ("", "Then ", "So ")  # of a step that the student's words are followed by


@dataclass(frozen=True, slots=True)
class Known:
    """A question's way to its answer. `feedback` says where an attempt goes wrong, `wrong_step` is its first wrong step
    word for word."""

    rationale: str
    answer: str
    feedback: str
    wrong_step: str = ""


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
        first = attempt.strip().partition("\n")[0]
        return Known(rationale, answer, f"{ends}, where the steps lead to {answer}.", first)


def compose(body: Mapping[str, Any], answers: Answers | None, wrong: bool, draw: int) -> str:
    """The reply to a request; `draw` is a number of the request's hash, by which wordings and errors vary."""
    messages: Sequence[Mapping[str, Any]] = body.get("messages", [])
    question = section(messages, "question") or _last_user(messages)
    attempt, earlier = section(messages, "attempt"), section(messages, "earlier")
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    continues = "wrong_step" in (schema or {}).get("properties", {}) or "<wrong_step>" in _last_user(messages[:2])
    if answers:
        known = answers.find(question, attempt or "")
    elif attempt is None:
        known = _solve(question, earlier or "", draw)
    else:
        known = _correct(question, attempt, continues, draw)
    reasoning = section(messages, "reasoning")
    if reasoning is not None:
        right = known is not None and known.answer in reasoning
        says = "It reaches the right answer step by step." if right else "It does not reach the right answer."
        return f"<reasons>{says}</reasons>\n<score>{5 if right else 1}</score>"
    if known is None:
        known = Known("This question is not one that I can solve.", "unknown", "The question is not clear to me.")
    if wrong:
        known = _spoil(known, draw)
    if schema:
        return json.dumps({name: getattr(known, name, "") for name in schema.get("properties", {})})
    first = f"<feedback>{known.feedback}</feedback>\n" if attempt is not None else ""
    first += f"<wrong_step>{known.wrong_step}</wrong_step>\n" if continues else ""
    return f"{first}<rationale>{known.rationale}</rationale>\n<answer>{known.answer}</answer>"


def _solve(question: str, earlier: str, draw: int) -> Known | None:
    """A rationale in the question's first words; where some were given earlier, one that is none of them: by another
    route as long as there is one, else in the usual one's other words."""
    styles = [solve(question, _first_style(question) + more) for more in range(STYLES)]
    usual = [solution for solution in styles if solution is not None]
    if not usual:
        return None
    new = [[way for way in ways if way.rationale not in earlier] for ways in (other_ways(question), usual)]
    ways = (new[0] or new[1]) if earlier else []
    chosen = ways[draw % len(ways)] if ways else usual[0]
    return Known(chosen.rationale, chosen.answer, "")


def _first_style(question: str) -> int:
    """Which of the usual wordings a question's first lesson has, so that a correction can choose another."""
    return zlib.crc32(question.encode()) % STYLES


def _correct(question: str, attempt: str, continues: bool, draw: int) -> Known | None:
    """What is wrong by the route that the attempt follows longest, and the correction by it: in other words than the
    first lesson's, or going on from the student's."""
    solution = solve(question, _first_style(question) + 1 + draw % (STYLES - 1))
    if solution is None:
        return None
    routes = [(one, first_fault(one, attempt)) for one in (solution, *other_ways(question))]
    nearest, fault = max(routes, key=lambda route: route[1].done)  # of equals the usual one
    kept = attempt[: fault.start].rstrip()
    if continues and (kept.strip() or fault.slip):
        rationale = f"{kept.lstrip()} {_rest(nearest, fault, draw)}".strip()
    else:
        rationale = nearest.rationale
    return Known(rationale, solution.answer, fault.said, fault.step)


def _rest(solution: Solution, fault: FaultyStep, draw: int) -> str:
    """The steps from the first wrong one on; a slip stands within a sentence."""
    opener = OPENERS[draw % len(OPENERS)]
    steps = [f"{opener}{step}." for step in solution.steps[fault.done :]]
    return " ".join([steps[0].removeprefix(opener), *steps[1:]] if fault.slip else steps)


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
    return Known(rationale, other, known.feedback, known.wrong_step)


def _last_user(messages: Sequence[Mapping[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return ""


def _spaces(text: str) -> str:
    return " ".join(text.split())
