import numpy as np
import pandas as pd
import pytest

from mnist_ae import models, plots, recipes

MATRIX = np.random.default_rng(0).integers(0, 900, (10, 10))


def draw_all():
    """A figure of each kind, from made-up numbers."""
    rng = np.random.default_rng(0)
    codes, images, pairs = rng.dirichlet(np.ones(10), 100), rng.random((10, 28, 28)), rng.random((2, 45))
    dead, shares = np.where(np.arange(3)[:, None, None] == 1, np.nan, images[:3]), MATRIX / MATRIX.sum(axis=1)
    history = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.8], "last_batch_loss": [0.9, 0.85]})
    spread = {"mean": [0.4, 0.9], "worst": [0.3, 0.8], "best": [0.5, 0.99], "beside": ["1", "2"]}
    accuracies = {"many_to_one_same": [0.4, 0.5, 0.45], "one_to_one": [0.3, 0.4, 0.35]}
    seeds = pd.DataFrame({"seed": [0, 1, 0], "epochs": [20, 20, 100]} | accuracies)
    panels, letters = {"counts": MATRIX, "shares": shares}, {"counts": "abcdefghij"}
    mean = pd.DataFrame({"mean": [0.1, 0.9], "colour": ["C0", "C1"]}, ["a", "b"])
    return {
        "architecture": plots.architecture(models.PostAutoencoder(), "title"),
        "pipeline": plots.pipeline(recipes.TEN_DIGITS, "title"),
        "losses": plots.losses(history, [0.9, 0.8], {"a level": 0.7}, "title"),
        "image_rows": plots.image_rows({"a": dead, "b": images[:3, None]}, "title", ["0", "1", "2"]),
        "matrices": plots.matrices(panels, "title", letters),
        "before_after": plots.before_after({name: (shares, images[:2]) for name in ("before", "after")}, "title"),
        "code_map": plots.code_map(codes[:10, :2], range(10), images, "title"),
        "neighbours": plots.neighbours(
            images[:2], images[:2], codes[:2], [images[:3], images[3:6]], np.eye(2, 3) > 0, "title"
        ),
        "one_hotness": plots.one_hotness({"a": codes, "b": codes**0.5}, "title"),
        "sharing": plots.sharing(*pairs, [f"pair {k}" for k in range(45)], "title"),
        "errors": plots.errors(mean, "title"),
        "spread": plots.errors(pd.DataFrame(spread, ["a", "b"]), "title", {"x": 0.5}),
        "reconstructions": plots.reconstructions(
            pd.DataFrame({"recipe": ["a", "b"], "error": [0.1, 0.2], "x": [0.4, 0.5], "y": [0.4, 0.6]}),
            {"x": "measure x", "y": "measure y"},
            pd.Series({"a level": 0.15}),
            "title",
        ),
        "gallery": plots.gallery(images[:3], ["a", "b", "c"], "title", columns=2),
        "seeds": plots.seeds(seeds, {"published": 0.4}, "title"),
    }


@pytest.fixture(scope="module")
def figures():
    return draw_all()


def test_the_same_numbers_give_the_same_file_byte_for_byte(figures, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_AE_OUT", str(tmp_path))
    again, numbers = draw_all(), pd.DataFrame({"n": [0.123456789]})
    for name, figure in figures.items():
        assert figure.get_suptitle() == "title", name
        shown = [plots.save_figure(drawn, name, numbers, "digits").data for drawn in (figure, again[name])]
        saved = (tmp_path / "figures" / "digits" / f"{name}.png").read_bytes()
        assert saved == shown[0] == shown[1], f"{name}: a notebook shows the very file"
        assert saved.startswith(b"\x89PNG")
        assert b"Software" not in saved
        assert (tmp_path / "figures" / "digits" / f"{name}.csv").read_text() == ",n\n0,0.123457\n"
    plots.save_figure(figure, "x", numbers, "MNIST")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"digits", "x.png", "x.csv"}


def test_matrices_and_architecture_show_every_number(figures):
    counts, layers = (
        [text.get_text() for text in figures[name].axes[0].texts] for name in ("matrices", "architecture")
    )
    assert counts == [str(count or "") for count in MATRIX.ravel()]
    shares = np.resize([0.997, 1, 0.5, 0.01, 0.0004, 0.9999], (10, 10)) * (np.arange(10) != 9)
    texts = [text.get_text() for text in plots.matrices({"shares": shares}, "title").axes[0].texts]
    assert texts[:6] == ["99.7", "100", "50.0", "1.0", "<0.1", ">99.9"], "only what is all of a digit is 100"
    assert texts[9] == "", "nothing is not written"
    assert texts[100:] == ["dead"], "the last neuron never fires"
    assert {"1 × 28 × 28\n0", "4 × 24 × 24\n104", "3200\n0", "10\n32,010", "4000\n1,604,000"} <= set(layers)


def test_neighbours_of_another_digit_are_framed(figures):
    pictures = np.reshape(figures["neighbours"].axes, (2, 6))[:, 3:]
    framed = [[ax.spines["left"].get_visible() for ax in row] for row in pictures]
    assert framed == [[True, False, False], [False, True, False]]


def test_an_accuracy_of_all_has_a_place_on_the_logarithmic_axis():
    figure = plots.errors(pd.DataFrame({"mean": [1.0, 0.9], "best": [np.nan, 0.95], "worst": np.nan}, ["a", "b"]), "x")
    left, right = figure.axes[0].get_xlim()
    assert left > 0.1 > 1e-4 > right > 0
