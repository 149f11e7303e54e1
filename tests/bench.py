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
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from mnist_ae import augment, baselines, confusion, data, experiment, models, plots, ten_digits, train
from mnist_ae.__main__ import number

REPEATS = 5
Clock = Callable[[], float]  # does the work once -> seconds


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
    return {
        "section": section,
        "what": what,
        "value": value,
        "unit": unit,
        "against": against,
        "other": other,
        "ratio": ratio,
        **more,
    }


# ----------------------------------------------------------------------------------------------------- the post's loop


def post_model() -> models.PostAutoencoder:
    return train.born(models.PostAutoencoder, 0)


def plain_loop(dataset: torch.utils.data.Dataset, order: Tensor, workers: int) -> tuple[float, float]:
    """The straightforward loop over a data set of (image, label), in this order: images a second, mean loss.

    The clock starts at the first batch, so that workers have started.
    """
    model = nn.Sequential(*(ours := post_model()).encoder, *ours.decoder).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    subset = torch.utils.data.Subset(dataset, order.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores: they are tried, as people do
        batches = iter(torch.utils.data.DataLoader(subset, batch_size=64, num_workers=workers))
    total, begin = 0.0, None
    for x, _ in batches:
        begin = begin or time.perf_counter()
        loss = F.mse_loss(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    return len(order) / (time.perf_counter() - begin), total / len(order)


def our_loop(images: Tensor, **options: object) -> tuple[float, float]:
    """`train.fit` for one epoch: images a second, mean loss."""
    (history,) = train.fit(post_model(), images, epochs=1, progress=False, **options)
    return history["images_per_second"], history["loss"]


def post_loop(dataset: torch.utils.data.Dataset, images: Tensor, few: int, repeats: int = REPEATS) -> Iterator[dict]:
    """dataset: torchvision's, with ToTensor and Normalize, of the same images uint8 [N, 1, 28, 28]; few: how many of
    them are used for speed.
    """

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(0))  # that of `train.fit`

    rates = {workers: plain_loop(dataset, order(few), workers)[0] for workers in (0, 2, 4)}
    workers = max(rates, key=rates.get)
    measured = in_turns(
        {
            "plain": lambda: plain_loop(dataset, order(few), workers)[0],
            "ours": lambda: our_loop(images[:few])[0],
            "bfloat16": lambda: our_loop(images[:few], bfloat16=True)[0],
        },
        repeats,
    )
    against = f"the plain loop over a DataLoader, {workers} workers"
    yield row("loop", "train.fit", measured["ours"], "images/s", against, measured["plain"], goal=3)
    yield row("loop", "train.fit, bfloat16", measured["bfloat16"], "images/s", against, measured["plain"])

    plain, ours, rounded = (
        plain_loop(dataset, order(len(images)), workers)[1],
        our_loop(images)[1],
        our_loop(images, bfloat16=True)[1],
    )
    for name, loss in {"train.fit": ours, "train.fit, bfloat16": rounded}.items():
        difference = max(abs(loss / plain - 1), sys.float_info.epsilon)
        yield row(
            "loop",
            f"first epoch's loss, {name}",
            difference,
            "relative difference",
            "allowed",
            1e-4,
            goal=1,
        )


def rounding(digits: data.Digits, epochs: int, seeds: range) -> Iterator[dict]:
    """What bfloat16 does to the accuracy, the post's way, of the post's network after some epochs."""
    for seed in seeds:
        accuracies = []
        for bfloat16 in (True, False):
            model = train.born(models.PostAutoencoder, seed)
            train.fit(model, digits.train_images, epochs=epochs, seed=seed, bfloat16=bfloat16)
            accuracies.append(score(model, digits, "many_to_one_same"))
        rounded, exact = accuracies
        what, against = f"bfloat16, seed {seed}, {epochs} epochs", f"float32, accuracy {exact:.4f}"
        yield row("rounding", what, rounded, "share", against, exact, accuracy=rounded, repeats=1)


def candidates(images: Tensor, repeats: int = REPEATS) -> Iterator[dict]:
    """Each way to be faster, against the loop with it taken out, or put in: one step of 64 images."""
    batches = images[: 64 * 40].split(64)
    normalised = [models.PostAutoencoder.normalise(batch) for batch in batches]

    def steps(
        forward: str = "fast_forward",
        channels_last: bool = True,
        compiled: bool = False,
        rounded: bool = False,
        once: bool = False,
        **options: bool,
    ) -> Clock:
        model = post_model()
        if not channels_last:
            model.to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5, **(options or {"fused": True}))
        through = torch.compile(getattr(model, forward)) if compiled else getattr(model, forward)

        def work() -> None:
            for k, batch in enumerate(batches):
                x = normalised[k] if once else model.normalise(batch)
                with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
                    drawn = through(x)
                loss = F.mse_loss(drawn.float(), x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return lambda: seconds(work)

    sides = {
        "as it is": steps(),
        "kept: transposed convolutions as one matrix product": steps(forward="forward"),
        "kept: channels_last in the encoder": steps(channels_last=False),
        "kept: fused SGD, not one operation a tensor": steps(foreach=False),
        "kept: fused SGD, not foreach": steps(foreach=True),
        "dropped: normalise all images once": steps(once=True),
        "option: bfloat16": steps(rounded=True),
    }
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1))
        sides["dropped: torch.compile"] = steps(compiled=True)
    except Exception as error:  # no C++ compiler, say; the loop needs none
        print(f"torch.compile is not measured here: {type(error).__name__}", file=sys.stderr)
    measured = in_turns(sides, repeats)
    usual = measured.pop("as it is")
    count = 64 * len(batches)
    for name, other in measured.items():
        new, old = (usual, other) if name.startswith("kept") else (other, usual)
        against = "without it" if name.startswith("kept") else "the loop as it is"
        yield row("candidates", name, count / new, "images/s", against, count / old)


def limit(images: Tensor, repeats: int = REPEATS) -> Iterator[dict]:
    """The loop against the rate at which this machine multiplies large matrices, and where its time goes."""
    model = post_model()
    x = model.normalise(images[:64])
    with FlopCounterMode(display=False) as counter:
        F.mse_loss(model(x), x).backward()
    flops = counter.get_total_flops() / len(x)
    a, b = torch.rand(2, 2048, 2048)
    measured = in_turns(
        {"matrix": lambda: 2 * 2048**3 / seconds(lambda: a @ b), "loop": lambda: our_loop(images)[0]}, repeats
    )
    fastest = measured["matrix"] / flops
    what = f"train.fit, {flops / 1e6:.1f} MFLOP an image"
    against = f"as many operations in 2048 x 2048 matrix products, {measured['matrix'] / 1e9:.0f} GFLOP/s"
    yield row("limit", what, measured["loop"], "images/s", against, fastest, goal=0.6)

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        our_loop(images)
    kinds = {"matrix products": "mm", "convolutions": "conv", "the optimizer": "sgd"}
    shares = dict.fromkeys([*kinds, "all else"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, word in kinds.items() if word in event.key.lower()), "all else")
        shares[kind] += event.self_cpu_time_total
    for kind, share in shares.items():
        yield row("limit", f"time in {kind}", share / sum(shares.values()), "share", "the whole step", 1)


# ------------------------------------------------------------------------------------------------ the label-free recipe


def score(model: nn.Module, digits: data.Digits, reading: str = "one_to_one") -> float:
    """Accuracy on the test images, by default one-to-one, the mapping fitted on training labels."""
    return experiment._evaluate(model, digits)["accuracy"][reading]


def label_free(
    digits: data.Digits, recipe: ten_digits.TenDigits, goals: tuple[tuple[float, int], ...] = ((0.98, 30), (0.99, 120))
) -> Iterator[dict]:
    """The whole recipe once, looked at after each epoch with the clock stopped, and the other methods once.

    goals: accuracies, and the seconds after which an epoch should have them.
    """
    passed, stopped, begin = {}, 0.0, time.perf_counter()

    def look(epoch: int, model: nn.Module, state: dict) -> None:
        nonlocal stopped
        now = time.perf_counter()
        if len(passed) < len(goals):
            average = deepcopy(model)  # what a part leaves, but for its batch statistics and its choice of a head
            average.load_state_dict(state["learning"]["average"])
            reached = score(average, digits)
            passed.update({enough: now - begin - stopped for enough, _ in goals if reached >= enough} | passed)
        stopped += time.perf_counter() - now

    model, _ = recipe.fit(digits.train_images, 0, device="cpu", progress=True, on_epoch=look)
    whole, ours = time.perf_counter() - begin - stopped, score(model, digits)
    for enough, goal in goals:
        if enough in passed:
            name = f"to {enough:.0%}"
            yield row("recipe", name, passed[enough], "s", "the goal", goal, accuracy=enough, goal=1, repeats=1)
    yield row("recipe", "ten-digits", whole, "s", "the goal", 240, accuracy=ours, goal=1, repeats=1)

    for name, cluster in {
        "k-means on pixels": baselines.kmeans_clusters,
        "UMAP + Gaussian mixture": lambda *images: baselines.mixture_clusters(*images, reduction="umap"),
    }.items():
        start = time.perf_counter()
        accuracy = baselines.accuracy(cluster, digits, 0)
        took = time.perf_counter() - start
        yield row("recipe", name, took, "s", "ten-digits", whole, accuracy=accuracy, repeats=1)


def network_rate(network: ten_digits.Network, sights: Tensor) -> float:
    """Images a second in a network that passes over these images, with their sights, once."""
    with pytest.MonkeyPatch.context() as patch, train.progress_bar(1, False) as bar:
        patch.setattr(train, "LEAST_BATCHES", 1)
        return network.learn(network.model(), sights, seed=0, bar=bar)[-1]["images_per_second"]


def parts(images: Tensor, repeats: int = REPEATS) -> Iterator[dict]:
    """What a step of the label-free teacher is made of, against the whole step."""
    network = replace(experiment.TEN_DIGITS.teacher, epochs=2)  # bands from the second on
    model = network.model()
    sights = train.with_sights(model, images[: train.BATCH * 20])
    generator, index = torch.Generator().manual_seed(0), torch.arange(train.BATCH)
    batch = train.Batch(sights[index].float() / 255, index, 2, generator)
    x = batch.images[:, 1:]
    parameters = list(model.encoder.parameters())  # the teacher draws nothing

    def backward() -> float:
        loss = network.loss(model, None, batch)
        return seconds(lambda: torch.autograd.grad(loss, parameters))

    measured = in_turns(
        {
            "augmented copies": lambda: seconds(lambda: augment.view(x, generator, bands=True)),
            "forward, of the images and their copies": lambda: seconds(lambda: model(torch.cat([x, x]))),
            "copies, forward and loss": lambda: seconds(lambda: network.loss(model, None, batch)),
            "backward": backward,
            "step": lambda: len(x) / network_rate(network, sights),
        },
        repeats,
    )
    whole = len(x) / measured.pop("step")
    yield row("parts of a step", "the whole step", whole, "images/s", "itself", whole)
    for name, time_of in measured.items():
        yield row("parts of a step", name, len(x) / time_of, "images/s", "the whole step", whole)


# --------------------------------------------------------------------------------------------------- everything around


def evaluation(digits: data.Digits, repeats: int = REPEATS) -> Iterator[dict]:
    model = post_model()

    def work() -> None:
        matrix = confusion.confusion_matrix(digits.test_labels, train.encode(model, digits.test_images))
        confusion.one_to_one_mapping(matrix), confusion.majority_mapping(matrix)

    taken = in_turns({"": lambda: seconds(work)}, repeats)[""]
    what = f"encode, matrix and mappings of {len(digits.test_images):,} images"
    yield row("evaluation", what, taken, "s", "the goal", 0.5, goal=1)


def start_up(name: str, repeats: int = REPEATS) -> Iterator[dict]:
    def importing(module: str) -> Clock:
        return lambda: seconds(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True))

    modules = "mnist_ae.data, mnist_ae.models, mnist_ae.train, mnist_ae.confusion"
    measured = in_turns(
        {"torch": importing("torch"), "mnist_ae": importing(modules), "experiment": importing("mnist_ae.experiment")},
        repeats,
    )
    for module in ("mnist_ae", "experiment"):
        what = {"mnist_ae": "import data, models, train, confusion", "experiment": "import experiment"}[module]
        yield row("start-up", what, measured[module], "s", "import torch", measured["torch"], goal=1 / 1.5)
    taken = in_turns({"": lambda: seconds(lambda: data.load(name))}, repeats)[""]
    yield row("start-up", f"{name} from disk, checksums included", taken, "s", "the goal", 0.3, goal=1)


GROWTH = """
import sys
import torch
from mnist_ae import data
from tests.bench import our_loop, peak_megabytes
images = data.load(sys.argv[1]).train_images
count = int(sys.argv[2])
images = images[torch.arange(count) % len(images)]
rate, _ = our_loop(images)
print(count / rate, peak_megabytes())
"""


def peak_megabytes() -> float:
    """The most memory that this process has had. On Linux not from getrusage: that counts its parent in."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def growth(name: str, counts: tuple[int, ...], repeats: int = 3) -> Iterator[dict]:
    """One epoch of the post's loop on more and more images, each in a process of its own: seconds and peak memory."""

    def epoch(count: int) -> tuple[float, float]:
        command = [sys.executable, "-c", GROWTH, name, str(count)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        taken, peak = map(float, printed.stdout.split())
        return taken, peak

    measured = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            measured[count].append(epoch(count))
    base = median(taken for taken, _ in measured[counts[0]]) / counts[0]
    for count, runs in measured.items():
        taken, peak = map(median, zip(*runs, strict=True))
        yield row(
            "growth",
            f"{count:,} images",
            taken,
            "s",
            "in proportion to the fewest",
            base * count,
            images=count,
            peak_megabytes=peak,
            data_megabytes=count * 784 / 1e6,
            repeats=repeats,
        )


def sweeps(name: str, recipe: experiment.AnyRecipe, seeds: int, repeats: int = REPEATS) -> Iterator[dict]:
    """As many seeds at once as there are cores, one thread each, against one after another with all threads."""

    def one_after_another() -> None:
        digits = data.load(name)
        for seed in range(seeds):
            folder = Path(os.environ["MNIST_AE_OUT"]) / str(seed)
            experiment.run(recipe, seed, digits, folder, device="cpu", progress=False)

    def fresh(work: Callable[[], object]) -> Clock:
        def clock() -> float:
            before = os.environ.get("MNIST_AE_OUT")
            with tempfile.TemporaryDirectory() as folder:
                os.environ["MNIST_AE_OUT"] = folder
                try:
                    return seconds(work)
                finally:
                    os.environ.pop("MNIST_AE_OUT")
                    if before is not None:
                        os.environ["MNIST_AE_OUT"] = before

        return clock

    measured = in_turns(
        {
            "sweep": fresh(lambda: experiment.sweep([recipe], range(seeds), dataset=name, device="cpu")),
            "in turn": fresh(one_after_another),
        },
        repeats,
        warm_up=False,
    )
    against = f"one after another, {torch.get_num_threads()} threads each"
    what = f"sweep of {seeds} seeds, {recipe.name}, {recipe.epochs} epochs"
    yield row("sweep", what, measured["sweep"], "s", against, measured["in turn"], repeats=repeats)


# ----------------------------------------------------------------------------------------------- the table and its plot


def machine() -> str:
    """What was measured on, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    flags = ""
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines())
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        name = lines.get("model name", name)
        flags = "".join(f", {flag}" for flag in ("avx2", "avx512f", "amx_bf16") if flag in lines.get("flags", ""))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB"
    return f"{name}, {cores}{flags}; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


def draw(table: pd.DataFrame, title: str) -> Figure:
    """Left: what the loop gains, each bar a ratio of one run; right: how time and memory grow with the images."""
    fig = Figure(figsize=(12, 5.2))
    left, right = fig.subplots(1, 2, width_ratios=(1.1, 1))
    bars = table[table["section"].isin(["loop", "candidates"]) & (table["unit"] == "images/s")][::-1]
    names = [
        what if section == "candidates" else f"{what}, in all" for section, what in bars[["section", "what"]].values
    ]
    colours = [plots.BLUE if section == "loop" else plots.GREY for section in bars["section"]]
    left.barh(names, bars["ratio"], color=colours)
    for y, ratio in enumerate(bars["ratio"]):
        left.text(ratio + 0.03, y, f"{ratio:.2f}", va="center")
    left.axvline(1, color="black", lw=0.8)
    left.set(xlabel="times as fast as the other side of its row", xlim=(0, max(bars["ratio"]) * 1.12))
    left.set_title("The post's loop")
    grown = table[table["section"] == "growth"]
    right.plot(grown["images"] / 1e3, grown["value"], "o-", color=plots.BLUE, label="seconds an epoch")
    right.plot(grown["images"] / 1e3, grown["other"], "--", color=plots.GREY, label="proportional")
    right.set(xlabel="images (thousands)", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    memory = right.twinx()
    memory.plot(grown["images"] / 1e3, grown["peak_megabytes"], "s-", color=plots.ORANGE, label="peak memory")
    memory.plot(
        grown["images"] / 1e3,
        grown["peak_megabytes"].iloc[0] + grown["data_megabytes"] - grown["data_megabytes"].iloc[0],
        ":",
        color=plots.ORANGE,
        label="constant + images",
    )
    memory.set(ylabel="MB", ylim=(0, None))
    memory.spines["right"].set_visible(True)
    handles = [line for ax in (right, memory) for line in ax.get_lines()]
    labels = [line.get_label() for line in handles]
    right.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    right.set_title("Cost of an epoch")
    fig.suptitle(title)
    return fig


def main() -> None:
    """MNIST only: torchvision's loop, with which ours is compared, knows no other of the same size on every machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=number, default=2)
    try:
        experiment.check_parameters(epochs=1, seed=0, device="cpu", threads=parser.parse_args().threads)
        digits = data.load("MNIST")
    except (ValueError, data.DataError) as error:
        sys.exit(f"error: {error}")
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((models.PIXEL_MEAN,), (models.PIXEL_STD,))])
    dataset = datasets.MNIST(data._data_root(None), train=True, transform=usual)
    images = digits.train_images
    sections = (
        post_loop(dataset, images, few=19_200),
        candidates(images),
        limit(images[:12_800]),
        parts(images),
        evaluation(digits),
        start_up("MNIST"),
        growth("MNIST", (7_500, 15_000, 30_000, 60_000, 240_000)),
        sweeps("MNIST", replace(experiment.POST, epochs=1), seeds=2),
        sweeps("MNIST", replace(experiment.POST, epochs=5), seeds=2, repeats=1),
        rounding(digits, epochs=5, seeds=range(3)),
        label_free(digits, experiment.TEN_DIGITS),
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
    in_all = table.query("section == 'loop'")["ratio"].iloc[0]
    here = machine().split(";")[0]
    figure = draw(table, f"The post's loop, {in_all:.1f} times as fast as over a DataLoader\n{here}")
    plots.save_figure(figure, "bench", table.set_index("section"), "MNIST")
    print(table.drop(columns=["machine", "images", "data_megabytes"]).round(4).to_string(index=False))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: figures/bench.csv is as it was")
