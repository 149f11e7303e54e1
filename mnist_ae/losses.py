"""The terms of the label-free objective: mutual information of image and neuron, consistency under augmentation.

A code is a softmax: float [N, 10], not negative, each row with sum 1. All values are in nats.
"""

from torch import Tensor

SMALLEST = 1e-8  # keeps the logarithm of a code finite


def entropy(codes: Tensor) -> Tensor:
    """codes [..., 10] -> [...]: 0 for one-hot, log(10) = 2.30 for uniform.

    >>> from torch import eye, full
    >>> entropy(full((2, 10), 0.1)).round(decimals=2), abs(entropy(eye(10)[0]))
    (tensor([2.3000, 2.3000]), tensor(0.))
    """
    return -(codes * codes.clamp_min(SMALLEST).log()).sum(-1)


def mutual_information(codes: Tensor, balance: float = 1.0) -> Tensor:
    """balance * H(mean code) - mean H(code), the means over N: codes [..., N, 10] -> [...], at most balance * log(10).

    With balance, the weight of the marginal entropy, at 1 it is the mutual information of image and neuron. Its first
    term is largest where all neurons are used equally often, its second where each code is one-hot. (Bridle, Heading
    and MacKay 1991; RIM; IMSAT, with balance 4.)

    >>> from torch import eye
    >>> mutual_information(eye(10)).round(decimals=2)  # one-hot, and all neurons are used
    tensor(2.3000)
    """
    return balance * entropy(codes.mean(-2)) - entropy(codes).mean(-1)


def consistency(fixed: Tensor, log_codes: Tensor) -> Tensor:
    """KL(fixed || exp(log_codes)), the mean over N: codes held fixed [..., N, 10], log codes alike -> [...], >= 0.

    >>> from torch import full
    >>> codes = full((4, 10), 0.1)
    >>> consistency(codes, codes.log())
    tensor(0.)
    """
    fixed = fixed.detach()
    return (fixed * (fixed.clamp_min(SMALLEST).log() - log_codes)).sum(-1).mean(-1)
