from dataclasses import replace

import numpy as np
import pytest
import torch

from mnist_ae import augment, baselines, confusion, data, experiment, losses, models, ten_digits, train
from mnist_ae.ten_digits import Recipe, Start, Student

QUICK = Recipe("quick", starts=(Start(epochs=3),), students=(Student(epochs=3, windows=0.2),))


SHORT = Recipe(
    "short",
    starts=(Start(epochs=1), Start(epochs=1, holes=True)),
    students=(Student(epochs=1, windows=0.5, blind=0.5), Student(epochs=2)),
)


@pytest.fixture
def brief(monkeypatch):
    """Epochs of 30 batches: enough to move weights, not to learn."""
    monkeypatch.setattr(ten_digits, "LEAST_BATCHES", 30)


def one_hot(neurons):
    return torch.eye(10)[torch.as_tensor(neurons)]


@pytest.fixture(scope="module")
def quick(digits):
    torch.set_num_threads(2)
    return QUICK.fit(digits.train_images, 0, device="cpu", progress=False)


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
    assert [row["part"] for row in history] == ["start 1"] * 3 + ["student 1"] * 3
    assert QUICK.epochs == len(history)
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
    recipe = SHORT
    shuffled = replace(digits, train_labels=digits.train_labels[torch.randperm(len(digits.train_labels))])
    results = [
        experiment.run(recipe, 3, each, tmp_path / name, progress=False)
        for name, each in {"truth": digits, "shuffled": shuffled}.items()
    ]
    for a, b in zip(*(result.model.state_dict().values() for result in results), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(digits.train_labels, shuffled.train_labels)
    found = experiment.load(recipe, 3, digits, tmp_path / "truth")
    assert found.reused
    assert torch.equal(
        train.encode(found.model, digits.test_images), train.encode(results[0].model, digits.test_images)
    )


def test_votes_do_not_care_for_the_order_of_neurons(rng):
    truth = rng.integers(10, size=600)
    readings = []
    for _ in range(3):
        neurons = truth.copy()
        wrong = rng.random(600) < 0.05
        neurons[wrong] = rng.integers(10, size=wrong.sum())
        readings.append(0.9 * one_hot(neurons) + 0.01)
    orders = [torch.tensor(rng.permutation(10)) for _ in readings]
    plain = ten_digits.vote(readings)
    mixed = ten_digits.vote([reading[:, order] for reading, order in zip(readings, orders, strict=True)])
    best = int(np.argmax([losses.mutual_information(reading) for reading in readings]))
    torch.testing.assert_close(mixed, plain[:, orders[best]])
    assert (plain.argmax(dim=1).numpy() == truth).mean() > 0.98, "three readings at 95 % are better than one"


def test_wrong_answers_become_right_ones_when_habits_are_known(rng):
    """A tenth of the 7s has a bar: a 2 to one model, a 9 to another. A third has split the 1s and merged 3 and 5."""
    truth = rng.integers(10, size=6000)
    barred = (truth == 7) & (rng.random(6000) < 0.1)
    split = np.where(truth == 5, 3, np.where((truth == 1) & (rng.random(6000) < 0.5), 5, truth))
    answers = [np.where(barred, 2, truth), np.where(barred, 9, truth), rng.permutation(10)[split]]
    readings = [0.9 * one_hot(each) + 0.01 for each in answers]
    votes = ten_digits.vote(readings)
    assert (votes.argmax(dim=1).numpy() != truth)[barred].all(), "in the vote, one to one to one, 7 does not win"
    weighed = ten_digits.weigh(readings)
    torch.testing.assert_close(weighed.sum(dim=1), torch.ones(6000))
    order = confusion.one_to_one_mapping(confusion.confusion_matrix(torch.tensor(truth), weighed))
    assert (order[weighed.argmax(dim=1)] == truth).all()


def test_a_start_that_merged_two_digits_has_no_vote(rng):
    truth = rng.integers(10, size=600)
    good, merged = one_hot(truth), one_hot(np.where(truth == 9, 4, truth))
    torch.testing.assert_close(ten_digits.vote([good, merged, good]), good)
    torch.testing.assert_close(ten_digits.vote([merged, good]), good)


def batch(model, images, epoch):
    teacher = ten_digits.born(lambda: models.TenNeurons(model.holes), 9).eval()
    return ten_digits.Batch(model, teacher, images, torch.arange(len(images)), epoch, torch.Generator().manual_seed(0))


def test_a_student_learns_the_surest_answers_and_elsewhere_its_own_opinion(digits):
    """Of 8 answers a neuron, at 0.2 to 0.9, the surest half; from the third epoch on, also what the teacher knows."""
    images = ten_digits.with_holes(digits.train_images[:32]).float() / 255
    neurons, certainty = torch.arange(4).repeat_interleave(8), torch.arange(0.2, 0.95, 0.1).repeat(4)
    model = ten_digits.born(Recipe().model, 0)
    loss_of = ten_digits.student_loss(Student(surest=0.5), one_hot(neurons) * certainty[:, None])

    warped = augment.warp(images, torch.Generator().manual_seed(0))
    codes = ten_digits.log_codes(model, warped).detach()
    drawing = 5 * ((model.decoder(codes.exp()) - images[:, :1]) ** 2).mean().item()
    counts = certainty > 0.55
    told = -codes[torch.arange(32), neurons][counts].sum().item() / 32
    assert loss_of(batch(model, images, 1)).item() == pytest.approx(told + drawing, rel=1e-4)

    def with_a_sure_teacher(epoch):
        given = batch(model, images, epoch)
        with torch.no_grad():
            given.teacher.encoder[-2].bias[6] += 100
        return given

    opinion = -codes[~counts, 6].sum().item() / 32
    assert loss_of(batch(model, images, 3)).item() == pytest.approx(told + drawing, rel=1e-4), "it is sure of nothing"
    assert loss_of(with_a_sure_teacher(2)).item() == pytest.approx(told + drawing, rel=1e-4), "too early"
    assert loss_of(with_a_sure_teacher(3)).item() == pytest.approx(told + opinion + drawing, rel=1e-4)

    loss_of = ten_digits.student_loss(Student(surest=1.0), one_hot(neurons) * certainty[:, None])
    told = -codes[torch.arange(32), neurons].sum().item() / 32
    assert loss_of(with_a_sure_teacher(3)).item() == pytest.approx(told + drawing, rel=1e-4), "there is nothing to ask"


def test_a_student_that_hides_holes_hides_nothing_else(digits):
    state = torch.get_rng_state()
    x = ten_digits.with_holes(digits.train_images[:40]).float() / 255
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert torch.equal(x[:, :1], digits.train_images[:40].float() / 255)
    assert torch.equal(models.TenNeurons(holes=True).normalise(x), x), "images that bring their holes stay as they are"
    hidden = torch.arange(40) % 2 == 0
    seen = ten_digits.hide_holes(x, hidden)
    assert torch.equal(seen[:, 0], x[:, 0])
    assert torch.equal(seen[~hidden], x[~hidden])
    assert seen[hidden, 1].count_nonzero() == 0
    assert x[hidden, 1].count_nonzero() > 0


def test_a_reading_is_the_mean_of_what_was_learned_to_be_seen(digits):
    sights = ten_digits.with_holes(digits.train_images[:20])
    model = ten_digits.born(Recipe().model, 0).eval()
    x = models.pixels(sights)
    plain = ten_digits.read(model, sights, Student(), seed=0, views=0)
    torch.testing.assert_close(plain, model.encoder(x).detach())
    both = ten_digits.read(model, sights, Student(blind=0.5), seed=0, views=0)
    torch.testing.assert_close(both, (plain + model.encoder(x * torch.tensor([1, 0]).view(2, 1, 1)).detach()) / 2)
    parts = ten_digits.read(model, sights, Student(windows=0.5, blind=0.5), seed=0)
    torch.testing.assert_close(parts.sum(dim=1), torch.ones(20))
    assert torch.equal(parts, ten_digits.read(model, sights, Student(windows=0.5, blind=0.5), seed=0))
    assert not torch.allclose(parts, both)


def test_the_start_asks_for_what_it_says(digits):
    images = digits.train_images[:64].float() / 255
    model = ten_digits.born(Start().model, 0)
    full = Start().loss(batch(model, images, 1)).item()
    without = Start(reconstruction=0).loss(batch(model, images, 1)).item()
    codes = ten_digits.log_codes(model, torch.cat([images, images]))[:64].exp()
    error = ((model.decoder(codes) - images) ** 2).mean().item()
    assert full - without == pytest.approx(5 * error, rel=0.05)


def test_a_start_that_sees_holes_sees_them_in_the_image_and_in_a_share_of_the_warped_ones(digits, monkeypatch):
    sights = ten_digits.with_holes(digits.train_images[:400]).float() / 255
    seen, encode = [], ten_digits.log_codes
    monkeypatch.setattr(ten_digits, "log_codes", lambda model, x: seen.append(x) or encode(model, x))
    start = Start(holes=True, blind=0.3)
    start.loss(batch(ten_digits.born(start.model, 0), sights, 1))
    plain, warped = seen[0][:400], seen[0][400:]
    assert torch.equal(plain, sights)
    has_hole = plain[:, 1].flatten(1).any(dim=1)
    hidden = ~warped[:, 1].flatten(1).any(dim=1)
    assert hidden[has_hole].float().mean() == pytest.approx(0.3, abs=0.1)
    assert warped[:, 0].flatten(1).any(dim=1).all()


def test_the_average_of_weights_forgets_the_first_ones_and_then_moves_slowly():
    model, average = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    torch.nn.init.constant_(average.weight, 100)
    torch.nn.init.constant_(model.weight, 3)
    for step in range(100):
        ten_digits.move_average(average, model, step)
    assert average.weight.item() == pytest.approx(3, abs=0.01)
    torch.nn.init.constant_(model.weight, 4)
    ten_digits.move_average(average, model, 10_000)
    assert average.weight.item() == pytest.approx(3 + 1 / 200, abs=0.01)
    assert average.num_batches_tracked == 0, "counts are not averaged"


def test_a_seed_is_a_run(digits, brief):
    recipe = Start(epochs=1)
    runs = [recipe.fit(digits.train_images[:300], seed, device="cpu", progress=False)[0] for seed in (0, 0, 1)]
    a, b, c = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_too_few_images_and_a_loss_that_is_not_finite_are_errors(digits):
    with pytest.raises(ValueError, match="100 images are less than one batch of 128"):
        Start().fit(digits.train_images[:100], 0, device="cpu", progress=False)
    model = Start().model()
    with pytest.raises(FloatingPointError, match="epoch 1"):
        ten_digits.learn(
            model,
            digits.train_images[:128],
            lambda b: b.model.encoder[0].weight.sum() * torch.nan,
            epochs=1,
            seed=0,
            lr=1e-3,
            bar=train.progress_bar(1, False),
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
