"""What must hold of every announced answer: right exactly when its value is the gold one, and never disputed."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailor_ray.answers import Grader, normalize_gold
from tailor_ray.records import AnswerKind, Question, Verdict

NUMBERS = Grader(AnswerKind.NUMBER)
MARKERS = [
    *("The answer is ", "Answer: ", "#### ", "A: ", "**Answer:** ", "Therefore, the final answer is: ", "ANSWER: "),
    *("So the answer is about ", "Therefore, the answer (arabic numerals) is ", "The answer would be ", "### Answer\n"),
    *("**Final Answer**\n\n", "The answer to the question is ", "Final answer = ", "Our answer is **", "The answer: "),
]
FORMS = [
    *("{}", "{}.", "{} dollars", "{} dollars.", '"{}".', "`{}`", "__{}__", "\\boxed{{{}}}", "$\\boxed{{{}}}$"),
    *("{}.\n\nQuestion: How many are 3 of 5?\nAnswer: 15", "{} eggs in all", "{}\n\n", "{}<|endoftext|>", "x = {}"),
    *(
        "{} kg.",
        "{} km/h",
        "{} years old.",
        "{} cm^2",
        "\\({}\\)",
        "\\boxed{{{}\\text{{ eggs}}}}",
        "20 + 1 = {}",
        "3*7={}",
    ),
]
WHOLE = st.integers(-(10**6), 10**6)


@settings(max_examples=600)
@given(WHOLE, WHOLE | st.just(0), st.sampled_from(MARKERS), st.sampled_from(FORMS), st.booleans(), st.booleans())
def test_an_announced_number_is_correct_or_wrong_by_its_value(gold, shift, marker, form, grouped, decimals):
    said = gold + shift if shift % 3 else gold
    written = f"{said:,}" if grouped else str(said)
    text = f"Of 7 eggs in 12 boxes he takes a half.\n{marker}{form.format(written + '.00' * decimals)}"
    grade = NUMBERS.grade(Question("q", "He has 7 eggs in 12 boxes. How many?", str(gold)), text)
    assert (grade.verdict, grade.answer) == (Verdict.CORRECT if said == gold else Verdict.WRONG, str(said)), text


@settings(max_examples=200)
@given(
    st.integers(1, 10**6), WHOLE.filter(bool), st.sampled_from(["${}", "${}.00", "US${}", "€{}", "{}%", "negative {}"])
)
def test_what_stands_around_a_number_does_not_change_its_value(gold, shift, form):
    for said in (gold, abs(gold + shift)):
        sign = -1 if "negative" in form else 1
        grade = NUMBERS.grade(Question("q", "?", str(sign * gold)), f"The answer is {form.format(said)}.")
        right = said == gold or (form == "{}%" and Fraction(said, 100) == gold)
        assert grade.verdict is (Verdict.CORRECT if right else Verdict.WRONG), (said, gold, form)


UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SPELLED = ["zero", *UNITS, *TEENS, *(f"{tens}{unit}" for tens in TENS for unit in ("", *(f"-{one}" for one in UNITS)))]


@pytest.mark.parametrize("form", ["The answer is {}.", "Answer: {} eggs", "#### {}"])
def test_spelled_out_numbers_count_as_their_digits(form):
    for value, word in enumerate(SPELLED):
        for gold in (value, value + 1):
            verdict = NUMBERS.grade(Question("q", "?", str(gold)), form.format(word)).verdict
            assert verdict is (Verdict.CORRECT if value == gold else Verdict.WRONG), word


def questions(folder, task, split="train"):
    kind = {"csqa": AnswerKind.CHOICE, "strategyqa": AnswerKind.YES_NO}.get(task, AnswerKind.NUMBER)
    for line in (folder / task / f"{split}.jsonl").read_text().splitlines():
        row = json.loads(line)
        choices = row.get("choices")
        answer = normalize_gold(kind, str(row["answer"]), choices)
        yield Question(row["id"], row["question"], answer, json.dumps(choices) if choices else None, row["rationale"])


ENDINGS = ["#### {}", "The answer is {}.", "Answer: ${}", "So the answer is {} in all.", "A: {}", "\\boxed{{{}}}"]


def test_each_gold_solution_is_right_with_its_answer_and_wrong_with_another(data_folder):
    for number, question in enumerate(questions(data_folder, "gsm8k")):
        ending = ENDINGS[number % len(ENDINGS)]
        for said, expected in ((int(question.answer), Verdict.CORRECT), (int(question.answer) + 1, Verdict.WRONG)):
            text = f"{question.rationale}\n{ending.format(f'{said:,}')}"
            assert NUMBERS.grade(question, text).verdict is expected, (question.id, text[-200:])


CHOICE_ENDINGS = [
    "Answer: ({0})",
    "The answer is {0}.",
    "Therefore, the answer is {1} ({0}).",
    "({0}) {1}",
    "{2}.",
    "**{2}**",
]


def test_each_choice_is_read_by_its_letter_in_every_form(data_folder):
    grader = Grader(AnswerKind.CHOICE)
    for number, question in enumerate(questions(data_folder, "csqa", "test")):
        texts = question.choice_texts()
        for letter, choice in texts.items():
            text = CHOICE_ENDINGS[number % len(CHOICE_ENDINGS)].format(letter, choice, letter.upper())
            expected = Verdict.CORRECT if letter == question.answer else Verdict.WRONG
            assert grader.grade(question, f"People say so.\n{text}").verdict is expected, (question.id, text, texts)


def test_yes_and_no_are_read_in_every_form(data_folder):
    grader = Grader(AnswerKind.YES_NO)
    endings = ["Answer: {}", "So the answer is {}.", 'Therefore, I would say "{}".', "{}.", "Answer: {}, it does."]
    for number, question in enumerate(questions(data_folder, "strategyqa")):
        for said in ("yes", "no"):
            text = f"{question.rationale}\n{endings[number % len(endings)].format(said.capitalize())}"
            expected = Verdict.CORRECT if said == question.answer else Verdict.WRONG
            assert grader.grade(question, text).verdict is expected, (question.id, text)


GOES_ON = [
    *(
        "\n\nQ: If 3 cars park and 2 more come, how many are there?\nA: The answer is 5.",
        "\n\nHuman: Thanks! And 5 + 3?",
    ),
    *("\n\nQuestion: How many are 3 of 5?\nAnswer: 15", "\n\nExample 5:\nHow many are 3 of 5?\nAnswer: 15", "\n\n\n"),
    *(
        "\n\nInput: 3 cars\nOutput: 5",
        "\n\n###\n\nThere are 12 hens.",
        "<|endoftext|>Q: 3 and 5?",
        "\n\nI hope this helps!",
    ),
]
SAID_OTHERWISE = [
    "So the answer is",
    "Therefore, the correct answer would be",
    "\nFinal answer:",
    "\nAnswer:",
    "\nAnswer:\n",
]


def test_what_follows_an_answer_and_how_it_is_announced_changes_no_verdict(data_folder):
    """On recorded outputs of four models, a seventh of them."""
    asked = {question.id: question for question in questions(data_folder, "gsm8k", "test")}
    rows = map(json.loads, (data_folder / "recorded" / "faithful_cot_gsm8k.jsonl").read_text().splitlines())
    for row in [row for row in rows if row["method"] == "few-shot-cot"][::7]:
        question, text = asked[row["id"]], row["output"].rstrip()
        verdict = NUMBERS.grade(question, text).verdict
        for other in [text + more for more in GOES_ON] + [
            text.replace("The answer is", said) for said in SAID_OTHERWISE
        ]:
            assert NUMBERS.grade(question, other).verdict is verdict, (row["id"], other[-300:])
