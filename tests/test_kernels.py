import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import hadamard
from scipy.special import ive

import kbe_kernels as kernels
import kbe_lib as kbe

BETA = 3.0


@pytest.fixture
def line(generator):
    """40 random points on [0, 1], two right-hand sides, and the dense kernel."""
    x = torch.rand(40, dtype=torch.float64, generator=generator).sort().values
    v = torch.randn(2, 40, dtype=torch.float64, generator=generator)
    return x, v, kbe.exponential_kernel((x[:, None] - x).abs(), BETA)


def expm(kernel, t):
    rate, mode = torch.linalg.eigh(kernel)
    return mode @ torch.diag(torch.exp(-rate.clamp(min=0) * t)) @ mode.mT


def chebyshev_flow(product, v, t, largest):
    """exp(-K t) v by Chebyshev polynomials in K, whose eigenvalues lie between 0 and `largest`: another method.

    exp(-h (1 + s)) = sum_k c_k T_k(s) on -1 <= s <= 1, with c_k = 2 (-1)^k e^-h I_k(h), c_0 half of that; I_k(h)
    falls as exp(-k^2 / 2h) or faster.
    """
    half = largest * t / 2
    degree = np.arange(int(9 * math.sqrt(half)) + 25)
    coefficient = 2 * (-1.0) ** degree * ive(degree, half)
    before, now = v, product(v) * (2 / largest) - v
    total = coefficient[0] / 2 * before + coefficient[1] * now
    for c in coefficient[2:]:
        before, now = now, 2 * (product(now) * (2 / largest) - now) - before
        total = total + c * now
    return total


def test_line_against_dense(line):
    x, v, kernel = line
    # sums of 40 terms of order 1; the solution at shift 0 has the kernel's condition number of some 1e4
    torch.testing.assert_close(kernels.line_product(x, v, BETA), v @ kernel, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        kernels.line_solve(x, v, 0.0, BETA), torch.linalg.solve(kernel, v.T).T, rtol=1e-9, atol=1e-9
    )
    shifted = kernel + 0.3 * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(
        kernels.line_solve(x, v, 0.3, BETA), torch.linalg.solve(shifted, v.T).T, rtol=1e-11, atol=1e-12
    )
    y = v[0].abs()
    average = kbe.local_average((x[:, None] - x).abs(), y, 7.0)
    torch.testing.assert_close(kernels.line_average(x, y, 7.0), average, rtol=1e-13, atol=0)


@pytest.mark.parametrize("t", [1e-6, 0.1, 1.0, 30.0, 1e3, 1e6])
def test_line_flow_against_dense(line, t):
    x, v, kernel = line
    # 1e-13 of the contour times some cancellation; eigenvectors to 1e-13 in the dense form
    torch.testing.assert_close(kernels.line_flow(x, v, t, BETA), v @ expm(kernel, t), rtol=0, atol=1e-11)


def test_line_flow_against_chebyshev(generator):
    """100,000 points, from products with the kernel alone."""
    n, t = 100_000, 30.0
    x = torch.rand(n, dtype=torch.float64, generator=generator).sort().values
    v = torch.randn(n, dtype=torch.float64, generator=generator)
    other = chebyshev_flow(lambda u: kernels.line_product(x, u) / n, v, t, 1.0)  # row sums of K/n are below 1
    torch.testing.assert_close(kernels.line_flow(x, v, t / n), other, rtol=0, atol=1e-11)


def test_line_flow_against_integration(line):
    x, v, _ = line
    solution = solve_ivp(
        lambda _, u: -kernels.line_product(x, torch.from_numpy(u), BETA).numpy(), (0, 2), v[0], rtol=1e-11, atol=1e-12
    )
    left = torch.from_numpy(solution.y[:, -1])
    # the integrator's tolerance over some hundred steps
    torch.testing.assert_close(kernels.line_flow(x, v[0], 2.0, BETA), left, rtol=0, atol=1e-9)


def test_line_at_fifty_digits():
    """Points so close that the dense kernel is singular in double precision."""
    x = torch.tensor([0.0, 0.25, 0.25 + 2**-40, 0.7, 1.0], dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    with mpmath.workdps(50):
        points = [mpmath.mpf(float(p)) for p in x]
        kernel = mpmath.matrix([[mpmath.exp(-BETA * abs(a - b)) for a in points] for b in points])
        vector = mpmath.matrix([mpmath.mpf(float(value)) for value in v])
        product = [float(p) for p in kernel * vector]
        solution = [float(u) for u in mpmath.lu_solve(kernel, vector)]
        rate, mode = mpmath.eigsy(kernel)
        left = mode * mpmath.diag([mpmath.exp(-5 * value) for value in rate]) * mode.T * vector
        flow = [float(value) for value in left]
    assert kernels.line_product(x, v, BETA).tolist() == pytest.approx(product, rel=1e-15 * 8)
    # the labels differ over a gap of 1e-12: two entries are of order 1e11, and the others are rounded as they are
    assert kernels.line_solve(x, v, 0.0, BETA).tolist() == pytest.approx(solution, rel=0, abs=4e-16 * max(solution))
    assert kernels.line_flow(x, v, 5.0, BETA).tolist() == pytest.approx(flow, rel=0, abs=1e-12)


def test_cube_level_at_fifty_digits():
    with mpmath.workdps(50):
        s = mpmath.exp(mpmath.mpf(-1))
        degrees = range(21)
        exact = [(1 + s) ** (20 - k) * (1 - s) ** k for k in degrees]
        flow = mpmath.fsum(mpmath.binomial(20, k) * mpmath.exp(-exact[k] / 100) for k in degrees) / 2**20
    levels = torch.tensor([float(value) for value in exact], dtype=torch.float64)
    one = torch.zeros(2**20, dtype=torch.float64)
    one[123456] = 1.0
    left = kernels.cube_product(torch.exp(-levels / 100), one)
    assert float(left[123456]) == pytest.approx(float(flow), rel=1e-14 * 20)  # 20 additions in a row


@pytest.mark.parametrize("n_bits", [1, 3, 7])
def test_walsh_against_dense(n_bits, generator):
    v = torch.randn(2, 2**n_bits, dtype=torch.float64, generator=generator)
    matrix = torch.from_numpy(hadamard(2**n_bits)).double()
    for some in (v, v[0], v[None]):
        torch.testing.assert_close(kernels.walsh_transform(some), some @ matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(kernels.walsh_transform(kernels.walsh_transform(v)), 2**n_bits * v, rtol=0, atol=1e-11)
    of_distance = 0.6 ** torch.arange(n_bits + 1, dtype=torch.float64)
    kernel = of_distance[kbe.hamming(kbe.all_inputs(n_bits)).long()]
    levels, _ = kbe.hamming_kernel_eigenvalues(of_distance, n_bits)
    torch.testing.assert_close(kernels.cube_product(levels, v), v @ kernel, rtol=0, atol=1e-11)
    torch.testing.assert_close(kernels.cube_product(torch.exp(-levels), v), v @ expm(kernel, 1.0), rtol=0, atol=1e-11)
    torch.testing.assert_close(kernels.cube_product(1 / levels, v @ kernel), v, rtol=0, atol=1e-9)


def flows(line):
    """The flows (v, t) -> exp(-K t) v, and with c K in place of K."""
    x, v, _ = line
    levels = torch.tensor([2.0, 0.7, 0.1, 0.0], dtype=torch.float64)
    return [
        (v, lambda u, t, c=1.0: kernels.line_flow(x, u, c * t, BETA)),
        (v[:, :8], lambda u, t, c=1.0: kernels.cube_product(torch.exp(-c * levels * t), u)),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_flow_relations(line, which):
    v, flow = flows(line)[which]
    close = dict(rtol=0, atol=1e-11)  # 1e-13 of the contour, some operations
    torch.testing.assert_close(flow(v, 0.0), v, **close)
    torch.testing.assert_close(flow(flow(v, 0.7), 1.9), flow(v, 2.6), **close)
    torch.testing.assert_close(flow(v, 2.0, 5.0), flow(v, 10.0), **close)
    torch.testing.assert_close(flow(3 * v[0] - 2 * v[1], 1.3), 3 * flow(v[0], 1.3) - 2 * flow(v[1], 1.3), **close)
    u, w = v
    assert float(u @ flow(w, 1.0)) == pytest.approx(float(w @ flow(u, 1.0)), abs=1e-11)  # symmetric
    norms = [float(flow(u, t).norm()) for t in (0.0, 0.5, 1.0, 5.0, 50.0)]
    assert norms == sorted(norms, reverse=True)


def test_line_mirror_and_scale(line):
    """Order, origin and unit of length do not matter: the permutations under which points stay sorted."""
    x, v, _ = line
    for of in (kernels.line_product, kernels.line_flow, kernels.line_solve):
        more = () if of is kernels.line_product else (0.5,)
        plain = of(x, v, *more, BETA)
        torch.testing.assert_close(of(-x.flip(0), v.flip(-1), *more, BETA).flip(-1), plain, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(of(5 + 10 * x, v, *more, BETA / 10), plain, rtol=1e-10, atol=1e-11)


def test_cube_symmetries(generator):
    """Renaming bits or flipping one everywhere maps the kernel to itself."""
    levels = torch.rand(6, dtype=torch.float64, generator=generator)
    v = torch.randn((2,) * 5, dtype=torch.float64, generator=generator)

    def product(u):
        return kernels.cube_product(levels, u.flatten()).reshape(u.shape)

    close = dict(rtol=0, atol=1e-13)
    torch.testing.assert_close(product(v.permute(3, 0, 4, 1, 2)), product(v).permute(3, 0, 4, 1, 2), **close)
    torch.testing.assert_close(product(v.flip(2)), product(v).flip(2), **close)


def test_equal_points_share_what_they_learn():
    x = torch.tensor([0.0, 0.5, 0.5, 2.0], dtype=torch.float64)
    v = torch.tensor([1.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    difference = torch.tensor([0.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    assert kernels.line_product(x, difference).abs().max() < 1e-15
    torch.testing.assert_close(kernels.line_flow(x, difference, 9.0), difference, rtol=0, atol=1e-12)
    kernel = kbe.exponential_kernel((x[:, None] - x).abs()) + 0.1 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(kernels.line_solve(x, v, 0.1), torch.linalg.solve(kernel, v), rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_solve_undoes_product(places, shift, seed):
    x = torch.tensor(sorted(places), dtype=torch.float64)
    v = torch.from_numpy(np.random.default_rng(seed).standard_normal(len(x)))
    image = kernels.line_product(x, v) + shift * v
    # condition number at most (30 + shift) / shift = 3e4
    torch.testing.assert_close(kernels.line_solve(x, image, shift), v, rtol=0, atol=1e-9)


def test_a_million_points_and_strings():
    """Sizes at which no dense form exists: the flow of a mode that is known exactly, and a product's row sums."""
    n = 1_000_000
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    omega, rate = kbe.exponential_kernel_modes(3)
    mode = torch.cos(omega[2] * (x - 0.5))
    left = kernels.line_flow(x, mode, 40.0 / n)
    # the midpoint rule errs by 1/n^2; 1e6 additions in a row by some 1e-13
    torch.testing.assert_close(left, mode * torch.exp(-40 * rate[2]), rtol=0, atol=1e-9)
    levels = (1 + 0.5) ** torch.arange(20, -1, -1.0, dtype=torch.float64) * 0.5 ** torch.arange(21.0)
    ones = torch.ones(2**20, dtype=torch.float64)
    torch.testing.assert_close(kernels.cube_product(levels, ones), 1.5**20 * ones, rtol=1e-12, atol=0)


def test_one_point_and_one_string():
    """A single point is joined to itself alone, and on no bits there is one string."""
    x, v = torch.zeros(1), torch.full((1,), 3.0)
    assert kernels.line_product(x, v).tolist() == [3.0]
    assert kernels.line_solve(x, v, 1.0).tolist() == [1.5]
    assert kernels.line_flow(x, v, 2.0).item() == pytest.approx(3 * math.exp(-2), abs=1e-12)
    assert kernels.walsh_transform(v).tolist() == [3.0]


def test_rejects():
    x, v = torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3)
    with pytest.raises(ValueError, match="x must be sorted"):
        kernels.line_product(x.flip(0), v)
    with pytest.raises(ValueError, match=r"v must have shape \(..., N\) with N = 3 points, got \(2,\)"):
        kernels.line_product(x, v[:2])
    with pytest.raises(ValueError, match=r"x must have shape \(N,\) with N >= 1, got \(1, 3\)"):
        kernels.line_product(x[None], v)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        kernels.line_product(x, v, 0.0)
    with pytest.raises(ValueError, match="v must be finite, got 3 NaN or inf"):
        kernels.line_flow(x, v * math.nan, 1.0)
    with pytest.raises(ValueError, match="t must not be negative, got -1"):
        kernels.line_flow(x, v, -1.0)
    with pytest.raises(ValueError, match="shift must not be negative, got -1"):
        kernels.line_solve(x, v, -1.0)
    with pytest.raises(ValueError, match="^x must not hold equal points at shift 0, K is singular there$"):
        kernels.line_solve(torch.zeros(3), v)
    with pytest.raises(ValueError, match="v must have 2\\^b values in its last dimension, got 3"):
        kernels.walsh_transform(v)
    with pytest.raises(ValueError, match=r"v must have 2\^b values for b \+ 1 = 4 levels, got shape \(4,\)"):
        kernels.cube_product(torch.ones(4), torch.ones(4))
