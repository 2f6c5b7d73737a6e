"""`tailor-ray serve RUN[@ROUND]`: a run's student behind an OpenAI-compatible API, until the command is stopped."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress

from tailor_ray.errors import ConfigError, Stopped
from tailor_ray.observe.logs import adopt_ray_output, own_handlers, setup_logging
from tailor_ray.rounds.cluster import connected
from tailor_ray.storage import Store
from tailor_ray.student.of_run import config_of, newest_round, student_folder


def serve_run(
    target: str, host: str, port: int, route: str, reload: bool, replicas: int, say: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; `say` gets the address once it answers.

    Raises UserError for a run or round that is not there, before anything is started.
    """
    uri, round_ = split_target(target)
    run = Store.open(uri)
    config = config_of(run)
    if reload and round_ is not None:
        raise ConfigError(f"{target} names a round, and --reload follows the newest: leave one of them out")
    number = newest_round(run) if round_ is None else round_
    student_folder(run, number)
    setup_logging(None)
    with connected(config.cluster):
        adopt_ray_output()
        from tailor_ray.student.of_run import Served

        with own_handlers():
            from tailor_ray.student.serve import hosted
        served = Served(
            name=config.name,
            run=run.uri,
            round=round_,
            reload=reload,
            engine=config.student,
            replicas=replicas,
            application=f"student{route.rstrip('/').replace('/', '-')}",
        )
        with hosted(served, host, port, route) as url, suppress(KeyboardInterrupt, Stopped):
            say(f"{url} answers for model {config.name!r}, round {number}{', and follows the run' if reload else ''}")
            threading.Event().wait()


def split_target(target: str) -> tuple[str, int | None]:
    """`runs/demo@2` → ("runs/demo", 2); without a round, None."""
    match = re.fullmatch(r"(.+)@(\d+)", target)
    return (match[1], int(match[2])) if match else (target, None)
