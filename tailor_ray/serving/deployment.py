"""A model behind an OpenAI-compatible API: Ray Serve's LLM deployment, on a run's student or on an open-weight teacher.

In: `Served`, plain data. Out: an application for Ray Serve.

Always holds. A request is answered to its end by the weights that it began with. A swap lets requests under way finish,
holds new ones back meanwhile and drops none. An application that a driver deployed (`hosted`) ends with that driver,
even when it is killed.

Importing this module imports vLLM, through Ray.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from pydantic import TypeAdapter
from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.context import _get_global_client
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tailor_ray.config.student import engine_arguments, engine_environment
from tailor_ray.errors import ConfigError, CorruptionError, StageError
from tailor_ray.models import ModelRef, identify, resolve
from tailor_ray.models.folder import architecture, context_length
from tailor_ray.observe.faults import one_line
from tailor_ray.observe.logs import own_handlers
from tailor_ray.serving.ingress import application_of, close_ports
from tailor_ray.serving.served import Served, config_of
from tailor_ray.storage import Store

log = logging.getLogger("ray.serve")  # Serve sends what this one says to its log files and to the driver
NAMESPACE = "tailor_ray"
SWAP_WEIGHTS = "tailor_ray.student.engine.SwapWeights"  # vLLM imports it in its workers
PROXY_STARTS = 4  # Serve gives up a proxy that a busy machine has not started within five seconds
LOOK_EVERY_S = 2.0  # a replica looks so often for a newer round, and whether its driver lives


class ServedConfig(LLMConfig):
    """Ray's configuration of a served model, with what StudentServer needs beside it."""

    served: Served


class FolderOfThisNode(CallbackBase):
    """Ray would look for downloads in a task of its own, which imports vLLM first; the folder is here by now."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class ServingEngine(VLLMEngine):
    """Ray's engine; on CPU its core runs the model itself, where Ray asks for a worker process beside it."""

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        if vllm_engine_config.device_config.device_type == "cpu":
            vllm_engine_config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


class Sentinel:
    """An actor that ends with the driver that made it: what that driver deployed ends once it is gone."""

    def ready(self) -> None:
        """Answers once it is."""


class StudentServer(LLMServer):
    """One replica: an engine that starts from the round that is the newest by then and may follow the run."""

    async def __init__(self, llm_config: ServedConfig) -> None:  # type: ignore[misc]  # Ray's own way: it awaits it
        close_ports()
        self._served = llm_config.served
        self._round, model = await asyncio.to_thread(self._served.find)
        folder = await asyncio.to_thread(resolve, model, verify=True)
        self._architecture = architecture(folder)
        engine_config: Any = llm_config.get_engine_config()
        engine_config.hf_model_id = str(folder)  # in place of the name: the folder is this node's
        self._folder = folder
        self._known_tokenizer: Any = None
        self._length = context_length(folder, self._served.engine.max_model_len)
        llm_config.update_engine_kwargs(max_model_len=self._length)
        await super().__init__(llm_config, engine_cls=ServingEngine)
        self._watching = asyncio.create_task(self._watch())

    async def context_length(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self._length

    async def tokens(self, body: dict[str, Any]) -> dict[str, Any]:
        """The tokens of `body`: of its prompt, or of its messages as the chat template puts them.

        Returns what vLLM's own /tokenize does.
        """
        tokenizer = await self._tokenizer()
        if "messages" in body:
            text = tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=body.get("add_generation_prompt", True)
            )
            ids = tokenizer.encode(text, add_special_tokens=body.get("add_special_tokens", False))
        else:
            ids = tokenizer.encode(body["prompt"], add_special_tokens=body.get("add_special_tokens", True))
        names = tokenizer.convert_ids_to_tokens(ids) if body.get("return_token_strs") else None
        return {"count": len(ids), "max_model_len": self._length, "tokens": ids, "token_strs": names}

    async def text(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": (await self._tokenizer()).decode(body["tokens"])}

    async def _tokenizer(self) -> Any:
        """Ray 2.60 leaves vLLM's own tokenization out of its engine."""
        if self._known_tokenizer is None:
            from transformers import AutoTokenizer

            self._known_tokenizer = await asyncio.to_thread(AutoTokenizer.from_pretrained, self._folder)
        return self._known_tokenizer

    async def _start_engine(self) -> None:
        """The engine alone: Ray would start an actor beside it that reports the model, and imports vLLM for that."""
        assert self.engine is not None
        await self.engine.start()

    async def check_health(self) -> None:
        """Raise what ended the watch.

        Serve replaces a replica that says so three times.
        """
        if self._watching.done():
            self._watching.result()
        await super().check_health()

    async def _watch(self) -> None:
        served = self._served
        while served.reload or served.sentinel:
            await asyncio.sleep(LOOK_EVERY_S)
            if served.sentinel and not await asyncio.to_thread(_is_alive, served.sentinel):
                log.warning("the driver of %s is gone: this application ends with it", served.application)
                await asyncio.to_thread(serve.delete, served.application, _blocking=False)
                return
            if served.reload:
                try:
                    number, model = await asyncio.to_thread(served.find)
                except (OSError, CorruptionError) as error:  # storage out of reach is no reason to stop answering
                    log.warning("cannot look for a newer round of %s: %s", served.run, error)
                    continue
                if number != self._round:
                    try:
                        await self._swap(number, model)
                    except CorruptionError as error:  # found before the weights were touched
                        log.warning("round %d of %s is not taken over: %s", number, served.run, error)

    async def _swap(self, number: int, model: ModelRef) -> None:
        """Let what runs finish while new requests wait in the engine, load the weights, go on."""
        folder = await asyncio.to_thread(resolve, model, verify=True)
        if await asyncio.to_thread(architecture, folder) != self._architecture:  # reads a tokenizer: streams go on
            raise StageError(f"{model} has another shape or vocabulary than the round before: it takes a new replica")
        started = time.monotonic()
        await self.pause(mode="wait", clear_cache=True)  # a cached prefix would answer with the old weights
        paused = time.monotonic()
        await self.collective_rpc("swap_weights", args=(str(folder),))
        await self.reset_prefix_cache()
        await self.resume()
        self._round = number
        log.warning(
            "%s answers from round %d: %.2f s until the last request was done, %.2f s for the weights",
            *(self._served.name, number, paused - started, time.monotonic() - paused),
        )


def _is_alive(sentinel: str) -> bool:
    try:
        ray.get_actor(sentinel, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def application(args: dict[str, Any]) -> serve.Application:
    """Builder for Serve's configuration files and KubeRay's RayService: `args` are the fields of Served.

    Of a run's student the engine's settings are the run's own unless given.
    """
    return build(from_arguments(args))


def from_arguments(args: dict[str, Any]) -> Served:
    """What `args`, the fields of Served, ask to serve.

    Their `model` may be given as its name: a local folder, a hub id or a storage URI.
    """
    if isinstance(args.get("model"), str):
        args = {**args, "model": identify(args["model"], setting="model")}
    served = TypeAdapter(Served).validate_python(args)
    if served.run is None or "engine" in args:
        return served
    return replace(served, engine=config_of(Store.open(served.run)).student)


def build(served: Served) -> serve.Application:
    ingress = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 10_000}
    return application_of(configuration(served), ingress)


def configuration(served: Served) -> ServedConfig:
    """How Ray is to serve it.

    Where `served` does not say, it is on GPUs if the cluster has enough of them for one replica, else on CPUs.
    """
    resources = ray.cluster_resources()
    engine = served.engine
    on_gpu = served.gpu if served.gpu is not None else resources.get("GPU", 0) >= engine.tensor_parallel
    threads = max(1, int(resources.get("CPU", 1)) // (2 * served.replicas))
    environment = engine_environment(on_gpu, threads)
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # Serve's engine is asynchronous: its core is a child
    return ServedConfig(
        served=served,
        server_cls=StudentServer,
        callback_config=CallbackConfig(callback_class=FolderOfThisNode),
        model_loading_config={"model_id": served.name},
        engine_kwargs=engine_arguments(engine, on_gpu, engine.max_model_len) | {"worker_extension_cls": SWAP_WEIGHTS},
        # On CPU a replica claims next to nothing, as the exam's engines do: training needs the same cores.
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 0.01}]},
        deployment_config={
            "num_replicas": served.replicas,
            "ray_actor_options": {"num_cpus": 0},
            "max_ongoing_requests": 4 * engine.max_num_seqs,
        },
        runtime_env={"env_vars": environment},
    )


@contextmanager
def hosted(served: Served, host: str, port: int, route: str) -> Iterator[str]:
    """Deploy on the cluster that this process drives; yields the API's base URL, and takes it down at the end.

    Raises ConfigError when Serve listens elsewhere already or another driver holds the application's name, and
    StageError when no replica starts.
    """
    with own_handlers():
        ours = _listen(host, port)
    name = f"tailor-sentinel-{served.application}"
    actor: Any = ray.remote(num_cpus=0)(Sentinel)
    try:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        sentinel = actor.options(name=name, namespace=NAMESPACE, scheduling_strategy=here).remote()
    except ValueError:
        raise ConfigError(
            f"another driver serves {served.application!r} on this cluster; stop it, or serve under another --route"
        ) from None
    try:
        ray.get(sentinel.ready.remote())
        with own_handlers():
            serve.run(build(replace(served, sentinel=name)), name=served.application, route_prefix=route)
        yield f"http://{host}:{port}{route.rstrip('/')}/v1"
    except RuntimeError as error:
        raise StageError(f"{served.name} could not be served: {one_line(error)}") from error
    finally:
        serve.delete(served.application)
        ray.kill(sentinel)
        if ours and not serve.status().applications:
            serve.shutdown()


def check_port(host: str, port: int) -> None:
    """Raise ConfigError where the proxy could not listen.

    Its own error is a traceback in an actor that is retried.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port (--port; teacher.serving.port for "
            "a teacher) or address (--host)"
        ) from None


def _listen(host: str, port: int) -> bool:
    """Have Serve's proxy listen there, on the head node alone; True when Serve was not there before."""
    fresh = _get_global_client(raise_if_no_controller_running=False) is None
    if fresh:
        check_port(host, port)
    for left in reversed(range(PROXY_STARTS)):
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
            break
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            if not left:
                raise StageError(
                    f"Ray Serve's proxy does not start ({one_line(error)}); start the command again"
                ) from None
            log.warning("Ray Serve's proxy was not ready in Serve's five seconds and is started again")
    client: Any = _get_global_client()
    found = client.http_config  # what an earlier start on this cluster chose
    if (found.host, found.port) != (host, port):
        raise ConfigError(
            f"Ray Serve listens at {found.host}:{found.port} on this cluster already; give that address "
            "(--host, --port), or end it with `serve shutdown`"
        )
    return fresh
