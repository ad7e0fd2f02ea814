import functools
import math

import pytest
import torch
from modules import Network, stacked

import kbe_lib as kbe
import kbe_stats as stats


@pytest.fixture(params=["torch", "fast"])
def train(request):
    """Both engines keep the same promises."""
    return functools.partial(kbe.train, engine=request.param)


def trained_by_hand(module, x, y, epochs, lr, reduction="mean"):
    """Ordinary SGD on an ordinary module with sigmoid readouts."""
    optimiser = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(epochs):
        mu, sigma = torch.sigmoid(module(x)).T
        loss = getattr(-torch.distributions.Normal(mu, sigma).log_prob(y), reduction)()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_training_equals_sgd_on_modules(train, reduction, generator):
    modules = [Network().double() for _ in range(4)]
    data = kbe.random_bit_encoding(4, 20, generator=generator)
    lr, epochs = (0.1, 40) if reduction == "mean" else (0.005, 40)
    run = train(stacked(modules), data, epochs=epochs, lr=lr, reduction=reduction, chunk=3)
    for i, module in enumerate(modules):
        trained_by_hand(module, data.x[i], data.y[i], epochs, lr, reduction)
    for name, expected in stacked(modules).items():
        # 40 steps of roundings of 1e-16, amplified by the curvature; far before any failure
        torch.testing.assert_close(run.params[name], expected, rtol=1e-11, atol=1e-13)


def test_average_network_equals_sgd_on_squared_error(train, generator):
    module = Network(heads=("mu",)).double()
    data = kbe.random_bit_encoding(1, 9, generator=generator)
    run = train(stacked([module]), data, epochs=30, loss="squared")
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(30):
        optimiser.zero_grad()
        (0.5 * torch.nn.functional.mse_loss(torch.sigmoid(module(data.x[0])).squeeze(1), data.y[0])).backward()
        optimiser.step()
    for name, expected in stacked([module]).items():
        torch.testing.assert_close(run.params[name], expected, rtol=1e-12, atol=1e-14)
    assert run.sigma is None


def test_records_are_the_states_at_their_epochs(train, generator):
    params, data = kbe.init_networks(3, generator=generator), kbe.random_bit_encoding(3, 12, generator=generator)
    run = train(params, data, epochs=12, record=[12, 0, 5])
    assert run.epochs.tolist() == [0, 5, 12]
    assert run.mu.shape == run.sigma.shape == (3, 3, 12)
    for t, epoch in enumerate(run.epochs.tolist()):
        state = train(params, data, epochs=epoch).params
        mu, sigma = kbe.predict(state, data.x)
        torch.testing.assert_close(run.mu[:, t], mu, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(run.sigma[:, t], sigma, rtol=1e-13, atol=1e-14)


def test_training_on_continues(train, generator):
    params, data = kbe.init_networks(3, generator=generator), kbe.random_bit_encoding(3, 12, generator=generator)
    whole = train(params, data, epochs=30)
    halves = train(train(params, data, epochs=13).params, data, epochs=17)
    for name in params:
        torch.testing.assert_close(whole.params[name], halves.params[name], rtol=1e-12, atol=1e-14)


def test_chunks_do_not_matter(train, generator):
    params, data = kbe.init_networks(5, generator=generator), kbe.random_bit_encoding(5, 12, generator=generator)
    one, many = (train(params, data, epochs=20, chunk=chunk) for chunk in (5, 2))
    torch.testing.assert_close(one.mu, many.mu, rtol=1e-12, atol=1e-14)
    assert torch.equal(one.failed_at, many.failed_at)


def test_the_caller_s_parameters_are_left_alone(train, generator):
    params, data = kbe.init_networks(2, generator=generator), kbe.random_bit_encoding(2, 5, generator=generator)
    before = {k: v.clone() for k, v in params.items()}
    train(params, data, epochs=3)
    assert all(torch.equal(before[k], params[k]) for k in params)


def test_failure_is_the_first_jump(train, generator):
    params, data = kbe.init_networks(64, generator=generator), kbe.random_bit_encoding(64, 5, generator=generator)
    run = train(params, data, epochs=120, record=range(121))
    outputs = torch.cat([run.mu, run.sigma], dim=2)
    moved = outputs.diff(dim=1).abs().amax(2)  # (M, 120), entry t is the step from epoch t to t + 1
    for m in range(64):
        jumps = [t + 1 for t in range(120) if moved[m, t] > kbe.JUMP]
        first = min([*jumps[:1], float(run.frozen_at[m])])
        assert run.failed_at[m] == first
    assert (run.failed_at <= 120).sum() > 10  # so that the loop above has tested something
    assert (run.failed_at > 120).sum() > 3


@pytest.mark.parametrize("remedy", [kbe.PLAIN, kbe.Remedy(dropout=0.9)])
def test_a_frozen_network_keeps_its_last_finite_state(train, remedy, generator):
    """Also where the next step would be another one, because dropout is drawn anew."""
    params, data = kbe.init_networks(16, generator=generator), kbe.random_bit_encoding(16, 1, generator=generator)
    run = train(params, data, epochs=60, readout=("raw", "exp"), record=range(61), remedy=remedy)
    frozen = run.frozen_at <= 60
    assert frozen.sum() > 5  # so that the loop below tests something
    assert (run.failed_at <= run.frozen_at).all()
    for m in frozen.nonzero().flatten().tolist():
        epoch = int(run.frozen_at[m])
        assert (run.mu[m, epoch:] == run.mu[m, epoch - 1]).all()
        assert (run.sigma[m, epoch:] == run.sigma[m, epoch - 1]).all()
    assert run.mu.isfinite().all()
    assert all(v.isfinite().all() for v in run.params.values())


def test_one_diverging_network_does_not_touch_the_others(train, generator):
    params, data = kbe.init_networks(2, generator=generator), kbe.random_bit_encoding(2, 20, generator=generator)
    params["sigma.bias"][0] = -400.0  # sigma = 1e-174: the first step of this network overflows
    pair = train(params, data, epochs=30)
    alone = train({k: v[1:] for k, v in params.items()}, kbe.Dataset(data.x[1:], data.y[1:]), epochs=30)
    assert pair.failed_at[0] == 1
    torch.testing.assert_close(pair.mu[1], alone.mu[0], rtol=1e-13, atol=1e-14)


def test_float32_stays_float32(train, generator):
    params = kbe.init_networks(2, generator=generator, dtype=torch.float32)
    run = train(params, kbe.random_bit_encoding(2, 5, generator=generator), epochs=3)
    assert run.mu.dtype == torch.float32


def test_data_take_the_type_of_the_parameters(train, generator):
    params = kbe.init_networks(4, generator=generator, dtype=torch.float32)
    data = kbe.random_bit_encoding(4, 9, generator=generator)
    wide, narrow = (train(params, kbe.Dataset(*d), epochs=20) for d in (data, (v.float() for v in data)))
    assert torch.equal(wide.mu, narrow.mu)
    assert all(torch.equal(wide.params[name], narrow.params[name]) for name in params)


def test_variances():
    run = kbe.Run(
        epochs=torch.tensor([0]),
        mu=torch.tensor([[[0.0, 0.5]]]),
        sigma=torch.tensor([[[1.0, 3.0]]]),
        failed_at=torch.tensor([math.inf]),
        frozen_at=torch.tensor([math.inf]),
        params={},
        engine="torch",
    )
    v, v_star = kbe.variances(run, torch.tensor([[1.0, 0.0]]))
    assert v.tolist() == [[(1 + 0.25) / 2]]
    assert v_star.tolist() == [[5.0]]


def test_fraction_is_the_wilson_interval():
    estimate, low, high = stats.fraction(8, 10)
    z = 1.959963984540054
    centre, spread = (0.8 + z**2 / 20) / (1 + z**2 / 10), z * math.sqrt(0.8 * 0.2 / 10 + z**2 / 400) / (1 + z**2 / 10)
    assert (estimate, low, high) == pytest.approx((0.8, centre - spread, centre + spread), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(lr=0.0), "lr must be positive, got 0.0"),
        (dict(lr=-1.0), "lr must be positive, got -1.0"),
        (dict(lr=math.nan), "lr must be finite, got nan"),
        (dict(epochs=-1), "epochs must be at least 0, got -1"),
        (dict(record=[11]), "record must be between 0 and 10, got 11"),
        (dict(record=[-1]), "record must be between 0 and 10, got -1"),
        (dict(readout="relu"), "readout must be one of .* got 'relu'"),
        (dict(loss="poisson"), "loss must be one of .* got 'poisson'"),
        (dict(reduction="max"), "reduction must be 'mean' or 'sum', got 'max'"),
        (dict(chunk=0), "chunk must be at least 1, got 0"),
    ],
)
def test_bad_settings(train, generator, change, message):
    params, data = kbe.init_networks(2, generator=generator), kbe.random_bit_encoding(2, 5, generator=generator)
    with pytest.raises(ValueError, match=message):
        train(params, data, **(dict(epochs=10) | change))


def test_bad_data(train, generator):
    params, data = kbe.init_networks(2, generator=generator), kbe.random_bit_encoding(2, 5, generator=generator)
    average = kbe.init_networks(2, heads=("mu",), generator=generator)
    with pytest.raises(ValueError, match=r"data.y must have the shape \(M, N\) = \(2, 5\) of data.x, got \(2, 4\)"):
        train(params, kbe.Dataset(data.x, data.y[:, :4]), epochs=1)
    with pytest.raises(ValueError, match=r"data.x must have shape .* M = 2 networks .* got \(1, 5, 8\)"):
        train(params, kbe.Dataset(data.x[:1], data.y[:1]), epochs=1)
    with pytest.raises(ValueError, match="data.y must be finite, got 1 NaN or inf"):
        train(params, kbe.Dataset(data.x, torch.where(torch.arange(10).view(2, 5) == 3, math.nan, data.y)), epochs=1)
    with pytest.raises(ValueError, match="loss 'gaussian' needs a sigma head; an average network takes 'squared'"):
        train(average, data, epochs=1)
    run = train(average, data, epochs=1, loss="squared")
    with pytest.raises(ValueError, match="run must be of variance networks, these have no sigma"):
        kbe.variances(run, data.y)


def test_a_change_of_just_the_jump_is_no_failure(train, generator):
    params, data = kbe.init_networks(1, generator=generator), kbe.random_bit_encoding(1, 5, generator=generator)
    largest = float(train(params, data, epochs=10).kick)
    assert train(params, data, epochs=10, jump=largest).failed_at.isinf().all()
    assert train(params, data, epochs=10, jump=math.nextafter(largest, 0)).failed_at.isfinite().all()


def test_data_may_be_whole_numbers_and_the_run_names_its_engine(train, generator):
    params, data = kbe.init_networks(2, generator=generator), kbe.random_bit_encoding(2, 7, generator=generator)
    run, whole = train(params, data, epochs=5), train(params, kbe.Dataset(data.x.long(), data.y.long()), epochs=5)
    assert torch.equal(run.mu, whole.mu)
    assert run.engine == whole.engine == train.keywords["engine"]
