"""Every recipe from top to bottom: the post's, and the label-free one.

A recipe is a frozen dataclass of all that decides a run but its seed and its images: `name`, `epochs`, `model()` and
`train(trainer, images)`, which is given images uint8 [N, 1, 28, 28], never a label, and returns the trained model.

The label-free recipe, `TenDigits`:

1. **Objective.** Mutual-information maximisation with consistency under augmentation (RIM, IMSAT, IIC): each code is
   one-hot, all ten neurons are used about equally often, and an augmented copy of an image has the image's code.
2. **Committee.** Three small networks with several heads learn it for two epochs. Which digit a rare style is taken for
   is up to chance and differs between networks, so their predictions are aggregated (Dawid-Skene).
3. **Teacher.** A deeper network learns the aggregated predictions as pseudo-labels for two epochs, and goes on with the
   objective alone, which corrects some of their errors.
4. **Students.** Self-training: the teacher's predictions, combined with those for the nearest neighbours of an image,
   are the pseudo-labels that an autoencoder learns from augmented copies, while it learns to reconstruct the image from
   the code. It teaches the next one likewise. The average of the last student's weights is the result.
"""

from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import update_bn

from mnist_ae import augment, checks, losses, models
from mnist_ae.pseudo_labels import aggregate, agree, nearest_neighbours
from mnist_ae.train import ENCODE_BATCH, Batch, Trainer, in_batches

BATCH = 128  # of the label-free recipe
LEAST_BATCHES = 100  # in an epoch of it; MNIST has 468, the bundled digits would have 11


@dataclass(frozen=True)
class Post:
    """The post's: mean squared error, plain SGD; the defaults are its 20-epoch run.

    activations: see `models.PostAutoencoder`. ValueError for epochs and batch sizes that cannot be.
    """

    name: str = "post"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.5
    activations: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", checks.whole_number("epochs", self.epochs, 1, 10_000))
        object.__setattr__(self, "batch_size", checks.whole_number("batch_size", self.batch_size, 1, 1_000_000))

    def model(self) -> nn.Module:
        return models.PostAutoencoder(self.activations)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        target = model.normalise(batch.images)
        return F.mse_loss(getattr(model, "fast_forward", model)(target), target)

    def train(self, trainer: Trainer, images: Tensor) -> nn.Module:
        sgd = partial(torch.optim.SGD, lr=self.lr, momentum=self.momentum, fused=True)
        options = {"epochs": self.epochs, "batch_size": self.batch_size}
        return trainer.fit("post", self.model, checks.as_images(images), self.loss, sgd, **options)


@dataclass(frozen=True)
class Network:
    """One network of `TenDigits`, and by itself a recipe.

    heads: codes that are learned side by side on one trunk. Some merge two digits, by chance; the one with the largest
    mutual information is the code. deeper, canonical, holes: see `models.TenNeurons`.
    lr, warm_up, anneal: the learning rate goes up to lr in so many epochs, then, with anneal, down to 0, else it stays.
    taught: the first epochs, which learn pseudo-labels, if any are given.
    reconstruction, information: the weights of those terms; without the first the decoder keeps its initial weights.
    balance: see `losses.mutual_information`. augmented: False to learn from the images as they are.
    ValueError for epochs, heads and a warm_up that cannot be, and for several heads with a reconstruction.
    """

    name: str = "network"
    epochs: int = 2
    heads: int = 8
    deeper: bool = False
    lr: float = 1e-3
    warm_up: float = 0.6
    anneal: bool = True
    taught: int = 0
    reconstruction: float = 0.0
    information: float = 0.2
    balance: float = 4.0
    augmented: bool = True
    canonical: bool = True
    holes: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", checks.whole_number("epochs", self.epochs, 1, 10_000))
        object.__setattr__(self, "heads", checks.whole_number("heads", self.heads, 1, 1000))
        if not 0 < self.warm_up < self.epochs:
            raise ValueError(f"warm_up must be between 0 and the {self.epochs} epochs, got {self.warm_up}")
        if self.reconstruction and self.heads > 1:
            raise ValueError(f"heads must be 1 where there is a reconstruction to learn, got {self.heads}")

    def model(self) -> nn.Module:
        return models.TenNeurons(self.heads, self.deeper, self.canonical, self.holes)

    def train(self, trainer: Trainer, images: Tensor) -> nn.Module:
        return self.learn(trainer, "network", 1000 * trainer.seed, with_inputs(self.model, images))

    def learn(
        self, trainer: Trainer, stage: str, seed: int, inputs: Tensor, pseudo_labels: Tensor | None = None
    ) -> nn.Module:
        """inputs: see `with_inputs`; pseudo_labels: float [N, 10]."""
        loss = partial(self.loss, pseudo_labels)
        adamw = partial(torch.optim.AdamW, lr=self.lr, weight_decay=1e-4, fused=True)
        options = {"epochs": self.epochs, "seed": seed, "batch_size": BATCH, "least_batches": LEAST_BATCHES}
        model = trainer.fit(stage, self.model, inputs, loss, adamw, schedule=self.schedule, average=True, **options)
        recompute_batch_norm(model, inputs[:, 1:])
        if self.heads > 1:
            best_head_first(model, inputs)
        return model

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
        if self.anneal:
            share = self.warm_up / self.epochs
            return lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.epochs * steps, pct_start=share)
        return lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=int(self.warm_up * steps))

    def loss(self, pseudo_labels: Tensor | None, model: nn.Module, batch: Batch) -> Tensor:
        """Of a batch of inputs and their augmented copies, the views, the sum over heads of

        KL(code of the image, held fixed || code of the view) - information * `losses.mutual_information`;
        or, in epochs that are taught, the pseudo-labels' cross-entropy with the code of the view; plus the
        reconstruction's error.
        """
        image, x = (batch.images.float() / 255).tensor_split([1], dim=1)
        taught = pseudo_labels is not None and batch.epoch <= self.taught
        view = augment.view(x, batch.generator, bands=taught or batch.epoch > 1) if self.augmented else x
        if taught:
            logs = models.log_codes(model, view)  # [heads, B, 10]
            loss = -(augment.to_device(pseudo_labels[batch.index], x.device) * logs).sum(2).mean()
        else:
            logs, of_view = models.log_codes(model, torch.cat([x, view])).chunk(2, dim=1)
            information = losses.mutual_information(logs.exp(), self.balance)
            loss = (losses.consistency(logs.exp(), of_view) - self.information * information).sum()
        if self.reconstruction:
            loss = loss + self.reconstruction * F.mse_loss(model.decoder(logs[0].exp()), image)
        return loss


@dataclass(frozen=True)
class TenDigits:
    """The label-free recipe: see above.

    neighbours: how many of an image, in canonical form, count in the pseudo-labels that a student learns; 0 for none.
    ValueError where networks do not read the same: `canonical` and `holes` are computed once for all.
    """

    name: str = "ten-digits"
    committee: tuple[Network, ...] = 3 * (Network(),)
    teacher: Network = Network(epochs=6, heads=1, deeper=True, taught=2)
    students: tuple[Network, ...] = 3 * (
        Network(epochs=4, heads=1, deeper=True, taught=4, reconstruction=1.0, lr=2e-3, anneal=False),
    )
    neighbours: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "neighbours", checks.whole_number("neighbours", self.neighbours, 0, 1000))
        if len({(network.canonical, network.holes) for network in self.networks}) > 1:
            raise ValueError("canonical and holes must be the same in all networks")

    @property
    def networks(self) -> tuple[Network, ...]:
        return *self.committee, self.teacher, *self.students

    @property
    def epochs(self) -> int:
        return sum(network.epochs for network in self.networks)

    def model(self) -> nn.Module:
        return self.networks[-1].model()

    def train(self, trainer: Trainer, images: Tensor) -> nn.Module:
        inputs, seeds = with_inputs(self.model, images), count(1000 * trainer.seed)

        def taught(stage: str, network: Network, pseudo_labels: Tensor | None = None) -> nn.Module:
            return network.learn(trainer, stage, next(seeds), inputs, pseudo_labels)

        stages = {f"member {k}": member for k, member in enumerate(self.committee, 1)}
        committee = [trainer.note(stage, predict(taught(stage, member), inputs)) for stage, member in stages.items()]
        pseudo_labels = trainer.note("committee", aggregate(committee)) if committee else None
        stage, model = "teacher", taught("teacher", self.teacher, pseudo_labels)
        if neighbours := self.neighbours if self.students else 0:
            upright = with_inputs(partial(models.TenNeurons, holes=False), images)[:, 1]
            nearest = nearest_neighbours(upright, neighbours)
        for k, student in enumerate(self.students, 1):
            pseudo_labels = trainer.note(stage, predict(model, inputs))
            if neighbours:
                pseudo_labels = trainer.note(f"{stage} and neighbours", agree(pseudo_labels, nearest))
            stage, model = f"student {k}", taught(f"student {k}", student, pseudo_labels)
        return model


def with_inputs(kind, images: Tensor) -> Tensor:
    """images: [N, 1, 28, 28] -> uint8 [N, 1 + C, 28, 28]: each image and the C channels that the encoder of kind()
    reads of it, computed once for all epochs.

    >>> with_inputs(models.TenNeurons, torch.zeros(3, 1, 28, 28, dtype=torch.uint8)).shape
    torch.Size([3, 3, 28, 28])
    """
    model = models.initialise(kind, 0)

    def read(batch: Tensor) -> Tensor:
        return (255 * torch.cat([checks.pixels(batch), model.normalise(batch)], dim=1)).round().to(torch.uint8)

    return in_batches(model, read, checks.as_images(images))


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """The codes [N, 10] of what `with_inputs` gives."""
    return in_batches(model, lambda x: model.encoder(checks.pixels(x)), inputs[:, 1:])


def recompute_batch_norm(model: nn.Module, inputs: Tensor) -> None:
    """The statistics of batch normalisation, so far of augmented copies, from inputs, uint8 [N, C, 28, 28]."""
    sample = inputs[:: max(1, len(inputs) // 10_000)]
    batches = sample.chunk(-(-len(sample) // ENCODE_BATCH))  # all of about one size: each counts the same
    update_bn((x.float() / 255 for x in batches), model.encoder, next(model.parameters()).device)


@torch.no_grad()
def best_head_first(model: nn.Module, inputs: Tensor) -> None:
    """Make the head whose codes of the inputs have the largest mutual information the first."""
    logs = in_batches(model, lambda x: models.log_codes(model, checks.pixels(x)).transpose(0, 1), inputs[:, 1:])
    codes = logs.transpose(0, 1).exp()
    best = losses.mutual_information(codes).argmax().item()
    layers = [layer for layer in model.encoder if isinstance(layer, nn.Linear | nn.Conv1d)]
    for parameter in (parameter for layer in layers for parameter in layer.parameters()):
        parameter.copy_(parameter.roll(-best * (len(parameter) // len(codes)), 0))


Recipe = Post | Network | TenDigits  # or one's own
POST, TEN_DIGITS = Post(), TenDigits()
