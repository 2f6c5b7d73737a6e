"""The door through which Ray Train enters a worker: importable by the driver without torch."""

from __future__ import annotations

import gc
import logging
from typing import Any


def enter(settings: dict[str, Any]) -> None:
    """Do the desk's tasks, one after the other, until there are no more."""
    import ray
    import ray.train

    # with its level, or a warning would count as chatter where the driver reads it
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True)

    from tailor_ray.training.worker import WorkerTask, run_worker  # torch may be imported here

    first = ray.train.get_context().get_world_rank() == 0
    number = 0
    while (task := ray.get(settings["desk"].task.remote(number))) is not None:
        result = run_worker(WorkerTask(**task))
        if first:
            ray.get(settings["desk"].finish.remote(number, result))
        del result
        gc.collect()  # the last job's model and optimizer refer to each other
        number += 1
