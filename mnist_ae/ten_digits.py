"""The recipe that learns ten digits without a label: short starts, a vote, doubters, and students.

1. **Starts.** Several small autoencoders, each from its own first weights, learn for two epochs that a warped image
   keeps its code, that codes are one-hot, that all ten neurons are used, and to draw the image from its code.
2. **Vote.** Their neurons are put in the same order and their codes averaged: where all agree, they are right. What one
   start gets wrong is as a rule a whole style of digit, so that it has habits: one takes 7s with a bar for 2s, another
   for 9s. Their answers are weighed by these, and a 2 and a 9 make a 7.
3. **Doubters.** Some styles all starts get wrong: a 9 with a curled tail is a 3 to them. Two doubters see the holes of
   the image as well, and learn only the surest votes, where such 9s are rare, and not for long. To them they are 9s, as
   a rule. For images with a hole, half of the answer is theirs: where they differ from the starts, it is unsure.
4. **Students.** A fresh autoencoder learns the answers that are sure, from warped images, and elsewhere its own
   opinion, once it is sure. Often it sees only a band of the image, or no holes: each part must be enough. What it
   reads from all these sights together are the answers that the next student learns.

Nothing here ever sees a label.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mnist_ae import augment, losses, models, train

RECONSTRUCTION = 5.0  # weight of the mean squared error of the drawing, in starts and students

LEAST_BATCHES = 400  # in an epoch; MNIST has 468, the bundled digits would have 11

OnEpoch = Callable[[int, nn.Module], None]
Fitted = tuple[nn.Module, list[dict]]


@dataclass
class Batch:
    """What a loss is given: images float [B, C, 28, 28] in [0, 1], which ones they are, and what to work with."""

    model: nn.Module
    teacher: nn.Module  # the moving average of the model, in eval mode
    images: Tensor
    index: Tensor  # int64 [B], their places in the training set
    epoch: int  # from 1
    generator: torch.Generator


@dataclass(frozen=True)
class Start:
    """A start, and by itself a recipe: warped images keep their code, codes are one-hot, all neurons are used, and the
    decoder draws the image.

    reconstruction, information: the weights of those terms; a 0 drops a term. balance: see `losses.mutual_information`.
    It makes the start: with half of it, some starts merge two digits. It also does harm, since MNIST's digits are not
    equally frequent: what is too much for one neuron moves to another. That is why students do without it.
    warped: False to learn from the images as they are. shear: see `augment.warp`; with 0.3, some starts split the 1s
    into upright and slanted ones. post: True for the post's network, with a target it can reach.
    """

    name: str = "start"
    epochs: int = 2
    reconstruction: float = RECONSTRUCTION
    information: float = 0.1
    balance: float = 4.0
    warped: bool = True
    shear: float = 0.5
    post: bool = False

    def model(self) -> nn.Module:
        return models.PostAutoencoder(reachable=True) if self.post else models.TenNeurons()

    def fit(self, images: Tensor, seed: int, *, device: str, progress: bool, on_epoch: OnEpoch | None = None) -> Fitted:
        """images: uint8 [N, 1, 28, 28] -> a model trained from the weights of `seed`, and what `learn` returns."""
        with tqdm(total=self.epochs * len(images), unit=" images", mininterval=2, disable=not progress) as bar:
            model = born(self.model, seed)
            history = learn(model, images, self.loss, epochs=self.epochs, seed=seed, lr=1e-3, device=device, bar=bar)
        if on_epoch:
            on_epoch(self.epochs, model)
        return model, history

    def loss(self, batch: Batch) -> Tensor:
        """For `learn`."""
        x, n = batch.images, len(batch.images)
        warped = augment.warp(x, batch.generator, shear=self.shear) if self.warped else x
        if not self.information:
            code = log_codes(batch.model, warped).exp()
            return F.mse_loss(batch.model.decoder(code), x)
        both = log_codes(batch.model, torch.cat([x, warped]))
        code = both[:n].exp()
        loss = losses.consistency(code, both[n:]) - self.information * losses.mutual_information(code, self.balance)
        if self.reconstruction:
            loss = loss + self.reconstruction * F.mse_loss(batch.model.decoder(code), x)
        return loss


@dataclass(frozen=True)
class Student:
    """How one student learns.

    epochs: over all images. sure: votes count where their largest number is above it, 0 to 1, and among the `surest`
    share of those for the same neuron. own: elsewhere the student's own opinion counts, where it is above this.
    windows: the share of images of which it sees a band only. blind: the share whose holes it does not see.
    """

    epochs: int = 6
    sure: float = 0.8
    surest: float = 1.0
    own: float = 0.9
    windows: float = 0.0
    blind: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """All that decides a run but its seed and its images. Without doubters the students see the image only."""

    name: str = "ten-digits"
    starts: int = 6
    start: Start = Start()
    doubters: int = 2
    doubter: Student = Student(epochs=2, surest=0.5, own=0.95)
    students: tuple[Student, ...] = (
        Student(epochs=5, windows=0.5, blind=0.5),
        Student(epochs=8, sure=0.6, blind=0.3),
    )

    @property
    def epochs(self) -> int:
        """Over all images, of all parts together."""
        return sum(part.epochs for _, part in self.parts())

    def parts(self) -> list[tuple[str, Start | Student]]:
        """The name of each part and what it is, in the order in which they learn."""
        starts = [(f"start {k + 1}", self.start) for k in range(self.starts)]
        doubters = [(f"doubter {k + 1}", self.doubter) for k in range(self.doubters)]
        return starts + doubters + [(f"student {k + 1}", student) for k, student in enumerate(self.students)]

    def model(self) -> nn.Module:
        return models.TenNeurons(holes=self.doubters > 0)

    def fit(self, images: Tensor, seed: int, *, device: str, progress: bool, on_epoch: OnEpoch | None = None) -> Fitted:
        """images: uint8 [N, 1, 28, 28] -> the last student, and what `learn` returns for each part, with its name.

        on_epoch(epoch, model) is called at the end of each part, with the epochs until then.
        """
        history, readings, doubts, votes, weighed, answers = [], [], [], None, None, None
        sights = with_holes(images) if self.doubters else images
        with tqdm(total=self.epochs * len(images), unit=" images", mininterval=2, disable=not progress) as bar:
            for number, (name, part) in enumerate(parts := self.parts()):
                own = 1000 * seed + number  # each part draws random numbers of its own
                if part is self.start:
                    model, seen, loss, lr = born(part.model, own), images, part.loss, 1e-3
                else:
                    lessons = votes if part is self.doubter else answers
                    model, seen, loss, lr = born(self.model, own), sights, student_loss(part, lessons), 2e-3
                rows = learn(model, seen, loss, epochs=part.epochs, seed=own, lr=lr, device=device, bar=bar)
                history += [{"part": name} | row for row in rows]
                if part is self.start:
                    readings.append(train.encode(model, images))
                    if len(readings) == self.starts:
                        votes = vote(readings)
                        answers = weighed = weigh(readings, votes)
                elif part is self.doubter:
                    doubts.append(read(model, sights, part, seed=own))
                    answers = torch.where(has_hole(sights), (weighed + sum(doubts) / len(doubts)) / 2, weighed)
                elif number + 1 < len(parts):
                    answers = read(model, sights, part, seed=own)
                if on_epoch:
                    on_epoch(len(history), model)
        return model, history


def born(kind: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A new model with the first weights of `seed`; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def learn(
    model: nn.Module,
    images: Tensor,
    loss_of: Callable[[Batch], Tensor],
    *,
    epochs: int,
    seed: int,
    lr: float,
    batch_size: int = 128,
    device: str = "cpu",
    bar: tqdm | None = None,
) -> list[dict]:
    """Minimise `loss_of` over images uint8 [N, C, 28, 28]: AdamW, one cycle of the rate up to `lr` and down to 0.

    An epoch is a pass over the images; where they are few, as many as make LEAST_BATCHES. Leaves in `model` the
    moving average of its weights, which is steadier than the last ones. Returns a dict an epoch: epoch (from 1), loss
    (mean over its batches), seconds. Raises ValueError for less than a batch of images and FloatingPointError at the
    end of an epoch whose loss is not finite.
    """
    if len(images) < batch_size:
        raise ValueError(f"{len(images)} images are less than one batch of {batch_size}")
    place, passes = train.pick_device(device), math.ceil(LEAST_BATCHES / (len(images) // batch_size))
    steps = len(images) * passes // batch_size
    images, model = images.to(place), model.to(place).train()
    teacher = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(seed)

    history = []
    for epoch in range(1, epochs + 1):
        begin, total = time.perf_counter(), torch.zeros((), device=place)
        order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(passes)])
        for step, index in enumerate(order[: steps * batch_size].split(batch_size), (epoch - 1) * steps):
            x = models.pixels(images[index.to(place)])
            loss = loss_of(Batch(model, teacher, x, index, epoch, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            move_average(teacher, model, step)
            total += loss.detach()
            if bar is not None:
                bar.update(len(index) / passes)
        history.append({"epoch": epoch, "loss": total.item() / steps, "seconds": time.perf_counter() - begin})
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss is {history[-1]['loss']} in epoch {epoch}: lower lr ({lr})")
    model.load_state_dict(teacher.state_dict())
    return history


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the weights of `average` towards those of `model`: about the mean of the last tenth of the steps so far, or
    of the last 200 where that is less.
    """
    share = 1 / min(2 + step / 10, 200)
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, share)


def log_codes(model: nn.Module, x: Tensor) -> Tensor:
    """The logarithm of the codes of what the encoder reads, float [N, C, 28, 28] in [0, 1]: [N, 10], exact where a code
    rounds to 0.
    """
    return F.log_softmax(model.encoder[:-1](x), dim=1)


def with_holes(images: Tensor) -> Tensor:
    """images: uint8 [N, 1, 28, 28] -> uint8 [N, 2, 28, 28], the second channel what the strokes enclose."""
    batches = images.split(train.ENCODE_BATCH)
    holes = torch.cat([(255 * augment.holes(models.pixels(batch))).round().byte() for batch in batches])
    return torch.cat([images, holes], dim=1)


def has_hole(sights: Tensor) -> Tensor:
    """sights: uint8 [N, 2, 28, 28], as `with_holes` gives them -> bool [N, 1]: does the image have a visible hole?"""
    return sights[:, 1].flatten(1).amax(dim=1, keepdim=True) > 0.3 * 255


def vote(readings: list[Tensor]) -> Tensor:
    """The mean of several models' codes [N, 10] of the same images, their neurons put in one order: float [N, 10].

    The order is that of the reading with the largest mutual information. One that has much less of it (0.06 nats) has
    merged two digits, or split one, and has no vote.
    """
    information = [losses.mutual_information(codes).item() for codes in readings]
    best = readings[max(range(len(readings)), key=information.__getitem__)]
    aligned = []
    for codes, own in zip(readings, information, strict=True):
        if own > max(information) - 0.06:
            _, order = linear_sum_assignment((best.T @ codes).numpy(), maximize=True)
            aligned.append(codes[:, order])
    return torch.stack(aligned).mean(0)


def weigh(readings: list[Tensor], votes: Tensor, rounds: int = 10, temper: float = 2.5) -> Tensor:
    """What several models' codes [N, 10] say together, begun with their `votes` [N, 10]: float [N, 10].

    Each model has habits: one may take 7s with a bar for 2s, another for 9s, and one that split the 1s has merged two
    others. In turn, each model's habits are counted (how often neuron k fires where the answer is c) and the answers
    are weighed by them, so that a 2 and a 9, from models that are known for it, make a 7. (Dawid and Skene 1979, with
    a code for ten fractional answers.) temper: models err together, so that in the end their evidence is worth so
    many times less than that of strangers, but not less than that of one.
    """
    answers = votes
    for _ in range(rounds):
        evidence = torch.zeros_like(votes)
        for codes in readings:
            habits = answers.T @ codes + 1e-5 * len(votes)
            evidence += codes @ (habits / habits.sum(dim=1, keepdim=True)).log().T
        frequency = answers.mean(0).clamp_min(1e-3).log()
        answers = (frequency + evidence).softmax(dim=1)
    return (frequency + evidence / min(temper, len(readings))).softmax(dim=1)


def student_loss(student: Student, votes: Tensor) -> Callable[[Batch], Tensor]:
    """A loss for `learn`: where the votes [N, 10] are sure, they are the answer; elsewhere, from the second epoch on,
    the teacher is (the student's own moving average, which sees everything), if it is sure.
    """
    certainty, answers = votes.max(dim=1)
    counts = certainty > student.sure
    for neuron in answers.unique():
        counts &= (answers != neuron) | (certainty >= certainty[answers == neuron].quantile(1 - student.surest))

    def loss_of(batch: Batch) -> Tensor:
        x, generator = batch.images, batch.generator
        answer, known = answers[batch.index].to(x.device), counts[batch.index].to(x.device)
        if batch.epoch > 1:
            with torch.no_grad():
                own, opinion = log_codes(batch.teacher, x).exp().max(dim=1)
            answer = torch.where(known, answer, opinion)
            known |= own > student.own
        seen = augment.window(augment.warp(x, generator), generator, share=student.windows)
        if student.blind:
            seen = hide_holes(seen, torch.rand(len(x), generator=generator) < student.blind)
        codes = log_codes(batch.model, seen)
        loss = (F.nll_loss(codes, answer, reduction="none") * known).mean()
        return loss + RECONSTRUCTION * F.mse_loss(batch.model.decoder(codes.exp()), x[:, :1])

    return loss_of


def hide_holes(x: Tensor, hidden: Tensor) -> Tensor:
    """x: float [N, C, 28, 28], hidden: bool [N] -> x with nothing but the image (the first channel) where hidden."""
    shown = torch.ones(x.shape[:2], device=x.device)
    shown[hidden.to(x.device), 1:] = 0
    return x * shown[:, :, None, None]


def read(model: nn.Module, sights: Tensor, student: Student, *, seed: int, views: int = 2) -> Tensor:
    """What a student makes of all that it learned to see, uint8 [N, C, 28, 28] -> float [N, 10]: a mean of readings.

    Of the whole: the mean of its codes of the image and of `views` warped ones. If it has learned from windows, also of
    2 x `views` of them: the geometric mean, where a part that fits many digits counts less than one that rules them
    out. If it has learned to do without holes, the same without them.
    """
    generator = torch.Generator().manual_seed(seed)

    def look(x: Tensor) -> Tensor:
        readings = []
        for z in [x, hide_holes(x, torch.ones(len(x), dtype=torch.bool))] if student.blind else [x]:
            whole = [z, *(augment.warp(z, generator) for _ in range(views))]
            readings.append(sum(log_codes(model, view).exp() for view in whole) / len(whole))
            if student.windows:
                parts = [log_codes(model, augment.window(z, generator)) for _ in range(2 * views)]
                readings.append((sum(parts) / len(parts)).softmax(dim=1))
        return sum(readings) / len(readings)

    return train.in_batches(model, look, sights)
