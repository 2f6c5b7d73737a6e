"""The door through which Ray Train enters a worker: importable by the driver without torch."""

from __future__ import annotations

from typing import Any


def enter(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Build the WorkerTask where torch may be imported, and run it."""
    from tailor_ray.training.worker import WorkerTask, run_worker

    return run_worker({"task": WorkerTask(**settings["task"])})
