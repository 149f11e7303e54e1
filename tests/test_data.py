"""The real files where they are at hand; small stand-ins of the same format everywhere else."""

import functools
import gzip
import hashlib
import http.server
import re
import shutil
import struct
import threading

import numpy as np
import pytest
import torch

from mnist_ae import __main__, data, recipes, storage

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(values):
    """An array of bytes as the content of an IDX file."""
    return struct.pack(f">{1 + values.ndim}I", 2048 + values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def small(monkeypatch):
    """Files of 12 and 2 images instead of 60,000 and 10,000: {file: content}, their checksums the expected ones."""
    rng, tops = np.random.default_rng(0), {3: 256, 1: 10}
    shapes = {file: (shape[0] // 5000, *shape[1:]) for file, shape in data.FILES.items()}
    contents = {file: idx(rng.integers(0, tops[len(shape)], shape, np.uint8)) for file, shape in shapes.items()}
    monkeypatch.setattr(data, "FILES", shapes)
    monkeypatch.setattr(data, "SHA256", {f: hashlib.sha256(content).hexdigest() for f, content in contents.items()})
    return contents


def own(train=150, test=20, digits=range(10), test_digits=None, darker=1):
    """The four files of somebody's own data: {file: content}."""
    rng, contents = np.random.default_rng(0), {}
    for part, count, kinds in (("train", train, digits), ("t10k", test, test_digits or digits)):
        contents[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 200, (count, 28, 28), np.uint8) // darker)
        contents[f"{part}-labels-idx1-ubyte"] = idx(np.resize(kinds, count).astype(np.uint8))
    return contents


def lay_out(contents, root, name="MNIST"):
    folder = root / name / "raw"
    shutil.rmtree(root, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return folder


def test_real_mnist_has_its_published_counts_and_the_mean_and_deviation_that_the_post_normalises_with(mnist):
    assert (mnist.name, mnist.train_images.shape, mnist.test_images.shape[0]) == ("MNIST", (60_000, 1, 28, 28), 10_000)
    assert mnist.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert [round(value.item(), 4) for value in torch.std_mean(mnist.train_images / 255)] == [0.3081, 0.1307]


def test_files_are_what_torchvision_reads(small, tmp_path):
    from torchvision import datasets

    lay_out(small, tmp_path)
    digits = data.load("MNIST", tmp_path)
    for part in ("train", "test"):
        theirs = datasets.MNIST(tmp_path, train=part == "train")
        assert torch.equal(theirs.data, getattr(digits, f"{part}_images")[:, 0])
        assert torch.equal(theirs.targets, getattr(digits, f"{part}_labels"))


@pytest.mark.parametrize("spelling", ["raw/{dotted}", "{file}", "raw/{file}/{file}", "raw/{dotted}/{dotted}"])
def test_files_as_file_managers_and_other_sites_leave_them_are_read(small, tmp_path, no_network, spelling):
    for pack in (bytes, gzip.compress):
        folder = lay_out({}, tmp_path).parent
        for file, content in small.items():
            storage.write(folder / spelling.format(file=file, dotted=file.replace("-idx", ".idx")), pack(content))
        assert data.load("auto", tmp_path).train_images.numpy().tobytes() == small[IMAGES][16:]


def typed(kind, dimensions):
    return lambda content: bytes([0, 0, kind, dimensions]) + content[4:]


@pytest.mark.parametrize(
    ("fault", "damage"),
    [
        ("it does not start as such a file does: b''", lambda content: b""),
        ("cannot be used: it has 9,423 bytes instead of 9,424", lambda content: content[:-1]),
        ("cannot be used: it has 9,425 bytes instead of 9,424", lambda content: content + b"\0"),
        (r"it announces shape \(.*, 0, 0\), not \(12, 28, 28\)", lambda content: content[:7]),
        (r"it announces shape \(13, 28, 28\), not", lambda content: content[:7] + b"\x0d" + content[8:]),
        ("it does not start as such a file does: b'<!DO'", lambda content: b"<!DOCTYPE html><title>Log in</title>"),
        ("it does not start as such a file does", typed(7, 3)),
        ("it has the right size and the wrong checksum", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("it holds unsigned bytes in 4 dimensions, not unsigned bytes in 3", typed(8, 4)),  # colour
        ("it holds 32-bit integers in 2 dimensions", typed(12, 2)),  # QMNIST's labels
        ("it holds 64-bit floats in 3 dimensions", typed(14, 3)),
        (rf"is missing \(.*raw holds t10k-images.*, {LABELS}\)", None),
    ],
)
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)], ids=["plain", "gzipped"])
def test_a_damaged_file_is_named_with_its_fault_and_never_replaced_by_another_data_set(
    small, tmp_path, no_network, fault, damage, suffix, pack
):
    path = lay_out(small, tmp_path) / IMAGES
    path.unlink()
    if damage:
        path = path.with_name(f"{IMAGES}{suffix}")
        path.write_bytes(pack(damage(small[IMAGES])))
    for name in ("MNIST", "auto"):
        with pytest.raises(data.DataError, match=rf"{fault}.* downloaded again: no network \(test\)") as error:
            data.load(name, tmp_path)
        assert str(error.value).startswith(f"{path} ")
        assert not isinstance(error.value, data.DataUnavailable)


def test_without_mnist_auto_falls_back_loudly_and_by_name_it_never_does(tmp_path, no_network, monkeypatch):
    monkeypatch.setattr(storage, "HOME", tmp_path)  # a relative folder counts from the repository
    for value, folder in {"some/where": "some/where", "": "data"}.items():
        monkeypatch.setenv("MNIST_AE_DATA", value)
        missing = re.escape(f"MNIST is not in {tmp_path / folder}/MNIST/raw and could not be downloaded: no network (")
        with pytest.warns(UserWarning, match=f"NOT MNIST.*bundled digits.*{missing}"):
            assert data.load("auto").name == "digits"
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        with pytest.raises(data.DataUnavailable, match=f"{name} is not in .*could not be downloaded"):
            data.load(name)
    assert not any(tmp_path.iterdir()), "a failed download leaves nothing behind"
    archive = lay_out({"archive.zip": b"PK"}, tmp_path / "data") / "archive.zip"
    for holds in ("raw holds archive.zip", "data holds archive.zip"):  # what lies there instead is named
        with pytest.warns(UserWarning, match=rf"NOT MNIST.* MNIST is not in .* \(.*{holds}\) and could not"):
            data.load("auto")
        archive = archive.rename(tmp_path / "data" / archive.name)


@pytest.mark.parametrize("name", ["My-Digits", "2024", "None", "1e3", "Ünïcode_9"])
def test_a_data_set_of_ones_own_has_as_many_images_as_it_likes(tmp_path, name, capsys, monkeypatch):
    lay_out(own(), tmp_path, name)
    digits = data.load(name, tmp_path)
    assert (digits.name, len(digits.train_images), len(digits.test_labels)) == (name, 150, 20)
    assert digits.train_images.numpy().tobytes() == own()[IMAGES][16:]
    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path))
    __main__.main(["check", f"--dataset={name}"])
    assert capsys.readouterr().out.startswith(f"-r dataset {name} "), "raw: papermill would make a number of 2024"


FOLDERS = ("mnist", "My Digits", "my.digits", "-p", "é t")  # mnist: as a Mac would find MNIST's


@pytest.mark.parametrize("name", [*FOLDERS, "Digits", "My-Digitz", "../My-Digits", "", 2024, None, 1e3])
def test_a_name_without_a_folder_of_its_own_or_that_is_no_text_is_refused(tmp_path, name):
    for folder in ("My-Digits", *FOLDERS):
        (tmp_path / folder / "raw").mkdir(parents=True)
    message = "unknown data set .* with a NAME of letters, digits, _ and - only"
    with pytest.raises(ValueError, match=message if type(name) is str else f"must be a name, got {name}: papermill's"):
        data.load(name, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"digits": (3, 8)}, " has no 0 and no 1 and no 2 and no 4 and no 5 .* among its train labels"),
        ({"test_digits": range(9)}, " has no 9 among its test labels: all ten digits must be in both parts"),
        ({"train": 127}, " has 127 train images: at least 128 are needed"),
        ({"test": 19}, " has 19 test images: at least 20 are needed"),
        ({"darker": 200}, ": its brightest train pixel is 0 of 255: too dark"),
    ],
)
def test_data_that_a_notebook_would_fail_on_after_minutes_are_refused_at_once(tmp_path, monkeypatch, files, message):
    lay_out(own(**files), tmp_path, "Own")
    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=f"^error: Own{message}"):
        __main__.main(["check", "--dataset=Own"])
    assert data.LEAST["train"] == recipes.BATCH


def test_the_bundled_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    assert torch.cat([digits.train_labels, digits.test_labels]).tolist() == labels.tolist()
    images = torch.cat([digits.train_images, digits.test_images])
    assert (images.shape, images.dtype) == ((1797, 1, 28, 28), torch.uint8)
    ink = torch.nn.functional.adaptive_avg_pool2d(images[:, :, 4:24, 4:24].float(), 4).flatten(1).numpy()
    expected = small.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) * 255 / 16
    assert np.corrcoef(ink.ravel(), expected.ravel())[0, 1] > 0.99
    assert images[:, :, :3].max() == 0, "an empty frame, as in MNIST"


@pytest.fixture
def server(small, tmp_path, monkeypatch):
    """The folder of a local web server with the gzipped files, where torchvision is told that MNIST and KMNIST are; of
    its two mirrors the first does not answer.
    """
    from torchvision import datasets

    folder = tmp_path / "server"
    folder.mkdir()
    for file, content in small.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=folder)) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        checksums = [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in sorted(folder.iterdir())]
        for dataset in (datasets.MNIST, datasets.KMNIST):
            monkeypatch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/", f"http://127.0.0.1:{web.server_port}/"])
            monkeypatch.setattr(dataset, "resources", checksums)
        yield folder
        web.shutdown()


@pytest.mark.parametrize(("name", "found"), [("KMNIST", "KMNIST"), ("auto", "MNIST")])
def test_download_lays_the_files_out_and_is_done_once(server, small, tmp_path, name, found):
    root = tmp_path / "deep" / "data"
    digits = data.load(name, root)
    assert digits.name == found
    assert digits.train_images.numpy().tobytes() == small[IMAGES][16:]
    left = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert left == {f"{found}/raw/{file}.gz" for file in small}
    for file in server.iterdir():
        file.unlink()
    assert data.load(name, root).checksum == digits.checksum


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("", lambda content: b""),
        ("", lambda content: content[:-1]),
        ("", lambda content: content[:-1] + b"\x0a"),  # the label 10
        (".gz", lambda content: b"<!DOCTYPE html><title>Log in</title>"),
        (".gz", lambda content: gzip.compress(content)[:-1]),
        (".gz", lambda content: gzip.compress(content)[:-1] + b"!"),
    ],
)
@pytest.mark.parametrize("name", ["MNIST", "KMNIST"])
def test_a_damaged_file_is_repaired_where_there_is_a_network(server, small, tmp_path, name, suffix, damage):
    folder = lay_out(small, tmp_path / "data", name)
    damaged = (folder / LABELS).rename(folder / f"{LABELS}{suffix}")
    damaged.write_bytes(damage(small[LABELS]))
    for _ in range(2):
        assert data.load(name, tmp_path / "data").train_labels.tolist() == list(small[LABELS][8:])
        for file in server.iterdir():
            file.unlink()
    assert suffix or damaged.read_bytes() == damage(small[LABELS]), "it stays beside the whole one"


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"", None], ids=["a login page", "nothing", "half"])
def test_what_is_no_whole_download_is_not_kept(server, tmp_path, content):
    file = server / f"{LABELS}.gz"
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    with pytest.raises(data.DataError, match="could not be downloaded"):
        data.load("MNIST", tmp_path / "data")
    assert not (tmp_path / "data" / "MNIST" / "raw" / file.name).exists()
