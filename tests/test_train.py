"""The loop against plain PyTorch, its way through interruptions, and what it refuses."""

import io
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mnist_ae import models, recipes, storage, train
from mnist_ae.recipes import Network, Post


def post(images, seed=0, **options):
    """The post's network, trained: the model and its history. options: those of the recipe."""
    with train.Trainer(seed, progress=False) as trainer:
        return Post(**options).train(trainer, images), trainer.history


def flat(model):
    return torch.cat([weight.detach().flatten().double() for weight in model.state_dict().values()])


@pytest.mark.parametrize(("count", "size", "epochs"), [(150, 64, 2), (3, 1, 1), (1, 64, 1)])
def test_the_loop_is_the_posts_sgd(digits, count, size, epochs):
    """Ours against the plain loop: torch's documented SGD, the plain forward pass, the same order of images."""
    images, plain = digits.train_images[:count], models.initialise(models.PostAutoencoder, 3)
    ours, history = post(images, 3, epochs=epochs, batch_size=size)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.5)
    order, rows = torch.Generator().manual_seed(3), []
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.randperm(count, generator=order).split(size):
            x = (images[batch].float() / 255 - 0.1307) / 0.3081
            loss = ((plain(x) - x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += len(batch) * [loss.item()]
        rows.append((epoch, np.mean(losses), losses[-1]))
    found = [(row["epoch"], row["loss"], row["last_batch_loss"]) for row in history]
    np.testing.assert_allclose(found, rows, rtol=1e-5)
    torch.testing.assert_close(flat(ours), flat(plain), rtol=1e-4, atol=1e-6)


def test_the_average_of_weights_forgets_the_first_ones_and_then_moves_slowly():
    model, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)  # their weights are 1
    nn.init.constant_(average.weight, 100)
    for step in range(100):
        train.move_average(average, model, step)
    assert average.weight.item() == pytest.approx(1, abs=0.01)
    nn.init.constant_(model.weight, 2)
    model.num_batches_tracked.fill_(9)
    train.move_average(average, model, 10_000)
    assert average.weight.item() == pytest.approx(1 + 1 / 200, abs=0.01)
    assert average.num_batches_tracked == 0, "counts are not averaged"


class Dropping(models.PostAutoencoder):
    """A small one that draws random numbers of its own in training."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.5))
        self.decoder = nn.Sequential(nn.Linear(10, 784), nn.Unflatten(1, (1, 28, 28)))


def two_stages(images, kind=train.Trainer, **options):
    """The trainer and the model. A schedule, an average, dropout; the second stage learns what the first one draws."""
    sgd, average = partial(torch.optim.SGD, lr=np.float64(0.01), momentum=0.5), {"epochs": 2, "average": True}
    halve = partial(torch.optim.lr_scheduler.StepLR, gamma=0.5)

    def loss(teacher, model, batch):
        target = train.reconstruct(teacher, batch.images) if teacher else model.normalise(batch.images)
        return F.mse_loss(model(model.normalise(batch.images)), target)

    with kind(1, progress=False, epochs=4, **options) as trainer:
        first = trainer.fit("first", Dropping, images, partial(loss, None), sgd, schedule=halve, **average)
        size = {"least_batches": 3, "batch_size": 32}
        last = trainer.fit(
            "second", Dropping, images, partial(loss, first), sgd, schedule=halve, seed=7, **average, **size
        )
    return trainer, last


class Interrupted(train.Trainer):
    """Ends with an exception once the epoch `stop`, over all stages, is kept."""

    def _keep(self, *arguments):
        super()._keep(*arguments)
        if len(self.history) == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_what_was_interrupted_ends_as_if_nothing_had_happened(stop, digits, tmp_path, monkeypatch):
    """Weights, losses, and the reconstructions that are kept at some epochs and in the end."""
    images, watched = digits.train_images[:70], digits.test_images[:3]
    trainer, whole = two_stages(images, watched=watched)
    options = {"checkpoint": tmp_path / "checkpoint.pt", "identity": {"a": [1, 0.5]}, "watched": watched}
    monkeypatch.setattr(Interrupted, "stop", stop, raising=False)
    with pytest.raises(KeyboardInterrupt):
        two_stages(images, Interrupted, **options)
    torch.rand(7)  # what the caller draws is no matter
    again, model = two_stages(images, **options)
    assert again.continued == stop
    assert torch.equal(flat(model), flat(whole))
    assert [row["loss"] for row in again.history] == [row["loss"] for row in trainer.history]
    assert list(again.snapshots) == list(trainer.snapshots) == [1, 2, 4]
    assert all(torch.equal(again.snapshots[epoch], trainer.snapshots[epoch]) for epoch in (1, 2, 4))
    for seed, identity in ((1, {"a": [1, 0.25]}), (2, options["identity"])):
        other = train.Trainer(seed, progress=False, **options | {"identity": identity})
        assert other.continued == 0, "another's"


def test_a_stage_that_stopped_within_an_epoch_goes_on_and_another_one_begins(digits):
    def fit(trainer, stage, stop=None):
        steps = count(1)

        def loss(model, batch):
            if next(steps) == stop:
                raise KeyboardInterrupt
            return F.mse_loss(model(model.normalise(batch.images)), model.normalise(batch.images))

        sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.5)
        return flat(trainer.fit(stage, Dropping, digits.train_images[:70], loss, sgd, epochs=3))

    whole = fit(train.Trainer(progress=False), "one")
    for stage in ("one", "another"):
        trainer = train.Trainer(progress=False)
        with pytest.raises(KeyboardInterrupt):
            fit(trainer, "one", stop=4)
        assert torch.equal(fit(trainer, stage), whole)
        assert [row["stage"] for row in trainer.history] == 3 * [stage]


def test_divergence_stops_at_once_and_leaves_the_last_good_checkpoint(digits, tmp_path):
    """The listing has nothing that bounds it, so a rate that is too high makes it explode, some epochs later."""
    path, recipe = tmp_path / "checkpoint.pt", Post(activations=False, epochs=50, lr=0.15)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"the loss is \w+ in epoch \d+, batch \d: a lower lr") as error:
            recipe.train(train.Trainer(0, progress=False, checkpoint=path), digits.train_images[:300])
        kept = storage.load(path)["learning"]
        assert 0 < len(kept["history"]) == int(str(error.value).split("epoch ")[1].split(",")[0]) - 1
        assert all(weight.isfinite().all() for weight in kept["model"].values())


def test_a_weight_that_is_not_finite_stops_training_too():
    """A loss that is finite, with a gradient that is not: the square root at 0."""
    trainer, sgd = train.Trainer(progress=False), partial(torch.optim.SGD, lr=0.1)

    def root(model, batch):
        return (0 * model.weight).sum().sqrt()

    with pytest.raises(FloatingPointError, match=r"a weight is not finite after epoch 1: a lower lr may help"):
        trainer.fit("root", partial(nn.Linear, 1, 1), torch.zeros(1, 1), root, sgd, epochs=1)
    assert trainer.history == []


def test_encode_is_in_batches_in_eval_mode_and_on_the_cpu(digits, monkeypatch):
    model, images = Dropping(), digits.test_images[:25]
    monkeypatch.setattr(train, "ENCODE_BATCH", 7)
    codes = train.encode(model, images)
    assert (codes.shape, codes.dtype, codes.device.type) == ((25, 10), torch.float32, "cpu")
    assert (model.training, codes.requires_grad) == (True, False), "the model's mode is left as it was"
    torch.testing.assert_close(codes, model.eval().encoder(model.normalise(images)).detach())
    for kind in (torch.float16, torch.float64, torch.bfloat16):
        torch.testing.assert_close(train.encode(model, (images / 255).to(kind)), codes, atol=0.1, rtol=0.01)
    torch.testing.assert_close(train.decode(model, codes), train.reconstruct(model, images))
    for spelt in (np.eye(10, dtype=int), np.eye(10).tolist(), torch.eye(10, dtype=torch.float64)):
        torch.testing.assert_close(train.decode(model, spelt), train.decode(model, torch.eye(10)))


def test_no_images_and_codes_of_another_shape_are_refused(digits):
    none = digits.train_images[:0]
    for use, given, message in [
        *[(partial(train.decode, Dropping()), np.zeros(shape), r"codes must be \[N, 10\]") for shape in (10, (9, 9))],
        (partial(train.encode, Dropping()), none, "images is empty: there is nothing to encode"),
        (post, none, "0 images are less than one batch"),
    ]:
        with pytest.raises(ValueError, match=message):
            use(given)


class Watch(tqdm):
    """A bar that lets torch raise wherever the GPU is waited for, from the first batch of an epoch to the last."""

    def update(self, n=1):
        super().update(n)
        torch.cuda.set_sync_debug_mode("error" if 0.001 < self.n % 1 < 0.999 else "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_cuda_trains_as_the_cpu_does_and_is_not_waited_for_within_an_epoch(digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 10)
    images, labels, losses = digits.train_images[:300], torch.rand(300, 10).softmax(dim=1), {}
    inputs = recipes.with_inputs(models.TenNeurons, images)
    network = Network(epochs=1, heads=1, taught=1, reconstruction=1)
    for device in ("cpu", "cuda"):
        with train.Trainer(device=device, progress=False) as trainer:
            if device == "cuda":
                trainer.bar = Watch(file=io.StringIO())
            assert train.encode(Post(epochs=2).train(trainer, images), digits.test_images).device.type == "cpu"
            for k, given in enumerate((None, labels)):
                network.learn(trainer, str(k), 0, inputs, given)
        losses[device] = [row["loss"] for row in trainer.history]
    assert losses["cpu"] == pytest.approx(losses["cuda"], rel=1e-3)
