"""What figures say is off: at which share, and with the setting to change."""

import pytest

from tailor_ray.observe.advice import about_answers, about_pairs, about_run, shares
from tailor_ray.observe.summary import load_run, summarize
from tests.observe.runs import make_run

COUNTS = {"attempts": 400, "correct": 16, "wrong": 203, "unparsed": 0, "truncated": 163, "disputed": 18, "error": 0}


def test_an_exam_of_which_much_was_cut_off_says_so_with_the_setting():
    (text,) = about_answers("round 1 exam", COUNTS, "exam.max_new_tokens", 256)
    assert text.startswith("round 1 exam: 163 of 400 answers were cut off at exam.max_new_tokens=256: raise it")
    assert shares(COUNTS) == {"truncated": 163 / 400, "unparsed": 0.0, "disputed": 18 / 400}


@pytest.mark.parametrize("counts", [{}, {"attempts": 0}, {**COUNTS, "truncated": 120}])
def test_an_exam_that_is_read_says_nothing(counts):
    assert list(about_answers("round 1 exam", counts, "exam.max_new_tokens", 256)) == []


def test_an_exam_that_nobody_can_read_says_so():
    counts = {**COUNTS, "truncated": 3, "unparsed": 300}
    (text,) = about_answers("round 1 exam", counts, "exam.max_new_tokens", 256)
    assert "in 300 of 400 answers no answer was found" in text


def test_examples_without_pairs_say_what_is_missing_and_what_to_set():
    counts = {"examples": 196, "with_pair": 6, "without_positive": 185, "without_negative": 20}
    (text,) = about_pairs(1, counts, 0.5)
    assert "6 of 196 examples have a pair" in text
    assert "185 lack another right rationale: set teacher.rationales to 2 or more" in text
    assert "lack a mistake" not in text
    (text,) = about_pairs(1, {**counts, "without_positive": 20, "without_negative": 180}, 0.5)
    assert "180 lack a mistake: raise exam.samples" in text


def test_where_likelihoods_are_compared_another_right_rationale_is_not_missed():
    counts = {"examples": 196, "with_pair": 6, "without_positive": 185, "without_negative": 190}
    (text,) = about_pairs(1, counts, 0.1, "orpo")
    assert "6 of 196 examples have an own mistake" in text
    assert "lack another" not in text
    assert "190 lack a mistake" in text
    settings = {"training": {"reflection": "none", "triplet_weight": 0.5}}
    assert list(about_run({(1, "examples"): counts}, settings)) == []


@pytest.mark.parametrize(
    ("counts", "weight"),
    [({"examples": 196, "with_pair": 6}, 0.0), ({"examples": 196, "with_pair": 20}, 0.5), ({"examples": 0}, 0.5)],
)
def test_examples_with_pairs_or_without_the_term_say_nothing(counts, weight):
    assert list(about_pairs(1, counts, weight)) == []


def test_a_runs_advice_is_in_its_report(tmp_path):
    stages = {(1, "exam"): COUNTS, (1, "examples"): {"examples": 9, "with_pair": 0}, (1, "evaluate"): {"test": COUNTS}}
    settings = {"exam": {"max_new_tokens": 256}, "evaluation": {"max_new_tokens": 99}}
    texts = list(about_run(stages, settings))
    assert [text.split(":")[0] for text in texts] == ["round 1 test", "round 1 exam", "round 1"]
    assert "evaluation.max_new_tokens=99" in texts[0]
    document = summarize(load_run(make_run(tmp_path / "run", rounds=1)))
    assert document["advice"] == []
    assert set(document["rounds"][1]["shares"]) == {"truncated", "unparsed", "disputed"}
    assert document["rounds"][0]["shares"] is None
