"""The first verifier reads every number back from every form that it may be written in."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.answers import Grader
from tailor_ray.answers.conclusion import visible
from tailor_ray.answers.numbers import format_number, read, read_gold
from tailor_ray.records import AnswerKind, Question

VALUES = st.decimals(-(10**7), 10**7, allow_nan=False, allow_infinity=False, places=3)
FORMS = ["{}", "{} dollars", "{}.", "**{}**", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "x = {}", "8 + 1 = {} eggs in 3 days"]
MARKERS = ["The answer is ", "Answer: ", "#### ", "A: ", "**Answer:** ", "The final answer is: ", "Final Answer: "]


@given(VALUES, st.sampled_from(FORMS), st.sampled_from(MARKERS), st.booleans())
def test_a_number_is_read_from_every_announced_form(value, form, marker, grouped):
    written = f"{value:,}" if grouped else str(value)
    text = f"First we take 7 of 12.\n{marker}{form.format(written)}"
    reading, conclusion = read(visible(text))
    assert reading.numbers[0].values[0] == Fraction(value), text
    assert conclusion is not None


@given(VALUES, st.integers(0, 10**6))
def test_without_a_marker_the_last_equation_decides(value, other):
    reading, conclusion = read(f"There are {other} boxes.\nSo we get {other} + 1 = {value} pens in 3 boxes.")
    assert reading.numbers[0].values[0] == Fraction(value)
    assert conclusion is None


@given(st.fractions(max_denominator=5000))
def test_the_normalized_form_has_the_same_value(value):
    assert read_gold(format_number(value)).value == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(18), "18"),
        (Fraction(3, 4), "0.75"),
        (Fraction(1, 3), "1/3"),
        (Fraction(Decimal("12345678901234567.5")), "12345678901234567.5"),
        (Fraction(-15 * 10**9800), "-1.5e+9801"),  # more digits than Python writes
        (Fraction(1, 10**5000), "1e-5000"),
    ],
)
def test_the_normalized_form_is_short_and_exact(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("answer", "value"), [("$1,200", 1200), ("18.0", 18), ("-3", -3), ("75%", 75), ("two", 2), ("3 or 4", None)]
)
def test_gold_values(answer, value):
    gold = read_gold(answer)
    assert (gold and gold.value) == value


def test_a_number_of_ten_thousand_digits_is_graded():
    """Python refuses to write it, which ended the exam."""
    grade = Grader(AnswerKind.NUMBER).grade(Question("q", "How many?", "18"), "#### 1e99 (x+y+z)^{99}")
    assert grade.answer == "1e+9801"
