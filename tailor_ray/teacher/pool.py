"""`TeacherPool`: requests in, settled requests out, through senders: Ray actors, or one in this process.

One thread of the driver runs an event loop that owns intake, dispatch and settlement. Each sender has a loop of its own
in it. It settles the last outcomes, assigns, commits both, hands on what is settled, and exchanges the assignments for
outcomes. So a reply is durable before anyone sees it. A sender that is lost is replaced, at most MAX_DEATHS times. Its
assignments go to whoever asks next.

`check_access` asks each teacher for a lesson before the first exam is spent. The request is the first that round 1 will
make, with all its parameters, and its reply stays in the ledger. So it is paid for once, and a run that goes on asks
nothing. What an endpoint says of its models is a hint in an error, no more: many refuse that and answer lessons.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from tailor_ray.answers import Grader
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import StageError, TailorError, TeacherAccessError
from tailor_ray.observe import metrics
from tailor_ray.records import AnswerKind, Question
from tailor_ray.teacher.actor import Senders, SendersLost, StartSenders, start_actor, start_local
from tailor_ray.teacher.asks import Asker
from tailor_ray.teacher.budget import Budget, Spend, check_prices
from tailor_ray.teacher.client import Sender, TeacherRequest, send_once
from tailor_ray.teacher.dispatch import Assignment, Dispatcher, Settled
from tailor_ray.teacher.errors import Outage, access_error
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.outcomes import NO_VERDICT, TABLE, Category, Outcome, codes

log = logging.getLogger(__name__)

MAX_DEATHS = 20
WAIT_S = 0.1  # an exchange with nothing to say returns after so long
IDLE_S = 0.05  # between looks at an empty queue
TRIES = 3
PATIENCE_S = 20.0  # with a server that answers nobody
MODELS_S = 5.0
FORM_REFUSED = codes(Category.BAD_REQUEST) - {"no_content"}
EXAMPLE = Question("doctor", "Tom has 3 apples. He buys 4 more. How many apples does Tom have?", "7")


class TeacherPool:
    """Start it, submit from any thread, take settled requests by the callback, close it."""

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
        self._budget = Budget(config, ledger.spent(), ledger.spent(round_))
        self._inbox: list[TeacherRequest] = []
        self._inbox_lock = threading.Lock()
        self._held = False
        self._closing = False
        self._deaths = 0
        self._thread = threading.Thread(target=self._run, name="teacher-pool", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[TeacherRequest]) -> None:
        with self._inbox_lock:
            self._inbox.extend(requests)

    def hold(self) -> None:
        """Send nothing more until all parts have come, so that what is worth most goes first."""
        self._held = True

    def flush(self) -> None:
        """No more parts come."""
        self._held = False

    def lasts(self, round_total: Spend) -> bool:
        """Whether the budget allows a round that takes so much in all."""
        return self._budget.lasts(round_total)

    def close(self) -> None:
        """Assign nothing more, wait for what is in flight, end the actors."""
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve_all())
        except (TailorError, ExceptionGroup) as error:  # the stage raises it, for nobody waits on this thread
            self._on_error(_first(error))

    async def _serve_all(self) -> None:
        """Take in requests and watch over the actors' loops until all is done that was begun."""
        self._dispatcher = Dispatcher(self._config, self._ledger, self._budget, time.monotonic())
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
                    self._count_death(name, error)
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
        assignments = [] if self._ends or self._held else self._assign(name, share)
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

    def _assign(self, name: str, share: dict[str, int]) -> list[Assignment]:
        self._take_inbox()
        now = time.monotonic()
        assignments = []
        for model, at_once in share.items():
            assignments += self._dispatcher.assign(name, model, self._dispatcher.room(name, model, at_once), now)
        return assignments

    async def _hand_on(self, settled: list[Settled]) -> None:
        """Commit all that was decided, assignments too, then tell of what is settled."""
        await self._commit()
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
        metrics.gauge("teacher_spent_usd", self._budget.run_spent.usd)
        if self._config.budget_usd is not None:
            metrics.gauge("teacher_left_usd", self._config.budget_usd - self._budget.run_spent.usd)

    async def _commit(self) -> None:
        if self._ledger.has_staged:
            await asyncio.get_running_loop().run_in_executor(None, self._ledger.commit)

    def _count_death(self, name: str, error: Exception) -> None:
        self._deaths += 1
        log.warning("%s is lost and replaced (%d of at most %d): %s", name, self._deaths, MAX_DEATHS, error)
        if self._deaths > MAX_DEATHS:
            raise StageError(f"teacher actors were lost {self._deaths} times, the last time: {error}") from error


def split_shares(config: TeacherConfig) -> list[dict[str, int]]:
    """Calls in flight by actor and model; in sum each endpoint's `max_in_flight`. No actor is left without any."""
    actors = min(config.actors, *(endpoint.max_in_flight for endpoint in config.teachers))
    return [
        {
            endpoint.model: endpoint.max_in_flight // actors + (number < endpoint.max_in_flight % actors)
            for endpoint in config.teachers
        }
        for number in range(actors)
    ]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def check_access(config: TeacherConfig, grader: Grader, ledger: Ledger, questions: Sequence[Question]) -> None:
    """Ask each teacher for the rationale of a question; of the next one where a request is refused for itself.

    Raises TeacherAccessError when an endpoint refuses connections, the key, the model or the request's form, Stopped
    when the quota or the budget is used up, and ConfigError when a dollar budget is set without a price. A server that
    is only busy passes. A teacher that the cluster is to serve is not up yet.
    """
    check_prices(config)
    for endpoint in config.teachers:
        if endpoint.serve is not None:
            continue
        said: Settled | None = None
        for question in questions:
            said = _ask(config, lesson_request(config, endpoint, grader, question), endpoint, ledger)
            if said is None or said.row.outcome not in FORM_REFUSED:
                break
        if said is not None:
            _judge(endpoint, said.row.outcome, said.row.detail, bool(said.row.reply))


def try_lesson(config: TeacherConfig, endpoint: EndpointConfig) -> float:
    """Ask one teacher for the lesson of an example; nothing is kept. Returns the seconds to its reply.

    Raises TeacherAccessError where it gives none.
    """
    request = lesson_request(config, endpoint, Grader(AnswerKind.NUMBER), EXAMPLE)

    outcome = send_once(endpoint, request)
    if outcome.rule.category in NO_VERDICT:
        raise access_error(endpoint, f"{outcome.code}: {outcome.detail}{_offered(endpoint, outcome.code)}")
    _judge(endpoint, outcome.code, outcome.detail, bool(outcome.text))
    return outcome.seconds


def lesson_request(
    config: TeacherConfig, endpoint: EndpointConfig, grader: Grader, question: Question
) -> TeacherRequest:
    """The first request that round 1 makes for a question."""
    asker = Asker(config.model_copy(update={"teachers": (endpoint,), "peer_scores": False}), grader, 1)
    return asker.first(asker.asks([question], [], frozenset())[0])


def _ask(config: TeacherConfig, request: TeacherRequest, endpoint: EndpointConfig, ledger: Ledger) -> Settled | None:
    """How it ended; None where the server is only busy."""
    settings = {"actors": 1, "max_attempts": TRIES, "outage_s": PATIENCE_S, "teachers": (endpoint,)}
    events: queue.SimpleQueue[list[Settled] | BaseException] = queue.SimpleQueue()
    pool = TeacherPool(config.model_copy(update=settings), ledger, 1, events.put, events.put, start_local)
    try:
        pool.submit([request])
        event = events.get()
    finally:
        pool.close()
        ledger.commit()
    if isinstance(event, TeacherAccessError):
        raise TeacherAccessError(f"{event}{_offered(endpoint, 'http_404')}")
    if isinstance(event, Outage):
        if "http_429" in str(event):
            log.warning("%s is busy: %s", endpoint.model, event)
            return None
        raise access_error(endpoint, f"no answer in {PATIENCE_S:.0f} s ({event})")
    if isinstance(event, BaseException):
        raise event
    (settled,) = event
    if settled.undecided:
        said = f"{settled.row.outcome}: {settled.row.detail}"
        raise access_error(endpoint, f"no answer after {TRIES} tries, the last one: {said}")
    return settled


def _judge(endpoint: EndpointConfig, code: str, detail: str, has_text: bool) -> None:
    """Raise where every request would be refused alike; tell where every reply would be empty."""
    if code in FORM_REFUSED:
        raise TeacherAccessError(
            f"the teacher {endpoint.model} at {endpoint.base_url} refuses the request for a lesson: {code}: {detail}; "
            "change what it names among its settings in teacher.teachers: cap_parameter, max_tokens, temperature (null "
            "sends none), top_p, reasoning_effort, output, extra_body, or teacher.prompts"
        )
    if not has_text and TABLE[code].category is not Category.REFUSED:
        log.warning("%s sent a reply without text (%s): raise max_tokens if others do", endpoint.model, detail or code)


def _offered(endpoint: EndpointConfig, code: str) -> str:
    """The models that the endpoint says it has, for a message; "" where it says none, or the model is among them."""
    if code != "http_404":
        return ""

    async def ask() -> bytes:
        async with Sender(endpoint, connections=1) as sender:
            return await sender.models(MODELS_S)

    try:
        names = [str(one["id"]) for one in json.loads(asyncio.run(ask()))["data"]]
    except (ValueError, KeyError, TypeError):
        return ""
    if not names or endpoint.model in names:
        return ""
    return f" (it offers {', '.join(names[:10])}{', …' if len(names) > 10 else ''})"
