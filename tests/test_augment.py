import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_ae import augment, models

WARPS = {
    "warp": augment.warp,
    "thicken": augment.thicken,
    "window": augment.window,
}


@pytest.fixture
def images(digits):
    return models.pixels(digits.train_images[:64])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("change", WARPS.values(), ids=WARPS)
def test_shape_and_range_stay_and_a_seed_is_a_draw(images, change):
    changed = change(images, seeded())
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, images)
    assert torch.equal(changed, change(images, seeded()))
    assert not torch.equal(changed, change(images, seeded(1)))


@pytest.mark.parametrize("change", WARPS.values(), ids=WARPS)
def test_each_image_of_a_batch_gets_its_own_draw(images, change):
    same = images[:1].expand(64, -1, -1, -1).contiguous()
    assert len({image.numpy().tobytes() for image in change(same, seeded())}) > 20


def test_nothing_drawn_nothing_changed(images):
    still = augment.warp(images, seeded(), rotation=0, scale=0, shear=0, shift=0)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    assert torch.equal(augment.thicken(images, seeded(), strength=0), images)
    assert torch.equal(augment.window(images, seeded(), share=0), images)


def test_a_shift_moves_the_centre_of_mass_as_far_as_it_says():
    """0.5 of half the width of 28 pixels: up to 7 either way, the whole range used."""
    dot = torch.zeros(500, 1, 28, 28)
    dot[:, :, 12:16, 12:16] = 1
    moved = augment.warp(dot, seeded(), rotation=0, scale=0, shear=0, shift=0.5)
    centres = np.array([ndimage.center_of_mass(image) for image in moved[:, 0].numpy()]) - 13.5
    assert 6.5 < np.abs(centres).max() < 7.01
    assert np.abs(centres.mean(axis=0)).max() < 0.6


def test_a_rotation_turns_a_line_as_far_as_it_says():
    line = torch.zeros(300, 1, 28, 28)
    line[:, :, 6:22, 13:15] = 1
    turned = augment.warp(line, seeded(), rotation=30, scale=0, shear=0, shift=0)[:, 0].numpy()
    y, x = np.mgrid[:28, :28] - 13.5
    angles = [
        np.degrees(0.5 * np.arctan2(2 * (w * x * y).sum(), (w * y * y).sum() - (w * x * x).sum())) for w in turned
    ]
    assert 28 < np.abs(angles).max() < 31
    assert abs(np.mean(angles)) < 3


def test_thicken_is_morphology(images):
    """At full strength, between SciPy's grey erosion and dilation, and one of the two in the limit."""
    thick = augment.thicken(images, seeded())[:, 0].numpy()
    grown = np.stack([ndimage.grey_dilation(image, (3, 3)) for image in images[:, 0].numpy()])
    shrunk = np.stack([ndimage.grey_erosion(image, (3, 3), mode="constant", cval=1) for image in images[:, 0].numpy()])
    assert (thick <= grown + 1e-6).all()
    assert (thick >= shrunk - 1e-6).all()
    ink = thick.sum(axis=(1, 2)) / images.sum(dim=(1, 2, 3)).numpy()
    assert ink.min() < 0.7
    assert ink.max() > 1.3


def test_window_shows_one_band_and_hides_the_rest():
    white = torch.ones(400, 1, 28, 28)
    shown = augment.window(white, seeded(), low=10, high=14)[:, 0].numpy()
    assert set(np.unique(shown)) == {0, 1}
    for image in shown:
        rows, columns = image.max(axis=1).sum(), image.max(axis=0).sum()
        assert image.sum() == rows * columns, "a rectangle"
        assert max(rows, columns) == 28
        assert 10 <= min(rows, columns) <= 14
    assert {int(image.max(axis=1).sum()) == 28 for image in shown} == {True, False}, "rows and columns"
    cut = (augment.window(white, seeded(), share=0.25).sum(dim=(1, 2, 3)) < 784).float().mean()
    assert 0.17 < cut < 0.33
