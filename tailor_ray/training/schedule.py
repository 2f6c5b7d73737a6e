"""The learning rate of each step, as a pure function: nothing to checkpoint, nothing to drift."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig


def learning_rate(step: int, steps: int, config: TrainingConfig, round: int) -> float:
    """Of step 0 … steps-1 in round 1, 2, …: linear warm-up, then constant, linear or cosine.

    A warm-up longer than a tenth of the round is shortened to that, or short rounds would never reach the peak.
    """
    peak = config.learning_rate * config.round_decay ** max(0, round - 1)
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    floor = config.final_learning_rate
    if config.schedule == "linear":
        return peak * (floor + (1 - floor) * (1 - done))
    if config.schedule == "cosine":
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
    return peak
