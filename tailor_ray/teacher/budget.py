"""The hard budget: what was paid plus the worst case of what is in flight never exceeds a cap.

Invariant, for the run and for the round, in dollars and in tokens: spent + reserved <= cap. A request is sent only
after `reserve` said yes; `settle` gives the reservation back and adds what was really paid.
"""

from __future__ import annotations

from dataclasses import dataclass

from tailor_ray.config.teacher import TeacherConfig


@dataclass(frozen=True, slots=True)
class Spend:
    """Dollars and tokens."""

    usd: float = 0.0
    tokens: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.usd + other.usd, self.tokens + other.tokens)

    def __sub__(self, other: Spend) -> Spend:
        return Spend(self.usd - other.usd, self.tokens - other.tokens)


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


class Budget:
    """Spent so far, reserved now, and four caps of which each may be absent."""

    def __init__(self, config: TeacherConfig, run_spent: Spend, round_spent: Spend) -> None:
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

    def reserve(self, worst: Spend) -> bool:
        """Set `worst` aside; False, and nothing changed, when a cap could be exceeded."""
        if self.binding(worst) is not None:
            return False
        self.reserved += worst
        return True

    def settle(self, worst: Spend, paid: Spend) -> None:
        self.reserved -= worst
        self.run_spent += paid
        self.round_spent += paid

    def binding(self, worst: Spend) -> Cap | None:
        """The cap that forbids sending what costs `worst`; None when it may be sent."""
        wanted = self.reserved + worst
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
        spent = self.round_spent if "round" in cap.setting else self.run_spent
        if cap.usd is not None:
            amounts = f"{cap.usd:.6g} dollars, {spent.usd:.6g} are spent and the next request may cost {worst.usd:.6g}"
        else:
            amounts = f"{cap.tokens} tokens, {spent.tokens} are spent and the next request may take {worst.tokens}"
        return f"the teacher's budget is used up: {cap.setting} allows {amounts}; raise it and run the same command"
