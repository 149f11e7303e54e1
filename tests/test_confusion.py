"""Matrix, mappings and scores against scikit-learn, brute force and the post's published numbers."""

import itertools

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_ae import confusion, storage

PUBLISHED = np.loadtxt(storage.HOME / "figures" / "published_matrix.csv", int, delimiter=",", skiprows=1)[:, 1:]
matrices = hnp.arrays(np.int64, (10, 10), elements=st.integers(0, 9) | st.integers(0, 500))


def test_the_published_matrix_gives_the_published_mapping_and_accuracy():
    assert PUBLISHED.sum() == 10_000
    mapping = confusion.majority_mapping(PUBLISHED)
    assert mapping.tolist() == [0, 2, 2, 3, 2, 5, 9, 2, 6, 1]
    assert confusion.accuracy(PUBLISHED, mapping) == 0.4053
    assert PUBLISHED.argmax(axis=1)[6] == 8, "the post: digit 6 activates neuron 8 most"


@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 9)), st.integers(0, 2**32 - 1))
def test_confusion_matrix_is_scikit_learns_with_the_first_of_equally_active_neurons(digits, seed):
    codes = np.random.default_rng(seed).integers(0, 4, (len(digits), 10))
    ours, firsts = confusion.confusion_matrix(digits, codes), [code.index(max(code)) for code in codes.tolist()]
    np.testing.assert_array_equal(ours, sklearn.metrics.confusion_matrix(digits, firsts, labels=range(10)))
    assert confusion.dead_neurons(ours) == sorted(set(range(10)) - set(firsts))


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
def test_accuracy_and_reordered_shares_are_scikit_learns(matrix):
    many, one = confusion.majority_mapping(matrix), confusion.one_to_one_mapping(matrix)
    assert many.tolist() == [column.index(max(column)) for column in matrix.T.tolist()], "the lowest on a tie"
    assert confusion.accuracy(matrix, many) >= confusion.accuracy(matrix, one)
    truth, neurons = (np.repeat(index.ravel(), matrix.ravel()) for index in np.indices((10, 10)))
    for mapping in (many, one):
        said = mapping[neurons]
        assert confusion.accuracy(matrix, mapping) == pytest.approx(sklearn.metrics.accuracy_score(truth, said))
    shares = sklearn.metrics.confusion_matrix(truth, said, labels=range(10), normalize="true")
    np.testing.assert_allclose(confusion.reorder(matrix, one), shares)


def test_scores_fit_on_one_matrix_and_count_on_the_other():
    scores = confusion.scores(5 * np.eye(10, dtype=int), np.roll(np.eye(10, dtype=int), 1, axis=1))
    assert scores == {"many_to_one": 0, "many_to_one_same": 1, "one_to_one": 0, "one_to_one_same": 1}


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (confusion.confusion_matrix, ([0, 1], np.zeros((3, 10))), "labels must be"),
        (confusion.confusion_matrix, ([0], np.zeros((1, 9))), "codes"),
        (confusion.confusion_matrix, ([3], np.full((1, 10), np.nan)), "NaN"),
        (confusion.majority_mapping, (np.zeros((10, 9)),), r"\[10, 10\]"),
        (confusion.accuracy, (np.zeros((10, 10)), range(10)), "no images"),
    ],
)
def test_what_cannot_be_read_is_refused(function, given, message):
    with pytest.raises(ValueError, match=message):
        function(*given)
