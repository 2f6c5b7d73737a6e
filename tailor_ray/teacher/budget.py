"""Money: what tokens cost, and the hard budget that what was paid and what is in flight never exceed.

Prices are dollars per million tokens. The configuration's go before those of the table, which is a convenience with a
date on it, not a promise. What a reply itself says it cost goes before both. The budget's invariant, for the run and
for the round, in dollars and in tokens: spent + reserved <= cap. A request is sent only after `reserve` said yes.
`settle` gives the reservation back and adds what was really paid.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from tailor_ray.config.teacher import EndpointConfig, PriceConfig, TeacherConfig
from tailor_ray.errors import ConfigError
from tailor_ray.teacher.outcomes import Category, Outcome, Usage, codes

log = logging.getLogger(__name__)

TABLE_DATE = "2025-08"
CAP_GROWTH = 4  # a reply that was cut is asked for again with up to so many times the cap
ENOUGH_SEEN = 20  # replies within their caps after which an endpoint is taken to keep them
UNSURE = 8.0  # times what is reserved that a reply may turn out to cost until then
OLD_MONTHS = 6  # from which the table's age is told
REPLIED = codes(Category.ANSWERED, Category.TRUNCATED, Category.REFUSED)

PRICES: dict[str, PriceConfig] = {
    "gpt-5": PriceConfig(input=1.25, cached_input=0.125, output=10.0),
    "gpt-5-mini": PriceConfig(input=0.25, cached_input=0.025, output=2.0),
    "gpt-5-nano": PriceConfig(input=0.05, cached_input=0.005, output=0.4),
    "gpt-4.1": PriceConfig(input=2.0, cached_input=0.5, output=8.0),
    "gpt-4.1-mini": PriceConfig(input=0.4, cached_input=0.1, output=1.6),
    "gpt-4.1-nano": PriceConfig(input=0.1, cached_input=0.025, output=0.4),
    "gpt-4o": PriceConfig(input=2.5, cached_input=1.25, output=10.0),
    "gpt-4o-mini": PriceConfig(input=0.15, cached_input=0.075, output=0.6),
    "gpt-3.5-turbo": PriceConfig(input=0.5, output=1.5),
    "o3": PriceConfig(input=2.0, cached_input=0.5, output=8.0),
    "o4-mini": PriceConfig(input=1.1, cached_input=0.275, output=4.4),
    "deepseek-chat": PriceConfig(input=0.27, cached_input=0.07, output=1.1, batch_discount=0.0),
    "deepseek-reasoner": PriceConfig(input=0.55, cached_input=0.14, output=2.19, batch_discount=0.0),
    "mock-teacher": PriceConfig(input=0.0, output=0.0),
    "sandbox-teacher": PriceConfig(input=0.0, output=0.0),
}


def price_of(endpoint: EndpointConfig) -> PriceConfig | None:
    """The price that applies: the configuration's, else the table's.

    Returns None for an unknown model, whose cost is then counted as nothing.
    """
    return endpoint.price or PRICES.get(endpoint.model)


def months_old(now: float) -> int:
    """Whole months since the table was made."""
    year, month = map(int, TABLE_DATE.split("-"))
    today = time.gmtime(now)
    return (today.tm_year - year) * 12 + today.tm_mon - month


def check_prices(config: TeacherConfig, now: float | None = None) -> None:
    """Log which prices are not known or old, at the UNIX time `now` (the clock's if None).

    Raises ConfigError when a dollar budget is set and a model has no price.
    """
    age = months_old(time.time() if now is None else now)
    for endpoint in config.teachers:
        price = price_of(endpoint)
        if price is None and (config.budget_usd is not None or config.round_budget_usd is not None):
            raise ConfigError(
                f"a dollar budget is set, but the price of {endpoint.model!r} is not known (table of {TABLE_DATE}: "
                f"{', '.join(PRICES)}); set teacher.price.input and teacher.price.output"
            )
        if price is None and not endpoint.is_loopback:
            log.warning(
                "the price of %r is not known: what it is asked counts as $0 unless its replies say what they cost; "
                "set teacher.price.input and teacher.price.output",
                endpoint.model,
            )
        elif price is not None and endpoint.price is None and (price.input or price.output) and age >= OLD_MONTHS:
            log.warning(
                "the price of %r is that of %s, %d months ago: check it, or set price.input and price.output",
                endpoint.model, TABLE_DATE, age,
            )  # fmt: skip


def cost_usd(price: PriceConfig | None, usage: Usage, batch: bool = False) -> float:
    """Dollars of one reply: what it says it cost, else its tokens by `price`, less the discount of a `batch`.

    Without either it is 0.
    """
    if usage.cost is not None:
        return usage.cost
    if price is None:
        return 0.0
    cached_price = price.input if price.cached_input is None else price.cached_input
    dollars = (usage.input - usage.cached) * price.input + usage.cached * cached_price + usage.output * price.output
    return dollars * (1 - price.batch_discount if batch else 1.0) / 1e6


def outcome_usd(endpoint: EndpointConfig, outcome: Outcome) -> float:
    """Dollars that an online attempt's own usage comes to."""
    return cost_usd(price_of(endpoint), outcome.usage or Usage())


@dataclass(frozen=True, slots=True)
class Spend:
    """Dollars and tokens."""

    usd: float = 0.0
    tokens: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.usd + other.usd, self.tokens + other.tokens)

    def __sub__(self, other: Spend) -> Spend:
        return Spend(self.usd - other.usd, self.tokens - other.tokens)

    def __mul__(self, times: float) -> Spend:
        return Spend(self.usd * times, round(self.tokens * times))


@dataclass(frozen=True, slots=True)
class Cap:
    """One limit, and the setting to name when it is reached."""

    setting: str
    usd: float | None = None
    tokens: int | None = None

    def allows(self, spend: Spend) -> bool:
        if self.usd is not None and spend.usd > self.usd:
            return False
        return self.tokens is None or spend.tokens <= self.tokens


class WorstCase:
    """What one attempt at an endpoint may cost, by its cap and price, and by what its replies have shown so far.

    A server that ignores the cap or counts more than we do is believed: the largest reply seen is what the next one
    may be. Until some were seen, and where one exceeded its cap, calls go together only where the budget has room for
    several times what is reserved, and one by one at its end: so at most one reply exceeds it.
    """

    def __init__(self, endpoint: EndpointConfig, batch: bool = False, seen_output: int | None = None) -> None:
        """`batch` takes the price of batches; `seen_output` are the tokens of the largest reply of an earlier driver,
        None where there was none."""
        self._model, self._price, self._batch = endpoint.model, price_of(endpoint), batch
        most = CAP_GROWTH * endpoint.max_tokens
        self._output = seen_output if seen_output is not None and seen_output > most else 0
        self._seen = ENOUGH_SEEN if seen_output is not None else 0
        self._input = 0  # beyond what we count
        self._dearest = 0.0
        self._told: set[str] = set()

    @property
    def slack(self) -> float:
        """How much more than the reservations in flight a budget must hold."""
        return 1.0 if self._seen >= ENOUGH_SEEN and not (self._output or self._input > 0) else UNSURE

    def of(self, prompt_tokens: int, max_tokens: int) -> Spend:
        """What an attempt may cost.

        `prompt_tokens` and `max_tokens` bound its prompt and its reply.
        """
        usage = Usage(input=prompt_tokens + self._input, output=max(max_tokens, self._output))
        dollars = cost_usd(self._price, usage, self._batch)
        return Spend(max(dollars, self._dearest), usage.input + usage.output)

    def learn(self, prompt_tokens: int, max_tokens: int, outcome: Outcome, reserved: Spend) -> Spend:
        """Take note of what came of an attempt for which `reserved` was set aside.

        Returns what it counts as where its usage is not known. `prompt_tokens` and `max_tokens` are bounds: more than
        them is believed of the next one too.
        """
        usage, text = outcome.usage, outcome.text
        if not text and outcome.code not in REPLIED:
            return reserved
        self._seen += 1
        if usage is None:
            self._tell("usage", "replies of %r do not say what they used: each is counted at its worst", self._model)
            # A token is seldom more than three bytes of a long text, whatever the tokenizer.
            counted = self.of(prompt_tokens, max(max_tokens, len((text or "").encode("utf-8", "replace")) // 3))
            return Spend(max(counted.usd, reserved.usd), max(counted.tokens, reserved.tokens))
        if usage.output > max(max_tokens, self._output):
            said = "%r wrote %d tokens where at most %d were asked for: so much is reserved from now on"
            self._tell("cap", said, self._model, usage.output, max_tokens)
            self._output = usage.output
        self._input = max(self._input, usage.input - prompt_tokens)
        if usage.cost is not None:
            self._dearest = max(self._dearest, usage.cost)
        return reserved

    def _tell(self, what: str, said: str, *values: object) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning(said, *values)


class Budget:
    """Spent so far, reserved now, and four caps of which each may be absent."""

    def __init__(self, config: TeacherConfig, run_spent: Spend, round_spent: Spend) -> None:
        """`run_spent` is what earlier rounds and drivers have spent, `round_spent` what of it is this round's."""
        self._run = (
            Cap("teacher.budget_usd", usd=config.budget_usd),
            Cap("teacher.budget_tokens", tokens=config.budget_tokens),
        )
        self._round = (
            Cap("teacher.round_budget_usd", usd=config.round_budget_usd),
            Cap("teacher.round_budget_tokens", tokens=config.round_budget_tokens),
        )
        self.run_spent = run_spent
        self.round_spent = round_spent
        self.reserved = Spend()

    def reserve(self, worst: Spend, slack: float = 1.0) -> bool:
        """Set `worst` aside, if `binding` names no cap.

        Returns False, with nothing changed, when a cap could be exceeded.
        """
        if self.binding(worst, slack) is not None:
            return False
        self.reserved += worst
        return True

    def settle(self, worst: Spend, paid: Spend) -> None:
        """Give a reservation back, and count what was paid in its place."""
        self.reserved -= worst
        self.run_spent += paid
        self.round_spent += paid

    def binding(self, worst: Spend, slack: float = 1.0) -> Cap | None:
        """The cap that forbids sending what costs `worst`.

        The caps must hold `slack` times what is then in flight. Returns None where nothing forbids it.
        """
        wanted = (self.reserved + worst) * slack
        for caps, spent in ((self._run, self.run_spent), (self._round, self.round_spent)):
            for cap in caps:
                if not cap.allows(spent + wanted):
                    return cap
        return None

    def lasts(self, round_total: Spend) -> bool:
        """Whether the caps allow a round that takes so much in all, with what it has taken already."""
        before = self.run_spent - self.round_spent
        return all(cap.allows(before + round_total) for cap in self._run) and all(
            cap.allows(round_total) for cap in self._round
        )

    def exhausted_message(self, cap: Cap, worst: Spend) -> str:
        """What to say when `cap` forbids what costs `worst`, and nothing is in flight that may cost less."""
        spent = self.round_spent if "round" in cap.setting else self.run_spent
        if cap.usd is not None:
            amounts = f"{cap.usd:.6g} dollars, {spent.usd:.6g} are spent and the next request may cost {worst.usd:.6g}"
        else:
            amounts = f"{cap.tokens} tokens, {spent.tokens} are spent and the next request may take {worst.tokens}"
        return f"the teacher's budget is used up: {cap.setting} allows {amounts}; raise it and run the same command"
