"""Parts are sized by the work, from the settings alone."""

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.student.exam import enough_to_know, questions_per_part


def config(engines="auto", samples=4, tokens=256, shard="auto"):
    return RunConfig(
        student={"engines": engines},
        exam={"samples": samples, "max_new_tokens": tokens, "shard_questions": shard},
        evaluation={"max_new_tokens": tokens},
    )


@pytest.mark.parametrize(
    ("settings", "questions", "size"),
    [
        ({}, 200, 13),  # the exam that was one shard of 256: 16 parts now
        ({}, 7473, 64),  # 2 engines of 32,768 tokens, 4 · 256 a question
        ({"engines": 8, "tokens": 128}, 1_000_000, 512),
        ({"engines": 64, "samples": 1, "tokens": 64}, 1_000_000, 1024),
        ({"samples": 256, "tokens": 2048}, 7473, 1),
        ({}, 20, 8),
        ({"shard": 256}, 200, 256),  # an explicit number is kept
        ({"shard": 3}, 1_000_000, 3),
    ],
)
def test_the_size_of_a_training_part(settings, questions, size):
    assert questions_per_part(config(**settings), "train", questions) == size


def test_an_evaluation_has_one_greedy_sample_and_few_parts():
    """150 validation questions in 16 parts started seven processes, 14 s on two cores for 1 s of answers."""
    assert questions_per_part(config(), "test", 100_000) == 256
    assert questions_per_part(config(), "validation", 150) == 150
    assert questions_per_part(config(), "validation", 300) == 150


@pytest.mark.parametrize("settings", [{}, {"engines": 8}, {"samples": 1, "tokens": 4096}])
def test_more_questions_than_are_looked_at_change_nothing(settings):
    known = enough_to_know(config(**settings), "train")
    sizes = {questions_per_part(config(**settings), "train", known + more) for more in (0, 1, 10**6)}
    assert len(sizes) == 1
