import numpy as np
import pytest
import torch
from scipy import special, stats

from mnist_ae import losses


@pytest.fixture
def codes(rng):
    return special.softmax(3 * rng.normal(size=(50, 10)), axis=1)


def test_entropy_is_scipys(codes):
    np.testing.assert_allclose(losses.entropy(torch.tensor(codes)), stats.entropy(codes, axis=1), atol=1e-6)
    assert losses.entropy(torch.eye(10)).abs().max() < 1e-6


def test_mutual_information_is_that_of_the_joint_table(codes):
    """Image and neuron as two variables: I = sum p(i, k) log(p(i, k) / (p(i) p(k)))."""
    joint = codes / len(codes)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    expected = (joint * np.log(joint / independent)).sum()
    assert losses.mutual_information(torch.tensor(codes)).item() == pytest.approx(expected, abs=1e-6)
    assert losses.mutual_information(torch.eye(10)).item() == pytest.approx(np.log(10), abs=1e-6)
    assert losses.mutual_information(torch.full((7, 10), 0.1)).item() == pytest.approx(0, abs=1e-6)
    more = losses.mutual_information(torch.tensor(codes), balance=4).item() - expected
    assert more == pytest.approx(3 * stats.entropy(codes.mean(axis=0)), abs=1e-6)


def test_consistency_is_the_kl_divergence_and_holds_one_side_fixed(codes, rng):
    others = special.softmax(rng.normal(size=(50, 10)), axis=1)
    fixed, free = torch.tensor(codes, requires_grad=True), torch.tensor(np.log(others), requires_grad=True)
    value = losses.consistency(fixed, free)
    assert value.item() == pytest.approx(stats.entropy(codes, others, axis=1).mean(), abs=1e-9)
    value.backward()
    assert fixed.grad is None
    np.testing.assert_allclose(free.grad, -codes / 50, atol=1e-9)
    assert losses.consistency(fixed, fixed.log()).item() == pytest.approx(0, abs=1e-9)


def test_losses_do_not_care_for_the_order_of_neurons(codes):
    order = np.random.default_rng(1).permutation(10)
    a, b = torch.tensor(codes), torch.tensor(codes[:, order])
    assert losses.mutual_information(a).item() == pytest.approx(losses.mutual_information(b).item(), abs=1e-12)
    torch.testing.assert_close(losses.entropy(a), losses.entropy(b))


def test_one_hot_codes_have_finite_gradients():
    codes = torch.eye(10).repeat(3, 1).requires_grad_()
    losses.mutual_information(codes, balance=4).backward()
    assert codes.grad.isfinite().all()
