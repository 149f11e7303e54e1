"""`make bench`: how fast, against what, in the same run. Writes figures/bench.csv and figures/bench.png.

Each row compares two sides that took turns, and gives the medians.
"""

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from unittest.mock import patch

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from mnist_ae import ablations, checks, data, experiment, models, plots, recipes, sweep, train
from mnist_ae.__main__ import number

REPEATS = 5
FEW = 19_200  # images: enough to tell how fast a loop is
USUAL = transforms.Compose([transforms.ToTensor(), transforms.Normalize((models.PIXEL_MEAN,), (models.PIXEL_STD,))])


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(sides: dict[str, Callable], repeats: int = REPEATS) -> dict:
    """The median of what each side returns, a number or (a number, more). They take turns; the first is a rehearsal."""
    rounds = [{name: clock() for name, clock in sides.items()} for _ in range(1 + repeats)][1:]
    return {name: median(each[name] for each in rounds) for name in sides}


def row(section: str, what: str, value: float, unit: str, against: str, other: float, **more: object) -> dict:
    """One line of the table. ratio: how many times faster (per second), or shorter (seconds), than the other side."""
    named = {"section": section, "repeats": REPEATS, "what": what, "value": value, "unit": unit, "against": against}
    return named | {"other": other, "ratio": value / other if unit.endswith("/s") else other / value} | more


def as_torchvision_does(images: list[Tensor]) -> Tensor:
    """A batch of a DataLoader over torchvision's MNIST: each image through PIL, ToTensor and Normalize."""
    return torch.stack([USUAL(Image.fromarray(image[0].numpy())) for image in images])


def plain_loop(images: Tensor, workers: int) -> tuple[float, float]:
    """The straightforward loop over a DataLoader, in the order of `our_loop`: images a second, mean loss."""
    ours = models.initialise(models.PostAutoencoder, 0)
    model = nn.Sequential(*ours.encoder, *ours.decoder).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    total, begin = 0.0, None
    for x in DataLoader(images, batch_size=64, num_workers=workers, collate_fn=as_torchvision_does):
        begin = begin or time.perf_counter()  # workers have started
        loss = F.mse_loss(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    return len(images) / (time.perf_counter() - begin), total / len(images)


def our_loop(images: Tensor) -> tuple[float, float]:
    """One epoch of the post's recipe: images a second, mean loss."""
    with train.Trainer(progress=False) as trainer:
        recipes.Post(epochs=1).train(trainer, images)
    return len(images) / trainer.history[0]["seconds"], trainer.history[0]["loss"]


def post_loop(images: Tensor) -> Iterator[dict]:
    """Ours against the plain one, with as many workers as are best, and against what this machine multiplies."""
    model, matrices = models.initialise(models.PostAutoencoder, 0), torch.rand(2, 2048, 2048)
    x = model.normalise(images[:64])
    with FlopCounterMode(display=False) as counter:
        F.mse_loss(model(x), x).backward()
    operations = counter.get_total_flops() / len(x)
    workers = max(range(os.cpu_count() + 1), key=lambda count: plain_loop(images, count)[0])
    sides = {
        "plain": lambda: plain_loop(images, workers)[0],
        "ours": lambda: our_loop(images)[0],
        "matrices": lambda: 2 * 2048**3 / seconds(lambda: torch.mm(*matrices)),
    }
    rates = in_turns(sides)
    against = f"the plain loop over a DataLoader, {workers} workers"
    yield row("loop", "Trainer.fit", rates["ours"], "images/s", against, rates["plain"])
    what, most = f"Trainer.fit, {operations / 1e6:.1f} MFLOP an image", rates["matrices"]
    against = f"as many operations in 2048 x 2048 matrix products, {most / 1e9:.0f} GFLOP/s"
    yield row("limit", what, rates["ours"], "images/s", against, most / operations)


def start_up() -> Iterator[dict]:
    """What a person waits for before anything begins."""
    modules = "data, models, train, confusion"
    lines = {"ours": f"from mnist_ae import {modules}", "torch": "import torch"}
    commands = {name: partial(subprocess.run, [sys.executable, "-c", line], check=True) for name, line in lines.items()}
    taken = in_turns({name: partial(seconds, command) for name, command in commands.items()})
    yield row("start-up", f"import {modules}", taken["ours"], "s", "import torch", taken["torch"])


def growth(*counts: int) -> Iterator[dict]:
    """An epoch of the post's loop on more and more images, each in a process of its own: seconds and peak memory."""

    def alone(count: int) -> tuple[float, float]:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(epoch_of, count, torch.get_num_threads()).result()

    found, against = in_turns({count: partial(alone, count) for count in counts}, 3), "in proportion to the fewest"
    for count, (taken, peak) in found.items():
        other, more = found[counts[0]][0] / counts[0] * count, {"images": count, "peak_megabytes": peak, "repeats": 3}
        yield row("growth", f"{count:,} images", taken, "s", against, other, **more)


def epoch_of(count: int, threads: int) -> tuple[float, float]:
    """One epoch on so many images, MNIST's over and over: seconds, and the most MB that this process has had."""
    torch.set_num_threads(threads)
    images = data.load("MNIST").train_images
    rate, _ = our_loop(images[torch.arange(count) % len(images)])
    status = Path("/proc/self/status")  # on Linux, where getrusage counts the parent in; macOS gives bytes
    peak = re.search(r"VmHWM:\s*(\d+)", status.read_text())[1] if status.exists() else None
    return count / rate, (int(peak) * 1024 if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e6


def sweeps(epochs: int) -> Iterator[dict]:
    """Two seeds at once, with one thread each, against one after another with all threads."""
    recipe = replace(recipes.POST, epochs=epochs)

    def one_after_another() -> None:
        digits = data.load("MNIST")
        for seed in range(2):
            folder = experiment.run_folder(recipe, seed, digits)
            experiment.run(recipe, seed, digits, folder, device="cpu", progress=False)

    def fresh(work: Callable[[], object]) -> float:
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MNIST_AE_OUT=folder):
            return seconds(work)

    at_once = fresh(lambda: sweep.sweep([recipe], range(2), dataset="MNIST", device="cpu"))
    what, against = (
        f"sweep of 2 seeds, post, {epochs} epochs",
        f"one after another, {torch.get_num_threads()} threads each",
    )
    yield row("sweep", what, at_once, "s", against, fresh(one_after_another), repeats=1)


def left_out(images: Tensor) -> Iterator[dict]:
    """What each part of the recipe costs: processor seconds of one thread on few images, against the whole recipe."""
    taken = {}
    for recipe in (ablations.LEFT_OUT[0], *ablations.LEFT_OUT):  # the first is a rehearsal
        with sweep.one_thread(), patch.object(recipes, "LEAST_BATCHES", 1), train.Trainer(progress=False) as trainer:
            begin = time.process_time()
            recipe.train(trainer, images)
            taken[recipe.name] = time.process_time() - begin
    whole = recipes.TEN_DIGITS.name
    for name, spent in taken.items():
        yield row("left out", name, spent, "s", whole, taken[whole], images=len(images), repeats=1)


def machine() -> str:
    """What was measured on, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = re.findall(r"^model name\s*: (.+)$", text, re.M) or [platform.processor() or platform.machine()]
    flags = "".join(f", {flag}" for flag in ("avx2", "avx512f", "amx_bf16") if f" {flag} " in text)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB"
    software = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    return f"{names[0]}, {cores}{flags}; {software}"


def draw(grown: pd.DataFrame, title: str) -> Figure:
    """How time and memory grow with the images."""
    fig = Figure(figsize=(9, 3.6))
    fig.suptitle(title)
    grown, (left, right) = grown.assign(thousands=grown["images"] / 1e3), fig.subplots(1, 2)
    left.plot("thousands", "value", "o-", data=grown, label="measured")
    left.plot("thousands", "other", "--", data=grown, label="in proportion", color=plots.GREY)
    left.set(xlabel="images (thousands)", ylabel="seconds an epoch", xlim=(0, None), ylim=(0, None))
    right.plot("thousands", "peak_megabytes", "o-", data=grown)
    right.set(xlabel="images (thousands)", ylabel="peak memory, MB", xlim=(0, None))
    right.set_ylim(0, 1.1 * grown["peak_megabytes"].max())
    left.legend()
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
    rows = []
    for section in (
        post_loop(digits.train_images[:FEW]),
        start_up(),
        growth(7_500, 30_000, 60_000),
        sweeps(epochs=1),
        left_out(digits.train_images[:1500]),
    ):
        for line in section:
            rows.append(line)
            said = "{section:>16}  {what}: {value:.4g} {unit}, {ratio:.2f} x {against} ({other:.4g})"
            print(said.format(**line), flush=True)
    table = pd.DataFrame(rows)
    table["machine"] = machine()
    figure = draw(table[table["section"] == "growth"], f"An epoch of the post's loop\n{machine().split(';')[0]}")
    plots.save_figure(figure, "bench", table.set_index("section"), "MNIST")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: figures/bench.csv is as it was")
