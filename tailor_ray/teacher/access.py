"""Is the teacher there, and does it know us? Asked once, before the first exam is spent."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import httpx2

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.teacher.client import bounded, open_client, read_key
from tailor_ray.teacher.dispatch import access_error, quota_error
from tailor_ray.teacher.outcomes import Fate
from tailor_ray.teacher.pricing import check_prices

TRIES = 3
PROBE_S = 20.0


def check_access(config: TeacherConfig) -> None:
    """Look up the model at each endpoint from this machine (GET /models/MODEL, which costs nothing).

    Raises TeacherAccessError when the endpoint refuses connections, the key or the model, Stopped when the quota is
    used up, and ConfigError when a dollar budget is set without a price. A server that is busy, or that does not offer
    this address, passes: the first request will tell.
    """
    check_prices(config)
    for endpoint in config.endpoints:
        if endpoint.serve is not None:  # the cluster's own, which is not up yet
            continue
        asyncio.run(_check(endpoint))


async def _check(endpoint: EndpointConfig) -> None:
    client = open_client(endpoint, connections=1)
    try:
        for number in range(TRIES):
            got = await bounded(client.get(f"/models/{quote(endpoint.model)}", cast_to=httpx2.Response), PROBE_S)
            if got.failed is None:
                return
            detail = got.failed.detail.replace(read_key(endpoint), "***")
            fate = got.failed.rule.fate
            if fate is Fate.QUOTA:
                raise quota_error(endpoint, detail)
            if fate is Fate.ACCESS and (got.failed.code != "http_404" or "model" in detail.lower()):
                raise access_error(endpoint, detail)
            if fate is not Fate.RETRY or got.failed.code.startswith("http_"):
                return
            if number + 1 < TRIES:
                await asyncio.sleep(0.5 * 2**number)
        raise access_error(endpoint, f"no answer after {TRIES} tries, the last one: {detail}")
    finally:
        await client.close()
