"""Sweeps: same result in any order and any process, nothing lost when they are killed."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from scipy.io import netcdf_file

import kbe_lib as kbe
import kbe_sweep

CELLS = [
    kbe_sweep.Cell(n, seed, epochs=2000, checkpoints=(0, 5, 2000), n_networks=8) for n in (1, 5, 20) for seed in (0, 1)
]


def same(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(a, b) for cell in first for a, b in zip(first[cell], second[cell], strict=True)
    )


@pytest.fixture(scope="module")
def undisturbed():
    return dict(kbe_sweep.sweep(CELLS, progress=False))


def test_result_is_that_of_a_training(undisturbed):
    result = undisturbed[CELLS[2]]
    assert result.epochs.tolist() == [0, 5, 2000]
    assert result.v.shape == result.v_star.shape == (8, 3)
    assert ((result.v >= 0) & (result.v <= 1)).all()  # 0 where the error is below the smallest number
    assert result.failed_at.shape == result.frozen_at.shape == (8,)


def test_every_field_of_a_cell_reaches_its_training(monkeypatch):
    """A cell with nothing at its default, against the same training written out; engine "torch", nothing to compile."""
    monkeypatch.setattr(kbe, "train", partial(kbe.train, engine="torch"))
    cell = kbe_sweep.Cell(6, 3, 20, (0, 7, 20), 2, 4, 1, False, 0.05, "laplace", ("raw", "softplus"), "sum", "float32")
    random = torch.Generator().manual_seed(3)
    params = kbe.init_networks(2, n_bits=4, n_channels=1, generator=random, dtype=torch.float32)
    data = kbe.random_bit_encoding(2, 6, 4, replacement=False, generator=random, dtype=torch.float32)
    settings = dict(lr=0.05, loss="laplace", readout=("raw", "softplus"), reduction="sum")
    run = kbe.train(params, data, epochs=20, record=(0, 7, 20), **settings)
    expected = (run.epochs, *kbe.variances(run, data.y), run.failed_at, run.frozen_at)
    for name, found, value in zip(kbe_sweep.CellResult._fields, kbe_sweep.run_cell(cell), expected, strict=True):
        assert found.dtype == np.float64, name
        np.testing.assert_array_equal(found, value.double().numpy(), err_msg=name)


def test_order_and_threads_do_not_matter(undisturbed):
    assert same(dict(kbe_sweep.sweep(CELLS[::-1], progress=False)), undisturbed)
    with ThreadPoolExecutor(2) as executor:
        assert same(dict(kbe_sweep.sweep(CELLS, executor=executor, progress=False)), undisturbed)


def test_cells_run_where_the_executor_says(monkeypatch):
    threads = set()
    monkeypatch.setattr(kbe_sweep, "run_cell", lambda cell: threads.add(threading.current_thread()))
    with ThreadPoolExecutor(1) as executor:
        assert dict(kbe_sweep.sweep(CELLS, executor=executor, progress=False)) == dict.fromkeys(CELLS)
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_processes_do_not_matter(undisturbed):
    start = multiprocessing.get_context("forkserver")  # a process forked here, where threads have trained, can hang
    start.set_forkserver_preload(["kbe_sweep"])
    with ProcessPoolExecutor(2, mp_context=start) as executor:
        assert same(dict(kbe_sweep.sweep(CELLS, executor=executor, progress=False)), undisturbed)


def test_stored_cells_are_read_and_not_run_again(tmp_path, undisturbed, monkeypatch):
    folder = tmp_path / "made" / "here"
    dict(kbe_sweep.sweep(CELLS, folder, progress=False))
    monkeypatch.setattr(kbe_sweep, "run_cell", lambda cell: pytest.fail(f"{cell} ran again"))
    assert same(dict(kbe_sweep.sweep(CELLS, folder, progress=False)), undisturbed)


def test_a_bar_counts_the_cells(tmp_path, capsys):
    few = CELLS[:3]
    dict(kbe_sweep.sweep(few[:2], tmp_path, progress=False))
    assert capsys.readouterr().err == ""
    dict(kbe_sweep.sweep(few, tmp_path))  # two are read, one runs
    bar = capsys.readouterr().err
    assert "3/3" in bar
    assert re.search(r"\d(cell/s|s/cell)\]", bar)


def test_a_file_is_netcdf_that_anybody_reads(tmp_path, undisturbed):
    cell = CELLS[1]
    path = kbe_sweep.store_cell(tmp_path, cell, undisturbed[cell])
    assert path == tmp_path / f"{cell.name()}.nc"
    with netcdf_file(path, mmap=False) as file:
        assert file.dimensions == {"T": 3, "M": 8}
        assert json.loads(file.cell) == cell.__dict__ | {"checkpoints": [0, 5, 2000]}
        assert list(json.loads(file.cell)) == sorted(cell.__dict__)  # whatever the order of the fields
        shapes = {name: (v.dimensions, v.typecode()) for name, v in file.variables.items()}
        along = {"epochs": ("T",), "v": ("M", "T"), "v_star": ("M", "T"), "failed_at": ("M",), "frozen_at": ("M",)}
        assert shapes == {name: (dimensions, "d") for name, dimensions in along.items()}


def test_names_of_stored_cells_never_change():
    """Another name would orphan what is stored already."""
    assert kbe_sweep.Cell(5, 3, epochs=20, checkpoints=(0, 7, 20)).name() == "N5-seed3-08d46399f54678ce"


def test_numbers_of_another_type_are_stored(tmp_path, undisturbed):
    cell = CELLS[0]
    other = kbe_sweep.CellResult(*(values.astype(">f8") for values in undisturbed[cell]))
    kbe_sweep.store_cell(tmp_path, cell, other)
    assert same({cell: kbe_sweep.load_cell(tmp_path, cell)}, {cell: undisturbed[cell]})


@pytest.mark.parametrize("gone", [False, True])
def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path, undisturbed, monkeypatch, gone):
    def replace(source, target):
        assert source.startswith(str(tmp_path / ".unfinished-"))
        assert target.parent == tmp_path
        if gone:
            os.remove(source)
        raise PermissionError("as if it were forbidden")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError, match="as if it were forbidden"):
        kbe_sweep.store_cell(tmp_path, CELLS[0], undisturbed[CELLS[0]])
    assert list(tmp_path.iterdir()) == []


def test_another_setting_is_another_cell(tmp_path):
    kept = {cell.name() for cell in CELLS}
    changed = [
        {"lr": 0.05}, {"readout": ("raw", "exp")}, {"reduction": "sum"}, {"dtype": "float32"}, {"n_bits": 6},
        {"n_channels": 2}, {"replacement": False}, {"loss": "printed"}, {"epochs": 2001}, {"checkpoints": (0, 2000)},
    ]  # fmt: skip
    for change in changed:
        kept.add(kbe_sweep.Cell(**(CELLS[0].__dict__ | change)).name())
    assert len(kept) == len(CELLS) + len(changed)


def test_damaged_and_foreign_files_are_not_trusted(tmp_path, undisturbed):
    cell, other = CELLS[0], CELLS[1]
    path = kbe_sweep.store_cell(tmp_path, cell, undisturbed[cell])
    whole = path.read_bytes()
    assert kbe_sweep.load_cell(tmp_path, cell) is not None
    rng = random.Random(0)
    damaged = [whole[:size] for size in range(0, len(whole), 23)]
    for _ in range(
        500
    ):  # a byte overwritten anywhere: either the damage shows, or it hit padding and the result is right
        position = rng.randrange(len(whole))
        damaged.append(whole[:position] + bytes([rng.randrange(256)]) + whole[position + 1 :])
    damaged += [b"", b"not a result at all", os.urandom(len(whole))]
    for content in damaged:
        path.write_bytes(content)
        loaded = kbe_sweep.load_cell(tmp_path, cell)
        assert loaded is None or same({cell: loaded}, {cell: undisturbed[cell]})
    foreign = kbe_sweep.store_cell(tmp_path, other, undisturbed[other])
    foreign.rename(path)
    assert kbe_sweep.load_cell(tmp_path, cell) is None
    assert same(dict(kbe_sweep.sweep(CELLS, tmp_path, progress=False)), undisturbed)


def test_survives_kill_nine_at_random_moments(tmp_path, undisturbed):
    """Sweeps in processes of their own are killed again and again until they have come through, twenty kills in all."""
    rng, kills, sweeps = random.Random(1), 0, 0
    start = time.monotonic()
    run_quietly(tmp_path / "whole")
    whole = time.monotonic() - start  # on this machine, as busy as it is
    while kills < 20:
        folder, before, patience = tmp_path / str(sweeps), set(), 1.5 * whole
        while True:
            process = multiprocessing.get_context("fork").Process(target=run_quietly, args=(folder,))
            process.start()
            process.join(rng.uniform(0, patience))
            process.kill()
            process.join()
            now = {path.name for path in folder.glob("*.nc")}
            assert before <= now, "a finished cell was lost"
            patience *= 1.2 if now == before else 1.0  # so that it comes through, however busy the machine has become
            before = now
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            assert kills < 1000, "no progress"
        assert same(dict(kbe_sweep.sweep(CELLS, folder, progress=False)), undisturbed)
        assert len(list(folder.glob("*.nc"))) == len(CELLS)
        sweeps += 1


def run_quietly(folder):
    for _ in kbe_sweep.sweep(CELLS, folder, progress=False):
        pass


def test_a_full_disk_raises_and_loses_nothing(tmp_path, undisturbed):
    """The operating system's limit on a file's size stands for a disk that is full in the middle of a write."""
    kbe_sweep.store_cell(tmp_path, CELLS[0], undisturbed[CELLS[0]])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            dict(kbe_sweep.sweep(CELLS, tmp_path, progress=False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert [path.name for path in tmp_path.iterdir()] == [f"{CELLS[0].name()}.nc"]
    assert same(dict(kbe_sweep.sweep(CELLS, tmp_path, progress=False)), undisturbed)


def test_a_failing_cell_does_not_take_the_others_with_it(tmp_path, undisturbed):
    bad = kbe_sweep.Cell(5, 0, epochs=5, checkpoints=(6,))
    with pytest.raises(ValueError, match="record must be between 0 and 5, got 6"):
        dict(kbe_sweep.sweep([*CELLS[:2], bad, *CELLS[2:]], tmp_path, progress=False))
    assert len(list(tmp_path.glob("*.nc"))) == 2
    assert same(dict(kbe_sweep.sweep(CELLS, tmp_path, progress=False)), undisturbed)


def test_dask_cluster_gives_the_same_and_survives_a_killed_worker(tmp_path, undisturbed):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, worker_dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        cells = iter(kbe_sweep.sweep(CELLS, tmp_path, executor=client.get_executor(), progress=False))
        results = dict([next(cells)])
        victim = next(iter(cluster.workers.values()))
        os.kill(victim.pid, signal.SIGKILL)
        results |= dict(cells)
    assert same(results, undisturbed)


def test_rejects():
    twice = re.escape(f"cells must differ from each other, this one occurs twice: {CELLS[1]}")
    with pytest.raises(ValueError, match=f"^{twice}$"):
        list(kbe_sweep.sweep([CELLS[0], CELLS[1], CELLS[2], CELLS[1]], progress=False))
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        kbe_sweep.run_cell(kbe_sweep.Cell(1, -1, 1, (0,)))
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64', got 'int8'"):
        kbe_sweep.run_cell(kbe_sweep.Cell(1, 0, 1, (0,), dtype="int8"))


@pytest.mark.parametrize("wrong", [None, {"n_points": 2}, kbe_sweep.Cell])
def test_what_is_no_cell(tmp_path, undisturbed, wrong):
    result = undisturbed[CELLS[0]]
    with pytest.raises(TypeError, match="cells must be of type Cell, got"):
        list(kbe_sweep.sweep([wrong], progress=False))
    with pytest.raises(TypeError, match="cell must be of type Cell, got"):
        kbe_sweep.store_cell(tmp_path, wrong, result)
    with pytest.raises(TypeError, match="result must be of type CellResult, got"):
        kbe_sweep.store_cell(tmp_path, CELLS[0], tuple(result))
    assert list(tmp_path.iterdir()) == []
