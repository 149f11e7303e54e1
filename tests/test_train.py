import inspect
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mnist_ae import models, ten_digits, train


def fresh_model(seed=0):
    torch.manual_seed(seed)
    return models.PostAutoencoder()


def test_the_loop_is_the_posts_sgd(digits):
    """Ours against the plain loop: torch's documented SGD, the plain forward pass, the same order of images."""
    images = digits.train_images[:150]  # batches of 64, 64 and 22
    ours, plain = fresh_model(), fresh_model()
    history = train.fit(ours, images, epochs=2, seed=3, progress=False)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.5)
    order, last = torch.Generator().manual_seed(3), []
    for _ in range(2):
        permutation = torch.randperm(150, generator=order)
        for start in range(0, 150, 64):
            x = (images[permutation[start : start + 64]].float() / 255 - 0.1307) / 0.3081
            loss = ((plain(x) - x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last.append(loss.item())
    assert [row["last_batch_loss"] for row in history] == pytest.approx(last, rel=1e-5)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_history_has_one_row_an_epoch_with_the_mean_loss_over_images(digits):
    images = digits.train_images[:70]
    model = fresh_model()
    rows = train.fit(model, images, epochs=3, lr=1e-12, progress=False)  # weights as good as unchanged
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    x = model.normalise(images)
    assert rows[-1]["loss"] == pytest.approx(F.mse_loss(model(x), x).item(), rel=1e-5)
    assert all(row["seconds"] > 0 and row["images_per_second"] > 0 for row in rows)


def test_it_overfits_one_batch(digits):
    images = digits.train_images[:8]
    model = fresh_model(1)  # at so high a rate some seeds saturate, and which ones is decided by rounding
    history = train.fit(model, images, epochs=400, lr=0.5, momentum=0.9, progress=False)
    target = model.normalise(images)
    floor = (target - target.clamp(0, 1)).square().mean().item()  # of any output in 0..1
    blob = (target - target.mean(dim=0).clamp(0, 1)).square().mean().item()  # the same drawing for all
    assert history[-1]["loss"] - floor < 0.2 * (blob - floor)


def test_every_parameter_gets_a_gradient_and_moves(digits):
    model = fresh_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train.fit(model, digits.train_images[:64], epochs=1, progress=False)
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert parameter.grad.abs().sum() > 0, name
        assert not torch.equal(parameter, old), name


def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(digits):
    def weights(seed):
        model = fresh_model(seed)
        train.fit(model, digits.train_images[:300], epochs=2, seed=seed, progress=False)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_training_takes_no_labels():
    for function in (train.fit, train.encode, train.reconstruct, train.decode):
        assert not any("label" in name for name in inspect.signature(function).parameters)


def test_encode_is_in_batches_in_eval_mode_and_on_the_cpu(digits, monkeypatch):
    model = fresh_model()
    model.encoder.append(nn.Dropout(0.9))  # would show in train mode
    images = digits.test_images[:25]
    monkeypatch.setattr(train, "ENCODE_BATCH", 7)
    codes = train.encode(model, images)
    assert (codes.shape, codes.dtype, codes.device.type) == ((25, 10), torch.float32, "cpu")
    assert not codes.requires_grad
    assert model.training, "the model's mode is left as it was"
    torch.testing.assert_close(codes, model.eval().encoder(model.normalise(images)).detach())
    torch.testing.assert_close(train.encode(model, images.double() / 255), codes)
    torch.testing.assert_close(train.decode(model, codes), train.reconstruct(model, images))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("epochs", value) for value in (0, -1, 10_001, 1.5, "20", True, None)],
        *[("batch_size", value) for value in (0, -64, 2.5, "64")],
        *[("seed", value) for value in (-1, 2**32, "0")],
        *[("lr", value) for value in (0, -0.1, float("inf"), float("nan"), "1e-3")],
        *[("momentum", value) for value in (-0.1, 1, "0.5")],
        *[("device", value) for value in ("gpu", "tpu", "", ["cpu"])],
    ],
)
def test_bad_arguments_are_refused_by_name(digits, argument, value):
    model = fresh_model()
    before = model.state_dict()["encoder.0.weight"].clone()
    with pytest.raises(ValueError, match=argument):
        train.fit(model, digits.train_images[:8], **{"epochs": 1, "progress": False, argument: value})
    assert torch.equal(model.state_dict()["encoder.0.weight"], before)


def test_no_images_and_no_device(digits):
    with pytest.raises(ValueError, match="images is empty"):
        train.fit(fresh_model(), digits.train_images[:0], epochs=1)
    with pytest.raises(ValueError, match="images is empty"):
        train.encode(fresh_model(), digits.train_images[:0])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not on this machine, which has: cpu"):
            train.fit(fresh_model(), digits.train_images[:8], epochs=1, device="cuda")


def test_a_loss_that_is_not_finite_stops_training(digits):
    model = models.PostAutoencoder(activations=False)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train.fit(model, digits.train_images[:64], epochs=5, batch_size=4, lr=1e6, progress=False)


@pytest.mark.parametrize("images", [65, 700])
def test_bfloat16_is_another_run_with_nearly_the_same_loss(digits, images):
    def last_loss(**options):
        model = fresh_model()
        history = train.fit(model, digits.train_images[:images], epochs=2, progress=False, **options)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        return history[-1]["loss"]

    assert last_loss(bfloat16=True) == pytest.approx(last_loss(), rel=1e-3)
    assert last_loss(bfloat16=True) != last_loss()


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@cuda
def test_cuda_trains_as_the_cpu_does(digits):
    losses = []
    for device in ("cpu", "cuda"):
        model = fresh_model()
        losses.append(train.fit(model, digits.train_images[:300], epochs=2, device=device, progress=False)[-1]["loss"])
        assert train.encode(model, digits.test_images).device.type == "cpu"
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


class Watch(tqdm):
    """A bar that lets torch raise wherever the GPU is waited for, from the first batch to the last."""

    def update(self, n=1):
        super().update(n)
        torch.cuda.set_sync_debug_mode("error" if self.n < self.total else "default")


@cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_cuda_is_not_waited_for_within_an_epoch(digits, monkeypatch):
    monkeypatch.setattr(train, "progress_bar", lambda images, shown: Watch(total=images, file=io.StringIO()))
    train.fit(fresh_model(), digits.train_images[:300], epochs=1, device="cuda")

    monkeypatch.setattr(train, "LEAST_BATCHES", 10)  # 11 batches, for 300 images
    network = ten_digits.Network(epochs=1, heads=1, taught=1, reconstruction=1)
    model, sights = network.model(), train.with_sights(network.model(), digits.train_images[:300])
    for answers in (None, torch.rand(300, 10).softmax(dim=1)):
        bar = Watch(total=11 * train.BATCH, file=io.StringIO())
        network.learn(model, sights, answers, seed=0, bar=bar, device="cuda")


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
