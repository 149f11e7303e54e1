"""Every figure, as a function that takes arrays and returns a matplotlib Figure; and one way to save them."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mnist_ae import files

matplotlib.style.use(Path(__file__).with_name("figures.mplstyle"))
BLUE, ORANGE, GREEN, GREY = "#0173B2", "#DE8F05", "#029E73", "#949494"  # of the style's colour-blind safe cycle
DIGITS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]  # each digit's own, in every figure


def save_figure(fig: Figure, name: str, numbers: pd.DataFrame, dataset: str):
    """Write figures/NAME.png and, beside it, its numbers as figures/NAME.csv; returns the PNG for a notebook to show.

    The files depend on what is drawn alone: no date, no version. Figures of other data sets than MNIST get a folder of
    their own, see `files.figures_folder`. `fig` is drawn off-screen, so no display is needed.

    >>> picture = save_figure(Figure(), "empty", pd.DataFrame(), "an example")
    >>> sorted(path.name for path in files.figures_folder("an example").iterdir())
    ['empty.csv', 'empty.png']
    """
    from IPython.display import Image

    folder = files.figures_folder(dataset)
    picture = io.BytesIO()
    fig.savefig(picture, format="png", metadata={"Software": None})
    files.write(folder / f"{name}.png", picture.getvalue())
    files.write(folder / f"{name}.csv", numbers.to_csv(float_format="%.6g", lineterminator="\n").encode())
    return Image(data=picture.getvalue(), format="png")


def architecture(layers: list[dict], title: str) -> Figure:
    """The model drawn from `models.layer_table`: a stack of maps for each layer, a bar for each vector.

    Layers that change no shape and hold no parameters are named with the layer before them.

    >>> linear = {"layer": "Linear()", "shape": (10,), "parameters": 1}
    >>> architecture([linear | {"part": "encoder"}, linear | {"part": "decoder"}], "title")
    <Figure size 1200x420 with 1 Axes>
    """
    boxes = [{"label": "image", "shape": (1, 28, 28), "parameters": 0, "part": "input"}]
    for layer in layers:
        kind, shape = layer["layer"].split("(")[0].replace("Transpose", "-\nTranspose"), layer["shape"]
        if shape == boxes[-1]["shape"] and not layer["parameters"]:
            boxes[-1]["label"] += f"\n{kind}"
        else:
            boxes.append({**layer, "label": kind})
    code = next(i for i, box in enumerate(boxes) if box["part"] == "decoder") - 1

    fig = Figure(figsize=(12, 4.2))
    ax = fig.subplots()
    for i, box in enumerate(boxes):
        colour = {"input": GREY, "encoder": BLUE, "decoder": GREEN}[box["part"]] if i != code else ORANGE
        if len(box["shape"]) == 3:
            channels, size = box["shape"][0], box["shape"][1] / 28
            for k in reversed(range(channels)):  # the front-most map last
                shift = 0.03 * (k - (channels - 1) / 2)
                ax.add_patch(
                    Rectangle(
                        (i + shift - size * 0.28, shift - size * 0.5), size * 0.56, size, fc=colour, ec="white", lw=0.6
                    )
                )
        else:
            height = 0.2 + 0.32 * np.log10(box["shape"][0])
            ax.add_patch(Rectangle((i - 0.06, -height / 2), 0.12, height, fc=colour))
        ax.text(i, 0.86, box["label"], ha="center", va="bottom", color=colour, weight="bold" if i == code else None)
        ax.text(i, -0.86, " × ".join(map(str, box["shape"])), ha="center", va="top")
        ax.text(i, -1.06, f"{box['parameters']:,}" if box["parameters"] else "-", ha="center", va="top", color=GREY)
    ax.text(-0.55, -0.86, "shape", ha="right", va="top", color="black")
    ax.text(-0.55, -1.06, "parameters", ha="right", va="top", color=GREY)
    ax.annotate("the code", (code, 0.32), (code, 0.62), ha="center", color=ORANGE, arrowprops={"arrowstyle": "->"})
    ax.set(xlim=(-1.4, len(boxes) - 0.4), ylim=(-1.25, 1.35))
    ax.axis("off")
    fig.suptitle(title)
    return fig


def losses(history: pd.DataFrame, published: Sequence[float], levels: dict[str, float], title: str) -> Figure:
    """history: one row an epoch, with epoch, loss and last_batch_loss; published: one last-batch loss an epoch.

    levels: losses to compare with, {name: loss}, drawn as named horizontal lines.

    >>> losses(pd.DataFrame({"epoch": [1], "loss": [0.8], "last_batch_loss": [0.7]}), [0.9], {"a level": 0.5}, "title")
    <Figure size 1000x460 with 1 Axes>
    """
    fig = Figure(figsize=(10, 4.6))
    ax = fig.subplots()
    _draw_levels(ax, levels)
    ax.plot(history["epoch"], history["last_batch_loss"], "o-", ms=4, color=BLUE, label="this run, last batch")
    ax.plot(history["epoch"], history["loss"], "-", color=BLUE, alpha=0.45, lw=3, label="this run, mean of the epoch")
    epochs = range(1, len(published) + 1)
    ax.plot(epochs, published, "s--", ms=4, color=ORANGE, label="the post's 20 epochs, last batch")
    ax.set(xlabel="epoch", ylabel="mean squared error\n(normalised pixels)", xlim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    fig.suptitle(title)
    return fig


def image_rows(rows: dict[str, ArrayLike], title: str, columns: Sequence[str] | None = None) -> Figure:
    """Rows of images, {label: [N, 28, 28]}, each row on its own grey scale; an image of NaN stays an empty frame.

    columns: a heading for each of the N columns.

    >>> image_rows({"noise": np.random.rand(10, 28, 28)}, "title")
    <Figure size 918x175 with 10 Axes>
    """
    count = len(next(iter(rows.values())))
    fig = Figure(figsize=(1.9 + 0.52 * max(count, 14), 0.9 + (0.62 if count > 12 else 0.85) * len(rows)))
    for axes, (label, images) in zip(fig.subplots(len(rows), count, squeeze=False), rows.items(), strict=True):
        images = np.asarray(images).reshape(count, 28, 28)
        low, high = np.nanmin(images), np.nanmax(images)
        for ax, image in zip(axes, images, strict=True):
            if np.isnan(image).any():
                ax.text(0.5, 0.5, "dead", ha="center", va="center", color=GREY, transform=ax.transAxes)
            else:
                ax.imshow(image, cmap="gray_r", vmin=low, vmax=high)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for ax, heading in zip(fig.axes, columns or [], strict=False):
        ax.set_title(heading, fontsize=9)
    fig.suptitle(title)
    return fig


def matrices(panels: dict[str, ArrayLike], title: str, columns: dict[str, Sequence] | None = None) -> Figure:
    """Annotated heat maps side by side, {heading: [10, 10]}: rows digits, columns neurons.

    Counts are written as they are, shares with two decimals (and zero left out). columns: tick labels by heading.

    >>> matrices({"identity": np.eye(10)}, "title")
    <Figure size 550x480 with 2 Axes>
    """
    fig = Figure(figsize=(5.5 * len(panels), 4.8))
    for ax, (heading, matrix) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        matrix = np.asarray(matrix)
        shares = matrix.dtype.kind == "f"
        text = (
            np.array([[f"{x:.2f}".lstrip("0") if x >= 0.005 else "" for x in r] for r in matrix]) if shares else matrix
        )
        sns.heatmap(
            matrix,
            annot=text,
            fmt="" if shares else "d",
            annot_kws={"size": 9},
            vmin=0,
            vmax=1 if shares else None,
            cmap="cividis",
            square=True,
            cbar_kws={"shrink": 0.75, "label": "share of the digit's images" if shares else "images"},
            ax=ax,
        )
        ticks = (columns or {}).get(heading, range(10))
        ax.set_xticklabels(ticks, rotation=0)
        ax.set_yticklabels(range(10), rotation=0)
        ax.set(title=heading, ylabel="digit", xlabel="most active neuron" + (" → its digit" if columns else ""))
    fig.suptitle(title)
    return fig


def before_after(sides: dict[str, tuple[ArrayLike, ArrayLike]], title: str) -> Figure:
    """Two networks side by side, {name: (shares [10, 10], drawings [10, 28, 28])}: what each neuron says and draws.

    shares: rows digits, columns neurons, as `confusion.reorder` gives them, written from 10 % on; drawings: of the same
    neurons, each on its own grey scale.

    >>> before_after({name: (np.eye(10), np.zeros((10, 28, 28))) for name in ("before", "after")}, "title")
    <Figure size 1100x640 with 22 Axes>
    """
    fig = Figure(figsize=(11, 6.4))
    for part, (name, (shares, drawings)) in zip(fig.subfigures(1, 2, wspace=0.04), sides.items(), strict=True):
        grid = part.add_gridspec(2, 10, height_ratios=(8, 1), hspace=0.02)
        ax = part.add_subplot(grid[0, :])
        sns.heatmap(shares, vmin=0, vmax=1, cmap="cividis", square=True, cbar=False, ax=ax)
        for spot, share in np.ndenumerate(np.asarray(shares)):
            if share >= 0.1:
                colour = "black" if share > 0.5 else "white"
                ax.text(spot[1] + 0.5, spot[0] + 0.5, f"{share:.0%}", ha="center", va="center", color=colour)
        ax.set_yticklabels(range(10), rotation=0)
        ax.set(xticks=[], ylabel="digit", title=name)
        for neuron, drawing in enumerate(drawings):
            below = part.add_subplot(grid[1, neuron])
            below.imshow(drawing, cmap="gray_r")
            below.set(xticks=[], yticks=[])
            below.spines[:].set_visible(False)
        part.supxlabel("ten neurons, each with what it makes the decoder draw", fontsize=10)
    fig.suptitle(title)
    return fig


def code_map(planes: dict[str, ArrayLike], labels: ArrayLike, images: ArrayLike, title: str) -> Figure:
    """Codes in two planes, {name: points [N, 2]}: the first with a dot for each, the second with thumbnails, as many as
    there is room for. labels: [N], the digits, which give the colours; images: [N, 28, 28], 0 white.

    >>> points = np.random.rand(50, 2)
    >>> code_map({"PCA": points, "UMAP": points}, np.arange(50) % 10, np.ones((50, 28, 28)), "title")
    <Figure size 1200x680 with 2 Axes>
    """
    fig = Figure(figsize=(12, 6.8))
    labels, images = np.asarray(labels), np.asarray(images)
    images = images / images.max()
    dots, thumbnails = fig.subplots(1, 2, width_ratios=(1, 1.45))
    (first, points), (second, spread) = ((name, np.asarray(plane)) for name, plane in planes.items())
    for digit in range(10):
        dots.plot(*points[labels == digit].T, ".", ms=3, alpha=0.5, color=DIGITS[digit])
    dots.set(xlabel="first component", ylabel="second component", title=first)

    cells = 34  # in each direction; the image nearest to the middle of a cell is shown there
    place = (spread - spread.min(axis=0)) / np.ptp(spread, axis=0) * (cells - 1)
    paper = np.ones((cells * 28, cells * 28, 3))
    order = np.argsort(-((place - place.round()) ** 2).sum(axis=1), kind="stable")  # the nearest is drawn last
    for i in order:
        column, row = 28 * place[i].round().astype(int)
        paper[row : row + 28, column : column + 28] = np.array(to_rgb(DIGITS[labels[i]])) * (
            1 - images[i][::-1, :, None]
        )
    thumbnails.imshow(paper, origin="lower", interpolation="antialiased")
    thumbnails.set(xticks=[], yticks=[], title=f"{second}, an image where there is room for one")
    thumbnails.spines[:].set_visible(False)
    patches = [Rectangle((0, 0), 1, 1, fc=colour) for colour in DIGITS]
    fig.legend(patches, map(str, range(10)), ncols=10, loc="outside lower center", title="digit")
    fig.suptitle(title)
    return fig


def neighbours(images: ArrayLike, drawings: ArrayLike, codes: ArrayLike, near: ArrayLike, title: str) -> Figure:
    """A row for each of A images [A, 28, 28]: the image, its drawing [A, 28, 28], its code [A, 10] as bars, and the K
    images whose codes are nearest [A, K, 28, 28], nearest first. Each picture on its own grey scale.

    >>> neighbours(np.eye(28)[None], np.eye(28)[None], np.eye(10)[:1], np.ones((1, 3, 28, 28)), "title")
    <Figure size 600x160 with 6 Axes>
    """
    codes, count = np.asarray(codes), np.shape(near)[1]
    fig = Figure(figsize=(3.6 + 0.8 * count, 1 + 0.6 * len(codes)))
    grid = fig.subplots(len(codes), 3 + count, width_ratios=[1, 1, 2.2, *count * [1]], squeeze=False)
    for axes, image, drawing, code, others in zip(grid, images, drawings, codes, near, strict=True):
        for ax, picture in zip((*axes[:2], *axes[3:]), (image, drawing, *others), strict=True):
            ax.imshow(picture, cmap="gray_r")
            ax.axis("off")
        axes[2].bar(range(10), code, color=[ORANGE if k == code.argmax() else BLUE for k in range(10)])
        axes[2].set(ylim=(0, 1), yticks=[0, 1], xticks=[])
        axes[2].tick_params(labelsize=8)
    grid[-1][2].set_xticks(range(10))
    grid[-1][2].set_xlabel("neuron", fontsize=9)
    for ax, heading in zip(grid[0], ("image", "drawing", "activations", *range(1, count + 1)), strict=True):
        ax.set_title(str(heading), fontsize=9, color="black")
    fig.suptitle(title)
    return fig


def activations(codes: ArrayLike, title: str) -> Figure:
    """How often each neuron has which activation: ten histograms of codes [N, 10], counts on a log scale.

    >>> activations(np.eye(10), "title")
    <Figure size 1100x440 with 10 Axes>
    """
    codes = np.asarray(codes)
    fig = Figure(figsize=(11, 4.4))
    for neuron, ax in enumerate(fig.subplots(2, 5, sharex=True, sharey=True).flat):
        ax.hist(codes[:, neuron], bins=np.linspace(0, 1, 41), log=True, color=BLUE)
        ax.axvline(codes[:, neuron].mean(), color=ORANGE, lw=2)
        ax.set_title(f"neuron {neuron}: mean {codes[:, neuron].mean():.2f}", color="black", fontsize=10)
    fig.supxlabel("activation (orange: mean over the test images)")
    fig.supylabel("images")
    fig.suptitle(title)
    return fig


def one_hotness(codes: ArrayLike, entropies: ArrayLike, title: str) -> Figure:
    """Two histograms that tell how near codes [N, 10] come to one-hot: largest activation, entropy in bits [N].

    >>> one_hotness(np.eye(10), np.zeros(10), "title")
    <Figure size 1000x380 with 2 Axes>
    """
    fig = Figure(figsize=(10, 3.8))
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
    fig.suptitle(title)
    return fig


def recall(recalls: pd.DataFrame, title: str) -> Figure:
    """Grouped bars: one group a digit (the index), one bar a column, 0 to 1.

    >>> recall(pd.DataFrame(np.eye(10, 2), columns=["one way", "another"]), "title")
    <Figure size 850x380 with 1 Axes>
    """
    fig = Figure(figsize=(8.5, 3.8))
    ax = fig.subplots()
    recalls.plot.bar(ax=ax, color=[ORANGE, BLUE], width=0.75, rot=0)
    ax.set(xlabel="digit", ylabel="share recognised", ylim=(0, 1))
    ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.13))
    fig.suptitle(title)
    return fig


def sharing(distances: ArrayLike, chances: ArrayLike, pairs: Sequence[str], title: str) -> Figure:
    """One point a pair of digits: how far apart their average images are, how often they share a neuron.

    >>> sharing([0.1, 0.2], [0.5, 0.0], ["4, 9", "0, 1"], "title")
    <Figure size 800x460 with 1 Axes>
    """
    distances, chances = np.asarray(distances), np.asarray(chances)
    fig = Figure(figsize=(8, 4.6))
    ax = fig.subplots()
    ax.scatter(distances, chances, color=BLUE, s=28)
    for i in np.argsort(-chances)[:8]:
        ax.annotate(pairs[i], (distances[i], chances[i]), (6, 2), textcoords="offset points")
    ax.set(
        xlabel="distance of the two average images (RMS over pixels, ink from 0 to 1)",
        ylabel="chance that two images\nactivate the same neuron",
        ylim=(0, None),
    )
    fig.suptitle(title)
    return fig


def accuracies(table: pd.DataFrame, title: str) -> Figure:
    """Horizontal bars of the column `accuracy` (0 to 1), top row on top, in the colours of the column `colour`.

    >>> accuracies(pd.DataFrame({"accuracy": [0.4], "colour": [BLUE]}, index=["the post"]), "title")
    <Figure size 900x112 with 1 Axes>
    """
    fig = Figure(figsize=(9, 0.7 + 0.42 * len(table)))
    ax = fig.subplots()
    bars = ax.barh(table.index, table["accuracy"], color=table["colour"])
    ax.bar_label(bars, [f" {100 * x:.1f} %" for x in table["accuracy"]])
    ax.invert_yaxis()
    ax.set(xlabel="accuracy", xlim=(0, 1.1))
    fig.suptitle(title)
    return fig


def ladder(table: pd.DataFrame, levels: dict[str, float], title: str) -> Figure:
    """One line a row, the first at the bottom: columns mean, worst, best (0 to 1); the index says what it is.

    levels: accuracies to compare with, {name: accuracy}, drawn as named vertical lines.

    >>> ladder(pd.DataFrame({"mean": [0.5], "worst": [0.4], "best": [0.6]}, index=["a rung"]), {}, "title")
    <Figure size 1100x180 with 1 Axes>
    """
    fig = Figure(figsize=(11, 1.3 + 0.5 * len(table)))
    ax = fig.subplots()
    for name, level in levels.items():
        ax.axvline(level, color=GREY, lw=1)
        side = "left" if level == max(levels.values()) else "right"  # of two neighbours, each has its own side
        ax.text(level, len(table) - 0.25, name, ha=side, va="bottom", color=GREY)
    height = np.arange(len(table))
    ax.hlines(height, table["worst"], table["best"], color=BLUE, alpha=0.45, lw=5)
    ax.plot(table["mean"], height, "o", color=BLUE, ms=8)
    for y, mean in zip(height, table["mean"], strict=True):
        ax.annotate(f"{100 * mean:.2f} %", (mean, y), (0, 8), textcoords="offset points", ha="center", fontsize=9)
    ax.set_yticks(height, table.index)
    ax.set(xlabel="test accuracy (dot: mean, bar: worst to best seed)", xlim=(0, 1.04))
    ax.set_ylim(-0.6, len(table) - 0.3)
    fig.suptitle(title)
    return fig


def gallery(images: ArrayLike, captions: Sequence[str], title: str, columns: int = 16) -> Figure:
    """Images [N, 28, 28] in rows of `columns`, each with its caption; at least one image.

    >>> gallery(np.zeros((3, 28, 28)), ["a", "b", "c"], "title")
    <Figure size 1280x185 with 16 Axes>
    """
    images = np.asarray(images)
    rows = -(-len(images) // columns)
    fig = Figure(figsize=(0.8 * columns, 1.05 * rows + 0.8))
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, image, caption in zip(axes, images, captions, strict=False):
        ax.imshow(image, cmap="gray_r")
        ax.set_title(caption, fontsize=8, color="black", pad=2)
    fig.suptitle(title)
    return fig


READINGS = {"many_to_one_same": "many-to-one, the post's way", "one_to_one": "one-to-one, strict"}


def seeds(
    table: pd.DataFrame,
    levels: dict[str, float],
    title: str,
    readings: dict[str, str] = READINGS,
    ylim: tuple[float, float] = (0, 0.75),
) -> Figure:
    """Marks for each seed: columns seed, epochs, and those of `readings`, accuracies from 0 to 1, {column: its name}.

    levels: accuracies to compare with, {name: accuracy}, drawn as named horizontal lines.

    >>> seeds(pd.DataFrame({"seed": [0], "epochs": [20], "one_to_one": [0.4]}), {}, "title", {"one_to_one": "strict"})
    <Figure size 900x420 with 1 Axes>
    """
    fig = Figure(figsize=(9, 4.2))
    ax = fig.subplots()
    _draw_levels(ax, levels)
    for place, (epochs, group) in enumerate(table.groupby("epochs")):
        for k, (column, reading) in enumerate(readings.items()):
            colour, marker = BLUE if column == "one_to_one" else ORANGE, "o*sD"[place % 4]
            x = group["seed"] + 0.14 * k - 0.07 * (len(readings) - 1) + 0.35 * place
            ax.plot(x, group[column], marker, ms=9, color=colour, label=f"{reading}, {epochs} epochs")
    ax.set(xlabel="seed", ylabel="accuracy on the test images", ylim=ylim, xticks=sorted(set(table["seed"])))
    ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    fig.suptitle(title)
    return fig


def _draw_levels(ax: Axes, levels: dict[str, float]) -> None:
    """Horizontal lines, {name: height}, named in the right margin."""
    for name, level in levels.items():
        ax.axhline(level, color=GREY, lw=1)
        ax.text(1.01, level, name, va="center", color=GREY, transform=ax.get_yaxis_transform())
