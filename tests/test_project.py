"""The promises around the module: pinned dependencies, stored notebooks fit to be checked, a README that is true."""

import json
import re
import subprocess
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from mnist_ae import ablations, augment, losses, models, recipes
from mnist_ae.train import Batch
from tests import tidy

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = ROOT / "figures"
README = (ROOT / "README.md").read_text()
OBJECTIVE, *EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def waits_for_a_person(cell):
    """Neither papermill nor nbconvert runs such a cell, nor does nbval."""
    return {"skip-execution", "nbval-skip"} <= set(cell.metadata.get("tags", []))


@each_notebook
def test_stored_notebooks_were_executed_and_make_checked_claims(path):
    cells = [cell for cell in code_cells(path) if not waits_for_a_person(cell)]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make refresh`"
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    (parameters,) = [cell.source for cell in cells if cell.metadata.get("tags") == ["parameters"]]
    names_and_literals = re.findall(r"^(\w+) = (?:\d+|\"\w*\")(?:  #.*)?$", parameters, re.M)
    assert names_and_literals == ["dataset", "epochs", "seed", "device", "threads"], "one set, for make to pass to each"
    assert "nbval-ignore-output" not in cells[-1].metadata.get("tags", []), "the claims at the end are compared"
    claims = "".join(output.get("text", "") for output in cells[-1].outputs).splitlines()
    assert len(claims) >= 4
    assert claims == [line for line in claims if ": " in line], "each says what it claims"

    text = re.sub(r'"image/png": ".*"', "", path.read_text())
    for change in ("images/s", "it/s", "widget-view", "widget-state", "\\r", "papermill", "0x7f"):
        assert change not in text, f"another after each refresh: {change}"
    assert not re.search(r"/(?:home|root|Users|tmp|work|private|var)/", text), "an absolute path in a stored output"


@each_notebook
def test_what_an_editor_leaves_in_a_notebook_goes(path, tmp_path):
    edited = nbformat.read(path, as_version=4)
    edited.metadata = {"kernelspec": {"name": "my-env", "display_name": "my env"}, "language_info": {"name": "python"}}
    for cell in edited.cells:
        cell.id, cell.metadata = f"b{cell.id}", cell.metadata | {"vscode": {"languageId": "python"}, "collapsed": True}
        if waits_for_a_person(cell):
            cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="a widget")], 3
        elif [output.output_type for output in cell.get("outputs", [])] == ["stream"]:
            pieces = cell.outputs[0].text[:9], cell.outputs[0].text[9:]
            cell.outputs = [nbformat.v4.new_output("stream", text=text) for text in pieces]
    nbformat.write(edited, tmp_path / path.name)
    tidy.tidy(tmp_path / path.name)
    assert (tmp_path / path.name).read_text() == path.read_text(), "or it was not tidy: make clean-notebooks"


def test_each_dependency_is_pinned_for_pip_and_for_conda():
    listed = re.findall(r'^    "([\w-]+)', (ROOT / "pyproject.toml").read_text(), re.M)
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text().lower(), re.M)
    assert {"torch", "ruff"} <= set(listed) <= set(pinned)
    assert {"torch==2.15.0", "torchvision==0.29.2"} <= set((ROOT / "constraints.txt").read_text().split()), "they match"
    assert "- -e .[dev]\n    - -c constraints.txt" in (ROOT / "environment.yml").read_text().replace(
        "      - ", "    - "
    )


def test_no_import_runs_against_the_flow_of_data():
    """Each module imports those before it only; README names them in this order, two in a row where they are a pair."""
    flow = "storage checks data augment models losses pseudo_labels train recipes ablations confusion codes pretrained "
    flow = [*flow.split(), "experiment", "sweep", "baselines", "plots", "explore", "page", "__main__"]
    assert {path.stem for path in (ROOT / "mnist_ae").glob("*.py")} == {*flow, "__init__", "supervise"}
    for place, module in enumerate(flow):
        source = (ROOT / "mnist_ae" / f"{module}.py").read_text()
        lists = re.findall(r"^\s*from mnist_ae import (.+)$", source, re.M)
        imported = {*", ".join(lists).split(", "), *re.findall(r"^\s*from mnist_ae\.(\w+)", source, re.M)} - {""}
        assert imported <= set(flow[:place]), module


def test_what_is_committed_is_small_and_no_data():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no clone: what is committed is not known")
    for path in (ROOT / name for name in listed.stdout.splitlines()):
        assert "ubyte" not in path.name
        assert not path.exists() or path.stat().st_size < 2_000_000, path


def test_figures_and_links_are_there_and_the_cell_for_colab_does_nothing_here():
    sources = "".join(cell.source for path in NOTEBOOKS for cell in code_cells(path))
    saved = set(re.findall(r'save_figure\(\s*\w+, "(\w+)"', sources))
    assert saved == {path.stem for path in FIGURES.glob("*.png")} - {"bench"}
    assert saved == {path.stem for path in FIGURES.glob("[0-9]*.csv")}, "with its numbers"
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    (first,) = {code_cells(path)[0].source for path in NOTEBOOKS if waits_for_a_person(code_cells(path)[0])}
    exec(TransformerManager().transform_cell(first), {})  # get_ipython() would be an error


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_python_examples_of_the_readme_run(number, monkeypatch, digits, capsys, tmp_path):
    from mnist_ae import data, recipes

    few = data.Digits("digits", *(tensor[:130] for tensor in vars(digits).values() if isinstance(tensor, torch.Tensor)))
    monkeypatch.setattr(data, "load", lambda: few)
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 1)
    (tmp_path / "example.py").write_text(EXAMPLES[number])  # dataclasses look for their source
    exec(compile(EXAMPLES[number], tmp_path / "example.py", "exec"), {"__name__": "__main__"})
    assert 0 <= float(re.search(r"\d\.\d+", capsys.readouterr().out)[0]) <= 1


def test_the_objective_of_the_readme_is_that_of_the_recipe():
    assert OBJECTIVE.count("\n") <= 10
    exec(OBJECTIVE, scope := {"augment": augment, "losses": losses, "models": models, "torch": torch})
    model, values = models.initialise(lambda: models.TenNeurons(heads=3), 0), []
    images = torch.randint(256, (8, 3, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for loss in (
        lambda generator: recipes.Network().loss(None, model, Batch(images, torch.arange(8), 2, generator)),
        lambda generator: scope["objective"](model, images[:, 1:].float() / 255, generator),
    ):
        model.zero_grad()
        value = loss(torch.Generator().manual_seed(1))
        value.backward()
        values.append((value, model.encoder[0].weight.grad.clone()))
    torch.testing.assert_close(*values)


def best_mean(column):
    """Of the recipes that learn from their reconstruction alone, the one with the best mean."""
    table = pd.read_csv(FIGURES / "ablations.csv").set_index(["recipe", "epochs"])[column]
    return max((table[recipe.name, recipe.epochs] for recipe in ablations.RECONSTRUCTION), key=pd.Series.mean)


def baseline(method):
    table = pd.read_csv(FIGURES / "baselines.csv")
    return table.loc[table["method"] == method, "one_to_one"]


ROWS = {
    "**this recipe**": lambda: pd.read_csv(FIGURES / "ten_digits.csv")["one_to_one"],
    "the post's network, 20 epochs": lambda: pd.read_csv(FIGURES / "seeds.csv").query("epochs == 20")["one_to_one"],
    "reconstruction alone, most active neuron": lambda: best_mean("one_to_one"),
    "reconstruction alone, Gaussian mixture on its codes": lambda: best_mean("mixture"),
    **{method: partial(baseline, method) for method in pd.read_csv(FIGURES / "baselines.csv")["method"].unique()},
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_readme_is_that_of_its_table(row):
    values = ROWS[row]()
    places = 2 if values.mean() > 0.99 else 1
    spread = " | ".join(f"{100 * value:.{places}f} %" for value in (values.mean(), values.min(), values.max()))
    assert f"| {row} | {spread} | {len(values)} |" in README


def test_the_readme_has_no_other_rows():
    assert set(re.findall(r"^\| (.+?) \| \d.* %", README, re.M)) == set(ROWS)


def test_the_other_numbers_of_the_readme_are_those_of_the_committed_tables():
    ours, headline = ROWS["**this recipe**"](), README.split("\n\n")[1]
    mean, spread, worst, best = (f"{100 * value:.2f}" for value in (ours.mean(), ours.std(), ours.min(), ours.max()))
    for shown in (f"{mean} ± {spread} %", f"worst {worst} %", f"best {best} %"):
        assert shown in " ".join(headline.split()), "with its spread"
    assert f"{pd.read_csv(FIGURES / '01_loss.csv')['loss'].iloc[-1]:.3f}" in README
    published = pd.read_csv(FIGURES / "published_accuracies.csv", index_col="method")["accuracy"]
    for name in ("IMSAT", "N2D", "IIC, sub-head of the lowest loss", "SPC"):
        assert f"{name.split(',')[0]} {100 * published[name]:.1f} %" in " ".join(README.split()), name
    assert f"{100 * published['IIC, mean over sub-heads']:.1f} % as the mean over sub-heads" in README
    bench = pd.read_csv(FIGURES / "bench.csv").set_index(["section", "what"])
    assert f"{bench['ratio']['loop', 'Trainer.fit']:.2f} times as fast" in README
    took = json.loads((FIGURES / "ten_digits.json").read_text())["seconds"]
    assert f"label-free recipe took {took:.0f} s" in README
    post = pd.read_csv(FIGURES / "seeds.csv").query("epochs == 20")
    others = post.loc[post["loss"] < 0.95, "one_to_one"]
    assert (len(post), len(others)) == (5, 4)
    assert f"one of five seeds collapsed, the others have {100 * others.mean():.1f} %" in README


def test_references_and_citation_are_whole():
    references, citation = (ROOT / "REFERENCES.md").read_text(), yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for method in pd.read_csv(FIGURES / "published_accuracies.csv")["method"]:
        assert f"**{method.split(',')[0]}**".lower() in references.lower(), method
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", references, re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {"cff-version", "message", "title", "abstract", "license", "authors", "references"} <= citation.keys()
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "MIT")
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text()
    assert citation["references"][0]["url"] in README
    assert citation["references"][0]["url"] in references
    assert f"{100 * ROWS['**this recipe**']().mean():.2f} %" in citation["abstract"]
