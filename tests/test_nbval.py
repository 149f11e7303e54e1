"""`make test-notebooks` finds what was trained, trains what changed, and fails a claim that does not hold any more."""

import subprocess
import sys

import nbformat
import pytest
import torch

from mnist_ae import data, experiment, recipes, storage

RUN = """from mnist_ae import data, experiment, recipes
digits, recipe = data.load("digits"), recipes.Post("brief", epochs={epochs})
folder = experiment.run_folder(recipe, 0, digits)
print("reused:", experiment.run(recipe, 0, digits, folder, device="cpu", progress=False).reused)"""


@pytest.mark.parametrize(
    ("epochs", "stored", "passes"),
    [(1, "reused: True\n", True), (2, "reused: False\n", True), (2, "reused: True\n", False)],
    ids=["a finished run is reused", "a changed recipe is trained anew", "a stale claim fails"],
)
def test_stored_notebooks_are_compared_with_a_run_of_this_code(epochs, stored, passes, mnist, tmp_path):
    recipe, digits = recipes.Post("brief", epochs=1), data.load("digits")
    folder = experiment.run_folder(recipe, 0, digits)
    experiment.run(recipe, 0, digits, folder, device="cpu", progress=False)
    before = sorted(storage.runs_folder().rglob("*"))

    printed = nbformat.v4.new_output("stream", text=stored)
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    cell = nbformat.v4.new_code_cell(threads + RUN.format(epochs=epochs), outputs=[printed], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "claims.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "tests.nbval_plugin", "--nbval", "--nbval-current-env"]
    done = subprocess.run([*command, tmp_path / "claims.ipynb"], cwd=storage.HOME, capture_output=True, text=True)
    assert (done.returncode == 0) == passes, done.stdout
    assert sorted(storage.runs_folder().rglob("*")) == before, "it has a folder of its own"
