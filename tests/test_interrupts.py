"""Ctrl-C and SIGTERM, for real: all ends within two seconds, checkpoints stay, nothing begins and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mnist_ae import checkpoint, data

WITHIN = 2.0  # seconds
ROOT = Path(__file__).parents[1]


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
            assert checkpoint.read(path)["epoch"] >= 1
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
        client.execute("from dataclasses import replace; from mnist_ae import experiment")
        client.get_shell_msg(timeout=60)
        client.execute(
            f"experiment.sweep([replace(experiment.POST, epochs=5000)], range({CORES + 4}), dataset='digits')"
        )
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
