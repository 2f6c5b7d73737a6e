"""One part of the stage `examples`, made in this process: what it holds, what it names, what it refuses."""

import pickle
import random

import pyarrow.parquet as pq
import pytest

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import CorruptionError
from tailor_ray.models import identify
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import (
    ATTEMPT_SCHEMA,
    LESSON_SCHEMA,
    QUESTION_SCHEMA,
    AnswerKind,
    Attempt,
    Lesson,
    LessonKind,
    Question,
    Verdict,
    to_table,
)
from tailor_ray.storage import Store, commit_part, find_part
from tailor_ray.training.example_parts import EXAMPLES, ExamplesJob, keep_or_write, write_examples
from tailor_ray.training.forward import fit_scores
from tailor_ray.training.plan import PLANNING, PartShape
from tests.training.students import make_student

EACH = 12  # questions per part


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return identify(str(make_student(tmp_path_factory.mktemp("student"))))


def some_rows(part: int, round: int = 1, words: int = 2):
    """Questions, their lessons of a round, and the attempts on them; every third has no mistake."""
    numbers = range(part * EACH, (part + 1) * EACH)
    questions = [Question(f"q{n}", f"{n % 10} apples and{' more' * words}", str(n % 10)) for n in numbers]
    lessons = [
        Lesson(q.id, LessonKind.RATIONALE, round, f"round {round} has{' so' * n}", q.answer, None, None, None, "t",
               f"{q.id}/{round}/{n}", 1, 1, 0.0)
        for q in questions for n in range(2)
    ]  # fmt: skip
    attempts = [
        Attempt(q.id, n, f" {n} pens\nAnswer: 9{n}", "stop", "9", Verdict.WRONG, 0, 1, 1)
        for q in questions for n in range(2) if int(q.id[1:]) % 3
    ]  # fmt: skip
    return questions, lessons, attempts


def commit(folder: Store, part: int, shuffle: int | None = None, **more) -> None:
    """Part i of three stages, and of a second round's lessons."""
    questions, lessons, attempts = some_rows(part, **more)
    _, later, _ = some_rows(part, round=2, **more)
    for rows in (lessons, attempts, later) if shuffle is not None else ():
        random.Random(shuffle).shuffle(rows)
    commit_part(folder.child("questions"), "train", part, to_table(questions, QUESTION_SCHEMA))
    commit_part(folder.child("teach-1"), "lessons", part, to_table(lessons, LESSON_SCHEMA))
    commit_part(folder.child("teach-2"), "lessons", part, to_table(later, LESSON_SCHEMA))
    commit_part(folder.child("exam"), "attempts", part, to_table(attempts, ATTEMPT_SCHEMA))


def examples_job(folder: Store, student, **settings) -> ExamplesJob:
    return ExamplesJob(
        config=TrainingConfig(**settings),
        prompt=StudentPrompt("plain", AnswerKind.NUMBER),
        student=student,
        special_tokens=True,
        questions=folder.child("questions"),
        lessons={1: folder.child("teach-1"), 2: folder.child("teach-2")},
        attempts=folder.child("exam"),
        out=folder.child("examples"),
        seed=3,
        round=2,
        latest=2,
    )


@pytest.fixture
def folder(tmp_path):
    store = Store.open(str(tmp_path))
    for part in (0, 1):
        commit(store, part)
    return store


def test_a_part_holds_texts_and_their_tokens(folder, student):
    from transformers import AutoTokenizer

    job = pickle.loads(pickle.dumps(examples_job(folder, student)))
    part = write_examples(job, 1)
    rows = pq.read_table(job.out.path("examples-00001.parquet")).to_pylist()
    assert part.rows == len(rows) == EACH * 4  # two lessons of each of two rounds
    assert {row["question_id"] for row in rows} == {f"q{n}" for n in range(EACH, 2 * EACH)}
    tokenizer = AutoTokenizer.from_pretrained(student.uri)
    for row in rows:
        assert row["prompt_ids"] == tokenizer(row["prompt"])["input_ids"]
        assert row["rationale_ids"] == [*tokenizer(row["rationale"])["input_ids"], tokenizer.eos_token_id]
        assert bool(row["positive_ids"]) == bool(row["negative_ids"]) == (row["negative"] is not None)
    counts = part.info["counts"]
    assert (counts["examples"], counts["questions"], counts["truncated"], counts["skipped"]) == (48, 12, 0, 0)
    assert counts["with_pair"] == counts["with_pair_trained"] == sum(row["negative"] is not None for row in rows) == 32
    shape = PartShape.from_info(part.info)
    assert shape.lengths[0].tolist() == [len(row["prompt_ids"]) for row in rows]
    assert shape.lengths[3].tolist() == [len(row["negative_ids"]) for row in rows]
    names = list(dict.fromkeys(row["question_id"] for row in rows))
    assert [names[number] for number in shape.questions] == [row["question_id"] for row in rows]


def test_rationales_that_fit_the_student_are_kept(folder, student):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    every = pq.read_table(_written(examples_job(folder, student))).to_pylist()
    kept = pq.read_table(_written(examples_job(folder, student, rationales=1, choose="fit"))).to_pylist()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student.uri), AutoTokenizer.from_pretrained(student.uri)
    assert len(kept) == EACH
    for row in kept:
        rivals = [(one["prompt"], one["rationale"]) for one in every if one["question_id"] == row["question_id"]]
        scores = fit_scores(model.eval(), tokenizer, rivals, 256, True, "nll")
        assert row["rationale"] == rivals[scores.index(min(scores))][1]


def _written(job: ExamplesJob) -> str:
    write_examples(job, 1)
    return job.out.path("examples-00001.parquet")


def test_the_same_content_in_another_order_makes_the_same_bytes(folder, student, tmp_path):
    other = Store.open(str(tmp_path / "shuffled"))
    commit(other, 1, shuffle=5)
    assert (
        write_examples(examples_job(other, student), 1).entry == write_examples(examples_job(folder, student), 1).entry
    )


def test_lessons_of_the_latest_round_alone(folder, student):
    """Which it is, the job says: a part may have none of it."""
    commit_part(folder.child("teach-2"), "lessons", 0, to_table([], LESSON_SCHEMA))
    job = examples_job(folder, student, lessons="latest")
    assert [write_examples(job, index).rows for index in (0, 1)] == [0, 2 * EACH]
    assert PartShape.from_info(find_part(job.out, EXAMPLES, 0).info).lengths.shape == (4, 0)


def test_what_does_not_fit_is_counted_and_named_but_never_all_of_it(tmp_path, student, monkeypatch):
    folder = Store.open(str(tmp_path))
    for part, words in enumerate((0, 8, 40)):
        commit(folder, part, words=words)
    job = examples_job(folder, student, max_length=32)
    first, middle, last = (write_examples(job, index) for index in range(3))
    counts = [[part.info["counts"][what] for what in ("truncated", "skipped")] for part in (first, middle, last)]
    assert counts == [[0, 0], [48, 0], [0, 48]]
    assert [first.rows, middle.rows, last.rows] == [48, 48, 0]
    assert middle.info["truncated_ids"] == [f"q{n}" for n in range(12, 24) for _ in range(4)]
    assert last.info["skipped_ids"] == [f"q{n}" for n in range(24, 36) for _ in range(4)]
    monkeypatch.setattr("tailor_ray.training.example_parts.NAMED", 5)
    named = write_examples(job, 2).info
    assert (len(named["skipped_ids"]), named["counts"]["skipped"]) == (5, 48)


def test_the_drivers_record_has_no_rows_in_it_and_a_whole_part_is_kept(folder, student):
    job = examples_job(folder, student)
    told = keep_or_write(job, 0)
    assert PLANNING not in told.info
    assert told.info["counts"]["examples"] == 48
    written = job.out.path("examples-00000.parquet")
    before = pq.read_metadata(written).serialized_size
    folder.child("exam").delete("attempts-00000.parquet")  # it would be needed to make the part again
    assert keep_or_write(job, 0) == told
    assert pq.read_metadata(written).serialized_size == before
    job.out.write_bytes("examples-00000.parquet", b"torn")
    assert "attempts-00000" in str(keep_or_write(job, 0)), "it is made again"


def test_what_is_missing_or_damaged_is_an_error_of_ours_with_its_name(folder, student):
    job = examples_job(folder, student)
    folder.child("teach-1").delete("lessons-00001.json")
    error = keep_or_write(job, 1)
    assert isinstance(error, CorruptionError)
    assert "teach-1/lessons-00001.json is missing" in str(error)
    folder.child("exam").write_bytes("attempts-00000.parquet", b"torn")
    assert "attempts-00000.parquet does not have the hash" in str(keep_or_write(job, 0))
