"""A run on disk: what it leaves, when it is found again, and that no label has a part in it."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from mnist_ae import __main__, confusion, data, experiment, models, recipes, storage, train

QUICK, TEN = replace(recipes.POST, epochs=2), recipes.TEN_DIGITS
COMMITTEE, TEACHER = (recipes.Network(epochs=1, heads=2),), replace(TEN.teacher, epochs=2, taught=1)
SHORT = recipes.TenDigits("short", COMMITTEE, TEACHER, (replace(TEN.students[0], epochs=1),))


@pytest.fixture(scope="module")
def few(digits):
    """130 images to learn from, 30 to test on."""
    parts = (digits.train_images[:130], digits.train_labels[:130], digits.test_images[:30], digits.test_labels[:30])
    return data.Digits("digits", *parts)


def weights(result):
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


def run(recipe, seed, digits, folder):
    return experiment.run(recipe, seed, digits, folder, device="cpu", progress=False)


def test_a_run_leaves_its_result_and_is_found_again(few):
    folder = experiment.run_folder(QUICK, 0, few)
    storage.write(folder / ".model.pt.1.tmp", b"half-written by a process that was killed")
    first = run(QUICK, 0, few, folder)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "metrics.json", "model.pt"]
    assert (first.reused, first.origin) == (False, f"trained now (less than a minute): {folder.name}")
    again = run(replace(QUICK, epochs=np.int64(2)), 0.0, few, folder)
    assert (again.reused, again.origin) == (True, f"already trained (less than a minute): {folder.name}")
    assert torch.equal(weights(first), weights(again))
    assert (first.history, first.metrics) == (again.history, again.metrics)
    assert list(first.snapshots) == list(again.snapshots) == [1, 2]
    assert torch.equal(again.snapshots[2], train.reconstruct(first.model, few.test_images[: experiment.WATCHED]))


def test_metrics_agree_with_a_direct_computation_and_say_how_to_get_them_again(few, tmp_path):
    result = run(QUICK, 3, few, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    neurons = train.encode(result.model, few.test_images).numpy().argmax(axis=1)
    mapping = confusion.one_to_one_mapping(metrics["train_matrix"])
    assert metrics["accuracy"]["one_to_one"] == pytest.approx((mapping[neurons] == few.test_labels.numpy()).mean())
    most = sum(np.bincount(few.test_labels[neurons == neuron]).max() for neuron in set(neurons))
    assert metrics["accuracy"]["many_to_one_same"] == pytest.approx(most / len(neurons))
    assert metrics["loss"] == [row["loss"] for row in result.history]
    assert metrics["recipe"] == asdict(QUICK)
    assert (metrics["seed"], metrics["threads"], metrics["device"]) == (3, torch.get_num_threads(), "cpu")
    assert metrics["data"] == {"name": "digits", "sha256": few.checksum}
    assert metrics["versions"]["torch"] == metrics["torch"] == torch.__version__.split("+")[0]
    assert metrics["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert not {"seconds", "date", "host"} & set(metrics), "two runs leave the same bytes"


@pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine")
def test_metrics_name_the_commit_and_whether_the_code_was_changed(tmp_path, monkeypatch):
    def commit():
        return experiment._surroundings()["commit"]

    monkeypatch.setattr(storage, "HOME", tmp_path)
    assert commit() is None, "no clone"
    storage.write(tmp_path / "mnist_ae" / "a.py", b"")
    for command in ("init", "add mnist_ae", "-c user.name=a -c user.email=a@b commit -m first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, capture_output=True, check=True)
    (head,) = [path.read_text().strip() for path in tmp_path.glob(".git/refs/heads/*")]
    assert commit() == head
    storage.write(tmp_path / "mnist_ae" / "a.py", b"1")
    assert commit() == head + "+changes"
    monkeypatch.setenv("PATH", "")
    assert commit() is None, "no git"


@pytest.mark.parametrize("recipe", [QUICK, SHORT], ids=["post", "ten-digits"])
def test_labels_never_reach_training(few, tmp_path, recipe, monkeypatch):
    """Labels that say nothing leave every weight as it is, bit for bit."""
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 2)
    blind = {f"{part}_labels": torch.zeros_like(getattr(few, f"{part}_labels")) for part in ("train", "test")}
    truth, other = run(recipe, 0, few, tmp_path / "a"), run(recipe, 0, replace(few, **blind), tmp_path / "b")
    assert torch.equal(weights(truth), weights(other))
    assert truth.metrics["accuracy"] != other.metrics["accuracy"]


def test_nothing_else_is_mistaken_for_a_finished_run(few, tmp_path):
    def refused(recipe=QUICK, seed=0, digits=few):
        with (
            patch.object(recipes.Post, "train", side_effect=AssertionError("anew")),
            pytest.raises(AssertionError, match="anew"),
        ):
            run(recipe, seed, digits, tmp_path)

    run(QUICK, 0, few, tmp_path)
    refused(recipe=replace(QUICK, lr=0.02))
    refused(seed=1)
    refused(digits=replace(few, train_images=few.train_images.clamp(max=254)))
    with patch.object(train, "__file__", models.__file__):
        refused()
    with patch.object(torch, "__version__", "1.0"):
        refused()
    torch.set_num_threads(torch.get_num_threads() + 1)
    refused()


def test_an_interrupted_run_is_continued_as_no_other_and_a_finished_one_needs_no_lock(few, tmp_path):
    for recipe, continued in ((replace(QUICK, lr=0.02), 0), (QUICK, 2)):
        with patch.object(experiment, "_evaluate", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            run(QUICK, 0, few, tmp_path / str(continued))
        assert run(recipe, 0, few, tmp_path / str(continued)).continued == continued
    with patch.object(storage, "one_process_at_a_time", side_effect=PermissionError):
        assert run(QUICK, 0, few, tmp_path / "2").reused


def test_a_damaged_result_is_trained_again(few, tmp_path):
    first, model, metrics = run(QUICK, 0, few, tmp_path), tmp_path / "model.pt", tmp_path / "metrics.json"
    metrics.write_bytes(metrics.read_bytes()[:100])
    assert not run(QUICK, 0, few, tmp_path).reused
    content = model.read_bytes()
    model.write_bytes(content[:5000] + b"!" + content[5001:])
    with pytest.warns(UserWarning, match=r"model\.pt is damaged.* Training it again"):
        again = run(QUICK, 0, few, tmp_path)
    assert (again.reused, again.metrics) == (False, first.metrics)


@dataclass(frozen=True)
class Own(recipes.Post):
    """The post's recipe, with a code of another width, images of another height, or no network."""

    width: int = 10
    height: int = 28

    def model(self):
        if not self.width:
            return nn.Linear(10, 10)
        model = models.PostAutoencoder()
        model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, self.width))
        model.decoder = nn.Sequential(nn.Linear(10, 784), nn.Unflatten(1, (1, self.height, 784 // self.height)))
        return model


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Own(width=32), r"recipe 'post' cannot be scored: codes of 2 images must be \[2, 10\], not \[2, 32\]"),
        (Own(height=14), r"cannot be scored: 2 decoded codes must be \[2, 1, 28, 28\], not \[2, 1, 14, 56\]"),
        (Own(height=30), r"cannot be scored: unflatten: .*30, 26"),
        (Own(width=0), "cannot be scored: 'Linear' object has no attribute 'encoder'"),
        (replace(QUICK, lr=np.array([1, 2])), r"'post' must hold numbers, text and tuples, got array\(\[1, 2\]\)"),
    ],
)
def test_a_recipe_that_could_not_be_scored_or_kept_is_refused_before_the_first_step(recipe, message, few, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(recipe, 0, few, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_may_have_a_network_of_its_own(few, tmp_path):
    assert run(Own(epochs=1), 0, few, tmp_path).metrics["loss"][0] > 0


@dataclass(frozen=True)
class Same(recipes.Post):
    """Two stages of one name."""

    def train(self, trainer, images):
        half = replace(recipes.POST, epochs=self.epochs // 2)
        return [half.train(trainer, images) for _ in range(2)][-1]


@dataclass(frozen=True)
class Silent(recipes.Post):
    def train(self, trainer, images):
        super().train(trainer, images)


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        (Same(epochs=4), ValueError, "'post' has 4 epochs, and 2 were trained: each stage needs a name of its own"),
        (Silent(epochs=1), TypeError, "train of recipe 'post' must return the trained model, got None"),
    ],
)
def test_what_a_recipe_forgets_is_told_and_no_result_is_kept(recipe, error, message, few, tmp_path):
    with pytest.raises(error, match=message):
        run(recipe, 0, few, tmp_path)
    assert not (tmp_path / "model.pt").exists()


def test_a_recipe_of_ones_own_is_trained_anew_when_a_method_changes(few, tmp_path):
    def own(factor):
        source = f"""
@dataclass(frozen=True)
class Mine(recipes.Post):
    def loss(self, model, batch):
        return {factor} * super(Mine, self).loss(model, batch) if "a" in {{"a", "b"}} else 0
"""
        names = {"dataclass": dataclass, "recipes": recipes, "__name__": "notebook"}
        exec(compile(source, f"<cell {factor}>", "exec"), names)
        return names["Mine"](epochs=1)

    first = run(own(1), 0, few, tmp_path)
    assert run(own(1), 0, few, tmp_path).reused
    again = run(own(2), 0, few, tmp_path)
    assert not again.reused
    assert not torch.equal(weights(first), weights(again))


def test_two_methods_of_a_recipe_that_change_places_are_a_change(few):
    def own(first, second):
        source = f"class Mine(recipes.Post):\n def {first}(self): return 1\n def {second}(self): return 2"
        names = {"recipes": recipes, "__name__": "notebook"}
        exec(source, names)
        return experiment._identity(names["Mine"](epochs=1), 0, few, "cpu")["code"]

    assert own("a", "b") == own("a", "b")
    assert own("a", "b") != own("b", "a")


@pytest.mark.parametrize("name", ["", "../a", "a b", "-a"])
def test_a_name_that_makes_no_folder_is_refused(name, few):
    with pytest.raises(ValueError, match="a recipe's name must be letters"):
        experiment.run_folder(replace(QUICK, name=name), 0, few)


REFUSED = {
    "--epochs=many": "epochs must be a whole number from 1 to 10,000, got 'many'",
    "--epochs=": "epochs must be a whole number from 1 to 10,000, got ''",
    "--threads=0": "threads must be a whole number from 1 to 256",
    "--recipe=foo": "unknown recipe 'foo': choose one of ten-digits, post",
    "--seeds=-1": "seeds must be a whole number from 1",
    "--seeds=9-3": "the last seed must be a whole number from 9",
    "--seeds=a-3": "the first seed must be a whole number from 0",
}


@pytest.mark.parametrize("option", REFUSED)
def test_the_command_line_refuses_in_one_sentence(option, capsys):
    with pytest.raises(SystemExit, match=f"^error: {REFUSED[option]}"):
        __main__.main(["check", "--dataset=digits", option])
    assert capsys.readouterr().out == ""


def test_check_prints_the_data_set_and_warns_where_it_is_not_mnist(tmp_path, monkeypatch, no_network, capsys, digits):
    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path))
    __main__.main(["check", "--epochs=2e1", "--seed=0.0", "--threads=02"])  # numbers as people write them
    out, err = capsys.readouterr()
    assert out == f"-r dataset digits -r device auto -p epochs 20 -p seed 0 -p threads 2\n{digits.checksum}\n"
    assert "****\nNOT MNIST" in err


def test_how_long_it_will_take_is_told_from_some_steps(digits, capsys):
    torch.set_num_threads(1)
    begin = time.perf_counter()
    run(replace(QUICK, epochs=10), 0, digits, experiment.run_folder(QUICK, 0, digits))
    measured = 1000 * (time.perf_counter() - begin) / 60
    __main__.main(["estimate", "--dataset=digits", "--epochs=10000", "--threads=1"])
    told = re.fullmatch(r".* about (\d+) min, (\d+) of them .*\n", capsys.readouterr().out)
    whole, training = map(int, told.groups())
    assert measured / 4 < training < 4 * measured
    assert training <= whole
