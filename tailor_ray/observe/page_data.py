"""What the report's pages show besides report.json: charts, and the rows of the table of mistakes.

In: the document of report.json, the loss curves, and the rows of the few parts that the table shows. Out: plain dicts;
a chart's hold names, colour classes and numbers, which charts.js draws. A chart without anything to show is left out.
Part i of an exam, of its lessons and of the next exam belongs to question part i, so one part of each is in memory at a
time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tailor_ray.answers.standing import change, standing
from tailor_ray.layout import ATTEMPTS, LESSONS, QUESTIONS
from tailor_ray.observe.summary import STAGES, RunRecord, plain, step_count, wall_seconds
from tailor_ray.records import Verdict
from tailor_ray.storage import read_part

Chart = dict[str, Any]
Row = dict[str, Any]
Losses = dict[int, list[dict[str, Any]]]  # training's steps by round

BLUE, AMBER, GREEN, RED, VIOLET, GREY, TEAL = "c1", "c2", "c3", "c4", "c5", "c6", "c7"
SERIES = (BLUE, AMBER, GREEN, VIOLET, RED, GREY)
VERDICTS = {"correct": GREEN, "wrong": RED, "unparsed": AMBER, "truncated": GREY, "disputed": VIOLET, "error": BLUE}
CHANGES = {"fixed": GREEN, "regressed": RED, "stubborn": GREY, "undecided": VIOLET}
OUTCOMES = {"accepted": GREEN, "rejected": AMBER, "failed": RED}
STAGE_COLORS = dict(zip(STAGES, (GREY, VIOLET, BLUE, AMBER, TEAL, GREEN, RED), strict=True))
STAGE_NAMES = {"teach": "teach, after the exam"}
LOSSES = {
    "loss": ("total", BLUE),
    "mle": ("learning from the teacher", GREEN),
    "reflection": ("self-reflection", AMBER),
}
MAX_CHARACTERS = 4_000  # of one text in the report: a 100,000-token question must not make the page unusable
MAX_POINTS = 600  # of one loss curve: more than the pixels that show it


def run_charts(document: dict[str, Any], losses: Losses) -> dict[str, Chart]:
    """All charts of one run, by the names that the template asks for.

    They are made of the `document` of report.json and of `losses`, the thinned curves of `read_losses`.
    """
    rounds = document["rounds"]
    charts = {
        "accuracy": accuracy_chart([("test", "evaluation", BLUE), ("validation", "validation", AMBER)], rounds),
        "verdicts": _bars(rounds, "exam", VERDICTS, "Exam verdicts by round", share=True),
        "mistakes": _bars(rounds, "mistakes", CHANGES, "Questions fixed, regressed and stubborn by round", share=False),
        "requests": _requests(rounds),
        "reasons": _reasons(rounds),
        "time": _time(rounds),
        "loss": _losses(losses),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def accuracy_points(rounds: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    points = []
    for entry in rounds:
        score = entry[split]
        if score is not None:
            low, high = score["ci95"]
            bounds = f"{100 * low:.1f}–{100 * high:.1f}"
            shown = f"{100 * score['accuracy']:.1f} % ({bounds}), {score['correct']}/{score['total']}"
            points.append({"x": entry["round"], "y": score["accuracy"], "low": low, "high": high, "tip": shown})
    return points


def accuracy_lines(series: Sequence[dict[str, Any]]) -> Chart | None:
    """Accuracy over rounds of any number of series {name, color, points}; None where none has a point."""
    drawn = [one for one in series if one["points"]]
    if not drawn:
        return None
    return {
        "kind": "lines",
        "label": "Accuracy by round with 95 % intervals",
        "series": drawn,
        "x": {"whole": True, "name": "Round"},
        "y": {"min": 0, "max": 1, "format": "percent"},
    }


def accuracy_chart(splits: Sequence[tuple[str, str, str]], rounds: Sequence[dict[str, Any]]) -> Chart | None:
    """Accuracy over rounds by split, each of `splits` a name, the key of the round's entry and a colour.

    The evaluation is left out where it is the validation's, as in a run without test questions.
    """
    series = []
    for name, key, color in splits:
        points = accuracy_points(rounds, key)
        if points and not (key == "evaluation" and all(entry["evaluation"] == entry["validation"] for entry in rounds)):
            series.append({"name": name, "color": color, "points": points})
    return accuracy_lines(series)


def _bars(rounds: list[dict[str, Any]], key: str, colors: dict[str, str], label: str, share: bool) -> Chart | None:
    rows = [
        {
            "name": f"round {entry['round']}",
            "parts": [
                {"name": name, "color": color, "value": entry[key].get(name, 0)} for name, color in colors.items()
            ],
        }
        for entry in rounds
        if entry[key]
    ]
    return {"kind": "bars", "label": label, "rows": rows, "format": "number", "share": share} if rows else None


def _requests(rounds: list[dict[str, Any]]) -> Chart | None:
    """Ended requests by outcome; the ledger's share of them is a bar of its own below."""
    chart = _bars(rounds, "teacher", OUTCOMES, "Teacher requests by outcome and round", share=False)
    if chart is None:
        return None
    for entry in rounds:
        if entry["teacher"] and entry["teacher"]["from_ledger"]:
            part = {"name": "answered from the ledger", "color": BLUE, "value": entry["teacher"]["from_ledger"]}
            chart["rows"].append({"name": f"round {entry['round']} ledger", "parts": [part]})
    return chart


def _reasons(rounds: list[dict[str, Any]]) -> Chart | None:
    reasons = sorted({reason for entry in rounds if entry["teacher"] for reason in entry["teacher"]["reasons"]})
    colors = {reason: SERIES[order % len(SERIES)] for order, reason in enumerate(reasons)}
    counted = [{"round": entry["round"], "reasons": (entry["teacher"] or {}).get("reasons")} for entry in rounds]
    return _bars(counted, "reasons", colors, "Rejected and failed requests by reason", share=False)


def _time(rounds: list[dict[str, Any]]) -> Chart | None:
    rows = []
    for entry in rounds:
        seconds = wall_seconds(entry["seconds"])
        parts = [
            {"name": STAGE_NAMES.get(stage, stage), "color": STAGE_COLORS[stage], "value": seconds.get(stage, 0)}
            for stage in STAGES
        ]
        rows.append({"name": f"round {entry['round']}", "parts": parts})
    if not rows:
        return None
    return {"kind": "bars", "label": "Seconds by stage and round", "rows": rows, "format": "duration", "share": False}


def read_losses(record: RunRecord) -> Losses:
    """Each round's training steps {step, loss, mle, reflection, …}, thinned to about MAX_POINTS; NaN is null.

    Raises CorruptionError for a file of steps that is damaged or missing.
    """
    curves = {}
    for number in record.rounds:
        steps = record.steps(number)
        if steps:
            stride = -(-len(steps) // MAX_POINTS)
            curves[number] = plain([*steps[:-1:stride], steps[-1]])
    return curves


def loss_points(steps: Sequence[dict[str, Any]], key: str, offset: int) -> list[dict[str, Any]]:
    """The term `key` of a round's curve as points, its first step at `offset` + 1.

    A step whose term is not finite has no point.
    """
    start = offset + 1 - steps[0]["step"]
    return [
        {"x": start + step["step"], "y": step[key], "tip": f"{step[key]:.4f}"}
        for step in steps
        if step[key] is not None
    ]


def _losses(losses: Losses) -> Chart | None:
    """One axis of steps over all rounds, each round's beginning marked."""
    series = {key: {"name": name, "color": color, "points": []} for key, (name, color) in LOSSES.items()}
    marks, offset = [], 0
    for number, steps in losses.items():
        marks.append({"x": offset + 1, "name": f"round {number}"})
        for key, one in series.items():
            one["points"] += loss_points(steps, key, offset)  # type: ignore[operator]
        offset += step_count(steps)
    drawn = [one for one in series.values() if one["points"]]
    if not drawn:
        return None
    return {
        "kind": "lines",
        "label": "Training loss by step",
        "series": drawn,
        "x": {"whole": False, "name": "Step", "marks": marks},
        "y": {"min": 0, "format": "loss"},
    }


def comparison_charts(
    names: Sequence[str], reports: Sequence[dict[str, Any]], losses: Sequence[Losses]
) -> dict[str, Chart]:
    """The charts of several runs, by the names that the template asks for.

    `reports` are their documents of report.json and `losses` their curves, both in the order of `names`.
    """
    colors = [SERIES[order % len(SERIES)] for order in range(len(names))]
    series = [
        {"name": name, "color": color, "points": accuracy_points(report["rounds"], "evaluation")}
        for name, color, report in zip(names, colors, reports, strict=True)
    ]
    charts = {
        "accuracy": accuracy_lines(series),
        "loss": _loss_chart(names, colors, losses),
        "cost": _total_bars("Teacher cost", "dollars", names, colors, reports, "cost_usd"),
        "fixed": _total_bars("Mistakes fixed", "number", names, colors, reports, "fixed"),
        "time": _total_bars("Seconds over all stages", "duration", names, colors, reports, "seconds"),
        "tokens": _tokens(names, reports),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def _total_bars(
    label: str, form: str, names: Sequence[str], colors: Sequence[str], reports: Sequence[dict[str, Any]], key: str
) -> Chart | None:
    rows: list[dict[str, Any]] = [
        {"name": name, "parts": [{"name": label, "color": color, "value": report["totals"][key]}]}
        for name, color, report in zip(names, colors, reports, strict=True)
    ]
    if not any(row["parts"][0]["value"] for row in rows):
        return None
    return {"kind": "bars", "label": label, "rows": rows, "format": form, "share": False, "legend": False}


def _tokens(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> Chart | None:
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "parts": [
                {"name": "input", "color": SERIES[0], "value": report["totals"]["input_tokens"]},
                {"name": "output", "color": SERIES[1], "value": report["totals"]["output_tokens"]},
            ],
        }
        for name, report in zip(names, reports, strict=True)
    ]
    if not any(part["value"] for row in rows for part in row["parts"]):
        return None
    return {"kind": "bars", "label": "Teacher tokens", "rows": rows, "format": "number", "share": False}


def _loss_chart(names: Sequence[str], colors: Sequence[str], losses: Sequence[Losses]) -> Chart | None:
    """The total loss of each run over all its rounds' steps."""
    series = []
    for name, color, curves in zip(names, colors, losses, strict=True):
        points: list[dict[str, Any]] = []
        offset = 0
        for steps in curves.values():
            points += loss_points(steps, "loss", offset)
            offset += step_count(steps)
        if points:
            series.append({"name": name, "color": color, "points": points})
    if not series:
        return None
    return {
        "kind": "lines",
        "label": "Training loss by step",
        "series": series,
        "x": {"whole": False, "name": "Step"},
        "y": {"min": 0, "format": "loss"},
    }


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
            rows.append(_row(number, question, attempts, later.get(name, []), lessons.get(name, [])))
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


def _row(number: int, question: Row, attempts: list[Row], later: list[Row], lessons: list[Row]) -> Row:
    # The first lesson about a mistake of its own, else the first rationale.
    lesson = next((one for one in lessons if one["mistake"] is not None), next(iter(lessons), None))
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
    """The text without outer blanks, up to MAX_CHARACTERS; it says how much was left out.

    Returns an empty text for None.
    """
    text = (text or "").strip()
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} … ({len(text) - MAX_CHARACTERS:,} more characters)"
