"""The weights of the label-free recipe that the repository holds, and the metrics of the run that they are of."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mnist_ae import confusion, data, models, recipes, storage, train
from mnist_ae.storage import CheckpointError

FOLDER = storage.HOME / "figures"
NAME = "ten_digits.safetensors"


def publish(result) -> Path:
    """Write the weights of `result`, an `experiment.Result`, and its metrics beside them as JSON.

    In float16 but for the vectors of the encoder, which turn what a model says if they are rounded.

    Returns the path of the weights. ValueError, and nothing is written, where rounding changes what the
    model says of a test image, or the accuracy is below that of the run.
    """
    weights = {name: value.contiguous() for name, value in result.model.state_dict().items() if value.ndim}
    whole = {name for name, value in weights.items() if value.ndim == 1 and name.startswith("encoder")}
    weights = {name: value if name in whole else value.half() for name, value in weights.items()}
    model, digits = _with(weights), data.load(result.metrics["data"]["name"])
    before, after = (train.encode(one, digits.test_images) for one in (result.model, model))
    changed = int((before.argmax(dim=1) != after.argmax(dim=1)).sum())
    if changed:
        raise ValueError(f"rounding changes what the model says of {changed} test images: not published")
    matrix = confusion.confusion_matrix(digits.test_labels, after)
    accuracy = confusion.accuracy(matrix, confusion.one_to_one_mapping(result.metrics["train_matrix"]))
    if accuracy < (told := result.metrics["accuracy"]["one_to_one"]):
        raise ValueError(f"the accuracy is {accuracy:.2%}, and {told:.2%} in the run's metrics: not published")
    path, content = FOLDER / NAME, safetensors.torch.save(weights)
    metrics = result.metrics | {"history": result.history, "seconds": result.seconds}
    metrics |= {"predictions_changed": changed, "sha256": hashlib.sha256(content).hexdigest()}
    storage.write(path, content)
    storage.write(path.with_suffix(".json"), (json.dumps(metrics, indent=1) + "\n").encode())
    return path


def read() -> tuple[bytes, dict]:
    """The bytes of the safetensors file, which are those that the metrics beside it tell of, and these metrics.

    FileNotFoundError, which says what to do, where one of the two is missing; CheckpointError where one is damaged.
    """
    path = FOLDER / NAME
    try:
        content, metrics = path.read_bytes(), json.loads(path.with_suffix(".json").read_bytes())
        if hashlib.sha256(content).hexdigest() != metrics["sha256"]:
            raise ValueError("its SHA-256 is not the one in the JSON file beside it")
    except FileNotFoundError as error:
        told = f"{error.filename} is missing: get it from the repository, or `make refresh`"
        raise FileNotFoundError(told) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged, or what is beside it: {error}") from error
    return content, metrics


def pretrained() -> nn.Module:
    """The model of `recipes.TEN_DIGITS` with the committed weights, in eval mode, on the CPU; errors as `read`.

    CheckpointError for weights of another architecture.
    """
    return from_bytes(read()[0])


def from_bytes(content: bytes) -> nn.Module:
    """What `pretrained` returns, of the bytes of a safetensors file; CheckpointError as there."""
    try:
        return _with(safetensors.torch.load(content))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{FOLDER / NAME} is of another architecture: {reason}") from error


def _with(weights: dict[str, Tensor]) -> nn.Module:
    model = models.initialise(recipes.TEN_DIGITS.model, 0)
    counts = {name: value for name, value in model.state_dict().items() if not value.ndim}  # of batches: not kept
    model.load_state_dict(counts | weights)
    return model.eval()
