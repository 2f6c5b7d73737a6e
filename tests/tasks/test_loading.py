"""What a row loses or gains on its way in: exact numbers, every choice, GSM8K's own layout, compressed files."""

import bz2
import csv
import gzip
import io
import json
import lzma
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor_ray.config.task import TaskConfig
from tailor_ray.errors import DataError
from tailor_ray.tasks import load_task


def lines(items):
    return "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items)


def rows(split, count=6, **more):
    return [{"question": f"In {split} which number is {i}?", "answer": i, **more} for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(rows("train")))
    (tmp_path / "test.jsonl").write_text(lines(rows("test")))
    return tmp_path


def load(folder, name="jsonl", **settings):
    settings.setdefault("contamination_overlap", 1.0)
    return load_task(TaskConfig(name=name, path=str(folder), **settings), 1)


def first_test(folder, item, **settings):
    (folder / "test.jsonl").write_text(
        lines([item, *rows("test", 3, **{k: item[k] for k in ("choices",) if k in item})])
    )
    return next(iter(load(folder, **settings).test))


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ("9007199254740993", "9007199254740993"),
        ("9007199254740991.0", "9007199254740991"),
        ("12345678901234567.0", "12345678901234567"),
        ("0.12345678901234567890", "0.1234567890123456789"),
        ("123456789012345.678", "123456789012345.678"),
        ("1e6", "1000000"),
        ("18.0", "18"),
        ("-0.5", "-0.5"),
        ('"1,250"', "1250"),
    ],
)
def test_numbers_keep_every_digit(folder, written, gold):
    item = f'{{"question": "Which one?", "answer": {written}}}'
    (folder / "test.jsonl").write_text(lines([item]))
    assert next(iter(load(folder).test)).answer == gold


def test_numbers_of_parquet_keep_every_digit(folder):
    (folder / "test.jsonl").unlink()
    values = [9007199254740991.0, 0.1, 3.0]
    pq.write_table(pa.table({"question": ["a?", "b?", "c?"], "answer": values}), folder / "test.parquet")
    assert [q.answer for q in load(folder).test] == ["9007199254740991", "0.1", "3"]
    pq.write_table(
        pa.table({"question": ["a?"], "answer": [Decimal("12345678901234567890.25")]}), folder / "test.parquet"
    )
    assert [q.answer for q in load(folder).test] == ["12345678901234567890.25"]


@pytest.mark.parametrize(
    ("choices", "rule"),
    [
        ({"A": "red", "a": "blue"}, "two choices are named 'a'"),
        ({"label": ["A", "A", "B"], "text": ["red", "blue", "green"]}, "two choices are named 'a'"),
        ({"label": ["A", "B", "C"], "text": ["red", "blue"]}, "3 labels and 2 texts"),
        ({"label": ["A", "B"], "text": ["red", "blue", "green"]}, "2 labels and 3 texts"),
        ([f"colour {i}" for i in range(27)], "27 choices"),
        (["red", None], "there is no 'b'"),
        ('{"a": "red", "a": "blue", "b": "green"}', "the key 'a' stands twice"),
    ],
)
def test_no_choice_is_dropped_in_silence(folder, choices, rule):
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(
            lines([{**row, "answer": "A", "choices": ["x", "y"]} for row in rows(split)])
        )
    good = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(good + lines([{"question": "Which?", "answer": "A", "choices": choices}]))
    with pytest.raises(DataError) as caught:
        load(folder, answer_kind="choice")
    assert f"{folder / 'test.jsonl'}, line 7: " in str(caught.value)
    assert rule in str(caught.value)


def test_twenty_six_choices_are_all_there(folder):
    for split in ("train", "test"):
        choices = [f"colour {i}" for i in range(26)]
        (folder / f"{split}.jsonl").write_text(
            lines([{**row, "answer": "Z", "choices": choices} for row in rows(split)])
        )
    question = next(iter(load(folder, answer_kind="choice").test))
    assert (question.answer, question.choice_texts()["z"]) == ("z", "colour 25")


def test_a_key_that_stands_twice_in_a_row_is_named(folder):
    (folder / "test.jsonl").write_text('{"question": "a?", "answer": 1, "answer": 2}\n')
    with pytest.raises(DataError, match=r"line 1: .*the key 'answer' stands twice"):
        load(folder)


@pytest.mark.parametrize("gold", ["*", "...", "“”"])
def test_a_text_answer_of_punctuation_alone_is_named(folder, gold):
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(lines([{**row, "answer": "red"} for row in rows(split)]))
    good = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(good + lines([{"question": "Which?", "answer": gold}]))
    with pytest.raises(DataError, match=r"line 7: .*punctuation alone"):
        load(folder, answer_kind="text")


@pytest.mark.parametrize("gold", ["3 or 4", "about 5 to 6", "> 3", "x", "4:1"])
def test_a_gold_number_that_cannot_be_read_is_named_with_its_row(folder, gold):
    (folder / "test.jsonl").write_text(lines([{"question": "Which?", "answer": gold}]))
    with pytest.raises(DataError, match=r"test\.jsonl, line 1: the answer .* is not a number"):
        load(folder)


@pytest.mark.parametrize("task", ["gsm8k", "jsonl"])
def test_gsm8k_own_files_are_read_as_they_are(folder, task):
    solved = [
        {"question": f"In {split} box {i}?", "answer": f"He has {i}*1000=<<{i}*1000={i}000>>{i}000 pens.\n#### {i},000"}
        for split in ("train", "test")
        for i in range(1, 6)
    ]
    (folder / "train.jsonl").write_text(lines(solved[:5]))
    (folder / "test.jsonl").write_text(lines(solved[5:]))
    question = next(iter(load(folder, task).test))
    assert (question.answer, question.rationale) == ("1000", "He has 1*1000=1000 pens.")


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_compressed_files_are_read(tmp_path, suffix, kind):
    for split, count in (("train", 3000), ("test", 5)):
        items = rows(split, count)
        if kind == "jsonl":
            text = lines(items)
        else:
            sheet = io.StringIO()
            writer = csv.DictWriter(sheet, ["question", "answer"])
            writer.writeheader()
            writer.writerows(items)
            text = sheet.getvalue()
        (tmp_path / f"{split}.{kind}.{suffix}").write_bytes(PACKED[suffix](text.encode()))
    task = load(tmp_path)
    assert [q.answer for q in task.test] == ["0", "1", "2", "3", "4"]
    assert len([*task.train, *task.validation]) == 3000


def test_a_compressed_file_is_known_by_its_bytes(folder):
    (folder / "train.jsonl").write_bytes(gzip.compress((folder / "train.jsonl").read_bytes()))
    assert len([*load(folder).train]) == 5


@pytest.mark.parametrize("suffix", PACKED)
def test_a_damaged_compressed_file_is_named(tmp_path, suffix):
    (tmp_path / "test.jsonl").write_text(lines(rows("test")))
    packed = PACKED[suffix](lines(rows("train", 20_000)).encode())
    path = tmp_path / f"train.jsonl.{suffix}"
    for damaged in (
        packed[: len(packed) // 2],
        packed[: len(packed) // 2] + bytes(200) + packed[len(packed) // 2 + 200 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"train\.jsonl\.{suffix}"):
            load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_files_with_a_byte_order_mark_are_read(tmp_path, encoding, kind):
    for split in ("train", "test"):
        items = rows(split, 4)
        text = (
            lines(items)
            if kind == "jsonl"
            else "question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in items)
        )
        (tmp_path / f"{split}.{kind}").write_bytes(text.encode(encoding))
    assert [q.answer for q in load(tmp_path).test] == ["0", "1", "2", "3"]


def test_latin_1_is_said_to_be_no_utf_8(folder):
    (folder / "test.jsonl").write_bytes('{"question": "café?", "answer": 1}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="line 1: the line is not UTF-8"):
        load(folder)
