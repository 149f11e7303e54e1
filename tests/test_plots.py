import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from mnist_ae import files, models, plots, published


@pytest.fixture
def figures():
    return draw_all()


def draw_all():
    """One figure of each kind, from made-up numbers."""
    rng = np.random.default_rng(0)
    layers = models.layer_table(models.PostAutoencoder(), torch.zeros(1, 1, 28, 28))
    history = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.8], "last_batch_loss": [0.9, 0.85]})
    codes = rng.dirichlet(np.ones(10), 100)
    images = rng.random((10, 28, 28))
    images[3] = np.nan
    shares = published.MATRIX / published.MATRIX.sum(axis=1, keepdims=True)
    seeds = pd.DataFrame(
        {
            "seed": [0, 1, 0],
            "epochs": [20, 20, 100],
            "many_to_one_same": [0.4, 0.5, 0.45],
            "one_to_one": [0.3, 0.4, 0.35],
        }
    )
    return {
        "architecture": plots.architecture(layers, "title"),
        "losses": plots.losses(history, published.LOSSES, {"a level": 0.7}, "title"),
        "image_rows": plots.image_rows({"a": images, "b": images[:, None]}, "title", [str(k) for k in range(10)]),
        "matrices": plots.matrices(
            {"counts": published.MATRIX, "shares": shares}, "title", {"counts": "abcdefghij", "shares": range(10)}
        ),
        "before_after": plots.before_after({name: (shares, images) for name in ("before", "after")}, "title"),
        "code_map": plots.code_map({"a": codes[:10, :2], "b": codes[:10, 2:4]}, range(10), images, "title"),
        "neighbours": plots.neighbours(images, images, codes[:10], np.stack([images[:3]] * 10), "title"),
        "activations": plots.activations(codes, "title"),
        "one_hotness": plots.one_hotness(codes, np.ones(100), "title"),
        "recall": plots.recall(pd.DataFrame({"one": rng.random(10), "two": rng.random(10)}), "title"),
        "sharing": plots.sharing(rng.random(45), rng.random(45), [f"pair {k}" for k in range(45)], "title"),
        "accuracies": plots.accuracies(pd.DataFrame({"accuracy": [0.1, 0.9], "colour": ["C0", "C1"]}), "title"),
        "ladder": plots.ladder(
            pd.DataFrame({"mean": [0.4, 0.9], "worst": [0.3, 0.8], "best": [0.5, 1.0]}, ["a", "b"]), {"x": 0.5}, "title"
        ),
        "gallery": plots.gallery(images[:3], ["a", "b", "c"], "title", columns=2),
        "seeds": plots.seeds(seeds, {"published": 0.4}, "title"),
    }


def test_the_same_numbers_give_the_same_file_byte_for_byte(tmp_path, monkeypatch):
    saved = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setenv("MNIST_AE_OUT", str(folder))
        for name, figure in draw_all().items():
            assert isinstance(figure, Figure), name
            assert figure.get_suptitle() == "title", name
            image = plots.save_figure(figure, name, pd.DataFrame({"x": [1 / 3]}), "MNIST")
            saved.append((folder / "figures" / f"{name}.png").read_bytes())
            assert image.data == saved[-1], "a notebook shows the very file"
            assert saved[-1].startswith(b"\x89PNG")
            assert b"Software" not in saved[-1]
    half = len(saved) // 2
    assert saved[:half] == saved[half:]


def test_the_heat_map_shows_every_count(figures):
    written = [text.get_text() for text in figures["matrices"].axes[0].texts]
    assert written == [str(count) for count in published.MATRIX.ravel()]


def test_the_architecture_shows_every_shape_and_parameter_count(figures):
    written = {text.get_text() for text in figures["architecture"].axes[0].texts}
    assert {"1 × 28 × 28", "4 × 24 × 24", "3200", "10", "4000", "10 × 24 × 24", "1,604,000", "32,010"} <= written


def test_other_data_sets_have_a_folder_of_their_own(figures, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path))
    plots.save_figure(figures["recall"], "x", pd.DataFrame({"n": [0.123456789]}), "digits")
    assert sorted(p.name for p in (tmp_path / "figures" / "digits").iterdir()) == ["x.csv", "x.png"]
    assert (tmp_path / "figures" / "digits" / "x.csv").read_text() == ",n\n0,0.123457\n"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    files.write(path, b"first")
    monkeypatch.setattr(files.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files.write(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
