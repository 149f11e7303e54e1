"""What people pass in: a spreadsheet's labels, another library's images, NumPy's numbers: taken, or refused by name."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mnist_ae import ablations, baselines, checks, codes, confusion, data, experiment, models, recipes, sweep, train

DIGITS, BLANK = [0, 3, 9], torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
TAKEN_LABELS = {
    "uint8": np.array(DIGITS, np.uint8),
    "big-endian": np.array(DIGITS, ">i4"),
    "torch, with a gradient": torch.tensor(DIGITS, dtype=torch.float32, requires_grad=True),
    "pandas": pd.Series(DIGITS, index=[5, 6, 7]),
    "pandas, nullable": pd.Series(DIGITS, dtype="Int64"),
    "pandas, objects": pd.Series(DIGITS, dtype=object),
}


@pytest.mark.parametrize("kind", TAKEN_LABELS)
def test_labels_are_whole_numbers_of_any_type(kind):
    found = checks.as_labels(TAKEN_LABELS[kind])
    assert (found.tolist(), found.dtype) == (DIGITS, np.int64)


def seed(value):
    return checks.whole_number("seed", value, 0, 9)


def run(seed):
    return experiment.run(recipes.POST, seed, digits_with(), "run")


def digits_with(**change):
    return replace(data.Digits("own", BLANK, DIGITS, BLANK, DIGITS), **change)


# Wherever labels and images go, they are checked.
TAKE_LABELS = [
    lambda labels: digits_with(train_labels=labels),
    lambda labels: confusion.confusion_matrix(labels, np.eye(10)[DIGITS]),
    lambda labels: codes.group_means(np.zeros((3, 2)), labels),
    lambda labels: codes.nearest_agrees(np.zeros((3, 2)), labels),
    lambda labels: baselines.supervised(BLANK, labels, epochs=1, seed=0, progress=False),
]
TAKE_A_MAPPING = [partial(use, np.eye(10)) for use in (confusion.accuracy, confusion.reorder)]
TAKE_IMAGES = [
    lambda images: digits_with(test_images=images),
    lambda images: train.encode(models.TenNeurons(), images),
    lambda images: recipes.with_inputs(models.TenNeurons, images),
    lambda images: recipes.POST.train(train.Trainer(progress=False), images),
    lambda images: recipes.TEN_DIGITS.train(train.Trainer(progress=False), images),
    lambda images: ablations.RECONSTRUCTION[0].train(train.Trainer(progress=False), images),
]
REFUSED = [
    (checks.as_labels, [0, float("nan"), 9], "labels must be whole numbers from 0 to 9, got nan at place 1$"),
    (checks.as_labels, [0, 3, 1.5], "got 1.5 at place 2$"),
    (checks.as_labels, [float("inf"), 3, 9], "got inf at place 0$"),
    (checks.as_labels, [10, 3, 9], "got 10 at place 0$"),
    (checks.as_labels, ["0", "3", "9"], "labels must be whole numbers from 0 to 9, got list: they are <U1$"),
    (checks.as_labels, pd.Series(["0", "3", "9"], dtype=object), "got Series: they are object$"),
    (checks.as_labels, [[0], [3, 9], []], "got list: "),
    (checks.as_labels, [0, 3, 10**400], "got list: "),
    (checks.as_labels, pd.Series([0, None, 9], dtype="Int64"), "got nan at place 1$"),
    (checks.as_labels, [True, False, True], "got list: they are bool$"),
    (checks.as_labels, np.eye(10)[DIGITS], r"labels must be \[N\], got \[3, 10\]$"),
    (checks.as_images, np.zeros((28, 28)), r"grey and of 28 x 28 pixels, .*\[N, 1, 28, 28\], got \[28, 28\]$"),
    (checks.as_images, np.zeros((3, 28, 28, 1)), r"got \[3, 28, 28, 1\]$"),
    (checks.as_images, np.zeros((3, 3, 28, 28)), r"got \[3, 3, 28, 28\]$"),
    (checks.as_images, torch.zeros(3, 1, 32, 32), r"got \[3, 1, 32, 32\]$"),
    (checks.as_images, np.zeros((3, 28, 28), np.int32), r"uint8 in 0..255 or floating in \[0, 1\], got torch.int32$"),
    (checks.as_images, np.full((3, 28, 28), 255.0), r"pixels that are NaN or outside \[0, 1\]$"),
    (checks.as_images, np.full((3, 28, 28), -0.1), r"pixels that are NaN or outside \[0, 1\]$"),
    (checks.as_images, torch.full((3, 1, 28, 28), float("nan")), r"pixels that are NaN or outside \[0, 1\]$"),
    (checks.as_images, np.full((3, 28, 28), "ink"), "images must be numbers, .*got ndarray: "),
    (checks.as_images, None, "got NoneType"),
    (checks.as_images, [[1.0], [2.0, 3.0]], "images must be numbers, .*got list: "),
    *[(seed, value, "seed must be a whole number from 0 to 9, got ") for value in (3.5, "3", True, np.bool_(True))],
    *[(seed, value, "seed must be a whole number from 0 to 9, got ") for value in (None, float("nan"), [3], 10**400)],
    *[(use, 2**32, "seed must be a whole number from 0 to 4,294,967,295, got") for use in (run, train.Trainer)],
    (lambda seed: sweep.sweep([recipes.POST], [0, seed], dataset="digits"), "0", "seed must be a whole number from 0"),
    *[(checks.device, name, "unknown device .*: choose one of auto, cuda, mps, cpu") for name in ("gpu", "", ["cpu"])],
    *[(checks.device, name, f"'{name}' is not on this machine, which has: cpu$") for name in ("cuda", "mps")],
    (
        lambda labels: digits_with(test_labels=labels),
        [0] * 99,
        "test_labels must be one an image, at least one: 99 for",
    ),
    (lambda images: digits_with(train_images=images, train_labels=[]), BLANK[:0], "at least one: 0 for 0$"),
    (lambda images: digits_with(test_images=images), BLANK / 255, "test_images must be uint8, .*, got torch.float32$"),
    (confusion.majority_mapping, np.full((10, 10), np.nan), r"the matrix must be \[10, 10\] counts"),
    (confusion.one_to_one_mapping, -np.eye(10), r"the matrix must be \[10, 10\] counts"),
    (confusion.dead_neurons, np.full((10, 10), np.inf), r"the matrix must be \[10, 10\] counts"),
    *[(use, [0, 3, 1.5], "must be whole numbers from 0 to 9, got 1.5 at place 2$") for use in TAKE_LABELS],
    *[(use, 10 * [1.5], "must be whole numbers from 0 to 9, got 1.5 at place 0$") for use in TAKE_A_MAPPING],
    *[(use, DIGITS, "a mapping must have a digit for each of 10 neurons, got 3$") for use in TAKE_A_MAPPING],
    *[(use, np.zeros((3, 30, 30), np.uint8), r"28 x 28 pixels, .*, got \[3, 30, 30\]$") for use in TAKE_IMAGES],
]


@pytest.mark.parametrize(("use", "value", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(use, value, message, monkeypatch):
    for kind in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message) as error:
        use(value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def model():
    return models.initialise(models.TenNeurons, 0)


SPELLINGS = {
    "without the channel": lambda x: x[:, 0],
    "NumPy, read-only": lambda x: np.frombuffer(x.numpy().tobytes(), np.uint8).reshape(-1, 28, 28),
    "NumPy, reversed twice": lambda x: x.numpy()[::-1].copy()[::-1],
    "float": lambda x: x / 255,
    "NumPy, float64, big-endian": lambda x: (x.numpy() / 255).astype(">f8"),
    "a list of floats": lambda x: (x / 255).tolist(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_images_are_images_in_any_spelling(spelling, model, digits):
    images, labels = digits.train_images[:20], digits.train_labels[:20]
    spelt = SPELLINGS[spelling](images)
    for use in (train.encode, train.reconstruct):
        torch.testing.assert_close(use(model, spelt), use(model, images), atol=1e-5, rtol=0)
    if "float" not in spelling:
        ours = data.Digits("own", spelt, labels.numpy(), spelt, labels)
        assert ours.checksum == data.Digits("own", images, labels, images, labels).checksum


def test_dark_ink_on_white_paper_is_named(digits, model):
    white = 255 - digits.test_images[:50]
    for use in (lambda: digits_with(test_images=white[:3]), lambda: train.encode(model, white.numpy()[:, 0] / 255)):
        with pytest.warns(UserWarning, match="most images have a bright border: they must be bright on dark"):
            use()
    train.encode(model, torch.cat([digits.test_images[:30], white[:20]]))  # warnings are errors here


THREE = [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), np.array(3), torch.tensor(3), pd.Series([3.0])[0]]


@pytest.mark.parametrize("three", THREE, ids=[type(three).__name__ + str(three) for three in THREE])
def test_numbers_are_numbers_wherever_they_come_from(three, digits):
    assert type(checks.whole_number("epochs", three, 1, 9)) is int
    assert checks.parameters(epochs=three, seed=three, device="cpu", threads=three) == (3, 3, 3)
    recipe = replace(recipes.POST, epochs=three, lr=np.float32(0.01), momentum=np.float64(0.5))
    assert experiment.run_folder(recipe, three, digits).name == "post-digits-3-epochs-seed-3"


def test_in_a_notebook_a_parameter_that_it_does_not_have_is_refused(monkeypatch):
    good = {"epochs": 1, "seed": 0, "device": "auto", "threads": 2}
    shell = SimpleNamespace(
        user_ns={"In": ["", "anything = 1", '# Parameters\nepochs = 1\nPAPERMILL_INPUT_PATH = ""\n']}
    )
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    checks.parameters(**good)
    shell.user_ns["In"].append("# Parameters\nepoch = 5\nlr = 1\n")
    with pytest.raises(ValueError, match="unknown parameter epoch, lr: choose among dataset, epochs, seed, device, th"):
        checks.parameters(**good)


def test_more_threads_than_openmp_may_start_are_refused_and_never_waited_for():
    """In a Python that begins with two threads, of which OpenMP may start one: a network that needs both would hang."""
    code = "import torch; from mnist_ae import checks, models, train; "
    code += "train.encode(models.PostAutoencoder(), torch.zeros(64, 28, 28)); print(torch.get_num_threads()); "
    code += "checks.parameters(epochs=1, seed=0, device='cpu', threads=2)"
    options = {"env": os.environ | {"OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "1"}, "capture_output": True}
    done = subprocess.run([sys.executable, "-c", code], **options, text=True, timeout=60, check=False)
    assert done.stdout == "1\n"
    assert done.stderr.endswith("ValueError: threads is 2, above OMP_THREAD_LIMIT=1: choose fewer threads\n")
