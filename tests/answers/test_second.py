"""The second verifier computes the expressions of an ending, as math-verify does, and bounds what it computes."""

import json
import math
from fractions import Fraction

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailor_ray.answers.conclusion import visible
from tailor_ray.answers.numbers import read_gold
from tailor_ray.answers.second import says

NUMBERS = st.integers(1, 9999) | st.decimals(0, 9999, allow_nan=False, places=2).map(lambda value: value.normalize())
OPERATORS = st.sampled_from([" + ", " - ", " * ", " / ", "*", "+", " × ", " ÷ "])


def library(text, gold):
    """What math-verify says of a plain ending."""
    config = [math_verify.ExprExtractionConfig()]
    found, meant = (math_verify.parse(one, config, parsing_timeout=None) for one in (text, gold))
    return bool(math_verify.verify(meant, found, timeout_seconds=None))


@settings(max_examples=150)
@given(NUMBERS, NUMBERS, NUMBERS, OPERATORS, OPERATORS)
def test_an_announced_expression_has_the_value_that_arithmetic_gives_it(one, two, three, first, second):
    written = (
        f"{one:f}{first}{two:f}{second}{three:f}" if not isinstance(one, int) else f"{one}{first}{two}{second}{three}"
    )
    python = written.replace("×", "*").replace("÷", "/")
    try:
        value = eval(python)  # of numbers and operators alone
    except ZeroDivisionError:
        return
    if value != int(value):
        return
    gold = str(int(value))
    assert says(f"Answer: {written}", read_gold(gold)) is True
    assert says(f"Answer: {written}", read_gold(str(int(value) + 1))) is not True


@settings(max_examples=100)
@given(
    st.integers(-(10**9), 10**9),
    st.integers(-(10**9), 10**9),
    st.booleans(),
    st.sampled_from(["", " dollars", " in all"]),
)
def test_a_plain_ending_means_here_what_it_means_to_math_verify(value, other, grouped, words):
    written = f"{abs(value):,}" if grouped else str(abs(value))
    for gold in (str(abs(value)), str(abs(other))):
        assert says(f"Answer: {written}{words}", read_gold(gold)) is library(f"The answer is {written}{words}", gold)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer: 9 * 2 = 18 dollars for 3 days", "18", True),
        ("Answer: 9 * 2 = 18 dollars for 3 days", "3", True),  # it holds it, which makes no mistake of the text
        ("Answer: 9 * 2 = 18 dollars for 3 days", "9", False),  # how the value was come by
        ("Answer: 97 - 8 = 99", "89", False),
        ("Answer: 2π", "6", None),
        ("Answer: 1.2.3", "1", None),
        ("Answer: 9^9^9^9", "9", None),
        ("Answer: 2^10", "1024", True),
        ("Answer: 1/0", "1", None),
        ("The total is 18.\nWe cannot know.", "18", None),
        ("no number at all", "18", None),
    ],
)
def test_what_an_ending_holds(text, gold, expected):
    assert says(visible(text), read_gold(gold)) is expected


def test_every_recorded_plain_answer_holds_itself(data_folder):
    compared = 0
    for line in (data_folder / "recorded" / "faithful_cot_svamp.jsonl").read_text().splitlines()[::3]:
        row = json.loads(line)
        _, found, said = row["output"].rpartition("The answer is ")
        said = said.strip().rstrip(".").lstrip("$")
        if found and said.isdigit():
            assert says(visible(row["output"]), read_gold(said)) is True
            assert says(visible(row["output"]), read_gold(str(int(said) + 1_000_003))) is False
            compared += 1
    assert compared > 800


def test_numbers_are_exact():
    assert says("Answer: 0.1 + 0.2", read_gold("0.3")) is True
    assert read_gold("12345678901234567890.5").value == Fraction("12345678901234567890.5")
    assert math.isclose(float(read_gold("1/3").value), 1 / 3)
