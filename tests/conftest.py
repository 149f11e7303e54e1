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
    root = data._data_root(None)
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"MNIST is not in {root}: set MNIST_AE_DATA, or run make run-notebooks with a network")
    return data.load("MNIST", root)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def no_network(monkeypatch):
    """Every download fails at once, as without a network."""
    import urllib.error
    import urllib.request

    def refuse(*_, **__):
        raise urllib.error.URLError("no network (test)")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
