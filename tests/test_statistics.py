"""Hand-computed and published values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.statistics import (
    accuracy,
    binomial_p_value,
    bootstrap_interval,
    t_interval,
    wilson_interval,
)


def test_wilson_matches_published_values():
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for correct, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(pair):
    correct, total = pair
    low, high = wilson_interval(correct, total)
    assert 0.0 <= low <= correct / total <= high <= 1.0
    mirrored = wilson_interval(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_nothing_asked_says_nothing():
    assert accuracy(0, 0) == {"correct": 0, "total": 0, "accuracy": 0.0, "ci95": [0.0, 1.0]}


@pytest.mark.parametrize(("correct", "total"), [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError, match="must lie between"):
        wilson_interval(correct, total)


def test_paired_counts_by_hand():
    assert binomial_p_value(1, 6) == pytest.approx(14 / 64)  # 1 lost, 5 gained: 2 * (C(6,0) + C(6,1)) / 2**6
    assert binomial_p_value(0, 0) == 1.0


def test_binomial_test_of_many_trials_stays_finite():
    assert binomial_p_value(50_000, 100_000) == 1.0
    assert 0 < binomial_p_value(49_500, 100_000) < 0.01
    assert not math.isnan(binomial_p_value(0, 5_000))


@pytest.mark.parametrize(
    ("count", "quantile"),
    [(2, 12.7062), (3, 4.3027), (4, 3.1824), (5, 2.7764), (8, 2.3646), (9, 2.3060), (16, 2.1314), (31, 2.0423)],
)
def test_t_intervals_have_the_published_quantiles(count, quantile):
    differences = [0.0] * (count - 1) + [1.0]  # mean 1/n, variance (n - 1) / n / (n - 1) = 1/n
    low, high = t_interval(differences)
    assert (low + high) / 2 == pytest.approx(1 / count)
    assert (high - low) / 2 == pytest.approx(quantile / count, rel=1e-4)


def test_a_bootstrap_by_hand():
    low, high = bootstrap_interval([0.0, 1.0])  # means 0, 1/2 and 1 in a quarter, a half and a quarter of the draws
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([0.02] * 8) == pytest.approx((0.02, 0.02))
    gains = [0.01, 0.03, 0.02, 0.00, 0.04, 0.02, 0.01, 0.03]
    low, high = bootstrap_interval(gains)
    assert t_interval(gains)[0] < low < sum(gains) / 8 < high < t_interval(gains)[1]
    assert bootstrap_interval(gains) == (low, high)


def test_one_difference_says_nothing():
    assert t_interval([0.5]) == bootstrap_interval([0.5]) == (-math.inf, math.inf)
