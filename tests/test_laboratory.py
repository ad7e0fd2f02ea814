"""The laboratory: the same computation as `kbe_lib`, addresses that are parsed strictly, a page that can be used.

Runs in the system's Chromium; without one these tests skip on a user's machine and fail in CI, which installs one.
"""

import itertools
import json
import math
import os
import re
import shutil
from functools import partial

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from test_chapters import PAGES, ROOT
from torch.func import hessian, vmap

import kbe_lib as kbe

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAB = ROOT / "_lab" / "lab"

if BROWSER is None:
    if os.environ.get("CI"):
        pytest.fail("no browser: install chromium", pytrace=False)
    pytest.skip("no browser: install chromium to test the laboratory", allow_module_level=True)


@pytest.fixture(scope="module")
def science(browser, tmp_path_factory):
    """A page with `kbeLab` and nothing else, opened as a file."""
    path = tmp_path_factory.mktemp("lab") / "science.html"
    path.write_text(f'<!doctype html><script src="{(LAB / "kbe_lab.js").as_uri()}"></script>', encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    return page


# ------------------------------------------------------------------------------------------- the same as kbe_lib

# What the laboratory calls it: what kbe_lib calls it
LOSSES = {
    "gaussian": kbe.gaussian_nll,
    "printed": kbe.printed_loss,
    "laplace": kbe.laplace_nll,
    "student_t": kbe.student_t_nll,
    "beta-0.5": partial(kbe.beta_nll, beta=0.5),
    "beta-1": partial(kbe.beta_nll, beta=1.0),
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
    ("raw", "exp"), ("raw", "softplus"), ("raw", "sigmoid"), ("sigmoid", "exp"), ("sigmoid", "softplus"),
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
    assert compared >= 4 * len(PAIRS), f"only {compared} of {8 * len(PAIRS)} networks were sound"


@pytest.mark.parametrize("readout", kbe.READOUTS)
def test_readouts_far_out(science, readout):
    """Value, slope, logarithm and its slope, also where a sigma underflows: log sigma comes from the logit."""
    values = [-800.0, -745.5, -60.0, -5.0, -0.1, 0.1, 5.0, 25.0, 60.0]
    z = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    value, log = kbe._read(torch.stack([z, z], dim=-1), ("raw", readout))[1:]
    theirs = {"value": value, "slope": torch.autograd.grad(value.sum(), z, retain_graph=True)[0], "log": log}
    theirs["logSlope"] = torch.autograd.grad(log.sum(), z)[0]
    for name, expected in theirs.items():
        mine = science.evaluate(
            "([readout, name, z]) => z.map((z) => kbeLab.READOUTS[readout][name](z)).map(String)",
            [readout, name, values],
        )
        mine = torch.tensor([float(text) for text in mine], dtype=torch.float64)
        sound = expected.isfinite()  # where a softplus has underflowed it has no logarithm
        assert sound.sum() >= 7
        # rtol: elu's exp(z) - 1 and torch's sigmoid' round differently; atol: the smallest normal number
        torch.testing.assert_close(mine[sound], expected[sound].detach(), rtol=1e-12, atol=3e-308)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_per_point_is_that_of_kbe_lib(science, loss):
    for readout in PAIRS:
        params, data = draw(4, 10)
        run = kbe.train(params, data, epochs=0, readout=readout, engine="torch")
        mu, sigma = run.mu[:, 0], run.sigma[:, 0]
        state = to_laboratory(params, data, mu=readout[0], sigma=readout[1], loss=loss)
        mine, *_ = laboratory_trains(science, state, 0)
        agree(mine["loss"], LOSSES[loss](data.y, mu, sigma, sigma.abs().log()).mean(1))


@pytest.mark.parametrize("bits", [3, 10])
def test_other_bits(science, bits):
    params, data = draw(4, 30, n_bits=bits)
    run = kbe.train(params, data, epochs=50, engine="torch")
    mine, *_ = laboratory_trains(science, to_laboratory(params, data), 50)
    agree(mine["mu"], run.mu[:, -1])


@pytest.mark.parametrize("readout", [SIGMOIDS, ("raw", "exp"), ("raw", "raw")])
def test_floor(science, readout):
    params, data = draw(8, 20)
    floored = (readout[0], kbe.Floored(readout[1], 0.3))
    run = kbe.train(params, data, epochs=50, readout=floored, lr=0.03, engine="torch")
    state = to_laboratory(params, data, mu=readout[0], sigma=readout[1], lr=0.03, remedy="floor", floor=0.3)
    mine, *_ = laboratory_trains(science, state, 50)
    agree(mine["mu"], run.mu[:, -1])
    agree(mine["sigma"], run.sigma[:, -1])


def test_clipping(science):
    params, data = draw(8, 20)
    clipped = kbe.train(params, data, epochs=50, remedy=kbe.Remedy(clip=0.05), engine="torch")
    plain = kbe.train(params, data, epochs=50, engine="torch")
    assert not torch.allclose(clipped.mu, plain.mu), "nothing was clipped"
    mine, *_ = laboratory_trains(science, to_laboratory(params, data, remedy="clip", clip=0.05), 50)
    agree(mine["mu"], clipped.mu[:, -1])


def test_smaller_step(science):
    params, data = draw(8, 20)
    run = kbe.train(params, data, epochs=50, lr=0.1 / 3, engine="torch")
    mine, *_ = laboratory_trains(science, to_laboratory(params, data, remedy="slow", slow=3), 50)
    agree(mine["sigma"], run.sigma[:, -1])


def test_gradient_of_a_saturated_unit_comes_from_its_input(science):
    """At z = -38 an ELU is -1 to the last digit; its slope, 3e-17, still meets an error over sigma^3 of 1e17."""
    params, data = draw(4, 1)
    params["conv3.bias"] = params["conv3.bias"] - 38
    _, sigma = kbe.predict(params, data.x, "raw")
    params["sigma.bias"] = params["sigma.bias"] - sigma + 1e-6
    lr = 0.01
    state = to_laboratory(params, data, lr=lr, mu="raw", sigma="raw")
    _, final, _ = laboratory_trains(science, state, 1)
    theirs = kbe.train(params, data, epochs=1, lr=lr, readout="raw", engine="torch").params
    for layer in ("conv1", "conv2", "conv3"):
        change = theirs[f"{layer}.bias"] - params[f"{layer}.bias"]
        assert (change.abs().amax(1) > 1e-4).all(), "the state does not test what it should"
        # rtol: sigma is a difference that keeps 10 digits, and enters three times
        torch.testing.assert_close(final[f"{layer}.bias"] - params[f"{layer}.bias"], change, rtol=1e-6, atol=1e-10)


def test_collapsed_sigma_is_taken_from_its_logit(science):
    """Where sigma has become 1e-30 and less, one more step is still the same."""
    params, data = draw(64, 1)
    run = kbe.train(params, data, epochs=300, lr=0.02, engine="torch")
    calm = (run.frozen_at > 300) & (run.sigma[:, -1, 0] < 1e-12) & (run.sigma[:, -1, 0] > 0)
    assert calm.sum() >= 2
    state = {k: v[calm] for k, v in run.params.items()}
    data = kbe.Dataset(data.x[calm], data.y[calm])
    after = kbe.train(state, data, epochs=1, lr=0.02, engine="torch")
    mine, *_ = laboratory_trains(science, to_laboratory(state, data, lr=0.02), 1)
    agree(mine["sigma"], after.sigma[:, -1], rtol=1e-9, atol=0)


# ------------------------------------------------------------------------------------------------- what it looks at

LOOK = """([state, epochs]) => {
    const { networks } = kbeLab.importState(state);
    for (const network of networks) for (let k = 0; k < epochs; k++) network.step();
    return networks.map((network) => ({
        ...kbeLab.stability(network), ...kbeLab.predictionScale(network), ...network.variances(),
        points: Array.from(network.stringOf).map((s, i) => [s, network.data.y[i]]),
        counts: Array.from(network.counts),
    }));
}"""


def sharpness(params, data, loss, readout):
    """Largest eigenvalue of the Gauss-Newton curvature of the mean loss (the chapter on collapse), from its parts."""
    read = {name: (value, log) for name, (value, log) in kbe._READOUTS.items()}

    def point(z, y):
        return loss(y, read[readout[0]][0](z[0]), read[readout[1]][0](z[1]), read[readout[1]][1](z[1]))

    H = vmap(vmap(hessian(point)))(kbe.logits(params, data.x), data.y)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    z = kbe.logits(leaves, data.x)
    rows = []
    for i, head in itertools.product(range(z.shape[1]), range(2)):  # networks do not depend on each other
        parts = torch.autograd.grad(
            z[:, i, head].sum(), list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.flatten(1) for part in parts], dim=1))
    J = torch.stack(rows, dim=1).unflatten(1, (-1, 2))  # (M, N, 2, P)
    G = torch.einsum("mihp,mihk,mikq->mpq", J, H, J) / data.y.shape[1]
    return torch.linalg.eigvalsh(G)[:, -1]


@pytest.mark.parametrize("loss", ["gaussian", "student_t", "printed"])
@pytest.mark.parametrize("readout", [SIGMOIDS, ("raw", "exp")])
def test_sharpness_edge_and_scale(science, loss, readout):
    epochs, lr = 40, 0.02
    params, data = draw(6, 12)
    run = kbe.train(params, data, epochs=epochs, lr=lr, loss=LOSSES[loss], readout=readout, engine="torch")
    state = to_laboratory(params, data, lr=lr, mu=readout[0], sigma=readout[1], loss=loss)
    mine = science.evaluate(LOOK, [state, epochs])
    # the laboratory's curvature is a difference quotient of the gradient
    S = torch.tensor([look["etaS"] for look in mine], dtype=torch.float64) / lr
    torch.testing.assert_close(S, sharpness(run.params, data, LOSSES[loss], readout), rtol=1e-5, atol=1e-8)
    theta = kbe.empirical_ntk(run.params, data.x, readout=readout)[..., 0, 0]
    floor = (lr * torch.linalg.eigvalsh(theta)[:, -1] / data.y.shape[1] / 2).sqrt()
    torch.testing.assert_close(
        torch.tensor([look["floor"] for look in mine], dtype=torch.float64), floor, rtol=1e-6, atol=0
    )
    scale = kbe.prediction_scale(kbe.hamming(data.x), data.y, run.mu[:, -1])
    # a minimum is found to the root of the last digit
    torch.testing.assert_close(
        torch.tensor([look["alpha"] for look in mine], dtype=torch.float64), scale.alpha, rtol=1e-4, atol=1e-5
    )
    V, V_star = kbe.variances(run, data.y)
    agree(torch.tensor([look["V"] for look in mine], dtype=torch.float64), V[:, -1])
    agree(torch.tensor([look["Vstar"] for look in mine], dtype=torch.float64), V_star[:, -1])


def test_place_on_the_ricker_diagram(science):
    epochs, lr = 9, 0.1
    params, data = draw(16, 1)
    run = kbe.train(params, data, epochs=epochs, lr=lr, engine="torch")
    mine = science.evaluate(LOOK, [to_laboratory(params, data, lr=lr), epochs])
    mu, sigma = run.mu[:, -1, 0], run.sigma[:, -1, 0]
    e = mu - data.y[:, 0]
    sound = (run.failed_at > epochs) & (e != 0)
    assert sound.sum() >= 8
    D = torch.stack([mu * (1 - mu) / e, 1 - sigma], dim=-1)  # derivatives of ln|e| and ln sigma by the logits
    K = D[:, :, None] * kbe.empirical_ntk(run.params, data.x, readout=None)[:, 0, 0] * D[:, None, :]
    grow = K[:, 1, 1] - K[:, 0, 1]
    x = (e / sigma) ** 2 * (K[:, 0, 0] + K[:, 1, 1] - 2 * K[:, 0, 1]) / grow
    for name, value in (("r", 2 * lr * grow), ("x", x)):
        found = torch.tensor([look[name][0] for look in mine], dtype=torch.float64)
        torch.testing.assert_close(found[sound], value[sound], rtol=1e-7, atol=0)


def test_largest_eigenvalue(science):
    generator = torch.Generator().manual_seed(3)
    for n in (1, 2, 30):
        A = torch.randn(n, n, generator=generator, dtype=torch.float64)
        A = A + A.mT - 3 * torch.eye(n)  # the eigenvalue of the largest size is negative
        found = science.evaluate(
            """([A, n]) => kbeLab.largestEigenvalue(n, (v) =>
                A.map((row) => row.reduce((sum, a, k) => sum + a * v[k], 0)))""",
            [A.tolist(), n],
        )
        assert found == pytest.approx(float(torch.linalg.eigvalsh(A)[-1]), rel=1e-6)


# ------------------------------------------------------------------------------------------------------ random draws


def xoshiro(state):
    """xoshiro128**, written from its definition: draws from four words."""
    word = 0xFFFFFFFF

    def rotate(x, k):
        return (x << k | x >> 32 - k) & word

    while True:
        yield rotate(state[1] * 5 & word, 7) * 9 & word
        shifted = state[1] << 9 & word
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = rotate(state[3], 11)


def seeded(*words):
    mixed, filled = 0, []
    for word in (*words, 0, 0, 0, 0):
        mixed = mixed + word + 0x9E3779B9 & 0xFFFFFFFF
        t = mixed ^ mixed >> 16
        t = t * 0x21F0AAAD & 0xFFFFFFFF
        t = (t ^ t >> 15) * 0x735A2D97 & 0xFFFFFFFF
        value = t ^ t >> 15
        filled.append(value)
        if len(filled) <= len(words):
            mixed = value
    return xoshiro(filled[len(words) :])


def test_random_numbers_are_those_of_xoshiro(science):
    known = xoshiro([1, 2, 3, 4])
    assert [next(known) for _ in range(4)] == [11520, 0, 5927040, 70819200]  # its authors' test
    for words in ([1], [1, 0, 0], [1, 0, 1], [999999, 63, 1]):
        mine = science.evaluate(
            "(words) => { const draw = kbeLab.generator(...words); return Array.from({ length: 20 }, draw); }", words
        )
        expected = seeded(*words)
        assert mine == [next(expected) for _ in range(20)]


def test_draws_have_the_right_distribution(science):
    """20000 weights and labels; each bound is five standard errors, so a false alarm comes once in a million runs."""
    weights, labels, bits = science.evaluate(
        """() => {
            const networks = Array.from({ length: 160 }, (_, k) => kbeLab.drawWeights(8, 3, kbeLab.generator(5, k, 0)));
            const data = kbeLab.drawData(20000, 8, kbeLab.generator(5, 0, 1));
            return [networks.map((theta) => Array.from(theta)), Array.from(data.y), Array.from(data.x)];
        }"""
    )
    theta = torch.tensor(weights)
    assert theta.shape == (160, 122)
    bounds = torch.cat([torch.full((n,), 1 / math.sqrt(fan)) for n, fan in ((12, 3), (60, 9), (50, 24))])
    assert (theta.abs() <= bounds).all()
    scaled = (theta / bounds).flatten()
    n = len(scaled)
    assert abs(scaled.mean()) < 5 * math.sqrt(1 / 3 / n)
    assert abs((scaled**2).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    for draws in (labels, bits):
        draws = torch.tensor(draws, dtype=torch.float64)
        assert abs(draws.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(draws))


def test_what_is_compared_is_paired(science):
    same = science.evaluate(
        """() => {
            const draw = (more) => kbeLab.makeEnsemble({ ...kbeLab.defaults(), ...more });
            const theta = (more) => draw(more).map((network) => Array.from(network.theta));
            const bits = (more) => draw(more).map((network) => network.data.x.join(""));
            return {
                weights: [theta({}), theta({ N: 30, mu: "raw", loss: "laplace", M: 64 }).slice(0, 48)],
                data: [bits({}), bits({ N: 30 }).map((x) => x.slice(0, 160))],
                other: [theta({}), theta({ seed: 2 })],
            };
        }"""
    )
    assert same["weights"][0] == same["weights"][1]
    assert same["data"][0] == same["data"][1]
    assert same["other"][0] != same["other"][1]


# ------------------------------------------------------------------------------------------------- files and addresses


def test_a_saved_state_trains_on_as_if_nothing_had_happened(science):
    first, second, straight = science.evaluate(
        """() => {
            const settings = { ...kbeLab.defaults(), N: 5, M: 6, mu: "raw", sigma: "exp" };
            const train = (networks, epochs) => {
                for (const network of networks) for (let k = 0; k < epochs; k++) network.step();
            };
            const all = kbeLab.makeEnsemble(settings);
            train(all, 30);
            const saved = JSON.parse(JSON.stringify(kbeLab.exportState(all, settings)));
            const loaded = kbeLab.importState(saved);
            const again = kbeLab.exportState(loaded.networks, loaded.settings);
            train(all, 30);
            train(loaded.networks, 30);
            const later = kbeLab.exportState(loaded.networks, loaded.settings);
            return [[saved, again], later, kbeLab.exportState(all, settings)];
        }"""
    )
    assert first[0] == first[1]
    assert second == straight
    assert any(at is not None for at in straight["failed_at"])


BROKEN = {
    "no object": lambda s: 3,
    "nothing": lambda s: None,
    "another format": lambda s: s | {"format": "kbe-lab 2"},
    "no parameters": lambda s: {k: v for k, v in s.items() if k != "params"},
    "a missing parameter": lambda s: s | {"params": {k: v for k, v in s["params"].items() if k != "mu.bias"}},
    "a wrong shape": lambda s: s | {"params": s["params"] | {"mu.bias": [[0, 0]] * 2}},
    "a text for a number": lambda s: s | {"params": s["params"] | {"mu.bias": [["0"]] * 2}},
    "nested too deep": lambda s: s | {"params": s["params"] | {"mu.bias": [[[0]]] * 2}},
    "a null": lambda s: s | {"params": s["params"] | {"mu.bias": [[None]] * 2}},
    "a label that is none": lambda s: s | {"y": [[2] * 3] * 2},
    "fewer labels": lambda s: s | {"y": [[0] * 2] * 2},
    "too many points": lambda s: s | {"x": [[[0] * 8] * 300] * 2, "y": [[0] * 300] * 2},
    "a long string": lambda s: s | {"x": [[[0] * 99] * 3] * 2},
    "no networks": lambda s: s | {"x": [], "y": []},
    "a setting that is none": lambda s: s | {"settings": {"N": 3}},
    "a prototype": lambda s: s | {"settings": {"constructor": 3}},
    "a script": lambda s: s | {"settings": {"loss": "<script>"}},
    "a step beyond the limits": lambda s: s | {"settings": {"lr": 1e9}},
    "an epoch before the start": lambda s: s | {"epoch": -1},
    "failures of others": lambda s: s | {"failed_at": [1]},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_with_a_reason(science, what):
    params, data = draw(2, 3)
    message = science.evaluate(
        """(state) => {
            try { kbeLab.importState(state); } catch (error) { return [error.constructor.name, error.message]; }
        }""",
        BROKEN[what](to_laboratory(params, data)),
    )
    assert message is not None, "it was taken"
    assert message[0] == "Error", message  # a reason, and no accident on the way
    assert len(message[1]) > 10


PARSE = "(hash) => kbeLab.parseAddress(hash)"
HOSTILE = [
    "N=<script>alert(1)</script>", "N=20<img src=x onerror=alert(1)>", "javascript:alert(1)", "__proto__=1",
    "constructor=1", "toString=1", "N=NaN", "N=Infinity", "N=-5", "N=1e9", "N=1e999", "N=0x10", "N=0", "N=2.5",
    "N=999999999999999999999", "N= 7", "N=", "N", "=", "=1", "lr=0", "lr=-1", "lr=1e-999", "lr=NaN", "lr=1e99",
    "lr=1,lr=2", "M=1000000", "epoch=99999999", "epoch=1e9",
    "seed=-1", "loss=__proto__", "loss=constructor", "loss=", "mu=hasOwnProperty", "remedy=toString", "mu=%73igmoid",
    "N=%3Cscript%3E", "a" * 5000, "N=1&lr=0.1", "net=60,M=2", "speed=0", "N=１", "floor=1e-9", "N=20;drop", "N=20‮",
]  # fmt: skip


def within_limits(science, settings):
    return science.evaluate(
        """(settings) => Object.entries(kbeLab.SETTINGS).every(([key, { kind, min, max, values }]) => kind === "choice"
            ? Object.hasOwn(values, settings[key])
            : settings[key] >= min && settings[key] <= max && (kind === "number" || Number.isInteger(settings[key])))
            && Object.keys(settings).length === Object.keys(kbeLab.SETTINGS).length""",
        settings,
    )


@pytest.mark.parametrize("address", HOSTILE)
def test_a_hostile_address_is_refused_in_words(science, address):
    parsed = science.evaluate(PARSE, "#" + address)
    assert parsed["complaints"], address
    assert all(len(words) < 200 for words in parsed["complaints"])
    assert within_limits(science, parsed["settings"])


def test_any_address_gives_settings_within_their_limits(science):
    generator = torch.Generator().manual_seed(4)
    signs = "N=lr,epochmuraw&<>\"'%01239.e-+#;/ \x00é∞"
    for _ in range(300):
        picks = torch.randint(len(signs), (int(torch.randint(1, 60, (), generator=generator)),), generator=generator)
        assert within_limits(science, science.evaluate(PARSE, "".join(signs[k] for k in picks))["settings"])


def test_a_written_address_is_read_back(science):
    address = (
        "N=7,lr=0.003,bits=5,mu=raw,sigma=elu+1,loss=beta-0.5,remedy=clip,clip=0.3,M=16,net=3,speed=50,seed=12,epoch=40"
    )
    parsed = science.evaluate(PARSE, "#" + address)
    assert parsed["complaints"] == []
    assert science.evaluate("(settings) => kbeLab.writeAddress(settings)", parsed["settings"]) == address
    assert science.evaluate("() => kbeLab.writeAddress(kbeLab.defaults())") == ""


def test_every_link_to_the_laboratory_sets_it_up(science):
    found = 0
    for page in PAGES:
        for address in re.findall(r"laboratory\.html#([^\"\s)]*)", (ROOT / f"{page}.md").read_text()):
            assert science.evaluate(PARSE, address)["complaints"] == [], (page, address)
            found += 1
    assert found > 0


# ------------------------------------------------------------------------------------------------------------ the page

HTML = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Laboratory</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="script-src file:; style-src file:">
<link rel="stylesheet" href="{lab}/kbe_lab.css"><script defer src="{lab}/kbe_lab.js"></script>
<script defer src="{lab}/kbe_lab_page.js"></script></head>
<body><main><h1>Laboratory</h1><div class="kbe-lab" role="region" aria-label="Laboratory"></div></main></body></html>"""


class Lab:
    """A page with the laboratory, opened as a file without a network, under a strict content security policy."""

    def __init__(self, browser, path, address="", **context):
        self.context = browser.new_context(**context)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.trouble, self.requests = [], []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.trouble.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}") or dialog.dismiss())
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri() + address)

    def get(self, expression):
        return self.page.evaluate(
            f"(() => {{ const lab = document.querySelector('.kbe-lab').laboratory; return {expression}; }})()"
        )

    def wait_until(self, expression, seconds=60):
        for _ in range(10 * seconds):
            if self.get(expression):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"not within {seconds} s: {expression}")

    def words(self):
        return self.page.inner_text(".kbe-lab-summary")

    def picture(self, name):
        return self.get(f"lab.plots.{name}.canvas.toDataURL()")


@pytest.fixture
def open_lab(browser, tmp_path):
    path = tmp_path / "laboratory.html"
    path.write_text(HTML.format(lab=LAB.as_uri()), encoding="utf-8")
    opened = []

    def open_(address="", **context):
        opened.append(Lab(browser, path, address, **context))
        opened[-1].wait_until("!lab.behind")
        return opened[-1]

    yield open_
    for lab in opened:
        assert lab.trouble == []
        assert all(url.startswith(("file:", "blob:", "data:")) for url in lab.requests)
        lab.context.close()


def test_the_buttons_do_what_they_say(open_lab):
    lab = open_lab("#N=1,M=8,speed=100")
    button = {
        name: lab.page.get_by_role("button", name=name, exact=True) for name in ("Run", "Step", "Reset", "New seed")
    }
    before = {name: lab.picture(name) for name in ("plane", "ricker", "sigma", "mu", "variances", "edge", "loss")}
    button["Step"].click()
    lab.wait_until("lab.epoch === 1")
    button["Run"].click()
    lab.wait_until("lab.epoch >= 12")
    lab.page.get_by_role("button", name="Pause").click()
    at = lab.get("lab.epoch")
    lab.page.wait_for_timeout(300)
    assert lab.get("lab.epoch") == at
    assert lab.page.url.endswith(f"#N=1,M=8,speed=100,epoch={at}")
    for name, picture in before.items():
        assert lab.picture(name) != picture, f"{name} has not changed"
    weights = lab.get("Array.from(lab.networks[0].theta)")
    button["Reset"].click()
    assert lab.get("lab.epoch") == 0
    fresh = lab.get("Array.from(lab.networks[0].theta)")
    assert fresh != weights
    button["New seed"].click()
    assert lab.get("lab.settings.seed") == 2
    assert lab.get("Array.from(lab.networks[0].theta)") != fresh


def test_an_address_shows_what_was_shared(open_lab):
    shared = open_lab("#N=5,epoch=60,seed=3,net=4")
    other = open_lab(shared.page.url[shared.page.url.index("#") :])
    assert other.words().split(".")[0] == "Epoch 60"
    assert shared.words() == other.words()
    assert shared.picture("sigma") == other.picture("sigma")
    assert "Network 4" in other.words()


def test_a_failure_is_counted_and_its_epoch_kept(open_lab):
    lab = open_lab("#N=1,M=8,epoch=40")
    failed = lab.get("lab.networks.filter((n) => n.failedAt <= 40).length")
    assert failed > 0
    first = lab.get("Math.min(...lab.networks.map((n) => n.failedAt))")
    assert f"{failed} of 8 networks have failed, the first at epoch {first}" in lab.words()
    lab.page.locator("details").first.locator("summary").click()
    assert lab.page.locator("details").first.inner_text().count("epoch") == failed


def test_the_shown_network_is_one_of_the_ensemble(open_lab):
    """It is trained a second time on its own, so that its whole history can be shown at any time."""
    lab = open_lab("#N=5,M=8,epoch=40")
    slider = lab.page.get_by_label("network shown")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    lab.wait_until("!lab.behind")
    assert lab.get("lab.settings.net") == 5
    assert lab.get("Array.from(lab.shown.theta)") == lab.get("Array.from(lab.networks[4].theta)")
    assert lab.get("lab.trail.length") == 41


def test_it_can_be_used_with_the_keyboard_alone(open_lab):
    lab = open_lab()
    for _ in range(40):
        lab.page.keyboard.press("Tab")
        if lab.page.evaluate("document.activeElement.textContent") == "Run":
            break
    lab.page.keyboard.press("Space")
    lab.wait_until("lab.epoch >= 3")
    assert lab.page.evaluate("document.activeElement.textContent") == "Pause"
    lab.page.keyboard.press("Space")
    lab.page.get_by_label("points N").focus()
    lab.page.keyboard.press("Home")
    assert lab.get("lab.settings.N") == 1
    assert lab.page.get_by_label("points N").get_attribute("aria-valuetext") == "1"


def test_words_for_those_who_do_not_see_the_plots(open_lab):
    lab = open_lab("#N=5,epoch=30")
    assert lab.page.locator("[aria-live=polite]").inner_text().startswith("Epoch 30.")
    assert "smallest sigma is" in lab.page.locator("canvas").first.get_attribute("aria-label")
    for canvas in lab.page.locator("canvas").all():
        assert canvas.get_attribute("role") == "img"
        assert len(canvas.get_attribute("aria-label")) > 40


@pytest.mark.parametrize(
    "address", ["N=<img src=x onerror=alert(1)>", "N=1e9,loss=<script>alert(1)</script>", "x" * 900, "epoch=1e999"]
)
def test_a_hostile_address_becomes_a_message_and_nothing_else(open_lab, address):
    lab = open_lab("#" + address)
    assert lab.page.locator("[role=alert] p").count() >= 1
    assert lab.page.locator(".kbe-lab img, .kbe-lab script").count() == 0


def test_a_state_is_saved_and_loaded(open_lab, tmp_path):
    lab = open_lab("#N=5,M=4,epoch=20")
    lab.page.locator("details").nth(1).locator("summary").click()
    with lab.page.expect_download() as download:
        lab.page.get_by_role("button", name="Save as JSON").click()
    saved = tmp_path / "state.json"
    download.value.save_as(saved)
    state = json.loads(saved.read_text())
    data = kbe.Dataset(*(torch.tensor(state[key], dtype=torch.float64) for key in "xy"))
    params = {k: torch.tensor(v, dtype=torch.float64) for k, v in state["params"].items()}
    mu, _ = kbe.predict(params, data.x)
    agree(torch.tensor(lab.get("lab.networks.map((n) => Array.from(n.pointOutputs().mu))"), dtype=torch.float64), mu)

    params, data = draw(3, 7)
    saved.write_text(json.dumps(to_laboratory(params, data, lr=0.03)))
    lab.page.set_input_files("input[type=file]", saved)
    lab.wait_until("lab.networks.length === 3")
    lab.page.get_by_role("button", name="Step").click()
    lab.wait_until("lab.epoch === 1")
    after = kbe.train(params, data, epochs=1, lr=0.03, engine="torch").mu[:, -1]
    agree(torch.tensor(lab.get("lab.networks.map((n) => Array.from(n.pointOutputs().mu))"), dtype=torch.float64), after)
    saved.write_text("{")
    lab.page.set_input_files("input[type=file]", saved)
    lab.page.wait_for_timeout(300)
    assert "was not loaded" in lab.page.locator("[role=alert]").inner_text()
    assert lab.get("lab.networks.length") == 3


def test_settings_restart_the_training(open_lab):
    lab = open_lab("#M=4,epoch=5")
    for key, value, check in (
        ("likelihood", "student_t", "lab.settings.loss === 'student_t'"),
        ("readout of μ", "raw", "lab.settings.mu === 'raw'"),
        ("readout of σ", "exp", "lab.settings.sigma === 'exp'"),
        ("remedy", "floor", "lab.networks[0].pointOutputs().sigma.every((sigma) => sigma > 0.1)"),
    ):
        lab.page.get_by_label(key, exact=True).select_option(value)
        assert lab.get(check)
        assert lab.get("lab.epoch") == 0
    assert lab.page.get_by_label("floor for σ").is_visible()
    assert not lab.page.get_by_label("largest gradient norm").is_visible()


def test_phone_width_without_sideways_scrolling(open_lab):
    lab = open_lab("#N=5,epoch=10", viewport={"width": 390, "height": 844})
    assert lab.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_less_motion_where_it_is_asked_for(open_lab):
    lab = open_lab("#M=1,speed=5", reduced_motion="reduce")
    drawn, seconds = lab.page.evaluate(
        """async () => {
            const lab = document.querySelector(".kbe-lab").laboratory, draw = lab.draw.bind(lab);
            const start = performance.now();
            let count = 0;
            lab.draw = () => { count += 1; draw(); };
            lab.run();
            await new Promise((done) => setTimeout(done, 2500));
            return [count, (performance.now() - start) / 1000];
        }"""
    )
    assert 1 <= drawn <= 1 + seconds


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(open_lab, theme):
    lab = open_lab("#N=5,epoch=10")
    lab.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    if theme == "dark":
        lab.page.evaluate("document.body.style.cssText = 'background: #121212; color: #e6e6e6'")
    found = Axe().run(lab.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
    assert found.violations_count == 0, found.generate_report()
    lab.trouble.clear()  # axe tries to fetch the style sheet, which a page in a file may not


# ------------------------------------------------------------------------------------------------------ the built page

BUILT = ROOT / "_build" / "html" / "book" / "laboratory.html"


@pytest.mark.skipif(not BUILT.exists() and not os.environ.get("CI"), reason="no built book: run `make book` first")
def test_built_page_works_from_a_file_without_a_network(browser, science):
    lab = Lab(browser, BUILT)
    lab.wait_until("!lab.behind && lab.epoch > 0")
    links = lab.page.get_by_role("link", name="Set it up.").all()
    assert len(links) >= 8
    for link in links:
        assert science.evaluate(PARSE, link.get_attribute("href"))["complaints"] == []
    links[0].click()
    lab.wait_until("!lab.behind && lab.settings.N === 1")
    assert lab.words().startswith("Epoch 12.")
    assert lab.page.evaluate("scrollY") > 0
    assert lab.trouble == []
    lab.context.close()
