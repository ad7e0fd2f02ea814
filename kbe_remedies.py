"""What `kbe_lib.train` can do differently against a breakdown, and the random numbers that this takes."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kbe_check import instances, integers, numbers
from kbe_check import require as _require


class Remedy(NamedTuple):
    """What `train` does differently; the default changes nothing.  All of it acts on each network on its own.

    Likelihoods, readouts and floors are not in this list: they are settings of `loss` and `readout`.
    """

    clip: float = math.inf  # largest norm of the gradient of the loss, over all parameters of a network
    sigma_lr: float = 1.0  #  learning rate of sigma's head in units of lr
    sigma_decay: float = 0.0  # weight decay of sigma's head: (sigma_decay / 2) |w|^2 in the loss
    sigma_to_trunk: bool = True  # False: the gradients of sigma and nu do not reach the trunk
    adam: bool = False  #     Adam [Kingma & Ba 2015] with its usual constants in place of gradient descent
    held_out: float = 0.0  #  share of the points, the last ones, that sigma learns from; mu learns from the others
    label_noise: float = 0.0  # probability that a label counts as its opposite, 1 - y, drawn anew in every epoch
    dropout: float = 0.0  #   probability that an output of the trunk is 0, drawn anew for every epoch and point; the
    #                         others are divided by 1 - dropout.  Recorded outputs are those without dropout
    seed: int = 0  #          of label noise and dropout

    def n_held_out(self, n_points: int) -> int:
        """The number of points that only sigma learns from."""
        return round(self.held_out * n_points)

    def check(self, n_points: int, with_sigma: bool) -> None:
        """Raise ValueError for what lies outside its range or does not fit the data or the heads."""
        instances(float | int, clip=self.clip)
        instances(bool, sigma_to_trunk=self.sigma_to_trunk, adam=self.adam)
        names = ("sigma_lr", "sigma_decay", "held_out", "label_noise", "dropout")
        numbers(**{name: getattr(self, name) for name in names})
        integers(0, seed=self.seed)
        _require(self.clip > 0, f"clip must be positive, got {self.clip}")
        for name in ("sigma_lr", "sigma_decay"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must be finite and not negative, got {value}")
        for name in ("held_out", "label_noise", "dropout"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} must be at least 0 and below 1, got {value}")
        _require(self.seed < 2**63, f"seed must be between 0 and 2^63, got {self.seed}")
        if self.held_out > 0:
            rest = n_points - self.n_held_out(n_points)
            _require(with_sigma, "held_out needs networks with a sigma head")
            _require(0 < rest < n_points, f"held_out must leave points on both sides, {rest} of {n_points} are mu's")


PLAIN = Remedy()


# Random numbers depend on (seed, network, epoch, place) and on nothing else, so that engines, chunks and threads draw
# the same ones.
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


def scramble(key, counter):
    """A 64-bit hash of two 64-bit integers: output number `counter` of SplitMix64 [Steele, Lea & Flood 2014]."""
    z = key + (counter + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


def uniform(seed: int, networks: Tensor, epoch: int, n_places: int) -> Tensor:
    """Random numbers in [0, 1), (M, n_places), for the networks with these indices (M,) in one epoch."""
    key = scramble(np.array([[seed]], np.uint64), networks.numpy().astype(np.uint64)[:, None])
    key = scramble(key, np.array([[epoch]], np.uint64))
    bits = scramble(key, np.arange(n_places, dtype=np.uint64)[None])
    return torch.from_numpy((bits >> _11) * 2.0**-53)
