"""The promises around the module: one list of dependencies, notebooks fit to be checked, a Makefile that says no."""

import ast
import json
import os
import re
import shlex
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

from mnist_ae import files
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
        "files",
        "checkpoint",
        "data",
        "augment",
        "models",
        "losses",
        "train",
        "ten_digits",
        "confusion",
        "codes",
        "published",
    ]
    flow += ["experiment", "ladder", "baselines", "plots", "explore"]
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
        == {path.stem for path in kept.glob("*.csv")} - {"seeds", "ladder", "ten_digits", "bench", "sweep", "trials"}
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


# ------------------------------------------------------------------------------------------------- the Makefile


def make(*arguments, **environment):
    """Run make as a user would, with this Python as the active one and a folder of its own for what it writes."""
    command = ["make", *arguments, f"PYTHON={shlex.quote(sys.executable)}"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_make_alone_prints_the_tasks():
    printed = make().stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    for task in set(phony) - {"FORCE"}:
        assert re.search(rf"^  {task} +\S", printed, re.M), task
    assert "EPOCHS=20" in printed


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("EPOCHS=0", "error: epochs must be a whole number from 1 to 10,000, got 0\n"),
        ('DATASET=it\'s "mine"; echo $$HOME', "error: unknown data set 'it\\'s \"mine\"; echo $HOME': choose one of"),
        ("DATASET=mnist", "error: unknown data set 'mnist': choose one of"),
        ("DEVICE=gpu", "error: unknown device 'gpu'"),
        ("SEED=-1", "error: seed must be a whole number"),
    ],
)
def test_a_bad_parameter_stops_make_before_anything_is_written(argument, message):
    result = make("run-notebooks", argument, MNIST_AE_DATA=str(ROOT / "nowhere"))
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path(os.environ["MNIST_AE_OUT"]).exists()


def test_a_variable_that_there_is_not_stops_make():
    result = make("run-notebooks", "EPOCH=5")
    assert result.returncode != 0
    assert "unknown variable EPOCH: choose among DATASET EPOCHS SEED" in result.stderr
    assert make("help", "MNIST_AE_DATA=elsewhere").returncode == 0


@pytest.mark.parametrize(
    "name", ["out put", "it's", 'the "best"', "a$b", "50%", "x:y", "-out", "a=b", "(1)", "~", "b\\c"]
)
def test_a_folder_that_make_cannot_name_is_refused_in_one_sentence(name, tmp_path):
    name = name if name in ("-out", "~") else str(tmp_path / name)
    before = sorted(tmp_path.rglob("*")), sorted(ROOT.iterdir())
    result = make("run-notebooks", "DATASET=digits", MNIST_AE_OUT=name)
    assert result.returncode != 0
    assert re.fullmatch(r"Makefile:\d+: \*\*\* MNIST_AE_OUT is '.*', and make cannot work with .*\n", result.stderr)
    assert f"'{name}'" in result.stderr
    assert (sorted(tmp_path.rglob("*")), sorted(ROOT.iterdir())) == before


def laid_out(folder, *paths):
    for path in (folder / path for path in paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


RUN = "post-MNIST-20-epochs-seed-0"
WRITTEN = ("parameters", "notebooks/01_train.ipynb", f"{RUN}/model.pt", f"{RUN}/.lock", f"sweep/{RUN}/metrics.json")


@pytest.mark.parametrize(
    "name",
    ["out put", "it's", 'the "best"', "#1", "-out", "--help", "a$b", "*", "link", "ünï", "back\\slash", "new\nline"],
)
def test_clean_deletes_what_the_project_wrote_and_nothing_else_whatever_the_folder_is_called(
    name, tmp_path, monkeypatch
):
    """Beside the folder lie those that its name, unquoted, would mean; in it lies what others wrote."""
    out, elsewhere = tmp_path / name, tmp_path / "elsewhere"
    others = (
        "letter.txt",
        f"{RUN}/notes.txt",
        "notebooks/mine.ipynb",
        "tensorboard/model.pt",
        "sweep/model.pt",
        f"{RUN}/my.pt",
        f"{RUN}/a.json",
        "my-epochs-seed-notes/model.pt",
        "notebooks/99_mine.ipynb",
    )
    if name == "link":
        elsewhere.mkdir()
        out.symlink_to(elsewhere)
    laid_out(out / "runs", *WRITTEN, *others)
    laid_out(
        tmp_path, "out/file", "put/runs/file", "a/runs/file", "it/runs/file", "link-target/model.pt", "runs/parameters"
    )
    (out / "runs" / "x-epochs-seed-1").symlink_to(tmp_path / "link-target")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(files, "HOME", tmp_path)
    laid_out(tmp_path, "notebooks/01_train.ipynb")
    if name.startswith("-"):  # relative: it counts from the repository
        monkeypatch.setenv("MNIST_AE_OUT", name)
        files.clean()
    else:
        result = make("clean", MNIST_AE_OUT=str(out))
        assert result.returncode == 0, result.stderr
    gone = before - {path for path in tmp_path.rglob("*") if path.is_file()}
    assert gone == {out.resolve() / "runs" / path for path in WRITTEN}
    assert sorted(path.name for path in (out / "runs").iterdir()) == sorted(
        ["letter.txt", RUN, "my-epochs-seed-notes", "notebooks", "tensorboard", "sweep", "x-epochs-seed-1"]
    )


def test_clean_of_a_link_of_the_root_and_of_nothing(tmp_path):
    laid_out(tmp_path / "elsewhere", *WRITTEN)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").symlink_to(tmp_path / "elsewhere")
    result = make("clean", MNIST_AE_OUT=str(tmp_path / "out"))
    assert f"error: {tmp_path / 'out' / 'runs'} is a link to {tmp_path / 'elsewhere'}: delete by hand" in result.stderr
    assert all((tmp_path / "elsewhere" / path).exists() for path in WRITTEN)
    top = sorted(Path("/").iterdir())
    assert make("clean", MNIST_AE_OUT="/").returncode == 0
    assert make("clean", MNIST_AE_OUT=str(tmp_path / "nothing here")).returncode == 0
    assert sorted(Path("/").iterdir()) == top
    away = subprocess.run(["make", "-f", ROOT / "Makefile", "clean"], cwd=tmp_path, capture_output=True, check=False)
    assert away.returncode != 0, "the Makefile of another folder: whose runs/ would that be?"


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


def test_what_the_readme_says_of_a_frozen_container(tmp_path):
    """The script does it: everything read-only but one folder, no git, one thread."""
    result = subprocess.run(
        ["bash", ROOT / "tests" / "frozen.sh", sys.executable, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    if "skipped:" in result.stdout:
        pytest.skip(result.stdout.split("skipped:")[1].strip())
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "No such kernel" not in result.stderr
    for line in ("02 ran", "a picture drew no false alarm", "tests skip what needs git"):
        assert line in result.stdout


def test_a_second_make_says_that_another_is_at_work():
    parameters = Path(os.environ["MNIST_AE_OUT"], "runs", "parameters")
    command = (str(parameters), "DATASET=digits", "EPOCHS=1")
    assert make(*command).returncode == 0
    first = parameters.read_bytes()
    (parameters.parent / "make.pid").write_text(str(os.getpid()))
    second = make(*command[:2], "EPOCHS=2")
    assert second.returncode != 0
    assert f"error: process {os.getpid()} is at work in {parameters.parent}: wait for it" in second.stderr
    assert parameters.read_bytes() == first
    ended = subprocess.Popen(["true"])
    ended.wait()
    (parameters.parent / "make.pid").write_text(str(ended.pid))
    assert make(*command).returncode == 0, "the other one was killed"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["-p", "epochs", "1e-3"], r"epochs must be a whole number from 1 to 10,000, got 0\.001"),
        (["-y", "seed: true"], "seed must be a whole number from 0 to 4,294,967,295, got True"),
        (["-p", "epoch", "5"], "unknown parameter epoch: choose among dataset, epochs, seed, device, threads"),
        (["-p", "dataset", "2024"], "dataset must be a name, got 2024: papermill's -r dataset NAME keeps it text"),
    ],
)
def test_papermill_is_refused_what_a_notebook_cannot_use(parameters, message, tmp_path):
    """As a user would call it, without make: an exit code, the reason last, the failed notebook, and nothing else."""
    failed = tmp_path / "failed.ipynb"
    command = [sys.executable, "-m", "papermill", "--cwd", "notebooks", "--no-progress-bar", *parameters]
    command += ["notebooks/01_train.ipynb", str(failed)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert re.match(rf"ValueError: .*{message}", result.stderr.strip().splitlines()[-1])
    assert "ValueError" in failed.read_text()
    assert not Path(os.environ["MNIST_AE_OUT"]).exists()


def test_run_notebooks_on_the_bundled_digits_does_only_what_changed():
    """The whole pipeline for real: papermill, figures in their own folder, and make's idea of what is out of date.

    And the same bytes when it runs again: figures, numbers and metrics.
    """
    out = Path(os.environ["MNIST_AE_OUT"])
    arguments = ("run-notebooks", "DATASET=digits", "EPOCHS=1")

    first = make(*arguments)
    assert first.returncode == 0, first.stderr[-2000:]
    figures = {path.stem for path in (out / "figures" / "digits").glob("*.png")}
    assert {"01_loss", "02_confusion", "03_reordered"} <= figures
    assert list((out / "figures").iterdir()) == [out / "figures" / "digits"], "MNIST's figures are left alone"
    executed = sorted((out / "runs" / "notebooks").iterdir())
    assert [path.name for path in executed] == [path.name for path in NOTEBOOKS]
    for path in executed:
        stamp = nbformat.read(path, as_version=4)
        (injected,) = [cell for cell in stamp.cells if "injected-parameters" in tags(cell)]
        assert 'dataset = "digits"' in injected.source
        assert "epochs = 1" in injected.source

    before = [path.stat().st_mtime_ns for path in executed]
    assert make(*arguments).returncode == 0
    assert [path.stat().st_mtime_ns for path in executed] == before, "nothing changed, nothing ran"

    os.utime(executed[1], ns=(1, 1))  # older than its source
    assert make(*arguments).returncode == 0
    after = [path.stat().st_mtime_ns for path in executed]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] > before[1]

    kept = [*(out / "figures" / "digits").iterdir(), *(out / "runs").glob("*/metrics.json")]
    content = {path: path.read_bytes() for path in kept}
    assert len(content) > 30
    for path in (*kept, *(out / "runs").glob("post-*/model.pt")):  # the long run of 05 has a test of its own
        if "ten-digits" not in str(path):
            path.unlink()
    for path in executed:
        path.unlink()
    assert make(*arguments).returncode == 0
    for path, bytes_before in content.items():
        assert path.read_bytes() == bytes_before, path


def test_notebook_02_before_01_says_what_to_run():
    import papermill

    out = Path(os.environ["MNIST_AE_OUT"])
    with pytest.raises(papermill.PapermillExecutionError, match=r"run notebook 01_train .* or `make run-notebooks`"):
        papermill.execute_notebook(
            ROOT / "notebooks" / "02_inspect_codes.ipynb",
            None,
            parameters={"dataset": "digits", "epochs": 3},
            cwd=ROOT / "notebooks",
            progress_bar=False,
        )
    assert not (out / "figures").exists()


def test_a_failed_notebook_is_kept_and_named(tmp_path):
    """A repository whose 01 fails in its last cell."""
    out = Path(os.environ["MNIST_AE_OUT"])
    copy = tmp_path / "repository"
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "mnist_ae", "notebooks"):
        (copy / name).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    elsewhere = {"display_name": "my env", "name": "my-env"}  # as VS Code leaves it
    broken = nbformat.v4.new_notebook(metadata={"kernelspec": elsewhere})
    broken.cells = [
        nbformat.v4.new_code_cell("epochs = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("1 / 0"),
    ]
    nbformat.write(broken, copy / "notebooks" / "01_train.ipynb")
    command = ["make", "run-notebooks", "DATASET=digits", f"PYTHON={sys.executable}"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "error: notebooks/01_train.ipynb failed: read" in result.stderr
    kept = sorted(path.name for path in (out / "runs" / "notebooks").iterdir())
    assert kept == ["01_train.failed.ipynb"]
    assert "ZeroDivisionError" in (out / "runs" / "notebooks" / kept[0]).read_text()


def test_the_repository_is_where_files_are_looked_for():
    assert files.HOME == ROOT


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
    from mnist_ae import data, train

    few = data.Digits("digits", *(tensor[:200] for tensor in vars(digits).values() if isinstance(tensor, torch.Tensor)))
    monkeypatch.setattr(data, "load", lambda: few)
    monkeypatch.setattr(train, "LEAST_BATCHES", 20)
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
    recipe = bench.index.isin(["recipe", "parts of a step"], level="section")  # README: of another machine, may be
    assert bench.loc[~recipe, "machine"].nunique() == bench.loc[recipe, "machine"].nunique() == 1
    assert bench["ratio"].gt(0).all()
