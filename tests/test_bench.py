"""The benchmark, small and without its clock: each part runs, and both sides of a row compute the same."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from mnist_ae import baselines, data, recipes
from tests import bench


def test_the_plain_loop_and_ours_compute_the_same(digits):
    images = digits.train_images[:320]
    order = torch.randperm(320, generator=torch.Generator().manual_seed(0))
    plain = bench.plain_loop(bench.LikeTorchvision(images), order, 0)[1]
    assert bench.our_loop(images)[1] == pytest.approx(plain, rel=1e-6)
    assert bench.our_loop(images, bfloat16=True)[1] != pytest.approx(plain, rel=1e-9), "it is another run"


def test_every_part_runs_and_the_table_can_be_drawn(digits, monkeypatch):
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 1)
    monkeypatch.setattr(baselines, "METHODS", baselines.METHODS[:1])
    few = data.Digits("digits", *(t[:300] for t in vars(digits).values() if isinstance(t, torch.Tensor)))
    usual = recipes.TEN_DIGITS
    member, teacher, student = (replace(n, epochs=1) for n in (usual.committee[0], usual.teacher, usual.students[0]))
    brief = recipes.TenDigits("brief", (member,), teacher, (student,))
    sections = {
        "loop": bench.post_loop(few.train_images, 128, repeats=1),
        "teacher": bench.shares(few.train_images),
        "evaluation": bench.evaluation(few, repeats=1),
        "growth": bench.growth("digits", (64, 128)),
        "sweep": bench.sweeps("digits", replace(recipes.POST, epochs=1), seeds=1),
        "recipe": bench.label_free(few, brief, goals={0.05: 1, 1.01: 1}),
    }
    rows = []
    for section, lines in sections.items():
        lines = list(lines)
        assert lines
        assert all(line["section"] == section and line["ratio"] > 0 for line in lines)
        rows += lines
    table = pd.DataFrame(rows)
    assert table["what"].str.startswith("to ").sum() == 1, "no row for what is not reached"
    assert table.query("section == 'teacher'")["value"].sum() == pytest.approx(1)
    assert table.query("section == 'growth'")["peak_megabytes"].min() > 100
    assert len(bench.draw(table, "a title").axes) == 2
    assert bench.machine()


def test_turns_are_taken_and_the_median_is_of_those_that_count():
    calls = []

    def clock(name, times):
        return lambda: calls.append(name) or times.pop(0)

    found = bench.in_turns({"a": clock("a", [9, 1, 5, 2]), "b": clock("b", [9, 3, 4, 8])}, repeats=3)
    assert found == {"a": 2, "b": 4}
    assert calls == ["a", "b"] * 4
    assert bench.row("", "", 6.0, "images/s", "", 2.0)["ratio"] == 3, "faster is more"
    assert bench.row("", "", 6.0, "s", "", 2.0)["ratio"] == pytest.approx(1 / 3), "longer is less"
