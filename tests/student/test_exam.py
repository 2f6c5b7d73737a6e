"""Whole parts answered, graded, written and counted, over engines that need no model."""

import pickle
import threading
import time
from dataclasses import replace

import pyarrow as pa
import pytest

from tailor_ray.answers import Grader
from tailor_ray.errors import CorruptionError, StageError
from tailor_ray.layout import answered_folder
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
from tailor_ray.storage import Manifest, PartsDigest, Store, commit_manifest, commit_part, find_part, read_part
from tailor_ray.student import exam as exam_module
from tailor_ray.student import examiner as examiner_module
from tailor_ray.student.exam import Totals, run_exam
from tailor_ray.student.examiner import Examiner, ExamJob, Parallelism, PartialAnswers, part_info
from tailor_ray.student.sampling import Completions, sample_seed


class Sums:
    """Engines that add the two numbers of a prompt, and 1 for every odd seed; they refuse what has no numbers."""

    engines = 2
    max_num_seqs = 12

    def __init__(self, wrong_from=10**9):
        self.wrong_from = wrong_from  # the first number from which every sum is wrong
        self.entered = []

    def enter_part(self, index):
        self.entered.append(index)

    def answer(self, ids, prompts, seeds, sampling):
        out = Completions()
        for prompt, group in zip(prompts, seeds, strict=True):
            numbers = [int(word) for word in prompt.split() if word.isdigit()]
            for seed in group:
                if len(numbers) == 2:
                    off = 1 if numbers[0] >= self.wrong_from else seed % 2
                    text = f" {numbers[0]} + {numbers[1]}.\nAnswer: {sum(numbers) + off}"
                    out.extend(Completions([text], ["stop"], [len(prompt)], [9], [None]))
                else:
                    out.extend(Completions.of_errors(["the prompt is empty"]))
        return out


def exam_job(samples=3, **changes):
    prompt, grader = StudentPrompt("plain", AnswerKind.NUMBER), Grader(AnswerKind.NUMBER)
    return ExamJob("attempts", "train", prompt, grader, samples, 1.0, 1.0, 8, seed=5, round=2, **changes)


@pytest.fixture
def questions(tmp_path):
    """Four parts: 5, 2, 5 and no questions; the third has one that cannot be asked."""
    store = Store.open(str(tmp_path / "questions"))
    asked = [Question(f"q{i}", f"What is {i} plus {2 * i} ?", str(3 * i)) for i in range(12)]
    asked[9] = Question("q9", "\0", "27")
    parts = [
        commit_part(store, "train", index, to_table(asked[start:stop], QUESTION_SCHEMA))
        for index, (start, stop) in enumerate([(0, 5), (5, 7), (7, 12), (12, 12)])
    ]
    return store, asked, parts


def examine(questions, out, job, pool=None, order=(0, 1, 2, 3)):
    store, _, parts = questions
    pool = pool or Sums()
    examiner = pickle.loads(pickle.dumps(Examiner(pool, job, store, out, Parallelism.of(pool, job.samples, parts))))
    return [examiner.examine(parts[index]) for index in order]


@pytest.mark.parametrize(
    ("engines", "sequences", "samples", "rows"),
    [
        (1, 256, 4, [256] * 40),
        (2, 256, 8, [256] * 8),
        (8, 256, 4, [256] * 40),
        (2, 12, 3, [5, 2, 5]),
        (64, 256, 4, [9]),
    ],
)
def test_all_engines_are_asked_from_the_start_and_parts_under_way_are_bounded(engines, sequences, samples, rows):
    class Pool:
        max_num_seqs = sequences

    Pool.engines = engines
    parts = [part_of(count, index) for index, count in enumerate(rows)]
    shape = Parallelism.of(Pool, samples, parts)
    assert shape.slice * samples <= max(samples, sequences // 2)
    under_way = min(len(parts), shape.parts)
    slices = sum(min(shape.threads, -(-part.rows // shape.slice)) for part in parts[:under_way])
    assert slices >= min(2 * engines, sum(-(-part.rows // shape.slice) for part in parts))
    assert slices <= 6 * engines + 6  # not much more than what keeps them busy


def part_of(rows, index):
    from tailor_ray.storage import FileEntry, Part

    return Part(index, FileEntry(f"train-{index:05d}.parquet", "", 1, rows), {})


def test_an_attempt_part_has_a_row_for_each_sample_in_question_order(questions, tmp_path):
    _, asked, _ = questions
    out = Store.open(str(tmp_path / "out"))
    parts = examine(questions, out, exam_job())
    tables = [read_part(out, part) for part in parts]
    rows = [row for table in tables for row in from_table(table, Attempt)]
    assert [(row.question_id, row.sample) for row in rows] == [(q.id, k) for q in asked for k in range(3)]
    for row in rows:
        assert row.seed == sample_seed(5, 2, row.question_id, row.sample)
        if row.question_id == "q9":
            assert (row.verdict, row.detail) == (Verdict.ERROR, "the prompt holds a NUL character")
        else:
            assert row.verdict is (Verdict.WRONG if row.seed % 2 else Verdict.CORRECT)
    assert all(table.schema == ATTEMPT_SCHEMA for table in tables)
    assert [part.rows for part in parts] == [15, 6, 15, 0]
    assert [find_part(out, "attempts", index) for index in range(4)] == parts


def test_the_order_in_which_parts_are_made_changes_nothing(questions, tmp_path):
    first, second = Store.open(str(tmp_path / "first")), Store.open(str(tmp_path / "second"))
    made = examine(questions, first, exam_job())
    again = examine(questions, second, exam_job(), order=(3, 1, 0, 2))
    assert sorted(again, key=lambda part: part.index) == made


def test_every_part_asks_for_its_place_before_it_begins(questions, tmp_path):
    store, _, parts = questions
    pool = Sums()
    examiner = Examiner(pool, exam_job(), store, Store.open(str(tmp_path / "out")), Parallelism.of(pool, 3, parts))
    examiner.examine(parts[2])
    assert pool.entered == [2]


def test_a_damaged_question_part_is_found(questions, tmp_path):
    store, _, parts = questions
    data = bytearray(store.read_bytes(parts[1].entry.path))
    data[len(data) // 2] ^= 1
    store.write_bytes(parts[1].entry.path, bytes(data))
    with pytest.raises(CorruptionError, match="train-00001"):
        examine(questions, Store.open(str(tmp_path / "out")), exam_job())


def test_a_part_counts_what_became_of_the_mistakes_of_the_exam_before(questions, tmp_path):
    first, second = Store.open(str(tmp_path / "first")), Store.open(str(tmp_path / "second"))
    examine(questions, first, exam_job(), Sums(wrong_from=2))  # 0 and 1 right, all others wrong
    parts = examine(questions, second, exam_job(before=first), Sums(wrong_from=6))
    totals = Totals(3)
    for part in parts:
        totals.add(part)
    changes = totals.metrics()["changes"]
    assert sum(changes.values()) == 12
    assert changes["undecided"] == 1  # the one that cannot be asked
    assert changes["regressed"] == 0
    rows = [row for part in parts for row in from_table(read_part(second, part), Attempt)]
    solved = {
        name
        for name in {row.question_id for row in rows}
        if 2 * sum(row.verdict is Verdict.CORRECT for row in rows if row.question_id == name) > 3
    }
    assert changes["fixed"] == len(solved - {"q0", "q1"})


def test_totals_add_up_over_parts_and_name_the_quarantined(questions, tmp_path):
    _, asked, _ = questions
    out = Store.open(str(tmp_path / "out"))
    totals = Totals(samples=3)
    attempts = []
    for part in examine(questions, out, exam_job()):
        attempts += from_table(read_part(out, part), Attempt)
        totals.add(part)
    metrics = totals.metrics()
    assert metrics["questions"] == len(asked)
    assert metrics["attempts"] == 3 * len(asked)
    assert {verdict.value: metrics[verdict.value] for verdict in Verdict} == {
        verdict.value: sum(row.verdict == verdict for row in attempts) for verdict in Verdict
    }
    assert metrics["output_tokens"] == sum(row.output_tokens for row in attempts)
    assert metrics["mistaken_questions"] == len({row.question_id for row in attempts if row.verdict is Verdict.WRONG})
    assert metrics["changes"] is None
    assert metrics["quarantined"] == []
    killed = [Attempt("bad", 0, "", "error", None, Verdict.ERROR, 1, 0, 0, "quarantined: its prompt killed the engine")]
    totals.add(attempt_part(out, 9, killed))
    assert totals.metrics()["quarantined"] == ["bad"]


def attempt_part(out, index, rows):
    table = to_table(rows, ATTEMPT_SCHEMA)
    return commit_part(out, "attempts", index, table, part_info(table, None))


def test_the_first_disputed_attempts_of_each_part_are_listed_in_whatever_order_parts_are_committed(tmp_path):
    out = Store.open(str(tmp_path))
    parts = []
    for index in range(60):
        rows = [
            Attempt(f"q{index}-{i}", 0, "", "stop", "6", Verdict.DISPUTED, 1, 9, 9, "they differ") for i in range(30)
        ]
        rows.append(Attempt(f"bad{index:02d}", 0, "", "error", None, Verdict.ERROR, 1, 0, 0, "quarantined: it kills"))
        parts.append(attempt_part(out, index, rows))
    said = []
    for order in (range(60), range(59, -1, -1)):
        totals = Totals(samples=1)
        for index in order:
            totals.add(parts[index])
        said.append(totals.metrics())
    assert said[0] == said[1]
    listed = said[0]["disputed_attempts"]
    assert listed[0] == {"question_id": "q0-0", "sample": 0, "answer": "6", "detail": "they differ"}
    assert [row["question_id"] for row in listed] == [f"q{i}-{k}" for i in range(50) for k in range(20)]
    assert said[0]["disputed"] == 60 * 30
    assert said[0]["quarantined"] == [f"bad{index:02d}" for index in range(60)]


def test_prompts_and_grades_are_made_by_the_tasks_own_thread(questions, tmp_path):
    """What they load at first use fails where several threads load it at once."""
    seen = set()

    class Chat:
        def __call__(self, messages, open_turn):
            seen.add(threading.current_thread())
            return messages[-1]["content"]

    class Noting(Grader):
        def grade(self, *arguments):
            seen.add(threading.current_thread())
            return super().grade(*arguments)

    store, _, parts = questions
    prompt = StudentPrompt("chat", AnswerKind.NUMBER, chat=Chat())
    job = replace(exam_job(), prompt=prompt, grader=Noting(AnswerKind.NUMBER))
    pool = Sums()
    Examiner(pool, job, store, Store.open(str(tmp_path / "out")), Parallelism(1, 4, 2, 1)).examine(parts[0])
    assert seen == {threading.current_thread()}


class Falling(Sums):
    """Engines of which all fall after so many questions; `asked` are those that got an answer."""

    def __init__(self, after):
        super().__init__()
        self.after, self.asked = after, []

    def answer(self, ids, prompts, seeds, sampling):
        if len(self.asked) >= self.after:
            raise StageError("no engine is left")
        self.asked += ids
        return super().answer(ids, prompts, seeds, sampling)


def one_part(folder, count=12):
    store = Store.open(str(folder / "questions"))
    asked = [Question(f"q{i}", f"What is {i} plus {2 * i} ?", str(3 * i)) for i in range(count)]
    return store, commit_part(store, "train", 0, to_table(asked, QUESTION_SCHEMA))


def test_what_is_answered_of_a_part_survives_and_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(examiner_module, "SAVE_EVERY_S", 0.0)
    store, part = one_part(tmp_path)
    whole, out = Store.open(str(tmp_path / "whole")), Store.open(str(tmp_path / "out"))
    expected = Examiner(Sums(), exam_job(), store, whole, Parallelism(2, 1, 2, 1)).examine(part)
    first, second = Falling(after=6), Falling(after=100)
    with pytest.raises(StageError, match="no engine is left"):
        Examiner(first, exam_job(), store, out, Parallelism(2, 1, 2, 1)).examine(part)
    assert PartialAnswers.rows(out, "attempts") == 6 * 3
    made = Examiner(second, exam_job(), store, out, Parallelism(3, 2, 2, 1)).examine(part)  # in other slices
    assert sorted(first.asked + second.asked) == sorted(f"q{i}" for i in range(12))
    assert made == expected
    assert out.read_bytes(made.entry.path) == whole.read_bytes(made.entry.path)
    assert out.folders(answered_folder("attempts")) == []


def test_answers_that_are_damaged_or_of_another_exam_are_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(examiner_module, "SAVE_EVERY_S", 0.0)
    store, part = one_part(tmp_path)
    out = Store.open(str(tmp_path / "out"))
    with pytest.raises(StageError):
        Examiner(Falling(after=6), exam_job(), store, out, Parallelism(2, 1, 2, 1)).examine(part)
    beside = out.child(answered_folder("attempts"), "attempts-00000")
    torn = next(name for name in beside.files() if name.endswith(".parquet"))
    beside.write_bytes(torn, beside.read_bytes(torn)[:-9])
    pool = Falling(after=100)
    Examiner(pool, exam_job(), store, out, Parallelism(2, 1, 2, 1)).examine(part)
    assert len(pool.asked) == 8
    other = Store.open(str(tmp_path / "other"))
    with pytest.raises(StageError):
        Examiner(Falling(after=6), exam_job(), store, other, Parallelism(2, 1, 2, 1)).examine(part)
    pool = Falling(after=100)
    Examiner(pool, replace(exam_job(), seed=6), store, other, Parallelism(2, 1, 2, 1)).examine(part)
    assert len(pool.asked) == 12


class Bar:
    def __init__(self):
        self.done, self.before, self.seen = 0, 0, []

    def found(self, n):
        self.before = self.done = n

    def update(self, *, done):
        self.done = done
        self.seen.append(done)


def test_samples_are_counted_as_they_are_answered_and_earlier_ones_are_no_speed(tmp_path, monkeypatch):
    """Before the only part is whole; what an earlier try left is found, and a count never goes down."""
    store, part = one_part(tmp_path)
    commit_manifest(store, Manifest("questions", 0, "", {}, {"train": PartsDigest.of([part])}, 0.0, {}))
    out = Store.open(str(tmp_path / "out"))
    monkeypatch.setattr(examiner_module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(exam_module, "LOOK_EVERY_S", 0.01)
    with pytest.raises(StageError):
        Examiner(Falling(after=4), exam_job(), store, out, Parallelism(2, 1, 2, 1)).examine(part)
    bar, told = Bar(), iter([3, 9, 6, 9])

    class Counting(Sums):
        def begin_stage(self, most, room=0): ...
        def leave_part(self, index): ...

        def restarts(self):
            return 0

        def answered(self):
            return next(told, 9)

    class Slow:
        """Ray Data, in this process; it begins when four counts were told."""

        def __init__(self, parts, **_):
            self.parts = parts

        def map_batches(self, examiner, **_):
            self.examiner = examiner
            return self

        def iter_batches(self, **_):
            while len(bar.seen) < 4:
                time.sleep(0.01)
            yield pa.table(self.examiner({"part": [one["part"] for one in self.parts]}))

    monkeypatch.setattr("ray.data.from_items", Slow)
    run_exam(Counting(), exam_job(), store, out, print, bar)
    assert bar.before == 4 * 3
    assert bar.seen[:4] == [15, 21, 21, 21]
    assert bar.done == 12 * 3
