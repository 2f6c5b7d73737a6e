"""One row of the ledger, its hash, and its columns in SQLite and in parquet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from tailor_ray.teacher.budget import Spend
from tailor_ray.teacher.outcomes import TABLE, Bill, Checked, Fate, Outcome, Usage
from tailor_ray.teacher.request import canonical

# Outcomes that are the request's last word: the same request is not sent again. All others are.
FINAL = frozenset(code for code, rule in TABLE.items() if rule.fate in (Fate.ANSWERED, Fate.REQUEST))


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

    @property
    def is_final(self) -> bool:
        return self.outcome in FINAL

    def values(self) -> tuple[Any, ...]:
        """In the order and the types of the columns: an int given for a float would change the hash on its way back."""
        return tuple(float(getattr(self, n)) if kind == _REAL else getattr(self, n) for n, kind in COLUMNS.items())

    def content_hash(self) -> str:
        return hashlib.sha256(canonical(self.values()[:-1]).encode("utf-8", "surrogatepass")).hexdigest()

    def sealed(self) -> LedgerRow:
        return replace(self, row_hash=self.content_hash())

    def is_whole(self) -> bool:
        return self.row_hash == self.content_hash()

    @property
    def spend(self) -> Spend:
        """Of its attempts so far, those whose bill is not known at their worst case; without what is in flight."""
        tokens = self.input_tokens + self.output_tokens + self.lost_tokens
        return Spend(self.cost_usd + self.lost_usd, tokens)

    def ended(self, how: Checked | Outcome, cost: float, now: float) -> LedgerRow:
        """This row after its attempt in flight ended; `cost` are the dollars that the reply's usage comes to."""
        usage = how.usage or Usage()
        unknown = how.usage is None and how.rule.bill is Bill.UNKNOWN
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


_REAL = "REAL NOT NULL"
_SQL = {"str": "TEXT NOT NULL", "str | None": "TEXT", "int": "INTEGER NOT NULL", "float": _REAL}
_ARROW = {"str": pa.string(), "str | None": pa.string(), "int": pa.int64(), "float": pa.float64()}

COLUMNS: dict[str, str] = {field.name: _SQL[str(field.type)] for field in fields(LedgerRow)}
SCHEMA = pa.schema([pa.field(field.name, _ARROW[str(field.type)]) for field in fields(LedgerRow)])
