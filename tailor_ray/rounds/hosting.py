"""Open-weight teachers on the run's own cluster (`teacher.serve`): up while lessons are asked for, and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from tailor_ray.config.student import StudentConfig
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.observe.logs import own_handlers

E = TypeVar("E", bound=EndpointConfig)


@contextmanager
def hosted_teachers(config: TeacherConfig, run: str) -> Iterator[TeacherConfig]:
    """The configuration with addresses of what `serve` names; needs a connected cluster. Costs nothing without any."""
    with ExitStack() as opened:
        first, *also = (_hosted(endpoint, f"{run}-{n}", opened) for n, endpoint in enumerate(config.endpoints, 1))
        assert isinstance(first, TeacherConfig)
        yield first.model_copy(update={"also": tuple(also)})


def _hosted(endpoint: E, name: str, opened: ExitStack) -> E:
    if endpoint.serve is None:
        return endpoint
    from tailor_ray.student.of_run import Served

    with own_handlers():
        from tailor_ray.student.serve import hosted
    own = endpoint.serving
    served = Served(
        name=endpoint.model,
        model=endpoint.serve,
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
    # A variable that nobody sets: the key of another teacher has no business there.
    return endpoint.model_copy(update={"base_url": url, "api_key_env": "TAILOR_RAY_HOSTED_TEACHER_KEY"})


def _address() -> str:
    """Where every node finds the head's proxy: loopback while the cluster is this machine."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    addresses = {node["NodeManagerAddress"] for node in nodes}
    if len(addresses) == 1:
        return "127.0.0.1"
    return next(node["NodeManagerAddress"] for node in nodes if "node:__internal_head__" in node["Resources"])
