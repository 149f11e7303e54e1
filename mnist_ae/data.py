"""Images and labels as tensors: MNIST and its siblings, or the bundled digits when MNIST cannot be had."""

import gzip
import hashlib
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_ae import checks, storage

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
LEAST = {"train": 128, "test": 20}  # images: one batch of the label-free recipe; what rows of images need
DOWNLOAD_TIMEOUT = 15  # seconds without an answer; a network that swallows packets must not hang a first run


class DataError(RuntimeError):
    """A data file that is damaged, or a data set that is incomplete; the message names the path and the fault."""


class DataUnavailable(DataError):
    """A data set that is neither on disk nor downloadable."""


@dataclass(frozen=True)
class Digits:
    """A data set. images: uint8 [N, 1, 28, 28], 0 (background) to 255; labels: int64 [N], 0 to 9.

    Made from what `checks.as_images` and `as_labels` take. ValueError for what cannot be learned from or scored.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            labels = torch.from_numpy(checks.as_labels(getattr(self, f"{part}_labels"), f"{part}_labels"))
            images = checks.as_images(getattr(self, f"{part}_images"))
            if images.dtype != torch.uint8:
                raise ValueError(f"{part}_images must be uint8, 0 to 255, got {images.dtype}")
            if not 0 < len(images) == len(labels):
                raise ValueError(f"{part}_labels must be one an image, at least one: {len(labels)} for {len(images)}")
            object.__setattr__(self, f"{part}_images", images)
            object.__setattr__(self, f"{part}_labels", labels)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all four tensors, as 64 hexadecimal digits."""
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return hashlib.sha256(b"".join(tensor.contiguous().numpy() for tensor in tensors)).hexdigest()


def load(name: str = "auto", root: str | Path | None = None) -> Digits:
    """Load a data set: train and test images uint8 [N, 1, 28, 28] and labels int64 [N].

    name: "MNIST", "FashionMNIST", "KMNIST", "digits" (scikit-learn's bundled 8x8 digits, scaled up), or "auto": MNIST,
        and with a warning the bundled digits where MNIST is neither on disk nor downloadable. Or that of a data set of
        your own: a folder beside MNIST's with the same four files, bright on dark, each digit in both parts, at least
        LEAST images in each.
    root: the folder that holds (or will hold) NAME/raw/train-images-idx3-ubyte and so on, as torchvision lays it out;
        by default $MNIST_AE_DATA (a relative path counts from the repository, since notebooks run in a subfolder),
        else `data/` in the repository. Other spellings of these names are read, too: see `_places`.

    A file that is missing or damaged is downloaded, gzipped, to NAME/raw/FILE.gz; one elsewhere stays.

    Raises ValueError for an unknown name; DataUnavailable where the files are neither on disk nor downloadable; and
    DataError, never a fallback, for a file that is damaged or missing and cannot be downloaded again, and for data of
    your own that lack a digit.

    >>> digits = load("digits")
    >>> digits.train_images.shape, digits.test_labels.shape
    (torch.Size([1437, 1, 28, 28]), torch.Size([360]))
    """
    if not isinstance(name, str):
        raise ValueError(f"dataset must be a name, got {name!r}: papermill's -r dataset NAME keeps it text")
    if name == "digits":
        return _bundled_digits()
    environment = storage.named(os.environ.get("MNIST_AE_DATA") or "data").resolve()
    root = environment if root is None else Path(root).expanduser().absolute()
    if name not in NAMES:
        return _load_own(name, root)
    try:
        return _load_published("MNIST" if name == "auto" else name, root)
    except DataUnavailable as reason:
        if name != "auto":
            raise
        warnings.warn(
            "NOT MNIST: falling back to scikit-learn's 1,797 bundled digits: all that this run computes is about them, "
            f"what it cites is not. {reason}",
            stacklevel=2,
        )
        return _bundled_digits()


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
    digits = Digits(name, *[_read(root / name / "raw", file, (None, *shape[1:])) for file, shape in FILES.items()])
    for part, least in LEAST.items():
        found = getattr(digits, f"{part}_labels").bincount(minlength=10)
        if (brightest := getattr(digits, f"{part}_images").max()) < 128:
            raise DataError(f"{name}: its brightest {part} pixel is {brightest} of 255: too dark")
        if missing := (found == 0).nonzero().flatten().tolist():
            lacking = " and no ".join(map(str, missing))
            raise DataError(f"{name} has no {lacking} among its {part} labels: all ten digits must be in both parts")
        if found.sum() < least:
            raise DataError(f"{name} has {found.sum()} {part} images: at least {least} are needed")
    return digits


def _load_published(name: str, root: Path) -> Digits:
    folder, arrays = root / name / "raw", []
    for file, shape in FILES.items():
        sha256 = SHA256[file] if name == "MNIST" else None  # that of the others is gzip's own, and their download's
        try:
            arrays.append(_read(folder, file, shape, sha256))
        except DataError as fault:
            try:
                _download(name, file, folder)
            except (OSError, ValueError) as error:
                reason = f"{' '.join(str(error).split())} ({type(error).__name__})"
                if any(any(_places(folder, other)) for other in FILES):
                    raise DataError(f"{fault} It could not be downloaded again: {reason}") from error
                missing = f"{name} is not in {folder}{_held(folder)}"
                raise DataUnavailable(f"{missing} and could not be downloaded: {reason}") from error
            arrays.append(_read(folder, file, shape, sha256))
    return Digits(name, *arrays)


def _download(name: str, file: str, folder: Path) -> None:
    """Get FILE.gz, from where torchvision gets it and with the MD5 sum that it knows; OSError or ValueError."""
    import pooch  # slow to import, and needed here only
    from torchvision import datasets

    source, faults = getattr(datasets, name), []
    checksum = f"md5:{dict(source.resources)[f'{file}.gz']}"
    downloader = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT, progressbar=True)
    for mirror in source.mirrors:
        try:
            pooch.retrieve(f"{mirror}{file}.gz", checksum, f"{file}.gz", folder, downloader=downloader)
            return
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
            faults.append(error)
    raise faults[0]


def _places(folder: Path, file: str) -> Iterator[Path]:
    """Where a file lies: in raw/ or above it; its name with a dash, or with a dot, as some sites and tools have it;
    alone, with `.gz`, or in a folder of the same name.
    """
    for place in (folder, folder.parent):
        for name in (file, file.replace("-idx", ".idx")):
            yield from filter(Path.is_file, (place / name, place / f"{name}.gz", place / name / name))


def _held(folder: Path) -> str:
    """What lies in NAME/raw, or else above it, as words for a message; nothing where nothing does."""
    for place in (folder, folder.parent, folder.parent.parent):
        if names := sorted(path.name for path in place.glob("[!.]*") if path not in (folder, folder.parent)):
            return f" ({place} holds {', '.join(names[:6])}{' ...' if len(names) > 6 else ''})"
    return ""


def _read(folder: Path, file: str, shape: tuple[int | None, ...], sha256: str | None = None) -> np.ndarray:
    """The first intact one of a file's places, see `_read_idx`; else DataError with the first fault."""
    faults = []
    for path in _places(folder, file):
        try:
            return _read_idx(path, shape, sha256)
        except DataError as fault:
            faults.append(fault)
    raise faults[0] if faults else DataError(f"{folder / file} is missing{_held(folder)}.")


def _read_idx(path: Path, shape: tuple[int | None, ...], sha256: str | None) -> np.ndarray:
    """One IDX file (http://yann.lecun.com/exdb/mnist), gzipped or not, as uint8 of that shape, where None is what the
    file announces; DataError names path and fault.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if shape[0] is None:
        shape = (int.from_bytes(content[4:8]), *shape[1:])
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 | len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    fault = None
    if len(content) > 4 and content[:2] == b"\0\0" and content[2] in KINDS and content[2:4] != header[2:4]:
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

    The last 360 of its file are the test set.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
    large = F.pad(F.interpolate(small, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    images, labels = large.round().to(torch.uint8), torch.from_numpy(labels).long()
    return Digits("digits", images[:-360], labels[:-360], images[-360:], labels[-360:])
