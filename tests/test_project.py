"""The promises around the module: one list of dependencies, notebooks fit to be checked, a Makefile that says no."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml

from tests import tidy

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = {"dataset", "epochs", "seed", "device", "threads"}


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def waits_for_a_person(cell):
    """Neither papermill nor nbconvert runs such a cell, nor does nbval."""
    return tags(cell) == {"skip-execution", "nbval-skip"}


def test_one_list_of_dependencies_and_each_is_pinned():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert {re.split(r"[=<>]", entry)[0] for entry in conda} == {"python", "pip", "make"}, "the rest is pyproject's"
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--extra-index-url https://download.pytorch.org/whl/cpu", "-e .[dev]", "-c constraints.txt"]

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[=<>~! ]", entry)[0].lower() for entry in wanted}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert names <= {name.lower() for name in pins}
    assert (pins["torch"], pins["torchvision"]) == ("2.15.0", "0.29.2"), "they must match"


def test_every_import_is_a_listed_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["cluster"]
    names = {re.split(r"[=<>~! ]", entry)[0].lower().replace("-", "_") for entry in listed}
    names |= {"sklearn", "umap", "pil", "mnist_ae"} | set(sys.stdlib_module_names)
    for path in (ROOT / "mnist_ae").glob("*.py"):
        statements = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in statements}
        unlisted = {module for module in modules if module.split(".")[0].lower() not in names}
        assert not unlisted, f"{path.name} imports {unlisted}"


def test_no_import_runs_against_the_flow_of_data():
    flow = [
        "supervise",
        "storage",
        "checks",
        "data",
        "augment",
        "models",
        "losses",
        "pseudo_labels",
        "train",
        "recipes",
    ]
    flow += ["recipes", "confusion", "codes", "experiment", "sweep", "ladder", "baselines", "plots", "explore"]
    assert sorted(path.stem for path in (ROOT / "mnist_ae").glob("[a-z]*.py")) == sorted(flow)
    for position, module in enumerate(flow):
        source = (ROOT / "mnist_ae" / f"{module}.py").read_text()
        ours = re.findall(r"^from mnist_ae import (.+)$", source, re.M) + re.findall(
            r"^from mnist_ae\.(\w+)", source, re.M
        )
        for other in (name.strip() for names in ours for name in names.split(",")):
            assert flow.index(other) < position, f"{module} imports {other}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebooks_were_executed_and_make_checked_claims(path):
    cells = [cell for cell in code_cells(path) if not waits_for_a_person(cell)]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make refresh`"
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)

    (parameters,) = [cell for cell in cells if "parameters" in tags(cell)]
    literals = {}
    exec(parameters.source, {}, literals)
    assert set(literals) == PARAMETERS, "one set for all, so that the Makefile can pass it to each"
    assert all(type(value) in (int, str) for value in literals.values()), "plain literals"

    last = cells[-1]
    assert "nbval-ignore-output" not in tags(last), "the claims at the end are compared"
    claims = "".join(output.get("text", "") for output in last.outputs).splitlines()
    assert len(claims) >= 4
    assert claims == [line for line in claims if ": " in line], "each says what it claims"

    text = re.sub(r'"image/png": ".*"', "", path.read_text())
    assert not re.search(r"/(?:home|root|Users|tmp|work|private|var)/", text), "an absolute path in a stored output"
    assert "raises-exception" not in text, "passes nbval and fails papermill: catch the error in the cell"
    assert not re.search(r"^\s*(?:def|class) ", "\n".join(cell.source for cell in cells), re.M), "belongs in mnist_ae"
    assert set(json.loads(path.read_text())["metadata"]) == {"kernelspec"}, "run `make refresh`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_refresh_leaves_nothing_that_differs_from_one_to_the_next(path):
    """But the numbers of those cells whose output is not compared."""
    notebook = json.loads(path.read_text())
    assert [cell["id"] for cell in notebook["cells"]] == [
        f"{path.stem[:2]}-{number:02d}" for number in range(len(notebook["cells"]))
    ], "no random ids"
    assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])
    text = re.sub(r'"image/png": ".*"', "", path.read_text())
    for trace in ("images/s", "it/s", "widget-view", "widget-state", "\\r", "papermill", "0x7f"):
        assert trace not in text, trace
    for cell in code_cells(path):
        if waits_for_a_person(cell):
            assert (cell.outputs, cell.execution_count) == ([], None), "run `make clean-notebooks`"
            assert "explore." in cell.source or "google.colab" in cell.source


def test_the_cell_for_colab_is_the_same_everywhere_and_does_nothing_here():
    (first,) = {code_cells(path)[0].source for path in NOTEBOOKS}
    assert all(waits_for_a_person(code_cells(path)[0]) for path in NOTEBOOKS)
    from IPython.core.inputtransformer2 import TransformerManager

    exec(TransformerManager().transform_cell(first), {})  # get_ipython() would be an error


def test_the_configurations_of_other_tools_name_what_there_is():
    makefile = (ROOT / "Makefile").read_text()
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make .venv/installed"
    assert "\n.venv/installed: " in makefile
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in local["hooks"]:
        assert re.search(rf"^{hook['entry'].removeprefix('make ')}: ", makefile, re.M), hook


def test_every_figure_that_a_notebook_saves_is_kept_with_its_numbers():
    saved = {
        name
        for path in NOTEBOOKS
        for cell in code_cells(path)
        for name in re.findall(r'save_figure\(\s*\w+, "(\w+)"', cell.source)
    }
    kept = ROOT / "figures"
    assert saved
    assert (
        saved
        == {path.stem for path in kept.glob("*.png")} - {"bench"}
        == {path.stem for path in kept.glob("[0-9]*.csv")}
    )


def test_nothing_the_project_keeps_names_a_machine_or_holds_data():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no clone, or no git: what is kept is not known")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    kept = [ROOT / name for name in listed if name and (ROOT / name).exists()]
    assert len(kept) > 20
    for path in kept:
        assert path.stat().st_size < 2_000_000, path
        assert "ubyte" not in path.name, path


def test_what_an_editor_leaves_in_a_notebook_goes(tmp_path):
    stored = NOTEBOOKS[0].read_text()
    edited = nbformat.reads(stored, as_version=4)
    edited.metadata = {"kernelspec": {"name": "my-env", "display_name": "my env"}, "language_info": {"name": "python"}}
    for cell in edited.cells:
        cell.id, cell.metadata = f"b{cell.id}", cell.metadata | {"vscode": {"languageId": "python"}, "collapsed": True}
        if waits_for_a_person(cell):
            cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="a widget")], 3
        for output in [o for o in cell.get("outputs", []) if o.output_type == "stream"][:1]:
            first, rest = output.text[:9], output.text[9:]
            cell.outputs = [nbformat.v4.new_output("stream", text=text) for text in (first, rest)]
    nbformat.write(edited, tmp_path / NOTEBOOKS[0].name)
    tidy.tidy(tmp_path / NOTEBOOKS[0].name)
    assert (tmp_path / NOTEBOOKS[0].name).read_text() == stored


def test_the_commands_of_the_readme_are_tasks_of_the_makefile():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^make .*$", "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.S)), re.M)
    assert commands[:2] == ["make run-notebooks", "make test"], "the two commands"
    tasks = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    for command in commands:
        task, *variables = command.split("#")[0].split()[1:]
        assert task in tasks, command
        for variable in variables:
            assert re.search(rf"^{variable.split('=')[0]} *\??=", (ROOT / "Makefile").read_text(), re.M), command


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_python_examples_of_the_readme_run(number, monkeypatch, digits, capsys):
    from mnist_ae import data, recipes

    few = data.Digits("digits", *(tensor[:200] for tensor in vars(digits).values() if isinstance(tensor, torch.Tensor)))
    monkeypatch.setattr(data, "load", lambda: few)
    monkeypatch.setattr(recipes, "LEAST_BATCHES", 20)
    path = Path(os.environ["MNIST_AE_OUT"], "example.py")
    path.parent.mkdir()
    path.write_text(EXAMPLES[number])
    exec(compile(EXAMPLES[number], path, "exec"), {"__name__": "__main__"})
    assert 0.1 <= float(re.search(r"\d\.\d+", capsys.readouterr().out)[0]) <= 1


def test_what_the_readme_links_to_exists():
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_accuracies_of_the_readme_are_those_of_the_committed_tables():
    readme = (ROOT / "README.md").read_text()
    ours = 100 * pd.read_csv(ROOT / "figures" / "ten_digits.csv")["one_to_one"]
    spread = [f"{value:.2f} %" for value in (ours.mean(), ours.min(), ours.max())]
    assert f"| {' | '.join(['**ten neurons, no label, one-to-one, strict**', *spread, str(len(ours))])} |" in readme
    assert all(value in readme.split("\n\n")[1] for value in spread), "the headline, with its spread"

    table = pd.read_csv(ROOT / "figures" / "seeds.csv").set_index("epochs")
    for row, column, epochs in [
        ("the post's network, 20 epochs, one-to-one, strict", "one_to_one", 20),
        ("the same, many-to-one, the post's way", "many_to_one_same", 20),
        ("the same, 100 epochs, many-to-one, the post's way", "many_to_one_same", 100),
    ]:
        values = 100 * table.loc[[epochs], column]
        spread = [f"{values.min():.1f} %", f"{values.max():.1f} %"] if len(values) > 1 else ["", ""]
        cells = [row, f"{values.mean():.1f} %", *spread, str(len(values))]
        assert f"| {' | '.join(cells)} |".replace("|  |  |", "| | |") in readme, cells


def test_the_ratios_of_the_readme_are_those_of_the_benchmark():
    readme = (ROOT / "README.md").read_text()
    bench = pd.read_csv(ROOT / "figures" / "bench.csv").set_index(["section", "what"])
    quoted = re.findall(r"^\| .+ \| (\d+\.\d\d) \| `([^:]+): (.+)` \|$", readme, re.M)
    assert len(quoted) >= 6
    for ratio, section, what in quoted:
        assert ratio == f"{bench.loc[(section, what), 'ratio']:.2f}", what
    assert bench["machine"].nunique() == 1
    assert bench["ratio"].gt(0).all()
