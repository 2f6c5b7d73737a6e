"""Reading a teacher's reply: JSON by schema, tagged text, or plain prose with a conclusion at its end.

In: the reply's text as received. Out: a Reply with the rationale (its conclusion line removed), the answer that it
states, and for feedback what went wrong. Nothing is judged here, and any text at all is read without an error:
what cannot be found is None or empty.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_REASONING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_CONCLUSION = re.compile(
    r"^[\s*#>_-]*(?:(?:final\s+)?answer(?:\s+is)?\s*[:=]|(?:therefore|thus|so|hence)?,?\s*the\s+(?:final\s+)?answer\s+is)"
    r"\s*:?\s*(?P<answer>.+?)\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, read. `answer` is None when the reply states none apart from its reasoning."""

    rationale: str
    answer: str | None
    feedback: str | None


def parse_reply(text: str) -> Reply:
    """Read a reply in whichever of the three forms it came."""
    text = _REASONING.sub("", text).strip()
    fenced = _FENCE.match(text)
    body = fenced.group(1).strip() if fenced else text
    fields = _json_fields(body)
    if fields is None:
        fields = {name: _tagged(body, name) for name in ("feedback", "rationale", "answer")}
        if fields["rationale"] is None:
            return _prose(body, fields["feedback"], fields["answer"])
    rationale, stated = split_conclusion(fields.get("rationale") or "")
    return Reply(rationale, fields.get("answer") or stated, fields.get("feedback"))


def parse_score(text: str) -> int | None:
    """A peer's score from 1 to 5; None when the reply gives none."""
    text = _REASONING.sub("", text)
    found = re.search(r"<score>\s*([1-5])\s*</score>", text) or re.search(r"(?<![\d.])([1-5])(?![\d.]|\s*/\s*10)", text)
    return int(found.group(1)) if found else None


def split_conclusion(rationale: str) -> tuple[str, str | None]:
    """The rationale without a last line that only states the answer, and that answer."""
    head, _, last = rationale.rstrip().rpartition("\n")
    found = _CONCLUSION.match(last)
    if found is None:
        return rationale.strip(), None
    return head.strip(), found.group("answer").strip("*_ ").rstrip(".").strip("*_ ") or None


def _prose(body: str, feedback: str | None, answer: str | None) -> Reply:
    for name in ("feedback", "answer"):
        body = re.sub(rf"<{name}>.*?(</{name}>|\Z)", "", body, flags=re.DOTALL | re.IGNORECASE)
    body = re.sub(r"^\s*(?:reasoning|rationale)\s*:\s*", "", body.strip(), flags=re.IGNORECASE)
    rationale, stated = split_conclusion(body)
    return Reply(rationale, answer or stated, feedback)


def _tagged(body: str, name: str) -> str | None:
    """The text of the last whole tag; an opening tag without its end counts as nothing."""
    found = re.findall(rf"<{name}>(.*?)</{name}>", body, re.DOTALL | re.IGNORECASE)
    return found[-1].strip() if found else None


def _json_fields(body: str) -> dict[str, str | None] | None:
    if not body.startswith("{"):
        return None
    try:
        value: Any = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or "rationale" not in value:
        return None
    return {name: _as_text(value.get(name)) for name in ("feedback", "rationale", "answer")}


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int | float) else None
