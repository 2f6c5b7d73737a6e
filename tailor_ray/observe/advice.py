"""What is off in settings and in a stage's figures, and which setting to change.

In: a configuration, or a stage's metrics and the run's settings as plain data.
Out: sentences for the log, the report and the doctor. There are none where nothing is off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tailor_ray.config import RunConfig

LOST = 1 / 3  # share of answers without a verdict from which an exam measures its own settings more than the student
FEW = 0.1  # share of examples with a pair below which the self-reflection term hardly counts
SHARES = ("truncated", "unparsed", "disputed")
HIGHEST_RATE = 1e-4  # SmolLM2-135M still learnt at 1e-4; larger models want 5e-6 to 2e-5
HIGHEST_LORA_RATE = 2e-3
LEAST_ROOM = 64  # tokens: a question of one sentence in a chat template takes as many


def about_settings(config: RunConfig) -> list[str]:
    """What is allowed and far off for the student that is named, and what is usual.

    Nothing is said of the tiny student, which is not pretrained.
    """
    if not config.student.is_given:
        return []
    student, training = config.student, config.training
    found = []
    highest = HIGHEST_LORA_RATE if training.lora else HIGHEST_RATE
    if training.learning_rate > highest:
        found.append(
            f"training.learning_rate={training.learning_rate:g} is far above what a pretrained model stands "
            f"({'1e-4 to 5e-4 with adapters' if training.lora else '5e-6 to 5e-5 for all weights'}): it forgets what "
            "it knows"
        )
    if student.prompt_style == "plain" and re.search(r"(?i)\b(?:instruct|chat|it)\b", re.sub(r"_", "-", student.model)):
        found.append(
            f"student.model={student.model} looks like an instruct model, and student.prompt_style=plain does not use "
            "its chat template: set it to chat"
        )
    for name, tokens in (("exam", config.exam.max_new_tokens), ("evaluation", config.evaluation.max_new_tokens)):
        if tokens > student.max_model_len - LEAST_ROOM:
            found.append(
                f"{name}.max_new_tokens={tokens} leaves under {LEAST_ROOM} of student.max_model_len="
                f"{student.max_model_len} tokens for the question: raise the latter"
            )
    return found


def shares(counts: Mapping[str, Any] | None) -> dict[str, float] | None:
    """What share of an exam's attempts was truncated, unparsed or disputed, by its `counts`.

    Returns None where nothing was attempted.
    """
    attempts = (counts or {}).get("attempts")
    return {name: (counts or {}).get(name, 0) / attempts for name in SHARES} if attempts else None


def about_answers(what: str, counts: Mapping[str, Any], setting: str, limit: int | None) -> Iterator[str]:
    """Advice on the exam or evaluation `what`, by its `counts` of verdicts.

    `setting` names what caps its answers, at `limit` tokens.
    """
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
    """Advice on the examples of a round, by the `counts` of their making.

    The self-reflection term needs a mistake of the student's, the triplet term another right rationale besides. Nothing
    is said where the term's `weight` is 0.
    """
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
    """Advice on all committed stages of a run.

    `stages` are their metrics by round and name, `settings` the sections of run.yaml.
    """

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
