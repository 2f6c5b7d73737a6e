"""One request to a teacher, and the key under which the ledger keeps its reply.

The key is the SHA-256 of canonical JSON of all that decides the reply: the kind of endpoint, the model, messages,
sampling parameters and the sample index. Where the endpoint is, how often it is retried and who asks is left out, so
that changing those pays for nothing again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.teacher.outcomes import encodable

ENDPOINT = "/v1/chat/completions"

# Chat templates add a few tokens around each message and at the end; 16 is above all that are published.
_TOKENS_A_MESSAGE = 16


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """What is sent (`body`, canonical JSON), and what the pool must know to order, limit and pay for it."""

    key: str
    model: str
    body: str
    question_id: str
    round: int
    priority: tuple[float, int, str]  # smaller goes first
    prompt_tokens: int  # an upper bound
    max_tokens: int

    @property
    def worst_tokens(self) -> int:
        return self.prompt_tokens + self.max_tokens


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def request_key(body: dict[str, Any], sample: int) -> str:
    document = canonical({"endpoint": ENDPOINT, "body": body, "sample": sample})
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()


def make_request(
    endpoint: EndpointConfig,
    messages: list[dict[str, str]],
    response_format: dict[str, Any] | None,
    *,
    sample: int,
    question_id: str,
    round_: int,
    priority: tuple[float, int, str],
) -> TeacherRequest:
    """Join messages with the endpoint's sampling parameters; settings that are None are not sent."""
    optional = {
        "temperature": endpoint.temperature,
        "top_p": endpoint.top_p,
        "reasoning_effort": endpoint.reasoning_effort,
        "response_format": response_format,
    }
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages, endpoint.cap_parameter: endpoint.max_tokens}
    body.update({name: value for name, value in optional.items() if value is not None})
    return TeacherRequest(
        key=request_key(body, sample),
        model=endpoint.model,
        body=encodable(canonical(body)),
        question_id=question_id,
        round=round_,
        priority=priority,
        prompt_tokens=prompt_bound(messages, response_format),
        max_tokens=endpoint.max_tokens,
    )


def prompt_bound(messages: list[dict[str, str]], response_format: dict[str, Any] | None) -> int:
    """Never fewer tokens than the prompt has: byte-level tokenizers make at most one token of a byte."""
    contents = sum(len(m["content"].encode("utf-8", "replace")) + _TOKENS_A_MESSAGE for m in messages)
    return contents + (len(canonical(response_format)) if response_format else 0) + _TOKENS_A_MESSAGE
