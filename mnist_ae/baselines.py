"""What the autoencoder is compared with. Nothing here is part of a recipe, and no recipe calls it.

`supervised` is the one function of the project that updates weights with labels: it is the ceiling, not a method.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from mnist_ae import codes, confusion, data, models, train


def kmeans_clusters(train_images: Tensor, test_images: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means on the pixels, 10 clusters, one k-means++ start: clusters of train and test images, one-hot [N, 10].

    images: uint8 [N, 1, 28, 28]. One-hot, so that `confusion.confusion_matrix` reads them as it reads codes.

    >>> from mnist_ae import data
    >>> digits = data.load("digits")
    >>> [clusters.shape for clusters in kmeans_clusters(digits.train_images, digits.test_images, seed=0)]
    [(1437, 10), (360, 10)]
    """
    model = KMeans(n_clusters=10, n_init=1, random_state=seed)
    flat = [models.pixels(data.as_images(images)).flatten(1).numpy() for images in (train_images, test_images)]
    model.fit(flat[0])
    return tuple(np.eye(10)[model.predict(images)] for images in flat)


def mixture_clusters(
    train_images: Tensor, test_images: Tensor, seed: int, *, reduction: str
) -> tuple[np.ndarray, np.ndarray]:
    """A mixture of 10 Gaussians on reduced pixels: clusters of train and test images, one-hot [N, 10].

    images: uint8 [N, 1, 28, 28]. reduction: "pca", 50 principal components; or "umap", an embedding in 10 dimensions
    (15 neighbours, no least distance), into which test images are placed after it was fitted. Else ValueError.

    >>> from mnist_ae import data
    >>> digits = data.load("digits")
    >>> [c.shape for c in mixture_clusters(digits.train_images, digits.test_images, 0, reduction="pca")]
    [(1437, 10), (360, 10)]
    """
    if reduction not in ("pca", "umap"):
        raise ValueError(f"reduction must be pca or umap, got {reduction!r}")
    flat = [models.pixels(data.as_images(images)).flatten(1).numpy() for images in (train_images, test_images)]
    if reduction == "pca":
        reduce = PCA(50, random_state=seed)
    else:
        reduce = codes.umap(n_components=10, n_neighbors=15, min_dist=0, random_state=seed)
    learnt = reduce.fit_transform(flat[0])
    model = GaussianMixture(10, n_init=3, reg_covar=1e-4, random_state=seed).fit(learnt)
    return tuple(np.eye(10)[model.predict(points)] for points in (learnt, reduce.transform(flat[1])))


def accuracy(
    cluster: Callable[[Tensor, Tensor, int], tuple[np.ndarray, np.ndarray]], digits: data.Digits, seed: int
) -> float:
    """The share of the test images that cluster(train images, test images, seed) gets right: one-to-one, strict.

    >>> accuracy(kmeans_clusters, data.load("digits"), seed=0) > 0.5
    True
    """
    clusters = cluster(digits.train_images, digits.test_images, seed)
    labels = digits.train_labels, digits.test_labels
    return confusion.scores(*map(confusion.confusion_matrix, labels, clusters))["one_to_one"]


def supervised(
    images: Tensor, labels: Tensor, *, epochs: int, seed: int, progress: bool = True
) -> models.PostAutoencoder:
    """The post's encoder trained WITH labels, neuron k to fire for digit k; the decoder is left as it was born.

    images: uint8 [N, 1, 28, 28], labels: int64 [N]. Adam at 1e-3, batches of 64, cross-entropy of the softmax code.

    >>> from mnist_ae import data
    >>> digits = data.load("digits")
    >>> model = supervised(digits.train_images, digits.train_labels, epochs=1, seed=0, progress=False)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.PostAutoencoder()
    images, labels = data.as_images(images), torch.from_numpy(data.as_labels(labels))
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=1e-3, fused=True)
    order = torch.Generator().manual_seed(seed)
    with train.progress_bar(epochs * len(images), progress) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=order).split(64):
                code = model.encoder(model.normalise(images[batch]))
                loss = F.nll_loss(code.clamp_min(1e-12).log(), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update(len(batch))
    return model
