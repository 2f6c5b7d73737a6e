"""One request to a teacher, and the key under which the ledger keeps its reply.

The key is the SHA-256 of canonical JSON of all that decides the reply: the kind of endpoint, the model, messages,
sampling parameters and the sample index. Where the endpoint is, how often it is retried and who asks is left out, and
so is the cap: an answer that fits under one cap is the answer under every higher one. So changing those pays for
nothing again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.teacher.outcomes import encodable

ENDPOINT = "/v1/chat/completions"
CAPS = ("max_tokens", "max_completion_tokens")
NOT_IN_KEY = frozenset([*CAPS, "service_tier"])

# Chat templates add a few tokens around each message and at the end; 16 is above all that are published.
TOKENS_PER_MESSAGE = 16


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """What is sent (`body`, canonical JSON), and what the pool must know to order, limit and pay for it.

    `sent_as` is the hash of all that is sent, its cap too: what goes along for servers that tell retries by it, and
    the key of ledgers made before 0.2.
    """

    key: str
    model: str
    body: str
    question_id: str
    round: int
    priority: tuple[float, int, str]  # smaller goes first
    prompt_tokens: int  # an upper bound
    max_tokens: int
    sent_as: str = field(default="", compare=False)

    @property
    def worst_tokens(self) -> int:
        return self.prompt_tokens + self.max_tokens


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def request_key(body: dict[str, Any], sample: int, whole: bool = False) -> str:
    """The key of a request; `whole` takes in what does not decide the reply."""
    body = body if whole else {name: value for name, value in body.items() if name not in NOT_IN_KEY}
    document = canonical({"endpoint": ENDPOINT, "body": body, "sample": sample})
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()


def cap_of(body: str) -> int:
    """The cap that a body was sent with; 0 where it says none."""
    try:
        fields = json.loads(body)
        return max(int(fields.get(name) or 0) for name in CAPS)
    except (ValueError, TypeError, AttributeError):
        return 0


def make_request(
    endpoint: EndpointConfig,
    messages: list[dict[str, str]],
    response_format: dict[str, Any] | None,
    *,
    sample: int,
    question_id: str,
    round_: int,
    priority: tuple[float, int, str],
    max_tokens: int | None = None,
) -> TeacherRequest:
    """Join messages with the endpoint's parameters; settings that are None are not sent. `max_tokens` in its place."""
    cap = endpoint.max_tokens if max_tokens is None else max_tokens
    optional = {
        "temperature": endpoint.temperature,
        "top_p": endpoint.top_p,
        "reasoning_effort": endpoint.reasoning_effort,
        "response_format": response_format,
        "service_tier": endpoint.service_tier,
        "chat_template_kwargs": endpoint.chat_template_kwargs or None,
    }
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages, endpoint.cap_parameter: cap}
    body.update({name: value for name, value in optional.items() if value is not None})
    body.update(endpoint.extra_body)
    return TeacherRequest(
        key=request_key(body, sample),
        model=endpoint.model,
        body=encodable(canonical(body)),
        question_id=question_id,
        round=round_,
        priority=priority,
        prompt_tokens=prompt_bound(messages, response_format),
        max_tokens=cap,
        sent_as=request_key(body, sample, whole=True),
    )


def prompt_bound(messages: list[dict[str, str]], response_format: dict[str, Any] | None) -> int:
    """Never fewer tokens than the prompt has: byte-level tokenizers make at most one token of a byte."""
    contents = sum(len(m["content"].encode("utf-8", "replace")) + TOKENS_PER_MESSAGE for m in messages)
    return contents + (len(canonical(response_format)) if response_format else 0) + TOKENS_PER_MESSAGE
