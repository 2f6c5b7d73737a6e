"""`TeacherActor`: the Ray actor that sends. It makes the attempts it is given and says how they ended; no more.

Driver and actor exchange assignments and outcomes many at a time, so that Ray's cost per request stays small. At most
`share` calls an endpoint hold a slot here. Further assignments wait for a free one, so that it is not idle until the
driver asks again. A slot is free once its outcome is safe. It is safe in the actor's journal; or, where there is none
because the actor is on another node than the driver, once the driver has committed it. So a kill of either has asked
in vain for at most what held a slot. Once the driver has ended nothing more is sent: nobody would write replies down.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.teacher.budget import outcome_usd
from tailor_ray.teacher.client import Sender, connections_that_fit
from tailor_ray.teacher.dispatch import Assignment
from tailor_ray.teacher.outcomes import Journal, Outcome

log = logging.getLogger(__name__)

GATHER_S = 0.02  # after the first outcome, so long for others to come along
START_S = 120.0  # for a worker process to start and read its keys


class Senders(Protocol):
    """Who makes attempts for a pool, wherever it is."""

    async def exchange(self, assignments: list[Assignment], wait_s: float) -> list[Outcome]:
        """Start these attempts; return what has ended. Raises SendersLost when nobody answers any more."""

    async def close(self) -> None:
        """End it; calls in flight are broken off."""


StartSenders = Callable[[TeacherConfig, Mapping[str, int], str], Awaitable[Senders]]


class SendersLost(Exception):
    """The process or node that was sending is gone."""


@dataclass(frozen=True)
class Driver:
    """Who assigns attempts to an actor, and where on its node the actor keeps its journal."""

    node: str
    pid: int
    journal: str


class TeacherActor:
    """One async client for each endpoint. Methods run in the actor's event loop."""

    def __init__(
        self, endpoints: Sequence[EndpointConfig], shares: Mapping[str, int], driver: Driver | None = None
    ) -> None:
        """`shares` are calls in flight by model; `driver` is who assigns to this actor."""
        self._endpoints = {endpoint.model: endpoint for endpoint in endpoints}
        self._shares = dict(shares)
        self._senders: dict[str, Sender] = {}
        fit = connections_that_fit(sum(shares.values())) / sum(shares.values())
        self._slots = {model: asyncio.Semaphore(max(int(share * fit), 1)) for model, share in shares.items()}
        self._unsafe: list[asyncio.Semaphore] = []  # slots whose outcomes the driver has not been told of …
        self._told: list[asyncio.Semaphore] = []  # … and those that it is about to commit
        self._running: set[asyncio.Task[None]] = set()
        self._ended: list[Outcome] = []
        self._news = asyncio.Event()
        self._driver = driver
        self._orphaned = False
        self._journal: Journal | None = None

    def __repr__(self) -> str:
        """What Ray's dashboard and log lines call this actor."""
        return f"TeacherActor({', '.join(self._endpoints)})"

    async def ready(self) -> None:
        """Returns once the actor is up, with its keys read; raises TeacherAccessError where one is missing."""
        for model, endpoint in self._endpoints.items():
            self._senders[model] = Sender(endpoint, self._shares[model])
        if self._driver is not None and self._driver.node == ray.get_runtime_context().get_node_id():
            self._journal = _open_journal(self._driver.journal)
            self._watch(self._driver.pid)

    async def close(self) -> None:
        """End the clients, in the loop that they are used in."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for sender in self._senders.values():
            await sender.close()

    async def exchange(self, assignments: list[Assignment], wait_s: float) -> list[Outcome]:
        """Start these attempts; return what has ended, waiting at most `wait_s` for the first.

        The driver has committed what the last call returned.
        """
        if self._journal is not None:
            self._journal.committed()
        for slot in self._told:
            slot.release()
        self._told = []
        for assignment in assignments:
            task = asyncio.create_task(self._attempt(assignment))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait_for(self._news.wait(), wait_s)
            await asyncio.sleep(GATHER_S)
        except TimeoutError:
            pass
        ended, self._ended = self._ended, []
        self._told, self._unsafe = self._unsafe, []
        self._news.clear()
        if self._journal is not None:
            self._journal.hand_over()
        return ended

    async def _attempt(self, assignment: Assignment) -> None:
        if assignment.delay > 0:
            await asyncio.sleep(assignment.delay)
        slot = self._slots[assignment.model]
        await slot.acquire()
        if self._orphaned:
            slot.release()
            return
        outcome = await self._senders[assignment.model].attempt(assignment.key, assignment.body, assignment.sent_as)
        if self._write_down(assignment, outcome):
            slot.release()
        else:
            self._unsafe.append(slot)
        self._ended.append(outcome)
        self._news.set()

    def _write_down(self, assignment: Assignment, outcome: Outcome) -> bool:
        """Whether it is in the journal now."""
        if self._journal is None:
            return False
        try:
            self._journal.write(assignment.attempt, outcome, outcome_usd(self._endpoints[assignment.model], outcome))
        except OSError as error:  # the driver hears of the outcome all the same, and has its own disk to complain of
            log.warning("the journal of a teacher actor cannot be written: %s", error)
            return False
        return True

    def _watch(self, driver: int) -> None:
        """Hear of the driver's end at once; Ray's own notice takes long enough for hundreds of requests."""
        if not hasattr(os, "pidfd_open"):
            return
        loop, handle = asyncio.get_running_loop(), os.pidfd_open(driver)

        def ended() -> None:
            loop.remove_reader(handle)
            self._orphaned = True

        loop.add_reader(handle, ended)


def _open_journal(stem: str) -> Journal | None:
    """None where the driver's folder is not there for this process: another user's, or outside its container."""
    try:
        return Journal(stem)
    except OSError as error:
        log.warning(
            "a teacher actor keeps no journal, so its calls wait for the driver to write replies down: %s", error
        )
        return None


async def start_local(config: TeacherConfig, share: Mapping[str, int], journal: str) -> Senders:  # noqa: ARG001
    """Send from this process and event loop; for few requests, where there is no cluster."""
    senders = TeacherActor(config.teachers, share)
    await senders.ready()
    return senders


async def start_actor(config: TeacherConfig, share: Mapping[str, int], journal: str) -> Senders:
    """A new actor, up and answering. It takes no CPU of the cluster's count: it waits for the network.

    Raises SendersLost when it is not up after START_S: a node that was lost meanwhile may never say so.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": 8, "scheduling_strategy": "SPREAD"}
    driver = Driver(ray.get_runtime_context().get_node_id(), os.getpid(), journal)
    actor: Any = ray.remote(TeacherActor).options(**options).remote(config.teachers, share, driver)
    await _answer(asyncio.wait_for(actor.ready.remote(), START_S))
    return _RemoteSenders(actor)


class _RemoteSenders:
    """An actor's handle as Senders."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def exchange(self, assignments: list[Assignment], wait_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = await _answer(self._actor.exchange.remote(assignments, wait_s))
        return outcomes

    async def close(self) -> None:
        ray.kill(self._actor)


async def _answer(call: Awaitable[Any]) -> Any:
    """What an actor's method returns or raises; SendersLost where the actor is gone."""
    try:
        return await call
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise SendersLost(str(error)) from error
    except TimeoutError as error:
        raise SendersLost(f"it was not up after {START_S:.0f} s") from error
