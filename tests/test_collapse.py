import math

import pytest
import torch

import kbe_lib as kbe


def one_point(e0, sigma0, t, theta=1.0, **settings):
    kernel = torch.tensor([[theta]], dtype=torch.float64)
    label, mu, sigma = (torch.tensor([v], dtype=torch.float64) for v in (0.0, e0, sigma0))
    return kbe.variance_flow(kernel, label, mu, sigma, t, **settings)


@pytest.mark.parametrize(("e0", "sigma0", "theta"), [(0.5, 0.5, 1.0), (0.9, 0.1, 2.5), (0.05, 0.8, 0.3)])
def test_collapse_time_and_integral_of_motion(e0, sigma0, theta):
    t = torch.linspace(0, 3, 200, dtype=torch.float64)
    flow = one_point(e0, sigma0, t, theta)
    t_star = kbe.collapse_time(e0, sigma0, theta)
    # the integration stops at sigma = 1e-4, where e^2 + sigma^2 < 2e-8 is left
    assert flow.collapsed_at == pytest.approx(t_star, abs=2e-8 / theta)
    radius = flow.mu[:, 0] ** 2 + flow.sigma[:, 0] ** 2
    torch.testing.assert_close(radius, e0**2 + sigma0**2 - 2 * theta * flow.t, rtol=0, atol=1e-8)
    assert flow.t[-1] < t_star


def test_streamline_is_what_the_flow_runs_along():
    flow = one_point(0.5, 0.4, torch.linspace(0, 0.2, 100, dtype=torch.float64))
    sigma = kbe.collapse_streamline(flow.mu[:, 0], 0.5, 0.4)
    torch.testing.assert_close(flow.sigma[:, 0], sigma, rtol=1e-8, atol=1e-9)


def test_streamline_ends_at_the_origin():
    sigma = kbe.collapse_streamline(torch.tensor([0.0, 1e-8, 1e-4]).double(), 0.5, 0.5)
    assert sigma[0] == 0
    assert sigma[1] > 1e-8  # sigma vanishes more slowly than e


def test_many_points_integral_of_motion(generator):
    """d(u' Theta^-1 u)/dt = -2N for the full 2N x 2N kernel, cross terms included."""
    n = 6
    root = torch.randn(2 * n, 2 * n, generator=generator, dtype=torch.float64)
    theta = root @ root.T / (2 * n) + torch.eye(2 * n)
    kernel = theta.reshape(2, n, 2, n).permute(1, 3, 0, 2)
    y = torch.randint(2, (n,), generator=generator).double()
    mu0, sigma0 = torch.rand(2, n, generator=generator, dtype=torch.float64) * 0.5 + 0.25
    t = torch.linspace(0, 10, 400, dtype=torch.float64)
    flow = kbe.variance_flow(kernel, y, mu0, sigma0, t)
    u = torch.cat([flow.mu - y, flow.sigma], dim=1)
    clock = (u * torch.linalg.solve(theta, u.T).T).sum(1)
    assert flow.collapsed_at < math.inf
    torch.testing.assert_close(clock, clock[0] - 2 * n * flow.t, rtol=0, atol=1e-8)


def test_flow_is_the_gradient_flow_of_the_loss(generator):
    """A first short time step against the gradients of eq. 8 by autograd; scalar kernel and full blocks agree."""
    n = 5
    kernel = kbe.exponential_kernel(kbe.hamming(kbe.random_bit_encoding(1, n, generator=generator).x[0]), 0.5)
    y = torch.randint(2, (n,), generator=generator).double()
    mu0, sigma0 = torch.rand(2, n, generator=generator, dtype=torch.float64) * 0.5 + 0.25
    mu, sigma = mu0.clone().requires_grad_(), sigma0.clone().requires_grad_()
    d_mu, d_sigma = torch.autograd.grad(kbe.gaussian_nll(y, mu, sigma).sum(), [mu, sigma])
    dt = 1e-6
    blocks = torch.einsum("ij,hk->ijhk", kernel, torch.eye(2, dtype=torch.float64))
    for form in (kernel, blocks):
        flow = kbe.variance_flow(form, y, mu0, sigma0, torch.tensor([dt], dtype=torch.float64))
        # first order in dt: the second derivative is of order 1e2, so 1e-4 relative
        torch.testing.assert_close((flow.mu[0] - mu0) / dt, -kernel @ d_mu, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close((flow.sigma[0] - sigma0) / dt, -kernel @ d_sigma, rtol=1e-3, atol=1e-4)


def test_mean_speed_is_the_factor_of_the_mean(generator):
    dt = torch.tensor([1e-6], dtype=torch.float64)
    full, half = (one_point(0.5, 0.4, dt, mean_speed=speed) for speed in (1.0, 0.5))
    assert float((half.mu - 0.5) / (full.mu - 0.5)) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(half.sigma, full.sigma, rtol=1e-9, atol=0)


def test_no_collapse_before_the_last_time():
    flow = one_point(0.5, 0.5, torch.tensor([0.0, 0.1], dtype=torch.float64))
    assert flow.collapsed_at == math.inf
    assert len(flow.t) == 2


def test_rejects():
    one, two = torch.ones(1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    kernel = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"kernel must have shape \(N, N\) or \(N, N, 2, 2\), N = 2, got \(1, 1\)"):
        kbe.variance_flow(kernel, two, two, two, one)
    with pytest.raises(ValueError, match="sigma0 must be above sigma_min = 0.0001, its smallest value is 0"):
        kbe.variance_flow(kernel, one, one, 0 * one, one)
    with pytest.raises(ValueError, match="t must increase from a time that is not negative"):
        kbe.variance_flow(kernel, one, one, one, torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="theta must be positive, got 0"):
        kbe.collapse_time(0.5, 0.5, 0)
    with pytest.raises(ValueError, match="error0 must be positive, got 0.0"):
        kbe.collapse_streamline(one, 0.0, 0.5)


def test_a_sigma_too_small_to_be_reached_is_said():
    """The last step before the collapse is shorter than the numbers of time are apart."""
    with pytest.raises(ValueError, match="sigma_min = 1e-30 cannot be reached: .*step size"):
        one_point(0.5, 0.5, torch.tensor([0.1, 1.0], dtype=torch.float64), sigma_min=1e-30)
