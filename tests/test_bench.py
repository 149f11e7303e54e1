"""The benchmark, small and without its clock: each part runs, and both sides of a row compute the same."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torchvision import transforms

from mnist_ae import baselines, data, models, ten_digits, train
from tests import bench


class LikeTorchvisions(torch.utils.data.Dataset):
    """(image, label) as torchvision's MNIST gives them, through PIL."""

    def __init__(self, images):
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.ToTensor(),
                transforms.Normalize((models.PIXEL_MEAN,), (models.PIXEL_STD,)),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), 0


def test_the_plain_loop_and_ours_compute_the_same(digits):
    images = digits.train_images[:640]
    order = torch.randperm(640, generator=torch.Generator().manual_seed(0))
    plain = bench.plain_loop(LikeTorchvisions(images), order, 0)[1]
    assert bench.our_loop(images)[1] == pytest.approx(plain, rel=1e-6)
    assert bench.our_loop(images, bfloat16=True)[1] == pytest.approx(plain, rel=1e-3)
    assert bench.our_loop(images, bfloat16=True)[1] != pytest.approx(plain, rel=1e-9), "it is another run"


def no_compiler(*_):
    raise RuntimeError("no C++ compiler (test)")


def test_every_part_runs_and_the_table_can_be_drawn(digits, monkeypatch):
    monkeypatch.setattr(train, "LEAST_BATCHES", 1)
    monkeypatch.setattr(torch, "compile", no_compiler)  # that takes a minute; without one its row is left out
    monkeypatch.setattr(baselines, "mixture_clusters", lambda *images, reduction: baselines.kmeans_clusters(*images))
    few = data.Digits("digits", *(t[:300] for t in vars(digits).values() if isinstance(t, torch.Tensor)))
    usual = ten_digits.TenDigits()
    member, teacher, student = (replace(n, epochs=1) for n in (usual.committee[0], usual.teacher, usual.students[0]))
    brief = ten_digits.TenDigits("brief", (member,), teacher, (student,))
    sections = {
        "loop": bench.post_loop(LikeTorchvisions(few.train_images), few.train_images, 128, repeats=1),
        "candidates": bench.candidates(few.train_images, repeats=1),
        "limit": bench.limit(few.train_images, repeats=1),
        "parts of a step": bench.parts(digits.train_images, repeats=1),
        "evaluation": bench.evaluation(few, repeats=1),
        "growth": bench.growth("digits", (64, 128), repeats=1),
        "recipe": bench.label_free(few, brief, goals=((0.05, 1), (1.01, 1))),
        "rounding": bench.rounding(few, epochs=1, seeds=range(1)),
    }
    rows = []
    for section, lines in sections.items():
        lines = list(lines)
        assert lines
        assert all(line["section"] == section and line["ratio"] > 0 for line in lines)
        rows += lines
    table = pd.DataFrame(rows)
    assert table["what"].str.startswith("to ").sum() == 1, "no row for what is not reached"
    shares = table.query("section == 'limit' and unit == 'share'")["value"]
    assert shares.sum() == pytest.approx(1)
    assert table.query("section == 'growth'")["peak_megabytes"].min() > 100
    figure = bench.draw(table, "a title")
    assert len(figure.axes) == 3
    assert bench.machine()


def test_memory_is_that_of_the_run_and_not_of_the_benchmark_around_it():
    before = bench.peak_megabytes()
    block = torch.ones(300_000_000)  # 1.2 GB here; what the child needs is less
    here = bench.peak_megabytes()
    [run] = bench.growth("digits", (64,), repeats=1)
    assert here - before > 600
    assert run["peak_megabytes"] < here - 0.5 * block.numel() * 4e-6


def test_turns_are_taken_and_the_median_is_of_those_that_count():
    calls = []

    def clock(name, times):
        return lambda: calls.append(name) or times.pop(0)

    found = bench.in_turns({"a": clock("a", [9, 1, 5, 2]), "b": clock("b", [9, 3, 4, 8])}, repeats=3)
    assert found == {"a": 2, "b": 4}
    assert calls == ["a", "b"] * 4
    assert bench.row("", "", 6.0, "images/s", "", 2.0)["ratio"] == 3, "faster is more"
    assert bench.row("", "", 6.0, "s", "", 2.0)["ratio"] == pytest.approx(1 / 3), "longer is less"
