"""A recipe and a seed -> a result on disk, trained once; and many of them at once."""

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mnist_ae import augment, confusion, data, files, losses, models, ten_digits, train


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

    def model(self) -> nn.Module:
        return models.PostAutoencoder(self.activations, self.reachable)

    def fit(
        self,
        images: Tensor,
        seed: int,
        *,
        device: str,
        progress: bool,
        on_epoch: Callable[[int, nn.Module], None] | None = None,
    ) -> tuple[nn.Module, list[dict]]:
        """images: uint8 [N, 1, 28, 28] -> a model trained from the weights of `seed`, and what `train.fit` returns."""
        model = ten_digits.born(self.model, seed)
        options = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr", "momentum")}
        history = train.fit(model, images, seed=seed, device=device, progress=progress, on_epoch=on_epoch, **options)
        return model, history


AnyRecipe = Recipe | ten_digits.Start | ten_digits.Recipe
POST = Recipe()
TEN_DIGITS = ten_digits.Recipe()

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


def run_folder(recipe: AnyRecipe, seed: int, digits: data.Digits) -> Path:
    """Where the notebooks keep this run."""
    return files.runs_folder() / f"{recipe.name}-{digits.name}-{recipe.epochs}-epochs-seed-{seed}"


def run(
    recipe: AnyRecipe, seed: int, digits: data.Digits, out_dir: Path, *, device: str = "auto", progress: bool = True
) -> Result:
    """Train the recipe's model from `seed` on the training images, score it, and leave it in the folder `out_dir`.

    Labels enter after training only, to score. Writes model.pt (weights, history, snapshots) and, last, metrics.json. A
    run that is finished there is loaded instead where recipe, seed, data, code, torch, threads and device all agree.
    """
    out_dir, device = Path(out_dir), train.pick_device(device).type
    identity = _identity(recipe, seed, digits, device)
    if found := _finished(recipe, out_dir, identity):
        return found

    snapshots = {}

    def keep_snapshot(epoch: int, model: nn.Module) -> None:
        if epoch in SNAPSHOT_EPOCHS or epoch == recipe.epochs:
            snapshots[epoch] = train.reconstruct(model, digits.test_images[:WATCHED])

    begin = time.perf_counter()
    model, history = recipe.fit(digits.train_images, seed, device=device, progress=progress, on_epoch=keep_snapshot)
    metrics = identity | _evaluate(model, digits)
    metrics |= {"loss": [row["loss"] for row in history], "seconds": time.perf_counter() - begin}
    model.cpu().eval()
    (out_dir / "metrics.json").unlink(missing_ok=True)  # of another recipe or code: never beside the new weights
    with files.replacing(out_dir / "model.pt") as path:
        torch.save({"weights": model.state_dict(), "history": history, "snapshots": snapshots}, path)
    with files.replacing(out_dir / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1) + "\n")
    return Result(model, history, metrics, snapshots, out_dir, reused=False)


def load(recipe: AnyRecipe, seed: int, digits: data.Digits, out_dir: Path, *, device: str = "auto") -> Result:
    """The finished run in `out_dir`; RunNotFound if it is not there or was made by another recipe, data or code."""
    found = _finished(recipe, Path(out_dir), _identity(recipe, seed, digits, train.pick_device(device).type))
    if found is None:
        raise RunNotFound(
            f"no finished run {Path(out_dir).name} of this code and data: "
            "run notebook 01_train with the same parameters first, or `make run-notebooks`, which runs all in order"
        )
    return found


def _identity(recipe: AnyRecipe, seed: int, digits: data.Digits, device: str) -> dict:
    """What must agree for a finished run to be reused. Code: the files that decide the weights."""
    code = b"".join(Path(module.__file__).read_bytes() for module in (augment, models, losses, train, ten_digits))
    return {
        "recipe": json.loads(json.dumps(asdict(recipe))),  # as metrics.json gives it back
        "seed": seed,
        "data": {"name": digits.name, "sha256": digits.checksum},
        "code": hashlib.sha256(code).hexdigest(),
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _finished(recipe: AnyRecipe, folder: Path, identity: dict) -> Result | None:
    """The finished run in `folder`, or None where there is none, it is another's, or it cannot be read."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        if {key: metrics.get(key) for key in identity} != identity:
            return None
        kept = torch.load(folder / "model.pt", weights_only=True)
        model = recipe.model().eval()
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


def sweep(
    jobs: list[tuple[AnyRecipe, int]], digits: data.Digits, *, table: str = "seeds", device: str = "auto"
) -> pd.DataFrame:
    """Run each (recipe, seed), one thread each and as many at once as there are cores; one row a job.

    Rows go to `figures/TABLE.csv` as they finish, in place of earlier ones of the same recipe, epochs and seed.
    """
    rows, path = read_table(table, digits.name), _table_path(table, digits.name)
    key = ["recipe", "epochs", "seed"]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = [pool.submit(_sweep_row, recipe, seed, digits.name, device) for recipe, seed in jobs]
        for job in tqdm(as_completed(running), total=len(running), unit=" runs"):
            rows = pd.concat([rows, pd.DataFrame([job.result()])]).drop_duplicates(key, keep="last").sort_values(key)
            with files.replacing(path) as temporary:
                rows.to_csv(temporary, index=False, float_format="%.6g")
    return rows


def read_table(table: str, dataset: str) -> pd.DataFrame:
    """What `make sweep` ("seeds") or `make ladder` ("ladder") has left for a data set; empty where it never ran."""
    path = _table_path(table, dataset)
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def _table_path(table: str, dataset: str) -> Path:
    return files.figures_folder(dataset) / f"{table}.csv"


def _sweep_row(recipe: AnyRecipe, seed: int, dataset: str, device: str) -> dict:
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
        "seconds": round(result.metrics["seconds"]),
        **{name: result.metrics[name] for name in ("threads", "device", "torch")},
    }


def check_parameters(*, epochs: int, seed: int, device: str, threads: int) -> None:
    """Refuse what a run cannot use with a ValueError that names the parameter and its range; set torch's threads."""
    train.whole_number("epochs", epochs, 1, 10_000)
    train.whole_number("seed", seed, 0, 2**32 - 1)
    train.whole_number("threads", threads, 1, 256)
    train.pick_device(device)
    torch.set_num_threads(threads)
