"""Likelihoods and remedies: the two engines against each other, each remedy against what it should do."""

from functools import partial

import numpy as np
import pytest
import torch
from modules import Network
from torch.func import functional_call

import kbe_lib as kbe
from kbe_remedies import scramble, uniform

REMEDIES = {
    "clip": kbe.Remedy(clip=0.05),
    "sigma_lr": kbe.Remedy(sigma_lr=0.3),
    "sigma_decay": kbe.Remedy(sigma_decay=0.1),
    "sigma_to_trunk": kbe.Remedy(sigma_to_trunk=False),
    "adam": kbe.Remedy(adam=True),
    "held_out": kbe.Remedy(held_out=0.3),
    "label_noise": kbe.Remedy(label_noise=0.2, seed=5),
    "dropout": kbe.Remedy(dropout=0.3, seed=6),
    "all at once": kbe.Remedy(0.5, 0.5, 0.1, False, True, 0.4, 0.1, 0.2, 7),
}
LIKELIHOODS = {
    "Student-t, nu = 7": partial(kbe.student_t_nll, nu=7.0),
    "beta = 1": partial(kbe.beta_nll, beta=1.0),
    "eps = 0.1": partial(kbe.clamped_nll, eps=0.1),
    "prior": partial(kbe.gamma_prior_nll, shape=1.5, rate=0.1),
} | {name: name for name in kbe.LOSSES}


def problem(n_networks, n_points, seed=1, heads=("mu", "sigma"), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    params = kbe.init_networks(n_networks, heads, generator=generator, dtype=dtype)
    return params, kbe.random_bit_encoding(n_networks, n_points, generator=generator, dtype=dtype)


def flat(params):
    return torch.cat([value.flatten(1) for value in params.values()], dim=1)


def assert_engines_agree(params, data, tolerance=1e-12, **settings):
    reference, fast = (kbe.train(params, data, engine=engine, **settings) for engine in ("torch", "fast"))
    a, b = flat(reference.params), flat(fast.params)
    assert not torch.equal(a, flat(params))
    assert float(((a - b).norm(dim=1) / a.norm(dim=1)).max()) <= tolerance
    torch.testing.assert_close(fast.kick, reference.kick, rtol=1e-9, atol=1e-12)
    assert torch.equal(fast.failed_at, reference.failed_at)
    return reference


@pytest.mark.parametrize("n_points", [20, 60])  # points on their own, and tables of all strings
@pytest.mark.parametrize("remedy", REMEDIES)
def test_engines_agree_under_every_remedy(remedy, n_points):
    params, data = problem(11, n_points)
    # Adam divides by the root of a gradient that starts anywhere between 1 and 1e-9: rounding grows by that much
    tolerance = 1e-9 if REMEDIES[remedy].adam else 1e-12
    assert_engines_agree(params, data, tolerance, epochs=50, lr=0.01, remedy=REMEDIES[remedy])


@pytest.mark.parametrize("remedy", REMEDIES)
def test_what_is_recorded_is_what_the_network_gives(remedy):
    params, data = problem(3, 20)
    run = kbe.train(params, data, epochs=2, lr=0.01, remedy=REMEDIES[remedy], engine="torch")
    mu, sigma = kbe.predict(run.params, data.x)
    torch.testing.assert_close(run.mu[:, -1], mu, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(run.sigma[:, -1], sigma, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("loss", LIKELIHOODS)
@pytest.mark.parametrize("readout", ["sigmoid", ("raw", "softplus"), ("raw", kbe.Floored("raw", 0.3)), ("raw", "exp")])
def test_engines_agree_under_every_likelihood(loss, readout):
    params, data = problem(8, 20)
    assert_engines_agree(params, data, epochs=50, lr=0.005, loss=LIKELIHOODS[loss], readout=readout, jump=10.0)


@pytest.mark.parametrize("loss", LIKELIHOODS)
@pytest.mark.parametrize("remedy", ["held_out", "sigma_to_trunk", "dropout"])
def test_engines_agree_under_likelihoods_with_remedies(loss, remedy):
    params, data = problem(8, 20)
    remedy = REMEDIES[remedy]
    assert_engines_agree(params, data, epochs=50, lr=0.005, loss=LIKELIHOODS[loss], remedy=remedy)


def test_a_step_size_for_each_network():
    params, data = problem(10, 20)
    lr = torch.linspace(0, 0.09, 10, dtype=torch.float64)
    run = assert_engines_agree(params, data, epochs=20, lr=lr)
    alone = kbe.train({k: v[4:5] for k, v in params.items()}, kbe.Dataset(data.x[4:5], data.y[4:5]), epochs=20, lr=0.04)
    torch.testing.assert_close(alone.mu[0], run.mu[4], rtol=1e-12, atol=0)
    assert torch.equal(flat(run.params)[0], flat(params)[0])


def test_float32_takes_all_remedies_at_once():
    params, data = problem(5, 20, dtype=torch.float32)
    run = kbe.train(params, data, epochs=3, remedy=REMEDIES["all at once"], readout=("raw", kbe.Floored("exp", 0.1)))
    assert run.engine == "fast"
    assert run.mu.dtype == run.kick.dtype == torch.float32


def ordinary(params, network):
    """One network of an ensemble as an ordinary module."""
    module = Network(tuple(name[:-7] for name in params if name.endswith(".weight") and name[:4] != "conv")).double()
    module.load_state_dict({name: value[network] for name, value in params.items()})
    return module


@pytest.mark.parametrize("engine", ["fast", "torch"])
@pytest.mark.parametrize("settings", ["clip", "sigma_decay", "sigma_lr", "adam"])
def test_steps_are_those_of_torch_optim(engine, settings):
    params, data = problem(2, 20)
    run = kbe.train(params, data, epochs=20, lr=0.01, remedy=REMEDIES[settings], engine=engine)
    module, remedy = ordinary(params, 1), REMEDIES[settings]
    rest = [value for name, value in module.named_parameters() if not name.startswith("sigma")]
    head = dict(params=module.sigma.parameters(), lr=0.01 * remedy.sigma_lr, weight_decay=remedy.sigma_decay)
    optimiser = (torch.optim.Adam if remedy.adam else torch.optim.SGD)([dict(params=rest), head], lr=0.01)
    for _ in range(20):
        mu, sigma = torch.sigmoid(module(data.x[1])).unbind(1)
        optimiser.zero_grad()
        kbe.gaussian_nll(data.y[1], mu, sigma).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), remedy.clip)
        optimiser.step()
    for name, value in module.named_parameters():
        # torch's clipping divides by the norm + 1e-6
        torch.testing.assert_close(run.params[name][1], value.detach(), rtol=1e-5, atol=1e-6)


def trained_by_hand(params, data, network, epochs, lr, remedy, loss):
    """One network under a remedy, written once more with ordinary modules and autograd."""
    module, x, y = ordinary(params, network), data.x[network], data.y[network]
    names, values = zip(*module.named_parameters(), strict=True)
    n, moments = len(y), [(0.0, 0.0)] * len(names)
    for epoch in range(epochs):
        h = x[:, None]
        for convolution in (module.conv1, module.conv2, module.conv3):
            h = torch.nn.functional.elu(convolution(h))
        h = h.flatten(1)
        random = uniform(remedy.seed, torch.tensor([network]), epoch, n * (1 + h.shape[1]))[0]
        labels = torch.where(random[:n] < remedy.label_noise, 1 - y, y)
        h = h * (random[n:].view(h.shape) >= remedy.dropout) / (1 - remedy.dropout)
        own = h if remedy.sigma_to_trunk else h.detach()
        mu, sigma = torch.sigmoid(module.mu(h)).squeeze(1), torch.sigmoid(module.sigma(own)).squeeze(1)
        spread = [sigma, sigma.log()]
        if "nu" in module.heads:
            spread.append(2 + torch.nn.functional.softplus(module.nu(own)).squeeze(1))
        rest = n - round(remedy.held_out * n)
        if rest == n:
            objective = loss(labels, mu, *spread).mean()
        else:
            of_mu = loss(labels, mu, *(v.detach() for v in spread))[:rest].mean()
            objective = of_mu + loss(labels, mu.detach(), *spread)[rest:].mean()
        gradients = torch.autograd.grad(objective, values)
        norm = float(torch.cat([g.flatten() for g in gradients]).norm())
        for i, (name, value, g) in enumerate(zip(names, values, gradients, strict=True)):
            of_sigma = name.startswith("sigma")
            g = g * min(1, remedy.clip / norm) + (remedy.sigma_decay * value if of_sigma else 0)
            if remedy.adam:
                moments[i] = 0.9 * moments[i][0] + 0.1 * g, 0.999 * moments[i][1] + 0.001 * g**2
                first, second = moments[i][0] / (1 - 0.9 ** (epoch + 1)), moments[i][1] / (1 - 0.999 ** (epoch + 1))
                g = first / (second.sqrt() + 1e-8)
            value.data -= lr * (remedy.sigma_lr if of_sigma else 1) * g.detach()
    return module


@pytest.mark.parametrize("heads", [("mu", "sigma"), ("mu", "sigma", "nu")])
@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_remedy_by_hand(remedy, heads):
    params, data = problem(3, 10, heads=heads)
    loss, remedy = kbe.LOSSES["gaussian" if len(heads) == 2 else "student_t"], REMEDIES[remedy]
    run = kbe.train(params, data, epochs=3, lr=0.05, loss=loss, remedy=remedy, chunk=2, engine="torch")
    for network in range(3):
        for name, value in trained_by_hand(params, data, network, 3, 0.05, remedy, loss).named_parameters():
            # Adam divides by the root of a gradient that can be as small as 1e-9: rounding grows by that much
            expected = dict(rtol=1e-7, atol=1e-9) if remedy.adam else dict(rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(run.params[name][network], value.detach(), **expected)


@pytest.mark.parametrize("remedy", ["clip", "held_out", "sigma_to_trunk"])
def test_a_loss_of_one_s_own_is_handed_sigma_and_its_logarithm(remedy):
    params, data = problem(2, 10)

    def own(y, mu, sigma, log_sigma):
        return log_sigma + 0.5 * ((y - mu) / sigma) ** 2

    settings = dict(epochs=3, lr=0.05, remedy=REMEDIES[remedy], engine="torch")
    one, other = (kbe.train(params, data, loss=loss, **settings) for loss in (own, "gaussian"))
    torch.testing.assert_close(flat(one.params), flat(other.params), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ["fast", "torch"])
@pytest.mark.parametrize("loss", ["gaussian", "laplace", "student_t", "clamped", "gamma_prior"])
def test_gradients_are_finite_differences(engine, loss):
    params, data = problem(1, 20)
    readout = ("raw", kbe.Floored("softplus", 0.2))
    moved = kbe.train(params, data, epochs=1, lr=1.0, loss=loss, readout=readout, engine=engine, jump=99.0).params
    module, h = ordinary(params, 0), 1e-6

    def value(name, place, change):
        state = {k: v.detach().clone() for k, v in module.named_parameters()}
        state[name].view(-1)[place] += change
        z = functional_call(module, state, (data.x[0],))
        sigma = torch.sqrt(torch.nn.functional.softplus(z[:, 1]) ** 2 + 0.2**2)
        return float(kbe.LOSSES[loss](data.y[0], z[:, 0], sigma).mean())

    for name in params:
        for place in (0, params[name][0].numel() - 1):
            central = (value(name, place, h) - value(name, place, -h)) / (2 * h)
            step = float((params[name] - moved[name]).view(-1)[place])
            assert step == pytest.approx(central, rel=1e-6, abs=1e-8)  # h^2 f''' / 6 and rounding / h


@pytest.mark.parametrize("engine", ["fast", "torch"])
def test_trunk_and_sigma_go_their_own_ways(engine):
    params, data = problem(6, 20)
    twin = {name: value for name, value in params.items() if not name.startswith("sigma")}
    mean = kbe.train(twin, data, epochs=200, loss="squared", engine=engine)
    faithful = kbe.train(
        params, data, epochs=200, loss="faithful", remedy=kbe.Remedy(sigma_to_trunk=False), engine=engine
    )
    torch.testing.assert_close(faithful.mu, mean.mu, rtol=1e-12, atol=1e-13)  # as if sigma were not there
    entangled = kbe.train(params, data, epochs=200, loss="faithful", engine=engine)
    assert float((entangled.mu - mean.mu).abs().max()) > 1e-3


@pytest.mark.parametrize("engine", ["fast", "torch"])
def test_held_out_labels_never_reach_mu(engine):
    params, data = problem(6, 20)
    other = data._replace(y=torch.cat([data.y[:, :14], 1 - data.y[:, 14:]], dim=1))
    remedy = kbe.Remedy(held_out=0.3, sigma_to_trunk=False)
    runs = [kbe.train(params, d, epochs=30, loss="faithful", remedy=remedy, engine=engine) for d in (data, other)]
    torch.testing.assert_close(runs[0].mu, runs[1].mu, rtol=0, atol=0)
    assert not torch.equal(runs[0].sigma, runs[1].sigma)
    # and mu learns as on the 14 points alone
    alone = kbe.train(params, kbe.Dataset(data.x[:, :14], data.y[:, :14]), epochs=30, loss="faithful", engine=engine,
                      remedy=kbe.Remedy(sigma_to_trunk=False))  # fmt: skip
    torch.testing.assert_close(alone.mu, runs[0].mu[..., :14], rtol=1e-12, atol=1e-13)


def test_label_noise_learns_the_smoothed_label():
    # With p = 1/2 a label says nothing; with squared error the average of many epochs is 1/2 everywhere.
    params, data = problem(16, 20, heads=("mu",))
    run = kbe.train(params, data, epochs=3000, lr=0.05, loss="squared", remedy=kbe.Remedy(label_noise=0.5))
    # 16 networks of 20 points whose step per epoch is small: the standard error of their mean is below 0.01
    assert float((run.mu[:, -1] - 0.5).mean().abs()) < 0.03
    clean = kbe.train(params, data, epochs=3000, lr=0.05, loss="squared")
    assert float((run.mu[:, -1] - 0.5).abs().mean()) < 0.5 * float((clean.mu[:, -1] - 0.5).abs().mean())


def test_random_numbers_are_uniform_and_independent():
    # 60,000 numbers: the standard error of a mean is 0.0012, of a correlation 0.004; limits at five of them
    u = uniform(3, torch.arange(20), 7, 3000)
    assert u.shape == (20, 3000)
    assert 0 <= float(u.min()) < float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.006
    assert abs(float(u.var()) - 1 / 12) < 0.002
    for other in (uniform(4, torch.arange(20), 7, 3000), uniform(3, torch.arange(1, 21), 7, 3000),
                  uniform(3, torch.arange(20), 8, 3000), u.roll(1, 1), u.roll(1, 0)):  # fmt: skip
        assert abs(float(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1])) < 0.02
    assert torch.equal(uniform(3, torch.tensor([4]), 7, 10)[0], u[4, :10])


def test_scramble_is_splitmix64():
    # the first outputs of the generator from seed 1234567, as published with it
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert scramble(np.array([1234567], np.uint64), np.arange(3, dtype=np.uint64)).tolist() == expected


def test_the_largest_seed_is_one_like_others():
    seed = 2**63 - 1
    kbe.Remedy(dropout=0.5, seed=seed).check(20, with_sigma=True)
    assert not torch.equal(uniform(seed, torch.arange(2), 0, 9), uniform(seed - 1, torch.arange(2), 0, 9))


def test_one_point_is_enough_on_either_side():
    for held_out, number in ((0.2, 1), (0.8, 4)):
        remedy = kbe.Remedy(held_out=held_out)
        remedy.check(5, with_sigma=True)
        assert remedy.n_held_out(5) == number


def test_noise_does_not_depend_on_chunks_or_threads():
    params, data = problem(19, 20)
    settings = dict(epochs=10, remedy=kbe.Remedy(dropout=0.4, label_noise=0.1, seed=2))
    runs = [kbe.train(params, data, **settings, **how) for how in (
        dict(engine="torch"), dict(engine="torch", chunk=7), dict(workers=1), dict(workers=3))]  # fmt: skip
    for run in runs[1:]:
        torch.testing.assert_close(run.mu, runs[0].mu, rtol=1e-12, atol=1e-13)
    other = kbe.train(params, data, epochs=10, remedy=settings["remedy"]._replace(seed=3))
    assert not torch.allclose(other.mu, runs[0].mu, rtol=1e-3, atol=0)


def test_dropout_is_judged_without_dropout():
    # an untrained network stands still if it does not learn, whatever is dropped
    params, data = problem(4, 20)
    for engine in ("fast", "torch"):
        run = kbe.train(params, data, epochs=20, lr=1e-12, remedy=kbe.Remedy(dropout=0.5), engine=engine)
        assert float(run.kick.max()) < 1e-8


def test_a_floor_is_a_floor():
    params, data = problem(8, 5)
    for name in ("sigmoid", "softplus", "exp", "raw"):
        run = kbe.train(params, data, epochs=300, readout=("sigmoid", kbe.Floored(name, 0.3)))
        assert float(run.sigma.min()) >= 0.3
        _, sigma = kbe.predict(run.params, data.x, ("sigmoid", kbe.Floored(name, 0.3)))
        torch.testing.assert_close(sigma, run.sigma[:, -1], rtol=1e-12, atol=0)


def test_learned_degrees_of_freedom():
    params, data = problem(4, 20, heads=("mu", "sigma", "nu"))
    run = kbe.train(params, data, epochs=30, loss="student_t")
    assert run.engine == "torch"
    z = kbe.logits(run.params, data.x)
    nu = kbe.degrees_of_freedom(z[..., 2])
    assert (nu > 2).all()
    assert not torch.equal(run.params["nu.weight"], params["nu.weight"])
    module = ordinary(params, 2)
    z = module(data.x[2])
    mu, sigma, nu = torch.sigmoid(z[:, 0]), torch.sigmoid(z[:, 1]), 2 + torch.nn.functional.softplus(z[:, 2])
    (-torch.distributions.StudentT(nu, mu, sigma).log_prob(data.y[2])).mean().backward()
    one = kbe.train(params, data, epochs=1, loss="student_t")
    for name, value in module.named_parameters():
        torch.testing.assert_close(one.params[name][2], (value - 0.1 * value.grad).detach(), rtol=1e-11, atol=1e-13)


def test_kick_is_the_furthest_move(generator):
    params, data = problem(32, 5)
    for engine in ("fast", "torch"):
        run = kbe.train(params, data, epochs=120, record=range(121), engine=engine)
        moves = torch.cat([run.mu, run.sigma], dim=2).diff(dim=1).abs().amax((1, 2))
        expected = torch.where(run.frozen_at.isfinite(), torch.inf, moves)
        assert torch.equal(run.kick, expected)
        failed = kbe.train(params, data, epochs=120, jump=float(run.kick.median()), engine=engine).failed_at.isfinite()
        assert 0 < int(failed.sum()) < 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(remedy=kbe.Remedy(clip=0.0)), "clip must be positive, got 0.0"),
        (dict(remedy=kbe.Remedy(sigma_lr=-1.0)), "sigma_lr must be finite and not negative, got -1.0"),
        (dict(remedy=kbe.Remedy(sigma_decay=np.inf)), "sigma_decay must be finite, got inf"),
        (dict(remedy=kbe.Remedy(dropout=1.0)), "dropout must be at least 0 and below 1, got 1.0"),
        (dict(remedy=kbe.Remedy(label_noise=-0.1)), "label_noise must be at least 0 and below 1, got -0.1"),
        (dict(remedy=kbe.Remedy(held_out=0.01)), "held_out must leave points on both sides, 5 of 5 are mu's"),
        (dict(remedy=kbe.Remedy(seed=-1)), "seed must be at least 0, got -1"),
        (dict(jump=0.0), "jump must be positive, got 0.0"),
        (dict(lr=torch.ones(3)), r"lr must be a number or have shape \(2,\), got \(3,\)"),
        (dict(lr=torch.tensor([0.1, -0.1])), "lr must not be negative, its smallest value is -0.1"),
        (dict(readout=("raw", kbe.Floored("tanh", 0.1))), "readout must be one of"),
        (dict(readout=("raw", kbe.Floored("exp", -0.1))), "floor must be finite and not negative, got -0.1"),
        (dict(engine="fast", loss=partial(kbe.beta_nll, beta=0.7)), "beta to be 0.5 or 1.0, got 0.7"),
        (dict(engine="fast", loss=partial(kbe.student_t_nll, mu=1.0)), "parameters of loss 'student_t' to be floats"),
    ],
)
def test_bad_settings_say_so(change, message):
    params, data = problem(2, 5)
    with pytest.raises(ValueError, match=message):
        kbe.train(params, data, epochs=1, **change)


def test_third_head_and_held_out_say_what_they_need():
    params, data = problem(2, 5, heads=("mu", "sigma", "nu"))
    with pytest.raises(ValueError, match="engine 'fast' needs one head or two, got a third one"):
        kbe.train(params, data, epochs=1, loss="student_t", engine="fast")
    params, data = problem(2, 5, heads=("mu",))
    with pytest.raises(ValueError, match="^held_out needs networks with a sigma head$"):
        kbe.train(params, data, epochs=1, loss="squared", remedy=kbe.Remedy(held_out=0.4))
