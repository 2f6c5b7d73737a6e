"""What the mock teacher says to a call: a reply made from the prompt alone, or a fault as a real server has it.

In: a chat request's body. Out: the reply's text, which `completion` puts into the API's form. The question and the
student's attempt are taken out of the prompt. Arithmetic is solved; other questions are looked up in recorded
rationales. A first lesson goes the usual way, another one a way that was not shown. A correction follows the student's
way, in other words than the first lesson's. Whether an answer is to be wrong is said by the caller. The same request
gives the same reply. FAULTS are the ways in which a call can fail on the wire.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from tailor_ray.demo.arithmetic import FaultyStep, Solution, first_fault, other_ways, solve
from tailor_ray.errors import DataError
from tailor_ray.prompts.teacher import section, with_choices
from tailor_ray.records import Question

_LAST_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?=\D*\Z)")
STYLES = 3
OPENERS = ("", "Then ", "So ")  # of a step that the student's words are followed by
DRIP_S = 1.0
REASONING_TOKENS = 32  # thought before each reply, where an effort is asked for


@dataclass(frozen=True, slots=True)
class Known:
    """A question's way to its answer. `feedback` says where an attempt goes wrong, `wrong_step` is its first wrong step
    word for word."""

    rationale: str
    answer: str
    feedback: str
    wrong_step: str = ""


class Answers:
    """Recorded rationales by question text."""

    def __init__(self, rows: Mapping[str, tuple[str, str]]) -> None:
        self._rows = rows

    @classmethod
    def read(cls, path: str) -> Answers:
        """Read the JSONL file at `path`.

        Its fields are question, answer, rationale (null: a short statement) and, if any, choices. Raises DataError with
        the line that cannot be read.
        """
        rows = {}
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"the mock teacher's answers {path} cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                choices = json.dumps(row["choices"]) if row.get("choices") else None
                question = Question("", str(row["question"]), str(row["answer"]), choices)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: needs question and answer ({error})") from None
            rationale = row.get("rationale") or f"Working through the question gives {question.answer}."
            rows[_spaces(with_choices(question))] = (rationale, question.answer)
        return cls(rows)

    def find(self, question: str, attempt: str) -> Known | None:
        row = self._rows.get(_spaces(question))
        if row is None:
            return None
        rationale, answer = row
        found = _LAST_NUMBER.search(attempt)
        ends = f"It ends with {found.group(0)}" if found else "It reaches no answer"
        first = attempt.strip().partition("\n")[0]
        return Known(rationale, answer, f"{ends}, where the steps lead to {answer}.", first)


def compose(body: Mapping[str, Any], answers: Answers | None, wrong: bool, draw: int) -> str:
    """The reply to the request `body`.

    Where there are `answers` the question is looked up, else solved. `wrong` asks for another conclusion. `draw` is a
    number of the request's hash, by which wordings and errors vary.
    """
    messages: Sequence[Mapping[str, Any]] = body.get("messages", [])
    question = section(messages, "question") or _last_user(messages)
    attempt, earlier = section(messages, "attempt"), section(messages, "earlier")
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    continues = "wrong_step" in (schema or {}).get("properties", {}) or "<wrong_step>" in _last_user(messages[:2])
    if answers:
        known = answers.find(question, attempt or "")
    elif attempt is None:
        known = _solve(question, earlier or "", draw)
    else:
        known = _correct(question, attempt, continues, draw)
    reasoning = section(messages, "reasoning")
    if reasoning is not None:
        right = known is not None and known.answer in reasoning
        says = "It reaches the right answer step by step." if right else "It does not reach the right answer."
        return f"<reasons>{says}</reasons>\n<score>{5 if right else 1}</score>"
    if known is None:
        known = Known("This question is not one that I can solve.", "unknown", "The question is not clear to me.")
    if wrong:
        known = _spoil(known, draw)
    if schema:
        return json.dumps({name: getattr(known, name, "") for name in schema.get("properties", {})})
    first = f"<feedback>{known.feedback}</feedback>\n" if attempt is not None else ""
    first += f"<wrong_step>{known.wrong_step}</wrong_step>\n" if continues else ""
    return f"{first}<rationale>{known.rationale}</rationale>\n<answer>{known.answer}</answer>"


def _solve(question: str, earlier: str, draw: int) -> Known | None:
    """A rationale in the question's first words; where some were given earlier, one that is none of them: by another
    route as long as there is one, else in the usual one's other words."""
    styles = [solve(question, _first_style(question) + more) for more in range(STYLES)]
    usual = [solution for solution in styles if solution is not None]
    if not usual:
        return None
    new = [[way for way in ways if way.rationale not in earlier] for ways in (other_ways(question), usual)]
    ways = (new[0] or new[1]) if earlier else []
    chosen = ways[draw % len(ways)] if ways else usual[0]
    return Known(chosen.rationale, chosen.answer, "")


def _first_style(question: str) -> int:
    """Which of the usual wordings a question's first lesson has, so that a correction can choose another."""
    return zlib.crc32(question.encode()) % STYLES


def _correct(question: str, attempt: str, continues: bool, draw: int) -> Known | None:
    """What is wrong by the route that the attempt follows longest, and the correction by it: in other words than the
    first lesson's, or going on from the student's."""
    solution = solve(question, _first_style(question) + 1 + draw % (STYLES - 1))
    if solution is None:
        return None
    routes = [(one, first_fault(one, attempt)) for one in (solution, *other_ways(question))]
    nearest, fault = max(routes, key=lambda route: route[1].done)  # of equals the usual one
    kept = attempt[: fault.start].rstrip()
    if continues and (kept.strip() or fault.slip):
        rationale = f"{kept.lstrip()} {_rest(nearest, fault, draw)}".strip()
    else:
        rationale = nearest.rationale
    return Known(rationale, solution.answer, fault.said, fault.step)


def _rest(solution: Solution, fault: FaultyStep, draw: int) -> str:
    """The steps from the first wrong one on; a slip stands within a sentence."""
    opener = OPENERS[draw % len(OPENERS)]
    steps = [f"{opener}{step}." for step in solution.steps[fault.done :]]
    return " ".join([steps[0].removeprefix(opener), *steps[1:]] if fault.slip else steps)


def _spoil(known: Known, draw: int) -> Known:
    """The same way with another conclusion."""
    flipped = {"yes": "no", "no": "yes"}
    letters = "abcde"
    answer = known.answer
    if answer.lower() in flipped:
        other = flipped[answer.lower()]
    elif answer.lower() in letters:
        other = letters[(letters.index(answer.lower()) + 1 + draw % 4) % 5]
    else:
        try:
            other = f"{float(answer.replace(',', '')) + 1 + draw % 9:g}"
        except ValueError:
            other = f"not {answer}"
    rationale = re.sub(rf"(?<![\w.]){re.escape(answer)}(?![\w.]*\w)", other, known.rationale)
    return Known(rationale, other, known.feedback, known.wrong_step)


def _last_user(messages: Sequence[Mapping[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return ""


def _spaces(text: str) -> str:
    return " ".join(text.split())


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
class MockFault:
    status: int
    serve: Callable[[Call], Awaitable[web.StreamResponse]]


def completion(call: Call, finish_reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion of the `call`'s text, as the API documents it.

    `message` replaces fields of the message.
    """
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


async def cut(call: Call) -> web.StreamResponse:
    """Valid headers and the first half of the JSON, with a length to match: only reading it shows the damage."""
    data = json.dumps(completion(call)).encode()
    return web.Response(body=data[: len(data) // 2], content_type="application/json")


async def short(call: Call) -> web.StreamResponse:
    """A body that ends before its announced length."""
    data = json.dumps(completion(call)).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(data)), "Content-Type": "application/json"})
    await response.prepare(_connection(call))
    await response.write(data[: len(data) // 2])
    _hang_up(call)
    return response


async def drip(call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(_connection(call))
    for byte in json.dumps(completion(call)).encode():
        await response.write(bytes([byte]))
        await asyncio.sleep(DRIP_S)
    return response


async def hang(call: Call) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.json_response(completion(call))


async def reset(call: Call) -> web.StreamResponse:
    _hang_up(call)
    return web.Response(status=500)


def _connection(call: Call) -> web.Request:
    if call.request is None:
        raise ValueError("this fault needs a connection")
    return call.request


def _hang_up(call: Call) -> None:
    if call.request is not None and call.request.transport is not None:
        call.request.transport.abort()


def _error(status: int, code: str, headers: dict[str, str] | None = None) -> MockFault:
    async def serve(_: Call) -> web.StreamResponse:
        return error_response(status, f"fault on demand: {code}", code, headers)

    return MockFault(status, serve)


def _json(make: Callable[[Call], Any]) -> MockFault:
    async def serve(call: Call) -> web.StreamResponse:
        return web.json_response(make(call))

    return MockFault(200, serve)


def _text(text: str, content_type: str) -> MockFault:
    async def serve(_: Call) -> web.StreamResponse:
        return web.Response(text=text, content_type=content_type)

    return MockFault(200, serve)


# Those that a line of a batch can meet: they need no connection.
IN_BATCHES = frozenset(
    ["500", "503", "429", "quota", "400", "401", "403", "404", "413", "422", "empty", "null_choices", "no_finish",
     "no_content", "content_filter", "refusal", "length"]
)  # fmt: skip

FAULTS: dict[str, MockFault] = {
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
    "truncated": MockFault(200, cut),
    "short": MockFault(200, short),
    "drip": MockFault(200, drip),
    "hang": MockFault(200, hang),
    "reset": MockFault(0, reset),
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
