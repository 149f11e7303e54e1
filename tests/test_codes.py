import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from mnist_ae import codes


def test_entropy_is_scipys_and_spans_one_hot_to_uniform(rng):
    some = rng.dirichlet(np.full(10, 0.3), size=50)
    np.testing.assert_allclose(codes.entropy(some), scipy.stats.entropy(some, base=2, axis=1))
    np.testing.assert_allclose(codes.entropy(np.eye(10)), 0)
    assert codes.entropy(np.full((1, 10), 0.1))[0] == pytest.approx(np.log2(10))


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


def test_planes_refuse_what_umap_cannot_lay_out():
    for unfit in (np.ones((16, 10)), -np.ones((50, 10)), np.ones((0, 10))):
        with pytest.raises(ValueError, match="at least 17 and not negative"):
            codes.planes(unfit)


def test_distances_are_scipys(rng):
    images = rng.random((6, 28, 28))
    theirs = scipy.spatial.distance.cdist(*[images.reshape(6, -1)] * 2) / 28
    np.testing.assert_allclose(codes.distances(images), theirs, atol=1e-12)
