"""Try a trained autoencoder by hand, in JupyterLab: sliders, test images, the mouse, a walk between two digits.

Each function returns a widget that needs a live kernel; the notebooks show a figure of the same beside it. `names` are
ten, one a neuron. Drawings are shown as the decoder makes them, cut off at 0 (white) and 1 (black): the post's network
draws in its normalised units, darker than the image.
"""

import io
import time
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np
import torch
from ipycanvas import Canvas
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mnist_ae import codes, plots, train
from mnist_ae.data import Digits

CANVAS = 280  # pixels, ten for each one of an MNIST image
PEN = 24
ANSWER_EVERY = 0.05  # seconds: a mouse reports faster than a drawing can be read
NEIGHBOURS = 8


def png(image: ArrayLike, size: int = 140) -> bytes:
    """image: [28, 28], 0 white to 1 black, cut off beyond -> a PNG file of size x size pixels.

    >>> png(np.zeros((28, 28)))[1:4]
    b'PNG'
    """
    grey = (255 * (1 - np.clip(np.asarray(image, dtype=np.float32), 0, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).resize((size, size), Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()


def like_mnist(strokes: Sequence[Sequence[tuple[float, float]]]) -> Tensor:
    """Lines drawn with a pen, each a sequence of points (x, y) in 0..280 -> uint8 [1, 1, 28, 28], as MNIST has them.

    As LeCun, Cortes and Burges prepared theirs: scaled to fit a square of 20 pixels, its shape kept, then moved so that
    the centre of mass of the ink is the centre of the image. Without a point: an empty image.

    >>> like_mnist([[(140, 40), (140, 240)]])[0, 0].any(dim=1).sum()  # rows with ink
    tensor(20)
    """
    sheet = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(sheet)
    for points in strokes:
        pen.line(points, fill=255, width=PEN)
        for x, y in points:  # round joints and ends
            pen.ellipse((x - PEN / 2, y - PEN / 2, x + PEN / 2, y + PEN / 2), fill=255)
    if sheet.getbbox() is None:
        return torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    inked = sheet.crop(sheet.getbbox())
    scale = 20 / max(inked.size)
    small = inked.resize([max(1, round(scale * side)) for side in inked.size], Image.Resampling.BOX)
    ink = np.asarray(small, dtype=np.float64)
    centre = [(np.arange(n) * ink.sum(axis=1 - axis)).sum() / ink.sum() for axis, n in enumerate(ink.shape)]
    top, left = (int(np.clip(round(13.5 - middle), 0, 28 - n)) for middle, n in zip(centre, ink.shape, strict=True))
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, top : top + ink.shape[0], left : left + ink.shape[1]] = torch.from_numpy(np.array(small))
    return image


def sliders(model: nn.Module, names: Sequence[str]) -> widgets.Widget:
    """Ten sliders, one a neuron, from 0 to 1, and what the decoder draws for this code as they move.

    The button below a slider makes the code one-hot. A softmax sums to 1; the sliders may go where no code is, and the
    sum tells.

    >>> from mnist_ae import models
    >>> widget = sliders(models.PostAutoencoder(), [f"neuron {k}" for k in range(10)])
    """
    drawing, total = widgets.Image(width=280, height=280), widgets.Label()
    ten = [_vertical(widgets.FloatSlider, name, max=1.0, step=0.01, readout_format=".2f") for name in names]
    alone = [
        widgets.Button(description="alone", layout={"width": "52px", "margin": "2px 0", "padding": "0"}) for _ in names
    ]

    def draw(_: object = None) -> None:
        code = torch.tensor([[slider.value for slider in ten]])
        drawing.value = png(train.decode(model, code)[0, 0], 280)
        total.value = f"sum {code.sum():.2f}, of a code 1"

    def one_hot(button: widgets.Button) -> None:
        for slider, other in zip(ten, alone, strict=True):
            slider.value = float(other is button)

    for slider, button in zip(ten, alone, strict=True):
        slider.observe(draw, "value")
        button.on_click(one_hot)
    one_hot(alone[0])
    columns = [widgets.VBox(pair, layout={"overflow": "visible"}) for pair in zip(ten, alone, strict=True)]
    return widgets.HBox([widgets.VBox([drawing, total]), *columns])


def images(model: nn.Module, digits: Digits, names: Sequence[str]) -> widgets.Widget:
    """Pick one of the test images: its ten activations, what the decoder draws, and its neighbours in code space.

    ValueError if there are not more than eight test images.

    >>> from mnist_ae import data, models
    >>> widget = images(models.PostAutoencoder(), data.load("digits"), [f"neuron {k}" for k in range(10)])
    """
    all_codes = train.encode(model, digits.test_images)
    number = widgets.BoundedIntText(max=len(all_codes) - 1, description="test image")
    another = widgets.Button(description="another one", icon="random")
    seen, drawn = (widgets.Image(width=140, height=140) for _ in range(2))
    near = [widgets.Image(width=70, height=70) for _ in range(NEIGHBOURS)]
    told = widgets.HTML()
    bars, show = _activations(names)
    generator = np.random.default_rng()

    def pick(_: object = None) -> None:
        index = number.value
        code = all_codes[index]
        seen.value = png(digits.test_images[index, 0] / 255)
        drawn.value = png(train.decode(model, code[None])[0, 0])
        for image, neighbour in zip(near, codes.neighbours(all_codes, index, NEIGHBOURS), strict=True):
            image.value = png(digits.test_images[neighbour, 0] / 255, 70)
        told.value = f"a {digits.test_labels[index]}, and what the decoder draws of its code:"
        show(code)

    def pick_another(_: object) -> None:
        number.value = int(generator.integers(len(all_codes)))

    number.observe(pick, "value")
    another.on_click(pick_another)
    pick()
    pictures = widgets.VBox([told, widgets.HBox([seen, drawn])])
    picked = widgets.HBox([pictures, bars])
    return widgets.VBox([widgets.HBox([number, another]), picked, widgets.HTML("nearest codes:"), widgets.HBox(near)])


def paint(model: nn.Module, names: Sequence[str]) -> widgets.Widget:
    """Draw a digit with the mouse, and watch which neuron fires; it is read as `like_mnist` prepares it.

    >>> from mnist_ae import models
    >>> widget = paint(models.TenNeurons(), [f"neuron {k}" for k in range(10)])
    """
    canvas = Canvas(width=CANVAS, height=CANVAS, layout={"border": "1px solid #949494"})
    canvas.line_width, canvas.line_cap = PEN, "round"
    seen, drawn = (widgets.Image(width=140, height=140) for _ in range(2))
    clear = widgets.Button(description="clear", icon="eraser")
    bars, show = _activations(names)
    strokes: list[list[tuple[float, float]]] = []
    down, answered = False, 0.0

    def wipe(_: object = None) -> None:
        strokes.clear()
        canvas.clear()
        answer()

    def answer() -> None:
        nonlocal answered
        image = like_mnist(strokes)
        code = train.encode(model, image)
        seen.value = png(image[0, 0] / 255)
        drawn.value = png(train.decode(model, code)[0, 0]) if strokes else seen.value
        show(code[0] if strokes else torch.zeros(10))
        answered = time.monotonic()

    def begin(x: float, y: float) -> None:
        nonlocal down
        down = True
        strokes.append([(x, y)])
        move(x, y)

    def move(x: float, y: float) -> None:
        if down:
            canvas.stroke_line(*strokes[-1][-1], x, y)
            strokes[-1].append((x, y))
            if time.monotonic() - answered > ANSWER_EVERY:
                answer()

    def end(*_: float) -> None:
        nonlocal down
        if down:
            down = False
            answer()

    canvas.on_mouse_down(begin)
    canvas.on_mouse_move(move)
    canvas.on_mouse_up(end)
    canvas.on_mouse_out(end)
    clear.on_click(wipe)
    wipe()
    pictures = widgets.VBox([widgets.HTML("as MNIST would have it:"), seen, widgets.HTML("drawn of its code:"), drawn])
    return widgets.HBox([widgets.VBox([canvas, clear]), pictures, bars])


def walk(model: nn.Module, digits: Digits, first: int, last: int) -> widgets.Widget:
    """Walk in a straight line from the code of one test image to that of another, and see what the decoder draws.

    first, last: places of the two in the test set, from 0; cut off at its ends.

    >>> from mnist_ae import data, models
    >>> widget = walk(models.PostAutoencoder(), data.load("digits"), first=0, last=1)
    """
    ends = [widgets.BoundedIntText(value=i, max=len(digits.test_images) - 1) for i in (first, last)]
    shown, drawing = [widgets.Image(width=140, height=140) for _ in ends], widgets.Image(width=140, height=140)
    way = widgets.FloatSlider(max=1.0, step=0.01, description="way", layout={"width": "420px"})
    both = torch.empty(0)

    def choose(_: object = None) -> None:
        nonlocal both
        pair = digits.test_images[[end.value for end in ends]]
        both = train.encode(model, pair)
        for picture, image in zip(shown, pair[:, 0] / 255, strict=True):
            picture.value = png(image)
        step()

    def step(_: object = None) -> None:
        drawing.value = png(train.decode(model, torch.lerp(*both, way.value)[None])[0, 0])

    for end in ends:
        end.observe(choose, "value")
    way.observe(step, "value")
    choose()
    columns = [widgets.VBox([ends[0], shown[0]]), drawing, widgets.VBox([ends[1], shown[1]])]
    return widgets.VBox([widgets.HBox(columns, layout={"align_items": "flex-end"}), way])


def _activations(names: Sequence[str]) -> tuple[widgets.Widget, Callable[[Tensor], None]]:
    """Ten bars, and the function that sets them to a code [10]: orange the most active neuron's, if one is active."""
    bars = [_vertical(widgets.FloatProgress, name, max=1.0) for name in names]

    def show(code: Tensor) -> None:
        for k, bar in enumerate(bars):
            bar.value = float(code[k])
            bar.style.bar_color = plots.ORANGE if k == int(code.argmax()) and code.any() else plots.BLUE

    return widgets.HBox(bars), show


def _vertical(kind: type, name: str, **options: object) -> widgets.Widget:
    return kind(description=name, orientation="vertical", layout={"height": "260px", "width": "52px"}, **options)
