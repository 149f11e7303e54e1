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


def moments(image):
    """Mass, centre and covariance of the ink, in pixels from the middle of the image, by SciPy's and NumPy's means."""
    y, x = np.mgrid[:28, :28] - 13.5
    centre = np.array(ndimage.center_of_mass(image)) - 13.5
    return image.sum(), centre, np.cov(y.ravel(), x.ravel(), aweights=image.ravel(), bias=True)


def test_canonical_is_the_shear_that_scipy_makes_of_the_moments(images):
    """The same map, built from SciPy's centre of mass and NumPy's covariance, and resampled by SciPy."""
    ours = augment.canonical(images)[:, 0].numpy()
    for image, found in zip(images[:, 0].double().numpy(), ours, strict=True):
        _, centre, covariance = moments(image)
        slant = np.clip(covariance[0, 1] / covariance[0, 0], -1, 1)
        # (y, x) of the output, from the middle -> of the input, from its centre
        matrix = np.array([[1, 0], [slant, 1]])
        offset = 13.5 + centre - matrix @ np.array([13.5, 13.5])
        expected = ndimage.affine_transform(image, matrix, offset, order=1, mode="constant")
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_is_canonical_has_its_centre_in_the_middle_and_no_slant(images):
    slanted = augment.warp(images, seeded(), rotation=0, scale=0, shear=0.4, shift=0.1)
    for image in augment.canonical(slanted)[:, 0].numpy():
        _, centre, covariance = moments(image)
        assert np.abs(centre).max() < 0.15
        assert abs(covariance[0, 1] / covariance[0, 0]) < 0.05


def test_a_slanted_image_and_the_upright_one_have_the_same_canonical_form(images):
    upright, slanted = (
        augment.canonical(augment.warp(images, seeded(), rotation=0, scale=0, shear=shear, shift=0.1))
        for shear in (0, 0.3)
    )
    before = (images - augment.warp(images, seeded(), rotation=0, scale=0, shear=0.3, shift=0.1)).abs().mean()
    assert (upright - slanted).abs().mean() < before / 3


def test_images_that_have_no_slant_have_a_canonical_form():
    odd = torch.zeros(6, 1, 28, 28)
    odd[1, 0, 3, 20] = 1  # a pixel
    odd[2, 0, 5, 4:24] = 1  # a flat line
    odd[3, 0, 2:26, 9] = 1  # an upright one
    odd[4, 0] = 1  # ink everywhere
    odd[5, 0, 10:12, 4:24] = torch.tensor([[1.0] * 10 + [0] * 10, [0] * 10 + [1.0] * 10])  # flat, and hardly slanted
    found = augment.canonical(odd)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert found[0].count_nonzero() == 0
    torch.testing.assert_close(found[:5].sum((1, 2, 3)), odd[:5].sum((1, 2, 3)))
    for image in found[1:].squeeze(1).numpy():
        np.testing.assert_allclose(moments(image)[1], 0, atol=1e-3)
    assert 18 <= found[5, 0].any(dim=0).sum() <= 24, "a line is neither torn apart nor folded"
    torch.testing.assert_close(found[4], odd[4])


@pytest.fixture
def with_holes(images):
    x = torch.cat([images, augment.holes(images)], dim=1)
    assert x[:, 1].flatten(1).any(dim=1).sum() > 10
    return x


def test_hidden_holes_hide_nothing_else(with_holes):
    hidden = torch.arange(len(with_holes)) % 2 == 0
    seen = augment.hide_holes(with_holes, hidden)
    assert torch.equal(seen[:, 0], with_holes[:, 0])
    assert torch.equal(seen[~hidden], with_holes[~hidden])
    assert seen[hidden, 1].count_nonzero() == 0
    assert with_holes[hidden, 1].count_nonzero() > 0


def test_a_view_hides_the_holes_of_a_share_and_keeps_the_image(with_holes):
    many = with_holes.repeat(10, 1, 1, 1)
    seen = augment.view(many, seeded(), bands=False)
    has_hole = many[:, 1].flatten(1).any(dim=1)
    hidden = ~seen[:, 1].flatten(1).any(dim=1)
    assert hidden[has_hole].float().mean() == pytest.approx(0.3, abs=0.1)
    assert seen[:, 0].flatten(1).any(dim=1).all()
