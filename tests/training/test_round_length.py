"""How long a round trains: passes over its examples, or a number of steps whatever their number."""

import numpy as np
import pytest

from tailor_ray.training.batches import Schedule


@pytest.mark.parametrize(
    ("examples", "epochs", "steps", "expected"),
    [
        (100, 3, None, 21),  # 100 / 16 rounds up to 7 batches a pass
        (100, 0.5, None, 4),
        (8, 0.01, None, 1),  # at least one
        (100, 3, 200, 200),
        (1000, 3, 200, 200),
    ],
)
def test_a_number_of_steps_goes_before_passes(examples: int, epochs: float, steps: int | None, expected: int):
    schedule = Schedule(np.arange(examples, dtype=np.int32), 16, epochs, seed=1, steps=steps)
    assert schedule.steps == expected
    assert schedule.batch(expected - 1), "the last step has a batch, in a later pass if need be"
