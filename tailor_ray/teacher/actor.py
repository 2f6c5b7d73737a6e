"""`TeacherActor`: the Ray actor that sends. It makes the attempts it is given and says how they ended; no more.

Driver and actor exchange leases and outcomes many at a time, so that Ray's cost a request stays small. At most `share`
calls an endpoint are in flight here; further leases wait for a free slot, so that a slot is not idle until the driver
asks again. Once the driver has ended they are not sent any more, for nobody would write their replies down; those that
came before are in the actor's journal, which is on the driver's node, or is not kept where the actor is on another.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from tailor_ray.config.teacher import EndpointConfig
from tailor_ray.teacher.client import Sender
from tailor_ray.teacher.dispatch import Lease
from tailor_ray.teacher.journal import Journal
from tailor_ray.teacher.outcomes import Outcome
from tailor_ray.teacher.pricing import outcome_usd

log = logging.getLogger(__name__)

GATHER_S = 0.02  # after the first outcome, so long for others to come along


@dataclass(frozen=True)
class Driver:
    """Who leases to an actor, and where on its node the actor keeps its journal."""

    node: str
    pid: int
    journal: str


class TeacherActor:
    """One async client for each endpoint. Methods run in the actor's event loop."""

    def __init__(
        self, endpoints: Sequence[EndpointConfig], shares: Mapping[str, int], driver: Driver | None = None
    ) -> None:
        """`shares` are calls in flight by model; `driver` is who leases to this actor."""
        self._endpoints = {endpoint.model: endpoint for endpoint in endpoints}
        self._shares = dict(shares)
        self._senders: dict[str, Sender] = {}
        self._slots = {model: asyncio.Semaphore(share) for model, share in shares.items()}
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

    async def exchange(self, leases: list[Lease], wait_s: float) -> list[Outcome]:
        """Start these attempts; return what has ended, waiting at most `wait_s` for the first.

        The driver has committed what the last call returned.
        """
        if self._journal is not None:
            self._journal.committed()
        for lease in leases:
            task = asyncio.create_task(self._attempt(lease))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait_for(self._news.wait(), wait_s)
            await asyncio.sleep(GATHER_S)
        except TimeoutError:
            pass
        ended, self._ended = self._ended, []
        self._news.clear()
        if self._journal is not None:
            self._journal.hand_over()
        return ended

    async def _attempt(self, lease: Lease) -> None:
        if lease.delay > 0:
            await asyncio.sleep(lease.delay)
        async with self._slots[lease.model]:
            if self._orphaned:
                return
            outcome = await self._senders[lease.model].attempt(lease.key, lease.body)
            self._write_down(lease, outcome)
        self._ended.append(outcome)
        self._news.set()

    def _write_down(self, lease: Lease, outcome: Outcome) -> None:
        if self._journal is None:
            return
        try:
            self._journal.write(lease.attempt, outcome, outcome_usd(self._endpoints[lease.model], outcome))
        except OSError as error:  # the driver has the outcome all the same, and its own disk to complain of
            log.warning("the journal of a teacher actor cannot be written: %s", error)

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
        log.warning("a teacher actor keeps no journal, so what it has heard may be asked again after a kill: %s", error)
        return None
