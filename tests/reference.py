"""The paper's network and its training once more, in plain Python loops over plain numbers.

Written from the paper's equations 6 to 11, without torch, without kbe_lib, and without a thought for speed: one
network, one point, one channel, one position at a time.  The derivatives are the chain rule, term by term.
"""

import math

import numpy as np


def elu(z: float) -> float:
    return z if z > 0 else math.exp(z) - 1


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def heads_of(params: dict[str, np.ndarray]) -> list[str]:
    return [name for name in ("mu", "sigma") if f"{name}.weight" in params]


def n_layers(params: dict[str, np.ndarray]) -> int:
    return sum(name.startswith("conv") and name.endswith("weight") for name in params)


def forward(params, bits):
    """The input and the values before and after the ELU of each layer, and the logits of the heads, for one string."""
    before, after = [], [[list(map(float, bits))]]
    for layer in range(1, n_layers(params) + 1):
        weight, bias, below = params[f"conv{layer}.weight"], params[f"conv{layer}.bias"], after[-1]
        width = len(bits)
        z = [[float(bias[o]) for _ in range(width)] for o in range(len(bias))]
        for o in range(len(bias)):
            for i in range(len(below)):
                for position in range(width):
                    for tap in range(3):
                        neighbour = position + tap - 1
                        if 0 <= neighbour < width:  # outside there are zeros
                            z[o][position] += float(weight[o, i, tap]) * below[i][neighbour]
        before.append(z)
        after.append([[elu(value) for value in row] for row in z])
    flat = [value for row in after[-1] for value in row]
    logits = []
    for head in heads_of(params):
        weight, bias = params[f"{head}.weight"][0], params[f"{head}.bias"][0]
        logits.append(float(bias) + sum(float(w) * value for w, value in zip(weight, flat, strict=True)))
    return before, after, logits


def logit_gradients(params, bits):
    """d logit / d parameter for each head: a list of dictionaries with the shapes of params."""
    before, after, _ = forward(params, bits)
    width, gradients = len(bits), []
    for head in heads_of(params):
        gradient = {name: np.zeros_like(value) for name, value in params.items()}
        flat = [value for row in after[-1] for value in row]
        gradient[f"{head}.weight"][0] = flat
        gradient[f"{head}.bias"][0] = 1.0
        upstream = params[f"{head}.weight"][0].reshape(len(after[-1]), width)
        for layer in range(n_layers(params), 0, -1):
            weight, below, z = params[f"conv{layer}.weight"], after[layer - 1], before[layer - 1]
            passed = np.zeros((len(below), width))
            for o in range(len(z)):
                for position in range(width):
                    slope = 1.0 if z[o][position] > 0 else math.exp(z[o][position])
                    delta = upstream[o][position] * slope
                    gradient[f"conv{layer}.bias"][o] += delta
                    for i in range(len(below)):
                        for tap in range(3):
                            neighbour = position + tap - 1
                            if 0 <= neighbour < width:
                                gradient[f"conv{layer}.weight"][o, i, tap] += delta * below[i][neighbour]
                                passed[i][neighbour] += delta * weight[o, i, tap]
            upstream = passed
        gradients.append(gradient)
    return gradients


def outputs(params, bits) -> list[float]:
    """mu and sigma, or mu alone, with sigmoid readouts."""
    return [sigmoid(z) for z in forward(params, bits)[2]]


def loss_slopes(label: float, values: list[float]) -> list[float]:
    """dL/d output: of eq. 8 for mu and sigma, of half the squared error for mu alone."""
    if len(values) == 1:
        return [values[0] - label]
    mu, sigma = values
    return [(mu - label) / sigma**2, 1 / sigma - (mu - label) ** 2 / sigma**3]


def train(params, x, y, epochs: int, lr: float) -> dict[str, np.ndarray]:
    """Full-batch gradient descent on the mean loss over the points of one network."""
    params = {name: value.copy() for name, value in params.items()}
    for _ in range(epochs):
        total = {name: np.zeros_like(value) for name, value in params.items()}
        for bits, label in zip(x, y, strict=True):
            values = outputs(params, bits)
            slopes = loss_slopes(float(label), values)
            for value, slope, gradient in zip(values, slopes, logit_gradients(params, bits), strict=True):
                for name in total:
                    total[name] += slope * value * (1 - value) * gradient[name] / len(y)
        for name in params:
            params[name] = params[name] - lr * total[name]
    return params


def response(params, first, second) -> np.ndarray:
    """The training response of eqs 2 and 3 between two strings, one row per output, with sigmoid readouts."""
    flat = []
    for bits in (first, second):
        rows = [np.concatenate([g[name].ravel() for name in params]) for g in logit_gradients(params, bits)]
        flat.append([value * (1 - value) * row for value, row in zip(outputs(params, bits), rows, strict=True)])
    return np.array([[float(a @ b) for b in flat[1]] for a in flat[0]])
