"""The figures of each step that was done: 64 bytes a step in memory, a table of STEP_SCHEMA in files."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

STEP_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float64()),
        ("mle", pa.float64()),
        ("reflection", pa.float64()),
        ("learning_rate", pa.float64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("validation", pa.float64()),  # null where no candidate was tried
    ]
)


class History:
    """Steps in order; `validation` is NaN where the table has null."""

    def __init__(self, table: pa.Table | None = None) -> None:
        table = STEP_SCHEMA.empty_table() if table is None else table
        self._columns = {
            field.name: array("d" if pa.types.is_floating(field.type) else "q", table.column(field.name).to_numpy())
            for field in STEP_SCHEMA
        }

    def __len__(self) -> int:
        return len(self._columns["step"])

    def append(self, row: Mapping[str, Any]) -> None:
        """A row with the schema's names; `validation` may be missing or None."""
        row = {"validation": None, **row}
        for name, column in self._columns.items():
            column.append(math.nan if row[name] is None else row[name])

    def column(self, name: str) -> NDArray[Any]:
        return np.array(self._columns[name])

    def table(self) -> pa.Table:
        columns = [pa.array(self.column(f.name), f.type, from_pandas=True) for f in STEP_SCHEMA]
        return pa.Table.from_arrays(columns, schema=STEP_SCHEMA)
