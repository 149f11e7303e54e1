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


def resampled(image, matrix, centre=(0, 0)):
    """SciPy's: each (y, x) of the output, from the middle, is fetched from matrix @ (y, x) + centre of the input."""
    offset = 13.5 + np.array(centre) - matrix @ np.array([13.5, 13.5])
    return ndimage.affine_transform(image, matrix, offset, order=1, mode="constant")


def test_affine_is_the_map_that_its_draws_say_as_scipy_resamples_it(images):
    generator = seeded()
    found = augment.affine(images, seeded())[:, 0].numpy()
    draws = [(2 * torch.rand(len(images), generator=generator) - 1).double().numpy() for _ in range(6)]
    angles = draws[0] * np.radians(15)
    for k, image in enumerate(images[:, 0].double().numpy()):
        wide, high, slant, right, down = (draw[k] for draw in draws[1:])
        cos, sin = np.cos(angles[k]), np.sin(angles[k])
        x = [0.25 * slant - sin / (1 + 0.2 * wide), cos / (1 + 0.2 * wide)]
        y = [cos / (1 + 0.2 * high), sin / (1 + 0.2 * high)]
        expected = resampled(image, np.array([y, x]), (0.15 * 14 * down, 0.15 * 14 * right))
        np.testing.assert_allclose(found[k], expected, atol=1e-4)
    assert (found != images[:, 0].numpy()).any(axis=(1, 2)).all()


def test_a_view_is_a_draw_for_each_image_and_keeps_shape_and_range(images):
    x = torch.cat([images, augment.holes(images)], dim=1)
    seen = augment.view(x, seeded(), bands=True)
    assert (seen.shape, seen.dtype) == (x.shape, torch.float32)
    assert 0 <= seen.min() <= seen.max() <= 1
    assert torch.equal(seen, augment.view(x, seeded(), bands=True))
    assert not torch.equal(seen, augment.view(x, seeded(1), bands=True))
    same = x[:1].expand(64, -1, -1, -1).contiguous()
    assert len({image.numpy().tobytes() for image in augment.view(same, seeded(), bands=False)}) > 60


def test_a_view_hides_the_holes_of_a_share_and_keeps_the_image(images):
    many = torch.cat([images, augment.holes(images)], dim=1).repeat(10, 1, 1, 1)
    seen = augment.view(many, seeded(), bands=False)
    has_hole = many[:, 1].flatten(1).any(dim=1)
    hidden = ~seen[:, 1].flatten(1).any(dim=1)
    assert has_hole.sum() > 100
    assert hidden[has_hole].float().mean() == pytest.approx(0.3, abs=0.1)
    assert seen[:, 0].flatten(1).any(dim=1).all()


def test_a_band_is_a_rectangle_over_the_whole_width_or_height():
    shown = augment.band(1000, seeded())[:, 0].numpy()
    cut = [image for image in shown if not image.all()]
    assert len(cut) == pytest.approx(500, abs=60)
    for image in cut:
        rows, columns = image.any(axis=1).sum(), image.any(axis=0).sum()
        assert image.sum() == rows * columns, "a rectangle"
        assert max(rows, columns) == 28
        assert 12 <= min(rows, columns) <= 18
    assert np.mean([image.any(axis=1).all() for image in cut]) == pytest.approx(0.5, abs=0.1), "rows and columns"


def test_holes_are_what_scipy_fills_at_each_level_of_grey(images, rng):
    maze = torch.tensor(rng.random((8, 1, 28, 28)) < 0.55)  # crooked corridors
    coarse = torch.cat([(images * 16).floor() / 16, maze.float()])
    grey = coarse[:, 0].numpy()
    levels = np.arange(1, 17) / 16
    filled = sum(np.stack([ndimage.binary_fill_holes(image >= level) for image in grey]) / 16 for level in levels)
    np.testing.assert_allclose(augment.holes(coarse)[:, 0], filled - grey, atol=1e-6)
    assert (filled - grey).max() > 0.5, "some digits have holes"


def moments(image):
    """Centre and covariance of the ink, in pixels from the middle of the image, by SciPy's and NumPy's means."""
    y, x = np.mgrid[:28, :28] - 13.5
    centre = np.array(ndimage.center_of_mass(image)) - 13.5
    return centre, np.cov(y.ravel(), x.ravel(), aweights=image.ravel(), bias=True)


def test_canonical_is_the_shear_that_scipy_makes_of_the_moments(images):
    for image, found in zip(images[:, 0].double().numpy(), augment.canonical(images)[:, 0].numpy(), strict=True):
        centre, covariance = moments(image)
        slant = np.clip(covariance[0, 1] / covariance[0, 0], -1, 1)
        np.testing.assert_allclose(found, resampled(image, np.array([[1, 0], [slant, 1]]), centre), atol=1e-4)
        centre, covariance = moments(found)
        assert np.abs(centre).max() < 0.15, "in the middle"
        assert abs(covariance[0, 1] / covariance[0, 0]) < 0.05, "and upright"


def test_images_that_have_no_slant_have_a_canonical_form():
    odd = torch.zeros(6, 1, 28, 28)
    odd[1, 0, 3, 20] = 1  # a pixel
    odd[2, 0, 5, 4:24] = 1  # a flat line
    odd[3, 0, 2:26, 9] = 1  # an upright one
    odd[4, 0] = 1  # ink everywhere
    odd[5, 0, 10:12, 4:24] = torch.tensor([[1.0] * 10 + [0] * 10, [0] * 10 + [1.0] * 10])  # flat, and hardly slanted
    found = augment.canonical(odd)
    assert found.isfinite().all()
    assert 0 <= found.min() <= found.max() <= 1
    assert found[0].count_nonzero() == 0
    torch.testing.assert_close(found[:5].sum((1, 2, 3)), odd[:5].sum((1, 2, 3)))
    for image in found[1:].squeeze(1).numpy():
        np.testing.assert_allclose(moments(image)[0], 0, atol=1e-3)
    assert 18 <= found[5, 0].any(dim=0).sum() <= 24, "a line is neither torn apart nor folded"
    torch.testing.assert_close(found[4], odd[4])
