"""What a stage's figures say is off, and which setting to change: sentences for the log and for the report.

In: a stage's metrics and the run's settings as plain data. Out: sentences, none where nothing is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LOST = 1 / 3  # share of answers without a verdict from which an exam measures its own settings more than the student
FEW = 0.1  # share of examples with a pair below which the self-reflection term hardly counts
SHARES = ("truncated", "unparsed", "disputed")


def shares(counts: Mapping[str, Any] | None) -> dict[str, float] | None:
    """What part of an exam's attempts was cut off, not read, or read in two ways."""
    attempts = (counts or {}).get("attempts")
    return {name: (counts or {}).get(name, 0) / attempts for name in SHARES} if attempts else None


def about_answers(what: str, counts: Mapping[str, Any], setting: str, limit: int | None) -> Iterator[str]:
    """On an exam or evaluation; `setting` caps its answers at `limit` tokens."""
    found = shares(counts) or dict.fromkeys(SHARES, 0.0)
    attempts = counts.get("attempts", 0)
    if found["truncated"] >= LOST:
        yield (
            f"{what}: {counts['truncated']:,} of {attempts:,} answers were cut off at {setting}={limit}: raise it (and "
            "student.max_model_len with it), or show short answers: student.few_shot=true"
        )
    if found["unparsed"] >= LOST:
        yield (
            f"{what}: in {counts['unparsed']:,} of {attempts:,} answers no answer was found: look at some in its "
            "attempts (`tailor-ray doctor CONFIG` asks one question), check student.prompt_style and task.answer_kind, "
            "or show the form: student.few_shot=true"
        )


def about_pairs(round_: int, counts: Mapping[str, Any], weight: float, reflection: str = "triplet") -> Iterator[str]:
    """On a round's examples: the self-reflection term needs a mistake of the student's, the triplet term another right
    rationale besides."""
    examples, pairs = counts.get("examples", 0), counts.get("with_pair", counts.get("examples", 0))
    if not weight or pairs >= FEW * examples:
        return
    triplet = reflection == "triplet"
    what = "a pair (another right rationale and an own mistake)" if triplet else "an own mistake"
    says = f"round {round_}: {pairs:,} of {examples:,} examples have {what}, so the self-reflection term hardly counts"
    if triplet and counts.get("without_positive", 0) > examples / 2:
        says += (
            f"; {counts['without_positive']:,} lack another right rationale: set teacher.rationales to 2 or more, or "
            "training.gold_rationales=true where the task has its own"
        )
    if counts.get("without_negative", 0) > examples / 2:
        says += (
            f"; {counts['without_negative']:,} lack a mistake: raise exam.samples, or exam.max_new_tokens if answers "
            "are cut off (only whole wrong answers count)"
        )
    yield says


def about_run(stages: Mapping[tuple[int, str], Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """On all committed stages of a run; `stages` are their metrics by round and name."""

    def setting(section: str, name: str) -> Any:
        return settings.get(section, {}).get(name)

    for (number, stage), metrics in sorted(stages.items()):
        if stage == "exam":
            limit = setting("exam", "max_new_tokens")
            yield from about_answers(f"round {number} exam", metrics, "exam.max_new_tokens", limit)
        elif stage == "examples":
            reflection = setting("training", "reflection") or "triplet"
            weight = 0.0 if reflection == "none" else setting("training", f"{reflection}_weight")
            yield from about_pairs(number, metrics, 0.5 if weight is None else weight, reflection)
        elif stage == "evaluate":
            limit = setting("evaluation", "max_new_tokens")
            counts = metrics.get("test") or {}
            yield from about_answers(f"round {number} test", counts, "evaluation.max_new_tokens", limit)
