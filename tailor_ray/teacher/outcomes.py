"""How one call to a teacher ended: the error table, and the checks that a reply must pass.

In: an HTTP status with its body, or the exception instead of one. Out: an Outcome. Every code that can end a call
stands in TABLE with what follows from it; nowhere else is it decided what is retried. A reply counts as answered only
when its type, choices, content, finish reason and usage are as they must be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Fate(StrEnum):
    """What follows from an outcome."""

    ANSWERED = "answered"
    RETRY = "retry"  # another attempt may succeed
    REQUEST = "request"  # terminal for this request: the same body would end the same way
    ACCESS = "access"  # terminal for the run: address, key or model are wrong
    QUOTA = "quota"  # terminal for the run, which can go on later


class Bill(StrEnum):
    """What an attempt may have cost where the reply does not say."""

    NONE = "none"
    UNKNOWN = "unknown"  # the server may have done the work: the worst case is counted


@dataclass(frozen=True, slots=True)
class Rule:
    fate: Fate
    bill: Bill = Bill.NONE


TABLE: dict[str, Rule] = {
    "answered": Rule(Fate.ANSWERED),
    # no connection was made, so nothing was asked
    "refused_connection": Rule(Fate.RETRY),
    # sent, and then silence: it may have been answered and billed
    "lost_connection": Rule(Fate.RETRY, Bill.UNKNOWN),
    "timeout": Rule(Fate.RETRY, Bill.UNKNOWN),
    "actor_died": Rule(Fate.RETRY, Bill.UNKNOWN),
    "http_408": Rule(Fate.RETRY),
    "http_409": Rule(Fate.RETRY),
    "http_425": Rule(Fate.RETRY),
    "http_429": Rule(Fate.RETRY),
    "http_5xx": Rule(Fate.RETRY),
    # status 200, but no reply that can be used
    "malformed_json": Rule(Fate.RETRY, Bill.UNKNOWN),
    "not_an_object": Rule(Fate.RETRY, Bill.UNKNOWN),
    "no_choices": Rule(Fate.RETRY, Bill.UNKNOWN),
    "no_content": Rule(Fate.RETRY, Bill.UNKNOWN),
    "no_finish_reason": Rule(Fate.RETRY, Bill.UNKNOWN),
    "http_400": Rule(Fate.REQUEST),
    "http_413": Rule(Fate.REQUEST),
    "http_422": Rule(Fate.REQUEST),
    "http_other": Rule(Fate.REQUEST),
    "content_filter": Rule(Fate.REQUEST, Bill.UNKNOWN),
    "refusal": Rule(Fate.REQUEST, Bill.UNKNOWN),
    "length": Rule(Fate.REQUEST, Bill.UNKNOWN),
    "unexpected_finish": Rule(Fate.REQUEST, Bill.UNKNOWN),
    "expired": Rule(Fate.RETRY),  # a batch ended before it reached the request
    "http_401": Rule(Fate.ACCESS),
    "http_403": Rule(Fate.ACCESS),
    "http_404": Rule(Fate.ACCESS),
    "no_key": Rule(Fate.ACCESS),
    "http_402": Rule(Fate.QUOTA),
    "insufficient_quota": Rule(Fate.QUOTA),
}

# Codes and types that OpenAI-compatible servers put into a 429 (or 403) whose retry cannot succeed.
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded", "billing_not_active"}
_FILTER_CODES = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them; `output` includes `reasoning`, `input` includes `cached`."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt at one request."""

    key: str
    code: str
    detail: str = ""
    text: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None  # None where the server said nothing
    retry_after: float | None = None
    sent: float = 0.0  # UNIX time
    seconds: float = 0.0

    @property
    def rule(self) -> Rule:
        return TABLE[self.code]


@dataclass(frozen=True, slots=True)
class Checked:
    """A response without the times that only the caller knows."""

    code: str
    detail: str = ""
    text: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None

    @property
    def rule(self) -> Rule:
        return TABLE[self.code]


def check_status(status: int, body: bytes) -> Checked:
    """Read an answer whose status is not 2xx."""
    error = _error_object(body)
    names = {str(error.get("code")), str(error.get("type"))}
    message = str(error.get("message") or body[:200].decode("utf-8", "replace"))[:300]
    detail = f"HTTP {status}: {message}"
    if names & _QUOTA_CODES:
        return Checked("insufficient_quota", detail)
    if names & _FILTER_CODES:
        return Checked("content_filter", detail, usage=Usage())
    if f"http_{status}" in TABLE:
        return Checked(f"http_{status}", detail)
    return Checked("http_5xx" if status >= 500 else "http_other", detail)


def check_reply(body: bytes) -> Checked:
    """Read an answer with status 200; see the module's contract."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return Checked("malformed_json", f"{error} in {body[:80].decode('utf-8', 'replace')!r}"[:300])
    return check_completion(value)


def check_completion(value: Any) -> Checked:
    """Check a decoded chat completion, from a call or from a batch's output file."""
    if not isinstance(value, dict):
        return Checked("not_an_object", f"a {type(value).__name__} instead of an object")
    usage = read_usage(value.get("usage"))
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        error = value.get("error")
        return Checked("no_choices", f"choices: {choices!r}, error: {error!r}"[:300], usage=usage)
    finish = choices[0].get("finish_reason")
    message = choices[0].get("message")
    message = message if isinstance(message, dict) else {}
    text = message.get("content")
    text = encodable(text) if isinstance(text, str) else None
    if not isinstance(finish, str):
        return Checked("no_finish_reason", f"finish_reason: {finish!r}", usage=usage)
    if finish == "content_filter":
        return Checked("content_filter", text=text, finish_reason=finish, usage=usage)
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return Checked("refusal", message["refusal"][:300], text, finish, usage)
    if finish == "length":
        return Checked("length", text=text, finish_reason=finish, usage=usage)
    if finish != "stop":
        return Checked("unexpected_finish", f"finish_reason: {finish!r}"[:300], text, finish, usage)
    if text is None or not text.strip():
        return Checked("no_content", f"content: {message.get('content')!r}"[:300], None, finish, usage)
    return Checked("answered", text=text, finish_reason=finish, usage=usage)


def encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can carry and no file or database can."""
    return text.encode("utf-8", "replace").decode()


def read_usage(value: Any) -> Usage | None:
    """The server's token counts; None when they are missing or not counts."""
    if not isinstance(value, dict):
        return None
    prompt, output = value.get("prompt_tokens"), value.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(output, int) or prompt < 0 or output < 0:
        return None
    cached = _detail(value, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(value, "completion_tokens_details", "reasoning_tokens")
    return Usage(prompt, min(cached, prompt), output, reasoning)


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    count = details.get(name) if isinstance(details, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = value.get("error", value) if isinstance(value, dict) else {}
    return error if isinstance(error, dict) else {}
