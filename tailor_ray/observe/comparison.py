"""Runs side by side: their scores, costs, differing settings, and an exact paired test where questions are the same."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.compute as pc

from tailor_ray.errors import CorruptionError
from tailor_ray.observe.pictures import SERIES, Chart, accuracy_lines, accuracy_points, loss_points
from tailor_ray.observe.summary import RunRecord, flat_settings, plain, step_count
from tailor_ray.records import Verdict
from tailor_ray.statistics import binomial_p_value
from tailor_ray.storage import read_part

Losses = dict[int, list[dict[str, Any]]]


def verdicts_of(record: RunRecord, number: int, split: str = "test") -> Iterator[dict[str, bool]]:
    """Whether each question of a round's evaluation was answered correctly, by question id, one part at a time."""
    for part in record.parts(number, "evaluate", split):
        table = read_part(record.folder(number, "evaluate"), part, ["question_id", "verdict"])
        right = pc.equal(table["verdict"], Verdict.CORRECT.value)
        yield dict(zip(table["question_id"].to_pylist(), right.to_pylist(), strict=True))


def paired_change(first: tuple[RunRecord, int], second: tuple[RunRecord, int]) -> dict[str, Any] | None:
    """How the second evaluation differs from the first on the test questions they share; None when they share none.

    {"questions", "points" (a share), "gained", "lost", "p_value", "verdict" (in words)}. Within one run a question lies
    in the part of the same number; between runs all are held by id.
    """
    before, after = verdicts_of(*first), verdicts_of(*second)
    if first[0] is not second[0]:
        before, after = (iter([dict(ChainMap(*parts))]) for parts in (before, after))
    questions = gained = lost = 0
    for old, new in zip(before, after, strict=False):
        shared = old.keys() & new.keys()
        questions += len(shared)
        gained += sum(new[name] and not old[name] for name in shared)
        lost += sum(old[name] and not new[name] for name in shared)
    if not questions:
        return None
    p_value = binomial_p_value(min(gained, lost), gained + lost)  # McNemar's: those that did not change say nothing
    shown = "p\u00a0<\u00a00.001" if p_value < 0.001 else f"p\u00a0=\u00a0{p_value:.3f}"
    sure = "" if p_value < 0.05 else ": could be chance"
    return {
        "questions": questions,
        "points": (gained - lost) / questions,
        "gained": gained,
        "lost": lost,
        "p_value": p_value,
        "verdict": f"exact paired test on {questions:,} questions, {shown}{sure}",
    }


def compare_runs(
    records: Sequence[RunRecord], reports: Sequence[dict[str, Any]], losses: Sequence[Losses]
) -> tuple[dict[str, Any], dict[str, Chart]]:
    """The document of comparison.json and the charts of its page; the first run is what the others are held against."""
    names = distinct_names(records)
    document = {
        "runs": [
            {
                "name": name,
                "uri": record.store.uri,
                "task": report["task"],
                "student": report["student"],
                "final": _last(report, "evaluation"),
                "baseline": report["rounds"][0]["evaluation"] if report["rounds"] else None,
                "rounds": len([entry for entry in report["rounds"] if entry["round"] > 0 and entry["evaluation"]]),
                "totals": report["totals"],
                "unfinished": report["unfinished"],
                "against_first": None if order == 0 else _against(records[0], record),
                "warnings": list(record.warnings),
            }
            for order, (name, record, report) in enumerate(zip(names, records, reports, strict=True))
        ],
        "settings": differing_settings(records),
    }
    plain_document: dict[str, Any] = plain(document)
    return plain_document, _charts(names, reports, losses)


def distinct_names(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names; where two are alike, a number behind each."""
    names = [record.name for record in records]
    return [
        f"{name} ({names[: order + 1].count(name)})" if names.count(name) > 1 else name
        for order, name in enumerate(names)
    ]


def _last(report: dict[str, Any], key: str) -> dict[str, Any] | None:
    return next((entry[key] for entry in reversed(report["rounds"]) if entry[key]), None)


def _against(first: RunRecord, other: RunRecord) -> dict[str, Any] | None:
    last = [max((n for n in run.rounds if (n, "evaluate") in run.stages), default=None) for run in (first, other)]
    if last[0] is None or last[1] is None:
        return None
    try:
        return paired_change((first, last[0]), (other, last[1]))
    except (CorruptionError, FileNotFoundError) as error:
        other.warnings.append(str(error))
        return None


def differing_settings(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Settings that are not the same in all runs: {"setting", "values" in the runs' order}."""
    flat = [dict(flat_settings(record.settings)) for record in records]
    return [
        {"setting": name, "values": [None if name not in one else str(one[name]) for one in flat]}
        for name in sorted({name for one in flat for name in one})
        if len({str(one.get(name)) for one in flat}) > 1
    ]


def _charts(names: Sequence[str], reports: Sequence[dict[str, Any]], losses: Sequence[Losses]) -> dict[str, Chart]:
    colors = [SERIES[order % len(SERIES)] for order in range(len(names))]
    series = [
        {"name": name, "color": color, "points": accuracy_points(report["rounds"], "evaluation")}
        for name, color, report in zip(names, colors, reports, strict=True)
    ]
    charts = {
        "accuracy": accuracy_lines(series),
        "loss": _loss_chart(names, colors, losses),
        "cost": _bars("Teacher cost", "dollars", names, colors, reports, "cost_usd"),
        "fixed": _bars("Mistakes fixed", "number", names, colors, reports, "fixed"),
        "time": _bars("Seconds over all stages", "duration", names, colors, reports, "seconds"),
        "tokens": _tokens(names, reports),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def _bars(
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
