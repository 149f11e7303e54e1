"""What goes wrong on real machines, done for real: kills, a full disk, two processes, files of strangers."""

import multiprocessing
import os
import random
import resource
import signal
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from test_make import wait_for

from mnist_ae import data, experiment, recipes, storage
from mnist_ae.storage import CheckpointError

# The label-free recipe in four epochs of one batch, half a second: four checkpoints, then model.pt and metrics.json.
TEACHER, STUDENT = recipes.TEN_DIGITS.teacher, recipes.TEN_DIGITS.students[0]
RECIPE = recipes.TenDigits(
    "short", (recipes.Network(epochs=1, heads=2),), replace(TEACHER, epochs=2, taught=1), (replace(STUDENT, epochs=1),)
)


def run(folder, before_save=lambda number: None):
    """Train in one thread; beside the folder, `origin` has where the result came from, `said` the words on stderr."""
    torch.set_num_threads(1)
    whole, save, numbers = data.load("digits"), storage.save, iter(range(1, 10))
    parts = (whole.train_images[:128], whole.train_labels[:128], whole.test_images[:40], whole.test_labels[:40])

    def hooked_save(path, content):
        before_save(next(numbers))
        save(path, content)

    patches = mock.patch.object(recipes, "LEAST_BATCHES", 1), mock.patch.object(storage, "save", hooked_save)
    with patches[0], patches[1], folder.with_name("said").open("a", buffering=1) as said, redirect_stderr(said):
        result = experiment.run(RECIPE, 0, data.Digits("digits", *parts), folder, device="cpu", progress=False)
    folder.with_name("origin").write_text(result.origin)


# Children are forked from a process that has imported everything (optimizers import torch._dynamo, when they are first
# made) and done nothing: quick, and without our threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "torch._dynamo", "mnist_ae.experiment", "sklearn.datasets", "test_make"])


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
    """All that a run leaves but its times: metrics.json as bytes, and the content of model.pt; and nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "metrics.json", "model.pt"]
    kept = storage.load(folder / "model.pt")
    history = [{key: row[key] for key in row if "second" not in key} for row in kept["history"]]
    tensors = [*kept["weights"].values(), *kept["snapshots"].values()]
    return (folder / "metrics.json").read_bytes(), history, [tensor.numpy().tobytes() for tensor in tensors]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run leaves that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert finish(run, folder) == 0
    return lasting(folder)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def die(folder, call, moved):
    """Kill this process when it has written its call-th file, before or after the file gets its name."""
    real, calls = os.replace, iter(range(1, 10))

    def move(source, target):
        last = next(calls) == call
        if moved or not last:
            real(source, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = move
    run(folder)


@pytest.mark.parametrize(("call", "moved"), [(1, False), (2, True), (4, False), (5, False), (5, True), (6, False)])
def test_killed_at_any_moment_it_ends_as_if_nobody_had_killed_it(call, moved, folder, undisturbed):
    assert finish(die, folder, call, moved) == -signal.SIGKILL
    assert finish(run, folder) == 0
    epochs = min(call - (not moved), 4)
    begins = f"continued after epoch {epochs}" if epochs else "trained now"
    assert folder.with_name("origin").read_text().startswith(begins)
    assert lasting(folder) == undisturbed


def hold(folder, number):
    if number == 2:
        wait_for(folder.with_name("go").exists)


def test_the_stop_button_stops_a_cell_and_the_next_goes_on(folder, undisturbed):
    """In a real kernel, as in JupyterLab."""
    from jupyter_client.manager import start_new_kernel

    tests, again = Path(__file__).parent, f"import test_faults as t; t.run(t.Path({str(folder)!r})"
    manager, client = start_new_kernel(env=os.environ | {"PYTHONPATH": f"{tests.parent}:{tests}"})
    try:
        # Else the kernel aborts what comes in the moment after an error, and on a busy machine our next cell is such.
        hold = f"{again}, t.partial(t.hold, t.Path({str(folder)!r})))"
        sent = client.execute(hold, stop_on_error=False)
        wait_for((folder / "checkpoint.pt").exists)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != sent:
            pass  # the kernel's greeting, once more
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert client.execute(f"{again})", reply=True, timeout=300)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert folder.with_name("origin").read_text().startswith("continued after epoch 1")
    assert lasting(folder) == undisturbed


def run_on_a_small_disk(folder):
    """From the third checkpoint on, no file of this process may pass 20 kB."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match=rf"File too large.*'{folder / 'checkpoint.pt'}'"):
        run(folder, lambda number: number == 3 and limit())


def test_a_full_disk_is_named_and_costs_no_more_than_an_epoch(folder, undisturbed):
    assert finish(run_on_a_small_disk, folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "checkpoint.pt"]
    assert finish(run, folder) == 0
    assert folder.with_name("origin").read_text().startswith("continued after epoch 2")
    assert lasting(folder) == undisturbed


@pytest.mark.parametrize(("killed", "begins"), [(False, "already trained"), (True, "continued after epoch 1")])
def test_of_two_processes_on_one_run_the_second_waits_for_the_first(killed, begins, folder, undisturbed):
    first = in_child(run, folder, partial(hold, folder))
    wait_for((folder / "checkpoint.pt").exists)
    second, said = in_child(run, folder), folder.with_name("said")
    wait_for(said.read_text)
    first.kill() if killed else folder.with_name("go").touch()
    first.join()
    second.join()
    assert folder.with_name("origin").read_text().startswith(begins)
    assert said.read_text() == f"another process is training in {folder}: waiting for it\n"
    assert lasting(folder) == undisturbed


class Payload:
    """A pickle that runs code when it is loaded: it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(new_format, folder, undisturbed):
    path, trace = folder / "checkpoint.pt", folder.with_name("trace")
    folder.mkdir()
    torch.save({"history": Payload(trace)}, path, _use_new_zipfile_serialization=new_format)
    torch.load(path, weights_only=False)
    assert trace.exists(), "the payload is real"
    trace.unlink()
    with pytest.warns(UserWarning, match="(none of it was run|no checkpoint).* Training from the beginning"):
        run(folder)
    assert not trace.exists()
    assert lasting(folder) == undisturbed


def test_a_changed_byte_never_makes_a_changed_weight(tmp_path):
    path, weights = tmp_path / "model.pt", {"a": torch.arange(300.0), "b": [1, "two", None]}
    storage.save(path, weights)
    intact, bits, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        damaged = bytearray(intact)
        damaged[bits.randrange(len(intact))] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)
        try:
            found = storage.load(path)
            assert (found["a"].tolist(), found["b"]) == (weights["a"].tolist(), weights["b"])
        except CheckpointError:
            refused += 1
    assert refused > 250
