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
from types import NoneType
from typing import Annotated, Any, Self, TypeVar, get_args, get_type_hints

import pyarrow as pa

Int32 = Annotated[int, pa.int32()]
_ARROW = {int: pa.int64(), float: pa.float64()}


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
    sample: Int32  # 0 … k-1
    text: str
    finish_reason: str  # "stop", "length" or "error"
    answer: str | None  # as extracted, normalized; None when nothing was found
    verdict: Verdict
    seed: int  # of the sampler, derived from run, round, question and sample
    prompt_tokens: Int32
    output_tokens: Int32
    detail: str | None = None  # why `error` or `disputed`


@dataclass(frozen=True, slots=True)
class Lesson(Row):
    """A teacher's accepted reply to one request; `text` is the rationale with its conclusion removed."""

    question_id: str
    kind: LessonKind
    round: Int32
    text: str  # the rationale to learn from
    answer: str  # its own conclusion, equal to the gold answer by both verifiers
    feedback: str | None  # what went wrong, for kind feedback
    mistake: str | None  # the student's attempt that the teacher was shown
    mistake_sample: Int32 | None  # that attempt's sample index
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


def schema_of(record: type[Row]) -> pa.Schema:
    """The Arrow schema of a record class: its fields in order, `X | None` as nullable.

    An `int` has 64 bits and an `Int32` has 32. Of a StrEnum the word is written. Raises KeyError for another type.
    """
    hints = get_type_hints(record, include_extras=True)
    return pa.schema([_arrow_field(name, hint) for name, hint in hints.items()])


def _arrow_field(name: str, hint: Any) -> pa.Field:
    nullable = any(one is NoneType for one in get_args(hint))
    kind = get_args(hint)[0] if nullable else hint
    width = getattr(kind, "__metadata__", None)
    if width:
        return pa.field(name, width[0], nullable)
    return pa.field(name, pa.string() if issubclass(kind, str) else _ARROW[kind], nullable)


QUESTION_SCHEMA, ATTEMPT_SCHEMA = schema_of(Question), schema_of(Attempt)
LESSON_SCHEMA, TRAIN_EXAMPLE_SCHEMA = schema_of(Lesson), schema_of(TrainExample)

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
