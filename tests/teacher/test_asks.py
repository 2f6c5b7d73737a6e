"""The way of one lesson, without a network: tries, teachers in cascade and committee, peers, and what is written."""

import pytest

from tailor_ray.answers import Grader
from tailor_ray.config.run import parse_config
from tailor_ray.config.teacher import TeacherConfig
from tailor_ray.errors import ConfigError
from tailor_ray.records import AnswerKind, LessonKind, Question
from tailor_ray.teacher.asks import Asker
from tailor_ray.teacher.dispatch import Settled
from tailor_ray.teacher.ledger_rows import LedgerRow
from tailor_ray.teacher.parts import lesson_rows, part_metrics, request_rows
from tests.teacher.helpers import QUESTION, mistake, reply

GRADER = Grader(AnswerKind.NUMBER)
WAY = "Tom has 3 apples and buys 4, so he has 3 + 4 = 7."
GOOD, WRONG = reply(WAY, feedback="3 + 4 is not 8."), reply("He has 3 + 4 = 8 apples now.", "8", "?")
OTHER_WAY = reply("Count on from three: four, five, six, seven. That makes 7 apples.", feedback="It miscounts.")


def asker(round_=2, **settings):
    return Asker(TeacherConfig(**settings), GRADER, round_)


def settle(request, text="", outcome="answered"):
    row = LedgerRow(
        request.key,
        outcome,
        request.model,
        request.question_id,
        request.round,
        request.body,
        text,
        input_tokens=100,
        output_tokens=50,
        cost_usd=0.01,
        attempts=1,
    )
    return Settled(request, row, from_ledger=False)


def play(subject, ask, *replies):
    """Give these replies in turn ((text, outcome) or text); returns the requests that were made."""
    made, request = [], subject.first(ask)
    for one in replies:
        text, outcome = one if isinstance(one, tuple) else (one, "answered")
        made.append(request)
        request = subject.advance(ask, settle(request, text, outcome))
    assert request is None, "the ask wants more replies"
    return made


def test_round_one_asks_for_rationales_and_later_rounds_for_feedback():
    attempts = [mistake(sample=k, text=text) for k, text in enumerate(["a", "b ", "a", " b", "c"])]
    first = asker(1, rationales=3).asks([QUESTION], attempts, frozenset())
    assert [(ask.kind, ask.sample) for ask in first] == [(LessonKind.RATIONALE, k) for k in range(3)]
    later = asker(2).asks([QUESTION], attempts, frozenset())
    assert [ask.mistake.sample for ask in later] == [0, 1, 4]  # equal texts are asked about once
    assert [ask.mistake.sample for ask in asker(2, max_mistakes=2).asks([QUESTION], attempts, frozenset())] == [0, 1]
    assert asker(2).asks([QUESTION], [], frozenset()) == []
    assert asker(2, max_mistakes=0).asks([QUESTION], attempts, frozenset()) == []


def test_several_rationales_follow_each_other_and_each_takes_another_route():
    subject = asker(1, rationales=3, model="a", also=[{"model": "b"}], arrangement="committee")
    asks = subject.asks([QUESTION], [], frozenset())
    assert [(ask.sample, ask.teachers[0].model) for ask in asks] == [(k, m) for k in range(3) for m in "ab"]
    first, _, second, _, third, _ = asks
    assert (first.then, second.then, third.then, first.waiting) == (second, third, None, 2)
    assert subject.advance(first, settle(subject.first(first), reply(WAY))) is None
    request = subject.following(first)
    assert WAY in request.body
    assert "another route" in request.body
    for _ in range(3):  # what was refused is not shown
        request = subject.advance(second, settle(request, reply("He has 3 + 4 = 8.", "8")))
    assert request is None
    request = subject.following(second)
    assert WAY in request.body
    assert "= 8" not in request.body
    assert subject.advance(third, settle(request, OTHER_WAY)) is None
    assert subject.following(third) is None


def test_the_last_ask_of_a_rationale_may_give_a_hint():
    for round_, last_try, hints in ((1, "blind", False), (1, "hinted", True), (2, "hinted", False)):
        subject = asker(round_, last_try=last_try, model="a", also=[{"model": "b"}], max_asks=2)
        (ask,) = subject.asks([QUESTION], [mistake()], frozenset())
        made = play(subject, ask, WRONG, WRONG, WRONG, GOOD)
        assert [("find the way there" in request.body) for request in made] == [False, False, False, hints]
        assert ask.accepted is not None
    with pytest.raises(ConfigError, match="raise max_asks"):
        parse_config({"teacher": {"last_try": "hinted", "max_asks": 1}}, "test")


def test_a_hint_for_a_second_rationale_asks_for_another_route_all_the_same():
    subject = asker(1, rationales=2, last_try="hinted", max_asks=2)
    first, second = subject.asks([QUESTION], [], frozenset())
    assert subject.advance(first, settle(subject.first(first), reply(WAY))) is None
    hinted = subject.advance(second, settle(subject.following(first), WRONG))
    assert "find the way there" in hinted.body
    assert WAY in hinted.body
    assert "another route" in hinted.body


def test_corrections_go_on_from_the_students_words_where_that_is_asked_for():
    subject = asker(correction="continue")
    (ask,) = subject.asks([QUESTION], [mistake(text=" He has 3 first. 3 + 4 = 8.\nAnswer: 8")], frozenset())
    made = play(
        subject,
        ask,
        reply("So it is 3 + 4 = 7, all in all.", feedback="No."),
        "<feedback>No.</feedback><wrong_step>3 + 4 = 8.</wrong_step>"
        "<rationale>He has 3 first. 3 + 4 = 7.</rationale><answer>7</answer>",
    )
    assert "word for word" in made[0].body
    assert [one.reason for one in ask.ended] == ["no_branch", None]
    assert ask.accepted.rationale == "He has 3 first. 3 + 4 = 7."


def test_the_mistakes_worth_most_come_first():
    often, seldom, taught = (Question(name, f"{name}?", "7") for name in ("often", "seldom", "taught"))
    right = [mistake(seldom, sample=k, text="7") for k in range(3)]
    attempts = [
        mistake(often),
        *[one.__class__(**{**one.to_row(), "verdict": "correct"}) for one in right],
        mistake(seldom, sample=3),
        mistake(taught),
    ]
    asks = asker(2).asks([seldom, taught, often], attempts, frozenset({"taught"}))
    assert [ask.question.id for ask in sorted(asks, key=lambda ask: ask.priority)] == ["often", "taught", "seldom"]


def test_a_rejected_reply_is_asked_again_with_what_was_wrong():
    subject = asker()
    (ask,) = subject.asks([QUESTION], [mistake()], frozenset())
    made = play(subject, ask, WRONG, ("half of it", "length"), GOOD)
    assert len({request.key for request in made}) == 3
    assert "its answer is not right" in made[1].body
    assert "cut off" in made[2].body
    assert [(one.outcome, one.reason, one.number) for one in ask.ended] == [
        ("rejected", "wrong_answer", 1),
        ("rejected", "length", 2),
        ("accepted", None, 3),
    ]
    assert ask.accepted.rationale == WAY


def test_tries_are_bounded_and_the_last_one_counts_as_failed_with_its_reason():
    subject = asker(max_asks=2)
    (ask,) = subject.asks([QUESTION], [mistake()], frozenset())
    play(subject, ask, WRONG, WRONG)
    assert ask.accepted is None
    assert [(one.outcome, one.reason) for one in ask.ended] == [
        ("rejected", "wrong_answer"),
        ("failed", "wrong_answer"),
    ]
    metrics = part_metrics([ask], request_rows([ask], 2, set()), 2)
    assert (metrics["taught"], metrics["rejected"], metrics["failed"]) == (0, 1, 1)
    assert metrics["reasons"] == {"wrong_answer": 2}


@pytest.mark.parametrize("outcome", ["content_filter", "refusal", "http_400", "http_5xx", "timeout"])
def test_without_a_usable_reply_the_ask_fails_with_the_reason(outcome):
    subject = asker()
    (ask,) = subject.asks([QUESTION], [mistake()], frozenset())
    play(subject, ask, ("", outcome))
    assert [(one.outcome, one.reason) for one in ask.ended] == [("failed", outcome)]


def test_in_a_cascade_what_one_fails_at_goes_to_the_next():
    subject = asker(model="cheap", also=[{"model": "dear", "max_tokens": 99}], max_asks=2)
    (ask,) = subject.asks([QUESTION], [mistake()], frozenset())
    made = play(subject, ask, WRONG, WRONG, GOOD)
    assert [request.model for request in made] == ["cheap", "cheap", "dear"]
    assert "its answer" not in made[2].body  # it begins afresh
    (ask,) = subject.asks([QUESTION], [mistake()], frozenset())
    assert [request.model for request in play(subject, ask, ("", "refusal"), GOOD)] == ["cheap", "dear"]


def test_in_a_committee_each_writes_and_near_duplicates_go():
    subject = asker(model="a", also=[{"model": "b"}, {"model": "c"}], arrangement="committee")
    asks = subject.asks([QUESTION], [mistake()], frozenset())
    for ask, text in zip(asks, (GOOD, OTHER_WAY, GOOD), strict=True):
        play(subject, ask, text)
    asks.sort(key=lambda ask: ask.order)
    lessons, duplicates = lesson_rows(asks, 2)
    assert [lesson.model for lesson in lessons] == ["a", "b"]
    rows = request_rows(asks, 2, duplicates)
    assert [(row["outcome"], row["reason"]) for row in rows] == [
        ("accepted", None),
        ("accepted", None),
        ("rejected", "duplicate"),
    ]
    metrics = part_metrics(asks, rows, 2)
    assert (metrics["wanted"], metrics["taught"], metrics["accepted"], metrics["rejected"]) == (3, 3, 2, 1)
    assert metrics["cost_usd"] == pytest.approx(0.03)
    assert part_metrics(asks, rows, 3)["cost_usd"] == 0  # paid by another round


def test_peers_score_a_lesson_and_throw_it_out():
    settings = {"model": "a", "also": [{"model": "b"}, {"model": "c"}], "arrangement": "committee", "peer_scores": True}
    subject = asker(**settings)
    first, second, third = subject.asks([QUESTION], [mistake()], frozenset())
    made = play(subject, first, GOOD, "<score>5</score>", "I would say 4.")
    assert [request.model for request in made] == ["a", "b", "c"]
    assert first.accepted is not None
    assert lesson_rows([first], 2)[0][0].request_key == made[0].key
    play(subject, second, GOOD, "<score>1</score>", "<score>3</score>")
    assert second.accepted is None
    assert [one.reason for one in second.ended] == ["peer_score", None, None]
    play(subject, third, GOOD, "no idea", ("", "refusal"))
    assert third.accepted is not None  # nobody gave a score
    with pytest.raises(ConfigError, match="peer_scores"):
        parse_config({"teacher": {"peer_scores": True}}, "test")


def test_keys_depend_on_what_decides_the_reply_and_on_nothing_else():
    def key(round_=2, question=QUESTION, sample=0, **settings):
        subject = asker(round_, **settings)
        ask = subject.asks([question], [mistake(question)], frozenset())[sample]
        return subject.first(ask).key

    assert key() == key(
        max_asks=9, timeout_s=1, base_url="https://elsewhere.example/v1", requests_per_minute=5, actors=3
    )
    assert key() == key(mode="batch", price={"input": 1, "output": 2}, budget_usd=3)
    assert key() == key(max_tokens=9) == key(cap_parameter="max_completion_tokens") == key(service_tier="flex")
    different = [
        key(),
        key(1),
        key(model="m"),
        key(temperature=0.1),
        key(extra_body={"thinking": {"budget_tokens": 9}}),
        key(output="json_schema"),
        key(prompts={"system": "Be brief."}),
        key(question=Question("q1", "Other?", "7")),
        key(top_p=0.5),
        key(reasoning_effort="low"),
        key(chat_template_kwargs={"enable_thinking": False}),
        key(1, rationales=2, sample=1),
    ]
    assert len(set(different)) == len(different)
