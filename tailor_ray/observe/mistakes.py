"""The rows of the report's table of mistakes: what was answered wrong, what the teacher said, what came of it.

In: manifests and part records, which hold the counts, and the rows of the few parts that the table shows. Part i of an
exam, of its lessons and of the next exam belongs to question part i, so one part of each is in memory at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tailor_ray.answers.grader import change, standing
from tailor_ray.layout import ATTEMPTS, LESSONS, QUESTIONS
from tailor_ray.observe.summary import RunRecord
from tailor_ray.records import Verdict
from tailor_ray.storage import read_part

MAX_CHARACTERS = 4_000  # of one text in the report: a 100,000-token question must not make the page unusable

Row = dict[str, Any]


def mistake_rows(record: RunRecord, limit: int) -> tuple[list[Row], int]:
    """Rows for the report's table, at most `limit`, and how many there are in all; an equal share from each round.

    A row is one question that was answered wrong at least once in one exam, with the mistake that the teacher was shown
    (else the first), the teacher's reply to it, and the student's attempt with the same sample number in the next exam.
    """
    exams = [number for number in record.rounds if (number, "exam") in record.stages]
    rows: list[Row] = []
    for number in exams:
        rows += _rows_of_exam(record, number, limit // len(exams))
    return rows, sum((record.metrics(number, "exam") or {}).get("mistaken_questions", 0) for number in exams)


def _rows_of_exam(record: RunRecord, number: int, quota: int) -> list[Row]:
    """Of the first `quota` questions with a mistake; no part is read after them, nor one without a mistake."""
    rows: list[Row] = []
    for index in range(record.part_count(number, "exam", ATTEMPTS)):
        left = quota - len(rows)
        if left <= 0:
            break
        part = record.part(number, "exam", ATTEMPTS, index)
        if part is None or not part.info["mistaken_questions"]:
            continue
        table = read_part(record.folder(number, "exam"), part)
        wrong = table.filter(pc.equal(table["verdict"], Verdict.WRONG.value))["question_id"].unique()
        groups = _by_question(table, wrong.to_pylist()[:left])
        names = list(groups)
        questions = _part_by_question(record, (QUESTIONS.round, QUESTIONS.name, "train"), index, names, "id")
        lessons = _part_by_question(record, (number, "teach", LESSONS), index, names)
        later = _part_by_question(record, (number + 1, "exam", ATTEMPTS), index, names)
        for name, attempts in groups.items():
            question = next(iter(questions.get(name, ())), {})
            rows.append(_row(number, question, attempts, later.get(name, []), _lesson(lessons.get(name, []))))
    return rows


def _part_by_question(
    record: RunRecord, where: tuple[int, str, str], index: int, wanted: Sequence[str], column: str = "question_id"
) -> dict[str, list[Row]]:
    """The wanted questions' rows in part `index` of (round, stage, prefix); none where the stage has no such part."""
    number, stage, _ = where
    part = record.part(*where, index)
    return {} if part is None else _by_question(read_part(record.folder(number, stage), part), wanted, column)


def _by_question(table: pa.Table, wanted: Sequence[str], column: str = "question_id") -> dict[str, list[Row]]:
    """The rows of the wanted questions, grouped; the others are never made into Python objects."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in table.filter(pc.is_in(table[column], pa.array(wanted, pa.string()))).to_pylist():
        groups[row[column]].append(row)
    return groups


def _lesson(lessons: Sequence[Row]) -> Row | None:
    """The first lesson about a mistake of its own, else the first rationale."""
    return next((lesson for lesson in lessons if lesson["mistake"] is not None), next(iter(lessons), None))


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
