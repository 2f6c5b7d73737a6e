"""Each endpoint of jobs/teachers.md with its own YAML, against a mock that is as particular as the endpoint."""

import re
from pathlib import Path

import pytest
import yaml

from tailor_ray.answers import Grader
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import TeacherAccessError
from tailor_ray.records import AnswerKind
from tailor_ray.storage import Store
from tailor_ray.teacher.budget import check_prices
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.preflight import EXAMPLE, check_access, try_lesson
from tests.teacher.servers import GOOD, ask, completion, error, serving

DOCUMENT = Path(__file__).parent.parent.parent / "jobs" / "teachers.md"
BLOCKS = dict(re.findall(r"^## (.+?)\n\n```yaml\n(.*?)```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))
KEY = "sk-the-endpoints-own-key"


def bearer(call):
    return call.headers.get("Authorization") == f"Bearer {KEY}"


def openai(_, body, call):
    if not bearer(call):
        return 401, error("Incorrect API key provided", "invalid_api_key")
    if "OpenAI-Organization" in call.headers or "OpenAI-Project" in call.headers:
        return 401, error("Mismatched organization", "mismatched_organization")
    return 200, completion()


def openai_reasoning(_, body, call):
    if not bearer(call):
        return 401, error("Incorrect API key provided", "invalid_api_key")
    for name in ("max_tokens", "temperature", "top_p"):
        if name in body:
            return 400, error(f"Unsupported parameter: '{name}'", "unsupported_parameter")
    usage = {"prompt_tokens": 50, "completion_tokens": 320, "completion_tokens_details": {"reasoning_tokens": 300}}
    return (200, completion(usage=usage)) if body["reasoning_effort"] == "low" else (400, error("effort"))


def deepseek(_, body, call):
    if not bearer(call):
        return 401, error("Authentication Fails", "invalid_request_error")
    usage = {"prompt_tokens": 50, "completion_tokens": 320, "prompt_cache_hit_tokens": 20, "total_tokens": 370}
    return 200, completion(usage=usage, reasoning_content="First I think.")


def vllm(_, body, call):
    if "Authorization" in call.headers:
        return 400, {"object": "error", "message": "no key was asked for", "code": 400}
    thinks = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
    return 200, completion("<think>for long" if thinks else GOOD)


def ollama(_, body, call):
    return 200, completion() | {"system_fingerprint": "fp_ollama"}


def azure(_, body, call):
    if "Authorization" in call.headers or call.headers.get("api-key") != KEY:
        return 401, error("Access denied due to invalid subscription key or wrong API endpoint.", "401")
    if call.query.get("api-version") != "2024-10-21":
        return 404, error("Resource not found", "404")
    return 200, completion(content_filter_results={"hate": {"filtered": False}})


def openrouter(number, body, call):
    if not bearer(call) or call.headers.get("X-Title") != "tailor_ray":
        return 401, error("No auth credentials found", 401)
    if number == 0:
        return 200, error("Provider returned error", 502, metadata={"provider_name": "x"})
    usage = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70, "cost": 0.0042}
    return 200, completion(usage=usage if body["usage"] == {"include": True} else None)


def anthropic(_, body, call):
    if not bearer(call):
        return 401, {
            "error": {"code": "invalid_x-api-key", "type": "authentication_error", "message": "invalid x-api-key"}
        }
    if body.get("temperature") is not None and body.get("thinking"):
        return 400, error("`temperature` may only be set to 1 when thinking is enabled.", type="invalid_request_error")
    if body["thinking"]["budget_tokens"] >= body["max_tokens"]:
        return 400, error("`max_tokens` must be greater than `thinking.budget_tokens`", type="invalid_request_error")
    return 200, completion()


def gemini(_, body, call):
    if not bearer(call):
        return 400, [error("API key not valid. Please pass a valid API key.", 400, status="INVALID_ARGUMENT")]
    assert body["extra_body"]["google"]["thinking_config"]["thinking_budget"] == 512
    usage = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 470}
    return 200, completion(usage=usage)


MOCKS = {
    "OpenAI": openai,
    "OpenAI, reasoning models": openai_reasoning,
    "DeepSeek": deepseek,
    "vLLM": vllm,
    "Ollama": ollama,
    "Azure OpenAI": azure,
    "OpenRouter": openrouter,
    "Anthropic": anthropic,
    "Gemini": gemini,
}


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-somebody")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: of somebody")


def at(url, name):
    """The document's section with the mock's address in place of the endpoint's, its path kept."""
    section = yaml.safe_load(BLOCKS[name])["teacher"]
    (endpoint,) = section["teachers"]
    endpoint["base_url"] = url.removesuffix("/v1") + path_of(endpoint["base_url"])
    return section


def path_of(url):
    return "/" + url.split("//")[1].partition("/")[2]


def test_the_document_has_a_block_and_the_tests_a_mock_for_each_row():
    assert BLOCKS.keys() == MOCKS.keys()
    assert len(re.findall(r"^\| (?!endpoint|---|what)", DOCUMENT.read_text().split("## ")[0], re.MULTILINE)) == len(
        MOCKS
    )


@pytest.mark.parametrize("name", MOCKS)
def test_each_endpoints_own_yaml_brings_a_lesson(tmp_path, monkeypatch, name):
    given = yaml.safe_load(BLOCKS[name])["teacher"]["teachers"][0]
    if given.get("api_key_env", "OPENAI_API_KEY"):
        monkeypatch.setenv(given.get("api_key_env", "OPENAI_API_KEY"), KEY)
    path = path_of(given["base_url"]) + "/chat/completions"
    with serving(MOCKS[name], path) as (url, _, calls):
        config = TeacherConfig(**at(url, name))
        ledger = Ledger(Store.open(str(tmp_path / "teacher")))
        check_access(config, Grader(AnswerKind.NUMBER), ledger, [EXAMPLE])
        (row,) = ledger.rows()
        ledger.close()
    assert (row.outcome, row.reply) == ("answered", GOOD)
    assert not any("X-Secret" in call.headers for call in calls)
    if name == "OpenRouter":
        assert row.cost_usd == 0.0042
    if name == "Gemini":
        assert row.output_tokens == 420
    if name == "DeepSeek":
        assert row.cached_tokens == 20


@pytest.mark.parametrize("name", ["OpenAI", "Azure OpenAI", "Anthropic", "Gemini", "DeepSeek"])
def test_a_wrong_key_is_found_whatever_the_endpoint_calls_it(monkeypatch, name):
    given = yaml.safe_load(BLOCKS[name])["teacher"]["teachers"][0]
    variable = given.get("api_key_env", "OPENAI_API_KEY")
    monkeypatch.setenv(variable, "sk-not-this-one")
    with serving(MOCKS[name], path_of(given["base_url"]) + "/chat/completions") as (url, _, __):
        config = TeacherConfig(**at(url, name))
        with pytest.raises(TeacherAccessError, match=variable) as refused:
            try_lesson(config, config.teachers[0])
    assert "sk-not-this-one" not in str(refused.value)


def test_headers_by_name_of_a_variable_go_to_the_endpoint_that_names_them_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    named = {"OpenAI-Organization": "OPENAI_ORG_ID"}
    with serving(lambda *_: (200, completion())) as (url, _, calls):
        ask(tmp_path, url, 1, extra_headers_env=named)
    assert calls[0].headers["OpenAI-Organization"] == "org-of-somebody"
    monkeypatch.delenv("OPENAI_ORG_ID")
    endpoint = EndpointConfig(base_url=url, extra_headers_env=named)
    with pytest.raises(TeacherAccessError, match="OPENAI_ORG_ID is not set"):
        try_lesson(TeacherConfig(teachers=(endpoint,)), endpoint)


def test_an_unknown_price_and_an_old_table_are_told(caplog):
    check_prices(TeacherConfig(base_url="https://api.example.com/v1", model="unheard-of"))
    assert "'unheard-of' is not known: what it is asked counts as $0" in caplog.text
    caplog.clear()
    check_prices(TeacherConfig(model="gpt-4o-mini"), now=1_756_684_800.0)  # in September 2025
    assert not caplog.text
    check_prices(TeacherConfig(model="gpt-4o-mini"), now=1_780_000_000.0)  # in May 2026
    assert "is that of 2025-08, 9 months ago" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_body": {"model": "other"}},
        {"extra_body": {"stream": True}},
        {"extra_headers": {"Authorization": "Bearer sk-1"}},
        {"extra_headers": {"X-Title": "two\nlines"}},
        {"extra_headers_env": {"X-Key": "sk-1 is no variable"}},
        {"api_key_header": "no header"},
        {"api_key_env": "no variable"},
    ],
)
def test_settings_that_no_endpoint_can_take_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        EndpointConfig(**settings)
