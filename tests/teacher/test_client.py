"""The sender against a real server on a real socket: each fault of the wire, wall-clock bounds, keys, Retry-After."""

import asyncio
import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tailor_ray.config.teacher import EndpointConfig, MockConfig
from tailor_ray.demo.mock_server import MockOptions, start_mock
from tailor_ray.errors import Stopped, TeacherAccessError
from tailor_ray.teacher.batch_api import BatchApi
from tailor_ray.teacher.client import LONGEST_WAIT_S, Sender, read_key, retry_after
from tailor_ray.teacher.outcomes import Category
from tests.teacher.helpers import request

CANARY = "sk-canary-7f3a91c2"


async def send(options, count=1, **endpoint):
    """Attempts at `count` distinct requests, made at once."""
    runner, url = await start_mock(options)
    sender = Sender(EndpointConfig(base_url=url, **endpoint), connections=count)
    try:
        wanted = [request(number=n) for n in range(count)]
        return await asyncio.gather(*(sender.attempt(r.key, r.body) for r in wanted))
    finally:
        await sender.close()
        await runner.cleanup()


async def test_a_reply_comes_with_its_usage_and_times():
    (outcome,) = await send(MockOptions(MockConfig(latency_s=0.1)))
    assert outcome.code == "answered"
    assert "<rationale>" in outcome.text
    assert outcome.usage.input > 0
    assert outcome.usage.output > 0
    assert outcome.seconds >= 0.1
    assert abs(outcome.sent - time.time()) < 60


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("500", "http_5xx"),
        ("503", "http_5xx"),
        ("429", "http_429"),
        ("quota", "insufficient_quota"),
        ("400", "http_400"),
        ("401", "http_401"),
        ("403", "http_403"),
        ("404", "http_404"),
        ("408", "http_408"),
        ("409", "http_409"),
        ("413", "http_413"),
        ("422", "http_422"),
        ("425", "http_425"),
        ("truncated", "malformed_json"),
        ("short", "lost_connection"),
        ("reset", "lost_connection"),
        ("html", "malformed_json"),
        ("html_as_json", "malformed_json"),
        ("empty", "no_choices"),
        ("null_choices", "no_choices"),
        ("no_content", "no_content"),
        ("content_filter", "content_filter"),
        ("refusal", "refusal"),
        ("length", "length"),
    ],
)
async def test_each_fault_of_the_wire_has_its_code(fault, code):
    (outcome,) = await send(MockOptions(faults=((fault, 1.0),)))
    assert outcome.code == code
    assert outcome.rule.category is not Category.ANSWERED


@pytest.mark.parametrize("fault", ["drip", "hang"])
async def test_a_slow_server_is_left_after_the_bound_and_others_go_on(fault):
    start = time.monotonic()
    outcomes = await send(MockOptions(faults=((fault, 0.5),)), count=12, timeout_s=1.5)
    assert time.monotonic() - start < 10
    codes = [outcome.code for outcome in outcomes]
    assert set(codes) == {"answered", "timeout"}
    assert all(outcome.seconds < 1.0 for outcome in outcomes if outcome.code == "answered")


async def test_nobody_listens():
    sender = Sender(EndpointConfig(base_url="http://127.0.0.1:9/v1"), connections=1)
    outcome = await sender.attempt("k", request().body)
    await sender.close()
    assert outcome.code == "refused_connection"


@pytest.mark.parametrize(("status", "code"), [(407, "http_407"), (503, "refused_connection")])
async def test_what_a_proxy_refuses_was_not_asked(status, code, monkeypatch):
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    sender = Sender(EndpointConfig(base_url="https://teacher.invalid/v1"), connections=1)
    outcome = await sender.attempt("k", request().body)
    await sender.close()
    server.close()
    assert outcome.code == code
    assert not outcome.rule.may_be_billed


async def test_retry_after_comes_through():
    (outcome,) = await send(MockOptions(faults=(("503", 1.0),)))
    assert outcome.retry_after == 1.0


def test_retry_after_forms():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, now=1445412480.0) == 30.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None
    assert retry_after({"retry-after": "-5"}) == 0.0
    assert retry_after({"retry-after": "86400"}) == 86400.0
    assert retry_after({"retry-after": "1e9"}) == LONGEST_WAIT_S
    assert retry_after({"retry-after": "nan"}) is None


async def test_the_key_is_sent_and_never_told(monkeypatch):
    monkeypatch.setenv("CANARY_KEY", CANARY)
    (good,) = await send(MockOptions(key=CANARY), api_key_env="CANARY_KEY")
    assert good.code == "answered"
    monkeypatch.setenv("CANARY_KEY", CANARY + "x")
    (wrong,) = await send(MockOptions(key=CANARY), api_key_env="CANARY_KEY")
    assert wrong.code == "http_401"
    assert CANARY not in repr(wrong)


async def test_a_server_that_echoes_the_key_does_not_put_it_into_the_outcome(monkeypatch):
    from aiohttp import web

    async def echo(call):
        return web.json_response({"error": {"message": f"bad key {call.headers['Authorization']}"}}, status=401)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("CANARY_KEY", CANARY)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    sender = Sender(EndpointConfig(base_url=url, api_key_env="CANARY_KEY"), connections=1)
    outcome = await sender.attempt("k", request().body)
    await sender.close()
    await runner.cleanup()
    assert outcome.code == "http_401"
    assert "bad key" in outcome.detail
    assert CANARY not in repr(outcome)
    assert CANARY not in repr(sender)
    assert not [name for name, part in vars(sender).items() if CANARY in repr(part)]


def test_keys_come_from_the_environment_or_a_file(monkeypatch, tmp_path):
    remote = {"base_url": "https://api.example.com/v1", "api_key_env": "NO_SUCH_KEY"}
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(TeacherAccessError, match=r"NO_SUCH_KEY.*teacher\.api_key_env"):
        read_key(EndpointConfig(**remote))
    monkeypatch.setenv("NO_SUCH_KEY", " k1 \n")
    assert read_key(EndpointConfig(**remote)) == "k1"
    (tmp_path / "key").write_text("k2\n")
    assert read_key(EndpointConfig(**remote, api_key_file=str(tmp_path / "key"))) == "k2"
    with pytest.raises(TeacherAccessError, match="api_key_file"):
        read_key(EndpointConfig(**remote, api_key_file=str(tmp_path / "none")))
    assert read_key(EndpointConfig(base_url="http://localhost:1/v1", api_key_env="UNSET_HERE"))


@pytest.mark.parametrize("key", [f"{CANARY}\nsecond line", f"two {CANARY}", f"“{CANARY}”", f"{CANARY}\x00"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key, tmp_path):
    (tmp_path / "key").write_text(key)
    endpoint = EndpointConfig(base_url="https://api.example.com/v1", api_key_file=str(tmp_path / "key"))
    with pytest.raises(TeacherAccessError, match=r"teacher\.api_key_file.*one line of ASCII") as refused:
        read_key(endpoint)
    assert CANARY not in repr(refused.value)
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(TeacherAccessError, match="not text"):
        read_key(endpoint)


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path, monkeypatch):
    """TLS verification is on: neither request nor key reaches such a server."""
    from aiohttp import web

    reached = []

    async def answer(call):
        reached.append(call.headers)
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/batches", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self_signed(tmp_path)).start()
    endpoint = EndpointConfig(base_url=f"https://127.0.0.1:{runner.addresses[0][1]}/v1")
    sender = Sender(endpoint, connections=1)
    outcome = await sender.attempt("k", request().body)
    monkeypatch.setattr("tailor_ray.teacher.batch_api.RETRY_FOR_S", 0.0)
    api = BatchApi(endpoint)
    with pytest.raises(Stopped, match="cannot be reached"):
        await asyncio.to_thread(api.find, "any")
    api.close()
    await sender.close()
    await runner.cleanup()
    assert (outcome.code, reached) == ("bad_certificate", [])
    assert "ertificate" in outcome.detail


def self_signed(folder):
    """A server's TLS context with a certificate for 127.0.0.1 made on the spot."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    key, today = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, today - timedelta(days=1), today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(pem + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


async def test_what_is_sent_is_the_body_and_its_key():
    from aiohttp import web

    seen = {}

    async def record(call):
        seen["body"] = await call.json()
        seen["key"] = call.headers["Idempotency-Key"]
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", record)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = EndpointConfig(
        base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1",
        model="thinker",
        temperature=None,
        cap_parameter="max_completion_tokens",
        reasoning_effort="low",
        max_tokens=77,
    )
    wanted = request(endpoint)
    sender = Sender(endpoint, connections=1)
    await sender.attempt(wanted.key, wanted.body)
    await sender.close()
    await runner.cleanup()
    assert seen["key"] == wanted.key
    assert seen["body"] == json.loads(wanted.body)
    assert seen["body"]["max_completion_tokens"] == 77
    assert seen["body"]["reasoning_effort"] == "low"
    assert "temperature" not in seen["body"]
    assert "max_tokens" not in seen["body"]
