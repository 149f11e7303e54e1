"""The widgets without a browser: what they answer, compared with the model asked directly, and how soon."""

import io
import statistics
import time
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ae import explore, models, train

NAMES = [f"neuron {k}" for k in range(10)]


@pytest.fixture(scope="module")
def model():
    return models.born(models.TenNeurons, 0).eval()


def parts(widget, kind):
    """All widgets of that kind in it, in order."""
    found = [widget] if type(widget) is kind else []
    for child in getattr(widget, "children", ()):
        found += parts(child, kind)
    return found


def ink(widget):
    """What an image widget shows: [size, size], 0 white to 1 black."""
    return 1 - np.asarray(Image.open(io.BytesIO(widget.value)), dtype=np.float64) / 255


def shown(widget):
    """The images in the strip that a widget shows: [K, 28, 28]."""
    strip = ink(widget)
    size = len(strip) // 28
    return np.stack(np.split(strip[size // 2 :: size, size // 2 :: size], strip.shape[1] // len(strip), axis=1))


def decoded(model, codes):
    return train.decode(model, codes)[0, 0].numpy()


def test_png_shows_white_as_0_black_as_1_and_cuts_off_what_is_beyond():
    image = np.zeros((28, 28))
    image[3, 5], image[0, 0], image[0, 1] = 1, -4, 9
    shown = 1 - np.asarray(Image.open(io.BytesIO(explore.png([image], 2)))) / 255
    assert shown.shape == (56, 56)
    assert shown[6:8, 10:12].min() == 1
    assert (shown[0, 0], shown[0, 2]) == (0, 1)


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_what_is_painted_is_prepared_as_mnist_was(scale):
    strokes = [[(100, 60), (180, 60), (120, 220)]]
    strokes = [[(scale * x + 10, scale * y + 10) for x, y in stroke] for stroke in strokes]
    image = explore.like_mnist(strokes)
    assert image.shape == (1, 1, 28, 28)
    assert image.dtype == torch.uint8
    rows, columns = (np.flatnonzero(image[0, 0].numpy().any(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20, "the longer side"
    weights = image[0, 0].double()
    for axis in (0, 1):
        centre = (weights.sum(1 - axis) * torch.arange(28)).sum() / weights.sum()
        assert abs(centre - 13.5) <= 0.6, "centre of mass, to the nearest pixel"


def test_nothing_painted_and_a_single_point():
    assert not explore.like_mnist([]).any()
    assert explore.like_mnist([[(0.0, 0.0)]]).any()


def test_sliders_draw_their_code(model):
    widget = explore.sliders(model, NAMES)
    (drawing,), ten = parts(widget, widgets.Image), parts(widget, widgets.FloatSlider)
    alone, (total,) = parts(widget, widgets.Button), parts(widget, widgets.Label)
    assert [slider.description for slider in ten] == NAMES
    assert [slider.value for slider in ten] == [1] + 9 * [0]
    ten[3].value = 0.5
    np.testing.assert_allclose(
        shown(drawing)[0], decoded(model, torch.eye(10)[[0]] + torch.eye(10)[[3]] / 2), atol=0.01
    )
    assert total.value == "sum 1.50, of a code 1"
    for k in (7, 0):  # and back to what it began with
        alone[k].click()
        assert [slider.value for slider in ten] == [float(j == k) for j in range(10)]
        np.testing.assert_allclose(shown(drawing)[0], decoded(model, torch.eye(10)[[k]]), atol=0.01)


def test_a_picked_image_comes_with_its_activations_drawing_and_neighbours(model, digits):
    widget = explore.images(model, digits, NAMES)
    (number,), bars = parts(widget, widgets.BoundedIntText), parts(widget, widgets.FloatProgress)
    seen, near = parts(widget, widgets.Image)
    number.value = 41
    all_codes = train.encode(model, digits.test_images)
    assert [bar.value for bar in bars] == pytest.approx(all_codes[41].tolist())
    expected = [digits.test_images[41, 0].numpy() / 255, decoded(model, all_codes[[41]])]
    np.testing.assert_allclose(shown(seen), expected, atol=0.01)
    nearest = np.linalg.norm(all_codes - all_codes[41], axis=1).argsort()[1:9]
    np.testing.assert_allclose(shown(near), digits.test_images[nearest, 0] / 255, atol=0.01)
    assert f"a {digits.test_labels[41]}," in parts(widget, widgets.HTML)[0].value
    (another,), before = parts(widget, widgets.Button), seen.value
    for _ in range(3):
        another.click()
    assert seen.value != before


def press(canvas, event, x=0.0, y=0.0):
    canvas._handle_frontend_event(None, {"event": event, "x": x, "y": y}, [])


def test_what_the_mouse_paints_is_encoded(model):
    widget = explore.paint(model, NAMES)
    (canvas,), (clear,) = parts(widget, explore.Canvas), parts(widget, widgets.Button)
    (seen,), bars = parts(widget, widgets.Image), parts(widget, widgets.FloatProgress)
    assert not ink(seen).any()
    assert not any(bar.value for bar in bars), "nothing is painted, nothing fires"
    press(canvas, "mouse_move", 10, 10)
    assert not ink(seen).any(), "the button is up"
    line = [(100, 60), (180, 60), (120, 220)]
    for event, point in zip(("mouse_down", "mouse_move", "mouse_move", "mouse_up"), (*line, line[-1]), strict=True):
        press(canvas, event, *point)
    image = explore.like_mnist([line])
    code = train.encode(model, image)
    np.testing.assert_allclose(shown(seen), [image[0, 0] / 255, decoded(model, code)], atol=0.01)
    assert [bar.value for bar in bars] == pytest.approx(code[0].tolist())
    orange = [bar.style.bar_color == "#DE8F05" for bar in bars]
    assert orange == [k == int(code.argmax()) for k in range(10)]
    clear.click()
    assert not ink(seen).any()


def test_a_walk_begins_and_ends_at_the_codes_of_the_two_images(model, digits):
    widget = explore.walk(model, digits, 3, 8)
    (way,), (strip,), ends = (
        parts(widget, kind) for kind in (widgets.FloatSlider, widgets.Image, widgets.BoundedIntText)
    )
    for last in (8, 5):
        ends[1].value = last
        codes = train.encode(model, digits.test_images[[3, last]])
        for share in (0.0, 0.5, 1.0):
            way.value = share
            between = decoded(model, (1 - share) * codes[:1] + share * codes[1:])
            pair = digits.test_images[[3, last], 0].numpy() / 255
            np.testing.assert_allclose(shown(strip), [pair[0], between, pair[1]], atol=0.01)


def test_each_answers_within_a_tenth_of_a_second(digits):
    model = models.born(models.TenNeurons, 0).eval()
    images, labels = digits.test_images.repeat(30, 1, 1, 1)[:10_000], digits.test_labels.repeat(30)[:10_000]
    digits = replace(digits, test_images=images, test_labels=labels)  # as many as MNIST has
    sliders, images = explore.sliders(model, NAMES), explore.images(model, digits, NAMES)
    paint, walk = explore.paint(model, NAMES), explore.walk(model, digits, 0, 1)
    (canvas,) = parts(paint, explore.Canvas)
    press(canvas, "mouse_down", 100, 60)

    def stroke(k):
        press(canvas, "mouse_down", 100 + k, 60)
        press(canvas, "mouse_up", 100, 200)

    moves = {
        "slider": lambda k: setattr(parts(sliders, widgets.FloatSlider)[1], "value", 0.1 * k),
        "image": lambda k: setattr(parts(images, widgets.BoundedIntText)[0], "value", k),
        "paint": stroke,
        "walk": lambda k: setattr(parts(walk, widgets.FloatSlider)[0], "value", 0.1 * k),
    }
    for name, move in moves.items():
        seconds = []
        for k in range(1, 8):
            begin = time.perf_counter()
            move(k)
            seconds.append(time.perf_counter() - begin)
        assert statistics.median(seconds) < 0.1, name
