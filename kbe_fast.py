"""Full-batch training of very many tiny networks, exactly as `kbe_lib.train` does it, some hundred times faster.

Three things make it fast, and none of them is an approximation.

Lanes.  One processor register holds 16 float32 or 8 float64 numbers.  Here they belong to 16 or 8 *networks*: the
kernel reads like the training of one network, every number of it is a vector (`Lanes`), and no loop over networks is
left for a compiler to find.

Counts.  Labels are 0 or 1, so a loss over N points is a sum over distinct strings x of n0(x) l(0, x) + n1(x) l(1, x):
the N points enter through two counts per string.

Receptive-field tables.  After l convolutions of kernel size 3 a unit has seen at most 2 l + 1 bits, so among all 2^b
strings most units are copies of each other.  A `Plan` lists the distinct ones: with 8 bits and three layers 8, 48 and
224 in place of 2048 each.  It is a list of who feeds whom, and the kernel does not ask where it comes from: a plan for
N separate points, in which nothing is shared, is the ordinary direct algorithm, and the faster one when N is small.
"""

import math
import operator
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, overload, register_model, type_callable
from numpy.polynomial.chebyshev import cheb2poly, poly2cheb

import kbe_remedies
from kbe_lib import Dataset, Floored, Params, Readout, Run
from kbe_losses import LOSSES as LOSS_FUNCTIONS
from kbe_remedies import Remedy

# ----------------------------------------------------------------------------- a vector register as a Numba type

REGISTER = 64  # bytes; a processor with shorter registers takes two or four of its own, and computes the same


class Lanes(types.Type):
    """A vector of floats, or of truth values, with one network in each lane."""

    def __init__(self, dtype: types.Type, width: int) -> None:
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Lanes({dtype}, {width})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.dtype).get_value_type(), lanes.width))


def _spread(context, builder, value, kind, lanes: Lanes):
    """A number as a vector of equal numbers; a vector as it is."""
    if isinstance(kind, Lanes):
        return value
    vector = ir.Constant(context.get_value_type(lanes), ir.Undefined)
    first = builder.insert_element(vector, context.cast(builder, value, kind, lanes.dtype), ir.IntType(32)(0))
    return builder.shuffle_vector(first, vector, ir.Constant(ir.VectorType(ir.IntType(32), lanes.width), None))


def _define(operation, emit, comparison: bool = False) -> None:
    """Teach Numba `operation` between two vectors, or a vector and a number."""

    @type_callable(operation)
    def _(typing_context):
        def result(a, b):
            lanes = a if isinstance(a, Lanes) else b
            if isinstance(lanes, Lanes):
                return Lanes(types.boolean, lanes.width) if comparison else lanes

        return result

    def generate(context, builder, signature, values):
        kinds = signature.args
        lanes = kinds[0] if isinstance(kinds[0], Lanes) else kinds[1]
        pair = zip(values, kinds, strict=True)
        return emit(builder, *(_spread(context, builder, value, kind, lanes) for value, kind in pair))

    for kinds in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(operation, *kinds)(generate)


# "contract" allows a product and a sum to become one fused instruction, and nothing else.
def _add(builder, a, b):
    return builder.fadd(a, b, flags=("contract",))


def _multiply(builder, a, b):
    return builder.fmul(a, b, flags=("contract",))


_define(operator.add, _add)
_define(operator.mul, _multiply)
_define(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=("contract",)))
_define(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
_define(operator.lt, lambda builder, a, b: builder.fcmp_ordered("<", a, b), comparison=True)


@intrinsic
def where(typing_context, condition, a, b):
    """a where the condition holds, else b, lane by lane."""
    lanes = a if isinstance(a, Lanes) else b

    def generate(context, builder, signature, values):
        pair = zip(values[1:], (a, b), strict=True)
        return builder.select(values[0], *(_spread(context, builder, value, kind, lanes) for value, kind in pair))

    return lanes(condition, a, b), generate


def _lanes_of(array: types.Array) -> Lanes:
    return Lanes(array.dtype, REGISTER * 8 // array.dtype.bitwidth)


def _pointer(context, builder, array, values):
    """Where the vector array[row] begins in memory."""
    lanes = _lanes_of(array)
    data = context.make_array(array)(context, builder, values[0]).data
    start = builder.gep(data, [builder.mul(values[1], ir.IntType(64)(lanes.width))])
    return builder.bitcast(start, context.get_value_type(lanes).as_pointer())


@intrinsic
def load(typing_context, array, row):
    """The vector array[row]."""

    def generate(context, builder, signature, values):
        return builder.load(_pointer(context, builder, array, values), align=array.dtype.bitwidth // 8)

    return _lanes_of(array)(array, types.int64), generate


@intrinsic
def store(typing_context, array, row, vector):
    """array[row] = vector."""

    def generate(context, builder, signature, values):
        builder.store(values[2], _pointer(context, builder, array, values), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


@intrinsic
def polynomial(typing_context, x, coefficients):
    """A polynomial of a vector, the lowest coefficient first.

    By Estrin's scheme: neighbours are added in pairs, the pairs in pairs, so that few sums wait for others.
    """

    def generate(context, builder, signature, values):
        numbers = cgutils.unpack_tuple(builder, values[1])
        terms, power = [_spread(context, builder, number, coefficients.dtype, x) for number in numbers], values[0]
        while len(terms) > 1:
            pairs = zip(terms[::2], terms[1::2], strict=False)
            alone = terms[len(terms) // 2 * 2 :]
            terms = [_add(builder, a, _multiply(builder, b, power)) for a, b in pairs] + alone
            power = _multiply(builder, power, power)
        return terms[0]

    return x(x, coefficients), generate


@intrinsic
def constant(typing_context, value, like):
    """A number as a vector like another one."""

    def generate(context, builder, signature, values):
        return _spread(context, builder, values[0], value, like)

    return like(value, like), generate


def _lane_by_lane(name: str):
    """LLVM's own function of that name, of a vector."""

    @intrinsic
    def function(typing_context, x):
        def generate(context, builder, signature, values):
            kind = ir.FunctionType(values[0].type, [values[0].type])
            overloaded = f"llvm.{name}.v{x.width}f{x.dtype.bitwidth}"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, overloaded), values)

        return x(x), generate

    return function


square_root, absolute = _lane_by_lane("sqrt"), _lane_by_lane("fabs")


@intrinsic
def power_of_two(typing_context, shifted):
    """2^k for a vector k + 1.5 * 2^m, m the number of mantissa bits: k moves from the last bits to the exponent."""
    bits, mantissa = shifted.dtype.bitwidth, 23 if shifted.dtype.bitwidth == 32 else 52

    def generate(context, builder, signature, values):
        whole = ir.VectorType(ir.IntType(bits), shifted.width)
        one = ((1 << (bits - mantissa - 2)) - 1) << mantissa
        k = builder.shl(builder.bitcast(values[0], whole), ir.Constant(whole, [mantissa] * shifted.width))
        return builder.bitcast(builder.add(k, ir.Constant(whole, [one] * shifted.width)), values[0].type)

    return shifted(shifted), generate


# -------------------------------------------------------------------------------------------- elementary functions


def exponential(z):
    """exp(z) and exp(z) - 1 of a vector, each to full relative accuracy; exp is 0 below the smallest normal number."""


@overload(exponential)
def _exponential_of_lanes(z):
    single = z.dtype == types.float32
    mantissa, largest, terms = (23, 128, 6) if single else (52, 1024, 11)
    shift = 1.5 * 2.0**mantissa
    lowest, highest = (1 - largest) * math.log(2), largest * math.log(2)
    # ln 2 in two pieces: k times the first is exact
    ln2 = 0.693359375 if single else 0.6931471803691238
    rest = -2.12194440054690583e-4 if single else 1.9082149292705877e-10
    # (exp(r) - 1) / r at |r| <= ln(2) / 2: Taylor's series written in Chebyshev polynomials and cut there; what is cut
    # is below a fifth of a unit of the last place; of Taylor's own it would take one term more, or two
    powers = (math.log(2) / 2) ** np.arange(20)
    taylor = powers / [math.factorial(n + 1) for n in range(20)]
    series = tuple((cheb2poly(poly2cheb(taylor)[:terms]) / powers[:terms]).tolist())

    def exponential_of_lanes(z):
        z = where(z < lowest, lowest, z)
        z = where(highest < z, highest, z)
        shifted = z * (1 / math.log(2)) + shift
        k = shifted - shift
        r = (z - k * ln2) - k * rest
        q = polynomial(r, series) * r
        scale = power_of_two(shifted)
        return scale * (q + 1.0), scale * q + (scale - 1.0)

    return exponential_of_lanes


# Only the kernel calls what follows; without a way in from Python it compiles in three quarters of the time.
kernel_part = njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
# A call costs more than it saves where vectors go in and come out.
vector_part = njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)

ARTANH = tuple(1 / n for n in range(1, 38, 2))


@kernel_part
def log_of_1_plus(u):
    """log(1 + u) for 0 <= u <= 1 as 2 artanh(u / (2 + u)), whose series converges like 9^-n."""
    s = u / (u + 2.0)
    return 2.0 * s * polynomial(s * s, ARTANH)


@kernel_part
def larger(a, b):
    return where(a < b, b, a)


@kernel_part
def elu(z):
    """ELU and its derivative.

    The derivative is exp(z), taken from z.  The output + 1 is the same on paper; in floats it is 0 at saturation,
    where the true 1e-17 meets a factor 1/sigma^3 = 1e18.
    """
    e, e_minus_1 = exponential(where(z < 0.0, z, 0.0))
    return where(z < 0.0, e_minus_1, z), e


# Numbers that stand for names in the kernel.  They are given here, because a cached kernel would not notice that the
# order of names changed in another file.
RAW, ELU, ELU_PLUS_1, SOFTPLUS, EXP, SIGMOID = range(6)
READOUTS = {"raw": RAW, "elu": ELU, "elu+1": ELU_PLUS_1, "softplus": SOFTPLUS, "exp": EXP, "sigmoid": SIGMOID}
GAUSSIAN, PRINTED, SQUARED, LAPLACE, STUDENT_T, BETA, FAITHFUL, CLAMPED, GAMMA_PRIOR = range(9)
LOSSES = {
    "gaussian": GAUSSIAN, "printed": PRINTED, "squared": SQUARED, "laplace": LAPLACE, "student_t": STUDENT_T,
    "beta": BETA, "faithful": FAITHFUL, "clamped": CLAMPED, "gamma_prior": GAMMA_PRIOR,
}  # fmt: skip
# The parameters that a loss has besides its arguments, and the values of those that are not given.
PARAMETERS = {
    "student_t": {"nu": 3.0},
    "beta": {"beta": 0.5},
    "clamped": {"eps": 1e-6},
    "gamma_prior": {"shape": 1.0, "rate": 0.02},
}


scramble = kernel_part(kbe_remedies.scramble)


@kernel_part
def uniform(key, place):
    """A random number in [0, 1), the one of `kbe_remedies.uniform`."""
    return float(scramble(key, np.uint64(place)) >> np.uint64(11)) * 2.0**-53


@vector_part
def read(z, readout):
    """A readout R(z), its derivative R', that of its logarithm, R'/R, and 1/R."""
    if readout == SIGMOID:
        e, _ = exponential(0.0 - z)
        inverse = e + 1.0
        value = 1.0 / inverse
        rest = 1.0 - value  # as torch rounds it
        return value, value * rest, where(z < 0.0, rest, e * value), inverse
    if readout == SOFTPLUS:
        e, _ = exponential(where(z < 0.0, z, 0.0 - z))
        value = where(z < 0.0, 0.0, z) + log_of_1_plus(e)
        slope = where(z < 0.0, e, 1.0) / (e + 1.0)
        value, slope = where(20.0 < z, z, value), where(20.0 < z, 1.0, slope)  # as torch does
    elif readout == EXP:
        value, _ = exponential(z)
        slope = value
    else:
        value, slope = elu(z)
        if readout == ELU_PLUS_1:
            value = where(z < 0.0, slope, z + 1.0)
        elif readout == RAW:
            value, slope = z, constant(1.0, z)
    inverse = 1.0 / value
    return value, slope, slope * inverse, inverse


@vector_part
def read_sigma(z, readout, floor):
    """As `read`, with a floor: sigma^2 = R^2 + floor^2."""
    value, slope, log_slope, inverse = read(z, readout)
    if floor > 0.0:
        bare = value
        value = square_root(bare * bare + floor * floor)
        inverse = 1.0 / value
        slope = slope * bare * inverse
        log_slope = slope * inverse
    return value, slope, log_slope, inverse


@kernel_part
def slopes(error, sigma, inverse, d_sigma, d_log_sigma, loss, first, second):
    """Derivatives of the loss of one point by mu and by the logit of sigma, at error = mu - y and inverse = 1 / sigma.

    A location-scale family depends on error / sigma alone beside log sigma, so that d loss / d log sigma is
    1 - error * d loss / d mu.  What is not such a family says so.
    """
    by_mu = error * inverse * inverse
    if loss == GAUSSIAN:
        return by_mu, (1.0 - error * by_mu) * d_log_sigma
    if loss == LAPLACE:
        by_mu = where(error < 0.0, -1.0, where(0.0 < error, 1.0, error)) * absolute(inverse)
    elif loss == STUDENT_T:
        by_mu = by_mu * (first + 1.0) / (error * error * inverse * inverse + first)
    elif loss == PRINTED:
        return by_mu, d_sigma - error * by_mu * d_log_sigma
    elif loss == SQUARED:
        return error, 0.0 * error
    elif loss == FAITHFUL:
        return error, (1.0 - error * by_mu) * d_log_sigma
    elif loss == GAMMA_PRIOR:
        prior = 2.0 * (first - 1.0) - 2.0 * second * inverse * inverse
        return by_mu, (1.0 - error * by_mu + prior) * d_log_sigma
    elif loss == CLAMPED:
        by_mu = error / larger(sigma * sigma, first)
        return by_mu, (1.0 - error * by_mu) / larger(sigma * sigma, first) * sigma * d_sigma
    elif loss == BETA:
        weight = absolute(sigma) if first == 0.5 else sigma * sigma
        return weight * by_mu, weight * (1.0 - error * by_mu) * d_log_sigma
    return by_mu, (1.0 - error * by_mu) * d_log_sigma


# ------------------------------------------------------------------------------------------------------ the kernel


class Plan(NamedTuple):
    """Who feeds whom in S strings of b bits, each distinct unit listed once.

    Units are numbered through all layers, layer 0 being the bits; unit 0 is the zero padding at the ends of a string.
    A head's sum over the positions is cut in two chains, from the left end and from the right end to the middle,
    because strings that begin alike share the first: a node is a partial sum of a chain.
    """

    first: np.ndarray  # (L + 2,)      units of layer l are first[l] ... first[l + 1] - 1
    taps: np.ndarray  # (units, 3)     the three units that feed a unit
    position: np.ndarray  # (b,)       positions in the order of the chains
    start: np.ndarray  # (b + 1,)      nodes at position[j] are start[j] ... start[j + 1] - 1
    parent: np.ndarray  # (nodes,)     the partial sum that a node continues; nodes 0 and 1 are the empty sums
    unit: np.ndarray  # (nodes,)       the unit of the last layer that a node adds
    ends: np.ndarray  # (S, 2)         the two nodes that add up to the logit of a string
    last: np.ndarray  # (S, b)         the units of the last layer in each string


def make_plan(units: np.ndarray, n_layers: int) -> Plan:
    """The plan for S strings, given which unit of layer 0 each of their bits is, (S, b)."""
    n_strings, n_bits = units.shape
    first, taps = [1, int(units.max()) + 1], [np.zeros((units.max() + 1, 3), dtype=np.int64)]
    for _ in range(n_layers):
        padded = np.pad(units, ((0, 0), (1, 1)))
        windows = np.stack([padded[:, k : k + n_bits] for k in range(3)], axis=-1)
        distinct, units = np.unique(windows.reshape(-1, 3), axis=0, return_inverse=True)
        units = first[-1] + units.reshape(n_strings, n_bits)
        taps.append(distinct)
        first.append(first[-1] + len(distinct))
    middle = n_bits // 2
    position, start, nodes, ends = [], [2], [np.zeros((2, 2), dtype=np.int64)], []
    for root, chain in enumerate((range(middle), range(n_bits - 1, middle - 1, -1))):
        node = np.full(n_strings, root)
        for p in chain:
            distinct, node = np.unique(np.stack([node, units[:, p]], axis=-1), axis=0, return_inverse=True)
            node = start[-1] + node.ravel()
            nodes.append(distinct)
            position.append(p)
            start.append(start[-1] + len(distinct))
        ends.append(node)
    parent, unit = np.concatenate(nodes).T.copy()
    return Plan(
        np.array(first), np.concatenate(taps), np.array(position), np.array(start), parent, unit, np.stack(ends, -1),
        units,
    )  # fmt: skip


class Rule(NamedTuple):
    """`kbe_lib.train`'s settings beside the data, as numbers."""

    loss: int
    first: float  #           parameters of the loss
    second: float
    floor: float  #           under sigma
    jump: float  #            what is a failure
    weight: float  #          the loss of a point counts weight / N
    clip: float  #            the rest is as in `kbe_remedies.Remedy`
    adam: bool
    detached: bool  #         only mu's gradient reaches the trunk
    label_noise: float
    dropout: float
    seed: np.uint64


@lru_cache(maxsize=32)
def plan_of_all(n_bits: int, n_layers: int) -> Plan:
    """The plan for all 2^b strings, kept, because a chapter that trains epoch by epoch asks a thousand times."""
    return make_plan(np.arange(2**n_bits)[:, None] >> np.arange(n_bits - 1, -1, -1) & 1, n_layers)


@lru_cache(maxsize=32)
def plan_of_separate(n_points: int, n_bits: int, n_layers: int) -> Plan:
    """The plan for N points of which no two share a unit, kept as well."""
    return make_plan(1 + np.arange(n_points * n_bits).reshape(n_points, n_bits), n_layers)


class Net(NamedTuple):
    """Parameters, or their gradients, of one network per lane; `flat` is the memory that the others name."""

    flat: np.ndarray  # (P, lanes)
    weight: np.ndarray  # (L C C 3, lanes)  by layer, output channel, input channel, tap; layer 1 reads one channel only
    bias: np.ndarray  # (L C, lanes)
    head: np.ndarray  # (b H C, lanes)
    head_bias: np.ndarray  # (H, lanes)


class Memory(NamedTuple):
    """What a step writes down on its way, for one network per lane."""

    h: np.ndarray  # (units C, lanes)          outputs of the units
    slope: np.ndarray  # (units C, lanes)      and their ELU's derivative
    d_h: np.ndarray  # (units C, lanes)        derivative of the loss by h
    tap: np.ndarray  # (units 3 C, lanes)      what a unit adds to its neighbours on the right, above and on the left
    d_tap: np.ndarray  # (units 3 C, lanes)
    node: np.ndarray  # (nodes H, lanes)       partial sums of the heads
    d_node: np.ndarray  # (nodes H, lanes)
    output: np.ndarray  # (2 S H, lanes)       mu and sigma of the epoch and of the one before, by parity
    moved: np.ndarray  # (1, lanes)            largest change of an output in this epoch
    poison: np.ndarray  # (1, lanes)           0 while everything is finite, else NaN


@kernel_part
def clear(array, first, end):
    """array[first:end] = 0; a loop, as below, because slices take long to compile."""
    for row in range(first, end):
        store(array, row, constant(0.0, load(array, row)))


@kernel_part
def forward(net, plan, memory, channels):
    """Units layer by layer."""
    h, slope, tap = memory.h, memory.slope, memory.tap
    C = len(channels)
    n_layers = len(plan.first) - 2
    for layer in range(n_layers):
        below, here, above = plan.first[layer], plan.first[layer + 1], plan.first[layer + 2]
        for v in range(below, here):
            for c in range(C):
                for k in range(3):
                    weight = (layer * C + c) * C * 3 + k
                    total = load(h, v * C) * load(net.weight, weight)
                    for i in range(1, C):
                        total = total + load(h, v * C + i) * load(net.weight, weight + 3 * i)
                    store(tap, (v * 3 + k) * C + c, total)
        for u in range(here, above):
            for c in range(C):
                z = load(net.bias, layer * C + c)
                for k in range(3):
                    z = z + load(tap, (plan.taps[u, k] * 3 + k) * C + c)
                value, derivative = elu(z)
                store(h, u * C + c, value)
                store(slope, u * C + c, derivative)


@kernel_part
def sum_up(net, plan, memory, channels, heads):
    """The partial sums of the heads."""
    h, node = memory.h, memory.node
    C, H = len(channels), len(heads)
    for head in range(H):
        store(node, head, load(net.head_bias, head))
    for j in range(len(plan.position)):
        p = plan.position[j]
        for q in range(plan.start[j], plan.start[j + 1]):
            for head in range(H):
                total = load(node, plan.parent[q] * H + head)
                for c in range(C):
                    total = total + load(h, plan.unit[q] * C + c) * load(net.head, (p * H + head) * C + c)
                store(node, q * H + head, total)


@kernel_part
def read_out(plan, memory, count, epoch, readouts, rule, judged):
    """Outputs of all strings, how far they moved, and the derivative of the summed loss by the logits.

    If not judged, only the derivative: with dropout the outputs that count are those without.
    """
    node, d_node, output = memory.node, memory.d_node, memory.output
    H, S = len(readouts), len(plan.ends)
    now, before = epoch % 2 * S * H, (epoch + 1) % 2 * S * H
    moved = constant(0.0, load(memory.moved, 0))
    poison = moved
    clear(d_node, 0, len(d_node))
    for s in range(S):
        left, right = plan.ends[s, 0] * H, plan.ends[s, 1] * H
        m0, m1 = load(count, s), load(count, S + s)  # how many labels 0 and 1 mu learns from here
        s0, s1 = m0, m1  # and sigma
        n = m0 + m1
        if len(count) > 2 * S:
            s0, s1 = load(count, 2 * S + s), load(count, 3 * S + s)
            n = n + (s0 + s1)
        mu, d_mu, _, _ = read(load(node, left) + load(node, right), readouts[0])
        sigma, d_sigma, d_log_sigma, inverse = mu, mu, mu, mu
        change = mu
        if judged:
            change = mu - load(output, before + s * H)
            store(output, now + s * H, mu)
        not_finite, change = change - change, absolute(change)
        if H == 2:
            z = load(node, left + 1) + load(node, right + 1)
            sigma, d_sigma, d_log_sigma, inverse = read_sigma(z, readouts[1], rule.floor)
            if judged:
                change_of_sigma = sigma - load(output, before + s * H + 1)
                store(output, now + s * H + 1, sigma)
                not_finite = not_finite + (change_of_sigma - change_of_sigma)
                change = larger(change, absolute(change_of_sigma))
        if judged:
            moved = larger(moved, where(0.0 < n, change, 0.0))
            poison = poison + where(0.0 < n, not_finite, 0.0)
        by_mu0, by_z0 = slopes(mu, sigma, inverse, d_sigma, d_log_sigma, rule.loss, rule.first, rule.second)
        by_mu1, by_z1 = slopes(mu - 1.0, sigma, inverse, d_sigma, d_log_sigma, rule.loss, rule.first, rule.second)
        # a label that does not occur counts as 0 also where its slope overflows
        d_z = where(0.0 < m0, m0 * by_mu0 * d_mu, 0.0) + where(0.0 < m1, m1 * by_mu1 * d_mu, 0.0)
        store(d_node, left, load(d_node, left) + d_z)
        store(d_node, right, load(d_node, right) + d_z)
        if H == 2:
            d_z = where(0.0 < s0, s0 * by_z0, 0.0) + where(0.0 < s1, s1 * by_z1, 0.0)
            store(d_node, left + 1, load(d_node, left + 1) + d_z)
            store(d_node, right + 1, load(d_node, right + 1) + d_z)
    if judged:
        store(memory.moved, 0, moved)
        store(memory.poison, 0, poison)


@kernel_part
def drop(plan, memory, channels, key, rule):
    """Multiply the outputs of the last layer, and their derivatives, by 0 or 1 / (1 - dropout)."""
    C = len(channels)
    n_strings, n_bits = plan.last.shape
    for lane in range(len(key)):
        for s in range(n_strings):
            for c in range(C):
                for p in range(n_bits):
                    place = n_strings + (s * C + c) * n_bits + p  # the first places are the labels'
                    kept = 0.0 if uniform(key[lane], place) < rule.dropout else 1 / (1 - rule.dropout)
                    memory.h[plan.last[s, p] * C + c, lane] *= kept
                    memory.slope[plan.last[s, p] * C + c, lane] *= kept


@kernel_part
def count_labels(plan, count, string, label, share, key, rule):
    """How often each string has either label; each label turned over with the probability of label noise."""
    S = len(plan.ends)
    clear(count, 0, len(count))
    for lane in range(len(string)):
        for i in range(string.shape[1]):
            y = label[lane, i]
            if uniform(key[lane], i) < rule.label_noise:
                y = 1 - y
            count[y * S + string[lane, i], lane] += share[0, i]
            if len(count) > 2 * S:
                count[(2 + y) * S + string[lane, i], lane] += share[1, i]


@kernel_part
def backward(net, gradient, plan, memory, channels, heads, detached):
    """The derivatives of the summed loss by all parameters, from those by the logits."""
    h, slope, d_h, d_tap, d_node = memory.h, memory.slope, memory.d_h, memory.d_tap, memory.d_node
    C, H = len(channels), len(heads)
    n_layers = len(plan.first) - 2
    zero = constant(0.0, load(memory.moved, 0))
    clear(d_h, plan.first[n_layers] * C, len(d_h))
    for j in range(len(plan.position) - 1, -1, -1):
        p = plan.position[j]
        for q in range(plan.start[j], plan.start[j + 1]):
            for head in range(H):
                parent = plan.parent[q] * H + head
                store(d_node, parent, load(d_node, parent) + load(d_node, q * H + head))
            for c in range(C):
                total = load(d_h, plan.unit[q] * C + c)
                for head in range(1 if detached else H):
                    total = total + load(d_node, q * H + head) * load(net.head, (p * H + head) * C + c)
                store(d_h, plan.unit[q] * C + c, total)
        for c in range(C):
            first, last = zero, zero  # sums for the first head and the last: both in one go, so that neither waits
            for q in range(plan.start[j], plan.start[j + 1]):
                value = load(h, plan.unit[q] * C + c)
                first = first + load(d_node, q * H) * value
                last = last + load(d_node, q * H + H - 1) * value
            store(gradient.head, p * H * C + c, first)
            store(gradient.head, (p * H + H - 1) * C + c, last)
    for head in range(H):
        store(gradient.head_bias, head, load(d_node, head))
    for layer in range(n_layers - 1, -1, -1):
        below, here, above = plan.first[layer], plan.first[layer + 1], plan.first[layer + 2]
        clear(d_tap, 0, here * 3 * C)
        for u in range(here, above):
            for c in range(C):
                d_z = load(d_h, u * C + c) * load(slope, u * C + c)
                for k in range(3):
                    v = (plan.taps[u, k] * 3 + k) * C + c
                    store(d_tap, v, load(d_tap, v) + d_z)
        for c in range(C):
            total = load(d_tap, C + c)  # every unit has one of those below in its middle, or unit 0 for a bit 0
            for v in range(below, here):
                total = total + load(d_tap, (v * 3 + 1) * C + c)
            store(gradient.bias, layer * C + c, total)
            for i in range(C):
                left, middle, right = zero, zero, zero  # three sums in one go, so that none waits for the one before
                for v in range(below, here):
                    value, tap = load(h, v * C + i), v * 3 * C + c
                    left = left + load(d_tap, tap) * value
                    middle = middle + load(d_tap, tap + C) * value
                    right = right + load(d_tap, tap + 2 * C) * value
                weight = ((layer * C + c) * C + i) * 3
                store(gradient.weight, weight, left)
                store(gradient.weight, weight + 1, middle)
                store(gradient.weight, weight + 2, right)
        if layer > 0:
            for v in range(below, here):
                for i in range(C):
                    total = zero
                    for c in range(C):
                        for k in range(3):
                            weight = load(net.weight, ((layer * C + c) * C + i) * 3 + k)
                            total = total + load(d_tap, (v * 3 + k) * C + c) * weight
                    store(d_h, v * C + i, total)


@kernel_part
def step(net, gradient, previous, moments, sigma_head, rate, epoch, rule, n_points):
    """theta - rate * gradient of the loss, the theta before kept; a lane with rate 0 is frozen."""
    size = load(rate, 0)
    poison = constant(0.0, size)
    P = net.flat.shape[0]
    scale = constant(rule.weight / n_points, size)  # from the sum over a network's points to the loss
    if rule.clip < np.inf:
        square = poison
        for j in range(P):
            g = scale * load(gradient.flat, j)
            square = square + g * g
        scale = scale * (rule.clip / larger(square_root(square), constant(rule.clip, size)))
    plain = size * scale
    first, second = 1 - 0.9 ** (epoch + 1), 1 - 0.999 ** (epoch + 1)
    for j in range(P):
        old = load(net.flat, j)
        g = load(gradient.flat, j)
        lr, decay = sigma_head[0, j], sigma_head[1, j]
        if rule.adam:
            g = scale * g + decay * old
            moment, square = load(moments, j) * 0.9 + g * 0.1, load(moments, P + j) * 0.999 + g * g * 0.001
            store(moments, j, moment)
            store(moments, P + j, square)
            change = size * lr * (moment / first) / (square_root(square / second) + 1e-8)
        else:
            change = lr * (plain * g + size * decay * old)
        new = where(0.0 < size, old - change, old)
        poison = poison + (new - new)
        store(previous, j, old)
        store(net.flat, j, new)
    return poison


@njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
def train_lanes(net, gradient, previous, moments, plan, memory, count, label, share, sigma_head, rate, networks,
                key, epochs, channels, readouts, rule, checkpoints, string, mu, sigma, failed_at, frozen_at,
                kick):  # fmt: skip
    """Train one network per lane through all epochs, writing what `kbe_lib.Run` holds into the last arguments."""
    kept = 0
    poison = constant(0.0, load(rate, 0))
    for epoch in range(epochs + 1):
        forward(net, plan, memory, channels)
        sum_up(net, plan, memory, channels, readouts)
        if rule.label_noise > 0.0 or rule.dropout > 0.0:
            for lane in range(len(key)):
                key[lane] = scramble(scramble(rule.seed, networks[lane]), np.uint64(epoch))
        if epoch == 0 or rule.label_noise > 0.0:
            count_labels(plan, count, string, label, share, key, rule)
        read_out(plan, memory, count, epoch, readouts, rule, True)
        if epoch > 0:
            store(memory.poison, 0, load(memory.poison, 0) + poison)
            judge(net, previous, memory, rate, epoch, rule.jump, failed_at, frozen_at, kick)
        if kept < len(checkpoints) and epoch == checkpoints[kept]:
            record(memory.output, epoch % 2 * len(plan.ends), len(readouts), string, mu, sigma, kept)
            kept += 1
        if epoch < epochs:
            if rule.dropout > 0.0:
                drop(plan, memory, channels, key, rule)
                sum_up(net, plan, memory, channels, readouts)
                read_out(plan, memory, count, epoch, readouts, rule, False)
            backward(net, gradient, plan, memory, channels, readouts, rule.detached)
            poison = step(net, gradient, previous, moments, sigma_head, rate, epoch, rule, string.shape[1])


@kernel_part
def judge(net, previous, memory, rate, epoch, jump, failed_at, frozen_at, kick):
    """Note who failed in this epoch, and take those that are not finite back to the epoch before."""
    size = len(memory.output) // 2
    now, before = epoch % 2 * size, (epoch + 1) % 2 * size
    for lane in range(len(failed_at)):
        finite = memory.poison[0, lane] == 0
        if failed_at[lane] > epoch and not (finite and memory.moved[0, lane] <= jump):
            failed_at[lane] = epoch
        kick[lane] = max(kick[lane], memory.moved[0, lane]) if finite else np.inf
        if not finite:
            frozen_at[lane] = min(frozen_at[lane], epoch)
            rate[0, lane] = 0
            for j in range(len(previous)):
                net.flat[j, lane] = previous[j, lane]
            for j in range(size):
                memory.output[now + j, lane] = memory.output[before + j, lane]


@kernel_part
def record(output, first, n_heads, string, mu, sigma, kept):
    """Outputs of the strings, (S H, lanes) after the first, to those of every network's own points, (lanes, T, N)."""
    for lane in range(string.shape[0]):
        for point in range(string.shape[1]):
            row = (first + string[lane, point]) * n_heads
            mu[lane, kept, point] = output[row, lane]
            if n_heads == 2:
                sigma[lane, kept, point] = output[row + 1, lane]


# ------------------------------------------------------------------------------------------------------ the engine


def objection(params: Params, data: Dataset, loss: object) -> str | None:
    """Why this engine cannot train this, or None if it can."""
    theta = params["conv1.weight"]
    if theta.device.type != "cpu":
        return f"needs params on the CPU, got device {theta.device}"
    if "nu.weight" in params:
        return "needs one head or two, got a third one"
    name, values = name_of_loss(loss)
    if name not in LOSSES:
        return f"needs loss to be one of {tuple(LOSSES)} or a partial of its function, got {loss!r}"
    if not values.keys() <= PARAMETERS.get(name, {}).keys() or not all(isinstance(v, float) for v in values.values()):
        return f"needs parameters of loss {name!r} to be floats of {PARAMETERS.get(name, {})}, got {values}"
    if name == "beta" and values.get("beta", 0.5) not in (0.5, 1.0):
        return f"needs beta to be 0.5 or 1.0, got {values['beta']}"
    for name, values in (("data.x", data.x), ("data.y", data.y)):
        other = values[(values != 0) & (values != 1)]
        if len(other):
            return f"needs {name} to be 0 or 1 everywhere, got {float(other[0]):g}"
    return None


def name_of_loss(loss: object) -> tuple[str | None, dict[str, float]]:
    """A loss's name in LOSSES and its parameters, for a name or for a `functools.partial` of a function of LOSSES."""
    if isinstance(loss, partial) and not loss.args:
        names = [name for name, function in LOSS_FUNCTIONS.items() if function is loss.func]
        return (names[0] if names else None), dict(loss.keywords)
    return (loss if isinstance(loss, str) else None), {}


FIRST_STAGE = 64  # epochs before networks at rest are looked for


def train(params: Params, data: Dataset, epochs: int, lr: torch.Tensor, weight: int, loss: object, readout: Readout,
          remedy: Remedy, jump: float, checkpoints: list[int], workers: int) -> Run:  # fmt: skip
    """`kbe_lib.train` once its arguments are checked; lr (M,), weight as in `Rule`.

    Threads share the networks out in blocks, one network per lane; lanes never meet, so the result does not depend on
    who shares a block or how many threads there are.

    Training goes in stages, and after each the networks at rest are left behind.  A network is at rest when an epoch
    leaves every parameter as it is, to the last bit.  Where a step depends on nothing but parameters and data it would
    never move again, so that it keeps its state and no result changes.  That is the fate of most networks after a
    failure, when their sigmoids are flat.
    """
    theta = params["conv1.weight"]
    dtype = np.dtype(str(theta.dtype).removeprefix("torch."))
    n_networks, n_points = data.y.shape
    n_channels = theta.shape[1]
    heads = [name.removesuffix(".weight") for name in params if name.endswith(".weight") and name[:4] != "conv"]
    n_layers = len(params) // 2 - len(heads)
    of_mu, of_sigma = (readout, readout) if isinstance(readout, str) else readout
    of_sigma, floor = of_sigma if isinstance(of_sigma, Floored) else (of_sigma, 0.0)
    readouts = (READOUTS[of_mu], READOUTS[of_sigma])[: len(heads)]
    name, values = name_of_loss(loss)
    numbers = [*(PARAMETERS.get(name, {}) | values).values(), 0.0, 0.0]
    rule = Rule(
        LOSSES[name], numbers[0], numbers[1], float(floor), float(jump), float(weight), remedy.clip, remedy.adam,
        not remedy.sigma_to_trunk, remedy.label_noise, remedy.dropout, np.uint64(remedy.seed),
    )  # fmt: skip
    labels = data.y.numpy().astype(np.int64)
    # dropout draws for every point on its own, so units must not be shared
    plan, string, bits = arrange(data.x.numpy(), n_layers, separate=remedy.dropout > 0)
    share = np.ones((2, n_points))
    if held := remedy.n_held_out(n_points):
        rest = n_points - held
        share[0] = np.where(np.arange(n_points) < rest, n_points / rest, 0)
        share[1] = np.where(np.arange(n_points) < rest, 0, n_points / held)
    new_net = partial(empty_net, n_layers, n_channels, len(heads), data.x.shape[2], dtype=theta.dtype)
    own = new_net(width=1)  # 1 for parameters of sigma's head
    for name, view in by_name(own, heads, n_channels).items():
        view[:] = name.startswith("sigma")
    sigma_head = np.stack([1 + (remedy.sigma_lr - 1) * own.flat[:, 0], remedy.sigma_decay * own.flat[:, 0]]).astype(
        dtype
    )
    everyone = new_net(width=n_networks)
    views = by_name(everyone, heads, n_channels)
    for name, view in views.items():
        view[:] = params[name].detach().numpy().reshape(view.shape)
    mu, sigma = np.empty((2, n_networks, len(checkpoints), n_points), dtype)
    failed_at, frozen_at = np.full((2, n_networks), np.inf, dtype)
    kick, at_rest = np.zeros(n_networks, dtype), np.zeros(n_networks, bool)
    width = REGISTER // dtype.itemsize
    at, channels, rates = np.array(checkpoints, np.int64), tuple(range(n_channels)), lr.numpy()

    def train_blocks(blocks: Iterator[np.ndarray], start: int, end: int) -> None:
        """Train blocks of networks from one epoch to another."""
        net, gradient, previous = (new_net(width=width) for _ in range(3))
        memory = empty_memory(plan, n_channels, len(heads), width, theta.dtype)
        moments = aligned_zeros(2 * len(net.flat) if remedy.adam else 0, width, theta.dtype)
        count = aligned_zeros((4 if held else 2) * len(plan.ends), width, theta.dtype)
        now, later = np.nonzero((at >= start) & (at <= end))[0], np.nonzero(at > end)[0]
        recorded = np.union1d(at[now], end) - start
        for block in blocks:
            size = len(block)  # the last block can leave lanes over; they train networks on no data at rate 0
            net.flat[:, :size] = everyone.flat[:, block]
            memory.h[n_channels : plan.first[1] * n_channels : n_channels, :size] = bits[block].T
            moments[:] = 0
            rate = np.zeros((1, width), dtype)
            rate[0, :size] = rates[block]
            failed, frozen = np.full((2, width), np.inf, dtype)
            kicks, key = np.zeros(width, dtype), np.zeros(width, np.uint64)
            outputs = np.empty((2, size, len(recorded), n_points), dtype)
            train_lanes(
                net, gradient, previous.flat, moments, plan, memory, count, labels[block], share,
                sigma_head, rate, np.resize(block, width).astype(np.uint64), key, end - start, channels, readouts, rule,
                recorded, string[block], *outputs, failed, frozen, kicks,
            )  # fmt: skip
            everyone.flat[:, block] = net.flat[:, :size]
            failed_at[block] = np.minimum(failed_at[block], start + failed[:size])
            frozen_at[block] = np.minimum(frozen_at[block], start + frozen[:size])
            kick[block] = np.maximum(kick[block], kicks[:size])
            at_rest[block] = (net.flat == previous.flat).all(0)[:size]
            for kept, output in ((mu, outputs[0]), (sigma, outputs[1])):
                kept[block[:, None], now] = output[:, : len(now)]
                kept[block[:, None], later] = output[:, -1:]  # what stays if the network is at rest

    # Where a step depends on more than parameters and data, no network can be known to be at rest.
    stages = [(0, epochs)] if remedy.adam or remedy.dropout or remedy.label_noise else stages_of(epochs)
    # This thread works too: one epoch of a few networks takes less than a new thread's start.
    helpers = ThreadPoolExecutor(max(1, workers - 1), initializer=torch.set_flush_denormal, initargs=(True,))
    with flushed_denormals(), helpers:
        for start, end in stages:
            moving = np.nonzero(~at_rest)[0]
            if not len(moving):
                break
            cuts = range(width, len(moving), width)
            blocks = iter(np.split(moving, cuts))  # one for all threads: each takes the next block when it is free
            jobs = [helpers.submit(train_blocks, blocks, start, end) for _ in range(min(workers - 1, len(cuts)))]
            train_blocks(blocks, start, end)
            for job in jobs:
                job.result()
    outputs = torch.from_numpy(mu), torch.from_numpy(sigma) if len(heads) == 2 else None
    failures = torch.from_numpy(failed_at), torch.from_numpy(frozen_at)
    trained = {
        name: torch.from_numpy(np.ascontiguousarray(view).reshape(params[name].shape)) for name, view in views.items()
    }
    return Run(torch.tensor(checkpoints), *outputs, *failures, trained, "fast", torch.from_numpy(kick))


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormal numbers, which are slow and mean nothing here, count as zero in this thread; after it as they did."""
    before = math.ulp(0.0) == 0.0  # the smallest denormal number
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def stages_of(epochs: int) -> list[tuple[int, int]]:
    """Training cut in stages, each as long as all before it together: first and last epoch of each."""
    ends = [FIRST_STAGE]
    while ends[-1] < epochs:
        ends.append(2 * ends[-1])
    return list(pairwise([0, *ends[:-1], epochs]))


def arrange(x: np.ndarray, n_layers: int, separate: bool = False) -> tuple[Plan, np.ndarray, np.ndarray]:
    """The cheaper plan for data x (M, N, b), the string of each point (M, N), and what feeds layer 0 (M, inputs).

    If separate, the plan that treats every point on its own, whatever it costs.
    """
    n_networks, n_points, n_bits = x.shape
    place = 2 ** np.arange(n_bits - 1, -1, -1)
    cost_of_direct = n_points * (n_bits * (3 * n_layers + 1) + 1)
    if not separate and 2**n_bits < cost_of_direct:
        table = plan_of_all(n_bits, n_layers)
        # in units of one ELU with its derivative; what a unit below the last layer adds to its neighbours costs two
        if len(table.taps) + 2 * table.first[-2] + len(table.unit) + len(table.ends) < cost_of_direct:
            return table, (x @ place.astype(np.float32)).astype(np.int64), np.ones((n_networks, 1))
    direct = plan_of_separate(n_points, n_bits, n_layers)
    return direct, np.tile(np.arange(n_points), (n_networks, 1)), x.reshape(n_networks, -1)


def aligned_zeros(size: int, width: int, dtype: torch.dtype) -> np.ndarray:
    """An array (size, width) of zeros whose rows are registers that lie in one cache line each.

    torch begins its memory at multiples of 64 bytes, NumPy at multiples of 16, where every row would lie in two lines.
    """
    return torch.zeros(size, width, dtype=dtype).numpy()


def empty_net(n_layers: int, n_channels: int, n_heads: int, n_bits: int, width: int, dtype: torch.dtype) -> Net:
    sizes = [3 * n_layers * n_channels**2, n_layers * n_channels, n_bits * n_heads * n_channels, n_heads]
    flat = aligned_zeros(sum(sizes), width, dtype)
    return Net(flat, *np.split(flat, np.cumsum(sizes)[:-1]))


def empty_memory(plan: Plan, n_channels: int, n_heads: int, width: int, dtype: torch.dtype) -> Memory:
    unit, tap, node = len(plan.taps) * n_channels, plan.first[-2] * 3 * n_channels, len(plan.unit) * n_heads
    sizes = [unit, unit, unit, tap, tap, node, node, 2 * len(plan.ends) * n_heads, 1, 1]
    return Memory(*(aligned_zeros(size, width, dtype) for size in sizes))


def by_name(net: Net, heads: list[str], n_channels: int) -> dict[str, np.ndarray]:
    """Views (lanes, ...) of a net under the names that `kbe_lib.init_networks` gives its parameters."""
    width = net.flat.shape[1]
    weight = np.moveaxis(net.weight.reshape(-1, n_channels, n_channels, 3, width), -1, 0)
    bias = np.moveaxis(net.bias.reshape(-1, n_channels, width), -1, 0)
    head = net.head.reshape(-1, len(heads), n_channels, width).transpose(3, 1, 2, 0)
    views = {}
    for layer in range(weight.shape[1]):
        views[f"conv{layer + 1}.weight"] = weight[:, layer, :, : n_channels if layer else 1]
        views[f"conv{layer + 1}.bias"] = bias[:, layer]
    for i, name in enumerate(heads):
        views[f"{name}.weight"], views[f"{name}.bias"] = head[:, i], net.head_bias.T[:, i]
    return views
