"""The mock teacher: an OpenAI-compatible server for demos and tests, with limits, latency and faults on demand.

`serve_mock(options)` runs until it is ended. It says where it listens in its first line of output. What it draws (wrong
answers, faults, jitter) is a function of the request's hash, and of how often that request came. So a run with the same
requests has the same accidents. Each call has a line in the access log once its end is known.

`MockProcess` runs it in a process of its own, which never outlives its parent. That process runs this module too. It
takes its options from one JSON argument.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from aiohttp import web

from tailor_ray.config.teacher import MOCK, MockConfig, TeacherConfig
from tailor_ray.demo.mock_batches import Batches
from tailor_ray.demo.mock_replies import FAULTS, IN_BATCHES, Answers, Call, completion, compose, error_response
from tailor_ray.errors import UserError
from tailor_ray.teacher.client import canonical

PR_SET_PDEATHSIG = 1
STOP_S = 10.0  # until a mock that does not end by itself is killed


@dataclass(frozen=True, slots=True)
class MockOptions:
    """How the mock serves. `faults` are shares by name (see `mock_replies.FAULTS`) of requests whose first
    `fault_calls` calls meet that fault."""

    config: MockConfig = field(default_factory=MockConfig)
    host: str = "127.0.0.1"
    port: int = 0
    faults: tuple[tuple[str, float], ...] = ()
    fault_calls: int = 1
    key: str | None = None  # required of clients, if given
    models: tuple[str, ...] = ()  # known ones; empty takes any
    limit_window_s: float = 60.0  # over which a minute's limits are counted, in proportion
    storm: tuple[float, float] | None = None  # seconds after the first call from which, and for which, all get 429
    storm_says_when: bool = True  # whether these carry Retry-After
    batch_lines: int = 50_000  # a batch of more requests fails
    batch_expires: float = 0.0  # share of a batch's requests that it does not reach, the first time


class Limiter:
    """Sliding log of a window's requests and tokens, as a server counts them."""

    def __init__(self, requests: float | None, tokens: float | None, window_s: float) -> None:
        self._requests = requests and requests * window_s / 60.0
        self._tokens = tokens and tokens * window_s / 60.0
        self._window = window_s
        self._log: deque[list[float]] = deque()  # [time, tokens]
        self._sum = 0.0

    def admit(self, now: float, tokens: float) -> list[float] | None:
        """Count a call at the time `now` (seconds) that takes so many `tokens` at most.

        Returns its entry, whose tokens `settle` amends; None when a limit is reached.
        """
        while self._log and self._log[0][0] + self._window <= now:
            self._sum -= self._log.popleft()[1]
        if self._requests is not None and len(self._log) + 1 > self._requests:
            return None
        if self._tokens is not None and self._log and self._sum + tokens > self._tokens:
            return None
        entry = [now, tokens]
        self._log.append(entry)
        self._sum += tokens
        return entry

    def settle(self, entry: list[float], tokens: float) -> None:
        if self._log and self._log[0][0] <= entry[0]:
            self._sum += tokens - entry[1]
            entry[1] = tokens

    def wait(self, now: float) -> float:
        """Seconds until the oldest call leaves the window."""
        return max(self._log[0][0] + self._window - now, 0.0) if self._log else 0.0


class MockServer:
    """The server's state: one per process."""

    def __init__(self, options: MockOptions) -> None:
        unknown = [name for name, _ in options.faults if name not in FAULTS]
        if unknown:
            raise UserError(f"no such fault: {unknown[0]}; known: {', '.join(FAULTS)}")
        self.options = options
        config = options.config
        self._answers = Answers.read(config.answers) if config.answers else None
        self._limiter = Limiter(config.requests_per_minute, config.tokens_per_minute, options.limit_window_s)
        self._calls: Counter[str] = Counter()
        self._first_call: float | None = None
        self._log: TextIO | None = None
        if config.access_log:
            self._log = Path(config.access_log).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def app(self) -> web.Application:
        app = web.Application(client_max_size=256 << 20, middlewares=[self.check_key])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_get("/v1/models/{model}", self.show_model)
        options = self.options
        Batches(self.answer_line, options.config.latency_s, options.batch_lines).add_routes(app)
        return app

    async def answer_line(self, body: dict[str, Any], digest: str) -> tuple[int, dict[str, Any]] | None:
        """Answer one line of a batch as a call is answered, but for faults that only a connection can have.

        Returns status and body; None for a line that the batch does not reach.
        """
        number = self._calls[digest]
        self._calls[digest] += 1
        if number == 0 and _share(digest, "expire") < self.options.batch_expires:
            return None
        wrong = _share(digest, "wrong") < self.options.config.wrong_share
        text = compose(body, self._answers, wrong, int(digest_of(digest, "style")[:8], 16))
        fault = self._fault(digest, number)
        call = Call(None, body, text, sum(len(str(message.get("content"))) for message in body["messages"]) // 4 + 8)
        self._write(time.time(), digest, FAULTS[fault].status if fault else 200, fault or "answered")
        if fault is None:
            return 200, completion(call)
        if fault not in IN_BATCHES:
            return 500, {"error": {"message": fault, "code": "server_error"}}
        response = await FAULTS[fault].serve(call)
        assert isinstance(response, web.Response)
        return response.status, json.loads(response.text or "{}")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw)
            messages = body["messages"]
            size = sum(len(str(message.get("content"))) for message in messages)
        except (ValueError, TypeError, KeyError, AttributeError):
            return error_response(400, "the body is not a chat request", "invalid_request_error")
        digest = request.headers.get("Idempotency-Key") or hashlib.sha256(raw).hexdigest()
        if self.options.models and body.get("model") not in self.options.models:
            return error_response(404, f"The model {body.get('model')!r} does not exist", "model_not_found")
        return await self._answer(request, body, digest, size // 4 + 8)

    async def _answer(self, request: web.Request, body: dict[str, Any], digest: str, prompt: int) -> web.StreamResponse:
        config = self.options.config
        cap = int(body.get("max_tokens") or body.get("max_completion_tokens") or 512)
        arrived = time.time()
        storm = self._storm_left(time.monotonic())
        entry = None if storm else self._limiter.admit(time.monotonic(), prompt + cap)
        if entry is None:
            wait = storm or self._limiter.wait(time.monotonic())
            self._write(arrived, digest, 429, "storm" if storm else "rate_limited")
            headers = {"Retry-After": str(max(1, round(wait + 0.5))), "Retry-After-Ms": str(int(wait * 1000) + 1)}
            says = not storm or self.options.storm_says_when
            return error_response(429, "Rate limit reached", "rate_limit_exceeded", headers if says else None)
        number = self._calls[digest]
        self._calls[digest] += 1
        latency = config.latency_s + config.jitter_s * _share(digest, "jitter")
        if latency:
            await asyncio.sleep(latency)
        wrong = _share(digest, "wrong") < config.wrong_share
        text = compose(body, self._answers, wrong, int(digest_of(digest, "style")[:8], 16))
        call = Call(request, body, text, prompt)
        self._limiter.settle(entry, prompt + call.output_tokens)
        fault = self._fault(digest, number)
        if fault is not None:
            self._write(arrived, digest, FAULTS[fault].status, fault)
            return await FAULTS[fault].serve(call)
        response = web.json_response(completion(call))
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionResetError:
            self._write(arrived, digest, 499, "client_gone")
        else:
            self._write(arrived, digest, 200, "wrong" if wrong else "answered")
        return response

    def _storm_left(self, now: float) -> float:
        """Seconds until the storm is over; 0 when there is none."""
        self._first_call = now if self._first_call is None else self._first_call
        if self.options.storm is None:
            return 0.0
        after, lasts = self.options.storm
        begins = self._first_call + after
        return begins + lasts - now if begins <= now < begins + lasts else 0.0

    def _fault(self, digest: str, number: int) -> str | None:
        """The accident that this call meets; later calls of the same request meet none."""
        if number >= self.options.fault_calls:
            return None
        shares = (("truncated", self.options.config.malformed_share), *self.options.faults)
        draw = _share(digest, "fault")
        for name, share in shares:
            if draw < share:
                return name
            draw -= share
        return None

    @web.middleware
    async def check_key(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        key = self.options.key
        if key is None or request.headers.get("Authorization") == f"Bearer {key}":
            return await handler(request)
        return error_response(401, "Incorrect API key provided", "invalid_api_key")

    async def list_models(self, _: web.Request) -> web.Response:
        names = self.options.models or ("mock-teacher",)
        return web.json_response({"object": "list", "data": [_model(name) for name in names]})

    async def show_model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if self.options.models and name not in self.options.models:
            return error_response(404, f"The model {name!r} does not exist", "model_not_found")
        return web.json_response(_model(name))

    def _write(self, arrived: float, digest: str, status: int, outcome: str) -> None:
        if self._log is not None:
            line = {"time": arrived, "ended": time.time(), "request": digest, "status": status, "outcome": outcome}
            self._log.write(f"{canonical(line)}\n")


def digest_of(*parts: str) -> str:
    return hashlib.sha256(":".join(parts).encode()).hexdigest()


def _share(digest: str, what: str) -> float:
    """A number in [0, 1) of the request and what it decides."""
    return int(digest_of(digest, what)[:13], 16) / 16**13


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tailor-ray"}


async def start_mock(options: MockOptions) -> tuple[web.AppRunner, str]:
    """Serve in the running event loop.

    Returns the runner, whose `cleanup` ends it, and the base URL.
    """
    runner = web.AppRunner(MockServer(options).app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port, backlog=4096)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}/v1"


def serve_mock(options: MockOptions, output: TextIO) -> None:
    """Serve until SIGINT or SIGTERM; the base URL is the first line of `output`.

    Raises UserError for bad options.
    """
    try:
        asyncio.run(_serve(options, output))
    except KeyboardInterrupt:
        return
    except OSError as error:
        if error.filename is not None:  # the access log's
            raise
        raise UserError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror}; choose another port"
        ) from None


async def _serve(options: MockOptions, output: TextIO) -> None:
    runner, url = await start_mock(options)
    output.write(f"{url}\n")
    output.flush()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await runner.cleanup()


class MockProcess:
    """Starts on `start` (or `with`) and answers once that returns; `base_url` says where."""

    def __init__(self, options: MockOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def start(self) -> Self:
        """Start the process and wait until it serves.

        Raises UserError with what it said when it cannot.
        """
        command = [sys.executable, "-m", __name__, encode_options(self._options), str(os.getpid())]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self._options.key is not None:
            environment["TAILOR_RAY_MOCK_KEY"] = self._options.key
        with tempfile.TemporaryFile("w+") as said:  # not a pipe: one that nobody reads fills up and stops the writer
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
            assert self._process.stdout is not None
            self.base_url = self._process.stdout.readline().strip()
            if not self.base_url:
                self._process.communicate()
                said.seek(0)
                raise UserError(f"the mock teacher did not start: {said.read().strip()[-500:]}")
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End the process.

        What it is saying it says and logs first, if that takes no longer than half a second.
        """
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def open_teacher(config: TeacherConfig) -> Iterator[TeacherConfig]:
    """The configuration with a real address in place of `mock`.

    The process behind it lives as long as the block.
    """
    if all(endpoint.base_url != MOCK for endpoint in config.teachers):
        yield config
        return
    with MockProcess(MockOptions(config.mock)) as mock:
        pointed = {"base_url": mock.base_url}
        teachers = (one.model_copy(update=pointed if one.base_url == MOCK else {}) for one in config.teachers)
        yield config.model_copy(update={"teachers": tuple(teachers)})


def encode_options(options: MockOptions) -> str:
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in ("config", "key")}
    return json.dumps(fields | {"config": options.config.model_dump()})


def decode_options(text: str) -> MockOptions:
    values: dict[str, Any] = json.loads(text)
    values["config"] = MockConfig(**values["config"])
    values["faults"] = tuple((str(name), float(share)) for name, share in values.get("faults", ()))
    values["models"] = tuple(values.get("models", ()))
    values["storm"] = tuple(values["storm"]) if values.get("storm") else None
    return MockOptions(**values, key=os.environ.get("TAILOR_RAY_MOCK_KEY"))


def main() -> None:
    """`python -m tailor_ray.demo.mock_server OPTIONS [PARENT]`; with a parent's pid it dies when that does."""
    if len(sys.argv) > 2:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[2]):  # it died before we asked
            sys.exit(0)
    try:
        serve_mock(decode_options(sys.argv[1] if len(sys.argv) > 1 else "{}"), sys.stdout)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
