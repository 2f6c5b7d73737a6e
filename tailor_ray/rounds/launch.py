"""Start or resume a run: folder, lease, logs and services are opened in this order and closed in reverse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tailor_ray.config import RunConfig
from tailor_ray.layout import LOG_FILE, REPORT_PAGE
from tailor_ray.observe.logs import setup_logging
from tailor_ray.observe.progress import Progress
from tailor_ray.observe.report import write_report
from tailor_ray.observe.status import rounds_table
from tailor_ray.rounds.loop import Commits, claim_folder, run_rounds
from tailor_ray.rounds.services import Services, Staff
from tailor_ray.storage import Lease, Store
from tailor_ray.storage.store import node_cache


def run(config: RunConfig, staff: Staff | None = None) -> str:
    """Do what the run folder lacks; returns the summary that the command prints.

    Raises UserError for wrong input, Stopped when the run can go on later, StageError and CorruptionError otherwise.
    """
    with open_run(config, staff) as (folder, services):
        if Commits(config, folder).missing():
            with services:
                run_rounds(config, folder, services)
        document = write_report(folder)
    return f"{rounds_table(document)}\nreport: {folder.uri}/{REPORT_PAGE}"


@contextmanager
def open_run(config: RunConfig, staff: Staff | None = None) -> Iterator[tuple[Store, Services]]:
    """The run folder, claimed and leased, with services that start nothing before they are entered."""
    store = Store.open(config.storage).child(config.name)
    setup_logging(log_file(store), secrets=_secrets(config))
    with Lease.acquire(store) as lease, Progress(config.observe.log_every_s) as progress:
        guarded = store.guarded(lease.fence)
        claim_folder(guarded, config)
        yield guarded, Services(config, guarded, progress, staff)


def log_file(store: Store) -> Path:
    """Beside the run where it is local, else in this node's cache."""
    if store.is_local:
        return Path(store.path(LOG_FILE))
    return node_cache() / "logs" / f"{Path(store.root).name}.log"


def _secrets(config: RunConfig) -> tuple[str, ...]:
    """Values that must never reach a log; the logging redacts them."""
    found = []
    for endpoint in config.teacher.teachers:
        variables = [endpoint.api_key_env, *endpoint.extra_headers_env.values()]
        found += [os.environ.get(variable, "").strip() for variable in variables if variable]
        if endpoint.api_key_file is not None:
            with suppress(OSError, UnicodeDecodeError):  # it need be on the nodes of the actors alone
                found.append(Path(endpoint.api_key_file).expanduser().read_text(encoding="utf-8").strip())
    return tuple(secret for secret in found if len(secret) >= 8)
