"""The widgets without a browser: what they answer, compared with the model asked directly, and how soon."""

import io
import itertools
import statistics
import timeit
from dataclasses import replace

import numpy as np
import pytest
import torch
from ipywidgets import BoundedIntText, Button, FloatProgress, FloatSlider, Label
from ipywidgets import Image as Picture
from PIL import Image

from mnist_ae import explore, models, train

NAMES = [f"neuron {k}" for k in range(10)]
LINE = [(100, 60), (180, 60), (120, 220)]


@pytest.fixture(scope="module")
def model():
    return models.initialise(models.TenNeurons, 0).eval()


def parts(widget, kind):
    """All widgets of that kind in it, in order."""
    inner = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget, *inner] if type(widget) is kind else inner


def intensity(png):
    """What a PNG file shows: 0 white to 1 black."""
    return 1 - np.asarray(Image.open(io.BytesIO(png)), dtype=np.float64) / 255


def assert_shows(picture, images):
    expected, found = np.hstack([np.asarray(image) for image in images]), intensity(picture.value)
    scale = len(found) // 28
    np.testing.assert_allclose(found[scale // 2 :: scale, scale // 2 :: scale], expected, atol=0.01)


def assert_answers_soon(act):
    """act(k) for k = 1 to 7: within a tenth of a second, the median."""
    numbers = itertools.count(1)
    assert statistics.median(timeit.repeat(lambda: act(next(numbers)), number=1, repeat=7)) < 0.1


def decode(model, codes):
    return train.decode(model, codes)[0, 0]


def paint(canvas, line, first="mouse_down"):
    """What the browser sends as the button goes down at the beginning of a line and up at its end."""
    for event, (x, y) in zip((first, *["mouse_move"] * (len(line) - 1), "mouse_up"), [*line, line[-1]], strict=True):
        canvas._handle_frontend_event(None, {"event": event, "x": x, "y": y}, [])


def test_png_shows_white_as_0_black_as_1_and_cuts_off_what_is_beyond():
    image = np.zeros((28, 28))
    image[3, 5], image[0, 0], image[0, 1] = 1, -4, 9
    np.testing.assert_array_equal(intensity(explore.png([image], 2)), image.clip(0, 1).repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("line", [LINE, [(0.2 * x, 0.2 * y) for x, y in LINE], LINE[:1]])
def test_what_is_painted_is_prepared_as_mnist_was(line):
    image = explore.like_mnist([line])[0, 0].double().numpy()
    assert max(np.ptp(np.flatnonzero(image.any(axis=axis))) + 1 for axis in (0, 1)) == 20
    centre = [(image.sum(axis=1 - axis) * np.arange(28)).sum() / image.sum() for axis in (0, 1)]
    np.testing.assert_allclose(centre, 13.5, atol=0.6, err_msg="to the nearest pixel")


def test_sliders_decode_their_code(model):
    widget, one_hot = explore.sliders(model, NAMES), torch.eye(10)
    (decoded,), ten, alone, (total,) = (parts(widget, kind) for kind in (Picture, FloatSlider, Button, Label))
    assert [(slider.description, slider.value) for slider in ten] == list(zip(NAMES, [1] + 9 * [0], strict=True))
    ten[3].value = 0.5
    assert_shows(decoded, [decode(model, one_hot[[0]] + one_hot[[3]] / 2)])
    assert total.value == "sum 1.50, of a code 1"
    for k in (7, 0):  # and back to what it began with
        alone[k].click()
        assert [slider.value for slider in ten] == one_hot[k].tolist()
        assert_shows(decoded, [decode(model, one_hot[[k]])])
    assert_answers_soon(lambda k: ten[1].set_trait("value", 0.1 * k))


def test_a_picked_image_comes_with_its_activations_reconstruction_and_neighbours(model, digits):
    widget, kinds = explore.images(model, digits, NAMES), (BoundedIntText, Button, FloatProgress, Picture)
    (number,), (another,), bars, (seen, near) = (parts(widget, kind) for kind in kinds)
    number.value = 41
    codes, images = train.encode(model, digits.test_images), digits.test_images[:, 0] / 255
    assert [bar.value for bar in bars] == pytest.approx(codes[41].tolist())
    assert_shows(seen, [images[41], decode(model, codes[[41]])])
    assert_shows(near, images[np.linalg.norm(codes - codes[41], axis=1).argsort()[1:9]])
    before = seen.value
    for _ in range(3):  # one of them may be the same again
        another.click()
    assert seen.value != before
    many = {"test_images": digits.test_images.repeat(28, 1, 1, 1), "test_labels": digits.test_labels.repeat(28)}
    (number,) = parts(explore.images(model, replace(digits, **many), NAMES), BoundedIntText)
    assert number.max > 10_000, "as many as MNIST has"
    assert_answers_soon(lambda k: number.set_trait("value", k))


def test_what_the_mouse_paints_is_encoded(model):
    widget, kinds = explore.paint(model, NAMES), (explore.Canvas, Button, Picture, FloatProgress)
    (canvas,), (clear,), (seen,), bars = (parts(widget, kind) for kind in kinds)
    paint(canvas, LINE, first="mouse_move")
    assert not intensity(seen.value).any(), "the button was never down"
    assert not any(bar.value for bar in bars), "nothing is painted, nothing fires"
    paint(canvas, LINE)
    image = explore.like_mnist([LINE])
    code = train.encode(model, image)
    assert_shows(seen, [image[0, 0] / 255, decode(model, code)])
    assert [bar.value for bar in bars] == pytest.approx(code[0].tolist())
    assert [bar.style.bar_color == "#DE8F05" for bar in bars] == [k == int(code.argmax()) for k in range(10)]
    clear.click()
    assert not intensity(seen.value).any()
    assert_answers_soon(lambda k: paint(canvas, [(100 + k, 60), (100, 200)]))


def test_interpolation_leads_in_a_straight_line_from_one_code_to_the_other(model, digits):
    widget = explore.interpolation(model, digits, 3, 8)
    (share,), (strip,), ends = (parts(widget, kind) for kind in (FloatSlider, Picture, BoundedIntText))
    ends[1].value = 5
    pair = digits.test_images[[3, 5]]
    first, last = train.encode(model, pair).split(1)
    for share.value in (0.0, 0.5, 1.0):
        between = decode(model, (1 - share.value) * first + share.value * last)
        assert_shows(strip, [pair[0, 0] / 255, between, pair[1, 0] / 255])
    assert_answers_soon(lambda k: share.set_trait("value", 0.1 * k))
