"""What a shard of teaching leaves behind: its lessons, a row for each request, and its counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from tailor_ray.records import Lesson
from tailor_ray.teacher.asks import Ask, Ended, is_near_duplicate

REQUEST_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("mistake_sample", pa.int32()),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("ask", pa.int32(), nullable=False),  # 1 for the first try at the lesson
        pa.field("model", pa.string(), nullable=False),
        pa.field("request_key", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),  # accepted, rejected or failed
        pa.field("reason", pa.string()),
        pa.field("from_ledger", pa.bool_(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("input_tokens", pa.int64(), nullable=False),
        pa.field("cached_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("reasoning_tokens", pa.int64(), nullable=False),
        pa.field("cost_usd", pa.float64(), nullable=False),  # lost attempts at their worst case included
        pa.field("paid_round", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)


def lesson_rows(asks: Sequence[Ask], round_: int) -> tuple[list[Lesson], set[int]]:
    """The accepted lessons of asks in their order, and the ids (`id(ask)`) of those dropped as near-duplicates."""
    lessons: list[Lesson] = []
    duplicates: set[int] = set()
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for ask in asks:
        if ask.accepted is None:
            continue
        if is_near_duplicate(ask.accepted.rationale, texts[ask.question.id]):
            duplicates.add(id(ask))
            continue
        texts[ask.question.id].append(ask.accepted.rationale)
        lessons.append(_lesson(ask, round_))
    return lessons, duplicates


def request_rows(asks: Sequence[Ask], round_: int, duplicates: set[int]) -> list[dict[str, Any]]:
    """A row for each request of each ask; the last one of a dropped ask is rejected as a duplicate."""
    rows = []
    for ask in asks:
        for ended in ask.ended:
            dropped = ended.outcome == "accepted" and id(ask) in duplicates
            outcome, reason = ("rejected", "duplicate") if dropped else (ended.outcome, ended.reason)
            rows.append(_request(ask, ended, round_) | {"outcome": outcome, "reason": reason})
    return rows


def shard_metrics(asks: Sequence[Ask], rows: Sequence[dict[str, Any]], round_: int) -> dict[str, Any]:
    """Counts of the shard. Tokens and dollars are those that this round paid, each request's once."""
    paid = {row["request_key"]: row for row in rows if row["paid_round"] == round_}
    outcomes = Counter(row["outcome"] for row in rows)
    return {
        "wanted": len(asks),
        "taught": sum(ask.accepted is not None for ask in asks),
        "requests": len(rows),
        "from_ledger": sum(row["from_ledger"] for row in rows),
        "accepted": outcomes["accepted"],
        "rejected": outcomes["rejected"],
        "failed": outcomes["failed"],
        "input_tokens": sum(row["input_tokens"] for row in paid.values()),
        "output_tokens": sum(row["output_tokens"] for row in paid.values()),
        "reasoning_tokens": sum(row["reasoning_tokens"] for row in paid.values()),
        "cost_usd": sum(row["cost_usd"] for row in paid.values()),
        "reasons": dict(Counter(row["reason"] for row in rows if row["reason"])),
    }


def _lesson(ask: Ask, round_: int) -> Lesson:
    assert ask.accepted is not None
    row = next(ended.settled.row for ended in ask.ended if ended.outcome == "accepted")
    return Lesson(
        question_id=ask.question.id,
        kind=ask.kind,
        round=round_,
        text=ask.accepted.rationale,
        answer=ask.accepted.answer,
        feedback=ask.accepted.feedback,
        mistake=ask.mistake.text if ask.mistake else None,
        mistake_sample=ask.mistake.sample if ask.mistake else None,
        model=row.model,
        request_key=row.key,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=row.cost_usd + row.lost_usd,
    )


def _request(ask: Ask, ended: Ended, round_: int) -> dict[str, Any]:
    row = ended.settled.row
    return {
        "question_id": ask.question.id,
        "kind": ask.kind.value,
        "round": round_,
        "mistake_sample": ask.mistake.sample if ask.mistake else None,
        "sample": ask.sample,
        "ask": ended.number,
        "model": row.model,
        "request_key": row.key,
        "from_ledger": ended.settled.from_ledger,
        "attempts": row.attempts,
        "input_tokens": row.input_tokens,
        "cached_tokens": row.cached_tokens,
        "output_tokens": row.output_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "cost_usd": row.cost_usd + row.lost_usd,
        "paid_round": row.round,
        "seconds": row.seconds,
    }
