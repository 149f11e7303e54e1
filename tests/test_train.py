"""The loop against plain PyTorch, its way through interruptions, and what it refuses."""

import io
from dataclasses import replace
from functools import partial

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
        return Post(**{"epochs": 1} | options).train(trainer, images), trainer.history


def flat(model):
    return torch.cat([weight.detach().flatten().double() for weight in model.state_dict().values()])


@pytest.mark.parametrize(("count", "size", "epochs"), [(150, 64, 2), (5, 1, 1), (5, 64, 1), (1, 64, 1)])
def test_the_loop_is_the_posts_sgd(digits, count, size, epochs):
    """Ours against the plain loop: torch's documented SGD, the plain forward pass, the same order of images."""
    images, plain = digits.train_images[:count], models.born(models.PostAutoencoder, 3)
    ours, history = post(images, 3, epochs=epochs, batch_size=size)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.5)
    order, rows = torch.Generator().manual_seed(3), []
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(count, generator=order).split(size):
            x = (images[batch].float() / 255 - 0.1307) / 0.3081
            loss = ((plain(x) - x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += len(batch) * [loss.item()]
        rows.append((np.mean(losses), losses[-1]))
    found = [(row["loss"], row["last_batch_loss"]) for row in history]
    np.testing.assert_allclose(found, rows, rtol=1e-5)
    assert [row["epoch"] for row in history] == list(range(1, epochs + 1))
    torch.testing.assert_close(flat(ours), flat(plain), rtol=1e-4, atol=1e-6)


def test_it_overfits_one_batch(digits):
    images = digits.train_images[:8]  # at so high a rate some seeds saturate, and which ones is decided by rounding
    model, history = post(images, 1, epochs=400, lr=0.5, momentum=0.9)
    target = model.normalise(images)
    floor = (target - target.clamp(0, 1)).square().mean().item()  # of any output in 0..1
    blob = (target - target.mean(dim=0).clamp(0, 1)).square().mean().item()  # the same drawing for all
    assert history[-1]["loss"] - floor < 0.2 * (blob - floor)
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_bfloat16_is_another_run_with_nearly_the_same_loss(digits):
    rounded, exact = (post(digits.train_images[:150], epochs=2, bfloat16=how) for how in (True, False))
    assert {parameter.dtype for parameter in rounded[0].parameters()} == {torch.float32}
    assert rounded[1][-1]["loss"] == pytest.approx(exact[1][-1]["loss"], rel=1e-3)
    assert rounded[1][-1]["loss"] != exact[1][-1]["loss"]


def test_the_average_of_weights_forgets_the_first_ones_and_then_moves_slowly():
    model, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(average.weight, 100)
    nn.init.constant_(model.weight, 3)
    for step in range(100):
        train.move_average(average, model, step)
    assert average.weight.item() == pytest.approx(3, abs=0.01)
    nn.init.constant_(model.weight, 4)
    train.move_average(average, model, 10_000)
    assert average.weight.item() == pytest.approx(3 + 1 / 200, abs=0.01)
    assert average.num_batches_tracked == 0, "counts are not averaged"


# --------------------------------------------------------------------------------------------------- interruptions


class Dropping(models.PostAutoencoder):
    """Draws random numbers of its own in training."""

    def __init__(self):
        super().__init__()
        self.encoder.insert(5, nn.Dropout(0.5))


def two_stages(trainer, images):
    """A schedule, an average, dropout; the second stage begins with what the first has learned."""
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.5)
    cycle = partial(torch.optim.lr_scheduler.StepLR, gamma=0.5)
    options = {"epochs": 2, "schedule": lambda optimizer, steps: cycle(optimizer, steps), "average": True}
    first = trainer.fit("first", Dropping, images, recipes.POST.loss, sgd, **options)

    def loss(model, batch):
        return F.mse_loss(model(model.normalise(batch.images)), train.reconstruct(first, batch.images))

    return trainer.fit("second", Dropping, images, loss, sgd, seed=7, least_batches=3, batch_size=32, **options)


class Interrupted(train.Trainer):
    """Ends with an exception once the epoch `stop`, over all stages, is kept."""

    def __init__(self, stop, *arguments, **options):
        super().__init__(*arguments, **options)
        self.stop = stop

    def _keep(self, *arguments):
        super()._keep(*arguments)
        if len(self.history) == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_what_was_interrupted_ends_as_if_nothing_had_happened(stop, digits, tmp_path):
    images, options = digits.train_images[:70], {"progress": False, "identity": {"a": [1, 0.5]}, "epochs": 4}
    with train.Trainer(1, **options) as trainer:
        whole = two_stages(trainer, images)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt), Interrupted(stop, 1, checkpoint=path, **options) as interrupted:
        two_stages(interrupted, images)
    torch.rand(7)  # what the caller draws is no matter
    with train.Trainer(1, checkpoint=path, **options) as again:
        assert again.continued == stop
        model = two_stages(again, images)
    assert torch.equal(flat(model), flat(whole))
    assert [row["loss"] for row in again.history] == [row["loss"] for row in trainer.history]
    with train.Trainer(1, checkpoint=path, **options | {"identity": {"a": [1, 0.25]}}) as other:
        assert other.continued == 0, "another's checkpoint"


def test_reconstructions_are_kept_at_some_epochs_and_in_the_end(digits):
    with train.Trainer(0, progress=False, epochs=4, watched=digits.test_images[:3]) as trainer:
        model = replace(recipes.POST, epochs=4).train(trainer, digits.train_images[:64])
    assert list(trainer.snapshots) == [1, 2, 4]
    assert torch.equal(trainer.snapshots[4], train.reconstruct(model, digits.test_images[:3]))


# ------------------------------------------------------------------------------------------------------ divergence


def test_divergence_stops_at_once_and_leaves_the_last_good_checkpoint(digits, tmp_path):
    """The listing has nothing that bounds it, so a rate that is too high makes it explode, some epochs later."""
    path, recipe = tmp_path / "checkpoint.pt", Post(activations=False, epochs=50, lr=0.15)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"the loss is (inf|nan) in epoch \d+, batch \d, with lr") as error:
            recipe.train(train.Trainer(0, progress=False, checkpoint=path), digits.train_images[:300])
        epoch = int(str(error.value).split("epoch ")[1].split(",")[0])
        kept = storage.load(path)["learning"]
        assert len(kept["history"]) == epoch - 1 > 0
        assert all(weight.isfinite().all() for weight in kept["model"].values())


def test_a_weight_that_is_not_finite_stops_training_too():
    """A loss that is finite, with a gradient that is not: the square root at 0."""

    def zero():
        return nn.Linear(1, 1).requires_grad_().apply(lambda layer: [nn.init.zeros_(w) for w in layer.parameters()])

    def loss(model, batch):
        return model.weight.square().sum().sqrt()

    trainer = train.Trainer(progress=False)
    with pytest.raises(FloatingPointError, match=r"a weight is not finite after epoch 1, with lr 0\.1"):
        trainer.fit("root", zero, torch.zeros(1, 1), loss, partial(torch.optim.SGD, lr=0.1), epochs=1)
    assert trainer.history == []


# ------------------------------------------------------------------------------------------------ the way back out


def test_encode_is_in_batches_in_eval_mode_and_on_the_cpu(digits, monkeypatch):
    model = Dropping()
    images = digits.test_images[:25]
    monkeypatch.setattr(train, "ENCODE_BATCH", 7)
    codes = train.encode(model, images)
    assert (codes.shape, codes.dtype, codes.device.type) == ((25, 10), torch.float32, "cpu")
    assert not codes.requires_grad
    assert model.training, "the model's mode is left as it was"
    torch.testing.assert_close(codes, model.eval().encoder(model.normalise(images)).detach())
    for kind in (torch.float16, torch.float64, torch.bfloat16):
        torch.testing.assert_close(train.encode(model, (images / 255).to(kind)), codes, atol=0.01, rtol=0)
    torch.testing.assert_close(train.decode(model, codes), train.reconstruct(model, images))
    for spelt in (np.eye(10), np.eye(10, dtype=int), np.eye(10).tolist(), torch.eye(10, dtype=torch.float64)):
        torch.testing.assert_close(train.decode(model, spelt), train.decode(model, torch.eye(10)))
    for wrong in (np.eye(10)[0], np.eye(9), np.zeros((2, 10, 1))):
        with pytest.raises(ValueError, match=r"codes must be \[N, 10\], got \["):
            train.decode(model, wrong)


def test_no_images_are_refused(digits):
    for use in (lambda x: train.encode(models.PostAutoencoder(), x), post):
        with pytest.raises(ValueError, match=r"images is empty|0 images are less than one batch"):
            use(digits.train_images[:0])


# -------------------------------------------------------------------------------------------------------------- CUDA


class Watch(tqdm):
    """A bar that lets torch raise wherever the GPU is waited for, from the first batch of an epoch to the last."""

    def update(self, n=1):
        super().update(n)
        torch.cuda.set_sync_debug_mode("error" if 0.001 < self.n % 1 < 0.999 else "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_trains_as_the_cpu_does_and_is_not_waited_for_within_an_epoch(digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 10)
    images, labels = digits.train_images[:300], torch.rand(300, 10).softmax(dim=1)
    inputs, network = recipes.with_inputs(models.TenNeurons, images), Network(epochs=1, heads=1, taught=1)
    losses = {}
    for device in ("cpu", "cuda"):
        with train.Trainer(device=device, progress=False) as trainer:
            if device == "cuda":
                trainer.bar = Watch(file=io.StringIO())
            model = replace(recipes.POST, epochs=2).train(trainer, images)
            assert train.encode(model, digits.test_images).device.type == "cpu"
            for k, given in enumerate((None, labels)):
                replace(network, reconstruction=1).learn(trainer, str(k), 0, inputs, given)
        losses[device] = [row["loss"] for row in trainer.history]
    assert losses["cpu"] == pytest.approx(losses["cuda"], rel=1e-3)
