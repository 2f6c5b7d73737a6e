"""From lessons and attempts to training examples.

In: questions, all lessons on them so far, the latest exam's attempts. Out: one `TrainExample` per lesson. Where the
settings ask for it there is one per own correct attempt, and one per criticized mistake. A question that has a positive
and a negative gives them to its examples. Counts name what was left out.

Always holds. The result depends on the inputs' content, the settings, seed and round alone, not on the inputs' order.
Lessons and attempts of questions that are not among the given ones are ignored, so validation never leaks in.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from tailor_ray.records import Lesson, LessonKind, Question, TrainExample, Verdict

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig


class Answered(Protocol):
    """What this room needs of an Attempt: a part's millions are read without making whole ones."""

    @property
    def question_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def verdict(self) -> str: ...


Fit = Callable[[Sequence[tuple[str, str]]], list[float]]  # of prompts with completions; the less the better


class Prompt(Protocol):
    """What this room needs of `prompts.student.StudentPrompt`."""

    def render(self, question: Question) -> str: ...

    def critique(self, question: Question, mistake: str, feedback: str) -> str: ...

    def completion(self, rationale: str, answer: str) -> str: ...


def build_examples(
    questions: Iterable[Question],
    lessons: Iterable[Lesson],
    attempts: Iterable[Answered],
    prompt: Prompt,
    config: TrainingConfig,
    seed: int,
    round: int,
    latest: int,
    fit: Fit | None = None,
) -> tuple[list[TrainExample], dict[str, int]]:
    """One example per chosen lesson, question by question.

    `latest` is the newest round that has lessons. `fit` is needed for `training.choose: fit`.

    Returns the examples and counts: `examples`, `questions`, `with_pair`, `without_positive`, `without_negative` (an
    example may be in both), `duplicate_lessons` (same question and text: kept once) and `lessons_left_out` (by
    `training.lessons`/`feedback`).
    """
    known = {question.id: question for question in questions}
    counts = dict.fromkeys(("duplicate_lessons", "lessons_left_out"), 0)
    chosen = _choose(lessons, known, config, seed, round, latest, counts)
    if config.rationales:
        chosen = _fitting(chosen, known, prompt, config, fit, counts)
    correct, wrong = _sort_attempts(attempts, known)
    examples = []
    counts |= dict.fromkeys((name for name in ("own_correct", "critique") if getattr(config, name)), 0)
    for question_id in sorted({*chosen, *correct} if config.own_correct else chosen):
        question = known[question_id]
        rng = random.Random(f"{seed}/{round}/{question_id}")
        taught = chosen.get(question_id, [])
        texts = [(lesson, prompt.completion(lesson.text, lesson.answer)) for lesson in taught]
        own = sorted(correct[question_id]) if config.own_positives else []
        given = question.rationale if config.gold_rationales else None
        gold = [prompt.completion(given, question.answer)] if given else []
        positives = list(dict.fromkeys([text for _, text in texts] + own + gold))
        rng.shuffle(positives)
        negatives = _negatives(wrong[question_id], taught, rng)[: config.max_negatives]
        asked = prompt.render(question)
        attempts_kept = _own_correct(correct[question_id], [text for _, text in texts], config.own_correct, rng)
        learnt = [(text, _negative(lesson, negatives, index), 1.0) for index, (lesson, text) in enumerate(texts)]
        learnt += [
            (text, _negative(None, negatives, index), config.own_correct_weight)
            for index, text in enumerate(attempts_kept, start=len(texts))
        ]
        for index, (text, negative, weight) in enumerate(learnt):
            others = [other for other in positives if other != text][: config.max_positives]
            positive = others[index % len(others)] if others else None
            examples.append(TrainExample(question_id, asked, text, positive, negative, weight))
        if config.own_correct:
            counts["own_correct"] += len(attempts_kept)
        if config.critique:
            criticized = [
                TrainExample(question_id, prompt.critique(question, lesson.mistake, lesson.feedback), text, None, None)
                for lesson, text in texts
                if lesson.mistake and lesson.feedback
            ]
            examples += criticized
            counts["critique"] += len(criticized)
    counts["examples"] = len(examples)
    counts["questions"] = len({example.question_id for example in examples})
    alone = config.pairs == "likelihood"  # a mistake is compared with the rationale itself
    counts["with_pair"] = sum((alone or e.positive is not None) and e.negative is not None for e in examples)
    counts["without_positive"] = sum(e.positive is None for e in examples)
    counts["without_negative"] = sum(e.negative is None for e in examples)
    return examples, counts


def _negatives(wrong: set[str], lessons: list[Lesson], rng: random.Random) -> list[str]:
    """The question's mistakes, those that a lesson corrects first."""
    shuffled = sorted(wrong)
    rng.shuffle(shuffled)
    corrected = {lesson.mistake for lesson in lessons}
    return sorted(shuffled, key=lambda text: text not in corrected)


def _own_correct(correct: set[str], taught: list[str], count: int, rng: random.Random) -> list[str]:
    """At most `count` attempts that differ from each other and from the lessons by more than white space."""
    seen = {" ".join(text.split()) for text in taught}
    kept: list[str] = []
    for text in rng.sample(sorted(correct), len(correct)) if count else ():
        words = " ".join(text.split())
        if words not in seen and len(kept) < count:
            seen.add(words)
            kept.append(text)
    return kept


def _negative(lesson: Lesson | None, negatives: list[str], index: int) -> str | None:
    """The mistake that the lesson corrects if the student still makes it, else one of the others by turns."""
    if lesson is not None and lesson.mistake is not None and lesson.mistake in negatives:
        return lesson.mistake
    return negatives[index % len(negatives)] if negatives else None


def _choose(
    lessons: Iterable[Lesson],
    known: dict[str, Question],
    config: TrainingConfig,
    seed: int,
    round: int,
    latest: int,
    counts: dict[str, int],
) -> dict[str, list[Lesson]]:
    """Lessons by question, oldest first, each text once per question."""
    relevant = [lesson for lesson in lessons if lesson.question_id in known]
    chosen: dict[str, list[Lesson]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for lesson in sorted(relevant, key=lambda item: (item.round, item.question_id, item.request_key, item.text)):
        if not _wanted(lesson, latest, config, seed, round):
            counts["lessons_left_out"] += 1
        elif (lesson.question_id, lesson.text) in seen:
            counts["duplicate_lessons"] += 1
        else:
            seen.add((lesson.question_id, lesson.text))
            chosen[lesson.question_id].append(lesson)
    return chosen


def _fitting(
    chosen: dict[str, list[Lesson]],
    known: dict[str, Question],
    prompt: Prompt,
    config: TrainingConfig,
    fit: Fit | None,
    counts: dict[str, int],
) -> dict[str, list[Lesson]]:
    """The lessons less the rationales that are too many of a question; those that stay keep their order."""
    ranked = {
        name: [lesson for lesson in lessons if lesson.kind == LessonKind.RATIONALE] for name, lessons in chosen.items()
    }
    if config.choose == "fit":
        assert fit is not None, "choosing by fit takes a student"
        some = [one for lessons in ranked.values() if len(lessons) > (config.rationales or 0) for one in lessons]
        rows = [(prompt.render(known[one.question_id]), prompt.completion(one.text, one.answer)) for one in some]
        scores = dict(zip(map(id, some), fit(rows), strict=True))
        ranked = {name: sorted(lessons, key=lambda one: scores.get(id(one), 0.0)) for name, lessons in ranked.items()}
    spare = {id(one) for lessons in ranked.values() for one in lessons[config.rationales :]}
    counts["rationales_left_out"] = len(spare)
    return {name: [one for one in lessons if id(one) not in spare] for name, lessons in chosen.items()}


def _wanted(lesson: Lesson, latest: int, config: TrainingConfig, seed: int, round: int) -> bool:
    if lesson.kind == LessonKind.FEEDBACK and not config.feedback:
        return False
    if config.lessons == "all" or lesson.round == latest:
        return True
    if config.lessons == "latest":
        return False
    return random.Random(f"{seed}/{round}/replay/{lesson.request_key}").random() < config.replay_share


def _sort_attempts(
    attempts: Iterable[Answered], known: dict[str, Question]
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Texts of correct and of wrong attempts by question; unparsed, truncated and disputed ones teach nothing."""
    correct: dict[str, set[str]] = defaultdict(set)
    wrong: dict[str, set[str]] = defaultdict(set)
    for attempt in attempts:
        if attempt.question_id not in known:
            continue
        if attempt.verdict == Verdict.CORRECT:
            correct[attempt.question_id].add(attempt.text)
        elif attempt.verdict == Verdict.WRONG:
            wrong[attempt.question_id].add(attempt.text)
    return correct, wrong
