"""Many seeds at once: on processes, on threads, and on a real Dask cluster that loses a worker."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize

from mnist_ae import __main__, recipes, sweep

RECIPE = replace(recipes.POST, epochs=2)


def without_seconds(rows):
    return rows.drop(columns="seconds").reset_index(drop=True)


def test_any_executor_gives_the_same_rows(tmp_path, monkeypatch):
    """Two threads share torch's random numbers; still, each run is what it is alone."""
    tables = []
    for name, executor in {"processes": None, "threads": ThreadPoolExecutor(2)}.items():
        monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path / name))
        torch.set_num_threads(2)
        rows = sweep.sweep([RECIPE], range(3), executor, dataset="digits")
        assert torch.get_num_threads() == 2
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), sweep.read_table("sweep", "digits"), rtol=1e-5)
        tables.append(without_seconds(rows))
    assert tables[0]["seed"].tolist() == [0, 1, 2]
    assert tables[0]["threads"].tolist() == [1, 1, 1]
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_a_range_of_seeds_and_what_a_row_keeps_of_its_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path))
    monkeypatch.setattr(sweep, "workers", lambda: ThreadPoolExecutor(1))
    __main__.main(["sweep", "--dataset=digits", "--recipe=post", "--epochs=1", "--seeds=10-11"])
    rows = sweep.read_table("seeds", "digits")
    assert rows["seed"].tolist() == [10, 11]
    assert json.loads(rows["settings"][0])["lr"] == recipes.POST.lr
    folder = tmp_path / "runs" / "sweep" / "post-digits-1-epochs-seed-10"
    matrix = np.array(json.loads((folder / "metrics.json").read_text())["train_matrix"])
    pairs = optimize.linear_sum_assignment(matrix, maximize=True)
    assert rows["train_one_to_one"][0] == pytest.approx(matrix[pairs].sum() / matrix.sum(), abs=1e-5)


def test_what_a_run_raises_ends_the_sweep_and_keeps_the_rows_before(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path))
    explodes = replace(RECIPE, name="explodes", activations=False, lr=1e6)
    later = [replace(RECIPE, epochs=epochs) for epochs in (20, 3)]  # the first begins before the fault is heard of
    with ThreadPoolExecutor(1) as executor, pytest.raises(FloatingPointError, match="epoch 1"):
        sweep.sweep([RECIPE, explodes, *later], [0], executor, dataset="digits")
    assert sweep.read_table("sweep", "digits")["recipe"].tolist() == ["post"]
    assert not list(tmp_path.glob("runs/sweep/post-digits-3-*")), "what had not begun is not begun any more"


def test_a_sweep_that_is_killed_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "mnist_ae", "sweep", "--dataset", "digits", "--recipe", "post"]
    process = subprocess.Popen(
        [*command, "--epochs", "1000", "--seeds", "2"],
        env=os.environ | {"MNIST_AE_OUT": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(lambda: list(tmp_path.rglob("checkpoint.pt")))
        process.kill()
        process.communicate(timeout=30)  # the pipe ends with the last process that could write to it
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def in_new_python(code, out):
    """Run code that no file holds, as a notebook's cells are: its exit status and last line."""
    environment = os.environ | {"MNIST_AE_OUT": str(out)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr or done.stdout).strip().splitlines()[-1]


def test_a_recipe_that_workers_cannot_import_is_refused_in_one_sentence(tmp_path):
    code = "from mnist_ae import recipes, sweep\nclass Mine(recipes.{}): pass\nsweep.sweep([{}], [0], dataset='digits')"
    for base, made, name in [
        ("Post", "Mine('mine')", "mine"),
        ("Network", "recipes.TenDigits('whole', (Mine(),))", "whole"),
    ]:
        said = in_new_python(code.format(base, made), tmp_path / "out")
        message = f"ValueError: recipe '{name}': worker processes cannot import it from here: put it into a module"
        assert said == (1, message), "a part of a recipe is looked at, too"
    assert not (tmp_path / "out").exists()


def test_a_script_without_a_main_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from mnist_ae import recipes, sweep; sweep.sweep([recipes.POST], [0], dataset='digits')")
    environment = os.environ | {"MNIST_AE_OUT": str(tmp_path / "out")}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert "BrokenExecutor: a worker process ended" in done.stderr.strip().splitlines()[-1]
    assert 'not under `if __name__ == "__main__":`' in done.stderr.strip().splitlines()[-1]


@pytest.fixture
def cluster(tmp_path):
    """A Dask scheduler and two workers with one thread each, all on loopback: its address, the workers' processes."""
    address = tmp_path / "scheduler.json"
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    dask, processes = [sys.executable, "-m", "distributed.cli"], []

    def start(kind, *options):
        command = [*dask[:2], f"{dask[2]}.dask_{kind}", *options, *local, "--scheduler-file", str(address)]
        with (tmp_path / f"{kind}-{len(processes)}.log").open("w") as log:
            processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log))
        return processes[-1]

    try:
        start("scheduler", "--port", "0")
        wait_for(lambda: address.exists() and address.read_text().endswith("}"))
        workers = [start("worker", "--nthreads", "1", "--no-nanny") for _ in range(2)]
        yield json.loads(address.read_text())["address"], workers
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_cluster_that_loses_a_worker_gives_every_result(cluster, tmp_path, monkeypatch):
    address, processes = cluster
    recipe, runs = replace(RECIPE, epochs=6), tmp_path / "out" / "runs" / "sweep"
    monkeypatch.setenv("DASK_SCHEDULER", address)
    from distributed import Client

    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)

    def kill_one_half_way():
        wait_for(lambda: list(runs.glob("*/metrics.json")) and len(list(runs.glob("*/checkpoint.pt"))) == 2)
        processes[0].kill()

    killer = threading.Thread(target=kill_one_half_way)
    killer.start()
    rows = sweep.sweep([recipe], range(6), dataset="digits")
    killer.join()
    assert (processes[0].wait(), processes[1].poll()) == (-9, None), "one was killed, one lives"
    assert rows["seed"].tolist() == [0, 1, 2, 3, 4, 5]

    trained = {path: path.stat().st_mtime_ns for path in runs.glob("*/model.pt")}
    again = sweep.sweep([recipe], range(6), dataset="digits")
    pd.testing.assert_frame_equal(without_seconds(rows), without_seconds(again))
    assert trained == {path: path.stat().st_mtime_ns for path in runs.glob("*/model.pt")}, "finished runs are found"

    monkeypatch.delenv("DASK_SCHEDULER")
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path / "local"))
    local = sweep.sweep([recipe], range(6), dataset="digits")
    pd.testing.assert_frame_equal(without_seconds(rows), without_seconds(local))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER", "tcp://127.0.0.1:9")
    monkeypatch.setattr(sweep, "SCHEDULER_TIMEOUT", 1)
    with pytest.raises(SystemExit, match=r"error: .*tcp://127\.0\.0\.1:9"):
        __main__.main(["sweep", "--dataset", "digits", "--seeds", "1"])
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SystemExit, match=r"error: .*distributed"):
        __main__.main(["sweep", "--dataset", "digits", "--seeds", "1"])
