"""What tokens cost: a small dated table of list prices, and the sums made with it.

Dollars a million tokens. A price in the configuration goes before the table. The table is a convenience with a date
on it, not a promise: the bill is the endpoint's.
"""

from __future__ import annotations

from tailor_ray.config.teacher import EndpointConfig, PriceConfig, TeacherConfig
from tailor_ray.errors import ConfigError
from tailor_ray.teacher.outcomes import Outcome, Usage

TABLE_DATE = "2025-08"

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
    "sandbox-teacher": PriceConfig(input=0.0, output=0.0),
}


def price_of(endpoint: EndpointConfig) -> PriceConfig | None:
    """The price that applies; None for an unknown model, whose cost is then counted as nothing."""
    return endpoint.price or PRICES.get(endpoint.model)


def check_prices(config: TeacherConfig) -> None:
    """Raise ConfigError when a dollar budget is set and a model has no price."""
    if config.budget_usd is None and config.round_budget_usd is None:
        return
    for endpoint in config.endpoints:
        if price_of(endpoint) is None:
            raise ConfigError(
                f"a dollar budget is set, but the price of {endpoint.model!r} is not known (table of {TABLE_DATE}: "
                f"{', '.join(PRICES)}); set teacher.price.input and teacher.price.output"
            )


def cost_usd(price: PriceConfig | None, usage: Usage, batch: bool = False) -> float:
    """Dollars of one reply."""
    if price is None:
        return 0.0
    cached_price = price.input if price.cached_input is None else price.cached_input
    dollars = (usage.input - usage.cached) * price.input + usage.cached * cached_price + usage.output * price.output
    return dollars * (1 - price.batch_discount if batch else 1.0) / 1e6


def outcome_usd(endpoint: EndpointConfig, outcome: Outcome) -> float:
    """Dollars that an online attempt's own usage comes to."""
    return cost_usd(price_of(endpoint), outcome.usage or Usage())


def worst_usd(price: PriceConfig | None, prompt_tokens: int, max_tokens: int) -> float:
    """Dollars that one attempt costs at most: nothing cached, no discount, the whole cap written."""
    return cost_usd(price, Usage(input=prompt_tokens, output=max_tokens)) if price else 0.0
