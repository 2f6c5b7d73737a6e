"""What is done, what is under way and what it cost, as text: read from the run folder alone, live or dead.

Reads manifests, part records' names and the lease, never the rows, so that it answers at once.
"""

from __future__ import annotations

import re
from typing import Any

from tailor_ray.errors import DataError
from tailor_ray.observe.progress import duration
from tailor_ray.observe.summary import load_run, summarize, wall_seconds
from tailor_ray.storage import Store


def status(store: Store) -> str:
    """The table of rounds, then the stage under way and who holds the run; raises DataError when it is no run."""
    if not store.exists("run.yaml"):
        raise DataError(f"{store.uri} is not a run folder: it has no run.yaml; give the folder <storage>/<name>")
    document = summarize(load_run(store), {})
    lines = [rounds_table(document)]
    for stage in [*document["unfinished"], *_begun(store, document)]:
        number, name = re.fullmatch(r"round (\d+) (\w+)", stage).groups()  # type: ignore[union-attr]
        lines.append(f"{stage}: {_parts_done(store, int(number), name)}")
    lines += [f"warning: {text}" for text in document["warnings"]]
    lines.append(_holder(store))
    return "\n".join(line for line in lines if line)


def _begun(store: Store, document: dict[str, Any]) -> list[str]:
    """The stages of a round that has parts and no manifest yet, which a record of manifests knows nothing of."""
    newest = max((int(name) for name in store.folders("rounds") if name.isdigit()), default=0)
    if any(entry["round"] >= newest for entry in document["rounds"]):
        return []
    return [
        f"round {newest} {name}"
        for name in ("exam", "teach", "train")
        if store.child("rounds", f"{newest:02d}", name).files()
    ]


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _parts_done(store: Store, number: int, stage: str) -> str:
    files = store.child("rounds", f"{number:02d}", stage).files()
    parts = sum(bool(re.fullmatch(r"[a-z]+-\d+\.json", name)) for name in files)
    return f"{parts} parts committed" if parts else "not committed yet"


def _holder(store: Store) -> str:
    if not store.exists("lease.json"):
        return ""
    lease = store.read_json("lease.json")
    if lease["released"]:
        return ""
    return f"held by process {lease['owner']['pid']} on {lease['owner']['host']} (beat {lease['beat']})"
