"""The label-free recipe: each of its parts against an independent computation, and the whole on the bundled digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional as F

from mnist_ae import augment, baselines, confusion, ladder, losses, models, pseudo_labels, recipes, train
from mnist_ae.recipes import Network, TenDigits

TEACHER, STUDENT = recipes.TEN_DIGITS.teacher, recipes.TEN_DIGITS.students[0]
SHORT = TenDigits(
    "short",
    committee=2 * (Network(epochs=2),),
    teacher=replace(TEACHER, epochs=3),
    students=2 * (replace(STUDENT, epochs=1),),
)


def trained(recipe, images, seed=0, **options):
    with train.Trainer(seed, progress=False, **options) as trainer:
        return recipe.train(trainer, images), trainer.history


def one_hot(neurons):
    return torch.eye(10)[torch.as_tensor(neurons)]


def score(codes_train, codes_test, digits):
    mapping = confusion.one_to_one_mapping(confusion.confusion_matrix(digits.train_labels, codes_train))
    return confusion.accuracy(confusion.confusion_matrix(digits.test_labels, codes_test), mapping)


def test_a_short_run_beats_kmeans_by_ten_points_and_draws_from_ten_numbers(digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 100)
    model, history = trained(SHORT, digits.train_images)
    codes = train.encode(model, digits.test_images)
    kmeans = [
        score(*baselines.clusters("k-means on pixels", digits.train_images, digits.test_images, seed), digits)
        for seed in range(5)
    ]
    assert score(train.encode(model, digits.train_images), codes, digits) > np.mean(kmeans) + 0.1
    stages = ["member 1"] * 2 + ["member 2"] * 2 + ["teacher"] * 3 + ["student 1", "student 2"]
    assert [row["stage"] for row in history] == stages
    assert codes.shape == (len(digits.test_images), 10)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(len(codes)))
    drawn = train.decode(model, codes[:5])
    torch.testing.assert_close(drawn, train.reconstruct(model, digits.test_images[:5]))
    assert 0 <= drawn.min() <= drawn.max() <= 1
    inputs = recipes.with_inputs(SHORT.model, digits.test_images)
    torch.testing.assert_close(recipes.predict(model, inputs), codes, atol=0.05, rtol=0)


# --------------------------------------------------------------------------------------------------- pseudo-labels


def test_pseudo_labels_do_not_care_for_the_order_of_neurons(rng):
    truth = rng.integers(10, size=600)
    predictions = []
    for _ in range(3):
        neurons = truth.copy()
        wrong = rng.random(600) < 0.05
        neurons[wrong] = rng.integers(10, size=wrong.sum())
        predictions.append(0.9 * one_hot(neurons) + 0.01)
    orders = [torch.tensor(rng.permutation(10)) for _ in predictions]
    plain = pseudo_labels.aggregate(predictions)
    mixed = pseudo_labels.aggregate([codes[:, order] for codes, order in zip(predictions, orders, strict=True)])
    best = int(np.argmax([losses.mutual_information(codes) for codes in predictions]))
    torch.testing.assert_close(mixed, plain[:, orders[best]], atol=1e-4, rtol=1e-3)
    assert (plain.argmax(dim=1).numpy() == truth).mean() > 0.98, "three networks at 95 % are better than one"


def test_wrong_answers_become_right_ones_when_habits_are_known(rng):
    """A tenth of the 7s has a bar: 2s to one network, 9s to another, and 7s to a third."""
    truth = rng.integers(10, size=6000)
    barred = (truth == 7) & (rng.random(6000) < 0.1)
    predictions = [0.9 * one_hot(np.where(barred, said, truth)) + 0.01 for said in (2, 9, truth)]
    assert (sum(pseudo_labels.align(predictions)).max(dim=1).values < 1)[barred].all(), "one to one to one"
    found = pseudo_labels.aggregate(predictions)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6000))
    order = confusion.one_to_one_mapping(confusion.confusion_matrix(torch.tensor(truth), found))
    assert (order[found.argmax(dim=1)] == truth).all()


def test_a_network_that_merged_two_digits_is_not_asked(rng):
    truth = rng.integers(10, size=600)
    good, merged = one_hot(truth), one_hot(np.where(truth == 9, 4, truth))
    for predictions in ([good, merged, good], [merged, good]):
        kept = pseudo_labels.align(predictions)
        assert len(kept) == len(predictions) - 1
        assert all(torch.equal(codes, good) for codes in kept)


def test_codes_that_are_all_equal_have_an_answer_and_no_nan():
    same, other = torch.full((50, 10), 0.1), one_hot(np.arange(50) % 10)
    for predictions in ([same, same], [same, other], [one_hot([0] * 50)] * 2):
        answers = pseudo_labels.aggregate(predictions)
        torch.testing.assert_close(answers.sum(dim=1), torch.ones(50))
    assert (pseudo_labels.aggregate([same, other, other]).argmax(dim=1) == other.argmax(dim=1)).all()


def test_the_nearest_neighbours_are_those_of_all_distances(digits):
    """60 images have 60 principal components, and these all distances."""
    images = digits.train_images[:60, 0]
    flat = images.flatten(1).double().numpy()
    distances = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(pseudo_labels.nearest_neighbours(images, 7), distances.argsort(axis=1)[:, :7])
    assert pseudo_labels.nearest_neighbours(images[:5], 7).shape == (5, 4), "there are no more"


def test_neighbours_put_answers_right(digits, rng):
    """A tenth of the answers lean to a wrong digit; the images around know better."""
    truth = digits.train_labels.numpy()
    unsure = rng.random(len(truth)) < 0.1
    codes = one_hot(truth)
    codes[unsure] = 0.4 * codes[unsure] + 0.6 * one_hot((truth[unsure] + rng.integers(1, 10, size=unsure.sum())) % 10)
    nearest = pseudo_labels.nearest_neighbours(digits.train_images[:, 0], 10)
    found = pseudo_labels.agree(codes, nearest)
    product = codes.clamp_min(1e-4) * torch.stack([codes[places].mean(0) for places in nearest]).clamp_min(1e-4)
    torch.testing.assert_close(found, product / product.sum(dim=1, keepdim=True))
    assert (codes.argmax(dim=1).numpy() == truth).mean() < 0.92
    assert (found.argmax(dim=1).numpy() == truth).mean() > 0.98


# -------------------------------------------------------------------------------------------------------- the loss


@pytest.fixture
def batch(digits):
    inputs = recipes.with_inputs(models.TenNeurons, digits.train_images[:32])
    return lambda epoch=1: train.Batch(inputs, torch.arange(32), epoch, torch.Generator().manual_seed(0))


def read_by_the_encoder(batch, *, bands=None):
    x = batch.images[:, 1:].float() / 255
    return x if bands is None else augment.view(x, batch.generator, bands=bands)


@pytest.mark.parametrize(("epoch", "bands"), [(1, False), (2, True)])
def test_the_objective_is_what_it_says(batch, epoch, bands):
    """Computed again by SciPy, from the codes of the image and of the same view, with bands from the second epoch."""
    network = Network(heads=3)
    model = models.born(network.model, 0)
    x, view = read_by_the_encoder(batch()), read_by_the_encoder(batch(), bands=bands)
    with torch.no_grad():
        both = model.encoder[:-1](torch.cat([x, view])).double().numpy().reshape(2, 32, 3, 10)
    expected = 0.0
    for head in range(3):
        codes, of_view = special.softmax(both[:, :, head], axis=-1)
        divergence = special.rel_entr(codes, of_view).sum() / 32
        information = 4 * special.entr(codes.mean(0)).sum() - special.entr(codes).sum() / 32
        expected += divergence - 0.2 * information
    assert network.loss(None, model, batch(epoch)).item() == pytest.approx(expected, rel=1e-4)


def test_pseudo_labels_are_learned_in_the_first_epochs_from_views_with_bands(batch):
    network, answers = replace(TEACHER, taught=2), one_hot(torch.arange(32) % 10) * 0.9 + 0.01
    model = models.born(network.model, 0)
    with torch.no_grad():
        logits = model.encoder[:-1](read_by_the_encoder(batch(), bands=True))
        expected = F.cross_entropy(logits, answers).item()
    for epoch in (1, 2):
        assert network.loss(answers, model, batch(epoch)).item() == pytest.approx(expected, rel=1e-4)
    assert network.loss(answers, model, batch(3)).item() == network.loss(None, model, batch(3)).item()


def test_the_reconstruction_is_of_the_image_as_it_came_and_from_ten_numbers(batch):
    model, answers = models.born(STUDENT.model, 0), one_hot(torch.arange(32) % 10)
    full, without = (replace(STUDENT, reconstruction=weight).loss(answers, model, batch()).item() for weight in (9, 0))
    with torch.no_grad():
        codes = model.encoder[:-1](read_by_the_encoder(batch(), bands=True)).softmax(dim=1)
        error = F.mse_loss(model.decoder(codes), batch().images[:, :1].float() / 255).item()
    assert full - without == pytest.approx(9 * error, rel=1e-3)


def test_what_an_encoder_reads_is_computed_once_beside_the_image(digits):
    images = digits.train_images[:40]
    inputs = recipes.with_inputs(models.TenNeurons, images)
    assert torch.equal(inputs[:, :1], images)
    assert torch.equal(recipes.with_inputs(models.TenNeurons, images / 255), inputs), "images may be float, too"
    x = inputs[:, 1:].float() / 255
    assert torch.equal(models.TenNeurons().normalise(x), x), "images that bring their holes stay as they are"


def test_the_head_with_the_largest_mutual_information_is_the_code(digits):
    model = models.born(lambda: models.TenNeurons(heads=4), 0).eval()
    inputs = recipes.with_inputs(models.TenNeurons, digits.train_images[:200])
    with torch.no_grad():
        model.encoder[-3].weight[20:30] *= 30  # the third one's codes are surer than the others'
        codes = model.encoder[:-1](inputs[:, 1:].float() / 255).unflatten(1, (4, 10)).softmax(dim=2)
    assert losses.mutual_information(codes.transpose(0, 1)).argmax() == 2
    recipes.best_head_first(model, inputs)
    torch.testing.assert_close(train.encode(model, digits.train_images[:200]), codes[:, 2], atol=0.01, rtol=0)


# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network(warm_up=0), "warm_up must be between 0 and the 2 epochs, got 0"),
        (lambda: Network(epochs=1, warm_up=1.5), "warm_up"),
        (lambda: Network(reconstruction=1), "heads must be 1 where there is a reconstruction to learn, got 8"),
        (lambda: TenDigits(neighbours=-1), "neighbours"),
        (lambda: TenDigits(committee=(Network(holes=False),)), "canonical and holes must be the same"),
        (lambda: recipes.Post(epochs=0), "epochs"),
        (lambda: recipes.Post(batch_size=2.5), "batch_size"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rung", [rung for rung in ladder.RUNGS.values() if isinstance(rung, Network)])
def test_every_rung_of_one_network_trains(rung, digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 1)
    model, history = trained(rung, digits.train_images[:256])
    assert np.isfinite(history[-1]["loss"])
    pairs = zip(model.decoder.parameters(), models.born(rung.model, 0).decoder.parameters(), strict=True)
    changed = [not torch.equal(a, b) for a, b in pairs]
    assert all(changed) == any(changed) == bool(rung.reconstruction), "a decoder learns where there is a reconstruction"


def test_each_part_that_is_left_out_makes_another_model_and_a_seed_is_a_run(digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 1)
    images, state, found = digits.train_images[:256], torch.get_rng_state(), {}
    without = {"neighbours": {"neighbours": 0}, "students": {"students": ()}, "committee": {"committee": ()}}
    for name, change in {"nothing": {}, "nothing again": {}, **without}.items():
        recipe = replace(SHORT, **change)
        model, history = trained(recipe, images)
        assert len(history) == recipe.epochs
        found[name] = train.encode(model, images)
    assert torch.equal(found["nothing"], found["nothing again"])
    assert not any(torch.equal(found["nothing"], found[name]) for name in without)
    assert not torch.equal(found["nothing"], train.encode(trained(SHORT, images, seed=1)[0], images))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"


def test_too_few_images_are_named(digits):
    for count in (1, 127):
        for recipe in (SHORT, Network()):
            with pytest.raises(ValueError, match=f"{count} images are less than one batch of 128"):
                trained(recipe, digits.train_images[:count])
