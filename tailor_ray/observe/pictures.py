"""The report's charts as data: what charts.js draws. A chart without anything to show is left out.

In: the document of report.json and the loss curves. Out: plain dicts of names, colour classes and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tailor_ray.observe.summary import STAGES, RunRecord, plain, step_count, wall_seconds

Chart = dict[str, Any]

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
MAX_POINTS = 600  # of one loss curve: more than the pixels that show it


def run_charts(document: dict[str, Any], losses: dict[int, list[dict[str, Any]]]) -> dict[str, Chart]:
    """All charts of one run, by the names that the template asks for."""
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
    """Accuracy over rounds of any number of series {name, color, points}."""
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
    """`splits` are (name, key of the round's entry, colour)."""
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


def read_losses(record: RunRecord) -> dict[int, list[dict[str, Any]]]:
    """Each round's training steps {step, loss, mle, reflection, …}, thinned to about MAX_POINTS; NaN is null."""
    curves = {}
    for number in record.rounds:
        steps = record.steps(number)
        if steps:
            stride = -(-len(steps) // MAX_POINTS)
            curves[number] = plain([*steps[:-1:stride], steps[-1]])
    return curves


def loss_points(steps: Sequence[dict[str, Any]], key: str, offset: int) -> list[dict[str, Any]]:
    """One term of a round's curve, its first step at `offset` + 1."""
    start = offset + 1 - steps[0]["step"]
    return [
        {"x": start + step["step"], "y": step[key], "tip": f"{step[key]:.4f}"}
        for step in steps
        if step[key] is not None
    ]


def _losses(losses: dict[int, list[dict[str, Any]]]) -> Chart | None:
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
