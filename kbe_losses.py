"""What is minimised: likelihoods and their relatives, each one function (y, mu, sigma, log_sigma) -> loss per point.

`kbe_lib.train` takes them by their name in LOSSES or as functions; `functools.partial(student_t_nll, nu=5.0)` sets a
parameter.  All take log|sigma| beside sigma, because a readout such as the sigmoid knows it without the detour over a
sigma that may underflow; and all are even in sigma, so that a readout that allows sigma < 0 describes |sigma|.

sigma is the scale of the family: the standard deviation is sigma for the Gaussian, sqrt(2) sigma for Laplace and
sqrt(nu / (nu - 2)) sigma for Student-t.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_nll(y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None) -> Tensor:
    """Minus the log density of a Gaussian per point, log|sigma| + (y - mu)^2 / 2 sigma^2 + log(2 pi) / 2 (eq. 8).

    Args:
        y, mu, sigma: any shapes that broadcast.
        log_sigma: log|sigma|, where the caller has it without the detour over sigma.
    """
    return _log(sigma, log_sigma) + 0.5 * ((y - mu) / sigma) ** 2 + 0.5 * math.log(2 * math.pi)


def printed_loss(y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None) -> Tensor:
    """Eq. 14 to the letter, per point: sigma + (y - mu)^2 / 2 sigma^2, with sigma where eq. 8 gives log sigma."""
    return sigma + 0.5 * ((y - mu) / sigma) ** 2


def squared_error(y: Tensor, mu: Tensor, sigma: Tensor | None = None, log_sigma: Tensor | None = None) -> Tensor:
    """(y - mu)^2 / 2 per point, the loss of the average network; its flow is eq. 13."""
    return 0.5 * (y - mu) ** 2


def laplace_nll(y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None) -> Tensor:
    """Minus the log density of a Laplace distribution per point, log|sigma| + |y - mu| / |sigma| + log 2."""
    return _log(sigma, log_sigma) + ((y - mu) / sigma).abs() + math.log(2)


def student_t_nll(
    y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None, nu: Tensor | float = 3.0
) -> Tensor:
    """Minus the log density of Student's t with nu degrees of freedom per point.

    A network with a third head "nu" gives its own nu(x); otherwise nu is fixed.
    """
    nu = torch.as_tensor(nu, dtype=mu.dtype, device=mu.device)
    normalisation = torch.lgamma(nu / 2) - torch.lgamma((nu + 1) / 2) + 0.5 * torch.log(nu * math.pi)
    return _log(sigma, log_sigma) + 0.5 * (nu + 1) * torch.log1p(((y - mu) / sigma) ** 2 / nu) + normalisation


def beta_nll(y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None, beta: float = 0.5) -> Tensor:
    """The Gaussian likelihood of a point times sigma^(2 beta), that weight without a gradient [Seitzer 2022]."""
    return sigma.detach().abs() ** (2 * beta) * gaussian_nll(y, mu, sigma, log_sigma)


def faithful_nll(y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None) -> Tensor:
    """Squared error for mu, and a Gaussian likelihood that moves sigma alone [Stirn 2023].

    There sigma's gradient is kept out of the shared trunk as well: `Remedy(sigma_to_trunk=False)`.
    """
    return squared_error(y, mu) + gaussian_nll(y, mu.detach(), sigma, log_sigma)


def clamped_nll(y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """`torch.nn.GaussianNLLLoss`, which clamps the variance at eps and passes the gradient through the clamp."""
    return F.gaussian_nll_loss(mu, y.expand_as(mu), sigma**2, full=True, eps=eps, reduction="none")


def gamma_prior_nll(
    y: Tensor, mu: Tensor, sigma: Tensor, log_sigma: Tensor | None = None, shape: float = 1.0, rate: float = 0.02
) -> Tensor:
    """The Gaussian likelihood times a Gamma(shape, rate) prior on every point's precision 1/sigma^2, minus its log.

    Adds 2 (shape - 1) log|sigma| + rate / sigma^2, the prior without its constant: sigma^2 is best at
    (e^2 + 2 rate) / (2 shape - 1), so it stays above 2 rate / (2 shape - 1) however small the error e.
    """
    return gaussian_nll(y, mu, sigma, log_sigma) + 2 * (shape - 1) * _log(sigma, log_sigma) + rate / sigma**2


def _log(sigma: Tensor, log_sigma: Tensor | None) -> Tensor:
    return sigma.abs().log() if log_sigma is None else log_sigma


LOSSES = {
    "gaussian": gaussian_nll,
    "printed": printed_loss,
    "squared": squared_error,
    "laplace": laplace_nll,
    "student_t": student_t_nll,
    "beta": beta_nll,
    "faithful": faithful_nll,
    "clamped": clamped_nll,
    "gamma_prior": gamma_prior_nll,
}
