"""A recipe and a seed -> a result on disk, trained once."""

import hashlib
import inspect
import json
import platform
import re
import subprocess
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from types import CodeType

import torch
from torch import Tensor, nn

from mnist_ae import augment, checks, confusion, data, losses, models, pseudo_labels, recipes, storage, train
from mnist_ae.pretrained import FOLDER, NAME, from_bytes, read
from mnist_ae.pretrained import pretrained as pretrained
from mnist_ae.pretrained import publish as publish
from mnist_ae.recipes import Recipe
from mnist_ae.storage import CheckpointError

CODE = (augment, losses, models, pseudo_labels, recipes, train)  # what decides the weights
WATCHED = 20  # the first test images, whose reconstructions are kept as training goes on


@dataclass(frozen=True)
class Result:
    """A finished run.

    model: trained, on the CPU. history, snapshots, seconds: see `train.Trainer`. metrics: what metrics.json holds.
    reused: True if it was loaded, False if this call trained it; continued: the epochs that this call found trained.
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
        """Whether this call trained the run or found it trained, and how long that training took."""
        how = f"continued after epoch {self.continued}" if self.continued else "trained now"
        took = f"about {self.seconds / 60:.0f} min" if self.seconds >= 60 else "less than a minute"
        return f"{'already trained' if self.reused else how} ({took}): {self.folder.name}"


def run_folder(recipe: Recipe, seed: int, digits: data.Digits) -> Path:
    """Where the notebooks keep this run. ValueError for a recipe's name that makes no folder's.

    >>> run_folder(recipes.POST, 0, data.load("digits")).name
    'post-digits-20-epochs-seed-0'
    """
    if not re.fullmatch(r"\w[\w.-]*", recipe.name):
        raise ValueError(f"a recipe's name must be letters, digits, _, - and dots, got {recipe.name!r}")
    return storage.runs_folder() / f"{recipe.name}-{digits.name}-{recipe.epochs}-epochs-seed-{checks.seed(seed)}"


def run(
    recipe: Recipe, seed: int, digits: data.Digits, out_dir: Path, *, device: str = "auto", progress: bool = True
) -> Result:
    """Train the recipe's model from `seed` on the training images, score it, and leave it in the folder `out_dir`.

    Labels enter after training only, to score. Writes model.pt (weights, history, snapshots, metrics) and metrics.json.
    A run that is finished there is loaded instead where recipe, seed, data, code, torch, threads and device all agree;
    one that was interrupted, by whatever means, goes on from checkpoint.pt and ends with the same weights, bit for bit.
    If another process is at work in the folder, this one waits.

    Raises ValueError, before the first step, for a seed that cannot be and for a model whose code is not ten numbers,
    and after it for stages of other epochs than the recipe says; TypeError for a `train` that returns no model;
    FloatingPointError (see `train.Trainer.fit`) and OSError where a file cannot be written: both leave the checkpoint
    of the epoch before. Warns of a checkpoint that is damaged, and trains again.

    >>> brief, digits = recipes.Post("brief", epochs=1), data.load("digits")
    >>> run(brief, 0, digits, Path("runs", "brief"), device="cpu", progress=False).reused
    False
    >>> run(brief, 0, digits, Path("runs", "brief"), device="cpu").reused
    True
    """
    out_dir, device, seed = Path(out_dir), checks.device(device).type, checks.seed(seed)
    identity = _identity(recipe, seed, digits, device)
    with suppress(CheckpointError):
        if found := _finished(recipe, out_dir, identity):
            return found  # without the lock: the folder may be read-only
    _check_model(recipe)
    with storage.one_process_at_a_time(out_dir):
        try:
            if found := _finished(recipe, out_dir, identity):  # by the one that this one waited for
                return found
        except CheckpointError as error:
            warnings.warn(f"{error}. Training it again.", stacklevel=2)
        for half_written in out_dir.glob(".*.tmp"):  # by a process that was killed
            half_written.unlink()
        options = {"device": device, "progress": progress, "epochs": recipe.epochs, "identity": identity}
        watched, checkpoint = digits.test_images[:WATCHED], out_dir / "checkpoint.pt"
        with train.Trainer(seed, checkpoint=checkpoint, watched=watched, **options) as trainer:
            model = recipe.train(trainer, digits.train_images)
            if not isinstance(model, nn.Module):
                raise TypeError(f"train of recipe {recipe.name!r} must return the trained model, got {model!r}")
            model = model.cpu().eval()
        if (trained := len(trainer.history)) != recipe.epochs:
            message = f"recipe {recipe.name!r} has {recipe.epochs} epochs, and {trained} were trained"
            raise ValueError(f"{message}: each stage needs a name of its own")
        metrics = identity | _surroundings() | {"weights": _checksum(model)} | _evaluate(model, digits)
        metrics["stages"] = {stage: _best(digits.train_labels, codes) for stage, codes in trainer.notes.items()}
        metrics["loss"] = [row["loss"] for row in trainer.history]
        kept = {"history": trainer.history, "snapshots": trainer.snapshots, "seconds": trainer.seconds}
        storage.save(out_dir / "model.pt", {"metrics": metrics, "weights": model.state_dict(), **kept})
        storage.write(out_dir / "metrics.json", _json(metrics))
        checkpoint.unlink()
        return Result(model, metrics=metrics, folder=out_dir, reused=False, continued=trainer.continued, **kept)


def committed(recipe: Recipe, seed: int, digits: data.Digits) -> Result | None:
    """The run that the committed weights are of, without snapshots; None where it is of another recipe, seed, data or
    code, or there are none. CheckpointError where they are damaged.
    """
    identity = _identity(recipe, checks.seed(seed), digits, "cpu")
    with suppress(FileNotFoundError):
        content, metrics = read()
        if all(metrics[name] == identity[name] for name in ("recipe", "seed", "data", "code")):
            kept = {"history": metrics.pop("history"), "seconds": metrics.pop("seconds")}
            model, path = from_bytes(content), FOLDER / NAME
            return Result(model, metrics=metrics, snapshots={}, folder=path, reused=True, **kept)
    return None


def _check_model(recipe: Recipe) -> None:
    """ValueError, in one sentence, for a model that could not be scored after its training."""
    blank = torch.zeros(2, 1, 28, 28)
    try:
        model = models.initialise(recipe.model, 0)
        codes = train.encode(model, blank)
        if codes.shape != (2, 10):
            raise ValueError(f"codes of 2 images must be [2, 10], not {list(codes.shape)}")
        decoded = train.decode(model, codes)
        if decoded.shape != blank.shape:
            raise ValueError(f"2 decoded codes must be [2, 1, 28, 28], not {list(decoded.shape)}")
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:  # layers that do not fit, no encoder at all
        raise ValueError(f"the model of recipe {recipe.name!r} cannot be scored: {error}") from error


def _identity(recipe: Recipe, seed: int, digits: data.Digits, device: str) -> dict:
    """What must agree for a run to be reused or continued."""

    def plain(value: object) -> object:
        if getattr(value, "ndim", None) == 0:  # NumPy's, or torch's
            return value.item()
        raise ValueError(f"recipe {recipe.name!r} must hold numbers, text and tuples, got {value!r}")

    if not is_dataclass(recipe):
        raise ValueError(f"a recipe must be a dataclass, got {recipe!r}")
    code = b"".join(Path(module.__file__).read_bytes() for module in CODE)
    own = [kind for kind in type(recipe).__mro__ if kind.__module__ not in ("builtins", recipes.__name__)]
    methods = [method.__code__ for kind in own for method in vars(kind).values() if inspect.isfunction(method)]
    code += "".join(sorted(map(_instructions, methods))).encode()  # a worker process has them in another order
    return {
        "recipe": json.loads(json.dumps(asdict(recipe), default=plain)),  # as metrics.json gives it back
        "seed": seed,
        "data": {"name": digits.name, "sha256": digits.checksum},
        "code": hashlib.sha256(code).hexdigest(),
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _instructions(code: CodeType) -> str:
    """A function, wherever it stands: a recipe of one's own is trained anew when a method of it changes."""

    def told(constant: object) -> str:
        if isinstance(constant, frozenset):  # in no order
            return repr(sorted(constant, key=repr))
        return _instructions(constant) if isinstance(constant, CodeType) else repr(constant)

    return f"{code.co_name} {code.co_code.hex()} {code.co_names} {[*map(told, code.co_consts)]}"


def _surroundings() -> dict:
    """What else metrics.json says of where a run was trained: versions, and the commit of this code, followed by
    "+changes" if mnist_ae/ is not as it was there; None outside of a clone.
    """

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=storage.HOME, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = None
    with suppress(OSError):  # no git on this machine
        if (storage.HOME / ".git").exists() and (head := git("rev-parse", "HEAD")):
            commit = head + "+changes" * bool(git("status", "--porcelain", "mnist_ae"))
    versions = {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {"versions": {"python": platform.python_version(), **versions}, "commit": commit}


def _checksum(model: nn.Module) -> str:
    """SHA-256 of all weights."""
    weights = (weight.detach().contiguous().numpy().tobytes() for weight in model.state_dict().values())
    return hashlib.sha256(b"".join(weights)).hexdigest()


def _json(metrics: dict) -> bytes:
    return (json.dumps(metrics, indent=1) + "\n").encode()


def _finished(recipe: Recipe, folder: Path, identity: dict) -> Result | None:
    """The finished run in `folder`, None where there is none or another's; CheckpointError where it is damaged."""
    path = folder / "model.pt"
    try:
        written, kept = (folder / "metrics.json").read_bytes(), storage.load(path)
    except OSError:
        return None
    metrics = kept.pop("metrics", None)
    if not isinstance(metrics, dict) or not identity.items() <= metrics.items() or written != _json(metrics):
        return None
    model = recipe.model().eval()
    try:
        model.load_state_dict(kept.pop("weights", None))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is of another architecture: {' '.join(str(error).split())}") from error
    return Result(model, metrics=metrics, folder=folder, reused=True, **kept)


def _best(labels: Tensor, codes: Tensor) -> float:
    """Accuracy with the best one-to-one mapping, on the images that it was fitted on."""
    matrix = confusion.confusion_matrix(labels, codes)
    return confusion.scores(matrix, matrix)["one_to_one"]


def _evaluate(model: nn.Module, digits: data.Digits) -> dict:
    train_matrix = confusion.confusion_matrix(digits.train_labels, train.encode(model, digits.train_images))
    test_matrix = confusion.confusion_matrix(digits.test_labels, train.encode(model, digits.test_images))
    return {
        "accuracy": confusion.scores(train_matrix, test_matrix),
        "dead_neurons": confusion.dead_neurons(test_matrix),
        "train_matrix": train_matrix.tolist(),
        "test_matrix": test_matrix.tolist(),
    }
