"""Images from files: IDX (MNIST and its family), CIFAR-10 binary, folders of pictures; digits and Fashion-MNIST ready.

Inputs are float32 `[example, height, width, channel]` in [0, 1], labels int32. Files are data, never trusted: headers
are checked against lengths before anything is allocated, unpacking stops at the declared size, nothing is executed.
"""

import gzip
import math
import os
import pathlib
import struct
import warnings
from typing import Any

import numpy as np

from jaxnets.data import batches, files
from jaxnets.types import InputError

Split = tuple[batches.Dataset, batches.Dataset]

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
DEFLATE_RATIO = 1032  # the most that deflate can expand: a stored length bounds the unpacked one

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_MNIST_DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}

# Formats whose decoders are inside pillow: others call programs (EPS runs Ghostscript).
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".webp": "WEBP"}


def digits(test_fraction: float = 0.3, seed: int = 0) -> Split:
    """Train and test part of scikit-learn's 1,797 handwritten digits, `[example, 8, 8, 1]`, split by class.

    Source: Alpaydin & Kaynak (1998), Optical recognition of handwritten digits, UCI.
    """
    bunch = files.optional("sklearn.datasets", "scikit-learn").load_digits()
    x = np.divide(bunch.images[..., None], 16, dtype=np.float32)
    return batches.split(batches.labeled(x, bunch.target, classes=10, source="digits"), test_fraction, seed)


def fashion_mnist(path: files.PathLike | None = None) -> Split:
    """Train (60,000) and test (10,000) part of Fashion-MNIST, `[example, 28, 28, 1]`; names in `FASHION_MNIST_CLASSES`.

    Taken from the folder `path`, else from Debian's package `dataset-fashion-mnist`, else from the cache (pooch's, or
    the folder in `JAXNETS_DATA`), else downloaded there (30 MB) and checked by hash.

    Raises:
      InputError: not found and offline (says how to get it), wrong hash, bad files.
    Source: Xiao, Rasul & Vollgraf (2017), arXiv:1708.07747.
    """
    if path is None:
        path = FASHION_MNIST_DEBIAN if FASHION_MNIST_DEBIAN.is_dir() else _download_fashion_mnist()
    return mnist(path)


def mnist(path: files.PathLike, *, classes: int = 10) -> Split:
    """Train and test part of a folder with the four IDX files of MNIST or a set made like it, packed (.gz) or not.

    Raises:
      InputError: a file is missing or bad, counts differ, labels are out of range.
    """
    return _idx_pair(path, "train", classes), _idx_pair(path, "t10k", classes)


def cifar10(path: files.PathLike) -> Split:
    """Train and test part of CIFAR-10 from its binary version's folder; names in `CIFAR10_CLASSES`.

    Raises:
      InputError: a file is missing or bad.
    Source: Krizhevsky (2009), Learning multiple layers of features from tiny images.
    """
    parts = [cifar10_file(pathlib.Path(path) / f"data_batch_{i}.bin") for i in range(1, 6)]
    train = batches.Dataset(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))
    return train, cifar10_file(pathlib.Path(path) / "test_batch.bin")


def cifar10_file(path: files.PathLike) -> batches.Dataset:
    """One file of CIFAR-10's binary version: records of a label 0..9 and 3 x 32 x 32 bytes.

    Raises:
      InputError: not a file of whole records, a label above 9, more than `files.LIMIT` bytes.
    """
    with files.reading(path), open(path, "rb") as stream:
        stored = os.fstat(stream.fileno()).st_size
        if stored == 0 or stored % CIFAR10_RECORD or stored > files.LIMIT:
            raise InputError(f"{path}: expected CIFAR-10 records of {CIFAR10_RECORD} bytes each, got {stored} bytes.")
        records = np.fromfile(stream, np.uint8).reshape(-1, CIFAR10_RECORD)
    planes = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return batches.labeled(unit(planes), records[:, 0], classes=10, source=str(path))


def folder(
    path: files.PathLike, *, size: tuple[int, int] | None = None, channels: int = 3, limit: int = files.LIMIT
) -> tuple[batches.Dataset, tuple[str, ...]]:
    """Pictures (PNG, JPEG, BMP, PPM, WebP) in one subfolder per class, and the names of the classes, sorted.

    Resized to `size` (height, width), otherwise all must be of one size; `channels` is 3 (RGB) or 1 (gray).

    Raises:
      InputError: no subfolders, one without pictures, an unreadable or 16-bit picture, sizes that differ, more than
        `limit` bytes in all.
    """
    image = files.optional("PIL.Image", "pillow")
    if channels not in (1, 3):
        raise ValueError(f"folder: channels must be 1 or 3, got {channels}.")
    if size is not None and min(size) < 1:
        raise InputError(f"folder: size must be (height, width), at least 1 each, got {size}.")
    with files.reading(path):
        names = sorted(entry.name for entry in pathlib.Path(path).iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise InputError(f"{path}: expected one subfolder of pictures per class, got none.")
    found = {name: picture_files(pathlib.Path(path) / name) for name in names}
    for name, pictures in found.items():
        if not pictures:
            raise InputError(f"{path}/{name}: expected pictures ({', '.join(PICTURES)}), got none.")

    pictures = [picture for name in names for picture in found[name]]
    height, width = size or _decode(image, pictures[0], channels, None).shape[:2]
    shape = (len(pictures), height, width, channels)
    if math.prod(shape) * 4 > limit:
        raise InputError(f"{path}: {shape} as float32 is more than the limit of {limit} bytes; pass a smaller size.")
    x = np.empty(shape, np.float32)
    for i, picture in enumerate(pictures):
        pixels = _decode(image, picture, channels, size)
        if pixels.shape != shape[1:]:
            raise InputError(
                f"{picture}: expected {height}x{width} pixels as in {pictures[0].name}, got "
                f"{pixels.shape[0]}x{pixels.shape[1]}; pass size=(height, width) to resize all."
            )
        x[i] = unit(pixels)
    y = np.repeat(np.arange(len(names)), [len(found[name]) for name in names])
    return batches.labeled(x, y, classes=len(names), source=str(path)), tuple(names)


def picture_files(path: files.PathLike) -> list[pathlib.Path]:
    """The pictures (PNG, JPEG, BMP, PPM, WebP; by suffix) in a folder, sorted by name; hidden files are left out."""
    with files.reading(path):
        return sorted(file for file in pathlib.Path(path).iterdir() if file.suffix.lower() in PICTURES and file.name[0] != ".")


def open_picture(path: files.PathLike, mode: str | None = None) -> Any:
    """A picture of 8 bits per channel, decoded by pillow; converted to `mode` ("RGB", "L") unless that is None.

    Raises:
      InputError: unreadable, truncated, 16 bits, or of more pixels than pillow takes to be honest.
    """
    image = files.optional("PIL.Image", "pillow")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            with image.open(path, formats=sorted(set(PICTURES.values()))) as picture:
                if picture.mode[0] in "IF":
                    raise ValueError(f"mode {picture.mode}, where 8 bits per channel are expected")
                return picture.convert(mode or picture.mode)
    except Exception as error:  # pillow's decoders raise most of what Python has on a broken file
        raise InputError(f"{path}: not a readable picture ({error}).") from error


def unit(pixels: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [0, 1]."""
    return np.divide(pixels, 255, dtype=np.float32)


def idx(path: files.PathLike, *, limit: int = files.LIMIT) -> np.ndarray:
    """Array in an IDX file (the format of MNIST), plain or gzip, in native byte order.

    Raises:
      InputError: not IDX, shorter or longer than its header says, corrupt, more than `limit` bytes.
    Source: LeCun, Cortes & Burges, THE MNIST DATABASE, "the IDX file format".
    """
    with files.reading(path), open(path, "rb") as raw:
        stored, packed = os.fstat(raw.fileno()).st_size, raw.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not 1 <= magic[3] <= 8:
            raise InputError(f"{path}: expected an IDX file (magic 00 00 type rank), got {magic.hex(' ') or 'nothing'}.")
        dtype, rank = np.dtype(IDX_TYPES[magic[2]]), magic[3]
        lengths = stream.read(4 * rank)
        if len(lengths) < 4 * rank:
            raise InputError(f"{path}: expected {rank} lengths after the magic number, got {len(lengths)} bytes.")
        shape = struct.unpack(f">{rank}I", lengths)
        expected = math.prod(shape) * dtype.itemsize
        if expected > limit:
            raise InputError(f"{path}: declares {shape} of {dtype}, more than the limit of {limit} bytes.")
        # One byte more than declared tells a longer file and, at the end of a gzip stream, checks its CRC.
        data = stream.read(min(expected, stored * (DEFLATE_RATIO if packed else 1)) + 1)
    if len(data) != expected:
        came = f"only {len(data)}" if len(data) < expected else "more"
        raise InputError(f"{path}: expected {expected} bytes after the header for {shape} of {dtype}, got {came}.")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _idx_pair(path: files.PathLike, prefix: str, classes: int) -> batches.Dataset:
    images_file, labels_file = (
        _packed_or_not(pathlib.Path(path) / f"{prefix}-{name}-ubyte") for name in ("images-idx3", "labels-idx1")
    )
    images, labels = idx(images_file), idx(labels_file)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise InputError(f"{images_file}: expected uint8 [image, row, column], got {images.dtype}{list(images.shape)}.")
    return batches.labeled(unit(images[..., None]), labels, classes=classes, source=str(labels_file))


def _packed_or_not(path: pathlib.Path) -> pathlib.Path:
    candidates = (path.with_name(path.name + ".gz"), path)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    reason = "no such file" if path.parent.is_dir() else "no such folder"
    raise InputError(f"{path}[.gz]: {reason}; expected the four IDX files {', '.join(FASHION_MNIST_SHA256)}.")


def _download_fashion_mnist() -> pathlib.Path:
    try:
        pooch = files.optional("pooch", "pooch")
        cache = pooch.create(
            path=pooch.os_cache("jaxnets") / "fashion-mnist",
            base_url=FASHION_MNIST_URL,
            registry={name: f"sha256:{digest}" for name, digest in FASHION_MNIST_SHA256.items()},
            env="JAXNETS_DATA",
        )
        paths = [pathlib.Path(cache.fetch(name)) for name in FASHION_MNIST_SHA256]
    except (OSError, ValueError) as error:  # no network, no disk, another hash, no pooch
        raise InputError(
            f"Fashion-MNIST: not found here and not downloaded ({error}). Install it (Debian, Ubuntu: apt install "
            f"dataset-fashion-mnist), or name a folder with its four IDX files ({', '.join(FASHION_MNIST_SHA256)}), "
            f"or come back with a network that reaches {FASHION_MNIST_URL}."
        ) from error
    return paths[0].parent


def _decode(image, path: pathlib.Path, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    picture = open_picture(path, "L" if channels == 1 else "RGB")
    if size is not None:
        picture = picture.resize(size[::-1], image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)
