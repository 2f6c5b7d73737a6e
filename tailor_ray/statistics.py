"""Counts and how sure they are.

There are Wilson intervals of shares, a test of paired counts, and intervals of two students' difference. In: plain
counts, or differences by seed. Out: plain numbers. Nothing here knows a file or a model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

Z_95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution: 2.5 % are left out on each side


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a share, (0.0, 1.0) when nothing was asked.

    Unlike the normal approximation it stays inside [0, 1] and keeps its width at 0 and at 100 %.
    Raises ValueError unless 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct={correct} must lie between 0 and total={total}")
    if total == 0:
        return (0.0, 1.0)
    share = correct / total
    center = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the exact bounds are 0 and 1; rounding must not leave them a hair off.
    low = 0.0 if correct == 0 else (center - spread) / scale
    high = 1.0 if correct == total else (center + spread) / scale
    return (low, high)


def accuracy(correct: int, total: int) -> dict[str, Any]:
    """How a score is written everywhere.

    Returns {"correct", "total", "accuracy", "ci95"}; the accuracy is 0.0 when `total` is 0.
    """
    low, high = wilson_interval(correct, total)
    return {"correct": correct, "total": total, "accuracy": correct / total if total else 0.0, "ci95": [low, high]}


def binomial_p_value(fewer: int, trials: int) -> float:
    """Two-sided exact test of a fair coin.

    Returns the chance that at most `fewer` of `trials` fall on one side, whichever it is; 1.0 without trials.
    """
    if trials == 0:
        return 1.0
    # Sums of logarithms: comb(100_000, k) alone overflows a float.
    log_half = trials * math.log(0.5)
    tail = math.fsum(
        math.exp(math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + log_half)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of paired differences, such as one gain a seed, by Student's t.

    It takes them for normal; (-inf, inf) for fewer than two. `bootstrap_interval` takes them for nothing.
    """
    count = len(differences)
    if count < 2:
        return (-math.inf, math.inf)
    mean = math.fsum(differences) / count
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in differences) / (count - 1))
    half = _t_quantile(count - 1) * deviation / math.sqrt(count)
    return (mean - half, mean + half)


def bootstrap_interval(differences: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """The middle 95 % of the means of resampled differences; the same for the same differences.

    Of few it is a bit narrow: with n it misses by about sqrt((n - 1) / n). (-inf, inf) for fewer than two.
    """
    count, rng = len(differences), random.Random(0)
    if count < 2:
        return (-math.inf, math.inf)
    means = sorted(math.fsum(rng.choices(differences, k=count)) / count for _ in range(draws))
    return (means[round(0.025 * (draws - 1))], means[round(0.975 * (draws - 1))])


def _t_quantile(freedom: int) -> float:
    """Where 2.5 % of Student's distribution lie above: by bisection of its closed form."""
    low, high = 0.0, 13.0  # 12.71 at one degree of freedom
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < 0.95 else (low, middle)
    return high


def _t_within(t: float, freedom: int) -> float:
    """The share of Student's distribution between -t and t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for number in range(odd + 1, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * number / (number + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
