"""How one call to a teacher ended: the error table, and the checks that a reply must pass.

In: an HTTP status with its body, or the exception instead of one. Out: an Outcome. Every code that can end a call
stands in TABLE with what follows from it. Nowhere else is it decided what is retried. Servers put errors under many
names, also into a 200. Their words are read by `errors`, and an error means the same wherever it stands.

An actor writes outcomes into its journal, on the disk of the driver's node. Only then are their slots free for others.
So a kill of actor or driver loses no reply that came. Whoever goes on reads the journals and settles what is pending.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tailor_ray.teacher.errors import error_code, error_object, finish_kind, has_error, retry_hint


class Category(StrEnum):
    """What follows from an outcome."""

    ANSWERED = "answered"
    REFUSED = "refused"  # for its content: the last word on this request, as an answer is
    TRUNCATED = "truncated"  # a verdict on the request with this cap
    BAD_REQUEST = "bad request"  # the same body would end alike today: final for one driver, asked again by the next
    RETRYABLE = "retryable"  # another attempt may succeed
    ACCESS = "access"  # address, key or model are wrong: no verdict on the request
    QUOTA = "quota"  # ends the run, which can go on later: no verdict on the request


@dataclass(frozen=True, slots=True)
class Rule:
    """What follows from a code. `may_be_billed`: the server may have done the work, so where the reply does not say
    what it cost the worst case is counted. `tries` are made at most; None takes teacher.max_attempts."""

    category: Category
    may_be_billed: bool = False
    tries: int | None = None


MOST_TOKENS = 10**9  # of one reply: more is no count
# Categories that say nothing about the request itself.
NO_VERDICT = (Category.RETRYABLE, Category.ACCESS, Category.QUOTA)
TABLE: dict[str, Rule] = {
    "answered": Rule(Category.ANSWERED, may_be_billed=True),
    # no connection was made, so nothing was asked
    "refused_connection": Rule(Category.RETRYABLE),
    "no_sockets": Rule(Category.RETRYABLE),  # this process may open no more files
    # sent, and then silence: it may have been answered and billed
    "lost_connection": Rule(Category.RETRYABLE, may_be_billed=True),
    "timeout": Rule(Category.RETRYABLE, may_be_billed=True),
    "actor_died": Rule(Category.RETRYABLE, may_be_billed=True),
    "http_408": Rule(Category.RETRYABLE),
    "http_409": Rule(Category.RETRYABLE),
    "http_424": Rule(Category.RETRYABLE),  # of gateways whose own server is not there yet
    "http_425": Rule(Category.RETRYABLE),
    "http_429": Rule(Category.RETRYABLE),
    "http_498": Rule(Category.RETRYABLE),  # Groq: no capacity
    "http_499": Rule(Category.RETRYABLE),  # a gateway was left by its own client
    "http_5xx": Rule(Category.RETRYABLE),
    # status 200, but no reply that can be used
    "error_reply": Rule(Category.RETRYABLE),  # it says that it is an error, and not which
    "broken_off": Rule(Category.RETRYABLE, may_be_billed=True),  # the server gave up in the middle
    "malformed_json": Rule(Category.RETRYABLE, may_be_billed=True),
    "not_an_object": Rule(Category.RETRYABLE, may_be_billed=True),
    "no_choices": Rule(Category.RETRYABLE, may_be_billed=True),
    # billed, and likely to come out the same: asked twice
    "no_content": Rule(Category.BAD_REQUEST, may_be_billed=True, tries=2),
    "http_400": Rule(Category.BAD_REQUEST),
    "http_413": Rule(Category.BAD_REQUEST),
    "http_422": Rule(Category.BAD_REQUEST),
    "http_other": Rule(Category.BAD_REQUEST),
    "denied": Rule(Category.BAD_REQUEST),  # 403 where others are answered: it is this request's
    "content_filter": Rule(Category.REFUSED, may_be_billed=True),
    "refusal": Rule(Category.REFUSED, may_be_billed=True),
    "length": Rule(Category.TRUNCATED, may_be_billed=True),
    "unexpected_finish": Rule(Category.BAD_REQUEST, may_be_billed=True),
    "expired": Rule(Category.RETRYABLE),  # a batch ended before it reached the request
    "batch_lost": Rule(Category.RETRYABLE, may_be_billed=True),  # the server no longer knows the batch
    "http_401": Rule(Category.ACCESS),
    "http_403": Rule(Category.ACCESS),
    "http_404": Rule(Category.ACCESS),
    "http_405": Rule(Category.ACCESS),
    "http_407": Rule(Category.ACCESS),  # of a proxy on the way
    "bad_certificate": Rule(Category.ACCESS),
    "http_402": Rule(Category.QUOTA),
    "insufficient_quota": Rule(Category.QUOTA),
}


def codes(*categories: Category) -> frozenset[str]:
    return frozenset(code for code, rule in TABLE.items() if rule.category in categories)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them; `output` includes `reasoning`, `input` includes `cached`.

    `cost` are dollars, where the server says what it bills.
    """

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt at one request. Who reads a response knows neither key nor times: the sender puts them in."""

    code: str
    detail: str = ""
    text: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None  # None where the server said nothing that can be used
    retry_after: float | None = None  # seconds that the server asks to wait
    key: str = ""
    sent: float = 0.0  # UNIX time
    seconds: float = 0.0

    @property
    def rule(self) -> Rule:
        return TABLE[self.code]


def check_status(status: int, body: bytes) -> Outcome:
    """Read an answer whose `status` is not 2xx.

    Any `body` is read without an error.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = body[:300].decode("utf-8", "replace")
    return _check_error(status, error_object(value))


def check_reply(body: bytes) -> Outcome:
    """Read the `body` of an answer with status 200.

    Returns an outcome for any bytes at all; raises nothing.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return Outcome("malformed_json", f"{error} in {body[:80].decode('utf-8', 'replace')!r}"[:300])
    return check_completion(value)


def check_completion(value: Any) -> Outcome:
    """Check a decoded chat completion, from a call or from a batch's output file."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # some gateways wrap their errors so
    if not isinstance(value, dict):
        return Outcome("not_an_object", f"a {type(value).__name__} instead of an object")
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    inside = choice.get("error") if choice else None
    usage = read_usage(value.get("usage"))
    if inside or has_error(value, with_reply=choice is not None):
        outcome = _check_error(None, error_object({"error": inside} if inside else value))
        return replace(outcome, usage=usage or outcome.usage)
    if choice is None:
        return Outcome("no_choices", f"choices: {choices!r}"[:300], usage=usage)
    message = choice.get("message")
    return _check_choice(choice.get("finish_reason"), message if isinstance(message, dict) else {}, usage)


def _check_choice(finish: Any, message: dict[str, Any], usage: Usage | None) -> Outcome:
    kind, said = finish_kind(finish), finish if isinstance(finish, str) else None
    text = read_text(message.get("content"))
    if usage is not None and (not usage.input or (text and not usage.output)):
        usage = None  # a count of nothing is no count
    if kind == "filter":
        return Outcome("content_filter", text=text, finish_reason=said, usage=usage)
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return Outcome("refusal", message["refusal"][:300], text, said, usage)
    if kind == "error":
        return Outcome("broken_off", f"finish_reason: {finish!r}"[:300], text, said, usage)
    if kind == "length":
        return Outcome("length", _where_the_cap_went(text, usage), text, said, usage)
    if text is None:
        text = _reply_among_reasoning(message)
    if kind == "tools":
        return Outcome("unexpected_finish", f"finish_reason: {finish!r}"[:300], text, said, usage)
    if text is None:
        thought = usage.reasoning if usage else 0
        spent = f"; {thought} tokens were reasoning" if thought else ""
        return Outcome("no_content", f"content: {message.get('content')!r}"[:200] + spent, None, said, usage)
    return Outcome("answered", text=text, finish_reason=said, usage=usage)


def _check_error(status: int | None, error: dict[str, Any]) -> Outcome:
    code, status = error_code(status, error)
    message = str(error.get("message") or error)[:300]
    detail = f"HTTP {status}: {message}" if status else message
    if code is None and status is not None:
        known = f"http_{status}"
        code = known if known in TABLE else "http_5xx" if status >= 500 else "http_other"
    code = code or "error_reply"
    # An error is not billed, whatever else of this code might be.
    return Outcome(code, detail, usage=Usage(), retry_after=retry_hint(error))


def read_text(content: Any) -> str | None:
    """A message's text: a string, or its parts joined, without those that are thinking.

    Returns None where there is none.
    """
    if isinstance(content, list):
        content = "".join(_part_text(part) for part in content)
    if not isinstance(content, str) or not content.strip():
        return None
    return encodable(content)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or str(part.get("type", "text")) not in ("text", "output_text"):
        return ""
    text = part.get("text")
    text = text.get("value") if isinstance(text, dict) else text
    return text if isinstance(text, str) else ""


def _reply_among_reasoning(message: dict[str, Any]) -> str | None:
    """A server that takes the whole reply for reasoning: it is one if it has the form that was asked for."""
    for name in ("reasoning_content", "reasoning"):
        text = message.get(name)
        if isinstance(text, str) and ("</rationale>" in text.lower() or '"rationale"' in text.lower()):
            return encodable(text)
    return None


def _where_the_cap_went(text: str | None, usage: Usage | None) -> str:
    if usage is not None and usage.reasoning and usage.reasoning >= 0.5 * usage.output:
        return f"{usage.reasoning} of {usage.output} tokens were reasoning"
    spent = f"{usage.output} tokens" if usage else "it"
    return f"{spent} did not suffice" if text else f"{spent} ended without any text"


def encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can carry and no file or database can."""
    return text.encode("utf-8", "replace").decode()


def read_usage(value: Any) -> Usage | None:
    """The server's token counts; None when they are missing or not counts.

    Output is what `total_tokens` leaves beside the prompt where that is more: some do not count reasoning elsewhere.
    """
    if not isinstance(value, dict):
        return None
    prompt, output = _count(value.get("prompt_tokens")), _count(value.get("completion_tokens"))
    if prompt is None or output is None:
        return None
    total = _count(value.get("total_tokens")) or 0
    cached = (
        _detail(value, "prompt_tokens_details", "cached_tokens") or _count(value.get("prompt_cache_hit_tokens")) or 0
    )
    reasoning = _detail(value, "completion_tokens_details", "reasoning_tokens")
    if reasoning > output:
        output += reasoning
    return Usage(prompt, min(cached or 0, prompt), max(output, total - prompt), reasoning, _cost(value))


def _count(value: Any) -> int | None:
    """A number of tokens; 12.0 is one, true, 1.5 and what no reply can have are not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def _cost(usage: dict[str, Any]) -> float | None:
    """Dollars that the reply says it cost; nothing said and nothing billed look alike."""
    cost = usage.get("cost")
    found = [cost.get("total_cost") if isinstance(cost, dict) else cost, usage.get("estimated_cost")]
    details = usage.get("cost_details")
    if isinstance(details, dict) and usage.get("is_byok"):
        found.append(details.get("upstream_inference_cost"))
    sums = [float(one) for one in found if isinstance(one, int | float) and not isinstance(one, bool)]
    total = sum(one for one in sums if math.isfinite(one) and one > 0)
    return total or None


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details.get(name)) or 0) if isinstance(details, dict) else 0


JournalEntries = dict[tuple[str, int], tuple[Outcome, float]]  # by key and number of the attempt: its end, and dollars


class Journal:
    """One actor's outcomes until they are committed. `stem` is the path of its two files, without their endings.

    The files take turns: the driver has committed one hand-over when it asks for the next, and what ends in between
    must stay. They are written without fsync. They outlive processes; what a power cut takes counts as in flight.
    """

    def __init__(self, stem: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._files = [os.open(f"{stem}.{turn}.jsonl", flags, 0o600) for turn in (0, 1)]
        self._turn = 0

    def write(self, attempt: int, outcome: Outcome, cost: float) -> None:
        """Append how an attempt ended, and its dollars (`cost`).

        `attempt` is the number that its row had. Raises OSError when the disk refuses.
        """
        line = {"attempt": attempt, "cost": cost, **asdict(outcome)}
        os.write(self._files[self._turn], json.dumps(line).encode() + b"\n")

    def hand_over(self) -> None:
        """All written so far is on its way to the driver."""
        self._turn = 1 - self._turn

    def committed(self) -> None:
        """What was handed over last is in the ledger."""
        os.ftruncate(self._files[1 - self._turn], 0)


def read_journals(paths: Iterable[Path]) -> JournalEntries:
    """What the files at `paths` say.

    A last line that a kill cut short does not count.
    """
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
