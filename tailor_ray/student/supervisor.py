"""Keeps a pool's engines alive: starts them, lends the least busy one, replaces the dead, swaps all weights.

There is one such Ray actor per pool. The driver owns it and it owns the engines, so all of them end with the driver.

Always holds. An engine that is lent answers from the model that the last `load` named. A dead engine is replaced once,
however many callers report it. After `max_restarts` replacements in one stage every caller gets StageError.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tailor_ray.config.student import StudentConfig, engine_environment
from tailor_ray.errors import ModelError, StageError, TailorError
from tailor_ray.models import ModelRef
from tailor_ray.observe import metrics
from tailor_ray.observe.faults import one_line
from tailor_ray.student.engine import StudentEngine
from tailor_ray.student.sampling import EngineBroken

log = logging.getLogger(__name__)
CALLERS = 256  # threads of the supervisor, for leases wait here; a pool has two callers an engine
ENGINE_CALLERS = 64
IF_MEMORY = (
    "If memory ran out, lower student.max_num_seqs, student.engines, or student.kv_cache_gib "
    "(student.gpu_memory_utilization on GPUs)"
)
# What the call of a lost actor raises: Ray's memory monitor has an error of its own, which is no RayActorError.
ACTOR_LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
LOOK_S = 1.0  # that an engine may take to say how far it is
STARTS = 3  # of an engine: a node that was lost may be chosen for it until the cluster knows


@dataclass(slots=True)
class Slot:
    """One place in the pool; `epoch` counts the engines that have filled it."""

    index: int
    handle: Any = None  # the engine's actor handle, None while there is none
    epoch: int = 0
    lent: int = 0
    alone_until: float = 0.0  # lent to a caller who must be the only one to ask alone, and is lost if not back by then
    starting: bool = False


@dataclass(frozen=True, slots=True)
class EngineLease:
    """An engine that is lent to a caller: its slot, and the engine's epoch there."""

    slot: int
    epoch: int
    handle: Any
    alone: bool = False


class Supervisor:
    """The actor. Every method may block; Ray runs each call on a thread of its own."""

    def __init__(
        self, config: StudentConfig, model: ModelRef, seed: int, engines: int, on_gpu: bool, threads: int
    ) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        self._config, self._model, self._seed = config, model, seed
        self._on_gpu, self._threads = on_gpu, threads
        self._slots = [Slot(index) for index in range(engines)]
        self._changed = threading.Condition()
        self._failure: str | None = None
        self._restarts, self._max_restarts = 0, 0
        self._answered = 0  # samples of batches that were given back in this stage
        self._parts: set[int] = set()  # of the exam: begun by a task and not yet taken over by the driver
        self._room = 0

    def __repr__(self) -> str:
        """What Ray's dashboard calls this actor."""
        return f"Supervisor({len(self._slots)} engines)"

    def begin_stage(self, max_restarts: int, room: int = 0) -> None:
        """Begin a stage: count restarts anew and fill empty slots.

        `max_restarts` engines may be replaced in it. `room` parts of an exam may be under way at a time.
        """
        with self._changed:
            self._restarts, self._max_restarts, self._failure = 0, max_restarts, None
            self._answered = 0
            self._parts, self._room = set(), room
            for slot in self._slots:
                slot.lent, slot.alone_until = 0, 0.0  # callers of a stage that was broken off gave nothing back
        self._fill()

    def enter_part(self, index: int) -> None:
        """Wait until fewer parts than the stage has room for are under way, then count this one.

        A part that is begun again, after its task was lost, has its place already.
        """
        with self._changed:
            self._changed.wait_for(lambda: index in self._parts or len(self._parts) < self._room)
            self._parts.add(index)

    def leave_part(self, index: int) -> None:
        """Give the place of part `index` to the next one."""
        with self._changed:
            self._parts.discard(index)
            self._changed.notify_all()

    def restarts(self) -> int:
        """Engines replaced since the stage began."""
        return self._restarts

    def lease(self, alone: bool = False) -> EngineLease:
        """Lend the least busy engine; waits while all are being replaced.

        With `alone` also while each has another such caller: a prompt that waits behind one that kills the engine would
        be blamed for it. A caller whose node was lost never comes back; student.engine_timeout_s bounds that. Raises
        StageError when the stage has failed.
        """
        with self._changed:
            while True:
                if self._failure:
                    raise StageError(self._failure)
                now = time.monotonic()
                there = [slot for slot in self._slots if slot.handle is not None]
                free = [slot for slot in there if not alone or slot.alone_until <= now]
                if free:
                    slot = min(free, key=lambda slot: slot.lent)
                    slot.lent += 1
                    if alone:
                        slot.alone_until = now + self._config.engine_timeout_s
                    return EngineLease(slot.index, slot.epoch, slot.handle, alone)
                waits = [slot.alone_until - now for slot in there if slot.alone_until > now]
                self._changed.wait(min(waits, default=None))

    def answered(self) -> int:
        """Samples answered since the stage began; of a batch that its engine loses they count no more."""
        with self._changed:
            engines = [slot.handle for slot in self._slots if slot.handle is not None]
            answered = self._answered
        for reference in [engine.answered.remote() for engine in engines]:
            try:
                answered += get(reference, timeout=LOOK_S)
            except (*ACTOR_LOST, ray.exceptions.GetTimeoutError):
                continue  # it is dead or starts: what it had is asked again
        return answered

    def give_back(self, lease: EngineLease, answered: int = 0) -> None:
        """End a lease. The caller has the `answered` samples of its batch."""
        with self._changed:
            self._answered += answered
            slot = self._slots[lease.slot]
            if slot.epoch == lease.epoch:
                slot.lent = max(0, slot.lent - 1)
                if lease.alone:
                    slot.alone_until = 0.0
                self._changed.notify_all()

    def lost(self, lease: EngineLease, why: str) -> None:
        """Replace the dead engine of `lease`, and return when the new one is ready.

        `why` goes into messages. Raises StageError when more engines died in this stage than it allows.
        """
        with self._changed:
            slot = self._slots[lease.slot]
            if slot.epoch != lease.epoch or slot.handle is None:
                while slot.starting and not self._failure:
                    self._changed.wait()
                if self._failure:
                    raise StageError(self._failure)
                return
            self._discard(slot)
            self._restarts += 1
            if self._restarts > self._max_restarts:
                self._failure = (
                    f"{self._restarts} engines died in this stage, more than exam.max_engine_restarts="
                    f"{self._max_restarts}; the last: {why}. {IF_MEMORY}"
                )
                self._changed.notify_all()
                raise StageError(self._failure)
            slot.starting = True
        metrics.count("engine_restarts")
        log.warning("engine %d died and is replaced (%d so far): %s", slot.index, self._restarts, why)
        self._start(slot)

    def load(self, model: ModelRef, run: str) -> str:
        """Swap the weights in all engines at once; whichever cannot is started afresh on them.

        The metrics are of `run` from here on. Returns the sha256 that all engines serve. Raises StageError when they
        differ or one cannot start.
        """
        metrics.set_run(run)
        started = time.perf_counter()
        with self._changed:
            before, self._model, self._failure = self._model, model, None
        swaps = {slot.index: slot.handle.load.remote(model) for slot in self._slots if slot.handle is not None}
        for index, reference in swaps.items():
            try:
                get(reference, timeout=self._config.engine_timeout_s)
            except (ModelError, EngineBroken, *ACTOR_LOST, ray.exceptions.GetTimeoutError) as error:
                log.warning(
                    "engine %d is restarted on %s instead of swapping its weights: %s", index, model, one_line(error)
                )
                with self._changed:
                    self._discard(self._slots[index])
        self._fill()
        checksums = {get(slot.handle.ready.remote()) for slot in self._slots}
        if len(checksums) != 1:
            raise StageError(f"the engines serve different weights after loading {model}: {sorted(checksums)}")
        if model.sha256 != before.sha256:
            metrics.gauge("weight_swap_seconds", time.perf_counter() - started)
        log.info("all engines serve %s after %.2f s", model, time.perf_counter() - started)
        return checksums.pop()

    def release(self, how: str) -> None:
        """Give memory back for training; `load` brings the engines back.

        `how` is sleep, which keeps the processes, or stop, which ends them. With any other word nothing is done.
        """
        if how == "sleep":
            sleeping = [slot.handle.sleep.remote() for slot in self._slots if slot.handle is not None]
            for reference in sleeping:
                get(reference)
        elif how == "stop":
            self.stop()

    def stop(self) -> None:
        """End all engines; `load` starts new ones."""
        with self._changed:
            for slot in self._slots:
                self._discard(slot)

    def _fill(self) -> None:
        """Start an engine in every empty slot, all at the same time."""
        with self._changed:
            empty = [slot for slot in self._slots if slot.handle is None and not slot.starting]
            for slot in empty:
                slot.starting = True
        if empty:
            with ThreadPoolExecutor(len(empty)) as threads:
                for _ in threads.map(self._start, empty):
                    pass

    def _start(self, slot: Slot) -> None:
        """Start the slot's engine; a failure is remembered, so that nobody waits for it for ever."""
        bound = self._config.engine_timeout_s
        for start in range(1, STARTS + 1):
            handle = self._actor(slot.index)
            try:
                get(handle.ready.remote(), timeout=bound)
            except ray.exceptions.GetTimeoutError:
                self._fail(slot, handle, StageError(f"an engine was not ready within student.engine_timeout_s={bound}"))
            except ray.exceptions.RayError as error:
                if not isinstance(error, ACTOR_LOST) or start == STARTS:
                    self._fail(
                        slot, handle, StageError(f"an engine could not be started: {one_line(error)}. {IF_MEMORY}")
                    )
                log.warning("engine %d ended while it started and is started again: %s", slot.index, one_line(error))
                ray.kill(handle)
            except TailorError as error:
                self._fail(slot, handle, error)
            else:
                with self._changed:
                    slot.handle, slot.lent, slot.alone_until, slot.starting = handle, 0, 0.0, False
                    slot.epoch += 1
                    self._changed.notify_all()
                return

    def _fail(self, slot: Slot, handle: Any, error: TailorError) -> NoReturn:
        ray.kill(handle)
        with self._changed:
            slot.starting, self._failure = False, str(error)
            self._changed.notify_all()
        raise error

    def _discard(self, slot: Slot) -> None:
        """Kill what is left of the slot's engine. Called under the lock."""
        if slot.handle is not None:
            ray.kill(slot.handle)
        slot.handle = None

    def _actor(self, index: int) -> Any:
        """On CPU an engine claims nothing: training needs the same cores when engines rest.

        Ray itself would put an actor without claims anywhere. So engine i goes to the node of the cluster's core i,
        counted one from each node by turns: a head without CPUs has none. An engine over several GPUs has them on one
        node, where vLLM starts a process for each.
        """
        place: Any = "DEFAULT"
        if not self._on_gpu:
            cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
            cores = sorted((turn, node) for node, count in cpus.items() for turn in range(count))
            place = NodeAffinitySchedulingStrategy(cores[index % len(cores)][1], soft=True) if cores else "SPREAD"
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": self._config.tensor_parallel if self._on_gpu else 0,
            "max_concurrency": ENGINE_CALLERS,
            "runtime_env": {"env_vars": engine_environment(self._on_gpu, self._threads)},
            "scheduling_strategy": place,
        }
        engine = ray.remote(StudentEngine).options(**options)
        return engine.remote(self._config, self._model, self._seed, self._on_gpu)


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise a TailorError that a remote call raised as itself: its message is for people, Ray's adds frames."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TailorError):
            raise error.cause from None
        raise


def get(reference: Any, timeout: float | None = None) -> Any:
    """`ray.get` with this project's errors as they were raised.

    Waits `timeout` seconds at most, for ever without one. Raises ray.exceptions.GetTimeoutError after them.
    """
    with own_errors():
        return ray.get(reference, timeout=timeout)
