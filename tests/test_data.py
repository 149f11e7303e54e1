"""The real files where they are at hand; small stand-ins of the same format everywhere else."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import shutil
import struct
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnist_ae import __main__, data, recipes, storage

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def small(monkeypatch):
    """Files of a few images instead of 60,000: {file: content}, with their checksums as the expected ones."""
    rng = np.random.default_rng(0)
    shapes = {file: (shape[0] // 5000, *shape[1:]) for file, shape in data.FILES.items()}
    contents = {
        file: struct.pack(f">{1 + len(shape)}I", 2048 + len(shape), *shape)
        + rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8).tobytes()
        for file, shape in shapes.items()
    }
    monkeypatch.setattr(data, "FILES", shapes)
    monkeypatch.setattr(data, "SHA256", {f: hashlib.sha256(content).hexdigest() for f, content in contents.items()})
    return contents


def lay_out(contents, root, name="MNIST"):
    folder = root / name / "raw"
    shutil.rmtree(root, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return folder


def test_real_mnist_has_its_published_counts_and_pixels(mnist):
    assert mnist.name == "MNIST"
    assert (mnist.train_images.shape, mnist.train_images.dtype) == ((60_000, 1, 28, 28), torch.uint8)
    assert (mnist.test_images.shape, mnist.test_labels.dtype) == ((10_000, 1, 28, 28), torch.int64)
    # The published class counts, and the mean and deviation that the post normalises with.
    assert mnist.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = mnist.train_images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)


def test_real_mnist_is_what_torchvision_reads(mnist):
    from torchvision import datasets

    for part in ("train", "test"):
        theirs = datasets.MNIST(storage.named(os.environ.get("MNIST_AE_DATA", "data")), train=part == "train")
        assert torch.equal(theirs.data, getattr(mnist, f"{part}_images")[:, 0])
        assert torch.equal(theirs.targets, getattr(mnist, f"{part}_labels"))


def test_files_are_read_from_root_else_environment_raw_or_gzipped(small, tmp_path, monkeypatch):
    folder = lay_out(small, tmp_path / "raw files")
    digits = data.load("MNIST", tmp_path / "raw files")
    assert digits.train_images.numpy().tobytes() == small[IMAGES][16:]
    assert digits.train_labels.tolist() == list(small[LABELS][8:])

    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path / "raw files"))
    assert data.load("auto").checksum == digits.checksum

    for file in small:
        (folder / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes()))
        (folder / file).unlink()
    assert data.load("MNIST").checksum == digits.checksum


def test_a_relative_folder_counts_from_the_repository(monkeypatch, no_network):
    for value, folder in {"some/where": "some/where", "": "data"}.items():
        monkeypatch.setenv("MNIST_AE_DATA", value)
        with pytest.raises(data.DataUnavailable, match=f"KMNIST is not in {storage.HOME / folder / 'KMNIST' / 'raw'}"):
            data.load("KMNIST")


@pytest.mark.parametrize(
    ("fault", "damage"),
    [
        ("is empty", lambda content: b""),
        ("bytes instead of", lambda content: content[:-1]),
        ("bytes instead of", lambda content: content[:-5]),
        ("bytes instead of", lambda content: content + b"\0"),
        ("announces shape", lambda content: content[:7]),
        ("announces shape", lambda content: content[:4] + struct.pack(">I", 13) + content[8:]),
        ("does not start as", lambda content: b"<!DOCTYPE html><title>Log in</title>"),
        ("does not start as", lambda content: small_magic(content)),
        ("wrong checksum", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    ],
)
@pytest.mark.parametrize("file", [IMAGES, LABELS])
def test_a_damaged_file_is_named_with_its_fault_and_never_replaced_by_another_data_set(
    small, tmp_path, no_network, file, fault, damage
):
    path = lay_out(small, tmp_path) / file
    path.write_bytes(damage(small[file]))
    for name in ("MNIST", "auto"):
        with pytest.raises(data.DataError, match=fault) as error:
            data.load(name, tmp_path)
        assert str(path) in str(error.value)
        assert not isinstance(error.value, data.DataUnavailable)


def small_magic(content):
    return struct.pack(">I", 1234) + content[4:]


def test_without_mnist_auto_falls_back_loudly_and_by_name_it_never_does(tmp_path, no_network):
    with pytest.warns(UserWarning, match=r"NOT MNIST.*bundled digits.*no network \(test\)"):
        digits = data.load("auto", tmp_path)
    assert digits.name == "digits"
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        with pytest.raises(data.DataUnavailable, match=f"{name} is not in .*could not be downloaded"):
            data.load(name, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "a failed download leaves no file behind"


def test_a_data_set_with_a_file_missing_is_an_error_not_a_fallback(small, tmp_path, no_network):
    (lay_out(small, tmp_path) / LABELS).unlink()
    with pytest.raises(
        data.DataError,
        match=rf"{LABELS} is missing \(.* holds t10k.*\)\. It could not be downloaded again: .*no network \(test",
    ):
        data.load("auto", tmp_path)


@given(st.sampled_from(sorted(data.FILES)), st.sampled_from(["MNIST", "KMNIST"]), st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_a_file_it_is_the_truth_or_an_error_that_names_it(small, tmp_path, no_network, file, name, draw):
    """Cut, lengthened, overwritten, replaced: no array but the true one comes out of a file with a checksum, and out of
    one without (KMNIST) only one of the right shape and range.
    """
    root = tmp_path / name
    path = lay_out(small, root, name) / file
    truth, size = small[file], len(small[file])
    damaged = draw.draw(
        st.one_of(
            st.binary(max_size=60),
            st.integers(0, size).map(lambda length: truth[:length]),
            st.binary(min_size=1, max_size=9).map(lambda more: truth + more),
            st.binary(min_size=1, max_size=9).map(lambda more: more + truth),
            st.tuples(st.integers(0, 20) | st.integers(0, size - 1), st.integers(0, 255)).map(
                lambda change: truth[: change[0]] + bytes([change[1]]) + truth[change[0] + 1 :]
            ),
        )
    )
    packed = draw.draw(st.sampled_from(["plain", "gzip", "gzip cut", "not gzip"]))
    if packed == "plain":
        path.write_bytes(damaged)
    else:
        path.unlink()
        path = path.with_name(f"{file}.gz")
        content = gzip.compress(damaged)
        path.write_bytes({"gzip": content, "gzip cut": content[:-3], "not gzip": damaged}[packed])
    start = 4 + 4 * len(data.FILES[file])
    intact = damaged == truth
    if name == "KMNIST" and len(damaged) == size:  # another pixel, or another label from 0 to 9, cannot be noticed
        intact = damaged[:start] == truth[:start] and ("images" in file or max(damaged[start:]) <= 9)
    if not intact or packed == "gzip cut":
        with pytest.raises(data.DataError, match=re.escape(str(path))) as error:
            data.load(name, root)
        assert not isinstance(error.value, data.DataUnavailable)
    else:
        digits = data.load(name, root)
        found = [digits.train_images, digits.train_labels, digits.test_images, digits.test_labels]
        (values,) = [tensor for tensor, kind in zip(found, data.FILES, strict=True) if kind == file]
        assert values.numpy().astype(np.uint8).tobytes() == damaged[start:]


def own(train=150, test=20, digits=range(10), test_digits=None, darker=1):
    """The four files of somebody's own data: {file: content}."""
    rng, contents = np.random.default_rng(0), {}
    for part, count, kinds in (("train", train, digits), ("t10k", test, test_digits or digits)):
        images = rng.integers(0, 200, (count, 28, 28), dtype=np.uint8) // darker
        contents[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 2051, count, 28, 28) + images.tobytes()
        contents[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, count) + bytes(
            np.resize(list(kinds), count).tolist()
        )
    return contents


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["My-Digits", "2024", "None", "1e3", "Ünïcode_9"])
def test_a_data_set_of_ones_own_has_as_many_images_as_it_likes(tmp_path, no_network, packed, name, capsys, monkeypatch):
    folder = lay_out(own(), tmp_path, name)
    if packed:
        for path in list(folder.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    digits = data.load(name, tmp_path)
    assert (digits.name, len(digits.train_images), len(digits.test_labels)) == (name, 150, 20)
    assert digits.train_images.numpy().tobytes() == own()[IMAGES][16:]
    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path))
    __main__.main(["check", f"--dataset={name}"])
    assert capsys.readouterr().out.startswith(f"-r dataset {name} "), "raw: papermill would make a number of 2024"

    path = next(data._places(folder, IMAGES))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(data.DataError, match=re.escape(str(path))):
        data.load(name, tmp_path)
    path.unlink()
    with pytest.raises(data.DataError, match="is missing"):
        data.load(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["mnist", "Digits", "My-Digitz", "../My-Digits", "", "My Digits", "my.digits", "-p", "é t"]
)
def test_a_name_without_a_folder_of_its_own_is_refused(tmp_path, name):
    for folder in ("My-Digits", "mnist", "My Digits", "my.digits", "-p", "é t"):  # mnist: as a Mac would find MNIST's
        (tmp_path / folder / "raw").mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match=r"unknown data set .* with a NAME of letters, digits, _ and - only"):
        data.load(name, tmp_path)
    for other in (2024, None, 1e3):
        with pytest.raises(ValueError, match=f"dataset must be a name, got {other}: papermill's -r"):
            data.load(other, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"digits": (3, 8)}, "has no 0 and no 1 and no 2 and no 4 and no 5 .* among its train labels"),
        ({"test_digits": range(9)}, "has no 9 among its test labels: all ten digits must be in both parts"),
        ({"train": 127}, "has 127 train images: at least 128 are needed"),
        ({"darker": 200}, ": its brightest train pixel is 0, where 255 is ink and 0 background"),
        ({"test": 19}, "has 19 test images: at least 20 are needed"),
    ],
)
def test_data_that_a_notebook_would_fail_on_after_minutes_are_refused_at_once(tmp_path, monkeypatch, files, message):
    lay_out(own(**files), tmp_path, "Own")
    monkeypatch.setenv("MNIST_AE_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=f"^error: Own ?{message}"):
        __main__.main(["check", "--dataset=Own"])
    assert data.LEAST["train"] == recipes.BATCH


SPELLINGS = {
    "a dot": lambda folder, file: folder / file.replace("-idx", ".idx"),
    "a dot, gzip without .gz": lambda folder, file: folder / file.replace("-idx", ".idx"),
    "without raw/": lambda folder, file: folder.parent / file,
    "a folder of its name": lambda folder, file: folder / file / file,
    "a dot in a folder of its name": lambda folder, file: (
        folder / file.replace("-idx", ".idx") / file.replace("-idx", ".idx")
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["MNIST", "auto", "Own"])
def test_files_as_file_managers_and_other_sites_leave_them_are_read(small, tmp_path, no_network, spelling, name):
    contents = own() if name == "Own" else small
    folder = lay_out({}, tmp_path, "MNIST" if name == "auto" else name)
    for file, content in contents.items():
        path = SPELLINGS[spelling](folder, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if "gzip" in spelling else content)
    assert data.load(name, tmp_path).train_images.numpy().tobytes() == contents[IMAGES][16:]


def test_files_of_no_known_name_are_named(tmp_path, no_network):
    (lay_out({}, tmp_path) / "archive.zip").write_bytes(b"PK")
    with pytest.warns(UserWarning, match=r"NOT MNIST.* MNIST is not in .* \(.*raw holds archive.zip\) and could not"):
        data.load("auto", tmp_path)
    for file in (IMAGES, LABELS):  # MNIST_AE_DATA names the folder of the files, not the one above MNIST/raw
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "MNIST" / "raw" / "archive.zip").unlink()
    with pytest.warns(UserWarning, match=rf"\({tmp_path} holds train-images-idx3-ubyte, train-labels"):
        data.load("auto", tmp_path)
    (lay_out({}, tmp_path, "Own") / "mnist.csv").write_text("5,0,0")
    with pytest.raises(data.DataError, match=rf"{IMAGES} is missing \(.*raw holds mnist.csv\)"):
        data.load("Own", tmp_path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ((8, 4), "holds unsigned bytes in 4 dimensions, not unsigned bytes in 3"),  # colour
        ((12, 2), "holds 32-bit integers in 2 dimensions"),  # QMNIST's labels
        ((13, 3), "holds 32-bit floats in 3 dimensions"),
        ((14, 3), "holds 64-bit floats in 3 dimensions"),
        ((9, 3), "holds signed bytes in 3 dimensions"),
        ((11, 1), "holds 16-bit integers in 1 dimensions"),
        ((7, 3), "does not start as such a file does"),
    ],
)
def test_a_file_of_another_type_says_what_it_holds(tmp_path, start, message):
    folder = lay_out(own(), tmp_path, "Own")
    (folder / IMAGES).write_bytes(bytes([0, 0, *start]) + own()[IMAGES][4:])
    with pytest.raises(data.DataError, match=rf"{IMAGES} cannot be used: it {message}"):
        data.load("Own", tmp_path)


def test_the_bundled_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # asked for by name, they come without a warning
        assert data.load("digits").checksum == digits.checksum
    small, labels = load_digits(return_X_y=True)
    assert torch.cat([digits.train_labels, digits.test_labels]).tolist() == labels.tolist()
    images = torch.cat([digits.train_images, digits.test_images])
    assert (images.shape, images.dtype) == ((1797, 1, 28, 28), torch.uint8)
    ink = torch.nn.functional.adaptive_avg_pool2d(images[:, :, 4:24, 4:24].float(), 4).flatten(1).numpy()
    expected = small.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) * 255 / 16
    assert np.corrcoef(ink.ravel(), expected.ravel())[0, 1] > 0.99
    assert images[:, :, :3].max() == 0, "an empty frame, as in MNIST"
    # The first two pixels of the upper row: 8 are stretched to 20, so their centres lie at -0.3 and 0.1 of the old.
    first, second = small.reshape(-1, 8, 8)[:, 0, :2].T * 255 / 16
    assert (images[:, 0, 4, 4].numpy() == first.round()).all()
    np.testing.assert_allclose(images[:, 0, 4, 5], 0.9 * first + 0.1 * second, atol=0.51)


# ------------------------------------------------------------------- the real download code, against a local server


@pytest.fixture
def server(small, tmp_path, monkeypatch):
    """A web server on this machine with the gzipped files, and torchvision's KMNIST told to fetch them there."""
    from torchvision import datasets

    folder = tmp_path / "server"
    folder.mkdir()
    for file, content in small.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        checksums = [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in sorted(folder.iterdir())]
        for dataset in (datasets.MNIST, datasets.KMNIST):
            monkeypatch.setattr(dataset, "mirrors", [f"http://127.0.0.1:{web.server_port}/"])
            monkeypatch.setattr(dataset, "resources", checksums)
        yield folder
        web.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize("name", ["MNIST", "KMNIST", "auto"])
def test_download_lays_the_files_out_and_is_done_once(server, small, tmp_path, name):
    root = tmp_path / "deep" / "data"
    digits = data.load(name, root)
    assert digits.name == ("MNIST" if name == "auto" else name)
    assert digits.train_images.numpy().tobytes() == small[IMAGES][16:]
    assert sorted(p.name for p in (root / digits.name / "raw").iterdir()) == sorted(f"{file}.gz" for file in small)
    assert [p.name for p in root.iterdir()] == [digits.name], "nothing else is left"
    for file in server.iterdir():
        file.unlink()
    assert data.load(name, root).checksum == digits.checksum


def test_half_a_data_set_is_completed(server, small, tmp_path):
    (lay_out(small, tmp_path / "data") / LABELS).unlink()
    assert data.load("MNIST", tmp_path / "data").train_labels.tolist() == list(small[LABELS][8:])


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a changed byte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "a login page": lambda content: b"<!DOCTYPE html><title>Log in</title>",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["MNIST", "KMNIST"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_repaired_where_there_is_a_network(server, small, tmp_path, name, damage, packed):
    folder, whole = (
        lay_out(small, tmp_path / "data", name),
        data.load("MNIST", lay_out(small, tmp_path / "whole").parents[1]),
    )
    path = folder / (f"{LABELS}.gz" if packed else LABELS)
    (folder / LABELS).unlink()
    damaged = DAMAGES[damage](gzip.compress(small[LABELS]) if packed else small[LABELS][:-1] + b"\xff")
    path.write_bytes(damaged)
    for _ in range(2):
        assert torch.equal(data.load(name, tmp_path / "data").train_labels, whole.train_labels)
        for file in server.iterdir():
            file.unlink()
    assert packed or path.read_bytes() == damaged, "a file of the user's stays"


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"", None])
def test_a_login_page_or_half_a_download_is_not_kept(server, tmp_path, content):
    file = server / f"{LABELS}.gz"
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    root = tmp_path / "data"
    with pytest.raises(data.DataError, match="could not be downloaded"):
        data.load("MNIST", root)
    assert not (root / "MNIST" / "raw" / f"{LABELS}.gz").exists()
