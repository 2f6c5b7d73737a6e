"""What the report's pages show besides report.json: charts, and the rows of the table of mistakes.

In: the document of report.json, the loss curves, and the rows of the few parts that the table shows. Out: plain dicts.
A chart's hold names, colour classes and numbers, which charts.js draws. A chart with nothing to show is left out. Part
i of an exam, of its lessons and of the next exam belongs to question part i. So one part of each is in memory at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tailor_ray.answers.grader import change, standing
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
LOSS_X, LOSS_Y = {"whole": False, "name": "Step"}, {"min": 0, "format": "loss"}
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
    scores = [("test", "evaluation", BLUE), ("validation", "validation", AMBER)]
    if all(entry["evaluation"] == entry["validation"] for entry in rounds):  # as without test questions
        del scores[0]
    accuracy = [{"name": name, "color": color, "points": accuracy_points(rounds, key)} for name, key, color in scores]
    reasons = sorted({reason for entry in rounds for reason in (entry["teacher"] or {}).get("reasons", ())})
    counted = [{"round": entry["round"], "reasons": (entry["teacher"] or {}).get("reasons")} for entry in rounds]
    times = [{"round": entry["round"], "time": wall_seconds(entry["seconds"])} for entry in rounds]
    shades = dict(zip(reasons, cycle(SERIES), strict=False))
    return _drawn(
        accuracy=_accuracy(accuracy),
        verdicts=_bars(rounds, "exam", VERDICTS, "Exam verdicts by round", share=True),
        mistakes=_bars(rounds, "mistakes", CHANGES, "Questions fixed, regressed and stubborn by round"),
        requests=_requests(rounds),
        reasons=_bars(counted, "reasons", shades, "Rejected and failed requests by reason"),
        time=_bars(times, "time", STAGE_COLORS, "Seconds by stage and round", form="duration"),
        loss=_losses(losses),
    )


def comparison_charts(
    names: Sequence[str], reports: Sequence[dict[str, Any]], losses: Sequence[Losses]
) -> dict[str, Chart]:
    """The charts of several runs, by the names that the template asks for.

    `reports` are their documents of report.json and `losses` their curves, both in the order of `names`.
    """
    colors = [SERIES[order % len(SERIES)] for order in range(len(names))]
    accuracy, curves = [], []
    for name, color, report, rounds in zip(names, colors, reports, losses, strict=True):
        accuracy.append({"name": name, "color": color, "points": accuracy_points(report["rounds"], "evaluation")})
        points, offset = list[Row](), 0
        for steps in rounds.values():
            points += loss_points(steps, "loss", offset)
            offset += step_count(steps)
        curves.append({"name": name, "color": color, "points": points})

    def totals(label: str, form: str, *parts: tuple[str, str | None, str], **more: Any) -> Chart | None:
        """One bar per run of its totals, each part a name, a colour (None is the run's) and a key."""
        rows = [
            {
                "name": name,
                "parts": [
                    {"name": part, "color": own or color, "value": report["totals"][key]} for part, own, key in parts
                ],
            }
            for name, color, report in zip(names, colors, reports, strict=True)
        ]
        if not any(report["totals"][key] for report in reports for _, _, key in parts):
            return None
        return {"kind": "bars", "label": label, "rows": rows, "format": form, "share": False, **more}

    def total(label: str, form: str, key: str) -> Chart | None:
        return totals(label, form, (label, None, key), legend=False)

    return _drawn(
        accuracy=_accuracy(accuracy),
        loss=_lines("Training loss by step", curves, LOSS_X, LOSS_Y),
        cost=total("Teacher cost", "dollars", "cost_usd"),
        fixed=total("Mistakes fixed", "number", "fixed"),
        time=total("Seconds over all stages", "duration", "seconds"),
        tokens=totals("Teacher tokens", "number", ("input", BLUE, "input_tokens"), ("output", AMBER, "output_tokens")),
    )


def accuracy_points(rounds: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """A split's accuracy by round as points, with its interval in [0, 1]; rounds that were not asked have none."""
    points = []
    for entry in rounds:
        score = entry[split]
        if score is not None:
            low, high = score["ci95"]
            bounds = f"{100 * low:.1f}–{100 * high:.1f}"
            shown = f"{100 * score['accuracy']:.1f} % ({bounds}), {score['correct']}/{score['total']}"
            points.append({"x": entry["round"], "y": score["accuracy"], "low": low, "high": high, "tip": shown})
    return points


def _drawn(**charts: Chart | None) -> dict[str, Chart]:
    return {name: chart for name, chart in charts.items() if chart is not None}


def _accuracy(series: list[dict[str, Any]]) -> Chart | None:
    y = {"min": 0, "max": 1, "format": "percent"}
    return _lines("Accuracy by round with 95 % intervals", series, {"whole": True, "name": "Round"}, y)


def _lines(label: str, series: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]) -> Chart | None:
    """Series {name, color, points}; None where none has a point."""
    drawn = [one for one in series if one["points"]]
    return {"kind": "lines", "label": label, "series": drawn, "x": x, "y": y} if drawn else None


def _bars(
    rounds: list[dict[str, Any]],
    key: str,
    colors: dict[str, str],
    label: str,
    share: bool = False,
    form: str = "number",
) -> Chart | None:
    """One bar per round of the counts that its entry has under `key`, in the order of `colors`."""
    rows = [
        {
            "name": f"round {entry['round']}",
            "parts": [
                {"name": STAGE_NAMES.get(name, name), "color": color, "value": entry[key].get(name, 0)}
                for name, color in colors.items()
            ],
        }
        for entry in rounds
        if entry[key]
    ]
    return {"kind": "bars", "label": label, "rows": rows, "format": form, "share": share} if rows else None


def _requests(rounds: list[dict[str, Any]]) -> Chart | None:
    """Ended requests by outcome; the ledger's share of them is a bar of its own below."""
    chart = _bars(rounds, "teacher", OUTCOMES, "Teacher requests by outcome and round")
    if chart is None:
        return None
    for entry in rounds:
        if entry["teacher"] and entry["teacher"]["from_ledger"]:
            part = {"name": "answered from the ledger", "color": BLUE, "value": entry["teacher"]["from_ledger"]}
            chart["rows"].append({"name": f"round {entry['round']} ledger", "parts": [part]})
    return chart


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
    series: dict[str, dict[str, Any]] = {
        key: {"name": name, "color": color, "points": []} for key, (name, color) in LOSSES.items()
    }
    marks, offset = [], 0
    for number, steps in losses.items():
        marks.append({"x": offset + 1, "name": f"round {number}"})
        for key, one in series.items():
            one["points"] += loss_points(steps, key, offset)
        offset += step_count(steps)
    trained = [one for one in series.values() if any(point["y"] for point in one["points"])]  # else it has no such term
    return _lines("Training loss by step", trained, LOSS_X | {"marks": marks}, LOSS_Y)


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
