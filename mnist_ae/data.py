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
from numpy.typing import ArrayLike
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
# The third byte of an IDX file.
KINDS = {8: "unsigned bytes", 9: "signed bytes", 11: "16-bit integers", 12: "32-bit integers"}
KINDS |= {13: "32-bit floats", 14: "64-bit floats"}
LEAST = {"train": 128, "test": 20}  # images: one batch of the label-free recipe; what the maps and rows of images need
SUMS = "sha256sums"  # beside the files of a download; `sha256sum -c` reads it too
DOWNLOAD_TIMEOUT = 15  # seconds without an answer; a network that swallows packets must not hang a first run
ABANDONED = 24 * 3600  # seconds, after which a download is not that of a process at work beside this one


class DataError(RuntimeError):
    """A data file that is damaged, or a data set that is incomplete; the message names the path and the fault."""


class DataUnavailable(DataError):
    """A data set that is neither on disk nor downloadable."""


def check_pixels(images: Tensor) -> None:
    """ValueError for images of any shape that are neither uint8 nor floating in [0, 1].

    >>> check_pixels(torch.rand(3, 28, 28))
    """
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 in 0..255 or floating in [0, 1], got {images.dtype}")
    if not ((images >= 0) & (images <= 1)).all():  # NaN is neither
        raise ValueError("images hold pixels that are NaN or outside [0, 1]")


def as_images(images: ArrayLike) -> Tensor:
    """Images of NumPy or torch, [N, 28, 28] or [N, 1, 28, 28], uint8 in 0..255 or floating in [0, 1] -> [N, 1, 28, 28].

    Background is dark, ink is bright: warns where the border of most images is bright. ValueError for other shapes and
    types.

    >>> as_images(np.zeros((3, 28, 28))).shape
    torch.Size([3, 1, 28, 28])
    """
    if not isinstance(images, Tensor):
        try:
            array = np.array(images)  # a copy: torch takes no reversed and no read-only array
            images = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        except (TypeError, ValueError) as error:  # text, or lists of different lengths
            raise ValueError(f"images must be numbers, [N, 28, 28], got {type(images).__name__}: {error}") from error
    check_pixels(images)
    shape = list(images.shape)
    images = images[:, None] if images.ndim == 3 else images
    if images.shape[1:] != (1, 28, 28):
        raise ValueError(f"images must be grey and of 28 x 28 pixels, [N, 28, 28] or [N, 1, 28, 28], got {shape}")
    border = torch.cat([images[:, 0, [0, -1]].flatten(1), images[:, 0, :, [0, -1]].flatten(1)], dim=1).float().mean(1)
    if len(images) and border.median() > 0.6 * (255 if images.dtype == torch.uint8 else 1):
        warnings.warn("most images have a bright border: ink must be bright on dark, invert what is not", stacklevel=3)
    return images


def as_labels(labels: ArrayLike, name: str = "labels") -> np.ndarray:
    """Whole numbers from 0 to 9 of any type, 3.0 included -> int64 [N]; ValueError, with `name`, for anything else.

    >>> as_labels([3.0, 7])
    array([3, 7])
    """
    try:
        values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
        if values.dtype.kind not in "iufO" or any(type(value) is str for value in values.flat):
            raise TypeError(f"they are {values.dtype}")
        numbers = values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # text, a missing value, lists of different lengths
        raise ValueError(f"{name} must be whole numbers from 0 to 9, got {type(labels).__name__}: {error}") from error
    if numbers.ndim != 1:
        raise ValueError(f"{name} must be [N], got {list(numbers.shape)}")
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= 9) & (numbers == np.floor(numbers))))  # NaN is wrong, too
    if len(wrong):
        raise ValueError(f"{name} must be whole numbers from 0 to 9, got {numbers[wrong[0]]:g} at place {wrong[0]}")
    return numbers.astype(np.int64)


@dataclass(frozen=True)
class Digits:
    """A data set. images: uint8 [N, 1, 28, 28], 0 background to 255 ink; labels: int64 [N], 0 to 9.

    Made from what `as_images` and `as_labels` take. ValueError for what cannot be learned from or scored.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            labels = torch.from_numpy(as_labels(getattr(self, f"{part}_labels"), f"{part}_labels"))
            try:
                images = as_images(getattr(self, f"{part}_images"))
            except ValueError as error:
                raise ValueError(f"{part}_{error}") from error
            if images.dtype != torch.uint8:
                raise ValueError(f"{part}_images must be uint8, 0 to 255, got {images.dtype}")
            if len(images) == 0:
                raise ValueError(f"{part}_images is empty")
            if len(images) != len(labels):
                raise ValueError(f"{part}_labels must be one an image, {len(images)}, got {len(labels)}")
            object.__setattr__(self, f"{part}_images", images)
            object.__setattr__(self, f"{part}_labels", labels)

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
        else `data/` in the repository. Other spellings of these names are read, too: see `_place`.

    A file that is damaged, or missing beside others, is downloaded again; the damaged one is kept as NAME.damaged.

    Raises ValueError for an unknown name; DataUnavailable where the files are neither on disk nor downloadable; and
    DataError, never a fallback, for a file that is damaged or missing and cannot be downloaded again, and for data of
    your own that lack a digit.

    >>> digits = load("digits")
    >>> digits.train_images.shape, digits.test_labels.shape
    (torch.Size([1437, 1, 28, 28]), torch.Size([360]))
    """
    if not isinstance(name, str):
        raise ValueError(f"dataset must be a name, got {name!r}: papermill's -r dataset NAME keeps it text")
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
    return files.named(os.environ.get("MNIST_AE_DATA") or "data").resolve()


def _load_own(name: str, root: Path) -> Digits:
    """A data set that has no published checksums and no download. ValueError where there is no folder of its name,
    DataError where a part has too few images or lacks a digit: some notebook would fail after minutes.
    """
    known = name.lower() in [other.lower() for other in NAMES]  # "mnist" is a slip, on a Mac a folder that exists too
    if known or not re.fullmatch(r"\w[\w-]*", name) or not (root / name).is_dir():
        raise ValueError(
            f"unknown data set {name!r}: choose one of {', '.join(NAMES)}, or put four files of your own into "
            f"{root}/NAME/raw, with a NAME of letters, digits, _ and - only"
        )
    folder = root / name / "raw"
    digits = _digits(name, [_read_idx(_place(folder, f), (None, *shape[1:]), None) for f, shape in FILES.items()])
    for part, least in LEAST.items():
        found = getattr(digits, f"{part}_labels").bincount(minlength=10)
        if (brightest := getattr(digits, f"{part}_images").max()) < 128:
            raise DataError(f"{name}: its brightest {part} pixel is {brightest}, where 255 is ink and 0 background")
        if missing := (found == 0).nonzero().flatten().tolist():
            lacking = " and no ".join(map(str, missing))
            raise DataError(f"{name} has no {lacking} among its {part} labels: all ten digits must be in both parts")
        if found.sum() < least:
            raise DataError(f"{name} has {found.sum()} {part} images: at least {least} are needed")
    return digits


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
            missing = f"{name} is not in {folder}{_held(folder)}"
            raise DataUnavailable(f"{missing} and could not be downloaded: {reason}") from error
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
    """Where to read a file: in raw/ or above it; its name with a dash, or with a dot, as some sites and tools have it;
    alone, with `.gz`, or in a folder of the same name.
    """
    for place in (folder, folder.parent):
        for name in (file, file.replace("-idx", ".idx")):
            for path in (place / name, place / f"{name}.gz", place / name / name):
                if path.is_file():
                    return path
    return folder / file


def _held(folder: Path) -> str:
    """What lies in NAME/raw, or else above it, as words for a message; nothing where nothing does."""
    for place in (folder, folder.parent, folder.parent.parent):
        if names := sorted(path.name for path in place.glob("[!.]*") if path not in (folder, folder.parent)):
            return f" ({place} holds {', '.join(names[:6])}{' ...' if len(names) > 6 else ''})"
    return ""


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
    """One IDX file (http://yann.lecun.com/exdb/mnist), gzipped or not, as uint8 of that shape; DataError names path and
    fault.

    A shape that begins with None takes as many images or labels as the file announces.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing{_held(path.parent)}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if shape[0] is None:
        shape = (int.from_bytes(content[4:8]), *shape[1:])
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 | len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    fault = None
    if not content:
        fault = "is empty"
    elif len(content) > 4 and content[:2] == b"\0\0" and content[2] in KINDS and content[2:4] != header[2:4]:
        fault = f"holds {KINDS[content[2]]} in {content[3]} dimensions, not {KINDS[8]} in {len(shape)}"
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
        raise DataError(f"{path} cannot be used: it {fault}.")
    values = np.frombuffer(bytearray(content), np.uint8, offset=len(header)).reshape(shape)
    if len(shape) == 1 and values.max(initial=0) > 9:
        raise DataError(f"{path} cannot be used: it holds the label {values.max()}, outside 0 to 9.")
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
