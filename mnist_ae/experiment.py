"""A recipe and a seed -> a result on disk, trained once; and many of them at once."""

import ast
import hashlib
import json
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from tqdm import tqdm

from mnist_ae import augment, checkpoint, confusion, data, files, losses, models, ten_digits, train
from mnist_ae.checkpoint import CheckpointError


@dataclass(frozen=True)
class Recipe:
    """All that decides a run of the post's loop but its seed and its images; the defaults are its 20-epoch run."""

    name: str = "post"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.5
    activations: bool = True
    reachable: bool = False

    def __post_init__(self) -> None:
        """ValueError for epochs that cannot be; 20.0, or NumPy's 20, becomes 20: a folder is named by it."""
        object.__setattr__(self, "epochs", train.whole_number("epochs", self.epochs, 1, 10_000))

    def model(self) -> nn.Module:
        return models.PostAutoencoder(self.activations, self.reachable)

    def fit(
        self,
        images: Tensor,
        seed: int,
        *,
        device: str,
        progress: bool,
        on_epoch: train.OnEpoch | None = None,
        resume: dict | None = None,
    ) -> tuple[nn.Module, list[dict]]:
        """images: uint8 [N, 1, 28, 28] -> a model trained from the weights of `seed`, and what `train.fit` returns."""
        model = train.born(self.model, seed)
        options = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr", "momentum")}
        options |= {"seed": seed, "device": device, "progress": progress, "on_epoch": on_epoch, "resume": resume}
        return model, train.fit(model, images, **options)


AnyRecipe = Recipe | ten_digits.Network | ten_digits.TenDigits
POST = Recipe()
TEN_DIGITS = ten_digits.TenDigits()

WATCHED = 20  # the first test images, whose reconstructions are kept as training goes on
SCHEDULER_TIMEOUT = 15  # seconds without an answer
SNAPSHOT_EPOCHS = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}  # and the last


@dataclass(frozen=True)
class Result:
    """A finished run.

    model: trained, on the CPU. history: what `train.fit` returned. metrics: what metrics.json holds. snapshots:
    {epoch: float32 [20, 1, 28, 28]}, the reconstructions of the first 20 test images, in the model's normalised units.
    seconds: what it took, interruptions left out. reused: True if it was loaded, False if this call trained it.
    continued: the epochs that this call found trained, when it went on with an interrupted run.
    """

    model: nn.Module
    history: list[dict]
    metrics: dict
    snapshots: dict[int, Tensor]
    seconds: float
    folder: Path
    reused: bool
    continued: int = 0

    @property
    def origin(self) -> str:
        """Whether this call trained the run or found it finished, and how long its training took."""
        how = f"continued after epoch {self.continued}" if self.continued else "trained now"
        took = f"about {self.seconds / 60:.0f} min" if self.seconds >= 60 else "less than a minute"
        return f"{'found finished' if self.reused else how} in {took}: {self.folder.name}"


class RunNotFound(FileNotFoundError):
    """No finished run of this recipe, seed, data and code; the message says how to get it."""


def run_folder(recipe: AnyRecipe, seed: int, digits: data.Digits) -> Path:
    """Where the notebooks keep this run.

    >>> run_folder(POST, 0, data.load("digits")).name
    'post-digits-20-epochs-seed-0'
    """
    return files.runs_folder() / f"{recipe.name}-{digits.name}-{recipe.epochs}-epochs-seed-{_seed(seed)}"


def run(
    recipe: AnyRecipe, seed: int, digits: data.Digits, out_dir: Path, *, device: str = "auto", progress: bool = True
) -> Result:
    """Train the recipe's model from `seed` on the training images, score it, and leave it in the folder `out_dir`.

    Labels enter after training only, to score. Writes model.pt (weights, history, snapshots, metrics) and metrics.json.
    A run that is finished there is loaded instead where recipe, seed, data, code, torch, threads and device all agree.
    checkpoint.pt keeps all that there is after each epoch: a run that was interrupted, by whatever means, goes on from
    it and ends with the same weights, bit for bit. If another process is at work in the folder, this one waits.

    Raises ValueError, before the first step, for a seed that is no whole number from 0 to 2**32 - 1 and for a model
    whose code is not ten numbers; FloatingPointError (see `train.minimise`) and OSError where a file cannot be written:
    both leave the checkpoint of the epoch before. Warns of a checkpoint that is damaged, and trains again.

    >>> brief, digits = Recipe("brief", epochs=1), data.load("digits")
    >>> run(brief, 0, digits, Path("runs", "brief"), device="cpu", progress=False).reused
    False
    >>> run(brief, 0, digits, Path("runs", "brief"), device="cpu").reused
    True
    """
    out_dir, device, seed = Path(out_dir), train.pick_device(device).type, _seed(seed)
    identity = _identity(recipe, seed, digits, device)
    with suppress(CheckpointError):
        if found := _finished(recipe, out_dir, identity):
            return found  # without the lock: the folder may be read-only
    _check_model(recipe)
    with files.one_process_at_a_time(out_dir, "training"):
        try:
            if found := _finished(recipe, out_dir, identity):  # by the one that this one waited for
                return found
        except CheckpointError as error:
            warnings.warn(f"{error}. Training it again.", stacklevel=2)
        return _train(recipe, seed, digits, out_dir, identity, device, progress)


def _seed(seed: int) -> int:
    return train.whole_number("seed", seed, 0, 2**32 - 1)


def _check_model(recipe: AnyRecipe) -> None:
    """ValueError, in one sentence, for a model that could not be scored after its training."""
    model, blank = train.born(recipe.model, 0), torch.zeros(2, 1, 28, 28)
    lacking = [name for name in ("encoder", "decoder", "normalise") if not hasattr(model, name)]
    if lacking:
        raise ValueError(f"the model of recipe {recipe.name!r} has no {', no '.join(lacking)}")
    try:
        codes = train.encode(model, blank)
        if codes.shape != (2, 10):
            raise ValueError(f"codes of 2 images must be [2, 10], not {list(codes.shape)}")
        drawn = train.decode(model, codes)
        if drawn.shape != blank.shape:
            raise ValueError(f"2 decoded codes must be [2, 1, 28, 28], not {list(drawn.shape)}")
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:  # layers that do not fit, a tuple for a code
        raise ValueError(f"the model of recipe {recipe.name!r} cannot be scored: {error}") from error


def _train(
    recipe: AnyRecipe, seed: int, digits: data.Digits, out_dir: Path, identity: dict, device: str, progress: bool
) -> Result:
    """Train from the checkpoint in `out_dir`, if it is of the same run, else from the beginning."""
    for half_written in out_dir.glob(".*.tmp"):  # by a process that was killed
        half_written.unlink()
    path, begin = out_dir / "checkpoint.pt", time.perf_counter()
    kept = None
    try:
        kept = _kept(path, identity)
    except CheckpointError as error:
        warnings.warn(f"{error}. Training from the beginning.", stacklevel=3)
    kept = kept or {"epoch": 0, "state": None, "snapshots": {}, "seconds": 0.0}
    snapshots = kept["snapshots"]

    def seconds() -> float:
        return kept["seconds"] + time.perf_counter() - begin

    def keep(epoch: int, model: nn.Module, state: dict) -> None:
        if epoch in SNAPSHOT_EPOCHS or epoch == recipe.epochs:
            snapshots[epoch] = train.reconstruct(model, digits.test_images[:WATCHED])
        now = {"epoch": epoch, "state": state, "snapshots": snapshots, "seconds": seconds()}
        checkpoint.write(path, {"metrics": identity, **now})

    model, history = recipe.fit(
        digits.train_images, seed, device=device, progress=progress, on_epoch=keep, resume=kept["state"]
    )
    model.cpu().eval()
    metrics = identity | _surroundings() | {"weights": _checksum(model)} | _evaluate(model, digits)
    metrics["loss"] = [row["loss"] for row in history]
    content = {"weights": model.state_dict(), "history": history, "snapshots": snapshots, "seconds": seconds()}
    checkpoint.write(out_dir / "model.pt", {"metrics": metrics, **content})
    files.write(out_dir / "metrics.json", _json(metrics))
    path.unlink()
    return Result(model, history, metrics, snapshots, content["seconds"], out_dir, False, kept["epoch"])


def load(recipe: AnyRecipe, seed: int, digits: data.Digits, out_dir: Path, *, device: str = "auto") -> Result:
    """The finished run in `out_dir`; RunNotFound if it is not there or was made by another recipe, data or code.

    CheckpointError if it is there, and damaged.

    >>> load(POST, 0, data.load("digits"), Path("nowhere"), device="cpu")
    Traceback (most recent call last):
        ...
    mnist_ae.experiment.RunNotFound: no finished run nowhere of this code and data: run notebook 01_train ...
    """
    found = _finished(recipe, Path(out_dir), _identity(recipe, _seed(seed), digits, train.pick_device(device).type))
    if found is None:
        notebook = "05_ten_digits" if recipe == TEN_DIGITS else "01_train"
        raise RunNotFound(
            f"no finished run {Path(out_dir).name} of this code and data: "
            f"run notebook {notebook} with the same parameters first, or `make run-notebooks`, which runs all in order"
        )
    return found


def _identity(recipe: AnyRecipe, seed: int, digits: data.Digits, device: str) -> dict:
    """What must agree for a run to be reused or continued. Code: the files that decide the weights."""

    def plain(value: object) -> object:
        number = train.plain(value)
        if number is value:  # json would find a circle
            raise ValueError(f"recipe {recipe.name!r} must hold numbers, text and tuples, got {value!r}")
        return number

    code = b"".join(Path(module.__file__).read_bytes() for module in (augment, models, losses, train, ten_digits))
    return {
        "recipe": json.loads(json.dumps(asdict(recipe), default=plain)),  # as metrics.json gives it back
        "seed": seed,
        "data": {"name": digits.name, "sha256": digits.checksum},
        "code": hashlib.sha256(code).hexdigest(),
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _surroundings() -> dict:
    """What else metrics.json says of where a run was trained."""
    versions = {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {"versions": {"python": platform.python_version(), **versions}, "commit": _commit()}


def _commit() -> str | None:
    """The commit of this code, followed by "+changes" if mnist_ae/ is not as it was there; None outside of a clone."""

    def git(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *command], cwd=files.HOME, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "HEAD").stdout.strip() if (files.HOME / ".git").exists() else ""
        return head + ("+changes" if git("status", "--porcelain", "mnist_ae").stdout else "") if head else None
    except OSError:  # no git on this machine
        return None


def _checksum(model: nn.Module) -> str:
    """SHA-256 of all weights."""
    weights = (weight.detach().contiguous().numpy().tobytes() for weight in model.state_dict().values())
    return hashlib.sha256(b"".join(weights)).hexdigest()


def _json(metrics: dict) -> bytes:
    return (json.dumps(metrics, indent=1) + "\n").encode()


def _kept(path: Path, identity: dict) -> dict | None:
    """The content of a checkpoint of this run; None where there is none, or another's; CheckpointError: damaged."""
    try:
        content = checkpoint.read(path)
    except OSError:
        return None
    metrics = content.get("metrics")
    same = isinstance(metrics, dict) and {key: metrics.get(key) for key in identity} == identity
    return content if same else None


def _finished(recipe: AnyRecipe, folder: Path, identity: dict) -> Result | None:
    """The finished run in `folder`, None where there is none or another's; CheckpointError where it is damaged."""
    try:
        written = (folder / "metrics.json").read_bytes()
    except OSError:
        return None
    kept = _kept(folder / "model.pt", identity)
    if kept is None or written != _json(kept["metrics"]):
        return None
    model = recipe.model().eval()
    checkpoint.load_weights(model, kept.get("weights"), folder / "model.pt")
    return Result(model, kept["history"], kept["metrics"], kept["snapshots"], kept["seconds"], folder, reused=True)


def _evaluate(model: nn.Module, digits: data.Digits) -> dict:
    train_matrix = confusion.confusion_matrix(digits.train_labels, train.encode(model, digits.train_images))
    test_matrix = confusion.confusion_matrix(digits.test_labels, train.encode(model, digits.test_images))
    return {
        "accuracy": confusion.scores(train_matrix, test_matrix),
        "dead_neurons": confusion.dead_neurons(test_matrix),
        "train_matrix": train_matrix.tolist(),
        "test_matrix": test_matrix.tolist(),
    }


def sweep(
    recipes: Iterable[AnyRecipe],
    seeds: Iterable[int],
    executor: Executor | None = None,
    *,
    dataset: str = "auto",
    table: str = "sweep",
    device: str = "auto",
) -> pd.DataFrame:
    """Run each recipe with each seed, one thread each, on the workers of `executor`; one row a run.

    executor: any of `concurrent.futures`, which stays open; by default those of `workers`. A worker reads the data set
    by its name and keeps its runs where `files.runs_folder` is there: what it finds finished it does not run again.
    Rows go to `figures/TABLE.csv` here as they finish, in place of earlier ones of the same recipe, epochs and seed.
    What a run raises is raised here, an interrupt too: no other run begins, and those of `workers` end at once; their
    checkpoints stay. ValueError for a recipe that only this notebook knows, where the workers are processes.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(1) as pool:
    ...     table = sweep([Recipe("brief", epochs=1)], range(2), pool, dataset="digits", device="cpu")
    >>> table[["recipe", "seed", "threads"]].values.tolist()
    [['brief', 0, 1], ['brief', 1, 1]]
    """
    recipes, seeds = list(recipes), [_seed(seed) for seed in seeds]
    for recipe in recipes if executor is None and not os.environ.get("DASK_SCHEDULER") else []:
        _check_importable(recipe)
    dataset = data.load(dataset).name  # downloads it, if need be, before many workers would
    rows, path = read_table(table, dataset), _table_path(table, dataset)
    key = ["recipe", "epochs", "seed"]
    with nullcontext(executor) if executor else workers() as pool:
        running = [pool.submit(_sweep_row, recipe, seed, dataset, device) for recipe in recipes for seed in seeds]
        try:
            for job in tqdm(as_completed(running), total=len(running), unit=" runs"):
                rows = (
                    pd.concat([rows, pd.DataFrame([job.result()])]).drop_duplicates(key, keep="last").sort_values(key)
                )
                files.write(path, rows.to_csv(index=False, float_format="%.6g").encode())
        except BrokenExecutor as error:
            raise BrokenExecutor(
                "a worker process ended: killed, out of memory, or the script that calls sweep does so at each import "
                'and not under `if __name__ == "__main__":`'
            ) from error
        finally:
            for job in running:
                job.cancel()
    return rows


def _check_importable(recipe: AnyRecipe) -> None:
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
    left by an exception, or this process is killed. Raises ModuleNotFoundError without the extra `cluster`, OSError
    where no scheduler answers.

    >>> with workers() as pool:
    ...     pool.submit(pow, 2, 10).result()
    1024
    """
    if address := os.environ.get("DASK_SCHEDULER"):
        from distributed import Client

        with Client(address, timeout=SCHEDULER_TIMEOUT) as client:
            yield client.get_executor()
        return
    context = get_context("spawn")
    line, alive = context.Pipe(duplex=False)  # nothing is sent: it ends when `alive` is closed, or with this process
    with line, alive, ProcessPoolExecutor(os.cpu_count(), context, initializer=_end_with, initargs=(line,)) as pool:
        try:
            yield pool
        except BaseException:
            alive.close()
            raise


def _end_with(line: Connection) -> None:
    """Of a worker: end when the line to the parent does, else it would train on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the parent decides
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which would outlive a process that ends like this

    def wait() -> None:
        line.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def read_table(table: str, dataset: str) -> pd.DataFrame:
    """What `sweep` has left in this table for a data set ("ten_digits", "seeds" and "ladder" by make); else empty.

    >>> read_table("never made", "MNIST").empty
    True
    """
    path = _table_path(table, dataset)
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def _table_path(table: str, dataset: str) -> Path:
    return files.figures_folder(dataset) / f"{table}.csv"


_ONE_RUN = threading.Lock()  # of a process: torch's random numbers and threads are the process's


def _sweep_row(recipe: AnyRecipe, seed: int, dataset: str, device: str) -> dict:
    with _ONE_RUN:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            digits = data.load(dataset)
            folder = files.runs_folder() / "sweep" / run_folder(recipe, seed, digits).name
            result = run(recipe, seed, digits, folder, device=device, progress=False)
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


def check_parameters(*, epochs: int, seed: int, device: str, threads: int) -> tuple[int, int, int]:
    """Refuse what a run cannot use with a ValueError that names the parameter and its range; set the threads.

    Returns epochs, seed and threads as Python's whole numbers, whatever gave them: 20.0 from a YAML file, or NumPy's.
    In a notebook that papermill runs, a parameter that no notebook has is refused too; papermill only warns of it.

    >>> check_parameters(epochs=0, seed=0, device="cpu", threads=1)
    Traceback (most recent call last):
        ...
    ValueError: epochs must be a whole number from 1 to 10,000, got 0
    """
    epochs, seed = train.whole_number("epochs", epochs, 1, 10_000), _seed(seed)
    threads = train.whole_number("threads", threads, 1, 256)
    if threads > train.THREAD_LIMIT:
        raise ValueError(f"threads is {threads}, above OMP_THREAD_LIMIT={train.THREAD_LIMIT}: choose fewer threads")
    train.pick_device(device)
    known = ("dataset", "epochs", "seed", "device", "threads")
    if unknown := [name for name in _set_by_papermill() if name not in known and not name.startswith("PAPERMILL_")]:
        raise ValueError(f"unknown parameter {', '.join(unknown)}: choose among {', '.join(known)}")
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's and scikit-learn's: other threads, other rounding
    return epochs, seed, threads


def _set_by_papermill() -> list[str]:
    """The names that papermill set, in the cell that it put after the notebook's own parameters."""
    shell = get_ipython()
    cells = shell.user_ns["In"] if shell else []
    lines = [line for cell in cells if cell.startswith("# Parameters\n") for line in ast.parse(cell).body]
    return [target.id for line in lines if isinstance(line, ast.Assign) for target in line.targets]
