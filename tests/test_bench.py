"""The benchmark on few images: it makes the rows that README names, and both sides of a row compute the same."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from mnist_ae import ablations, data, recipes, storage, sweep
from tests import bench


def once(sides, *_):
    return {name: clock() for name, clock in sides.items()}


def test_the_plain_loop_and_ours_compute_the_same(digits):
    images = digits.train_images[:320]
    plain = bench.plain_loop(images, 0)[1]
    assert bench.our_loop(images)[1] == pytest.approx(plain, rel=1e-6)


def test_every_part_runs_and_makes_the_rows_that_the_readme_names(digits, monkeypatch, tmp_path):
    """With one turn, a short recipe, and threads in place of processes; what is slow elsewhere is made up."""
    few = data.Digits("MNIST", *(part[:64] for part in vars(digits).values() if isinstance(part, torch.Tensor)))
    usual, epoch_of = recipes.TEN_DIGITS, bench.epoch_of
    short = replace(usual, committee=(), teacher=replace(usual.teacher, epochs=1), students=())
    for place, name, value in (
        (bench, "in_turns", once),
        (bench, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1)),
        (bench, "subprocess", SimpleNamespace(run=lambda *_, **__: None)),
        (bench, "epoch_of", lambda _, threads: epoch_of(64, threads)),
        (data, "load", lambda *_: few),
        (recipes, "TEN_DIGITS", short),
        (ablations, "LEFT_OUT", (short,)),
        (recipes, "BATCH", 32),
        (recipes, "LEAST_BATCHES", 1),
        (sweep, "workers", lambda: ThreadPoolExecutor(1)),
        (sys, "argv", ["bench", "--threads=1"]),
    ):
        monkeypatch.setattr(place, name, value)
    bench.main()
    table = pd.read_csv(tmp_path / "out" / "figures" / "bench.csv")
    made = set((table["section"] + ": " + table["what"]).str.replace("64 images", "10,000 images"))
    committed = pd.read_csv(storage.HOME / "figures" / "bench.csv")
    named = re.findall(r"\(`([^:`]+: [^`]+)`\)", (storage.HOME / "README.md").read_text())
    assert set(named) <= made <= set(committed["section"] + ": " + committed["what"])
    assert named
    assert table["ratio"].gt(0).all()
    assert table["peak_megabytes"].max() > 100
    assert (tmp_path / "out" / "figures" / "bench.png").exists()


def test_turns_are_taken_and_the_median_is_of_those_that_count():
    calls, times = [], {"a": [9, 1, 5, 2], "b": [(9, 0), (3, 1), (4, 2), (8, 3)]}
    sides = {name: lambda name=name: calls.append(name) or times[name].pop(0) for name in times}
    assert bench.in_turns(sides, 3) == {"a": 2, "b": (4, 2)}
    assert calls == ["a", "b"] * 4
    assert bench.row("", "", 6.0, "images/s", "", 2.0)["ratio"] == 3, "faster is more"
    assert bench.row("", "", 6.0, "s", "", 2.0)["ratio"] == pytest.approx(1 / 3), "longer is less"
