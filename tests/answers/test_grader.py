"""Verdicts on the forms that models really write, for every answer kind."""

import json
import pickle
import threading
import time

import pytest

from tailor_ray.answers import Grader, normalize_gold
from tailor_ray.errors import ConfigError
from tailor_ray.records import AnswerKind, Question, Verdict

CHOICES = {"a": "race track", "b": "populated areas", "c": "the desert", "d": "apartment", "e": "roadblock"}


def verdict(text, gold="18", finish="stop", kind=AnswerKind.NUMBER, question="How many?", choices=None, function=None):
    asked = Question("q", question, gold, json.dumps(choices) if choices else None)
    return Grader(kind, function).grade(asked, text, finish).verdict


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("3 * 6 = 18\n#### 18", "18"),
        ("####18", "18"),
        ("He has 3 left.\nA: 18", "18"),
        ("So it is \\boxed{18}.", "18"),
        ("\\[ \\boxed{18\\text{ dollars}} \\]", "18"),
        ("The answer is $\\boxed{18}$.", "18"),
        ("**18**", "18"),
        ("She makes **$18.00** per day.", "18"),
        ("**Answer:** 18", "18"),
        ("**Answer: 18**", "18"),
        ("$18.00", "18"),
        ("18 dollars", "18"),
        ("The answer is 18 dollars.", "18"),
        ("Answer: 18.00", "18"),
        ("Answer: 1,200", "1200"),
        ("1,200", "1200"),
        ("The answer is $1,200.50.", "1200.5"),
        ("The answer is $118 000.", "118000"),
        ("The answer is 118 000.", "118000"),
        ("She finished in 7 - 1 = 6th place.", "6"),
        ("Answer: -3", "-3"),
        ("Answer: \u22123", "-3"),
        ("The answer is -$3.", "-3"),
        ("Answer: 3/4", "0.75"),
        ("Answer: 3/4", "3/4"),
        ("\\frac{3}{4}", "0.75"),
        ("Answer: 36/2", "18"),
        ("Answer: 1 1/2", "1.5"),
        ("Answer: 75%", "75"),
        ("Answer: 75%", "0.75"),
        ("Answer: 75 percent", "75%"),
        ("Answer: 1.5e3", "1500"),
        ("The final answer is: $18$", "18"),
        ("x = 18", "18"),
        ("A: First she sells 3 eggs. Then she sells 15 more. So she sells 3 + 15 = 18 eggs.", "18"),
        ("Answer: She eats 3 eggs.\nShe sells 9 for 2 dollars each.\nShe makes 9 * 2 = 18 dollars.", "18"),
        ("Answer: 9 * 2 = 18\n\nExplanation: she sells 9 eggs.", "18"),
        ("A: She makes 18 dollars.", "18"),
        ("The answer is twelve.", "12"),
        ("Answer: ½", "0.5"),
        ("Answer: 1½ hours", "1.5"),
        ("The answer is zero dollars.", "0"),
        ("<think>\nIs the answer 3? Answer: 3\n</think>\n\nAnswer: 18", "18"),
        ("The answer is 9 * 2 = 18 dollars for 3 days.", "18"),
        ("So there are 18 eggs left.", "18"),
        ("9 * 2 = <<9*2=18>>18\n#### 18", "18"),
        ("The answer is 18.\nThe answer is 18.", "18"),
        ("Answer: 18\n\nQuestion: And now?\nReasoning: 5\nAnswer: 5", "18"),
        ("The answer is 12. No, wait: 9 * 2 = 18. The answer is 18.", "18"),
        ("The total is 120 (60+30+20+10).", "120"),
        ("She must answer 35 questions to get to the 7th grade.", "35"),
        ("He comes at 2:00 pm.", "2"),
        ("We get 6 * 3 = 18 eggs in 5 days.", "18"),
        ("The answer is 9*2=18", "18"),
        ("Therefore, the answer (arabic numerals) is 18 dollars for 9 eggs.", "18"),
        ("The answer is not 17, it is 18.", "18"),
        ("She makes $18 in 1 day.", "18"),
        ("The answer is 1.2 million dollars.", "1200000"),
        ("The answer is 2 dozen eggs.", "24"),
        ("The answer is 2 dozen eggs.", "2"),
        ("It takes 6 and a half hours.", "6.5"),
        ("The answer is 6 and a half hours.", "6.5"),
        ("The answer is \\$18.", "18"),
        ("\\boxed{\\text{18 dollars}}", "18"),
        ("The answer is negative 3.", "-3"),
        ("So it is $20 * (1.2)^18 = $532.47 (rounded).", "532.47"),
        ("So there are 18 eggs.\n\n###\n\nThere are 12 hens", "18"),
        ("So there are 18 eggs.<|endoftext|>Q: How many are 3 and 5?", "18"),
        ("So there are 18 eggs.\n\nExample 5:\nHow many are 3 and 5?\nAnswer: 8", "18"),
        ("So there are 18 eggs.\n\nInput: 3 cars\nOutput: 5", "18"),
        ("So he makes 18 groups of eggs. The marbles do not matter.", "18"),
        ("The answer is twenty minus 2, so 20 minus 2 = 18.", "18"),
    ],
)
def test_right_numbers_are_correct_in_every_form(text, gold):
    assert verdict(text, gold) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("Answer: 17", "18"),
        ("Answer: 17.99", "18"),
        ("Answer: -18", "18"),
        ("#### 180", "18"),
        ("Answer: 1,800", "18"),
        ("\\boxed{17}", "18"),
        ("The answer is $81.", "18"),
        ("Answer: 8/3", "2.5"),
        ("Answer: 7.5%", "75"),
        ("There were 18 at first, 18 - 5 = 13. The answer is 13.", "18"),
    ],
)
def test_other_numbers_are_wrong(text, gold):
    assert verdict(text, gold) is Verdict.WRONG


@pytest.mark.parametrize("text", ["", "  \n", "I don't know.", "There is not enough information."])
def test_nothing_found_is_unparsed(text):
    assert verdict(text) is Verdict.UNPARSED


def test_numbers_of_the_question_are_not_taken_for_the_answer():
    text = "So he pays 255 dollars a month for 3 months."
    assert verdict(text, "255", question="He pays 765 dollars in 3 months. How much a month?") is Verdict.CORRECT
    assert verdict(text, "255", question="") is Verdict.DISPUTED  # the last number says 3, the sentence holds 255


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 66. Together they have 40 + 36 + 46 = 122 crabs.",  # says one thing, then shows another
        "It takes 60 minutes or 122 minutes.\nWithout more information, we cannot know.",
        "We get 100 = 122. This is not true.",
        "She has 122 crabs. If she caught fewer, it would be different.",
    ],
)
def test_a_text_that_contradicts_itself_is_disputed(text):
    assert verdict(text, "122") is Verdict.DISPUTED
    grade = Grader(AnswerKind.NUMBER).grade(Question("q", "?", "122"), text)
    assert "first verifier" in grade.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First we add 9 and", Verdict.TRUNCATED),
        ("So we get 9 + 9 = 18", Verdict.TRUNCATED),
        ("Answer: 18", Verdict.TRUNCATED),  # 180 may have been meant
        ("Answer:", Verdict.TRUNCATED),
        ("Answer: 18.", Verdict.TRUNCATED),
        ("The answer is 9 * 2 = 1", Verdict.TRUNCATED),
        ("The answer is 18 dol", Verdict.CORRECT),
        ("\\boxed{18", Verdict.TRUNCATED),
        ("Answer: 18\n", Verdict.CORRECT),
        ("The answer is 18. This is bec", Verdict.CORRECT),
        ("\\boxed{18}", Verdict.CORRECT),
        ("Answer: 17\nQuestion: An", Verdict.WRONG),
    ],
)
def test_a_text_cut_before_its_conclusion_is_truncated_not_wrong(text, expected):
    assert verdict(text, finish="length") is expected


@pytest.mark.parametrize(
    ("kind", "gold", "text", "expected"),
    [
        (AnswerKind.YES_NO, "yes", "Answer: no", Verdict.TRUNCATED),  # "nothing speaks against it: yes"
        (AnswerKind.YES_NO, "yes", "Answer: yes.", Verdict.CORRECT),
        (AnswerKind.CHOICE, "a", "Answer: (", Verdict.TRUNCATED),
        (AnswerKind.CHOICE, "a", "Answer: (a)", Verdict.CORRECT),
        (AnswerKind.TEXT, "New York", "Answer: New", Verdict.TRUNCATED),
        (AnswerKind.TEXT, "New York", "Answer: New York\n", Verdict.CORRECT),
    ],
)
def test_the_cut_in_the_other_kinds(kind, gold, text, expected):
    assert verdict(text, gold, "length", kind, choices=CHOICES) is expected


def test_an_engine_error_is_an_error():
    grade = Grader(AnswerKind.NUMBER).grade(Question("q", "?", "1"), "prompt too long", "error")
    assert (grade.verdict, grade.detail) == (Verdict.ERROR, "prompt too long")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Therefore, the answer is roadblock (e).", Verdict.CORRECT),
        ("(e)", Verdict.CORRECT),
        ("E.", Verdict.CORRECT),
        ("e", Verdict.CORRECT),
        ("answer: e", Verdict.CORRECT),
        ("**E**", Verdict.CORRECT),
        ("Answer: (E) roadblock", Verdict.CORRECT),
        ("The answer is roadblock.", Verdict.CORRECT),
        ("(a) is a place. (b) fits nothing.\nAnswer: (e)", Verdict.CORRECT),
        ("Answer: (b)", Verdict.WRONG),
        ("The best option is A.", Verdict.WRONG),
        ("Therefore, the answer is populated areas (e).", Verdict.DISPUTED),  # letter and text differ
        ("none of them", Verdict.UNPARSED),
        ("A person would think about a lot.", Verdict.UNPARSED),  # articles are not letters
        ("Answer: (f)", Verdict.UNPARSED),
    ],
)
def test_choices_by_letter_and_by_text(text, expected):
    assert verdict(text, "e", kind=AnswerKind.CHOICE, choices=CHOICES) is expected


def test_a_choice_text_listed_twice_leaves_the_letter_to_decide():
    doubled = {"a": "garage", "b": "house", "c": "garage"}
    assert verdict("Answer: (c)", "c", kind=AnswerKind.CHOICE, choices=doubled) is Verdict.CORRECT
    assert verdict("Answer: (c)", "a", kind=AnswerKind.CHOICE, choices=doubled) is Verdict.WRONG


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer: yes.", Verdict.CORRECT),
        ("Yes", Verdict.CORRECT),
        ("True. The statement holds.", Verdict.CORRECT),
        ("There is no evidence against it. Answer: Yes", Verdict.CORRECT),
        ("So the answer is **yes**.", Verdict.CORRECT),
        ("No, because it sinks.", Verdict.WRONG),
        ("Thus, it would not float. So the answer is no.", Verdict.WRONG),
        ("Therefore the statement is false.", Verdict.WRONG),
        ("The statement is not true.", Verdict.DISPUTED),
        ('Therefore, the answer to the question "Does it sink? Often?" is "false".', Verdict.WRONG),
        ("So I would answer **true** to the question.", Verdict.CORRECT),
        ("True or False: it floats.", Verdict.UNPARSED),  # the question again
        ('Please answer "yes" or "no" and explain.', Verdict.UNPARSED),
        ("There is no evidence either way.", Verdict.UNPARSED),  # "no" is not said of the question
        ("Hard to say.", Verdict.UNPARSED),
    ],
)
def test_yes_and_no(text, expected):
    assert verdict(text, "yes", kind=AnswerKind.YES_NO) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: Paris", Verdict.CORRECT),
        ('The answer is "paris".', Verdict.CORRECT),
        ("It lies on the Seine.\nParis", Verdict.CORRECT),
        ("Answer: Rome", Verdict.WRONG),
        ("Answer: Paris, the capital of France", Verdict.DISPUTED),
        ("", Verdict.UNPARSED),
    ],
)
def test_exact_text(text, expected):
    assert verdict(text, "Paris", kind=AnswerKind.TEXT) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: colour", Verdict.CORRECT),
        ("Answer: COLOR.", Verdict.CORRECT),
        ("Answer: tint", Verdict.WRONG),
        ("Answer: the color red", Verdict.DISPUTED),
    ],
)
def test_a_regular_expression(text, expected):
    assert verdict(text, "colou?r", kind=AnswerKind.REGEX) is expected


def same_length(text, gold):
    return None if not text.strip() else len(text) == len(gold)


def stumbles(text, gold):
    return int(text) == int(gold)


def test_a_function_that_raises_disputes_the_attempt_and_says_why():
    grader = Grader(AnswerKind.PYTHON, f"{__name__}:stumbles")
    assert grader.grade(Question("q", "?", "18"), "18").verdict is Verdict.CORRECT
    grade = grader.grade(Question("q", "?", "18"), "eighteen")
    assert grade.verdict is Verdict.DISPUTED
    assert grade.detail.startswith(f"task.answer_function {__name__}:stumbles raised ValueError: invalid literal")


@pytest.mark.parametrize("text", ["def judge(:", "1 / 0", "raise SystemExit(4)", "import nothing_of_this_name"])
def test_a_module_that_breaks_when_it_is_imported_is_named(tmp_path, monkeypatch, text):
    name = f"broken_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"task\.answer_function '{name}:judge' cannot be loaded: \w+: "):
        Grader(AnswerKind.PYTHON, f"{name}:judge").check()


def test_a_function_of_the_user_judges_alone():
    path = f"{__name__}:same_length"
    assert verdict("abc", "xyz", kind=AnswerKind.PYTHON, function=path) is Verdict.CORRECT
    assert verdict("abcd", "xyz", kind=AnswerKind.PYTHON, function=path) is Verdict.WRONG
    assert verdict(" ", "xyz", kind=AnswerKind.PYTHON, function=path) is Verdict.UNPARSED


@pytest.mark.parametrize(
    ("kind", "answer", "choices", "expected"),
    [
        (AnswerKind.NUMBER, " 1,200.0 ", None, "1200"),
        (AnswerKind.NUMBER, "75%", None, "75%"),
        (AnswerKind.YES_NO, "True", None, "yes"),
        (AnswerKind.CHOICE, "(B)", CHOICES, "b"),
        (AnswerKind.CHOICE, "the desert", CHOICES, "c"),
        (AnswerKind.TEXT, " Paris ", None, "Paris"),
    ],
)
def test_gold_answers_are_normalized(kind, answer, choices, expected):
    assert normalize_gold(kind, answer, choices) == expected


@pytest.mark.parametrize(
    ("kind", "answer", "choices", "rule"),
    [
        (AnswerKind.NUMBER, "eighteen or so", None, "not a number"),
        (AnswerKind.NUMBER, " ", None, "empty"),
        (AnswerKind.YES_NO, "maybe", None, "neither yes nor no"),
        (AnswerKind.CHOICE, "z", CHOICES, "none of the choices"),
        (AnswerKind.CHOICE, "a", {"a": "only one"}, "at least two"),
        (AnswerKind.REGEX, "(", None, "regular expression"),
    ],
)
def test_a_gold_answer_that_breaks_a_rule_says_which(kind, answer, choices, rule):
    with pytest.raises(ValueError, match=rule):
        normalize_gold(kind, answer, choices)


HOSTILE = {
    "digits": "1" * 200_000,
    "fractions": "1/" * 50_000,
    "markers": "the answer is " * 20_000,
    "boxes": "\\boxed{" * 20_000,
    "braces": "\\boxed{" + "{" * 5000 + "}" * 5000 + "}",
    "newlines": "\n" * 100_000,
    "hashes": "#" * 100_000,
    "stars": "*" * 100_000,
    "notes": "<<" * 50_000,
    "questions": "\nQuestion:" * 20_000,
    "power": "Answer: 9^9^9^9",
    "factorial": "\\boxed{99999!}",
    "binomial": "\\boxed{\\binom{100000}{50000}}",
    "sum": "\\boxed{\\sum_{i=1}^{1000000000} i}",
    "exponent": "Answer: 1e999999",
    "zero": "Answer: 1/0",
    "nul": "\0" * 10_000 + "Answer: 18",
    "surrogate": "\ud800 Answer: 18",
    "nested": "\\frac{1}{" * 2000 + "}" * 2000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_neither_raise_nor_take_long(name):
    verdict("The answer is 9 * 2 apples")  # the library is loaded
    for kind, gold, choices in (
        (AnswerKind.NUMBER, "18", None),
        (AnswerKind.CHOICE, "a", CHOICES),
        (AnswerKind.YES_NO, "yes", None),
        (AnswerKind.TEXT, "18", None),
    ):
        begun = time.process_time()
        verdict(HOSTILE[name], gold, kind=kind, choices=choices)
        assert time.process_time() - begun < 5


def test_a_grader_travels_and_works_off_the_main_thread():
    grader = pickle.loads(pickle.dumps(Grader(AnswerKind.NUMBER)))
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.append(grader.grade(Question("q", "?", "0.75"), "\\frac{3}{4}").verdict)
    )
    thread.start()
    thread.join()
    assert verdicts == [Verdict.CORRECT]
