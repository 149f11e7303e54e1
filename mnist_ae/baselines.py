"""What the autoencoder is compared with. Nothing here is part of a recipe, and no recipe calls it.

`supervised` is the one function of the project that updates weights with labels: it is the ceiling, not a method.
"""

from functools import partial

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_ae import checks, codes, confusion, data, models, train

METHODS = ("k-means on pixels", "PCA + Gaussian mixture", "UMAP + Gaussian mixture")


def clusters(method: str, train_images: Tensor, test_images: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten clusters of train and test images, one-hot [N, 10], as `confusion.confusion_matrix` reads codes.

    images: uint8 [N, 1, 28, 28]. method: one of METHODS, else ValueError. k-means with one k-means++ start; a mixture
    of Gaussians of 50 principal components, or of a UMAP embedding in 10 dimensions (15 neighbours, no least distance),
    into which test images are placed after it was fitted.

    >>> from mnist_ae import data
    >>> digits = data.load("digits")
    >>> [found.shape for found in clusters("PCA + Gaussian mixture", digits.train_images, digits.test_images, seed=0)]
    [(1437, 10), (360, 10)]
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    points = [checks.pixels(checks.as_images(images)).flatten(1).numpy() for images in (train_images, test_images)]
    if method == METHODS[0]:
        model = KMeans(n_clusters=10, n_init=1, random_state=seed)
    else:
        model = GaussianMixture(10, n_init=3, reg_covar=1e-4, random_state=seed)
        embedding = partial(codes.umap, n_components=10, n_neighbors=15, min_dist=0)
        reduce = embedding(random_state=seed) if "UMAP" in method else PCA(50, random_state=seed)
        points = [reduce.fit_transform(points[0]), reduce.transform(points[1])]
    model.fit(points[0])
    return tuple(np.eye(10)[model.predict(part)] for part in points)


def accuracy(method: str, digits: data.Digits, seed: int) -> float:
    """The share of the test images that `clusters` gets right: one-to-one, mapping fitted on the training labels.

    >>> accuracy("k-means on pixels", data.load("digits"), seed=0) > 0.5
    True
    """
    found = clusters(method, digits.train_images, digits.test_images, seed)
    labels = digits.train_labels, digits.test_labels
    return confusion.scores(*map(confusion.confusion_matrix, labels, found))["one_to_one"]


def supervised(images: Tensor, labels: Tensor, *, epochs: int, seed: int, progress: bool = True) -> nn.Module:
    """The post's encoder trained WITH labels, neuron k to fire for digit k; the decoder is left as it was born.

    images: uint8 [N, 1, 28, 28], labels: int64 [N]. Adam at 1e-3, batches of 64, cross-entropy of the softmax code.
    """
    labels = torch.from_numpy(checks.as_labels(labels))

    def loss(model: nn.Module, batch: train.Batch) -> Tensor:
        code = model.encoder(model.normalise(batch.images))
        return F.nll_loss(code.clamp_min(1e-12).log(), labels[batch.index])

    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    with train.Trainer(seed, progress=progress, epochs=epochs) as trainer:
        return trainer.fit("supervised", models.PostAutoencoder, checks.as_images(images), loss, adam, epochs=epochs)
