"""`tailor-ray ledger`: what a run asked its teacher and what it paid, and rows shared between runs.

Rows are read one file at a time, so a long ledger need not fit into memory. A driver may be at work while they are
listed. Then its last second may be missing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailor_ray.errors import DataError, UserError
from tailor_ray.layout import check_is_run, ledger_folder
from tailor_ray.storage import Lease, Store
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import ROWS_PER_FILE, SCHEMA, LedgerFiles, LedgerRow, decode, table_of

SUMS = ("attempts", "input_tokens", "output_tokens", "cost_usd", "lost_usd")


def list_rows(run: str, limit: int) -> str:
    """The `limit` newest rows, the oldest of them first, one JSON object per line."""
    rows = newest_rows(_ledger(Store.open(run)), limit)
    keep = ("key", "round", "model", "outcome", "attempts", "input_tokens", "output_tokens", "cost_usd", "seconds")
    return "\n".join(json.dumps({name: getattr(row, name) for name in keep}) for row in rows)


def total(run: str) -> str:
    """Totals by round, model and outcome, one JSON object per line."""
    return "\n".join(json.dumps(line) for line in totals(LedgerFiles(_ledger(Store.open(run))).read()))


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


def newest_rows(store: Store, count: int) -> list[LedgerRow]:
    """The last ones that were first sent, oldest first."""
    return nlargest(count, LedgerFiles(store).read(), key=lambda row: (row.sent, row.key))[::-1]


def totals(rows: Iterable[LedgerRow]) -> list[dict[str, Any]]:
    """Requests, attempts, tokens and dollars by round, model and outcome."""
    groups: defaultdict[tuple[int, str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        groups[row.round, row.model, row.outcome].update({"requests": 1, **{name: getattr(row, name) for name in SUMS}})
    return [
        {"round": round_, "model": model, "outcome": outcome, **sums}
        for (round_, model, outcome), sums in sorted(groups.items())
    ]


def export_rows(store: Store, path: Path) -> int:
    """Write all rows of a run's ledger to one parquet file; returns how many."""
    rows, count = LedgerFiles(store).read(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        while some := list(islice(rows, ROWS_PER_FILE)):
            file.write_table(table_of(row.values() for row in some))
            count += len(some)
    return count


def import_rows(store: Store, path: Path) -> int:
    """Take in an exported file's replies; returns how many were new. The caller holds the run's lease.

    Raises DataError when the file is no ledger. Damaged rows, and requests without a final reply, are left out.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise DataError(f"{path} is no ledger: it has no column {missing[0]!r}; export one with `tailor-ray ledger`")
    ledger = Ledger(store)
    try:
        return sum(ledger.add(decode(pa.Table.from_batches([some]))) for some in file.iter_batches(ROWS_PER_FILE))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    finally:
        ledger.close()


def forget_rows(store: Store, outcomes: Sequence[str]) -> int:
    """Drop the replies of rows with these outcomes, so that they are asked again; returns how many.

    The caller holds the run's lease. Raises UserError for an outcome that no row has.
    """
    ledger = Ledger(store)
    try:
        known = {row.outcome for row in ledger.rows()}
        unknown = [outcome for outcome in outcomes if outcome not in known]
        if unknown:
            raise UserError(
                f"no row of the ledger ended as {unknown[0]!r}; there are: {', '.join(sorted(known)) or 'none'}"
            )
        return ledger.forget(outcomes)
    finally:
        ledger.close()


def _ledger(run: Store) -> Store:
    """The run's ledger, which may be there before the run. Raises DataError where neither is."""
    folder = ledger_folder(run)
    if not folder.files():
        check_is_run(run)
    return folder
