"""Start or resume a run: folder, lease, logs and services are opened in this order and closed in reverse."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tailor_ray.config import RunConfig
from tailor_ray.config.advice import about_settings
from tailor_ray.errors import LeaseLost
from tailor_ray.layout import LOG_FILE, PROGRESS_FILE, REPORT_PAGE
from tailor_ray.observe import metrics
from tailor_ray.observe.logs import last_warning, native_output_to_log, setup_logging
from tailor_ray.observe.progress import Progress
from tailor_ray.observe.report import write_report
from tailor_ray.observe.status import rounds_table
from tailor_ray.rounds import watch
from tailor_ray.rounds.loop import Commits, claim_folder, run_rounds
from tailor_ray.rounds.services import Services, WorkerPools
from tailor_ray.storage import Lease, Store
from tailor_ray.storage.store import node_cache

log = logging.getLogger(__name__)


def run(config: RunConfig, pools: WorkerPools | None = None) -> str:
    """Do what the run folder lacks; returns the summary that the command prints.

    Raises UserError for wrong input, Stopped when the run can go on later, StageError and CorruptionError otherwise.
    """
    with open_run(config, pools) as (folder, services):
        if Commits(config, folder).missing():
            with services:
                run_rounds(config, folder, services)
        document = write_report(folder)
    return f"{rounds_table(document)}\nreport: {folder.uri}/{REPORT_PAGE}"


@contextmanager
def open_run(config: RunConfig, pools: WorkerPools | None = None) -> Iterator[tuple[Store, Services]]:
    """The run folder, claimed and leased, with services that start nothing before they are entered."""
    store = Store.open(config.storage).child(config.name)
    metrics.set_run(config.name)
    setup_logging(log_file(store), secrets=_secrets(config))
    if watch.process_is_ours:
        native_output_to_log()
    in_main = threading.current_thread() is threading.main_thread()
    on_lost = (lambda text: watch.stop_run(LeaseLost(text))) if in_main else log.error
    try:
        with Lease.acquire(store, on_lost=on_lost) as lease:
            for text in about_settings(config):
                log.warning("%s", text)
            guarded = store.guarded(lease.fence)
            claim_folder(guarded, config)
            with Progress(config.observe.log_every_s, record=lambda bars: _write_down(guarded, bars)) as progress:
                yield guarded, Services(config, guarded, progress, pools)
    except KeyboardInterrupt:
        if (error := watch.reason()) is not None:
            raise error from None
        raise


def log_file(store: Store) -> Path:
    """Beside the run where it is local, else in this node's cache."""
    if store.is_local:
        return Path(store.path(LOG_FILE))
    return node_cache() / "logs" / f"{Path(store.root).name}.log"


def _write_down(run: Store, bars: list[dict[str, Any]]) -> None:
    """What is under way, and the last warning, for `tailor-ray status`."""
    run.write_json(PROGRESS_FILE, {"written": time.time(), "stages": bars, "warning": last_warning()})


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
