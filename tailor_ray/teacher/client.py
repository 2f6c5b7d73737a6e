"""`Sender`: one attempt at one request, over one AsyncOpenAI client with the aiohttp transport.

In: a request's body. Out: always an Outcome, never an exception of the network. Each attempt has a wall-clock bound
whatever the server does, is sent once (the client's own retries are off), and the raw response is read by
`outcomes`, so that nothing the package would let pass is taken for a reply. The key is read on this node and occurs
in no outcome.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.errors import TeacherAccessError
from tailor_ray.teacher.outcomes import Checked, Outcome, check_reply, check_status

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI


def read_key(endpoint: EndpointConfig) -> str:
    """The key as this node has it. Raises TeacherAccessError naming the setting; a loopback endpoint needs none."""
    if endpoint.api_key_file is not None:
        where = f"teacher.api_key_file={endpoint.api_key_file!r}"
        try:
            key = Path(endpoint.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "it is not text"
            raise TeacherAccessError(f"{where} cannot be read on this node: {said}") from None
    else:
        where = f"the environment variable {endpoint.api_key_env} (teacher.api_key_env)"
        key = os.environ.get(endpoint.api_key_env, "").strip()
    if key and not all("!" <= character <= "~" for character in key):
        # The client would refuse it by an error that shows it.
        raise TeacherAccessError(
            f"the key in {where} cannot be sent: a key is one line of ASCII letters, digits and signs, without spaces"
        )
    if key:
        return key
    if endpoint.is_loopback:
        return "none-needed-on-loopback"
    raise TeacherAccessError(
        f"no key for {endpoint.base_url}: the environment variable {endpoint.api_key_env} is not set on this node; "
        "set it there, or name another by teacher.api_key_env, or a file by teacher.api_key_file"
    )


def open_client(endpoint: EndpointConfig, connections: int) -> AsyncOpenAI:
    """A client that never retries by itself; proxies of the environment are not used for loopback addresses."""
    import httpx2
    from openai import AsyncOpenAI, DefaultAioHttpClient

    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    transport = DefaultAioHttpClient(limits=limits, timeout=None, trust_env=not endpoint.is_loopback)
    return AsyncOpenAI(
        base_url=endpoint.base_url, api_key=read_key(endpoint), max_retries=0, timeout=None, http_client=transport
    )


class Sender:
    """Sends to one endpoint. Use it inside one event loop, and close it there."""

    def __init__(self, endpoint: EndpointConfig, connections: int) -> None:
        self._endpoint = endpoint
        self._key = read_key(endpoint)
        self._client = open_client(endpoint, connections)

    async def attempt(self, key: str, body: str) -> Outcome:
        """Send once; at most `timeout_s` of wall-clock time. The key goes along, so that a server may tell retries."""
        import httpx2

        sent, start = time.time(), time.monotonic()
        options: Any = {"headers": {"Idempotency-Key": key}}
        call = self._client.post("/chat/completions", body=json.loads(body), cast_to=httpx2.Response, options=options)
        got = await bounded(call, self._endpoint.timeout_s)
        checked = check_reply(got.body) if got.failed is None else got.failed
        return Outcome(
            key=key,
            code=checked.code,
            detail=checked.detail.replace(self._key, "***"),
            text=checked.text,
            finish_reason=checked.finish_reason,
            usage=checked.usage,
            retry_after=got.retry_after,
            sent=sent,
            seconds=time.monotonic() - start,
        )

    async def close(self) -> None:
        await self._client.close()


@dataclass(frozen=True, slots=True)
class Got:
    """A 2xx answer's body, or how the call failed."""

    body: bytes = b""
    failed: Checked | None = None
    retry_after: float | None = None


async def bounded(call: Awaitable[httpx2.Response], timeout_s: float) -> Got:
    """Await one call of the client for at most `timeout_s`; every way in which a network can fail becomes a Got."""
    import aiohttp
    import httpx2
    import openai

    try:
        async with asyncio.timeout(timeout_s):
            return Got((await call).content)
    except TimeoutError:
        return Got(failed=Checked("timeout", f"no whole reply in teacher.timeout_s={timeout_s}"))
    except openai.APIStatusError as error:
        checked = check_status(error.status_code, error.response.content)
        return Got(failed=checked, retry_after=retry_after(error.response.headers))
    except openai.APIConnectionError as error:  # also its subclass for time-outs
        return Got(failed=_connection_failure(error))
    except (openai.OpenAIError, aiohttp.ClientError, httpx2.HTTPError, OSError) as error:
        return Got(failed=Checked("lost_connection", f"{type(error).__name__}: {error}"[:300]))


def retry_after(headers: object, now: float | None = None) -> float | None:
    """Seconds that the server asks to wait: retry-after-ms, or Retry-After in seconds or as a date; None if absent."""
    get = headers.get  # type: ignore[attr-defined]
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = get(name)
        if value is None:
            continue
        try:
            return min(max(float(value) * scale, 0.0), 3600.0)
        except ValueError:
            pass
        try:
            until = parsedate_to_datetime(value).timestamp()
        except ValueError:
            continue
        return min(max(until - (time.time() if now is None else now), 0.0), 3600.0)
    return None


def _connection_failure(error: BaseException) -> Checked:
    """By aiohttp's own exception at the end of the chain: the transport maps several of them to one."""
    import aiohttp

    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    code = "lost_connection"
    if any(isinstance(one, aiohttp.ClientConnectorError) for one in chain):
        code = "refused_connection"
    elif isinstance(chain[-1], TimeoutError):
        code = "timeout"
    return Checked(code, f"{type(chain[-1]).__name__}: {chain[-1]}"[:300])
