"""The learning rate by hand."""

import pytest

from tailor_ray.config.training import TrainingConfig
from tailor_ray.training.schedule import learning_rate


def rates(steps=100, round=1, **settings):
    config = TrainingConfig(learning_rate=1e-3, **settings)
    return [learning_rate(step, steps, config, round) for step in range(steps)]


def test_warm_up_then_constant():
    found = rates(warmup_steps=4)
    assert found[:5] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert set(found[4:]) == {1e-3}


def test_a_long_warm_up_is_cut_to_a_tenth():
    assert rates(steps=20, warmup_steps=100)[:3] == pytest.approx([0.5e-3, 1e-3, 1e-3])


def test_linear_and_cosine():
    linear = rates(warmup_steps=0, schedule="linear")
    assert (linear[0], linear[50]) == pytest.approx((1e-3, 0.5e-3))
    cosine = rates(warmup_steps=0, schedule="cosine", final_learning_rate=0.2)
    assert (cosine[0], cosine[50]) == pytest.approx((1e-3, 0.6e-3))
    assert cosine[99] == pytest.approx(0.2e-3, rel=1e-2)


def test_later_rounds_decay():
    assert rates(warmup_steps=0, round=3, round_decay=0.5)[0] == pytest.approx(0.25e-3)
