"""Kernels with structure, at the cost of one pass over the points; no matrix is ever formed.

On a sorted line exp(-beta |x_i - x_j|) is the kernel of a Markov process: a point reaches another only through those
between.  Products with K, solutions of (K + shift) u = b and the flow exp(-K t) v then cost O(N), as a Kalman filter
does.  On all 2^b strings a kernel of the Hamming distance is diagonal in the Walsh functions, at a cost of O(b 2^b).
K is not divided by N here: where the loss is a mean over the points, t is eta * epochs / N.

[1] J. A. C. Weideman, Optimizing Talbot's contours for the inversion of the Laplace transform, SIAM J. Numer. Anal. 44
    (2006) 2342.
[2] D. Foreman-Mackey et al., Fast and scalable Gaussian process modeling with applications to astronomical time
    series, Astron. J. 154 (2017) 220: the factorisation behind `line_solve`.
"""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kbe_check import numbers, positive, tensors
from kbe_check import require as _require


def _gaps(x: Tensor, v: Tensor, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta times the gap before each point, infinite before the first, r = exp(-beta gap), and v as rows of N."""
    tensors(x=x, v=v)
    positive(beta=beta)
    _require(x.ndim == 1 and len(x) >= 1, f"x must have shape (N,) with N >= 1, got {tuple(x.shape)}")
    _require(v.shape[-1:] == x.shape, f"v must have shape (..., N) with N = {len(x)} points, got {tuple(v.shape)}")
    gap = np.diff(x.double().numpy(), prepend=-np.inf)
    _require(bool((gap >= 0).all()), "x must be sorted in ascending order")
    gap *= beta
    return gap, np.exp(-gap), v.double().reshape(-1, len(x)).numpy()


@njit(cache=True)
def _product(r, v):
    out = np.empty_like(v)
    for row in range(len(v)):
        carried = 0.0
        for i in range(len(r)):  # everything to the left, and the point itself
            carried = r[i] * carried + v[row, i]
            out[row, i] = carried
        carried = 0.0
        for i in range(len(r) - 2, -1, -1):  # everything to the right
            carried = r[i + 1] * (carried + v[row, i + 1])
            out[row, i] += carried
    return out


@njit(cache=True)
def _solve(r, q, shift, b):
    # K + shift = L D L' with D_i = P_i + shift and L_ij = gain_j exp(-beta (x_i - x_j)) below the diagonal of 1 [2];
    # P_i, the variance at point i given noisy values of all points before, is a sum of terms of one sign
    d, gain, out = np.empty(len(r), b.dtype), np.empty(len(r), b.dtype), np.empty_like(b)
    for i in range(len(r)):
        p = q[i] + r[i] ** 2 * (gain[i - 1] * shift if i else 0 * shift)
        d[i] = p + shift
        gain[i] = p / d[i]
    for row in range(len(b)):
        carried = 0 * b[row, 0]
        for i in range(len(r)):
            out[row, i] = b[row, i] - carried
            if i + 1 < len(r):
                carried = r[i + 1] * (carried + gain[i] * out[row, i])
        carried = 0 * b[row, 0]
        for i in range(len(r) - 1, -1, -1):
            out[row, i] = out[row, i] / d[i] - gain[i] * carried
            carried = r[i] * (carried + out[row, i])
    return out


def line_product(x: Tensor, v: Tensor, beta: float = 1.0) -> Tensor:
    """sum_j exp(-beta |x_i - x_j|) v_j in O(N), for sorted points x (N,), equal ones allowed, and v (..., N).

    Raises:
        ValueError: for points that are not sorted, shapes that do not match, NaN or inf, or beta not positive.
    """
    _, r, rows = _gaps(x, v, beta)
    return torch.from_numpy(_product(r, rows)).reshape(v.shape)


def line_average(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """The local average of eq. 20 with inverse length alpha in O(N): `kbe_lib.local_average` on a sorted line."""
    _, r, rows = _gaps(x, y, alpha)
    return torch.from_numpy(_product(r, rows) / _product(r, np.ones((1, len(x))))).reshape(y.shape)


def line_solve(x: Tensor, b: Tensor, shift: float = 0.0, beta: float = 1.0) -> Tensor:
    """The u with (K + shift I) u = b in O(N): ridge regression with the penalty `shift`; with 0, interpolation.

    Raises:
        ValueError: as `line_product`, or for a negative shift, or equal points at shift 0.
    """
    gap, r, rows = _gaps(x, b, beta)
    q = -np.expm1(-2 * gap)
    numbers(shift=shift)
    _require(shift >= 0, f"shift must not be negative, got {shift}")
    _require(shift > 0 or bool((q > 0).all()), "x must not hold equal points at shift 0, K is singular there")
    return torch.from_numpy(_solve(r, q, float(shift), rows)).reshape(b.shape)


def line_flow(x: Tensor, v: Tensor, t: float, beta: float = 1.0) -> Tensor:
    """exp(-K t) v in O(N) whatever the time: what is left at time t of an error v.

    exp(-K t) is the integral of e^z (z + K t)^-1 dz / 2 pi i around the negative axis; 24 points on the contour of [1]
    are 12 complex solutions and their conjugates, with an error of about 1e-13 of the norm of v.

    Raises:
        ValueError: as `line_product`, or for a negative time.
    """
    gap, r, rows = _gaps(x, v, beta)
    q = -np.expm1(-2 * gap)
    numbers(t=t)
    _require(t >= 0, f"t must not be negative, got {t}")
    total = rows if t == 0 else np.zeros_like(rows)
    for theta in math.pi * np.arange(1, 24, 2) / 24 if t > 0 else ():
        angle = 0.6407 * theta
        z = 24 * (0.5017 * theta / math.tan(angle) - 0.6122 + 0.2645j * theta)
        slope = 0.5017 / math.tan(angle) - 0.5017 * angle / math.sin(angle) ** 2 + 0.2645j  # dz/dtheta / 24
        total += (2 * np.exp(z) * slope / 1j / t * _solve(r, q, z / t, rows.astype(complex))).real
    return torch.from_numpy(total).reshape(v.shape)


def walsh_transform(v: Tensor) -> Tensor:
    """sum_x (-1)^(s.x) v(x) for all strings s, (..., 2^b), strings in the order of `all_inputs`; twice gives 2^b v.

    Raises:
        ValueError: if the last dimension is not a power of two.
    """
    tensors(v=v)
    size, width = v.shape[-1] if v.ndim else 0, 1
    _require(size >= 1 and size & (size - 1) == 0, f"v must have 2^b values in its last dimension, got {size}")
    while width < size:
        pairs = v.reshape(*v.shape[:-1], -1, 2, width)
        v = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).flatten(-3)
        width *= 2
    return v


def cube_product(levels: Tensor, v: Tensor) -> Tensor:
    """K v, (..., 2^b), for the kernel with the eigenvalue levels[k] on every Walsh function of degree k, (b + 1,).

    `kbe_lib.hamming_kernel_eigenvalues` gives the levels of a kernel of the Hamming distance.  With exp(-levels t) in
    their place this is the flow exp(-K t) v, with 1 / levels the solution u of K u = v.

    Raises:
        ValueError: if the numbers of levels and strings do not belong to one b.
    """
    tensors(levels=levels, v=v)
    _require(levels.ndim == 1, f"levels must have shape (b + 1,), got {tuple(levels.shape)}")
    bits = len(levels) - 1
    fits = bits >= 1 and v.shape[-1:] == (2**bits,)
    _require(fits, f"v must have 2^b values for b + 1 = {len(levels)} levels, got shape {tuple(v.shape)}")
    degree = torch.zeros(1, dtype=torch.long)
    for _ in range(bits):
        degree = torch.cat([degree, degree + 1])  # a 0 in front leaves the number of ones, a 1 adds to it
    return walsh_transform(levels[degree] * walsh_transform(v)) / 2**bits
