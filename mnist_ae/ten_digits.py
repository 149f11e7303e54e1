"""The recipe that learns ten digits without a label: a committee of short runs, a teacher, three students.

1. **Objective.** Mutual-information maximisation with consistency under augmentation (RIM, IMSAT, IIC): a code is
   one-hot, all ten neurons are used about equally often, and an augmented copy of an image keeps the image's code.
2. **Committee.** Three small networks with several heads learn it for two epochs. Into which digit a rare style falls
   is a lottery of the first steps, and they do not all draw the same: their answers are aggregated (Dawid-Skene).
3. **Teacher.** A deeper network learns these answers in its first two epochs, as pseudo-labels, and goes on with the
   objective alone, which cleans up some of what they have wrong.
4. **Students.** The answers of the teacher, together with those for the nearest neighbours among the images, are the
   pseudo-labels that an autoencoder learns, from augmented copies, while it learns to draw the image from the code. It
   teaches the next one likewise. The average of the last student's weights is the result.

Nothing here ever sees a label.
"""

from dataclasses import dataclass
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from mnist_ae import augment, data, losses, models, train

MERGED = 0.06  # nats of mutual information less than the best: such a code has merged two digits and split one
DOUBT = 1e-4  # the least probability that a witness gives to an answer


@dataclass(frozen=True)
class Network:
    """One network, and by itself a recipe.

    heads: codes that are learned side by side on one trunk. Some merge two digits, by chance; the one with the largest
    mutual information is the code. deeper, canonical, holes: see `models.TenNeurons`. lr, warm_up, anneal: see
    `train.learn`. taught: the first epochs, which learn the answers given, if any are.
    reconstruction, information: the weights of those terms. Without the first the decoder stays as it was born; without
    the second there is no consistency either. balance: see `losses.mutual_information`.
    augmented: False to learn from the images as they are. post: True for the post's network, with a target that it can
    reach. ValueError for numbers that cannot be, and for several heads with a decoder: it would draw from one.
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
    post: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", train.whole_number("epochs", self.epochs, 1, 10_000))
        object.__setattr__(self, "heads", train.whole_number("heads", self.heads, 1, 1000))
        if not 0 < self.warm_up < self.epochs:
            raise ValueError(f"warm_up must be between 0 and the {self.epochs} epochs, got {self.warm_up}")
        if self.reconstruction and self.heads > 1:
            raise ValueError(f"heads must be 1 where there is a reconstruction to learn, got {self.heads}")

    def model(self) -> nn.Module:
        if self.post:
            return models.PostAutoencoder(reachable=True)
        return models.TenNeurons(self.heads, self.deeper, self.canonical, self.holes)

    def fit(self, images: Tensor, seed: int, **options: object) -> train.Fitted:
        """images: uint8 [N, 1, 28, 28] -> a model trained from the weights of `seed`, and its history.

        options: see `train.Stages`.
        """
        with train.Stages(seed, self.epochs, images := data.as_images(images), **options) as stages:
            sights = train.with_sights(train.born(self.model, seed), images)
            return stages.learn("network", self, sights), stages.history

    def learn(self, model: nn.Module, sights: Tensor, answers: Tensor | None = None, **options: object) -> list[dict]:
        """Train `model` on what `train.with_sights` gives, uint8 [N, 1 + C, 28, 28]; answers: float [N, 10].

        options: seed, bar and the like, see `train.learn`.
        """
        loss = partial(self.loss, model, answers)
        options |= {name: getattr(self, name) for name in ("epochs", "lr", "warm_up", "anneal")}
        history = train.learn(model, sights, loss, **options)
        # What batch normalisation has seen are augmented copies, too; from here on it reads images as they are.
        sample = sights[:: max(1, len(sights) // 10_000), 1:]
        batches = sample.chunk(-(-len(sample) // train.ENCODE_BATCH))  # all of about one size: each counts the same
        update_bn((x.float() / 255 for x in batches), model.encoder, next(model.parameters()).device)
        if self.heads > 1:
            best_head_first(model, sights[:, 1:])
        return history

    def loss(self, model: nn.Module, answers: Tensor | None, batch: train.Batch) -> Tensor:
        """For `train.learn`: of a batch of images and their augmented copies, the views, the sum over heads of

        KL(code of the image, held fixed || code of the view) - information * `losses.mutual_information`;
        or, while answers are learned, their cross-entropy with the code of the view; plus the reconstruction's error.
        """
        image, sight = batch.images[:, :1], batch.images[:, 1:]
        taught = answers is not None and batch.epoch <= self.taught
        view = augment.view(sight, batch.generator, bands=taught or batch.epoch > 1) if self.augmented else sight
        if taught:
            logs = log_codes(model, view)  # [heads, B, 10]
            loss = -(augment.to_device(answers[batch.index], sight.device) * logs).sum(2).mean()
        elif self.information:
            logs, of_view = log_codes(model, torch.cat([sight, view])).chunk(2, dim=1)
            information = losses.mutual_information(logs.exp(), self.balance)
            loss = (losses.consistency(logs.exp(), of_view) - self.information * information).sum()
        else:
            logs, loss = log_codes(model, view), 0.0
        if self.reconstruction:
            loss = loss + self.reconstruction * F.mse_loss(model.decoder(logs[0].exp()), image)
        return loss


@dataclass(frozen=True)
class TenDigits:
    """All that decides a run of the recipe but its seed and its images.

    neighbours: how many of an image have a say in the answers that a student learns; 0 to leave them out. ValueError
    where networks do not read the same: `canonical` and `holes` are computed once for all.
    """

    name: str = "ten-digits"
    committee: tuple[Network, ...] = 3 * (Network(),)
    teacher: Network = Network(epochs=6, heads=1, deeper=True, taught=2)
    students: tuple[Network, ...] = 3 * (
        Network(epochs=4, heads=1, deeper=True, taught=4, reconstruction=1.0, lr=2e-3, anneal=False),
    )
    neighbours: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "neighbours", train.whole_number("neighbours", self.neighbours, 0, 1000))
        if len({(network.canonical, network.holes) for network in self.networks}) > 1:
            raise ValueError("canonical and holes must be the same in all networks")

    @property
    def networks(self) -> tuple[Network, ...]:
        return *self.committee, self.teacher, *self.students

    @property
    def epochs(self) -> int:
        """Over all images, of all networks together."""
        return sum(network.epochs for network in self.networks)

    def model(self) -> nn.Module:
        return self.networks[-1].model()

    def fit(self, images: Tensor, seed: int, **options: object) -> train.Fitted:
        """images: uint8 [N, 1, 28, 28] -> the last network, and the history of all.

        options: see `train.Stages`.
        """
        with train.Stages(seed, self.epochs, images := data.as_images(images), **options) as stages:
            sights = train.with_sights(train.born(self.model, seed), images)
            committee = [stages.learn(f"member {k}", member, sights) for k, member in enumerate(self.committee, 1)]
            answers = aggregate([read(member, sights) for member in committee]) if committee else None
            model = stages.learn("teacher", self.teacher, sights, answers)
            nearest = nearest_neighbours(sights[:, 1], self.neighbours) if self.students and self.neighbours else None
            for k, student in enumerate(self.students, 1):
                answers = read(model, sights) if nearest is None else agree(read(model, sights), nearest)
                model = stages.learn(f"student {k}", student, sights, answers)
            return model, stages.history


def log_codes(model: nn.Module, x: Tensor) -> Tensor:
    """The logarithm of the codes of what the encoder reads, float [N, C, 28, 28] in [0, 1]: [heads, N, 10], exact where
    a code rounds to 0.

    >>> model = models.TenNeurons()
    >>> x = torch.rand(2, 2, 28, 28)
    >>> torch.allclose(log_codes(model, x)[0].exp(), model.encoder(x))
    True
    """
    return model.encoder[:-1](x).unflatten(1, (-1, 10)).log_softmax(2).transpose(0, 1)


def read(model: nn.Module, sights: Tensor) -> Tensor:
    """The codes [N, 10] of images with their sights, uint8 [N, 1 + C, 28, 28]: see `train.with_sights`.

    >>> read(models.TenNeurons(), torch.zeros(3, 3, 28, 28, dtype=torch.uint8)).sum(dim=1).round(decimals=3)
    tensor([1., 1., 1.])
    """
    return train.in_batches(model, model.encoder, sights[:, 1:])


def nearest_neighbours(images: Tensor, count: int) -> Tensor:
    """The places of the `count` other images nearest to each: uint8 [N, 28, 28] -> int64 [N, count].

    Near in the plain sense, by the pixels' first 60 principal components.

    >>> nearest_neighbours(torch.tensor([0, 9, 100, 110]).to(torch.uint8)[:, None, None].expand(-1, 28, 28), 1)[:, 0]
    tensor([1, 0, 3, 2])
    """
    pixels = images.flatten(1).float().numpy()
    with threadpool_limits(torch.get_num_threads()):
        components = PCA(min(60, *pixels.shape), random_state=0).fit_transform(pixels)
        search = NearestNeighbors(n_neighbors=min(count, len(pixels) - 1), algorithm="brute").fit(components)
        return torch.from_numpy(search.kneighbors(return_distance=False))


def agree(codes: Tensor, nearest: Tensor) -> Tensor:
    """What an image's code and the mean code of its neighbours say together, as two witnesses: their product, [N, 10].

    codes: [N, 10]; nearest: [N, K], places of neighbours.

    >>> codes = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8]])
    >>> agree(codes, torch.tensor([[1, 2], [0, 2], [0, 1]]))[0].round(decimals=2)
    tensor([0.2100, 0.7900])
    """
    evidence = codes.clamp_min(DOUBT).log() + codes[nearest].mean(1).clamp_min(DOUBT).log()
    return evidence.softmax(dim=1)


@torch.no_grad()
def best_head_first(model: nn.Module, x: Tensor) -> None:
    """Make the head whose codes of x, what the encoder reads, have the largest mutual information the first.

    >>> best_head_first(models.TenNeurons(heads=3), torch.rand(4, 2, 28, 28))
    """
    codes = train.in_batches(model, lambda batch: log_codes(model, batch).transpose(0, 1).exp(), x).transpose(0, 1)
    best = losses.mutual_information(codes).argmax().item()
    layers = [layer for layer in model.encoder if isinstance(layer, nn.Linear | nn.Conv1d)]
    for parameter in (parameter for layer in layers for parameter in layer.parameters()):
        parameter.copy_(parameter.roll(-best * (len(parameter) // len(codes)), 0))


def align(readings: list[Tensor]) -> list[Tensor]:
    """The codes [N, 10] of several networks of the same images, their neurons put in the order of the one with the
    largest mutual information (Hungarian matching); without those that have MERGED digits.

    >>> one = torch.eye(10)
    >>> [torch.equal(codes, one) for codes in align([one, one.flip(1)])]  # the same codes, other names of the neurons
    [True, True]
    """
    information = [losses.mutual_information(codes).item() for codes in readings]
    best = readings[information.index(max(information))]
    kept = [codes for codes, own in zip(readings, information, strict=True) if own > max(information) - MERGED]
    return [codes[:, linear_sum_assignment(best.T @ codes, maximize=True)[1]] for codes in kept]


def aggregate(readings: list[Tensor], rounds: int = 10) -> Tensor:
    """What several networks' codes [N, 10] of the same images say together: float [N, 10], pseudo-labels.

    Each network has habits: one takes barred 7s for 2s, another for 9s. In turn, their confusion matrices are estimated
    from the answers so far, and the answers from what each says and is known to confuse: a 2 from the one and a 9 from
    the other make a 7, where a vote is lost. (Dawid and Skene 1979, with codes for counts.) The last evidence is the
    networks' mean, not their sum, since they do not err independently.

    >>> one = torch.eye(10).repeat(20, 1)
    >>> torch.equal(aggregate([one, one.flip(1)]).argmax(dim=1), one.argmax(dim=1))
    True
    """
    readings = align(readings)
    answers = sum(readings) / len(readings)
    for _ in range(rounds):
        confusions = [answers.T @ codes + 1e-5 * len(codes) for codes in readings]  # [answer, what it says]
        likelihoods = [(confusion / confusion.sum(dim=1, keepdim=True)).log() for confusion in confusions]
        evidence = sum(codes @ likelihood.T for codes, likelihood in zip(readings, likelihoods, strict=True))
        frequency = answers.mean(0).clamp_min(1e-3).log()
        answers = (frequency + evidence).softmax(dim=1)
    return (frequency + evidence / len(readings)).softmax(dim=1)
