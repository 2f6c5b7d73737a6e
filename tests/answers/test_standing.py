"""How a question stands in an exam, and what became of it in the next one, by hand."""

import pyarrow as pa
import pytest

from tailor_ray.answers.grader import CHANGES, change, compare, standing


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["correct", "correct", "correct", "wrong"], "solved"),
        (["correct", "correct", "wrong", "wrong"], "mistaken"),  # half is not more than half
        (["correct", "wrong", "disputed", "error"], "mistaken"),
        (["correct", "disputed", "error", "error"], "solved"),  # what says nothing does not count
        (["correct", "unparsed", "truncated", "truncated"], "undecided"),
        (["unparsed", "truncated"], "undecided"),
        (["wrong", "truncated", "unparsed"], "mistaken"),
        (["error", "disputed"], "undecided"),
        ([], "undecided"),
    ],
)
def test_standing(verdicts, expected):
    assert standing(verdicts) == expected


def test_change_covers_every_pair():
    assert change("mistaken", "solved") == "fixed"
    assert change("mistaken", "mistaken") == "stubborn"
    assert change("solved", "mistaken") == "regressed"
    assert change("solved", "solved") == "kept"
    assert change("undecided", "solved") == change("mistaken", "undecided") == "undecided"


def exam(**questions):
    """Attempts from letters: c correct, w wrong, t truncated, e error."""
    names = {"c": "correct", "w": "wrong", "t": "truncated", "e": "error"}
    rows = [(name, names[letter]) for name, letters in questions.items() for letter in letters]
    return pa.table({"question_id": [name for name, _ in rows], "verdict": [verdict for _, verdict in rows]})


def test_two_exams_are_compared_by_question():
    before = exam(a="ww", b="cc", c="cw", d="cc", e="tt", f="ww", gone="cc")
    now = exam(f="ee", e="ww", d="cc", c="ww", b="wt", a="cc", new="ww")  # in any order
    assert compare(before, now) == {"fixed": 1, "regressed": 1, "stubborn": 1, "kept": 1, "undecided": 2}
    assert compare(now.slice(0, 0), before) == dict.fromkeys(CHANGES, 0)


def test_attempts_of_a_question_need_not_lie_together():
    before = exam(a="cc", b="cw")
    shuffled = before.take([2, 0, 3, 1])
    expected = dict.fromkeys(CHANGES, 0) | {"kept": 1, "stubborn": 1}
    assert compare(shuffled, shuffled) == compare(before, before) == expected
