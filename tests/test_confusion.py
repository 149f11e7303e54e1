import itertools

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_ae import confusion, storage

PUBLISHED = np.loadtxt(storage.HOME / "figures" / "published_matrix.csv", int, delimiter=",", skiprows=1)[:, 1:]

matrices = hnp.arrays(np.int64, (10, 10), elements=st.integers(0, 500))
labels = hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 9))


def test_the_published_matrix_gives_the_published_mapping_and_accuracy():
    assert PUBLISHED.sum() == 10_000
    mapping = confusion.majority_mapping(PUBLISHED)
    assert dict(enumerate(mapping.tolist())) == {0: 0, 1: 2, 2: 2, 3: 3, 4: 2, 5: 5, 6: 9, 7: 2, 8: 6, 9: 1}
    assert confusion.accuracy(PUBLISHED, mapping) == 0.4053
    assert PUBLISHED.argmax(axis=1)[6] == 8, "the post: digit 6 activates neuron 8 most"


@given(labels, st.integers(0, 2**32 - 1))
def test_confusion_matrix_is_scikit_learns(digits, seed):
    codes = np.random.default_rng(seed).random((len(digits), 10), dtype=np.float32)
    ours = confusion.confusion_matrix(digits, codes)
    assert (ours.shape, ours.dtype) == ((10, 10), np.int64)
    np.testing.assert_array_equal(
        ours, sklearn.metrics.confusion_matrix(digits, codes.argmax(axis=1), labels=range(10))
    )


@given(matrices)
def test_majority_is_the_most_frequent_digit_the_lowest_on_a_tie(matrix):
    for neuron, digit in enumerate(confusion.majority_mapping(matrix)):
        column = matrix[:, neuron].tolist()
        assert digit == column.index(max(column))


@given(hnp.arrays(np.int64, (6, 6), elements=st.integers(0, 9)))
def test_one_to_one_beats_every_permutation(block):
    """Brute force over all 720 permutations of a block; the other four digits have neurons of their own."""
    matrix = np.diag(np.full(10, 1000))
    matrix[:6, :6] = block
    mapping = confusion.one_to_one_mapping(matrix)
    assert sorted(mapping) == list(range(10))
    best = max(sum(block[p[neuron], neuron] for neuron in range(6)) for p in itertools.permutations(range(6)))
    assert matrix[mapping, np.arange(10)].sum() == best + 4000


@given(matrices.filter(np.any))
def test_many_to_one_is_never_worse_and_is_scikit_learns_purity(matrix):
    many, one = (f(matrix) for f in (confusion.majority_mapping, confusion.one_to_one_mapping))
    assert confusion.accuracy(matrix, many) >= confusion.accuracy(matrix, one)
    truth, neurons = (np.repeat(index.ravel(), matrix.ravel()) for index in np.indices((10, 10)))
    for mapping in (many, one):
        assert confusion.accuracy(matrix, mapping) == pytest.approx(
            sklearn.metrics.accuracy_score(truth, mapping[neurons])
        )
        present = np.flatnonzero(matrix.sum(axis=1))
        np.testing.assert_allclose(
            confusion.recall(matrix, mapping)[present],
            sklearn.metrics.recall_score(truth, mapping[neurons], labels=present, average=None, zero_division=0),
        )


@given(st.permutations(range(10)))
def test_a_shuffled_diagonal_is_reordered_into_the_identity(permutation):
    matrix = np.zeros((10, 10), dtype=np.int64)
    matrix[permutation, np.arange(10)] = range(1, 11)
    mapping = confusion.one_to_one_mapping(matrix)
    assert mapping.tolist() == list(permutation)
    np.testing.assert_array_equal(confusion.reorder(matrix, mapping), np.eye(10))
    assert confusion.accuracy(matrix, mapping) == 1


@given(matrices)
def test_reorder_moves_columns_and_normalises_rows(matrix):
    mapping = confusion.one_to_one_mapping(matrix)
    shares = confusion.reorder(matrix, mapping)
    for neuron, digit in enumerate(mapping):
        np.testing.assert_allclose(shares[:, digit] * np.maximum(matrix.sum(axis=1), 1), matrix[:, neuron])
    np.testing.assert_allclose(shares.sum(axis=1), matrix.any(axis=1).astype(float))
    assert not np.isnan(confusion.reorder(matrix, confusion.majority_mapping(matrix))).any()


def test_scores_fit_on_one_matrix_and_count_on_the_other():
    train_matrix = np.eye(10, dtype=int) * 5
    test_matrix = np.roll(np.eye(10, dtype=int), 1, axis=1)
    scores = confusion.scores(train_matrix, test_matrix)
    assert scores == {"many_to_one": 0, "many_to_one_same": 1, "one_to_one": 0, "one_to_one_same": 1}


def test_dead_neurons_and_equal_codes():
    matrix = confusion.confusion_matrix(np.arange(10), np.full((10, 10), 0.1))
    assert confusion.dead_neurons(matrix) == list(range(1, 10)), "of equally active neurons the first counts"
    assert confusion.dead_neurons(PUBLISHED) == []


@pytest.mark.parametrize(
    ("labels", "codes", "message"),
    [
        ([0, 1], np.zeros((3, 10)), "labels must be"),
        ([0], np.zeros((1, 9)), "codes"),
        ([3], np.full((1, 10), np.nan), "NaN"),
    ],
)
def test_what_cannot_be_read_is_refused(labels, codes, message):
    with pytest.raises(ValueError, match=message):
        confusion.confusion_matrix(labels, codes)


def test_matrices_of_other_shapes_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match=r"\[10, 10\]"):
        confusion.majority_mapping(np.zeros((10, 9)))
    with pytest.raises(ValueError, match="no images"):
        confusion.accuracy(np.zeros((10, 10), dtype=int), np.arange(10))
