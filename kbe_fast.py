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
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from torch import Tensor

from kbe_lib import JUMP, LOSSES, READOUTS, Dataset, Params, Readout, Run

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

    @intrinsic
    def vector_operation(typing_context, a, b):
        lanes = a if isinstance(a, Lanes) else b

        def generate(context, builder, signature, values):
            pair = zip(values, (a, b), strict=True)
            return emit(builder, *(_spread(context, builder, value, kind, lanes) for value, kind in pair))

        return (Lanes(types.boolean, lanes.width) if comparison else lanes)(a, b), generate

    @overload(operation)
    def _(a, b):
        if isinstance(a, Lanes) or isinstance(b, Lanes):
            return lambda a, b: vector_operation(a, b)


# "contract" allows a product and a sum to become one fused instruction, and nothing else
_define(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=("contract",)))
_define(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=("contract",)))
_define(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=("contract",)))
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


def _pointer(context, builder, array_type, array, index):
    """Where the vector array[index] begins in memory, and its type."""
    struct = context.make_array(array_type)(context, builder, array)
    indices = [*cgutils.unpack_tuple(builder, index), context.get_constant(types.intp, 0)]
    start = cgutils.get_item_pointer(context, builder, array_type, struct, indices)
    return builder.bitcast(start, context.get_value_type(_lanes_of(array_type)).as_pointer())


def _lanes_of(array_type: types.Array) -> Lanes:
    return Lanes(array_type.dtype, REGISTER * 8 // array_type.dtype.bitwidth)


@intrinsic
def load(typing_context, array, index):
    """The vector array[index, :]."""

    def generate(context, builder, signature, values):
        return builder.load(_pointer(context, builder, array, *values), align=array.dtype.bitwidth // 8)

    return _lanes_of(array)(array, index), generate


@intrinsic
def store(typing_context, array, index, vector):
    """array[index, :] = vector."""

    def generate(context, builder, signature, values):
        pointer = _pointer(context, builder, array, *values[:2])
        builder.store(values[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, vector), generate


@intrinsic
def constant(typing_context, value, like):
    """A number as a vector like another one."""

    def generate(context, builder, signature, values):
        return _spread(context, builder, values[0], value, like)

    return like(value, like), generate


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
    mantissa, largest, terms = (23, 128, 7) if single else (52, 1024, 13)
    shift = 1.5 * 2.0**mantissa
    lowest, highest = (1 - largest) * math.log(2), largest * math.log(2)
    # ln 2 in two pieces: k times the first is exact
    ln2 = 0.693359375 if single else 0.6931471803691238
    rest = -2.12194440054690583e-4 if single else 1.9082149292705877e-10
    # (exp(r) - 1) / r by Taylor; at |r| < ln(2) / 2 the next term is below half a unit of the last place
    series = tuple(1 / math.factorial(n + 1) for n in range(terms - 1, -1, -1))

    def exponential_of_lanes(z):
        z = where(z < lowest, lowest, z)
        z = where(highest < z, highest, z)
        shifted = z * (1 / math.log(2)) + shift
        k = shifted - shift
        r = (z - k * ln2) - k * rest
        q = r * series[0] + series[1]
        for coefficient in series[2:]:
            q = q * r + coefficient
        q = q * r
        scale = power_of_two(shifted)
        return scale * (q + 1.0), scale * q + (scale - 1.0)

    return exponential_of_lanes


@njit
def log_of_1_plus(u):
    """log(1 + u) for 0 <= u <= 1 as 2 artanh(u / (2 + u)), whose series converges like 9^-n."""
    s = u / (u + 2.0)
    square = s * s
    total = square * (1 / 37) + 1 / 35
    for n in range(33, 0, -2):
        total = total * square + 1 / n
    return 2.0 * s * total


@njit
def absolute(z):
    return where(z < 0.0, 0.0 - z, z)


@njit
def elu(z):
    """ELU and its derivative.

    The derivative is exp(z), taken from z.  The output + 1 is the same on paper; in floats it is 0 at saturation,
    where the true 1e-17 meets a factor 1/sigma^3 = 1e18.
    """
    e, e_minus_1 = exponential(where(z < 0.0, z, 0.0))
    return where(z < 0.0, e_minus_1, z), e


RAW, ELU, ELU_PLUS_1, SOFTPLUS, EXP, SIGMOID = (
    READOUTS.index(name) for name in ("raw", "elu", "elu+1", "softplus", "exp", "sigmoid")
)


@njit
def read(z, readout):
    """A readout R(z), its derivative R', and that of its logarithm, R'/R."""
    if readout == SIGMOID:
        e, _ = exponential(0.0 - absolute(z))
        small, large = e / (e + 1.0), 1.0 / (e + 1.0)
        value, complement = where(z < 0.0, small, large), where(z < 0.0, large, small)
        return value, value * (1.0 - value), complement
    if readout == ELU_PLUS_1:
        e, _ = exponential(where(z < 0.0, z, 0.0))
        value = where(z < 0.0, e, z + 1.0)
        return value, e, e / value
    if readout == EXP:
        e, _ = exponential(z)
        return e, e, constant(1.0, z)
    if readout == SOFTPLUS:
        e, _ = exponential(0.0 - absolute(z))
        value = where(z < 0.0, 0.0, z) + log_of_1_plus(e)
        slope = where(z < 0.0, e, 1.0) / (e + 1.0)
        value, slope = where(20.0 < z, z, value), where(20.0 < z, 1.0, slope)  # as torch does
        return value, slope, slope / value
    value, slope = elu(z)
    if readout == RAW:
        value, slope = z, constant(1.0, z)
    return value, slope, slope / value


GAUSSIAN, PRINTED, SQUARED = (tuple(LOSSES).index(name) for name in ("gaussian", "printed", "squared"))


@njit
def slope_in_mu(error, inverse, loss):
    """d loss / d mu of one point at error = mu - y and inverse = 1 / sigma."""
    return error if loss == SQUARED else error * inverse * inverse


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
        np.array(first), np.concatenate(taps), np.array(position), np.array(start), parent, unit, np.stack(ends, -1)
    )


class Net(NamedTuple):
    """Parameters, or their gradients, of one network per lane; `flat` is the memory that the others name."""

    flat: np.ndarray  # (P, lanes)
    weight: np.ndarray  # (L, C, C, 3, lanes)  from input channel to output channel; layer 1 reads one channel only
    bias: np.ndarray  # (L, C, lanes)
    head: np.ndarray  # (H, C, b, lanes)
    head_bias: np.ndarray  # (H, lanes)


class Memory(NamedTuple):
    """What a step writes down on its way, for one network per lane."""

    h: np.ndarray  # (units, C, lanes)         outputs of the units
    slope: np.ndarray  # (units, C, lanes)     and their ELU's derivative
    d_h: np.ndarray  # (units, C, lanes)       derivative of the loss by h
    tap: np.ndarray  # (units, 3, C, lanes)    what a unit adds to a neighbour on its right, above and on its left
    d_tap: np.ndarray  # (units, 3, C, lanes)
    node: np.ndarray  # (nodes, H, lanes)      partial sums of the heads
    d_node: np.ndarray  # (nodes, H, lanes)
    output: np.ndarray  # (2, S, H, lanes)     mu and sigma of the epoch and of the one before, by parity
    moved: np.ndarray  # (1, lanes)            largest change of an output in this epoch
    poison: np.ndarray  # (1, lanes)           0 while everything is finite, else NaN


@njit
def forward(net, plan, memory):
    """Units layer by layer, then the partial sums of the heads."""
    h, slope, tap, node = memory.h, memory.slope, memory.tap, memory.node
    n_layers, n_channels = net.bias.shape[:2]
    for layer in range(n_layers):
        below, here, above = plan.first[layer], plan.first[layer + 1], plan.first[layer + 2]
        for v in range(below, here):
            for k in range(3):
                for c in range(n_channels):
                    total = load(h, (v, 0)) * load(net.weight, (layer, c, 0, k))
                    for i in range(1, n_channels):
                        total = total + load(h, (v, i)) * load(net.weight, (layer, c, i, k))
                    store(tap, (v, k, c), total)
        for u in range(here, above):
            for c in range(n_channels):
                z = load(net.bias, (layer, c))
                for k in range(3):
                    z = z + load(tap, (plan.taps[u, k], k, c))
                value, derivative = elu(z)
                store(h, (u, c), value)
                store(slope, (u, c), derivative)
    for head in range(net.head.shape[0]):
        store(node, (0, head), load(net.head_bias, (head,)))
        for j, p in enumerate(plan.position):
            for q in range(plan.start[j], plan.start[j + 1]):
                total = load(node, (plan.parent[q], head))
                for c in range(n_channels):
                    total = total + load(h, (plan.unit[q], c)) * load(net.head, (head, c, p))
                store(node, (q, head), total)


@njit
def read_out(plan, memory, count, epoch, readouts, loss):
    """Outputs of all strings, how far they moved, and the derivative of the summed loss by the logits."""
    node, d_node, output = memory.node, memory.d_node, memory.output
    now, before = epoch % 2, (epoch + 1) % 2
    n_heads = node.shape[1]
    moved = constant(0.0, load(memory.moved, (0,)))
    poison = moved
    d_node[:] = 0
    for s in range(plan.ends.shape[0]):
        left, right = plan.ends[s]
        n0, n1 = load(count, (0, s)), load(count, (1, s))
        n = n0 + n1
        mu, d_mu, _ = read(load(node, (left, 0)) + load(node, (right, 0)), readouts[0])
        change = where(0.0 < n, mu - load(output, (before, s, 0)), 0.0)
        inverse = n
        store(output, (now, s, 0), mu)
        if n_heads == 2:
            z = load(node, (left, 1)) + load(node, (right, 1))
            sigma, d_sigma, d_log_sigma = read(z, readouts[1])
            inverse = 1.0 / sigma
            change_of_sigma = where(0.0 < n, sigma - load(output, (before, s, 1)), 0.0)
            store(output, (now, s, 1), sigma)
            poison = poison + (change_of_sigma - change_of_sigma)
            change_of_sigma = absolute(change_of_sigma)
            moved = where(moved < change_of_sigma, change_of_sigma, moved)
        poison = poison + (change - change)
        change = absolute(change)
        moved = where(moved < change, change, moved)
        slope0, slope1 = n0 * slope_in_mu(mu, inverse, loss), n1 * slope_in_mu(mu - 1.0, inverse, loss)
        _add(d_node, left, right, 0, where(0.0 < n, (slope0 + slope1) * d_mu, 0.0))
        if n_heads == 2 and loss != SQUARED:
            # a location-scale family depends on error / sigma, so d loss / d log sigma = 1 - error * d loss / d mu
            own = n * d_sigma if loss == PRINTED else n * d_log_sigma
            d_z = own - (slope0 * mu + slope1 * (mu - 1.0)) * d_log_sigma
            _add(d_node, left, right, 1, where(0.0 < n, d_z, 0.0))
    store(memory.moved, (0,), moved)
    store(memory.poison, (0,), poison)


@njit
def _add(d_node, left, right, head, d_z):
    store(d_node, (left, head), load(d_node, (left, head)) + d_z)
    store(d_node, (right, head), load(d_node, (right, head)) + d_z)


@njit
def backward(net, gradient, plan, memory):
    """The derivatives of the summed loss by all parameters, from those by the logits."""
    h, slope, d_h, d_tap, d_node = memory.h, memory.slope, memory.d_h, memory.d_tap, memory.d_node
    n_layers, n_channels = net.bias.shape[:2]
    zero = constant(0.0, load(memory.moved, (0,)))
    d_h[plan.first[n_layers] :] = 0
    for head in range(net.head.shape[0]):
        for j in range(len(plan.position) - 1, -1, -1):
            p = plan.position[j]
            for q in range(plan.start[j], plan.start[j + 1]):
                d_z = load(d_node, (q, head))
                for c in range(n_channels):
                    here = load(d_h, (plan.unit[q], c)) + d_z * load(net.head, (head, c, p))
                    store(d_h, (plan.unit[q], c), here)
                parent = plan.parent[q]
                store(d_node, (parent, head), load(d_node, (parent, head)) + d_z)
            for c in range(n_channels):
                total = zero
                for q in range(plan.start[j], plan.start[j + 1]):
                    total = total + load(d_node, (q, head)) * load(h, (plan.unit[q], c))
                store(gradient.head, (head, c, p), total)
        store(gradient.head_bias, (head,), load(d_node, (0, head)))
    for layer in range(n_layers - 1, -1, -1):
        below, here, above = plan.first[layer], plan.first[layer + 1], plan.first[layer + 2]
        d_tap[:here] = 0
        for c in range(n_channels):
            total = zero
            for u in range(here, above):
                d_z = load(d_h, (u, c)) * load(slope, (u, c))
                total = total + d_z
                for k in range(3):
                    v = plan.taps[u, k]
                    store(d_tap, (v, k, c), load(d_tap, (v, k, c)) + d_z)
            store(gradient.bias, (layer, c), total)
        for c in range(n_channels):
            for i in range(n_channels):
                for k in range(3):
                    total = zero
                    for v in range(below, here):
                        total = total + load(d_tap, (v, k, c)) * load(h, (v, i))
                    store(gradient.weight, (layer, c, i, k), total)
        if layer > 0:
            for v in range(below, here):
                for i in range(n_channels):
                    total = zero
                    for k in range(3):
                        for c in range(n_channels):
                            total = total + load(d_tap, (v, k, c)) * load(net.weight, (layer, c, i, k))
                    store(d_h, (v, i), total)


@njit
def step(net, gradient, previous, memory, rate):
    """theta - rate * gradient, the theta before kept; a lane with rate 0 is frozen."""
    size = load(rate, (0,))
    poison = constant(0.0, size)
    for j in range(net.flat.shape[0]):
        old = load(net.flat, (j,))
        new = where(0.0 < size, old - size * load(gradient.flat, (j,)), old)
        poison = poison + (new - new)
        store(previous, (j,), old)
        store(net.flat, (j,), new)
    return poison


@njit(cache=True, nogil=True, error_model="numpy")
def train_lanes(net, gradient, previous, plan, memory, count, rate, epochs, jump, readouts, loss, checkpoints, string,
                mu, sigma, failed_at, frozen_at):  # fmt: skip
    """Train one network per lane through all epochs, writing what `kbe_lib.Run` holds into the last arguments."""
    kept = 0
    poison = constant(0.0, load(rate, (0,)))
    for epoch in range(epochs + 1):
        forward(net, plan, memory)
        read_out(plan, memory, count, epoch, readouts, loss)
        if epoch > 0:
            store(memory.poison, (0,), load(memory.poison, (0,)) + poison)
            if judge(net, previous, memory, rate, epoch, jump, failed_at, frozen_at):
                forward(net, plan, memory)
                read_out(plan, memory, count, epoch, readouts, loss)
        if kept < len(checkpoints) and epoch == checkpoints[kept]:
            record(memory.output[epoch % 2], string, mu[:, kept], sigma[:, kept])
            kept += 1
        if epoch < epochs:
            backward(net, gradient, plan, memory)
            poison = step(net, gradient, previous, memory, rate)


@njit
def judge(net, previous, memory, rate, epoch, jump, failed_at, frozen_at):
    """Note who failed in this epoch, and take those that are not finite back to the epoch before."""
    any_frozen = False
    for lane in range(len(failed_at)):
        finite = memory.poison[0, lane] == 0
        if failed_at[lane] > epoch and not (finite and memory.moved[0, lane] <= jump):
            failed_at[lane] = epoch
        if not finite:
            frozen_at[lane] = min(frozen_at[lane], epoch)
            rate[0, lane] = 0
            net.flat[:, lane] = previous[:, lane]
            any_frozen = True
    return any_frozen


@njit
def record(output, string, mu, sigma):
    """Outputs of the strings (S, H, lanes) to those of every network's own points (lanes, N)."""
    for lane in range(string.shape[0]):
        for point in range(string.shape[1]):
            mu[lane, point] = output[string[lane, point], 0, lane]
            if output.shape[1] == 2:
                sigma[lane, point] = output[string[lane, point], 1, lane]


# ------------------------------------------------------------------------------------------------------ the engine


def objection(params: Params, data: Dataset, loss: object) -> str | None:
    """Why this engine cannot train this, or None if it can."""
    theta = params["conv1.weight"]
    if theta.device.type != "cpu":
        return f"needs params on the CPU, got device {theta.device}"
    if theta.dtype not in (torch.float32, torch.float64):
        return f"needs params in float32 or float64, got {theta.dtype}"
    if loss not in LOSSES:
        return f"needs loss to be one of {tuple(LOSSES)}, got {loss!r}"
    for name, values in (("data.x", data.x), ("data.y", data.y)):
        other = values[(values != 0) & (values != 1)]
        if len(other):
            return f"needs {name} to be 0 or 1 everywhere, got {float(other[0]):g}"
    return None


def train(params: Params, data: Dataset, epochs: int, step: float, loss: str, readout: Readout,
          checkpoints: list[int], workers: int) -> Run:  # fmt: skip
    """What `kbe_lib.train` does once its arguments are checked; `step` is the step size under the mean loss."""
    n_networks, n_points, n_bits = data.x.shape
    theta = params["conv1.weight"]
    number = np.dtype(str(theta.dtype).removeprefix("torch."))
    width = REGISTER // number.itemsize
    n_layers = sum(name.startswith("conv") for name in params) // 2
    direct = n_points <= direct_up_to(n_bits)
    bits = data.x.to(torch.int64).numpy()
    labels = data.y.to(torch.int64).numpy()
    if direct:
        plan = make_plan(1 + np.arange(n_points * n_bits).reshape(n_points, n_bits), n_layers)
        string = np.broadcast_to(np.arange(n_points), labels.shape)
    else:
        plan = make_plan(np.arange(2**n_bits)[:, None] >> np.arange(n_bits - 1, -1, -1) & 1, n_layers)
        string = bits @ 2 ** np.arange(n_bits - 1, -1, -1)
    n_heads = sum(name.endswith(".weight") for name in params) - n_layers
    shape = (n_networks, len(checkpoints), n_points)
    mu = np.empty(shape, number)
    sigma = np.empty(shape if n_heads == 2 else (n_networks, len(checkpoints), 0), number)
    failed_at, frozen_at = np.full((2, n_networks), np.inf, number)
    pair = (readout, readout) if isinstance(readout, str) else readout
    readouts = tuple(READOUTS.index(name) for name in pair)
    trained = {name: torch.empty_like(value) for name, value in params.items()}

    def train_block(start: int) -> None:
        block = np.minimum(np.arange(start, start + width), n_networks - 1)  # the last one fills the lanes left over
        mine = slice(start, min(start + width, n_networks))
        net, gradient = make_net(params, n_bits, width, number), make_net(params, n_bits, width, number)
        views = named_views(net, params)
        for name, view in views.items():
            view[:] = np.moveaxis(params[name].numpy()[block], 0, -1)
        memory = make_memory(plan, net, number)
        count = np.zeros((2, len(plan.ends), width), number)
        lanes = np.arange(width)[:, None]
        np.add.at(count, (labels[block], string[block], lanes), 1)
        if direct:
            memory.h[1 : plan.first[1], 0] = bits[block].reshape(width, -1).T
        else:
            memory.h[1, 0] = 1
        rate = np.full((1, width), step / n_points, number)
        failed, frozen = np.full((2, width), np.inf, number)
        train_lanes(net, gradient, net.flat.copy(), plan, memory, count, rate, epochs, JUMP, readouts,
                    tuple(LOSSES).index(loss), np.array(checkpoints), string[mine], mu[mine], sigma[mine],
                    failed, frozen)  # fmt: skip
        failed_at[mine], frozen_at[mine] = failed[: mine.stop - start], frozen[: mine.stop - start]
        for name, view in views.items():
            trained[name][mine] = torch.from_numpy(np.moveaxis(view, -1, 0)[: mine.stop - start])

    # the threads flush denormal numbers to zero, which are slow and mean nothing here, and end with the training
    with ThreadPoolExecutor(workers, initializer=torch.set_flush_denormal, initargs=(True,)) as pool:
        list(pool.map(train_block, range(0, n_networks, width)))
    outputs = torch.from_numpy(mu), torch.from_numpy(sigma) if n_heads == 2 else None
    return Run(torch.tensor(checkpoints), *outputs, torch.from_numpy(failed_at), torch.from_numpy(frozen_at), trained)


def direct_up_to(n_bits: int) -> int:
    return 16


def make_net(params, n_bits, width, number):
    n_layers = sum(name.startswith("conv") for name in params) // 2
    n_heads = len(params) // 2 - n_layers
    n_channels = params["conv1.weight"].shape[1]
    shapes = [(n_layers, n_channels, n_channels, 3), (n_layers, n_channels), (n_heads, n_channels, n_bits), (n_heads,)]
    sizes = [math.prod(shape) for shape in shapes]
    flat = np.zeros((sum(sizes), width), number)
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    return Net(flat, *(piece.reshape(*shape, width) for piece, shape in zip(pieces, shapes, strict=True)))


def named_views(net, params):
    views = {}
    heads = []
    for name in params:
        layer, part = name.split(".")
        if layer.startswith("conv"):
            index = int(layer[4:]) - 1
            views[name] = net.bias[index] if part == "bias" else net.weight[index, :, : params[name].shape[2]]
        else:
            if layer not in heads:
                heads.append(layer)
            head = heads.index(layer)
            shape = params[name].shape[1:]
            views[name] = net.head_bias[head : head + 1] if part == "bias" else net.head[head].reshape(*shape, -1)
    return views


def make_memory(plan, net, number):
    n_layers, n_channels, width = net.bias.shape
    n_units, n_inner, n_nodes, n_heads = len(plan.taps), plan.first[n_layers], len(plan.unit), len(net.head)
    unit = (n_units, n_channels)
    tap = (n_inner, 3, n_channels)
    node = (n_nodes, n_heads)
    shapes = [unit, unit, unit, tap, tap, node, node, (2, len(plan.ends), n_heads), (1,), (1,)]
    return Memory(*(np.zeros((*shape, width), number) for shape in shapes))
