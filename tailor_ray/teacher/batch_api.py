"""The OpenAI Batch API, call by call: upload and submit, find, look, read. Calls are retried here, and only here.

A batch is named by its maker in its metadata. So it can be found when nobody wrote its id down. How long a batch has
been under way, and how far it is, goes to the log.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai
from tenacity import before_sleep_log, retry, retry_if_exception, wait_random_exponential

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.errors import ConfigError, StageError
from tailor_ray.teacher.client import Redactor, read_secrets
from tailor_ray.teacher.errors import Outage, access_error, quota_error
from tailor_ray.teacher.outcomes import Category, Outcome, check_completion, check_status

log = logging.getLogger(__name__)

NAME = "tailor_ray_batch"  # in a batch's metadata
ENDED = ("completed", "expired", "cancelled", "failed")
LISTED = 100  # a page
FORGOTTEN_S = 3 * 86400.0  # a batch lives a day
OVERDUE_S = 36 * 3600.0  # one that is not over by then never will be
RETRY_FOR_S = 900.0  # that a call is tried again
TELL_S = 600.0  # between lines about a batch whose status is the same
_QUEUE_FULL = re.compile(r"token_limit|enqueued token|queued token|queue (?:is )?full", re.IGNORECASE)
_TOO_LARGE = re.compile(
    r"(?:file|body|payload|entity)[^.]{0,40}(?:too (?:large|big)|exceed|maximum size)", re.IGNORECASE
)


class TooLarge(Exception):
    """The file is larger than the API takes."""


class QueueFull(Exception):
    """More tokens are queued than the account may queue: send again when others are done."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A batch that has ended: replies by request key; keys that it did not reach are missing."""

    status: str
    replies: Mapping[str, Outcome]
    refusal: str | None = None  # what the API said when it took the input for no batch at all


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return check_status(error.status_code, error.response.content).rule.category is Category.RETRYABLE
    return isinstance(error, openai.APIConnectionError)


def is_queue_full(text: str) -> bool:
    return _QUEUE_FULL.search(text) is not None


_retried = retry(
    retry=retry_if_exception(_may_pass),
    wait=wait_random_exponential(multiplier=0.5, max=30),
    stop=lambda state: (state.seconds_since_start or 0.0) >= RETRY_FOR_S,
    before_sleep=before_sleep_log(log, logging.INFO),
    reraise=True,
)


class BatchApi:
    """One endpoint's files and batches. Errors that end the run are raised as such."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self._endpoint = endpoint
        self._redact = Redactor(endpoint)
        self._told: dict[str, tuple[str, float]] = {}  # status of a batch, and when it was told
        headers = {**endpoint.extra_headers, **read_secrets(endpoint)}

        def set_headers(request: Any) -> None:
            """What the settings name, in place of what the client takes from the environment by itself."""
            for name in ("Authorization", "OpenAI-Organization", "OpenAI-Project"):
                request.headers.pop(name, None)
            request.headers.update(headers)

        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key="set-below",
            default_query=dict(endpoint.default_query),
            max_retries=0,
            timeout=endpoint.timeout_s,
            http_client=openai.DefaultHttpxClient(
                trust_env=not endpoint.is_loopback, event_hooks={"request": [set_headers]}
            ),
        )

    def submit(self, name: str, data: bytes) -> str:
        """Upload the input and make a batch of it; returns the batch's id.

        Raises TooLarge and QueueFull where another try may do it, and ConfigError where there is no batch API.
        """
        file = self._call(
            lambda: self._client.files.create(file=(f"{name}.jsonl", io.BytesIO(data)), purpose="batch"), first=True
        )
        tries = itertools.count()

        def make() -> str:
            """A try that failed may have made it all the same: the next one looks first."""
            found = self._listed(name) if next(tries) else None
            return found or str(
                self._client.batches.create(
                    input_file_id=file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata={NAME: name},
                ).id
            )

        return str(self._call(make))

    def find(self, name: str) -> str | None:
        """The id of the batch that carries this `name`, among those of this key.

        Returns None when there is none.
        """
        return self._call(lambda: self._listed(name))

    def _listed(self, name: str) -> str | None:
        for batch in self._client.batches.list(limit=LISTED):  # the newest first
            if (batch.metadata or {}).get(NAME) == name:
                return str(batch.id)
            if batch.created_at < time.time() - FORGOTTEN_S:
                break
        return None

    def poll(self, batch_id: str) -> BatchResult | None:
        """Look at a batch.

        Returns None while it goes on. One that the server no longer knows has ended as `gone`.
        """
        try:
            batch = self._call(lambda: self._client.batches.retrieve(batch_id), gone=True)
            if batch is not None and batch.status not in ENDED:
                return self._wait_for(batch)
            if batch is not None and batch.status == "failed":
                errors = (batch.errors.data if batch.errors else None) or []
                said = "; ".join(f"{error.code}: {error.message}" for error in errors)
                return BatchResult(batch.status, {}, said or "no reason given")
            files = [batch.output_file_id, batch.error_file_id] if batch is not None else []
            data = [self._call(lambda name=one: self._client.files.content(name), gone=True) for one in files if one]
        except openai.OpenAIError as error:  # an answer that is none
            log.warning("batch %s cannot be read: %s", batch_id, self._redact(str(error)))
            return None
        if batch is None or None in data:
            log.warning("batch %s is gone from %s: asked again", batch_id, self._endpoint.base_url)
            return BatchResult("gone", {})
        replies: dict[str, Outcome] = {}
        for one in data:
            for key, outcome in read_output(one.content).items():
                known = replies.get(key)
                if known is None or known.rule.category is not Category.ANSWERED:  # an error undoes no reply
                    replies[key] = outcome
        return BatchResult(batch.status, replies)

    def _wait_for(self, batch: Any) -> BatchResult | None:
        """Tell of a batch that goes on, now and then; give one up that should have been over long ago."""
        now, age = time.time(), time.time() - (batch.created_at or time.time())
        status, told = self._told.get(batch.id, ("", 0.0))
        counts = batch.request_counts
        done = f", {counts.completed} of {counts.total} done, {counts.failed} failed" if counts else ""
        if status != batch.status or now - told >= TELL_S:
            log.info("batch %s is %s after %.1f h%s", batch.id, batch.status, age / 3600, done)
            self._told[batch.id] = (batch.status, now)
        if age < OVERDUE_S:
            return None
        log.warning("batch %s is still %s after %.0f h%s: asked again", batch.id, batch.status, age / 3600, done)
        return BatchResult("gone", {})

    def close(self) -> None:
        self._client.close()

    def _call(self, call: Any, first: bool = False, gone: bool = False) -> Any:
        """`first`: a refusal may mean that there is no batch API; `gone`: a 404 is no error, but None."""
        where = f"the batch API at {self._endpoint.base_url}"
        try:
            return _retried(call)()
        except openai.APIStatusError as error:
            outcome = check_status(error.status_code, error.response.content)
            detail = self._redact(outcome.detail)
            if gone and error.status_code in (404, 410):
                return None
            if error.status_code == 413 or (error.status_code == 400 and _TOO_LARGE.search(detail)):
                raise TooLarge(detail) from None
            if is_queue_full(detail):
                raise QueueFull(detail) from None
            if first and error.status_code in (404, 405, 501):
                raise ConfigError(
                    f"{self._endpoint.base_url} has no batch API ({detail}); set teacher.mode to online"
                ) from None
            if outcome.rule.category is Category.QUOTA:
                raise quota_error(self._endpoint, detail) from None
            if outcome.rule.category is Category.ACCESS:
                raise access_error(self._endpoint, detail) from None
            kind = Outage if outcome.rule.category is Category.RETRYABLE else StageError
            raise kind(f"{where} says {detail}; the batches are kept: run the same command") from None
        except openai.APIConnectionError as error:
            raise Outage(f"{where} cannot be reached: {error}; the batches are kept: run the same command") from None


def read_output(data: bytes) -> dict[str, Outcome]:
    """The lines of an output or error file by custom_id.

    A torn or odd line counts as not there: its request is asked again.
    """
    replies: dict[str, Outcome] = {}
    for line in data.splitlines():
        try:
            value = json.loads(line)
            key = str(value["custom_id"])
        except (ValueError, KeyError, TypeError):
            continue
        response, error = value.get("response"), value.get("error")
        if isinstance(response, dict) and response.get("status_code") == 200:
            replies[key] = check_completion(response.get("body"))
        elif isinstance(response, dict):
            status = int(response.get("status_code") or 500)
            replies[key] = check_status(status, json.dumps(response.get("body")).encode())
        elif isinstance(error, dict) and error.get("code") == "batch_expired":
            replies[key] = Outcome("expired", f"{error!r}"[:300])
        else:
            replies[key] = check_completion({"error": error})
    return replies
