"""How `make test-notebooks` runs nbval: on MNIST, in a folder of its own, with a copy of the runs that are finished.

A run is found by its recipe, seed, data, code, torch, threads and device: what `make run-notebooks` has trained is not
trained again, and what differs in any of these, as on a clean checkout, is trained for real. Loaded with
`pytest -p tests.nbval_plugin --nbval`.
"""

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from matplotlib import font_manager  # noqa: F401 - makes its folder and cache here: a kernel that has to says so on stderr
from xdist.scheduler import LoadScopeScheduling

from mnist_ae import data, storage


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # of pytest-xdist: it shares the folder of the one that started it
        return
    out = config.stash[OUT] = tempfile.mkdtemp(prefix="mnist-ae-")
    for finished in storage.runs_folder().glob("*-epochs-seed-*/metrics.json"):
        shutil.copytree(finished.parent, Path(out) / "runs" / finished.parent.name)
    os.environ["MNIST_AE_OUT"] = out
    with suppress(data.DataUnavailable):
        data.load("MNIST")  # downloaded once, not by each worker


def pytest_unconfigure(config):
    if out := config.stash.get(OUT, None):
        shutil.rmtree(out, ignore_errors=True)


def pytest_xdist_make_scheduler(config, log):
    return SideBySide(config, log)


class SideBySide(LoadScopeScheduling):
    """One notebook beside another, but for those that take the runs that 01 and 05 train: they follow them."""

    def _split_scope(self, nodeid):
        return re.sub(r"0[12356]_.*", "01", nodeid.split("::")[0])


def pytest_collection_modifyitems(items):
    """The stored outputs are MNIST's: where it cannot be had, skip and say so."""
    try:
        data.load("MNIST")
    except data.DataUnavailable as reason:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"the stored outputs are MNIST's, and {reason}"))


OUT = pytest.StashKey[str]()
