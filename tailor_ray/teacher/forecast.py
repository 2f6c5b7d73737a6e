"""What teaching will take: requests, tokens, dollars and time, from the data and, once there is one, from the ledger.

Calls nobody. Without a ledger, tokens are counted as a quarter of the characters (English text; the server's count is
the truth) and an assumed length of reply; with one, the means of its rows take their place, by model and by whether
the round was the first. Every assumption made is listed, so that a reader can judge it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tailor_ray.config.teacher import EndpointConfig, TeacherConfig
from tailor_ray.prompts.teacher import Messages, TeacherPrompt
from tailor_ray.records import AnswerKind, Question
from tailor_ray.teacher.ledger_row import LedgerRow, Means
from tailor_ray.teacher.outcomes import Usage
from tailor_ray.teacher.pricing import cost_usd, price_of

CHARACTERS_A_TOKEN = 4.0
REPLY_TOKENS = 150.0
MISTAKE_SHARE = 0.5  # of a question's attempts, before there is an exam
SECONDS_A_CALL = 5.0


@dataclass(frozen=True, slots=True)
class Basis:
    """What a forecast starts from: some of the training questions, how many there are, and how they will be asked."""

    questions: int
    sample: tuple[Question, ...]
    kind: AnswerKind
    rounds: int
    attempts: int  # a question and exam
    mistake_share: float | None = None  # of all attempts; None before there was an exam


@dataclass(frozen=True, slots=True)
class Amount:
    """Of one round, or of several."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost_usd + other.cost_usd,
            self.seconds + other.seconds,
        )


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


def learn(rows: Iterable[LedgerRow]) -> dict[tuple[str, bool], Means]:
    """Means by model and by whether the round was the first."""
    groups: defaultdict[tuple[str, bool], list[LedgerRow]] = defaultdict(list)
    for row in rows:
        if row.is_final and row.input_tokens:
            groups[row.model, row.round == 1].append(row)
    return {
        group: Means(
            sum(row.input_tokens for row in some) / len(some),
            sum(row.output_tokens for row in some) / len(some),
            sum(row.cached_tokens for row in some) / len(some),
            sum(row.seconds for row in some) / len(some),
        )
        for group, some in groups.items()
    }


def forecast(config: TeacherConfig, basis: Basis, rows: Iterable[LedgerRow] = ()) -> Forecast:
    """Forecast all rounds of a run; `rows` are those of its ledger, or of another run's on like questions."""
    means = learn(rows)
    share = MISTAKE_SHARE if basis.mistake_share is None else basis.mistake_share
    mistakes = min(share * basis.attempts, float(config.max_mistakes))
    rounds = []
    for number in range(1, basis.rounds + 1):
        lessons = basis.questions * (config.rationales if number == 1 else mistakes)
        rounds.append(round_amount(config, basis, round(lessons), number, means))
    return Forecast(tuple(rounds), tuple(_assumptions(config, basis, means, share)))


def round_amount(
    config: TeacherConfig, basis: Basis, lessons: int, round_: int, means: dict[tuple[str, bool], Means]
) -> Amount:
    """What so many lessons of a round take. A cascade asks its first teacher; a committee asks all."""
    asked = config.endpoints if config.arrangement == "committee" else config.endpoints[:1]
    total = Amount()
    for endpoint in asked:
        mean = means.get((endpoint.model, round_ == 1)) or _guess(endpoint, basis, round_)
        total += amount_of(endpoint, mean, lessons, config.mode == "batch")
    return total


def amount_of(endpoint: EndpointConfig, mean: Means, requests: int, batch: bool) -> Amount:
    """So many requests of a mean size."""
    usage = Usage(round(requests * mean.input), round(requests * mean.cached), round(requests * mean.output))
    dollars = cost_usd(price_of(endpoint), usage, batch)
    return Amount(requests, usage.input, usage.output, dollars, requests / _rate(endpoint, mean))


def lesson_amount(
    endpoint: EndpointConfig, body: str, round_: int, means: dict[tuple[str, bool], Means], batch: bool
) -> Amount:
    """What one lesson takes whose first request is known; `means` are those of earlier rounds."""
    reply = min(REPLY_TOKENS, float(endpoint.max_tokens))
    guess = Means(len(body) / CHARACTERS_A_TOKEN, reply, 0.0, SECONDS_A_CALL)
    return amount_of(endpoint, means.get((endpoint.model, round_ == 1), guess), 1, batch)


def _guess(endpoint: EndpointConfig, basis: Basis, round_: int) -> Means:
    prompt = TeacherPrompt(basis.kind, endpoint.output == "json_schema")
    attempt = "x" * round(REPLY_TOKENS * CHARACTERS_A_TOKEN / 2)
    prompts = [prompt.rationale(q) if round_ == 1 else prompt.feedback(q, attempt) for q in basis.sample]
    size = sum(map(_tokens, prompts)) / max(1, len(prompts))
    gold = [len(question.rationale) / CHARACTERS_A_TOKEN for question in basis.sample if question.rationale]
    reply = 1.5 * sum(gold) / len(gold) + 20 if gold else REPLY_TOKENS
    return Means(size, min(reply, float(endpoint.max_tokens)), 0.0, SECONDS_A_CALL)


def _rate(endpoint: EndpointConfig, mean: Means) -> float:
    """Requests a second that the limits allow."""
    rates = [endpoint.max_in_flight / max(mean.seconds, 0.01)]
    if endpoint.requests_per_minute:
        rates.append(endpoint.requests_per_minute / 60)
    if endpoint.tokens_per_minute:
        rates.append(endpoint.tokens_per_minute / 60 / max(mean.input + mean.output, 1.0))
    return min(rates)


def _tokens(messages: Messages) -> float:
    return sum(len(message["content"]) / CHARACTERS_A_TOKEN + 4 for message in messages)


def _assumptions(
    config: TeacherConfig, basis: Basis, means: dict[tuple[str, bool], Means], share: float
) -> Sequence[str]:
    said = []
    if basis.mistake_share is None and basis.rounds > 1:
        said.append(f"{share:.0%} of the attempts are mistakes (no exam yet)")
    elif basis.rounds > 1:
        said.append(f"{share:.0%} of the attempts are mistakes, as in the last exam")
    for endpoint in config.endpoints:
        first, later = (endpoint.model, True) in means, (endpoint.model, False) in means
        if not first or (basis.rounds > 1 and not later):
            said.append(f"{endpoint.model}: tokens are estimated from text length, {SECONDS_A_CALL:.0f} s a call")
        if price_of(endpoint) is None:
            said.append(f"{endpoint.model}: its price is not known and counted as 0; set teacher.price")
    said.append("each lesson is accepted at the first request; further tries come on top")
    return said
