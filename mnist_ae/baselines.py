"""What the autoencoder is compared with. Nothing here is part of a recipe, and no recipe calls it.

`supervised` and `ceiling` are the functions of the project that update weights with labels: bounds, not methods.
"""

import os
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_ae import checks, confusion, data, models, recipes, storage, sweep, train

K_MEANS, PCA_MIXTURE, UMAP_MIXTURE = "k-means on pixels", "PCA + Gaussian mixture", "UMAP + Gaussian mixture"
CEILING = "the same network, trained with labels"
METHODS = K_MEANS, PCA_MIXTURE, UMAP_MIXTURE, CEILING


def umap(**options: object) -> object:
    """A UMAP of umap-learn (the extra `peers`, else ModuleNotFoundError) with these options, and with one thread, so
    that a seed is a result.
    """
    os.environ.setdefault("NUMBA_CACHE_DIR", str(storage.runs_folder() / "numba"))  # packages may be read-only
    try:
        from umap import UMAP  # it takes seconds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install -e '.[peers]' -c constraints.txt") from error

    return UMAP(n_jobs=1, **options)


# Of clustpy (the extra `peers`), with its own settings, but 20 epochs where it has 100 or 150, and the manifold of the
# paper of N2D: clustpy's, a t-SNE in ten dimensions, is refused by scikit-learn. {name: (class, settings)}
MANIFOLD = {"n_components": 10, "n_neighbors": 20, "min_dist": 0, "random_state": 0}
PEERS = {
    "DEC (clustpy)": ("DEC", {"pretrain_epochs": 20, "clustering_epochs": 20}),
    "N2D (clustpy)": ("N2D", {"pretrain_epochs": 20, "manifold_class": umap, "manifold_params": MANIFOLD}),
}


def clusters(method: str, train_points: ArrayLike, test_points: ArrayLike, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten clusters of points [N, D], one-hot [N, 10], as `confusion.confusion_matrix` reads codes; the best of three
    starts. method: one of METHODS; what is no k-means is a mixture of Gaussians, each with a covariance of its own.

    >>> [found.shape for found in clusters(K_MEANS, np.eye(12), np.eye(12)[:3], seed=0)]
    [(12, 10), (3, 10)]
    """
    if method == K_MEANS:
        model = KMeans(n_clusters=10, n_init=3, random_state=seed)
    else:
        model = GaussianMixture(10, n_init=3, reg_covar=1e-4, random_state=seed)
    model.fit(train_points)
    return tuple(np.eye(10)[model.predict(points)] for points in (train_points, test_points))


def accuracy(method: str, digits: data.Digits, seed: int) -> float:
    """The share of the test images that a method gets right: one-to-one, mapping fitted on the training labels.

    method: one of METHODS or PEERS, else ValueError; a peer is scored on the training images: it clusters what it was
    fitted on. Mixtures are those of 50 principal components, or of a UMAP embedding in 10 dimensions (15 neighbours, no
    least distance), into which test images are placed after it was fitted.

    >>> accuracy(K_MEANS, data.load("digits"), seed=0) > 0.5
    True
    """
    if method not in (*METHODS, *PEERS):
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join((*METHODS, *PEERS))}")
    if method in PEERS:
        from clustpy import deep

        kind, settings = PEERS[method]
        model = getattr(deep, kind)(n_clusters=10, random_state=seed, device=torch.device("cpu"), **settings)
        found = np.eye(10)[model.fit(checks.pixels(digits.train_images).flatten(1).numpy()).labels_]
        matrix = confusion.confusion_matrix(digits.train_labels, found)
        return confusion.scores(matrix, matrix)["one_to_one"]
    if method == CEILING:
        model = ceiling(digits.train_images, digits.train_labels, seed=seed)
        found = [train.encode(model, images) for images in (digits.train_images, digits.test_images)]
    else:
        points = [checks.pixels(images).flatten(1).numpy() for images in (digits.train_images, digits.test_images)]
        embeddings = {
            PCA_MIXTURE: partial(PCA, 50),
            UMAP_MIXTURE: partial(umap, n_components=10, n_neighbors=15, min_dist=0),
        }
        if method in embeddings:
            embedding = embeddings[method](random_state=seed)
            points = [embedding.fit_transform(points[0]), embedding.transform(points[1])]
        found = clusters(method, *points, seed)
    return one_to_one(digits, *found)


def of_codes(model: nn.Module, digits: data.Digits) -> dict[str, float]:
    """What a reader would try first: the codes of `model` clustered, with seed 0, in place of their most active neuron.
    And `error`, its mean squared error on the training images as they are, pixels in [0, 1].

    >>> sorted(of_codes(models.TenNeurons(), data.load("digits")))
    ['error', 'k_means', 'mixture']
    """
    points = [train.encode(model, images).double().numpy() for images in (digits.train_images, digits.test_images)]
    methods = {"k_means": K_MEANS, "mixture": PCA_MIXTURE}
    found = {name: one_to_one(digits, *clusters(method, *points, 0)) for name, method in methods.items()}
    drawn = train.reconstruct(model, digits.train_images)
    return {"error": F.mse_loss(drawn, checks.pixels(digits.train_images)).item(), **found}


def one_to_one(digits: data.Digits, train_codes: ArrayLike, test_codes: ArrayLike) -> float:
    """The accuracy of codes [N, 10] of the test images, one-to-one, mapping fitted on those of the training images."""
    labels = digits.train_labels, digits.test_labels
    return confusion.scores(*map(confusion.confusion_matrix, labels, (train_codes, test_codes)))["one_to_one"]


def row(method: str, seed: int, dataset: str) -> dict:
    """Of the table of baselines: `accuracy`, and the seconds that it took, with one thread."""
    with sweep.one_thread(), threadpool_limits(1):
        digits, begin = data.load(dataset), time.perf_counter()
        share = accuracy(method, digits, seed)
    return {"method": method, "seed": seed, "one_to_one": share, "seconds": round(time.perf_counter() - begin)}


def ceiling(images: Tensor, labels: Tensor, *, seed: int, progress: bool = False) -> nn.Module:
    """The last network of the label-free recipe trained WITH labels, for as many epochs as the whole recipe has, and
    from the same augmented copies. images: uint8 [N, 1, 28, 28], labels: int64 [N].
    """
    epochs = recipes.TEN_DIGITS.epochs
    network = replace(recipes.TEN_DIGITS.networks[-1], epochs=epochs, taught=epochs, anneal=True)
    targets = F.one_hot(torch.from_numpy(checks.as_labels(labels)), 10).float()
    with train.Trainer(seed, progress=progress, epochs=epochs) as trainer:
        inputs = recipes.with_inputs(network.model, images)
        return network.learn(trainer, "ceiling", seed, inputs, targets).eval()


def supervised(images: Tensor, labels: Tensor, *, epochs: int, seed: int, progress: bool = True) -> nn.Module:
    """The post's encoder trained WITH labels, neuron k to fire for digit k; the decoder keeps its initial weights.

    images: uint8 [N, 1, 28, 28], labels: int64 [N]. Adam at 1e-3, batches of 64, cross-entropy of the softmax code.
    """
    labels = torch.from_numpy(checks.as_labels(labels))

    def loss(model: nn.Module, batch: train.Batch) -> Tensor:
        code = model.encoder(model.normalise(batch.images))
        return F.nll_loss(code.clamp_min(1e-12).log(), labels[batch.index])

    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    with train.Trainer(seed, progress=progress, epochs=epochs) as trainer:
        return trainer.fit("supervised", models.PostAutoencoder, checks.as_images(images), loss, adam, epochs=epochs)
