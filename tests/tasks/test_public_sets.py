"""The five public sets, from local files and in the hub's form, their demos and their contamination."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tailor_ray.config import load_config
from tailor_ray.config.task import TaskConfig
from tailor_ray.errors import DataError
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import Verdict
from tailor_ray.tasks import demos_for, grader_for, load_task
from tailor_ray.tasks.public import SETS

NAMES = ["gsm8k", "svamp", "multiarith", "csqa", "strategyqa"]


@pytest.mark.parametrize("name", NAMES)
def test_demos_are_right_by_the_grader_in_the_form_that_the_student_sees(name):
    config = TaskConfig(name=name)
    demos, grader = demos_for(config), grader_for(config)
    prompt = StudentPrompt("plain", grader.kind, demos)
    assert 3 <= len(demos) <= 5
    for demo in demos:
        assert grader.grade(demo, prompt.completion(demo.rationale, demo.answer)).verdict is Verdict.CORRECT


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "multiarith"])
def test_the_arithmetic_in_the_demos_holds(name):
    for demo in demos_for(TaskConfig(name=name)):
        for line in demo.rationale.replace(". ", "\n").splitlines():
            if "=" in line:
                left, right = line.split("=")
                expression = re.search(r"\d+(?: [-+*/] \d+)+$", left.strip())[0]
                assert eval(expression) == float(right.split()[0].rstrip(".")), line


@pytest.mark.parametrize(
    ("name", "train", "test", "exact", "dropped"),
    [
        ("gsm8k", 7473, 1319, 0, 2),
        ("svamp", 700, 300, 0, 4),
        ("multiarith", 420, 180, 6, 20),
        ("csqa", 9741, 1221, 0, 0),
        ("strategyqa", 1603, 687, 1, 1),
    ],
)
def test_real_splits_load_whole_and_clean(data_folder, name, train, test, exact, dropped):
    task = load_task(TaskConfig(name=name, path=str(data_folder / name)), 42)
    found = task.findings
    listed = [row for row in found.to_json()["contaminated_rows"] if row["how"] == "text"]
    assert (len(listed), found.contaminated, found.skipped) == (exact, dropped, 0)
    splits = [list(split) for split in (task.train, task.validation, task.test)]
    assert len(splits[2]) == test
    assert len(splits[0]) + len(splits[1]) == train - dropped
    held_out = min(500, round(0.1 * (train - dropped)))
    assert held_out <= len(splits[1]) <= held_out + 1  # a repeated question brings its twin along
    ids = [question.id for split in splits for question in split]
    assert len(set(ids)) == len(ids)
    if exact:
        with pytest.raises(DataError, match="overlap"):
            load_task(TaskConfig(name=name, path=str(data_folder / name), contamination="refuse"), 42)


TEST_TOKENS = {"gsm8k": 256, "svamp": 192, "multiarith": 192, "csqa": 96, "strategyqa": 128}


@pytest.mark.parametrize("name", NAMES)
def test_each_set_has_a_job_with_the_papers_settings(name):
    config = load_config(Path(__file__).parents[2] / "jobs" / f"{name}.yaml")
    exam, training = config.exam, config.training
    assert (config.task.name, config.student.few_shot, config.seed) == (name, True, 42)
    assert (exam.samples, exam.temperature, exam.max_new_tokens) == (4, 1.0, 128)
    assert config.evaluation.max_new_tokens == TEST_TOKENS[name]
    assert (training.epochs, training.learning_rate, training.warmup_steps, training.schedule) == (
        10,
        7e-6,
        100,
        "constant",
    )
    assert (training.prompt_weight, training.triplet_weight, training.triplet_margin) == (0.1, 0.5, 1.0)
    assert (training.rationale_cap, training.max_positives, training.max_negatives) == (192, 10, 4)
    assert (training.workers, training.batch_size, training.zero_stage) == (8, 16, 3)


def test_the_data_folder_of_the_environment_is_used(data_folder, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_DATA", str(data_folder))
    assert len(list(load_task(TaskConfig(name="svamp", limit_test=7), 1).test)) == 7


HUB_ROWS = {
    "gsm8k": (
        {"question": "Two and two?", "answer": "It is 2 + 2 = <<2+2=4>>4,\nso 1,000 + 4.\n#### 1,004"},
        {
            "id": "gsm8k-train-0",
            "question": "Two and two?",
            "answer": "1004",
            "rationale": "It is 2 + 2 = 4,\nso 1,000 + 4.",
        },
    ),
    "svamp": (
        {"ID": "chal-7", "Body": " Ann has 3 cats", "Question": "How many cats?", "Answer": "3.0"},
        {"id": "chal-7", "question": "Ann has 3 cats. How many cats?", "answer": "3"},
    ),
    "multiarith": (
        {"question": " Three and four? ", "final_ans": "7"},
        {"id": "multiarith-train-0", "question": "Three and four?", "answer": "7"},
    ),
    "csqa": (
        {
            "id": "c1",
            "question": "Where?",
            "question_concept": "x",
            "answerKey": "B",
            "choices": {"label": ["A", "B"], "text": ["here", "there"]},
        },
        {"id": "c1", "question": "Where?", "answer": "b", "choices": {"a": "here", "b": "there"}},
    ),
    "strategyqa": (
        {"qid": "s1", "term": "t", "description": "d", "question": "Is it?", "answer": True, "facts": "It is so"},
        {"id": "s1", "question": "Is it?", "answer": "yes", "rationale": "It is so."},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_hub_rows_become_questions_through_datasets(name, tmp_path_factory, monkeypatch):
    """A local folder in the hub's layout stands where the hub is; `datasets` reads both in the same way."""
    cache, folder = (
        tmp_path_factory.mktemp("cache"),
        tmp_path_factory.mktemp("hub"),
    )  # `datasets` would read a "test" in the path as the split
    row, expected = HUB_ROWS[name]
    question = "Question" if name == "svamp" else "question"
    other = {**row, question: "Something else entirely?", "id": "o", "ID": "o", "qid": "o"}
    held_out = {**row, question: "Held out and unlike the others?", "id": "h", "ID": "h", "qid": "h"}
    for split, rows in (("train", [row, other]), (SETS[name].test, [held_out])):
        kept = [{key: item[key] for key in row} for item in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in kept))
    monkeypatch.delenv("TAILOR_RAY_DATA", raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setitem(SETS, name, replace(SETS[name], dataset=str(folder), subset=None))
    task = load_task(TaskConfig(name=name), 1)
    questions = {q.text: q for q in [*task.train, *task.validation]}
    got = questions[expected["question"]]
    assert (got.id, got.answer, got.rationale) == (expected["id"], expected["answer"], expected.get("rationale"))
    assert got.choice_texts() == expected.get("choices", {})
    assert [q.text.endswith("Held out and unlike the others?") for q in task.test] == [True]


@pytest.mark.parametrize("name", NAMES)
def test_a_hub_set_with_other_columns_is_named_by_row(name, tmp_path_factory, monkeypatch):
    cache, folder = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("hub")
    for split in ("train", SETS[name].test):
        (folder / f"{split}.jsonl").write_text('{"prompt": "Two and two?", "solution": "4"}\n')
    monkeypatch.delenv("TAILOR_RAY_DATA", raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setitem(SETS, name, replace(SETS[name], dataset=str(folder), subset=None))
    with pytest.raises(DataError, match=r"line 1: there is no column '\w+', but prompt, solution"):
        load_task(TaskConfig(name=name), 1)


def test_an_unreachable_hub_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.delenv("TAILOR_RAY_DATA", raising=False)
    monkeypatch.setitem(SETS, "gsm8k", replace(SETS["gsm8k"], dataset=str(tmp_path / "nowhere"), subset=None))
    with pytest.raises(DataError, match=r"from the hub[\s\S]*task\.path"):
        load_task(TaskConfig(name="gsm8k"), 1)
