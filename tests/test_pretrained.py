"""The weights in the repository: what is published comes back, and what is not as it was is refused."""

import hashlib
import json
from dataclasses import asdict, replace

import pytest
import torch

from mnist_ae import __main__, confusion, experiment, page, pretrained, recipes, storage, train
from mnist_ae.storage import CheckpointError


def test_what_is_published_comes_back_with_the_metrics_of_its_run(result, digits, folder):
    path = experiment.publish(result)
    model, metrics = experiment.pretrained(), json.loads((folder / "ten_digits.json").read_text())
    assert not model.training
    for name, weight in result.model.state_dict().items():
        if weight.ndim:  # no count of batches
            assert torch.equal(model.state_dict()[name], weight), name
    assert path.stat().st_size <= 700_000
    assert metrics["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metrics["predictions_changed"] == 0
    assert result.metrics.items() <= metrics.items()
    codes = train.encode(model, digits.test_images)
    assert confusion.confusion_matrix(digits.test_labels, codes).tolist() == metrics["test_matrix"]
    before = path.read_bytes()
    experiment.publish(result)
    assert path.read_bytes() == before, "the same bytes"


def test_the_committed_run_is_that_of_its_recipe_seed_data_and_code_alone(result, digits, folder, monkeypatch):
    seed, recipe = result.metrics["seed"], recipes.TEN_DIGITS
    monkeypatch.setitem(result.metrics, "recipe", json.loads(json.dumps(asdict(recipe))))
    monkeypatch.setitem(result.metrics, "data", {"name": digits.name, "sha256": digits.checksum})
    assert experiment.committed(recipe, seed, digits) is None, "there is none"
    experiment.publish(result)
    found = experiment.committed(recipe, seed, digits)
    assert (found.history, found.seconds, found.reused) == (result.history, result.seconds, True)
    assert result.metrics.items() <= found.metrics.items()
    assert torch.equal(*(train.encode(one.model, digits.test_images) for one in (found, result)))
    for other in (
        (recipe, seed + 1, digits),
        (replace(recipe, neighbours=9), seed, digits),
        (recipe, seed, replace(digits, train_images=digits.train_images[1:], train_labels=digits.train_labels[1:])),
    ):
        assert experiment.committed(*other) is None
    monkeypatch.setattr(experiment, "CODE", experiment.CODE[1:])
    assert experiment.committed(recipe, seed, digits) is None, "of other code"


def test_a_damaged_or_missing_file_is_named(result, folder):
    path = experiment.publish(result)
    content = bytearray(path.read_bytes())
    content[300_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ten_digits\.safetensors is damaged.*SHA-256"):
        experiment.pretrained()
    for name in (path.with_suffix(".json"), path):
        name.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name.name} is missing: .* `make refresh`"):
            experiment.pretrained()


def test_weights_of_another_architecture_are_refused_in_one_sentence(result, folder, monkeypatch):
    experiment.publish(result)
    monkeypatch.setattr(recipes, "TEN_DIGITS", recipes.POST)
    with pytest.raises(CheckpointError, match=r"ten_digits\.safetensors is of another architecture") as caught:
        experiment.pretrained()
    assert "\n" not in str(caught.value)


def test_what_rounding_would_change_and_what_is_worse_than_its_run_is_not_published(result, folder):
    better = json.loads(json.dumps(result.metrics))
    better["accuracy"]["one_to_one"] += 1e-6
    with pytest.raises(ValueError, match=r"the accuracy is .* in the run's metrics: not published"):
        experiment.publish(replace(result, metrics=better))
    model = recipes.TEN_DIGITS.model().eval()
    with torch.no_grad():  # its neuron 1 wins everywhere, by less than float16 can tell
        model.encoder[-3].weight.copy_(torch.eye(10)[1, :, None, None] * 1e-4 + 1)
        model.encoder[-3].bias.zero_()
    with pytest.raises(ValueError, match="changes what the model says of 360 test images: not published"):
        experiment.publish(replace(result, model=model))
    assert list(folder.iterdir()) == []


def test_the_committed_weights_have_on_mnist_what_the_file_beside_them_says(mnist):
    if not (pretrained.FOLDER / pretrained.NAME).exists():
        pytest.skip(f"figures/{pretrained.NAME} is not there: `make refresh` writes it")
    model, (_, metrics) = experiment.pretrained(), pretrained.read()
    matrix = confusion.confusion_matrix(mnist.test_labels, train.encode(model, mnist.test_images))
    assert matrix.tolist() == metrics["test_matrix"]
    mapping = confusion.one_to_one_mapping(metrics["train_matrix"])
    assert confusion.accuracy(matrix, mapping) == metrics["accuracy"]["one_to_one"]
    assert metrics["recipe"] == json.loads(json.dumps(asdict(recipes.TEN_DIGITS)))
    assert experiment.committed(recipes.TEN_DIGITS, 0, mnist), "trained by other code: `make refresh`"


def test_the_tasks_of_make_say_what_is_missing_and_where_they_wrote(result, folder, capsys):
    with pytest.raises(SystemExit, match=r"error: .*ten_digits\.safetensors is missing"):
        __main__.main(["page"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run", lambda *_, **__: result)
        __main__.main(["publish", "--dataset=digits"])
    __main__.main(["page"])
    written = folder / pretrained.NAME, storage.figures_folder("MNIST") / page.PAGE
    assert capsys.readouterr().out.split() == list(map(str, written))
