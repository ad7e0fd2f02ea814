"""The science behind *The kernel-balanced equation, executable*, in the paper's order.

Everything acts on ensembles: M networks at once, each with a data set of its own of N points with b bits; one
network is M = 1.  H counts the heads of a network (1: mean only, 2: mean and standard deviation, 3: degrees of freedom
of a Student-t as well), T the recorded epochs, P the parameters.  Parameters are the dictionary of stacked tensors that
`torch.func.stack_module_state` makes of M ordinary modules.  Functions are pure: what is random takes a generator,
nothing is kept between calls.

Time: a gradient descent of step size eta (the learning rate) for n epochs stands for a flow of duration t = eta * n,
under the loss as written: the mean over the points unless `reduction="sum"` is asked for.

[1] K. Nakazato, The kernel-balanced equation for deep neural networks, arXiv:2309.07367 (2023); "eq." and "FIG."
    below are this paper's.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Generator, Tensor

from kbe_check import floats, instances, integers, leading, numbers, positive, tensors
from kbe_check import require as _require

# losses (eqs 8 and 14, and their relatives) are part of this module, their text is in a file of its own
from kbe_losses import (  # noqa: F401
    LOSSES,
    beta_nll,
    clamped_nll,
    faithful_nll,
    gamma_prior_nll,
    gaussian_nll,
    laplace_nll,
    printed_loss,
    squared_error,
    student_t_nll,
)
from kbe_remedies import PLAIN, Remedy, uniform

Params = dict[str, Tensor]


class Floored(NamedTuple):
    """A readout of sigma with a floor under it: sigma^2 = R(z)^2 + floor^2, smooth, and even in R(z)."""

    readout: str
    floor: float


Readout = str | tuple[str, str | Floored]

# A network has failed once one epoch moves one of its outputs by more than this, a quarter of the labels' range.  A
# test for infinity would depend on the float format; a threshold does not, and its value hardly matters, because a
# jump grows from nothing to everything within a few epochs (the density chapter varies it from 0.05 to 0.5).
JUMP = 0.25


# --------------------------------------------------------------------------------------------------- data (II)


class Dataset(NamedTuple):
    """M data sets of N labelled bit strings."""

    x: Tensor  # (M, N, b)  bits, 0.0 or 1.0
    y: Tensor  # (M, N)     labels, 0.0 or 1.0


def all_inputs(n_bits: int = 8, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """All 2^b bit strings, (2^b, b), in counting order with the most significant bit first.

    Raises:
        ValueError: if n_bits is not between 1 and 20.
    """
    floats(dtype=dtype)
    integers(1, 20, n_bits=n_bits)
    shifts = torch.arange(n_bits - 1, -1, -1)
    return (torch.arange(2**n_bits)[:, None] >> shifts & 1).to(dtype)


def random_bit_encoding(
    n_networks: int,
    n_points: int,
    n_bits: int = 8,
    *,
    replacement: bool = True,
    generator: Generator,
    dtype: torch.dtype = torch.float64,
) -> Dataset:
    """One random data set per network: N random bit strings with fair-coin labels (section II of [1]).

    Args:
        replacement: draw strings with replacement, so that one string can occur twice, also with both labels.

    Returns:
        Dataset with x (M, N, b) and y (M, N).

    Raises:
        ValueError: if a count is below 1, or n_points exceeds 2^n_bits without replacement.
    """
    integers(n_networks=n_networks, n_points=n_points)
    instances(bool, replacement=replacement)
    instances(Generator, generator=generator)
    inputs = all_inputs(n_bits, dtype=dtype)
    if replacement:
        drawn = torch.randint(len(inputs), (n_networks, n_points), generator=generator)
    else:
        _require(
            n_points <= len(inputs),
            f"n_points must be at most 2^n_bits = {len(inputs)} without replacement, got {n_points}",
        )
        drawn = torch.rand(n_networks, len(inputs), generator=generator).argsort(dim=1)[:, :n_points]
    labels = torch.randint(2, (n_networks, n_points), generator=generator).to(dtype)
    return Dataset(inputs[drawn], labels)


# ----------------------------------------------------------------------------------- network (eqs 6, 7, 9-11)


def init_networks(
    n_networks: int,
    heads: Sequence[str] = ("mu", "sigma"),
    n_bits: int = 8,
    n_layers: int = 3,
    n_channels: int = 3,
    *,
    generator: Generator,
    dtype: torch.dtype = torch.float64,
) -> Params:
    """M convolutional networks with PyTorch's default initialisation, uniform in +-1/sqrt(fan-in).

    The trunk f has n_layers convolutions of kernel size 3 with zero padding, ELU after each (eqs 9, 10); every head
    is one linear map of all its outputs (eq. 11).  The trunk is drawn first and then the heads in order, so that the
    average network ("mu",) and the variance network ("mu", "sigma") of one seed share trunk and mean.

    Returns:
        Parameters "conv1.weight" (M, C, 1, 3), "conv1.bias" (M, C), ..., "mu.weight" (M, 1, C b), "mu.bias" (M, 1), ...

    Raises:
        ValueError: if a count is below 1 or the heads are not the first one, two or three of mu, sigma, nu.
    """
    integers(n_networks=n_networks, n_bits=n_bits, n_layers=n_layers, n_channels=n_channels)
    instances(Generator, generator=generator)
    instances(Sequence, heads=heads)
    floats(dtype=dtype)
    _require(
        tuple(heads) in (("mu",), ("mu", "sigma"), ("mu", "sigma", "nu")),
        f"heads must be ('mu',), ('mu', 'sigma') or ('mu', 'sigma', 'nu'), got {tuple(heads)}",
    )
    shapes = {f"conv{layer}": (n_channels, 1 if layer == 1 else n_channels, 3) for layer in range(1, n_layers + 1)}
    shapes |= {head: (1, n_channels * n_bits) for head in heads}
    params = {}
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        for part, size in (("weight", shape), ("bias", shape[:1])):
            uniform = torch.rand(n_networks, *size, generator=generator, dtype=dtype)
            params[f"{name}.{part}"] = bound * (2 * uniform - 1)
    return params


def _convolution_matrix(weight: Tensor, width: int) -> Tensor:
    """A zero-padded convolution of kernel size 3 as one matrix, (..., C_out, C_in, 3) -> (..., C_in b, C_out b).

    Written so, M convolutions with different weights are one batched matrix product, far faster than M small ones.
    """
    # shifts[p, k, q] = 1 where input position p = q + k - 1 feeds output position q through tap k
    shifts = torch.eye(width + 2, dtype=weight.dtype, device=weight.device)[1:-1].unfold(1, width, 1)
    matrix = torch.einsum("...oik,pkq->...ipoq", weight, shifts)
    return matrix.flatten(-4, -3).flatten(-2, -1)


def logits(params: Params, x: Tensor) -> Tensor:
    """What the heads give before their readout, z = a . f(x) + b (eq. 11 without R).

    Args:
        x: (M, N, b), or (N, b) to show the same inputs to all networks.

    Returns:
        (M, N, H), heads in the order of params.

    Raises:
        ValueError: if x does not have the number of bits or of networks that params are made for.
    """
    _check_inputs(params, x=x)
    _, h, weight, bias = _propagate(params, x)
    return h @ weight.mT + bias.unsqueeze(-2)


def _check_inputs(params: Params, **inputs: Tensor) -> None:
    instances(dict, params=params)
    weights = {"conv1.weight", "mu.weight"} | {name for name in params if str(name).endswith("weight")}
    needed = weights | {f"{name.removesuffix('weight')}bias" for name in weights}
    _require(needed <= params.keys(), f"params must hold {sorted(needed - params.keys())} as well")
    tensors(finite=False, **{f"params['{name}']": value for name, value in params.items()})
    tensors(floating=False, **inputs)
    first = params["conv1.weight"]
    for name, x in inputs.items():
        _require(x.dtype == first.dtype, f"{name} must be of the type of params, {first.dtype}, got {x.dtype}")
        fits = x.ndim == 2 or (x.ndim == 3 and x.shape[0] in (1, len(first)))
        _require(fits, f"{name} must have shape (N, b) or (M, N, b) with M = {len(first)}, got {tuple(x.shape)}")


def _propagate(params: Params, x: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor, Tensor, Tensor]:
    """Through the trunk: every layer's input, value before the ELU, and matrix; f(x); weight and bias of all heads."""
    names = [name.removesuffix(".weight") for name in params if name.startswith("conv") and name.endswith(".weight")]
    heads = [name.removesuffix(".weight") for name in params if name.endswith(".weight") and name[:4] != "conv"]
    width = x.shape[-1]
    made_for = params[f"{heads[0]}.weight"].shape[-1] // params["conv1.weight"].shape[-3]
    _require(width == made_for, f"x must have {made_for} bits in its last dimension, got shape {tuple(x.shape)}")
    h, layers = x, []
    for name in names:
        matrix = _convolution_matrix(params[f"{name}.weight"], width)
        z = h @ matrix + params[f"{name}.bias"].repeat_interleave(width, -1).unsqueeze(-2)
        layers.append((h, z, matrix))
        h = F.elu(z)
    weight = torch.cat([params[f"{head}.weight"] for head in heads], dim=-2)
    bias = torch.cat([params[f"{head}.bias"] for head in heads], dim=-1)
    return layers, h, weight, bias


# ------------------------------------------------------------------------------------------ readouts (R of eq. 11)

# The function that turns a head's logit into an output, and its logarithm.  log sigma is taken from the logit where
# that is possible: a sigma of 1e-320 is still a number there, so what fails is the dynamics and not the format.
_READOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "raw": (lambda z: z, lambda z: z.abs().log()),
    "elu": (F.elu, lambda z: F.elu(z).abs().log()),
    "elu+1": (
        lambda z: torch.where(z < 0, z.clamp(max=0).exp(), z + 1),
        lambda z: torch.where(z < 0, z, z.clamp(min=0).log1p()),
    ),
    "softplus": (F.softplus, lambda z: F.softplus(z).log()),
    "exp": (torch.exp, lambda z: z),
    "sigmoid": (torch.sigmoid, F.logsigmoid),
}
READOUTS = tuple(_READOUTS)


def _read(z: Tensor, readout: Readout) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits (..., H) to mu, sigma, log|sigma| (...), the last two None for an average network."""
    instances(str | tuple | list, readout=readout)
    pair = (readout, readout) if isinstance(readout, str) else tuple(readout)
    _require(
        len(pair) == 2 and pair[0] in _READOUTS and getattr(pair[1], "readout", pair[1]) in _READOUTS,
        f"readout must be one of {READOUTS}, or a pair of them for mu and sigma, got {readout!r}",
    )
    mu = _READOUTS[pair[0]][0](z[..., 0])
    if z.shape[-1] == 1:
        return mu, None, None
    name, floor = pair[1] if isinstance(pair[1], Floored) else (pair[1], 0.0)
    numbers(floor=floor)
    _require(floor >= 0, f"floor must be finite and not negative, got {floor}")
    sigma, log_sigma = (read(z[..., 1]) for read in _READOUTS[name])
    if floor > 0:
        sigma = (sigma**2 + floor**2).sqrt()
        log_sigma = sigma.log()
    return mu, sigma, log_sigma


def degrees_of_freedom(z: Tensor) -> Tensor:
    """nu = 2 + softplus(z) of a third head: above 2, so that the variance exists."""
    tensors(finite=False, z=z)
    return 2 + F.softplus(z)


def predict(params: Params, x: Tensor, readout: Readout = "sigmoid") -> tuple[Tensor, Tensor | None]:
    """The local mean mu(x) and standard deviation sigma(x) (eqs 6, 7).

    Args:
        x: (M, N, b), or (N, b) to show the same inputs to all networks.
        readout: the function after the last linear map: one name of READOUTS for both heads, or a pair (mu, sigma), in
            which sigma can be `Floored`.

    Returns:
        mu and sigma, (M, N) each; sigma is None for an average network.

    Raises:
        ValueError: for an unknown readout or a wrong number of bits.
    """
    mu, sigma, _ = _read(logits(params, x), readout)
    return mu, sigma


# ------------------------------------------------------------------------------------------- training (II, III)


class Run(NamedTuple):
    """A finished training of M networks on their own data sets."""

    epochs: Tensor  # (T,)       recorded epochs; epoch n is the state after n steps, epoch 0 the initial one
    mu: Tensor  # (M, T, N)      outputs on the training points
    sigma: Tensor | None  # (M, T, N), None for average networks
    failed_at: Tensor  # (M,)    first epoch that moved an output by more than `jump` or made one infinite; inf: never
    frozen_at: Tensor  # (M,)    epoch from which outputs or parameters were not finite any more; inf: never.  Such a
    #                            network keeps its last finite state
    params: Params  #            after the last epoch
    engine: str  #               "fast" or "torch", whichever trained
    kick: Tensor | None = None  # (M,)  the furthest that one epoch moved an output; inf for a frozen network


def train(
    params: Params,
    data: Dataset,
    *,
    epochs: int,
    lr: float | Tensor = 0.1,
    loss: str | Callable[..., Tensor] = "gaussian",
    readout: Readout = "sigmoid",
    reduction: str = "mean",
    remedy: Remedy = PLAIN,
    jump: float = JUMP,
    record: Iterable[int] | None = None,
    chunk: int = 128,
    engine: str = "auto",
    workers: int = 1,
) -> Run:
    """Full-batch gradient descent, plain SGD without momentum, of M networks at once (section II of [1]).

    A network that jumps (`JUMP`) has failed: the epoch is kept and training goes on, since sections III.B and III.C
    look at what comes after.  A network whose state stops being finite is frozen at its last finite state.
    Training on from `Run.params` continues exactly (Adam begins anew, and noise repeats unless its seed changes).

    Args:
        lr: step size eta, one for all networks or one for each, (M,); among those, 0 leaves a network as it is.  With
            reduction "mean", n epochs are a flow of duration eta * n under the mean loss.
        loss: a name of LOSSES, a function (y, mu, sigma, log_sigma) -> loss per point, or `functools.partial` of one
            with a parameter.  Networks with a head "nu" hand it nu as a fifth argument.
        readout: as in `predict`.
        reduction: "mean" over a network's points, or "sum", N times the mean.
        remedy: what to do differently from plain gradient descent.
        jump: how far an output must move in one epoch to count as failed.  The default suits outputs that a sigmoid
            keeps between 0 and 1; a readout without bounds also moves far while it learns.
        record: epochs to keep outputs of, between 0 and epochs; None keeps the first and the last state.
        chunk: networks trained together by the torch engine; changes memory and speed, not results.
        engine: "torch", the reference, takes everything; "fast" (`kbe_fast`) takes float32 or float64 on a CPU, bits
            and labels that are 0 or 1, one or two heads, and a loss of LOSSES by its name or as a partial of its
            function; "auto" is "fast" where that can, else "torch".
        workers: threads of the fast engine; the result does not depend on their number.

    Returns:
        Run with outputs at the T recorded epochs, in ascending order.

    Raises:
        ValueError: for shapes that do not match, data that are not finite, a step size or a count that is not
            positive, an unknown name, a remedy or a recorded epoch out of its range, or a case that the engine cannot
            take.
    """
    n_networks = _check_data(params, data)
    predict({k: v[:1] for k, v in params.items()}, data.x[:1, :1].to(params["conv1.weight"]), readout)
    step = _check_step(lr, n_networks)
    instances(Remedy, remedy=remedy)
    remedy.check(data.y.shape[1], with_sigma="sigma.weight" in params)
    instances(float | int, jump=jump)
    _require(jump > 0, f"jump must be positive, got {jump}")
    integers(0, epochs=epochs)
    integers(chunk=chunk, workers=workers)
    _require(engine in ("auto", "fast", "torch"), f"engine must be 'auto', 'fast' or 'torch', got {engine!r}")
    _require(reduction in ("mean", "sum"), f"reduction must be 'mean' or 'sum', got {reduction!r}")
    loss_of = _find_loss(loss, with_sigma="sigma.weight" in params)
    instances(Iterable | None, record=record)
    for epoch in () if record is None else (record := set(record)):
        integers(0, epochs, record=epoch)
    checkpoints = sorted({0, epochs} if record is None else record)
    weight = data.y.shape[1] if reduction == "sum" else 1
    if engine != "torch":
        import kbe_fast  # here, because Numba is slow to import

        objection = kbe_fast.objection(params, data, loss)
        _require(engine == "auto" or objection is None, f"engine 'fast' {objection}; engine 'torch' has no such limit")
        if objection is None:
            return kbe_fast.train(params, data, epochs, step, weight, loss, readout, remedy, jump, checkpoints, workers)
    runs = []
    for start in range(0, n_networks, chunk):
        part = slice(start, start + chunk)
        networks = torch.arange(n_networks)[part]
        runs.append(
            _train_chunk({k: v[part] for k, v in params.items()}, data.x[part], data.y[part], epochs, step[part],
                         loss_of, readout, checkpoints, weight, remedy, jump, networks)
        )  # fmt: skip
    joined = {k: torch.cat([run.params[k] for run in runs]) for k in params}
    fields = (None if runs[0][i] is None else torch.cat([run[i] for run in runs]) for i in range(1, 5))
    return Run(runs[0].epochs, *fields, joined, "torch", torch.cat([run.kick for run in runs]))


def _check_data(params: Params, data: Dataset) -> int:
    _check_inputs(params)
    instances(Dataset, data=data)
    tensors(floating=False, **{"data.x": data.x, "data.y": data.y})
    n_networks = len(params["conv1.weight"])
    _require(
        data.x.ndim == 3 and data.x.shape[0] == n_networks and data.x.shape[1] >= 1,
        f"data.x must have shape (M, N, b) with M = {n_networks} networks and N >= 1, got {tuple(data.x.shape)}",
    )
    _require(
        data.y.shape == data.x.shape[:2],
        f"data.y must have the shape (M, N) = {tuple(data.x.shape[:2])} of data.x, got {tuple(data.y.shape)}",
    )
    return n_networks


def _check_step(lr: float | Tensor, n_networks: int) -> Tensor:
    if not isinstance(lr, Tensor):
        positive(lr=lr)
        return torch.full((n_networks,), lr, dtype=torch.float64)
    _require(lr.shape == (n_networks,), f"lr must be a number or have shape ({n_networks},), got {tuple(lr.shape)}")
    tensors(lr=lr)
    _require(bool((lr >= 0).all()), f"lr must not be negative, its smallest value is {float(lr.min()):g}")
    return lr.double()


def _find_loss(loss: str | Callable[..., Tensor], with_sigma: bool) -> Callable[..., Tensor]:
    if callable(loss):
        return loss
    _require(loss in LOSSES, f"loss must be one of {tuple(LOSSES)} or a function, got {loss!r}")
    _require(with_sigma or loss == "squared", f"loss {loss!r} needs a sigma head; an average network takes 'squared'")
    return LOSSES[loss]


def _unflatten(theta: Tensor, like: Params) -> Params:
    """Views of the flat parameters (M, P) under the names and shapes of `like`."""
    pieces = theta.split([v[0].numel() for v in like.values()], dim=1)
    return {k: piece.view_as(v) for (k, v), piece in zip(like.items(), pieces, strict=True)}


def _objective(params, x, y, loss_of, readout, weight, remedy, networks, epoch) -> tuple[Tensor, Tensor]:
    """The loss summed over the networks, and their outputs (M, N H') on the points, H' = 1 or 2."""
    _, h, matrix, bias = _propagate(params, x)
    n_points = y.shape[1]

    def read(h: Tensor) -> list[Tensor | None]:
        z = h @ matrix.mT + bias.unsqueeze(-2)
        if not remedy.sigma_to_trunk:
            z = torch.cat([z[..., :1], h.detach() @ matrix[..., 1:, :].mT + bias[..., None, 1:]], dim=-1)
        return [*_read(z, readout), degrees_of_freedom(z[..., 2]) if z.shape[-1] == 3 else None]

    outputs = read(h)
    mu, sigma, log_sigma, nu = outputs
    shown = (mu if sigma is None else torch.cat([mu, sigma], dim=1)).detach()
    if remedy.label_noise > 0 or remedy.dropout > 0:
        # of the places of a network the first N are its labels and the others the outputs of the trunk
        random = uniform(remedy.seed, networks, epoch, n_points * (1 + h.shape[-1])).to(h.device)
        y = torch.where(random[:, :n_points] < remedy.label_noise, 1 - y, y)
        kept = (random[:, n_points:] >= remedy.dropout).to(h).view(h.shape) / (1 - remedy.dropout)
        mu, sigma, log_sigma, nu = read(h * kept) if remedy.dropout > 0 else outputs
    more = () if nu is None else (nu,)
    n_held = remedy.n_held_out(n_points)
    if n_held == 0:
        return weight * loss_of(y, mu, sigma, log_sigma, *more).mean(1).sum(), shown
    rest = n_points - n_held
    for_mu = loss_of(y, mu, *(v.detach() for v in (sigma, log_sigma, *more)))[:, :rest]
    for_sigma = loss_of(y, mu.detach(), sigma, log_sigma, *more)[:, rest:]
    return weight * (for_mu.mean(1) + for_sigma.mean(1)).sum(), shown


def _train_chunk(params, x, y, epochs, lr, loss_of, readout, checkpoints, weight, remedy, jump, networks) -> Run:
    # Nothing in the loop asks a tensor for its value, so on a GPU the host never waits for the device.
    theta = torch.cat([v.flatten(1) for v in params.values()], dim=1)
    x, y, lr = x.to(theta), y.to(theta), lr.to(theta)[:, None]
    own = torch.cat([theta.new_full((v[0].numel(),), name.startswith("sigma")) for name, v in params.items()])
    lr = lr * (1 + (remedy.sigma_lr - 1) * own)
    last_theta = last_outputs = None
    failed_at = theta.new_full((len(theta),), math.inf)
    frozen_at, kick = failed_at.clone(), torch.zeros_like(failed_at)
    moment = square = torch.zeros_like(theta)
    kept = []
    for epoch in range(epochs + 1):
        theta.requires_grad_()
        objective, outputs = _objective(
            _unflatten(theta, params), x, y, loss_of, readout, weight, remedy, networks, epoch
        )
        state = theta.detach()
        if epoch > 0:
            # a state is finite if its outputs are and its parameters are: a sigmoid hides infinite parameters
            finite = outputs.isfinite().all(1) & state.isfinite().all(1)
            moved = (outputs - last_outputs).abs().amax(1)
            failed_at = failed_at.where((failed_at <= epoch) | (finite & (moved <= jump)), epoch)
            frozen_at = frozen_at.where((frozen_at <= epoch) | finite, epoch)
            kick = torch.where(finite, torch.maximum(kick, moved), math.inf)
            state = torch.where(finite[:, None], state, last_theta)
            outputs = torch.where(finite[:, None], outputs, last_outputs)
        if epoch in checkpoints:
            kept.append(outputs)
        if epoch < epochs:
            (gradient,) = torch.autograd.grad(objective, theta)
            last_theta, last_outputs = state, outputs
            if remedy.clip < math.inf:
                gradient = gradient * (remedy.clip / gradient.norm(dim=1, keepdim=True).clamp(min=remedy.clip))
            if remedy.sigma_decay > 0:
                gradient = gradient + remedy.sigma_decay * own * state
            if remedy.adam:
                moment, square = 0.9 * moment + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
                mean, spread = moment / (1 - 0.9 ** (epoch + 1)), square / (1 - 0.999 ** (epoch + 1))
                gradient = mean / (spread.sqrt() + 1e-8)
            theta = torch.where((frozen_at > epoch)[:, None], state - lr * gradient, state)
    n_points = y.shape[1]
    recorded = torch.stack(kept, dim=1)
    mu, sigma = recorded.split(n_points, dim=2) if "sigma.weight" in params else (recorded, None)
    return Run(torch.tensor(checkpoints), mu, sigma, failed_at, frozen_at, _unflatten(state, params), "torch", kick)


def variances(run: Run, y: Tensor) -> tuple[Tensor, Tensor]:
    """The two variances of section III.B, (M, T) each: V = <(y_i - mu_i)^2> and V* = <sigma_i^2>.

    Raises:
        ValueError: if y does not have the shape (M, N) of the run, or the networks have no sigma.
    """
    instances(Run, run=run)
    _require(run.sigma is not None, "run must be of variance networks, these have no sigma")
    tensors(y=y)
    expected = (run.mu.shape[0], run.mu.shape[2])
    _require(y.shape == expected, f"y must have the shape (M, N) = {expected} of the run, got {tuple(y.shape)}")
    return ((y[:, None] - run.mu) ** 2).mean(-1), (run.sigma**2).mean(-1)


# ---------------------------------------------------------------------------------- training response (eqs 1-5)


@torch.no_grad()
def empirical_ntk(params: Params, x1: Tensor, x2: Tensor | None = None, readout: Readout | None = "sigmoid") -> Tensor:
    """The training response Theta(x, x') = df(x)/dw . df(x')/dw of eqs 2 and 3, by Jacobian contraction.

    One step of size eta on the loss L moves output h at x by -eta sum_j,k Theta_hk(x, x_j) dL/df_k(x_j) (eq. 4), up to
    order eta^2.

    Args:
        x1, x2: (M, N1, b) and (M, N2, b), or without M to show the same inputs to all networks; x2 = None is x1.
        readout: of the outputs mu, sigma after this readout; None: of the heads before it.

    Returns:
        (M, N1, N2, H, H): the full block of every pair of inputs, no trace and no average taken.

    Raises:
        ValueError: for an unknown readout or a wrong number of bits.
    """
    _check_inputs(params, x1=x1, x2=x1 if x2 is None else x2)
    n_networks, own = len(params["conv1.weight"]), params["mu.weight"].shape[-1] + 1
    x1, x2 = (x if x is None else x.expand(n_networks, -1, -1) for x in (x1, x2))
    at_once = max(1, 4096 // x1.shape[1])  # networks; few enough that their Jacobians stay in the cache
    theta = None
    for start in range(0, n_networks, at_once):
        part = slice(start, start + at_once)
        some = {k: v[part] for k, v in params.items()}
        j1 = _jacobian(some, x1[part], readout)
        j2 = j1 if x2 is None else _jacobian(some, x2[part], readout)
        heads = range(j1.shape[2])
        if theta is None:
            theta = _large((n_networks, len(heads), len(heads), j1.shape[1], j2.shape[1]), like=j1)
        for h, k in itertools.product(heads, repeat=2):
            if x2 is None and h > k:
                theta[part, h, k] = theta[part, k, h].mT
                continue
            shared = slice(None if h == k else -own)  # the parameters of one head do not move the other
            _multiply(j1[:, :, h, shared], j2[:, :, k, shared].mT, out=theta[part, h, k])
    return theta.permute(0, 3, 4, 1, 2)


def _large(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for a large result; NumPy asks Linux for large pages, which take a quarter of the time to touch first."""
    return like.new_empty(shape) if like.device.type != "cpu" else torch.from_numpy(np.empty(shape, like.numpy().dtype))


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a b into out; on a CPU by NumPy, a sixth faster here: its library computes one half of a a^T and copies it."""
    if out.device.type == "cpu":
        with np.errstate(over="ignore", invalid="ignore"):  # of networks that have diverged
            np.matmul(a.numpy(), b.numpy(), out=out.numpy())
    else:
        torch.matmul(a, b, out=out)


def _jacobian(params: Params, x: Tensor, readout: Readout | None) -> Tensor:
    """Derivatives of every output by the trunk's parameters and then by those of its own head, (M, N, H, P).

    Backpropagation by hand for all points at once, as few large matrix products.
    """
    layers, h, weight, bias = _propagate(params, x)
    z = h @ weight.mT + bias.unsqueeze(-2)
    slope = torch.ones_like(z)
    if readout is not None:
        with torch.enable_grad():
            mu, sigma, _ = _read(z.requires_grad_(), readout)
            (slope,) = torch.autograd.grad(mu.sum() if sigma is None else mu.sum() + sigma.sum(), z)
    slope = slope.unsqueeze(-1)  # (M, N, H, 1)
    blocks = [slope * F.pad(h, (0, 1), value=1.0).unsqueeze(2)]
    d_h = slope * weight.unsqueeze(1)
    for below, z, matrix in reversed(layers):
        d_z = d_h * z.clamp(max=0).exp().unsqueeze(2)
        seen = F.pad(below.unflatten(-1, (-1, x.shape[-1])), (1, 1)).unfold(-1, 3, 1).movedim(-1, -2)  # (M, N, C, 3, b)
        windows = seen.new_ones(*seen.shape[:2], 3 * seen.shape[2] + 1, x.shape[-1])  # what weights and bias multiply
        windows[:, :, :-1].view_as(seen).copy_(seen)
        by_channel = d_z.unflatten(-1, (-1, x.shape[-1]))  # (M, N, H, C, b)
        blocks.append((by_channel.flatten(2, 3) @ windows.mT).view(*slope.shape[:3], -1))
        if below is not x:  # nothing asks for the derivative by the inputs
            d_h = (d_z.flatten(1, 2) @ matrix.mT).unflatten(1, d_z.shape[1:3])
    return torch.cat(blocks[::-1], dim=-1)


def hamming(x1: Tensor, x2: Tensor | None = None) -> Tensor:
    """Number of differing bits, (..., N1, b) and (..., N2, b) -> (..., N1, N2); x2 = None is x1.

    Raises:
        ValueError: if the numbers of bits differ.
    """
    x2 = x1 if x2 is None else x2
    tensors(floating=False, x1=x1, x2=x2)
    _require(x1.ndim >= 2 and x2.ndim >= 2, f"x1 and x2 must have shape (..., N, b), got {x1.ndim} and {x2.ndim} axes")
    _require(
        x1.shape[-1] == x2.shape[-1],
        f"x1 and x2 must have the same number of bits, got {x1.shape[-1]} and {x2.shape[-1]}",
    )
    leading(x1=x1.shape[:-2], x2=x2.shape[:-2])
    return torch.cdist(x1.double(), x2.double(), p=0).to(x1.dtype)


def _check_distance(distance: Tensor) -> None:
    tensors(distance=distance)
    least = float(distance.min())
    _require(least >= 0, f"distance must not be negative, its smallest value is {least:g}")


def exponential_kernel(distance: Tensor, beta: float = 1.0) -> Tensor:
    """K = exp(-beta |x - x'|) (eq. 16), the shape of the distances kept.

    Raises:
        ValueError: if beta is not positive, or a distance is negative or not finite.
    """
    positive(beta=beta)
    _check_distance(distance)
    return torch.exp(-beta * distance)


# ------------------------------------------------------------------------- response kernel dynamics (eqs 12-20)


def _check_kernel(kernel: Tensor, y: Tensor) -> None:
    tensors(kernel=kernel, y=y)
    _require(kernel.dtype == y.dtype, f"kernel and y must be of one dtype, got {kernel.dtype} and {y.dtype}")
    n_points = y.shape[-1] if y.ndim else 0
    _require(
        kernel.shape[-2:] == (n_points, n_points),
        f"kernel must have shape (..., N, N) with N = {n_points} labels, got {tuple(kernel.shape)}",
    )
    leading(kernel=kernel.shape[:-2], y=y.shape[:-1])
    # rtol 1e-9, atol 1e-9 of the largest entry: sums over parameters differ in their last digits by order
    _require(
        torch.allclose(kernel, kernel.mT, rtol=1e-9, atol=1e-9 * float(kernel.abs().max())),
        "kernel must be symmetric in its points, it is not",
    )


def _as_finite(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """A number, a sequence of them or a tensor as a tensor of the type of `like`, and finite."""
    try:
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers, got {value!r}") from error
    tensors(**{name: value})
    return value


def kernel_flow(kernel: Tensor, y: Tensor, t: Tensor | float | None, mu0: Tensor | float = 0.0) -> Tensor:
    """The average network under a constant kernel, d mu/dt = K (y - mu) (eqs 13, 15, 17), in closed form.

    mu(t) = mu0 + (I - exp(-K t)) (y - mu0), by the eigenvectors of K.

    Args:
        kernel: symmetric positive semidefinite, (..., N, N).  With K the network's kernel divided by N, t is
            eta * epochs under the mean loss; with the kernel itself, under the sum.
        y: labels (..., N).
        t: times (T,), or one time, or None for the limit t -> infinity, in which what K cannot reach stays at mu0.
        mu0: initial mean, a number or (..., N).

    Returns:
        (..., T, N) for an array of times, else (..., N).

    Raises:
        ValueError: if shapes do not match, K is not symmetric or has a negative eigenvalue, or a time is negative.
    """
    _check_kernel(kernel, y)
    rates, modes = torch.linalg.eigh(kernel)
    rounding = 1e-12 * rates[..., -1:].clamp(min=0) * y.shape[-1]
    _require(
        bool((rates >= -rounding).all()),
        f"kernel must be positive semidefinite, its smallest eigenvalue is {float(rates.min()):g}",
    )
    start = _as_finite("mu0", mu0, y)
    fits = y.shape[y.ndim - start.ndim :] == start.shape
    _require(fits, f"mu0 must be a number or have shape (..., N) as y, got {tuple(start.shape)}")
    start = start.expand_as(y)
    amplitude = ((y - start).unsqueeze(-2) @ modes).squeeze(-2)  # (..., N) of each mode
    if t is None:
        return start + ((rates > rounding) * amplitude).unsqueeze(-2).matmul(modes.mT).squeeze(-2)
    times = _as_finite("t", t, y)
    _require(times.ndim <= 1, f"t must be one time or have shape (T,), got {tuple(times.shape)}")
    _require(bool((times >= 0).all()), f"t must not be negative, its smallest value is {float(times.min()):g}")
    learned = -torch.expm1(-rates.clamp(min=0).unsqueeze(-2) * times.reshape(-1, 1))  # (..., T, N)
    mu = start.unsqueeze(-2) + (learned * amplitude.unsqueeze(-2)) @ modes.mT
    return mu if times.ndim else mu.squeeze(-2)


def local_average(distance: Tensor, y: Tensor, alpha: Tensor | float, normalise: str = "weights") -> Tensor:
    """The exponentially weighted average sum_j exp(-alpha d_ij) y_j / Z_i of eq. 20 and FIG. 4.

    Args:
        distance: d_ij >= 0 from N places to the data, (..., N, N_data).
        y: (..., N_data).
        alpha: inverse length, a number or any shape that broadcasts against the leading dimensions.
        normalise: "weights" divides by the sum of the weights (eq. 20), "count" by the number of data (FIG. 4 as
            printed).

    Returns:
        (..., N).

    Raises:
        ValueError: for an unknown normalisation, a negative alpha, or shapes that do not match.
    """
    _check_average(distance, y, normalise)
    alpha = _as_finite("alpha", alpha, distance)
    _require(bool((alpha >= 0).all()), f"alpha must not be negative, its smallest value is {float(alpha.min()):g}")
    leading(distance=distance.shape[:-2], y=y.shape[:-1], alpha=alpha.shape)
    return _average(distance, y, alpha, normalise)


def _check_average(distance: Tensor, y: Tensor, normalise: str) -> None:
    _require(normalise in ("weights", "count"), f"normalise must be 'weights' or 'count', got {normalise!r}")
    _check_distance(distance)
    tensors(y=y)
    _require(distance.ndim >= 2 and y.ndim >= 1, "distance must have shape (..., N, N_data), and y (..., N_data)")
    _require(
        distance.shape[-1] == y.shape[-1],
        f"distance must have one column per label, got {distance.shape[-1]} columns and {y.shape[-1]} labels",
    )


def _average(distance: Tensor, y: Tensor, alpha: Tensor, normalise: str) -> Tensor:
    exponent = -alpha[..., None, None] * distance
    weights = torch.softmax(exponent, -1) if normalise == "weights" else exponent.exp() / y.shape[-1]
    return (weights * y.unsqueeze(-2)).sum(-1)


class PredictionScale(NamedTuple):
    """The fit of FIG. 4: the inverse length of the local average that is nearest to a network's mean."""

    alpha: Tensor  # (...)   within [ALPHA_MIN, ALPHA_MAX]
    misfit: Tensor  # (...)  mean squared difference at that alpha


# Below the first the weights differ by less than a part in ten over 8 bits, above the second the nearest neighbour
# at distance 1 weighs exp(-16) = 1e-7: wider intervals change no average that the book shows.
ALPHA_MIN, ALPHA_MAX = 0.01, 16.0


def prediction_scale(distance: Tensor, y: Tensor, mu: Tensor, normalise: str = "weights") -> PredictionScale:
    """The alpha whose local average is nearest to mu, in mean square over the points (FIG. 4).

    A scan of 49 values, a factor 1.17 apart, finds the best one; golden section between its neighbours refines it to
    about 1e-6 relative.

    Args:
        distance: (..., N, N_data); y: (..., N_data); mu: (..., N); leading dimensions broadcast.
        normalise: as in `local_average`.

    Raises:
        ValueError: as `local_average`, or if mu is not finite or not of N places.
    """
    _check_average(distance, y, normalise)
    tensors(mu=mu)
    places = mu.shape[-1] if mu.ndim else 0
    _require(places == distance.shape[-2], f"mu must have {distance.shape[-2]} places, got {places}")

    def misfit(alpha: Tensor) -> Tensor:
        return (_average(distance, y, alpha, normalise) - mu).square().mean(-1)

    grid = torch.logspace(math.log10(ALPHA_MIN), math.log10(ALPHA_MAX), 49, dtype=mu.dtype)
    batch = leading(distance=distance.shape[:-2], y=y.shape[:-1], mu=mu.shape[:-1])
    scan = torch.stack([misfit(alpha).expand(batch) for alpha in grid])
    best = scan.argmin(0)
    low, high = grid[(best - 1).clamp(min=0)], grid[(best + 1).clamp(max=len(grid) - 1)]
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = misfit(left), misfit(right)
    for _ in range(27):  # 0.618^27 = 2e-6 of a bracket that is 1.37 wide
        go_left = at_left < at_right
        low, high = torch.where(go_left, low, left), torch.where(go_left, right, high)
        new = torch.where(go_left, high - golden * (high - low), low + golden * (high - low))
        at_new = misfit(new)  # one evaluation a step: the other inner point is an old one
        left, right = torch.where(go_left, new, right), torch.where(go_left, left, new)
        at_left, at_right = torch.where(go_left, at_new, at_right), torch.where(go_left, at_left, at_new)
    alpha = (low + high) / 2
    return PredictionScale(alpha, misfit(alpha))


def exponential_kernel_modes(n_modes: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Exact frequencies and eigenvalues of exp(-beta |x - x'|) for x uniform on [0, 1] (Karhunen-Loeve; FIG. 5).

    lambda = 2 beta / (omega^2 + beta^2); omega tan(omega/2) = beta for the even modes k = 0, 2, ... and
    omega cot(omega/2) = -beta for the odd ones.  The eigenvalues of K/N tend to lambda as N grows; they sum to 1.

    Returns:
        omega and lambda, (n_modes,) each, the largest eigenvalue first.

    Raises:
        ValueError: if n_modes is below 1 or beta not positive.
    """
    integers(n_modes=n_modes)
    positive(beta=beta)

    def even(omega: float) -> float:
        return omega * math.sin(omega / 2) - beta * math.cos(omega / 2)

    def odd(omega: float) -> float:
        return omega * math.cos(omega / 2) + beta * math.sin(omega / 2)

    roots = [brentq(odd if k % 2 else even, k * math.pi, (k + 1) * math.pi, xtol=1e-13) for k in range(n_modes)]
    omega = torch.tensor(roots, dtype=torch.float64)
    return omega, 2 * beta / (omega**2 + beta**2)


def hamming_kernel_eigenvalues(kernel_of_distance: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
    """Exact spectrum of any kernel k(d) of the Hamming distance on all 2^b strings.

    The Walsh functions of degree k are its eigenvectors: lambda_k = sum_d k(d) sum_j (-1)^j C(k, j) C(b-k, d-j).

    Args:
        kernel_of_distance: k(0) ... k(b), (b + 1,).

    Returns:
        lambda_k and its multiplicity C(b, k), (b + 1,) each, by degree k = 0 ... b.

    Raises:
        ValueError: if there are not b + 1 values.
    """
    integers(n_bits=n_bits)
    tensors(kernel_of_distance=kernel_of_distance)
    _require(
        kernel_of_distance.shape == (n_bits + 1,),
        f"kernel_of_distance must have n_bits + 1 = {n_bits + 1} values, got shape {tuple(kernel_of_distance.shape)}",
    )
    degrees = range(n_bits + 1)
    krawtchouk = torch.tensor(
        [
            [sum((-1) ** j * math.comb(k, j) * math.comb(n_bits - k, d - j) for j in range(d + 1)) for d in degrees]
            for k in degrees
        ],
        dtype=kernel_of_distance.dtype,
    )
    multiplicity = torch.tensor([math.comb(n_bits, k) for k in degrees])
    return krawtchouk @ kernel_of_distance, multiplicity


# ----------------------------------------------------------------------- variance network and collapse (21-24)


class VarianceFlow(NamedTuple):
    """The variance network under a constant kernel, until a sigma collapses."""

    t: Tensor  # (T,)         the requested times up to the collapse
    mu: Tensor  # (T, N)
    sigma: Tensor  # (T, N)
    collapsed_at: float  #    time at which the first sigma reached sigma_min; inf: not up to the last time


def variance_flow(
    kernel: Tensor,
    y: Tensor,
    mu0: Tensor,
    sigma0: Tensor,
    t: Tensor,
    *,
    mean_speed: float = 1.0,
    sigma_min: float = 1e-4,
) -> VarianceFlow:
    """Eqs 21 and 23, the flow of mu and sigma under a constant kernel, integrated until a sigma collapses.

    d mu_i/dt = sum_j K_ij (y_j - mu_j) / sigma_j^2, d sigma_i/dt = sum_j K_ij ((y_j - mu_j)^2 - sigma_j^2) / sigma_j^3.
    This is the flow under the sum of the losses of eq. 8; divide the kernel by N for the mean, then t is eta * epochs.

    Args:
        kernel: one kernel for mu and sigma (N, N), or the full blocks (N, N, 2, 2) with the cross terms.
        y, mu0, sigma0: (N,); sigma0 above sigma_min.
        t: increasing times (T,), the first not negative; the flow starts at t = 0.
        mean_speed: factor on d mu/dt: 1 is the gradient of eq. 8, 1/2 is eq. 21 as printed.
        sigma_min: the sigma at which to stop; the flow reaches 0 a time of order sigma_min^2 / (2 K) later.

    Raises:
        ValueError: for shapes that do not match, sigma0 not above sigma_min, or times that do not increase.
    """
    tensors(kernel=kernel, y=y, mu0=mu0, sigma0=sigma0, t=t)
    numbers(mean_speed=mean_speed)
    positive(sigma_min=sigma_min)
    _require(y.ndim == t.ndim == 1, f"y and t must have one axis, got shapes {tuple(y.shape)} and {tuple(t.shape)}")
    n, shape = len(y), tuple(kernel.shape)
    _require(shape in ((n, n), (n, n, 2, 2)), f"kernel must have shape (N, N) or (N, N, 2, 2), N = {n}, got {shape}")
    _require(mu0.shape == sigma0.shape == y.shape, f"mu0, sigma0 and y must all have shape ({n},)")
    _require(
        bool((sigma0 > sigma_min).all()),
        f"sigma0 must be above sigma_min = {sigma_min:g}, its smallest value is {float(sigma0.min()):g}",
    )
    _require(bool((t >= 0).all() and (t.diff() > 0).all()), "t must increase from a time that is not negative")
    full = torch.einsum("ij,hk->ijhk", kernel, torch.eye(2, dtype=kernel.dtype)) if kernel.ndim == 2 else kernel
    matrix = full.permute(2, 0, 3, 1).reshape(2 * n, 2 * n).numpy()
    labels = y.numpy()

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        mu, sigma = state[:n], state[n:]
        error = labels - mu
        force = np.concatenate([mean_speed * error / sigma**2, (error**2 - sigma**2) / sigma**3])
        return matrix @ force

    def smallest_sigma(_: float, state: np.ndarray) -> float:
        return state[n:].min() - sigma_min

    smallest_sigma.terminal = True
    start = torch.cat([mu0, sigma0]).numpy()
    # rtol 1e-10, atol 1e-12: the integrals of motion then hold to 1e-8 up to the collapse (tested)
    solution = solve_ivp(
        velocity, (0.0, float(t[-1])), start, "DOP853", t.numpy(), events=smallest_sigma, rtol=1e-10, atol=1e-12
    )
    _require(solution.success, f"sigma_min = {sigma_min:g} cannot be reached: {solution.message}")
    states = torch.from_numpy(solution.y.T)
    collapsed_at = float(solution.t_events[0][0]) if len(solution.t_events[0]) else math.inf
    return VarianceFlow(torch.from_numpy(solution.t), states[:, :n], states[:, n:], collapsed_at)


def collapse_time(error: Tensor | float, sigma: Tensor | float, theta: float = 1.0) -> Tensor | float:
    """Time at which one point reaches (e, sigma) = (0, 0): (e0^2 + sigma0^2) / (2 Theta).

    For raw outputs and an isotropic kernel Theta, d(e^2 + sigma^2)/dt = -2 Theta for every location-scale family.

    Raises:
        ValueError: if theta is not positive.
    """
    positive(theta=theta)
    for name, value in (("error", error), ("sigma", sigma)):
        (tensors if isinstance(value, Tensor) else numbers)(**{name: value})
    return (error**2 + sigma**2) / (2 * theta)


def collapse_streamline(error: Tensor, error0: float, sigma0: float) -> Tensor:
    """sigma along the one-point flow through (error0, sigma0) (the streamlines of FIG. 1), at the given errors.

    sigma^2 = e^2 (C - log e^2) with C = sigma0^2/e0^2 + log e0^2: both vanish, sigma more slowly than e.  NaN where the
    streamline does not reach the error.

    Raises:
        ValueError: if error0 or sigma0 is not positive, or an error is negative.
    """
    positive(error0=error0, sigma0=sigma0)
    tensors(error=error)
    _require(bool((error >= 0).all()), f"error must not be negative, its smallest value is {float(error.min()):g}")
    constant = (sigma0 / error0) ** 2 + 2 * math.log(error0)
    squared = error**2
    return torch.sqrt(squared * constant - torch.xlogy(squared, squared))
