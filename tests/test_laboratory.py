"""The laboratory: the same computation as `kbe_lib`, addresses that are parsed strictly, a page that can be used.

Runs in the system's Chromium; without one these tests skip on a user's machine and fail in CI, which installs one.
"""

import json
import math
import os
import re
import shutil

import pytest
import torch
from playwright.sync_api import sync_playwright
from test_chapters import PAGES, ROOT
from torch.func import hessian, vmap

import kbe_lib as kbe

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
LAB = ROOT / "_lab" / "lab"

if BROWSER is None:
    if os.environ.get("CI"):
        pytest.fail("no browser: install chromium", pytrace=False)
    pytest.skip("no browser: install chromium to test the laboratory", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def science(browser, tmp_path_factory):
    """A page with `kbeLab` and nothing else, opened as a file."""
    path = tmp_path_factory.mktemp("lab") / "science.html"
    path.write_text(f'<!doctype html><script src="{(LAB / "kbe_lab.js").as_uri()}"></script>', encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    return page


# ------------------------------------------------------------------------------------------- the same as kbe_lib

# What the laboratory calls it -> what kbe_lib calls it
LOSSES = {
    "gaussian": kbe.gaussian_nll,
    "printed": kbe.printed_loss,
    "laplace": kbe.laplace_nll,
    "student_t": kbe.student_t_nll,
    "beta-0.5": kbe.beta_nll,
    "beta-1": lambda *point: kbe.beta_nll(*point, beta=1.0),
}
SIGMOIDS = ("sigmoid", "sigmoid")


def draw(n_networks, n_points, seed=0, n_bits=8):
    generator = torch.Generator().manual_seed(seed)
    params = kbe.init_networks(n_networks, n_bits=n_bits, generator=generator)
    return params, kbe.random_bit_encoding(n_networks, n_points, n_bits, generator=generator)


def to_laboratory(params, data, **settings):
    """What the laboratory reads."""
    return {
        "format": "kbe-lab 1",
        "settings": settings,
        "params": {name: value.tolist() for name, value in params.items()},
        "x": data.x.int().tolist(),
        "y": data.y.int().tolist(),
    }


TRAIN = """([state, epochs]) => {
    const { networks, settings } = kbeLab.importState(state);
    for (const network of networks) for (let k = 0; k < epochs; k++) network.step();
    return {
        mu: networks.map((network) => Array.from(network.pointOutputs().mu)),
        sigma: networks.map((network) => Array.from(network.pointOutputs().sigma)),
        loss: networks.map((network) => network.loss()),
        state: kbeLab.exportState(networks, settings),
    };
}"""


def laboratory_trains(science, state, epochs):
    result = science.evaluate(TRAIN, [state, epochs])
    tensors = {key: torch.tensor(result[key], dtype=torch.float64) for key in ("mu", "sigma", "loss")}
    params = {k: torch.tensor(v, dtype=torch.float64) for k, v in result["state"]["params"].items()}
    failed = torch.tensor([math.inf if at is None else at for at in result["state"]["failed_at"]])
    return tensors, params, failed


def agree(mine, theirs, rtol=1e-9, atol=1e-12):
    """rtol: sums of some thousand terms in another order, over 50 steps.  atol: outputs near 0 are differences."""
    torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


PAIRS = [(name, name) for name in kbe.READOUTS] + [
    ("raw", "exp"), ("raw", "softplus"), ("raw", "elu+1"), ("raw", "sigmoid"), ("sigmoid", "exp"), ("sigmoid", "softplus"),
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_outputs_after_50_epochs_are_those_of_kbe_lib(science, loss):
    epochs, compared = 50, 0
    for readout in PAIRS:
        params, data = draw(8, 20, seed=len(readout[0]))
        # unbounded readouts collapse within 50 epochs at the paper's step
        lr = 0.1 if readout[1] == "sigmoid" else 0.01
        run = kbe.train(params, data, epochs=epochs, lr=lr, loss=LOSSES[loss], readout=readout, engine="torch")
        state = to_laboratory(params, data, lr=lr, mu=readout[0], sigma=readout[1], loss=loss)
        mine, final, failed = laboratory_trains(science, state, epochs)
        assert torch.equal(failed, run.failed_at), readout
        sound = run.failed_at > epochs  # what collapsed before is chaotic
        compared += int(sound.sum())
        agree(mine["mu"][sound], run.mu[sound, -1])
        agree(mine["sigma"][sound], run.sigma[sound, -1])
        for name in final:
            agree(final[name][sound], run.params[name][sound], atol=1e-11)
    print(f"{loss}: {compared} of {8 * len(PAIRS)} networks compared")
    assert compared >= 4 * len(PAIRS)
