"""`tailor-ray ledger`: what a run asked its teacher and what it paid, and rows shared between runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tailor_ray.errors import DataError
from tailor_ray.layout import check_is_run, ledger_folder
from tailor_ray.storage import Lease, Store
from tailor_ray.teacher.book import export_rows, forget_rows, import_rows, newest_rows, stored_rows, totals


def list_rows(run: str, limit: int) -> str:
    """The newest rows, one JSON object a line."""
    rows = newest_rows(_ledger(Store.open(run)), limit)
    keep = ("key", "round", "model", "outcome", "attempts", "input_tokens", "output_tokens", "cost_usd", "seconds")
    return "\n".join(json.dumps({name: getattr(row, name) for name in keep}) for row in rows)


def total(run: str) -> str:
    """Totals by round, model and outcome, one JSON object a line."""
    return "\n".join(json.dumps(line) for line in totals(stored_rows(_ledger(Store.open(run)))))


def export(run: str, path: Path) -> str:
    return f"{export_rows(_ledger(Store.open(run)), path)} rows written to {path}"


def take_in(run: str, path: Path) -> str:
    """Import under the run's lease, so that no live driver writes meanwhile. The run may be one that is to come."""
    if not path.is_file():
        raise DataError(f"{path} cannot be read: there is no such file; give one that `ledger export` wrote")
    store = Store.open(run)
    with Lease.acquire(store) as lease:
        return f"{import_rows(ledger_folder(store.guarded(lease.fence)), path)} new rows taken in from {path}"


def forget(run: str, outcomes: Sequence[str]) -> str:
    """Drop rows by outcome, under the run's lease."""
    store = Store.open(run)
    _ledger(store)
    with Lease.acquire(store) as lease:
        count = forget_rows(ledger_folder(store.guarded(lease.fence)), outcomes)
    return f"{count} replies forgotten: they are asked again; what they cost stays counted"


def _ledger(run: Store) -> Store:
    """The run's ledger, which may be there before the run. Raises DataError where neither is."""
    folder = ledger_folder(run)
    if not folder.files():
        check_is_run(run)
    return folder
