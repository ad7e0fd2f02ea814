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


@pytest.mark.parametrize("adam", [True, False])
def test_recipes_of_the_ensemble_are_the_snippets(adam, monkeypatch):
    """Each way in which a recipe differs, trained in the ensemble and as a user of the snippets would write it."""
    chapter = {}
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for cell in code_cells("book/real_data"):
        if cell.source.startswith("nets, data"):  # the chapter's own check
            continue
        if cell.source.startswith("RESPONSE"):
            break
        exec(cell.source, chapter)
    recipe = chapter["Recipe"]
    recipes = [
        recipe(),
        recipe(loss=lambda mean, variance, y, _: chapter["faithful"](mean, variance, y), cut=True),
        recipe(decay=0.1),
        recipe(clip=0.3),
        recipe(rate=0.1),
    ]
    nets, data, orders = chapter["NETS"]["diabetes"][:2], chapter["DATA"]["diabetes"][0], chapter["shuffles"](2, 2)
    data = chapter["Split"](data.x[:2], data.y[:2])
    kind, rate = (torch.optim.Adam, 1e-3) if adam else (torch.optim.SGD, 0.05)
    *_, state = chapter["train"](nets, recipes, data, orders, rate, adam)
    for r, trained in zip(recipes, state.weights.view(len(recipes), 2, -1)[:, 1], strict=True):
        net = chapter["Faithful" if r.cut else "MeanVariance"](10)
        net.load_state_dict(nets[1].state_dict())
        head = [net.spread.weight]
        others = [p for p in net.parameters() if p is not head[0]]
        optimizer = kind([{"params": others}, {"params": head, "weight_decay": r.decay}], lr=rate * r.rate)
        for rows in (rows for order in orders[1] for rows in order.split(32)):
            (mean, z), y = net(data.x[1, rows]), data.y[1, rows]
            variance = chapter["softplus"](z)
            optimizer.zero_grad()
            losses = chapter["faithful"](mean, variance, y) if r.cut else chapter["nll"](mean, y, variance)
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), r.clip)
            optimizer.step()
        ordinary = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        # float32, 16 steps of 1e-3 or more each: a sum in another order moves the seventh digit
        torch.testing.assert_close(trained, ordinary, rtol=1e-3, atol=1e-5)
