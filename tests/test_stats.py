"""Intervals: exact small cases, and how often they cover the truth."""

import itertools
import math

import numpy as np
import pytest
import torch

import kbe_stats as stats

# How many of 400 simulated intervals at 95 % may miss: a binomial count with the true coverage exceeds 35 with
# probability 6e-4 at 95 % and 0.03 at 93.5 %; an interval with a coverage of 88 % is found out with probability 0.98.
# The seeds are fixed, so the test says the same every time.
REPEATS, MISSES = 400, 35


def misses(intervals, truth):
    return sum(not low <= truth <= high for _, low, high in intervals)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fraction_is_wilson_s():
    found = stats.fraction(8, 10)
    z, p, n = 1.959963984540054, 0.8, 10
    centre, half = p + z**2 / 2 / n, z * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)
    expected = (p, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))
    assert found == pytest.approx(expected, rel=1e-12)


def test_fractions_cover():
    successes = np.random.default_rng(1).binomial(200, 0.9, REPEATS)
    assert misses([stats.fraction(int(k), 200) for k in successes], 0.9) <= MISSES


def test_medians_cover():
    samples = torch.exp(normal(REPEATS, 100, seed=2))
    found = [stats.estimate(lambda v: v.median(1).values, s, vectorized=True, seed=i) for i, s in enumerate(samples)]
    assert misses(found, 1.0) <= MISSES


def test_differences_of_paired_arms_cover_and_are_narrow():
    common = 5 * normal(REPEATS, 100, seed=3)
    one, other = common + normal(REPEATS, 100, seed=4), common + normal(REPEATS, 100, seed=5)

    def difference(a, b):
        return a.mean(1) - b.mean(1)

    found = [
        stats.estimate(difference, a, b, paired=True, vectorized=True, seed=i)
        for i, (a, b) in enumerate(zip(one, other, strict=True))
    ]
    assert misses(found, 0.0) <= MISSES
    _, low, high = stats.estimate(difference, one[0], other[0], vectorized=True)
    assert high - low > 3 * (found[0][2] - found[0][1])  # as if the arms had networks of their own


def test_exponents_cover():
    x = (1, 2, 4, 8)
    samples = torch.exp(0.5 * normal(REPEATS, 4, 40, seed=6) + 1.5 * torch.tensor(x).log()[:, None])
    assert misses([stats.exponent(x, *s, seed=i) for i, s in enumerate(samples)], 1.5) <= MISSES


def test_the_exponent_of_an_exact_power_law():
    exact = [3 * torch.tensor([x**0.7] * 5, dtype=torch.float64) for x in (1, 3, 10)]
    assert stats.exponent((1, 3, 10), *exact) == pytest.approx((0.7, 0.7, 0.7), rel=1e-12)


def test_vectorized_or_not_paired_or_not_the_draws_are_the_same():
    a, b = normal(30, seed=7), normal(30, seed=8)
    for paired in (False, True):
        slow = stats.estimate(lambda a, b: a.mean() - b.mean(), a, b, paired=paired)
        fast = stats.estimate(lambda a, b: a.mean(1) - b.mean(1), a, b, paired=paired, vectorized=True)
        assert slow == pytest.approx(fast, rel=1e-12)


def test_a_statistic_of_several_numbers_has_an_interval_for_each():
    values = normal(50, 3, seed=9) + torch.tensor([0.0, 1, 2])
    found, low, high = stats.estimate(lambda v: v.mean(1), values, vectorized=True)
    assert found.shape == low.shape == high.shape == (3,)
    each, *_ = stats.estimate(lambda v: v.mean(0), values)
    torch.testing.assert_close(found, each)
    assert (low < found).all()
    assert (found < high).all()


def test_failures_that_did_not_come_are_kept():
    late = torch.tensor([1.0, 2, 3] + [torch.inf] * 4)
    assert stats.estimate(torch.median, late)[0] == torch.inf


def test_survival_counts_the_censored_as_at_risk():
    found = stats.survival(torch.tensor([10.0, 20, torch.inf, torch.inf]), end=50)
    assert found.epochs.tolist() == [10, 20, 50]
    assert found.share == pytest.approx([0.75, 0.5, 0.5])
    assert (found.low[:2] < found.share[:2]).all()
    assert (found.share[:2] < found.high[:2]).all()
    assert stats.survival(torch.tensor([torch.inf, torch.inf]), end=50).share.tolist() == [1.0]


def test_an_exponent_is_the_estimate_of_a_least_squares_slope():
    x = (1, 2, 5)
    samples = [k * torch.exp(normal(20 + k, seed=k)) for k in x]  # networks of their own, and not as many

    def slope(*values):
        return np.polyfit(np.log(x), [float(v.median().log()) for v in values], 1)[0]

    assert stats.exponent(x, *samples) == pytest.approx(stats.estimate(slope, *samples), rel=1e-9)


def test_the_ends_of_an_interval_are_draws():
    draws = itertools.count()  # the draws "find" 0 to 999, and the samples themselves 1000
    found = stats.estimate(lambda v: next(draws), torch.ones(2), resamples=1000)
    assert found == (1000, 25, 974)  # the nearest to 2.5 % and 97.5 % of the way from 0 to 999


def test_whole_numbers_are_samples_too():
    assert stats.estimate(lambda v: v.median(1).values, torch.arange(5), vectorized=True)[0] == 2


def test_the_band_of_a_survival():
    """Greenwood's variance of log S, carried over to log(-log S), written out for shares of 3/4 and 1/2."""
    found = stats.survival(torch.tensor([10.0, 20, torch.inf, torch.inf]), end=50, confidence=0.8)
    z, share, variance = 1.2815515655446004, np.array([3 / 4, 1 / 2]), np.array([1 / 12, 1 / 12 + 1 / 6])
    power = np.exp(z * np.sqrt(variance) / -np.log(share))
    assert found.low[:2] == pytest.approx(share**power, rel=1e-12)
    assert found.high[:2] == pytest.approx(share ** (1 / power), rel=1e-12)


def test_survival_up_to_its_end():
    assert stats.survival(torch.tensor([5.0, torch.inf]), end=5).share.tolist() == [0.5]
    assert stats.survival(torch.tensor([torch.inf, torch.inf]), end=0.5).share.tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.fraction(3, 0), "trials must be at least 1, got 0"),
        (lambda: stats.fraction(3, 2), "successes must be between 0 and 2, got 3"),
        (lambda: stats.estimate(torch.median), "samples must not be empty"),
        (lambda: stats.estimate(torch.median, torch.ones(1)), r"at least 2 networks each, got \[1\]"),
        (lambda: stats.estimate(max, torch.ones(2), torch.ones(3), paired=True), "paired samples must have the same"),
        (lambda: stats.estimate(lambda v: math.nan, torch.ones(3)), "it is NaN in 999 of 999"),
        (lambda: stats.estimate(lambda v: [math.nan, math.nan], torch.ones(3)), "it is NaN in 999 of 999"),
        (lambda: stats.exponent((1, 2), torch.ones(3)), "x must have one number per sample, got 2 for 1 samples"),
        (lambda: stats.exponent((0, 2), torch.ones(3), torch.ones(3)), "x must be positive, got 0"),
        (lambda: stats.exponent((1, 2), torch.ones(3), torch.full((3,), torch.inf)), "they are not in 999 draws"),
        (lambda: stats.survival(torch.ones(0), 5), "failed_at must not be empty"),
        (lambda: stats.survival(torch.zeros(1), 5), "failed_at must hold positive epochs, got NaN or one that is not"),
        (lambda: stats.survival(torch.tensor([9.0]), 5), "failed_at must not exceed end = 5, got 9"),
    ],
)
def test_what_cannot_be_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
