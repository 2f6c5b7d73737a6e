"""What is written down of a request: its row in the ledger, and an actor's journal until the row is committed.

A row has a hash of its content, and the same columns in SQLite and in parquet. An actor writes how an attempt ended
into its journal, on the disk of the driver's node, before its slot is free for another: so a kill of actor or driver
loses no reply that came, for whoever goes on reads the journals and settles what is still pending. Two files take
turns, since the driver has committed one hand-over when it asks for the next, and what ends in between must stay.
They are written without fsync: they outlive processes, and what a power cut takes is counted as in flight.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.client import TeacherRequest, cap_of
from tailor_ray.teacher.outcomes import Category, Outcome, Usage, codes

# Outcomes that are the request's last word: the same request is not sent again. All others are.
FINAL = codes(Category.ANSWERED, Category.REFUSED)
ANSWERED = codes(Category.ANSWERED)
PASSING = codes(Category.RETRYABLE)
CUT = "length"

Values = tuple[Any, ...]  # a row in the order of COLUMNS; its hash is the last

JournalEntries = dict[tuple[str, int], tuple[Outcome, float]]  # by key and number of the attempt: its end, and dollars


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A request and what became of it. `outcome` is a code of `outcomes.TABLE`, or `pending` or `lost`."""

    key: str
    outcome: str
    model: str
    question_id: str
    round: int  # that paid for it last; 0 for a reply taken in from another ledger
    request: str  # the body sent, canonical JSON
    reply: str | None = None
    finish_reason: str | None = None
    detail: str = ""
    input_tokens: int = 0  # of the replies that came, as the server counted
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0
    lost_tokens: int = 0  # worst case of attempts whose bill is not known
    lost_usd: float = 0.0
    pending_tokens: int = 0  # worst case of the attempt in flight
    pending_usd: float = 0.0
    attempts: int = 0
    sent: float = 0.0  # UNIX time of the first attempt
    settled: float = 0.0  # UNIX time of the last end
    seconds: float = 0.0  # of the last attempt
    mode: str = "online"
    row_hash: str = ""

    @classmethod
    def of(cls, request: TeacherRequest) -> LedgerRow:
        """The row of a request that nobody has sent yet."""
        return cls(request.key, "pending", request.model, request.question_id, request.round, request.body)

    def sending(self, worst: Spend) -> LedgerRow:
        """This row while one more attempt is in flight, which costs at most `worst`."""
        return replace(
            self,
            outcome="pending",
            attempts=self.attempts + 1,
            pending_tokens=worst.tokens,
            pending_usd=worst.usd,
        )

    @property
    def is_final(self) -> bool:
        """Whether the same request with the same cap is not sent again."""
        return self.outcome in FINAL or self.outcome == CUT

    @property
    def may_pass(self) -> bool:
        """Whether it ended by something that another attempt may not meet."""
        return self.outcome in PASSING

    def answers(self, max_tokens: int) -> bool:
        """Whether it is the last word on its request with this cap: what was cut by a smaller one is asked again."""
        return self.outcome in FINAL or (self.outcome == CUT and cap_of(self.request) >= max_tokens)

    @property
    def words(self) -> str:
        """How it ended, and what was said."""
        return f"{self.outcome}: {self.detail}"

    @property
    def standing(self) -> tuple[int, int, int, float]:
        """Of two rows of one request the greater one is kept: by how far it got, not by the clocks of two nodes.

        A last word beats anything else, so that no reply is lost that was paid for; then more attempts beat fewer.
        """
        ended = 2 if self.outcome not in ("pending", "lost") else int(self.outcome == "lost")
        return (self.outcome in FINAL) + (self.outcome in ANSWERED), self.attempts, ended, self.settled

    def values(self) -> Values:
        """In the order and the types of the columns: an int given for a float would change the hash on its way back."""
        values = list(_GET(self))
        for place in _REAL_AT:
            values[place] = float(values[place])
        return tuple(values)

    def sealed_values(self) -> Values:
        """The values with the hash of what they are now."""
        values = self.values()
        return (*values[:-1], hash_of(values))

    def sealed(self) -> LedgerRow:
        return LedgerRow(*self.sealed_values())

    def is_whole(self) -> bool:
        return is_whole(self.values())

    @property
    def spend(self) -> Spend:
        """Of its attempts so far, those whose bill is not known at their worst case; without what is in flight."""
        tokens = self.input_tokens + self.output_tokens + self.lost_tokens
        return Spend(self.cost_usd + self.lost_usd, tokens)

    def ended(self, how: Outcome, cost: float, now: float) -> LedgerRow:
        """This row after its attempt in flight ended, at the UNIX time `now`.

        `cost` are the dollars that the reply's usage comes to. Where it says none and may be billed, what was pending
        counts as lost.
        """
        usage = how.usage or Usage()
        unknown = how.usage is None and how.rule.may_be_billed
        return replace(
            self,
            outcome=how.code,
            reply=how.text,
            finish_reason=how.finish_reason,
            detail=how.detail,
            input_tokens=self.input_tokens + usage.input,
            cached_tokens=self.cached_tokens + usage.cached,
            output_tokens=self.output_tokens + usage.output,
            reasoning_tokens=self.reasoning_tokens + usage.reasoning,
            cost_usd=self.cost_usd + cost,
            lost_tokens=self.lost_tokens + (self.pending_tokens if unknown else 0),
            lost_usd=self.lost_usd + (self.pending_usd if unknown else 0.0),
            pending_tokens=0,
            pending_usd=0.0,
            settled=now,
        )

    def after(self, outcome: Outcome, cost: float) -> LedgerRow:
        """This row after an online attempt, with its times."""
        row = self.ended(outcome, cost, outcome.sent + outcome.seconds)
        return replace(row, sent=self.sent or outcome.sent, seconds=outcome.seconds)

    def unsent(self) -> LedgerRow:
        """This row where its attempt was prepared and never made."""
        return replace(self, outcome="unsent", attempts=self.attempts - 1, pending_tokens=0, pending_usd=0.0)

    def lost(self, now: float) -> LedgerRow:
        """This row after its attempt in flight was lost: its worst case is counted."""
        return replace(
            self,
            outcome="lost",
            lost_tokens=self.lost_tokens + self.pending_tokens,
            lost_usd=self.lost_usd + self.pending_usd,
            pending_tokens=0,
            pending_usd=0.0,
            settled=now,
        )


def hash_of(values: Values) -> str:
    """What the row's hash must be: of its numbers in binary and its texts with their lengths, which JSON would escape.

    Raises struct.error, TypeError or AttributeError when a value is of another type than its column.
    """
    texts = [b"" if values[place] is None else values[place].encode("utf-8", "surrogatepass") for place in _TEXT_AT]
    sizes = [-1 if values[place] is None else len(text) for place, text in zip(_TEXT_AT, texts, strict=True)]
    return hashlib.sha256(b"".join((_PACK(*_NUMBERS(values), *sizes), *texts))).hexdigest()


def is_whole(values: Values) -> bool:
    """Whether a row's values, from disk, have the hash that they were written with."""
    try:
        return bool(values[-1] == hash_of(values))
    except (struct.error, TypeError, AttributeError):
        return False


def standing_in_sql(table: str) -> str:
    """`LedgerRow.standing` as a row value of SQLite."""
    outcome = f"{table}.outcome"
    final, answered = (f"{outcome} IN ({','.join(map(repr, sorted(codes)))})" for codes in (FINAL, ANSWERED))
    ended = f"({outcome} != 'pending') + ({outcome} NOT IN ('pending', 'lost'))"
    return f"(({final}) + ({answered}), {table}.attempts, {ended}, {table}.settled)"


_REAL = "REAL NOT NULL"
_SQL = {"str": "TEXT NOT NULL", "str | None": "TEXT", "int": "INTEGER NOT NULL", "float": _REAL}
_ARROW = {"str": pa.string(), "str | None": pa.string(), "int": pa.int64(), "float": pa.float64()}

COLUMNS: dict[str, str] = {field.name: _SQL[str(field.type)] for field in fields(LedgerRow)}
SCHEMA = pa.schema([pa.field(field.name, _ARROW[str(field.type)]) for field in fields(LedgerRow)])
_GET = attrgetter(*COLUMNS)
_HASHED = list(COLUMNS.values())[:-1]
_REAL_AT = [place for place, kind in enumerate(_HASHED) if kind == _REAL]
_TEXT_AT = [place for place, kind in enumerate(_HASHED) if kind.startswith("TEXT")]
_NUMBERS = itemgetter(*(place for place in range(len(_HASHED)) if place not in _TEXT_AT))
_KINDS = "".join("d" if place in _REAL_AT else "q" for place in range(len(_HASHED)) if place not in _TEXT_AT)
_PACK = struct.Struct(f"<{_KINDS}{len(_TEXT_AT)}q").pack


class Journal:
    """One actor's. `stem` is the path of its two files, without their endings."""

    def __init__(self, stem: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._files = [os.open(f"{stem}.{turn}.jsonl", flags, 0o600) for turn in (0, 1)]
        self._turn = 0

    def write(self, attempt: int, outcome: Outcome, cost: float) -> None:
        """Append how this attempt (the row's number) ended, and its dollars. Raises OSError when the disk refuses."""
        line = {"attempt": attempt, "cost": cost, **asdict(outcome)}
        os.write(self._files[self._turn], json.dumps(line).encode() + b"\n")

    def hand_over(self) -> None:
        """All written so far is on its way to the driver."""
        self._turn = 1 - self._turn

    def committed(self) -> None:
        """What was handed over last is in the ledger."""
        os.ftruncate(self._files[1 - self._turn], 0)


def read_journals(paths: Iterable[Path]) -> JournalEntries:
    """What these files say; a last line that a kill cut short does not count."""
    journaled: JournalEntries = {}
    for path in paths:
        for line in path.read_bytes().splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            attempt, cost = said.pop("attempt"), said.pop("cost")
            usage = said.pop("usage")
            outcome = Outcome(**said, usage=usage and Usage(**usage))
            journaled[outcome.key, attempt] = outcome, cost
    return journaled
