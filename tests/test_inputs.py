"""What people pass in: a spreadsheet's labels, another library's images, NumPy's numbers: taken, or refused by name."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mnist_ae import baselines, codes, confusion, data, experiment, models, ten_digits, train

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


def uses_of_labels(labels):
    """{place that takes labels: call}."""
    blank = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    plain = labels.tolist() if hasattr(labels, "tolist") else labels
    ten = (4 * plain)[:10]
    return {
        "confusion_matrix": lambda: confusion.confusion_matrix(labels, np.eye(10)[DIGITS]),
        "group_means": lambda: codes.group_means(np.zeros((3, 2)), labels),
        "nearest_agrees": lambda: codes.nearest_agrees(np.zeros((3, 2)), labels),
        "Digits": lambda: data.Digits("own", blank, labels, blank, DIGITS),
        "Digits, test": lambda: data.Digits("own", blank, DIGITS, blank, labels),
        "supervised": lambda: baselines.supervised(blank, labels, epochs=1, seed=0, progress=False),
        "accuracy": lambda: confusion.accuracy(np.eye(10), ten),
        "reorder": lambda: confusion.reorder(np.eye(10), ten),
        "recall": lambda: confusion.recall(np.eye(10), ten),
    }


@pytest.mark.parametrize("kind", TAKEN_LABELS)
def test_labels_are_whole_numbers_of_any_type(kind):
    np.testing.assert_array_equal(data.as_labels(TAKEN_LABELS[kind]), DIGITS)
    assert data.as_labels(TAKEN_LABELS[kind]).dtype == np.int64
    for use in uses_of_labels(TAKEN_LABELS[kind]).values():
        use()


@pytest.mark.parametrize("kind", REFUSED_LABELS)
def test_labels_that_are_no_digits_are_refused_wherever_they_go(kind):
    labels, message = REFUSED_LABELS[kind]
    for place, use in uses_of_labels(labels).items():
        if kind == "one-hot" and place in ("accuracy", "reorder", "recall"):
            continue
        with pytest.raises(ValueError, match=r"must be whole numbers from 0 to 9, got|must be \[N\]") as error:
            use()
        assert "\n" not in str(error.value), place
    with pytest.raises(ValueError, match=message):
        data.as_labels(labels)


@pytest.mark.parametrize("matrix", [np.full((10, 10), np.nan), -np.eye(10), np.full((10, 10), np.inf), np.eye(9)])
def test_a_matrix_that_holds_no_counts_and_a_mapping_of_another_length_are_refused(matrix):
    for use in (confusion.majority_mapping, confusion.one_to_one_mapping, confusion.dead_neurons, confusion.sharing):
        with pytest.raises(ValueError, match=r"the matrix must be \[10, 10\] counts"):
            use(matrix)
    with pytest.raises(ValueError, match="a mapping must have a digit for each of 10 neurons, got 3"):
        confusion.accuracy(np.eye(10), DIGITS)


# ---------------------------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def model():
    return train.born(models.TenNeurons, 0)


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
    images = digits.train_images[:200]
    spelt = SPELLINGS[spelling](images)
    torch.testing.assert_close(train.encode(model, spelt), train.encode(model, images), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.reconstruct(model, spelt), train.reconstruct(model, images), atol=1e-5, rtol=0)
    train.fit(models.PostAutoencoder(), spelt, epochs=1, batch_size=200, progress=False)
    np.testing.assert_array_equal(*(baselines.kmeans_clusters(x, x, 0)[0] for x in (spelt, images)))
    if "float" not in spelling and spelling not in ("NumPy, big-endian", "a list"):
        labels = digits.train_labels[:200]
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
    post = models.PostAutoencoder()
    before = post.state_dict()["encoder.0.weight"].clone()
    for use in (
        lambda: train.encode(model, images),
        lambda: train.reconstruct(post, images),
        lambda: train.fit(post, images, epochs=1, progress=False),
        lambda: ten_digits.Network().fit(images, 0, device="cpu", progress=False),
        lambda: experiment.TEN_DIGITS.fit(images, 0, device="cpu", progress=False),
        lambda: baselines.kmeans_clusters(images, images, 0),
        lambda: data.Digits("own", images, DIGITS, images, DIGITS),
    ):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert "\n" not in str(error.value)
    assert torch.equal(post.state_dict()["encoder.0.weight"], before), "refused before the first step"


def test_codes_are_ten_numbers_each_of_any_type(model):
    expected = train.decode(model, torch.eye(10))
    for spelt in (np.eye(10), np.eye(10, dtype=int), np.eye(10).tolist(), torch.eye(10, dtype=torch.float64)):
        torch.testing.assert_close(train.decode(model, spelt), expected)
    for wrong in (np.eye(10)[0], np.eye(9), np.zeros((2, 10, 1))):
        with pytest.raises(ValueError, match=r"codes must be \[N, 10\], got \["):
            train.decode(model, wrong)


def test_dark_ink_on_white_paper_is_named(digits, model):
    white = 255 - digits.test_images[:50]
    for use in (
        lambda: data.Digits("own", white, digits.test_labels[:50], white, digits.test_labels[:50]),
        lambda: train.encode(model, white),
        lambda: train.encode(model, white.numpy()[:, 0] / 255),
    ):
        with pytest.warns(UserWarning, match="most images have a bright border: ink must be bright on dark"):
            use()
    few = torch.cat([digits.test_images[:30], white[:20]])
    train.encode(model, few)  # warnings are errors here


# --------------------------------------------------------------------------------------------------------- numbers

THREE = [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), np.array(3), torch.tensor(3), pd.Series([3.0])[0]]


@pytest.mark.parametrize("three", THREE, ids=[type(three).__name__ + str(three) for three in THREE])
def test_numbers_are_numbers_wherever_they_come_from(three, digits, tmp_path):
    assert train.whole_number("epochs", three, 1, 9) == 3
    assert type(train.whole_number("epochs", three, 1, 9)) is int
    assert experiment.check_parameters(epochs=three, seed=three, device="cpu", threads=three) == (3, 3, 3)
    few = data.Digits(*["digits", *(digits.train_images[:60], digits.train_labels[:60]) * 2])
    recipe = replace(experiment.POST, epochs=three, lr=np.float32(0.01), momentum=np.float64(0.5))
    folder = experiment.run_folder(recipe, three, few)
    assert folder.name == "post-digits-3-epochs-seed-3"
    first = experiment.run(recipe, three, few, tmp_path, progress=False)
    again = experiment.run(replace(recipe, epochs=3), 3, few, tmp_path, progress=False)
    assert (first.reused, again.reused, len(again.history)) == (False, True, 3)


@pytest.mark.parametrize("value", [3.5, "3", True, np.bool_(True), None, float("nan"), float("inf"), [3], 10**400])
def test_what_is_no_whole_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 9, got"):
        train.whole_number("seed", value, 0, 9)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**32, "0"])
def test_a_seed_that_cannot_be_is_refused_before_anything_is_written(seed, digits, tmp_path):
    for use in (
        lambda: experiment.run(experiment.POST, seed, digits, tmp_path / "run"),
        lambda: experiment.load(experiment.POST, seed, digits, tmp_path / "run"),
        lambda: experiment.sweep([experiment.POST], [0, seed], dataset="digits"),
    ):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            use()
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Own:
    """A recipe whose model has a code of `width` numbers."""

    name: str = "own"
    epochs: int = 1
    width: int = 10
    side: int = 28

    def model(self):
        model = models.PostAutoencoder(reachable=True)
        model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, self.width))
        model.decoder = nn.Sequential(nn.Linear(self.width, self.side**2), nn.Unflatten(1, (1, self.side, self.side)))
        return model

    def fit(self, images, seed, **options):
        raise AssertionError("it was trained")


class Plain(Own):
    def model(self):
        return nn.Linear(10, 10)


class Unfit(Own):
    def model(self):
        model = super().model()
        model.encoder.append(nn.Linear(100, 10))
        return model


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Own(width=2), r"recipe 'own' cannot be scored: codes of 2 images must be \[2, 10\], not \[2, 2\]"),
        (Unfit(), "recipe 'own' cannot be scored: .*mat1 and mat2 shapes cannot be multiplied"),
        (Own(width=32), r"not \[2, 32\]"),
        (Own(side=32), r"2 decoded codes must be \[2, 1, 28, 28\], not \[2, 1, 32, 32\]"),
        (Plain(), "the model of recipe 'own' has no encoder, no decoder, no normalise"),
    ],
)
def test_a_model_that_could_not_be_scored_is_refused_before_the_first_step(recipe, message, digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        experiment.run(recipe, 0, digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def in_new_python(code, **environment):
    """Run code that no file holds, as a notebook's cells are: its exit status and last line."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, (done.stderr or done.stdout).strip().splitlines()[-1]


PART = "experiment.ten_digits.TenDigits(committee=(Mine(),))"


def test_a_script_without_a_main_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from mnist_ae import experiment; experiment.sweep([experiment.POST], [0], dataset='digits')")
    environment = os.environ | {"MNIST_AE_OUT": str(tmp_path / "out")}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert "BrokenExecutor: a worker process ended" in done.stderr.strip().splitlines()[-1]
    assert 'not under `if __name__ == "__main__":`' in done.stderr.strip().splitlines()[-1]


def test_a_recipe_that_holds_what_no_file_can_is_refused_by_name(digits, tmp_path):
    with pytest.raises(ValueError, match=r"recipe 'post' must hold numbers, text and tuples, got array\(\[1, 2\]\)"):
        experiment.run(replace(experiment.POST, lr=np.array([1, 2])), 0, digits, tmp_path)


def test_a_sweep_over_a_recipe_that_only_a_notebook_knows_is_refused_in_one_sentence(tmp_path):
    code = "from mnist_ae import experiment\nclass Mine(experiment.Recipe): pass\n"
    code += "experiment.sweep([Mine('mine', epochs=1)], [0], dataset='digits')"
    status, said = in_new_python(code, MNIST_AE_OUT=str(tmp_path / "out"))
    assert status == 1
    assert said == "ValueError: recipe 'mine': worker processes cannot import it from here: put it into a module"
    assert not (tmp_path / "out").exists()
    code = code.replace("Recipe): pass", "ten_digits.Network): pass").replace("Mine('mine', epochs=1)", PART)
    status, said = in_new_python(code, MNIST_AE_OUT=str(tmp_path / "out"))
    assert (status, said[:32]) == (1, "ValueError: recipe 'ten-digits':"), "a part of a recipe is looked at, too"

    class Local(experiment.Recipe):
        pass

    with pytest.raises(ValueError, match="recipe 'local': worker processes cannot import it from here"):
        experiment.sweep([Local("local", epochs=1)], [0], dataset="digits")


# --------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("more", [{}, {"OMP_NUM_THREADS": "1"}])
def test_more_threads_than_openmp_may_start_are_refused_and_never_waited_for(more):
    limit = {"OMP_THREAD_LIMIT": "1"} | more
    main = "from mnist_ae import __main__; __main__.main(['check', '--dataset=digits', '--threads={}'])"
    assert in_new_python(main.format(2), **limit) == (
        1,
        "error: threads is 2, above OMP_THREAD_LIMIT=1: choose fewer threads",
    )
    assert in_new_python(main.format(1), **limit)[0] == 0
    code = "from mnist_ae import data, models, train\n"
    code += "train.fit(models.PostAutoencoder(), data.load('digits').train_images[:64], epochs=1); print('trained')"
    assert in_new_python(code, TQDM_DISABLE="1", **limit) == (0, "trained")
