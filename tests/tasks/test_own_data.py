"""A user's own questions in three formats, every rule named with its line, splits that stream and stay apart."""

import csv
import json
import pickle
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor_ray.config.task import TaskConfig
from tailor_ray.errors import ConfigError, DataError
from tailor_ray.records import AnswerKind, Verdict
from tailor_ray.tasks import demos_for, grader_for, load_task, splits


def rows(split, count):
    return [
        {
            "id": f"{split}-{i}",
            "question": f"In {split} box {i} lie {i} red and {i + 1} blue pens. How many?",
            "answer": 2 * i + 1,
        }
        for i in range(count)
    ]


def write_jsonl(path, items):
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", rows("train", 40))
    write_jsonl(tmp_path / "test.jsonl", rows("test", 10))
    return tmp_path


def load(folder, seed=1, **settings):
    settings.setdefault("contamination_overlap", 1.0)  # the made-up questions differ in their numbers alone
    return load_task(TaskConfig(name="jsonl", path=str(folder), **settings), seed)


def test_splits_are_apart_complete_and_the_same_each_time(folder):
    task = load(folder)
    train, validation, test = list(task.train), list(task.validation), list(task.test)
    assert (len(train), len(validation), len(test)) == (36, 4, 10)
    assert {q.id for q in train} | {q.id for q in validation} == {f"train-{i}" for i in range(40)}
    assert list(task.train) == train
    assert [q.id for q in load(folder, seed=1).validation] == [q.id for q in validation]
    assert {q.id for q in load(folder, seed=2).validation} != {q.id for q in validation}
    assert test[3].answer == "7"
    again = pickle.loads(pickle.dumps(task))
    assert list(again.validation) == validation


def test_limits_and_the_bound_on_validation(folder):
    task = load(folder, limit_train=5, limit_test=3, validation_share=0.4, max_validation=6)
    assert (len(list(task.train)), len(list(task.validation)), len(list(task.test))) == (5, 6, 3)


def test_csv_and_parquet_with_mapped_columns(tmp_path):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "target", "why"])
        writer.writerows([f"Question number\n{i}, please?", f"1,{i:03d}", ""] for i in range(20))
    pq.write_table(
        pa.table({"prompt": [f"Held out {i}?" for i in range(5)], "target": [float(i) for i in range(5)]}),
        tmp_path / "test.parquet",
    )
    task = load(tmp_path, columns={"question": "prompt", "answer": "target", "rationale": "why"})
    train = {q.id: q for q in [*task.train, *task.validation]}
    assert len(train) == 20
    assert train["train-3"].text == "Question number\n0, please?"  # a quoted line break: the row ends on line 3
    assert train["train-3"].answer == "1000"
    assert train["train-3"].rationale is None
    assert [q.answer for q in task.test] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"id": "x", "question": "How many?"}, "there is no 'answer'"),
        ({"id": "x", "question": "How many?", "answer": ""}, "'answer' is empty"),
        ({"id": "x", "question": "How many?", "answer": "a lot"}, "'a lot' is not a number"),
        ({"id": "x", "question": "How many?", "answer": True}, "only the answer kind yes_no"),
        ({"id": "x", "question": "How many?", "answer": [1]}, "is a list, not text"),
        ({"id": "x", "question": "  ", "answer": 1}, "'question' is empty"),
        ({"id": "x", "question": 7, "answer": 1}, "'question' is a int, not text"),
        ({"id": "x", "question": "How\0many?", "answer": 1}, "NUL"),
        ({"id": "x", "answer": 1}, "there is no 'question'"),
        ({"id": "train-7", "question": "Again?", "answer": 1}, "'train-7' was seen before"),
        ({"id": "test-7", "question": "Again?", "answer": 1}, "'test-7' was seen before"),
        ('{"id": "x", "question": "half \\ud800 a pair", "answer": 1}', "surrogate"),
        ('{"id": "x", "question": ', "not valid JSON"),
        ("[1, 2]", "holds a list, not an object"),
        ('{"id": "x", "question": "How many?", "answer": ' + "1" * 5000 + "}", "not valid JSON"),
        ({"id": ["x"], "question": "How many?", "answer": 1}, "'id' is a list, not text"),
        ({"question": "How many?", "answer": 1, "rationale": 5}, "'rationale' is a int, not text"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_rule(folder, bad, rule):
    good = rows("train", 40)
    write_jsonl(folder / "train.jsonl", [*good[:20], bad, *good[20:]])
    with pytest.raises(DataError) as caught:
        load(folder)
    assert f"{folder / 'train.jsonl'}, line 21: " in str(caught.value)
    assert rule in str(caught.value)
    assert "task.max_bad_share" in str(caught.value)
    task = load(folder, max_bad_share=0.05)
    assert len([*task.train, *task.validation]) == 40
    assert task.findings.skipped == 1
    assert rule in task.findings.to_json()["skipped_rows"][0]


def test_ids_may_be_numbers_or_missing(folder):
    write_jsonl(
        folder / "test.jsonl", [{"id": i or None, "question": f"Held out {i}?", "answer": 1} for i in range(-1, 2)]
    )
    write_jsonl(folder / "train.jsonl", [{"id": i, "question": f"Number {i}?", "answer": 1} for i in range(2, 9)])
    task = load(folder)
    assert [q.id for q in task.test] == ["-1", "test-2", "1"]


def test_more_bad_rows_than_the_share_stop_the_run(folder):
    write_jsonl(folder / "train.jsonl", [*rows("train", 40), *["{"] * 5])
    with pytest.raises(DataError, match="5 of 45 rows"):
        load(folder, max_bad_share=0.1)
    assert load(folder, max_bad_share=0.12).findings.skipped == 5


def test_text_that_is_not_utf8_is_a_bad_row(folder):
    path = folder / "train.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "x", "question": "\xff", "answer": 1}\n')
    with pytest.raises(DataError, match="line 41: the line is not UTF-8"):
        load(folder)


def test_missing_and_empty_files_say_what_to_set(tmp_path, folder):
    with pytest.raises(DataError, match=r"task\.path .* is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"task\.path"):
        load_task(TaskConfig(name="jsonl"), 1)
    (folder / "test.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"test\.jsonl is empty"):
        load(folder)
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"no test\.jsonl or test\.parquet or test\.csv"):
        load(folder)
    with pytest.raises(DataError, match=r"no held-out\.jsonl .*task\.test_file"):
        load(folder, test_file="held-out.jsonl")


def test_two_candidates_for_a_split_are_refused(folder):
    (folder / "train.csv").write_text("question,answer\n")
    with pytest.raises(DataError, match=r"train\.jsonl and train\.csv; say which in task\.train_file"):
        load(folder)
    assert len(list(load(folder, train_file="train.jsonl").test)) == 10


def test_broken_csv_and_parquet_are_named(folder):
    (folder / "other.csv").write_text("question,answer\nHow many?,1,2\n")
    with pytest.raises(DataError, match="line 2: the row has more fields"):
        load(folder, train_file="other.csv")
    (folder / "other.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not readable as parquet"):
        load(folder, train_file="other.parquet")


def test_parquet_text_that_is_not_utf8_spoils_its_row_alone(folder):
    ids = [f"p{i}" for i in range(30)]
    texts = pa.array([f"Which number is {i}?".encode() for i in range(30)]).to_pylist()
    texts[11] = b"half \xff a letter"
    binary = pa.array(texts, pa.binary())
    spoiled = pa.StringArray.from_buffers(30, *binary.buffers()[1:])
    pq.write_table(pa.table({"id": ids, "question": spoiled, "answer": list(range(30))}), folder / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet, line 12: the row is not UTF-8"):
        load(folder, train_file="other.parquet")
    task = load(folder, train_file="other.parquet", max_bad_share=0.05)
    assert {q.id for q in [*task.train, *task.validation]} == set(ids) - {"p11"}


def test_a_parquet_file_cut_or_flipped_is_named(folder):
    path = folder / "other.parquet"
    items = rows("train", 5000)
    pq.write_table(pa.table({name: [row[name] for row in items] for name in items[0]}), path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4000] + bytes(2000) + whole[6000:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"other\.parquet, row \d+: not readable as parquet"):
            load(folder, train_file="other.parquet")


def test_contaminated_rows_are_dropped_and_listed_or_refused(folder):
    copy = rows("test", 10)[4]
    near = "At home, " + copy["question"].replace("How many?", "How many pens are there?")
    extra = [
        {"id": "same", "question": copy["question"].upper() + "!!", "answer": 9},
        {"id": "near", "question": near, "answer": 9},
    ]
    write_jsonl(folder / "train.jsonl", [*rows("train", 40), *extra])
    task = load(folder, contamination_overlap=0.9)
    assert not {"same", "near"} & {q.id for q in [*task.train, *task.validation]}
    listed = {item["train"]: item for item in task.findings.to_json()["contaminated_rows"]}
    assert listed["same"] == {"train": "same", "test": "test-4", "how": "text", "share": 1.0}
    assert listed["near"]["how"] == "8-gram"
    with pytest.raises(DataError, match=r"same = test-4 by text[\s\S]*task\.contamination"):
        load(folder, contamination="refuse")
    kept = load(folder, contamination="ignore")
    assert kept.findings.contaminated == 2
    assert "same" in {q.id for q in [*kept.train, *kept.validation]}


def test_repeats_inside_train_fall_on_one_side(folder):
    doubled = rows("train", 40) + [{**row, "id": f"again-{i}"} for i, row in enumerate(rows("train", 40))]
    write_jsonl(folder / "train.jsonl", doubled)
    task = load(folder, validation_share=0.3)
    assert not {q.text for q in task.train} & {q.text for q in task.validation}
    assert len(list(task.validation)) == 24


@pytest.mark.parametrize(
    "form", [{"a": "red", "b": "blue"}, ["red", "blue"], {"label": ["A", "B"], "text": ["red", "blue"]}]
)
def test_choices_in_three_forms(tmp_path, form):
    items = [
        {"id": f"q{i}", "question": f"Which colour is number {i}?", "answer": "B", "choices": form} for i in range(9)
    ]
    write_jsonl(tmp_path / "train.jsonl", items[:6])
    write_jsonl(tmp_path / "test.jsonl", items[6:])
    task = load(tmp_path, answer_kind="choice")
    question = next(iter(task.test))
    assert question.choice_texts() == {"a": "red", "b": "blue"}
    assert task.grader.grade(question, "Answer: (b)").verdict is Verdict.CORRECT
    items[2]["choices"] = {"first": "red", "second": "blue"}
    write_jsonl(tmp_path / "train.jsonl", items[:6])
    with pytest.raises(DataError, match="line 3: a choice is named 'first'"):
        load(tmp_path, answer_kind="choice")


def test_choices_from_a_column_each(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        lines = [f"{split} colour number {i}?,red,blue,B" for i in range(count)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["question,A,B,answer", *lines]) + "\n")
    task = load(tmp_path, answer_kind="choice", columns={"choices": {"a": "A", "b": "B"}})
    assert next(iter(task.test)).choice_texts() == {"a": "red", "b": "blue"}


@pytest.mark.parametrize(("kind", "answer"), [("yes_no", "True"), ("text", "Paris"), ("regex", "colou?r")])
def test_the_other_answer_kinds_load(tmp_path, kind, answer):
    items = [{"question": f"Is it so, number {i}?", "answer": answer} for i in range(8)]
    write_jsonl(tmp_path / "train.jsonl", items[:6])
    write_jsonl(tmp_path / "test.jsonl", [{"question": f"Held out {i}?", "answer": answer} for i in range(2)])
    task = load(tmp_path, answer_kind=kind)
    assert task.answer_kind == kind
    said = {"yes_no": "Answer: yes", "text": "Answer: paris", "regex": "Answer: color"}[kind]
    assert task.grader.grade(next(iter(task.train)), said).verdict is Verdict.CORRECT


def test_a_function_of_the_user_grades(folder, tmp_path, monkeypatch):
    (tmp_path / "my_grading.py").write_text("def same(text, gold):\n    return gold in text if text else None\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = load(folder, answer_kind="python", answer_function="my_grading:same")
    question = next(iter(task.test))
    assert task.grader.grade(question, "it is 1").verdict is Verdict.CORRECT
    with pytest.raises(ConfigError, match=r"my_grading:nothing.* cannot be loaded"):
        load(folder, answer_kind="python", answer_function="my_grading:nothing")
    with pytest.raises(ConfigError, match=r"nowhere_at_all"):
        load(folder, answer_kind="python", answer_function="nowhere_at_all:same")


def test_own_demos_are_checked_by_the_grader(folder):
    right = {"question": "1 and 1?", "rationale": "1 + 1 = 2.", "answer": "2"}
    config = TaskConfig(name="jsonl", path=str(folder), demos=(right,))
    assert demos_for(config)[0].rationale == "1 + 1 = 2."
    assert grader_for(config).kind is AnswerKind.NUMBER
    with pytest.raises(ConfigError, match=r"few_shot needs demos"):
        demos_for(TaskConfig(name="jsonl", path=str(folder)))
    with pytest.raises(DataError, match=r"task\.demos.*'a pair'"):
        load(folder, demos=({**right, "answer": "a pair"},))


def test_a_large_file_streams(tmp_path):
    count = 1_000
    with (tmp_path / "train.jsonl").open("w") as file:
        for i in range(count):
            file.write(json.dumps({"id": i, "question": f"{i} " + "x" * 10_000, "answer": i}) + "\n")
    write_jsonl(tmp_path / "test.jsonl", rows("test", 10))
    load(tmp_path)  # imports and caches are not the splits'
    tracemalloc.start()
    task = load(tmp_path, max_validation=100)
    seen = sum(1 for _ in task.train)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == count - 100
    assert peak < 2e6  # the file has 10 MB


def test_what_was_seen_is_known_at_ten_bytes_each(monkeypatch):
    """The same answers as a set's, through many rounds of putting in order."""
    draw = random.Random(7)
    numbers = [draw.getrandbits(64) for _ in range(50_000)]
    numbers += [draw.choice(numbers) for _ in range(20_000)] + [0, 2**64 - 1, 0, 2**64 - 1]
    draw.shuffle(numbers)
    monkeypatch.setattr(splits, "NEWEST", 100)
    seen, known = splits.NumberSet(), set()
    tracemalloc.start()
    answers = [seen.add(number) for number in numbers]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = []
    for number in numbers:
        expected.append(number not in known)
        known.add(number)
    assert answers == expected
    assert len(seen) == len(known)
    answers_bytes = answers.__sizeof__()
    assert held - answers_bytes < 10 * len(known) + 20_000
    assert peak - answers_bytes < 20 * len(known) + 20_000


def test_a_repeated_id_far_apart_is_skipped_and_named(folder, monkeypatch):
    monkeypatch.setattr(splits, "NEWEST", 5)
    again = {"id": "train-3", "question": "Something else?", "answer": 1}
    write_jsonl(folder / "train.jsonl", [*rows("train", 40), again, *rows("more", 5), again])
    task = load(folder, max_bad_share=0.1)
    named = [text.partition("train.jsonl, ")[2][:30] for text in task.findings.skipped_rows]
    assert named == ["line 41: the id 'train-3' was ", "line 47: the id 'train-3' was "]
    assert len([*task.train, *task.validation]) == 45


def test_one_question_over_and_over_cannot_be_split(folder):
    write_jsonl(folder / "train.jsonl", [{"question": "Which?", "answer": i} for i in range(5)])
    with pytest.raises(DataError, match="no two different questions"):
        load(folder)
