import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from mnist_ae import baselines, confusion, recipes, train


@pytest.mark.parametrize("method", baselines.METHODS[:2])
def test_clusters_far_apart_are_found(method, rng):
    centres = 100 * np.eye(10)
    train, test = (np.concatenate([centre + rng.normal(size=(n, 10)) for centre in centres]) for n in (30, 5))
    for found, n in zip(baselines.clusters(method, train, test, 0), (30, 5), strict=True):
        matrix = confusion.confusion_matrix(np.repeat(range(10), n), found)
        assert confusion.accuracy(matrix, confusion.one_to_one_mapping(matrix)) == 1


@pytest.mark.parametrize("method", baselines.METHODS[:3])
def test_a_seed_is_a_draw(method, digits, monkeypatch):
    def stand_in(n_jobs, n_components, n_neighbors, min_dist, random_state):  # umap-learn is an extra, and compiles
        assert (n_jobs, n_components, n_neighbors, min_dist) == (1, 10, 15, 0)
        return PCA(n_components, random_state=random_state)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=stand_in))
    few = replace(digits, train_images=digits.train_images[:600], train_labels=digits.train_labels[:600])
    share = baselines.accuracy(method, few, 0)
    assert 0.4 < share < 1
    assert baselines.accuracy(method, few, 0) == share


def test_an_unknown_method_is_named(digits):
    with pytest.raises(ValueError, match="unknown method 't-SNE': choose one of k-means on pixels, PCA"):
        baselines.accuracy("t-SNE", digits, 0)


def test_codes_of_one_hot_labels_are_clustered_without_a_mistake(digits, monkeypatch):
    def told(model, images):  # a code that clusters: 100 at the digit, noise elsewhere
        labels = digits.train_labels if len(images) == len(digits.train_labels) else digits.test_labels
        noise = torch.rand(len(images), 10, generator=torch.Generator().manual_seed(0))
        return 100 * torch.nn.functional.one_hot(labels, 10) + noise

    monkeypatch.setattr(train, "encode", told)
    monkeypatch.setattr(train, "reconstruct", lambda model, images: images / 255 + 0.5)
    error = {"error": pytest.approx(0.25)}
    assert baselines.of_codes(None, digits) == error | {"k_means": 1, "mixture": 1}


def test_a_peer_is_scored_on_the_images_that_it_was_fitted_on(digits, monkeypatch):
    class Peer:
        def __init__(self, n_clusters, random_state, device, **epochs):
            assert (n_clusters, epochs["pretrain_epochs"]) == (10, 20)

        def fit(self, points):
            assert points.shape == (len(digits.train_images), 784)
            self.labels_ = 9 - digits.train_labels.numpy()
            return self

    monkeypatch.setitem(sys.modules, "clustpy", SimpleNamespace(deep=SimpleNamespace(DEC=Peer, N2D=Peer)))
    assert [baselines.accuracy(peer, digits, 0) for peer in baselines.PEERS] == [1, 1]


def test_the_ceiling_learns_from_labels_and_a_row_says_how_long_it_took(digits, monkeypatch):
    brief = replace(recipes.TEN_DIGITS, committee=(), teacher=recipes.Network(epochs=1, heads=1, deeper=True))
    monkeypatch.setattr(recipes, "TEN_DIGITS", brief)
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 1)
    row = baselines.row(baselines.CEILING, 0, "digits")
    assert row["one_to_one"] > 0.9
    assert (row["method"], row["seed"]) == (baselines.CEILING, 0)
    assert row["seconds"] < 300


def test_with_labels_neuron_k_learns_to_fire_for_digit_k(digits):
    model = baselines.supervised(digits.train_images, digits.train_labels, epochs=6, seed=0, progress=False)
    matrix = confusion.confusion_matrix(digits.test_labels, train.encode(model, digits.test_images))
    assert confusion.accuracy(matrix, range(10)) > 0.8
