"""What the pages call code to copy runs with PyTorch alone, without the book's helpers."""

import ast

import pytest
import torch
from test_chapters import code_cells


def run_until_helpers(page):
    """The names that a page's cells define before the first one that imports a helper."""
    names = {}
    for cell in code_cells(page):
        if "import kbe_" in cell.source:
            return names
        exec(cell.source, names)
    raise AssertionError(f"{page} imports no helper")


@pytest.mark.parametrize("loss", ["beta_nll", "floored_nll", "faithful"])
def test_remedies(loss, generator):
    copied = run_until_helpers("book/remedies")
    x = torch.randint(2, (20, 8), generator=generator).double()
    y = torch.randint(2, (20,), generator=generator).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = copied["Network"](detach=loss == "faithful").double()
        before = copied[loss](y, *net(x)).item()
        copied["fit"](net, copied[loss], x, y, steps=50, clip=1.0)
        assert copied[loss](y, *net(x)).item() < before
        assert copied["sharpness_of"](net, copied[loss], x, y) > 0


def test_the_loop_we_would_write(generator):
    copied = run_until_helpers("book/real_data")  # the imports
    wanted = {"MeanVariance", "softplus", "fit_and_stop"}
    for cell in code_cells("book/real_data"):
        for node in ast.parse(cell.source).body:
            if getattr(node, "name", None) in wanted:
                exec(ast.unparse(node), copied)
    x = torch.rand(300, 3, generator=generator)
    y = torch.sin(3 * x[:, 0]) + 0.2 * torch.randn(300, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = copied["fit_and_stop"](copied["MeanVariance"](3), (x[:200], y[:200]), (x[200:], y[200:]), epochs=30)
    mean, z = net(x[200:])
    inside = (y[200:] - mean).abs() < 1.96 * copied["softplus"](z).sqrt()
    assert inside.float().mean() > 0.85  # nominal 0.95; of 100 points 0.85 is 4.6 standard errors below
