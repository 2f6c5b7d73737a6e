"""The tiny student's schooling as a Ray actor.

It runs on any node, is seen in the dashboard, and tells how far it is. What comes out is an ordinary model folder.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from tailor_ray.config.student import TinyConfig
from tailor_ray.errors import StageError
from tailor_ray.layout import STUDENT
from tailor_ray.models import ModelRef
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.storage import Store

log = logging.getLogger(__name__)

STARTS = 4


class Schoolroom:
    """Makes one student; `steps_done` may be asked while `school` runs."""

    def __init__(self) -> None:
        self._done = 0

    def school(
        self, config: TinyConfig, prompt: StudentPrompt, seed: int, out: Store
    ) -> tuple[ModelRef, dict[str, Any]]:
        """Make the student and put its files below `out`.

        `prompt` is the form in which it will be asked. Returns its reference and the figures of `make_tiny_student`.
        """
        from tailor_ray.demo.tiny import make_tiny_student

        with tempfile.TemporaryDirectory(prefix="tailor-school-") as scratch:
            folder = Path(scratch)
            metrics: dict[str, Any] = make_tiny_student(config, prompt, seed, folder, self._note)
            return ModelRef.uploaded(out, STUDENT, out.upload_folder(folder, STUDENT)), metrics

    def steps_done(self) -> int:
        """Training steps done so far."""
        return self._done

    def _note(self, done: int, total: int, loss: float) -> None:  # noqa: ARG002 (the callback's signature)
        self._done = done


def school_tiny_student(
    config: TinyConfig, prompt: StudentPrompt, seed: int, out: Store, on_steps: Callable[[int], None]
) -> tuple[ModelRef, dict[str, Any]]:
    """School the student on the cluster, as one actor on any node.

    `on_steps` hears the steps done twice a second. The student is the same wherever it is made: a node that is lost
    costs a start from the first step. Returns its reference and the figures of `make_tiny_student`. Raises StageError
    after STARTS lost starts.
    """
    starts = 0
    while True:
        starts += 1
        # without Ray's own retries: it would announce one on stdout when a run that is stopped kills the actor
        options = {"name": f"schoolroom-{time.time_ns()}", "num_cpus": 1, "max_concurrency": 2}
        room: Any = ray.remote(Schoolroom).options(**options).remote()
        made = room.school.remote(config, prompt, seed, out)
        try:
            while not ray.wait([made], timeout=0.5)[0]:
                on_steps(ray.get(room.steps_done.remote()))
            return ray.get(made)
        except (RayActorError, OutOfMemoryError) as error:
            if starts == STARTS:
                raise StageError(f"schooling was lost {STARTS} times, the last time: {error}") from error
            log.warning("schooling is lost and starts again (%d of at most %d): %s", starts, STARTS, error)
        finally:
            ray.kill(room)
