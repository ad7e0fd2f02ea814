import math

import pytest
import torch

import kbe_lib as kbe


def test_all_inputs_count_from_zero_in_binary():
    x = kbe.all_inputs(3)
    assert x.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]


def test_strings_and_labels_are_fair(generator):
    data = kbe.random_bit_encoding(500, 40, generator=generator)
    assert data.x.shape == (500, 40, 8)
    assert data.y.shape == (500, 40)
    assert set(data.x.unique().tolist()) == set(data.y.unique().tolist()) == {0.0, 1.0}
    # 20,000 coins: five standard deviations are 0.018, so a fair coin fails here once in a million seeds
    assert (data.x.mean((0, 1)) - 0.5).abs().max() < 0.018
    assert abs(float(data.y.mean()) - 0.5) < 0.018


def test_labels_know_nothing_of_their_strings_or_neighbours(generator):
    """Correlations of 20,000 coins: one passes 0.035 once in a million seeds; a dependence of 5 % is seen."""
    data = kbe.random_bit_encoding(500, 40, generator=generator)
    x, y = 2 * data.x - 1, 2 * data.y - 1
    assert (x * y[..., None]).mean((0, 1)).abs().max() < 0.035
    assert abs(float((y * y.roll(1, dims=1)).mean())) < 0.035
    assert abs(float((y * y.roll(1, dims=0)).mean())) < 0.035


def test_replacement_repeats_as_often_as_it_should(generator):
    data = kbe.random_bit_encoding(4000, 20, generator=generator)
    numbers = (data.x @ (2.0 ** torch.arange(8, dtype=torch.float64))).sort(dim=1).values
    distinct = (numbers.diff(dim=1) > 0).all(dim=1).double().mean()
    expected = math.prod(1 - i / 256 for i in range(20))  # 0.47
    assert abs(float(distinct) - expected) < 5 * math.sqrt(expected * (1 - expected) / 4000)


def test_without_replacement_all_strings_can_be_used_once(generator):
    data = kbe.random_bit_encoding(3, 256, replacement=False, generator=generator)
    for x in data.x:
        assert len(x.unique(dim=0)) == 256


@pytest.mark.parametrize("replacement", [True, False])
def test_one_seed_one_data_set(replacement):
    first, second = (
        kbe.random_bit_encoding(2, 9, replacement=replacement, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.y, second.y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n_networks=0, n_points=1), "n_networks must be at least 1, got 0"),
        (dict(n_networks=1, n_points=0), "n_points must be at least 1, got 0"),
        (dict(n_networks=1, n_points=257, replacement=False), "n_points must be at most 2\\^n_bits = 256 .*got 257"),
        (dict(n_networks=1, n_points=1, n_bits=0), "n_bits must be between 1 and 20, got 0"),
    ],
)
def test_bad_sizes(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        kbe.random_bit_encoding(**arguments, generator=generator)
