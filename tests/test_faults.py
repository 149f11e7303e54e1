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
from torch import nn

from mnist_ae import checkpoint, data, experiment, files, losses, models, plots, ten_digits, train
from mnist_ae.checkpoint import CheckpointError
from mnist_ae.ten_digits import Network, TenDigits

POST = replace(experiment.POST, epochs=40)
SHORT = TenDigits(
    "short",
    committee=2 * (Network(epochs=4),),
    teacher=replace(experiment.TEN_DIGITS.teacher, epochs=4),
    students=(replace(experiment.TEN_DIGITS.students[0], epochs=6),),
)
BRIEF = replace(POST, epochs=3)
RECIPES = {"post": POST, "short": SHORT, "brief": BRIEF}


def few():
    """300 images to learn from, 100 to test on."""
    digits = data.load("digits")
    return data.Digits(
        "digits",
        digits.train_images[:300],
        digits.train_labels[:300],
        digits.test_images[:100],
        digits.test_labels[:100],
    )


def train_it(name, folder):
    """What a child process does. One thread, and epochs of 10 batches where the recipe counts in those."""
    torch.set_num_threads(1)
    train.LEAST_BATCHES = 10
    return experiment.run(RECIPES[name], 0, few(), folder, device="cpu", progress=False)


# Children are forked from a process that has imported everything (optimizers import torch._dynamo, when they are first
# made) and done nothing: quick, and without our threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "torch._dynamo", "mnist_ae.experiment", "mnist_ae.plots", "sklearn.datasets"]
)


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
    kept = checkpoint.read(folder / "model.pt")
    history = [{key: row[key] for key in row if "second" not in key} for row in kept["history"]]
    tensors = [*kept["weights"].values(), *kept["snapshots"].values()]
    return (folder / "metrics.json").read_bytes(), history, [tensor.numpy().tobytes() for tensor in tensors]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """{recipe: (folder, seconds)} of runs that nobody disturbed."""
    runs = {}
    for name in RECIPES:
        folder, begin = tmp_path_factory.mktemp(name), time.perf_counter()
        assert finish(train_it, name, folder) == 0
        runs[name] = folder, time.perf_counter() - begin
    return runs


# ------------------------------------------------------------------------------------------------- interruptions


def start_training(name, folder, started):
    started.set()
    train_it(name, folder)


@pytest.mark.parametrize(("name", "kills"), [("post", 20), ("short", 12)])
def test_killed_at_random_moments_it_ends_as_if_nobody_had_killed_it(name, kills, uninterrupted, tmp_path):
    undisturbed, seconds = uninterrupted[name]
    moments, survived, epochs = random.Random(0), 0, set()
    folder = tmp_path / "first"
    while survived < kills:
        started = PROCESSES.Event()
        process = in_child(start_training, name, folder, started)
        started.wait()
        process.join(moments.uniform(0, 0.5 + seconds / 8))
        if process.exitcode is None:
            process.kill()
            survived += 1
        process.join()
        for path in folder.glob("*.pt"):
            epochs.add(checkpoint.read(path).get("epoch", "finished"))
        if process.exitcode == 0:  # in time: the rest of the kills are for another run
            assert lasting(folder) == lasting(undisturbed)
            folder = tmp_path / f"after {survived}"
    assert len(epochs) > 2, "the kills came at different epochs"
    assert finish(train_it, name, folder) == 0
    assert lasting(folder) == lasting(undisturbed)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "metrics.json", "model.pt"]


def die_while_writing(name, folder, call, moment):
    """Kill the process in its call-th write of a file: half-written, written but not moved, or just moved."""
    calls, real = iter(range(1, 100)), {"fsync": os.fsync, "replace": os.replace}

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def fsync(descriptor):
        if moment == "half" and next(calls) == call:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        real["fsync"](descriptor)

    def move(source, target):
        last = moment != "half" and next(calls) == call
        if last and moment == "before":
            die()
        real["replace"](source, target)
        if last:
            die()

    os.fsync, os.replace = fsync, move
    train_it(name, folder)


@pytest.mark.parametrize("moment", ["half", "before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])  # three checkpoints, model.pt, metrics.json
def test_killed_in_the_middle_of_a_write(call, moment, uninterrupted, tmp_path):
    assert finish(die_while_writing, "brief", tmp_path, call, moment) == -signal.SIGKILL
    for path in tmp_path.glob("*.pt"):
        checkpoint.read(path)
    assert finish(train_it, "brief", tmp_path) == 0
    assert lasting(tmp_path) == lasting(uninterrupted["brief"][0])
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_interrupted_notebook_cell_goes_on_where_it_was(uninterrupted, tmp_path):
    """The stop button of JupyterLab, in a real kernel."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(Path(__file__).parent))
    try:
        cell = f"import test_faults; print(test_faults.train_it('post', test_faults.Path({str(tmp_path)!r})).origin)"
        client.execute(cell)
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoint.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        assert not (tmp_path / "model.pt").exists()
        printed = io.StringIO()
        reply = client.execute_interactive(
            cell, timeout=60, output_hook=lambda message: printed.write(message["content"].get("text", ""))
        )
        assert reply["content"]["status"] == "ok"
        assert "continued after epoch" in printed.getvalue()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert lasting(tmp_path) == lasting(uninterrupted["post"][0])


class Dropping(models.PostAutoencoder):
    """Draws random numbers of its own in training, and counts the epochs in a buffer."""

    def __init__(self):
        super().__init__()
        self.encoder.insert(5, nn.Dropout(0.5))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_exception_in_a_callback_loses_nothing(stop, tmp_path):
    images = few().train_images

    def fit(**options):
        model = train.born(Dropping, 0)
        torch.rand(7)  # what the caller draws is no matter
        return model, train.fit(model, images, epochs=4, seed=1, progress=False, **options)

    def keep_and_stop(epoch, model, state):
        checkpoint.write(tmp_path / "state.pt", state)
        if epoch == stop:
            raise ZeroDivisionError

    whole, history = fit()
    with pytest.raises(ZeroDivisionError):
        fit(on_epoch=keep_and_stop)
    again, rest = fit(resume=checkpoint.read(tmp_path / "state.pt"))
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [row["loss"] for row in history] == [row["loss"] for row in rest]


def test_a_checkpoint_of_another_recipe_is_not_continued(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "SNAPSHOT_EPOCHS", {3})
        patch.setattr(train, "reconstruct", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            experiment.run(BRIEF, 0, few(), tmp_path, progress=False)
    assert checkpoint.read(tmp_path / "checkpoint.pt")["epoch"] == 2
    other = experiment.run(replace(BRIEF, lr=0.02), 0, few(), tmp_path, progress=False)
    assert (other.continued, len(other.history)) == (0, 3)
    fresh = experiment.run(replace(BRIEF, lr=0.02), 0, few(), tmp_path / "fresh", progress=False)
    assert other.metrics == fresh.metrics


# ---------------------------------------------------------------------------------------------------------- disks


def write_with_little_space(out, report):
    """A second run and a figure, in a process whose files may not pass a megabyte."""
    os.environ["MNIST_AE_OUT"] = str(out)
    plots.save_figure(plots.activations(np.eye(10), "small"), "before", pd.DataFrame(), "MNIST")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    said = {}
    try:
        experiment.run(BRIEF, 1, few(), out / "run", device="cpu", progress=False)
    except OSError as error:
        said["run"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        plots.save_figure(plots.activations(np.eye(10)[::-1], "other"), "before", pd.DataFrame(), "MNIST")
    except OSError as error:
        said["figure"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report.write_text(json.dumps(said))


def test_a_full_disk_is_named_and_costs_nothing_that_was_there(uninterrupted, tmp_path):
    run, figures = tmp_path / "run", tmp_path / "figures"
    assert finish(train_it, "brief", run) == 0
    before = {path: path.read_bytes() for path in run.glob("m*")}
    assert finish(write_with_little_space, tmp_path, tmp_path / "said") == 0
    said = json.loads((tmp_path / "said").read_text())
    assert f"'{run / 'checkpoint.pt'}'" in said["run"]
    assert "File too large" in said["run"]
    assert f"'{figures / 'before.png'}'" in said["figure"]
    assert {path: path.read_bytes() for path in run.glob("m*")} == before
    drawn = (figures / "before.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn.endswith(b"IEND\xaeB`\x82")
    assert lasting(run) == lasting(uninterrupted["brief"][0])
    assert not list(tmp_path.rglob("*.tmp"))


def write_read_only(folder, report):
    """As a user who may read the folder, and no more; root becomes one by laying down its capabilities (Linux)."""
    digits = few()
    if os.geteuid() == 0:
        version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version, nothing) == 0
    torch.set_num_threads(1)
    said = {"found": experiment.run(BRIEF, 0, digits, folder, device="cpu", progress=False).reused}
    for name, action in {
        "run": lambda: experiment.run(BRIEF, 1, digits, folder, device="cpu", progress=False),
        "file": lambda: files.write(folder / "metrics.json", b""),
        "folder": lambda: files.write(folder / "figures" / "a.png", b""),
    }.items():
        try:
            action()
        except PermissionError as error:
            said[name] = str(error)
    report.write_text(json.dumps(said))


def test_a_read_only_folder_is_named_and_what_is_finished_there_is_still_found(tmp_path):
    run = tmp_path / "run"
    assert finish(train_it, "brief", run) == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    report = tmp_path / "report"
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


def train_and_report(name, folder, report):
    said = io.StringIO()
    with redirect_stderr(said):
        result = train_it(name, folder)
    report.write_text(json.dumps({"origin": result.origin, "said": said.getvalue()}))


def test_two_processes_on_one_folder_train_once(uninterrupted, tmp_path):
    folder, reports = tmp_path / "run", [tmp_path / "a", tmp_path / "b"]
    processes = [in_child(train_and_report, "post", folder, report) for report in reports]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second = sorted((json.loads(report.read_text()) for report in reports), key=lambda x: len(x["said"]))
    assert first["origin"].startswith("trained now")
    assert first["said"] == ""
    assert second["origin"].startswith("found finished")
    assert second["said"] == f"another process is training in {folder}: waiting for it\n"
    assert lasting(folder) == lasting(uninterrupted["post"][0])


def test_if_the_first_of_two_is_killed_the_second_goes_on(uninterrupted, tmp_path):
    folder, report = tmp_path / "run", tmp_path / "report"
    first = in_child(train_it, "post", folder)
    while not (folder / "checkpoint.pt").exists():
        assert first.is_alive()
        time.sleep(0.01)
    second = in_child(train_and_report, "post", folder, report)
    time.sleep(0.3)
    assert first.is_alive()
    first.kill()
    second.join()
    assert "continued after epoch" in json.loads(report.read_text())["origin"]
    assert lasting(folder) == lasting(uninterrupted["post"][0])


# ----------------------------------------------------------------------------------------------- files of strangers


class Payload:
    """A pickle that runs code when it is loaded: it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def as_checkpoint(path, content):
    torch.save(content, path)


def as_old_checkpoint(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(path, content):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [as_checkpoint, as_old_checkpoint, as_pickle])
@pytest.mark.parametrize("file", ["model.pt", "checkpoint.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_run(file, save, tmp_path):
    run, trace = tmp_path / "run", tmp_path / "trace"
    first = experiment.run(BRIEF, 0, few(), run, progress=False)
    content = checkpoint.read(run / "model.pt") | {"state": Payload(trace), "history": Payload(trace)}
    save(run / file, content)
    if save is not as_pickle:
        torch.load(run / file, weights_only=False)
    else:
        pickle.loads((run / file).read_bytes())
    assert trace.exists(), "the payload is real"
    trace.unlink()

    with pytest.raises(CheckpointError, match=r"holds more than tensors .* none of it was run|no checkpoint"):
        checkpoint.read(run / file)
    if file == "model.pt":
        with pytest.raises(CheckpointError):
            experiment.load(BRIEF, 0, few(), run)
    else:
        (run / "model.pt").unlink()
    with pytest.warns(UserWarning, match="raining"):
        again = experiment.run(BRIEF, 0, few(), run, progress=False)
    assert not trace.exists()
    assert again.metrics == first.metrics


def test_a_checkpoint_of_another_architecture_names_the_tensors(tmp_path):
    run = tmp_path / "run"
    experiment.run(BRIEF, 0, few(), run, progress=False)
    content = checkpoint.read(run / "model.pt")
    content["weights"] = models.TenNeurons(holes=False).state_dict()
    checkpoint.write(run / "model.pt", content)
    with pytest.raises(CheckpointError) as error:
        experiment.load(BRIEF, 0, few(), run)
    for words in (
        f"{run / 'model.pt'} is of another architecture",
        'Missing key(s) in state_dict: "encoder.0.bias", "encoder.2.weight"',
        'Unexpected key(s) in state_dict: "encoder.7.weight"',
        "size mismatch for encoder.0.weight: copying a param with shape torch.Size([16, 1, 5, 5])",
    ):
        assert words in str(error.value)


def test_a_changed_byte_never_makes_a_changed_weight(tmp_path):
    path, weights = tmp_path / "model.pt", {"a": torch.arange(300.0), "b": [1, "two", None]}
    checkpoint.write(path, weights)
    intact, bits = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(intact)
        damaged[bits.randrange(len(damaged))] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)
        try:
            found = checkpoint.read(path)
        except CheckpointError:
            refused += 1
        else:
            assert torch.equal(found["a"], weights["a"])
            assert found["b"] == weights["b"]
    assert refused > 500
    for length in range(0, len(intact), 97):
        path.write_bytes(intact[:length])
        with pytest.raises(CheckpointError, match=r"model\.pt is damaged, or no checkpoint"):
            checkpoint.read(path)


def test_a_file_that_holds_no_dictionary_is_no_checkpoint(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds Tensor, not a checkpoint"):
        checkpoint.read(tmp_path / "model.pt")


# ------------------------------------------------------------------------------------------------------ divergence


def test_divergence_stops_at_once_and_leaves_the_last_good_checkpoint(tmp_path):
    """The listing has nothing that bounds it, so a rate that is too high makes it explode, some epochs later."""
    recipe = replace(BRIEF, activations=False, epochs=50, lr=0.15)
    with pytest.raises(FloatingPointError, match=r"the loss is (inf|nan) in epoch \d+, batch \d, with lr") as error:
        experiment.run(recipe, 0, few(), tmp_path, progress=False)
    epoch = int(str(error.value).split("epoch ")[1].split(",")[0])
    assert epoch > 1
    kept = checkpoint.read(tmp_path / "checkpoint.pt")
    assert kept["epoch"] == epoch - 1
    assert all(weight.isfinite().all() for weight in kept["state"]["model"].values())
    assert not (tmp_path / "model.pt").exists()
    with pytest.raises(FloatingPointError, match=f"epoch {epoch}, batch"):
        experiment.run(recipe, 0, few(), tmp_path, progress=False)


def test_weights_that_are_not_finite_are_never_kept():
    """A loss that is finite, with a gradient that is not: the square root at 0."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    kept = []
    with pytest.raises(FloatingPointError, match=r"a weight is not finite after epoch 1, batch 1, with lr 0\.1"):
        train.minimise(
            model,
            lambda index, epoch: model.weight.square().sum().sqrt() + model.weight.abs().sqrt().sum(),
            lambda: [torch.tensor([0])],
            torch.optim.SGD(model.parameters(), lr=0.1),
            torch.Generator(),
            epochs=1,
            bar=train.progress_bar(1, False),
            on_epoch=lambda *_: kept.append(1),
        )
    assert kept == []


def test_the_ten_digits_recipe_diverges_with_a_message_too(monkeypatch):
    monkeypatch.setattr(train, "LEAST_BATCHES", 10)
    monkeypatch.setattr(losses, "consistency", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, batch 1"):
        SHORT.fit(few().train_images, 0, device="cpu", progress=False)


# --------------------------------------------------------------------------------------------------- odd numbers


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.bfloat16])
def test_other_floats_give_the_same_codes(kind, digits):
    model, images = train.born(models.PostAutoencoder, 0), digits.test_images[:50]
    expected = train.encode(model, images)
    torch.testing.assert_close(train.encode(model, (images / 255).to(kind)), expected, atol=0.01, rtol=0)
    assert train.encode(model, (images / 255).to(kind)).dtype == torch.float32
    history = train.fit(model, (images / 255).to(kind), epochs=1, progress=False)
    assert np.isfinite(history[0]["loss"])


def test_one_image_a_batch_and_fewer_images_than_a_batch(digits):
    for count, size, steps in [(5, 1, 5), (5, 64, 1), (1, 64, 1)]:
        model = train.born(models.PostAutoencoder, 0)
        plain = train.born(models.PostAutoencoder, 0)
        train.fit(model, digits.train_images[:count], epochs=1, batch_size=size, momentum=0, progress=False)
        optimizer, order = torch.optim.SGD(plain.parameters(), lr=0.01), torch.Generator().manual_seed(0)
        batches = torch.randperm(count, generator=order).split(size)
        assert len(batches) == steps
        for batch in batches:
            x = plain.normalise(digits.train_images[batch])
            optimizer.zero_grad()
            (plain(x) - x).square().mean().backward()
            optimizer.step()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_too_little_for_the_recipe_is_said(digits):
    for count in (0, 1, 127):
        for recipe in (SHORT, Network()):
            with pytest.raises(ValueError, match=f"{count} images are less than one batch of 128"):
                recipe.fit(digits.train_images[:count], 0, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": torch.zeros(0, 28, 28, dtype=torch.uint8), "train_labels": []}, "train_images is empty"),
        ({"test_labels": [0] * 99}, "test_labels must be one an image, 100, got 99"),
        ({"test_images": torch.zeros(100, 1, 28, 28)}, "test_images must be uint8, 0 to 255, got torch.float32"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(few(), **change)


def test_codes_that_are_all_equal_have_an_answer_and_no_nan():
    same, other = torch.full((50, 10), 0.1), torch.eye(10).repeat(5, 1)
    for readings in ([same, same], [same, other], [other, other]):
        answers = ten_digits.aggregate(readings)
        assert answers.isfinite().all()
        torch.testing.assert_close(answers.sum(dim=1), torch.ones(50))
    assert (ten_digits.aggregate([same, other, other]).argmax(dim=1) == other.argmax(dim=1)).all()
    dead = torch.eye(10)[torch.zeros(50).long()]
    assert ten_digits.aggregate([dead, dead]).argmax(dim=1).tolist() == [0] * 50
