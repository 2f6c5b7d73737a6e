"""The plan of a run: which stages, on what they depend, and which settings make them new."""

import pytest

from tailor_ray.config import load_config
from tailor_ray.rounds.spec import QUESTIONS, StageId, changed_settings, stages_of, student_after


def digests(round_, *overrides):
    return {spec.id.name: spec.digest() for spec in stages_of(load_config(None, overrides), round_)}


def test_round_zero_prepares_and_scores_and_later_rounds_teach():
    assert [spec.id.name for spec in stages_of(load_config(None), 0)] == ["questions", "student", "evaluate"]
    assert [spec.id.name for spec in stages_of(load_config(None), 2)] == ["exam", "teach", "train", "evaluate"]
    assert StageId(2, "train").folder == ("rounds", "02", "train")


def test_each_stage_reads_only_stages_that_came_before():
    done = set()
    for number in range(4):
        for spec in stages_of(load_config(None), number):
            assert set(spec.after) <= done, spec.id
            done.add(spec.id)


def test_training_reads_every_lesson_so_far_and_the_last_student():
    train = next(spec for spec in stages_of(load_config(None), 3) if spec.id.name == "train")
    assert {StageId(1, "teach"), StageId(2, "teach"), StageId(3, "teach"), StageId(2, "train"), QUESTIONS} <= set(
        train.after
    )
    assert student_after(0) == StageId(0, "student")


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("exam.samples=9", {"exam"}),
        ("teacher.model=other", {"teach"}),
        ("training.epochs=1", {"train"}),
        ("evaluation.max_new_tokens=99", {"evaluate"}),
        ("seed=1", {"exam", "teach", "train", "evaluate"}),
        ("teacher.actors=3", set()),
        ("storage=/elsewhere", set()),
        ("student.model=/another", set()),  # comes in by the hash of the student's own stage
    ],
)
def test_a_setting_makes_new_just_the_stages_that_it_changes(override, changed):
    before, after = digests(1), digests(1, override)
    assert {name for name in before if before[name] != after[name]} == changed


def test_leaving_feedback_out_makes_no_difference_before_there_is_any():
    assert digests(1) == digests(1, "training.feedback=false")
    assert digests(2)["train"] != digests(2, "training.feedback=false")["train"]


def test_changed_settings_name_old_and_new():
    assert changed_settings({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "d": 3, "e": 4}) == [
        "a.c: 2 → 5",
        "e: None → 4",
    ]
