"""Many trainings, on one core or a cluster, that survive being interrupted.

A sweep is a list of cells, each an ensemble of networks at one setting with a seed of its own.  A cell depends on
nothing but its fields, so cells can run in any order, in any process, on any machine, with the same result.

Finished cells are NetCDF files (version 3, written by SciPy, which the book needs anyway): one self-describing file
per cell that ncdump, xarray, Julia, R and MATLAB read.  A file appears under its name only when it is complete.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.io import netcdf_file
from tqdm.auto import tqdm

import kbe_lib as kbe
from kbe_check import instances, integers, require


@dataclass(frozen=True)
class Cell:
    """One cell: n_networks variance networks with a data set of n_points each, at one setting."""

    n_points: int
    seed: int
    epochs: int
    checkpoints: tuple[int, ...]
    n_networks: int = 200
    n_bits: int = 8
    n_channels: int = 3
    replacement: bool = True
    lr: float = 0.1
    loss: str = "gaussian"
    readout: str | tuple[str, str] = "sigmoid"
    reduction: str = "mean"
    dtype: str = "float64"

    def name(self) -> str:
        """The stem of the cell's file: readable first, then a hash of all fields."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"N{self.n_points}-seed{self.seed}-{digest[:16]}"


class CellResult(NamedTuple):
    """What is kept of a cell: per network, no outputs of single points."""

    epochs: np.ndarray  # (T,)        the checkpoints
    v: np.ndarray  # (M, T)           mean squared error of each network
    v_star: np.ndarray  # (M, T)      mean predicted variance
    failed_at: np.ndarray  # (M,)     as in kbe_lib.Run
    frozen_at: np.ndarray  # (M,)


_DIMENSIONS = {"epochs": "T", "v": "MT", "v_star": "MT", "failed_at": "M", "frozen_at": "M"}


def run_cell(cell: Cell) -> CellResult:
    """Train one cell from its seed.

    Raises:
        ValueError: for a dtype that is neither "float32" nor "float64", or as the functions of kbe_lib do.
    """
    instances(Cell, cell=cell)
    require(cell.dtype in ("float32", "float64"), f"dtype must be 'float32' or 'float64', got {cell.dtype!r}")
    integers(0, seed=cell.seed)
    dtype = getattr(torch, cell.dtype)
    generator = torch.Generator().manual_seed(cell.seed)
    params = kbe.init_networks(
        cell.n_networks, n_bits=cell.n_bits, n_channels=cell.n_channels, generator=generator, dtype=dtype
    )
    data = kbe.random_bit_encoding(
        cell.n_networks, cell.n_points, cell.n_bits, replacement=cell.replacement, generator=generator, dtype=dtype
    )
    run = kbe.train(
        params, data, epochs=cell.epochs, lr=cell.lr, loss=cell.loss, readout=cell.readout,
        reduction=cell.reduction, record=cell.checkpoints,
    )  # fmt: skip
    v, v_star = kbe.variances(run, data.y)
    fields = (run.epochs, v, v_star, run.failed_at, run.frozen_at)
    return CellResult(*(field.numpy().astype(np.float64) for field in fields))


def sweep(
    cells: Iterable[Cell], folder: Path | str | None = None, *, executor: Executor | None = None, progress: bool = True
) -> Iterator[tuple[Cell, CellResult]]:
    """Run cells and yield each with its result as it finishes; what the folder already holds is read, not run again.

    Kill it at any moment and start it again with the same folder: finished cells are kept, the others run.  A file
    that is truncated, damaged or not the cell's own is not trusted: its cell runs again and replaces it.

    Args:
        folder: where finished cells are stored and looked up; None keeps nothing.
        executor: any concurrent.futures executor, among them processes, MPI and a Dask cluster's
            `client.get_executor()`; None runs the cells one after the other, here.
        progress: show a bar.

    Raises:
        ValueError: if a cell occurs twice.
        OSError: if a result cannot be stored (a full disk, say); the cells stored before are not lost.
    """
    cells = list(cells)
    for cell in cells:
        instances(Cell, cells=cell)
    if len(set(cells)) < len(cells):
        twice = next(cell for i, cell in enumerate(cells) if cell in cells[:i])
        raise ValueError(f"cells must differ from each other, this one occurs twice: {twice}")
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(cells), unit="cell", disable=not progress) as bar:
        missing = []
        for cell in cells:
            result = None if folder is None else load_cell(folder, cell)
            if result is None:
                missing.append(cell)
            else:
                bar.update()
                yield cell, result
        for cell, result in _run(missing, executor):
            if folder is not None:
                store_cell(folder, cell, result)
            bar.update()
            yield cell, result


def _run(cells: list[Cell], executor: Executor | None) -> Iterator[tuple[Cell, CellResult]]:
    if executor is None:
        yield from ((cell, run_cell(cell)) for cell in cells)
        return
    futures = {executor.submit(run_cell, cell): cell for cell in cells}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:  # the reader stopped early, or a cell failed: start no more of them
            future.cancel()


def store_cell(folder: Path | str, cell: Cell, result: CellResult) -> Path:
    """Write a finished cell as NAME.nc, complete or not at all, and return where.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
    """
    instances(Cell, cell=cell)
    instances(CellResult, result=result)
    buffer = io.BytesIO()
    file = netcdf_file(buffer, "w")
    file.cell = json.dumps(asdict(cell), sort_keys=True)
    file.checksum = _checksum(result)
    file.createDimension("T", len(result.epochs))
    file.createDimension("M", len(result.failed_at))
    for name, dimensions in _DIMENSIONS.items():
        file.createVariable(name, "d", tuple(dimensions))[:] = getattr(result, name)
    file.flush()
    target = Path(folder) / f"{cell.name()}.nc"
    handle, temporary = tempfile.mkstemp(prefix=".unfinished-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(buffer.getvalue())
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def load_cell(folder: Path | str, cell: Cell) -> CellResult | None:
    """A stored cell, or None if there is no file of it that is whole, undamaged and its own."""
    instances(Cell, cell=cell)
    instances(str | os.PathLike, folder=folder)
    path = Path(folder) / f"{cell.name()}.nc"
    if not path.exists():
        return None
    try:
        with netcdf_file(io.BytesIO(path.read_bytes()), "r", mmap=False) as file:
            own = json.loads(file.cell) == json.loads(json.dumps(asdict(cell)))
            result = CellResult(*(file.variables[name][:].astype(np.float64) for name in CellResult._fields))
            whole = file.checksum.decode() == _checksum(result)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, AssertionError, EOFError, UnicodeDecodeError):
        return None  # not NetCDF, cut short, or somebody else's: what SciPy and JSON raise then
    return result if own and whole else None


def _checksum(result: CellResult) -> str:
    digest = hashlib.sha256()
    for values in result:
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()
