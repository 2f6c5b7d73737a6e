"""Looking into a ledger and sharing it: list, total, export, import. Only `import_rows` changes anything."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailor_ray.errors import DataError
from tailor_ray.storage import Store
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_files import LedgerFiles, decode, encode
from tailor_ray.teacher.ledger_row import SCHEMA, LedgerRow


def stored_rows(store: Store) -> list[LedgerRow]:
    """The rows in storage, oldest first; a driver may be at work meanwhile (its last second may be missing)."""
    return sorted(LedgerFiles(store).read().values(), key=lambda row: (row.sent, row.key))


def totals(rows: Iterable[LedgerRow]) -> list[dict[str, Any]]:
    """Requests, attempts, tokens and dollars by round, model and outcome."""
    groups: defaultdict[tuple[int, str, str], list[LedgerRow]] = defaultdict(list)
    for row in rows:
        groups[row.round, row.model, row.outcome].append(row)
    return [
        {
            "round": round_,
            "model": model,
            "outcome": outcome,
            "requests": len(some),
            "attempts": sum(row.attempts for row in some),
            "input_tokens": sum(row.input_tokens for row in some),
            "output_tokens": sum(row.output_tokens for row in some),
            "cost_usd": sum(row.cost_usd for row in some),
            "lost_usd": sum(row.lost_usd for row in some),
        }
        for (round_, model, outcome), some in sorted(groups.items())
    ]


def export_rows(store: Store, path: Path) -> int:
    """Write all rows of a run's ledger to one parquet file; returns how many."""
    rows = stored_rows(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(rows))
    return len(rows)


def import_rows(store: Store, path: Path) -> int:
    """Take in an exported file's replies; returns how many were new. The caller holds the run's lease.

    Raises DataError when the file is no ledger. Damaged rows, and requests without a final reply, are left out.
    """
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path} is no ledger: it has no column {missing[0]!r}; export one with `tailor-ray ledger`")
    ledger = Ledger(store)
    try:
        return ledger.add(decode(table.select(SCHEMA.names)))
    finally:
        ledger.close()
