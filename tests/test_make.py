"""The Makefile as a person uses it: what it refuses, what it deletes, what it runs again, and how it ends."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest

from mnist_ae import data, storage

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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
    monkeypatch.setattr(storage, "HOME", tmp_path)
    laid_out(tmp_path, "notebooks/01_train.ipynb")
    if name.startswith("-"):  # relative: it counts from the repository
        monkeypatch.setenv("MNIST_AE_OUT", name)
        storage.clean()
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
        (injected,) = [cell for cell in stamp.cells if "injected-parameters" in cell.metadata.get("tags", [])]
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


# ------------------------------------------------------------------------------------------- Ctrl-C and SIGTERM

WITHIN = 2.0  # seconds


@pytest.fixture(autouse=True)
def _interrupts_reach_children():
    """Where these tests run in the background, SIGINT is ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started_with(out):
    """The processes that live with this folder of their own in the environment, whoever is their parent."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MNIST_AE_OUT") == str(out) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def checkpoints(out):
    return list(out.rglob("checkpoint.pt"))


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_measuring(out):
    with suppress(psutil.Error):
        return any("tests.bench" in process.cmdline() and process.cpu_times().user > 4 for process in started_with(out))


CORES = os.cpu_count()
DIGITS = ["DATASET=digits", "EPOCHS=5000"]
COMMANDS = {
    "run-notebooks": (["run-notebooks", *DIGITS], checkpoints),
    "sweep": (
        ["sweep", *DIGITS, "RECIPE=post", f"SEEDS={CORES + 4}"],
        lambda out: len(checkpoints(out)) == CORES,
    ),
    "test": (["test-unit"], lambda out: list(out.parent.glob("inner/*/checkpoint.pt"))),
    "bench": (["bench"], is_measuring),
}


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_long_task_of_make_ends_with_all_that_it_started(name, how, tmp_path, request):
    if name == "bench":
        request.getfixturevalue("mnist")
    arguments, is_at_work = COMMANDS[name]
    out, log = tmp_path / "out", tmp_path / "log"
    inner = f"-k killed_at_random --basetemp={tmp_path / 'inner'} -p no:cacheprovider"  # a test with child processes
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["make", *arguments, f"PYTHON={sys.executable}"],
            cwd=ROOT,
            env=os.environ | {"MNIST_AE_OUT": str(out), "PYTEST_ADDOPTS": inner},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for(lambda: process.poll() is not None or is_at_work(out))
        assert process.poll() is None, log.read_text()
        begin = time.monotonic()
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to make and what shares its group
        else:
            process.terminate()
        wait_for(lambda: not started_with(out), seconds=30)
        took = time.monotonic() - begin
        assert process.wait(1) != 0
        assert took < WITHIN, log.read_text()
        kept = checkpoints(out)
        assert len(kept) == {"run-notebooks": 1, "sweep": CORES}.get(name, 0), "nothing new has begun"
        for path in kept:
            assert len(storage.load(path)["learning"]["history"]) >= 1
    finally:
        with suppress(psutil.Error):
            for left in started_with(out):
                left.kill()


def test_the_stop_button_ends_a_sweep_and_its_workers(tmp_path):
    """In a real kernel, whose cell is then free for the next."""
    from jupyter_client.manager import start_new_kernel

    out = tmp_path / "out"
    manager, client = start_new_kernel(env=os.environ | {"MNIST_AE_OUT": str(out)})
    try:
        client.execute("from dataclasses import replace; from mnist_ae import recipes, sweep")
        client.get_shell_msg(timeout=60)
        client.execute(f"sweep.sweep([replace(recipes.POST, epochs=5000)], range({CORES + 4}), dataset='digits')")
        wait_for(lambda: checkpoints(out))
        begin = time.monotonic()
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=30)["content"]["ename"] == "KeyboardInterrupt"
        wait_for(lambda: len(started_with(out)) <= 2, seconds=30)  # the kernel, and Python's tracker of semaphores
        assert time.monotonic() - begin < WITHIN
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def supervised(code):
    return [sys.executable, "-m", "mnist_ae.supervise", "-c", code]


def test_a_supervisor_gives_its_tasks_status_and_ends_when_its_parent_is_gone(tmp_path):
    assert subprocess.run(supervised("raise SystemExit(7)"), check=False).returncode == 7
    assert subprocess.run(supervised("import os; os.kill(os.getpid(), 9)"), check=False).returncode == 128 + 9
    task = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); open('on', 'w'); time.sleep(60)"
    parent = f"import subprocess; subprocess.run({supervised(task)!r})"
    environment = os.environ | {"MNIST_AE_OUT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, cwd=tmp_path)
    wait_for((tmp_path / "on").exists)
    process.kill()
    process.wait()
    begin = time.monotonic()
    wait_for(lambda: not started_with(tmp_path), seconds=30)
    assert time.monotonic() - begin < WITHIN


def test_make_sees_that_data_changed_though_size_and_time_are_the_same(tmp_path):
    """What `make` compares is a file that holds the data's checksum."""
    from test_data import IMAGES, lay_out, own

    root, out = tmp_path / "data", tmp_path / "out"
    folder = lay_out(own(), root, "Own")
    environment = os.environ | {"MNIST_AE_DATA": str(root), "MNIST_AE_OUT": str(out)}
    parameters = out / "runs" / "parameters"
    command = ["make", str(parameters), "DATASET=Own", f"PYTHON={sys.executable}"]

    def written():
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        return parameters.read_text().splitlines(), parameters.stat().st_mtime_ns

    first, when = written()
    assert first == [
        "-r dataset Own -r device auto -p epochs 20 -p seed 0 -p threads 2",
        data.load("Own", root).checksum,
    ]
    assert written() == (first, when), "nothing changed: older than what was made of it"
    path = folder / IMAGES
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second, later = written()
    assert (second[0], second[1]) == (first[0], data.load("Own", root).checksum)
    assert second[1] != first[1]
    assert later > when
