"""`tailor-ray status` and `tailor-ray logs`: a run looked at from outside, live or dead."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tailor_ray import layout
from tailor_ray.errors import CorruptionError, DataError
from tailor_ray.layout import StageId
from tailor_ray.observe.progress import duration
from tailor_ray.observe.report import rounds_table
from tailor_ray.observe.summary import load_run, summarize
from tailor_ray.rounds.loop import log_file
from tailor_ray.storage import Store
from tailor_ray.storage.lease import read_lease

EVERY_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


def show_status(run: str, watch: bool, as_json: bool, say: Callable[[str], None]) -> None:
    """Once, or again and again while somebody holds the run."""
    store = Store.open(run)
    while True:
        document = status_document(store)
        text = json.dumps(document, ensure_ascii=False) if as_json else status(store)
        clear = CLEAR if watch and not as_json and sys.stdout.isatty() else ""
        say(clear + text)
        if not watch or not document["holder"].startswith("held"):
            return
        time.sleep(EVERY_S)


def show_log(run: str, lines: int, follow: bool, say: Callable[[str], None]) -> None:
    """The last lines of the log of a run's driver, and with `follow` what comes after them."""
    store = Store.open(run)
    path = log_file(store)
    if not path.exists():
        layout.check_is_run(store)
        raise DataError(
            f"there is no log at {path}: a run with storage by URI keeps it on its driver's node; look there"
        )
    file = path.open(encoding="utf-8", errors="replace")
    try:
        for line in deque(file, maxlen=lines):
            say(line.rstrip("\n"))
        while follow:
            while line := file.readline():
                say(line.rstrip("\n"))
            time.sleep(0.5)
            if (
                path.stat().st_ino != os.fstat(file.fileno()).st_ino or path.stat().st_size < file.tell()
            ):  # a new file was begun
                file.close()
                file = path.open(encoding="utf-8", errors="replace")
    finally:
        file.close()


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
