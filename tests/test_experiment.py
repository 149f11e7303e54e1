import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mnist_ae import __main__, confusion, data, experiment, train

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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "model.pt"]
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


@pytest.mark.parametrize("labels", ["shuffled", "missing"])
def test_labels_never_reach_training(few, tmp_path, labels, monkeypatch):
    """Other labels, or none at all, leave every weight as it is, bit for bit."""
    truth = run(QUICK, 0, few, tmp_path / "truth")
    if labels == "shuffled":
        generator = torch.Generator().manual_seed(1)
        other = [t[torch.randperm(len(t), generator=generator)] for t in (few.train_labels, few.test_labels)]
    else:
        other = [t[:0] for t in (few.train_labels, few.test_labels)]
        monkeypatch.setattr(experiment, "_evaluate", lambda *_: {})  # scoring is the one thing that needs them
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


@pytest.mark.parametrize("file", ["model.pt", "metrics.json"])
def test_a_damaged_result_is_trained_again(few, tmp_path, file):
    first = run(QUICK, 0, few, tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:100])
    again = run(QUICK, 0, few, tmp_path)
    assert not again.reused
    assert torch.equal(weights(first), weights(again))


def test_an_interrupted_run_leaves_no_finished_one(few, tmp_path, monkeypatch):
    run(QUICK, 0, few, tmp_path)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full (test)")))
    with pytest.raises(OSError, match="disk full"):
        run(QUICK, 1, few, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"], "no half-written file, no metrics of other weights"


def test_a_sweep_has_one_row_a_seed_and_keeps_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path))
    recipe, digits = replace(experiment.POST, epochs=1), data.load("digits")
    experiment.sweep([(recipe, 1)], digits)
    experiment.sweep([(recipe, 0), (recipe, 1)], digits)
    table = pd.read_csv(tmp_path / "figures" / "digits" / "seeds.csv")
    assert table["seed"].tolist() == [0, 1]
    pd.testing.assert_frame_equal(table, experiment.read_table("seeds", "digits"))
    torch.set_num_threads(1)
    here = run(recipe, 1, digits, tmp_path / "here")
    assert table["one_to_one"][1] == pytest.approx(here.metrics["accuracy"]["one_to_one"], rel=1e-5)
    assert experiment.read_table("seeds", "KMNIST").empty


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--dataset", "mnist", "unknown data set 'mnist'"),
        ("--epochs", "0", "epochs must be a whole number from 1 to 10,000, got 0"),
        ("--epochs", "1e-3", "epochs must be a whole number from 1 to 10,000, got '1e-3'"),
        ("--epochs", "", "epochs must be a whole number"),
        ("--seed", "-1", "seed must be a whole number"),
        ("--threads", "0", "threads must be a whole number from 1 to 256"),
        ("--device", "gpu", "unknown device 'gpu'"),
        ("--seeds", "0", "seeds must be a whole number from 1"),
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
    assert out == "digits\n"
    assert "NOT MNIST" in err
    assert "****" in err
