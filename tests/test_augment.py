import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_ae import augment, models

WARPS = {
    "warp": augment.warp,
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


def test_holes_are_what_scipy_fills_at_each_level_of_grey(images, rng):
    maze = torch.tensor(rng.random((8, 1, 28, 28)) < 0.55)  # crooked corridors
    coarse = torch.cat([(images * 16).floor() / 16, maze.float()])
    grey = coarse[:, 0].numpy()
    levels = np.arange(1, 17) / 16
    filled = sum(np.stack([ndimage.binary_fill_holes(image >= level) for image in grey]) / 16 for level in levels)
    np.testing.assert_allclose(augment.holes(coarse)[:, 0], filled - grey, atol=1e-6)
    assert (filled - grey).max() > 0.5, "some digits have holes"


def test_a_ring_has_a_hole_until_it_has_a_gap():
    rings = torch.zeros(3, 1, 28, 28)
    rings[:, :, 5:20, 5:20] = 0.9
    rings[:, :, 8:17, 8:17] = 0.2
    rings[1, :, 10:12, 17:20] = 0
    rings[2, :, 10, 17:20] = 0.4
    holes = augment.holes(rings)
    assert holes[:, 0, 12, 12].tolist() == pytest.approx([0.7, 0, 0.2]), "the lowest pass is at 0.9, 0 and 0.4"
    assert [hole.count_nonzero() for hole in holes] == [81, 0, 81]


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
