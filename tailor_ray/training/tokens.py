"""From texts to token ids, as the engine sees them.

In: training examples and the student's tokenizer. Out: an Arrow table of token ids, and the ids of questions whose
rationale was truncated or whose prompt leaves no room. What always holds: prompt and completion are tokenized apart, so
that prompt ids equal those that the engine is given and completion ids those that it may generate; a whole completion
ends with the end-of-sequence token, a truncated one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailor_ray.errors import ModelError
from tailor_ray.records import TrainExample

SIDES = ("prompt", "rationale", "positive", "negative")
ID_COLUMNS = tuple(f"{side}_ids" for side in SIDES)
TOKEN_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in ID_COLUMNS),
    ]
)
Ints = NDArray[np.int32]
Places = NDArray[np.int64]
CHUNK = 1024  # texts per call of the tokenizer


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One example as ids. `positive` and `negative` are both there or both empty, for only a pair counts."""

    question_id: str
    prompt: tuple[int, ...]
    rationale: tuple[int, ...]
    positive: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()

    @property
    def has_pair(self) -> bool:
        return bool(self.positive)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass that computes the prompt once."""
        return len(self.prompt) + len(self.rationale) + len(self.positive) + len(self.negative)


@dataclass(frozen=True, slots=True)
class TokenData:
    """The examples that are trained on, in the given order.

    `table` has TOKEN_SCHEMA; `kept[i]` is the place of its row i among the given examples; `truncated` and `skipped`
    hold question ids.
    """

    table: pa.Table
    kept: Places
    truncated: list[str]
    skipped: list[str]

    @property
    def examples(self) -> list[TokenExample]:
        rows = Rows(self.table)
        return [rows[number] for number in range(self.table.num_rows)]


class Rows:
    """Rows of a table with TOKEN_SCHEMA, by number; nothing is copied but the rows that are asked for."""

    def __init__(self, table: pa.Table | pa.RecordBatch) -> None:
        columns = [table.column(name) for name in TOKEN_SCHEMA.names]
        self._names, *sides = (c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns)
        self._sides = [(side.values.to_numpy(), side.offsets.to_numpy()) for side in sides]

    def __getitem__(self, row: int) -> TokenExample:
        ids = (tuple(values[places[row] : places[row + 1]].tolist()) for values, places in self._sides)
        return TokenExample(self._names[row].as_py(), *ids)


def token_limit(model_config: Any, max_length: int) -> int:
    """Tokens of prompt plus completion: `training.max_length`, or the model's positions where it has fewer."""
    return min(max_length, getattr(model_config.get_text_config(), "max_position_embeddings", None) or max_length)


def tokenize_examples(
    examples: Sequence[TrainExample],
    tokenizer: Any,
    max_length: int,
    rationale_cap: int,
    pairs: bool = True,
    special_tokens: bool = True,
) -> TokenData:
    """Token ids of every example that fits.

    A rationale is cut where prompt plus rationale reach `max_length`; a positive or negative there or at
    `rationale_cap`, for the triplet term reads no further. An example is skipped when its prompt leaves no room for
    one token. With `pairs` off, positives and negatives are left out. `special_tokens` says whether the tokenizer
    adds its own to a prompt; a chat template has written them already. Raises ModelError without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the student's tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    values, starts, lengths = _encode(tokenizer, [e.prompt for e in examples], special_tokens)
    prompts, room = (values, starts, lengths), max_length - lengths
    paired = [pairs and e.positive is not None and e.negative is not None for e in examples]
    sides = [e.rationale for e in examples]
    for name in SIDES[2:]:  # half a pair counts for nothing
        sides += [getattr(e, name) if pair else "" for e, pair in zip(examples, paired, strict=True)]
    values, starts, lengths = _encode(tokenizer, sides, False, tokenizer.eos_token_id)
    starts, lengths = starts.reshape(3, -1), lengths.reshape(3, -1)
    cap = np.where(paired, np.minimum(room, rationale_cap), 0)
    fits = (room > 0) & (prompts[2] > 0)
    kept = np.flatnonzero(fits)
    columns = [_lists(prompts[0], prompts[1][kept], prompts[2][kept])]
    for side, most in enumerate((room, cap, cap)):
        columns.append(_lists(values, starts[side][kept], np.minimum(lengths[side], most)[kept]))
    names = np.array([e.question_id for e in examples], object)
    table = pa.Table.from_arrays([pa.array(names[kept], pa.string()), *columns], schema=TOKEN_SCHEMA)
    return TokenData(table, kept, names[fits & (lengths[0] > room)].tolist(), names[~fits].tolist())


def _encode(
    tokenizer: Any, texts: Sequence[str], special_tokens: bool, end: int | None = None
) -> tuple[Ints, Places, Places]:
    """Ids of all texts in one row, and where each text's start and how many there are; equal texts share theirs."""
    unique = list(dict.fromkeys(texts))
    place = {text: index for index, text in enumerate(unique)}
    rows: list[list[int]] = []
    for chunk in (unique[start : start + CHUNK] for start in range(0, len(unique), CHUNK)):
        rows += tokenizer(
            chunk,
            add_special_tokens=special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
    if end is not None:
        for row in rows:
            row.append(end)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    values = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
    index = np.fromiter((place[text] for text in texts), np.int64, len(texts))
    return values, (np.cumsum(lengths) - lengths)[index], lengths[index]


def _lists(values: Ints, starts: Places, lengths: Places) -> pa.ListArray:
    """Row i is `values[starts[i] : starts[i] + lengths[i]]`."""
    ends = np.cumsum(lengths)
    source = np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[source]))
