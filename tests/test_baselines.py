import numpy as np
import pytest

from mnist_ae import baselines


@pytest.mark.parametrize(
    "cluster",
    [
        baselines.kmeans_clusters,
        lambda *images: baselines.mixture_clusters(*images, reduction="pca"),
        lambda *images: baselines.mixture_clusters(*images, reduction="umap"),
    ],
    ids=["k-means", "PCA", "UMAP"],
)
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ImportWarning"
)
def test_clusters_are_one_hot_and_a_seed_is_a_draw(cluster, digits):
    images = digits.train_images[:600], digits.test_images[:200]
    clusters = cluster(*images, 0)
    for part, some in zip(clusters, images, strict=True):
        assert part.shape == (len(some), 10)
        assert set(np.unique(part)) == {0, 1}
        assert (part.sum(axis=1) == 1).all()
    for again, part in zip(cluster(*images, 0), clusters, strict=True):
        np.testing.assert_array_equal(again, part)


def test_an_unknown_reduction_is_named(digits):
    with pytest.raises(ValueError, match="pca or umap, got 'tsne'"):
        baselines.mixture_clusters(digits.train_images, digits.test_images, 0, reduction="tsne")
