"""The torch path on a GPU.  Skips, visibly, where there is none."""

import pytest
import torch

import kbe_lib as kbe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")


def on_gpu(values):
    return {k: v.cuda() for k, v in values.items()}


def test_training_runs_unchanged_and_agrees_with_the_cpu(generator):
    params, data = kbe.init_networks(16, generator=generator), kbe.random_bit_encoding(16, 50, generator=generator)
    there = kbe.train(on_gpu(params), kbe.Dataset(data.x.cuda(), data.y.cuda()), epochs=50, record=[0, 10, 50])
    here = kbe.train(params, data, epochs=50, record=[0, 10, 50], engine="torch")
    assert there.engine == "torch"
    assert there.mu.device.type == "cuda"
    # fifty steps of roundings in another order, before any failure
    torch.testing.assert_close(there.mu.cpu(), here.mu, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(there.failed_at.cpu(), here.failed_at, rtol=0, atol=0)


def test_the_host_does_not_wait_for_the_device_in_an_epoch(generator):
    params, data = kbe.init_networks(4, generator=generator), kbe.random_bit_encoding(4, 5, generator=generator)
    params, data = on_gpu(params), kbe.Dataset(data.x.cuda(), data.y.cuda())
    kbe.train(params, data, epochs=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        theta = torch.cat([v.flatten(1) for v in params.values()], dim=1)
        assert theta.device.type == "cuda"
        lr, networks = torch.full((4,), 0.1, device="cuda"), torch.arange(4)
        kbe._train_chunk(params, data.x, data.y, 20, lr, kbe.gaussian_nll, "sigmoid", [0, 20], 1, kbe.PLAIN, kbe.JUMP,
                         networks)  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_kernel_agrees_with_the_cpu(generator):
    params, x = kbe.init_networks(2, generator=generator), kbe.all_inputs()[::16]
    there = kbe.empirical_ntk(on_gpu(params), x.cuda())
    torch.testing.assert_close(there.cpu(), kbe.empirical_ntk(params, x), rtol=1e-10, atol=1e-12)
