"""Every figure, as a function that takes arrays and returns a matplotlib Figure; and one way to save them.

images: [N, 28, 28], of any range; shares and accuracies from 0 to 1; levels: {name: value}, lines to compare with.
"""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torchinfo
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike
from torch import nn

from mnist_ae import storage
from mnist_ae.losses import entropy

matplotlib.style.use(Path(__file__).with_name("figures.mplstyle"))
BLUE, ORANGE, GREEN = "#0173B2", "#DE8F05", "#029E73"  # the first of the style's colour-blind safe cycle
GREY = "#949494"  # what to compare with, and nothing else
DIGITS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]  # each digit's own, in every figure
MAPPINGS = {
    "many_to_one_same": "many-to-one, mapping fitted on the test labels",
    "one_to_one": "one-to-one, mapping fitted on training labels",
}


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


def pipeline(recipe, title: str) -> Figure:
    """The stages of a `recipes.TenDigits`: networks with what they learn (blue; the last, green, is the model), and how
    the codes of one become the pseudo-labels of the next (orange).
    """

    def learns(heading: str, network, taught: int) -> str:
        epochs = {"pseudo-labels": min(taught, network.epochs), "the objective": max(network.epochs - taught, 0)}
        lines = [heading, f"{network.heads} heads" if network.heads > 1 else "", "deeper encoder" * network.deeper]
        lines += [f"{count} epochs on\n{target}" for target, count in epochs.items() if count]
        return "\n".join(filter(None, [*lines, "+ reconstruction" * bool(network.reconstruction)]))

    def box(x: float, y: float, text: str, colour: str) -> Text:
        frame = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": colour, "lw": 2}
        return ax.text(x, y, text, ha="center", va="center", bbox=frame, fontsize=11)

    def arrow(a: Text, b: Text) -> None:
        style = {"arrowstyle": "-|>", "color": "black", "patchA": a.get_bbox_patch(), "patchB": b.get_bbox_patch()}
        ax.annotate("", b.get_position(), a.get_position(), arrowprops=style)

    members = [learns(f"committee of {count}", network, 0) for network, count in Counter(recipe.committee).items()]
    networks = ["\n\n".join(members)] * bool(members)
    networks += [learns("teacher", recipe.teacher, recipe.teacher.taught * bool(members))]
    networks += [learns(f"student {k}", network, network.taught) for k, network in enumerate(recipe.students, 1)]
    between = ["pseudo-labels:\nDawid-Skene"] * bool(members)
    neighbours = f"codes, with those of\n{recipe.neighbours} neighbours" if recipe.neighbours else "codes"
    between += len(recipe.students) * [f"pseudo-labels:\n{neighbours}"]
    fig = _figure(11, 3.6, title)
    ax = fig.subplots()
    read = ["images", "without slant" * recipe.teacher.canonical, "and their holes" * recipe.teacher.holes]
    before = box(0, 0, "\n".join(filter(None, read)), GREY)
    for x, text in enumerate(networks, 1):
        network = box(x, 0, text, GREEN if x == len(networks) else BLUE)
        if x > 1:
            labels = box(x - 0.5, 1, between[x - 2], ORANGE)
            arrow(before, labels)
            before = labels
        arrow(before, network)
        before = network
    ax.set(xlim=(-0.4, len(networks) + 0.4), ylim=(-0.45, 1.2))
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


def percent(share: float) -> str:
    """A share from 0 to 1, with one decimal unless it is exact: only all is 100, and none is left out.

    >>> [percent(share) for share in (1, 0.9997, 0.997, 0.5, 0.0003, 0)]
    ['100', '>99.9', '99.7', '50.0', '<0.1', '']
    """
    if share in (0, 1):
        return "100" if share else ""
    return "<0.1" if share < 0.0005 else ">99.9" if share >= 0.9995 else f"{share:.1%}"[:-1]


def _heat_map(ax: Axes, matrix: ArrayLike) -> None:
    """Every number that is not 0, in a colour that shows small ones, too; a column of zeros is marked as dead."""
    matrix = np.asarray(matrix)
    shares = matrix.dtype.kind == "f"
    written = [[percent(x) if shares else str(x or "") for x in row] for row in matrix]
    norm = PowerNorm(0.4, 0, 1 if shares else matrix.max())
    options = {"annot_kws": {"size": 9}, "square": True, "cbar": False, "linewidths": 0.5, "linecolor": "#E5E5E5"}
    sns.heatmap(matrix, annot=written, fmt="", cmap="Blues", norm=norm, ax=ax, **options)
    for neuron in np.flatnonzero(matrix.sum(axis=0) == 0):
        ax.text(neuron + 0.5, 5, "dead", rotation=90, ha="center", va="center", color=GREY)
    ax.set_yticklabels(range(10), rotation=0)


def matrices(panels: dict[str, ArrayLike], title: str, columns: dict[str, Sequence] | None = None) -> Figure:
    """Annotated heat maps side by side, {heading: [10, 10]}: rows digits, columns neurons.

    Counts are written as they are, shares in percent; zero is left out. columns: tick labels by heading.
    """
    fig = _figure(5 * len(panels), 5.6, title)
    for ax, (heading, matrix) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _heat_map(ax, matrix)
        ax.set_xticklabels((columns or {}).get(heading, range(10)), rotation=0)
        unit = "% of the digit's images" if np.asarray(matrix).dtype.kind == "f" else "number of images"
        xlabel = "most active neuron" + (" → its digit" if columns else "")
        ax.set(title=f"{heading}\n({unit})", ylabel="digit", xlabel=xlabel)
    return fig


def before_after(sides: dict[str, tuple[ArrayLike, ArrayLike]], title: str) -> Figure:
    """Two networks side by side, {name: (shares [10, 10], images)}: which neuron fires, and what each decodes to.

    shares: rows digits, columns neurons, as `confusion.reorder` gives them, written in percent; images: of the same
    neurons, each on its own grey scale.
    """
    fig = _figure(11, 6.4, title)
    for part, (name, (shares, decoded)) in zip(fig.subfigures(1, 2, wspace=0.04), sides.items(), strict=True):
        grid = part.add_gridspec(2, 10, height_ratios=(8, 1), hspace=0.02)
        ax = part.add_subplot(grid[0, :])
        _heat_map(ax, shares)
        ax.set(xticks=[], ylabel="digit", title=f"{name}\n(% of the digit's images at each neuron)")
        for neuron, image in enumerate(decoded):
            _show(part.add_subplot(grid[1, neuron]), image)
        part.supxlabel("each neuron's one-hot code, decoded", fontsize=10)
    return fig


def code_map(points: ArrayLike, labels: ArrayLike, images: ArrayLike, title: str) -> Figure:
    """Images at their points [N, 2] of a map, one a cell of a grid, on tiles in the colours of their labels [N]."""
    fig, cells = _figure(8, 7.4, title), 34  # in each direction; the image nearest to the middle of a cell is shown
    points, images = np.asarray(points), np.asarray(images)
    place = (points - points.min(axis=0)) / np.ptp(points, axis=0) * (cells - 1)
    paper = np.ones((cells * 28, cells * 28, 3))
    for i in np.argsort(-((place - place.round()) ** 2).sum(axis=1), kind="stable"):  # the nearest is drawn last
        column, row = 28 * place[i].round().astype(int)
        colour = np.array(to_rgb(DIGITS[labels[i]]))
        paper[row : row + 28, column : column + 28] = colour * (1 - images[i][::-1, :, None] / images.max())
    ax, shown = fig.subplots(), len(np.unique(place.round(), axis=0))
    _show(ax, paper, origin="lower", interpolation="antialiased")
    told = f"{shown:,} of the {len(images):,} images are shown, one a place."
    ax.set_xlabel(f"{told}\nt-SNE keeps neighbours together; distances and areas mean nothing.")
    patches = [Rectangle((0, 0), 1, 1, fc=colour) for colour in DIGITS]
    fig.legend(patches, map(str, range(10)), ncols=10, loc="outside lower center", title="digit")
    return fig


def neighbours(
    images: ArrayLike, decoded: ArrayLike, codes: ArrayLike, near: ArrayLike, other: ArrayLike, title: str
) -> Figure:
    """A row for each of A images: the image, its reconstruction [A, 28, 28], its code [A, 10] as bars, and the K images
    whose codes are nearest [A, K, 28, 28], nearest first, framed where they are of another digit: other, bool [A, K].

    Each picture is on its own grey scale.
    """
    codes, count = np.asarray(codes), np.shape(near)[1]
    fig = _figure(3.6 + 0.8 * count, 1.3 + 0.6 * len(codes), title)
    grid = fig.subplots(len(codes), 3 + count, width_ratios=[1, 1, 2.2, *count * [1]], squeeze=False)
    for axes, image, reconstruction, code, others in zip(grid, images, decoded, codes, near, strict=True):
        for ax, picture in zip((*axes[:2], *axes[3:]), (image, reconstruction, *others), strict=True):
            _show(ax, picture)
        axes[2].bar(range(10), code, color=[ORANGE if k == code.argmax() else BLUE for k in range(10)])
        axes[2].set(ylim=(0, 1), yticks=[0, 1], xticks=[])
        axes[2].tick_params(labelsize=8)
    for ax in grid[:, 3:][np.asarray(other)]:
        ax.spines[:].set(visible=True, color=ORANGE, linewidth=2.5)
    grid[-1][2].set_xticks(range(10))
    grid[-1][2].set_xlabel("neuron", fontsize=9)
    fig.supxlabel("framed: of another digit", fontsize=10, color=ORANGE, x=0.98, ha="right")
    for ax, heading in zip(grid[0], ("image", "decoded", "activations", *range(1, count + 1)), strict=True):
        ax.set_title(str(heading), fontsize=9, color="black")
    return fig


def one_hotness(panels: dict[str, ArrayLike], title: str) -> Figure:
    """How near codes come to one-hot, a row for each network, {name: codes [N, 10]}: two histograms, of the largest
    activation and of the entropy in bits.
    """
    fig = _figure(10, 1 + 2.7 * len(panels), title)
    for axes, (name, codes) in zip(fig.subplots(len(panels), 2, squeeze=False), panels.items(), strict=True):
        codes = torch.as_tensor(codes)
        histograms = {
            "largest activation of the code": (codes.amax(1).numpy(), 1, np.linspace(0.1, 1, 46)),
            "entropy of the code (bits)": (entropy(codes).numpy() / np.log(2), 0, np.linspace(0, np.log2(10), 46)),
        }
        for ax, (label, (values, one_hot, bins)) in zip(axes, histograms.items(), strict=True):
            ax.hist(values, bins=bins, color=BLUE)
            ax.axvline(np.mean(values), color=ORANGE, lw=2, label=f"mean: {np.mean(values):.2f}")
            ax.axvline(one_hot, color=GREEN, lw=3, ls="--", label=f"one-hot: {one_hot}")
            ax.set(xlabel=label, ylabel="images", title=name)
            ax.legend()
    return fig


def sharing(distances: ArrayLike, chances: ArrayLike, pairs: Sequence[str], title: str) -> Figure:
    """One point a pair of digits: how far apart their average images are, how often they share a neuron."""
    fig = _figure(8, 4.6, title)
    ax = fig.subplots()
    ax.scatter(distances, chances, color=BLUE, s=28)
    for i in np.argsort(-np.asarray(chances))[:8]:
        ax.annotate(pairs[i], (distances[i], chances[i]), (6, 2), textcoords="offset points")
    ax.set_xlabel("distance of the two average images (RMS over pixels, intensity from 0 to 1)")
    ax.set(ylabel="chance that two images\nactivate the same neuron", ylim=(0, None))
    return fig


def errors(
    table: pd.DataFrame, title: str, levels: dict[str, float] | None = None, images: str = "the test images"
) -> Figure:
    """One line a row, the first on top: the error on `images`, on a logarithmic axis. The index says what it is.

    Columns: mean, of accuracies; worst and best, NaN for a single run; colour; beside, written on the right.
    """
    fig = _figure(10, 1.4 + 0.38 * len(table), title)
    ax, place = fig.subplots(), -np.arange(len(table))
    mean, worst, best = (1 - table.get(name, table["mean"]).fillna(table["mean"]) for name in ("mean", "worst", "best"))
    mean, worst, best = (np.maximum(error, 1e-4) for error in (mean, worst, best))  # no error has no logarithm
    for name, level in (levels or {}).items():
        ax.axvline(1 - level, color=GREY, lw=1)
        side = "right" if level == min(levels.values()) else "left"  # of two neighbours, each has its own side
        ax.text(1 - level, 0.7, f" {name} ", ha=side, va="bottom", color=GREY)
    colours = table.get("colour", len(table) * [BLUE])
    ax.hlines(place, best, worst, color=colours, alpha=0.45, lw=5)
    ax.scatter(mean, place, color=colours, s=50)
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]  # numbers can be read where they meet a line
    for y, x, accuracy in zip(place, mean, table["mean"], strict=True):
        text = ax.annotate(f"{accuracy:.2%}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        text.set_path_effects(halo)
    ax.set_yticks(place, [fill(name, 36) for name in table.index])
    if "beside" in table:
        right = ax.secondary_yaxis("right")
        right.set_yticks(place, table["beside"])
        right.tick_params(length=0)
        right.spines[:].set_visible(False)
    bars = "; bar: worst to best" if "worst" in table else ""
    ax.set(xlabel=f"error on {images} (written: accuracy{bars})", xscale="log")
    most = max(worst.max(), *(1 - level for level in (levels or {}).values()), 0)
    ax.set(xlim=(1.6 * most, best.min() / 1.6), ylim=(place[-1] - 0.6, 0.6))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return fig


def reconstructions(runs: pd.DataFrame, measures: dict[str, str], levels: pd.Series, title: str) -> Figure:
    """Reconstruction error against accuracy, a panel for each of `measures`, {column of accuracies: its name}; a mark
    for each run.

    runs: columns recipe, error and those of `measures`. levels: errors to compare with, by their names.
    """
    fig = _figure(12, 4.8, title)
    for ax, (column, measure) in zip(fig.subplots(1, len(measures), sharey=True), measures.items(), strict=True):
        for name, level in levels.items():
            ax.axvline(level, color=GREY, lw=1)
            ax.text(level, 0.99, f"{name} ", rotation=90, ha="right", va="top", color=GREY, fontsize=8)
        for (recipe, group), marker in zip(runs.groupby("recipe", sort=False), "os^Dv", strict=False):
            ax.plot(group["error"], group[column], marker, ms=7, alpha=0.8, label=recipe)
        ax.set(title=measure, xlabel="mean squared error, training images", xlim=(0, None), ylim=(0, 1))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    fig.axes[0].set_ylabel("accuracy on the test images")
    fig.legend(*ax.get_legend_handles_labels(), ncols=5, loc="outside lower center")
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


def seeds(table: pd.DataFrame, levels: dict[str, float], title: str, measures: dict[str, str] = MAPPINGS) -> Figure:
    """Marks for each run: columns seed, epochs, those of `measures`, {column of accuracies: its name}, and note, if
    there is one, written below the marks of its run.
    """
    fig = _figure(9, 4.4, title)
    ax, place = fig.subplots(), np.arange(len(table))
    _horizontals(ax, levels)
    for k, ((column, measure), marker) in enumerate(zip(measures.items(), "osD", strict=False)):
        x = place + 0.14 * (k - (len(measures) - 1) / 2)
        ax.plot(x, table[column], marker, ms=9, color=BLUE if column == "one_to_one" else ORANGE, label=measure)
    least = table[list(measures)].min(axis=1)
    for x, y, note in zip(place, least, table.get("note", len(table) * [""]), strict=True):
        ax.annotate(note, (x, y), (0, -9), textcoords="offset points", ha="center", va="top", fontsize=9)
    several = table["epochs"].nunique() > 1
    names = table["seed"].astype(str) + ("\n" + table["epochs"].astype(str) + " epochs" if several else "")
    ax.set_xticks(place, names)
    ax.set(xlabel="seed", ylabel="accuracy on the test images")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    ax.margins(y=0.2)
    ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return fig
