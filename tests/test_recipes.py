"""The label-free recipe: each of its parts against an independent computation, and the whole on the bundled digits."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from torch.nn import functional as F

from mnist_ae import (
    ablations,
    augment,
    baselines,
    confusion,
    experiment,
    losses,
    models,
    pseudo_labels,
    recipes,
    storage,
    train,
)
from mnist_ae.recipes import Network, TenDigits

TEACHER, STUDENT = recipes.TEN_DIGITS.teacher, recipes.TEN_DIGITS.students[0]
SHORT = TenDigits(
    "short", (Network(epochs=2),), replace(TEACHER, epochs=1, taught=1, warm_up=0.6), (replace(STUDENT, epochs=1),)
)


def trained(recipe, images, seed=0):
    with train.Trainer(seed, progress=False) as trainer:
        return recipe.train(trainer, images), trainer.history


def one_hot(neurons):
    return torch.eye(10)[torch.as_tensor(neurons)]


def test_a_short_run_beats_kmeans_by_ten_points_and_draws_from_ten_numbers(digits):
    def score(codes_train, codes_test):
        mapping = confusion.one_to_one_mapping(confusion.confusion_matrix(digits.train_labels, codes_train))
        return confusion.accuracy(confusion.confusion_matrix(digits.test_labels, codes_test), mapping)

    images, model = digits.test_images, trained(SHORT, digits.train_images)[0]
    codes = train.encode(model, images)
    kmeans = [baselines.accuracy(baselines.K_MEANS, digits, seed) for seed in range(2)]
    assert score(train.encode(model, digits.train_images), codes) > np.mean(kmeans) + 0.1
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(len(images)))
    drawn = train.decode(model, codes[:5])
    torch.testing.assert_close(drawn, train.reconstruct(model, images[:5]))
    assert 0 <= drawn.min() <= drawn.max() <= 1
    inputs = recipes.with_inputs(SHORT.model, images)
    assert torch.equal(inputs[:, :1], images)
    torch.testing.assert_close(recipes.predict(model, inputs), codes, atol=0.05, rtol=0)


def test_aggregation_finds_what_a_vote_would_lose(rng):
    """A tenth of the 7s has a bar: 2s to one network, 9s to another, and 7s to a third."""
    truth = rng.integers(10, size=6000)
    barred = (truth == 7) & (rng.random(6000) < 0.1)
    predictions = [0.9 * one_hot(np.where(barred, said, truth)) + 0.01 for said in (2, 9, truth)]
    assert (sum(pseudo_labels.align(predictions)).max(dim=1).values < 1)[barred].all(), "one to one to one"
    found = pseudo_labels.aggregate(predictions)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6000))
    order = confusion.one_to_one_mapping(confusion.confusion_matrix(torch.tensor(truth), found))
    assert (order[found.argmax(dim=1)] == truth).all()


def test_a_network_that_merged_two_digits_is_not_asked_and_codes_that_are_all_equal_have_an_answer(rng):
    truth, same = rng.integers(10, size=600), torch.full((600, 10), 0.1)
    good, merged = one_hot(truth), one_hot(np.where(truth == 9, 4, truth))
    for predictions in ([good, merged, good], [merged, good]):
        kept = pseudo_labels.align(predictions)
        assert [torch.equal(codes, good) for codes in kept] == [True] * (len(predictions) - 1)
    torch.testing.assert_close(pseudo_labels.aggregate([same, same]).sum(dim=1), torch.ones(600))
    assert (pseudo_labels.aggregate([same, good, good]).argmax(dim=1).numpy() == truth).all()


def test_the_nearest_neighbours_are_those_of_all_distances(digits):
    """60 images have 60 principal components, and these all distances."""
    images = digits.train_images[:60, 0]
    flat = images.flatten(1).double().numpy()
    distances = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(pseudo_labels.nearest_neighbours(images, 7), distances.argsort(axis=1)[:, :7])
    assert pseudo_labels.nearest_neighbours(images[:5], 7).shape == (5, 4), "there are no more"


@pytest.fixture
def batch(digits):
    inputs = recipes.with_inputs(models.TenNeurons, digits.train_images[:32])
    return lambda epoch=1: train.Batch(inputs, torch.arange(32), epoch, torch.Generator().manual_seed(0))


def view(batch, bands=True):
    """The augmented copies of what the encoder reads that a loss draws of this batch."""
    return augment.view(batch.images[:, 1:].float() / 255, batch.generator, bands=bands)


@pytest.mark.parametrize(("epoch", "bands"), [(1, False), (2, True)])
def test_the_objective_is_what_it_says(batch, epoch, bands):
    """Computed again by SciPy, from the codes of the image and of the same view, with bands from the second epoch."""
    network = Network(heads=3)
    model = models.initialise(network.model, 0)
    both = torch.cat([batch().images[:, 1:].float() / 255, view(batch(), bands)])
    with torch.no_grad():
        logits = model.encoder[:-1](both).double().numpy().reshape(2, 32, 3, 10)
    expected = 0.0
    for head in range(3):
        codes, of_view = special.softmax(logits[:, :, head], axis=-1)
        divergence = special.rel_entr(codes, of_view).sum() / 32
        information = 4 * special.entr(codes.mean(0)).sum() - special.entr(codes).sum() / 32
        expected += divergence - 0.2 * information
    assert network.loss(None, model, batch(epoch)).item() == pytest.approx(expected, rel=1e-4)


def test_a_taught_network_learns_pseudo_labels_and_the_image_as_it_came_from_views_with_bands(batch):
    student, targets = replace(STUDENT, taught=2, reconstruction=9), one_hot(torch.arange(32) % 10) * 0.9 + 0.01
    model = models.initialise(student.model, 0)
    with torch.no_grad():
        logits = model.encoder[:-1](view(batch()))
        drawn, image = model.decoder(logits.softmax(dim=1)), batch().images[:, :1].float() / 255
        expected = F.cross_entropy(logits, targets).item() + 9 * F.mse_loss(drawn, image).item()
    for epoch in (1, 2):
        assert student.loss(targets, model, batch(epoch)).item() == pytest.approx(expected, rel=1e-4)
    assert student.loss(targets, model, batch(3)).item() == student.loss(None, model, batch(3)).item()


def test_the_head_with_the_largest_mutual_information_is_the_code(digits):
    model = models.initialise(lambda: models.TenNeurons(heads=4), 0).eval()
    inputs = recipes.with_inputs(models.TenNeurons, digits.train_images[:200])
    with torch.no_grad():
        model.encoder[-3].weight[20:30] *= 30  # the third one's codes are surer than the others'
        codes = model.encoder[:-1](inputs[:, 1:].float() / 255).unflatten(1, (4, 10)).softmax(dim=2)
    assert losses.mutual_information(codes.transpose(0, 1)).argmax() == 2
    recipes.best_head_first(model, inputs)
    torch.testing.assert_close(train.encode(model, digits.train_images[:200]), codes[:, 2], atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network(warm_up=0), "warm_up must be between 0 and the 2 epochs, got 0"),
        (lambda: Network(epochs=1, warm_up=1.5), "warm_up must be between 0 and the 1 epochs, got 1.5"),
        (lambda: Network(reconstruction=1), "heads must be 1 where there is a reconstruction to learn, got 8"),
        (lambda: TenDigits(neighbours=-1), "neighbours must be a whole number from 0"),
        (lambda: TenDigits(committee=(Network(holes=False),)), "canonical and holes must be the same"),
        (lambda: recipes.Post(batch_size=2.5), "batch_size must be a whole number from 1"),
        (lambda: trained(SHORT, torch.zeros(127, 1, 28, 28)), "127 images are less than one batch of 128"),
        (lambda: trained(Network(), torch.zeros(127, 1, 28, 28)), "127 images are less than one batch of 128"),
    ],
)
def test_settings_that_cannot_work_and_too_few_images_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("network", ablations.INFORMATION, ids=lambda network: network.name)
def test_the_decoder_learns_only_where_there_is_a_reconstruction(network, digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 1)
    model, history = trained(network, digits.train_images[:128])
    assert np.isfinite(history[-1]["loss"])
    pairs = zip(model.decoder.parameters(), models.initialise(network.model, 0).decoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == (network.name != "reconstruction")


def test_reconstruction_and_information_differ_in_their_loss_alone(digits):
    """The error of what the code of the same augmented copy decodes to; all settings are the same but the name."""
    one, other = ablations.INFORMATION[:2]
    assert asdict(one) | {"name": other.name} == asdict(other)
    inputs = recipes.with_inputs(one.model, digits.train_images[:32])
    model = models.initialise(one.model, 0).eval()
    for epoch in (1, 2):
        loss = one.loss(None, model, train.Batch(inputs, torch.arange(32), epoch, torch.Generator().manual_seed(5)))
        copy = augment.view(inputs[:, 1:] / 255, torch.Generator().manual_seed(5), bands=epoch == 2)
        expected = (train.decode(model, model.encoder(copy).detach()) - inputs[:, :1] / 255).square().mean()
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("recipe", ablations.RECONSTRUCTION, ids=lambda recipe: recipe.name)
def test_reconstruction_alone_lowers_the_error_of_what_its_code_decodes_to(recipe, digits):
    images = digits.train_images[:512]
    model, history = trained(replace(recipe, epochs=4), images)
    assert history[-1]["loss"] < history[0]["loss"]
    codes = train.encode(model, images)
    assert torch.allclose(codes.sum(dim=1), torch.ones(len(codes))) == (not recipe.free)
    if not recipe.augmented:
        error = (train.decode(model, codes) - images / 255).square().mean()
        batch = train.Batch(images, torch.arange(len(images)), 1, torch.Generator())
        torch.testing.assert_close(recipe.loss(model.eval(), batch), error)


def test_rates_are_those_with_the_lowest_loss_of_the_committed_table():
    table = pd.read_csv(storage.HOME / "figures" / "learning_rates.csv").set_index("recipe")["loss"]
    assert set(table.index) == {recipe.name for recipe in ablations.learning_rates()}
    for recipe in ablations.RECONSTRUCTION:
        tried = {rate: table.get(f"{recipe.name}-{rate:g}") for rate in ablations.RATES[recipe.convolutions]}
        assert recipe.lr == min(tried, key=tried.get), recipe.name


def test_each_part_that_is_left_out_makes_another_model_and_a_seed_is_a_run(digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 1)
    images, state = digits.train_images[:128], torch.get_rng_state()

    def codes(seed=0, **change):
        model, history = trained(replace(SHORT, **change), images, seed)
        assert len(history) == replace(SHORT, **change).epochs
        return train.encode(model, images)

    whole = codes()
    assert torch.equal(codes(), whole)
    for change in ({"neighbours": 0}, {"students": ()}, {"committee": ()}, {"seed": 1}):
        assert not torch.equal(codes(**change), whole), change
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"


def test_what_is_left_out_is_what_the_runs_of_notebook_04_left_out(digits):
    """Settings of the recipe, of all networks, or of those of one part, as the committed runs had them."""
    runs = pd.read_csv(storage.HOME / "figures" / "trials.csv").query("trial.str.startswith('ablation: ')")
    settings = runs.assign(trial=runs["trial"].str[len("ablation: ") :]).groupby("trial")["settings"].first()
    whole, *others = ablations.LEFT_OUT
    assert {"the whole recipe", *(recipe.name.replace("-", " ") for recipe in others)} == set(settings.index)
    parts = {"committee": whole.committee, "teacher": (whole.teacher,), "students": whole.students}
    for recipe in others:
        assert experiment.run_folder(recipe, 0, digits).name.startswith(recipe.name), "it can be run"
        changes = json.loads(settings[recipe.name.replace("-", " ")])
        changes = {
            name: value for name, value in changes.items() if name not in ("device", "mistakes", "neighbours_in")
        }
        everywhere = {name: changes.pop(name) for name in ("holes", "canonical", "augmented") if name in changes}
        for part, networks in parts.items():
            made = changes.pop(part, {})
            expected = tuple(replace(network, **everywhere | made) for network in networks) if made != [] else ()
            found = getattr(recipe, part)
            assert (found if isinstance(found, tuple) else (found,)) == expected, (recipe.name, part)
        assert changes == ({} if recipe.neighbours == whole.neighbours else {"neighbours": recipe.neighbours})
