"""Open-weight teachers on the run's own cluster (`teacher.serve`): up while lessons are asked for, and no longer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from tailor_ray.config.student import StudentConfig
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.models import ModelRef
from tailor_ray.observe.logs import own_handlers
from tailor_ray.serving.served import Served


@contextmanager
def hosted_teachers(config: TeacherConfig, run: str, models: Mapping[str, ModelRef]) -> Iterator[TeacherConfig]:
    """The configuration with addresses of what `serve` names; `models` holds them by that name.

    Needs a connected cluster. Costs nothing without any.
    """
    with ExitStack() as opened:
        teachers = [_hosted(one, f"{run}-{n}", models, opened) for n, one in enumerate(config.teachers, 1)]
        yield config.model_copy(update={"teachers": tuple(teachers)})


def _hosted(endpoint: EndpointConfig, name: str, models: Mapping[str, ModelRef], opened: ExitStack) -> EndpointConfig:
    if endpoint.serve is None:
        return endpoint
    with own_handlers():
        from tailor_ray.serving.deployment import hosted
    own = endpoint.serving
    served = Served(
        name=endpoint.model,
        model=models[endpoint.serve],
        replicas=own.replicas,
        engine=StudentConfig(
            max_model_len=own.max_model_len,
            tensor_parallel=own.tensor_parallel,
            gpu_memory_utilization=own.gpu_memory_utilization,
            kv_cache_gib=own.kv_cache_gib,
            max_num_seqs=min(256, endpoint.max_in_flight),
        ),
        application=f"teacher-{name}",
    )
    url = opened.enter_context(hosted(served, _address(), own.port, f"/teacher-{name}"))
    # The key of another teacher has no business there.
    return endpoint.model_copy(update={"base_url": url, "api_key_env": None, "api_key_file": None})


def _address() -> str:
    """Where every node finds the head's proxy: loopback while the cluster is this machine."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    addresses = {node["NodeManagerAddress"] for node in nodes}
    if len(addresses) == 1:
        return "127.0.0.1"
    return next(node["NodeManagerAddress"] for node in nodes if "node:__internal_head__" in node["Resources"])
