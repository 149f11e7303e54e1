import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mnist_ae import models, plots

MATRIX = np.random.default_rng(0).integers(0, 900, (10, 10))


@pytest.fixture(scope="module")
def figures():
    return draw_all()


def draw_all():
    """One figure of each kind, from made-up numbers."""
    rng = np.random.default_rng(0)
    history = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.8], "last_batch_loss": [0.9, 0.85]})
    codes = rng.dirichlet(np.ones(10), 100)
    images = rng.random((10, 28, 28))
    images[3] = np.nan
    shares = MATRIX / MATRIX.sum(axis=1, keepdims=True)
    seeds = pd.DataFrame(
        {
            "seed": [0, 1, 0],
            "epochs": [20, 20, 100],
            "many_to_one_same": [0.4, 0.5, 0.45],
            "one_to_one": [0.3, 0.4, 0.35],
        }
    )
    return {
        "architecture": plots.architecture(models.PostAutoencoder(), "title"),
        "losses": plots.losses(history, [0.9, 0.8], {"a level": 0.7}, "title"),
        "image_rows": plots.image_rows({"a": images, "b": images[:, None]}, "title", [str(k) for k in range(10)]),
        "matrices": plots.matrices(
            {"counts": MATRIX, "shares": shares}, "title", {"counts": "abcdefghij", "shares": range(10)}
        ),
        "before_after": plots.before_after({name: (shares, images) for name in ("before", "after")}, "title"),
        "code_map": plots.code_map(codes[:10, :2], range(10), np.nan_to_num(images), "title"),
        "neighbours": plots.neighbours(images, images, codes[:10], np.stack([images[:3]] * 10), "title"),
        "one_hotness": plots.one_hotness(codes, np.ones(100), "title"),
        "sharing": plots.sharing(rng.random(45), rng.random(45), [f"pair {k}" for k in range(45)], "title"),
        "errors": plots.errors(pd.DataFrame({"mean": [0.1, 0.9], "colour": ["C0", "C1"]}, ["a", "b"]), "title"),
        "spread": plots.errors(
            pd.DataFrame(
                {"mean": [0.4, 0.9], "worst": [0.3, 0.8], "best": [0.5, 0.99], "beside": ["1", "2"]}, ["a", "b"]
            ),
            "title",
            {"x": 0.5},
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
    assert written == [str(count) for count in MATRIX.ravel()]


def test_the_architecture_shows_every_shape_and_parameter_count(figures):
    written = {text.get_text() for text in figures["architecture"].axes[0].texts}
    assert {"1 × 28 × 28\n0", "4 × 24 × 24\n104", "3200\n0", "10\n32,010", "4000\n1,604,000"} <= written


def test_other_data_sets_have_a_folder_of_their_own(figures, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path))
    plots.save_figure(figures["errors"], "x", pd.DataFrame({"n": [0.123456789]}), "digits")
    assert sorted(p.name for p in (tmp_path / "figures" / "digits").iterdir()) == ["x.csv", "x.png"]
    assert (tmp_path / "figures" / "digits" / "x.csv").read_text() == ",n\n0,0.123457\n"
