"""Which examples a round trains on."""

import random
from dataclasses import replace

import pytest

from tailor_ray.config.training import TrainingConfig
from tailor_ray.records import Attempt, Lesson, LessonKind, Question, Verdict
from tailor_ray.training.examples import build_examples


class Prompt:
    def render(self, question: Question) -> str:
        return f"Question: {question.text}\nReasoning:"

    def critique(self, question: Question, mistake: str, feedback: str) -> str:
        return f"Question: {question.text}\nReasoning:{mistake}\nFeedback: {feedback}\nReasoning:"

    def completion(self, rationale: str, answer: str) -> str:
        return f" {rationale}\nAnswer: {answer}"


def lesson(question: str, text: str, round: int = 1, kind: LessonKind = LessonKind.RATIONALE, mistake=None) -> Lesson:
    key = f"{question}/{text}/{round}"
    return Lesson(question, kind, round, text, "4", None, mistake, 0 if mistake else None, "teacher", key, 1, 1, 0.0)


def attempt(question: str, text: str, verdict: Verdict, sample: int = 0) -> Attempt:
    return Attempt(question, sample, text, "stop", None, verdict, 0, 1, 1)


QUESTIONS = [Question("a", "2+2?", "4", None, "gold"), Question("b", "1+3?", "4"), Question("c", "4+0?", "4")]


def build(taught, attempts=(), seed=0, round=1, fit=None, **settings):
    latest = max((lesson.round for lesson in taught), default=round)
    return build_examples(QUESTIONS, taught, attempts, Prompt(), TrainingConfig(**settings), seed, round, latest, fit)


def test_one_example_a_lesson_with_its_pair():
    attempts = [attempt("a", " wrong\nAnswer: 5", Verdict.WRONG), attempt("a", " own\nAnswer: 4", Verdict.CORRECT)]
    examples, counts = build([lesson("a", "two"), lesson("b", "one")], attempts)
    found = {e.question_id: e for e in examples}
    assert found["a"].prompt == "Question: 2+2?\nReasoning:"
    assert found["a"].rationale == " two\nAnswer: 4"
    assert found["a"].positive == " own\nAnswer: 4"
    assert found["a"].negative == " wrong\nAnswer: 5"
    assert (found["b"].positive, found["b"].negative) == (None, None)
    assert counts == {
        "examples": 2, "questions": 2, "with_pair": 1, "without_positive": 1, "without_negative": 1,
        "duplicate_lessons": 0, "lessons_left_out": 0,
    }  # fmt: skip


def test_a_mistake_is_a_pair_by_itself_where_likelihoods_are_compared():
    attempts = [attempt("a", " wrong\nAnswer: 5", Verdict.WRONG)]
    for reflection, pairs in {"triplet": 0, "orpo": 1, "redi": 1}.items():
        assert build([lesson("a", "two")], attempts, reflection=reflection)[1]["with_pair"] == pairs


def test_only_mistakes_are_negatives():
    verdicts = [Verdict.UNPARSED, Verdict.TRUNCATED, Verdict.DISPUTED, Verdict.ERROR]
    attempts = [attempt("a", f" text {n}", verdict, n) for n, verdict in enumerate(verdicts)]
    examples, _ = build([lesson("a", "two")], attempts)
    assert examples[0].negative is None


def test_another_lesson_is_a_positive_and_never_the_same_text():
    attempts = [attempt("a", " one\nAnswer: 4", Verdict.CORRECT)]
    examples, _ = build([lesson("a", "one"), lesson("a", "two", 2)], attempts)
    assert {e.rationale: e.positive for e in examples} == {
        " one\nAnswer: 4": " two\nAnswer: 4",
        " two\nAnswer: 4": " one\nAnswer: 4",
    }


def test_feedback_is_paired_with_the_mistake_that_it_corrects():
    attempts = [attempt("a", f" wrong {n}", Verdict.WRONG, n) for n in range(20)]
    lessons = [
        lesson("a", "one", 2, LessonKind.FEEDBACK, " wrong 17"),
        lesson("a", "two", 2, LessonKind.FEEDBACK, " wrong 3"),
    ]
    for seed in range(5):
        examples, _ = build(lessons, attempts, seed=seed)
        assert {e.rationale[1:4]: e.negative for e in examples} == {"one": " wrong 17", "two": " wrong 3"}


def test_at_most_so_many_negatives_and_positives_serve():
    attempts = [attempt("a", f" wrong {n}", Verdict.WRONG, n) for n in range(20)]
    attempts += [attempt("a", f" right {n}", Verdict.CORRECT, n) for n in range(20)]
    examples, _ = build([lesson("a", f"text {n}") for n in range(30)], attempts, max_negatives=3)
    assert len({e.negative for e in examples}) == 3
    assert all(e.positive != e.rationale for e in examples)


def test_gold_rationales_serve_only_when_asked():
    assert build([lesson("a", "two")])[0][0].positive is None
    assert build([lesson("a", "two")], gold_rationales=True)[0][0].positive == " gold\nAnswer: 4"


def test_own_positives_can_be_switched_off():
    attempts = [attempt("a", " own", Verdict.CORRECT)]
    assert build([lesson("a", "two")], attempts, own_positives=False)[0][0].positive is None


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"lessons": "all"}, {"r1", "r2", "fb"}),
        ({"lessons": "latest"}, {"r2", "fb"}),
        ({"feedback": False}, {"r1", "r2"}),
    ],
)
def test_lessons_by_round_and_kind(settings, texts):
    lessons = [lesson("a", "r1"), lesson("b", "r2", 2), lesson("c", "fb", 2, LessonKind.FEEDBACK)]
    examples, counts = build(lessons, round=2, **settings)
    assert {e.rationale.split()[0] for e in examples} == texts
    assert counts["lessons_left_out"] == 3 - len(texts)


def test_replay_keeps_about_its_share_of_the_earlier_lessons():
    lessons = [lesson("a", f"old {n}") for n in range(400)] + [lesson("a", f"new {n}", 2) for n in range(10)]
    examples, _ = build(lessons, round=2, lessons="replay", replay_share=0.25)
    kept = sum("old" in e.rationale for e in examples)
    assert sum("new" in e.rationale for e in examples) == 10
    assert 70 <= kept <= 130  # 100 ± 3.5 standard deviations of 8.7


def test_duplicates_and_foreign_questions():
    examples, counts = build([lesson("a", "two"), lesson("a", "two", 2), lesson("validation-7", "x")])
    assert [e.question_id for e in examples] == ["a"]
    assert counts["duplicate_lessons"] == 1


def test_the_result_depends_on_seed_round_and_content_alone():
    lessons = [lesson(q, f"text {n}", 1 + n % 2) for q in "abc" for n in range(6)]
    attempts = [attempt(q, f" wrong {n}", Verdict.WRONG, n) for q in "abc" for n in range(6)]
    first = build(lessons, attempts)
    shuffled_lessons, shuffled_attempts = lessons[:], attempts[:]
    random.Random(1).shuffle(shuffled_lessons)
    random.Random(2).shuffle(shuffled_attempts)
    assert build(shuffled_lessons, shuffled_attempts) == first
    assert build(lessons, attempts, seed=1)[0] != first[0]
    assert build(lessons, attempts, round=2)[0] != first[0]


def test_own_correct_attempts_are_examples_with_their_weight_beside_mistakes():
    own = [attempt("a", f" own {n}\nAnswer: 4", Verdict.CORRECT, n) for n in range(5)]
    own += [
        attempt("a", "  own 0\nAnswer: 4 ", Verdict.CORRECT, 5),
        attempt("a", " two\nAnswer: 4", Verdict.CORRECT, 6),
    ]
    attempts = [*own, attempt("a", " wrong", Verdict.WRONG, 7), attempt("c", " alone", Verdict.CORRECT)]
    before, _ = build([lesson("a", "two"), lesson("b", "one")], attempts)
    examples, counts = build([lesson("a", "two"), lesson("b", "one")], attempts, own_correct=9, own_correct_weight=0.5)
    assert [e for e in examples if e.weight == 1.0] == before, "lessons are what they were"
    found = [e for e in examples if e.weight == 0.5]
    assert sorted(" ".join(e.rationale.split()) for e in found if e.question_id == "a") == [
        f"own {n} Answer: 4"
        for n in range(5)  # one of two equal ones, and none that is a lesson already
    ]
    assert {e.rationale for e in found if e.question_id == "c"} == {" alone"}, "no lesson is needed"
    assert all(e.negative == " wrong" and e.positive not in (None, e.rationale) for e in found if e.question_id == "a")
    assert (counts["own_correct"], counts["examples"], counts["questions"]) == (6, 8, 3)


def test_at_most_so_many_own_correct_attempts_and_others_by_another_seed():
    attempts = [attempt("a", f" own {n}", Verdict.CORRECT, n) for n in range(20)]
    kept = []
    for seed in (0, 0, 1):
        examples, _ = build([], attempts, seed=seed, own_correct=3)
        kept.append([e.rationale for e in examples])
    assert len(set(kept[0])) == 3
    assert kept[0] == kept[1] != kept[2]
    assert build([], attempts)[0] == []


def test_a_criticized_mistake_is_one_more_example_and_has_no_pair():
    taught = [
        lesson("a", "plain"),
        replace(lesson("a", "mended", 2, LessonKind.FEEDBACK, " wrong"), feedback="No: 2+2."),
    ]
    attempts = [attempt("a", " wrong", Verdict.WRONG)]
    before, _ = build(taught, attempts, round=2)
    examples, counts = build(taught, attempts, round=2, critique=True)
    (more,) = [e for e in examples if e not in before]
    assert more.prompt == "Question: 2+2?\nReasoning: wrong\nFeedback: No: 2+2.\nReasoning:"
    assert more.rationale == " mended\nAnswer: 4"
    assert (more.positive, more.negative, more.weight) == (None, None, 1.0)
    assert (counts["critique"], counts["examples"]) == (1, 3)


def test_of_several_rationales_the_first_or_the_fitting_ones_are_learnt_from():
    taught = [lesson("a", text) for text in ("long and odd", "odd", "plain")] + [lesson("b", "alone")]
    taught.append(lesson("a", "feedback", 2, LessonKind.FEEDBACK, " wrong"))
    asked = []

    def fit(rows):
        asked.extend(rows)
        return [float(len(completion)) for _, completion in rows]

    def learnt(**settings):
        examples, counts = build(taught, round=2, fit=fit, **settings)
        return [e.rationale.split("\n")[0].strip() for e in examples], counts.get("rationales_left_out")

    assert learnt() == (["long and odd", "odd", "plain", "feedback", "alone"], None)
    assert learnt(rationales=2) == (["long and odd", "odd", "feedback", "alone"], 1)
    assert asked == []
    assert learnt(rationales=2, choose="fit") == (["odd", "plain", "feedback", "alone"], 1)
    assert learnt(rationales=1, choose="fit") == (["odd", "feedback", "alone"], 2)
    assert {prompt for prompt, _ in asked} == {"Question: 2+2?\nReasoning:"}, "who has no rival is not asked about"
