"""What servers call their errors, and what we say when one ends the run.

Names, numbers and sentences of many gateways are read into the codes of `outcomes`. That is pure reading of one decoded
body. The words come from public documents and threads of the endpoints that jobs/teachers.md names. A status says too
little. A 400 may be an empty purse and a 429 a used-up month. What ends the run names the setting to look at, and says
that the same command goes on.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.errors import StageError, Stopped, TailorError, TeacherAccessError

_ADVICE = {
    "length": "Raise max_tokens in teacher.teachers, or lower reasoning_effort",
    "no_content": "Raise max_tokens in teacher.teachers, or look at what the model is served with",
    "malformed": "Look at the replies in this round's requests; output: tagged works with every model",
    "content_filter": "The endpoint filters these questions; ask another teacher",
}
_NUMBERS = ("code", "status", "status_code", "http_status", "error_code")
_MESSAGES = ("message", "msg", "error_msg", "error_message", "status_msg")
_INSIDE = ("error", "errors", "detail", "base_resp")  # where an error may stand in a body
_NAMES = ("code", "type", "status", "reason", "error_code", "error_type", "innererror", "metadata")

_FILTER_NAMES = frozenset(
    ["content_filter", "content_policy_violation", "responsibleaipolicyviolation", "data_inspection_failed",
     "moderation_blocked", "content_moderation", "prompt_blocked", "safety", "sensitive"]
)  # fmt: skip
_FILTER = re.compile(
    r"content management policy|content[ _-]polic|content[ _]filter|safety (?:system|filter|polic)|moderation"
    r"|\b(?:was|been|is) flagged|flagged (?:by|for|as|input)|inappropriate content|violat\w+ [^.]{0,40}polic"
)
_FLAGS = ("flagged_input", "flagged", "content_filter_result", "content_filter_results")
_QUOTA_NAMES = frozenset(
    ["insufficient_quota", "billing_hard_limit_reached", "quota_exceeded", "billing_not_active", "budget_exceeded",
     "insufficient_credits", "insufficient_balance", "payment_required", "arrearage", "credit_exhausted"]
)  # fmt: skip
_QUOTA = re.compile(
    r"insufficient[ _](?:\w+[ _])?(?:quota|balance|credit|fund)|credit balance|(?:no|out of|used all) [^.]{0,30}credit"
    r"|exceeded your (?:\w+ )?quota|purchase (?:more )?credit|payment required|余额不足|欠费"
    r"|(?:budget|spend|spending|monthly|usage|billing)[^.]{0,40}(?:limit|exceed|reached)|exceeded ?budget"
    r"|billing[^.]{0,30}(?:not active|inactive|disabled)|account[^.]{0,40}(?:arrear|overdue|suspended|deactivated)"
    r"|quota[^.]{0,30}(?:exhausted|used up)|not in good standing"
)
_RATE = re.compile(
    r"per[ -](?:second|min|minute|hour|day)|\b[qrt]p[smd]\b|rate.?limit|too many requests|(?:try|retry)[^.]{0,12} in \d"
    r"|concurren"
)
_KEY_NAMES = frozenset(
    ["invalid_api_key", "authentication_error", "unauthenticated", "api_key_invalid", "invalid_authentication",
     "unauthorized", "authentication_fails"]
)  # fmt: skip
_KEY = re.compile(
    r"(?:invalid|incorrect|expired|missing|no|bad|unknown)[^.]{0,12} (?:api.?key|access token|credentials)"
    r"|api.?key[^.]{0,24}(?:not valid|invalid|not found|expired|incorrect|missing|not provided|disabled|revoked)"
    r"|authentication (?:fail|error)"
)
# Names where no number says it, the first that is part of one counts.
_BY_NAME = (
    ("rate_limit", 429), ("too_many", 429), ("resource_exhausted", 429), ("throttl", 429), ("overload", 503),
    ("unavailable", 503), ("timeout", 503), ("server_error", 500), ("internal", 500), ("upstream", 502),
    ("provider", 502), ("permission", 403), ("forbidden", 403), ("not_found", 404), ("invalid_request", 400),
    ("bad_request", 400), ("invalid_argument", 400), ("context_length", 400),
)  # fmt: skip
_IN_WORDS = ((_RATE, 429), (re.compile(r"overload|unavailable|try again|timed? ?out|internal error"), 503))

_FINISHES = (  # what comes first counts
    ("tools", re.compile(r"tool|function")),
    ("length", re.compile(r"length|max|limit|window|truncat|budget")),
    ("filter", re.compile(r"filter|safety|sensitive|moderat|block|prohibit|recit|refus|guardrail|spii|policy")),
    ("error", re.compile(r"error|abort|cancel|timeout|fail|resource|overload|interrupt|kill|disconnect")),
    ("stop", re.compile(r"stop|eos|end|complete|finish|normal|done")),
)
_HINT = re.compile(r"(?:try|retry)[^.]{0,12} in (\d+(?:\.\d+)?) ?(ms|s|sec|seconds?|m|min|minutes?|h|hours?)\b")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def error_object(value: Any) -> dict[str, Any]:
    """The part of a decoded body that says what went wrong, whatever it is called.

    Returns a dict, whose `message` may be empty, for any `value` at all.
    """
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return {"message": "" if value is None else str(value)[:300]}
    error = next((value[name] for name in _INSIDE if value.get(name)), value)
    error = error[0] if isinstance(error, list) and error else error
    if isinstance(error, dict):
        outer = {name: value[name] for name in _NUMBERS if name in value and error is not value}
        message = next((error[name] for name in _MESSAGES if error.get(name)), None)
        return {**outer, **error} | ({"message": message} if message else {})
    return {**{name: value[name] for name in (*_NUMBERS, "type") if name in value}, "message": str(error)}


def has_error(value: dict[str, Any], with_reply: bool) -> bool:
    """Whether a body with status 200 is an error.

    One that carries a reply (`with_reply`) has to say so in so many words.
    """
    error = value.get("error")
    if any(error.values()) if isinstance(error, dict) else error:
        return True
    return not with_reply and bool(
        any(value.get(name) for name in (*_INSIDE[1:], *_MESSAGES)) or _number(value) is not None
    )


def error_code(status: int | None, error: dict[str, Any]) -> tuple[str | None, int | None]:
    """What an `error` of `error_object` says.

    Returns the code that its words give, or None to go by the status; and the status, which is the body's where
    `status` is None or tells less.
    """
    inner = _number(error)
    status = inner if status is None or inner in (402, 429) else status  # a gateway's own status tells less
    names = set(_names(error))
    message = str(error.get("message") or "").lower()[:2000]
    if status is None:
        status = next((number for part, number in _BY_NAME if any(part in name for name in names)), None)
        status = status or next((number for words, number in _IN_WORDS if words.search(message)), None)
    refused = status is None or 400 <= status < 500
    metadata = error.get("metadata")
    marks = {**error, **(metadata if isinstance(metadata, dict) else {})}
    flagged = any(mark in marks for mark in _FLAGS)
    if names & _FILTER_NAMES or flagged or (refused and status != 429 and _FILTER.search(message)):
        return "content_filter", status
    paced = status == 429 and (_RATE.search(message) is not None or retry_hint(error) is not None)
    if "insufficient_quota" in names and not paced:
        return "insufficient_quota", status
    if refused and not paced and (names & _QUOTA_NAMES or _QUOTA.search(message)):
        return "insufficient_quota", status
    if status in (400, 403, None) and (names & _KEY_NAMES or _KEY.search(message)):
        return "http_401", status
    return None, status


def finish_kind(finish: Any) -> str:
    """stop, length, filter, error or tools; "other" for a word that nobody knows or none at all."""
    if not isinstance(finish, str):
        return "other"
    return next((kind for kind, words in _FINISHES if words.search(finish.lower())), "other")


def retry_hint(error: dict[str, Any]) -> float | None:
    """Seconds to wait that stand in the body: in a field, in Google's details, or in a sentence.

    Returns None where nothing says so.
    """
    details = error.get("details")
    places = [error, *(one for one in (details if isinstance(details, list) else [details]) if isinstance(one, dict))]
    metadata = error.get("metadata")
    places += [metadata] if isinstance(metadata, dict) else []
    for place in places:
        for name in ("retry_after", "retryDelay", "retry_after_seconds"):
            found = re.fullmatch(r"(\d+(?:\.\d+)?) ?s?", str(place.get(name, "")))
            if found:
                return float(found.group(1))
    said = _HINT.search(str(error.get("message") or "").lower()[:2000])
    if said is None:
        return None
    unit = said.group(2)
    return float(said.group(1)) * _UNITS["ms" if unit == "ms" else unit[0]]


def _number(error: dict[str, Any]) -> int | None:
    for name in _NUMBERS:
        value = error.get(name)
        if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value.strip()):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return value
    return None


def _names(error: dict[str, Any]) -> Iterator[str]:
    for name in _NAMES:
        value = error.get(name)
        if isinstance(value, str):
            yield value.strip().lower()
        elif isinstance(value, dict):
            yield from (str(one).lower() for one in (value.get("code"), value.get("reason")) if one)


class Outage(Stopped):
    """A teacher answers nobody, for longer than is waited."""


def quota_error(endpoint: EndpointConfig, detail: str) -> Stopped:
    """The endpoint answers no more until somebody pays."""
    return Stopped(
        f"the teacher at {endpoint.base_url} says that the quota is used up ({detail}); all replies are kept: add "
        "quota and run the same command"
    )


def outage_error(endpoint: EndpointConfig, words: str, outage_s: float, wait: float) -> Outage:
    """The endpoint answers nobody, or not before long."""
    if wait > outage_s:
        said = f"asks to come back at {clock_time(wait)}, longer than teacher.outage_s={outage_s:g}"
    else:
        said = f"has answered nobody for teacher.outage_s={outage_s:g} seconds"
    hint = "; where replies take longer, raise teacher.timeout_s" if words.startswith("timeout") else ""
    return Outage(
        f"the teacher {endpoint.model} at {endpoint.base_url} {said}; it says: {words}{hint}. All replies are kept, "
        "and what has none is asked again: run the same command"
    )


def denied_error(endpoint: EndpointConfig, detail: str) -> Stopped:
    """The endpoint refuses us after it had answered: a key that ran out, most likely."""
    return Stopped(
        f"the teacher at {endpoint.base_url} no longer lets us in ({detail}); all replies are kept: look at "
        f"{_key_of(endpoint)} and teacher.model={endpoint.model!r}, and run the same command"
    )


def refusal_error(endpoint: EndpointConfig, code: str, detail: str, answered: bool) -> TailorError:
    """The endpoint refuses one request after another.

    `code` and `detail` are the last outcome's. Had it `answered` before, the same command may go on.
    """
    if code == "http_403":
        return (denied_error if answered else access_error)(endpoint, detail)
    return Stopped(
        f"the teacher {endpoint.model} at {endpoint.base_url} answered and now refuses one request after another "
        f"({code}: {detail}); all replies are kept: mend what it names and run the same command"
    )


def access_error(endpoint: EndpointConfig, detail: str) -> TeacherAccessError:
    """The endpoint refuses us for the whole run: what to look at."""
    return TeacherAccessError(
        f"the teacher refuses us: {detail}; check teacher.base_url={endpoint.base_url!r}, {_key_of(endpoint)} and "
        f"teacher.model={endpoint.model!r}"
    )


def _key_of(endpoint: EndpointConfig) -> str:
    if endpoint.api_key_file is not None:
        return f"the key in {endpoint.api_key_file} (teacher.api_key_file)"
    if endpoint.api_key_env is None:
        return "teacher.api_key_env, by which no key is sent"
    return f"the key in the environment variable {endpoint.api_key_env} (teacher.api_key_env)"


def clock_time(seconds: float) -> str:
    """The time of day in so many seconds, and how long that is."""
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    return f"{until} (in {seconds / 3600:.1f} h)" if seconds >= 3600 else f"{until} (in {seconds / 60:.0f} min)"


def yield_error(
    accepted: str, reasons: Counter[str], words: Mapping[str, str], passing: Container[str], least: float
) -> TailorError:
    """Too few lessons: why the round does not go on, and what to change.

    `accepted` says how many of how many were, `reasons` counts the others, `words` are the server's own by reason,
    `passing` the reasons that another start may not meet. Stopped where it was the server that refused.
    """
    said = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none"
    most = reasons.most_common(1)[0][0] if reasons else ""
    quoted = f" The teacher says: {words[most]}." if most in words else ""
    advice = _ADVICE.get(most, "Look at the requests of this round, mend the prompt or the teacher")
    refused = most in passing and most not in _ADVICE
    return (Stopped if refused else StageError)(
        f"only {accepted} lessons were accepted, below teacher.min_accepted_share={least}; reasons: {said}.{quoted} "
        f"{'Mend that and run the same command' if refused else advice}, or lower the setting"
    )


def undecided_error(words: Sequence[str], max_attempts: int) -> Stopped:
    """All else is done, and some requests have no verdict.

    `words` are the last ones said to each, after `max_attempts` attempts.
    """
    return Stopped(
        f"{len(words)} requests got no reply in teacher.max_attempts={max_attempts} attempts; most say: "
        f"{Counter(words).most_common(1)[0][0]}. All replies are kept: run the same command, which asks these again; "
        "what fails again then, while others are answered, counts as failed"
    )
