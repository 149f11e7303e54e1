"""Confusion matrix of digits and neurons, mappings from neurons to digits, accuracy.

The matrix is not a classical confusion matrix: its rows are digits, its columns neurons, and their order is arbitrary.
A mapping gives each neuron its digit: int [10], mapping[neuron] = digit. One-to-one (Hungarian matching, the accuracy
known as ACC), each digit has a neuron of its own; many-to-one (majority vote, purity), a digit may have any number.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from mnist_ae import checks


def confusion_matrix(labels: ArrayLike, codes: ArrayLike) -> np.ndarray:
    """int64 [10, 10]: how many images of digit (row) have that neuron (column) as their most active one.

    labels: as for `checks.as_labels`, [N]. codes: finite numbers [N, 10]; of equally active neurons the first counts.
    Raises ValueError for other shapes, labels that are no digits, or codes that are not finite.

    >>> confusion_matrix([7, 7, 2], np.eye(10)[[4, 4, 0]])[[7, 2]][:, [4, 0]]
    array([[2, 0],
           [0, 1]])
    """
    labels, codes = checks.as_labels(labels), np.asarray(codes, dtype=np.float64)
    if codes.ndim != 2 or codes.shape[1] != 10 or labels.shape != codes.shape[:1]:
        raise ValueError(f"labels must be [N] and codes [N, 10], got {labels.shape} and {codes.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("codes hold NaN or infinity: the most active neuron is not defined")
    return np.bincount(10 * labels + codes.argmax(axis=1), minlength=100).reshape(10, 10)


def majority_mapping(matrix: ArrayLike) -> np.ndarray:
    """Many-to-one, the post's: each neuron's most frequent digit, the lowest on a tie (so 0 for a dead neuron).

    >>> majority_mapping(np.eye(10)[::-1])  # neuron 0 fires for digit 9
    array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    """
    return _checked(matrix).argmax(axis=0)


def one_to_one_mapping(matrix: ArrayLike) -> np.ndarray:
    """One-to-one: the permutation that gets most images right (the assignment problem, solved by SciPy).

    >>> one_to_one_mapping(np.eye(10)[::-1])
    array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    """
    digits, neurons = linear_sum_assignment(_checked(matrix), maximize=True)
    mapping = np.empty(10, dtype=np.int64)
    mapping[neurons] = digits
    return mapping


def accuracy(matrix: ArrayLike, mapping: ArrayLike) -> float:
    """The share of images, 0 to 1, whose neuron is mapped to their digit. ValueError for a matrix without images.

    >>> accuracy(np.eye(10), range(10)), accuracy(np.ones((10, 10)), range(10))
    (1.0, 0.1)
    """
    matrix = _checked(matrix)
    if matrix.sum() == 0:
        raise ValueError("the matrix holds no images: its accuracy is not defined")
    return float(matrix[_digits(mapping), np.arange(10)].sum() / matrix.sum())


def reorder(matrix: ArrayLike, mapping: ArrayLike) -> np.ndarray:
    """float64 [10, 10]: the columns sorted by the digit they are mapped to, each row divided by its sum.

    The identity if every digit has a neuron of its own. The row of a digit without images stays 0.

    >>> bool((reorder(3 * np.eye(10)[::-1], range(9, -1, -1)) == np.eye(10)).all())
    True
    """
    matrix = _checked(matrix)
    return row_normalise(matrix[:, np.argsort(_digits(mapping), kind="stable")])


def row_normalise(matrix: ArrayLike) -> np.ndarray:
    """float64 [10, 10]: each row as shares of its sum; a row of zeros stays zeros.

    >>> row_normalise([[1, 3], [0, 0]])
    array([[0.25, 0.75],
           [0.  , 0.  ]])
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def dead_neurons(matrix: ArrayLike) -> list[int]:
    """The neurons that are never the most active one: the columns of zeros.

    >>> dead_neurons(np.tile(np.arange(10) % 5, (10, 1)))
    [0, 5]
    """
    return np.flatnonzero(_checked(matrix).sum(axis=0) == 0).tolist()


def scores(train_matrix: ArrayLike, test_matrix: ArrayLike) -> dict[str, float]:
    """The accuracy on the test images, with four mappings.

    many_to_one, one_to_one: mapping fitted on the training labels, frozen, scored on the test images.
    many_to_one_same, one_to_one_same: mapping fitted on the test labels, too (the post has many_to_one_same).

    >>> scores(np.eye(10), np.eye(10))["one_to_one"]
    1.0
    """
    return {
        name + suffix: accuracy(test_matrix, mapping(fitted_on))
        for name, mapping in {"many_to_one": majority_mapping, "one_to_one": one_to_one_mapping}.items()
        for suffix, fitted_on in {"": train_matrix, "_same": test_matrix}.items()
    }


def _checked(matrix: ArrayLike) -> np.ndarray:
    matrix = np.asarray(matrix)
    if matrix.shape != (10, 10) or not ((matrix >= 0) & np.isfinite(matrix)).all():
        raise ValueError(f"the matrix must be [10, 10] counts, got shape {matrix.shape}, or some are negative or NaN")
    return matrix


def _digits(mapping: ArrayLike) -> np.ndarray:
    mapping = checks.as_labels(mapping, "a mapping's digits")
    if len(mapping) != 10:
        raise ValueError(f"a mapping must have a digit for each of 10 neurons, got {len(mapping)}")
    return mapping
