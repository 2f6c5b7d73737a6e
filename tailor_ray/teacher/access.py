"""Do the teachers answer a lesson's request? Asked before the first exam is spent, by a real one.

The request is the first that round 1 will make, with all its parameters, and its reply stays in the ledger: so it is
paid for once, and a run that goes on asks nothing. What an endpoint says of its models is a hint in an error, no more:
many refuse that and answer lessons.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
from collections.abc import Sequence

from tailor_ray.answers import Grader
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import TeacherAccessError
from tailor_ray.records import AnswerKind, Question
from tailor_ray.teacher.actor import hire_here
from tailor_ray.teacher.asks import Asker
from tailor_ray.teacher.budget import check_prices
from tailor_ray.teacher.client import Sender, TeacherRequest
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.errors import Outage, access_error
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.outcomes import TABLE, Fate, Outcome
from tailor_ray.teacher.pool import TeacherPool

log = logging.getLogger(__name__)

TRIES = 3
PATIENCE_S = 20.0  # with a server that answers nobody
MODELS_S = 5.0
EXAMPLE = Question("doctor", "Tom has 3 apples. He buys 4 more. How many apples does Tom have?", "7")


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
            if said is None or TABLE[said.row.outcome].fate is not Fate.REQUEST or said.row.outcome == "no_content":
                break
        if said is not None:
            _judge(endpoint, said.row.outcome, said.row.detail, bool(said.row.reply))


def try_lesson(config: TeacherConfig, endpoint: EndpointConfig) -> float:
    """Ask one teacher for a lesson, for nobody; seconds to the reply. Raises as `check_access` does."""
    request = lesson_request(config, endpoint, Grader(AnswerKind.NUMBER), EXAMPLE)

    async def ask() -> Outcome:
        sender = Sender(endpoint, connections=1)
        try:
            return await sender.attempt(request.key, request.body, request.sent_as)
        finally:
            await sender.close()

    outcome = asyncio.run(ask())
    if outcome.rule.fate in (Fate.RETRY, Fate.ACCESS, Fate.QUOTA):
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
    pool = TeacherPool(config.model_copy(update=settings), ledger, 1, events.put, events.put, hire_here)
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
        detail = f"{settled.row.outcome}: {settled.row.detail}"
        raise access_error(endpoint, f"no answer after {TRIES} tries, the last one: {detail}")
    return settled


def _judge(endpoint: EndpointConfig, code: str, detail: str, has_text: bool) -> None:
    """Raise where every request would be refused alike; tell where every reply would be empty."""
    if TABLE[code].fate is Fate.REQUEST and code != "no_content":
        raise TeacherAccessError(
            f"the teacher {endpoint.model} at {endpoint.base_url} refuses the request for a lesson: {code}: {detail}; "
            "change what it names among its settings in teacher.teachers: cap_parameter, max_tokens, temperature (null "
            "sends none), top_p, reasoning_effort, output, extra_body, or teacher.prompts"
        )
    if not has_text and TABLE[code].fate is not Fate.REFUSED:
        log.warning("%s sent a reply without text (%s): raise max_tokens if others do", endpoint.model, detail or code)


def _offered(endpoint: EndpointConfig, code: str) -> str:
    """The models that the endpoint says it has, for a message; "" where it says none, or the model is among them."""
    if code != "http_404":
        return ""

    async def ask() -> bytes:
        sender = Sender(endpoint, connections=1)
        try:
            return await sender.models(MODELS_S)
        finally:
            await sender.close()

    try:
        names = [str(one["id"]) for one in json.loads(asyncio.run(ask()))["data"]]
    except (ValueError, KeyError, TypeError):
        return ""
    if not names or endpoint.model in names:
        return ""
    return f" (it offers {', '.join(names[:10])}{', …' if len(names) > 10 else ''})"
