"""The ways in which the mock teacher can fail, each as a real server does it on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

DRIP_S = 1.0
REASONING_TOKENS = 32  # thought before each reply, where an effort is asked for


@dataclass(frozen=True, slots=True)
class Call:
    """One call and the reply that it would get."""

    request: web.Request | None  # None for a line of a batch
    body: dict[str, Any]
    text: str
    prompt_tokens: int

    @property
    def reasoning_tokens(self) -> int:
        return REASONING_TOKENS if self.body.get("reasoning_effort") not in (None, "none") else 0

    @property
    def output_tokens(self) -> int:
        return len(self.text) // 4 + 1 + self.reasoning_tokens


@dataclass(frozen=True, slots=True)
class Fault:
    status: int
    serve: Callable[[Call], Awaitable[web.StreamResponse]]


def completion(call: Call, finish_reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion as the API documents it; `message` replaces fields of the message."""
    return {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 0,
        "model": call.body.get("model"),
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": call.text, "refusal": None, **message},
            }
        ],
        "usage": {
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.output_tokens,
            "total_tokens": call.prompt_tokens + call.output_tokens,
            "completion_tokens_details": {"reasoning_tokens": call.reasoning_tokens},
        },
    }


def error_response(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": code, "code": code}}, status=status, headers=headers
    )


async def _cut(call: Call) -> web.StreamResponse:
    """Valid headers and the first half of the JSON, with a length to match: only reading it shows the damage."""
    data = json.dumps(completion(call)).encode()
    return web.Response(body=data[: len(data) // 2], content_type="application/json")


async def _short(call: Call) -> web.StreamResponse:
    """A body that ends before its announced length."""
    data = json.dumps(completion(call)).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(data)), "Content-Type": "application/json"})
    await response.prepare(_connection(call))
    await response.write(data[: len(data) // 2])
    _hang_up(call)
    return response


async def _drip(call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(_connection(call))
    for byte in json.dumps(completion(call)).encode():
        await response.write(bytes([byte]))
        await asyncio.sleep(DRIP_S)
    return response


async def _hang(call: Call) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.json_response(completion(call))


async def _reset(call: Call) -> web.StreamResponse:
    _hang_up(call)
    return web.Response(status=500)


def _connection(call: Call) -> web.Request:
    if call.request is None:
        raise ValueError("this fault needs a connection")
    return call.request


def _hang_up(call: Call) -> None:
    if call.request is not None and call.request.transport is not None:
        call.request.transport.abort()


def _error(status: int, code: str, headers: dict[str, str] | None = None) -> Fault:
    async def serve(_: Call) -> web.StreamResponse:
        return error_response(status, f"fault on demand: {code}", code, headers)

    return Fault(status, serve)


def _json(make: Callable[[Call], Any]) -> Fault:
    async def serve(call: Call) -> web.StreamResponse:
        return web.json_response(make(call))

    return Fault(200, serve)


def _text(text: str, content_type: str) -> Fault:
    async def serve(_: Call) -> web.StreamResponse:
        return web.Response(text=text, content_type=content_type)

    return Fault(200, serve)


# Those that a line of a batch can meet: they need no connection.
IN_BATCHES = frozenset(
    ["500", "503", "429", "quota", "400", "401", "403", "404", "413", "422", "empty", "null_choices", "no_finish",
     "no_content", "content_filter", "refusal", "length"]
)  # fmt: skip

FAULTS: dict[str, Fault] = {
    "500": _error(500, "server_error"),
    "503": _error(503, "overloaded", {"Retry-After": "1"}),
    "429": _error(429, "rate_limit_exceeded"),
    "quota": _error(429, "insufficient_quota"),
    "400": _error(400, "invalid_request_error"),
    "401": _error(401, "invalid_api_key"),
    "403": _error(403, "permission_denied"),
    "404": _error(404, "model_not_found"),
    "408": _error(408, "request_timeout"),
    "409": _error(409, "conflict"),
    "413": _error(413, "request_too_large"),
    "422": _error(422, "unprocessable"),
    "425": _error(425, "too_early"),
    "truncated": Fault(200, _cut),
    "short": Fault(200, _short),
    "drip": Fault(200, _drip),
    "hang": Fault(200, _hang),
    "reset": Fault(0, _reset),
    "html": _text("<html><body>It works!</body></html>", "text/html"),
    "html_as_json": _text("<html><body>It works!</body></html>", "application/json"),
    "empty": _json(lambda _: {}),
    "null_choices": _json(lambda call: completion(call) | {"choices": None}),
    "no_finish": _json(lambda call: completion(call, None)),
    "no_content": _json(lambda call: completion(call, content=None)),
    "content_filter": _json(lambda call: completion(call, "content_filter", content="")),
    "refusal": _json(lambda call: completion(call, content=None, refusal="I cannot help with that.")),
    "length": _json(lambda call: completion(call, "length", content=call.text[: len(call.text) // 2])),
}
