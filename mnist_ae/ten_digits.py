"""The recipe that learns ten digits without a label: short starts, their answers weighed together, and students.

1. **Starts.** Four autoencoders, each from its own first weights, learn for two epochs that a warped image keeps its
   code, that codes are one-hot, that all ten neurons are used, and to draw the image from its code. Two read the image
   only; two also see its holes, what the strokes enclose. The first take a 9 with a curled tail for a 3, the others a 4
   with a closed top for a 9: they err, but not together.
2. **Weigh.** What a start gets wrong is as a rule a whole style of digit: one takes 7s with a bar for 2s, another for
   9s. Such habits can be counted without a label, and then a 2 from the one and a 9 from the other make a 7.
3. **Students.** A fresh autoencoder learns the surest answers of each neuron, from warped images, and elsewhere its own
   opinion, once it is sure. Often it does not see the holes, the first one often sees only a band of the image: each
   part must be enough. What it reads from all these sights together are the answers that the next student learns.

Nothing here ever sees a label.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mnist_ae import augment, data, losses, models, train

RECONSTRUCTION = 5.0  # weight of the mean squared error of the drawing, in starts and students
SURE = 0.9  # a student's own opinion counts above this, and
TRAINED = 2  # after so many epochs: before, it errs about rare styles, and would confirm itself

BATCH = 128
LEAST_BATCHES = 400  # in an epoch; MNIST has 468, the bundled digits would have 11

Fitted = tuple[nn.Module, list[dict]]


@dataclass
class Batch:
    """What a loss is given: images float [B, C, 28, 28] in [0, 1], which ones they are, and what to work with."""

    model: nn.Module
    teacher: nn.Module  # the moving average of the model, in eval mode
    images: Tensor
    index: Tensor  # int64 [B] on the CPU, their places in the training set
    epoch: int  # from 1
    generator: torch.Generator


@dataclass(frozen=True)
class Start:
    """A start, and by itself a recipe: warped images keep their code, codes are one-hot, all neurons are used, and the
    decoder draws the image.

    reconstruction, information: the weights of those terms; a 0 drops a term. With half of this information, every
    second start merges two digits. balance: see `losses.mutual_information`. It makes the start: with half of it, too,
    some starts merge two digits. It also does harm, since MNIST's digits are not equally frequent: what is too much for
    one neuron moves to another. That is why students do without it.
    warped: False to learn from the images as they are. shear: see `augment.warp`; with 0.3, some starts split the 1s
    into upright and slanted ones. holes: True to see them, but in the share `blind` of the warped images.
    post: True for the post's network, with a target it can reach.
    """

    name: str = "start"
    epochs: int = 2
    reconstruction: float = RECONSTRUCTION
    information: float = 0.2
    balance: float = 4.0
    warped: bool = True
    shear: float = 0.5
    holes: bool = False
    blind: float = 0.3
    post: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", train.whole_number("epochs", self.epochs, 1, 10_000))

    def model(self) -> nn.Module:
        return models.PostAutoencoder(reachable=True) if self.post else models.TenNeurons(self.holes)

    def fit(
        self,
        images: Tensor,
        seed: int,
        *,
        device: str,
        progress: bool,
        on_epoch: train.OnEpoch | None = None,
        resume: dict | None = None,
    ) -> Fitted:
        """images: uint8 [N, 1, 28, 28] -> a model trained from the weights of `seed`, and what `learn` returns."""
        images = data.as_images(images)
        with train.progress_bar(self.epochs * passes(len(images)) * len(images), progress) as bar:
            model, sights = born(self.model, seed), with_holes(images) if self.holes else images
            return model, learn(
                model,
                sights,
                self.loss,
                epochs=self.epochs,
                seed=seed,
                lr=1e-3,
                device=device,
                bar=bar,
                on_epoch=on_epoch,
                resume=resume,
            )

    def loss(self, batch: Batch) -> Tensor:
        """For `learn`."""
        x, n, generator = batch.images, len(batch.images), batch.generator
        warped = augment.warp(x, generator, shear=self.shear) if self.warped else x
        if self.holes:
            warped = hide_holes(warped, torch.rand(n, generator=generator) < self.blind)
        if not self.information:
            code = log_codes(batch.model, warped).exp()
            return F.mse_loss(batch.model.decoder(code), x[:, :1])
        both = log_codes(batch.model, torch.cat([x, warped]))
        code = both[:n].exp()
        loss = losses.consistency(code, both[n:]) - self.information * losses.mutual_information(code, self.balance)
        if self.reconstruction:
            loss = loss + self.reconstruction * F.mse_loss(batch.model.decoder(code), x[:, :1])
        return loss


@dataclass(frozen=True)
class Student:
    """How one student learns.

    epochs: over all images. surest: the share of each neuron's answers that count; it has to leave out the rare styles
    that the plain starts get wrong (a 9 with a curled tail), and to leave in those that most starts get right (a 7 with
    a bar). Elsewhere the student's own opinion counts, where it is above SURE. windows: the share of images of which it
    sees a band only. blind: the share whose holes it does not see.
    """

    epochs: int = 6
    surest: float = 0.9
    windows: float = 0.0
    blind: float = 0.0

    __post_init__ = Start.__post_init__


@dataclass(frozen=True)
class Recipe:
    """All that decides a run but its seed and its images. The students see holes if a start does."""

    name: str = "ten-digits"
    starts: tuple[Start, ...] = 2 * (Start(),) + 2 * (Start(holes=True),)
    students: tuple[Student, ...] = (
        Student(windows=0.5, blind=0.5),
        Student(epochs=8, surest=0.95, blind=0.3),
    )

    @property
    def epochs(self) -> int:
        """Over all images, of all parts together."""
        return sum(part.epochs for _, part in self.parts())

    def parts(self) -> list[tuple[str, Start | Student]]:
        """The name of each part and what it is, in the order in which they learn."""
        return [
            (f"{kind} {k}", part)
            for kind, parts in (("start", self.starts), ("student", self.students))
            for k, part in enumerate(parts, 1)
        ]

    @property
    def holes(self) -> bool:
        return any(start.holes for start in self.starts)

    def model(self) -> nn.Module:
        return models.TenNeurons(self.holes)

    def fit(
        self,
        images: Tensor,
        seed: int,
        *,
        device: str,
        progress: bool,
        on_epoch: train.OnEpoch | None = None,
        resume: dict | None = None,
    ) -> Fitted:
        """images: uint8 [N, 1, 28, 28] -> the last student, and what `learn` returns for each part, with its name.

        on_epoch and resume are those of `train.minimise`, with the epochs of all parts counted together.
        """
        # What the parts that are done have left, and the state of the one that is being trained.
        done = resume or {"parts": 0, "history": [], "readings": [], "answers": None, "learning": None}
        images, parts = data.as_images(images), self.parts()
        with train.progress_bar(self.epochs * passes(len(images)) * len(images), progress) as bar:
            sights = with_holes(images) if self.holes else images
            bar.update(sum(row["images"] for row in done["history"]))
            for number, (name, part) in enumerate(parts[done["parts"] :], done["parts"]):
                own = 1000 * seed + number  # each part draws random numbers of its own
                if isinstance(part, Start):
                    model, seen, loss, lr = born(part.model, own), sights if part.holes else images, part.loss, 1e-3
                else:
                    loss, lr = student_loss(part, done["answers"]), 2e-3
                    model, seen = born(self.model, own), sights
                rows = learn(
                    model,
                    seen,
                    loss,
                    epochs=part.epochs,
                    seed=own,
                    lr=lr,
                    device=device,
                    bar=bar,
                    on_epoch=on_epoch and partial(_within, on_epoch, done),
                    resume=done["learning"],
                )
                readings, answers = done["readings"], done["answers"]
                if isinstance(part, Start):
                    readings = [*readings, train.in_batches(model, model.encoder, seen)]
                    if len(readings) == len(self.starts):
                        answers = weigh(readings)
                elif number + 1 < len(parts):
                    answers = read(model, sights, part, seed=own)
                history = done["history"] + [{"part": name} | row for row in rows]
                done = {
                    "parts": number + 1,
                    "history": history,
                    "readings": readings,
                    "answers": answers,
                    "learning": None,
                }
        return model, done["history"]


def _within(on_epoch: train.OnEpoch, done: dict, epoch: int, model: nn.Module, state: dict) -> None:
    """Call on_epoch of a recipe from within a part, after that part's `epoch`."""
    on_epoch(len(done["history"]) + epoch, model, done | {"learning": state})


def born(kind: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A new model with the first weights of `seed`; the caller's random numbers are left alone.

    >>> born(lambda: torch.rand(1), 0) == born(lambda: torch.rand(1), 0)
    tensor([True])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def passes(images: int) -> int:
    """How often an epoch passes over the images: once, or, where they are few, as often as makes LEAST_BATCHES.

    Raises ValueError for less than a batch of images.

    >>> passes(60_000), passes(1_437)
    (1, 37)
    """
    if images < BATCH:
        raise ValueError(f"{images} images are less than one batch of {BATCH}")
    return math.ceil(LEAST_BATCHES / (images // BATCH))


def learn(
    model: nn.Module,
    images: Tensor,
    loss_of: Callable[[Batch], Tensor],
    *,
    epochs: int,
    seed: int,
    lr: float,
    bar: tqdm,
    device: str = "cpu",
    on_epoch: train.OnEpoch | None = None,
    resume: dict | None = None,
) -> list[dict]:
    """Minimise `loss_of` over images uint8 [N, C, 28, 28]: AdamW, one cycle of the rate up to `lr` and down to 0.

    Leaves in `model` the moving average of its weights, which is steadier than the last ones. An epoch: see `passes`.
    on_epoch, resume, what is returned and FloatingPointError: see `train.minimise`.

    >>> images = torch.zeros(128, 1, 28, 28, dtype=torch.uint8)
    >>> with train.progress_bar(1, shown=False) as bar:
    ...     history = learn(models.TenNeurons(), images, Start().loss, epochs=1, seed=0, lr=1e-3, bar=bar)
    >>> history[0]["images"] // BATCH  # so few images are seen again and again
    400
    """
    place, rounds = train.pick_device(device), passes(len(images))
    steps = len(images) * rounds // BATCH
    images, model = images.to(place), model.to(place).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Sequence[Tensor]:
        order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])
        return order[: steps * BATCH].split(BATCH)

    def loss(index: Tensor, epoch: int) -> Tensor:
        x = models.pixels(images[augment.to_device(index, place)])
        return loss_of(Batch(model, average, x, index, epoch, generator))

    def after_step() -> None:
        move_average(average, model, rate.last_epoch)
        rate.step()

    history = train.minimise(
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


def log_codes(model: nn.Module, x: Tensor) -> Tensor:
    """The logarithm of the codes of what the encoder reads, float [N, C, 28, 28] in [0, 1]: [N, 10], exact where a code
    rounds to 0.

    >>> model = models.TenNeurons()
    >>> x = torch.rand(2, 1, 28, 28)
    >>> torch.allclose(log_codes(model, x).exp(), model.encoder(x))
    True
    """
    return F.log_softmax(model.encoder[:-1](x), dim=1)


def with_holes(images: Tensor) -> Tensor:
    """images: uint8 [N, 1, 28, 28] -> uint8 [N, 2, 28, 28], the second channel what the strokes enclose.

    >>> with_holes(torch.zeros(3, 1, 28, 28, dtype=torch.uint8)).shape
    torch.Size([3, 2, 28, 28])
    """
    batches = images.split(train.ENCODE_BATCH)
    return torch.cat([images, torch.cat([augment.holes(batch) for batch in batches])], dim=1)


def vote(readings: list[Tensor]) -> Tensor:
    """The mean of several models' codes [N, 10] of the same images, their neurons put in one order: float [N, 10].

    The order is that of the reading with the largest mutual information. One that has much less of it (0.06 nats) has
    merged two digits, or split one, and has no vote.

    >>> one = torch.eye(10)
    >>> torch.equal(vote([one, one.flip(1)]), one)  # the same answers, other names of the neurons
    True
    """
    information = [losses.mutual_information(codes).item() for codes in readings]
    best = readings[max(range(len(readings)), key=information.__getitem__)]
    aligned = []
    for codes, own in zip(readings, information, strict=True):
        if own > max(information) - 0.06:
            _, order = linear_sum_assignment((best.T @ codes).numpy(), maximize=True)
            aligned.append(codes[:, order])
    return torch.stack(aligned).mean(0)


def weigh(readings: list[Tensor], rounds: int = 10) -> Tensor:
    """What several models' codes [N, 10] of the same images say together, in the order of `vote`: float [N, 10].

    Each model has habits: one may take 7s with a bar for 2s, another for 9s, and one that split the 1s has merged two
    others. In turn, each model's habits are counted (how often neuron k fires where the answer is c) and the answers
    are weighed by them, so that a 2 and a 9, from models that are known for it, make a 7. (Dawid and Skene 1979, with
    a code for ten fractional answers.) In the end the evidence is not the models' sum, as if they were strangers, but
    their mean, since they err together: it is sure where all are, and its order is what `Student.surest` asks for.

    >>> one = torch.eye(10).repeat(20, 1)
    >>> torch.equal(weigh([one, one.flip(1)]).argmax(dim=1), one.argmax(dim=1))
    True
    """
    answers = vote(readings)
    for _ in range(rounds):
        evidence = torch.zeros_like(answers)
        for codes in readings:
            habits = answers.T @ codes + 1e-5 * len(answers)
            evidence += codes @ (habits / habits.sum(dim=1, keepdim=True)).log().T
        frequency = answers.mean(0).clamp_min(1e-3).log()
        answers = (frequency + evidence).softmax(dim=1)
    return (frequency + evidence / len(readings)).softmax(dim=1)


def student_loss(student: Student, given: Tensor) -> Callable[[Batch], Tensor]:
    """A loss for `learn`: where the answers given, float [N, 10], are among the surest, they count; elsewhere, after
    TRAINED epochs, the teacher's (the student's own moving average, which sees everything), if it is sure.

    >>> loss_of = student_loss(Student(), torch.eye(10))
    >>> model, x = models.TenNeurons(), torch.rand(10, 1, 28, 28)
    >>> loss_of(Batch(model, model, x, torch.arange(10), 1, torch.Generator())).shape
    torch.Size([])
    """
    certainty, answers = given.max(dim=1)
    counts = torch.zeros_like(answers, dtype=torch.bool)
    for neuron in answers.unique():
        counts |= (answers == neuron) & (certainty >= certainty[answers == neuron].quantile(1 - student.surest))

    def loss_of(batch: Batch) -> Tensor:
        x, generator = batch.images, batch.generator
        told = counts[batch.index]
        answer, known = (augment.to_device(tensor, x.device) for tensor in (answers[batch.index], told))
        if batch.epoch > TRAINED:
            rest = augment.to_device((~told).nonzero().squeeze(1), x.device)  # asking about all would take longer
            with torch.no_grad():
                own, opinion = log_codes(batch.teacher, x[rest]).exp().max(dim=1)
            answer[rest], known[rest] = opinion, own > SURE
        seen = augment.window(augment.warp(x, generator), generator, share=student.windows)
        if student.blind:
            seen = hide_holes(seen, torch.rand(len(x), generator=generator) < student.blind)
        codes = log_codes(batch.model, seen)
        loss = (F.nll_loss(codes, answer, reduction="none") * known).mean()
        return loss + RECONSTRUCTION * F.mse_loss(batch.model.decoder(codes.exp()), x[:, :1])

    return loss_of


def hide_holes(x: Tensor, hidden: Tensor) -> Tensor:
    """x: float [N, C, 28, 28], hidden: bool [N] -> x with nothing but the image (the first channel) where hidden.

    >>> hide_holes(torch.ones(2, 2, 1, 1), torch.tensor([True, False])).flatten(1)
    tensor([[1., 0.],
            [1., 1.]])
    """
    shown = torch.ones(x.shape[:2], device=x.device)
    shown[:, 1:] = ~augment.to_device(hidden, x.device)[:, None]
    return x * shown[:, :, None, None]


def read(model: nn.Module, sights: Tensor, student: Student, *, seed: int, views: int = 2) -> Tensor:
    """What a student makes of all that it learned to see, uint8 [N, C, 28, 28] -> float [N, 10]: a mean of readings.

    Of the whole: the mean of its codes of the image and of `views` warped ones. If it has learned from windows, also of
    2 x `views` of them: the geometric mean, where a part that fits many digits counts less than one that rules them
    out. If it has learned to do without holes, the same without them.

    >>> images = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    >>> read(models.TenNeurons(), images, Student(windows=0.5), seed=0).sum(dim=1).round(decimals=3)
    tensor([1., 1., 1.])
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
