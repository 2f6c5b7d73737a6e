"""`tailor-ray status` and `tailor-ray logs`: a run looked at from outside, live or dead."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable

from tailor_ray.errors import DataError
from tailor_ray.layout import check_is_run
from tailor_ray.observe.status import status, status_document
from tailor_ray.rounds.launch import log_file
from tailor_ray.storage import Store

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
        check_is_run(store)
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
