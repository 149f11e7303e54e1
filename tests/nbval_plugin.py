"""How `make test-notebooks` runs nbval: in a folder of its own, so that every notebook trains for real, and on MNIST.

Loaded with `pytest -p tests.nbval_plugin --nbval`.
"""

import os
import shutil
import tempfile

import pytest
from matplotlib import font_manager  # noqa: F401 - makes its folder and cache here: a kernel that has to says so on stderr

from mnist_ae import data


def pytest_configure(config):
    out = config.stash[OUT] = tempfile.mkdtemp(prefix="mnist-ae-")
    os.environ["MNIST_AE_OUT"] = out


def pytest_unconfigure(config):
    shutil.rmtree(config.stash[OUT], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """The stored outputs are MNIST's: where it cannot be had, skip and say so."""
    try:
        data.load("MNIST")
    except data.DataUnavailable as reason:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"the stored outputs are MNIST's, and {reason}"))


OUT = pytest.StashKey[str]()
