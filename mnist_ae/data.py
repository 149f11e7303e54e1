"""Images and labels as tensors: MNIST and its siblings, or the bundled digits when MNIST cannot be had."""

import gzip
import hashlib
import os
import re
import shutil
import socket
import struct
import tempfile
import time
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_ae import files

NAMES = ("auto", "MNIST", "FashionMNIST", "KMNIST", "digits")

# File name -> shape. FashionMNIST and KMNIST were made to MNIST's measure.
FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
# SHA-256 of MNIST's four uncompressed files.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SUMS = "sha256sums"  # beside the files of a download; `sha256sum -c` reads it too
DOWNLOAD_TIMEOUT = 15  # seconds without an answer; a network that swallows packets must not hang a first run
ABANDONED = 24 * 3600  # seconds, after which a download is not that of a process at work beside this one


class DataError(RuntimeError):
    """A data file that is damaged, or a data set that is incomplete; the message names the path and the fault."""


class DataUnavailable(DataError):
    """A data set that is neither on disk nor downloadable."""


@dataclass(frozen=True)
class Digits:
    """A data set. images: uint8 [N, 1, 28, 28], 0 background to 255 ink; labels: int64 [N], 0 to 9."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        """ValueError for what cannot be learned from or scored."""
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.shape[1:] != (1, 28, 28) or images.dtype != torch.uint8:
                raise ValueError(f"{part}_images must be uint8 [N, 1, 28, 28], got {images.dtype} {list(images.shape)}")
            if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
                raise ValueError(
                    f"{part}_labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}"
                )
            if len(images) == 0:
                raise ValueError(f"{part}_images is empty")
            if labels.min() < 0 or labels.max() > 9:
                raise ValueError(f"{part}_labels must be 0 to 9, got {labels.min()} to {labels.max()}")

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all four tensors, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()


def load(name: str = "auto", root: str | Path | None = None) -> Digits:
    """Load a data set: train and test images uint8 [N, 1, 28, 28] and labels int64 [N].

    name: "MNIST", "FashionMNIST", "KMNIST", "digits" (scikit-learn's bundled 8x8 digits, scaled up), or "auto": MNIST,
        and with a warning the bundled digits where MNIST is neither on disk nor downloadable. Or that of a data set of
        your own: a folder beside MNIST's with the same four files, of as many images as you like.
    root: the folder that holds (or will hold) NAME/raw/train-images-idx3-ubyte and so on, as torchvision lays it out;
        by default $MNIST_AE_DATA (a relative path counts from the repository, since notebooks run in a subfolder),
        else `data/` in the repository. Files compressed with gzip (`.gz`) are read as they are.

    A file that is damaged, or missing beside others, is downloaded again; the damaged one is kept as NAME.damaged.

    Raises ValueError for an unknown name, DataUnavailable where the files are neither on disk nor downloadable, and
    DataError, never a fallback, for a file that is damaged or missing and cannot be downloaded again.

    >>> digits = load("digits")
    >>> digits.train_images.shape, digits.test_labels.shape
    (torch.Size([1437, 1, 28, 28]), torch.Size([360]))
    """
    if name not in NAMES:
        return _load_own(name, _data_root(root))
    if name == "digits":
        return _bundled_digits()
    try:
        return _load_idx("MNIST" if name == "auto" else name, _data_root(root))
    except DataUnavailable as reason:
        if name != "auto":
            raise
        warnings.warn(
            f"NOT MNIST: falling back to scikit-learn's 1,797 bundled digits. {reason} "
            "Every number and figure of this run is about the bundled digits.",
            stacklevel=2,
        )
        return _bundled_digits()


def _data_root(root: str | Path | None) -> Path:
    """The folder to look in: the argument, else $MNIST_AE_DATA, else data/."""
    if root is not None:
        return Path(root).expanduser().absolute()
    return (files.HOME / Path(os.environ.get("MNIST_AE_DATA") or "data").expanduser()).resolve()


def _load_own(name: str, root: Path) -> Digits:
    """A data set that has no published checksums and no download; ValueError where there is no folder of its name."""
    folder = root / name / "raw"
    known = name.lower() in [other.lower() for other in NAMES]  # "mnist" is a slip, on a Mac a folder that exists too
    if known or not re.fullmatch(r"[\w-]+", name) or not folder.is_dir():
        raise ValueError(
            f"unknown data set {name!r}: choose one of {', '.join(NAMES)}, or put its four files into {root}/NAME/raw"
        )
    return _digits(name, [_read_idx(_place(folder, file), (None, *shape[1:]), None) for file, shape in FILES.items()])


def _digits(name: str, arrays: list[np.ndarray]) -> Digits:
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(array) for array in arrays)
    return Digits(name, train_images.unsqueeze(1), train_labels.long(), test_images.unsqueeze(1), test_labels.long())


def _load_idx(name: str, root: Path) -> Digits:
    folder = root / name / "raw"
    try:
        arrays = _read_all(folder)
    except DataError as fault:
        try:
            _download(name, root)
        except (OSError, RuntimeError, EOFError, zlib.error) as error:
            reason = f"{' '.join(str(error).split())} ({type(error).__name__})"
            if any(_place(folder, file).exists() for file in FILES):
                raise DataError(f"{fault} It could not be downloaded again: {reason}") from error
            raise DataUnavailable(f"{name} is not in {folder} and could not be downloaded: {reason}") from error
        arrays = _read_all(folder)
    return _digits(name, arrays)


def _download(name: str, root: Path) -> None:
    """Let torchvision download and verify a data set beside its place, then move there, each in one step, the files
    that are missing or damaged; and leave the checksums of what was verified.
    """
    from torchvision import datasets  # slow to import, and needed here only

    folder = root / name / "raw"
    root.mkdir(parents=True, exist_ok=True)
    for partial in root.glob(".download-*"):
        if time.time() - partial.stat().st_mtime > ABANDONED:  # by a process that was killed
            shutil.rmtree(partial)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as partial:
            getattr(datasets, name)(partial, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            new = Path(partial, name, "raw")
            sums = {file: hashlib.sha256((new / file).read_bytes()).hexdigest() for file in FILES}
            files.write(folder / SUMS, "".join(f"{sums[file]}  {file}\n" for file in FILES).encode())
            for file, shape in FILES.items():
                try:
                    _read_idx(_place(folder, file), shape, sums[file])
                except DataError:
                    with suppress(FileNotFoundError):
                        os.replace(_place(folder, file), folder / f"{file}.damaged")
                    os.replace(new / file, folder / file)
    finally:
        socket.setdefaulttimeout(timeout)


def _place(folder: Path, file: str) -> Path:
    """Where to read a file: the plain one, else the gzipped one."""
    return folder / file if (folder / file).exists() else folder / f"{file}.gz"


def _read_all(folder: Path) -> list[np.ndarray]:
    """The four files. Their checksums: MNIST's are known, those of the others were left by their download, if any."""
    sums = SHA256
    if folder.parent.name != "MNIST":
        try:
            left = (folder / SUMS).read_text(errors="replace")
        except OSError:
            left = ""
        sums = {file: checksum for checksum, file in re.findall(r"^([0-9a-f]{64})  (\S+)$", left, re.M)}
    return [_read_idx(_place(folder, file), shape, sums.get(file)) for file, shape in FILES.items()]


def _read_idx(path: Path, shape: tuple[int | None, ...], sha256: str | None) -> np.ndarray:
    """One IDX file (http://yann.lecun.com/exdb/mnist) as uint8 of that shape; DataError names path and fault.

    A shape that begins with None takes as many images or labels as the file announces.
    """
    try:
        content = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path.with_suffix('')} is missing.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if shape[0] is None:
        shape = (int.from_bytes(content[4:8]), *shape[1:])
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 | len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    fault = None
    if not content:
        fault = "is empty"
    elif content[:4] != header[:4]:
        fault = f"does not start as such a file does: {content[:4]!r} instead of {header[:4]!r}"
    elif content[: len(header)] != header:
        found = struct.unpack_from(f">{len(shape)}I", content.ljust(len(header), b"\0"), 4)
        fault = f"announces shape {found}, not {shape}"
    elif len(content) != size:
        fault = f"has {len(content):,} bytes instead of {size:,}"
    elif sha256 and hashlib.sha256(content).hexdigest() != sha256:
        fault = "has the right size and the wrong checksum: some of its bytes were changed"
    if fault:
        raise DataError(f"{path} is damaged: it {fault}.")
    values = np.frombuffer(bytearray(content), np.uint8, offset=len(header)).reshape(shape)
    if len(shape) == 1 and values.max(initial=0) > 9:
        raise DataError(f"{path} is damaged: it holds the label {values.max()}, outside 0 to 9.")
    return values


def _bundled_digits() -> Digits:
    """scikit-learn's 1,797 digits of 8x8: scaled to 20x20 in a 28x28 frame, as MNIST's are.

    The last 360 are the test set: in the file's order those come from other writers.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
    large = F.pad(F.interpolate(small, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    images, labels = large.round().to(torch.uint8), torch.from_numpy(labels).long()
    return Digits("digits", images[:-360], labels[:-360], images[-360:], labels[-360:])
