"""Augmented copies, canonical form and holes, compared with what SciPy and NumPy make of the same images."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_ae import augment, checks


@pytest.fixture
def images(digits):
    return checks.pixels(digits.train_images[:64])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def resampled(image, matrix, centre):
    """SciPy's: each (y, x) of the output, from the middle, is fetched from matrix @ (y, x) + centre of the input."""
    offset = 13.5 + np.array(centre) - matrix @ np.array([13.5, 13.5])
    return ndimage.affine_transform(image, matrix, offset, order=1, mode="constant")


def moments(image):
    """Centre of the ink, in pixels from the middle, by SciPy, and its slant, by NumPy."""
    y, x = np.indices((28, 28)).reshape(2, -1)
    (variance, covariance), _ = np.cov(y, x, aweights=image.ravel(), bias=True)
    return np.array(ndimage.center_of_mass(image)) - 13.5, covariance / variance


def test_affine_is_the_map_that_its_draws_say_as_scipy_resamples_it(images):
    found, generator = augment.affine(images, seeded())[:, 0].numpy(), seeded()
    draws = [(2 * torch.rand(len(images), generator=generator) - 1).double().numpy() for _ in range(6)]
    for k, image in enumerate(images[:, 0].double().numpy()):
        angle, wide, high, slant, right, down = (draw[k] for draw in draws)
        cos, sin = np.cos(np.radians(15) * angle), np.sin(np.radians(15) * angle)
        x = [0.25 * slant - sin / (1 + 0.2 * wide), cos / (1 + 0.2 * wide)]
        y = [cos / (1 + 0.2 * high), sin / (1 + 0.2 * high)]
        expected = resampled(image, np.array([y, x]), (0.15 * 14 * down, 0.15 * 14 * right))
        np.testing.assert_allclose(found[k], expected, atol=1e-4)


def test_a_view_is_a_draw_for_each_image_and_hides_the_holes_of_a_share(images):
    x = torch.cat([images, augment.holes(images)], dim=1).repeat(10, 1, 1, 1)
    seen = augment.view(x, seeded(), bands=False)
    assert torch.equal(seen, augment.view(x, seeded(), bands=False))
    assert len({view.numpy().tobytes() for view in seen[::64]}) == 10, "ten views of one image"
    has_hole, hidden = x[:, 1].flatten(1).any(dim=1), ~seen[:, 1].flatten(1).any(dim=1)
    assert has_hole.sum() > 100
    assert hidden[has_hole].float().mean() == pytest.approx(0.3, abs=0.1)
    assert seen[:, 0].flatten(1).any(dim=1).all(), "the image stays"


def test_a_band_is_a_rectangle_over_the_whole_width_or_height():
    cut = [image for image in augment.band(1000, seeded())[:, 0].numpy() if not image.all()]
    assert len(cut) == pytest.approx(500, abs=60)
    sides = np.array([(image.any(axis=1).sum(), image.any(axis=0).sum()) for image in cut])
    assert sides.prod(axis=1).tolist() == [image.sum() for image in cut], "rectangles"
    assert (set(sides.max(axis=1)), set(sides.min(axis=1))) == ({28}, set(range(12, 19)))
    assert np.mean(sides[:, 0] == 28) == pytest.approx(0.5, abs=0.1), "as many columns as rows"


def test_holes_are_what_scipy_fills_at_each_level_of_grey(images, rng):
    maze = torch.tensor(rng.random((8, 1, 28, 28)) < 0.55)  # crooked corridors
    coarse = torch.cat([(images * 16).floor() / 16, maze.float()])
    grey, levels = coarse[:, 0].numpy(), np.arange(1, 17) / 16
    filled = sum(np.stack([ndimage.binary_fill_holes(image >= level) for image in grey]) / 16 for level in levels)
    np.testing.assert_allclose(augment.holes(coarse)[:, 0], filled - grey, atol=1e-6)


def test_canonical_is_the_shear_that_scipy_makes_of_the_moments(images):
    for image, found in zip(images[:, 0].double().numpy(), augment.canonical(images)[:, 0].numpy(), strict=True):
        centre, slant = moments(image)
        shear = np.array([[1, 0], [np.clip(slant, -1, 1), 1]])
        np.testing.assert_allclose(found, resampled(image, shear, centre), atol=1e-4)
        centre, slant = moments(found)
        assert max(abs(centre)) < 0.15, "in the middle"
        assert abs(slant) < 0.05, "and upright"


def test_images_that_have_no_slant_have_a_canonical_form():
    odd = torch.zeros(6, 1, 28, 28)  # the first stays blank
    odd[1, 0, 3, 20] = 1  # a pixel
    odd[2, 0, 5, 4:24] = 1  # a flat line
    odd[3, 0, 2:26, 9] = 1  # an upright one
    odd[4] = 1  # ink everywhere
    odd[5, 0, 10, 4:14] = odd[5, 0, 11, 14:24] = 1  # flat, and hardly slanted
    found = augment.canonical(odd)
    torch.testing.assert_close(found[[0, 4]], odd[[0, 4]])
    torch.testing.assert_close(found[:5].sum((1, 2, 3)), odd[:5].sum((1, 2, 3)))
    for image in found[1:, 0].numpy():
        np.testing.assert_allclose(moments(image)[0], 0, atol=1e-3)
    assert 18 <= found[5, 0].any(dim=0).sum() <= 24, "a line is neither torn apart nor folded"
