"""The intervals that the book states, defined once: how sure a fraction or any other statistic is.

What varies is always the network together with its data set and its initial parameters.  Points share a network and
are not independent; they are never drawn again on their own.
"""

from collections.abc import Callable

import torch
from scipy.stats import binomtest
from torch import Tensor

from kbe_check import integers, numbers, require, tensors


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
    statistic: Callable[..., float], *samples: Tensor, confidence: float = 0.95, resamples: int = 999, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic with its percentile bootstrap interval: (estimate, low, high).

    What is drawn again is the first axis of each sample: networks, each with its data set.  Never points, which share a
    network and are not independent.

    Args:
        statistic: takes the samples and returns a number; infinite entries stand for failures that did not come.
        samples: (M, ...) each; several samples are drawn again independently of each other.

    Raises:
        ValueError: if there is no sample, or one has fewer than two networks, or a number is out of its range.
    """
    if not callable(statistic):
        raise TypeError(f"statistic must be a function, got {statistic!r}")
    integers(resamples=resamples)
    integers(0, seed=seed)
    _check_confidence(confidence)
    require(len(samples) > 0, "samples must not be empty")
    for sample in samples:
        tensors(finite=False, floating=False, samples=sample)
        require(sample.ndim >= 1, "samples must have an axis of networks, got a single number")
    sizes = [len(sample) for sample in samples]
    require(min(sizes) >= 2, f"samples must have at least 2 networks each, got {sizes}")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.tensor(
        [
            float(statistic(*(v[torch.randint(len(v), (len(v),), generator=generator)] for v in samples)))
            for _ in range(resamples)
        ],
        dtype=torch.float64,
    )
    tail = (1 - confidence) / 2
    low, high = draws.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), interpolation="nearest").tolist()
    return float(statistic(*samples)), low, high
