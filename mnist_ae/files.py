"""Where a run's files go, and writing them whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The repository when the package is installed from it (pip install -e), else wherever the user works.
_SOURCE = Path(__file__).resolve().parents[1]
HOME = _SOURCE if (_SOURCE / "pyproject.toml").exists() else Path.cwd()


def runs_folder() -> Path:
    """Checkpoints and executed notebooks: $MNIST_AE_OUT/runs, by default `runs/` in the repository."""
    return _out() / "runs"


def figures_folder(dataset: str) -> Path:
    """What the notebooks draw: `figures/` for MNIST, `figures/NAME/` for others, so that MNIST's stay as they are."""
    return _out() / "figures" / ("" if dataset == "MNIST" else dataset)


def _out() -> Path:
    return HOME / os.environ.get("MNIST_AE_OUT", "")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved there in one step if the block succeeds and removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
