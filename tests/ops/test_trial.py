"""One question and one lesson, shown as text: without engines; `integration/test_real_student.py` has one."""

from dataclasses import replace

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.observe.advice import about_settings
from tailor_ray.ops import doctor, trial
from tailor_ray.records import Attempt, Question, Verdict

QUESTION = Question("q", "Tom has 14 pens and gives 5 of them to Ann. How many pens does Tom have left?", "9")


def config(tmp_path, **settings):
    given = {"name": "try", "storage": str(tmp_path / "runs"), "teacher": {"teachers": [{"base_url": "mock"}]}}
    return RunConfig(**{**given, **settings})


def test_the_tiny_student_is_not_there_yet_to_be_asked(tmp_path):
    (line,) = trial.student(config(tmp_path))
    assert (line.topic, line.todo) == ("student", None)


def test_a_student_that_cannot_be_found_says_which_setting(tmp_path):
    *_, line = trial.student(config(tmp_path, student={"model": str(tmp_path / "nowhere"), "prompt_style": "chat"}))
    assert "student.model" in line.found
    assert str(line).startswith("FAIL")


@pytest.mark.parametrize("verdict", [Verdict.WRONG, Verdict.TRUNCATED])
def test_a_lesson_shows_what_the_teacher_reads_and_writes_and_what_is_learnt(tmp_path, verdict):
    attempt = Attempt("q", 0, "14 + 5 = 19\nAnswer: 19", "stop", "19", verdict, 1, 9, 9)
    said = {line.topic: line for line in trial.lesson(config(tmp_path), trial.Tried(QUESTION, attempt))}
    assert all(line.todo is None for line in said.values())
    assert f"     | {QUESTION.text}" in said["teacher is asked"].found
    assert ("14 + 5 = 19" in said["teacher is asked"].found) is (verdict is Verdict.WRONG)  # a mistake is shown
    assert "<rationale>" in said["teacher writes"].found
    assert said["student is to learn"].found.endswith("     | Answer: 9")


def test_where_no_feedback_is_wanted_a_mistake_leads_to_a_rationale(tmp_path):
    attempt = Attempt("q", 0, "14 + 5 = 19\nAnswer: 19", "stop", "19", Verdict.WRONG, 1, 9, 9)
    said = {line.topic: line for line in trial.lesson(config(tmp_path, method="plain"), trial.Tried(QUESTION, attempt))}
    assert "14 + 5 = 19" not in said["teacher is asked"].found
    assert said["student is to learn"].found.endswith("     | Answer: 9")


def test_a_lesson_that_would_be_refused_says_why(tmp_path):
    odd = config(tmp_path, teacher={"teachers": [{"base_url": "mock"}], "mock": {"wrong_share": 1.0}})
    *_, line = trial.lesson(odd, trial.Tried(QUESTION, replace(ATTEMPT, verdict=Verdict.TRUNCATED)))
    assert "refused as wrong_answer" in line.found
    assert line.todo


ATTEMPT = Attempt("q", 0, "", "length", None, Verdict.TRUNCATED, 1, 9, 9)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training": {"learning_rate": 2e-3}}, "training.learning_rate=0.002 is far above"),
        ({"student": {"model": "Qwen/Qwen3-0.6B-Instruct"}}, "student.prompt_style=plain"),
        ({"student": {"model": "x/y", "max_model_len": 300}}, "evaluation.max_new_tokens=256 leaves under 64"),
    ],
)
def test_a_setting_that_is_far_off_for_a_pretrained_student_is_said(tmp_path, settings, said):
    student = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "prompt_style": "chat", **settings.pop("student", {})}
    if "Qwen" in student["model"]:
        student["prompt_style"] = "plain"
    (text,) = about_settings(config(tmp_path, student=student, **settings))
    assert said in text
    assert [line.found for line in doctor.settings(config(tmp_path, student=student, **settings))] == [text]


def test_usual_settings_and_the_tiny_student_say_nothing(tmp_path):
    assert about_settings(config(tmp_path, training={"learning_rate": 2e-3})) == []
    lora = {"learning_rate": 5e-4, "lora": {}}
    assert about_settings(config(tmp_path, student={"model": "x/y"}, training=lora)) == []
