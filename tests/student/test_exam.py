"""Slices, grading and putting parts together, over engines that need no model."""

import pickle
import random
import threading

import pyarrow as pa
import pytest

from tailor_ray.answers import Grader
from tailor_ray.errors import CorruptionError, StageError
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import (
    ATTEMPT_SCHEMA,
    QUESTION_SCHEMA,
    AnswerKind,
    Attempt,
    Question,
    Verdict,
    from_table,
    to_table,
)
from tailor_ray.storage import Store, commit_part
from tailor_ray.student import exam
from tailor_ray.student.exam import Examiner, ExamJob, Totals, _complete, _info, _slices, _tasks
from tailor_ray.student.sampling import Completions, sample_seed


class Sums:
    """Engines that add the two numbers of a prompt, and 1 for every odd seed; they refuse what has no numbers."""

    engines = 2
    max_num_seqs = 12

    def answer(self, ids, prompts, seeds, sampling):
        out = Completions()
        for prompt, group in zip(prompts, seeds, strict=True):
            numbers = [int(word) for word in prompt.split() if word.isdigit()]
            for seed in group:
                if len(numbers) == 2:
                    text = f" {numbers[0]} + {numbers[1]}.\nAnswer: {sum(numbers) + seed % 2}"
                    out.extend(Completions([text], ["stop"], [len(prompt)], [9], [None]))
                else:
                    out.extend(Completions.of_errors(["the prompt is empty"]))
        return out


def exam_job(samples=3):
    prompt = StudentPrompt("plain", AnswerKind.NUMBER)
    return ExamJob("attempts", "train", prompt, Grader(AnswerKind.NUMBER), samples, 1.0, 1.0, 8, seed=5, round=2)


@pytest.fixture
def questions(tmp_path):
    """Three parts: 5, 2 and 5 questions; the last has one that cannot be asked."""
    store = Store.open(str(tmp_path))
    asked = [Question(f"q{i}", f"What is {i} plus {2 * i} ?", str(3 * i)) for i in range(12)]
    asked[9] = Question("q9", "\0", "27")
    parts = [
        commit_part(store, "train", index, to_table(asked[start:stop], QUESTION_SCHEMA))
        for index, (start, stop) in enumerate([(0, 5), (5, 7), (7, 12)])
    ]
    return store, asked, parts


def test_slices_cover_each_question_once_and_leave_work_for_every_engine(questions):
    _, _, parts = questions
    slices = _slices(parts, Sums(), samples=3)
    covered = [(piece["part"], piece["start"] + row) for piece in slices for row in range(piece["rows"])]
    rows = [(part.index, row) for part in parts for row in range(part.entry.rows)]
    assert [place for place in covered if place in rows] == rows
    assert all(piece["rows"] * 3 <= Sums.max_num_seqs // 2 for piece in slices)
    assert len(slices) >= 2 * Sums.engines
    assert len(_slices(parts[:1], Sums(), samples=1)) == 3  # 5 questions, 2 engines: 2 + 2 + 1


@pytest.mark.parametrize(("slices", "engines"), [(1, 1), (1, 8), (2, 1), (4, 2), (5, 2), (7, 3), (1000, 2), (1000, 16)])
def test_every_engine_is_asked_from_the_start_and_no_task_holds_more_than_it_asks_at_once(slices, engines):
    tasks, blocks = _tasks(slices, engines)
    held = -(-slices // blocks)  # by the largest block; a task asks all of it at once
    assert tasks <= blocks <= slices
    assert min(slices, 2 * engines) <= tasks * held
    assert held <= 2 * engines / max(1, engines // 2) + 1


def examined(questions, job):
    store, _, parts = questions
    examiner = pickle.loads(pickle.dumps(Examiner(Sums(), job, store)))
    return [examiner(pa.Table.from_pylist([piece])) for piece in _slices(parts, Sums(), job.samples)]


@pytest.mark.parametrize("order", range(3))
def test_parts_are_whole_and_in_question_order_however_their_slices_come(questions, order):
    _, asked, parts = questions
    job = exam_job()
    blocks = examined(questions, job)
    random.Random(order).shuffle(blocks)
    blocks = [pa.concat_tables(blocks[:2]), *blocks[2:]]  # Ray Data may join what it hands out
    tables = dict(_complete(iter(blocks), parts, job.samples))
    rows = [row for index in sorted(tables) for row in from_table(tables[index], Attempt)]
    assert [(row.question_id, row.sample) for row in rows] == [(q.id, k) for q in asked for k in range(3)]
    for row in rows:
        assert row.seed == sample_seed(5, 2, row.question_id, row.sample)
        if row.question_id == "q9":
            assert (row.verdict, row.detail) == (Verdict.ERROR, "the prompt holds a NUL character")
        else:
            assert row.verdict == (Verdict.WRONG if row.seed % 2 else Verdict.CORRECT)
    assert all(table.schema == ATTEMPT_SCHEMA for table in tables.values())


def test_a_part_that_stays_incomplete_is_an_error_and_an_empty_one_is_not(questions):
    _, _, parts = questions
    blocks = examined(questions, exam_job())
    with pytest.raises(StageError, match=r"question parts \[2\]"):
        list(_complete(iter(blocks[:-1]), parts, 3))
    store, _, _ = questions
    empty = commit_part(store, "none", 0, to_table([], QUESTION_SCHEMA))
    assert [(index, table.num_rows) for index, table in _complete(iter(()), [empty], 3)] == [(0, 0)]


class Held:
    """Records when engines are held."""

    def __init__(self):
        self.held = []
        self.changed = threading.Condition()

    def hold(self, held):
        with self.changed:
            self.held.append(held)
            self.changed.notify_all()


def test_engines_are_held_while_a_shard_is_not_taken(questions, monkeypatch):
    monkeypatch.setattr(exam, "HOLD_AFTER_S", 0.05)
    pool, (_, _, parts) = Held(), questions

    def slow(part):
        with pool.changed:
            assert pool.changed.wait_for(lambda: pool.held == [True], timeout=10)

    exam._hand_on(pool, slow, parts[0])
    assert pool.held == [True, False]
    exam._hand_on(pool, print, parts[1])
    assert pool.held == [True, False]

    def stopped(part):
        slow(part)
        raise StageError("the budget is used up")

    pool.held.clear()
    with pytest.raises(StageError, match="budget"):
        exam._hand_on(pool, stopped, parts[2])
    assert pool.held == [True, False]


def test_a_damaged_question_part_is_found(questions):
    store, _, parts = questions
    data = bytearray(store.read_bytes(parts[1].entry.path))
    data[len(data) // 2] ^= 1
    store.write_bytes(parts[1].entry.path, bytes(data))
    with pytest.raises(CorruptionError, match="train-00001"):
        examined(questions, exam_job())


def test_totals_add_up_over_parts_and_name_the_quarantined(questions, tmp_path):
    _, asked, parts = questions
    out = Store.open(str(tmp_path / "out"))
    totals = Totals(samples=3)
    attempts = []
    for index, table in _complete(iter(examined(questions, exam_job())), parts, 3):
        rows = from_table(table, Attempt)
        attempts += rows
        totals.add(commit_part(out, "attempts", index, table, _info(table)))
    metrics = totals.metrics()
    assert metrics["questions"] == len(asked)
    assert metrics["attempts"] == 3 * len(asked)
    assert {verdict.value: metrics[verdict.value] for verdict in Verdict} == {
        verdict.value: sum(row.verdict == verdict for row in attempts) for verdict in Verdict
    }
    assert metrics["output_tokens"] == sum(row.output_tokens for row in attempts)
    assert metrics["quarantined"] == []
    killed = to_table(
        [Attempt("bad", 0, "", "error", None, Verdict.ERROR, 1, 0, 0, "quarantined: its prompt killed the engine")],
        ATTEMPT_SCHEMA,
    )
    totals.add(commit_part(out, "attempts", 9, killed, _info(killed)))
    assert totals.metrics()["quarantined"] == ["bad"]
    rows = [
        Attempt(f"q{i}", 0, "", "stop", "66", Verdict.DISPUTED if i % 2 else Verdict.WRONG, 1, 9, 9, "they differ")
        for i in range(4000)
    ]
    for start in range(0, 4000, 800):
        table = to_table(rows[start : start + 800], ATTEMPT_SCHEMA)
        totals.add(commit_part(out, "attempts", 10 + start, table, _info(table)))
    listed = totals.metrics()["disputed_attempts"]
    assert listed[0] == {"question_id": "q1", "sample": 0, "answer": "66", "detail": "they differ"}
    assert [item["question_id"] for item in listed] == [f"q{i}" for i in range(1, 2000, 2)]  # the first thousand
    assert totals.metrics()["disputed"] == 2000


def test_totals_name_the_same_in_whatever_order_parts_are_committed(tmp_path):
    out = Store.open(str(tmp_path))
    parts = []
    for index in range(4):
        rows = [
            Attempt(f"q{index}-{i}", 0, "", "stop", "6", Verdict.DISPUTED, 1, 9, 9, "they differ") for i in range(400)
        ]
        rows.append(Attempt(f"bad{index}", 0, "", "error", None, Verdict.ERROR, 1, 0, 0, "quarantined: it kills"))
        table = to_table(rows, ATTEMPT_SCHEMA)
        parts.append(commit_part(out, "attempts", index, table, _info(table)))
    said = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        totals = Totals(samples=1)
        for index in order:
            totals.add(parts[index])
        said.append(totals.metrics())
    assert said[0] == said[1]
    assert [row["question_id"] for row in said[0]["disputed_attempts"]] == [
        f"q{index}-{i}" for index in range(3) for i in range(400)
    ][:1000]
    assert said[0]["quarantined"] == ["bad0", "bad1", "bad2", "bad3"]
