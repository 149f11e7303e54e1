"""For notebook 04: autoencoders that learn from their reconstruction alone, and the loss that makes the difference.

`make ablations` trains RECONSTRUCTION, INFORMATION and, with seed 0, LONGER; each is a recipe as those of `recipes`.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from mnist_ae import augment, checks, models
from mnist_ae.recipes import BATCH, TEN_DIGITS, Network, Recipe, TenDigits, recompute_batch_norm
from mnist_ae.train import Batch, Trainer


@dataclass(frozen=True)
class Reconstruction:
    """An autoencoder with a 10-number code whose loss is the mean squared error of pixels in [0, 1], and nothing else.

    convolutions: True for the encoder and the decoder of `recipes.TEN_DIGITS`, with AdamW; False for the post's, with
    SGD and momentum 0.9. free: True for a code of any ten numbers, False for the softmax. augmented: True to read an
    affine augmentation of the image that it is to reconstruct. lr: the peak of one cycle.
    """

    name: str
    convolutions: bool
    free: bool
    augmented: bool = False
    lr: float = 0.001
    epochs: int = 10

    def model(self) -> nn.Module:
        canonical = {"canonical": False, "holes": False}
        model = models.TenNeurons(**canonical) if self.convolutions else models.PostAutoencoder(reachable=True)
        if self.free:
            model.encoder[-1] = nn.Identity()  # in place of the softmax
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        image = checks.pixels(batch.images)
        read = augment.affine(image, batch.generator) if self.augmented else image
        return F.mse_loss(getattr(model, "fast_forward", model)(read), image)

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
        total = self.epochs * steps
        return lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=total, pct_start=0.1, cycle_momentum=False)

    def train(self, trainer: Trainer, images: Tensor) -> nn.Module:
        adamw, sgd = partial(torch.optim.AdamW, weight_decay=1e-4), partial(torch.optim.SGD, momentum=0.9)
        optimizer = partial(adamw if self.convolutions else sgd, lr=self.lr, fused=True)
        options = {"epochs": self.epochs, "schedule": self.schedule, "batch_size": BATCH}
        images = checks.as_images(images)
        model = trainer.fit("reconstruction", self.model, images, self.loss, optimizer, **options)
        if self.augmented:
            recompute_batch_norm(model, images)
        return model


# The rate is the one of RATES with which three epochs ended at the lowest loss (seed 1000).
RECONSTRUCTION = (
    Reconstruction("post-softmax", convolutions=False, free=False, lr=0.3),
    Reconstruction("softmax", convolutions=True, free=False, lr=0.003),
    Reconstruction("free", convolutions=True, free=True, lr=0.03),
    Reconstruction("augmented-softmax", convolutions=True, free=False, augmented=True, lr=0.003),
    Reconstruction("augmented-free", convolutions=True, free=True, augmented=True, lr=0.01),
)
LONGER = tuple(replace(step, epochs=2 * step.epochs) for step in RECONSTRUCTION if step.convolutions)
RATES = {False: (0.1, 0.3, 1.0, 3.0), True: (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}  # SGD's, AdamW's


def learning_rates() -> list[Recipe]:
    """Each of RECONSTRUCTION for three epochs with each rate of RATES."""
    return [
        replace(recipe, name=f"{recipe.name}-{lr:g}", lr=lr, epochs=3)
        for recipe in RECONSTRUCTION
        for lr in RATES[recipe.convolutions]
    ]


@dataclass(frozen=True)
class Reconstructing(Network):
    """A `Network` with all that it has (augmented copies, learning rate, averaged weights) but its objective: it
    reconstructs the image from the code of its augmented copy.
    """

    def loss(self, pseudo_labels: None, model: nn.Module, batch: Batch) -> Tensor:
        image, x = (batch.images.float() / 255).tensor_split([1], dim=1)
        view = augment.view(x, batch.generator, bands=batch.epoch > 1)
        return F.mse_loss(model.decoder(models.log_codes(model, view)[0].exp()), image)


# The first two differ in their loss alone; then one part more a row.
PLAIN = {"epochs": 3, "heads": 1, "canonical": False, "holes": False}
INFORMATION = (
    Reconstructing("reconstruction", **PLAIN),
    Network("information", **PLAIN),
    Network("canonical", **PLAIN | {"canonical": True}),
    Network("holes", **PLAIN | {"canonical": True, "holes": True}),
    Network("heads", epochs=3),
)


def _each(networks: tuple[Network, ...], **changes: object) -> tuple[Network, ...]:
    return tuple(replace(network, **changes) for network in networks)


def _all(name: str, **changes: object) -> TenDigits:
    """The whole recipe, with these changes in each of its networks."""
    return replace(
        TEN_DIGITS,
        name=name,
        committee=_each(TEN_DIGITS.committee, **changes),
        teacher=replace(TEN_DIGITS.teacher, **changes),
        students=_each(TEN_DIGITS.students, **changes),
    )


# The whole recipe with one part left out or made smaller; the runs are in figures/trials.csv. (Those without the
# canonical form still looked for neighbours in it.)
LEFT_OUT = (
    TEN_DIGITS,
    replace(TEN_DIGITS, name="without-the-committee", committee=()),
    replace(TEN_DIGITS, name="members-with-one-head", committee=_each(TEN_DIGITS.committee, heads=1)),
    _all("without-holes", holes=False),
    _all("networks-without-the-canonical-form", canonical=False),
    _all("without-augmented-copies", augmented=False),
    replace(TEN_DIGITS, name="without-neighbours", neighbours=0),
    replace(TEN_DIGITS, name="without-reconstruction", students=_each(TEN_DIGITS.students, reconstruction=0.0)),
    replace(
        TEN_DIGITS,
        name="half-the-epochs",
        committee=_each(TEN_DIGITS.committee, epochs=1),
        teacher=replace(TEN_DIGITS.teacher, epochs=3, taught=1),
        students=_each(TEN_DIGITS.students, epochs=2, taught=2),
    ),
)
