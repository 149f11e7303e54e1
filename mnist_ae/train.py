"""The training loop and the way back out: fit, encode, reconstruct. Nothing here ever sees a label."""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from tqdm import tqdm

from mnist_ae import augment, data

ENCODE_BATCH = 500  # images at a time: enough to keep the cores busy; with more, the memory costs time


# With more threads than OpenMP may start, a step waits for ever for the ones that are missing.
_limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
THREAD_LIMIT = max(int(_limit), 1) if _limit.isdigit() else 256
if torch.get_num_threads() > THREAD_LIMIT:
    torch.set_num_threads(THREAD_LIMIT)


def plain(value: object) -> object:
    """A single number of NumPy, pandas or torch as Python's; anything else as it is.

    >>> plain(torch.tensor(0.5)), plain("text")
    (0.5, 'text')
    """
    return value.item() if getattr(value, "ndim", None) == 0 else value


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int from low to high, 20.0 included; else a ValueError that names the parameter and the range.

    >>> whole_number("seed", torch.tensor(3.0), 0, 9)
    3
    >>> whole_number("seed", -1, 0, 9)
    Traceback (most recent call last):
        ...
    ValueError: seed must be a whole number from 0 to 9, got -1
    """
    number = plain(value)
    whole = type(number) is int or (isinstance(number, float) and number.is_integer())
    if not whole or not low <= number <= high:
        raise ValueError(f"{name} must be a whole number from {low:,} to {high:,}, got {number!r}")
    return int(number)


def pick_device(name: str) -> torch.device:
    """Name "auto" -> the first of CUDA, MPS, CPU that is there; else the device of that name, or a ValueError.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if name not in list(there):
        raise ValueError(f"unknown device {name!r}: choose one of auto, {', '.join(there)}")
    if not there[name]:
        here = ", ".join(kind for kind, found in there.items() if found)
        raise ValueError(f"device {name!r} is not on this machine, which has: {here}")
    return torch.device(name)


OnEpoch = Callable[[int, nn.Module, dict], None]  # epoch (from 1), model, state: see `minimise`
Fitted = tuple[nn.Module, list[dict]]


def fit(
    model: nn.Module,
    images: ArrayLike,
    *,
    epochs: int,
    seed: int = 0,
    batch_size: int = 64,
    lr: float = 0.01,
    momentum: float = 0.5,
    bfloat16: bool = False,
    device: str = "cpu",
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
    resume: dict | None = None,
) -> list[dict]:
    """Train `model` in place to draw what it reads, by the mean squared error; the defaults are the post's.

    images: as for `data.as_images`. They are all the loop learns from.
    epochs 1..10,000, batch_size from 1, lr > 0, 0 <= momentum < 1: else ValueError.
    seed: the order of the images, drawn anew each epoch; the model's first weights are the caller's.
    bfloat16: True to round what is multiplied to 8 significant bits; weights and loss stay float32. It is faster where
        the processor has such instructions, slower elsewhere, and not the same run.
    on_epoch, resume, what is returned and FloatingPointError: see `minimise`.

    >>> from mnist_ae import models
    >>> images = torch.zeros(128, 1, 28, 28, dtype=torch.uint8)
    >>> [history] = fit(models.PostAutoencoder(), images, epochs=1, progress=False)
    >>> history["epoch"], history["images"]
    (1, 128)
    """
    epochs, seed = whole_number("epochs", epochs, 1, 10_000), whole_number("seed", seed, 0, 2**32 - 1)
    batch_size, lr, momentum = whole_number("batch_size", batch_size, 1, 1_000_000), plain(lr), plain(momentum)
    if type(lr) not in (int, float) or not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    if type(momentum) not in (int, float) or not 0 <= momentum < 1:
        raise ValueError(f"momentum must be a number from 0 to below 1, got {momentum!r}")
    images = data.as_images(images)
    if len(images) == 0:
        raise ValueError("images is empty: there is nothing to learn from")

    place = pick_device(device)
    model.to(place).train()
    images = images.to(place)
    forward = getattr(model, "fast_forward", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, fused=True)
    order = torch.Generator().manual_seed(seed)

    def batches() -> Sequence[Tensor]:
        return torch.randperm(len(images), generator=order).to(place).split(batch_size)

    def loss_of(index: Tensor, _: int) -> Tensor:
        target = model.normalise(images[index])
        with torch.autocast(place.type, torch.bfloat16, enabled=bfloat16):
            drawn = forward(target)
        if drawn.shape != target.shape:
            raise ValueError(f"the model must draw what it reads, {list(target.shape)}, got {list(drawn.shape)}")
        return F.mse_loss(drawn.float(), target)

    with progress_bar(epochs * len(images), progress) as bar:
        return minimise(
            model, loss_of, batches, optimizer, order, epochs=epochs, bar=bar, on_epoch=on_epoch, resume=resume
        )


def progress_bar(images: int, shown: bool) -> tqdm:
    """A bar of so many images, each counted as often as it is seen; TQDM_DISABLE=1 in the environment hides it too.

    >>> with progress_bar(100, shown=False) as bar:
    ...     bar.update(64)
    """
    hidden = {} if shown else {"disable": True}
    return tqdm(total=images, unit=" images", mininterval=2, **hidden)


def minimise(
    model: nn.Module,
    loss_of: Callable[[Tensor, int], Tensor],
    batches: Callable[[], Sequence[Tensor]],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    *,
    epochs: int,
    bar: tqdm,
    after_step: Callable[[], None] | None = None,
    kept: dict | None = None,
    on_epoch: OnEpoch | None = None,
    resume: dict | None = None,
) -> list[dict]:
    """The loop of every recipe: a step down loss_of(index, epoch) for each index of `batches()`, which makes an epoch.

    generator: what batches and losses draw from. Layers that draw for themselves, as dropout does, draw anew in each
    epoch from its seed and the epoch. after_step() is called after each step. kept: {name: object with a state_dict} of
    what else changes meanwhile, as a schedule does.

    on_epoch(epoch, model, state) is called after each epoch. state: tensors and plain values, all that has changed so
    far; it goes on changing, so write it to a file (or copy it) at once. resume: such a state; what is left is trained,
    and the weights end as if there had been no interruption, bit for bit.

    Returns one dict an epoch: epoch (from 1), loss (mean over its images), last_batch_loss (what the post prints),
    seconds, images_per_second. Losses are looked at once an epoch, since to look is to wait for a GPU. Raises
    FloatingPointError then, before on_epoch, if one was not finite, with epoch and batch, or if a weight is not.

    >>> model, images = nn.Linear(1, 1), torch.ones(8, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with progress_bar(40 * 8, shown=False) as bar:
    ...     history = minimise(
    ...         model,
    ...         lambda index, epoch: F.mse_loss(model(images[index]), images[index]),
    ...         lambda: torch.arange(8).split(4),
    ...         optimizer,
    ...         torch.Generator(),
    ...         epochs=40,
    ...         bar=bar,
    ...     )
    >>> history[-1]["loss"] < 1e-6
    True
    """
    stateful = {"model": model, "optimizer": optimizer} | (kept or {})
    history = []
    if resume:
        for name, part in stateful.items():
            part.load_state_dict(resume[name])
        generator.set_state(resume["generator"])
        history = list(resume["history"])
        bar.update(sum(row["images"] for row in history))

    def lr() -> float:
        return optimizer.param_groups[0]["lr"]

    for epoch in range(len(history) + 1, epochs + 1):
        begin, indices, rates = time.perf_counter(), batches(), []
        # Copied into one tensor: to keep each loss itself would leave the heap in pieces, 350 kB a step.
        kept_losses = torch.empty(len(indices), device=next(model.parameters()).device)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
            torch.manual_seed(generator.initial_seed() + 1_000_003 * epoch)
            for number, index in enumerate(indices):
                loss = loss_of(index, epoch)
                kept_losses[number] = loss.detach()
                rates.append(lr())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if after_step:
                    after_step()
                bar.update(len(index))
        values = kept_losses.tolist()
        for number, (value, rate) in enumerate(zip(values, rates, strict=True), 1):
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} in epoch {epoch}, batch {number}, with lr {rate:.3g}")
        if not all(weight.isfinite().all() for weight in model.state_dict().values()):
            raise FloatingPointError(
                f"a weight is not finite after epoch {epoch}, batch {len(values)}, with lr {lr():.3g}"
            )
        seconds, images = time.perf_counter() - begin, sum(map(len, indices))
        total = sum(value * len(index) for value, index in zip(values, indices, strict=True))
        row = {"epoch": epoch, "loss": total / images, "last_batch_loss": values[-1], "images": images}
        history.append(row | {"seconds": seconds, "images_per_second": images / seconds})
        bar.set_postfix(epoch=f"{epoch}/{epochs}", loss=f"{history[-1]['loss']:.4f}")
        if on_epoch:
            state = {name: part.state_dict() for name, part in stateful.items()}
            on_epoch(epoch, model, state | {"generator": generator.get_state(), "history": history})
    return history


BATCH = 128
LEAST_BATCHES = 100  # in an epoch; MNIST has 468, the bundled digits would have 11


def born(kind: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A new model with the first weights of `seed`; the caller's random numbers are left alone.

    >>> born(lambda: torch.rand(1), 0) == born(lambda: torch.rand(1), 0)
    tensor([True])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def passes(images: int) -> int:
    """How often an epoch of `learn` passes over the images: once, or, where they are few, as often as makes
    LEAST_BATCHES. Raises ValueError for less than a batch of images.

    >>> passes(60_000), passes(1_437)
    (1, 10)
    """
    if images < BATCH:
        raise ValueError(f"{images} images are less than one batch of {BATCH}")
    return math.ceil(LEAST_BATCHES / (images // BATCH))


def with_sights(model: nn.Module, images: Tensor) -> Tensor:
    """images: [N, 1, 28, 28] -> uint8 [N, 1 + C, 28, 28]: each image and what the model's encoder reads of it,
    C channels, computed once for all epochs.

    >>> from mnist_ae import models
    >>> with_sights(models.TenNeurons(), torch.zeros(3, 1, 28, 28, dtype=torch.uint8)).shape
    torch.Size([3, 3, 28, 28])
    """
    sights = in_batches(model, lambda x: (255 * x).round().to(torch.uint8), images)
    return torch.cat([images if images.dtype == torch.uint8 else (255 * images).round().to(torch.uint8), sights], dim=1)


class Stages:
    """The networks of a recipe learn one after the other, each with first weights and random numbers of its own.

    epochs: of all of them together, over these images. on_epoch: called after each epoch, counted over all stages, with
    the model and a state, as in `minimise`. resume: such a state; a stage that is finished there is restored, the one
    that was interrupted goes on, and all ends as if there had been no interruption, bit for bit.

    history: the rows of `learn` of all stages, with the name of each as `part`.
    """

    def __init__(
        self,
        seed: int,
        epochs: int,
        images: Tensor,
        *,
        device: str,
        progress: bool,
        on_epoch: OnEpoch | None = None,
        resume: dict | None = None,
    ):
        self.seed, self.device, self.on_epoch, self.history = seed, device, on_epoch, []
        self.state = resume or {"done": {}, "learning": None}
        self.bar = progress_bar(epochs * passes(len(images)) * len(images), progress)

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def learn(self, name: str, network: object, *arguments: object) -> nn.Module:
        """Train network.model() by network.learn(model, *arguments, seed=..., device=..., ...), which returns rows."""
        done = self.state["done"]
        own = 1000 * self.seed + len({row["part"] for row in self.history})
        model = born(network.model, own).to(pick_device(self.device))
        if name in done:
            model.load_state_dict(done[name]["weights"])
            self.bar.update(sum(row["images"] for row in done[name]["history"]))
        else:
            options = {"device": self.device, "bar": self.bar, "resume": self.state["learning"]}
            rows = network.learn(model, *arguments, seed=own, on_epoch=self.on_epoch and self._keep, **options)
            weights = {key: weight.clone() for key, weight in model.state_dict().items()}
            self.state = {"done": done | {name: {"weights": weights, "history": rows}}, "learning": None}
        self.history += [{"part": name} | row for row in self.state["done"][name]["history"]]
        return model

    def _keep(self, epoch: int, model: nn.Module, learning: dict) -> None:
        self.on_epoch(len(self.history) + epoch, model, self.state | {"learning": learning})


@dataclass
class Batch:
    """What a loss of `learn` is given: images float [B, C, 28, 28] in [0, 1], and which ones they are."""

    images: Tensor
    index: Tensor  # int64 [B] on the CPU, their places in the training set
    epoch: int  # from 1
    generator: torch.Generator


def learn(
    model: nn.Module,
    images: Tensor,
    loss_of: Callable[[Batch], Tensor],
    *,
    epochs: int,
    warm_up: float,
    seed: int,
    bar: tqdm,
    lr: float = 1e-3,
    anneal: bool = True,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    resume: dict | None = None,
) -> list[dict]:
    """Minimise `loss_of` over images uint8 [N, C, 28, 28] with AdamW. The learning rate goes up to `lr` in `warm_up`
    epochs, then, with `anneal`, down to 0, else it stays. Leaves in `model` a moving average (EMA) of its weights,
    which is steadier than the last ones.

    An epoch: see `passes`. on_epoch, resume, what is returned and FloatingPointError: see `minimise`.

    >>> from mnist_ae import models
    >>> images, model = torch.zeros(128, 2, 28, 28, dtype=torch.uint8), models.TenNeurons()
    >>> with progress_bar(1, shown=False) as bar:
    ...     [row] = learn(model, images, lambda b: model(b.images).mean(), epochs=1, warm_up=0.5, seed=0, bar=bar)
    >>> row["images"] // BATCH  # so few images are seen again and again
    100
    """
    place, rounds = pick_device(device), passes(len(images))
    steps = len(images) * rounds // BATCH
    images, model = images.to(place), model.to(place).train()
    average = copy.deepcopy(model).eval()  # torch's AveragedModel would wait for a GPU in each step
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4, fused=True)
    if anneal:
        rate = lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=warm_up / epochs)
    else:
        rate = lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=int(warm_up * steps))
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Sequence[Tensor]:
        order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])
        return order[: steps * BATCH].split(BATCH)

    def loss(index: Tensor, epoch: int) -> Tensor:
        chosen = images[augment.to_device(index, place)]
        return loss_of(Batch(chosen.float() / 255, index, epoch, generator))

    def after_step() -> None:
        move_average(average, model, rate.last_epoch)
        rate.step()

    history = minimise(
        model,
        loss,
        batches,
        optimizer,
        generator,
        epochs=epochs,
        bar=bar,
        after_step=after_step,
        kept={"average": average, "rate": rate},
        on_epoch=on_epoch,
        resume=resume,
    )
    model.load_state_dict(average.state_dict())
    return history


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the weights of `average` towards those of `model`: about the mean of the last tenth of the steps so far, or
    of the last 200 where that is less.

    >>> average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> move_average(average, model, step=0)  # half the way
    """
    share = 1 / min(2 + step / 10, 200)
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, share)


@torch.no_grad()
def in_batches(model: nn.Module, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """network(normalised images) on the CPU, in eval mode; the model's mode is left as it was.

    >>> from mnist_ae import models
    >>> in_batches(models.TenNeurons(), lambda x: x.sum(dim=(1, 2, 3)), torch.ones(2, 1, 28, 28))
    tensor([784., 784.])
    """
    if len(images) == 0:
        raise ValueError("images is empty: there is nothing to encode")
    place, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        return torch.cat([network(model.normalise(batch.to(place))).cpu() for batch in images.split(ENCODE_BATCH)])
    finally:
        model.train(training)


def encode(model: nn.Module, images: ArrayLike) -> Tensor:
    """The codes of images, as for `data.as_images`: float32 [N, 10], on the CPU.

    >>> from mnist_ae import models
    >>> encode(models.PostAutoencoder(), torch.zeros(3, 28, 28)).shape
    torch.Size([3, 10])
    """
    return in_batches(model, model.encoder, data.as_images(images))


def reconstruct(model: nn.Module, images: ArrayLike) -> Tensor:
    """What the model draws of images (as for `encode`), in its own normalised units: float32 [N, 1, 28, 28].

    >>> from mnist_ae import models
    >>> reconstruct(models.PostAutoencoder(), torch.zeros(3, 28, 28)).shape
    torch.Size([3, 1, 28, 28])
    """
    return in_batches(model, model, data.as_images(images))


@torch.no_grad()
def decode(model: nn.Module, codes: ArrayLike) -> Tensor:
    """What the decoder draws for codes [N, 10], in the model's normalised units: float32 [N, 1, 28, 28].

    ValueError for codes of another shape.

    >>> from mnist_ae import models
    >>> decode(models.PostAutoencoder(), torch.eye(10)).shape
    torch.Size([10, 1, 28, 28])
    """
    codes = torch.as_tensor(codes, dtype=torch.float32)
    if codes.ndim != 2 or codes.shape[1] != 10:
        raise ValueError(f"codes must be [N, 10], got {list(codes.shape)}")
    return model.decoder(codes.to(next(model.parameters()).device)).cpu()
