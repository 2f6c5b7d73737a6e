"""`tailor-ray grade`: verdicts of recorded outputs, disagreements with labels, bad rows named."""

import csv
import gzip
import json

import pytest

from tests.command import tailor

ROWS = [
    {"question": "3 * 6?", "gold": "18", "output": "The answer is 18.", "label": True},
    {"question": "3 * 6?", "gold": 18, "output": "The answer is 17.", "label": False},
    {"question": "3 * 6?", "gold": 18, "output": "The answer is 17.", "label": "correct"},
    {"question": "3 * 6?", "gold": "18", "output": "Answer: 18 or 20"},
    {"question": "3 * 6?", "gold": "18", "output": "Answer: 1", "finish_reason": "length"},
]


def grade(*arguments):
    return tailor("grade", *arguments)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_row_has_a_verdict_and_every_disagreement_is_shown(tmp_path):
    done = grade(write(tmp_path / "outputs.jsonl", ROWS))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[:5]] == [
        "line 1: correct",
        "line 2: wrong",
        "line 3: wrong",
        "line 4: disputed",
        "line 5: truncated",
    ]
    assert lines[5] == "5 outputs: 1 correct, 2 wrong, 1 truncated, 1 disputed"
    assert lines[6] == "3 labelled: 2 agree, 1 differ, 0 disputed"
    assert lines[7].startswith("line 3: wrong, answer '17', gold '18', but labelled correct: ")
    assert len(lines) == 8


def test_brief_leaves_the_rows_out_and_other_columns_are_named(tmp_path):
    rows = [{"q": row["question"], "a": row["gold"], "said": row["output"]} for row in ROWS]
    path = tmp_path / "outputs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    done = grade(path, "--brief", "--column", "question=q", "--column", "gold=a", "--column", "output=said")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5 outputs: 1 correct, 3 wrong, 1 disputed\n"


def test_choices_from_csv(tmp_path):
    path = tmp_path / "outputs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "text", "choices", "is_correct"])
        writer.writerow(["Which?", "B", "The answer is (b).", '["red", "blue"]', "1"])
        writer.writerow(["Which?", "B", "\\boxed{A}", '["red", "blue"]', "0"])
    done = grade(path, "--kind", "choice")
    assert done.returncode == 0, done.stderr
    assert "2 outputs: 1 correct, 1 wrong" in done.stdout
    assert "2 labelled: 2 agree, 0 differ, 0 disputed" in done.stdout


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"question": "3 * 6?", "output": "18"}, "there is no 'gold'"),
        ({"question": "3 * 6?", "gold": "3 or 4", "output": "18"}, "'3 or 4' is not a number"),
        ({"question": "3 * 6?", "gold": "18"}, "there is no 'output'"),
        ({"gold": "18", "output": "18"}, "there is no 'question'"),
        ({"question": "?", "gold": "18", "output": 18}, "a int, not text, is in 'output'"),
        ({"question": "?", "gold": "18", "output": "18", "label": "perhaps"}, "'label' is 'perhaps'"),
        ({"question": "?", "gold": "18", "output": "18", "finish_reason": "tired"}, "'finish_reason' is 'tired'"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_graded(tmp_path, row, rule):
    done = grade(write(tmp_path / "outputs.jsonl", [ROWS[0], row, ROWS[1]]))
    assert done.returncode == 2
    assert "2 outputs: 1 correct, 1 wrong" in done.stdout
    assert f"{tmp_path / 'outputs.jsonl'}, line 2: " in done.stderr
    assert rule in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["nowhere.jsonl"], "is not a file"),
        (["{}", "--kind", "essay"], "'essay' is none of number, choice"),
        (["{}", "--kind", "python"], "--function"),
        (["{}", "--column", "output"], "NAME=COLUMN"),
        (["{}", "--column", "said=output"], "one of the names question, gold"),
        (["{}", "--kind", "python", "--function", "nowhere:judge"], "cannot be loaded"),
    ],
)
def test_what_the_user_got_wrong_is_said_and_exits_with_2(tmp_path, arguments, rule):
    path = write(tmp_path / "outputs.jsonl", ROWS)
    done = grade(*[argument.format(path) for argument in arguments])
    assert done.returncode == 2
    assert rule in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    done = grade(write(tmp_path / "outputs.jsonl", []))
    assert done.returncode == 2
    assert "is empty" in done.stderr
