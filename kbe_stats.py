"""The intervals that the book states, defined once: how sure a fraction or any other statistic is.

What varies is always the network together with its data set and its initial parameters.  Points share a network and
are not independent; they are never drawn again on their own.  Arms that are compared share their networks and data
where they can, and the interval is that of the paired difference.

All intervals are at 95 % unless a chapter says otherwise: a true value lies outside of one interval in twenty.  Over
the ledger's claims together `kbe_ledger.chance_of_another_verdict` adds up what that makes likely.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import CensoredData, binomtest, ecdf
from torch import Tensor

from kbe_check import instances, integers, numbers, positive, require, tensors


def _check_confidence(confidence: float) -> None:
    numbers(confidence=confidence)
    require(0 < confidence < 1, f"confidence must lie between 0 and 1, got {confidence}")


def fraction(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """A fraction with its Wilson interval: (estimate, low, high).

    Raises:
        ValueError: if trials is below 1, successes not between 0 and trials, or confidence not inside (0, 1).
        TypeError: if a count is not an integer.
    """
    integers(trials=trials)
    integers(0, trials, successes=successes)
    _check_confidence(confidence)
    interval = binomtest(int(successes), int(trials)).proportion_ci(confidence, method="wilson")
    return successes / trials, interval.low, interval.high


def estimate(
    statistic: Callable[..., float | Tensor],
    *samples: Tensor,
    paired: bool = False,
    vectorized: bool = False,
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
) -> tuple[float, float, float] | tuple[Tensor, Tensor, Tensor]:
    """A statistic with its percentile bootstrap interval: (estimate, low, high).

    What is drawn again is the first axis of each sample: networks, each with its data set.  Never points, which share a
    network and are not independent.

    Args:
        statistic: takes the samples and returns a number or a tensor of numbers, each of which gets its own interval;
            infinite entries stand for failures that did not come.
        samples: (M, ...) each.  Several samples are drawn again independently of each other, as sizes with networks of
            their own are; or together if `paired`, as arms that share their networks are: then the interval of a
            difference is that of the paired difference.
        vectorized: the statistic takes many draws at once, (R, M, ...) each, and returns (R, ...).  Much faster where
            a single call is slow: `lambda v: v.median(1).values` in place of `torch.median`.

    Returns:
        Numbers, or tensors of the statistic's shape.

    Raises:
        ValueError: if there is no sample, one has fewer than two networks, paired samples differ in their number, or
            the statistic is not a number in some draw.
    """
    if not callable(statistic):
        raise TypeError(f"statistic must be a function, got {statistic!r}")
    integers(resamples=resamples)
    integers(0, seed=seed)
    instances(bool, paired=paired, vectorized=vectorized)
    _check_confidence(confidence)
    require(len(samples) > 0, "samples must not be empty")
    for sample in samples:
        tensors(finite=False, floating=False, samples=sample)
        require(sample.ndim >= 1, "samples must have an axis of networks, got a single number")
    sizes = [len(sample) for sample in samples]
    require(min(sizes) >= 2, f"samples must have at least 2 networks each, got {sizes}")
    require(not paired or len(set(sizes)) == 1, f"paired samples must have the same networks, got {sizes} of them")
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(size, (resamples, size), generator=generator) for size in sizes[: 1 if paired else None]]
    drawn = drawn * len(samples) if paired else drawn

    def once(*values: Tensor) -> Tensor:
        return torch.as_tensor(statistic(*values), dtype=torch.float64)

    if vectorized:
        draws = once(*(sample[index] for sample, index in zip(samples, drawn, strict=True)))
        found = once(*(sample[None] for sample in samples))[0]
    else:
        one_by_one = zip(*drawn, strict=True)
        draws = torch.stack([once(*(v[i] for v, i in zip(samples, draw, strict=True))) for draw in one_by_one])
        found = once(*samples)
    undefined = int(draws.isnan().flatten(1).any(1).sum()) if draws.ndim > 1 else int(draws.isnan().sum())
    require(undefined == 0, f"statistic must be a number in every draw, it is NaN in {undefined} of {resamples}")
    tail = (1 - confidence) / 2
    low, high = draws.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0, interpolation="nearest")
    return (found, low, high) if found.ndim else (float(found), float(low), float(high))


def exponent(
    x: Sequence[float], *samples: Tensor, paired: bool = False, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """The p of a power law, median of sample k proportional to x[k]^p, with its interval: (estimate, low, high).

    Least squares in logarithms over the medians of the networks of each sample; what is drawn again is the networks of
    each x.  The interval says how sure the slope is, not whether a power law holds.

    Args:
        x: K positive numbers.
        samples: K times (M,), positive; infinite entries stand for failures that did not come.
        paired: as in `estimate`, where the networks are the same at every x.

    Raises:
        ValueError: as `estimate`, if x does not have one positive number per sample, or a median is infinite.
    """
    instances(Sequence, x=x)
    require(len(x) == len(samples) >= 2, f"x must have one number per sample, got {len(x)} for {len(samples)} samples")
    for value in x:
        positive(x=value)
    log_x = torch.tensor([float(value) for value in x], dtype=torch.float64).log()
    weight = (log_x - log_x.mean()) / (log_x - log_x.mean()).square().sum()

    def slope(*values: Tensor) -> Tensor:
        medians = torch.stack([v.median(1).values.double() for v in values], dim=-1)  # (R, K)
        bad = int((~(medians.log().isfinite())).any(-1).sum())
        require(bad == 0, f"medians must be positive and finite, they are not in {bad} draws; leave sizes out")
        return medians.log() @ weight

    return estimate(slope, *samples, paired=paired, vectorized=True, confidence=confidence, seed=seed)


class Survival(NamedTuple):
    """The share of networks that have not failed, by epoch, with a band at every epoch of its own."""

    epochs: np.ndarray  # (T,)  ascending, the epochs of failures and of the last look
    share: np.ndarray  # (T,)
    low: np.ndarray  # (T,)     NaN where the share is 0 or 1
    high: np.ndarray  # (T,)


def survival(failed_at: Tensor, end: float, confidence: float = 0.95) -> Survival:
    """Kaplan and Meier's estimate of the share of networks that have not failed, with its log-log band.

    Args:
        failed_at: (M,), the epoch of failure, infinite for networks that had not failed at `end` (censored there).

    Raises:
        ValueError: if failed_at is empty or not (M,), or has an epoch that is NaN, not positive or after the end.
    """
    tensors(finite=False, failed_at=failed_at)
    positive(end=end)
    _check_confidence(confidence)
    require(failed_at.ndim == 1, f"failed_at must have shape (M,), got {tuple(failed_at.shape)}")
    censored = failed_at.isposinf()
    known = failed_at[~censored]
    require(bool((known > 0).all()), "failed_at must hold positive epochs, got NaN or one that is not positive")
    last = float(known.max()) if len(known) else 0.0
    require(last <= end, f"failed_at must not exceed end = {end}, got {last:g}")
    estimated = ecdf(CensoredData(known.numpy(), right=np.full(int(censored.sum()), float(end)))).sf
    with warnings.catch_warnings():  # there is no band where the share is 0 or 1, and SciPy says so
        warnings.simplefilter("ignore", RuntimeWarning)
        band = estimated.confidence_interval(confidence, method="log-log")
    return Survival(estimated.quantiles, estimated.probabilities, band.low.probabilities, band.high.probabilities)
