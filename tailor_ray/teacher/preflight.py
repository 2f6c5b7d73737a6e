"""Before the teacher is paid: what teaching will take, and whether each teacher answers.

`forecast` says how many requests, tokens, dollars and seconds. It goes by the data and, once there is one, by the
ledger. It calls nobody. Without a ledger, tokens are counted as a quarter of the characters and an assumed length of
reply. That suits English text; the server's count is the truth. With a ledger its rows take their place, by model and
by kind of request. They say how many tokens a character makes and how long replies are. They say how many tries a
lesson takes, and how many lessons went on to the next teacher. Rounds that are done count as what they took. Every
assumption made is listed, so that a reader can judge it.

`check_access` asks each teacher for a lesson before the first exam is spent. The request is the first that round 1 will
make. Its reply stays in the ledger. So it is paid for once, and a run that goes on asks nothing. What an endpoint says
of its models is a hint in an error, no more. Many refuse that and answer lessons.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from operator import add
from typing import Any

from tailor_ray.answers import Grader
from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.errors import TeacherAccessError
from tailor_ray.records import AnswerKind, Attempt, LessonKind, Question, Verdict
from tailor_ray.teacher.asks import Asker
from tailor_ray.teacher.budget import check_prices, cost_usd, price_of
from tailor_ray.teacher.client import Sender, TeacherRequest, send_once
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.errors import Outage, access_error
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerRow
from tailor_ray.teacher.outcomes import NO_VERDICT, TABLE, Category, Usage, codes
from tailor_ray.teacher.pool import TeacherPool, start_local

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4.0
REPLY_TOKENS = 150.0
FEEDBACK_SHARE = 1.5  # of a reply that says what went wrong too, beside a rationale alone
SCORE_TOKENS = 10.0
MISTAKE_SHARE = 0.5  # of a question's attempts, before there is an exam
MISTAKE_CHARACTERS = 300.0
SECONDS_PER_CALL = 5.0
RATIONALE, FEEDBACK, SCORE = LessonKind.RATIONALE.value, LessonKind.FEEDBACK.value, "score"
TRIES = 3
PATIENCE_S = 20.0  # with a server that answers nobody
MODELS_S = 5.0
FORM_REFUSED = codes(Category.BAD_REQUEST) - {"no_content"}
EXAMPLE = Question("doctor", "Tom has 3 apples. He buys 4 more. How many apples does Tom have?", "7")


@dataclass(frozen=True, slots=True)
class Basis:
    """What a forecast starts from: some of the training questions, how many there are, and how they will be asked."""

    questions: int
    sample: tuple[Question, ...]
    kind: AnswerKind
    rounds: int
    attempts: int  # a question and exam
    mistakes: float | None = None  # that get feedback, a question, as in the last exam; None before there was one
    mistake_characters: float = MISTAKE_CHARACTERS
    done: Mapping[int, Amount] = field(default_factory=dict)  # rounds whose teaching is over


@dataclass(frozen=True, slots=True)
class Amount:
    """Of one round, or of several."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Forecast:
    rounds: tuple[Amount, ...]
    assumptions: tuple[str, ...]

    @property
    def total(self) -> Amount:
        return sum(self.rounds, Amount())

    def to_json(self) -> dict[str, Any]:
        return {
            "rounds": [asdict(amount) for amount in self.rounds],
            "total": asdict(self.total),
            "assumptions": list(self.assumptions),
        }


@dataclass(slots=True)
class Seen:
    """Sums over a model's requests of one kind; `firsts` began a lesson, the others asked for it again."""

    firsts: int = 0
    requests: int = 0
    characters: int = 0  # of the bodies sent
    input: int = 0
    cached: int = 0
    output: int = 0
    seconds: float = 0.0

    def add(self, row: LedgerRow) -> None:
        self.firsts += '"role":"assistant"' not in row.request  # a question's own quotes are escaped there
        self.requests += 1
        self.characters += len(row.request)
        self.input += row.input_tokens
        self.cached += row.cached_tokens
        self.output += row.output_tokens
        self.seconds += row.seconds


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of a lesson before it is asked for: characters of its first request by model, tokens of a reply."""

    bodies: Mapping[str, float]
    reply: float


Learned = dict[tuple[str, str], Seen]  # by model and kind


def learn(rows: Iterable[LedgerRow]) -> Learned:
    """What replies of a ledger took."""
    learned: Learned = {}
    for row in rows:
        if not row.is_final or not row.input_tokens:
            continue
        first = row.round == 1 if row.round else "<attempt>" not in row.request  # another ledger's does not tell
        kind = SCORE if "<reasoning>" in row.request else RATIONALE if first else FEEDBACK
        learned.setdefault((row.model, kind), Seen()).add(row)
    return learned


def forecast(config: TeacherConfig, basis: Basis, rows: Iterable[LedgerRow] = ()) -> Forecast:
    """Forecast all rounds of a run, by its `basis` and what replies took before.

    `rows` are those of its ledger, or of another run's on like questions.
    """
    learned = learn(rows)
    assumed = min(MISTAKE_SHARE * basis.attempts, float(config.max_mistakes))
    mistakes = assumed if basis.mistakes is None else basis.mistakes
    rounds = []
    for number in range(1, basis.rounds + 1):
        if number in basis.done:
            rounds.append(basis.done[number])
            continue
        kind, each = (RATIONALE, config.rationales) if number == 1 else (FEEDBACK, mistakes)
        sizes = Sizes(
            {endpoint.model: _body(config, endpoint, basis, kind) for endpoint in config.teachers},
            sum(map(reply_guess, basis.sample)) / max(1, len(basis.sample)),
        )
        rounds.append(round_amount(config, kind, basis.questions * each, sizes, learned))
    return Forecast(tuple(rounds), tuple(_assumptions(config, basis, learned)))


def round_amount(config: TeacherConfig, kind: str, lessons: float, sizes: Sizes, learned: Learned) -> Amount:
    """What so many lessons of one kind take, by their sizes and by what was learned from the ledger.

    A committee asks all its teachers, a cascade the next for what one fails at.
    """
    total, first, batch = Amount(), learned.get((config.model, kind)), config.mode == "batch"
    for endpoint in config.teachers:
        share = 1.0
        if config.arrangement == "cascade" and endpoint.model != config.model:
            seen = learned.get((endpoint.model, kind))
            share = seen.firsts / first.firsts if seen and first and first.firsts else 0.0
        total += _amount(endpoint, kind, lessons * share, sizes, learned, batch)
        if config.peer_scores:
            total += _amount(endpoint, SCORE, lessons * (len(config.teachers) - 1), sizes, learned, batch)
    return total


def _amount(endpoint: EndpointConfig, kind: str, lessons: float, sizes: Sizes, learned: Learned, batch: bool) -> Amount:
    """One teacher's part: by what its requests of this kind took, else by its rationales, else by lengths of text."""
    seen, like = learned.get((endpoint.model, kind)), learned.get((endpoint.model, RATIONALE))
    if seen is not None:
        requests = lessons * seen.requests / max(1, seen.firsts)
        tokens = Usage(*(round(requests * total / seen.requests) for total in (seen.input, seen.cached, seen.output)))
        seconds = seen.seconds / seen.requests
    else:
        of_a_character, reply, seconds, tries = 1 / CHARACTERS_PER_TOKEN, sizes.reply, SECONDS_PER_CALL, 1.0
        if like is not None:
            of_a_character, reply = like.input / like.characters, like.output / like.requests
            seconds, tries = like.seconds / like.requests, like.requests / max(1, like.firsts)
        requests = lessons * (1.0 if kind == SCORE else tries)
        reply = {SCORE: SCORE_TOKENS, FEEDBACK: reply * FEEDBACK_SHARE}.get(kind, reply)
        body = sizes.bodies.get(endpoint.model) or max(sizes.bodies.values(), default=0.0)
        tokens = Usage(
            round(requests * body * of_a_character), 0, round(requests * min(reply, float(endpoint.max_tokens)))
        )
    dollars = cost_usd(price_of(endpoint), tokens, batch)
    a_second = _rate(endpoint, seconds, (tokens.input + tokens.output) / max(requests, 1.0))
    return Amount(round(requests), tokens.input, tokens.output, dollars, requests / a_second)


def reply_guess(question: Question) -> float:
    """Tokens of a rationale of this `question`.

    They go by the gold one's length, where there is one.
    """
    return 1.5 * len(question.rationale) / CHARACTERS_PER_TOKEN + 20 if question.rationale else REPLY_TOKENS


def _body(config: TeacherConfig, endpoint: EndpointConfig, basis: Basis, kind: str) -> float:
    """Characters of the body by which a lesson is first asked for, on average over the sample."""
    alone = config.model_copy(update={"teachers": (endpoint,), "rationales": 1})
    asker = Asker(alone, Grader(basis.kind), 1 if kind == RATIONALE else 2)
    text = "x" * round(basis.mistake_characters)
    mistakes = [Attempt(question.id, 0, text, "stop", None, Verdict.WRONG, 0, 0, 0) for question in basis.sample]
    asks = asker.asks(basis.sample, mistakes, frozenset())
    return sum(len(asker.first(ask).body) for ask in asks) / max(1, len(asks))


def _rate(endpoint: EndpointConfig, seconds: float, tokens: float) -> float:
    """Requests a second that the limits allow."""
    rates = [endpoint.max_in_flight / max(seconds, 0.01)]
    if endpoint.requests_per_minute:
        rates.append(endpoint.requests_per_minute / 60)
    if endpoint.tokens_per_minute:
        rates.append(endpoint.tokens_per_minute / 60 / max(tokens, 1.0))
    return min(rates)


def _assumptions(config: TeacherConfig, basis: Basis, learned: Learned) -> Sequence[str]:
    said = [f"round {number} counts as what it took" for number in sorted(basis.done)]
    later = [number for number in range(2, basis.rounds + 1) if number not in basis.done]
    if later and basis.mistakes is None:
        said.append(f"{MISTAKE_SHARE:.0%} of the attempts are mistakes (no exam yet)")
    elif later:
        said.append(f"{basis.mistakes:.2g} mistakes a question get feedback, as in the last exam")
    wanted = [RATIONALE] * (1 not in basis.done) + [FEEDBACK] * bool(later)
    for endpoint in config.teachers:
        unknown = [kind for kind in wanted if (endpoint.model, kind) not in learned]
        if (endpoint.model, RATIONALE) in learned:
            said += [f"{endpoint.model}: tokens of {kind} are estimated from its rationales" for kind in unknown]
        elif unknown:
            said.append(f"{endpoint.model}: tokens are estimated from text length, {SECONDS_PER_CALL:.0f} s a call")
            said.append(f"{endpoint.model}: each lesson is accepted at the first request; further tries come on top")
        if price_of(endpoint) is None:
            said.append(f"{endpoint.model}: its price is not known and counted as 0; set teacher.price")
    return said


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
            _check_usable(endpoint, said.row.outcome, said.row.detail, bool(said.row.reply))


def try_lesson(config: TeacherConfig, endpoint: EndpointConfig) -> float:
    """Ask one teacher for the lesson of an example; nothing is kept. Returns the seconds to its reply.

    Raises TeacherAccessError where it gives none.
    """
    request = lesson_request(config, endpoint, Grader(AnswerKind.NUMBER), EXAMPLE)
    outcome = send_once(endpoint, request)
    if outcome.rule.category in NO_VERDICT:
        raise access_error(endpoint, f"{outcome.code}: {outcome.detail}{_offered(endpoint, outcome.code)}")
    _check_usable(endpoint, outcome.code, outcome.detail, bool(outcome.text))
    return outcome.seconds


def lesson_request(
    config: TeacherConfig, endpoint: EndpointConfig, grader: Grader, question: Question
) -> TeacherRequest:
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


def _check_usable(endpoint: EndpointConfig, code: str, detail: str, has_text: bool) -> None:
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
