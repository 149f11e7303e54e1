"""What people pass in: a spreadsheet's labels, another library's images, NumPy's numbers: taken, or refused by name."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mnist_ae import baselines, checks, codes, confusion, data, experiment, models, recipes, sweep, train

DIGITS = [0, 3, 9]
TAKEN_LABELS = {
    "list": DIGITS,
    "uint8": np.array(DIGITS, np.uint8),
    "big-endian": np.array(DIGITS, ">i4"),
    "torch": torch.tensor(DIGITS),
    "torch, with a gradient": torch.tensor(DIGITS, dtype=torch.float32, requires_grad=True),
    "whole floats": np.array(DIGITS, np.float32),
    "pandas": pd.Series(DIGITS, index=[5, 6, 7]),
    "pandas, nullable": pd.Series(DIGITS, dtype="Int64"),
    "pandas, objects": pd.Series(DIGITS, dtype=object),
}
REFUSED_LABELS = {
    "NaN": ([0, float("nan"), 9], "must be whole numbers from 0 to 9, got nan at place 1"),
    "a fraction": ([0, 3, 1.5], "must be whole numbers from 0 to 9, got 1.5 at place 2"),
    "infinity": ([float("inf"), 3, 9], "got inf at place 0"),
    "negative": ([0, -1, 9], "got -1 at place 1"),
    "ten": ([10, 3, 9], "got 10 at place 0"),
    "text": (["0", "3", "9"], "must be whole numbers from 0 to 9, got list: they are <U1"),
    "text in a table": (pd.Series(["0", "3", "9"], dtype=object), "got Series: they are object"),
    "lists of different lengths": ([[0], [3, 9], []], "got list: "),
    "beyond any float": ([0, 3, 10**400], "got list: "),
    "missing": (pd.Series([0, None, 9], dtype="Int64"), "got nan at place 1"),
    "none": ([0, None, 9], "got nan at place 1"),
    "truth values": ([True, False, True], "got list: they are bool"),
    "one-hot": (np.eye(10)[DIGITS], r"must be \[N\], got \[3, 10\]"),
}


BLANK = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)


@pytest.mark.parametrize("kind", TAKEN_LABELS)
def test_labels_are_whole_numbers_of_any_type(kind):
    np.testing.assert_array_equal(checks.as_labels(TAKEN_LABELS[kind]), DIGITS)
    assert checks.as_labels(TAKEN_LABELS[kind]).dtype == np.int64


@pytest.mark.parametrize("kind", REFUSED_LABELS)
def test_labels_that_are_no_digits_are_refused(kind):
    labels, message = REFUSED_LABELS[kind]
    with pytest.raises(ValueError, match=message) as error:
        checks.as_labels(labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda labels: confusion.confusion_matrix(labels, np.eye(10)[DIGITS]),
        lambda labels: codes.group_means(np.zeros((3, 2)), labels),
        lambda labels: codes.nearest_agrees(np.zeros((3, 2)), labels),
        lambda labels: data.Digits("own", BLANK, labels, BLANK, DIGITS),
        lambda labels: data.Digits("own", BLANK, DIGITS, BLANK, labels),
        lambda labels: baselines.supervised(BLANK, labels, epochs=1, seed=0, progress=False),
        lambda labels: confusion.accuracy(np.eye(10), [*labels, *labels, *labels, 0]),
        lambda labels: confusion.reorder(np.eye(10), [*labels, *labels, *labels, 0]),
        lambda labels: confusion.recall(np.eye(10), [*labels, *labels, *labels, 0]),
    ],
)
def test_labels_are_checked_wherever_they_go(use):
    use(pd.Series(DIGITS, dtype=object))
    with pytest.raises(ValueError, match=r"must be whole numbers from 0 to 9, got 1\.5 at place 2"):
        use([0, 3, 1.5])


@pytest.mark.parametrize("matrix", [np.full((10, 10), np.nan), -np.eye(10), np.full((10, 10), np.inf), np.eye(9)])
def test_a_matrix_that_holds_no_counts_and_a_mapping_of_another_length_are_refused(matrix):
    for use in (confusion.majority_mapping, confusion.one_to_one_mapping, confusion.dead_neurons):
        with pytest.raises(ValueError, match=r"the matrix must be \[10, 10\] counts"):
            use(matrix)
    with pytest.raises(ValueError, match="a mapping must have a digit for each of 10 neurons, got 3"):
        confusion.accuracy(np.eye(10), DIGITS)


# ---------------------------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def model():
    return models.born(models.TenNeurons, 0)


def readonly(array):
    array.flags.writeable = False
    return array


SPELLINGS = {
    "torch": lambda x: x,
    "without the channel": lambda x: x[:, 0],
    "NumPy": lambda x: x.numpy(),
    "NumPy, without the channel": lambda x: x[:, 0].numpy(),
    "read-only": lambda x: readonly(x.numpy().copy()),
    "reversed twice": lambda x: x.numpy()[::-1].copy()[::-1],
    "float": lambda x: x / 255,
    "NumPy, float64": lambda x: x.numpy() / 255,
    "NumPy, big-endian": lambda x: (x.numpy() / 255).astype(">f4"),
    "a list": lambda x: (x / 255).tolist(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_images_are_images_in_any_spelling(spelling, model, digits):
    images = digits.train_images[:20]
    spelt = SPELLINGS[spelling](images)
    torch.testing.assert_close(train.encode(model, spelt), train.encode(model, images), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.reconstruct(model, spelt), train.reconstruct(model, images), atol=1e-5, rtol=0)
    if "float" not in spelling and spelling not in ("NumPy, big-endian", "a list"):
        labels = digits.train_labels[:20]
        assert data.Digits("own", spelt, labels.numpy(), spelt, labels).checksum == (
            data.Digits("own", images, labels, images, labels).checksum
        )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(28, 28), r"grey and of 28 x 28 pixels, \[N, 28, 28\] or \[N, 1, 28, 28\], got \[28, 28\]"),
        (np.zeros((3, 784)), r"got \[3, 784\]"),
        (np.zeros((3, 28, 28, 1)), r"got \[3, 28, 28, 1\]"),
        (np.zeros((3, 3, 28, 28)), r"got \[3, 3, 28, 28\]"),
        (torch.zeros(3, 1, 30, 30), r"got \[3, 1, 30, 30\]"),
        (torch.zeros(3, 1, 32, 32), r"got \[3, 1, 32, 32\]"),
        (np.zeros((3, 28, 28), np.int32), r"must be uint8 in 0\.\.255 or floating in \[0, 1\], got torch.int32"),
        (np.zeros((3, 28, 28), bool), "got torch.bool"),
        (torch.zeros(3, 28, 28, dtype=torch.int64), "got torch.int64"),
        (np.full((3, 28, 28), 255.0), r"outside \[0, 1\]"),
        (np.full((3, 28, 28), -0.1), r"outside \[0, 1\]"),
        (torch.full((3, 1, 28, 28), float("nan")), "NaN or outside"),
        (np.full((3, 28, 28), "ink"), "must be numbers, .*got ndarray: "),
        (None, "got NoneType"),
        ([[1.0], [2.0, 3.0]], "must be numbers, .*got list: "),
    ],
)
def test_images_of_another_size_colour_or_type_are_refused_by_name(images, message, model):
    for use in (
        lambda: train.encode(model, images),
        lambda: recipes.with_inputs(models.TenNeurons, images),
        lambda: recipes.POST.train(train.Trainer(progress=False), images),
        lambda: recipes.TEN_DIGITS.train(train.Trainer(progress=False), images),
        lambda: baselines.clusters("k-means on pixels", images, images, 0),
        lambda: data.Digits("own", images, DIGITS, images, DIGITS),
    ):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": BLANK[:0], "train_labels": []}, "train_labels must be one an image, at least one: 0 for 0"),
        ({"test_labels": [0] * 99}, "test_labels must be one an image, at least one: 99 for 3"),
        ({"test_images": torch.zeros(3, 1, 28, 28)}, "test_images must be uint8, 0 to 255, got torch.float32"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(data.Digits("own", BLANK, DIGITS, BLANK, DIGITS), **change)


def test_dark_ink_on_white_paper_is_named(digits, model):
    white = 255 - digits.test_images[:50]
    for use in (
        lambda: data.Digits("own", white, digits.test_labels[:50], white, digits.test_labels[:50]),
        lambda: train.encode(model, white.numpy()[:, 0] / 255),
    ):
        with pytest.warns(UserWarning, match="most images have a bright border: ink must be bright on dark"):
            use()
    train.encode(model, torch.cat([digits.test_images[:30], white[:20]]))  # warnings are errors here


# --------------------------------------------------------------------------------------------------------- numbers

THREE = [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), np.array(3), torch.tensor(3), pd.Series([3.0])[0]]


@pytest.mark.parametrize("three", THREE, ids=[type(three).__name__ + str(three) for three in THREE])
def test_numbers_are_numbers_wherever_they_come_from(three, digits):
    assert checks.whole_number("epochs", three, 1, 9) == 3
    assert type(checks.whole_number("epochs", three, 1, 9)) is int
    assert checks.parameters(epochs=three, seed=three, device="cpu", threads=three) == (3, 3, 3)
    recipe = replace(recipes.POST, epochs=three, lr=np.float32(0.01), momentum=np.float64(0.5))
    assert experiment.run_folder(recipe, three, digits).name == "post-digits-3-epochs-seed-3"


@pytest.mark.parametrize("value", [3.5, "3", True, np.bool_(True), None, float("nan"), float("inf"), [3], 10**400])
def test_what_is_no_whole_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 9, got"):
        checks.whole_number("seed", value, 0, 9)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**32, "0"])
def test_a_seed_that_cannot_be_is_refused_before_anything_is_written(seed, digits, tmp_path):
    for use in (
        lambda: experiment.run(recipes.POST, seed, digits, tmp_path / "run"),
        lambda: experiment.load(recipes.POST, seed, digits, tmp_path / "run"),
        lambda: sweep.sweep([recipes.POST], [0, seed], dataset="digits"),
        lambda: train.Trainer(seed, progress=False),
    ):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            use()
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_here_is_named():
    assert checks.device("cpu").type == "cpu"
    for name in ("gpu", "tpu", "", ["cpu"]):
        with pytest.raises(ValueError, match="unknown device"):
            checks.device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not on this machine, which has: "):
            checks.device("cuda")


class Shell:
    """What IPython knows of the cells that were run."""

    def __init__(self, *cells):
        self.user_ns = {"In": ["", *cells]}


def test_in_a_notebook_a_parameter_that_it_does_not_have_is_refused(monkeypatch):
    good = {"epochs": 1, "seed": 0, "device": "cpu", "threads": 2}
    own, injected = "# Parameters\nepochs = 1\n", '# Parameters\nepochs = 1\nPAPERMILL_INPUT_PATH = "01.ipynb"\n'
    for cells in ([], [own], [own, injected], ["anything = 1"]):
        monkeypatch.setattr(checks, "get_ipython", lambda cells=cells: Shell(*cells))
        checks.parameters(**good)
    monkeypatch.setattr(checks, "get_ipython", lambda: Shell(own, "# Parameters\nepoch = 5\nlr = 1\n"))
    with pytest.raises(ValueError, match="unknown parameter epoch, lr: choose among dataset, epochs, seed, device, th"):
        checks.parameters(**good)


@pytest.mark.parametrize("more", [{}, {"OMP_NUM_THREADS": "1"}])
def test_more_threads_than_openmp_may_start_are_refused_and_never_waited_for(more):
    def said(code):
        environment = os.environ | {"OMP_THREAD_LIMIT": "1", "TQDM_DISABLE": "1"} | more
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, (done.stderr or done.stdout).strip().splitlines()[-1]

    main = "from mnist_ae import __main__; __main__.main(['check', '--dataset=digits', '--threads=2'])"
    assert said(main) == (1, "error: threads is 2, above OMP_THREAD_LIMIT=1: choose fewer threads")
    code = "from mnist_ae import data, recipes, train; recipes.Post(epochs=1).train(train.Trainer(), "
    assert said(f"{code} data.load('digits').train_images[:64]); print('trained')") == (0, "trained")
