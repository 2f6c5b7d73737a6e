"""What is served: a run's student as a round left it, any model, or the open-weight teachers of a run.

A student is found by the run's manifests. Teachers that `teacher.serve` names are up while lessons are asked for, and
no longer. Importing this module imports neither Ray nor vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tailor_ray.config import RunConfig
from tailor_ray.config.run import parse_run_file
from tailor_ray.config.student import StudentConfig
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import DataError
from tailor_ray.layout import RUN_FILE, check_is_run, rounds_begun, stage_folder, student_after
from tailor_ray.models import ModelRef, read_model
from tailor_ray.observe.logs import own_handlers
from tailor_ray.storage import Store, read_manifest
from tailor_ray.storage.commits import read_settings


def config_of(run: Store) -> RunConfig:
    """The run's own configuration.

    Raises DataError when the folder is no run, and CorruptionError when it is damaged.
    """
    check_is_run(run)
    return parse_run_file(read_settings(run, RUN_FILE), f"{run.uri}/{RUN_FILE}")


def newest_round(run: Store) -> int:
    """The last round whose training is committed; 0 is the student as given.

    Raises DataError before there is one.
    """
    for number in reversed(rounds_begun(run)):
        if read_manifest(stage_folder(run, student_after(number))) is not None:
            return number
    raise DataError(f"{run.uri} has no student yet: wait until its round 0 is committed (tailor-ray status)")


def student_of(run: Store, round_: int) -> ModelRef:
    """The student after the round `round_`.

    Raises DataError when that round has none.
    """
    folder = stage_folder(run, student_after(round_))
    if read_manifest(folder) is None:
        raise DataError(f"{run.uri} has no student of round {round_}; its newest is round {newest_round(run)}")
    return read_model(folder)


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: a run's student, or any model. `name` is what clients ask for."""

    name: str
    run: str | None = None  # URI of a run folder
    round: int | None = None  # None takes the newest when a replica starts
    reload: bool = False  # go on to each newer round
    model: ModelRef | None = None  # instead of a run
    engine: StudentConfig = field(default_factory=StudentConfig)
    replicas: int = 1
    gpu: bool | None = None  # None looks at what the cluster has by now
    sentinel: str | None = None  # an actor's name: the application ends with it
    application: str = "student"

    def find(self) -> tuple[int, ModelRef]:
        """The round to answer from and its student."""
        if self.model is not None:
            return 0, self.model
        run = Store.open(self.run or "")
        number = newest_round(run) if self.round is None else self.round
        return number, student_of(run, number)


@contextmanager
def hosted_teachers(config: TeacherConfig, run: str, models: Mapping[str, ModelRef]) -> Iterator[TeacherConfig]:
    """The configuration with addresses of what `serve` names; `models` holds them by that name.

    Needs a connected cluster. Costs nothing without any.
    """
    with ExitStack() as opened:
        teachers: list[EndpointConfig] = []
        for number, endpoint in enumerate(config.teachers, 1):
            if endpoint.serve is None:
                teachers.append(endpoint)
                continue
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
                application=f"teacher-{run}-{number}",
            )
            url = opened.enter_context(hosted(served, _address(), own.port, f"/{served.application}"))
            # The key of another teacher has no business there.
            here = {"base_url": url, "api_key_env": None, "api_key_file": None}
            teachers.append(endpoint.model_copy(update=here))
        yield config.model_copy(update={"teachers": tuple(teachers)})


def _address() -> str:
    """Where every node finds the head's proxy: loopback while the cluster is this machine."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    addresses = {node["NodeManagerAddress"] for node in nodes}
    if len(addresses) == 1:
        return "127.0.0.1"
    return next(node["NodeManagerAddress"] for node in nodes if "node:__internal_head__" in node["Resources"])
