"""The grader: a question and a text in, a verdict out, the same for the exam, the evaluation and the teacher.

Always holds. `correct` and `wrong` mean that two verifiers agree which read in different ways. (Kind `python` has one,
the user's function.) Where they differ, one of them is in doubt, or that function raises, the verdict is `disputed`.
Nothing is taught or learnt from it. A text that was cut off before its conclusion, or in a thought, is `truncated`,
never wrong.

Grading never raises for what a model wrote. It takes time linear in its capped length (kinds `math` and `regex`:
bounded time). It is safe on any thread.

A question has a *standing* in one exam, from the verdicts of its attempts. Disputed ones and engine errors say nothing
of the student and are left out.

- solved: more than half of the attempts are correct;
- mistaken: not solved, and at least one attempt is wrong by both verifiers;
- undecided: anything else (no attempt left, or only unparsed and truncated ones beside the correct).

Between one exam and the next a question is *fixed* (mistaken, now solved) or *regressed* (solved, now mistaken). It is
*stubborn* (mistaken both times) or *kept* (solved both times). An undecided standing on either side counts as
`undecided`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from tailor_ray.answers.conclusion import conclusions, refuses, thinks, visible
from tailor_ray.answers.letters import first_choice, first_yes_no, second_choices, second_yes_no
from tailor_ray.answers.numbers import format_number, is_plain, read, read_gold
from tailor_ray.answers.second import says
from tailor_ray.answers.strings import (
    Judge,
    balanced,
    check_pattern,
    concluded,
    ends_with,
    ends_with_match,
    first_expression,
    load_function,
    matches,
    normalize,
    second_expression,
)
from tailor_ray.records import AnswerKind, Question, Verdict

# What follows an answer that the token cap did not cut: "18" may have become 180 or 18.5, "no" nothing.
_WHOLE = {
    AnswerKind.NUMBER: re.compile(r"\d[)%}*]*[.!?]\s|\d[)%}*]*\s+[A-Za-z]\D*$"),
    AnswerKind.CHOICE: re.compile(r"\b[A-Za-z][).:,;]|\b[A-Za-z]\s+\S"),
    AnswerKind.YES_NO: re.compile(r"\b(?:yes|no|true|false)[^\w]", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Grade:
    """`answer` is the first verifier's extraction, normalized; `detail` says why a text is disputed or an error."""

    verdict: Verdict
    answer: str | None
    detail: str | None = None


@dataclass(frozen=True)
class Grader:
    """Grades texts against gold answers of one kind. Picklable."""

    kind: AnswerKind
    function: str | None = None  # package.module:function, for kind `python`
    _judge: dict[str, Judge] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", AnswerKind(self.kind))  # its name will do

    def grade(self, question: Question, text: str, finish_reason: str = "stop") -> Grade:
        """Judge one text.

        `text` is a completion as the model wrote it, and `finish_reason` is "stop", "length" or "error". Returns the
        verdict and the first verifier's answer; raises nothing for whatever the text holds.
        """
        if finish_reason == "error":
            return Grade(Verdict.ERROR, None, text[:200] or "the engine gave no answer")
        if thinks(text):
            return Grade(Verdict.TRUNCATED, None, "the thought was never closed")
        shown = visible(text)
        if finish_reason == "length":
            whole = _WHOLE.get(self.kind)
            said = conclusions(shown)
            if not any(one.closed or (whole is not None and whole.search(one.text)) for one in said):
                return Grade(Verdict.TRUNCATED, None)
        if self.kind is AnswerKind.PYTHON:
            return self._by_function(question, text, shown)
        answer, first, other = self._both(question, shown)
        if answer is None and other is None:
            return Grade(Verdict.UNPARSED, None)
        if first is other and first is not None:
            return Grade(Verdict.CORRECT if first else Verdict.WRONG, answer)
        return Grade(Verdict.DISPUTED, answer, f"first verifier: {_word(first)}; second: {_word(other)}")

    def check(self) -> None:
        """Load the user's function of kind `python` now, rather than at the first attempt.

        Raises ConfigError when it cannot be loaded.
        """
        if self.kind is AnswerKind.PYTHON:
            self._function()

    def _both(self, question: Question, text: str) -> tuple[str | None, bool | None, bool | None]:
        """The extracted answer and what each verifier says: right, wrong, or None for nothing found."""
        gold = question.answer
        if self.kind is AnswerKind.NUMBER:
            text = text.replace("__", "")  # bold, and no part of a number
            if refuses(text):
                return None, None, None
            reading, _ = read(text, question.text)
            meant = read_gold(gold)
            answer = reading.numbers[0].normalized() if reading.numbers else None
            if meant is None:  # not read from a task's files, which refuse such a row
                return answer, None, None
            return answer, reading.says(meant), says(text, meant)
        if self.kind is AnswerKind.CHOICE:
            choices = question.choice_texts()
            said, others = first_choice(text, choices), second_choices(text, choices)
            return said.answer, said.says(gold), gold in others if others else None
        if self.kind is AnswerKind.YES_NO:
            said, other = first_yes_no(text), second_yes_no(text)
            return said.answer, said.says(gold), None if other is None else other == gold
        if self.kind is AnswerKind.MATH:
            answer, right = first_expression(text, gold)
            return answer, right, None if answer and right is None else second_expression(text, gold)
        conclusion, _ = concluded(text)
        if conclusion is None:
            return None, None, None
        if self.kind is AnswerKind.REGEX:
            return conclusion, matches(conclusion, gold), ends_with_match(text, gold)
        return conclusion, normalize(conclusion) == normalize(gold), ends_with(text, gold)

    def _by_function(self, question: Question, text: str, shown: str) -> Grade:
        judge = self._function()
        try:
            right = judge(text, question.answer)
        except Exception as error:  # noqa: BLE001  the user's code, which one odd text must not stop a run with
            why = f"task.answer_function {self.function} raised {type(error).__name__}: {error}"
            return Grade(Verdict.DISPUTED, None, why[:300])
        if right is None:
            return Grade(Verdict.UNPARSED, None)
        return Grade(Verdict.CORRECT if right else Verdict.WRONG, concluded(shown)[0])

    def _function(self) -> Judge:
        if "judge" not in self._judge:
            self._judge["judge"] = load_function(self.function or "")
        return self._judge["judge"]


def normalize_gold(kind: AnswerKind, answer: str, choices: dict[str, str] | None = None) -> str:
    """A gold answer in the form that the grader compares with.

    `choices` maps letters to texts, for kind `choice`. Returns a letter, yes or no, a number in its shortest form, or
    the text itself. Raises ValueError saying the rule that `answer` breaks.
    """
    text = answer.strip()
    if not text:
        raise ValueError("the answer is empty")
    if kind is AnswerKind.NUMBER:
        gold = read_gold(text)
        if gold is None:
            raise ValueError(f"the answer {text[:60]!r} is not a number that the grader can read")
        return format_number(gold.value) if is_plain(text) else text
    if kind is AnswerKind.YES_NO:
        polarity = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}.get(text.lower())
        if polarity is None:
            raise ValueError(f"the answer {text[:60]!r} is neither yes nor no")
        return polarity
    if kind is AnswerKind.CHOICE:
        return _gold_letter(text, choices or {})
    if kind is AnswerKind.TEXT and not normalize(text):
        raise ValueError(f"the answer {text[:60]!r} is punctuation alone, which the grader ignores")
    if kind is AnswerKind.MATH and not balanced(text):
        raise ValueError(f"the answer {text[:60]!r} is no expression: its braces do not close, or it is too long")
    if kind is AnswerKind.REGEX:
        check_pattern(text)
    return text


def _gold_letter(text: str, choices: dict[str, str]) -> str:
    if len(choices) < 2:
        raise ValueError("a question of kind choice needs at least two choices")
    letter = text.strip("().").lower()
    if letter in choices:
        return letter
    same = [key for key, choice in choices.items() if normalize(choice) == normalize(text)]
    if len(same) != 1:
        raise ValueError(f"the answer {text[:60]!r} is none of the choices {', '.join(choices)}")
    return same[0]


def _word(says: bool | None) -> str:
    return {True: "correct", False: "wrong", None: "no answer found"}[says]


CHANGES = ("fixed", "regressed", "stubborn", "kept", "undecided")
SAYS_NOTHING = frozenset({Verdict.DISPUTED, Verdict.ERROR})


def standing(verdicts: Iterable[str]) -> str:
    """How a question stands, by the verdicts of its attempts.

    Returns solved, mistaken or undecided, as the module's contract says.
    """
    counted = [verdict for verdict in verdicts if verdict not in SAYS_NOTHING]
    if 2 * counted.count(Verdict.CORRECT) > len(counted):
        return "solved"
    return "mistaken" if Verdict.WRONG in counted else "undecided"


def change(before: str, now: str) -> str:
    """What became of a question: one of CHANGES, by its standings `before` and `now`."""
    if "undecided" in (before, now):
        return "undecided"
    if before == "mistaken":
        return "fixed" if now == "solved" else "stubborn"
    return "regressed" if now == "mistaken" else "kept"


def compare(before: pa.Table, now: pa.Table) -> dict[str, int]:
    """How the questions changed that both exams asked.

    `before` and `now` have the columns question_id and verdict. Returns a count for each of CHANGES.
    """
    old, new = (defaultdict[str, list[str]](list) for _ in range(2))
    for verdicts, attempts in ((old, before), (new, now)):
        for name, verdict in zip(attempts["question_id"].to_pylist(), attempts["verdict"].to_pylist(), strict=True):
            verdicts[name].append(verdict)
    counted = Counter(change(standing(old[name]), standing(new[name])) for name in old.keys() & new.keys())
    return {name: counted[name] for name in CHANGES}
