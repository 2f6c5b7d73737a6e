"""How a round's asks ended so far, and what to say when too few of them were accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.errors import StageError, Stopped, TailorError
from tailor_ray.teacher.asks import Ask
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.outcomes import TABLE, Fate

# Ends of requests that are final for one driver only.
AGAIN = frozenset(code for code, rule in TABLE.items() if rule.fate in (Fate.REQUEST, Fate.RETRY))
_ADVICE = {
    "length": "raise max_tokens in teacher.teachers, or lower reasoning_effort",
    "no_content": "raise max_tokens in teacher.teachers, or look at what the model is served with",
    "malformed": "look at the replies in this round's requests; output: tagged works with every model",
    "content_filter": "the endpoint filters these questions; ask another teacher",
}


@dataclass(slots=True)
class Ends:
    """Counts of asks that are done, by reason where they failed, and the server's words for it."""

    count: int = 0
    taught: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    words: dict[str, str] = field(default_factory=dict)  # the last ones, by reason

    def add(self, ask: Ask) -> None:
        self.count += 1
        if ask.accepted is not None:
            self.taught += 1
            return
        last = ask.ended[-1]
        reason = last.reason or last.outcome
        self.reasons[reason] += 1
        if last.settled.row.detail:
            self.words[reason] = last.settled.row.detail

    def add_part(self, metrics: dict[str, Any]) -> None:
        """A part of an earlier driver."""
        self.count += metrics["wanted"]
        self.taught += metrics["taught"]
        self.reasons.update(metrics["reasons"])


def yield_error(ends: Ends, of_how_many: str, config: TeacherConfig) -> TailorError:
    """Why the round does not go on, and what to change: Stopped where it was the server that refused."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in ends.reasons.most_common()) or "none"
    most = ends.reasons.most_common(1)[0][0] if ends.reasons else ""
    words = f" The teacher says: {ends.words[most]}." if most in ends.words else ""
    advice = _ADVICE.get(most, "look at the requests of this round, mend the prompt or the teacher")
    refused = most in AGAIN and most not in _ADVICE
    kind = Stopped if refused else StageError
    todo = "mend that and run the same command" if refused else f"{advice[0].upper()}{advice[1:]}"
    return kind(
        f"only {ends.taught} {of_how_many} lessons were accepted, below teacher.min_accepted_share="
        f"{config.min_accepted_share}; reasons: {reasons}.{words} {todo[0].upper()}{todo[1:]}, or lower the setting"
    )


def undecided_error(undecided: Sequence[Settled], config: TeacherConfig) -> Stopped:
    """All else is done, and some requests have no verdict."""
    said = Counter(f"{one.row.outcome}: {one.row.detail}" for one in undecided).most_common(1)[0][0]
    tries = f"teacher.max_attempts={config.max_attempts} attempts"
    return Stopped(
        f"{len(undecided)} requests got no reply in {tries}; most say: "
        f"{said}. All replies are kept: run the same command, which asks these again; what fails again then, while "
        "others are answered, counts as failed"
    )
