import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from mnist_ae import __main__, confusion, data, experiment, files, train
from mnist_ae.checkpoint import CheckpointError

QUICK = replace(experiment.POST, epochs=2)


@pytest.fixture(scope="module")
def few(digits):
    """300 images to learn from, 100 to test on."""
    return data.Digits(
        "digits",
        digits.train_images[:300],
        digits.train_labels[:300],
        digits.test_images[:100],
        digits.test_labels[:100],
    )


def weights(result):
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


def run(recipe, seed, digits, folder):
    return experiment.run(recipe, seed, digits, folder, progress=False)


def test_a_run_leaves_its_result_and_is_found_again(few, tmp_path):
    first = run(QUICK, 0, few, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "metrics.json", "model.pt"]
    again = run(QUICK, 0, few, tmp_path)
    loaded = experiment.load(QUICK, 0, few, tmp_path)
    assert (first.reused, again.reused, loaded.reused) == (False, True, True)
    assert "trained now" in first.origin
    assert "found finished" in again.origin
    for other in (again, loaded):
        assert torch.equal(weights(first), weights(other))
        assert first.history == other.history
        assert first.metrics == other.metrics
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


@pytest.mark.parametrize("labels", ["shuffled", "all the same"])
def test_labels_never_reach_training(few, tmp_path, labels):
    """Other labels, or labels that say nothing, leave every weight as it is, bit for bit."""
    truth = run(QUICK, 0, few, tmp_path / "truth")
    if labels == "shuffled":
        generator = torch.Generator().manual_seed(1)
        other = [t[torch.randperm(len(t), generator=generator)] for t in (few.train_labels, few.test_labels)]
    else:
        other = [torch.zeros_like(t) for t in (few.train_labels, few.test_labels)]
    result = run(QUICK, 0, replace(few, train_labels=other[0], test_labels=other[1]), tmp_path / "other")
    assert torch.equal(weights(truth), weights(result))
    assert all(torch.equal(truth.snapshots[e], result.snapshots[e]) for e in truth.snapshots)


def test_a_seed_is_a_run_whatever_was_drawn_before(few, tmp_path):
    first = run(QUICK, 5, few, tmp_path / "a")
    torch.rand(17)
    assert torch.equal(weights(first), weights(run(QUICK, 5, few, tmp_path / "b")))
    assert not torch.equal(weights(first), weights(run(QUICK, 6, few, tmp_path / "c")))
    state = torch.get_rng_state()
    run(QUICK, 7, few, tmp_path / "d")
    assert torch.equal(state, torch.get_rng_state()), "a run leaves the caller's random numbers alone"


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
    run(QUICK, 3, few, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["recipe"] == asdict(QUICK)
    assert (metrics["seed"], metrics["threads"], metrics["device"]) == (3, torch.get_num_threads(), "cpu")
    assert metrics["data"] == {"name": "digits", "sha256": few.checksum}
    assert metrics["versions"]["torch"] == metrics["torch"] == "2.15.0"
    assert metrics["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert not {"seconds", "date", "host"} & set(metrics), "two runs leave the same bytes"

    def git(*command):
        return subprocess.run(["git", *command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    monkeypatch.setattr(files, "HOME", tmp_path)
    assert experiment._commit() is None
    git("init")
    (tmp_path / "mnist_ae").mkdir()
    (tmp_path / "mnist_ae" / "a.py").write_text("")
    git("add", "mnist_ae")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    assert experiment._commit() == git("rev-parse", "HEAD").strip()
    (tmp_path / "mnist_ae" / "a.py").write_text("1")
    assert experiment._commit() == git("rev-parse", "HEAD").strip() + "+changes"
    monkeypatch.setenv("PATH", "")
    assert experiment._commit() is None


def test_a_sweep_has_one_row_a_seed_and_keeps_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path))
    recipe, digits = replace(experiment.POST, epochs=1), data.load("digits")
    experiment.sweep([recipe], [1], dataset="digits")
    experiment.sweep([recipe], range(2), dataset="digits")
    table = pd.read_csv(tmp_path / "figures" / "digits" / "sweep.csv")
    assert table["seed"].tolist() == [0, 1]
    pd.testing.assert_frame_equal(table, experiment.read_table("sweep", "digits"))
    torch.set_num_threads(1)
    here = run(recipe, 1, digits, tmp_path / "here")
    assert table["one_to_one"][1] == pytest.approx(here.metrics["accuracy"]["one_to_one"], rel=1e-5)
    assert experiment.read_table("seeds", "KMNIST").empty


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


class Shell:
    """What IPython knows of the cells that were run."""

    def __init__(self, *cells):
        self.user_ns = {"In": ["", *cells]}


def test_in_a_notebook_a_parameter_that_it_does_not_have_is_refused(monkeypatch):
    good = {"epochs": 1, "seed": 0, "device": "cpu", "threads": 2}
    own, injected = "# Parameters\nepochs = 1\n", '# Parameters\nepochs = 1\nPAPERMILL_INPUT_PATH = "01.ipynb"\n'
    for cells in ([], [own], [own, injected], ["anything = 1"], ["# Parameters\nprint(1)"]):
        monkeypatch.setattr(experiment, "get_ipython", lambda cells=cells: Shell(*cells))
        experiment.check_parameters(**good)
    monkeypatch.setattr(experiment, "get_ipython", lambda: Shell(own, "# Parameters\nepoch = 5\nlr = 1\n"))
    with pytest.raises(ValueError, match="unknown parameter epoch, lr: choose among dataset, epochs, seed, device, th"):
        experiment.check_parameters(**good)


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
