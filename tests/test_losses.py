from functools import partial

import pytest
import torch

import kbe_lib as kbe
from kbe_fast import PARAMETERS

Y, MU = torch.tensor([0.0, 1.0, 1.0, 0.3]), torch.tensor([0.2, 0.7, 1.4, -2.0])
SIGMA = torch.tensor([0.5, 0.01, 2.0, 0.3])
Y, MU, SIGMA = Y.double(), MU.double(), SIGMA.double()


def test_gaussian_is_minus_the_log_density():
    expected = -torch.distributions.Normal(MU, SIGMA).log_prob(Y)
    torch.testing.assert_close(kbe.gaussian_nll(Y, MU, SIGMA), expected, rtol=1e-13, atol=1e-13)


def test_gaussian_is_even_in_sigma_and_takes_a_better_log():
    torch.testing.assert_close(kbe.gaussian_nll(Y, MU, -SIGMA), kbe.gaussian_nll(Y, MU, SIGMA), rtol=0, atol=0)
    shifted = kbe.gaussian_nll(Y, MU, SIGMA, log_sigma=SIGMA.log() + 1)
    torch.testing.assert_close(shifted, kbe.gaussian_nll(Y, MU, SIGMA) + 1, rtol=1e-13, atol=1e-13)


def test_printed_loss_has_sigma_in_place_of_its_logarithm():
    torch.testing.assert_close(
        kbe.printed_loss(Y, MU, SIGMA), SIGMA + (Y - MU) ** 2 / (2 * SIGMA**2), rtol=1e-14, atol=1e-14
    )


def test_printed_loss_is_least_at_the_cube_root_of_the_squared_error():
    sigma = torch.tensor([0.3 ** (2 / 3)], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kbe.printed_loss(torch.tensor(0.3), torch.tensor(0.0), sigma), sigma)
    assert abs(float(slope)) < 1e-7  # the error 0.3 is a 32-bit number here


# beta and faithful stop gradients on purpose; what theirs are is tested below
@pytest.mark.parametrize("name", sorted(kbe.LOSSES.keys() - {"beta", "faithful"}))
def test_gradients_against_finite_differences(name):
    loss = kbe.LOSSES[name]
    mu, sigma = MU.clone().requires_grad_(), SIGMA.clone().requires_grad_()
    gradients = torch.autograd.grad(loss(Y, mu, sigma).sum(), [mu, sigma], allow_unused=True)
    h = 1e-6
    central = (loss(Y, MU + h, SIGMA) - loss(Y, MU - h, SIGMA)) / (2 * h)
    # the central difference errs by h^2 f''' / 6; f''' is at most 1e8 at sigma = 0.01, gradients there are 3e3 to 9e4
    torch.testing.assert_close(gradients[0], central, rtol=1e-6, atol=1e-4)
    if gradients[1] is not None:
        central = (loss(Y, MU, SIGMA + h) - loss(Y, MU, SIGMA - h)) / (2 * h)
        torch.testing.assert_close(gradients[1], central, rtol=1e-6, atol=1e-4)


def test_squared_error_ignores_sigma():
    torch.testing.assert_close(kbe.squared_error(Y, MU, SIGMA), 0.5 * (Y - MU) ** 2, rtol=0, atol=0)


def test_laplace_and_student_t_are_minus_their_log_densities():
    # rtol 1e-12: torch takes the normalisation of Student's t from differences of log gamma
    expected = -torch.distributions.Laplace(MU, SIGMA).log_prob(Y)
    torch.testing.assert_close(kbe.laplace_nll(Y, MU, SIGMA), expected, rtol=1e-13, atol=1e-13)
    for nu in (1.0, 3.0, 30.0):
        expected = -torch.distributions.StudentT(nu, MU, SIGMA).log_prob(Y)
        torch.testing.assert_close(kbe.student_t_nll(Y, MU, SIGMA, nu=nu), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            kbe.student_t_nll(Y, MU, SIGMA, None, torch.full_like(Y, nu)), expected, rtol=1e-12, atol=1e-12
        )


def test_clamped_is_the_module_of_torch():
    for eps in (1e-6, 0.1):
        expected = torch.nn.GaussianNLLLoss(full=True, eps=eps, reduction="none")(MU, Y, SIGMA**2)
        torch.testing.assert_close(kbe.clamped_nll(Y, MU, SIGMA, eps=eps), expected, rtol=0, atol=0)
    # the gradient passes through the clamp: d loss / d sigma is that at variance eps, times d variance / d sigma
    sigma = torch.tensor(1e-2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kbe.clamped_nll(torch.zeros(()), torch.ones(()).double(), sigma, eps=0.1), sigma)
    assert float(slope) == pytest.approx(0.5 * (1 / 0.1 - 1 / 0.1**2) * 2e-2, rel=1e-12)


def test_gamma_prior_is_a_gamma_prior_on_the_precision():
    shape, rate = torch.tensor([1.7, 0.3], dtype=torch.float64)
    prior = -torch.distributions.Gamma(shape, rate).log_prob(1 / SIGMA**2)
    added = kbe.gamma_prior_nll(Y, MU, SIGMA, shape=shape, rate=rate) - kbe.gaussian_nll(Y, MU, SIGMA)
    difference = added - prior  # the constant of the prior
    # rtol: rate / sigma^2 is 3e3 at sigma = 0.01
    torch.testing.assert_close(difference, difference[0].expand(4), rtol=0, atol=1e-10)


def gradients(loss, **parameters):
    mu, sigma = MU.clone().requires_grad_(), SIGMA.clone().requires_grad_()
    return torch.autograd.grad(loss(Y, mu, sigma, **parameters).sum(), [mu, sigma])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_weighs_the_gradient_of_the_gaussian(beta):
    for weighted, plain in zip(gradients(kbe.beta_nll, beta=beta), gradients(kbe.gaussian_nll), strict=True):
        torch.testing.assert_close(weighted, SIGMA ** (2 * beta) * plain, rtol=1e-12, atol=0)


def test_faithful_gives_mu_the_squared_error_and_sigma_the_likelihood():
    mu, sigma = gradients(kbe.faithful_nll)
    torch.testing.assert_close(mu, MU - Y, rtol=1e-14, atol=0)
    torch.testing.assert_close(sigma, gradients(kbe.gaussian_nll)[1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["laplace", "student_t", "beta", "clamped", "gamma_prior"])
def test_losses_are_even_in_sigma(name):
    torch.testing.assert_close(kbe.LOSSES[name](Y, MU, -SIGMA), kbe.LOSSES[name](Y, MU, SIGMA), rtol=0, atol=0)


def test_a_better_log_is_taken_by_every_likelihood():
    """log|sigma| enters as a term of its own: one more of it adds its coefficient, whatever sigma is."""
    coefficients = {"laplace": 1, "student_t": 1, "beta": SIGMA, "faithful": 1, "gamma_prior": 1 + 2 * (1.5 - 1)}
    for name, coefficient in coefficients.items():
        loss = partial(kbe.gamma_prior_nll, shape=1.5) if name == "gamma_prior" else kbe.LOSSES[name]
        more = loss(Y, MU, SIGMA, SIGMA.log() + 1) - loss(Y, MU, SIGMA)
        torch.testing.assert_close(more, coefficient * torch.ones_like(Y), rtol=1e-9, atol=1e-11)  # of up to 3e3


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_that_are_not_given_are_the_same_for_both_engines(name):
    loss = kbe.LOSSES[name]
    # a sigma below the root of eps, so that the clamp shows
    given = loss(Y, MU, 1e-3 * SIGMA, **PARAMETERS[name])
    torch.testing.assert_close(loss(Y, MU, 1e-3 * SIGMA), given, rtol=0, atol=0)
