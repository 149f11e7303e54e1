"""The Makefile as a person uses it; mostly the real one on stand-ins, which only note how they were called."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALL = [path.stem[:2] for path in NOTEBOOKS]

STAND_IN = """
import json, os, pathlib, subprocess, sys, time
name, arguments = pathlib.Path(sys.argv[0]).stem, sys.argv[1:]
with open("calls", "a") as calls:
    calls.write(json.dumps([name, *arguments]) + "\\n")
if name == "__main__" and arguments[0] == "check":
    print("-r dataset digits", *arguments[1:])
    print(pathlib.Path("data").read_text())
elif "LASTS" in os.environ and arguments[0] != "estimate":  # as a kernel does: in a session of its own, and deaf
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); open('at work', 'a').write('.'); "
    subprocess.Popen([sys.executable, "-c", deaf + "time.sleep(60)"], start_new_session=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(0.3)  # to tidy up, as each task does
elif name == "papermill":
    pathlib.Path(arguments[-1]).write_text(" ".join(arguments))
sys.exit("error: it fails" if os.environ.get("FAILS") in arguments else 0)
"""


def make(*arguments, cwd=ROOT, start=subprocess.run, **environment):
    """Run make as a user would, with this Python as the active one."""
    command = ["make", *arguments, f"PYTHON={shlex.quote(sys.executable)}"]
    environment = os.environ | {"PYTHONPATH": str(cwd)} | environment
    return start(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def laid_out(folder, *paths, content=""):
    for path in (folder / path for path in paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + path.read_text() if path.exists() else content)


@pytest.fixture
def out():
    return Path(os.environ["MNIST_AE_OUT"])


@pytest.fixture
def stand_in(tmp_path):
    """A repository whose tasks do nothing, at once: `calls` has how each was called."""
    folder, tasks = tmp_path / "repository", ("mnist_ae/__main__.py", "papermill.py", "pytest.py", "jupyter.py")
    laid_out(folder, *tasks, content=STAND_IN)
    laid_out(folder, "data", "figures/try.html", *(f"figures/{path.name}" for path in (ROOT / "figures").glob("*.png")))
    for name in ("Makefile", "pyproject.toml", "mnist_ae/__init__.py", "mnist_ae/storage.py", "mnist_ae/supervise.py"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    return folder


def executed(folder, *arguments):
    """The data set that make tells beforehand how long it will take, if it does, and the notebooks that it runs."""
    (folder / "calls").unlink(missing_ok=True)
    result = make("run-notebooks", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    calls = (folder / "calls").read_text()
    told = re.findall(r'^\["__main__", "estimate", .* "--dataset=(\w+)"\]$', calls, re.M)
    return told + re.findall(r'^\["papermill", .* "notebooks/(\d\d)_\w+\.ipynb", ', calls, re.M)


def test_make_alone_prints_its_tasks_and_each_command_of_the_readme_is_one():
    printed, makefile = make().stdout, (ROOT / "Makefile").read_text()
    tasks = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()) - {"FORCE"}
    assert tasks == set(re.findall(r"^  ([a-z-]+) +\S", printed, re.M))
    assert "EPOCHS=20" in printed
    shell = "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    commands = re.findall(r"^make [^#\n]*", shell, re.M)
    assert commands[:2] == ["make run-notebooks", "make test"], "the two commands"
    for command in [*commands, "make .venv/installed", "make lint"]:  # and of other tools
        tried = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert tried.returncode == 0, (command, tried.stderr)


def test_what_a_person_writes_reaches_a_task_as_it_is_or_is_refused_before_anything_is_written(stand_in, out):
    name, usual = 'it\'s "mine"; touch $HOME', ["--epochs=20", "--seed=0", "--device=auto", "--threads=2"]
    refused = make("run-notebooks", f"DATASET={name.replace('$', '$$')}", cwd=stand_in, FAILS="check")
    assert refused.returncode != 0
    assert refused.stderr.startswith("error: it fails\n")
    assert json.loads((stand_in / "calls").read_text()) == ["__main__", "check", f"--dataset={name}", *usual]
    assert (
        "unknown variable EPOCH: choose among DATASET EPOCHS" in make("run-notebooks", "EPOCH=5", cwd=stand_in).stderr
    )
    assert "cannot work with a space in it" in make("run-notebooks", cwd=stand_in, MNIST_AE_OUT="out put").stderr
    assert not out.exists()


RUN = "post-MNIST-20-epochs-seed-0"
WRITTEN = ("parameters", "notebooks/01_train.ipynb", f"{RUN}/model.pt", f"{RUN}/.lock", f"sweep/{RUN}/metrics.json")
OTHERS = (f"{RUN}/my.pt", "notebooks/99_mine.ipynb", "board/model.pt", "sweep/model.pt", "my-epochs-seed-b/model.pt")


@pytest.mark.parametrize("name", ["out put", "it's", "#1", "-out", "--help", "a$b", "*", "link", "back\\slash", "a\nb"])
def test_clean_deletes_what_the_project_wrote_and_nothing_else_whatever_the_folder_is_called(name, stand_in):
    """Beside the folder lie those that its name, unquoted, would mean; in it lies what others wrote."""
    runs = stand_in / name / "runs"
    laid_out(stand_in, "out/a", "put/runs/a", "a/runs/a", "it/runs/a", "target/model.pt", "target/parameters")
    if name == "link":
        (stand_in / "link").symlink_to("target")
    laid_out(runs, *WRITTEN, *OTHERS)
    (runs / "x-epochs-seed-1").symlink_to(stand_in / "target")
    (stand_in / "runs").symlink_to("target")
    before = {path for path in stand_in.rglob("*") if path.is_file()}
    result = make("clean", cwd=stand_in, MNIST_AE_OUT=name)
    assert result.returncode == 0, result.stderr
    gone = before - {path for path in stand_in.rglob("*") if path.is_file()}
    assert gone == {runs.resolve() / path for path in WRITTEN}
    assert not (runs / "sweep" / RUN).exists(), "nor a folder that is empty now"
    assert "is a link to target: delete by hand" in make("clean", cwd=stand_in, MNIST_AE_OUT="").stderr
    assert (stand_in / "target" / "parameters").exists()


def test_only_that_runs_again_whose_input_changed(stand_in, out):
    assert executed(stand_in) == ["digits", *ALL]
    assert executed(stand_in) == []
    assert executed(stand_in, "EPOCHS=2") == ["digits", *ALL]
    assert "--epochs=2" in (out / "runs" / "notebooks" / "01_train.ipynb").read_text().split()
    for changed, again in {
        stand_in / "notebooks" / "02_inspect_codes.ipynb": ["02"],
        stand_in / "notebooks" / "05_ten_digits.ipynb": ["05", "06"],
        stand_in / "notebooks" / "01_train.ipynb": ["01", "02", "03", "05", "06"],
        stand_in / "mnist_ae" / "storage.py": ALL,
        stand_in / "data": ["digits", *ALL],
        out / "figures" / "ten_digits.csv": ["03", "04", "05", "06"],
        out / "figures" / "Own" / "seeds.csv": ["03", "04", "05", "06"],
    }.items():
        laid_out(changed.parent, changed.name, content=" ")
        assert executed(stand_in, "EPOCHS=2") == again, changed
    for name in ("02_map.png", "try.html"):
        (stand_in / "figures" / name).unlink()
        assert executed(stand_in, "EPOCHS=2") == ALL, f"{name} is gone"
        (stand_in / "figures" / name).touch()


def test_a_failed_notebook_is_kept_and_named_and_a_second_make_is_told_of_the_first(stand_in, out):
    result = make("run-notebooks", cwd=stand_in, FAILS="notebooks/03_cluster_to_label.ipynb")
    assert result.returncode != 0
    failed = out / "runs" / "notebooks" / "03_cluster_to_label.failed.ipynb"
    assert f"error: notebooks/03_cluster_to_label.ipynb failed: read {failed}\n" in result.stderr
    assert failed.exists()
    (out / "runs" / "make.pid").write_text(str(os.getpid()))
    second = make("run-notebooks", "EPOCHS=2", cwd=stand_in)
    assert second.returncode != 0
    assert f"error: process {os.getpid()} is at work in {out / 'runs'}: wait for it" in second.stderr
    with subprocess.Popen(["true"]) as ended:
        (out / "runs" / "make.pid").write_text(str(ended.pid))
    assert executed(stand_in) == ALL[3:], "the other was killed, and the second had changed nothing"
    assert [path.name for path in NOTEBOOKS] == sorted(path.name for path in failed.parent.iterdir())


def started_with(out):
    """The processes that live with this folder of their own in the environment, whoever is their parent."""
    found = psutil.process_iter(["environ", "status"])
    alive = [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]
    return [process for process in alive if (process.info["environ"] or {}).get("MNIST_AE_OUT") == str(out)]


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


LONG = ["run-notebooks", "refresh", "sweep", "test-unit"]  # a shell's or, loop and quotes, and no shell
LIKEWISE = ["test-notebooks", "test-browser", "ablations", "baselines", "bench"]


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_each_long_task_ends_with_all_that_it_started(how, stand_in, out):
    at_work = stand_in / "at work"
    at_work.touch()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background ignored, by children, too
    start = partial(subprocess.Popen, start_new_session=True)  # as a terminal does
    processes = [make(task, cwd=stand_in, start=start, LASTS="") for task in LONG]
    signal.signal(signal.SIGINT, before)
    try:
        wait_for(lambda: at_work.stat().st_size == len(LONG))
        begin = time.monotonic()
        for process in processes:  # Ctrl-C reaches make and what shares its group
            os.killpg(process.pid, signal.SIGINT) if how == "Ctrl-C" else process.terminate()
        wait_for(lambda: not started_with(out), seconds=30)
        assert time.monotonic() - begin < 2
    finally:
        for left in started_with(out):
            left.kill()
        said = [process.communicate()[1] for process in processes]
    assert all(process.returncode != 0 for process in processes), said
    assert all(f"{sys.executable} -m mnist_ae.supervise" in make("-n", task).stdout for task in LONG + LIKEWISE)


def test_papermill_is_refused_a_parameter_that_a_notebook_does_not_have(out, tmp_path):
    """As a user would call it, without make: an exit code, the reason last, the failed notebook, and nothing else."""
    environment, failed = os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path / "failed.ipynb"
    command = [sys.executable, "-m", "papermill", "--cwd", "notebooks", "-p", "epoch", "5", NOTEBOOKS[0], failed]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    reason = "unknown parameter epoch: choose among dataset, epochs, seed, device, threads"
    assert result.stderr.strip().splitlines()[-1].startswith(f"ValueError: {reason}")
    assert reason in failed.read_text()
    assert not out.exists()


BRIEF = [  # the label-free recipe on the bundled digits: seconds in place of minutes
    ("mnist_ae/recipes.py", "LEAST_BATCHES = 100", "LEAST_BATCHES = 11"),
    ("mnist_ae/recipes.py", "3 * (", "1 * ("),
]
SHORTER = [  # what else takes most of the time; the last is a kernel that is not here, as VS Code leaves it
    ("notebooks/05_ten_digits.ipynb", r"kind=\"stable\")", r"kind=\"stable\")[:20]"),  # mistakes
    ("notebooks/06_seeds.ipynb", "range(10, 20)", "range(10, 11)"),
    ("notebooks/04_beyond_forty.ipynb", '"name": "python3"', '"name": "my-env"'),
]


def copy_repository(copy, changes, *ignored):
    """All that notebooks need, but for the files ignored, with changes, (file, what stands there, what shall)."""
    for name in ("Makefile", "pyproject.toml"):
        laid_out(copy, name, content=(ROOT / name).read_text())
    for name in ("mnist_ae", "notebooks", "figures"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", *ignored))
    for name, usual, changed in changes:
        assert usual in (copy / name).read_text(), (name, usual)
        (copy / name).write_text((copy / name).read_text().replace(usual, changed))


@pytest.fixture
def frozen(tmp_path):
    """The options of `make` for a repository and a home that nothing can be written into, and one thread."""
    copy, home = tmp_path / "repository", tmp_path / "home"
    home.mkdir()
    copy_repository(copy, BRIEF + SHORTER)
    subprocess.run(["chmod", "-R", "a-w", copy, home], check=True)
    # Root may write anywhere: it lays that down.
    reader = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if subprocess.run(["sh", "-c", '"$@" true', "", *reader], capture_output=True).returncode != 0:
        pytest.skip("root cannot lay down its rights here")
    assert subprocess.run([*reader, "touch", copy / "a"], capture_output=True).returncode != 0
    environment = {"HOME": str(home), "MPLCONFIGDIR": str(home / "mpl"), "PYTHONPATH": str(copy)}
    start = lambda command, **options: subprocess.run([*reader, *command], **options)  # noqa: E731
    return {"cwd": copy, "start": start, "OMP_THREAD_LIMIT": "1"} | environment


def test_all_notebooks_run_in_a_frozen_container_and_what_runs_again_leaves_the_same_bytes(frozen, out):
    """For real, on the bundled digits: everything read-only but one folder, no git, no more than one thread."""
    out.mkdir()
    notebooks, figures = out / "runs" / "notebooks", out / "figures" / "digits"

    def run_notebooks():
        """When each was executed."""
        result = make("-j2", "run-notebooks", "DATASET=digits", "EPOCHS=1", "THREADS=1", **frozen)
        assert result.returncode == 0, result.stderr[-3000:]
        return {path.name: path.stat().st_mtime_ns for path in notebooks.iterdir()}

    first = run_notebooks()
    assert sorted(first) == [path.name for path in NOTEBOOKS]
    assert list((out / "figures").iterdir()) == [figures], "MNIST's figures are left alone"
    assert {path.name[:2] for path in figures.glob("*.png")} == set(ALL) - {"00"}

    drawn = {path: path.read_bytes() for path in figures.glob("03_*")}
    for path in [*drawn, notebooks / "03_cluster_to_label.ipynb"]:
        path.unlink()
    again = run_notebooks()
    assert [name for name in first if again[name] != first[name]] == ["03_cluster_to_label.ipynb"]
    assert drawn == {path: path.read_bytes() for path in figures.glob("03_*")}
