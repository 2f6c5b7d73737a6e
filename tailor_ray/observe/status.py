"""What is done, what is under way and what it cost, as text: read from the run folder alone, live or dead.

Reads manifests, part records' names and the lease, never the rows, so that it answers at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from tailor_ray import layout
from tailor_ray.errors import CorruptionError
from tailor_ray.layout import StageId
from tailor_ray.observe.progress import duration
from tailor_ray.observe.summary import load_run, summarize, wall_seconds
from tailor_ray.storage import Store
from tailor_ray.storage.lease import read_lease


def status(store: Store) -> str:
    """The table of rounds, the stages under way and who holds the run; raises DataError when it is no run.

    A damaged file is named in a warning.
    """
    document = status_document(store)
    lines = [rounds_table(document), *(f"{stage}: {done}" for stage, done in document["unfinished_parts"].items())]
    lines += [_under_way(stage) for stage in document["under_way"]]
    lines += [f"warning: {text}" for text in (*document["warnings"], *document["advice"])]
    if document["last_warning"]:
        when, text = document["last_warning"]
        lines.append(f"last warning, {_ago(when)}: {text}")
    lines.append(document["holder"])
    return "\n".join(line for line in lines if line)


def status_document(store: Store) -> dict[str, Any]:
    """The same as plain data: report.json's document, and what is under way by the live driver's own account."""
    layout.check_is_run(store)
    document = summarize(load_run(store))
    parts = {}
    for stage in [*document["unfinished"], *_begun(store, document)]:
        number, name = re.fullmatch(r"round (\d+) (\w+)", stage).groups()  # type: ignore[union-attr]
        parts[stage] = _parts_done(store, StageId(int(number), name))
    holder = _holder(store)
    stages, warning = _progress(store) if holder.startswith("held") else ([], None)
    return document | {
        "unfinished_parts": parts,
        "under_way": stages,
        "last_warning": warning,
        "holder": holder,
    }


def _progress(store: Store) -> tuple[list[dict[str, Any]], tuple[float, str] | None]:
    """The stages under way and the last warning, by the driver's own account; nothing of a damaged one."""
    try:
        found = store.read_json(layout.PROGRESS_FILE)
        stages = [{**stage, "since": float(stage["since"]), "line": str(stage["line"])} for stage in found["stages"]]
        warning = found["warning"]
        return stages, None if warning is None else (float(warning[0]), str(warning[1]))
    except (FileNotFoundError, ValueError, TypeError, LookupError):
        return [], None


def _under_way(stage: dict[str, Any]) -> str:
    return f"under way since {_ago(stage['since'])}: {stage['line']}"


def _ago(when: float) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(when))} ({duration(max(0.0, time.time() - when))} ago)"


def _begun(store: Store, document: dict[str, Any]) -> list[str]:
    """The stages of a round that has parts and no manifest yet, which a record of manifests knows nothing of."""
    newest = max(layout.rounds_begun(store), default=0)
    if any(entry["round"] >= newest for entry in document["rounds"]):
        return []
    stages = [StageId(newest, name) for name in layout.STAGES]
    return [str(stage) for stage in stages if layout.stage_folder(store, stage).files()]


def rounds_table(document: dict[str, Any]) -> str:
    """One line a round: accuracy with its interval, exam, teacher, training, seconds."""
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
    """Rows of equally many cells as lines of text, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _parts_done(store: Store, stage: StageId) -> str:
    files = layout.stage_folder(store, stage).files()
    parts = sum(bool(re.fullmatch(r"[a-z]+-\d+\.json", name)) for name in files)
    return f"{parts} parts committed" if parts else "not committed yet"


def _holder(store: Store) -> str:
    try:
        lease = read_lease(store)
    except CorruptionError as error:
        return f"warning: {error}; who holds the run is unknown"
    if lease is None or lease["released"]:
        return ""
    return f"held by process {lease['owner']['pid']} on {lease['owner']['host']} (beat {lease['beat']})"
