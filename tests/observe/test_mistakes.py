"""What became of mistakes, on exams written by hand."""

from tailor_ray.observe.page_data import MAX_CHARACTERS, mistake_rows, shorten
from tailor_ray.observe.summary import load_run, summarize
from tests.observe.runs import attempt_row, commit_exam, lesson_row, make_run, write_lessons


def exam(*questions):
    """Attempts from {question number: letters}, c correct, w wrong, t truncated."""
    names = {"c": "correct", "w": "wrong", "t": "truncated"}
    return [
        attempt_row(f"train-{index:04d}", sample, names[letter], text=f"try {index}.{sample} {letter}")
        for index, letters in enumerate(questions)
        for sample, letter in enumerate(letters)
    ]


def test_consecutive_exams_are_compared_by_question_over_all_parts(tmp_path):
    run = make_run(tmp_path / "run", rounds=0, questions=70)  # 32 questions a part: three parts
    commit_exam(run, 1, exam(*["ww"] * 40, *["cc"] * 20, *["tt"] * 10))
    commit_exam(run, 2, exam(*["cc"] * 25, *["cw"] * 15, *["wt"] * 5, *["cc"] * 15, *["cc"] * 10))
    record = load_run(run)
    assert [part.index for part in record.parts(2, "exam", "attempts")] == [0, 1, 2]
    expected = {"fixed": 25, "stubborn": 15, "regressed": 5, "kept": 15, "undecided": 10}
    assert [entry["mistakes"] for entry in summarize(record)["rounds"]] == [None, None, expected]


def test_rows_join_attempt_teacher_and_the_same_sample_later(tmp_path):
    run = make_run(tmp_path / "run", rounds=0, questions=3)
    commit_exam(run, 1, exam("cww", "ccc", "wcc"))
    commit_exam(run, 2, exam("ccw", "www", "ccc"))
    about = {"feedback": "You slipped.", "mistake": "try 0.2 w", "mistake_sample": 2}
    write_lessons(
        run, 1, [lesson_row("train-0000", 1), lesson_row("train-0000", 2, **about), lesson_row("train-0001", 1)]
    )
    rows, total = mistake_rows(load_run(run), limit=10)
    assert total == 4
    first, second, third, fourth = rows
    assert (first["round"], first["id"], first["attempt"], first["feedback"]) == (
        1,
        "train-0000",
        "try 0.2 w",
        "You slipped.",
    )
    assert (first["later"], first["later_verdict"], first["change"]) == ("try 0.2 w", "wrong", "fixed")
    assert (first["wrong"], first["attempts"], first["gold"]) == (2, 3, "5")
    assert (second["id"], second["change"], second["lesson"]) == ("train-0002", "kept", None)
    assert (third["round"], third["id"], third["change"], third["later"]) == (2, "train-0000", "open", None)
    assert (fourth["id"], fourth["wrong"]) == ("train-0001", 3)


def test_rows_are_limited_and_the_limit_is_shared_by_rounds(tmp_path):
    run = make_run(tmp_path / "run", rounds=0, questions=70)
    for number in (1, 2):
        commit_exam(run, number, exam(*["w"] * 70))
    rows, total = mistake_rows(load_run(run), limit=81)
    assert total == 140
    assert [row["round"] for row in rows] == [1] * 40 + [2] * 40
    assert rows[39]["id"] == "train-0039"


def test_rows_of_other_parts_than_those_shown_are_not_read(tmp_path):
    run = make_run(tmp_path / "run", rounds=0, questions=128)
    commit_exam(run, 1, exam(*["w"] * 20, *["c"] * 12, *["c"] * 32, *["w"] * 64))  # mistakes in parts 0, 2 and 3
    for index in (1, 3):
        run.delete(f"rounds/01/exam/attempts-{index:05d}.parquet")
    rows, total = mistake_rows(load_run(run), limit=30)
    assert [row["id"] for row in rows] == [f"train-{at:04d}" for at in (*range(20), *range(64, 74))]
    assert total == 84


def test_shorten_says_how_much_is_left_out():
    assert shorten("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS
    assert shorten("x" * (MAX_CHARACTERS + 1_500)).endswith("x … (1,500 more characters)")
    assert shorten(None) == ""
