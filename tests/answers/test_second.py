"""The second verifier's short cut says what math-verify says, on made-up endings and on all recorded ones."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tailor_ray.answers import second
from tailor_ray.answers.conclusion import visible

WORDS = st.sampled_from(["", " dollars", " eggs per day", " more than Tom", " in all", " x"])
DECIMALS = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=2) | st.integers(-(10**9), 10**9)


def written(value, grouped):
    text = f"{value:,}" if grouped else str(value)
    return text.removesuffix(".00")


@settings(max_examples=150, deadline=None)
@given(DECIMALS, DECIMALS, st.booleans(), st.booleans(), WORDS)
def test_a_plain_ending_means_to_math_verify_what_it_means_here(value, other, grouped, currency, words):
    value_text = written(abs(value) if currency else value, grouped)
    announced = f"{'$' if currency else ''}{value_text}{words}"
    assert second._PLAIN.fullmatch(announced)
    for gold in (value_text.replace(",", ""), written(other, False)):
        text = f"So it follows.\nAnswer: {announced}"
        assert second.says(text, gold) is second.math_verify_says(f"The answer is {announced}", gold)


def test_every_recorded_plain_ending_means_the_same_to_math_verify(data_folder):
    compared = 0
    for line in (data_folder / "recorded" / "faithful_cot_svamp.jsonl").read_text().splitlines()[::5]:
        row = json.loads(line)
        announced, _ = second.ending(visible(row["output"]))
        plain = second._PLAIN.fullmatch(announced or "")
        if plain is None:
            continue
        for gold in {row["gold"], plain[1].replace(",", ""), "7"}:
            here = second._decimal(plain[1]) == second._decimal(gold)
            assert second.math_verify_says(f"The answer is {announced}", gold) is here, (announced, gold)
            compared += 1
    assert compared > 1500
