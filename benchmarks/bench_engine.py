"""How fast the engine is, in network-steps per second: one network, one full-batch step over its N points.

    OMP_NUM_THREADS=1 python benchmarks/bench_engine.py [--quick]

prints tables in Markdown and writes them to benchmarks/results.json, in place of those of the same processor.  What is
compared is run in turns and in one process, so that other work on the machine meets both alike; every figure is the
median of the rounds.  One thread, unless said.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numba
import numpy as np
import torch
from torch import nn

import kbe_fast
import kbe_kernels as kernels
import kbe_lib as kbe

ROOT = Path(__file__).resolve().parent.parent
SIZES = (20, 100, 400, 1024)
FLAT = (40, 100, 400, 1024)
ENSEMBLE = 256, 400  # networks and epochs of a timed training, enough that its set-up does not count
DIAGRAM = tuple(2**k for k in range(11))
FORMATS = {"float32": torch.float32, "float64": torch.float64}
FIRST_TRAINING = """
import time, torch, kbe_lib as kbe
generator = torch.Generator().manual_seed(0)
params = kbe.init_networks(2, generator=generator, dtype=torch.{name})
data = kbe.random_bit_encoding(2, 100, generator=generator)
start = time.process_time()
kbe.train(params, data, epochs=1, engine="fast")
print(time.process_time() - start)
"""


def machine() -> dict[str, str]:
    """The processor and the versions that the figures belong to."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "measured": datetime.date.today().isoformat(),
        "load when begun": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
    }


def in_turns(tasks: dict[str, Callable[[], object]], rounds: int, clock=time.process_time) -> dict[str, float]:
    """Median seconds of each task, the tasks taking turns; one turn before that is not counted."""
    seconds = {name: [] for name in tasks}
    for counted in [False] + [True] * rounds:
        for name, task in tasks.items():
            start = clock()
            task()
            if counted:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def problem(n_networks: int, n_points: int, dtype: torch.dtype) -> tuple[kbe.Params, kbe.Dataset]:
    generator = torch.Generator().manual_seed(0)
    params = kbe.init_networks(n_networks, generator=generator, dtype=dtype)
    return params, kbe.random_bit_encoding(n_networks, n_points, generator=generator, dtype=dtype)


class Network(nn.Module):
    """The network as everybody writes it."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv1d(1 if layer == 0 else 3, 3, 3, padding=1) for layer in range(3)]
        self.trunk = nn.Sequential(*(module for layer in layers for module in (layer, nn.ELU())), nn.Flatten())
        self.mu, self.sigma = nn.Linear(24, 1), nn.Linear(24, 1)

    def forward(self, x):
        h = self.trunk(x[:, None])
        return torch.sigmoid(self.mu(h))[:, 0], torch.sigmoid(self.sigma(h))[:, 0]


def module_loop(n_points: int, dtype: torch.dtype, n_steps: int) -> Callable[[], None]:
    _, data = problem(1, n_points, dtype)
    network = Network().to(dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def run() -> None:
        for _ in range(n_steps):
            optimizer.zero_grad()
            kbe.gaussian_nll(data.y[0], *network(data.x[0])).mean().backward()
            optimizer.step()

    return run


def jax_scan(n_networks: int, n_points: int, n_steps: int) -> Callable[[], object] | None:
    """jit(scan(vmap(grad))) in float32, the convolutions as matrix products; None without JAX."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    params, data = problem(n_networks, n_points, torch.float32)
    theta, x, y = ({k: jnp.asarray(v.numpy()) for k, v in params.items()}, *(jnp.asarray(v.numpy()) for v in data))
    shifts = jnp.stack([jnp.eye(8, k=1 - k) for k in range(3)])

    def loss(theta, x, y):
        h = x
        for layer in ("conv1", "conv2", "conv3"):
            matrix = jnp.einsum("oik,kpq->ipoq", theta[f"{layer}.weight"], shifts).reshape(h.shape[-1], -1)
            h = jax.nn.elu(h @ matrix + jnp.repeat(theta[f"{layer}.bias"], 8))
        mu, z = (h @ theta[f"{head}.weight"][0] + theta[f"{head}.bias"] for head in ("mu", "sigma"))
        error = (y - jax.nn.sigmoid(mu)) / jax.nn.sigmoid(z)
        return (jax.nn.log_sigmoid(z) + error**2 / 2).mean()

    def step(theta, _):
        gradient = jax.vmap(jax.grad(loss))(theta, x, y)
        return jax.tree.map(lambda value, slope: value - 0.01 * slope, theta, gradient), None

    train = jax.jit(lambda theta: jax.lax.scan(step, theta, None, length=n_steps)[0])
    return lambda: jax.block_until_ready(train(theta))


def engine(n_networks: int, epochs: int, n_points: int, dtype: torch.dtype, workers: int = 1) -> Callable[[], object]:
    params, data = problem(n_networks, n_points, dtype)
    return lambda: kbe.train(params, data, epochs=epochs, lr=0.01, engine="fast", workers=workers)


def bench_speed(rounds: int) -> list[dict]:
    """The loop, JAX and the engine, network-steps per second of CPU time."""
    rows = []
    for name, dtype in FORMATS.items():
        for n_points in SIZES:
            tasks = {"loop": module_loop(n_points, dtype, 60), "engine": engine(*ENSEMBLE, n_points, dtype)}
            steps = {"loop": 60, "engine": math.prod(ENSEMBLE)}
            if dtype == torch.float32 and (scan := jax_scan(64, n_points, 20)):
                tasks["jax"], steps["jax"] = scan, 64 * 20
            seconds = in_turns(tasks, rounds)
            rate = {task: steps[task] / seconds[task] for task in tasks}
            rows.append({"format": name, "N": n_points, **rate, "engine/loop": rate["engine"] / rate["loop"],
                         "engine/jax": rate["engine"] / rate["jax"] if "jax" in rate else None})  # fmt: skip
    return rows


def bench_flatness(rounds: int) -> dict[str, float]:
    """The slowest over the fastest time of a step, N = 40 to 1024."""
    flat = {}
    for name, dtype in FORMATS.items():
        seconds = in_turns({str(n): engine(*ENSEMBLE, n, dtype) for n in FLAT}, rounds).values()
        flat[name] = max(seconds) / min(seconds)
    return flat


def bench_two_cores(rounds: int) -> dict[str, float]:
    return {
        name: (seconds := in_turns({str(w): engine(512, 300, 100, dtype, w) for w in (1, 2)}, rounds,
                                   time.perf_counter))["1"] / seconds["2"]
        for name, dtype in FORMATS.items()
    }  # fmt: skip


def train_alone(name: str) -> None:
    engine(256, 300, 100, FORMATS[name])()


def bench_two_processes(rounds: int) -> dict[str, float]:
    """What two processes that share nothing do in the time of one: what this machine's two cores can give at best."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:

        def at_once(names: list[str]) -> Callable[[], object]:
            return lambda: list(pool.map(train_alone, names))

        return {
            name: 2 * (seconds := in_turns({str(n): at_once([name] * n) for n in (1, 2)}, rounds,
                                           time.perf_counter))["1"] / seconds["2"]
            for name in FORMATS
        }  # fmt: skip


def bench_compilation() -> dict[str, dict[str, float]]:
    """CPU seconds of the first training of a process, Numba's import included, without and with a cache on disk."""
    result = {}
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as cache:
            environment = {
                **os.environ,
                "NUMBA_CACHE_DIR": cache,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            }
            command = [sys.executable, "-c", FIRST_TRAINING.format(name=name)]
            cold, cached = (float(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
                            for _ in range(2))  # fmt: skip
        result[name] = {"cold": cold, "cached": cached}
    return result


def bench_memory() -> dict[str, float]:
    """KiB per network in training, at the sizes of the tables for 8 bits; outputs recorded not counted."""
    result = {}
    strings = np.arange(256)[:, None] >> np.arange(7, -1, -1) & 1
    for name in FORMATS:
        width = kbe_fast.REGISTER // np.dtype(name).itemsize
        memory = kbe_fast.empty_memory(kbe_fast.make_plan(strings, 3), 3, 2, width, getattr(torch, name))
        net = kbe_fast.empty_net(3, 3, 2, 8, width, getattr(torch, name))
        result[name] = (sum(part.nbytes for part in memory) + 3 * net.flat.nbytes) / width / 1024
    return result


def train_diagram(dtype: torch.dtype, device: str = "cpu", epochs: int = 10_000, **how) -> None:
    """The trainings of FIG. 3: 11 sizes, 200 networks each, 50 checkpoints."""
    checkpoints = np.linspace(0, epochs, 50).astype(int).tolist()
    for n_points in DIAGRAM:
        params, data = problem(200, n_points, dtype)
        params = {name: value.to(device) for name, value in params.items()}
        data = kbe.Dataset(*(part.to(device) for part in data))
        kbe.train(params, data, epochs=epochs, record=checkpoints, **how)


def bench_diagram() -> dict[str, dict[str, float]]:
    """The whole of FIG. 3 with two workers; and by the torch engine on a GPU, where there is one.

    Half the CPU seconds are what two cores need that have nothing else to do.
    """
    result = {}
    for name, dtype in FORMATS.items():
        start, cpu = time.perf_counter(), time.process_time()
        train_diagram(dtype, engine="fast", workers=2)
        result[name] = {"s": time.perf_counter() - start, "CPU s / 2": (time.process_time() - cpu) / 2}
        if torch.cuda.is_available():
            start = time.perf_counter()
            train_diagram(dtype, "cuda", engine="torch", chunk=200)
            torch.cuda.synchronize()
            result[name][f"s on {torch.cuda.get_device_name()}"] = time.perf_counter() - start
    return result


def bench_ntk(rounds: int) -> float:
    """Milliseconds per network, 64 networks, all 256 inputs, float64."""
    params, _ = problem(64, 1, torch.float64)
    inputs = kbe.all_inputs()
    return in_turns({"ntk": lambda: kbe.empirical_ntk(params, inputs)}, rounds)["ntk"] / 64 * 1000


def bench_kernels(rounds: int) -> dict[str, float]:
    """Seconds of the tools for kernels with structure, and of the dense product that they replace where it fits."""
    generator = torch.Generator().manual_seed(0)
    tasks = {}
    for n in (10_000, 1_000_000):
        x = torch.rand(n, generator=generator, dtype=torch.float64).sort().values
        v = torch.randn(n, generator=generator, dtype=torch.float64)
        tasks[f"line, {n:,} points, product"] = lambda x=x, v=v: kernels.line_product(x, v)
        tasks[f"line, {n:,} points, solution"] = lambda x=x, v=v: kernels.line_solve(x, v, 1.0)
        tasks[f"line, {n:,} points, flow"] = lambda x=x, v=v: kernels.line_flow(x, v, 1000 / len(x))
    x, v = x[::100].clone(), v[::100].clone()
    dense = kbe.exponential_kernel((x[:, None] - x).abs())
    tasks["line, 10,000 points, dense product"] = lambda: dense @ v
    string = torch.randn(2**20, generator=generator, dtype=torch.float64)
    levels = torch.exp(-torch.arange(21, dtype=torch.float64))
    tasks[f"cube, {2**20:,} strings, Walsh transform"] = lambda: kernels.walsh_transform(string)
    tasks[f"cube, {2**20:,} strings, flow"] = lambda: kernels.cube_product(levels, string)
    return in_turns(tasks, rounds)


def table(rows: list[dict]) -> str:
    """Rows as Markdown."""

    def cell(value) -> str:
        return (
            "–"
            if value is None
            else value
            if isinstance(value, str)
            else f"{value:,.3g}"
            if value < 100
            else f"{value:,.0f}"
        )

    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [heads, ["---"] * len(heads), *([cell(row.get(head)) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, and no phase diagram")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rounds = 3 if quick else 7
    results = {
        "machine": machine(),
        "network-steps per second": bench_speed(rounds),
        "slowest / fastest, N = 40 ... 1024": bench_flatness(rounds),
        "two cores / one": bench_two_cores(rounds),
        "two processes / one": bench_two_processes(rounds),
        "first training, CPU s:": bench_compilation(),
        "memory per network, KiB": bench_memory(),
        "empirical_ntk per network, ms": bench_ntk(rounds),
        "kernel tools, s": bench_kernels(rounds),
    }
    if not quick:
        results["phase diagram,"] = bench_diagram()
    results["load when done"] = f"{os.getloadavg()[0]:.1f}"
    path = Path(__file__).parent / "results.json"
    every = json.loads(path.read_text()) | {results["machine"]["processor"]: results}
    path.write_text(json.dumps(every, indent=1) + "\n")
    print(table(results["network-steps per second"]), end="\n\n")
    print(table([{"": name, **value} for name, value in by_format(results)]))
    print(f"\nempirical_ntk: {results['empirical_ntk per network, ms']:.2f} ms per network")
    print(table([{"kernel tool": name, "s": value} for name, value in results["kernel tools, s"].items()]))
    print("Machine: " + ", ".join(f"{name} {value}" for name, value in results["machine"].items()))


def by_format(results: dict) -> list[tuple[str, dict[str, float]]]:
    """The results that have one figure per format, and those that have several as one row each."""
    rows = []
    for name, value in results.items():
        if isinstance(value, dict) and value.keys() == FORMATS.keys():
            inner = next(iter(value.values()))
            parts = inner if isinstance(inner, dict) else [None]
            rows += [(f"{name} {p}" if p else name, {f: v[p] if p else v for f, v in value.items()}) for p in parts]
    return rows


if __name__ == "__main__":
    main()
