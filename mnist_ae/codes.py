"""What codes and drawings look like: how near to one-hot, and how like an average digit."""

import numpy as np
from numpy.typing import ArrayLike


def entropy(codes: ArrayLike) -> np.ndarray:
    """The entropy of each code, in bits: float64 [N], 0 for one-hot, log2(10) = 3.32 for uniform.

    codes: [N, 10], not negative, each row with sum 1, as a softmax gives them.
    """
    codes = np.asarray(codes, dtype=np.float64)
    return -(codes * np.log2(codes, where=codes > 0, out=np.zeros_like(codes))).sum(axis=1)


def group_means(values: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """The mean of the values of each of ten groups: float64 [10, ...], NaN for a group without members.

    values: numbers [N, ...], images or codes. groups: integers [N] in 0..9, digits or most active neurons.
    """
    values, groups = np.asarray(values), np.asarray(groups)
    means = np.full((10, *values.shape[1:]), np.nan)
    for group in np.unique(groups):
        means[group] = values[groups == group].mean(axis=0, dtype=np.float64)
    return means


def correlations(drawings: ArrayLike, averages: ArrayLike) -> np.ndarray:
    """Pearson's correlation, over the pixels, of each drawing with each average image: float64 [A, B], -1 to 1.

    drawings: [A, ...] and averages: [B, ...], of the same pixels. 1 means: the same picture up to brightness and
    contrast, which is fair to a sigmoid that cannot reach the target's black and white. NaN for a NaN or flat image.
    """
    drawings, averages = (np.asarray(images, dtype=np.float64) for images in (drawings, averages))
    drawings, averages = (images.reshape(len(images), -1) for images in (drawings, averages))
    drawings, averages = (images - images.mean(axis=1, keepdims=True) for images in (drawings, averages))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawings, averages = (images / np.linalg.norm(images, axis=1, keepdims=True) for images in (drawings, averages))
    return drawings @ averages.T


def distances(images: ArrayLike) -> np.ndarray:
    """The root-mean-square difference, over the pixels, of each pair of images [A, ...]: float64 [A, A]."""
    images = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
    return np.sqrt(((images[:, None] - images[None]) ** 2).mean(axis=2))
