"""Many runs at once, on the cores of this machine or on a cluster, into a table."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, as_completed
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from loky import ProcessPoolExecutor
from torch import nn
from tqdm import tqdm

from mnist_ae import checks, confusion, data, experiment, storage
from mnist_ae.recipes import Recipe

SCHEDULER_TIMEOUT = 15  # seconds without an answer
KEY = ["recipe", "epochs", "seed"]  # of a row


def sweep(
    recipes: Iterable[Recipe],
    seeds: Iterable[int],
    executor: Executor | None = None,
    *,
    dataset: str = "auto",
    table: str = "sweep",
    device: str = "auto",
    score: Callable[[nn.Module, data.Digits], dict] = lambda model, digits: {},
) -> pd.DataFrame:
    """Run each recipe with each seed, one thread each, on the workers of `executor`; one row a run.

    executor: any of `concurrent.futures`, which stays open; by default those of `workers`. A worker reads the data set
    by its name and keeps its runs where `storage.runs_folder` is there: what it finds finished it does not run again.
    Rows go to `figures/TABLE.csv` here as they finish, in place of earlier ones of the same recipe, epochs and seed.
    score(model, digits): more columns. What a run raises is raised here, an interrupt too: no other run begins, and
    those of `workers` end at once; their checkpoints stay.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from mnist_ae.recipes import Post
    >>> with ThreadPoolExecutor(1) as pool:
    ...     table = sweep([Post("brief", epochs=1)], range(2), pool, dataset="digits", device="cpu")
    >>> table[["recipe", "seed", "threads"]].values.tolist()
    [['brief', 0, 1], ['brief', 1, 1]]
    """
    recipes, seeds = list(recipes), [checks.seed(seed) for seed in seeds]
    dataset = data.load(dataset).name  # downloads it, if need be, before many workers would
    calls = [partial(_row, recipe, seed, dataset, device, score) for recipe in recipes for seed in seeds]
    return collect(calls, KEY, executor, dataset=dataset, table=table)


def collect(
    calls: Iterable[Callable[[], dict]],
    key: list[str],
    executor: Executor | None = None,
    *,
    dataset: str,
    table: str,
) -> pd.DataFrame:
    """The rows that calls return, on the workers of `executor`, into a table as for `sweep`; a row has the place of an
    earlier one with the same `key` columns.
    """
    path = _path(table, dataset)
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame()
    with nullcontext(executor) if executor else workers() as pool:
        running = []
        try:
            running += [pool.submit(call) for call in calls]
            for job in tqdm(as_completed(running), total=len(running), unit=" runs"):
                rows = pd.concat([rows, pd.DataFrame([job.result()])])
                rows = rows.drop_duplicates(key, keep="last").sort_values(key)
                storage.write(path, rows.to_csv(index=False, float_format="%.6g").encode())
        except BrokenExecutor as error:
            raise BrokenExecutor("a worker process ended: killed, or out of memory") from error
        finally:
            for job in running:
                job.cancel()
    return rows


def read_table(table: str, dataset: str) -> pd.DataFrame:
    """What `collect` has left in this table for a data set (by make "ten_digits", "seeds", "ablations", "baselines"):
    where it writes now, else among the committed ones; empty where there is none.
    """
    path = _path(table, dataset)
    committed = storage.HOME / "figures" / path.relative_to(storage.figures_folder("MNIST"))
    found = [place for place in (path, committed) if place.exists()]
    return pd.read_csv(found[0]) if found else pd.DataFrame()


def _path(table: str, dataset: str) -> Path:
    return storage.figures_folder(dataset) / f"{table}.csv"


@contextmanager
def workers() -> Iterator[Executor]:
    """As many processes as this machine has cores; or, with DASK_SCHEDULER=tcp://HOST:PORT, that cluster's workers.

    Processes are spawned, not forked: a fork of a process that has threads may hang. They know recipes that a notebook
    defines, and end at once when the block is left by an exception. Raises ModuleNotFoundError without the extra
    `cluster`, OSError where no scheduler answers.
    """
    if address := os.environ.get("DASK_SCHEDULER"):
        from distributed import Client

        with Client(address, timeout=SCHEDULER_TIMEOUT) as client:
            yield client.get_executor()
        return
    pool = ProcessPoolExecutor(os.cpu_count(), initializer=_end_with, initargs=(os.getpid(),))
    stopped = True
    try:
        yield pool
        stopped = False
    finally:
        pool.shutdown(kill_workers=stopped)


def _end_with(parent: int) -> None:
    """Of a worker process: when the parent is killed, it would train on; a terminal's Ctrl-C, which reaches it, too, is
    left to the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # the usual one is the machine's, and left behind by a process that is killed
    threading.Thread(target=watch, daemon=True).start()


_ONE_RUN = threading.Lock()  # of a process: torch's random numbers and threads are the process's


@contextmanager
def one_thread() -> Iterator[None]:
    """One run at a time in this process, with one thread of torch; afterwards as many as before."""
    with _ONE_RUN:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _row(recipe: Recipe, seed: int, dataset: str, device: str, score: Callable[[nn.Module, data.Digits], dict]) -> dict:
    with one_thread():
        digits = data.load(dataset)
        folder = storage.runs_folder() / "sweep" / experiment.run_folder(recipe, seed, digits).name
        result = experiment.run(recipe, seed, digits, folder, device=device, progress=False)
        more = score(result.model, digits)
    matrix, losses = np.array(result.metrics["train_matrix"]), [row["loss"] for row in result.history]
    return {
        "recipe": recipe.name,
        "epochs": recipe.epochs,
        "seed": seed,
        **result.metrics["accuracy"],
        **more,
        "dead_neurons": len(result.metrics["dead_neurons"]),
        "loss": losses[-1],
        "last_fall": 1 - losses[-1] / losses[-2] if len(losses) > 1 else None,  # in the last epoch, as a share
        "seconds": round(result.seconds),
        **{name: result.metrics[name] for name in ("threads", "device", "torch")},
        "train_one_to_one": confusion.scores(matrix, matrix)["one_to_one"],
        "settings": json.dumps(result.metrics["recipe"]),
    }
