"""From texts to token ids, as the engine sees them.

In: training examples and the student's tokenizer. Out: an Arrow table of token ids. Named are the questions whose
rationale was truncated, or whose prompt leaves no room.

Always holds. Prompt and completion are tokenized together, as the text that they are, and parted where the prompt ends.
Where a token reaches over that place they are parted before it, which is counted. So prompt ids are those that the
engine is given. A whole completion ends with the token that ends the turn (of a plain text, the sequence). A truncated
one does not, and no prompt ends with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailor_ray.errors import ModelError
from tailor_ray.models.texts import text_ids, turn_end
from tailor_ray.records import TrainExample

SIDES = ("prompt", "rationale", "positive", "negative")
ID_COLUMNS = tuple(f"{side}_ids" for side in SIDES)
TOKEN_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in ID_COLUMNS),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("shared", pa.int32(), nullable=False),
    ]
)
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One example as ids. `positive` and `negative` are both there or both empty, for only a pair counts; where
    likelihoods are compared, a negative is a pair with the rationale. The negative counts from token `shared` on: its
    beginning is no mistake where the rationale begins alike."""

    question_id: str
    prompt: tuple[int, ...]
    rationale: tuple[int, ...]
    positive: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()
    weight: float = 1.0
    shared: int = 0

    @property
    def has_pair(self) -> bool:
        return bool(self.negative)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass that computes the prompt once."""
        return len(self.prompt) + len(self.rationale) + len(self.positive) + len(self.negative)


@dataclass(frozen=True, slots=True)
class TokenData:
    """The examples that are trained on, in the given order.

    `table` has TOKEN_SCHEMA; `kept[i]` is the place of its row i among the given examples; `truncated` and `skipped`
    hold question ids; `moved` counts rows whose prompt was parted before its end.
    """

    table: pa.Table
    kept: Places
    truncated: list[str]
    skipped: list[str]
    moved: int = 0

    @property
    def examples(self) -> list[TokenExample]:
        rows = Rows(self.table)
        return [rows[number] for number in range(self.table.num_rows)]


class Rows:
    """Rows of a table with TOKEN_SCHEMA, by number; nothing is copied but the rows that are asked for."""

    def __init__(self, table: pa.Table | pa.RecordBatch) -> None:
        columns = [table.column(name) for name in TOKEN_SCHEMA.names]
        self._names, *sides, weights, shared = (
            c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns
        )
        self._weights, self._shared = weights.to_numpy(), shared.to_numpy()
        self._sides = [(side.values.to_numpy(), side.offsets.to_numpy()) for side in sides]

    def __getitem__(self, row: int) -> TokenExample:
        ids = (tuple(values[places[row] : places[row + 1]].tolist()) for values, places in self._sides)
        prompt, rationale, positive, negative = ids
        weight, shared = float(self._weights[row]), int(self._shared[row])
        return TokenExample(self._names[row].as_py(), prompt, rationale, positive, negative, weight, shared)


def token_limit(model_config: Any, max_length: int) -> int:
    """Tokens of prompt plus completion: `max_length`, or the model's positions where it has fewer."""
    return min(max_length, getattr(model_config.get_text_config(), "max_position_embeddings", None) or max_length)


def tokenize_examples(
    examples: Sequence[TrainExample],
    tokenizer: Any,
    max_length: int,
    rationale_cap: int,
    pairs: Literal["triplet", "likelihood", "none"] = "triplet",
    special_tokens: bool = True,
    branches: bool = False,
) -> TokenData:
    """Token ids of every example that fits.

    A rationale is cut where prompt plus rationale reach `max_length`. A positive or negative is cut there or at
    `rationale_cap`, for the triplet term reads no further. An example is skipped when its prompt leaves no room for one
    token. `pairs` says what the self-reflection term compares. For likelihoods positives are left out and negatives are
    cut at `max_length` alone. For none both are left out. With `branches` a negative counts from where it leaves its
    rationale. `special_tokens` says whether the tokenizer adds its own to a prompt. A chat template has written them
    already, and its turn's end ends a completion. Raises ModelError without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the student's tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    turn = None if special_tokens else turn_end(tokenizer)
    end = tokenizer.eos_token_id if turn is None else turn
    sides = [_sides(example, pairs) for example in examples]
    rationale_cap = max_length if pairs == "likelihood" else rationale_cap
    texts = dict.fromkeys(e.prompt + side for e, own in zip(examples, sides, strict=True) for side in ("", *own))
    ids = dict(zip(texts, text_ids(tokenizer, list(texts), special_tokens), strict=True))
    columns: list[list[list[int]]] = [[] for _ in SIDES]
    kept, truncated, skipped, moved = [], [], [], 0
    for place, (example, own) in enumerate(zip(examples, sides, strict=True)):
        prompt = ids[example.prompt]
        rows = [_row(tokenizer, prompt, ids[example.prompt + side], side) for side in own]
        cut = min(_shared(prompt, row) for row in rows)
        room = max_length - cut
        if room <= 0 or cut == 0:
            skipped.append(example.question_id)
            continue
        kept.append(place)
        moved += cut < len(prompt)
        rows = [[*row[cut:], end] for row in rows]
        if len(rows[0]) > room:
            truncated.append(example.question_id)
        most = (room, min(room, rationale_cap), min(room, rationale_cap))
        rows = [row[:length] for row, length in zip(rows, most, strict=False)]
        rows = [rows[0], [], rows[1]] if len(rows) == 2 else rows  # a mistake without another right rationale
        for column, row in zip(columns, [prompt[:cut], *rows, [], []], strict=False):
            column.append(row)
    names = pa.array([examples[place].question_id for place in kept], pa.string())
    arrays = [pa.array(column, pa.list_(pa.int32())) for column in columns]
    weights = pa.array([examples[place].weight for place in kept], pa.float64())
    begun = [0] * len(kept)  # tokens that rationale and negative begin with; one of each counts at least
    if branches:
        both = zip(columns[1], columns[3], strict=True)
        begun = [max(0, min(_shared(mine, other), len(mine) - 1, len(other) - 1)) for mine, other in both]
    shared = pa.array(begun, pa.int32())
    table = pa.Table.from_arrays([names, *arrays, weights, shared], schema=TOKEN_SCHEMA)
    return TokenData(table, np.array(kept, np.int64), truncated, skipped, moved)


def _sides(example: TrainExample, pairs: str) -> tuple[str, ...]:
    """What follows the prompt; half a pair counts for nothing."""
    if pairs == "likelihood" and example.negative is not None:
        return example.rationale, example.negative
    if pairs == "triplet" and example.positive is not None and example.negative is not None:
        return example.rationale, example.positive, example.negative
    return (example.rationale,)


def _row(tokenizer: Any, prompt: list[int], row: list[int], side: str) -> list[int]:
    """The whole row; one that knows no token for what lies at the prompt's end is made of two."""
    cut = _shared(prompt, row)
    if cut < min(len(prompt), len(row)) and row[cut] == tokenizer.unk_token_id != prompt[cut]:
        return prompt + text_ids(tokenizer, [side], special_tokens=False)[0]
    return row


def _shared(prompt: list[int], row: list[int]) -> int:
    """How many of the prompt's tokens the whole row begins with: fewer than all where one reaches over its end."""
    if row[: len(prompt)] == prompt:
        return len(prompt)
    return next(place for place, token in enumerate([*row, None]) if place == len(prompt) or token != prompt[place])
