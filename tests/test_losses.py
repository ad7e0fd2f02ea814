import pytest
import torch

import kbe_lib as kbe

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


@pytest.mark.parametrize("name", sorted(kbe.LOSSES))
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
