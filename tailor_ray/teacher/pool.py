"""`TeacherPool`: requests in, settled requests out, through senders: Ray actors, or one in this process.

One thread of the driver runs an event loop that owns intake, dispatch and settlement. Each sender has a loop of its own
in it. It settles the last outcomes, assigns, commits both, hands on what is settled, and exchanges the assignments for
outcomes. So a reply is durable before anyone sees it. A sender that is lost is replaced, at most MAX_DEATHS times. Its
assignments go to whoever asks next.

`TeacherActor` is the Ray actor that sends. It makes the attempts it is given and says how they ended. Both go many at a
time, so that Ray's cost per request stays small. At most `share` calls an endpoint hold a slot there. Further
assignments wait for a free one, so that it is not idle until the driver asks again. A slot is free once its outcome is
safe in the actor's journal. An actor on another node than the driver has none: there the driver must have committed it.
So a kill of either has asked in vain for at most what held a slot. Once the driver has ended nothing more is sent:
nobody would write replies down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import StageError, TailorError
from tailor_ray.observe import metrics
from tailor_ray.observe.faults import one_line
from tailor_ray.teacher.budget import Budget, Spend, outcome_usd
from tailor_ray.teacher.client import Sender, TeacherRequest, connections_that_fit
from tailor_ray.teacher.dispatch import Assignment, Dispatcher, Settled
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.outcomes import Journal, Outcome

log = logging.getLogger(__name__)

MAX_DEATHS = 20
WAIT_S = 0.1  # an exchange with nothing to say returns after so long
IDLE_S = 0.05  # between looks at an empty queue
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
        return list(await _answer(self._actor.exchange.remote(assignments, wait_s)))

    async def close(self) -> None:
        ray.kill(self._actor)


async def _answer(call: Awaitable[Any]) -> Any:
    """What an actor's method returns or raises; SendersLost where the actor is gone."""
    try:
        return await call
    except RayTaskError as error:
        raise error.cause from None
    except (RayActorError, OutOfMemoryError) as error:
        raise SendersLost(one_line(error)) from error
    except TimeoutError as error:
        raise SendersLost(f"it was not up after {START_S:.0f} s") from error


class TeacherPool:
    """Start it, submit from any thread, take settled requests by the callback, close it. `budget` is what is spent."""

    def __init__(
        self,
        config: TeacherConfig,
        ledger: Ledger,
        round_: int,
        on_settled: Callable[[list[Settled]], None],
        on_error: Callable[[BaseException], None],
        start_senders: StartSenders = start_actor,
    ) -> None:
        """`on_settled` and `on_error` are called from the pool's thread; after an error nothing more is settled.

        `start_senders` finds who sends: `start_actor` an actor on the connected cluster, `start_local` this process.
        """
        self._start_senders = start_senders
        self._config = config
        self._ledger = ledger
        self._on_settled = on_settled
        self._on_error = on_error
        self.budget = Budget(config, ledger.spent(), ledger.spent(round_))
        self._inbox: list[TeacherRequest] = []
        self._inbox_lock = threading.Lock()
        self._held = self._closing = False
        self._deaths = 0
        self._thread = threading.Thread(target=self._run, name="teacher-pool", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[TeacherRequest]) -> None:
        with self._inbox_lock:
            self._inbox.extend(requests)

    def hold(self) -> None:
        self._held = True

    def flush(self) -> None:
        self._held = False

    def lasts(self, round_total: Spend) -> bool:
        return self.budget.lasts(round_total)

    def close(self) -> None:
        """Assign nothing more, wait for what is in flight, end the actors."""
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve_all())
        except (TailorError, ExceptionGroup) as error:  # the stage raises it, for nobody waits on this thread
            first: BaseException = error
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            self._on_error(first)

    async def _serve_all(self) -> None:
        """Take in requests and watch over the actors' loops until all is done that was begun."""
        self._dispatcher = Dispatcher(self._config, self._ledger, self.budget, time.monotonic())
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(self._serve(f"teacher-{number}", share))
                for number, share in enumerate(split_shares(self._config))
            ]
            while not (self._ends and self._dispatcher.assigned_count == 0):
                self._take_inbox()
                await asyncio.sleep(IDLE_S)
            for loop in loops:
                loop.cancel()
        if self._dispatcher.stop is not None:
            raise self._dispatcher.stop

    async def _serve(self, name: str, share: dict[str, int]) -> None:
        """Keep one sender busy; replace it when it is lost."""
        senders: Senders | None = None
        settled: list[Settled] = []
        try:
            while True:
                try:
                    senders = senders or await self._start_senders(self._config, share, self._ledger.journal(name))
                    outcomes = await self._exchange(senders, name, share, settled)
                except SendersLost as error:
                    senders = None
                    self._deaths += 1
                    log.warning("%s is lost and replaced (%d of at most %d): %s", name, self._deaths, MAX_DEATHS, error)
                    if self._deaths > MAX_DEATHS:
                        said = f"teacher actors were lost {self._deaths} times, the last time: {error}"
                        raise StageError(said) from error
                    journaled = self._ledger.journaled(name)
                    await self._hand_on(self._dispatcher.actor_died(name, journaled, time.monotonic()))
                    settled = []
                else:
                    settled = self._dispatcher.settle(outcomes, time.monotonic())
        finally:
            if senders is not None:
                await senders.close()

    async def _exchange(
        self, senders: Senders, name: str, share: dict[str, int], settled: list[Settled]
    ) -> list[Outcome]:
        assignments: list[Assignment] = []
        if not self._ends and not self._held:
            self._take_inbox()
            now = time.monotonic()
            for model, at_once in share.items():
                room = self._dispatcher.room(name, model, at_once)
                assignments += self._dispatcher.assign(name, model, room, now)
        await self._hand_on(settled)
        if not assignments and not self._dispatcher.holds(name):
            await asyncio.sleep(IDLE_S)
            return []
        return await senders.exchange(assignments, WAIT_S)

    @property
    def _ends(self) -> bool:
        """Whether nothing new is sent any more; what is in flight is waited for."""
        return self._closing or self._dispatcher.stop is not None

    def _take_inbox(self) -> None:
        with self._inbox_lock:
            requests, self._inbox = self._inbox, []
        known = self._dispatcher.submit(requests) if requests and not self._ends else []
        if known:
            self._export(known)
            self._on_settled(known)

    async def _hand_on(self, settled: list[Settled]) -> None:
        """Commit all that was decided, assignments too, then tell of what is settled."""
        if self._ledger.has_staged:
            await asyncio.get_running_loop().run_in_executor(None, self._ledger.commit)
        self._export(settled)
        if settled:
            self._on_settled(settled)

    def _export(self, settled: Sequence[Settled]) -> None:
        """Live figures for dashboards."""
        for one in settled:
            if one.from_ledger:
                metrics.count("ledger_hits")
                continue
            metrics.count("teacher_requests", outcome=one.row.outcome)
            metrics.observe("teacher_latency_seconds", one.row.seconds, outcome=one.row.outcome)
            metrics.count("teacher_tokens", one.row.input_tokens, direction="input")
            metrics.count("teacher_tokens", one.row.output_tokens, direction="output")
        metrics.gauge("teacher_in_flight", self._dispatcher.assigned_count)
        metrics.gauge("teacher_spent_usd", self.budget.run_spent.usd)
        if self._config.budget_usd is not None:
            metrics.gauge("teacher_left_usd", self._config.budget_usd - self.budget.run_spent.usd)


def split_shares(config: TeacherConfig) -> list[dict[str, int]]:
    """Calls in flight by actor and model; no actor is left without any.

    Over the actors they add up to each endpoint's max_in_flight.
    """
    actors = min(config.actors, *(endpoint.max_in_flight for endpoint in config.teachers))
    return [
        {
            endpoint.model: endpoint.max_in_flight // actors + (number < endpoint.max_in_flight % actors)
            for endpoint in config.teachers
        }
        for number in range(actors)
    ]
