"""`make test-notebooks` finds what was trained, trains what changed, and fails a claim that does not hold any more."""

import re
import subprocess
import sys

import nbformat
import torch
from nbval_plugin import SideBySide

from mnist_ae import data, experiment, recipes, storage


def test_what_01_and_05_train_is_ready_for_those_that_take_it():
    names = [f"{number}_x.ipynb" for number in ("00", "01", "02", "03", "04", "05", "06")]
    groups = [SideBySide._split_scope(None, f"notebooks/{name}::Cell 1") for name in names]
    assert [group == groups[1] for group in groups] == [False, True, True, True, False, True, True]


RUN = """from mnist_ae import data, experiment, recipes
digits, recipe = data.load("digits"), recipes.Post("brief", epochs={epochs})
folder = experiment.run_folder(recipe, 0, digits)
print("reused:", experiment.run(recipe, 0, digits, folder, device="cpu", progress=False).reused)"""


def test_stored_notebooks_are_compared_with_a_run_of_this_code(mnist, tmp_path):
    """A finished run is reused, a changed recipe is trained anew, and a claim that is stale fails."""
    recipe, digits = recipes.Post("brief", epochs=1), data.load("digits")
    folder = experiment.run_folder(recipe, 0, digits)
    experiment.run(recipe, 0, digits, folder, device="cpu", progress=False)
    before = sorted(storage.runs_folder().rglob("*"))

    claims = [(1, "reused: True\n"), (2, "reused: False\n"), (3, "reused: True\n")]
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    cells = [
        nbformat.v4.new_code_cell(
            threads + RUN.format(epochs=epochs),
            outputs=[nbformat.v4.new_output("stream", text=stored)],
            execution_count=number,
        )
        for number, (epochs, stored) in enumerate(claims, 1)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "claims.ipynb")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "tests.nbval_plugin", "--nbval", "--nbval-current-env"]
    done = subprocess.run([*command, tmp_path / "claims.ipynb"], cwd=storage.HOME, capture_output=True, text=True)
    outcomes = re.findall(r"::Cell (\d) (PASSED|FAILED)", done.stdout)
    assert outcomes == [("0", "PASSED"), ("1", "PASSED"), ("2", "FAILED")], done.stdout
    assert done.returncode == 1
    assert sorted(storage.runs_folder().rglob("*")) == before, "it has a folder of its own"
