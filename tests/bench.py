"""`make bench`: how fast, against what, in the same run. Writes figures/bench.csv and figures/bench.png.

Each row compares two sides that took turns, and gives the medians. Where a goal was set, the row says so. Labels are
used here to tell how accurate a run is, never in one.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchvision import transforms

from mnist_ae import baselines, checks, confusion, data, experiment, models, plots, recipes, storage, sweep, train
from mnist_ae.__main__ import number

REPEATS = 5
Clock = Callable[[], float]  # does the work once -> seconds, or a rate


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(sides: dict[str, Clock], repeats: int = REPEATS, *, warm_up: bool = True) -> dict[str, float]:
    """The median of each side, after a round that does not count. They take turns, so that all see the same machine."""
    if warm_up:
        for clock in sides.values():
            clock()
    rounds = [{name: clock() for name, clock in sides.items()} for _ in range(repeats)]
    return {name: median(each[name] for each in rounds) for name in sides}


def row(section: str, what: str, value: float, unit: str, against: str, other: float, **more: object) -> dict:
    """One line of the table. ratio: how many times faster (per second), or shorter (seconds), than the other side."""
    ratio = value / other if unit.endswith("/s") or unit == "share" else other / value
    named = {"section": section, "what": what, "value": value, "unit": unit, "against": against, "other": other}
    return named | {"ratio": ratio} | more


# ----------------------------------------------------------------------------------------------------- the post's loop


class LikeTorchvision(torch.utils.data.Dataset):
    """(image, label) as torchvision's MNIST gives them: through PIL, ToTensor and Normalize."""

    def __init__(self, images: Tensor):
        self.images, normalise = images[:, 0].numpy(), transforms.Normalize((models.PIXEL_MEAN,), (models.PIXEL_STD,))
        self.transform = transforms.Compose([transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), 0


def plain_loop(dataset: torch.utils.data.Dataset, order: Tensor, workers: int) -> tuple[float, float]:
    """The straightforward loop over a data set of (image, label), in this order: images a second, mean loss.

    The clock starts at the first batch, so that workers have started.
    """
    ours = models.born(models.PostAutoencoder, 0)
    model = nn.Sequential(*ours.encoder, *ours.decoder).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    subset = torch.utils.data.Subset(dataset, order.tolist())
    total, begin = 0.0, None
    for x, _ in torch.utils.data.DataLoader(subset, batch_size=64, num_workers=workers):
        begin = begin or time.perf_counter()
        loss = F.mse_loss(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    return len(order) / (time.perf_counter() - begin), total / len(order)


def our_loop(images: Tensor, **options: object) -> tuple[float, float]:
    """One epoch of the post's recipe: images a second, mean loss."""
    with train.Trainer(progress=False) as trainer:
        recipes.Post(epochs=1, **options).train(trainer, images)
    return len(images) / trainer.history[0]["seconds"], trainer.history[0]["loss"]


def post_loop(images: Tensor, few: int, repeats: int = REPEATS) -> Iterator[dict]:
    """few: how many of the images are used for speed."""
    dataset = LikeTorchvision(images)

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(0))  # that of `our_loop`

    rates = {workers: plain_loop(dataset, order(few), workers)[0] for workers in range(os.cpu_count() + 1)}
    workers = max(rates, key=rates.get)
    sides = {
        "plain": lambda: plain_loop(dataset, order(few), workers)[0],
        "ours": lambda: our_loop(images[:few])[0],
        "bfloat16": lambda: our_loop(images[:few], bfloat16=True)[0],
    }
    measured = in_turns(sides, repeats)
    against = f"the plain loop over a DataLoader, {workers} workers"
    yield row("loop", "the post's recipe", measured["ours"], "images/s", against, measured["plain"], goal=3)
    yield row("loop", "the post's recipe, bfloat16", measured["bfloat16"], "images/s", against, measured["plain"])
    plain, ours = plain_loop(dataset, order(len(images)), workers)[1], our_loop(images)[1]
    difference = max(abs(ours / plain - 1), sys.float_info.epsilon)
    yield row("loop", "first epoch's loss", difference, "relative difference", "allowed", 1e-4, goal=1)


# ------------------------------------------------------------------------------------------------ the label-free recipe


def score(codes_train: object, codes_test: object, digits: data.Digits) -> float:
    """Accuracy on the test images, one-to-one, the mapping fitted on training labels."""
    mapping = confusion.one_to_one_mapping(confusion.confusion_matrix(digits.train_labels, codes_train))
    return confusion.accuracy(confusion.confusion_matrix(digits.test_labels, codes_test), mapping)


class Watched(train.Trainer):
    """Looks at the model after each epoch, with the clock stopped, until it is as accurate as it should be.

    goals: accuracies. passed: {accuracy: seconds until it was there}.
    """

    def __init__(self, digits: data.Digits, goals: tuple[float, ...], **options: object):
        super().__init__(0, **options)
        self.digits, self.goals, self.passed, self.stopped = digits, goals, {}, 0.0

    def _keep(self, parts: dict, generator: torch.Generator, rows: list[dict]) -> None:
        now = time.perf_counter()
        super()._keep(parts, generator, rows)
        if len(self.passed) < len(self.goals):
            codes = (train.encode(parts["average"], x) for x in (self.digits.train_images, self.digits.test_images))
            reached = score(*codes, self.digits)
            took = self.seconds - self.stopped - (time.perf_counter() - now)
            self.passed = {goal: took for goal in self.goals if reached >= goal} | self.passed
        self.stopped += time.perf_counter() - now


GOALS = {0.98: 30, 0.99: 120}  # accuracy: seconds


def label_free(digits: data.Digits, recipe: recipes.TenDigits, goals: dict[float, float] = GOALS) -> Iterator[dict]:
    """The whole recipe once, and the other methods once."""
    with Watched(digits, tuple(goals), epochs=recipe.epochs) as trainer:
        model = recipe.train(trainer, digits.train_images)
    whole = trainer.seconds - trainer.stopped
    for accuracy, took in sorted(trainer.passed.items()):
        more = {"accuracy": accuracy, "goal": 1, "repeats": 1}
        yield row("recipe", f"to {accuracy:.0%}", took, "s", "the goal", goals[accuracy], **more)
    ours = score(*(train.encode(model, x) for x in (digits.train_images, digits.test_images)), digits)
    yield row("recipe", "ten-digits", whole, "s", "the goal", 240, accuracy=ours, goal=1, repeats=1)
    for method in (baselines.METHODS[0], baselines.METHODS[-1]):
        begin = time.perf_counter()
        accuracy = baselines.accuracy(method, digits, 0)
        took = time.perf_counter() - begin
        yield row("recipe", method, took, "s", "ten-digits", whole, accuracy=accuracy, repeats=1)


def shares(images: Tensor) -> Iterator[dict]:
    """Where the time of the label-free teacher goes: shares of an epoch on these images."""
    teacher = replace(recipes.TEN_DIGITS.teacher, epochs=1)
    inputs = recipes.with_inputs(teacher.model, images)
    adamw = partial(torch.optim.AdamW, fused=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, train.Trainer(progress=False) as trainer:
        trainer.fit("teacher", teacher.model, inputs, partial(teacher.loss, None), adamw, epochs=1, batch_size=128)
    kinds = {"convolutions": "conv", "matrix products": "mm", "batch normalisation": "batch_norm", "resampling": "grid"}
    taken = dict.fromkeys([*kinds, "all else"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, word in kinds.items() if word in event.key.lower()), "all else")
        taken[kind] += event.self_cpu_time_total
    for kind, time_of in taken.items():
        yield row("teacher", f"time in {kind}", time_of / sum(taken.values()), "share", "the whole step", 1, repeats=1)


# --------------------------------------------------------------------------------------------------- everything around


def evaluation(digits: data.Digits, repeats: int = REPEATS) -> Iterator[dict]:
    model = models.born(models.PostAutoencoder, 0)

    def work() -> None:
        matrix = confusion.confusion_matrix(digits.test_labels, train.encode(model, digits.test_images))
        confusion.one_to_one_mapping(matrix), confusion.majority_mapping(matrix)

    taken = in_turns({"": lambda: seconds(work)}, repeats)[""]
    what = f"encode, matrix and mappings of {len(digits.test_images):,} images"
    yield row("evaluation", what, taken, "s", "the goal", 0.5, goal=1)
    if digits.name == "MNIST":
        taken = in_turns({"": lambda: seconds(lambda: data.load("MNIST"))}, repeats)[""]
        yield row("evaluation", "MNIST from disk, checksums included", taken, "s", "the goal", 0.3, goal=1)


GROWTH = """
import sys, torch
from mnist_ae import data
from tests.bench import our_loop, peak_megabytes
images, count = data.load(sys.argv[1]).train_images, int(sys.argv[2])
rate, _ = our_loop(images[torch.arange(count) % len(images)])
print(count / rate, peak_megabytes())
"""


def peak_megabytes() -> float:
    """The most memory that this process has had. On Linux not from getrusage: that counts its parent in."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def growth(name: str, counts: tuple[int, ...]) -> Iterator[dict]:
    """One epoch of the post's loop on more and more images, each in a process of its own: seconds and peak memory."""
    base = None
    for count in counts:
        command = [sys.executable, "-c", GROWTH, name, str(count)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=storage.HOME).stdout
        taken, peak = map(float, printed.split())
        base = base or taken / count
        against, more = "in proportion to the fewest", {"images": count, "peak_megabytes": peak, "repeats": 1}
        yield row("growth", f"{count:,} images", taken, "s", against, base * count, **more)


def sweeps(name: str, recipe: recipes.Recipe, seeds: int) -> Iterator[dict]:
    """As many seeds at once as there are cores, one thread each, against one after another with all threads."""

    def one_after_another() -> None:
        digits = data.load(name)
        for seed in range(seeds):
            folder = Path(os.environ["MNIST_AE_OUT"]) / str(seed)
            experiment.run(recipe, seed, digits, folder, device="cpu", progress=False)

    taken, before = [], dict(os.environ)
    for work in (lambda: sweep.sweep([recipe], range(seeds), dataset=name, device="cpu"), one_after_another):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MNIST_AE_OUT"] = folder
            taken.append(seconds(work))
    os.environ.clear()
    os.environ.update(before)
    against = f"one after another, {torch.get_num_threads()} threads each"
    what = f"sweep of {seeds} seeds, {recipe.name}, {recipe.epochs} epochs"
    yield row("sweep", what, taken[0], "s", against, taken[1], repeats=1)


# ----------------------------------------------------------------------------------------------- the table and its plot


def machine() -> str:
    """What was measured on, in words."""
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    flags = ""
    if cpuinfo.exists():
        lines = [line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines()]
        found = {key.strip(): value.strip() for key, value in lines}
        name = found.get("model name", name)
        flags = "".join(f", {flag}" for flag in ("avx2", "avx512f", "amx_bf16") if flag in found.get("flags", ""))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB"
    return f"{name}, {cores}{flags}; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


def draw(table: pd.DataFrame, title: str) -> Figure:
    """How time and memory grow with the images."""
    fig = Figure(figsize=(9, 3.6))
    fig.suptitle(title)
    grown = table[table["section"] == "growth"]
    panels = {"seconds an epoch": grown["value"], "peak memory, MB": grown["peak_megabytes"]}
    for ax, (name, values) in zip(fig.subplots(1, 2), panels.items(), strict=True):
        ax.plot(grown["images"] / 1e3, values, "o-", color=plots.BLUE, label="measured")
        ax.set(xlabel="images (thousands)", ylabel=name, xlim=(0, None), ylim=(0, 1.1 * values.max()))
    fig.axes[0].plot(grown["images"] / 1e3, grown["other"], "--", color=plots.GREY, label="in proportion")
    fig.axes[0].legend()
    return fig


def main() -> None:
    """MNIST only: torchvision's loop, with which ours is compared, knows no other of the same size on every machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=number, default=2)
    try:
        checks.parameters(epochs=1, seed=0, device="cpu", threads=parser.parse_args().threads)
        digits = data.load("MNIST")
    except (ValueError, data.DataError) as error:
        sys.exit(f"error: {error}")
    images = digits.train_images
    sections = (
        post_loop(images, few=19_200),
        evaluation(digits),
        growth("MNIST", (7_500, 30_000, 60_000, 240_000)),
        sweeps("MNIST", replace(recipes.POST, epochs=1), seeds=2),
        shares(images[:12_800]),
        label_free(digits, recipes.TEN_DIGITS),
    )
    rows = []
    for section in sections:
        for line in section:
            rows.append({"repeats": REPEATS} | line)
            print(f"{line['section']:>16}  {line['what']}: {line['value']:.4g} {line['unit']}, ", end="")
            print(f"{line['ratio']:.2f} x {line['against']} ({line['other']:.4g})", flush=True)
    table = pd.DataFrame(rows)
    table["goal_met"] = (table["ratio"] >= table["goal"]).where(table["goal"].notna())
    table["machine"] = machine()
    figure = draw(table, f"An epoch of the post's loop\n{machine().split(';')[0]}")
    plots.save_figure(figure, "bench", table.set_index("section"), "MNIST")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: figures/bench.csv is as it was")
