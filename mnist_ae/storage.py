"""Where a run's files go; files written whole or not at all, one process at a time; checkpoints that run no code."""

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The repository when the package is installed from it (pip install -e), else wherever the user works.
_SOURCE = Path(__file__).resolve().parents[1]
HOME = _SOURCE if (_SOURCE / "pyproject.toml").exists() else Path.cwd()


class CheckpointError(RuntimeError):
    """A file that is no intact checkpoint, or one of another architecture; the message names the path and the fault."""


def named(folder: str) -> Path:
    """A folder as people name it in the environment: ~ is their home, what is relative counts from the repository.

    >>> named("some/where") == HOME / "some" / "where"
    True
    """
    path = Path(folder)
    with suppress(RuntimeError):  # ~somebody who is no user here: a name like any other
        path = path.expanduser()
    return HOME / path


def runs_folder() -> Path:
    """Checkpoints and executed notebooks: $MNIST_AE_OUT/runs, by default `runs/` in the repository."""
    return named(os.environ.get("MNIST_AE_OUT", "")) / "runs"


def figures_folder(dataset: str) -> Path:
    """Figures and tables: `figures/` for MNIST, `figures/NAME/` for others, so that MNIST's stay as they are."""
    return named(os.environ.get("MNIST_AE_OUT", "")) / "figures" / ("" if dataset == "MNIST" else dataset)


def clean() -> None:
    """Delete what the project wrote into `runs_folder()`, and folders that this leaves empty; nothing behind a link.

    SystemExit where that folder is itself a link. `make clean` calls it with any Python from 3.9 on, no package needed.
    """
    runs = runs_folder()
    if runs.is_symlink():
        sys.exit(f"error: {runs} is a link to {runs.readlink()}: delete by hand what lies there")
    written = ["parameters", "parameters.new", "make.pid", "screenshots/*.png", "numba/*/*.nb[ci]"]
    for name in ("model.pt", "checkpoint.pt", "metrics.json", ".lock", ".*.tmp"):
        written += [f"{run}-epochs-seed-[0-9]*/{name}" for run in ("*", "sweep/*")]
    for notebook in HOME.glob("notebooks/*.ipynb"):
        written += [
            f"notebooks/{before}{notebook.stem}{after}.ipynb" for before in ("", ".") for after in ("", ".failed")
        ]
    for path in [path for pattern in written for path in runs.glob(pattern)]:
        inside = path.parent.relative_to(runs)
        if path.parent.resolve() == runs.resolve() / inside and not path.is_dir():
            path.unlink()
            for folder in (inside, *inside.parents):  # up to `runs` itself
                with suppress(OSError):  # not empty
                    (runs / folder).rmdir()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, folders included: beside its place first, then moved there in one step.

    Raises OSError (no space left, no permission) with the path; what was there before is then as it was. A process that
    is killed at the wrong moment leaves `.NAME.PROCESS.tmp` behind, and nothing that carries the name itself.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut after the move could leave an empty file
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt, too
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = f"not written ({error.strerror}), what was there before is as it was"
        raise OSError(error.errno, reason, str(path)) from error


@contextmanager
def one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Hold `folder` for the block; where another process trains in it, say so on stderr and wait.

    The lock is the operating system's, on the file `.lock` in the folder: it ends with its process, however that ends.
    Raises OSError where the folder cannot be made or written to.
    """
    from filelock import FileLock, Timeout  # here, so that `clean` needs nothing installed

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is training in {folder}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def save(path: Path, content: dict) -> None:
    """Write tensors and plain values, NumPy's numbers as Python's; OSError as for `write`.

    >>> import torch
    >>> save(Path("model.pt"), {"weights": torch.zeros(2), "epoch": 1})
    >>> load(Path("model.pt"))
    {'weights': tensor([0., 0.]), 'epoch': 1}
    """
    import torch

    buffer = io.BytesIO()
    torch.save(_plain(content), buffer)
    write(path, buffer.getvalue())


def _plain(value: object) -> object:
    """As `load` reads it: a learning rate of NumPy's is in an optimizer's state."""
    if type(value) is dict:
        return {key: _plain(inner) for key, inner in value.items()}
    if type(value) is list:
        return [_plain(inner) for inner in value]
    return value.item() if type(value).__module__ == "numpy" and value.ndim == 0 else value


def load(path: Path) -> dict:
    """What `save` wrote, on the CPU. CheckpointError for a file that is damaged, or that holds code: it is not run.

    torch.load does not look at the checksums that torch.save leaves (a checkpoint is a zip file), and would take a
    changed byte for a changed weight; so they are compared here. OSError where the file cannot be read.
    """
    import torch

    content = io.BytesIO(path.read_bytes())
    try:
        if damaged := zipfile.ZipFile(content).testzip():
            raise ValueError(f"the checksum of {damaged} in it is wrong")
        content.seek(0)
        found = torch.load(content, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values: refused, none of it was run"
        ) from error
    except Exception as error:  # damaged bytes raise what they like
        raise CheckpointError(f"{path} is damaged, or no checkpoint: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not a checkpoint")
    return found
