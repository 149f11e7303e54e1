from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import settings

from mnist_ae import data, experiment, pretrained, recipes

settings.register_profile("beside others", deadline=None)  # a worker of pytest-xdist may have to wait
settings.load_profile("beside others")


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


@pytest.fixture(scope="session")
def result(digits, tmp_path_factory):
    """A network as the committed one, trained for two steps and made sure of itself; float16 holds it as it is."""
    few = data.Digits("digits", *(part[:130] for part in vars(digits).values() if isinstance(part, torch.Tensor)))
    brief = replace(recipes.TEN_DIGITS.students[0], epochs=2, taught=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "LEAST_BATCHES", 1)
        result = experiment.run(brief, 0, few, tmp_path_factory.mktemp("run"), device="cpu", progress=False)
    result.model.encoder[-3].weight.data *= 30
    for weight in result.model.state_dict().values():
        weight.copy_(weight.half())
    return replace(result, metrics=result.metrics | experiment._evaluate(result.model, digits))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """In place of figures/, for the weights of the repository."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    return tmp_path
