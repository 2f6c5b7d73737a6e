"""Example parts as the stage leaves them, made of examples that are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tailor_ray.config.training import TrainingConfig
from tailor_ray.records import TrainExample
from tailor_ray.storage import Manifest, Part, PartsDigest, Store, commit_manifest
from tailor_ray.training.example_parts import NodeRows, commit_examples
from tailor_ray.training.plan import PartShape
from tailor_ray.training.tokens import Rows, TokenData, TokenExample, tokenize_examples


def of_examples(data: TokenData) -> tuple[list[PartShape], NodeRows]:
    """What a plan and its rows are made of, all in one part."""
    return [PartShape.of(data.table)], NodeRows([data.table.num_rows], lambda _: Rows(data.table))


def commit_stage(store: Store, parts: Sequence[Sequence[TrainExample]], tokenizer: Any) -> list[Part]:
    """Parts and the manifest."""
    config = TrainingConfig()
    made = [commit_examples(store, index, part, tokenizer, 256, config) for index, part in enumerate(parts)]
    commit_manifest(store, Manifest("examples", 1, "", {}, {"examples": PartsDigest.of(made)}, 0.0))
    return made


def tokens(parts: Sequence[Sequence[TrainExample]], tokenizer: Any) -> list[TokenExample]:
    """Of all parts, one after the other."""
    return [row for part in parts for row in tokenize_examples(part, tokenizer, 256, 192).examples]
