from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional as F

from mnist_ae import augment, baselines, confusion, data, experiment, ladder, losses, models, ten_digits, train
from mnist_ae.ten_digits import Network, TenDigits

TEACHER, STUDENT = TenDigits().teacher, TenDigits().students[0]
SHORT = TenDigits(
    "short",
    committee=2 * (Network(epochs=1, heads=2),),
    teacher=replace(TEACHER, epochs=2),
    students=2 * (replace(STUDENT, epochs=1),),
)


@pytest.fixture
def brief(monkeypatch):
    """Epochs of 30 batches: enough to move weights, not to learn."""
    monkeypatch.setattr(train, "LEAST_BATCHES", 30)


def one_hot(neurons):
    return torch.eye(10)[torch.as_tensor(neurons)]


@pytest.fixture(scope="module")
def quick(digits):
    """Epochs of 100 batches."""
    recipe = replace(SHORT, committee=2 * (Network(epochs=2),), teacher=replace(TEACHER, epochs=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LEAST_BATCHES", 100)
        return recipe.fit(digits.train_images, 0, device="cpu", progress=False)


def score(codes_train, codes_test, digits):
    mapping = confusion.one_to_one_mapping(confusion.confusion_matrix(digits.train_labels, codes_train))
    return confusion.accuracy(confusion.confusion_matrix(digits.test_labels, codes_test), mapping)


def test_a_short_run_beats_kmeans_by_ten_points_on_the_bundled_digits(quick, digits):
    model, history = quick
    ours = score(train.encode(model, digits.train_images), train.encode(model, digits.test_images), digits)
    kmeans = [
        score(*baselines.kmeans_clusters(digits.train_images, digits.test_images, seed), digits) for seed in range(5)
    ]
    assert ours > np.mean(kmeans) + 0.1
    parts = ["member 1"] * 2 + ["member 2"] * 2 + ["teacher"] * 3 + ["student 1", "student 2"]
    assert [row["part"] for row in history] == parts
    assert all(np.isfinite(row["loss"]) for row in history)


def test_the_code_is_ten_numbers_and_the_decoder_sees_nothing_else(quick, digits):
    model = quick[0].eval()
    codes = train.encode(model, digits.test_images)
    assert codes.shape == (len(digits.test_images), 10)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(len(codes)))
    drawn = train.decode(model, codes[:5])
    torch.testing.assert_close(drawn, train.reconstruct(model, digits.test_images[:5]))
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_labels_never_reach_the_recipe(digits, tmp_path, brief):
    """Permuted labels: the same weights, bit for bit."""
    shuffled = replace(digits, train_labels=digits.train_labels[torch.randperm(len(digits.train_labels))])
    results = [
        experiment.run(SHORT, 3, each, tmp_path / name, progress=False)
        for name, each in {"truth": digits, "shuffled": shuffled}.items()
    ]
    for a, b in zip(*(result.model.state_dict().values() for result in results), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(digits.train_labels, shuffled.train_labels)
    found = experiment.load(SHORT, 3, digits, tmp_path / "truth")
    assert found.reused
    assert torch.equal(
        train.encode(found.model, digits.test_images), train.encode(results[0].model, digits.test_images)
    )


def test_answers_do_not_care_for_the_order_of_neurons(rng):
    truth = rng.integers(10, size=600)
    readings = []
    for _ in range(3):
        neurons = truth.copy()
        wrong = rng.random(600) < 0.05
        neurons[wrong] = rng.integers(10, size=wrong.sum())
        readings.append(0.9 * one_hot(neurons) + 0.01)
    orders = [torch.tensor(rng.permutation(10)) for _ in readings]
    plain = ten_digits.aggregate(readings)
    mixed = ten_digits.aggregate([reading[:, order] for reading, order in zip(readings, orders, strict=True)])
    best = int(np.argmax([losses.mutual_information(reading) for reading in readings]))
    torch.testing.assert_close(mixed, plain[:, orders[best]], atol=1e-4, rtol=1e-3)
    assert (plain.argmax(dim=1).numpy() == truth).mean() > 0.98, "three readings at 95 % are better than one"


def test_wrong_answers_become_right_ones_when_habits_are_known(rng):
    """A tenth of the 7s has a bar: 2s to one model, 9s to another, and 7s to a third."""
    truth = rng.integers(10, size=6000)
    barred = (truth == 7) & (rng.random(6000) < 0.1)
    answers = [np.where(barred, 2, truth), np.where(barred, 9, truth), truth]
    readings = [0.9 * one_hot(each) + 0.01 for each in answers]
    votes = sum(ten_digits.align(readings))
    assert (votes.max(dim=1).values < 1)[barred].all(), "one to one to one"
    found = ten_digits.aggregate(readings)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6000))
    order = confusion.one_to_one_mapping(confusion.confusion_matrix(torch.tensor(truth), found))
    assert (order[found.argmax(dim=1)] == truth).all()


def test_a_network_that_merged_two_digits_is_not_asked(rng):
    truth = rng.integers(10, size=600)
    good, merged = one_hot(truth), one_hot(np.where(truth == 9, 4, truth))
    for readings in ([good, merged, good], [merged, good]):
        kept = ten_digits.align(readings)
        assert len(kept) == len(readings) - 1
        assert all(torch.equal(codes, good) for codes in kept)


@pytest.fixture
def batch(digits):
    sights = train.with_sights(models.TenNeurons(), digits.train_images[:32])
    return lambda epoch=1: train.Batch(sights.float() / 255, torch.arange(32), epoch, torch.Generator().manual_seed(0))


def test_the_objective_is_what_it_says(batch):
    """Computed again in NumPy, from the codes of the image and of the same view."""
    network = Network(heads=3)
    model = train.born(network.model, 0)
    sight = batch().images[:, 1:]
    view = augment.view(sight, batch().generator, bands=False)
    with torch.no_grad():
        both = model.encoder[:-1](torch.cat([sight, view])).double().numpy().reshape(2, 32, 3, 10)
    expected = 0.0
    for head in range(3):
        codes, of_view = special.softmax(both[:, :, head], axis=-1)
        divergence = special.rel_entr(codes, of_view).sum() / 32
        information = 4 * special.entr(codes.mean(0)).sum() - special.entr(codes).sum() / 32
        expected += divergence - 0.2 * information
    assert network.loss(model, None, batch()).item() == pytest.approx(expected, rel=1e-4)


def test_pseudo_labels_are_learned_in_the_first_epochs_from_views_with_bands(batch):
    network = replace(TEACHER, taught=2)
    model, answers = train.born(network.model, 0), one_hot(torch.arange(32) % 10) * 0.9 + 0.01
    view = augment.view(batch().images[:, 1:], batch().generator, bands=True)
    with torch.no_grad():
        expected = F.cross_entropy(model.encoder[:-1](view), answers).item()
    for epoch in (1, 2):
        assert network.loss(model, answers, batch(epoch)).item() == pytest.approx(expected, rel=1e-4)
    assert network.loss(model, answers, batch(3)).item() == network.loss(model, None, batch(3)).item()


def test_the_drawing_is_of_the_image_as_it_came_and_from_ten_numbers(batch):
    model, answers = train.born(STUDENT.model, 0), one_hot(torch.arange(32) % 10)
    full, without = (replace(STUDENT, reconstruction=weight).loss(model, answers, batch()).item() for weight in (9, 0))
    view = augment.view(batch().images[:, 1:], batch().generator, bands=True)
    with torch.no_grad():
        codes = model.encoder[:-1](view).softmax(dim=1)
        error = F.mse_loss(model.decoder(codes), batch().images[:, :1]).item()
    assert full - without == pytest.approx(9 * error, rel=1e-3)


def test_a_reading_is_the_codes_of_the_images(quick, digits):
    found = ten_digits.read(quick[0], train.with_sights(quick[0], digits.train_images[:50]))
    assert found.std(dim=0).min() > 0.1, "the images have other codes"
    torch.testing.assert_close(found, train.encode(quick[0], digits.train_images[:50]), atol=0.02, rtol=0)


def test_the_nearest_neighbours_are_those_of_all_distances(digits):
    """60 images have 60 principal components, and these all distances."""
    images = digits.train_images[:60, 0]
    flat = images.flatten(1).double().numpy()
    distances = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(ten_digits.nearest_neighbours(images, 7), distances.argsort(axis=1)[:, :7])
    assert ten_digits.nearest_neighbours(images[:5], 7).shape == (5, 4), "there are no more"


def test_neighbours_put_answers_right(digits, rng):
    """A tenth of the answers lean to a wrong digit; the images around know better."""
    truth = digits.train_labels.numpy()
    unsure = rng.random(len(truth)) < 0.1
    codes = one_hot(truth)
    codes[unsure] = 0.4 * codes[unsure] + 0.6 * one_hot((truth[unsure] + rng.integers(1, 10, size=unsure.sum())) % 10)
    nearest = ten_digits.nearest_neighbours(digits.train_images[:, 0], 10)
    found = ten_digits.agree(codes, nearest)
    product = codes.clamp_min(1e-4) * torch.stack([codes[places].mean(0) for places in nearest]).clamp_min(1e-4)
    torch.testing.assert_close(found, product / product.sum(dim=1, keepdim=True))
    assert (codes.argmax(dim=1).numpy() == truth).mean() < 0.92
    assert (found.argmax(dim=1).numpy() == truth).mean() > 0.98


def test_what_an_encoder_reads_is_computed_once_beside_the_image(digits):
    model = models.TenNeurons()
    x = train.with_sights(model, digits.train_images[:40])
    assert torch.equal(x[:, :1], digits.train_images[:40])
    assert torch.equal(train.with_sights(model, digits.train_images[:40] / 255), x), "images may be float, too"
    sight = x[:, 1:].float() / 255
    assert torch.equal(model.normalise(sight), sight), "images that bring their holes stay as they are"


def test_the_head_with_the_largest_mutual_information_is_the_code(digits):
    model = train.born(lambda: models.TenNeurons(heads=4), 0).eval()
    sights = train.with_sights(model, digits.train_images[:200])[:, 1:]
    with torch.no_grad():
        model.encoder[-3].weight[20:30] *= 30  # the third one's codes are surer than the others'
        codes = model.encoder[:-1](sights.float() / 255).unflatten(1, (4, 10)).softmax(dim=2)
    assert losses.mutual_information(codes.transpose(0, 1)).argmax() == 2
    ten_digits.best_head_first(model, sights)
    torch.testing.assert_close(train.encode(model, digits.train_images[:200]), codes[:, 2], atol=0.01, rtol=0)


def test_a_decoder_and_several_heads_are_refused():
    with pytest.raises(ValueError, match="heads must be 1 where there is a reconstruction to learn, got 8"):
        Network(reconstruction=1)


def test_settings_that_cannot_work_are_refused_before_anything_runs():
    for wrong, message in [({"warm_up": 0}, "warm_up"), ({"epochs": 1, "warm_up": 1.5}, "warm_up")]:
        with pytest.raises(ValueError, match=message):
            Network(**wrong)
    with pytest.raises(ValueError, match="neighbours"):
        TenDigits(neighbours=-1)
    with pytest.raises(ValueError, match="canonical and holes must be the same"):
        TenDigits(committee=(Network(holes=False),))


def test_bands_are_shown_from_the_second_epoch_on_and_while_answers_are_learned(batch, monkeypatch):
    asked = []
    view = augment.view
    monkeypatch.setattr(augment, "view", lambda *x, bands: asked.append(bands) or view(*x, bands=bands))
    answers = one_hot(torch.arange(32) % 10)
    for network, given, epoch in [(Network(), None, 1), (Network(), None, 2), (TEACHER, answers, 1)]:
        network.loss(train.born(network.model, 0), given, batch(epoch))
    assert asked == [False, True, True]


def test_a_band_hides_the_rest_of_half_of_the_images():
    views = [augment.view(torch.ones(400, 2, 28, 28), torch.Generator().manual_seed(0), bands=b) for b in (False, True)]
    ink = [(each[:, 0] > 0).flatten(1).float().mean(dim=1) for each in views]
    assert (ink[0] > 0.65).all()
    assert 0.4 < (ink[1] < 0.65).float().mean() < 0.6


@pytest.mark.parametrize("rung", [rung.recipe for rung in ladder.RUNGS if isinstance(rung.recipe, Network)])
def test_every_rung_of_one_network_trains(rung, digits, monkeypatch):
    monkeypatch.setattr(train, "LEAST_BATCHES", 1)
    model, history = rung.fit(digits.train_images[:256], 0, device="cpu", progress=False)
    assert np.isfinite(history[-1]["loss"])
    changed = [
        not torch.equal(a, b)
        for a, b in zip(model.decoder.parameters(), train.born(rung.model, 0).decoder.parameters(), strict=True)
    ]
    assert all(changed) == any(changed) == bool(rung.reconstruction), "a decoder learns where there is a reconstruction"


def test_without_students_the_teacher_is_the_model_and_without_neighbours_they_have_no_say(digits, monkeypatch):
    monkeypatch.setattr(train, "LEAST_BATCHES", 1)
    images, found = digits.train_images[:256], {}
    for name, recipe in {
        "both": SHORT,
        "alone": replace(SHORT, neighbours=0),
        "none": replace(SHORT, students=()),
    }.items():
        model, history = recipe.fit(images, 0, device="cpu", progress=False)
        assert len(history) == recipe.epochs
        found[name] = train.encode(model, images)
    assert not torch.equal(found["both"], found["alone"])
    assert not torch.equal(found["both"], found["none"])


def test_a_seed_is_a_run(digits, brief):
    recipe, state = Network(epochs=1, heads=2), torch.get_rng_state()
    runs = [recipe.fit(digits.train_images[:300], seed, device="cpu", progress=False)[0] for seed in (0, 0, 1)]
    a, b, c = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"


def test_too_few_images_and_a_loss_that_is_not_finite_are_errors(digits):
    with pytest.raises(ValueError, match="100 images are less than one batch of 128"):
        Network().fit(digits.train_images[:100], 0, device="cpu", progress=False)
    model, options = models.TenNeurons(), {"epochs": 1, "warm_up": 0.5, "seed": 0}
    with pytest.raises(FloatingPointError, match="epoch 1"), train.progress_bar(1, False) as bar:
        train.learn(
            model,
            digits.train_images[:128],
            lambda batch: model.encoder[0].weight.sum() * torch.nan,
            bar=bar,
            **options,
        )


@pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST"])
def test_the_recipe_runs_on_its_siblings_where_they_are_at_hand(name, brief):
    try:
        root = data._data_root(None)
        if not (root / name / "raw").exists():
            pytest.skip(f"{name} is not in {root}")
        digits = data.load(name)
    except data.DataError as reason:
        pytest.skip(str(reason))
    model, _ = SHORT.fit(digits.train_images[:2000], 0, device="cpu", progress=False)
    assert train.encode(model, digits.test_images[:100]).shape == (100, 10)
