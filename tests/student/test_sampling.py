"""Seeds and completions: the plain data between exam and engines."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.student.sampling import Completions, sample_seed, unaskable


def test_seeds_depend_on_run_round_question_and_sample_and_on_nothing_else():
    seeds = {
        sample_seed(run, round_, question, sample)
        for run in (1, 2)
        for round_ in (1, 11)
        for question in ("1", "11", "q/1")
        for sample in range(8)
    }
    assert len(seeds) == 2 * 2 * 3 * 8
    assert sample_seed(42, 1, "gsm8k-train-0", 0) == 4870996130359285567  # known, so that no release changes a run


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.integers(0, 99), st.integers(0, 255))
def test_seeds_fit_a_signed_column_whatever_the_id(question, round_, sample):
    assert 0 <= sample_seed(42, round_, question, sample) < 2**63


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("a\0b", "NUL"),
        ("a\ud800b", "lone surrogate at character 1"),
        ("How many?", None),
        ("\u2028é\U0001f600", None),
    ],
)
def test_what_cannot_be_asked_is_named(prompt, reason):
    found = unaskable(prompt)
    assert found is None if reason is None else reason in found


def test_completions_keep_one_place_for_each_sample_and_pickle():
    out = Completions.of_errors(["too long", ""])
    out.put(1, " 4", "stop", 10, 2)
    out.extend(Completions([" 5"], ["length"], [11], [3], [None]))
    assert out.texts == ["", " 4", " 5"]
    assert out.finish_reasons == ["error", "stop", "length"]
    assert out.errors == ["too long", None, None]
    assert (out.prompt_tokens, out.output_tokens) == ([0, 10, 11], [0, 2, 3])
    assert pickle.loads(pickle.dumps(out)) == out
