"""What became of mistakes: how a question stands in an exam, and how two exams of the same questions differ. Pure.

A question has a *standing* in one exam, from its attempts. Disputed ones and engine errors say nothing of the student
and are left out.

- solved: more than half of the attempts are correct;
- mistaken: not solved, and at least one attempt is wrong by both verifiers;
- undecided: anything else (no attempt left, or only unparsed and truncated ones beside the correct).

Between one exam and the next a question is *fixed* (mistaken, now solved) or *regressed* (solved, now mistaken). It is
*stubborn* (mistaken both times) or *kept* (solved both times). An undecided standing on either side counts as
`undecided`.

In: tables with the columns `question_id` and `verdict`. One may be a part of an exam, the other the part of the same
number of an earlier one. Out: counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import pyarrow as pa

from tailor_ray.records import Verdict

CHANGES = ("fixed", "regressed", "stubborn", "kept", "undecided")
SAYS_NOTHING = frozenset({Verdict.DISPUTED, Verdict.ERROR})


def standing(verdicts: Iterable[str]) -> str:
    """How a question stands, by the verdicts of its attempts.

    Returns solved, mistaken or undecided, as the module's contract says.
    """
    counted = [verdict for verdict in verdicts if verdict not in SAYS_NOTHING]
    if 2 * counted.count(Verdict.CORRECT) > len(counted):
        return "solved"
    return "mistaken" if Verdict.WRONG in counted else "undecided"


def change(before: str, now: str) -> str:
    """One of CHANGES, from two standings."""
    if "undecided" in (before, now):
        return "undecided"
    if before == "mistaken":
        return "fixed" if now == "solved" else "stubborn"
    return "regressed" if now == "mistaken" else "kept"


def compare(before: pa.Table, now: pa.Table) -> dict[str, int]:
    """How the questions changed that both exams asked.

    `before` and `now` have the columns question_id and verdict. Returns a count for each of CHANGES.
    """
    old, new = (
        {name: standing(verdicts) for name, verdicts in _verdicts(attempts).items()} for attempts in (before, now)
    )
    counted = Counter(change(old[name], new[name]) for name in old.keys() & new.keys())
    return {name: counted[name] for name in CHANGES}


def _verdicts(attempts: pa.Table) -> dict[str, list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, verdict in zip(attempts["question_id"].to_pylist(), attempts["verdict"].to_pylist(), strict=True):
        groups[name].append(verdict)
    return groups
