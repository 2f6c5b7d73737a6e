"""`teacher`: endpoints, prompts, limits, retries and money."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tailor_ray.config.base import OPERATIONAL, Section

MOCK = "mock"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
HEADER = r"^[A-Za-z0-9_-]+$"
_NOT_EXTRA = frozenset({"model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"})


class PriceConfig(Section):
    """US dollars per million tokens."""

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
    """GPUs per engine."""
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
    """OpenAI-compatible endpoint; `mock` starts the built-in mock teacher for the length of the run."""
    api_key_env: Annotated[str | None, OPERATIONAL] = Field(default="OPENAI_API_KEY", pattern=VARIABLE)
    """Environment variable that holds the key on every node that runs a teacher actor; null sends no key, and a
    loopback URL needs none."""
    api_key_file: Annotated[str | None, OPERATIONAL] = None
    """File on those nodes that holds the key; taken instead of the variable."""
    api_key_header: Annotated[str, OPERATIONAL] = Field(default="Authorization", pattern=HEADER)
    """Header that carries the key: as `Bearer KEY` in Authorization, by itself in any other, as in Azure's api-key."""
    extra_headers: Annotated[dict[str, str], OPERATIONAL] = Field(default_factory=dict)
    """Further headers of every call; secrets belong into `extra_headers_env`."""
    extra_headers_env: Annotated[dict[str, str], OPERATIONAL] = Field(default_factory=dict)
    """Further headers whose values are secret: the environment variable of each. OpenAI's organisation and project go
    here, so that no other endpoint hears of them: {OpenAI-Organization: OPENAI_ORG_ID}."""
    default_query: Annotated[dict[str, str], OPERATIONAL] = Field(default_factory=dict)
    """Query of every call, such as Azure's {api-version: 2024-10-21}."""
    model: str = Field(default="mock-teacher", min_length=1)
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
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request as the endpoint documents them, such as a thinking budget."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Of vLLM's and SGLang's chat templates, such as {enable_thinking: false}; nothing sends none."""
    service_tier: Annotated[str | None, OPERATIONAL] = None
    """Tier of the endpoint's service, such as flex; null sends none."""
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
        nothing per token."""
        if isinstance(data, dict) and data.get("serve"):
            own = {"model": data["serve"], "price": {"input": 0.0, "output": 0.0}}
            return {**data, **{name: data.get(name) or value for name, value in own.items()}}
        return data

    @field_validator("extra_body")
    @classmethod
    def _own_fields_stay(cls, extra: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_NOT_EXTRA & extra.keys())
        if taken:
            raise ValueError(f"must not hold {taken[0]!r}, which the engine sets; use the setting of that name")
        return extra

    @field_validator("extra_headers", "extra_headers_env")
    @classmethod
    def _headers(cls, headers: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for name, value in headers.items():
            if not re.match(HEADER, name) or not value.isprintable() or not value.isascii():
                raise ValueError(f"{name!r} and its value must be ASCII text as a header can carry it")
            if info.field_name == "extra_headers_env" and not re.match(VARIABLE, value):
                raise ValueError(f"{name}: name an environment variable, not its value")
            if info.field_name == "extra_headers" and name.lower() in ("authorization", "api-key", "x-api-key"):
                raise ValueError(
                    f"{name}: a key must not stand here; name its variable by api_key_env, its header by api_key_header"
                )
        return headers

    @field_validator("base_url")
    @classmethod
    def _no_user_info(cls, url: str) -> str:
        if url in (MOCK, "sandbox"):  # the name it had until 0.1
            return MOCK
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be an http(s) URL, or `mock`")
        if parts.username or parts.password:
            raise ValueError("base_url must not carry user info; put the key into the variable of api_key_env")
        if parts.query or parts.fragment:  # requests go to paths below it, and a query is where keys are put
            raise ValueError("base_url must end with its path, as in https://api.example.com/v1; use default_query")
        return url

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine or the cluster's own.

        No key has to leave it then, so none is asked for.
        """
        if self.serve is not None:
            return True
        host = urlsplit(self.base_url).hostname or ""
        if self.base_url == MOCK or host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


class MockConfig(Section):
    """The built-in teacher that `base_url: mock` starts, and `tailor-ray mock-teacher` serves."""

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
    hinted: str | None = None
    """Asks for a rationale and shows the answer, for `last_try`; needs {question}, {answer} and {form}."""
    feedback: str | None = None
    """Asks what went wrong and for a corrected rationale; needs {question}, {attempt}, {answer} and {form}."""
    again: str | None = None
    """Sent after a rejected reply; needs {problem}."""

    @model_validator(mode="after")
    def _placeholders(self) -> PromptsConfig:
        needed = {
            "rationale": ("question", "form"),
            "hinted": ("question", "answer", "form"),
            "feedback": ("question", "attempt", "answer", "form"),
            "again": ("problem",),
        }
        for name, placeholders in needed.items():
            template = getattr(self, name)
            missing = [p for p in placeholders if template is not None and f"{{{p}}}" not in template]
            if missing:
                raise ValueError(f"teacher.prompts.{name} must contain {{{missing[0]}}}")
        return self


class TeacherConfig(Section):
    """Who teaches. Keys are read from the environment or a file of the node, never from here."""

    teachers: tuple[EndpointConfig, ...] = (EndpointConfig(),)
    """The teachers, in order. Each is one endpoint with one model."""
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
    batch_max_queued_tokens: Annotated[int | None, OPERATIONAL] = Field(default=None, ge=1)
    """Prompt tokens, as estimated, in all batches that are under way; the API's limit depends on the account."""
    batch_poll_s: Annotated[float, OPERATIONAL] = Field(default=30.0, gt=0)
    """Seconds between looks at a pending batch."""
    rationales: int = Field(default=1, ge=1, le=32)
    """Rationales asked for a question in round 1; near-duplicates are dropped."""
    max_mistakes: int = Field(default=4, ge=0)
    """Distinct mistakes of one question that get feedback in a round; 0, as with `training.feedback` off, asks for
    none."""
    correction: Literal["rewrite", "continue"] = "rewrite"
    """How a mistake is corrected: `rewrite` asks for the whole reasoning anew, `continue` for the student's own words
    before its first wrong step, word for word, which is checked, and the right steps from there. What a rationale and
    its mistake then begin with alike does not count as negative."""
    max_asks: int = Field(default=3, ge=1, le=10)
    """Times that one lesson is asked for before it counts as failed; each time with what was wrong."""
    last_try: Literal["blind", "hinted"] = "blind"
    """Of a rationale that was refused until its last ask: `hinted` shows the right answer then. What speaks of a hint
    is refused all the same."""
    max_words: Annotated[int, Field(ge=10)] | Literal["auto"] = "auto"
    """Words of a rationale that teachers are asked for at most; auto takes half as many as the student has tokens, the
    lesser of `exam.max_new_tokens` and `evaluation.max_new_tokens`."""
    min_accepted_share: Annotated[float, OPERATIONAL] = Field(default=0.2, ge=0, le=1)
    """Below this share of accepted lessons the round stops before it trains on too little."""
    max_attempts: Annotated[int, OPERATIONAL] = Field(default=8, ge=1)
    """Calls for one request, the first included, before it is left for the next start of the run."""
    retry_for_s: Annotated[float, OPERATIONAL] = Field(default=900.0, gt=0)
    """Seconds from a request's first call after which it is not retried; time in which a teacher answers nobody does
    not count, nor do the calls that it takes."""
    outage_s: Annotated[float, OPERATIONAL] = Field(default=900.0, gt=0)
    """Seconds in which a teacher answers nobody after which the run stops, to go on by the same command; also the
    longest pause that a server may ask for."""
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
    mock: MockConfig = MockConfig()
    """The teacher that `base_url: mock` starts."""

    @property
    def model(self) -> str:
        """The model of the teacher that is asked first."""
        return self.teachers[0].model

    @model_validator(mode="before")
    @classmethod
    def _first_form(cls, data: Any) -> Any:
        """Until 0.2 the section was itself the first endpoint and `also` held the others; read for one release."""
        return one_form(data)[0] if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> TeacherConfig:
        if not self.teachers:
            raise ValueError("teacher.teachers must name at least one teacher")
        names = [endpoint.model for endpoint in self.teachers]
        if len(set(names)) < len(names):
            raise ValueError(f"teacher.teachers: each teacher needs a model of its own, not {', '.join(names)}")
        if self.last_try == "hinted" and self.max_asks == 1:
            raise ValueError("teacher.last_try=hinted shows the answer at the last of several asks: raise max_asks")
        if self.peer_scores and (self.arrangement != "committee" or len(self.teachers) < 2):
            raise ValueError("teacher.peer_scores needs arrangement: committee and a second teacher")
        return self


def one_form(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The section `teacher` as it is written now, of one that may have its form of version 0.1.

    Returns a copy of `data` with each setting where it belongs, and hints on what to write instead of the old ones.
    """
    data, hints = dict(data), []
    if "sandbox" in data:
        data["mock"] = data.pop("sandbox")
        hints.append("teacher.sandbox is called teacher.mock")
    first = {name: data.pop(name) for name in EndpointConfig.model_fields if name in data}
    also = data.pop("also", ())
    if first:
        moved = ", ".join(f"teacher.{name}" for name in first)
        hints.append(f"{moved}: write it into the list teacher.teachers")
    if also:
        hints.append("teacher.also: its teachers follow the first one in the list teacher.teachers")
    if first or also:
        named = list(data.get("teachers") or [{}])
        head = named[0].model_dump() if isinstance(named[0], EndpointConfig) else named[0]
        data["teachers"] = [{**head, **first}, *named[1:], *also] if isinstance(head, dict) else named
    if any(isinstance(one, dict) and one.get("base_url") == "sandbox" for one in data.get("teachers") or ()):
        hints.append("base_url: sandbox is called base_url: mock")
    return data, hints
