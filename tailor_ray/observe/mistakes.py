"""What became of mistakes: consecutive exams compared by question, and the rows of the report's table.

A question's *standing* in one exam, from its attempts (disputed ones and engine errors say nothing of the student and
are left out):

- solved: more than half of the attempts are correct;
- mistaken: not solved, and at least one attempt is wrong by both verifiers;
- undecided: anything else (no attempt left, or only unparsed and truncated ones beside the correct).

Between one exam and the next a question is *fixed* (mistaken, now solved), *regressed* (solved, now mistaken),
*stubborn* (mistaken both times), or *kept* (solved both times). An undecided standing on either side counts as
`undecided`. The counts of round r compare its exam with that of round r-1: what the training of round r-1 changed.

In: manifests, and the parts that they name. Exam part i answers question part i in every round, so one part of each
exam is in memory at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tailor_ray.observe.summary import RunRecord
from tailor_ray.records import ATTEMPT_SCHEMA, Verdict
from tailor_ray.storage import read_part

CHANGES = ("fixed", "regressed", "stubborn", "kept", "undecided")
SAYS_NOTHING = (Verdict.DISPUTED, Verdict.ERROR)
MAX_CHARACTERS = 4_000  # of one text in the report: a 100,000-token question must not make the page unusable

Row = dict[str, Any]


def standing(verdicts: Iterable[str]) -> str:
    """solved, mistaken or undecided: see the module's contract."""
    counted = [verdict for verdict in verdicts if verdict not in SAYS_NOTHING]
    if 2 * sum(verdict == Verdict.CORRECT for verdict in counted) > len(counted):
        return "solved"
    return "mistaken" if Verdict.WRONG in counted else "undecided"


def change(before: str, now: str) -> str:
    """One of CHANGES, from two standings."""
    if "undecided" in (before, now):
        return "undecided"
    if before == "mistaken":
        return "fixed" if now == "solved" else "stubborn"
    return "regressed" if now == "mistaken" else "kept"


def compare_exams(record: RunRecord) -> dict[int, dict[str, int]]:
    """CHANGES counted for every round whose exam has one before it."""
    counted = {}
    for number in record.rounds:
        if (number, "exam") not in record.stages or (number - 1, "exam") not in record.stages:
            continue
        totals = dict.fromkeys(CHANGES, 0)
        for index in record.parts(number, "exam", "attempts"):
            before = _standings(record, number - 1, index)
            now = _standings(record, number, index)
            changes = Counter(change(before[question], now[question]) for question in before.keys() & now.keys())
            totals = {name: totals[name] + changes[name] for name in CHANGES}
        counted[number] = totals
    return counted


def mistake_rows(record: RunRecord, limit: int) -> tuple[list[Row], int]:
    """Rows for the report's table, at most `limit`, and how many there are in all; an equal share from each round.

    A row is one question that was answered wrong at least once in one exam, with the mistake that the teacher was shown
    (else the first), the teacher's reply to it, and the student's attempt with the same sample number in the next exam.
    """
    exams = [number for number in record.rounds if (number, "exam") in record.stages]
    rows: list[Row] = []
    total = 0
    for number in exams:
        chosen, found = _choose(record, number, limit // len(exams))
        total += found
        lessons = _lessons(record, number, [question for groups in chosen.values() for question in groups])
        for index, groups in chosen.items():
            questions = _questions(record, index)
            later = _by_question(_attempts(record, number + 1, index), list(groups))
            rows += [
                _row(number, questions.get(name, {}), attempts, later.get(name, []), lessons.get(name))
                for name, attempts in groups.items()
            ]
    return rows, total


def _choose(record: RunRecord, number: int, quota: int) -> tuple[dict[int, dict[str, list[Row]]], int]:
    """The first `quota` questions with a mistake, as {part: {question: its attempts}}, and how many there are."""
    chosen: dict[int, dict[str, list[Row]]] = {}
    total = taken = 0
    for index in record.parts(number, "exam", "attempts"):
        table = _attempts(record, number, index)
        wrong = table.filter(pc.equal(table["verdict"], Verdict.WRONG.value))["question_id"].unique().to_pylist()
        total += len(wrong)
        wanted = wrong[: quota - taken]
        if wanted:
            chosen[index] = _by_question(table, wanted)
            taken += len(wanted)
    return chosen, total


def _attempts(record: RunRecord, number: int, index: int) -> pa.Table:
    """One part of an exam; without rows where the round has no such part."""
    part = record.parts(number, "exam", "attempts").get(index)
    return ATTEMPT_SCHEMA.empty_table() if part is None else read_part(record.folder(number, "exam"), part)


def _standings(record: RunRecord, number: int, index: int) -> dict[str, str]:
    table = _attempts(record, number, index)
    verdicts: dict[str, list[str]] = defaultdict(list)
    for question, verdict in zip(table["question_id"].to_pylist(), table["verdict"].to_pylist(), strict=True):
        verdicts[question].append(verdict)
    return {question: standing(given) for question, given in verdicts.items()}


def _by_question(table: pa.Table, wanted: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of the wanted questions, grouped; the others are never made into Python objects."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in table.filter(pc.is_in(table["question_id"], pa.array(wanted, pa.string()))).to_pylist():
        groups[row["question_id"]].append(row)
    return groups


def _questions(record: RunRecord, index: int) -> dict[str, Row]:
    part = record.parts(0, "questions", "train").get(index)
    if part is None:
        return {}
    return {row["id"]: row for row in read_part(record.folder(0, "questions"), part).to_pylist()}


def _lessons(record: RunRecord, number: int, wanted: Sequence[str]) -> dict[str, Row]:
    """For each wanted question the first lesson about a mistake of its own, else the first rationale."""
    found: dict[str, Row] = {}
    for part in record.parts(number, "teach", "lessons").values():
        lessons = _by_question(read_part(record.folder(number, "teach"), part), wanted)
        for lesson in (lesson for group in lessons.values() for lesson in group):
            name = lesson["question_id"]
            if name not in found or found[name]["mistake"] is None:
                found[name] = lesson
    return found


def _row(number: int, question: Row, attempts: list[Row], later: list[Row], lesson: Row | None) -> Row:
    wrong = {attempt["sample"]: attempt for attempt in attempts if attempt["verdict"] == Verdict.WRONG}
    shown = wrong.get(lesson["mistake_sample"] if lesson else None) or next(iter(wrong.values()))
    again = next((attempt for attempt in later if attempt["sample"] == shown["sample"]), None)
    before = standing(attempt["verdict"] for attempt in attempts)
    return {
        "round": number,
        "id": shown["question_id"],
        "question": shorten(question.get("text")),
        "gold": shorten(question.get("answer")),
        "wrong": len(wrong),
        "attempts": len(attempts),
        "attempt": shorten(shown["text"]),
        "answer": shorten(shown["answer"]),
        "feedback": shorten(lesson["feedback"]) if lesson else None,
        "lesson": shorten(lesson["text"]) if lesson else None,
        "later": shorten(again["text"]) if again else None,
        "later_verdict": again["verdict"] if again else None,
        "change": change(before, standing(attempt["verdict"] for attempt in later)) if later else "open",
    }


def shorten(text: str | None) -> str:
    """The text without outer blanks, up to MAX_CHARACTERS, saying how much was left out; nothing for None."""
    text = (text or "").strip()
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} … ({len(text) - MAX_CHARACTERS:,} more characters)"
