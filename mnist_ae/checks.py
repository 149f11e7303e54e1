"""What callers give, made ours, or refused in one sentence that names the parameter and what it may be."""

import ast
import os
import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits
from torch import Tensor

# With more threads than OpenMP may start, a step waits for ever for the ones that are missing.
_limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
THREAD_LIMIT = max(int(_limit), 1) if _limit.isdigit() else 256
if torch.get_num_threads() > THREAD_LIMIT:
    torch.set_num_threads(THREAD_LIMIT)


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int from low to high, 20.0 and NumPy's included; else a ValueError with the name and the range.

    >>> whole_number("seed", -1, 0, 9)
    Traceback (most recent call last):
        ...
    ValueError: seed must be a whole number from 0 to 9, got -1
    """
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    whole = type(number) is int or (isinstance(number, float) and number.is_integer())
    if not whole or not low <= number <= high:
        raise ValueError(f"{name} must be a whole number from {low:,} to {high:,}, got {number!r}")
    return int(number)


def seed(value: object) -> int:
    """A whole number from 0 to 2**32 - 1, or a ValueError."""
    return whole_number("seed", value, 0, 2**32 - 1)


def device(name: str) -> torch.device:
    """Name "auto" -> the first of CUDA, MPS, CPU that is there; else the device of that name, or a ValueError."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if name not in list(there):
        raise ValueError(f"unknown device {name!r}: choose one of auto, {', '.join(there)}")
    if not there[name]:
        here = ", ".join(kind for kind, found in there.items() if found)
        raise ValueError(f"device {name!r} is not on this machine, which has: {here}")
    return torch.device(name)


def pixels(images: Tensor) -> Tensor:
    """images: uint8 in 0..255 or floating in [0, 1], of any shape -> float32 in [0, 1].

    Raises ValueError for other types, and for floating pixels that are NaN or outside [0, 1].

    >>> pixels(torch.full((1, 2), 51, dtype=torch.uint8))
    tensor([[0.2000, 0.2000]])
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 in 0..255 or floating in [0, 1], got {images.dtype}")
    if not ((images >= 0) & (images <= 1)).all():  # NaN is neither
        raise ValueError("images hold pixels that are NaN or outside [0, 1]")
    return images.float()


def as_images(images: ArrayLike) -> Tensor:
    """Images of NumPy or torch, [N, 28, 28] or [N, 1, 28, 28], uint8 in 0..255 or floating in [0, 1] -> [N, 1, 28, 28].

    Background is dark, strokes are bright: warns where the border of most images is bright. ValueError for other shapes
    and types.

    >>> as_images(np.zeros((3, 28, 28))).shape
    torch.Size([3, 1, 28, 28])
    """
    if not isinstance(images, Tensor):
        try:
            array = np.array(images)  # a copy: torch takes no reversed and no read-only array
            images = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        except (TypeError, ValueError) as error:  # text, or lists of different lengths
            raise ValueError(f"images must be numbers, [N, 28, 28], got {type(images).__name__}: {error}") from error
    if images.dtype != torch.uint8:
        pixels(images)
    shape = list(images.shape)
    images = images[:, None] if images.ndim == 3 else images
    if images.shape[1:] != (1, 28, 28):
        raise ValueError(f"images must be grey and of 28 x 28 pixels, [N, 28, 28] or [N, 1, 28, 28], got {shape}")
    border = torch.cat([images[:, 0, [0, -1]].flatten(1), images[:, 0, :, [0, -1]].flatten(1)], dim=1).float().mean(1)
    if len(images) and border.median() > 0.6 * (255 if images.dtype == torch.uint8 else 1):
        warnings.warn("most images have a bright border: they must be bright on dark, so invert them", stacklevel=3)
    return images


def as_labels(labels: ArrayLike, name: str = "labels") -> np.ndarray:
    """Whole numbers from 0 to 9 of any type, 3.0 included -> int64 [N]; ValueError, with `name`, for anything else.

    >>> as_labels([3.0, 7])
    array([3, 7])
    """
    try:
        values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
        if values.dtype.kind not in "iufO" or any(type(value) is str for value in values.flat):
            raise TypeError(f"they are {values.dtype}")
        numbers = values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # text, a missing value, lists of different lengths
        raise ValueError(f"{name} must be whole numbers from 0 to 9, got {type(labels).__name__}: {error}") from error
    if numbers.ndim != 1:
        raise ValueError(f"{name} must be [N], got {list(numbers.shape)}")
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= 9) & (numbers == np.floor(numbers))))  # NaN is wrong, too
    if len(wrong):
        raise ValueError(f"{name} must be whole numbers from 0 to 9, got {numbers[wrong[0]]:g} at place {wrong[0]}")
    return numbers.astype(np.int64)


def parameters(**given: object) -> tuple[int, int, int]:
    """epochs, seed, device and threads, as a notebook or a command line has them -> epochs, seed, threads as whole
    numbers; sets the threads. ValueError for what a run cannot use, and in a notebook that papermill runs for a
    parameter that no notebook has: papermill only warns of it.

    >>> parameters(epochs=0, seed=0, device="cpu", threads=1)
    Traceback (most recent call last):
        ...
    ValueError: epochs must be a whole number from 1 to 10,000, got 0
    """
    from IPython import get_ipython  # slow to import

    epochs = whole_number("epochs", given["epochs"], 1, 10_000)
    threads = whole_number("threads", given["threads"], 1, 256)
    if threads > THREAD_LIMIT:
        raise ValueError(f"threads is {threads}, above OMP_THREAD_LIMIT={THREAD_LIMIT}: choose fewer threads")
    device(given["device"])
    shell, known = get_ipython(), ("dataset", *given)
    for cell in shell.user_ns["In"] if shell else []:
        lines = ast.parse(cell).body if cell.startswith("# Parameters\n") else []
        names = [line.targets[0].id for line in lines if isinstance(line, ast.Assign)]
        if unknown := [name for name in names if name not in known and not name.startswith("PAPERMILL_")]:
            raise ValueError(f"unknown parameter {', '.join(unknown)}: choose among {', '.join(known)}")
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's and scikit-learn's: other threads, other rounding
    return epochs, seed(given["seed"]), threads
