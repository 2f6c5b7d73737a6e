"""The reports of a run and of runs side by side: JSON, and one page that opens from disk without a network.

They are made of manifests and the parts that these count, never of the log or anything uncommitted. So they can be
written at any moment of a run and after any failure. All text from models, data and settings is escaped. jinja2 escapes
the page. The page's data is JSON in a data block. The scripts set text as text. A content policy allows them alone.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, TypeVar

import pyarrow.compute as pc

from tailor_ray import layout
from tailor_ray.errors import CorruptionError
from tailor_ray.observe.page_data import (
    Chart,
    Losses,
    Row,
    comparison_charts,
    mistake_rows,
    read_losses,
    run_charts,
)
from tailor_ray.observe.progress import duration
from tailor_ray.observe.summary import RunRecord, flat_settings, load_run, plain, summarize, wall_seconds
from tailor_ray.once import once
from tailor_ray.records import Verdict
from tailor_ray.statistics import binomial_p_value
from tailor_ray.storage import Store, read_part

T = TypeVar("T")
MAX_MISTAKES = 3_000  # rows in the page; at ~1 kB each it stays a file that opens at once


def write_report(run: Store) -> dict[str, Any]:
    """Write both files of the folder report/ of `run`, and return the document of report.json.

    A damaged or missing file is named in the document's `warnings` and on the page; its figures are left out.
    """
    record = load_run(run)
    rows, total = _tolerant(record, lambda one: mistake_rows(one, MAX_MISTAKES), _NO_ROWS)
    losses: Losses = _tolerant(record, read_losses, {})
    gain = _tolerant(record, _gain, None)
    document = summarize(record)
    document["gain"] = gain
    run.write_json(layout.REPORT, document)
    page = {"charts": run_charts(document, losses), "mistakes": {"rows": rows, "total": total}}
    known = {"setting": record.setting, "seed": record.settings.get("seed")}
    html = render("report.html.j2", report=document, page=page, **known, **_headline(document))
    run.write_bytes(layout.REPORT_PAGE, html.encode())
    return document


def write_comparison(runs: Sequence[Store], out: Store) -> dict[str, Any]:
    """Put two or more runs side by side: comparison.json and comparison.html in the folder `out`.

    The first of `runs` is what the others are held against. Returns the document of comparison.json.
    """
    records = [load_run(run) for run in runs]
    no_curves: Losses = {}
    reports = [summarize(record) for record in records]
    losses = [_tolerant(record, read_losses, no_curves) for record in records]
    document, charts = compare_runs(records, reports, losses)
    out.write_json("comparison.json", document)
    html = render("comparison.html.j2", comparison=document, reports=reports, page={"charts": charts})
    out.write_bytes("comparison.html", html.encode())
    return document


def verdicts_of(record: RunRecord, number: int, split: str = "test") -> Iterator[dict[str, bool]]:
    """Whether each question of a round's evaluation was answered correctly.

    Yields one mapping from question id per part of `split`. Raises CorruptionError for a damaged part.
    """
    for part in record.parts(number, "evaluate", split):
        table = read_part(record.folder(number, "evaluate"), part, ["question_id", "verdict"])
        right = pc.equal(table["verdict"], Verdict.CORRECT.value)
        yield dict(zip(table["question_id"].to_pylist(), right.to_pylist(), strict=True))


def paired_change(first: tuple[RunRecord, int], second: tuple[RunRecord, int]) -> dict[str, Any] | None:
    """How the second evaluation differs from the first on the test questions that they share.

    Each is a run and the number of a round. Returns {"questions", "points" (a share), "gained", "lost", "p_value",
    "verdict" (in words)}, or None when they share no question. Within one run a question lies in the part of the same
    number. Between runs all are held by id.
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
    """The document of comparison.json and the charts of its page.

    `reports` are the documents of report.json and `losses` the curves of `records`, in their order. The first run is
    what the others are held against.
    """
    names = distinct_names(records)
    document = {
        "runs": [
            {
                "name": name,
                "uri": record.store.uri,
                "task": report["task"],
                "student": report["student"],
                "final": next((one["evaluation"] for one in reversed(report["rounds"]) if one["evaluation"]), None),
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
    return plain_document, comparison_charts(names, reports, losses)


def distinct_names(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names; where two are alike, a number behind each."""
    names = [record.name for record in records]
    return [
        f"{name} ({names[: order + 1].count(name)})" if names.count(name) > 1 else name
        for order, name in enumerate(names)
    ]


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
    """Settings that are not the same in all runs.

    Returns {"setting", "values"} for each, the values as texts in the order of `records`, None where a run has none.
    """
    flat = [dict(flat_settings(record.settings)) for record in records]
    return [
        {"setting": name, "values": [None if name not in one else str(one[name]) for one in flat]}
        for name in sorted({name for one in flat for name in one})
        if len({str(one.get(name)) for one in flat}) > 1
    ]


def comparison_table(document: dict[str, Any]) -> str:
    """The `document` of comparison.json as text: one line per run, with its difference to the first one."""
    heads = ("run", "round 0", "accuracy", "95 % interval", "to the first", "p", "teacher tokens", "cost", "per point")
    rows = [heads]
    for run in document["runs"]:
        against, totals = run["against_first"], run["totals"]
        change = (points(against["points"]), p_value(against["p_value"])) if against else ("—", "—")
        tokens = thousands(totals["input_tokens"] + totals["output_tokens"])
        scores = (share(run["baseline"]), share(run["final"]), interval(run["final"]))
        rows.append((run["name"], *scores, *change, tokens, dollars(totals["cost_usd"]), per_point(totals)))
    return aligned(rows)


def rounds_table(document: dict[str, Any]) -> str:
    """The `document` of report.json as text: one line per round.

    Shown are accuracy with its interval, the exam's mistakes, lessons, cost, steps and time.
    """
    rows = [("round", "accuracy", "95 % interval", "n", "wrong attempts", "lessons", "cost", "steps", "time")]
    for entry in document["rounds"]:
        score, exam, teacher, training = (entry[key] for key in ("evaluation", "exam", "teacher", "training"))
        rows.append(
            (
                str(entry["round"]),
                f"{score['accuracy']:.1%}" if score else "–",
                f"{score['ci95'][0]:.1%} … {score['ci95'][1]:.1%}" if score else "–",
                str(score["total"]) if score else "–",
                f"{exam['wrong']:,} of {exam['attempts']:,}" if exam else "–",
                f"{teacher['accepted']:,}" if teacher else "–",
                f"${teacher['cost_usd']:.4f}" if teacher else "–",
                f"{training['steps']:,}" if training else "–",
                duration(sum(wall_seconds(entry["seconds"]).values())),
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as lines of text.

    Each column is as wide as its widest cell, and its cells end at its right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def render(template: str, page: dict[str, Any], **values: Any) -> str:
    """A template of page/ with the scripts and styles inside.

    `page` is the data that the scripts read, `values` are the names that the template uses besides.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tailor_ray.observe", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    style, script = page_file("style.css"), page_file("charts.js") + page_file("mistakes.js")
    return environment.get_template(template).render(
        page=plain(page),
        style=Markup(style),
        script=Markup(script),
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
        **values,
    )


@once
def page_file(name: str) -> str:
    return (resources.files("tailor_ray.observe") / "page" / name).read_text(encoding="utf-8")


def _policy_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _tolerant(record: RunRecord, read: Callable[[RunRecord], T], without: T) -> T:
    """The report of a damaged run says what is damaged and shows the rest."""
    try:
        return read(record)
    except (CorruptionError, FileNotFoundError) as error:
        record.warnings.append(str(error))
        return without


_NO_ROWS: tuple[list[Row], int] = ([], 0)


def _gain(record: RunRecord) -> dict[str, Any] | None:
    """The last evaluated round against round 0 on the same questions, by an exact paired test."""
    scored = [number for number in record.rounds if (number, "evaluate") in record.stages]
    if len(scored) < 2 or scored[0] != 0:
        return None
    return paired_change((record, 0), (record, scored[-1]))


def _headline(document: dict[str, Any]) -> dict[str, Any]:
    """What the page says first: the last evaluated round, the gain, the tiles."""
    scored = [entry for entry in document["rounds"] if entry["evaluation"]]
    totals = document["totals"]
    per_fixed = totals["usd_per_fixed_question"]
    tiles = [
        {
            "name": "Rounds",
            "value": str(max([entry["round"] for entry in scored], default=0)),
            "caption": "evaluated, beside round 0",
        },
        {
            "name": "Mistakes fixed",
            "value": thousands(totals["fixed"]),
            "caption": "questions, summed over consecutive exams",
        },
        {"name": "Wall time", "value": duration(totals["seconds"]), "caption": "all committed stages"},
        {
            "name": "Teacher requests",
            "value": thousands(totals["requests"]),
            "caption": f"{thousands(totals['from_ledger'])} from the ledger, {thousands(totals['accepted'])} accepted",
        },
        {
            "name": "Teacher tokens",
            "value": thousands(totals["input_tokens"] + totals["output_tokens"]),
            "caption": f"{thousands(totals['input_tokens'])} in, {thousands(totals['output_tokens'])} out",
        },
        {
            "name": "Teacher cost",
            "value": dollars(totals["cost_usd"]),
            "caption": f"{dollars(per_fixed)} a fixed question"
            if per_fixed is not None
            else "no fixed question to divide by",
        },
    ]
    return {"last": scored[-1] if scored else None, "gain": document["gain"], "tiles": tiles}


def thousands(value: float | None) -> str:
    return "—" if value is None else f"{value:,.0f}"


def percent(score: dict[str, Any] | None) -> str:
    return "—" if score is None else f"{100 * score['accuracy']:.1f}"


def share(score: dict[str, Any] | None) -> str:
    return "—" if score is None else f"{percent(score)} %"


def part(value: float) -> str:
    return f"{100 * value:.0f} %"


def interval(score: dict[str, Any] | None) -> str:
    return "—" if score is None else f"{100 * score['ci95'][0]:.1f}–{100 * score['ci95'][1]:.1f} %"


def points(value: float) -> str:
    return f"{100 * value:+.1f} points".replace("-", "−")


def dollars(value: float | None) -> str:
    """A sum in US dollars: cents from a dollar up, two significant digits below, for a lesson may cost $0.00012."""
    if value is None:
        return "—"
    decimals = 2 if value >= 1 or value <= 0 else max(2, 1 - math.floor(math.log10(value)))
    return f"${value:,.{decimals}f}"


def per_point(totals: dict[str, Any]) -> str:
    """Dollars that a point of accuracy took, or the tokens where the teacher is free; `totals` are report.json's."""
    usd, tokens = totals["usd_per_point"], totals["tokens_per_point"]
    if usd is None:
        return "—"
    return dollars(usd) if usd else f"{thousands(tokens)} tokens"


def forecast(value: Any) -> str:
    """The forecast's dollars where it has them, else its requests."""
    if not isinstance(value, dict):
        return "—"
    if value.get("cost_usd") is not None:
        return dollars(value["cost_usd"])
    return f"{thousands(value['requests'])} requests" if value.get("requests") is not None else "—"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def loss(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        *(thousands, percent, share, part, interval, points, dollars),
        *(per_point, forecast, p_value, loss, duration),
    )
}
