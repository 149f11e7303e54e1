"""A run on disk: what it leaves, when it is found again, and that no label has a part in it."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from mnist_ae import __main__, confusion, data, experiment, models, recipes, storage, train
from mnist_ae.storage import CheckpointError

QUICK = replace(recipes.POST, epochs=2)
SHORT = recipes.TenDigits(
    "short",
    committee=(recipes.Network(epochs=1, heads=2),),
    teacher=replace(recipes.TEN_DIGITS.teacher, epochs=2, taught=1),
    students=(replace(recipes.TEN_DIGITS.students[0], epochs=1),),
)


@pytest.fixture(scope="module")
def few(digits):
    """300 images to learn from, 100 to test on."""
    parts = (digits.train_images[:300], digits.train_labels[:300], digits.test_images[:100], digits.test_labels[:100])
    return data.Digits("digits", *parts)


def weights(result):
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


def run(recipe, seed, digits, folder):
    return experiment.run(recipe, seed, digits, folder, device="cpu", progress=False)


def test_a_run_leaves_its_result_and_is_found_again(few, tmp_path):
    first = run(QUICK, 0, few, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "metrics.json", "model.pt"]
    again = run(replace(QUICK, epochs=np.int64(2)), 0.0, few, tmp_path)
    loaded = experiment.load(QUICK, 0, few, tmp_path, device="cpu")
    assert (first.reused, again.reused, loaded.reused) == (False, True, True)
    assert "trained now" in first.origin
    assert "found finished" in again.origin
    for other in (again, loaded):
        assert torch.equal(weights(first), weights(other))
        assert (first.history, first.metrics) == (other.history, other.metrics)
        assert list(first.snapshots) == list(other.snapshots) == [1, 2]
    assert torch.equal(again.snapshots[2], train.reconstruct(first.model, few.test_images[: experiment.WATCHED]))


def test_metrics_agree_with_a_direct_computation(few, tmp_path):
    result = run(QUICK, 0, few, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    neurons = train.encode(result.model, few.test_images).numpy().argmax(axis=1)
    mapping = confusion.one_to_one_mapping(metrics["train_matrix"])
    assert metrics["accuracy"]["one_to_one"] == pytest.approx((mapping[neurons] == few.test_labels.numpy()).mean())
    assert metrics["accuracy"]["many_to_one_same"] == pytest.approx(
        sum(np.bincount(few.test_labels[neurons == neuron]).max() for neuron in set(neurons)) / len(neurons)
    )
    assert metrics["loss"] == [row["loss"] for row in result.history]
    assert (metrics["seed"], metrics["recipe"]["epochs"], metrics["data"]["name"]) == (0, 2, "digits")


@pytest.mark.parametrize("recipe", [QUICK, SHORT], ids=["post", "ten-digits"])
@pytest.mark.parametrize("labels", ["shuffled", "all the same"])
def test_labels_never_reach_training(few, tmp_path, recipe, labels, monkeypatch):
    """Other labels, or labels that say nothing, leave every weight as it is, bit for bit."""
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 5)
    truth, generator = run(recipe, 0, few, tmp_path / "truth"), torch.Generator().manual_seed(1)
    other = [
        t[torch.randperm(len(t), generator=generator)] if labels == "shuffled" else torch.zeros_like(t)
        for t in (few.train_labels, few.test_labels)
    ]
    result = run(recipe, 0, replace(few, train_labels=other[0], test_labels=other[1]), tmp_path / "other")
    assert torch.equal(weights(truth), weights(result))


def test_a_seed_is_a_run_whatever_was_drawn_before(few, tmp_path):
    first = run(QUICK, 5, few, tmp_path / "a")
    torch.rand(17)
    state = torch.get_rng_state()
    assert torch.equal(weights(first), weights(run(QUICK, 5, few, tmp_path / "b")))
    assert torch.equal(state, torch.get_rng_state()), "a run leaves the caller's random numbers alone"
    assert not torch.equal(weights(first), weights(run(QUICK, 6, few, tmp_path / "c")))


def test_nothing_else_is_mistaken_for_a_finished_run(few, tmp_path, monkeypatch):
    run(QUICK, 0, few, tmp_path)
    brighter = replace(few, train_images=few.train_images.clamp(max=254))
    for recipe, seed, digits in [(replace(QUICK, lr=0.02), 0, few), (QUICK, 1, few), (QUICK, 0, brighter)]:
        with pytest.raises(experiment.RunNotFound, match="notebook 01_train"):
            experiment.load(recipe, seed, digits, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(experiment.train, "__file__", experiment.models.__file__)
        with pytest.raises(experiment.RunNotFound):
            experiment.load(QUICK, 0, few, tmp_path)
    torch.set_num_threads(torch.get_num_threads() + 1)
    with pytest.raises(experiment.RunNotFound):
        experiment.load(QUICK, 0, few, tmp_path)


def test_a_damaged_result_is_trained_again(few, tmp_path):
    first = run(QUICK, 0, few, tmp_path)
    model, metrics = tmp_path / "model.pt", tmp_path / "metrics.json"
    for path, damage in [(metrics, metrics.read_bytes()[:100]), (metrics, b"{}")]:
        path.write_bytes(damage)
        assert not run(QUICK, 0, few, tmp_path).reused
    content = model.read_bytes()
    for damage in (content[:100], b"", content[:5000] + b"!" + content[5001:]):
        model.write_bytes(damage)
        with pytest.raises(CheckpointError, match=str(model)):
            experiment.load(QUICK, 0, few, tmp_path)
        with pytest.warns(UserWarning, match=r"model\.pt is damaged.* Training it again"):
            again = run(QUICK, 0, few, tmp_path)
        assert not again.reused
        assert again.metrics == first.metrics == json.loads(metrics.read_text())


@pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine")
def test_metrics_say_how_to_get_them_again(few, tmp_path, monkeypatch):
    metrics = run(QUICK, 3, few, tmp_path).metrics
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["recipe"] == asdict(QUICK)
    assert (metrics["seed"], metrics["threads"], metrics["device"]) == (3, torch.get_num_threads(), "cpu")
    assert metrics["data"] == {"name": "digits", "sha256": few.checksum}
    assert metrics["versions"]["torch"] == metrics["torch"] == "2.15.0"
    assert metrics["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert not {"seconds", "date", "host"} & set(metrics), "two runs leave the same bytes"

    def git(*command):
        return subprocess.run(["git", *command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    def commit():
        return experiment._surroundings()["commit"]

    monkeypatch.setattr(storage, "HOME", tmp_path)
    assert commit() is None
    git("init")
    (tmp_path / "mnist_ae").mkdir()
    (tmp_path / "mnist_ae" / "a.py").write_text("")
    git("add", "mnist_ae")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    assert commit() == git("rev-parse", "HEAD").strip()
    (tmp_path / "mnist_ae" / "a.py").write_text("1")
    assert commit() == git("rev-parse", "HEAD").strip() + "+changes"
    monkeypatch.setenv("PATH", "")
    assert commit() is None


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

    def train(self, trainer, images):
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
        (Plain(), "recipe 'own' cannot be scored: 'Linear' object has no attribute 'encoder'"),
    ],
)
def test_a_model_that_could_not_be_scored_is_refused_before_the_first_step(recipe, message, digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        experiment.run(recipe, 0, digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_holds_what_no_file_can_is_refused_by_name(few, tmp_path):
    with pytest.raises(ValueError, match=r"recipe 'post' must hold numbers, text and tuples, got array\(\[1, 2\]\)"):
        run(replace(recipes.POST, lr=np.array([1, 2])), 0, few, tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--dataset", "mnist", "unknown data set 'mnist'"),
        ("--epochs", "0", "epochs must be a whole number from 1 to 10,000, got 0"),
        ("--epochs", "1e-3", "epochs must be a whole number from 1 to 10,000, got 0.001"),
        ("--epochs", "many", "epochs must be a whole number from 1 to 10,000, got 'many'"),
        ("--epochs", "nan", "epochs must be a whole number from 1 to 10,000, got nan"),
        ("--epochs", "", "epochs must be a whole number"),
        ("--seed", "-1", "seed must be a whole number"),
        ("--threads", "0", "threads must be a whole number from 1 to 256"),
        ("--device", "gpu", "unknown device 'gpu'"),
        ("--recipe", "foo", "unknown recipe 'foo': choose one of ten-digits, post"),
        ("--seeds", "0", "seeds must be a whole number from 1"),
        ("--seeds", "-1", "seeds must be a whole number from 1"),
        ("--seeds", "9-3", "the last seed must be a whole number from 9"),
        ("--seeds", "a-3", "the first seed must be a whole number from 0"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(option, value, message, capsys):
    with pytest.raises(SystemExit) as stop:
        __main__.main(["check", "--dataset", "digits", f"{option}={value}"])
    assert str(stop.value).startswith("error: ")
    assert message in str(stop.value)
    assert capsys.readouterr().out == ""


def test_check_prints_the_data_set_and_warns_where_it_is_not_mnist(tmp_path, monkeypatch, no_network, capsys):
    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path))
    __main__.main(["check"])
    out, err = capsys.readouterr()
    digits = data.load("digits")
    assert out == f"-r dataset digits -r device auto -p epochs 20 -p seed 0 -p threads 2\n{digits.checksum}\n"
    __main__.main(["check", "--dataset=digits", "--epochs=2e1", "--seed=0.0", "--threads=02"])
    assert capsys.readouterr().out == out, "numbers as people write them"
    assert "NOT MNIST" in err
    assert "****" in err
