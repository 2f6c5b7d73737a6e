"""Which replies are lessons: each rule with a reply that breaks it, and the real replies of three teachers."""

import json
from collections import Counter

import pytest

from tailor_ray.answers import Grader
from tailor_ray.records import AnswerKind, LessonKind, Question, Verdict
from tailor_ray.teacher.asks import gives_away, is_near_duplicate, is_repetition, judge
from tests.teacher.helpers import QUESTION, reply

NUMBER = Grader(AnswerKind.NUMBER)
WAY = "Tom has 3 apples and buys 4, so he has 3 + 4 = 7."


def judged(text, kind=LessonKind.RATIONALE, question=QUESTION, grader=NUMBER):
    return judge(question, kind, text, grader)


def test_a_good_reply_is_a_lesson_without_its_conclusion_line():
    lesson = judged(reply(f"{WAY}\nAnswer: 7"))
    assert (lesson.reason, lesson.rationale, lesson.answer) == (None, WAY, "7")


def test_feedback_keeps_what_went_wrong():
    lesson = judged(reply(WAY, feedback="3 + 4 is not 8."), LessonKind.FEEDBACK)
    assert (lesson.reason, lesson.feedback) == (None, "3 + 4 is not 8.")


def test_typeset_feedback_is_made_plain_for_students_may_read_it():
    lesson = judged(reply(WAY, feedback=r"**Wrong sum:** $3 + 4 = 7$, not \boxed{8}."), LessonKind.FEEDBACK)
    assert (lesson.reason, lesson.feedback) == (None, "Wrong sum: 3 + 4 = 7, not 8.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (reply(""), "empty"),
        (reply("7"), "empty"),
        (reply("Seven apples then"), "empty"),
        (reply("Answer: 7"), "empty"),
        (reply("He has 3 + 4 = 8 apples now.", "8"), "wrong_answer"),
        (reply("He has 3 + 4 = 8 apples now.", "7"), "unsupported"),
        (reply(f"As the hint says, {WAY}"), "giveaway"),
        (reply(f"{WAY} This matches the given answer."), "giveaway"),
        (reply(f"{WAY} The student added wrongly."), "giveaway"),
        (reply(f"We are told that the answer is 7. {WAY}"), "giveaway"),
        (reply(f"Since we know the correct answer, {WAY}"), "giveaway"),
        (reply(f"{WAY} That matches the correct answer."), "giveaway"),
        (reply(f"Your mistake was the sum. {WAY}"), "giveaway"),
        (reply(f"{WAY}\n" * 5), "repetition"),
        (reply("so we add three and four " * 20 + WAY), "repetition"),
        ("<rationale>cut off in the mid", "wrong_answer"),
        ("I am sorry, I cannot help with that.", "wrong_answer"),
    ],
)
def test_each_rule_has_its_reason_and_tells_the_teacher(text, reason):
    lesson = judged(text)
    assert lesson.reason == reason
    assert lesson.problem.endswith(".")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Her TV cost 3.5 kw hours a week * $0.14 = $0.49 a week.", "49"),  # asked for cents
        ("So the selling price is $80 000 + $16 000 + $4 000 = $100 000.", "100000"),
        ("The drive can store 2400 / 200 = 12 200-kilobyte videos on it.", "12"),
        ("Female:44(.50)=22\nPregnant:22(.50)=11 cows", "11"),  # terse, and a way to the answer
    ],
)
def test_gold_rationales_that_people_wrote_are_lessons(text, answer):
    question = Question("q", "How many, or how many cents?", answer)
    assert judge(question, LessonKind.RATIONALE, reply(text, answer), Grader(AnswerKind.NUMBER)).reason is None


@pytest.mark.parametrize(
    "text",
    [
        '{"reasoning": "Tom has 3 apples and buys 4, so he has 3 + 4 = 7.", "answer": 7}',
        f"{WAY}\n```\nprint(7)\n```\nAnswer: 7",
        reply(f"{WAY} <|im_end|>"),
    ],
)
def test_what_still_holds_a_form_is_no_lesson(text):
    assert judged(text).reason == "malformed"


def test_where_an_object_was_asked_for_prose_is_none_and_tags_are():
    prose = f"{WAY}\nAnswer: 7"
    assert judge(QUESTION, LessonKind.RATIONALE, prose, NUMBER).reason is None
    assert judge(QUESTION, LessonKind.RATIONALE, prose, NUMBER, structured=True).reason == "malformed"
    assert judge(QUESTION, LessonKind.RATIONALE, reply(WAY), NUMBER, structured=True).reason is None


def test_feedback_without_what_went_wrong_is_none():
    assert judged(reply(WAY), LessonKind.FEEDBACK).reason == "no_feedback"


def test_a_typeset_rationale_is_made_plain_or_refused():
    lesson = judged(reply(r"**First** he has 3, then 3 \times 1 + 4 = \boxed{7}."))
    assert (lesson.reason, lesson.rationale) == (None, "First he has 3, then 3 * 1 + 4 = 7.")
    refused = judged(reply(r"He has \sqrt{9} and buys 4, so 3 + 4 = 7."))
    assert refused.reason == "markup"
    assert "plain text" in refused.problem


def continued(rationale, wrong_step, attempt="Tom has 3. Then 3 + 4 = 8.\nAnswer: 8", answer="7"):
    text = (
        f"<feedback>3 + 4 is not 8.</feedback><wrong_step>{wrong_step}</wrong_step>"
        f"<rationale>{rationale}</rationale><answer>{answer}</answer>"
    )
    return judge(QUESTION, LessonKind.FEEDBACK, text, NUMBER, continued=attempt)


@pytest.mark.parametrize(
    ("rationale", "wrong_step", "kept"),
    [
        ("Tom has 3. Then 3 + 4 = 7.", "3 + 4 = 8", "Tom has 3. Then 3 + 4 = 7."),
        ("Tom  has\n3. Then 3 + 4 = 7.", "3 + 4\n= 8", "Tom has 3. Then 3 + 4 = 7."),  # white space is the student's
        ("Tom has 3. He buys 4, which makes 7.", "Then 3 + 4 = 8.", "Tom has 3. He buys 4, which makes 7."),
        ("Tom has 3. Then 3 + 4 = 7.", "8.", "Tom has 3. Then 3 + 4 = 7."),
        ("With 4 more Tom has 3 + 4 = 7.", "Tom has 3.", "With 4 more Tom has 3 + 4 = 7."),  # nothing to keep
    ],
)
def test_a_correction_goes_on_from_the_students_words(rationale, wrong_step, kept):
    lesson = continued(rationale, wrong_step)
    assert (lesson.reason, lesson.rationale, lesson.answer) == (None, kept, "7")


def test_what_is_kept_of_the_students_words_stays_theirs_to_the_letter():
    lesson = continued("**Tom** has 3. Then **3 + 4 = 7**.", "3 + 4 = 8", "**Tom** has 3. Then 3 + 4 = 8.\nAnswer: 8")
    assert lesson.reason == "markup", "the student's own Markdown is not taught"


def test_a_wrong_conclusion_alone_leaves_all_steps():
    attempt = "Tom has 3, and then 3 + 4 = 7.\nAnswer: 8"
    lesson = continued("Tom has 3, and then 3 + 4 = 7.", "Answer: 8", attempt)
    assert (lesson.reason, lesson.rationale) == (None, "Tom has 3, and then 3 + 4 = 7.")


def test_part_of_a_word_or_number_is_no_step_and_none_that_is_repeated():
    question = Question("q", "Six bags of four?", "24")
    text = "<feedback>No.</feedback><wrong_step>{}</wrong_step><rationale>{}</rationale><answer>24</answer>"

    def judge_it(step, rationale, attempt="Six bags of four: 6 * 4 = 2.\nAnswer: 2"):
        said = text.format(step, rationale)
        return judge(question, LessonKind.FEEDBACK, said, NUMBER, continued=attempt).reason

    assert judge_it("6 * 4 = 2", "Six bags of four: 6 * 4 = 24.") is None, "24 is not the wrong 2 again"
    assert judge_it("6 * 4 = 2", "Six bags of four: 6 * 4 = 2 4.") == "not_continued"
    assert judge_it("6 * 4 = 2", "Six bags: 6 * 4 = 24.", "Six bags: 6 * 4 = 23.\nAnswer: 23") == "no_branch"


@pytest.mark.parametrize(
    ("rationale", "wrong_step", "reason"),
    [
        ("Tom has 3. Then 3 + 4 = 7.", "3 + 4 = 9", "no_branch"),  # no step of the student's
        ("Tom has 3. Then 3 + 4 = 7.", "", "no_branch"),
        ("Tom had 3. Then 3 + 4 = 7.", "3 + 4 = 8", "not_continued"),  # other words
        ("He buys 4 more, and then 3 + 4 = 7.", "3 + 4 = 8", "not_continued"),
        ("Tom has 3. Then 3 + 4 = 8. No, it is 7.", "3 + 4 = 8", "not_continued"),  # the mistake again
        ("Tom has 3. Then 3 + 4 = 9.", "3 + 4 = 8", "wrong_answer"),
    ],
)
def test_a_correction_that_does_not_go_on_from_them_is_none(rationale, wrong_step, reason):
    answer = "9" if reason == "wrong_answer" else "7"
    assert continued(rationale, wrong_step, answer=answer).reason == reason


def test_words_of_the_question_are_no_giveaway():
    assert gives_away("The student has 3 books.", "How many apples are left?")
    assert not gives_away("The student has 3 books.", "A student has 3 books. How many are left?")
    assert not gives_away("So the correct answer is 7.", "x")
    assert not gives_away("According to the given information, x = 5 + 2 = 7.", "x")


def test_choices_and_yes_no():
    choice = Question("c", "What flows?", "b", json.dumps({"a": "stone", "b": "river"}))
    grader = Grader(AnswerKind.CHOICE)
    assert judged(reply("Water that moves flows, as in a river.", "b"), question=choice, grader=grader).reason is None
    assert judged(reply("Water that moves flows, as in a river.", "a"), question=choice, grader=grader).reason
    yes = Question("y", "Is water wet?", "yes")
    assert (
        judged(reply("Water wets all that it touches.", "yes"), question=yes, grader=Grader(AnswerKind.YES_NO)).reason
        is None
    )


def test_near_duplicates():
    assert is_near_duplicate(WAY, [WAY.lower()])
    assert is_near_duplicate("7", ["7"])
    assert not is_near_duplicate("First 3, then 4 more: that makes 3 + 4 = 7 apples.", [WAY])
    assert not is_near_duplicate(WAY, [])


def test_repetition_leaves_working_alone():
    steps = "\n".join(f"Step {n}: {n} + {n} = {2 * n}, which we carry on to the next line." for n in range(12))
    assert not is_repetition(steps)


def test_real_replies_of_three_teachers(data_folder):
    """FAIR's SVAMP rationales: plain prose without our tags. Nothing breaks, and right ones are accepted."""
    questions = {}
    for split in ("train", "test"):
        for line in (data_folder / "svamp" / f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            questions[row["id"]] = Question(row["id"], row["question"], str(row["answer"]))
    reasons = Counter()
    for line in (data_folder / "recorded" / "fair_svamp_rationales.jsonl").read_text().splitlines():
        row = json.loads(line)
        lesson = judge(questions[row["id"]], LessonKind.RATIONALE, row["output"], NUMBER)
        if lesson.reason is None:
            assert (
                NUMBER.grade(questions[row["id"]], f"{lesson.rationale}\nAnswer: {lesson.answer}").verdict
                is Verdict.CORRECT
            )
        reasons[lesson.reason] += 1
    assert reasons[None] >= 600  # of 1,161; the others are mostly wrong, or a bare number
    assert reasons["giveaway"] == 0  # nobody had shown them the answer
