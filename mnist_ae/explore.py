"""Try a trained autoencoder by hand, in JupyterLab: sliders, test images, the mouse, interpolation between two digits.

Each function returns a widget that needs a live kernel; the notebooks show a figure of the same beside it. `names` are
ten, one a neuron. Decoded images are cut off at 0 (white) and 1 (black): those of the post's network are in normalised
units, darker than the image.
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
ANSWER_EVERY = 0.05  # seconds: a mouse reports faster than an image can be encoded


def png(images: Sequence[ArrayLike], scale: int = 5) -> bytes:
    """images: [K, 28, 28], 0 white to 1 black, cut off beyond -> a PNG file of them side by side, `scale` times larger.

    >>> png(np.zeros((2, 28, 28)))[1:4]
    b'PNG'
    """
    strip = np.hstack([np.asarray(image, dtype=np.float32) for image in images])
    file, grey = io.BytesIO(), (255 * (1 - strip.clip(0, 1))).astype(np.uint8)
    Image.fromarray(grey).resize((scale * grey.shape[1], scale * 28), Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()


def like_mnist(strokes: Sequence[Sequence[tuple[float, float]]]) -> Tensor:
    """Lines drawn with a pen, each a sequence of points (x, y) in 0..280 -> uint8 [1, 1, 28, 28], as MNIST has them.

    As LeCun, Cortes and Burges prepared theirs: scaled to fit a square of 20 pixels, its shape kept, then moved so that
    the centre of mass is the centre of the image. Without a point: an empty image.

    >>> like_mnist([[(140, 40), (140, 240)]])[0, 0].any(dim=1).sum()  # rows that are not blank
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
    drawn = sheet.crop(sheet.getbbox())
    scale = 20 / max(drawn.size)
    small = np.array(drawn.resize([max(1, round(scale * side)) for side in drawn.size], Image.Resampling.BOX))
    mass = small.astype(np.float64)
    centre = [(np.arange(n) * mass.sum(axis=1 - axis)).sum() / mass.sum() for axis, n in enumerate(mass.shape)]
    top, left = (int(np.clip(round(13.5 - middle), 0, 28 - n)) for middle, n in zip(centre, mass.shape, strict=True))
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, top : top + mass.shape[0], left : left + mass.shape[1]] = torch.from_numpy(small)
    return image


def sliders(model: nn.Module, names: Sequence[str]) -> widgets.Widget:
    """Ten sliders, one a neuron, from 0 to 1, and what their code is decoded to as they move.

    The button below a slider makes the code one-hot. A softmax sums to 1; the sliders may go where no code is, and the
    sum tells.
    """
    decoded, total = widgets.Image(), widgets.Label()
    ten = [_vertical(widgets.FloatSlider, name, max=1.0, step=0.01, readout_format=".2f") for name in names]
    alone = [widgets.Button(description="alone", layout={"width": "52px", "padding": "0"}) for _ in names]

    def decode(_: object = None) -> None:
        code = torch.tensor([[slider.value for slider in ten]])
        decoded.value = png(train.decode(model, code)[:, 0], 10)
        total.value = f"sum {code.sum():.2f}, of a code 1"

    def one_hot(button: widgets.Button) -> None:
        for slider, other in zip(ten, alone, strict=True):
            slider.value = float(other is button)

    for slider, button in zip(ten, alone, strict=True):
        slider.observe(decode, "value")
        button.on_click(one_hot)
    one_hot(alone[0])
    columns = [widgets.VBox(pair, layout={"overflow": "visible"}) for pair in zip(ten, alone, strict=True)]
    return widgets.HBox([widgets.VBox([decoded, total]), *columns])


def images(model: nn.Module, digits: Digits, names: Sequence[str]) -> widgets.Widget:
    """Pick one of the test images: its ten activations, its reconstruction, and its eight neighbours in code space.

    ValueError if there are not more than eight test images.
    """
    all_codes = train.encode(model, digits.test_images)
    number = widgets.BoundedIntText(max=len(all_codes) - 1, description="test image")
    another = widgets.Button(description="another one", icon="random")
    seen, near, told = widgets.Image(), widgets.Image(), widgets.HTML()
    bars, show = _activations(names)

    def pick(_: object = None) -> None:
        index = number.value
        nearest = codes.neighbours(all_codes, index, 8)
        seen.value = png([digits.test_images[index, 0] / 255, train.decode(model, all_codes[[index]])[0, 0]])
        near.value = png(digits.test_images[nearest, 0] / 255, 3)
        told.value = f"a {digits.test_labels[index]}, and its reconstruction:"
        show(all_codes[index])

    number.observe(pick, "value")
    another.on_click(lambda _: number.set_trait("value", np.random.default_rng().integers(len(all_codes)).item()))
    pick()
    picked = widgets.HBox([widgets.VBox([told, seen, widgets.HTML("nearest codes:"), near]), bars])
    return widgets.VBox([widgets.HBox([number, another]), picked])


def paint(model: nn.Module, names: Sequence[str]) -> widgets.Widget:
    """Draw a digit with the mouse, and watch which neuron fires; it is encoded as `like_mnist` prepares it."""
    canvas = Canvas(width=CANVAS, height=CANVAS, layout={"border": "1px solid #949494"})
    canvas.line_width, canvas.line_cap = PEN, "round"
    seen, clear, (bars, show) = widgets.Image(), widgets.Button(description="clear", icon="eraser"), _activations(names)
    strokes, down, answered = [], False, 0.0

    def answer() -> None:
        nonlocal answered
        image = like_mnist(strokes)
        code = train.encode(model, image) * bool(strokes)
        seen.value = png([image[0, 0] / 255, train.decode(model, code)[0, 0] * bool(strokes)])
        show(code[0])
        answered = time.monotonic()

    def pen(is_down: bool | None, x: float, y: float) -> None:
        """The button goes down, goes up, or (None) the mouse moves."""
        nonlocal down
        if is_down:
            strokes.append([(x, y)])
        elif not down:
            return
        down = down if is_down is None else is_down
        canvas.stroke_line(*strokes[-1][-1], x, y)
        strokes[-1].append((x, y))
        if not down or time.monotonic() - answered > ANSWER_EVERY:
            answer()

    def wipe(_: object) -> None:
        strokes.clear()
        canvas.clear()
        answer()

    canvas.on_mouse_down(lambda x, y: pen(True, x, y))
    canvas.on_mouse_move(lambda x, y: pen(None, x, y))
    canvas.on_mouse_up(lambda x, y: pen(False, x, y))
    canvas.on_mouse_out(lambda x, y: pen(False, x, y))
    clear.on_click(wipe)
    answer()
    told = widgets.HTML("as MNIST would have it, and its reconstruction:")
    return widgets.HBox([widgets.VBox([canvas, clear]), widgets.VBox([told, seen]), bars])


def interpolation(model: nn.Module, digits: Digits, first: int, last: int) -> widgets.Widget:
    """Move in a straight line from the code of one test image to that of another, and see what lies between, decoded.

    first, last: places of the two in the test set, from 0; cut off at its ends.
    """
    ends = [widgets.BoundedIntText(value=i, max=len(digits.test_images) - 1) for i in (first, last)]
    share = widgets.FloatSlider(max=1.0, step=0.01, description="share", layout={"width": "420px"})
    shown = widgets.Image()

    def step(_: object = None) -> None:
        pair = digits.test_images[[end.value for end in ends]]
        between = train.decode(model, torch.lerp(*train.encode(model, pair), share.value)[None])
        shown.value = png([pair[0, 0] / 255, between[0, 0], pair[1, 0] / 255])

    for widget in (*ends, share):
        widget.observe(step, "value")
    step()
    return widgets.VBox([widgets.HBox(ends), shown, share])


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
