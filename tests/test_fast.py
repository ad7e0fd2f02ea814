"""The fast engine against the reference, `engine="torch"`.

After a collapse training is chaotic: a difference of 1e-15 grows to order 1 within some hundred epochs.  So two
engines are compared before the first failure, or over single steps, or by the statistics of many networks.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

import kbe_fast
import kbe_lib as kbe
import kbe_stats as stats
from kbe_remedies import Remedy

torch.set_num_threads(1)


def problem(n_networks, n_points, *, heads=("mu", "sigma"), n_bits=8, n_layers=3, n_channels=3, seed=1,
            dtype=torch.float64):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    params = kbe.init_networks(n_networks, heads, n_bits, n_layers, n_channels, generator=generator, dtype=dtype)
    return params, kbe.random_bit_encoding(n_networks, n_points, n_bits, generator=generator, dtype=dtype)


def both(params, data, **settings):
    return [kbe.train(params, data, engine=engine, **settings) for engine in ("torch", "fast")]


def distance(params, others):
    """Largest distance of two sets of parameters over the networks, relative to their norm."""
    theta, other = (torch.cat([p[name].flatten(1) for name in params], dim=1) for p in (params, others))
    return float(((theta - other).norm(dim=1) / theta.norm(dim=1)).max())


@pytest.mark.parametrize("n_points", [20, 40, 100, 400, 1024])
def test_parameters_agree_after_50_steps(n_points):
    params, data = problem(20, n_points)
    reference, fast = both(params, data, epochs=50)
    assert reference.failed_at.isinf().all()
    assert (reference.engine, fast.engine) == ("torch", "fast")
    assert distance(reference.params, fast.params) <= 1e-12
    torch.testing.assert_close(fast.mu, reference.mu, rtol=1e-12, atol=0)
    torch.testing.assert_close(fast.sigma, reference.sigma, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma_readout", kbe.READOUTS)
@pytest.mark.parametrize("mu_readout", kbe.READOUTS)
def test_all_pairs_of_readouts_agree(mu_readout, sigma_readout):
    params, data = problem(8, 40)
    params["sigma.bias"] += 1  # "raw" and "elu" begin at sigma = 0 otherwise, where one step already is chaotic
    reference, fast = both(params, data, epochs=50, lr=0.005, readout=(mu_readout, sigma_readout))
    assert reference.failed_at.isinf().all()
    assert distance(reference.params, fast.params) <= 1e-12


@pytest.mark.parametrize("readout", kbe.READOUTS)
def test_readouts_agree_far_from_zero(readout):
    params, data = problem(31, 6)
    params["mu.bias"] += torch.linspace(-30, 30, 31, dtype=torch.float64)[:, None]  # past softplus's threshold 20
    params["sigma.bias"] += torch.linspace(2, 40, 31, dtype=torch.float64)[:, None]
    reference, fast = both(params, data, epochs=1, lr=1e-3, readout=readout)
    assert distance(reference.params, fast.params) <= 1e-12
    torch.testing.assert_close(fast.mu, reference.mu, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("loss", kbe.LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_agree(loss, reduction):
    params, data = problem(8, 40)
    reference, fast = both(params, data, epochs=50, lr=0.002, loss=loss, reduction=reduction)
    assert distance(reference.params, fast.params) <= 1e-12


@pytest.mark.parametrize("n_points", [4, 100])
def test_average_networks_agree(n_points):
    params, data = problem(20, n_points, heads=("mu",))
    reference, fast = both(params, data, epochs=50, loss="squared")
    assert fast.sigma is None
    assert distance(reference.params, fast.params) <= 1e-12


@pytest.mark.parametrize("shape", [(6, 1, 2), (6, 4, 8), (10, 2, 8), (10, 4, 2), (7, 3, 2), (1, 2, 2), (2, 3, 2)])
@pytest.mark.parametrize("n_points", [5, 200])
def test_any_bits_layers_and_channels(shape, n_points):
    n_bits, n_layers, n_channels = shape
    params, data = problem(3, n_points, n_bits=n_bits, n_layers=n_layers, n_channels=n_channels)
    reference, fast = both(params, data, epochs=20, lr=0.05)
    assert reference.failed_at.isinf().all()
    assert distance(reference.params, fast.params) <= 1e-12


def test_float32_agrees_within_its_rounding():
    params, data = problem(20, 100, dtype=torch.float32)
    reference, fast = both(params, data, epochs=50)
    assert fast.mu.dtype == fast.failed_at.dtype == torch.float32
    assert distance(reference.params, fast.params) <= 2e-6


@pytest.mark.parametrize("n_points", [1, 2, 5, 10])
def test_small_data_agree_up_to_the_first_failure(n_points):
    params, data = problem(50, n_points)
    failed_at = kbe.train(params, data, epochs=60, engine="torch").failed_at
    compared = 0
    for epoch in range(60):  # one step from every state of the reference
        alive = failed_at > epoch + 1
        state = {name: value[alive] for name, value in params.items()}
        reference, fast = both(state, kbe.Dataset(data.x[alive], data.y[alive]), epochs=1)
        assert distance(reference.params, fast.params) <= 1e-12
        compared += int(alive.sum())
        params = kbe.train(params, data, epochs=1, engine="torch").params
    assert compared > 500


def test_saturated_units_keep_their_derivative():
    # At z = -40 ELU's derivative is 4e-18, which 1/sigma^2 = 4e15 makes visible; output + 1 would give exactly 0.
    params, data = problem(8, 20)
    params["conv3.bias"] -= 40
    params["sigma.weight"] *= 0
    params["sigma.bias"] += -18 - params["sigma.bias"]
    params["conv3.weight"] *= 0.01
    reference, fast = both(params, data, epochs=1)
    moves = [run.params["conv3.weight"] - params["conv3.weight"] for run in (reference, fast)]
    assert float(moves[0].abs().amax((1, 2, 3)).min()) > 1e-6
    torch.testing.assert_close(*moves, rtol=1e-9, atol=1e-15)

    elu = torch.nn.functional.elu

    def flawed_elu(z):
        h = elu(z).detach()
        return h + (z - z.detach()) * torch.where(z < 0, h + 1, 1.0).detach()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kbe.F, "elu", flawed_elu)
        flawed = kbe.train(params, data, epochs=1, engine="torch")
    assert torch.equal(flawed.params["conv3.weight"], params["conv3.weight"])


def test_gradients_close_to_collapse():
    params, data = problem(30, 8)
    params["sigma.bias"] -= torch.linspace(0, 60, 30, dtype=torch.float64)[:, None]
    reference, fast = both(params, data, epochs=1, lr=1e-3)
    assert float(reference.sigma[:, 0].min()) < 1e-25
    moves = [torch.cat([(r.params[k] - params[k]).flatten(1) for k in params], 1) for r in (reference, fast)]
    assert float(((moves[0] - moves[1]).norm(dim=1) / moves[0].norm(dim=1)).max()) <= 1e-11


def test_a_label_that_does_not_occur_cannot_overflow():
    params, data = problem(8, 1)
    params["mu.bias"] += 1600 * data.y - 800  # mu is y
    params["sigma.bias"] -= 400  # the square of 1/sigma is not a number any more, its product with y - mu = 0 is
    reference, fast = both(params, data, epochs=1)
    assert 0 < data.y.sum() < 8
    assert reference.frozen_at.isinf().all()
    assert fast.frozen_at.isinf().all()


@pytest.mark.parametrize("n_points", [2, 60])
def test_freezing_agrees(n_points):
    params, data = problem(40, n_points)
    # sigma from 0.5 to 1e-27, where a step is finite and a jump, and below the smallest number, where it is not finite
    below = torch.cat([torch.linspace(0, 60, 20), torch.linspace(720, 900, 20)]).double()
    params["sigma.bias"] -= below[:, None]
    reference, fast = both(params, data, epochs=4, record=range(5))
    frozen = reference.frozen_at == 1  # after that the others have jumped and are chaotic
    assert int(frozen.sum()) == 20
    assert torch.equal(frozen, fast.frozen_at == 1)
    for name, value in params.items():
        assert torch.equal(fast.params[name][frozen], value[frozen])
    assert torch.equal(fast.failed_at == 1, reference.failed_at == 1)
    assert torch.equal(fast.mu[frozen], fast.mu[frozen][:, :1].expand(-1, 5, -1))
    assert all(value.isfinite().all() for value in fast.params.values())


@pytest.mark.parametrize(("n_points", "epochs"), [(8, 100), (40, 600)])
def test_failure_statistics_agree(n_points, epochs):
    # Intervals of 99.9 %: if the runs were independent, one in about fifty pairs would lie outside them.
    runs = {}
    for dtype in (torch.float64, torch.float32):
        params, data = problem(256, n_points, seed=3)
        params = {name: value.to(dtype) for name, value in params.items()}
        runs[dtype] = kbe.train(params, data, epochs=epochs, workers=2)
    failed, failed_single = (int(run.failed_at.isfinite().sum()) for run in runs.values())
    _, low, high = stats.fraction(failed, 256, confidence=0.999)
    assert 0.05 < failed / 256 < 0.95
    assert low <= failed_single / 256 <= high
    reference = kbe.train(params, data, epochs=epochs, engine="torch").failed_at.isfinite().sum()
    assert low <= int(reference) / 256 <= high


def test_lanes_and_threads_do_not_change_results():
    params, data = problem(37, 30)
    whole = kbe.train(params, data, epochs=30, workers=1)
    for part, workers in ((slice(0, 37), 3), (slice(5, 6), 1), (slice(3, 30), 2)):
        some = kbe.train({k: v[part] for k, v in params.items()}, kbe.Dataset(data.x[part], data.y[part]), epochs=30,
                         workers=workers)  # fmt: skip
        assert torch.equal(some.mu, whole.mu[part])
        assert all(torch.equal(some.params[name], whole.params[name][part]) for name in params)


@pytest.mark.parametrize(
    ("dtype", "logits"),
    [
        (torch.float32, [-40, -87, -87.6, -87.9, -90, -200]),  # 1 / sigma overflows near -88.5
        (torch.float64, [-400, -708, -708.6, -708.9, -711, -2000]),  # and near -709.5
    ],
)
def test_sigma_falls_to_its_last_number(dtype, logits):
    # Where mu is its label to the last bit, the loss is log sigma alone, and sigma's logit falls by lr in an epoch,
    # also where sigma is no longer a normal number; where 1 / sigma overflows the state is not finite.
    params, data = problem(len(logits), 1, dtype=dtype)
    params = {name: torch.zeros_like(value) for name, value in params.items()}
    params["mu.bias"][:] = 60
    params["sigma.bias"][:, 0] = torch.tensor(logits, dtype=dtype)
    reference, fast = both(params, data._replace(y=torch.ones_like(data.y)), epochs=3, lr=0.125)
    assert fast.frozen_at.tolist() == reference.frozen_at.tolist() == [torch.inf] * 4 + [1, 1]
    for run in (reference, fast):  # subtracting 1/8 rounds at most at the last place of the logit
        moved = (run.params["sigma.bias"] - params["sigma.bias"])[:4, 0]
        torch.testing.assert_close(moved, torch.full_like(moved, -0.375), rtol=0, atol=3e-5)


@pytest.mark.parametrize("n_points", [1, 5])
@pytest.mark.parametrize("heads", [("mu", "sigma"), ("mu",)])
def test_leaving_networks_at_rest_behind_changes_no_digit(n_points, heads, monkeypatch):
    params, data = problem(40, n_points, heads=heads, dtype=torch.float32)
    trained, train_lanes = [], kbe_fast.train_lanes

    def spy(*arguments):
        trained.append((arguments[13], len(arguments[-6])))  # epochs, and rows of strings: one for each network
        train_lanes(*arguments)

    def run(first_stage):
        monkeypatch.setattr(kbe_fast, "FIRST_STAGE", first_stage)
        return kbe.train(params, data, epochs=1000, lr=0.1, loss="squared" if len(heads) == 1 else "gaussian",
                         record=[0, 1, 64, 65, 300, 900])  # fmt: skip

    at_once = run(1000)
    monkeypatch.setattr(kbe_fast, "train_lanes", spy)
    staged = run(64)
    if len(heads) == 2:
        moving = sum(n_networks for n_epochs, n_networks in trained if n_epochs == 1000 - 512)  # in the last stage
        assert trained[:3] == [(64, 16), (64, 16), (64, 8)]
        assert moving < 20  # more than half of the networks are at rest, so there is something to compare
    for whole, part in zip(at_once, staged, strict=True):
        if isinstance(whole, torch.Tensor):
            assert torch.equal(whole, part)
    assert all(torch.equal(value, staged.params[name]) for name, value in at_once.params.items())


def test_where_all_are_at_rest_training_ends(monkeypatch):
    params, data = problem(20, 5)
    params["mu.bias"][:], params["mu.weight"][:] = 800, 0  # a sigmoid that is 1 to the last bit, its slope 0
    calls, train_lanes = [], kbe_fast.train_lanes
    monkeypatch.setattr(kbe_fast, "train_lanes", lambda *arguments: (calls.append(1), train_lanes(*arguments)))
    params = {name: value for name, value in params.items() if not name.startswith("sigma")}
    run = kbe.train(params, data, epochs=10**7, loss="squared", record=[0, 10**6])
    assert len(calls) == 3  # one for each block of the first stage
    assert torch.equal(run.mu, torch.ones_like(run.mu))


def test_stages():
    assert kbe_fast.stages_of(0) == [(0, 0)]
    assert kbe_fast.stages_of(64) == [(0, 64)]
    assert kbe_fast.stages_of(65) == [(0, 64), (64, 65)]
    assert kbe_fast.stages_of(1000) == [(0, 64), (64, 128), (128, 256), (256, 512), (512, 1000)]


def test_training_on_continues_exactly():
    params, data = problem(20, 30)
    whole = kbe.train(params, data, epochs=40, record=[0, 7, 25, 40])
    first = kbe.train(params, data, epochs=25, record=[7])
    second = kbe.train(first.params, data, epochs=15)
    assert all(torch.equal(second.params[name], whole.params[name]) for name in params)
    assert torch.equal(first.mu[:, 0], whole.mu[:, 1])
    assert torch.equal(second.mu, whole.mu[:, 2:])
    assert whole.epochs.tolist() == [0, 7, 25, 40]


def test_arguments_are_left_alone_and_denormals_too():
    params, data = problem(5, 20)
    before = {name: value.clone() for name, value in params.items()}
    kbe.train(params, data, epochs=5)
    assert all(torch.equal(params[name], before[name]) for name in params)
    denormal = torch.tensor(1e-310, dtype=torch.float64)
    assert float(denormal * 1) > 0
    torch.set_flush_denormal(True)
    try:
        kbe.train(params, data, epochs=5)
        assert float(denormal * 1) == 0  # what a user has set stays
    finally:
        torch.set_flush_denormal(False)
    with pytest.raises(KeyError), kbe_fast.flushed_denormals():
        raise KeyError
    assert float(denormal * 1) > 0


def test_distinct_units_of_eight_bits():
    strings = np.arange(256)[:, None] >> np.arange(7, -1, -1) & 1
    assert np.diff(kbe_fast.make_plan(strings, 3).first).tolist() == [1, 8, 48, 224]


def test_auto_takes_what_it_can():
    params, data = problem(3, 10)
    assert kbe.train(params, data, epochs=1).engine == "fast"
    assert kbe.train(params, data, epochs=1, loss=kbe.gaussian_nll).engine == "torch"
    assert kbe.train(params, data._replace(y=data.y + 0.5), epochs=1).engine == "torch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(engine="quick"), "engine must be 'auto', 'fast' or 'torch', got 'quick'"),
        (dict(engine="fast", loss=kbe.gaussian_nll), "loss to be one of .*'gaussian'.* got <function gaussian_nll"),
        (dict(engine="fast", data="labels"), "data.y to be 0 or 1 everywhere, got 0.5"),
        (dict(engine="fast", data="inputs"), "data.x to be 0 or 1 everywhere, got -1"),
        (dict(engine="fast", dtype=torch.bfloat16), "float32 or float64, got torch.bfloat16"),
        (dict(workers=0), "workers must be at least 1, got 0"),
        (dict(readout="tanh"), "readout must be one of .* got 'tanh'"),
        (dict(data="bits"), "x must have 8 bits"),
    ],
)
def test_what_it_cannot_do_it_says(change, message):
    dtype = change.pop("dtype", torch.float64)
    params, data = problem(3, 10)
    params = {name: value.to(dtype) for name, value in params.items()}
    match change.pop("data", None):
        case "labels":
            data = data._replace(y=data.y.masked_fill(data.y == 1, 0.5))
        case "inputs":
            data = data._replace(x=2 * data.x - 1)
        case "bits":
            data = data._replace(x=data.x[..., :7])
    with pytest.raises(ValueError, match=message):
        kbe.train(params, data, epochs=1, **change)


def test_numba_is_imported_only_to_train():
    code = "import sys, kbe_lib; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("remedy", [Remedy(adam=True), Remedy(label_noise=0.1, seed=3), Remedy(dropout=0.3, seed=3)])
def test_no_stage_begins_where_a_step_depends_on_more_than_the_state(remedy):
    params, data = problem(3, 20)
    epochs = kbe_fast.FIRST_STAGE + 16
    torch_run, fast_run = both(params, data, epochs=epochs, lr=0.01, remedy=remedy)
    # eighty small steps far from a failure: roundings of 1e-16 have not grown to a millionth of that
    torch.testing.assert_close(fast_run.mu, torch_run.mu, rtol=1e-10, atol=1e-10)
