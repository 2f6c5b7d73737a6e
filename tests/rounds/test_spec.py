"""The plan of a run: which stages, on what they depend, and which settings make them new."""

import pytest

from tailor_ray.config import load_config
from tailor_ray.config.run import parse_config
from tailor_ray.layout import QUESTIONS, StageId, student_after
from tailor_ray.rounds.spec import changed_settings, stages_of


def digests(round_, *overrides):
    return {spec.id.name: spec.digest() for spec in stages_of(load_config(None, overrides), round_)}


def test_round_zero_prepares_and_scores_and_later_rounds_teach():
    assert [spec.id.name for spec in stages_of(load_config(None), 0)] == ["questions", "student", "evaluate"]
    assert [spec.id.name for spec in stages_of(load_config(None), 2)] == [
        "exam",
        "teach",
        "examples",
        "train",
        "evaluate",
    ]
    assert StageId(2, "train").path == "rounds/02/train"


def test_each_stage_reads_only_stages_that_came_before():
    done = set()
    for number in range(4):
        for spec in stages_of(load_config(None), number):
            assert set(spec.after) <= done, spec.id
            done.add(spec.id)


def test_training_reads_every_lesson_so_far_and_the_last_student():
    examples, train = (spec for spec in stages_of(load_config(None), 3) if spec.id.name in ("examples", "train"))
    assert {*(StageId(number, "teach") for number in (1, 2, 3)), StageId(3, "exam"), QUESTIONS} <= set(examples.after)
    assert {StageId(3, "examples"), StageId(2, "train")} <= set(train.after)
    assert student_after(0) == StageId(0, "student")


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("exam.samples=9", {"exam"}),
        ("teacher.model=other", {"teach"}),
        ("training.epochs=1", {"train"}),
        ("training.max_negatives=1", {"examples"}),
        ("training.triplet_weight=0", {"examples", "train"}),
        ("training.triplet_weight=0.1", {"train"}),
        ("evaluation.max_new_tokens=99", {"evaluate"}),
        ("seed=1", {"exam", "teach", "examples", "train", "evaluate"}),
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
    before, after = digests(2), digests(2, "training.feedback=false")
    assert {name for name in before if before[name] != after[name]} == {"teach", "examples"}


def test_every_setting_hashes_the_same_after_a_way_through_yaml():
    """A submitted run is the same run: an int that stands for a float in a default must not look changed."""
    import yaml

    config = load_config(None)
    again = parse_config(yaml.safe_load(config.to_yaml()), "again")
    assert again.results() == config.results()
    assert changed_settings(config.results(), again.results()) == []
    assert [spec.digest() for spec in stages_of(again, 2)] == [spec.digest() for spec in stages_of(config, 2)]


def test_changed_settings_name_old_and_new():
    assert changed_settings({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "d": 3, "e": 4}) == [
        "a.c: 2 → 5",
        "e: None → 4",
    ]
