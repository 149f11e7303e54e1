import numpy as np
import pytest

from mnist_ae import baselines, confusion, train


@pytest.mark.parametrize("method", baselines.METHODS)
@pytest.mark.filterwarnings("ignore")  # of UMAP's import
def test_clusters_are_one_hot_and_a_seed_is_a_draw(method, digits):
    images = digits.train_images[:600], digits.test_images[:200]
    clusters = baselines.clusters(method, *images, 0)
    for part, some in zip(clusters, images, strict=True):
        assert part.shape == (len(some), 10)
        assert set(np.unique(part)) == {0, 1}
        assert (part.sum(axis=1) == 1).all()
    for again, part in zip(baselines.clusters(method, *images, 0), clusters, strict=True):
        np.testing.assert_array_equal(again, part)


def test_an_unknown_method_is_named(digits):
    with pytest.raises(ValueError, match="unknown method 't-SNE': choose one of k-means on pixels, PCA"):
        baselines.clusters("t-SNE", digits.train_images, digits.test_images, 0)


def test_with_labels_neuron_k_learns_to_fire_for_digit_k(digits):
    model = baselines.supervised(digits.train_images, digits.train_labels, epochs=6, seed=0, progress=False)
    matrix = confusion.confusion_matrix(digits.test_labels, train.encode(model, digits.test_images))
    assert confusion.accuracy(matrix, range(10)) > 0.8
