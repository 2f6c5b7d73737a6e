"""A request to a teacher, its key in the ledger, and `Sender`, which makes one attempt at it.

The key is a SHA-256 of canonical JSON. It covers all that decides the reply: endpoint's kind, model, messages, sampling
parameters and sample index. It leaves out where the endpoint is, how often it is retried and who asks. It leaves out
the cap too. An answer that fits under one cap is the answer under every higher one. So changing those pays for nothing
again.

An attempt always ends as an Outcome, never as an exception of the network. It has a wall-clock bound whatever the
server does and is sent once. What goes along is what the endpoint's settings name. Nothing else of the environment is
sent but its proxies and certificates. Keys are read on this node and occur in no outcome.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import resource
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.errors import TeacherAccessError
from tailor_ray.teacher.outcomes import Outcome, check_reply, check_status, encodable

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

ENDPOINT = "/v1/chat/completions"
CAPS = ("max_tokens", "max_completion_tokens")
NOT_IN_KEY = frozenset([*CAPS, "service_tier"])

# Chat templates add a few tokens around each message and at the end; 16 is above all that are published.
TOKENS_PER_MESSAGE = 16
LONGEST_WAIT_S = 30 * 86400.0  # a Retry-After beyond it is no number to reckon with
FILES_BESIDE = 128  # descriptors that a process needs for what is no connection


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
    """The key of the request `body`, a SHA-256 in hex.

    `sample` tells apart several requests for the same. `whole` takes in what does not decide the reply.
    """
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
    """Join messages with the endpoint's parameters; settings that are None are not sent.

    `sample` tells apart several requests for the same, and is part of the key. Requests with a smaller `priority` go
    first. `max_tokens` takes the place of the endpoint's cap.
    """
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
    """Never fewer tokens than the prompt has.

    Byte-level tokenizers make at most one token of a byte.
    """
    contents = sum(len(m["content"].encode("utf-8", "replace")) + TOKENS_PER_MESSAGE for m in messages)
    return contents + (len(canonical(response_format)) if response_format else 0) + TOKENS_PER_MESSAGE


def read_key(endpoint: EndpointConfig) -> str:
    """The key as this node has it, "" where none is to be sent.

    Raises TeacherAccessError naming the setting; a loopback endpoint needs none.
    """
    if endpoint.api_key_file is not None:
        where = f"teacher.api_key_file={endpoint.api_key_file!r}"
        try:
            key = Path(endpoint.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "it is not text"
            raise TeacherAccessError(f"{where} cannot be read on this node: {said}") from None
    elif endpoint.api_key_env is None:
        return ""
    else:
        where = f"the environment variable {endpoint.api_key_env} (teacher.api_key_env)"
        key = os.environ.get(endpoint.api_key_env, "").strip()
    if key:
        _check_sendable(key, where)
        return key
    if endpoint.is_loopback:
        return "none-needed-on-loopback"
    raise TeacherAccessError(
        f"no key for {endpoint.base_url}: the environment variable {endpoint.api_key_env} is not set on this node; "
        "set it there, name another by teacher.api_key_env (null sends none), or a file by teacher.api_key_file"
    )


def _check_sendable(secret: str, where: str) -> None:
    """A client would refuse it by an error that shows it."""
    if not all("!" <= character <= "~" for character in secret):
        raise TeacherAccessError(
            f"the key in {where} cannot be sent: a key is one line of ASCII letters, digits and signs, without spaces"
        )


def read_secrets(endpoint: EndpointConfig) -> dict[str, str]:
    """The secret headers of the endpoint as this node has them, its key among them.

    Raises TeacherAccessError naming what is missing, or what no header can carry.
    """
    key = read_key(endpoint)
    bearer = endpoint.api_key_header.lower() == "authorization"
    headers = {endpoint.api_key_header: f"Bearer {key}" if bearer else key} if key else {}
    for header, variable in endpoint.extra_headers_env.items():
        value = os.environ.get(variable, "").strip()
        if not value:
            raise TeacherAccessError(
                f"the environment variable {variable} is not set on this node; teacher.extra_headers_env names it for "
                f"the header {header} of {endpoint.base_url}"
            )
        _check_sendable(value, f"the environment variable {variable} (teacher.extra_headers_env)")
        headers[header] = value
    return headers


class Redactor:
    """Takes an endpoint's secrets out of what is said of it."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self._secrets = {value.removeprefix("Bearer ") for value in read_secrets(endpoint).values()}

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class Sender:
    """Sends to one endpoint. Use it inside one event loop, and close it there."""

    def __init__(self, endpoint: EndpointConfig, connections: int) -> None:
        """Open at most `connections` at once; proxies of the environment are not used for loopback addresses.

        Raises TeacherAccessError where a key is missing on this node, or is none that a header can carry.
        """
        import httpx2
        from openai import DefaultAioHttpClient

        self._endpoint = endpoint
        self._redact = Redactor(endpoint)
        self._url = endpoint.base_url.rstrip("/")
        self._client: httpx2.AsyncClient = DefaultAioHttpClient(
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"Content-Type": "application/json", **endpoint.extra_headers, **read_secrets(endpoint)},
            params=endpoint.default_query,
            timeout=None,
            trust_env=not endpoint.is_loopback,
        )

    async def attempt(self, key: str, body: str, sent_as: str | None = None) -> Outcome:
        """Send `body` once and wait for its whole reply, at most `timeout_s` of wall-clock time.

        `key` is the request's, and comes back in the outcome; `sent_as` lets servers tell retries.
        """
        sent, start = time.time(), time.monotonic()
        headers = {"Idempotency-Key": sent_as or key}
        call = self._client.post(f"{self._url}/chat/completions", content=body.encode(), headers=headers)
        got = await bounded(call, self._endpoint.timeout_s)
        if isinstance(got, Outcome):
            outcome = got
        else:
            outcome = check_reply(got.content) if got.is_success else check_status(got.status_code, got.content)
            wait = retry_after(got.headers)
            outcome = outcome if wait is None else replace(outcome, retry_after=wait)
        seconds = time.monotonic() - start
        return replace(outcome, key=key, detail=self._redact(outcome.detail), sent=sent, seconds=seconds)

    async def models(self, timeout_s: float) -> bytes:
        """What the endpoint says of its models; b"" where it says nothing."""
        got = await bounded(self._client.get(f"{self._url}/models"), timeout_s)
        return b"" if isinstance(got, Outcome) or not got.is_success else got.content

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def send_once(endpoint: EndpointConfig, request: TeacherRequest) -> Outcome:
    """Make one attempt from a thread without an event loop; nothing of it is written down."""

    async def attempt() -> Outcome:
        async with Sender(endpoint, connections=1) as sender:
            return await sender.attempt(request.key, request.body, request.sent_as)

    return asyncio.run(attempt())


async def bounded(call: Awaitable[httpx2.Response], timeout_s: float) -> httpx2.Response | Outcome:
    """Await one `call` of the client for at most `timeout_s` seconds.

    Returns the response, or how the network failed.
    """
    import aiohttp
    import httpx2

    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except TimeoutError:
        return Outcome("timeout", f"no whole reply in teacher.timeout_s={timeout_s:g}")
    except (aiohttp.ClientError, httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return _connection_failure(error)


def retry_after(headers: object, now: float | None = None) -> float | None:
    """Seconds that the server asks to wait: retry-after-ms, or Retry-After in seconds or as a date.

    `headers` is a mapping that knows no case; `now` is the UNIX time, the clock's if None. None where neither is there.
    """
    get = headers.get  # type: ignore[attr-defined]
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            pass
        else:
            return None if seconds != seconds else min(max(seconds, 0.0), LONGEST_WAIT_S)  # not a number
        try:
            until = parsedate_to_datetime(value).timestamp()
        except ValueError:
            continue
        return min(max(until - (time.time() if now is None else now), 0.0), LONGEST_WAIT_S)
    return None


def connections_that_fit(wanted: int) -> int:
    """How many of the `wanted` connections this process can hold.

    It raises the process's limit of open files as far as it may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted + FILES_BESIDE:
        return wanted
    most = wanted + FILES_BESIDE if hard == resource.RLIM_INFINITY else min(wanted + FILES_BESIDE, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    fit = min(wanted, max(most - FILES_BESIDE, most // 2))
    if fit < wanted:
        said = "this process may open %d files: %d calls at once, and not %d; raise `ulimit -n`"
        log.warning(said, most, fit, wanted)
    return fit


def _connection_failure(error: BaseException) -> Outcome:
    """By the errors at the end of the chain: the transport maps several of them to one."""
    import aiohttp

    chain = [error]
    while (below := chain[-1].__cause__ or getattr(chain[-1], "os_error", None)) is not None and below not in chain:
        chain.append(below)
    said = f"{type(chain[-1]).__name__}: {chain[-1]}"[:300]
    if any(isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE) for one in chain):
        return Outcome("no_sockets", f"this process may open no more files ({said})")
    if any(isinstance(one, aiohttp.ClientConnectorCertificateError) for one in chain):
        return Outcome("bad_certificate", said)
    proxy = next((one for one in chain if isinstance(one, aiohttp.ClientHttpProxyError)), None)
    if proxy is not None and proxy.status == 407:
        return Outcome("http_407", f"a proxy on the way wants a user and a password: {said}")
    if proxy is not None or any(isinstance(one, aiohttp.ClientConnectorError) for one in chain):
        return Outcome("refused_connection", said)
    return Outcome("timeout" if isinstance(chain[-1], TimeoutError) else "lost_connection", said)
