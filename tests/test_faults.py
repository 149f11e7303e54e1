"""What goes wrong on real machines, done for real: kills, full and read-only disks, two processes, strangers' files."""

import ctypes
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mnist_ae import data, experiment, models, plots, recipes, storage
from mnist_ae.storage import CheckpointError

POST = replace(recipes.POST, epochs=40)
SHORT = recipes.TenDigits(
    "short",
    committee=(recipes.Network(epochs=2),),
    teacher=replace(recipes.TEN_DIGITS.teacher, epochs=2, taught=1),
    students=(replace(recipes.TEN_DIGITS.students[0], epochs=2),),
)
BRIEF = replace(POST, epochs=3)
RECIPES = {"post": POST, "short": SHORT, "brief": BRIEF}


def few():
    """300 images to learn from, 100 to test on."""
    whole = data.load("digits")
    parts = (whole.train_images[:300], whole.train_labels[:300], whole.test_images[:100], whole.test_labels[:100])
    return data.Digits("digits", *parts)


def train_it(name, folder, report=None, started=None):
    """What a child process does. One thread, and epochs of 4 batches where the recipe counts in those."""
    torch.set_num_threads(1)
    recipes.LEAST_BATCHES = 4
    if started:
        started.set()
    said = io.StringIO()
    with redirect_stderr(said):
        result = experiment.run(RECIPES[name], 0, few(), folder, device="cpu", progress=False)
    if report:
        report.write_text(json.dumps({"origin": result.origin, "said": said.getvalue()}))


# Children are forked from a process that has imported everything (optimizers import torch._dynamo, when they are first
# made) and done nothing: quick, and without our threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "torch._dynamo", "mnist_ae.sweep", "mnist_ae.plots", "sklearn.datasets"])


def in_child(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def finish(target, *arguments):
    """Run target in a child; its exit status, negative for a signal."""
    process = in_child(target, *arguments)
    process.join()
    return process.exitcode


def lasting(folder):
    """All that a run leaves but its times: metrics.json as bytes, and the content of model.pt."""
    kept = storage.load(folder / "model.pt")
    history = [{key: row[key] for key in row if "second" not in key} for row in kept["history"]]
    tensors = [*kept["weights"].values(), *kept["snapshots"].values()]
    return (folder / "metrics.json").read_bytes(), history, [tensor.numpy().tobytes() for tensor in tensors]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """{recipe: (what its run leaves, seconds)} of runs that nobody disturbed."""
    runs = {}
    for name in RECIPES:
        folder, begin = tmp_path_factory.mktemp(name), time.perf_counter()
        assert finish(train_it, name, folder) == 0
        runs[name] = lasting(folder), time.perf_counter() - begin
    return runs


@pytest.mark.parametrize("name", ["post", "short"])
def test_killed_at_random_moments_it_ends_as_if_nobody_had_killed_it(name, uninterrupted, tmp_path):
    undisturbed, seconds = uninterrupted[name]
    moments, epochs = random.Random(0), set()
    for _ in range(8):
        started = PROCESSES.Event()
        process = in_child(train_it, name, tmp_path, None, started)
        started.wait()
        process.join(moments.uniform(0, seconds / 3))
        process.kill()
        process.join()
        if (tmp_path / "checkpoint.pt").exists():
            kept = storage.load(tmp_path / "checkpoint.pt")
            epochs.add((len(kept["finished"]), len(kept["learning"]["history"])))
    assert len(epochs) > 1, "the kills came at different epochs"
    assert finish(train_it, name, tmp_path) == 0
    assert lasting(tmp_path) == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "metrics.json", "model.pt"]


def die_while_writing(folder, call, moment):
    """Kill the process in its call-th write of a file: half-written, written but not moved, or just moved."""
    calls, real = iter(range(1, 100)), {"fsync": os.fsync, "replace": os.replace}

    def fsync(descriptor):
        if moment == "half" and next(calls) == call:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real["fsync"](descriptor)

    def move(source, target):
        last = moment != "half" and next(calls) == call
        if not (last and moment == "before"):
            real["replace"](source, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = fsync, move
    train_it("brief", folder)


@pytest.mark.parametrize("moment", ["half", "before", "after"])
@pytest.mark.parametrize("call", [1, 3, 4, 5])  # of three checkpoints the first and last, model.pt, metrics.json
def test_killed_in_the_middle_of_a_write(call, moment, uninterrupted, tmp_path):
    assert finish(die_while_writing, tmp_path, call, moment) == -signal.SIGKILL
    for path in tmp_path.glob("*.pt"):
        storage.load(path)
    assert finish(train_it, "brief", tmp_path) == 0
    assert lasting(tmp_path) == uninterrupted["brief"][0]
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_interrupted_notebook_cell_goes_on_where_it_was(uninterrupted, tmp_path):
    """The stop button of JupyterLab, in a real kernel."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(Path(__file__).parent))
    try:
        report = tmp_path / "report"
        cell = f"import test_faults as t; t.train_it('post', t.Path({str(tmp_path)!r}), t.Path({str(report)!r}))"
        client.execute(cell)
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoint.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        assert not (tmp_path / "model.pt").exists()
        assert client.execute_interactive(cell, timeout=60)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "continued after epoch" in report.read_text()
    assert lasting(tmp_path) == uninterrupted["post"][0]


# ---------------------------------------------------------------------------------------------------------- disks


def said_by(actions):
    """{name: what the OSError of that action says}."""
    said = {}
    for name, action in actions.items():
        try:
            action()
        except OSError as error:
            said[name] = str(error)
    return said


def write_with_little_space(out, report):
    """A second run and a figure, in a process whose files may not pass 20 kB."""
    os.environ["MNIST_AE_OUT"] = str(out)
    plots.save_figure(plots.one_hotness(np.eye(10), np.ones(10), "small"), "before", pd.DataFrame(), "MNIST")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    other = plots.one_hotness(np.eye(10)[::-1], np.ones(10), "other")
    actions = {
        "run": lambda: experiment.run(BRIEF, 1, few(), out / "run", device="cpu", progress=False),
        "figure": lambda: plots.save_figure(other, "before", pd.DataFrame(), "MNIST"),
    }
    said = said_by(actions)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report.write_text(json.dumps(said))


def test_a_full_disk_is_named_and_costs_nothing_that_was_there(uninterrupted, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "figures" / "before.png"
    assert finish(train_it, "brief", run) == 0
    assert finish(write_with_little_space, tmp_path, tmp_path / "said") == 0
    said = json.loads((tmp_path / "said").read_text())
    for name, path in {"run": run / "checkpoint.pt", "figure": picture}.items():
        assert f"'{path}'" in said[name]
        assert "File too large" in said[name]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert lasting(run) == uninterrupted["brief"][0]
    assert not list(tmp_path.rglob("*.tmp"))


def write_read_only(folder, report):
    """As a user who may read the folder, and no more; root becomes one by laying down its capabilities (Linux)."""
    digits = few()
    if os.geteuid() == 0:
        version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version, nothing) == 0
    torch.set_num_threads(1)
    found = experiment.run(BRIEF, 0, digits, folder, device="cpu", progress=False).reused
    actions = {
        "run": lambda: experiment.run(BRIEF, 1, digits, folder, device="cpu", progress=False),
        "file": lambda: storage.write(folder / "metrics.json", b""),
        "folder": lambda: storage.write(folder / "figures" / "a.png", b""),
    }
    report.write_text(json.dumps({"found": found} | said_by(actions)))


def test_a_read_only_folder_is_named_and_what_is_finished_there_is_still_found(tmp_path):
    run, report = tmp_path / "run", tmp_path / "report"
    assert finish(train_it, "brief", run) == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    for path in (*run.iterdir(), run):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert finish(write_read_only, run, report) == 0
    finally:
        run.chmod(0o755)
    said = json.loads(report.read_text())
    assert said["found"]
    for name, path in {"run": run, "file": run / "metrics.json", "folder": run / "figures"}.items():
        assert "ermission denied" in said[name]
        assert str(path) in said[name]
    assert {path: path.read_bytes() for path in run.iterdir()} == before


# -------------------------------------------------------------------------------------------------- two processes


def test_two_processes_on_one_folder_train_once(uninterrupted, tmp_path):
    folder, reports = tmp_path / "run", [tmp_path / "a", tmp_path / "b"]
    processes = [in_child(train_it, "post", folder, report) for report in reports]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second = sorted((json.loads(report.read_text()) for report in reports), key=lambda x: len(x["said"]))
    assert first["origin"].startswith("trained now")
    assert first["said"] == ""
    assert second["origin"].startswith("found finished")
    assert second["said"] == f"another process is training in {folder}: waiting for it\n"
    assert lasting(folder) == uninterrupted["post"][0]


def test_if_the_first_of_two_is_killed_the_second_goes_on(uninterrupted, tmp_path):
    folder, report = tmp_path / "run", tmp_path / "report"
    first = in_child(train_it, "post", folder)
    while not (folder / "checkpoint.pt").exists():
        assert first.is_alive()
        time.sleep(0.01)
    second = in_child(train_it, "post", folder, report)
    time.sleep(0.2)
    assert first.is_alive()
    first.kill()
    second.join()
    assert "continued after epoch" in json.loads(report.read_text())["origin"]
    assert lasting(folder) == uninterrupted["post"][0]


# ----------------------------------------------------------------------------------------------- files of strangers


class Payload:
    """A pickle that runs code when it is loaded: it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


SAVES = {
    "as torch does": torch.save,
    "as torch did": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "as a pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
}


@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("file", ["model.pt", "checkpoint.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_run(file, how, tmp_path):
    run, trace = tmp_path / "run", tmp_path / "trace"
    first = experiment.run(BRIEF, 0, few(), run, progress=False)
    SAVES[how](storage.load(run / "model.pt") | {"learning": Payload(trace), "history": Payload(trace)}, run / file)
    with (run / file).open("rb") as stream:
        pickle.load(stream) if how == "as a pickle" else torch.load(stream, weights_only=False)
    assert trace.exists(), "the payload is real"
    trace.unlink()
    with pytest.raises(CheckpointError, match=r"holds more than tensors .* none of it was run|no checkpoint"):
        storage.load(run / file)
    if file == "checkpoint.pt":
        (run / "model.pt").unlink()
    with pytest.warns(UserWarning, match="raining"):
        again = experiment.run(BRIEF, 0, few(), run, progress=False)
    assert not trace.exists()
    assert again.metrics == first.metrics


def test_a_checkpoint_of_another_architecture_names_the_tensors(tmp_path):
    experiment.run(BRIEF, 0, few(), tmp_path, progress=False)
    content = storage.load(tmp_path / "model.pt")
    storage.save(tmp_path / "model.pt", content | {"weights": models.TenNeurons(holes=False).state_dict()})
    with pytest.raises(CheckpointError) as error:
        experiment.load(BRIEF, 0, few(), tmp_path)
    for words in (
        f"{tmp_path / 'model.pt'} is of another architecture",
        'Missing key(s) in state_dict: "encoder.0.bias", "encoder.2.weight"',
        "size mismatch for encoder.0.weight: copying a param with shape torch.Size([16, 1, 5, 5])",
    ):
        assert words in str(error.value)


def test_a_changed_byte_never_makes_a_changed_weight(tmp_path):
    path, weights = tmp_path / "model.pt", {"a": torch.arange(300.0), "b": [1, "two", None]}
    storage.save(path, weights)
    intact, bits, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        damaged = bytearray(intact)
        damaged[bits.randrange(len(damaged))] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)
        try:
            found = storage.load(path)
        except CheckpointError:
            refused += 1
        else:
            assert torch.equal(found["a"], weights["a"])
            assert found["b"] == weights["b"]
    assert refused > 250
    for length in range(0, len(intact), 97):
        path.write_bytes(intact[:length])
        with pytest.raises(CheckpointError, match=r"model\.pt is damaged, or no checkpoint"):
            storage.load(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(CheckpointError, match="holds Tensor, not a checkpoint"):
        storage.load(path)


def test_an_interrupt_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    storage.write(path, b"first")
    monkeypatch.setattr(storage.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        storage.write(path, b"second")
    assert path.read_bytes() == b"first"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]
