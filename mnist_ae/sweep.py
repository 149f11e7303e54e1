"""Many runs at once, on the cores of this machine or on a cluster, into a table."""

import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
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
) -> pd.DataFrame:
    """Run each recipe with each seed, one thread each, on the workers of `executor`; one row a run.

    executor: any of `concurrent.futures`, which stays open; by default those of `workers`. A worker reads the data set
    by its name and keeps its runs where `storage.runs_folder` is there: what it finds finished it does not run again.
    Rows go to `figures/TABLE.csv` here as they finish, in place of earlier ones of the same recipe, epochs and seed.
    What a run raises is raised here, an interrupt too: no other run begins, and those of `workers` end at once; their
    checkpoints stay. ValueError for a recipe that only this notebook knows, where the workers are processes.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from mnist_ae.recipes import Post
    >>> with ThreadPoolExecutor(1) as pool:
    ...     table = sweep([Post("brief", epochs=1)], range(2), pool, dataset="digits", device="cpu")
    >>> table[["recipe", "seed", "threads"]].values.tolist()
    [['brief', 0, 1], ['brief', 1, 1]]
    """
    recipes, seeds = list(recipes), [checks.seed(seed) for seed in seeds]
    for recipe in recipes if executor is None and not os.environ.get("DASK_SCHEDULER") else []:
        _check_importable(recipe)
    dataset = data.load(dataset).name  # downloads it, if need be, before many workers would
    rows = read_table(table, dataset)
    with nullcontext(executor) if executor else workers() as pool:
        running = [pool.submit(_row, recipe, seed, dataset, device) for recipe in recipes for seed in seeds]
        try:
            for job in tqdm(as_completed(running), total=len(running), unit=" runs"):
                rows = pd.concat([rows, pd.DataFrame([job.result()])])
                rows = rows.drop_duplicates(KEY, keep="last").sort_values(KEY)
                storage.write(_path(table, dataset), rows.to_csv(index=False, float_format="%.6g").encode())
        except BrokenExecutor as error:
            raise BrokenExecutor(
                "a worker process ended: killed, out of memory, or the script that calls sweep does so at each import "
                'and not under `if __name__ == "__main__":`'
            ) from error
        finally:
            for job in running:
                job.cancel()
    return rows


def read_table(table: str, dataset: str) -> pd.DataFrame:
    """What `sweep` has left in this table for a data set ("ten_digits", "seeds" and "ladder" by make); else empty."""
    path = _path(table, dataset)
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def _path(table: str, dataset: str) -> Path:
    return storage.figures_folder(dataset) / f"{table}.csv"


def _check_importable(recipe: Recipe) -> None:
    """ValueError, in one sentence, where a new process cannot import the recipe's classes, as those of a notebook."""
    main = getattr(sys.modules["__main__"], "__file__", None)  # None in a notebook, no file where Python reads a pipe
    try:
        pickled = pickle.dumps(recipe)
        found = Path(main).is_file() if main else b"__main__" not in pickled
    except (pickle.PicklingError, AttributeError, TypeError):  # a class within a function, or a lambda in a field
        found = False
    if not found:
        raise ValueError(f"recipe {recipe.name!r}: worker processes cannot import it from here: put it into a module")


@contextmanager
def workers() -> Iterator[Executor]:
    """As many processes as this machine has cores; or, with DASK_SCHEDULER=tcp://HOST:PORT, that cluster's workers.

    Processes are spawned, not forked: a fork of a process that has threads may hang. They end at once when the block is
    left by an exception. Raises ModuleNotFoundError without the extra `cluster`, OSError
    where no scheduler answers.
    """
    if address := os.environ.get("DASK_SCHEDULER"):
        from distributed import Client

        with Client(address, timeout=SCHEDULER_TIMEOUT) as client:
            yield client.get_executor()
        return
    # Ctrl-C reaches all processes of a terminal: the parent decides.
    ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), **ignore) as pool:
        try:
            yield pool
        except BaseException:
            for process in active_children():
                process.kill()
            raise


_ONE_RUN = threading.Lock()  # of a process: torch's random numbers and threads are the process's


def _row(recipe: Recipe, seed: int, dataset: str, device: str) -> dict:
    with _ONE_RUN:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            digits = data.load(dataset)
            folder = storage.runs_folder() / "sweep" / experiment.run_folder(recipe, seed, digits).name
            result = experiment.run(recipe, seed, digits, folder, device=device, progress=False)
        finally:
            torch.set_num_threads(threads)
    matrix = np.array(result.metrics["train_matrix"])
    return {
        "recipe": recipe.name,
        "epochs": recipe.epochs,
        "seed": seed,
        **result.metrics["accuracy"],
        "dead_neurons": len(result.metrics["dead_neurons"]),
        "loss": result.history[-1]["loss"],
        "seconds": round(result.seconds),
        **{name: result.metrics[name] for name in ("threads", "device", "torch")},
        "train_one_to_one": confusion.accuracy(matrix, confusion.one_to_one_mapping(matrix)),
        "settings": json.dumps(result.metrics["recipe"]),
    }
