"""`teacher`: endpoints, prompts, limits, retries and money."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from tailor_ray.config.base import OPERATIONAL, Section

SANDBOX = "sandbox"


class PriceConfig(Section):
    """US dollars a million tokens."""

    input: float = Field(ge=0)
    """Prompt tokens."""
    output: float = Field(ge=0)
    """Reply tokens, reasoning included."""
    cached_input: float | None = Field(default=None, ge=0)
    """Prompt tokens that the endpoint had cached; None takes the price of `input`."""
    batch_discount: float = Field(default=0.5, ge=0, lt=1)
    """Taken off in batch mode; 0.5 halves the price."""


class ServingConfig(Section):
    """How an open-weight teacher is served; on GPUs where the cluster has them."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""
    replicas: int = Field(default=1, ge=1)
    """Engines that share the requests."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs an engine."""
    max_model_len: int = Field(default=4096, ge=16)
    """Prompt plus reply, in tokens."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU that one engine claims."""
    kv_cache_gib: float = Field(default=0.5, gt=0)
    """Key/value cache of one engine on CPU, in GiB."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Of Ray Serve on the head node."""


class EndpointConfig(Section):
    """One teacher: where it is, what it is asked with, what it allows and what it costs."""

    serve: Annotated[str | None, OPERATIONAL] = None
    """A local folder, hub id or storage URI of an open-weight model: it is served on the run's own cluster while
    lessons are asked for, in place of `base_url`; `model` is its name unless given."""
    serving: Annotated[ServingConfig, OPERATIONAL] = ServingConfig()
    """Engines of `serve`."""
    base_url: Annotated[str, OPERATIONAL] = "http://127.0.0.1:8765/v1"
    """OpenAI-compatible endpoint; `sandbox` starts the built-in teacher for the length of the run."""
    api_key_env: Annotated[str, OPERATIONAL] = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key on every node that runs a teacher actor; a loopback URL needs none."""
    api_key_file: Annotated[str | None, OPERATIONAL] = None
    """File on those nodes that holds the key; taken instead of the variable."""
    model: str = Field(default="sandbox-teacher", min_length=1)
    """Model name sent with each request."""
    temperature: float | None = Field(default=0.7, ge=0, le=2)
    """Of the teacher's sampler; null sends none, as reasoning models ask."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling; null sends none."""
    max_tokens: int = Field(default=512, ge=1)
    """Cap of one reply, reasoning included."""
    cap_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which the cap is sent; reasoning models take max_completion_tokens."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """Sent to reasoning models; null sends none."""
    output: Literal["tagged", "json_schema"] = "tagged"
    """How a reply is laid out: tagged text works everywhere, json_schema needs structured outputs."""
    requests_per_minute: Annotated[float | None, OPERATIONAL] = Field(default=None, gt=0)
    """Limit over any sliding minute and all actors; with neither limit given the rate is found from the replies."""
    tokens_per_minute: Annotated[float | None, OPERATIONAL] = Field(default=None, gt=0)
    """Limit on prompt plus reply tokens over any sliding minute and all actors."""
    max_in_flight: Annotated[int, OPERATIONAL] = Field(default=64, ge=1)
    """Calls in flight over all actors."""
    timeout_s: Annotated[float, OPERATIONAL] = Field(default=120.0, gt=0)
    """Wall-clock bound of one call, whatever the server drips."""
    price: Annotated[PriceConfig | None, OPERATIONAL] = None
    """Price of this model; null takes the built-in table's, and is refused with a dollar budget where it has none."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_what_is_served(cls, data: Any) -> Any:
        """The ledger tells teachers apart by `model`, so two served models must not share the default; they cost
        nothing a token."""
        if isinstance(data, dict) and data.get("serve"):
            own = {"model": data["serve"], "price": {"input": 0.0, "output": 0.0}}
            return {**data, **{name: data.get(name) or value for name, value in own.items()}}
        return data

    @field_validator("base_url")
    @classmethod
    def _no_user_info(cls, url: str) -> str:
        if url == SANDBOX:
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("teacher.base_url must be an http(s) URL, or `sandbox`")
        if parts.username or parts.password:
            raise ValueError("teacher.base_url must not carry user info; put the key into the variable of api_key_env")
        if parts.query or parts.fragment:  # requests go to paths below it, and a query is where keys are put
            raise ValueError("teacher.base_url must end with its path, as in https://api.example.com/v1")
        return url

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine or this cluster's own, so that no key has to leave it."""
        if self.serve is not None:
            return True
        host = urlsplit(self.base_url).hostname or ""
        if self.base_url == SANDBOX or host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


class SandboxConfig(Section):
    """The built-in teacher that `base_url: sandbox` starts, and `tailor-ray sandbox-teacher` serves."""

    answers: Annotated[str | None, OPERATIONAL] = None
    """JSONL with question, answer and rationale: reply from it instead of solving arithmetic."""
    wrong_share: float = Field(default=0.0, ge=0, le=1)
    """Share of requests answered with a wrong conclusion, drawn from the request's hash."""
    malformed_share: float = Field(default=0.0, ge=0, le=1)
    """Share of requests whose first reply is not valid JSON; the retry is."""
    latency_s: Annotated[float, OPERATIONAL] = Field(default=0.0, ge=0)
    """Seconds before each reply."""
    jitter_s: Annotated[float, OPERATIONAL] = Field(default=0.0, ge=0)
    """Up to so many seconds more, drawn from the request's hash."""
    requests_per_minute: Annotated[float | None, OPERATIONAL] = Field(default=None, gt=0)
    """More are refused with 429 and Retry-After."""
    tokens_per_minute: Annotated[float | None, OPERATIONAL] = Field(default=None, gt=0)
    """More are refused with 429 and Retry-After."""
    access_log: Annotated[str | None, OPERATIONAL] = None
    """JSONL file with a line for each call: time, request hash, status, outcome."""


class PromptsConfig(Section):
    """Templates that replace the built-in ones; `{question}`, `{choices}`, `{answer}`, `{attempt}`, `{form}` and
    `{problem}` are filled in, other braces stay as they are."""

    system: str | None = None
    """System message of every request; an empty one sends none."""
    rationale: str | None = None
    """Asks for a rationale; needs {question} and {form}."""
    feedback: str | None = None
    """Asks what went wrong and for a corrected rationale; needs {question}, {attempt}, {answer} and {form}."""
    again: str | None = None
    """Sent after a rejected reply; needs {problem}."""

    @model_validator(mode="after")
    def _placeholders(self) -> PromptsConfig:
        needed = {
            "rationale": ("question", "form"),
            "feedback": ("question", "attempt", "answer", "form"),
            "again": ("problem",),
        }
        for name, placeholders in needed.items():
            template = getattr(self, name)
            missing = [p for p in placeholders if template is not None and f"{{{p}}}" not in template]
            if missing:
                raise ValueError(f"teacher.prompts.{name} must contain {{{missing[0]}}}")
        return self


class TeacherConfig(EndpointConfig):
    """Who teaches. Keys are read from the environment or a file of the node, never from here."""

    also: tuple[EndpointConfig, ...] = ()
    """Further teachers, in order."""
    arrangement: Literal["cascade", "committee"] = "cascade"
    """With several: what one fails at goes to the next, or each writes and all accepted lessons are kept."""
    peer_scores: bool = False
    """In a committee, each teacher scores the others' rationales from 1 to 5; those under `min_peer_score` go."""
    min_peer_score: float = Field(default=3.0, ge=1, le=5)
    """Mean peer score below which a rationale is rejected."""
    mode: Annotated[Literal["online", "batch"], OPERATIONAL] = "online"
    """One call a request, or the OpenAI Batch API: slower and cheaper."""
    batch_max_requests: Annotated[int, OPERATIONAL] = Field(default=50_000, ge=1, le=50_000)
    """Requests in one batch file; the API allows 50,000."""
    batch_max_mib: Annotated[float, OPERATIONAL] = Field(default=190.0, gt=0, le=200)
    """Size of one batch file; the API allows 200 MB."""
    batch_poll_s: Annotated[float, OPERATIONAL] = Field(default=30.0, gt=0)
    """Seconds between looks at a pending batch."""
    rationales: int = Field(default=1, ge=1, le=32)
    """Rationales asked for a question in round 1; near-duplicates are dropped."""
    max_mistakes: int = Field(default=4, ge=1)
    """Distinct mistakes of one question that get feedback in a round."""
    max_asks: int = Field(default=3, ge=1, le=10)
    """Times that one lesson is asked for before it counts as failed; each time with what was wrong."""
    min_accepted_share: Annotated[float, OPERATIONAL] = Field(default=0.2, ge=0, le=1)
    """Below this share of accepted lessons the round stops before it trains on too little."""
    max_attempts: Annotated[int, OPERATIONAL] = Field(default=8, ge=1)
    """Calls for one request, the first included, before it counts as failed."""
    retry_for_s: Annotated[float, OPERATIONAL] = Field(default=900.0, gt=0)
    """Seconds from a request's first call after which it is not retried."""
    actors: Annotated[int, OPERATIONAL] = Field(default=1, ge=1)
    """Ray actors in the pool, each with one async client an endpoint."""
    budget_usd: Annotated[float | None, OPERATIONAL] = Field(default=None, ge=0)
    """Dollars for the run; worst cases are reserved, so that the bill never exceeds it. Where a budget will not last
    for a round, by its forecast, teaching waits for the end of the exam and begins with the mistakes worth most."""
    budget_tokens: Annotated[int | None, OPERATIONAL] = Field(default=None, ge=0)
    """Prompt plus reply tokens for the run."""
    round_budget_usd: Annotated[float | None, OPERATIONAL] = Field(default=None, ge=0)
    """Dollars for one round."""
    round_budget_tokens: Annotated[int | None, OPERATIONAL] = Field(default=None, ge=0)
    """Tokens for one round."""
    prompts: PromptsConfig = PromptsConfig()
    """Replacements for the built-in templates."""
    sandbox: SandboxConfig = SandboxConfig()
    """The teacher that `base_url: sandbox` starts."""

    @property
    def endpoints(self) -> tuple[EndpointConfig, ...]:
        """All teachers in order; this section is the first."""
        return (self, *self.also)

    @model_validator(mode="after")
    def _consistent(self) -> TeacherConfig:
        names = [endpoint.model for endpoint in self.endpoints]
        if len(set(names)) < len(names):
            raise ValueError(f"teacher.also: each teacher needs a model of its own, not {', '.join(names)}")
        if self.peer_scores and (self.arrangement != "committee" or not self.also):
            raise ValueError("teacher.peer_scores needs arrangement: committee and a teacher in teacher.also")
        return self
