"""Every public function with every kind of wrong argument: a clear error that names the argument, from our own code.

A line of `CALLS` is one function with arguments that are right, and for each argument its role.  `ROLES` lists per role
what is wrong in it: type, shape, dtype, range, NaN, infinity, nothing at all, values that are on no device.  Each pair
is tried.  What is allowed although it looks wrong has a test of its own, with the result that the docstring promises.
How many that is stands in tests/power.json; `python tests/test_bad_input.py` writes it there.
"""

import inspect
import json
import math
import re
import signal
import traceback
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import kbe_check
import kbe_kernels
import kbe_ledger
import kbe_lib as kbe
import kbe_stats
import kbe_sweep

MODULES = (kbe, kbe_kernels, kbe_ledger, kbe_stats, kbe_sweep)
ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "power.json"  # what mutants.py and semantic_mutants.py find stands there too
F64 = torch.float64


def spoiled(values: torch.Tensor, by: float) -> torch.Tensor:
    """The tensor with one entry replaced."""
    values = values.clone()
    values.view(-1)[0] = by
    return values


def wrong_tensors(good: torch.Tensor) -> dict[str, object]:
    return {
        "None": None,
        "text": "values",
        "list": good.tolist(),
        "NumPy array": good.numpy(),
        "integers": good.long(),
        "truth values": good.bool(),
        "complex": good.to(torch.complex128),
        "half precision": good.half(),
        "on no device": good.to("meta"),
        "NaN": spoiled(good, math.nan),
        "inf": spoiled(good, math.inf),
        "-inf": spoiled(good, -math.inf),
        "empty": good[..., :0],
        "one more": torch.cat([good, good[..., -1:]], -1),
        "no axis": torch.tensor(0.5, dtype=good.dtype),
        "many axes": good.expand(2, 3, 1, 5, *good.shape),
    }


NOT_A_NUMBER = {"None": None, "text": "1", "list": [1.0], "truth value": True, "complex": 1j, "a function": abs}
NOT_FINITE = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
ROLES = {
    "count": {**NOT_A_NUMBER, "fraction": 2.5, "whole float": 2.0, "0": 0, "negative": -1, "NaN": math.nan},
    "count or 0": {**NOT_A_NUMBER, "fraction": 2.5, "whole float": 2.0, "negative": -1, "inf": math.inf},
    "number": {**NOT_A_NUMBER, **NOT_FINITE, "array": np.ones(2)},
    "positive": {**NOT_A_NUMBER, **NOT_FINITE, "0": 0.0, "negative": -0.5, "tensor": torch.ones(2)},
    "not negative": {**NOT_A_NUMBER, **NOT_FINITE, "negative": -0.5, "tensor": torch.ones(2)},
    "share": {**NOT_A_NUMBER, **NOT_FINITE, "0": 0.0, "1": 1.0, "percent": 95},
    "choice": {"unknown": "nonsense", "None": None, "number": 3},
    "truth value": {"None": None, "text": "no", "number": 2, "tensor": torch.tensor(True)},
    "dtype": {"None": None, "text": "float64", "integers": torch.int64, "complex": torch.complex64, "half": torch.half},
    "generator": {"None": None, "seed": 3, "NumPy's": np.random.default_rng(0)},
    "function": {"None": None, "name": "mean", "number": 3},
    "text": {"None": None, "number": 3, "bytes": b"C1"},
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


PARAMS = kbe.init_networks(2, generator=generator())
DATA = kbe.random_bit_encoding(2, 5, generator=generator())
RUN = kbe.train(PARAMS, DATA, epochs=1, engine="torch")
BITS = kbe.all_inputs(2)
DISTANCE = kbe.hamming(BITS)
KERNEL = kbe.exponential_kernel(DISTANCE)
LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=F64)
LINE = torch.tensor([0.0, 0.5, 0.7, 2.0], dtype=F64)
NOWHERE = torch.ones((), dtype=int, device="meta")
TIMES = torch.tensor([0.1, 0.2], dtype=F64)
HALF = torch.full((4,), 0.5, dtype=F64)
CLAIM = {"holds": "low > 0.5", "fails": "high < 0.2"}
CELL = kbe_sweep.Cell(n_points=2, seed=0, epochs=1, checkpoints=(0, 1), n_networks=2)
RESULT = kbe_sweep.run_cell(CELL)


def pair(values: torch.Tensor) -> torch.Tensor:
    """For two networks."""
    return values.expand(2, *values.shape)


def without(values: dict, name: str) -> dict:
    return {k: v for k, v in values.items() if k != name}


PARAMETERS = {
    "None": None,
    "list": list(PARAMS.values()),
    "empty": {},
    "no convolution": without(PARAMS, "conv1.weight"),
    "no bias": without(PARAMS, "conv2.bias"),
    "no head": without(without(PARAMS, "mu.weight"), "mu.bias"),
    "lists": {k: v.tolist() for k, v in PARAMS.items()},
    "on no device": {k: v.to("meta") for k, v in PARAMS.items()},
}
POINTS = (
    {
        k: v
        for k, v in wrong_tensors(DATA.x).items()
        if k not in ("integers", "truth values", "complex", "half precision")  # the type of params, whatever that is
    }
    | {
        "other type": DATA.x.float(),
        "integers": DATA.x.long(),
        "networks": DATA.x[:1].expand(3, -1, -1),
        "bits": DATA.x[..., :7],
        "one string": DATA.x[0, 0],
    }
)
SHAPES = {"one more", "no axis", "many axes"}
UNREAL = {
    "None",
    "text",
    "list",
    "NumPy array",
    "integers",
    "truth values",
    "complex",
    "half precision",
    "on no device",
}
BITWISE = {"None", "text", "list", "NumPy array", "on no device", "NaN", "inf", "-inf", "empty", "one more", "no axis"}
# one more column keeps a kernel, a distance or bits consistent with themselves, not with the other arguments
READOUT = {
    **ROLES["choice"],
    "floor": ("raw", kbe.Floored("exp", -1.0)),
    "no floor": ("raw", kbe.Floored("exp", None)),
    "one of two": ("raw",),
    "three": ("raw",) * 3,
    "half known": ("raw", "tanh"),
    "list": [1],
}


def data_with(**changes) -> kbe.Dataset:
    return DATA._replace(**changes)


DATASETS = {
    "None": None,
    "pair": (DATA.x.tolist(), DATA.y.tolist()),
    "lists": data_with(x=DATA.x.tolist()),
    "NaN in x": data_with(x=spoiled(DATA.x, math.nan)),
    "inf in y": data_with(y=spoiled(DATA.y, math.inf)),
    "on no device": data_with(y=DATA.y.to("meta")),
    "empty": data_with(x=DATA.x[:, :0], y=DATA.y[:, :0]),
    "fewer labels": data_with(y=DATA.y[:, :4]),
    "one network's": data_with(x=DATA.x[:1], y=DATA.y[:1]),
    "no networks": data_with(x=DATA.x[0], y=DATA.y[0]),
    "bits": data_with(x=DATA.x[..., :7]),
}
FIELDS = {
    "clip": {"None": None, "text": "1", "0": 0.0, "negative": -1.0, "NaN": math.nan},
    "sigma_lr": "not negative",
    "sigma_decay": "not negative",
    "sigma_to_trunk": "truth value",
    "adam": "truth value",
    "held_out": {**ROLES["share"], "all": 0.99},
    "label_noise": without(ROLES["share"], "0"),
    "dropout": without(ROLES["share"], "0"),
    "seed": {**ROLES["count or 0"], "too large": 2**63},
}
REMEDIES = {"None": None, "name": "clip", "dictionary": {"clip": 1.0}} | {
    f"{field} {label}": kbe.Remedy(**{field: value})
    for field, wrong in FIELDS.items()
    for label, value in (ROLES[wrong] if isinstance(wrong, str) else wrong).items()
    if (field, label) != ("held_out", "0")
}
KERNELS = wrong_tensors(KERNEL) | {
    "single precision": KERNEL.float(),
    "not symmetric": KERNEL.triu(),
    "negative": -KERNEL,
    "not square": KERNEL[:3],
    "a row": KERNEL[0],
}
CUBE = wrong_tensors(LABELS)

# function: (arguments that are right, {argument: what is wrong, by role or as a dictionary})
WRONG_SAMPLES = {
    "none": (), "list": ([1.0, 2.0],), "one network": (LINE[:1],), "a number": (LINE[0],), "empty": (LINE[:0],),
    "on no device": (LINE.to("meta"),), "second": (LINE, None),
}  # fmt: skip
CALLS = {
    kbe.all_inputs: (dict(n_bits=2, dtype=F64), {"n_bits": {**ROLES["count"], "too many": 21}, "dtype": "dtype"}),
    kbe.random_bit_encoding: (
        dict(n_networks=2, n_points=3, n_bits=2, replacement=False, generator=generator(), dtype=F64),
        {
            "n_networks": "count",
            "n_points": {**ROLES["count"], "too many": 5},
            "n_bits": {**ROLES["count"], "too many": 21},
            "replacement": "truth value",
            "generator": "generator",
            "dtype": "dtype",
        },
    ),
    kbe.init_networks: (
        dict(n_networks=2, heads=("mu",), n_bits=2, n_layers=1, n_channels=1, generator=generator(), dtype=F64),
        {
            "n_networks": "count",
            "heads": {**ROLES["choice"], "no mu": ("sigma",), "empty": (), "order": ("sigma", "mu"), "set": {"mu"}},
            "n_bits": "count",
            "n_layers": "count",
            "n_channels": "count",
            "generator": "generator",
            "dtype": "dtype",
        },
    ),
    kbe.logits: (dict(params=PARAMS, x=DATA.x), {"params": PARAMETERS, "x": POINTS}),
    kbe.predict: (
        dict(params=PARAMS, x=DATA.x, readout="sigmoid"),
        {"params": PARAMETERS, "x": POINTS, "readout": READOUT},
    ),
    kbe.degrees_of_freedom: (dict(z=HALF), {"z": {k: v for k, v in wrong_tensors(HALF).items() if k in UNREAL}}),
    kbe.train: (
        dict(params=PARAMS, data=DATA, epochs=1, lr=0.1, loss="gaussian", readout="sigmoid", reduction="mean",
             remedy=kbe.PLAIN, jump=0.25, record=[0, 1], chunk=1, engine="torch", workers=1),
        {
            "params": PARAMETERS,
            "data": DATASETS,
            "epochs": "count or 0",
            "lr": {**ROLES["positive"], "tensor": torch.ones(3), "negative tensor": torch.tensor([0.1, -0.1]),
                   "NaN in a tensor": torch.tensor([0.1, math.nan])},
            "loss": ROLES["choice"],
            "readout": READOUT,
            "reduction": "choice",
            "remedy": REMEDIES,
            "jump": {"None": None, "text": "0.25", "0": 0.0, "negative": -1.0, "NaN": math.nan, "list": [0.25]},
            "record": {"number": 3, "text": "01", "beyond": [2], "negative": [-1], "half": [0.5], "NaN": [math.nan]},
            "chunk": "count",
            "engine": "choice",
            "workers": "count",
        },
    ),
    kbe.variances: (
        dict(run=RUN, y=DATA.y),
        {
            "run": {"None": None, "average networks": RUN._replace(sigma=None), "tuple": tuple(RUN)},
            "y": wrong_tensors(DATA.y),
        },
    ),
    kbe.empirical_ntk: (
        dict(params=PARAMS, x1=DATA.x, x2=DATA.x, readout="sigmoid"),
        {"params": PARAMETERS, "x1": POINTS, "x2": without(POINTS, "None"), "readout": without(READOUT, "None")},
    ),
    kbe.hamming: (
        dict(x1=pair(BITS), x2=pair(BITS)),
        {
            name: {k: v for k, v in wrong_tensors(BITS).items() if k in allowed} | {"networks": BITS.expand(3, 4, 2)}
            for name, allowed in {"x1": BITWISE, "x2": BITWISE - {"None"}}.items()
        },
    ),
    kbe.exponential_kernel: (
        dict(distance=DISTANCE, beta=1.0),
        {
            "distance": {k: v for k, v in wrong_tensors(DISTANCE).items() if k not in SHAPES}
            | {"negative": -DISTANCE},
            "beta": "positive",
        },
    ),
    kbe.kernel_flow: (
        dict(kernel=pair(KERNEL), y=pair(LABELS), t=TIMES, mu0=HALF),
        {
            "kernel": without(KERNELS, "many axes") | {"networks": KERNEL.expand(3, 4, 4)},
            "y": without(wrong_tensors(LABELS), "many axes") | {"networks": LABELS.expand(3, 4),
                                                              "fewer points": LABELS[:3]},
            "t": {"text": "now", "negative": -1.0, "NaN": math.nan, "inf": math.inf, "empty": TIMES[:0],
                  "on no device": TIMES.to("meta"), "two axes": TIMES[None], "a function": abs},
            "mu0": {"None": None, "text": "0", "NaN": math.nan, "one more": HALF.repeat(2)[:5], "one less": HALF[:3],
                    "inf": spoiled(HALF, math.inf), "more axes": HALF.expand(3, 2, 4), "on no device": HALF.to("meta")},
        },
    ),
    kbe.local_average: (
        dict(distance=pair(DISTANCE), y=pair(LABELS), alpha=HALF[:2], normalise="weights"),
        {
            "distance": without(wrong_tensors(DISTANCE), "many axes") | {"negative": -DISTANCE, "a row": DISTANCE[0],
                                                                   "networks": DISTANCE.expand(3, 4, 4)},
            "y": without(wrong_tensors(LABELS), "many axes") | {"networks": LABELS.expand(3, 4)},
            "alpha": {"None": None, "text": "1", "negative": -1.0, **NOT_FINITE, "on no device": HALF.to("meta"),
                      "networks": torch.ones(3, dtype=F64)},
            "normalise": "choice",
        },
    ),
    kbe.prediction_scale: (
        dict(distance=pair(DISTANCE), y=pair(LABELS), mu=pair(HALF), normalise="weights"),
        {
            "distance": without(wrong_tensors(DISTANCE), "many axes") | {"negative": -DISTANCE, "a row": DISTANCE[0],
                                                                   "networks": DISTANCE.expand(3, 4, 4)},
            "y": without(wrong_tensors(LABELS), "many axes") | {"networks": LABELS.expand(3, 4)},
            "mu": without(wrong_tensors(HALF), "many axes") | {"networks": HALF.expand(3, 4)},
            "normalise": "choice",
        },
    ),
    kbe.exponential_kernel_modes: (dict(n_modes=2, beta=1.0), {"n_modes": "count", "beta": "positive"}),
    kbe.hamming_kernel_eigenvalues: (
        dict(kernel_of_distance=HALF, n_bits=3),
        {"kernel_of_distance": wrong_tensors(HALF), "n_bits": {**ROLES["count"], "another": 4}},
    ),
    kbe.variance_flow: (
        dict(kernel=KERNEL, y=LABELS, mu0=HALF, sigma0=HALF, t=TIMES, mean_speed=1.0, sigma_min=1e-3),
        {
            "kernel": {k: v for k, v in KERNELS.items() if k not in ("single precision", "not symmetric", "negative")}
            | {"blocks of three": KERNEL[..., None, None].expand(4, 4, 3, 3)},
            "y": wrong_tensors(LABELS),
            "mu0": wrong_tensors(HALF),
            "sigma0": wrong_tensors(HALF) | {"0": 0 * HALF, "negative": -HALF, "small": HALF / 999, "at": HALF / 500},
            "t": without(wrong_tensors(TIMES), "one more")
            | {"backwards": TIMES.flip(0), "negative": TIMES - 1, "twice": TIMES[[0, 0]], "integers": torch.arange(3)},
            "mean_speed": "number",
            "sigma_min": {**ROLES["positive"], "above sigma0": 0.6},
        },
    ),
    kbe.collapse_time: (
        dict(error=0.5, sigma=HALF, theta=1.0),
        {"error": "number", "sigma": {**NOT_A_NUMBER, **NOT_FINITE, "NaN in it": spoiled(HALF, math.nan),
                                      "empty": HALF[:0], "on no device": HALF.to("meta")}, "theta": "positive"},
    ),
    kbe.collapse_streamline: (
        dict(error=HALF, error0=0.5, sigma0=0.5),
        {
            "error": {k: v for k, v in wrong_tensors(HALF).items() if k not in SHAPES}
            | {"negative": -HALF},
            "error0": "positive",
            "sigma0": "positive",
        },
    ),
    kbe_kernels.line_product: (
        dict(x=LINE, v=LABELS, beta=1.0),
        {
            "x": wrong_tensors(LINE) | {"not sorted": LINE.flip(0), "a table": LINE[None]},
            "v": without(wrong_tensors(LABELS), "many axes"),
            "beta": "positive",
        },
    ),
    kbe_kernels.line_average: (
        dict(x=LINE, y=LABELS, alpha=1.0),
        {
            "x": wrong_tensors(LINE) | {"not sorted": LINE.flip(0)},
            "y": without(wrong_tensors(LABELS), "many axes"),
            "alpha": "positive",
        },
    ),
    kbe_kernels.line_solve: (
        dict(x=LINE, b=LABELS, shift=0.0, beta=1.0),
        {
            "x": wrong_tensors(LINE) | {"not sorted": LINE.flip(0), "equal points at shift 0": 0 * LINE},
            "b": without(wrong_tensors(LABELS), "many axes"),
            "shift": "not negative",
            "beta": "positive",
        },
    ),
    kbe_kernels.line_flow: (
        dict(x=LINE, v=LABELS, t=1.0, beta=1.0),
        {
            "x": wrong_tensors(LINE) | {"not sorted": LINE.flip(0)},
            "v": without(wrong_tensors(LABELS), "many axes"),
            "t": "not negative",
            "beta": "positive",
        },
    ),
    kbe_kernels.walsh_transform: (dict(v=LABELS), {"v": {k: w for k, w in CUBE.items() if k != "many axes"}}),
    kbe_kernels.cube_product: (
        dict(levels=HALF[:3], v=LABELS),
        {
            "levels": wrong_tensors(HALF[:3]) | {"a table": HALF[:3][None], "one": HALF[:1]},
            "v": without(CUBE, "many axes"),
        },
    ),
    kbe_stats.fraction: (
        dict(successes=2, trials=5, confidence=0.95),
        {"successes": {**ROLES["count or 0"], "too many": 6}, "trials": "count", "confidence": "share"},
    ),
    kbe_stats.estimate: (
        dict(statistic=torch.mean, samples=(LINE,), paired=False, vectorized=False, confidence=0.95, resamples=9,
             seed=0),
        {
            "statistic": "function",
            "samples": WRONG_SAMPLES,
            "paired": "truth value",
            "vectorized": "truth value",
            "confidence": "share",
            "resamples": "count",
            "seed": "count or 0",
        },
    ),
    kbe_stats.exponent: (
        dict(x=[1.0, 2.0], samples=(1 + LINE, 1 + LINE), paired=False, confidence=0.95, seed=0),
        {
            "x": {"None": None, "number": 3, "text": ["1", "2"], "one": [1.0], "three": [1.0, 2.0, 3.0],
                  "0": [0.0, 1.0], "NaN": [1.0, math.nan], "inf": [1.0, math.inf]},
            "samples": {label: (*samples, LINE)[:2] if label != "none" else () for label, samples in
                        WRONG_SAMPLES.items() if label != "second"},
            "paired": "truth value",
            "confidence": "share",
            "seed": "count or 0",
        },
    ),
    kbe_stats.survival: (
        dict(failed_at=1 + LINE, end=9.0, confidence=0.95),
        {
            "failed_at": without(without(wrong_tensors(1 + LINE), "inf"), "one more")
            | {"late": 100 + LINE, "0": 0 * LINE},
            "end": "positive",
            "confidence": "share",
        },
    ),
    kbe_ledger.judge: (
        dict(rule="low > 0.5", value=0.5, low=0.4, high=0.6),
        {
            "rule": {**ROLES["text"], "empty": "", "code": "__import__('os')", "unknown": "mean > 1", "half": "low >",
                     "or": "low > 1 or low < 0", "space": "low  > 1", "number first": "1 < low"},
            "value": "number",
            "low": "number",
            "high": "number",
        },
    ),
    kbe_ledger.decide: (
        dict(claim=CLAIM, value=0.5, low=0.4, high=0.6),
        {
            "claim": {"None": None, "id": "C1", "empty": {}, "half": {"holds": "low > 0"}},
            "value": "number",
            "low": "number",
            "high": "number",
        },
    ),
    kbe_ledger.chance_of_another_verdict: (
        dict(claim=CLAIM, value=0.5, low=0.4, high=0.6),
        {
            "claim": {"None": None, "id": "C1", "empty": {}, "half": {"fails": "low > 0"}},
            "value": {**ROLES["number"], "outside": 0.7},
            "low": {**ROLES["number"], "above": 0.55},
            "high": {**ROLES["number"], "below": 0.45},
        },
    ),
    kbe_ledger.equation: (
        dict(numbers=[1, 2], kind="limit", outcome="holds"),
        {
            "numbers": {"None": [None], "0": 0, "25": 25, "negative": -1, "text": ["1"], "empty": [], "fraction": [1.5],
                        "one of them": [3, 30]},
            "kind": "text",
            "outcome": "text",
        },
    ),
    kbe_sweep.run_cell: (
        dict(cell=CELL),
        {"cell": {"None": None, "dictionary": {"n_points": 2}, "class": kbe_sweep.Cell}},
    ),
    kbe_sweep.load_cell: (
        dict(folder=ROOT / "tests", cell=CELL),
        {"folder": {"None": None, "number": 3}, "cell": {"None": None, "name": CELL.name()}},
    ),
}  # fmt: skip
# what they do with their arguments is tested in a file of its own: they need files, or are generators
ELSEWHERE = {
    kbe_ledger.load_claims: "test_ledger",
    kbe_ledger.verdict: "test_ledger",
    kbe_sweep.sweep: "test_sweep",
    kbe_sweep.store_cell: "test_sweep",
}
# losses take whatever broadcasts, NaN and infinity included: train looks at what comes out
LOSSES = list(kbe.LOSSES.values())
# an error may speak of the argument by a part of it, or of a pair
ALSO_NAMED = {
    "data": ("x must have",),
    "remedy": tuple(FIELDS),
    "x1": ("x must have",),
    "x2": ("x must have",),
    "value": ("interval",),
    "low": ("interval",),
    "high": ("interval",),
    "readout": ("floor",),
    "alpha": ("beta",),  # what line_average calls line_product with
    "b": ("v must",),
    "y": ("v must", "labels", "N ="),
    "x": ("points",),
    "n_bits": ("n_points",),
}


def wrong_values(function, argument) -> dict[str, object]:
    role = CALLS[function][1][argument]
    return ROLES[role] if isinstance(role, str) else role


PAIRS = [(function, argument) for function, (_, wrong) in CALLS.items() for argument in wrong]


@pytest.fixture(autouse=True)
def within_a_minute():
    """Bad input must not hang."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still running after a minute"))
    signal.alarm(60)
    yield
    signal.alarm(0)


def call(function, arguments):
    if "samples" in arguments:
        first, samples, *_ = arguments.values()
        rest = dict(list(arguments.items())[2:])
        return function(first, *samples, **rest)
    return function(**arguments)


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_what_is_right_is_taken(function):
    call(function, CALLS[function][0])


def complaint(function, argument, value) -> str | None:
    """What is wrong with the answer to a wrong value, None if nothing is."""
    try:
        result = call(function, CALLS[function][0] | {argument: value})
    except (ValueError, TypeError) as error:
        inside = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        names = (rf"(?<!\w){argument}(?!\w)", *ALSO_NAMED.get(argument, ()))
        if inside.parent != ROOT:
            return f"the error comes from inside {inside}"
        return None if any(re.search(name, str(error)) for name in names) else f"it is not named in: {error}"
    except Exception as error:
        return f"it raises {type(error).__name__}: {error}"
    return f"it is taken, and gives {result}"


@pytest.mark.parametrize(("function", "argument"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_wrong_is_named(function, argument):
    answers = {label: complaint(function, argument, value) for label, value in wrong_values(function, argument).items()}
    assert not {label: answer for label, answer in answers.items() if answer is not None}


def test_every_function_and_argument_is_tried():
    public = {
        function
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == module.__name__
    }
    assert public == {*CALLS, *ELSEWHERE}
    for function, (good, wrong) in CALLS.items():
        names = set(inspect.signature(function).parameters)
        assert names == set(good) == set(wrong), function.__name__


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_pass_on_what_is_not_finite(loss):
    y, mu, sigma = torch.tensor([[0.0, math.nan, 0.0], [0.5, 0.5, math.inf], [0.5, 0.5, 0.5]], dtype=F64)
    values = loss(y, mu, sigma)
    assert values.isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("complain", "message"),
    [
        (lambda: kbe_check.require(False, "no"), "no"),
        (lambda: kbe_check.instances(int, a=1, b="2"), "b must be of type int, got '2'"),
        (lambda: kbe_check.instances(float | int, a="2"), "a must be of type float | int, got '2'"),
        (lambda: kbe_check.integers(a=1, b=2.0), "b must be an integer, got 2.0"),
        (lambda: kbe_check.integers(a=True), "a must be an integer, got True"),
        (lambda: kbe_check.integers(a=NOWHERE), f"a must be an integer, got {NOWHERE!r}"),
        (lambda: kbe_check.integers(a=0), "a must be at least 1, got 0"),
        (lambda: kbe_check.integers(2, 3, a=4), "a must be between 2 and 3, got 4"),
        (lambda: kbe_check.numbers(a=1, b="2"), "b must be a number, got '2'"),
        (lambda: kbe_check.numbers(a=False), "a must be a number, got False"),
        (lambda: kbe_check.numbers(a=torch.ones(1)), "a must be a number, got tensor([1.])"),
        (lambda: kbe_check.numbers(a=torch.tensor(1j)), "a must be a number, got tensor(0.+1.j)"),
        (lambda: kbe_check.numbers(a=NOWHERE), f"a must be a number, got {NOWHERE!r}"),
        (lambda: kbe_check.numbers(a=torch.tensor(-math.inf)), "a must be finite, got -inf"),
        (lambda: kbe_check.floats(a=torch.float32, b=torch.half), "b must be float32 or float64, got torch.float16"),
        (lambda: kbe_check.floats(a="float32"), "a must be of type dtype, got 'float32'"),
        (lambda: kbe_check.positive(a=1, b=0), "b must be positive, got 0"),
        (lambda: kbe_check.positive(a=math.nan), "a must be finite, got nan"),
        (lambda: kbe_check.tensors(a=BITS, b=[1.0]), "b must be a torch.Tensor, got list"),
        (lambda: kbe_check.tensors(a=BITS.long()), "a must be float32 or float64, got torch.int64"),
        (lambda: kbe_check.tensors(a=BITS.to("meta")), "a must hold values, it is on the device 'meta'"),
        (lambda: kbe_check.tensors(a=BITS[:, :0]), "a must not be empty, got shape (4, 0)"),
        (lambda: kbe_check.tensors(a=BITS / BITS), "a must be finite, got 4 NaN or inf"),
        (lambda: kbe_check.leading(a=(2, 1), b=(3, 1)), "leading dimensions must go together, got a (2, 1), b (3, 1)"),
    ],
)
def test_the_words_of_a_complaint(complain, message):
    with pytest.raises((TypeError, ValueError)) as complaint:
        complain()
    assert str(complaint.value) == message


def test_what_the_checks_let_pass():
    kbe_check.instances(float | int, a=1, b=1.0)
    kbe_check.integers(2, 4, a=2, b=np.int64(3), c=torch.tensor(4))
    kbe_check.numbers(a=0, b=-1.5, c=np.float32(1), d=torch.tensor(2), e=Fraction(1, 3))
    kbe_check.positive(a=1e-300)
    kbe_check.tensors(a=BITS, b=BITS.float(), c=torch.zeros(1))
    kbe_check.tensors(finite=False, a=BITS / BITS)
    kbe_check.tensors(floating=False, a=BITS.long())
    assert kbe_check.leading(a=(2, 1), b=(3,)) == (2, 3)


def test_documented_results():
    """What looks wrong and is not: each has the result that its docstring states."""
    assert torch.equal(kbe.hamming(BITS.long()), DISTANCE.long())
    assert torch.equal(kbe.kernel_flow(KERNEL, LABELS, 0, 1), torch.ones_like(LABELS))
    torch.testing.assert_close(kbe.kernel_flow(KERNEL, LABELS, None), LABELS, rtol=0, atol=1e-12)
    assert kbe.collapse_streamline(torch.tensor([9.0], dtype=F64), 0.5, 0.5).isnan().all()
    assert kbe_stats.estimate(torch.nanmedian, spoiled(LINE.repeat(9), math.nan))[0] == 0.7
    assert kbe.logits({k: v * math.nan for k, v in PARAMS.items()}, DATA.x).isnan().all()


def counts() -> dict[str, int]:
    arguments = sum(len(good) for good, _ in CALLS.values())
    return {
        "functions": len(CALLS),
        "arguments": arguments,
        "wrong inputs": sum(len(wrong_values(*pair)) for pair in PAIRS),
    }


def test_nothing_is_tried_less_than_on_record():
    assert all(counts()[name] >= number for name, number in json.loads(RECORD.read_text())["bad input"].items())


if __name__ == "__main__":
    record = json.loads(RECORD.read_text()) | {"bad input": counts()}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(record["bad input"])
