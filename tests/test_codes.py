import numpy as np
import pytest
import scipy.spatial

from mnist_ae import codes


def test_group_means_with_an_empty_group(rng):
    values, groups = rng.random((30, 2, 3)), rng.integers(0, 9, 30)
    means = codes.group_means(values, groups)
    assert np.isnan(means[9]).all()
    for group in set(groups):
        np.testing.assert_allclose(
            means[group], np.mean([v for v, g in zip(values, groups, strict=True) if g == group], axis=0)
        )


def test_correlations_are_numpys_and_nan_where_there_is_no_picture(rng):
    drawings, averages = rng.random((4, 5, 5)), rng.random((3, 5, 5))
    ours = codes.correlations(3 * drawings + 1, averages)
    theirs = np.corrcoef(np.vstack([drawings.reshape(4, -1), averages.reshape(3, -1)]))[:4, 4:]
    np.testing.assert_allclose(ours, theirs)
    assert np.isnan(codes.correlations(np.full((1, 5, 5), 0.5), averages)).all()


def test_the_nearest_code_is_that_of_all_distances(rng):
    some, labels = rng.dirichlet(np.ones(10), 40), rng.integers(0, 3, 40)
    apart = scipy.spatial.distance.cdist(some, some) + np.diag(np.full(40, np.inf))
    np.testing.assert_array_equal(codes.nearest_agrees(some, labels), labels[apart.argmin(axis=1)] == labels)


def test_neighbours_are_those_of_a_sort(rng):
    points = rng.random((50, 10))
    order = np.linalg.norm(points - points[7], axis=1).argsort()
    assert codes.neighbours(points, 7, 5).tolist() == order[1:6].tolist()
    with pytest.raises(ValueError, match="count must be from 1 to 49, got 50"):
        codes.neighbours(points, 7, 50)


@pytest.mark.parametrize("count", [120, 20])
def test_a_map_keeps_groups_together(count, rng):
    """Ten groups of nearly one-hot codes: the nearest in the plane is of the same group."""
    groups = np.arange(count) % 10
    points = codes.plane(0.98 * np.eye(10)[groups] + 0.02 * rng.dirichlet(np.ones(10), count))
    assert points.shape == (count, 2)
    assert codes.nearest_agrees(points, groups).mean() > 0.9
    assert np.isfinite(codes.plane(np.full((count, 10), 0.1))).all(), "a network that collapsed"
    with pytest.raises(ValueError):  # noqa: PT011 - scikit-learn's
        codes.plane(np.full((1, 10), 0.1))
