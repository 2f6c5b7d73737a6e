"""The data of a run, named by its stage of life, as frozen dataclasses with their Arrow schemas.

Question → Attempt → (Mistake) → Lesson → TrainExample. Bare dicts exist only at Ray's row edge. `to_row` and `from_row`
convert there. The schemas are what parquet files hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from typing import Any, Self, TypeVar, get_type_hints

import pyarrow as pa


class Verdict(StrEnum):
    """What the grader says of one attempt."""

    CORRECT = "correct"
    WRONG = "wrong"  # by both verifiers: a mistake
    UNPARSED = "unparsed"  # finished, but no answer could be found
    TRUNCATED = "truncated"  # cut off by the token cap before its conclusion
    DISPUTED = "disputed"  # the two verifiers differ
    ERROR = "error"  # the engine could not answer; `detail` says why


class AnswerKind(StrEnum):
    """How a task's answers are extracted and compared."""

    NUMBER = "number"
    CHOICE = "choice"
    YES_NO = "yes_no"
    TEXT = "text"
    REGEX = "regex"
    MATH = "math"
    PYTHON = "python"


class LessonKind(StrEnum):
    RATIONALE = "rationale"
    FEEDBACK = "feedback"


class Row:
    """Conversion between a frozen dataclass and the row of its schema (same names, same order)."""

    __slots__ = ()

    def to_row(self) -> dict[str, Any]:
        """The record as a row: its fields by name, in the schema's order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build from a row that may carry further columns; a word of a StrEnum becomes its member.

        Raises KeyError for a missing column and ValueError for an unknown word.
        """
        names, enums = _fields(cls)  # type: ignore[arg-type]
        values = {name: row[name] for name in names}
        for name, kind in enums:
            values[name] = kind(values[name])
        return cls(**values)


@cache
def _fields(record: type[Row]) -> tuple[tuple[str, ...], tuple[tuple[str, type[StrEnum]], ...]]:
    """A record class's field names, and those of them that hold a StrEnum."""
    hints = get_type_hints(record)
    enums = [(name, kind) for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, StrEnum)]
    return tuple(f.name for f in fields(record)), tuple(enums)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Question(Row):
    """One question of a task. `choices` is JSON of {"a": text, …}, so that every task has one schema."""

    id: str
    text: str
    answer: str
    choices: str | None = None
    rationale: str | None = None

    def choice_texts(self) -> dict[str, str]:
        """The choices by their letters; empty where the question has none."""
        return json.loads(self.choices) if self.choices else {}


@dataclass(frozen=True, slots=True)
class Attempt(Row):
    """One sampled answer of the student; `text` is its completion as generated."""

    question_id: str
    sample: int  # 0 … k-1
    text: str
    finish_reason: str  # "stop", "length" or "error"
    answer: str | None  # as extracted, normalized; None when nothing was found
    verdict: Verdict
    seed: int  # of the sampler, derived from run, round, question and sample
    prompt_tokens: int
    output_tokens: int
    detail: str | None = None  # why `error` or `disputed`


@dataclass(frozen=True, slots=True)
class Lesson(Row):
    """A teacher's accepted reply to one request; `text` is the rationale with its conclusion removed."""

    question_id: str
    kind: LessonKind
    round: int
    text: str  # the rationale to learn from
    answer: str  # its own conclusion, equal to the gold answer by both verifiers
    feedback: str | None  # what went wrong, for kind feedback
    mistake: str | None  # the student's attempt that the teacher was shown
    mistake_sample: int | None  # that attempt's sample index
    model: str
    request_key: str  # SHA-256 of the request: the ledger's key
    input_tokens: int
    output_tokens: int
    cost_usd: float


@dataclass(frozen=True, slots=True)
class TrainExample(Row):
    """One training row. The three texts are completions: rationale plus conclusion, as the student writes them."""

    question_id: str
    prompt: str
    rationale: str
    positive: str | None  # another correct rationale of the same question
    negative: str | None  # one of the student's own wrong rationales of it
    weight: float = 1.0  # of both its terms


QUESTION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("choices", pa.string()),
        pa.field("rationale", pa.string()),
    ]
)

ATTEMPT_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)

LESSON_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("feedback", pa.string()),
        pa.field("mistake", pa.string()),
        pa.field("mistake_sample", pa.int32()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("request_key", pa.string(), nullable=False),
        pa.field("input_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("cost_usd", pa.float64(), nullable=False),
    ]
)

TRAIN_EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("rationale", pa.string(), nullable=False),
        pa.field("positive", pa.string()),
        pa.field("negative", pa.string()),
        pa.field("weight", pa.float64(), nullable=False),
    ]
)


R = TypeVar("R", bound=Row)


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows of one record class as an Arrow table.

    Its columns and types are exactly those of `schema`.
    """
    return pa.Table.from_pylist([row.to_row() for row in rows], schema=schema)


def from_table(table: pa.Table, record: type[R]) -> list[R]:
    """The records in a table: the inverse of `to_table`.

    The table may have further columns. Raises KeyError for a missing one and ValueError for an unknown word.
    """
    return [record.from_row(row) for row in table.to_pylist()]
