"""What a teacher actor has heard and the ledger may not hold yet, on the disk of the driver's node.

An actor writes how an attempt ended before its slot is free for another, so a kill of actor or driver loses no reply
that came: whoever goes on reads the journals and settles what is still pending. Two files take turns, for the driver
has committed one hand-over when it asks for the next, and what ends in between must stay. Written without fsync: it
outlives processes, and what a power cut takes is counted as in flight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tailor_ray.teacher.outcomes import Outcome, Usage

Heard = dict[tuple[str, int], tuple[Outcome, float]]  # by key and number of the attempt: its end, and dollars


class Journal:
    """One actor's. `stem` is the path of its two files, without their endings."""

    def __init__(self, stem: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._files = [os.open(f"{stem}.{turn}.jsonl", flags, 0o600) for turn in (0, 1)]
        self._turn = 0

    def write(self, attempt: int, outcome: Outcome, cost: float) -> None:
        """Raises OSError when the disk refuses it."""
        line = {"attempt": attempt, "cost": cost, **asdict(outcome)}
        os.write(self._files[self._turn], json.dumps(line).encode() + b"\n")

    def hand_over(self) -> None:
        """All written so far is on its way to the driver."""
        self._turn = 1 - self._turn

    def committed(self) -> None:
        """What was handed over last is in the ledger."""
        os.ftruncate(self._files[1 - self._turn], 0)


def read_journals(paths: Iterable[Path]) -> Heard:
    """What these files say; a last line that a kill cut short counts as not heard."""
    heard: Heard = {}
    for path in paths:
        for line in path.read_bytes().splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            attempt, cost = said.pop("attempt"), said.pop("cost")
            usage = said.pop("usage")
            outcome = Outcome(**said, usage=usage and Usage(**usage))
            heard[outcome.key, attempt] = outcome, cost
    return heard
