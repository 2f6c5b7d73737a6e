"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One finding; `todo` is what to do about it, None when there is nothing to do."""

    topic: str
    found: str
    todo: str | None = None

    def __str__(self) -> str:
        mark = "ok  " if self.todo is None else "FAIL"
        return f"{mark} {self.topic}: {self.found}" + (f"\n     → {self.todo}" if self.todo else "")
