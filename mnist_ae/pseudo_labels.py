"""Pseudo-labels: aggregated predictions of several networks, or of neighbouring images.

codes: float [N, 10], each row with sum 1; pseudo-labels are the same.
"""

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from mnist_ae.losses import mutual_information

MERGED = 0.06  # nats of mutual information less than the best: such a code has merged two digits and split one
DOUBT = 1e-4  # the least probability of a digit: no prediction rules one out


def align(predictions: list[Tensor]) -> list[Tensor]:
    """Several networks' codes of the same images, their neurons put in the order of the one with the largest mutual
    information (Hungarian matching); without those that have MERGED digits.

    >>> one = torch.eye(10)
    >>> [torch.equal(codes, one) for codes in align([one, one.flip(1)])]  # the same codes, other names of the neurons
    [True, True]
    """
    information = [mutual_information(codes).item() for codes in predictions]
    best = predictions[information.index(max(information))]
    kept = [codes for codes, own in zip(predictions, information, strict=True) if own > max(information) - MERGED]
    return [codes[:, linear_sum_assignment(best.T @ codes, maximize=True)[1]] for codes in kept]


def aggregate(predictions: list[Tensor], rounds: int = 10) -> Tensor:
    """The pseudo-labels [N, 10] of several networks' codes of the same images (Dawid and Skene 1979, codes for counts).

    Networks differ, by chance, in the digit that they take a rare style for (7s with a bar, 9s with a curled tail). By
    EM, the networks are the annotators: their confusion matrices are estimated from the posterior over digits, and the
    posterior from their predictions and these matrices. Where one network takes barred 7s for 2s and another for 9s, a
    2 and a 9 make a 7, where a vote would fail. The last posterior is of the networks' mean evidence, not of the sum,
    since their errors are not independent.

    >>> one = torch.eye(10).repeat(20, 1)
    >>> torch.equal(aggregate([one, one.flip(1)]).argmax(dim=1), one.argmax(dim=1))
    True
    """
    predictions = align(predictions)
    posterior = sum(predictions) / len(predictions)
    for _ in range(rounds):
        confusions = [posterior.T @ codes + 1e-5 * len(codes) for codes in predictions]  # [posterior, prediction]
        likelihoods = [(confusion / confusion.sum(dim=1, keepdim=True)).log() for confusion in confusions]
        evidence = sum(codes @ likelihood.T for codes, likelihood in zip(predictions, likelihoods, strict=True))
        frequency = posterior.mean(0).clamp_min(1e-3).log()
        posterior = (frequency + evidence).softmax(dim=1)
    return (frequency + evidence / len(predictions)).softmax(dim=1)


def nearest_neighbours(images: Tensor, count: int) -> Tensor:
    """The places of the `count` other images nearest to each: uint8 [N, 28, 28] -> int64 [N, count].

    Near in the plain sense, by the pixels' first 60 principal components.

    >>> nearest_neighbours(torch.tensor([0, 9, 100, 110]).to(torch.uint8)[:, None, None].expand(-1, 28, 28), 1)[:, 0]
    tensor([1, 0, 3, 2])
    """
    pixels = images.flatten(1).float().numpy()
    with threadpool_limits(torch.get_num_threads()):
        components = PCA(min(60, *pixels.shape), random_state=0).fit_transform(pixels)
        search = NearestNeighbors(n_neighbors=min(count, len(pixels) - 1), algorithm="brute").fit(components)
        return torch.from_numpy(search.kneighbors(return_distance=False))


def agree(codes: Tensor, nearest: Tensor) -> Tensor:
    """An image's code times the mean code of its neighbours, at the places [N, K], normalised: float [N, 10].

    >>> codes = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8]])
    >>> agree(codes, torch.tensor([[1, 2], [0, 2], [0, 1]]))[0].round(decimals=2)
    tensor([0.2100, 0.7900])
    """
    evidence = codes.clamp_min(DOUBT).log() + codes[nearest].mean(1).clamp_min(DOUBT).log()
    return evidence.softmax(dim=1)
