"""Codes and decoded images: means of groups, correlations, neighbours, a map."""

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from mnist_ae import checks


def group_means(values: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """The mean of the values of each of ten groups: float64 [10, ...], NaN for a group without members.

    values: numbers [N, ...], images or codes. groups: integers [N] in 0..9, digits or most active neurons.

    >>> group_means([[0.0], [2.0], [5.0]], [1, 1, 9])[[0, 1, 9]].ravel()
    array([nan,  1.,  5.])
    """
    values, groups = np.asarray(values), checks.as_labels(groups, "groups")
    means = np.full((10, *values.shape[1:]), np.nan)
    for group in np.unique(groups):
        means[group] = values[groups == group].mean(axis=0, dtype=np.float64)
    return means


def correlations(decoded: ArrayLike, averages: ArrayLike) -> np.ndarray:
    """Pearson's correlation, over the pixels, of each decoded image with each average image: float64 [A, B].

    decoded: [A, ...] and averages: [B, ...], of the same pixels. 1 means: the same picture up to brightness and
    contrast, which is fair to a sigmoid that cannot reach the target's darkest and brightest values; -1 its negative.
    NaN for a NaN or flat image.

    >>> correlations([[0, 1, 0, 1]], [[0, 2, 0, 2], [1, 0, 1, 0]]).round(2)
    array([[ 1., -1.]])
    """
    decoded, averages = (np.asarray(images, dtype=np.float64) for images in (decoded, averages))
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.corrcoef(decoded.reshape(len(decoded), -1), averages.reshape(len(averages), -1))
    return both[: len(decoded), len(decoded) :]


def neighbours(codes: ArrayLike, index: int, count: int) -> np.ndarray:
    """The `count` codes of [N, 10] that are nearest to the one at `index`, without itself: int [count], nearest first.

    Euclidean distance; of equally near ones the first. ValueError if there are not so many others.

    >>> neighbours(np.eye(10) + np.eye(10)[:, ::-1], 0, 1)
    array([9])
    """
    codes = np.asarray(codes)
    if not 0 < count < len(codes):
        raise ValueError(f"count must be from 1 to {len(codes) - 1}, got {count}")
    order = np.argsort(((codes - codes[index]) ** 2).sum(axis=1), kind="stable")
    return order[order != index][:count]


def nearest_agrees(codes: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Whether the nearest other code (Euclidean) of each of [N, 10], N > 1, has the same label, of [N]: bool [N].

    >>> nearest_agrees([[0], [1], [5], [7]], [3, 3, 3, 8])
    array([ True,  True, False, False])
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import

    labels = checks.as_labels(labels)
    nearest = NearestNeighbors(n_neighbors=1).fit(np.asarray(codes)).kneighbors(return_distance=False)[:, 0]
    return labels[nearest] == labels


def plane(codes: ArrayLike, seed: int = 0) -> np.ndarray:
    """Codes [N, 10] embedded in the plane by t-SNE: float [N, 2]. ValueError for a single code.

    t-SNE (van der Maaten and Hinton 2008) with a perplexity of 30, less for less than 91 codes, of their square roots:
    the distance of those is Hellinger's, made for probabilities. In the plane, neighbours mean something and distances
    nothing. The same seed gives the same picture on the same machine.
    """
    from sklearn.manifold import TSNE  # slow to import

    points, perplexity = np.sqrt(codes), min(30, (len(codes) - 1) / 3)
    init = "pca" if np.ptp(points, axis=0).any() else "random"  # codes that are all the same have no components
    with threadpool_limits(2):  # with more, the order in which it adds up is not the same each time
        return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(points)
