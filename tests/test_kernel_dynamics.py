import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import hadamard
from scipy.optimize import minimize_scalar

import kbe_lib as kbe


@pytest.fixture
def line(generator):
    """30 random points on [0, 1] with labels, and their exponential kernel."""
    x = torch.rand(30, dtype=torch.float64, generator=generator).sort().values
    y = torch.randint(2, (30,), generator=generator).double()
    return kbe.exponential_kernel((x[:, None] - x).abs(), 3.0), y


def test_flow_against_integration(line):
    kernel, y = line
    mu0 = torch.linspace(-1, 1, 30, dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 1.0, 7.0], dtype=torch.float64)
    solution = solve_ivp(
        lambda _, mu: kernel.numpy() @ (y.numpy() - mu), (0, 7), mu0.numpy(), t_eval=t.numpy(), rtol=1e-11, atol=1e-12
    )
    # the integrator's own tolerance, accumulated over some hundred steps
    torch.testing.assert_close(kbe.kernel_flow(kernel, y, t, mu0), torch.from_numpy(solution.y.T), rtol=1e-8, atol=1e-9)


def test_flow_relations(line):
    kernel, y = line
    close = dict(rtol=1e-10, atol=1e-11)  # eigenvectors of a kernel with condition number 1e3
    flow = kbe.kernel_flow
    assert torch.equal(flow(kernel, y, 0.0, 0.3), torch.full_like(y, 0.3))
    torch.testing.assert_close(flow(kernel, y, None), y, **close)  # positive definite: interpolation
    torch.testing.assert_close(flow(kernel, y, 2.0, flow(kernel, y, 1.0)), flow(kernel, y, 3.0), **close)
    torch.testing.assert_close(flow(5 * kernel, y, 1.0), flow(kernel, y, 5.0), **close)
    torch.testing.assert_close(
        flow(kernel, 2 * y - 1, 1.0), 2 * flow(kernel, y, 1.0) - flow(kernel, torch.ones_like(y), 1.0), **close
    )
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow(kernel[order][:, order], y[order], 1.0), flow(kernel, y, 1.0)[order], **close)
    times = torch.tensor([0.5, 4.0])
    torch.testing.assert_close(flow(kernel, y, times), torch.stack([flow(kernel, y, float(t)) for t in times]), **close)
    batch = flow(torch.stack([kernel, 2 * kernel]), torch.stack([y, y]), times)
    torch.testing.assert_close(batch[1], flow(2 * kernel, y, times), **close)


def test_flow_stops_where_the_kernel_cannot_reach():
    """Two equal inputs with labels 0 and 1: a kernel of rank 1 reaches the mean of the labels only."""
    kernel, y = torch.ones(2, 2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    limit = kbe.kernel_flow(kernel, y, None, 0.9)
    torch.testing.assert_close(limit, torch.full_like(y, 0.5), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(kbe.kernel_flow(kernel, y, 1e6, 0.9), limit, rtol=1e-12, atol=1e-12)


def test_flow_knows_rounding_from_a_negative_eigenvalue():
    """Relative to the largest eigenvalue, and N times 1e-12 of it; no kernel at all moves nothing."""
    y = torch.ones(10, dtype=torch.float64)
    for scale in (1e-6, 1.0):
        flat = torch.diag(torch.tensor([*[scale] * 9, -5e-12 * scale], dtype=torch.float64))
        assert kbe.kernel_flow(flat, y, None).tolist() == [1.0] * 9 + [0.0]
        with pytest.raises(ValueError, match="kernel must be positive semidefinite"):
            kbe.kernel_flow(torch.diag(torch.tensor([*[scale] * 9, -2e-11 * scale], dtype=torch.float64)), y, 1.0)
    nothing = torch.zeros(10, 10, dtype=torch.float64)
    for t in (1.0, None):
        assert kbe.kernel_flow(nothing, y, t, 0.3).tolist() == [0.3] * 10


def test_one_time_in_an_array_keeps_its_axis(line):
    kernel, y = line
    flow = kbe.kernel_flow(kernel, y, torch.tensor([0.7], dtype=torch.float64))
    assert flow.shape == (1, 30)
    torch.testing.assert_close(flow[0], kbe.kernel_flow(kernel, y, 0.7), rtol=1e-13, atol=1e-14)


def test_flow_rejects(line):
    kernel, y = line
    with pytest.raises(ValueError, match="kernel must be symmetric"):
        kbe.kernel_flow(kernel.triu(), y, 1.0)
    with pytest.raises(ValueError, match="kernel must be positive semidefinite, its smallest eigenvalue is -"):
        kbe.kernel_flow(-kernel, y, 1.0)
    with pytest.raises(ValueError, match="t must not be negative, its smallest value is -1"):
        kbe.kernel_flow(kernel, y, -1.0)
    with pytest.raises(ValueError, match=r"kernel must have shape \(..., N, N\) with N = 29 labels, got \(30, 30\)"):
        kbe.kernel_flow(kernel, y[1:], 1.0)
    with pytest.raises(ValueError, match="kernel must be finite"):
        kbe.kernel_flow(kernel * math.nan, y, 1.0)


def test_flow_of_several_kernels_to_the_same_labels(line):
    kernel, y = line
    kernels = torch.stack([kernel, 2 * kernel, 3 * kernel])
    each = torch.stack([kbe.kernel_flow(k, y, 0.4) for k in kernels])
    torch.testing.assert_close(kbe.kernel_flow(kernels, y, 0.4), each, rtol=1e-12, atol=1e-13)


def test_flow_rejects_what_is_hardly_wrong(line):
    kernel, y = line
    tilted = kernel.clone()
    tilted[0, 1] *= 1 + 1e-7
    for scale in (1, 1e-12):
        with pytest.raises(ValueError, match="kernel must be symmetric in its points"):
            kbe.kernel_flow(scale * tilted, y, 1.0)
    with pytest.raises(ValueError, match="with N = 0 labels"):
        kbe.kernel_flow(torch.ones(1, 1).double(), torch.tensor(1.0).double(), 1.0)


def test_local_average_by_hand():
    distance = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    w = math.exp(-0.6)
    by_weights, by_count = (kbe.local_average(distance, y, 0.3, n).tolist() for n in ("weights", "count"))
    assert by_weights == pytest.approx([1 / (1 + w), w / (1 + w)], rel=1e-14)
    assert by_count == pytest.approx([1 / 2, w / 2], rel=1e-14)


def test_local_average_limits(generator):
    data = kbe.random_bit_encoding(3, 20, replacement=False, generator=generator)
    distance = kbe.hamming(data.x)
    torch.testing.assert_close(
        kbe.local_average(distance, data.y, 0.0), data.y.mean(1, keepdim=True).expand(-1, 20), rtol=1e-14, atol=1e-14
    )
    torch.testing.assert_close(kbe.local_average(distance, data.y, 1e4), data.y, rtol=0, atol=1e-14)
    far = kbe.local_average(distance + 1000, data.y, 2.0)  # a common shift cancels, also where exp underflows
    torch.testing.assert_close(far, kbe.local_average(distance, data.y, 2.0), rtol=1e-11, atol=1e-12)


def test_local_average_of_networks_at_several_times(generator):
    data = kbe.random_bit_encoding(2, 5, generator=generator)
    distance, alpha = kbe.hamming(data.x), torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]], dtype=torch.float64)
    average = kbe.local_average(distance[:, None], data.y[:, None], alpha)
    for m in range(2):
        for t in range(3):
            one = kbe.local_average(distance[m], data.y[m], float(alpha[m, t]))
            torch.testing.assert_close(average[m, t], one, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("normalise", ["weights", "count"])
def test_prediction_scale_finds_what_was_planted(normalise, generator):
    data = kbe.random_bit_encoding(6, 20, generator=generator)
    distance = kbe.hamming(data.x)
    planted = torch.tensor([0.02, 0.1, 0.5, 1.0, 3.0, 8.0], dtype=torch.float64)
    found = kbe.prediction_scale(distance, data.y, kbe.local_average(distance, data.y, planted, normalise), normalise)
    # at alpha = 8 the average has nearly stopped to depend on it: exp(-8) times the labels
    torch.testing.assert_close(found.alpha, planted, rtol=1e-4, atol=1e-5)
    assert found.misfit.max() < 1e-12


def test_prediction_scale_reaches_the_ends_of_its_interval(generator):
    """Short distances, so that the average still depends on a large alpha."""
    data = kbe.random_bit_encoding(2, 20, generator=generator)
    distance = kbe.hamming(data.x) / 20
    for planted in (kbe.ALPHA_MIN * 1.01, kbe.ALPHA_MAX * 0.99):
        found = kbe.prediction_scale(distance, data.y, kbe.local_average(distance, data.y, planted))
        torch.testing.assert_close(found.alpha, torch.full_like(found.alpha, planted), rtol=1e-4, atol=1e-4)
    beyond = kbe.prediction_scale(distance, data.y, kbe.local_average(distance, data.y, 40.0))
    torch.testing.assert_close(beyond.alpha, torch.full_like(beyond.alpha, kbe.ALPHA_MAX), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="mu must have 1 places, got 0"):
        kbe.prediction_scale(distance[0, :1], data.y[0], torch.tensor(0.5))


def test_prediction_scale_against_scipy(generator):
    data = kbe.random_bit_encoding(4, 20, generator=generator)
    distance = kbe.hamming(data.x)
    mu = torch.rand(4, 20, generator=generator, dtype=torch.float64) * 0.3 + 0.5 * data.y
    found = kbe.prediction_scale(distance, data.y, mu)
    for m in range(4):

        def misfit(alpha, m=m):
            return float((kbe.local_average(distance[m], data.y[m], alpha) - mu[m]).square().mean())

        starts = np.geomspace(kbe.ALPHA_MIN, kbe.ALPHA_MAX, 200)
        best = min(range(1, 199), key=lambda i: misfit(starts[i]))
        reference = minimize_scalar(
            misfit, bounds=(starts[best - 1], starts[best + 1]), method="bounded", options={"xatol": 1e-9}
        )
        assert float(found.misfit[m]) == pytest.approx(reference.fun, rel=1e-9)
        assert float(found.alpha[m]) == pytest.approx(reference.x, rel=1e-4)  # the square root of the misfit's rounding


def test_local_average_rejects():
    distance, y = torch.zeros(2, 2), torch.zeros(2)
    with pytest.raises(ValueError, match="normalise must be 'weights' or 'count', got 'sum'"):
        kbe.local_average(distance, y, 1.0, "sum")
    with pytest.raises(ValueError, match="alpha must not be negative, its smallest value is -1"):
        kbe.local_average(distance, y, -1.0)
    with pytest.raises(ValueError, match="got 3 columns and 4 labels"):
        kbe.local_average(torch.zeros(5, 2, 3), torch.zeros(4), 1.0)
    with pytest.raises(ValueError, match=r"shape \(..., N, N_data\), and y \(..., N_data\)"):
        kbe.local_average(torch.zeros(3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="mu must be finite, got 1 NaN or inf"):
        kbe.prediction_scale(distance, y, torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize("beta", [0.2, 1.0, 25.0])
def test_exponential_kernel_modes_at_fifty_digits(beta):
    omega, eigenvalue = kbe.exponential_kernel_modes(40, beta)
    with mpmath.workdps(50):
        for k in range(40):
            equation = (lambda w: w * mpmath.cot(w / 2) + beta) if k % 2 else (lambda w: w * mpmath.tan(w / 2) - beta)
            root = mpmath.findroot(equation, mpmath.mpf(float(omega[k])))
            assert float(omega[k]) == pytest.approx(float(root), rel=1e-12)  # brentq's xtol of 1e-13
            assert float(eigenvalue[k]) == pytest.approx(float(2 * beta / (root**2 + beta**2)), rel=1e-12)


def test_exponential_kernel_modes_against_a_fine_matrix():
    x = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    matrix = kbe.exponential_kernel((x[:, None] - x).abs(), 1.0) / 1500
    found = torch.linalg.eigvalsh(matrix).flip(0)[:20]
    _, exact = kbe.exponential_kernel_modes(20)
    # the midpoint rule errs by the kernel's kink, 1/(6 N^2) in each eigenvalue of about 1e-3 and more
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-7)


def test_exponential_kernel_eigenvalues_sum_to_one():
    _, exact = kbe.exponential_kernel_modes(20000)
    tail = 2 / (math.pi**2 * 20000)  # the sum of 2 / (k pi)^2 beyond
    assert float(exact.sum()) + tail == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("n_bits", [1, 3, 8])
def test_hamming_spectrum_against_dense(n_bits, generator):
    kernel_of_distance = torch.rand(n_bits + 1, generator=generator, dtype=torch.float64)
    matrix = kernel_of_distance[kbe.hamming(kbe.all_inputs(n_bits)).long()]
    eigenvalue, multiplicity = kbe.hamming_kernel_eigenvalues(kernel_of_distance, n_bits)
    expected = eigenvalue.repeat_interleave(multiplicity).sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(matrix), expected, rtol=1e-10, atol=1e-11)
    walsh = torch.from_numpy(hadamard(2**n_bits)).double()
    degree = kbe.all_inputs(n_bits).sum(1).long()
    torch.testing.assert_close(matrix @ walsh, walsh * eigenvalue[degree], rtol=1e-10, atol=1e-10)


def test_hamming_spectrum_of_the_exponential_is_geometric():
    q = math.exp(-0.7)
    eigenvalue, multiplicity = kbe.hamming_kernel_eigenvalues(q ** torch.arange(9, dtype=torch.float64), 8)
    assert multiplicity.tolist() == [1, 8, 28, 56, 70, 56, 28, 8, 1]
    assert eigenvalue.tolist() == pytest.approx([(1 + q) ** (8 - k) * (1 - q) ** k for k in range(9)], rel=1e-11)


def test_spectra_reject():
    with pytest.raises(ValueError, match="n_modes must be at least 1, got 0"):
        kbe.exponential_kernel_modes(0)
    with pytest.raises(ValueError, match="beta must be positive, got -1"):
        kbe.exponential_kernel_modes(3, -1)
    with pytest.raises(ValueError, match=r"n_bits \+ 1 = 9 values, got shape \(8,\)"):
        kbe.hamming_kernel_eigenvalues(torch.zeros(8), 8)
