import numpy as np
import pytest
import torch

from mnist_ae import data


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """No test writes into the repository, and each leaves torch's thread count as it was."""
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path / "out"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def mnist():
    """The real MNIST, from disk only: unit tests never download it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_download", refuse)
        try:
            return data.load("MNIST")
        except data.DataError as reason:
            pytest.skip(f"{reason}: set MNIST_AE_DATA, or run make run-notebooks with a network")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def refuse(*_):
    raise OSError("no network (test)")


@pytest.fixture
def no_network(monkeypatch):
    """Every download fails at once, as without a network."""
    monkeypatch.setattr(data, "_download", refuse)
