import pytest
import torch
from modules import Network, stacked

import kbe_lib as kbe

ARCHITECTURES = [
    dict(heads=heads, n_bits=n_bits, n_layers=n_layers, n_channels=n_channels)
    for heads in (("mu",), ("mu", "sigma"))
    for n_bits, n_layers, n_channels in ((8, 3, 3), (1, 1, 1), (5, 2, 4), (10, 4, 2))
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ensemble_equals_modules(architecture, generator):
    modules = [Network(**architecture).double() for _ in range(3)]
    x = kbe.random_bit_encoding(3, 7, architecture["n_bits"], generator=generator).x
    expected = torch.stack([module(x[i]) for i, module in enumerate(modules)])
    # sums of some dozen terms of order 1 in another order
    torch.testing.assert_close(kbe.logits(stacked(modules), x), expected.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initialisation_has_names_shapes_and_bounds_of_modules(architecture, generator):
    ours, theirs = kbe.init_networks(400, generator=generator, **architecture), stacked([Network(**architecture)])
    assert {k: v.shape[1:] for k, v in ours.items()} == {k: v.shape[1:] for k, v in theirs.items()}
    for name, values in ours.items():
        fan_in = theirs[name.replace("bias", "weight")][0, 0].numel()
        bound = fan_in**-0.5
        assert values.abs().max() <= bound
        # the largest of at least 400 uniform numbers is below 0.95 of the bound once in 10^8 seeds
        assert values.abs().max() > 0.95 * bound
        assert values.min() < 0


def test_average_network_shares_trunk_and_mean_with_variance_network():
    average, variance = (
        kbe.init_networks(2, heads=heads, generator=torch.Generator().manual_seed(3))
        for heads in (("mu",), ("mu", "sigma"))
    )
    for name, values in average.items():
        assert torch.equal(values, variance[name])


def test_same_inputs_for_all_networks(generator):
    params = kbe.init_networks(4, generator=generator)
    x = kbe.all_inputs()
    torch.testing.assert_close(kbe.logits(params, x), kbe.logits(params, x.expand(4, -1, -1)), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("readout", [*kbe.READOUTS, ("raw", "exp"), ("sigmoid", "softplus")])
def test_readouts(readout, generator):
    params = kbe.init_networks(4, generator=generator)
    x = kbe.all_inputs()
    z = kbe.logits(params, x)
    by_hand = {
        "raw": lambda z: z,
        "elu": torch.nn.functional.elu,
        "elu+1": lambda z: torch.nn.functional.elu(z) + 1,
        "softplus": lambda z: torch.log1p(torch.exp(z)),
        "exp": torch.exp,
        "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    }
    pair = (readout, readout) if isinstance(readout, str) else readout
    mu, sigma = kbe.predict(params, x, readout)
    torch.testing.assert_close(mu, by_hand[pair[0]](z[..., 0]), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(sigma, by_hand[pair[1]](z[..., 1]), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("readout", [name for name in kbe.READOUTS if name not in ("raw", "elu")])
def test_log_sigma_survives_where_sigma_is_smallest(readout):
    z = torch.tensor([[0.0, -600.0], [0.0, 3.0], [0.0, -0.5]], dtype=torch.float64, requires_grad=True)
    _, sigma, log_sigma = kbe._read(z, readout)
    torch.testing.assert_close(log_sigma, sigma.log(), rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(log_sigma.sum(), z)
    assert slope.isfinite().all()
    assert slope[0, 1] == pytest.approx(1, rel=1e-12)  # every positive readout is exp(z) far below 0


def test_average_network_has_no_sigma(generator):
    mu, sigma = kbe.predict(kbe.init_networks(2, heads=("mu",), generator=generator), kbe.all_inputs())
    assert mu.shape == (2, 256)
    assert sigma is None


@pytest.mark.parametrize("readout", ["relu", ("sigmoid",), ("sigmoid", "relu"), ("raw", "raw", "raw")])
def test_unknown_readout(readout, generator):
    with pytest.raises(ValueError, match="readout must be one of .*got"):
        kbe.predict(kbe.init_networks(1, generator=generator), kbe.all_inputs(), readout)


def test_inputs_are_of_the_type_of_params_and_of_a_shape_that_fits(generator):
    params, x = kbe.init_networks(3, generator=generator), kbe.all_inputs()[:5]
    everyone, same = kbe.predict(params, x)[0], kbe.predict(params, x[None])[0]
    assert torch.equal(everyone, same)
    with pytest.raises(ValueError, match="x must be of the type of params, torch.float64, got torch.int64"):
        kbe.predict(params, x.long())
    with pytest.raises(ValueError, match=r"params\['conv1.weight'\] must be float32 or float64, got torch.int64"):
        kbe.predict({name: value.long() for name, value in params.items()}, x.long())
    with pytest.raises(ValueError, match="x must have shape .* with M = 3, got \\(2, 5, 8\\)"):
        kbe.predict(params, x.expand(2, -1, -1))


def test_wrong_number_of_bits(generator):
    with pytest.raises(ValueError, match=r"x must have 8 bits in its last dimension, got shape \(64, 6\)"):
        kbe.predict(kbe.init_networks(1, generator=generator), kbe.all_inputs(6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n_networks=0), "n_networks must be at least 1, got 0"),
        (dict(n_networks=1, n_layers=0), "n_layers must be at least 1, got 0"),
        (dict(n_networks=1, heads=("sigma",)), "heads must be .* got \\('sigma',\\)"),
    ],
)
def test_bad_architecture(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        kbe.init_networks(**arguments, generator=generator)
