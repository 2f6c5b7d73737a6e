"""`EnginePool`: the student, as many engines answer for it. Picklable, so that Ray Data's workers ask it directly.

Always holds. Every sample asked is answered, by a text or by an error that says why. A batch on an engine that dies is
asked again, first by itself and then question by question. A question that kills its engine once more is answered by an
error and left (quarantined). What stops all of it is the bound on restarts, by StageError.

These are actors of our own, fed by Ray Data. They are not a Ray Serve LLM deployment that Ray Data streams through.
Both were measured side by side on 2 cores (`jobs/benchmarks/exam.py --only speed --rivals raw serve`, two replicas,
medians of 3). These engines make 39.9 samples/s, one raw `LLM.generate` process 26.2 and the deployment 10.9. On CPU an
engine in its actor's own process saves the two further processes of each replica. The swap of weights, the quarantine
and the bound on restarts are needed in either case.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tailor_ray.config.student import StudentConfig
from tailor_ray.errors import ConfigError
from tailor_ray.models import ModelRef
from tailor_ray.observe import metrics
from tailor_ray.observe.faults import one_line
from tailor_ray.student.sampling import Completions, EngineBroken, Sampling
from tailor_ray.student.supervisor import ACTOR_LOST, CALLERS, EngineLease, Supervisor, get

log = logging.getLogger(__name__)
PROCESS_GIB = 1.5  # measured 1.2 to 1.4 without the cache
ASK_S = 3.0  # that a look at the count may take
QUARANTINED = "quarantined: its prompt killed the engine each time it was asked"


class ClusterNodes(Protocol):
    """What may be asked about the cluster's nodes; `rounds.cluster.Nodes` answers."""

    def could_have(self, resource: str) -> float: ...

    def wait_for(self, bundles: Sequence[dict[str, float]], what: str) -> bool: ...


def engine_count(config: StudentConfig, resources: Mapping[str, float], model: ModelRef) -> int:
    """How many engines of `model` a cluster of these `resources` has room for, or as many as `config` asks for.

    `resources` are as Ray counts them: CPU, GPU, and memory in bytes. Raises ConfigError when the GPUs do not suffice.
    """
    wanted, width, gpus = config.engines, config.tensor_parallel, int(resources.get("GPU", 0))
    if wanted == "auto":
        if gpus >= width:
            return gpus // width
        # On CPU an engine is a process, its cache, and weights as float32, stored in half of that.
        memory = (PROCESS_GIB + config.kv_cache_gib) * 2**30 + 2 * model.weight_bytes
        return max(1, int(min(resources.get("CPU", 1), resources.get("memory", float("inf")) // memory)))
    if gpus >= width and wanted * width > gpus:
        raise ConfigError(
            f"student.engines={wanted} with student.tensor_parallel={width} GPUs each is more than the {gpus} GPUs of "
            "the cluster; lower one of them, add nodes, or let the run wait longer for an autoscaler "
            "(cluster.wait_for_nodes_s)"
        )
    return wanted


class EngineLost(Exception):
    """The engine that had a batch died, and another has taken its place."""


class EnginePool:
    """The engines of one run: `serve` a model before they are asked, `stop` them at the end.

    Cheap to pickle once they were started.
    """

    def __init__(self, config: StudentConfig, seed: int, nodes: ClusterNodes | None = None) -> None:
        """`nodes` waits for what an autoscaler brings; without it what is there is taken."""
        self._config, self._seed = config, seed
        self._nodes: ClusterNodes | None = nodes
        self._supervisor: Any = None
        self._on_gpu = False
        self.engines = 0
        self.max_num_seqs = config.max_num_seqs

    @property
    def is_started(self) -> bool:
        return self._supervisor is not None

    def serve(self, model: ModelRef) -> str:
        """Have all engines answer from `model`.

        Starts them when they are not there; swaps their weights where that is enough. Returns the model's sha256,
        checked in each engine. Raises StageError when one cannot start, ModelError and CorruptionError for a model that
        no engine can use.
        """
        if self._supervisor is None:
            self._start(model)
        return get(self._supervisor.load.remote(model, metrics.current_run()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_nodes": None}

    def _start(self, model: ModelRef) -> None:
        wanted, width = self._config.engines, self._config.tensor_parallel
        if self._nodes is not None and self._nodes.could_have("GPU") >= width:
            self._nodes.wait_for([{"GPU": float(width)}] * (1 if wanted == "auto" else wanted), "student.engines")
        resources = ray.cluster_resources()
        self._on_gpu = resources.get("GPU", 0) >= width
        if not self._on_gpu and resources.get("GPU", 0):
            log.warning(
                "the engines take CPUs: student.tensor_parallel=%d is more than the %d GPUs of the cluster",
                *(width, resources["GPU"]),
            )
        self.engines = engine_count(self._config, resources, model)
        if not self._on_gpu and self._config.dtype in ("bfloat16", "float16"):
            log.warning("student.dtype=%s is slower than float32 on a CPU; set it to auto", self._config.dtype)
        threads = max(1, int(resources.get("CPU", 1)) // self.engines)
        # On the driver's node: an actor without resources goes anywhere, and the pool would be lost with that node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_concurrency": CALLERS, "scheduling_strategy": here}
        supervisor: Any = ray.remote(Supervisor).options(**options)
        self._supervisor = supervisor.remote(self._config, model, self._seed, self.engines, self._on_gpu, threads)
        self.begin_stage(0)

    def begin_stage(self, max_restarts: int, room: int = 0) -> None:
        """Begin a stage, which starts engines that are missing.

        `max_restarts` engines may be replaced in it, and `room` parts of an exam may be under way at a time.
        """
        get(self._supervisor.begin_stage.remote(max_restarts, room))

    def enter_part(self, index: int) -> None:
        """Begin part `index` of the exam.

        Waits while the driver has not taken over enough of those before.
        """
        get(self._supervisor.enter_part.remote(index))

    def leave_part(self, index: int) -> None:
        """Say that the driver has taken over part `index`."""
        self._supervisor.leave_part.remote(index)

    def restarts(self) -> int:
        """Engines replaced since the stage began."""
        return get(self._supervisor.restarts.remote())

    def answered(self) -> int:
        """Samples answered since the stage began, those of batches under way included.

        Returns 0 when the supervisor does not say within ASK_S seconds.
        """
        try:
            return get(self._supervisor.answered.remote(), timeout=ASK_S)
        except (*ACTOR_LOST, ray.exceptions.GetTimeoutError):
            return 0

    def release(self, gpus: int = 0) -> None:
        """Give the engines' memory back while the student trains, as student.release_for_training says.

        `gpus` are wanted for training; raises ConfigError where sleeping engines keep too many, for a GPU that one
        process claims is given to no other.
        """
        if self._supervisor is None:
            return
        how = self._config.release_for_training
        if how == "auto":
            how = "stop" if self._on_gpu else "never"
        there = int(ray.cluster_resources().get("GPU", 0))
        kept = self.engines * self._config.tensor_parallel if self._on_gpu and how != "stop" else 0
        if gpus <= there < gpus + kept:
            raise ConfigError(
                f"student.release_for_training={how} leaves {there - kept} of {there} GPUs to training.workers={gpus}, "
                "which would never start; set it to stop, or lower student.engines or training.workers"
            )
        if how != "never":
            get(self._supervisor.release.remote(how))

    def stop(self) -> None:
        """End all engines; harmless when none was started, or when a signal to all processes ended them before."""
        if self._supervisor is not None:
            try:
                get(self._supervisor.stop.remote())
            except ACTOR_LOST as error:  # its engines ended with it
                log.warning("the engines' supervisor is gone: %s", one_line(error))
            ray.kill(self._supervisor)
            self._supervisor = None

    def answer(self, ids: list[str], prompts: list[str], seeds: list[list[int]], sampling: Sampling) -> Completions:
        """Ask the engines, and ask again what a dead one left.

        `ids` name the questions in messages. `seeds` holds one list for each prompt, with one seed for each sample.
        Returns one completion for each seed of each prompt, in order. Raises StageError when engines die more often
        than the stage allows.
        """
        try:
            return self._ask(prompts, seeds, sampling, alone=False)
        except EngineLost:
            pass
        if len(prompts) > 1:
            try:
                return self._ask(prompts, seeds, sampling, alone=True)
            except EngineLost:
                pass
        out = Completions()
        for question_id, prompt, group in zip(ids, prompts, seeds, strict=True):
            try:
                out.extend(self._ask([prompt], [group], sampling, alone=True))
            except EngineLost:
                log.warning("question %s is quarantined: its prompt kills engines", question_id)
                out.extend(Completions.of_errors([QUARANTINED] * len(group)))
        return out

    def _ask(self, prompts: list[str], seeds: list[list[int]], sampling: Sampling, alone: bool) -> Completions:
        lease: EngineLease = get(self._supervisor.lease.remote(alone))
        try:
            out = self._wait(lease.handle, lease.handle.generate.remote(prompts, seeds, sampling, alone))
        except (EngineBroken, *ACTOR_LOST) as error:
            get(self._supervisor.lost.remote(lease, one_line(error)))
            raise EngineLost from None
        self._supervisor.give_back.remote(lease, len(out.texts))
        return out

    def _wait(self, handle: Any, reference: Any) -> Completions:
        """The call's result; an engine that makes no step for student.engine_timeout_s counts as dead."""
        bound = self._config.engine_timeout_s
        steps, since = -1, time.monotonic()
        while not ray.wait([reference], timeout=min(30.0, bound / 4))[0]:
            try:
                now = ray.get(handle.progress.remote(), timeout=bound / 4)
            except ray.exceptions.GetTimeoutError:
                now = steps
            if now != steps:
                steps, since = now, time.monotonic()
            elif time.monotonic() - since > bound:
                raise EngineBroken(f"no step within student.engine_timeout_s={bound}")
        return get(reference)
