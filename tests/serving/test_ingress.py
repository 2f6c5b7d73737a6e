"""The API's own answers, over real HTTP routes and without an engine: its handle here answers what it is told to."""

import json

import httpx
import pytest

GOOD = {"model": "demo", "prompt": "One plus one is"}
JSON = {"Content-Type": "application/json"}


class Handle:
    """In place of Ray Serve's: each method answers or raises what was put into it."""

    def __init__(self, **answers):
        self.answers = answers

    def options(self, **_):
        return self

    def __getattr__(self, name):
        return Method(self.answers[name])


class Method:
    def __init__(self, answer):
        self.answer = answer

    async def reply(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def stream(self):
        yield await self.reply()

    def remote(self, *given):
        return self.stream() if len(given) == 2 else self.reply()


@pytest.fixture
def ask():
    from ray.llm._internal.serve.core.configs.openai_api_models import ModelCard

    from tailor_ray.serving import ingress

    async def send(method, path, body=b"", headers=JSON, **answers):
        card = ModelCard(id="demo", object="model", owned_by="us", permission=[], metadata={})
        served = ingress.StudentIngress(llm_deployments={"demo": Handle(**answers)}, model_cards={"demo": card})
        app = ingress.http_app()
        for name, route in ingress.ENDPOINTS.items():
            route(app)(getattr(served, name))
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answer = await client.request(method, path, content=body, headers=headers)
        return answer.status_code, answer.json()

    return send


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b"1", b"null", b'{"model": 1}', b'{"model": "demo"}'],  # no prompt
)
async def test_what_is_no_request_is_refused_in_openais_form(ask, path, body):
    status, said = await ask("POST", path, body)
    assert status == 400
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert said["error"]["message"]


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data"}])
async def test_a_body_without_its_type_is_refused(ask, headers):
    status, said = await ask("POST", "/v1/completions", json.dumps(GOOD).encode(), headers)
    assert (status, said["error"]["code"]) == (400, 400)


async def test_half_a_pair_of_surrogates_is_no_text(ask):
    for wrong in ({"prompt": "\ud800"}, {"model": "\udfff"}, {"stop": ["\ud800"]}):
        status, said = await ask("POST", "/v1/completions", json.dumps(GOOD | wrong).encode())
        assert status == 400
        assert "not valid text" in said["error"]["message"]
    chat = {"model": "demo", "messages": [{"role": "user", "content": "\ud800"}]}
    assert (await ask("POST", "/v1/chat/completions", json.dumps(chat).encode()))[0] == 400


async def test_another_model_is_not_found(ask):
    for method, path, body in (
        ("POST", "/v1/completions", GOOD | {"model": "gpt"}),
        ("POST", "/tokenize", GOOD | {"model": "gpt"}),
        ("GET", "/v1/models/gpt", None),
    ):
        status, said = await ask(method, path, json.dumps(body).encode())
        assert (status, said["error"]["type"]) == (404, "NotFoundError")
        assert "served: demo" in said["error"]["message"]


async def test_what_the_engine_refuses_is_the_clients_and_what_breaks_it_is_not(ask):
    body = json.dumps(GOOD).encode()
    for refused in (ValueError("the prompt is too long"), TypeError("no text"), OverflowError("2**99")):
        status, said = await ask("POST", "/v1/completions", body, completions=refused)
        assert (status, said["error"]["message"]) == (400, str(refused))
        status, said = await ask("POST", "/tokenize", body, tokens=refused)
        assert (status, said["error"]["message"]) == (400, str(refused))
    status, said = await ask("POST", "/v1/completions", body, completions=OSError("gone"))
    assert (status, said["error"]["type"]) == (500, "InternalServerError")


async def test_models_say_how_long_they_can_read(ask):
    status, said = await ask("GET", "/v1/models", context_length=512)
    assert (status, [(one["id"], one["max_model_len"]) for one in said["data"]]) == (200, [("demo", 512)])
    assert (await ask("GET", "/v1/models/demo", context_length=512))[1]["max_model_len"] == 512


async def test_other_paths_and_methods_are_refused_alike(ask):
    assert (await ask("GET", "/v1/nowhere"))[1]["error"]["code"] == 404
    assert (await ask("GET", "/v1/completions"))[1]["error"]["code"] == 405
    assert (await ask("GET", "/version"))[1]["version"]
