"""Start or resume a run: folder, lease, logs, cluster and session are opened in this order and closed in reverse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailor_ray.config import RunConfig
from tailor_ray.observe.logs import setup_logging
from tailor_ray.observe.progress import Progress
from tailor_ray.observe.report import write_report
from tailor_ray.observe.status import rounds_table
from tailor_ray.rounds.runner import Runner, claim_folder
from tailor_ray.rounds.session import Session
from tailor_ray.storage import Lease, Store
from tailor_ray.storage.store import node_cache


def run(config: RunConfig) -> str:
    """Do what the run folder lacks; returns the summary that the command prints.

    Raises UserError for wrong input, Stopped when the run can go on later, StageError and CorruptionError otherwise.
    """
    with open_run(config) as (runner, session):
        if runner.next_group() is not None:
            with session:
                runner.run(session)
        document = write_report(session.store)
    return f"{rounds_table(document)}\nreport: {session.store.uri}/report/index.html"


@contextmanager
def open_run(config: RunConfig) -> Iterator[tuple[Runner, Session]]:
    """The run folder, claimed and leased, with a session that starts nothing before it is entered."""
    store = Store.open(config.storage).child(config.name)
    setup_logging(log_file(store), secrets=_secrets(config))
    with Lease.acquire(store) as lease, Progress(config.observe.log_every_s) as progress:
        guarded = store.guarded(lease.fence)
        claim_folder(guarded, config)
        yield Runner(config, guarded), Session(config, guarded, progress)


def log_file(store: Store) -> Path:
    """Beside the run where it is local, else in this node's cache."""
    if store.is_local:
        return Path(store.path("run.log"))
    return node_cache() / "logs" / f"{Path(store.root).name}.log"


def _secrets(config: RunConfig) -> tuple[str, ...]:
    """Values that must never reach a log; the logging redacts them."""
    key = os.environ.get(config.teacher.api_key_env, "")
    return (key,) if len(key) >= 8 else ()
