"""The OpenAI Batch API, call by call: upload and submit, find, look, read. Calls are retried here, and only here.

A batch is named by its maker in its metadata, so that it can be found when nobody wrote its id down.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai
from tenacity import before_sleep_log, retry, retry_if_exception, stop_after_delay, wait_random_exponential

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.errors import StageError
from tailor_ray.teacher.client import read_key
from tailor_ray.teacher.dispatch import access_error, quota_error
from tailor_ray.teacher.outcomes import Checked, Fate, check_completion, check_status

log = logging.getLogger(__name__)

NAME = "tailor_ray_batch"  # in a batch's metadata
ENDED = ("completed", "expired", "cancelled", "failed")
LISTED = 100  # a page
FORGOTTEN_S = 3 * 86400.0  # a batch lives a day


@dataclass(frozen=True, slots=True)
class Ended:
    """A batch that has ended: replies by request key; keys that it did not reach are missing."""

    status: str
    replies: Mapping[str, Checked]
    refusal: str | None = None  # what the API said when it took the input for no batch at all


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return check_status(error.status_code, error.response.content).rule.fate is Fate.RETRY
    return isinstance(error, openai.APIConnectionError)


_retried = retry(
    retry=retry_if_exception(_may_pass),
    wait=wait_random_exponential(multiplier=0.5, max=30),
    stop=stop_after_delay(900),
    before_sleep=before_sleep_log(log, logging.INFO),
    reraise=True,
)


class BatchApi:
    """One endpoint's files and batches. Errors that end the run are raised as such."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self._endpoint = endpoint
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=read_key(endpoint),
            max_retries=0,
            timeout=endpoint.timeout_s,
            http_client=openai.DefaultHttpxClient(trust_env=not endpoint.is_loopback),
        )

    def submit(self, name: str, data: bytes) -> str:
        """Upload the input and make a batch of it; returns the batch's id."""
        file = self._call(lambda: self._client.files.create(file=(f"{name}.jsonl", io.BytesIO(data)), purpose="batch"))
        batch = self._call(
            lambda: self._client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={NAME: name},
            )
        )
        return str(batch.id)

    def find(self, name: str) -> str | None:
        """The id of the batch that carries this name, among those of this key; None when there is none."""

        def scan() -> str | None:
            for batch in self._client.batches.list(limit=LISTED):  # the newest first
                if (batch.metadata or {}).get(NAME) == name:
                    return str(batch.id)
                if batch.created_at < time.time() - FORGOTTEN_S:
                    break
            return None

        return self._call(scan)

    def look(self, batch_id: str) -> Ended | None:
        """None while the batch goes on."""
        batch = self._call(lambda: self._client.batches.retrieve(batch_id))
        if batch.status not in ENDED:
            return None
        if batch.status == "failed":
            said = "; ".join(str(error.message) for error in (batch.errors.data if batch.errors else None) or [])
            return Ended(batch.status, {}, said or "no reason given")
        replies: dict[str, Checked] = {}
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                replies.update(read_output(self._call(lambda name=file_id: self._client.files.content(name).content)))
        return Ended(batch.status, replies)

    def close(self) -> None:
        self._client.close()

    def _call(self, call: Any) -> Any:
        try:
            return _retried(call)()
        except openai.APIStatusError as error:
            checked = check_status(error.status_code, error.response.content)
            detail = checked.detail.replace(read_key(self._endpoint), "***")
            if checked.rule.fate is Fate.QUOTA:
                raise quota_error(self._endpoint, detail) from None
            if checked.rule.fate is Fate.ACCESS:
                raise access_error(self._endpoint, detail) from None
            raise StageError(f"the batch API at {self._endpoint.base_url} says {detail}") from None
        except openai.APIConnectionError as error:
            raise StageError(f"the batch API at {self._endpoint.base_url} cannot be reached: {error}") from None


def read_output(data: bytes) -> dict[str, Checked]:
    """An output or error file's lines by custom_id. A torn or odd line counts as not there: it is asked again."""
    replies: dict[str, Checked] = {}
    for line in data.splitlines():
        try:
            value = json.loads(line)
            key = str(value["custom_id"])
        except (ValueError, KeyError, TypeError):
            continue
        replies[key] = _read_line(value)
    return replies


def _read_line(value: dict[str, Any]) -> Checked:
    response, error = value.get("response"), value.get("error")
    if isinstance(response, dict) and response.get("status_code") == 200:
        return check_completion(response.get("body"))
    if isinstance(response, dict):
        return check_status(int(response.get("status_code") or 500), json.dumps(response.get("body")).encode())
    code = error.get("code") if isinstance(error, dict) else None
    return Checked("expired" if code == "batch_expired" else "no_choices", f"{error!r}"[:300])
