"""The one way to train, and inference: Trainer, encode, reconstruct, decode. Nothing here ever sees a label."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm import tqdm

from mnist_ae import augment, checks, models, storage

ENCODE_BATCH = 500  # images at a time: enough to keep the cores busy; with more, the memory costs time
SNAPSHOT_EPOCHS = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}  # and the last


@dataclass
class Batch:
    """What a loss is given: images [B, C, 28, 28] of the type that `Trainer.fit` got, and which ones they are."""

    images: Tensor
    index: Tensor  # int64 [B] on the CPU, their places in the training set
    epoch: int  # from 1
    generator: torch.Generator  # on the CPU, for the random numbers of a loss


class Trainer(AbstractContextManager):
    """Trains the stages of one run, one after the other, and knows what a recipe need not: device, bar, checkpoint.

    seed: of the run, 0 to 2**32 - 1, else ValueError. epochs: of all stages together, for the bar.
    checkpoint: the file that keeps all there is after each epoch; None to keep nothing. If it is there and has the same
    `identity` (plain values), a stage that is finished in it is restored, one that was interrupted goes on, and all
    ends as if there had been no interruption, bit for bit. What lies between two stages is computed again.
    watched: images whose reconstructions are kept, at SNAPSHOT_EPOCHS and in the end: `snapshots`, {epoch: Tensor}.

    history: a dict for each epoch so far: stage, epoch (from 1), loss (mean over its images), last_batch_loss (what the
    post prints), seconds. seconds: what all took, without interruptions. continued: the epochs that were in the file.
    notes: {stage: codes of the training images}, the predictions of a recipe's stages, to be scored after training.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        device: str = "cpu",
        progress: bool = True,
        epochs: int | None = None,
        checkpoint: Path | None = None,
        identity: dict | None = None,
        watched: Tensor | None = None,
    ):
        self.seed, self.device = checks.seed(seed), checks.device(device)
        self.checkpoint, self.watched, self.epochs, self.notes = checkpoint, watched, epochs, {}
        # finished: {stage: {weights, history}}; learning: what changes in the stage that is at work.
        identity, kept = {"seed": self.seed} | (identity or {}), self._kept()
        state = {"identity": identity, "finished": {}, "learning": None, "snapshots": {}, "seconds": 0.0}
        self.state = kept if kept.get("identity") == identity else state
        self.snapshots, self.continued = self.state["snapshots"], len(self.history)
        self._begin = time.perf_counter() - self.state["seconds"]
        shown = {} if progress else {"disable": True}  # else TQDM_DISABLE=1 in the environment decides
        form = f"{{l_bar}}{{bar}}| {{n:.1f}}/{epochs or '?'} epochs [{{elapsed}}<{{remaining}}{{postfix}}]"
        self.bar = tqdm(total=epochs, initial=self.continued, mininterval=2, bar_format=form, **shown)

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    @property
    def history(self) -> list[dict]:
        stages = [*self.state["finished"].values(), self.state["learning"]]
        return [row for stage in stages if stage for row in stage["history"]]

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def note(self, stage: str, codes: Tensor) -> Tensor:
        self.notes[stage] = codes
        return codes

    def fit(
        self,
        stage: str,
        kind: Callable[[], nn.Module],
        images: Tensor,
        loss: Callable[[nn.Module, Batch], Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        epochs: int,
        seed: int | None = None,
        schedule: Callable[[torch.optim.Optimizer, int], object] | None = None,
        batch_size: int = 64,
        least_batches: int = 0,
        average: bool = False,
    ) -> nn.Module:
        """A model that kind() makes, trained down loss(model, batch): a step for each batch, images in a new order in
        each epoch, both drawn from `seed`, by default that of the run. stage: a name that no other stage has.

        images: [N, C, 28, 28]. optimizer(parameters), schedule(optimizer, steps an epoch).
        least_batches: 0 to see each image once in an epoch, the last batch may be smaller; else as often as makes so
        many batches, all of one size. ValueError for less than one batch of images.
        average: True to end with the exponential moving average of the weights, which is steadier than the last ones.

        Raises FloatingPointError, after the epoch and before it is kept, if a loss or a weight was not finite. Losses
        are looked at once an epoch, since to look is to wait for a GPU.
        """
        seed = self.seed if seed is None else seed
        model, finished = models.initialise(kind, seed).to(self.device).train(), self.state["finished"]
        if stage in finished:
            model.load_state_dict(finished[stage]["weights"])
            return model
        images, generator = images.to(self.device), torch.Generator().manual_seed(seed)
        steps, draw = batches(len(images), batch_size, least_batches, generator)
        parts = {"model": model, "optimizer": optimizer(model.parameters())}
        if schedule:
            parts["schedule"] = schedule(parts["optimizer"], steps)
        if average:
            parts["average"] = deepcopy(model).eval()  # torch's AveragedModel would wait for a GPU in each step
        rows = self._resume(stage, parts, generator)
        for epoch in range(len(rows) + 1, epochs + 1):
            row = self._epoch(epoch, draw(), generator, images, loss, parts)
            self._keep(parts, generator, rows := [*rows, {"stage": stage} | row])
        if average:
            model.load_state_dict(parts["average"].state_dict())
        finished[stage], self.state["learning"] = {"weights": deepcopy(model.state_dict()), "history": rows}, None
        return model

    def _resume(self, stage: str, parts: dict, generator: torch.Generator) -> list[dict]:
        learning = self.state["learning"]
        if not learning or learning["history"][-1]["stage"] != stage:
            return []
        for name, part in parts.items():
            part.load_state_dict(deepcopy(learning[name]))
        generator.set_state(learning["generator"])
        return learning["history"]

    def _epoch(self, epoch: int, indices, generator: torch.Generator, images: Tensor, loss, parts: dict) -> dict:
        begin, before = time.perf_counter(), len(self.history)
        model, optimizer, schedule, average = map(parts.get, ("model", "optimizer", "schedule", "average"))
        # Copied into one tensor: to keep each loss itself would leave the heap in pieces, 350 kB a step.
        losses = torch.empty(len(indices), device=self.device)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
            torch.manual_seed(generator.initial_seed() + 1_000_003 * epoch)  # for dropout and the like
            for number, index in enumerate(indices):
                chosen = images[augment.to_device(index, self.device)]
                value = loss(model, Batch(chosen, index, epoch, generator))
                losses[number] = value.detach()
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                if average:
                    move_average(average, model, (epoch - 1) * len(indices) + number)
                if schedule:
                    schedule.step()
                self.bar.update(before + (number + 1) / len(indices) - self.bar.n)  # never past the whole
        losses = losses.tolist()
        for number, value in enumerate(losses, 1):
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} in epoch {epoch}, batch {number}: a lower lr may help")
        if not all(weight.isfinite().all() for weight in model.state_dict().values()):
            raise FloatingPointError(f"a weight is not finite after epoch {epoch}: a lower lr may help")
        weighed = [value * len(index) for value, index in zip(losses, indices, strict=True)]
        row = {"epoch": epoch, "loss": sum(weighed) / sum(map(len, indices)), "last_batch_loss": losses[-1]}
        return row | {"seconds": time.perf_counter() - begin}

    def _keep(self, parts: dict, generator: torch.Generator, rows: list[dict]) -> None:
        """Everything there is after an epoch, in `state` and in the checkpoint."""
        self.state["learning"] = {name: deepcopy(part.state_dict()) for name, part in parts.items()}
        self.state["learning"] |= {"generator": generator.get_state(), "history": rows}
        epoch = len(self.history)
        if self.watched is not None and (epoch in SNAPSHOT_EPOCHS or epoch == self.epochs):
            self.snapshots[epoch] = reconstruct(parts["model"], self.watched)
        self.state["seconds"] = self.seconds
        if self.checkpoint:
            storage.save(self.checkpoint, self.state)
        self.bar.set_postfix(stage=rows[-1]["stage"], loss=f"{rows[-1]['loss']:.4f}")

    def _kept(self) -> dict:
        try:
            return storage.load(self.checkpoint) if self.checkpoint and self.checkpoint.exists() else {}
        except storage.CheckpointError as error:
            warnings.warn(f"{error}. Training from the beginning.", stacklevel=4)
            return {}


def batches(
    images: int, batch_size: int, least_batches: int, generator: torch.Generator
) -> tuple[int, Callable[[], tuple[Tensor, ...]]]:
    """How many batches an epoch has, and the function that draws their indices; see `Trainer.fit`.

    >>> batches(60_000, 128, 100, torch.Generator())[0], batches(1_437, 128, 100, torch.Generator())[0]
    (468, 112)
    """
    if images < (batch_size if least_batches else 1):
        raise ValueError(f"{images} images are less than one batch" + f" of {batch_size}" * bool(least_batches))
    rounds = math.ceil(least_batches / (images // batch_size)) if least_batches else 1
    steps = rounds * images // batch_size if least_batches else math.ceil(images / batch_size)

    def draw() -> tuple[Tensor, ...]:
        order = torch.cat([torch.randperm(images, generator=generator) for _ in range(rounds)])
        return order[: steps * batch_size].split(batch_size)

    return steps, draw


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """One step of an exponential moving average (EMA) of the weights of `model`, kept in `average`: about the mean of
    the last tenth of the steps so far, or of the last 200 where that is less.
    """
    share = 1 / min(2 + step / 10, 200)
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, share)


@torch.no_grad()
def in_batches(model: nn.Module, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """network(images), in eval mode and on the model's device -> on the CPU; the model's mode is left as it was."""
    if len(images) == 0:
        raise ValueError("images is empty: there is nothing to encode")
    place, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        return torch.cat([network(batch.to(place)).cpu() for batch in images.split(ENCODE_BATCH)])
    finally:
        model.train(training)


def encode(model: nn.Module, images: ArrayLike) -> Tensor:
    """The codes of images, as for `checks.as_images`: float32 [N, 10], on the CPU.

    >>> encode(models.PostAutoencoder(), torch.zeros(3, 28, 28)).shape
    torch.Size([3, 10])
    """
    return in_batches(model, lambda batch: model.encoder(model.normalise(batch)), checks.as_images(images))


def reconstruct(model: nn.Module, images: ArrayLike) -> Tensor:
    """The reconstructions of images (as for `encode`), in the model's own normalised units: float32 [N, 1, 28, 28]."""
    return in_batches(model, lambda batch: model(model.normalise(batch)), checks.as_images(images))


@torch.no_grad()
def decode(model: nn.Module, codes: ArrayLike) -> Tensor:
    """The decoded images of codes [N, 10], in the model's own normalised units: float32 [N, 1, 28, 28].

    ValueError for codes of another shape.
    """
    codes = torch.as_tensor(codes, dtype=torch.float32)
    if codes.ndim != 2 or codes.shape[1] != 10:
        raise ValueError(f"codes must be [N, 10], got {list(codes.shape)}")
    return model.decoder(codes.to(next(model.parameters()).device)).cpu()
