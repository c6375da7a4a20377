"""Text as symbols: UTF-8 files of any script, a vocabulary of characters, contiguous streams for carried state.

From a file to the data of `loop.fit(..., batch=32, shuffle=False)`:

    characters = text.read("book.txt")
    vocabulary = text.vocabulary(characters)
    train, held_out = text.split(vocabulary.encode(characters))
    data = text.streams(train, batch=32, time=100)
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import sys
import sysconfig
import tokenize
import zlib
from typing import Any

import jax
import numpy as np

from jaxnets.data import batches, files
from jaxnets.types import Bool, InputError, Int

UNKNOWN = 0  # the id of every character that a vocabulary doesn't hold
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what UNKNOWN is decoded to
ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\-~])")  # ECMA-35, ECMA-48: control sequences, other escapes
APART = {"test", "tests", "idle_test", "encodings", "pydoc_data"}  # of the standard library: tests and tables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streams(batches.Dataset):
    """Windows [row, time] of int32 ids `x` and the ids `y` that follow; where `reset`, the state starts anew before x.

    Row p is window `p // batch` of stream `p % batch`: each `batch` rows go on where the `batch` before them ended.
    """

    reset: Any = None  # bool [row, time]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Characters by id: `symbols[i]` has id i + 1, and 0 stands for every other one; `symbols` is all there is to store."""

    symbols: str

    def __post_init__(self):
        if len(set(self.symbols)) != len(self.symbols) or REPLACEMENT in self.symbols:
            raise InputError(f"Vocabulary: expected different symbols and no U+FFFD, got {self.symbols!r:.80}.")

    def __len__(self) -> int:
        return len(self.symbols) + 1

    def encode(self, text: str) -> Int[np.ndarray, " symbol"]:
        """The id of each character as int32."""
        ids = np.zeros(sys.maxunicode + 1, np.int32)
        ids[_codes(self.symbols)] = np.arange(1, len(self))
        return ids[_codes(text)]

    def decode(self, ids: Any) -> str:
        """The characters of a vector of ids; U+FFFD for 0.

        Raises:
          InputError: ids that are not one axis of integers, or outside 0..len-1.
        """
        ids = _checked("decode", ids, len(self))
        return _codes(REPLACEMENT + self.symbols)[ids].tobytes().decode("utf-32-le", "surrogatepass")


def vocabulary(text: str, *, min_count: int = 1) -> Vocabulary:
    """The characters of `text` in the order of their code points; those seen less than `min_count` times are unknown.

    Raises:
      InputError: no character is left.
    """
    codes, counts = np.unique(_codes(text), return_counts=True)
    symbols = "".join(map(chr, codes[counts >= min_count])).replace(REPLACEMENT, "")
    if not symbols:
        raise InputError(f"vocabulary: expected text with a character seen {min_count} times, got {len(text)} characters.")
    return Vocabulary(symbols)


def read(path: files.PathLike, *, limit: int = files.LIMIT) -> str:
    r"""A UTF-8 file: without its byte order mark, with every line end (`\r\n`, `\r`) as `\n`.

    Raises:
      InputError: unreadable, empty, more than `limit` bytes, or a byte that isn't UTF-8 (its offset is named).
    """
    with files.reading(path), open(path, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path}: more than the limit of {limit} bytes.")
    try:
        text = data.decode().removeprefix("\N{BYTE ORDER MARK}")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})"
        raise InputError(f"{path}: expected UTF-8 text, got {wrong}.") from error
    if not text:
        raise InputError(f"{path}: expected text, got an empty file.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_ansi(text: str) -> str:
    """`text` without the escape codes that color it on a terminal."""
    return ANSI.sub("", text)


def document_starts(text: str, separator: str = "%") -> Bool[np.ndarray, " symbol"]:
    """True where a document begins: at the first symbol, and at every line that is `separator`.

    The line opens its document: a model learns it as the end of the one before, and a sample begins with it as prompt.

    Raises:
      InputError: no line is `separator`.
    """
    places = [match.start() for match in re.finditer(rf"^{re.escape(separator)}[ \t]*$", text, re.MULTILINE)]
    if not places:
        raise InputError(f"document_starts: expected lines {separator!r} in the text, got none.")
    starts = np.zeros(len(text), bool)
    starts[[0, *places]] = True
    return starts


def split(sequence: Any, fraction: float = 0.1) -> tuple[Any, Any]:
    """The first part and the last `fraction` of a text, of its ids, or of its starts.

    Raises:
      InputError: `fraction` outside (0, 1), or one part would be empty.
    """
    cut = int(len(sequence) * (1 - fraction))
    if not 0 < fraction < 1 or not 0 < cut < len(sequence):
        raise InputError(f"split: fraction must be in (0, 1) and leave two parts, got {fraction} of {len(sequence)} symbols.")
    return sequence[:cut], sequence[cut:]


def streams(ids: Any, batch: int, time: int, *, starts: Any = None) -> Streams:
    """Cuts ids into `batch` contiguous streams, side by side in windows of `time` steps, each with the id that follows.

    `reset` is True at the first symbol of every stream and where `starts`. Fewer than `batch * time` ids at the end fill no
    window of every stream and are left out; the last id used is only a target.

    Raises:
      InputError: `batch` or `time` below 1, ids too few for one window per stream, negative, or not one axis of integers;
        `starts` of another length.
    """
    if batch < 1 or time < 1:
        raise InputError(f"streams: batch and time must be at least 1, got {batch}, {time}.")
    ids = _checked("streams", ids, 2**31)
    starts = np.zeros(len(ids), bool) if starts is None else np.array(starts, bool)
    if starts.shape != ids.shape:
        raise InputError(f"streams: expected as many starts as ids, got {starts.shape} for {ids.shape}.")
    length = (len(ids) - 1) // (batch * time) * time  # of a stream
    if length < 1:
        needed = f"batch * time + 1 = {batch} * {time} + 1 = {batch * time + 1}"
        raise InputError(f"streams: a window of each stream needs {needed} symbols, got {len(ids)}.")

    def windows(symbols: np.ndarray) -> np.ndarray:
        return symbols[: batch * length].reshape(batch, -1, time).swapaxes(0, 1).reshape(-1, time)

    reset = windows(starts)
    reset[:batch, 0] = True
    return Streams(windows(ids), windows(ids[1:]), reset=reset)


def standard_library(limit: int = 2_000_000) -> str:
    """The first `limit` characters of the sources of Python's own standard library: a text that needs no download.

    Modules come in an order scattered by name (CRC-32 of the path), so that any part of the text is a mixture, and the same
    wherever the same release is installed; without tests, tables, and packages that were added.

    Raises:
      InputError: `limit` below 1, or no sources are installed.
    """
    if limit < 1:
        raise InputError(f"standard_library: limit must be at least 1, got {limit}.")
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    names = []
    for root, folders, inside in os.walk(folder):
        folders[:] = {name for name in folders if name.isidentifier()} - APART  # not: site-packages
        sources = [name for name in inside if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        names += [pathlib.Path(root, name).relative_to(folder).as_posix() for name in sources]
    text = io.StringIO()
    for name in sorted(sorted(names), key=lambda name: zlib.crc32(name.encode())):
        # A file that isn't text in the encoding it declares is left out.
        with contextlib.suppress(OSError, SyntaxError, UnicodeDecodeError), tokenize.open(folder / name) as stream:
            text.write(stream.read())
        if text.tell() >= limit:
            return text.getvalue()[:limit]
    if not text.tell():
        raise InputError(f"standard_library: expected sources of Python in {folder}, got none.")
    return text.getvalue()


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _checked(name: str, ids: Any, size: int) -> np.ndarray:
    """`ids` as an int32 vector, all in 0..size-1."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"{name}: expected one axis of integer ids, got {ids.dtype}{list(ids.shape)}.")
    wrong = np.flatnonzero((ids < 0) | (ids >= size))
    if len(wrong):
        raise InputError(f"{name}: expected ids 0..{size - 1}, got {ids[wrong[0]]} at position {wrong[0]}.")
    return ids.astype(np.int32)
