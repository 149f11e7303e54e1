"""Every figure, as a function that takes arrays and returns a matplotlib Figure; and one way to save them.

images: [N, 28, 28], of any range; shares and accuracies from 0 to 1; levels: {name: value}, lines to compare with.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torchinfo
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike
from torch import nn

from mnist_ae import storage

matplotlib.style.use(Path(__file__).with_name("figures.mplstyle"))
BLUE, ORANGE, GREEN, GREY = "#0173B2", "#DE8F05", "#029E73", "#949494"  # of the style's colour-blind safe cycle
DIGITS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]  # each digit's own, in every figure
READINGS = {"many_to_one_same": "many-to-one, the post's way", "one_to_one": "one-to-one, strict"}


def save_figure(fig: Figure, name: str, numbers: pd.DataFrame, dataset: str):
    """Write figures/NAME.png and, beside it, its numbers as figures/NAME.csv; returns the PNG for a notebook to show.

    The files depend on what is drawn alone: no date, no version. Other data sets than MNIST have a folder of their own.

    >>> picture = save_figure(Figure(), "empty", pd.DataFrame(), "an example")
    >>> sorted(path.name for path in storage.figures_folder("an example").iterdir())
    ['empty.csv', 'empty.png']
    """
    from IPython.display import Image

    folder, picture = storage.figures_folder(dataset), io.BytesIO()
    fig.savefig(picture, format="png", metadata={"Software": None})
    storage.write(folder / f"{name}.png", picture.getvalue())
    storage.write(folder / f"{name}.csv", numbers.to_csv(float_format="%.6g", lineterminator="\n").encode())
    return Image(data=picture.getvalue(), format="png")


def _figure(width: float, height: float, title: str) -> Figure:
    fig = Figure(figsize=(width, height))
    fig.suptitle(fill(title, round(10 * width)))
    return fig


def _show(ax: Axes, image: ArrayLike, **options: object) -> None:
    ax.imshow(image, cmap="gray_r", **options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _horizontals(ax: Axes, levels: dict[str, float]) -> None:
    for name, level in levels.items():
        ax.axhline(level, color=GREY, lw=1)
        ax.text(1.01, level, name, va="center", color=GREY, transform=ax.get_yaxis_transform())


def architecture(model: nn.Module, title: str) -> Figure:
    """The layers that an image passes through: maps as high as they are, and the wider the more; a bar for a vector.

    Layers that change no shape and hold no parameters are named with the layer before them.
    """
    boxes = [["image", (1, 28, 28), 0, GREY]]  # label, shape, parameters, colour
    for layer in torchinfo.summary(model, input_data=torch.zeros(1, 1, 28, 28), verbose=0).summary_list:
        name, shape = layer.class_name.replace("Transpose", "-\nTranspose"), tuple(layer.output_size[1:])
        if layer.depth == 2 and shape == boxes[-1][1] and not layer.num_params:
            boxes[-1][0] += f"\n{name}"
        elif layer.depth == 2:
            boxes.append([name, shape, layer.num_params, BLUE if layer.parent_info.var_name == "encoder" else GREEN])
    code = [colour for *_, colour in boxes].index(GREEN) - 1
    boxes[code][3] = ORANGE
    fig = _figure(12, 4.2, title)
    ax = fig.subplots()
    for i, (label, (channels, *size), parameters, colour) in enumerate(boxes):
        much = np.log10(channels)
        width, height = (0.2 + 0.4 * much, size[0] / 28) if size else (0.12, 0.2 + 0.28 * much)
        ax.add_patch(Rectangle((i - width / 2, -height / 2), width, height, fc=colour))
        ax.text(i, 0.7, label, ha="center", va="bottom", color=colour, weight="bold" if i == code else None)
        below = " × ".join(map(str, (channels, *size))) + f"\n{parameters:,}"
        ax.text(i, -0.65, below, ha="center", va="top", linespacing=1.5)
    ax.text(-0.55, -0.65, "shape\nparameters", ha="right", va="top", linespacing=1.5)
    ax.annotate("the code", (code, 0.3), (code, 0.5), ha="center", color=ORANGE, arrowprops={"arrowstyle": "->"})
    ax.set(xlim=(-1.4, len(boxes) - 0.4), ylim=(-1, 1.1))
    ax.axis("off")
    return fig


def losses(history: pd.DataFrame, published: Sequence[float], levels: dict[str, float], title: str) -> Figure:
    """history: one row an epoch, with epoch, loss and last_batch_loss; published: one last-batch loss an epoch."""
    fig = _figure(10, 4.6, title)
    ax = fig.subplots()
    _horizontals(ax, levels)
    ax.plot(history["epoch"], history["last_batch_loss"], "o-", ms=4, color=BLUE, label="this run, last batch")
    ax.plot(history["epoch"], history["loss"], "-", color=BLUE, alpha=0.45, lw=3, label="this run, mean of the epoch")
    ax.plot(
        range(1, len(published) + 1), published, "s--", ms=4, color=ORANGE, label="the post's 20 epochs, last batch"
    )
    ax.set(xlabel="epoch", ylabel="mean squared error\n(normalised pixels)", xlim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return fig


def image_rows(rows: dict[str, ArrayLike], title: str, columns: Sequence[str] = ()) -> Figure:
    """Rows of images, {label: [N, 28, 28]}, each row on its own grey scale; an image of NaN stays an empty frame.

    columns: a heading for each of the N columns.
    """
    count = len(next(iter(rows.values())))
    fig = _figure(1.9 + 0.52 * max(count, 14), 0.9 + (0.62 if count > 12 else 0.85) * len(rows), title)
    for axes, (label, images) in zip(fig.subplots(len(rows), count, squeeze=False), rows.items(), strict=True):
        images = np.asarray(images).reshape(count, 28, 28)
        for ax, image in zip(axes, images, strict=True):
            _show(ax, image, vmin=np.nanmin(images), vmax=np.nanmax(images))
            if np.isnan(image).any():
                ax.text(0.5, 0.5, "dead", ha="center", va="center", color=GREY, transform=ax.transAxes)
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for ax, heading in zip(fig.axes, columns, strict=False):
        ax.set_title(heading, fontsize=9)
    return fig


def matrices(panels: dict[str, ArrayLike], title: str, columns: dict[str, Sequence] | None = None) -> Figure:
    """Annotated heat maps side by side, {heading: [10, 10]}: rows digits, columns neurons.

    Counts are written as they are, shares with two decimals (and zero left out). columns: tick labels by heading.
    """
    fig = _figure(5.5 * len(panels), 4.8, title)
    for ax, (heading, matrix) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        counts = np.asarray(matrix).dtype.kind != "f"
        written = [
            [str(x) if counts else f"{x:.2f}".removeprefix("0") if x >= 0.005 else "" for x in row] for row in matrix
        ]
        bar = {"shrink": 0.75, "label": "images" if counts else "share of the digit's images"}
        options = {"annot_kws": {"size": 9}, "vmin": 0, "vmax": None if counts else 1, "square": True, "cbar_kws": bar}
        sns.heatmap(matrix, annot=written, fmt="", cmap="cividis", ax=ax, **options)
        ax.set_xticklabels((columns or {}).get(heading, range(10)), rotation=0)
        ax.set_yticklabels(range(10), rotation=0)
        ax.set(title=heading, ylabel="digit", xlabel="most active neuron" + (" → its digit" if columns else ""))
    return fig


def before_after(sides: dict[str, tuple[ArrayLike, ArrayLike]], title: str) -> Figure:
    """Two networks side by side, {name: (shares [10, 10], images)}: what each neuron says and draws.

    shares: rows digits, columns neurons, as `confusion.reorder` gives them, written from 10 % on; images: of the same
    neurons, each on its own grey scale.
    """
    fig = _figure(11, 6.4, title)
    for part, (name, (shares, drawings)) in zip(fig.subfigures(1, 2, wspace=0.04), sides.items(), strict=True):
        grid = part.add_gridspec(2, 10, height_ratios=(8, 1), hspace=0.02)
        ax = part.add_subplot(grid[0, :])
        written = [[f"{share:.0%}" if share >= 0.1 else "" for share in row] for row in shares]
        sns.heatmap(shares, annot=written, fmt="", vmin=0, vmax=1, cmap="cividis", square=True, cbar=False, ax=ax)
        ax.set_yticklabels(range(10), rotation=0)
        ax.set(xticks=[], ylabel="digit", title=name)
        for neuron, drawing in enumerate(drawings):
            _show(part.add_subplot(grid[1, neuron]), drawing)
        part.supxlabel("ten neurons, each with what it makes the decoder draw", fontsize=10)
    return fig


def code_map(points: ArrayLike, labels: ArrayLike, images: ArrayLike, title: str) -> Figure:
    """Images at their points [N, 2] in a plane, as many as there is room for, in the colours of their labels [N]."""
    fig, cells = _figure(8, 7.2, title), 34  # in each direction; the image nearest to the middle of a cell is shown
    points, images = np.asarray(points), np.asarray(images)
    place = (points - points.min(axis=0)) / np.ptp(points, axis=0) * (cells - 1)
    paper = np.ones((cells * 28, cells * 28, 3))
    for i in np.argsort(-((place - place.round()) ** 2).sum(axis=1), kind="stable"):  # the nearest is drawn last
        column, row = 28 * place[i].round().astype(int)
        colour = np.array(to_rgb(DIGITS[labels[i]]))
        paper[row : row + 28, column : column + 28] = colour * (1 - images[i][::-1, :, None] / images.max())
    _show(fig.subplots(), paper, origin="lower", interpolation="antialiased")
    patches = [Rectangle((0, 0), 1, 1, fc=colour) for colour in DIGITS]
    fig.legend(patches, map(str, range(10)), ncols=10, loc="outside lower center", title="digit")
    return fig


def neighbours(images: ArrayLike, drawings: ArrayLike, codes: ArrayLike, near: ArrayLike, title: str) -> Figure:
    """A row for each of A images: the image, its drawing [A, 28, 28], its code [A, 10] as bars, and the K images whose
    codes are nearest [A, K, 28, 28], nearest first. Each picture on its own grey scale.
    """
    codes, count = np.asarray(codes), np.shape(near)[1]
    fig = _figure(3.6 + 0.8 * count, 1 + 0.6 * len(codes), title)
    grid = fig.subplots(len(codes), 3 + count, width_ratios=[1, 1, 2.2, *count * [1]], squeeze=False)
    for axes, image, drawing, code, others in zip(grid, images, drawings, codes, near, strict=True):
        for ax, picture in zip((*axes[:2], *axes[3:]), (image, drawing, *others), strict=True):
            _show(ax, picture)
        axes[2].bar(range(10), code, color=[ORANGE if k == code.argmax() else BLUE for k in range(10)])
        axes[2].set(ylim=(0, 1), yticks=[0, 1], xticks=[])
        axes[2].tick_params(labelsize=8)
    grid[-1][2].set_xticks(range(10))
    grid[-1][2].set_xlabel("neuron", fontsize=9)
    for ax, heading in zip(grid[0], ("image", "drawing", "activations", *range(1, count + 1)), strict=True):
        ax.set_title(str(heading), fontsize=9, color="black")
    return fig


def one_hotness(codes: ArrayLike, entropies: ArrayLike, title: str) -> Figure:
    """Two histograms that tell how near codes [N, 10] come to one-hot: largest activation, entropy in bits [N]."""
    fig = _figure(10, 3.8, title)
    panels = {
        "largest activation of the code": (np.asarray(codes).max(axis=1), 1, np.linspace(0.1, 1, 46)),
        "entropy of the code (bits)": (np.asarray(entropies), 0, np.linspace(0, np.log2(10), 46)),
    }
    for ax, (label, (values, one_hot, bins)) in zip(fig.subplots(1, 2), panels.items(), strict=True):
        ax.hist(values, bins=bins, color=BLUE, label="test images")
        ax.axvline(np.mean(values), color=ORANGE, lw=2, label=f"mean: {np.mean(values):.2f}")
        ax.axvline(one_hot, color=GREEN, lw=3, ls="--", label="one-hot")
        ax.set(xlabel=label, ylabel="images")
        ax.legend()
    return fig


def sharing(distances: ArrayLike, chances: ArrayLike, pairs: Sequence[str], title: str) -> Figure:
    """One point a pair of digits: how far apart their average images are, how often they share a neuron."""
    fig = _figure(8, 4.6, title)
    ax = fig.subplots()
    ax.scatter(distances, chances, color=BLUE, s=28)
    for i in np.argsort(-np.asarray(chances))[:8]:
        ax.annotate(pairs[i], (distances[i], chances[i]), (6, 2), textcoords="offset points")
    ax.set_xlabel("distance of the two average images (RMS over pixels, ink from 0 to 1)")
    ax.set(ylabel="chance that two images\nactivate the same neuron", ylim=(0, None))
    return fig


def errors(table: pd.DataFrame, title: str, levels: dict[str, float] | None = None) -> Figure:
    """One line a row, the first on top: the error on a logarithmic axis. The index says what it is.

    Columns: mean, of accuracies; worst and best, if there are several runs; colour; beside, written on the right.
    """
    fig = _figure(10, 1.2 + 0.36 * len(table), title)
    ax, place = fig.subplots(), -np.arange(len(table))
    for name, level in (levels or {}).items():
        ax.axvline(1 - level, color=GREY, lw=1)
        side = "right" if level == min(levels.values()) else "left"  # of two neighbours, each has its own side
        ax.text(1 - level, 0.7, f" {name} ", ha=side, va="bottom", color=GREY)
    colours = table.get("colour", len(table) * [BLUE])
    if "worst" in table:
        ax.hlines(place, 1 - table["best"], 1 - table["worst"], color=colours, alpha=0.45, lw=5)
    ax.scatter(1 - table["mean"], place, color=colours, s=50)
    for y, mean in zip(place, table["mean"], strict=True):
        ax.annotate(f"{mean:.2%}", (1 - mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    ax.set_yticks(place, [fill(name, 48) for name in table.index])
    if "beside" in table:
        ax.secondary_yaxis("right").set_yticks(place, table["beside"])
    least = 1 - table.get("best", table["mean"]).max()
    ax.set(xlabel="error on the test images (written: accuracy; bar: worst to best)", xscale="log", xlim=(1, least / 2))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return fig


def gallery(images: ArrayLike, captions: Sequence[str], title: str, columns: int = 16) -> Figure:
    """Images in rows of `columns`, each with its caption; at least one image."""
    rows = -(-len(captions) // columns)
    fig = _figure(0.8 * columns, 1.05 * rows + 0.8, title)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(captions) :]:
        ax.axis("off")
    for ax, image, caption in zip(axes, images, captions, strict=False):
        _show(ax, image)
        ax.set_title(caption, fontsize=8, color="black", pad=2)
    return fig


def seeds(table: pd.DataFrame, levels: dict[str, float], title: str, readings: dict[str, str] = READINGS) -> Figure:
    """Marks for each seed: columns seed, epochs, and those of `readings`, {column of accuracies: its name}."""
    fig = _figure(9, 4.2, title)
    ax = fig.subplots()
    _horizontals(ax, levels)
    for place, (epochs, group) in enumerate(table.groupby("epochs")):
        for k, (column, reading) in enumerate(readings.items()):
            colour, marker = BLUE if column == "one_to_one" else ORANGE, "o*sD"[place % 4]
            x = group["seed"] + 0.14 * k - 0.07 * (len(readings) - 1) + 0.35 * place
            ax.plot(x, group[column], marker, ms=9, color=colour, label=f"{reading}, {epochs} epochs")
    ax.set(xlabel="seed", ylabel="accuracy on the test images", xticks=sorted(set(table["seed"])))
    ax.margins(y=0.2)
    ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return fig
