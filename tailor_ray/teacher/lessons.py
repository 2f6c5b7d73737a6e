"""Is a reply a lesson? The rules, each with the reason that is counted and the problem that the teacher is told.

In: a question, the reply's text, and the grader. Out: a Judged that either carries the parts of a lesson or says why
not. Pure: the same reply is judged alike in every run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from tailor_ray.answers import Grader
from tailor_ray.prompts.parse import parse_reply
from tailor_ray.prompts.plain import plain_text, typeset
from tailor_ray.records import AnswerKind, LessonKind, Question, Verdict

# Words by which a rationale shows that its writer was shown the answer or an attempt; the group is what it speaks of.
# None of them is in the 1,161 recorded rationales of three teachers, nor in GSM8K's 7,473 of people.
_GIVEAWAY = re.compile(
    r"\b(?:the|your|this|that|a|given)\s+(hint)\b"
    r"|\b(hint)\s+(?:says|said|states|stated|tells|told|suggests|indicates)\b"
    r"|\b(?:given|provided|reference|gold|expected|known|hinted)\s+(?:correct\s+|final\s+)?(answer|solution|result)\b"
    r"|\b(?:we|i)\s+(?:are|were|was|am|have\s+been)\s+(?:told|given)\s+(?:that\s+)?the\s+(?:\w+\s+)?(answer)\b"
    r"|\bwe\s+(?:already\s+)?know\s+(?:that\s+)?the\s+(?:correct\s+|final\s+|right\s+)?(answer)\b"
    r"|\b(?:match(?:es|ing)?|confirm(?:s|ing)?|agrees?\s+with)\s+the\s+(?:correct\s+|right\s+|final\s+)?(answer)\b"
    r"|\b(?:the|this|their)\s+(student|attempt)(?:'s)?\b"
    r"|\byour\s+(mistake|error|reasoning|answer|attempt|solution|calculation)s?\b",
    re.IGNORECASE,
)
FEWEST_WORDS = 5  # "198 pages per chapter" is an answer, not a way to it
_NUMBER = re.compile(r"(\$ ?)?(-?\d[\d,]*(?:\.\d+)?)")
_SPACED = re.compile(r"()(?<![\d,.])(-?\d{1,3}(?:[ \u00a0\u202f]\d{3})+)(?![\d,])")  # 100 000


@dataclass(frozen=True, slots=True)
class Judged:
    """An accepted reply has `reason` None; a rejected one says what to tell the teacher in `problem`."""

    rationale: str = ""
    answer: str = ""
    feedback: str | None = None
    reason: str | None = None
    problem: str = ""


def judge(
    question: Question,
    kind: LessonKind,
    text: str,
    grader: Grader,
    structured: bool = False,
    continued: str | None = None,
) -> Judged:
    """Judge a whole reply; `structured`: an object was asked for, so that prose is none. `continued` is the attempt
    that the rationale is to go on from; what is kept of it is the student's, to the letter."""
    reply = parse_reply(text)
    latex = grader.kind is AnswerKind.MATH
    rationale = reply.rationale if continued is not None else plain_text(reply.rationale, latex)
    if rationale and (reply.markup is not None or (structured and reply.form == "prose")):
        return Judged(reason="malformed", problem="it is not laid out in the form that was asked for.")
    if max(len(rationale.split()), len(re.findall(r"\w+", rationale))) < FEWEST_WORDS:  # "80(.95)=76" is one word
        return Judged(reason="empty", problem="it has no reasoning.")
    if is_repetition(rationale):
        return Judged(reason="repetition", problem="its rationale repeats itself.")
    if gives_away(rationale, question.text):
        return Judged(
            reason="giveaway",
            problem="its rationale mentions a hint, a given answer or the student; derive the answer.",
        )
    if kind is LessonKind.FEEDBACK and not reply.feedback:
        return Judged(reason="no_feedback", problem="it does not say where the student's reasoning goes wrong.")
    if continued is not None:
        branch = branch_off(continued, reply.wrong_step or "", rationale)
        if isinstance(branch, Judged):
            return branch
        kept, rest = branch
        rationale = f"{kept}{plain_text(rest, latex)}"
    if (left := typeset(rationale, latex)) is not None:
        return Judged(reason="markup", problem=f"its rationale is typeset ({left!r}); write plain text.")
    conclusion = rationale if reply.answer is None else f"{rationale}\nAnswer: {reply.answer}"
    grade = grader.grade(question, conclusion)
    if grade.verdict is not Verdict.CORRECT:
        return Judged(reason="wrong_answer", problem="its answer is not right. Check each step.")
    if not _reaches(question, rationale, grader.kind):
        return Judged(reason="unsupported", problem="its rationale does not arrive at the answer that it states.")
    return Judged(rationale, grade.answer or question.answer, reply.feedback and plain_text(reply.feedback, latex))


def branch_off(attempt: str, wrong_step: str, rationale: str) -> tuple[str, str] | Judged:
    """The attempt's words before its first wrong step, as the student wrote them, and what the rationale says after
    them; white space may differ. A Judged where the step is none of the attempt's, or other words come before it."""
    wrong = _words(wrong_step)
    place = wrong.search(attempt) if wrong_step.strip() else None
    if place is None:
        return Judged(reason="no_branch", problem="its wrong_step is not copied word for word from the attempt.")
    kept = attempt[: place.start()].lstrip()
    begun = _words(kept).match(rationale)
    rest = rationale[begun.end() :] if begun else ""
    if begun is None or wrong.match(rest.lstrip()):
        return Judged(
            reason="not_continued",
            problem="its rationale does not begin with the student's words before the wrong step, word for word, and "
            "go on otherwise.",
        )
    if kept != kept.rstrip():
        rest = rest.lstrip()
    return (kept, rest) if rest else (kept.rstrip(), "")


def _words(text: str) -> re.Pattern[str]:
    """These words with any white space between them, and no more of a word or number before or behind."""
    words = text.split()
    before = r"(?<!\w)" if words and words[0][0].isalnum() else ""
    behind = r"(?!\w|[.,]\d)" if words and words[-1][-1].isalnum() else ""
    return re.compile(before + r"\s+".join(map(re.escape, words)) + behind)


def gives_away(rationale: str, question: str) -> bool:
    """Whether the rationale speaks of a hint, a given answer or the student, and the question does not."""
    spoken = {word.lower() for found in _GIVEAWAY.finditer(rationale) for word in found.groups() if word}
    return any(word not in question.lower() for word in spoken)


def is_repetition(text: str) -> bool:
    """A loop: three of the same long line, or the same four words making up most of a long text."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 15]
    if any(count >= 3 for count in Counter(lines).values()):
        return True
    words = text.split()
    if len(words) < 40:
        return False
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(grams)) < 0.4 * len(grams)


def is_near_duplicate(text: str, others: list[str]) -> bool:
    """Whether nine of ten word trigrams are shared with one of the others (all words, for short texts)."""
    own = _shingles(text)
    return any(_overlap(own, _shingles(other)) >= 0.9 for other in others)


def _reaches(question: Question, rationale: str, kind: AnswerKind) -> bool:
    """For numbers: the gold value stands in the reasoning, so that the answer was not merely copied to its end."""
    if kind is not AnswerKind.NUMBER:
        return True
    try:
        gold = float(question.answer.replace(",", ""))
    except ValueError:
        return True  # a fraction or an expression: the verifiers compared it already
    for currency, digits in (*_NUMBER.findall(rationale), *_SPACED.findall(rationale)):
        value = _as_float("".join(digits.split()))
        if value is not None and (value in (gold, abs(gold)) or (currency and math.isclose(100 * value, gold))):
            return True  # 49 cents may stand as $0.49
    return False


def _as_float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def _overlap(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    return len(one & other) / max(1, len(one | other))
