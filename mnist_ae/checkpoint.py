"""Tensors and plain values in a file: written whole, checked when read, and read without running what is in it."""

import io
import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn

from mnist_ae import files


class CheckpointError(RuntimeError):
    """A file that is no intact checkpoint, or one of another architecture; the message names the path and the fault."""


def write(path: Path, content: dict) -> None:
    """Write tensors and plain values, whole or not at all; OSError as for `files.write`.

    >>> write(Path("model.pt"), {"weights": torch.zeros(2), "epoch": 1})
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.write(path, buffer.getvalue())


def read(path: Path) -> dict:
    """What `write` wrote, on the CPU. CheckpointError for a file that is damaged, or that holds code: it is not run.

    torch.load does not look at the checksums that torch.save leaves (a checkpoint is a zip file), and would take a
    changed byte for a changed weight; so they are compared here. OSError where the file cannot be read.

    >>> write(Path("model.pt"), {"weights": torch.zeros(2), "epoch": 1})
    >>> read(Path("model.pt"))
    {'weights': tensor([0., 0.]), 'epoch': 1}
    """
    content = io.BytesIO(path.read_bytes())
    try:
        if damaged := zipfile.ZipFile(content).testzip():
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} in it is wrong")
        content.seek(0)
        found = torch.load(content, weights_only=True, map_location="cpu")
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values: refused, none of it was run"
        ) from error
    except Exception as error:  # damaged bytes raise what they like
        raise CheckpointError(f"{path} is damaged, or no checkpoint: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not a checkpoint")
    return found


def load_weights(model: nn.Module, weights: dict, path: Path) -> None:
    """Put weights, {name: tensor}, into `model`; CheckpointError says which tensors are missing or of another shape.

    >>> load_weights(nn.Linear(2, 1), {"weight": torch.zeros(1, 2)}, Path("model.pt"))
    Traceback (most recent call last):
        ...
    mnist_ae.checkpoint.CheckpointError: model.pt is of another architecture: ... Missing key(s) in state_dict: "bias".
    """
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is of another architecture: {' '.join(str(error).split())}") from error
