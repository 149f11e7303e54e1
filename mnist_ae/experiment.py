"""A recipe and a seed -> a result on disk, trained once; and many of them at once."""

import argparse
import hashlib
import json
import os
import pickle
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mnist_ae import confusion, data, files, models, train


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run but its seed and its images; the defaults are the post's 20-epoch run."""

    name: str = "post"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.5
    activations: bool = True


POST = Recipe()

WATCHED = 20  # the first test images, whose reconstructions are kept as training goes on
SNAPSHOT_EPOCHS = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}  # and the last


@dataclass(frozen=True)
class Result:
    """A finished run.

    model: trained, on the CPU. history: what `train.fit` returned. metrics: what metrics.json holds. snapshots:
    {epoch: float32 [20, 1, 28, 28]}, the reconstructions of the first 20 test images, in the model's normalised units.
    reused: True if it was loaded, False if it was trained by this call.
    """

    model: nn.Module
    history: list[dict]
    metrics: dict
    snapshots: dict[int, Tensor]
    folder: Path
    reused: bool

    @property
    def origin(self) -> str:
        """Whether this call trained the run or found it finished, and how long its training took."""
        minutes = sum(row["seconds"] for row in self.history) / 60
        return f"{'found finished' if self.reused else 'trained now'} in {minutes:.1f} min: {self.folder.name}"


class RunNotFound(FileNotFoundError):
    """No finished run of this recipe, seed, data and code; the message says how to get it."""


def run_folder(recipe: Recipe, seed: int, digits: data.Digits) -> Path:
    """Where the notebooks keep this run."""
    return files.runs_folder() / f"{recipe.name}-{digits.name}-{recipe.epochs}-epochs-seed-{seed}"


def run(
    recipe: Recipe, seed: int, digits: data.Digits, out_dir: Path, *, device: str = "auto", progress: bool = True
) -> Result:
    """Train the recipe's model from `seed` on the training images, score it, and leave it in the folder `out_dir`.

    Labels enter after training only, to score. Writes model.pt (weights, history, snapshots) and, last, metrics.json. A
    run that is finished there is loaded instead where recipe, seed, data, code, torch, threads and device all agree.
    """
    out_dir, device = Path(out_dir), train.pick_device(device).type
    identity = _identity(recipe, seed, digits, device)
    if found := _finished(out_dir, identity):
        return found

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.PostAutoencoder(recipe.activations)
    snapshots = {}

    def keep_snapshot(epoch: int, model: nn.Module) -> None:
        if epoch in SNAPSHOT_EPOCHS or epoch == recipe.epochs:
            snapshots[epoch] = train.reconstruct(model, digits.test_images[:WATCHED])

    history = train.fit(
        model,
        digits.train_images,
        epochs=recipe.epochs,
        seed=seed,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        momentum=recipe.momentum,
        device=device,
        progress=progress,
        on_epoch=keep_snapshot,
    )
    metrics = identity | _evaluate(model, digits) | {"loss": [row["loss"] for row in history]}
    model.cpu().eval()
    (out_dir / "metrics.json").unlink(missing_ok=True)  # of another recipe or code: never beside the new weights
    with files.replacing(out_dir / "model.pt") as path:
        torch.save({"weights": model.state_dict(), "history": history, "snapshots": snapshots}, path)
    with files.replacing(out_dir / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1) + "\n")
    return Result(model, history, metrics, snapshots, out_dir, reused=False)


def load(recipe: Recipe, seed: int, digits: data.Digits, out_dir: Path, *, device: str = "auto") -> Result:
    """The finished run in `out_dir`; RunNotFound if it is not there or was made by another recipe, data or code."""
    found = _finished(Path(out_dir), _identity(recipe, seed, digits, train.pick_device(device).type))
    if found is None:
        raise RunNotFound(
            f"no finished run {Path(out_dir).name} of this code and data: "
            "run notebook 01_train with the same parameters first, or `make run-notebooks`, which runs all in order"
        )
    return found


def _identity(recipe: Recipe, seed: int, digits: data.Digits, device: str) -> dict:
    """What must agree for a finished run to be reused. Code: the files that decide the weights."""
    code = b"".join(Path(module.__file__).read_bytes() for module in (models, train))
    return {
        "recipe": asdict(recipe),
        "seed": seed,
        "data": {"name": digits.name, "sha256": digits.checksum},
        "code": hashlib.sha256(code).hexdigest(),
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _finished(folder: Path, identity: dict) -> Result | None:
    """The finished run in `folder`, or None where there is none, it is another's, or it cannot be read."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        if {key: metrics.get(key) for key in identity} != identity:
            return None
        kept = torch.load(folder / "model.pt", weights_only=True)
        model = models.PostAutoencoder(metrics["recipe"]["activations"]).eval()
        model.load_state_dict(kept["weights"])
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return Result(model, kept["history"], metrics, kept["snapshots"], folder, reused=True)


def _evaluate(model: nn.Module, digits: data.Digits) -> dict:
    train_matrix = confusion.confusion_matrix(digits.train_labels, train.encode(model, digits.train_images))
    test_matrix = confusion.confusion_matrix(digits.test_labels, train.encode(model, digits.test_images))
    return {
        "accuracy": confusion.scores(train_matrix, test_matrix),
        "dead_neurons": confusion.dead_neurons(test_matrix),
        "train_matrix": train_matrix.tolist(),
        "test_matrix": test_matrix.tolist(),
    }


def sweep(recipe: Recipe, seeds: list[int], digits: data.Digits, *, device: str = "auto") -> pd.DataFrame:
    """Run the recipe for each seed, one thread each and as many at once as there are cores; one row a seed.

    Rows go to `figures/seeds.csv` as they finish, in place of earlier ones of the same recipe, epochs and seed.
    """
    rows, table = seeds_table(digits.name), _seeds_csv(digits.name)
    key = ["recipe", "epochs", "seed"]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        jobs = [pool.submit(_sweep_row, recipe, seed, digits.name, device) for seed in seeds]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit=" seeds"):
            rows = pd.concat([rows, pd.DataFrame([job.result()])]).drop_duplicates(key, keep="last").sort_values(key)
            with files.replacing(table) as path:
                rows.to_csv(path, index=False, float_format="%.6g")
    return rows


def seeds_table(dataset: str) -> pd.DataFrame:
    """What `make sweep` has left for a data set: one row a seed; empty where it never ran."""
    table = _seeds_csv(dataset)
    return pd.read_csv(table) if table.exists() else pd.DataFrame()


def _seeds_csv(dataset: str) -> Path:
    return files.figures_folder(dataset) / "seeds.csv"


def _sweep_row(recipe: Recipe, seed: int, dataset: str, device: str) -> dict:
    digits = data.load(dataset)
    folder = files.runs_folder() / "sweep" / run_folder(recipe, seed, digits).name
    result = run(recipe, seed, digits, folder, device=device, progress=False)
    return {
        "recipe": recipe.name,
        "epochs": recipe.epochs,
        "seed": seed,
        **result.metrics["accuracy"],
        "dead_neurons": len(result.metrics["dead_neurons"]),
        "loss": result.history[-1]["loss"],
        "seconds": round(sum(row["seconds"] for row in result.history)),
        **{name: result.metrics[name] for name in ("threads", "device", "torch")},
    }


def check_parameters(*, epochs: int, seed: int, device: str, threads: int) -> None:
    """Refuse what a run cannot use with a ValueError that names the parameter and its range; set torch's threads."""
    train.whole_number("epochs", epochs, 1, 10_000)
    train.whole_number("seed", seed, 0, 2**32 - 1)
    train.whole_number("threads", threads, 1, 256)
    train.pick_device(device)
    torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> None:
    """`python -m mnist_ae.experiment check|sweep`, called by the Makefile."""
    parser = argparse.ArgumentParser(prog="python -m mnist_ae.experiment", description=__doc__)
    parser.add_argument("task", choices=["check", "sweep"], help="check: print the data set that a run would use")
    for name, default in {"dataset": "auto", "epochs": "20", "seed": "0", "device": "auto", "threads": "2"}.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seeds", default="5", help="sweep: how many, counted from 0")
    options = parser.parse_args(arguments)
    numbers = {
        name: int(text) if text.isdigit() else text
        for name, text in vars(options).items()
        if name in ("epochs", "seed", "threads", "seeds")
    }
    try:
        seeds = range(train.whole_number("seeds", numbers.pop("seeds"), 1, 1000))
        check_parameters(device=options.device, **numbers)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            digits = data.load(options.dataset)
        for warning in caught:
            print(f"\n{'*' * 100}\n{warning.message}\n{'*' * 100}\n", file=sys.stderr)
    except (ValueError, data.DataError) as error:
        sys.exit(f"error: {error}")
    if options.task == "check":
        print(digits.name)
    else:
        rows = sweep(replace(POST, epochs=numbers["epochs"]), list(seeds), digits, device=options.device)
        print(rows.to_string(index=False))


if __name__ == "__main__":
    main()
