import numpy as np
import pytest
import torch

import kbe_lib as kbe


def gradients(params, x, readout, head):
    """d f_head(x_i)/dw for one network by one backward pass per input, (N, P)."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    outputs = kbe.logits(leaves, x)[0] if readout is None else torch.stack(kbe.predict(leaves, x, readout), dim=-1)[0]
    rows = []
    for i in range(len(x)):
        grads = torch.autograd.grad(outputs[i, head], leaves.values(), retain_graph=True, allow_unused=True)
        pairs = zip(grads, leaves.values(), strict=True)
        rows.append(torch.cat([torch.zeros_like(v).flatten() if g is None else g.flatten() for g, v in pairs]))
    return torch.stack(rows)


@pytest.mark.parametrize("readout", [None, "sigmoid", ("raw", "softplus")])
def test_block_is_the_product_of_gradients(readout, generator):
    params = kbe.init_networks(1, generator=generator)
    x1, x2 = kbe.all_inputs()[:5], kbe.all_inputs()[100:103]
    theta = kbe.empirical_ntk(params, x1, x2, readout)
    assert theta.shape == (1, 5, 3, 2, 2)
    for h in range(2):
        for k in range(2):
            expected = gradients(params, x1, readout, h) @ gradients(params, x2, readout, k).T
            torch.testing.assert_close(theta[0, :, :, h, k], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("heads", [("mu",), ("mu", "sigma")])
def test_predicts_a_step_with_slope_one_in_the_learning_rate(heads, generator):
    """The prediction's relative error is first order in eta, so its logarithm has slope 1."""
    loss = "gaussian" if len(heads) == 2 else "squared"
    params, data = kbe.init_networks(8, heads, generator=generator), kbe.random_bit_encoding(8, 20, generator=generator)

    def outputs(p, x):
        mu, sigma = kbe.predict(p, x)
        return mu[..., None] if sigma is None else torch.stack([mu, sigma], dim=-1)

    x = kbe.all_inputs()
    at_data = outputs(params, data.x).requires_grad_()
    sigma = at_data[..., 1] if len(heads) == 2 else None
    (dL,) = torch.autograd.grad(kbe.LOSSES[loss](data.y, at_data[..., 0], sigma).mean(1).sum(), at_data)
    rate = -torch.einsum("mijhk,mjk->mih", kbe.empirical_ntk(params, x, data.x), dL)
    etas, errors = [1e-4, 1e-3, 1e-2], []
    for eta in etas:
        step = outputs(kbe.train(params, data, epochs=1, lr=eta, loss=loss).params, x) - outputs(params, x)
        errors.append(float((step / eta - rate).norm() / rate.norm()))
    slope = np.polyfit(np.log(etas), np.log(errors), 1)[0]
    assert errors[0] < 1e-3
    assert slope == pytest.approx(1, abs=0.05)  # the next order contributes eta * curvature, below 5 % here


def test_same_inputs_for_all_or_each_its_own(generator):
    params = kbe.init_networks(3, generator=generator)
    x = kbe.random_bit_encoding(3, 6, generator=generator).x
    each = kbe.empirical_ntk(params, x)
    for m in range(3):
        one = kbe.empirical_ntk({k: v[m : m + 1] for k, v in params.items()}, x[m])
        torch.testing.assert_close(each[m], one[0], rtol=1e-12, atol=1e-13)


def test_many_networks_are_what_each_is_alone(generator):
    """Networks are taken some at a time; 20 of them on all inputs are more than one such part."""
    params, inputs = kbe.init_networks(20, generator=generator), kbe.all_inputs()
    x2 = kbe.random_bit_encoding(20, 3, generator=generator).x
    together, with_others = kbe.empirical_ntk(params, inputs), kbe.empirical_ntk(params, inputs, x2)
    for m in (0, 15, 16, 19):
        one = {k: v[m : m + 1] for k, v in params.items()}
        torch.testing.assert_close(together[m], kbe.empirical_ntk(one, inputs)[0], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(with_others[m], kbe.empirical_ntk(one, inputs, x2[m])[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("like", [torch.zeros(1), torch.zeros(1).double(), torch.zeros(1, device="meta")])
def test_large_results_are_of_the_type_and_on_the_device_of_the_networks(like):
    memory = kbe._large((2, 3), like)
    assert (memory.shape, memory.dtype, memory.device) == ((2, 3), like.dtype, like.device)


def test_symmetric_and_positive(generator):
    theta = kbe.empirical_ntk(kbe.init_networks(2, generator=generator), kbe.all_inputs()[::8])
    matrix = theta.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)
    torch.testing.assert_close(matrix, matrix.mT, rtol=1e-12, atol=1e-13)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


def test_hamming_and_exponential_kernel():
    x = kbe.all_inputs(3)
    d = kbe.hamming(x)
    assert d[0].tolist() == [0, 1, 1, 2, 1, 2, 2, 3]
    assert kbe.hamming(x[:2], x[5:]).tolist() == [[2, 2, 3], [1, 3, 2]]
    torch.testing.assert_close(kbe.exponential_kernel(d, 0.7), torch.exp(-0.7 * d), rtol=1e-15, atol=0)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        kbe.exponential_kernel(d, 0)
    with pytest.raises(ValueError, match="same number of bits, got 3 and 4"):
        kbe.hamming(x, kbe.all_inputs(4))
    with pytest.raises(ValueError, match="same number of bits, got 3 and 4"):
        kbe.hamming(torch.zeros(2, 5, 3), torch.zeros(2, 6, 4))


def test_networks_that_have_diverged_are_no_reason_to_warn(generator, recwarn):
    params = kbe.init_networks(2, generator=generator)
    params["conv2.weight"][0] *= 1e200
    theta = kbe.empirical_ntk(params, kbe.all_inputs(), readout=None)
    assert not theta[0].isfinite().all()
    assert theta[1].isfinite().all()
    assert not recwarn
