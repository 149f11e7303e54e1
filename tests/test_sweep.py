"""Many seeds at once: on processes, on threads, and on a real Dask cluster that loses a worker."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from scipy import optimize
from test_data import lay_out, own
from test_make import wait_for

from mnist_ae import __main__, recipes, sweep

RECIPE = replace(recipes.POST, epochs=2)


@pytest.fixture(autouse=True)
def data_of_128_images(tmp_path, monkeypatch):
    lay_out(own(train=128), tmp_path / "data", "Own")
    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path / "data"))


def swept(recipe, seeds, executor=None):
    """The rows of a sweep, without the column that differs from one to the next."""
    rows = sweep.sweep([recipe], seeds, executor, dataset="Own", device="cpu").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, sweep.read_table("sweep", "Own"), rtol=1e-5)
    return rows.drop(columns="seconds")


def test_processes_and_threads_give_the_same_rows(tmp_path, monkeypatch):
    """Two threads share torch's random numbers; still, each run is what it is alone."""
    torch.set_num_threads(2)
    with ThreadPoolExecutor(2) as threads:
        rows = swept(RECIPE, range(3), threads)
    assert torch.get_num_threads() == 2
    assert (rows["seed"].tolist(), rows["threads"].tolist()) == ([0, 1, 2], [1, 1, 1])
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path / "processes"))
    pd.testing.assert_frame_equal(swept(RECIPE, range(3)), rows)


def test_a_range_of_seeds_and_what_a_row_keeps_of_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "workers", lambda: ThreadPoolExecutor(1))
    __main__.main(["sweep", "--dataset=Own", "--recipe=post", "--epochs=1", "--seeds=10-11"])
    rows = sweep.read_table("seeds", "Own")
    assert rows["seed"].tolist() == [10, 11]
    assert json.loads(rows["settings"][0])["lr"] == recipes.POST.lr
    folder = tmp_path / "out" / "runs" / "sweep" / "post-Own-1-epochs-seed-10"
    matrix = np.array(json.loads((folder / "metrics.json").read_text())["train_matrix"])
    pairs = optimize.linear_sum_assignment(matrix, maximize=True)
    assert rows["train_one_to_one"][0] == pytest.approx(matrix[pairs].sum() / matrix.sum(), abs=1e-5)


def test_ablations_and_baselines_go_to_their_tables(monkeypatch):
    called = []

    def note(work, *_, table, **options):
        called.append((table, len(work)))
        return pd.DataFrame({"work": [0]})

    monkeypatch.setattr(__main__, "sweep", note)
    monkeypatch.setattr(__main__, "collect", note)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(SystemExit, match=r"^error: .*umap.*: pip install -e '\.\[peers\]'"):  # at once
        __main__.main(["baselines", "--dataset=digits"])
    monkeypatch.setattr(__main__.baselines, "umap", lambda: None)
    for task in ("ablations", "baselines", "peers"):
        __main__.main([task, "--dataset=digits", "--seeds=2"])
    assert called == [("learning_rates", 24), ("ablations", 10), ("ablations", 4), ("baselines", 8), ("baselines", 4)]


def test_what_a_run_raises_ends_the_sweep_and_keeps_the_rows_before(tmp_path):
    explodes = replace(RECIPE, name="explodes", activations=False, lr=1e6)
    later = [replace(RECIPE, epochs=epochs) for epochs in (10, 3)]  # the first begins before the fault is heard of
    with ThreadPoolExecutor(1) as executor, pytest.raises(FloatingPointError, match="epoch 1"):
        sweep.sweep([RECIPE, explodes, *later], [0], executor, dataset="Own", device="cpu")
    assert sweep.read_table("sweep", "Own")["recipe"].tolist() == ["post"]
    assert not list(tmp_path.glob("out/runs/sweep/post-Own-3-*")), "what had not begun is not begun any more"


def test_worker_processes_know_a_recipe_that_no_file_holds():
    """As a notebook defines one, with a network that is its own; and what they have trained is found here, too."""
    code = """import torch
from mnist_ae import data, experiment, models, recipes, storage, sweep
class Mine(recipes.Post):
    def train(self, *given):
        return super().train(*given)
    def model(self):
        return models.PostAutoencoder(reachable=True)
mine, digits = Mine("mine", epochs=1), data.load("Own")
print(sweep.sweep([mine], [0, 1], dataset="Own", device="cpu")["recipe"].tolist())
torch.set_num_threads(1)
folder = storage.runs_folder() / "sweep" / experiment.run_folder(mine, 0, digits).name
assert experiment.run(mine, 0, digits, folder, device="cpu").reused"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("['mine', 'mine']\n", 0), done.stderr


def test_a_worker_process_that_ends_is_named():
    message = "^a worker process ended: killed, or out of memory$"
    with sweep.workers() as pool:
        pool.submit(os._exit, 1)
        with pytest.raises(BrokenExecutor, match=message):
            sweep.sweep([RECIPE], range(9), pool, dataset="Own", device="cpu")


def test_worker_processes_end_at_once_when_the_sweep_is_interrupted():
    def interrupted():
        with sweep.workers() as pool:
            wait_for(pool.submit(time.sleep, 60).running)
            raise KeyboardInterrupt

    before, begin = psutil.Process().children(recursive=True), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < 30
    left = {*psutil.Process().children(recursive=True), *before}.difference(before)
    assert not [process for process in left if "tracker" not in " ".join(process.cmdline())]


def test_a_sweep_that_is_killed_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "mnist_ae", "sweep", "--dataset=Own", "--recipe=post", "--epochs=10000"]
    with subprocess.Popen([*command, "--seeds=2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_for(lambda: list(tmp_path.rglob("checkpoint.pt")))
        process.kill()
        process.communicate(timeout=30)  # the pipe ends with the last process that could write to it


@pytest.fixture
def cluster(tmp_path):
    """A Dask scheduler and two workers with one thread each, all on loopback: its address, the workers' processes."""
    address, processes = tmp_path / "scheduler.json", []
    local = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(address)]

    def start(kind, *options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options, *local]
        processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    try:
        start("scheduler", "--port", "0")
        wait_for(lambda: address.exists() and address.read_text().endswith("}"))
        start("worker", "--nthreads", "1", "--no-nanny")
        start("worker", "--nthreads", "1", "--no-nanny")
        yield json.loads(address.read_text())["address"], processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_that_loses_a_worker_gives_every_result(cluster, tmp_path, monkeypatch):
    address, (first, second) = cluster
    recipe, seeds, runs = replace(RECIPE, epochs=20), range(4), tmp_path / "out" / "runs" / "sweep"
    monkeypatch.setenv("DASK_SCHEDULER", address)

    def kill_one_half_way():
        wait_for(lambda: list(runs.glob("*/metrics.json")) and len(list(runs.glob("*/checkpoint.pt"))) == 2)
        first.kill()

    killer = threading.Thread(target=kill_one_half_way)
    killer.start()
    rows = swept(recipe, seeds)
    killer.join()
    assert (first.wait(), second.poll()) == (-9, None), "one was killed, one lives"
    trained = {path: path.stat().st_mtime_ns for path in runs.glob("*/model.pt")}
    pd.testing.assert_frame_equal(swept(recipe, seeds), rows)
    assert trained == {path: path.stat().st_mtime_ns for path in runs.glob("*/model.pt")}, "finished runs are found"
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path / "local"))
    with ThreadPoolExecutor(1) as local:
        pd.testing.assert_frame_equal(swept(recipe, seeds, local), rows)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_scheduler_that_does_not_answer_and_an_extra_that_is_missing_are_named(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER", "tcp://127.0.0.1:9")
    monkeypatch.setattr(sweep, "SCHEDULER_TIMEOUT", 0.2)
    with pytest.raises(SystemExit, match=r"^error: .*tcp://127\.0\.0\.1:9"):
        __main__.main(["sweep", "--dataset=Own", "--seeds=1"])
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SystemExit, match=r"^error: .*distributed"):
        __main__.main(["sweep", "--dataset=Own", "--seeds=1"])
