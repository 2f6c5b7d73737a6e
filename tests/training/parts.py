"""Example parts as the stage leaves them, made of examples that are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from tailor_ray.records import TRAIN_EXAMPLE_SCHEMA, TrainExample, to_table
from tailor_ray.storage import Manifest, Part, PartsDigest, Store, commit_manifest, commit_part
from tailor_ray.training.example_parts import SCHEMA
from tailor_ray.training.node_rows import NodeRows
from tailor_ray.training.plan import PLANNING, PartShape
from tailor_ray.training.tokens import Rows, TokenData, TokenExample, tokenize_examples


def of_examples(data: TokenData) -> tuple[list[PartShape], NodeRows]:
    """What a plan and its rows are made of, all in one part."""
    return [PartShape.of(data.table)], NodeRows([data.table.num_rows], lambda _: Rows(data.table))


def commit_examples(
    store: Store, parts: Sequence[Sequence[TrainExample]], tokenizer: Any, max_length: int = 256, cap: int = 192
) -> list[Part]:
    """A committed stage."""
    made = []
    for index, examples in enumerate(parts):
        data = tokenize_examples(examples, tokenizer, max_length, cap)
        texts = to_table([examples[row] for row in data.kept], TRAIN_EXAMPLE_SCHEMA)
        table = pa.Table.from_arrays([*texts.columns, *data.table.columns[1:]], schema=SCHEMA)
        counts = {"with_pair_trained": sum(e.has_pair for e in data.examples)}
        counts |= {"truncated": len(data.truncated), "skipped": len(data.skipped)}
        info = {"counts": counts, PLANNING: PartShape.of(data.table).to_info()}
        made.append(commit_part(store, "examples", index, table, info))
    commit_manifest(store, Manifest("examples", 1, "", {}, {"examples": PartsDigest.of(made)}, 0.0))
    return made


def tokens(parts: Sequence[Sequence[TrainExample]], tokenizer: Any) -> list[TokenExample]:
    """Of all parts, one after the other."""
    return [row for part in parts for row in tokenize_examples(part, tokenizer, 256, 192).examples]
