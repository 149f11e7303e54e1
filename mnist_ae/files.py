"""Where a run's files go; writing them whole or not at all; one process at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The repository when the package is installed from it (pip install -e), else wherever the user works.
_SOURCE = Path(__file__).resolve().parents[1]
HOME = _SOURCE if (_SOURCE / "pyproject.toml").exists() else Path.cwd()


def runs_folder() -> Path:
    """Checkpoints and executed notebooks: $MNIST_AE_OUT/runs, by default `runs/` in the repository.

    >>> runs_folder().name
    'runs'
    """
    return _out() / "runs"


def figures_folder(dataset: str) -> Path:
    """What the notebooks draw: `figures/` for MNIST, `figures/NAME/` for others, so that MNIST's stay as they are.

    >>> figures_folder("MNIST").name, figures_folder("digits").name
    ('figures', 'digits')
    """
    return _out() / "figures" / ("" if dataset == "MNIST" else dataset)


def _out() -> Path:
    return named(os.environ.get("MNIST_AE_OUT", ""))


def named(folder: str) -> Path:
    """A folder as people name it in the environment: ~ is their home, what is relative counts from the repository.

    >>> named("some/where") == HOME / "some" / "where"
    True
    """
    path = Path(folder)
    with suppress(RuntimeError):  # ~somebody who is no user here: a name like any other
        path = path.expanduser()
    return HOME / path


def clean() -> None:
    """Delete what the project wrote into `runs_folder()`, and folders that this leaves empty; nothing behind a link.

    SystemExit where that folder is itself a link. `make clean` calls it with any Python from 3.9 on, no package needed.

    >>> write(runs_folder() / "post-MNIST-20-epochs-seed-0" / "model.pt", b"")
    >>> write(runs_folder() / "letter.txt", b"somebody else's")
    >>> clean()
    >>> [path.name for path in runs_folder().iterdir()]
    ['letter.txt']
    """
    runs = runs_folder()
    if runs.is_symlink():
        sys.exit(f"error: {runs} is a link to {runs.readlink()}: delete by hand what lies there")
    names = ("model.pt", "checkpoint.pt", "metrics.json", ".lock", ".*.tmp")
    written = ["parameters", "parameters.new", "make.pid", "screenshots/*.png", "numba/*/*.nb[ci]"]
    written += [f"{run}-epochs-seed-[0-9]*/{name}" for run in ("*", "sweep/*") for name in names]
    for notebook in HOME.glob("notebooks/*.ipynb"):
        written += [
            f"notebooks/{name}.ipynb" for name in (notebook.stem, f".{notebook.stem}", f"{notebook.stem}.failed")
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

    >>> write(Path("folder", "a.txt"), b"whole")
    >>> Path("folder", "a.txt").read_bytes()
    b'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut after the move could leave an empty file
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = f"not written ({error.strerror}), what was there before is as it was"
        raise OSError(error.errno, reason, str(path)) from error
    except BaseException:  # an interrupt
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def one_process_at_a_time(folder: Path, task: str) -> Iterator[None]:
    """Hold `folder` for the block; where another process holds it, say so on stderr and wait.

    The lock is the operating system's, on the file `.lock` in the folder: it ends with its process, however that ends.
    task: what the other is doing, as in "training". Raises OSError where the folder cannot be made or written to.

    >>> with one_process_at_a_time(Path("folder"), "training"):
    ...     write(Path("folder", "a.txt"), b"mine")
    """
    from filelock import FileLock, Timeout  # here, so that `clean` needs nothing installed

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is {task} in {folder}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
