"""`tailor-ray status` and `tailor-ray logs`: a run looked at from outside, live or dead.

Both read the run folder alone. `status` reads manifests, names of part records and the lease, never rows, so that it
answers at once. `logs` reads the log of the run's driver, on the machine that has it.
"""

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
from tailor_ray.layout import StageId, log_file
from tailor_ray.observe.progress import duration
from tailor_ray.observe.report import rounds_table
from tailor_ray.observe.summary import load_run, summarize
from tailor_ray.storage import Store
from tailor_ray.storage.lease import read_lease

EVERY_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


def show_status(run: str, watch: bool, as_json: bool, say: Callable[[str], None]) -> None:
    """`say` what `status` finds: once, or with `watch` every two seconds while somebody holds the run.

    With `as_json` it is one JSON object in place of text. Raises DataError when the folder is no run.
    """
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
    """`say` the last `lines` of the log of a run's driver, and with `follow` what comes after them.

    Raises DataError where this machine has no such log.
    """
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
    """The table of rounds, the stages under way and who holds the run.

    A damaged file is named in a warning. Raises DataError when the folder is no run.
    """
    document = status_document(store)
    lines = [rounds_table(document), *(f"{stage}: {done}" for stage, done in document["unfinished_parts"].items())]
    lines += [f"under way since {_ago(stage['since'])}: {stage['line']}" for stage in document["under_way"]]
    lines += [f"warning: {text}" for text in (*document["warnings"], *document["advice"])]
    if document["last_warning"]:
        when, text = document["last_warning"]
        lines.append(f"last warning, {_ago(when)}: {text}")
    lines.append(document["holder"])
    return "\n".join(line for line in lines if line)


def status_document(store: Store) -> dict[str, Any]:
    """The same as plain data.

    Returns report.json's document with four keys more: `unfinished_parts`, and by the live driver's own account
    `under_way` and `last_warning`, and `holder`.
    """
    layout.check_is_run(store)
    document = summarize(load_run(store))
    parts = {}
    newest = max(layout.rounds_begun(store), default=0)
    begun = []  # of a round that has parts and no manifest yet, which a record of manifests knows nothing of
    if all(entry["round"] < newest for entry in document["rounds"]):
        stages = [StageId(newest, name) for name in layout.STAGES]
        begun = [str(stage) for stage in stages if layout.stage_folder(store, stage).files()]
    for stage in [*document["unfinished"], *begun]:
        number, name = re.fullmatch(r"round (\d+) (\w+)", stage).groups()  # type: ignore[union-attr]
        files = layout.stage_folder(store, StageId(int(number), name)).files()
        done = sum(bool(re.fullmatch(r"[a-z]+-\d+\.json", file)) for file in files)
        parts[stage] = f"{done} parts committed" if done else "not committed yet"
    holder = ""
    try:
        lease = read_lease(store)
        if lease is not None and not lease["released"]:
            holder = f"held by process {lease['owner']['pid']} on {lease['owner']['host']} (beat {lease['beat']})"
    except CorruptionError as error:
        holder = f"warning: {error}; who holds the run is unknown"
    under_way, warning = _progress(store) if holder.startswith("held") else ([], None)
    return document | {
        "unfinished_parts": parts,
        "under_way": under_way,
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


def _ago(when: float) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(when))} ({duration(max(0.0, time.time() - when))} ago)"
