"""Field data on the host: SEG-Y read and written through segyio (extra `seismic`), and plain arrays. NumPy in and out.

survey = segy.read("line.sgy")
result = ...  # [trace, time], from survey.traces and survey.interval
scale = segy.write("result.sgy", result, template="line.sgy")
"""

import contextlib
import dataclasses
import importlib
import os
import secrets
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxnets.types import Float, InputError, Int, Shaped

PathLike: TypeAlias = str | os.PathLike[str]

LIMIT = 2**32  # bytes a file may have, unless the caller says otherwise: 4 GiB
TEXT, BINARY, TRACE = 3200, 400, 240  # bytes of the headers
BYTES = {1: 4, 2: 4, 3: 2, 5: 4, 8: 1}  # per sample, by format code: IBM float, int32, int16, IEEE float, int8
POWERS = (1, 10, 100, 1000, 10_000)  # scalars of times
INTEGERS = {2: np.int32, 3: np.int16, 8: np.int8}


@dataclasses.dataclass(frozen=True)
class Survey:
    """Traces and what is known of them; header words are None where the file has no headers."""

    path: str
    traces: Float[np.ndarray, "trace time"]  # float32, all finite
    interval: float  # s
    delay: float = 0.0  # s, of the first sample of the first trace
    inlines: Int[np.ndarray, " trace"] | None = None
    crosslines: Int[np.ndarray, " trace"] | None = None
    offsets: Int[np.ndarray, " trace"] | None = None  # m or ft
    x: Float[np.ndarray, " trace"] | None = None  # of the common midpoint, the header's scalar applied
    y: Float[np.ndarray, " trace"] | None = None
    text: str = ""  # textual header, 40 lines
    sample_format: int | None = None  # SEG-Y code: 1 IBM float, 2 int32, 3 int16, 5 IEEE float32, 8 int8
    grid: tuple[int, int, int] | None = None  # inlines, crosslines, offsets of a complete, sorted grid; None of anything else
    sorting: str | None = None  # of the grid: "inline" or "crossline"
    notes: tuple[str, ...] = ()  # what the headers say that can't be so, and what was done about it

    def cube(self, traces: Shaped[np.ndarray, "trace time"] | None = None) -> Shaped[np.ndarray, "..."]:
        """The traces, or others in their order, as `[inline, crossline, time]`, and before time offset where it varies.

        Raises:
          InputError: the traces are not a complete, sorted grid of lines.
        """
        if self.grid is None:
            raise InputError(f"{self.path}: expected a complete grid of inlines and crosslines, sorted by one of them.")
        inlines, crosslines, offsets = self.grid
        by_inline = self.sorting == "inline"
        lines = (inlines, crosslines) if by_inline else (crosslines, inlines)
        cube = (self.traces if traces is None else traces).reshape(*lines, *[offsets] * (offsets > 1), self.traces.shape[1])
        return cube if by_inline else cube.swapaxes(0, 1)


def read(
    path: PathLike, *, interval: int | float | None = None, inline: int = 189, crossline: int = 193, limit: int = LIMIT
) -> Survey:
    """A SEG-Y file of either byte order. `interval` in s overrules the headers; `inline` and `crossline` are byte positions.
    Samples become float32: int32 ones beyond 2^24 are rounded.

    The file's size must be that of whole traces of the length that the binary header states: checked before anything is read.

    Raises:
      InputError: no SEG-Y file, truncated, larger than `limit` bytes, traces of different lengths, no or contradictory sample
        intervals, NaN or infinite samples (the trace is named, counted from 0), segyio absent.
    """
    if interval is not None and not interval > 0:
        raise ValueError(f"read: interval must be positive (s), got {interval}.")
    segyio = _segyio()
    layout = _layout(path, limit)
    with _open(path, "r", layout.endian) as file:
        traces = file.trace.raw[:].astype(np.float32)
        fields = segyio.TraceField

        def word(position) -> np.ndarray:
            return np.asarray(file.attributes(position)[:], np.int32)

        lengths, intervals = word(fields.TRACE_SAMPLE_COUNT), word(fields.TRACE_SAMPLE_INTERVAL)
        factor, time_scalar = _factor(word(fields.SourceGroupScalar)), word(fields.ScalarTraceHeader)
        inlines, crosslines, offsets = word(inline), word(crossline), word(fields.offset)
        x, y = word(fields.CDP_X), word(fields.CDP_Y)
        # Revision 1 has powers of 10 only; in older files the two bytes may hold anything.
        delays = word(fields.DelayRecordingTime) * _factor(np.where(np.isin(abs(time_scalar), POWERS), time_scalar, 1))
        stated = int(file.bin[segyio.BinField.Interval])
    _check_finite(path, traces)
    grid, sorting = _grid(inlines, crosslines, offsets)
    return Survey(
        path=os.fspath(path),
        traces=traces,
        interval=_interval(path, stated, intervals) if interval is None else float(interval),
        delay=float(delays[0]) / 1000,
        inlines=inlines,
        crosslines=crosslines,
        offsets=offsets,
        x=x * factor,
        y=y * factor,
        text=_text(path),
        sample_format=layout.sample_format,
        grid=grid,
        sorting=sorting,
        notes=_length_notes(path, lengths, layout.samples) + _delay_notes(delays),
    )


def write(
    path: PathLike,
    traces: Shaped[np.ndarray, "trace time"],
    *,
    template: PathLike,
    sample_format: Literal["template", "float32"] = "template",
    scale: int | float | None = None,
) -> float:
    """A SEG-Y file with the headers of `template`, byte for byte, that holds `scale * traces`; returns `scale`.

    The sample format stays: an integer one rounds, so there `scale` is by default the largest power of 2 at which nothing
    overflows; elsewhere it is 1. `sample_format="float32"` stores IEEE floats instead, which changes two bytes of the binary
    header, the format code, and no other. The file appears under its name only when it is complete.

    Raises:
      InputError: an unusable template, or `path` is the template; a disk that can't be written; segyio absent.
      ValueError: traces not of the template's shape, not finite, or too large for the format at the given `scale`.
    """
    _segyio()
    if sample_format not in ("template", "float32"):
        raise ValueError(f"write: sample_format must be 'template' or 'float32', got {sample_format!r}.")
    layout = _layout(template, LIMIT)
    if os.path.exists(path) and os.path.samefile(path, template):
        raise InputError(f"{path}: expected another file than the template; it would be lost.")
    if traces.shape != (layout.count, layout.samples):
        raise ValueError(f"write: traces must be {(layout.count, layout.samples)} like {template}, got {traces.shape}.")
    if not np.isfinite(traces).all():
        raise ValueError(f"write: traces must be finite, got NaN or infinity in trace {_first_bad(traces)}.")
    code = 5 if sample_format == "float32" else layout.sample_format
    samples, scale = _encode(traces, code, scale)
    with _appears_when_complete(path) as partial:
        with open(partial, "wb") as stream:
            stream.write(_with_empty_traces(template, layout, code))
        with _open(partial, "r+", layout.endian, name=path) as file:
            file.trace[:] = samples
    return scale


def load_npy(path: PathLike, *, interval: int | float, limit: int = LIMIT) -> Survey:
    """Traces `[trace, time]` of a `.npy` file of real numbers, sampled every `interval` s. Nothing in the file is executed.

    Raises:
      InputError: not such a file, truncated, pickled, not two axes of real numbers, larger than `limit` bytes, NaN or infinite
        samples (the trace is named, counted from 0).
      ValueError: `interval <= 0`.
    """
    if not interval > 0:
        raise ValueError(f"load_npy: interval must be positive (s), got {interval}.")
    _check_size(path, limit)
    try:
        # Mapped: no header can make it allocate more than the file has.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error}).") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise InputError(f"{path}: expected real numbers [trace, time], got {got}.")
    with np.errstate(over="ignore"):  # what doesn't fit float32 becomes infinite, and is named
        traces = np.asarray(array, np.float32)
    _check_finite(path, traces)
    return Survey(os.fspath(path), np.array(traces), float(interval))


# What the file's size and binary header say


@dataclasses.dataclass(frozen=True)
class _Layout:
    endian: Literal["big", "little"]
    sample_format: int
    samples: int
    count: int
    start: int  # byte of the first trace


def _layout(path: PathLike, limit: int) -> _Layout:
    size = _check_size(path, limit)
    with open(path, "rb") as stream:
        stream.seek(TEXT)
        header = stream.read(BINARY)
    if size < TEXT + BINARY + TRACE:
        raise InputError(f"{path}: not a SEG-Y file: expected headers of {TEXT + BINARY + TRACE} bytes, got {size} bytes.")

    def word(byte: int, endian: Literal["big", "little"]) -> int:
        return int.from_bytes(header[byte : byte + 2], endian, signed=True)

    if word(24, "big") in BYTES:
        endian = "big"
    elif word(24, "little") in BYTES:
        endian = "little"
    else:
        raise InputError(
            f"{path}: not a SEG-Y file: expected a sample format code of {sorted(BYTES)} at byte 3225 "
            f"in either byte order, got {header[24:26].hex(' ')}."
        )
    code, samples, extended = word(24, endian), word(20, endian) % 2**16, word(304, endian)
    if samples == 0 or extended < 0:
        raise InputError(
            f"{path}: expected samples per trace and 0 or more extended textual headers in the binary header, "
            f"got {samples} and {extended}."
        )
    start, length = TEXT + BINARY + extended * TEXT, TRACE + samples * BYTES[code]
    count, rest = divmod(size - start, length)
    if count < 1 or rest:
        raise InputError(
            f"{path}: truncated or not a SEG-Y file: expected whole traces of {length} bytes ({samples} samples) "
            f"after byte {start}, got {max(count, 0)} and {rest} bytes more."
        )
    return _Layout(endian, code, samples, count, start)


def _check_size(path: PathLike, limit: int) -> int:
    try:
        size = os.stat(path).st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}.") from error
    if size > limit:
        raise InputError(f"{path}: {size} bytes, more than the limit of {limit}.")
    return size


def _text(path: PathLike) -> str:
    """The 40 lines of the textual header, in EBCDIC (whose blank is ASCII's @) or, against the standard, in ASCII."""
    with open(path, "rb") as stream:
        raw = stream.read(TEXT)
    text = raw.decode("ascii" if raw.count(b" ") >= raw.count(b"@") else "cp037", "replace")
    return "\n".join(text[i : i + 80].rstrip() for i in range(0, TEXT, 80))


def _factor(scalar: np.ndarray) -> np.ndarray:
    """A factor where it is positive, a divisor where it is negative, 1 where it is 0."""
    scalar = np.where(scalar == 0, 1.0, scalar)
    return np.where(scalar < 0, -1 / scalar, scalar)


def _interval(path: PathLike, stated: int, intervals: np.ndarray) -> float:
    """In s, from the µs of the binary header and of each trace's, where a 0 says nothing."""
    said = sorted({int(value) % 2**16 for value in (stated, *np.unique(intervals)) if value != 0})  # unsigned
    if len(said) != 1:
        got = f"{', '.join(map(str, said))} µs" if said else "none"
        raise InputError(f"{path}: expected one sample interval in its headers, got {got}; state it by `interval` (s).")
    return said[0] / 1e6


def _length_notes(path: PathLike, lengths: np.ndarray, samples: int) -> tuple[str, ...]:
    said = np.unique(lengths % 2**16)  # unsigned, as in the binary header
    if len(said) > 1:
        raise InputError(f"{path}: expected traces of one length, got headers that state {said[0]} to {said[-1]} samples.")
    if said[0] in (0, samples):
        return ()
    return (f"trace headers state {said[0]} samples; the binary header and the file's size agree on {samples}",)


def _delay_notes(delays: np.ndarray) -> tuple[str, ...]:
    if (delays == delays[0]).all():
        return ()
    return (f"traces start at different times, {delays.min():g} to {delays.max():g} ms; their samples were not aligned",)


def _grid(inlines: np.ndarray, crosslines: np.ndarray, offsets: np.ndarray) -> tuple[tuple[int, int, int] | None, str | None]:
    """Its size and how it is sorted, where each combination of lines and offset is there once and in order."""
    count, keys = len(inlines), np.stack([inlines, crosslines, offsets])
    size = (len(np.unique(inlines)), len(np.unique(crosslines)), len(np.unique(offsets)))
    if count > 1 and np.prod(size) == np.unique(keys, axis=1).shape[1] == count:
        for sorting, order in (("inline", [2, 1, 0]), ("crossline", [2, 0, 1])):  # lexsort: the last key counts first
            if (np.lexsort(keys[order]) == np.arange(count)).all():
                return size, sorting
    return None, None


# Samples


def _check_finite(path: PathLike, traces: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(traces).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: expected finite samples, got NaN or infinity in trace {bad[0]} ({len(bad)} such traces).")


def _first_bad(traces: np.ndarray) -> int:
    return int(np.flatnonzero(~np.isfinite(traces).all(axis=1))[0])


def _encode(traces: np.ndarray, code: int, scale: int | float | None) -> tuple[np.ndarray, float]:
    traces = np.asarray(traces, np.float64)
    largest = float(np.abs(traces).max())
    limits = np.iinfo(INTEGERS[code]) if code in INTEGERS else np.finfo(np.float32)
    if scale is None:
        scale = 2.0 ** np.floor(np.log2(limits.max / largest)) if code in INTEGERS and largest > 0 else 1.0
    samples = np.rint(traces * scale) if code in INTEGERS else traces * scale
    if not (scale != 0 and limits.min <= samples.min() and samples.max() <= limits.max):
        bounds = f"{limits.min:g} to {limits.max:g}"
        raise ValueError(f"write: scale must keep samples within {bounds}, got {scale} for samples up to {largest:g}.")
    return samples.astype(INTEGERS.get(code, np.float32)), float(scale)


def _with_empty_traces(template: PathLike, layout: _Layout, code: int) -> bytes:
    """The template's bytes with every sample 0, of the size of format `code`."""
    with open(template, "rb") as stream:
        headers = bytearray(stream.read(layout.start))
        old = np.dtype([("header", f"V{TRACE}"), ("samples", f"V{layout.samples * BYTES[layout.sample_format]}")])
        traces = np.frombuffer(stream.read(), old, count=layout.count)
    headers[TEXT + 24 : TEXT + 26] = code.to_bytes(2, layout.endian)
    new = np.zeros(layout.count, [("header", f"V{TRACE}"), ("samples", f"V{layout.samples * BYTES[code]}")])
    new["header"] = traces["header"]
    return bytes(headers) + new.tobytes()


# Files


@contextlib.contextmanager
def _open(path: PathLike, mode: str, endian: str, *, name: PathLike | None = None) -> Iterator[Any]:
    """The file in segyio; a failure names it, or the `name` it is going to have."""
    try:
        with _segyio().open(os.fspath(path), mode, ignore_geometry=True, endian=endian) as file:
            yield file
    except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"{name or path}: segyio can't use it ({error}).") from error


@contextlib.contextmanager
def _appears_when_complete(path: PathLike) -> Iterator[str]:
    """A temporary file in the same folder that takes the name `path` at the end, or vanishes with what interrupts it."""
    folder, name = os.path.split(os.path.abspath(path))
    partial = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with open(partial, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _segyio() -> Any:
    try:
        return importlib.import_module("segyio")
    except ImportError as error:
        raise InputError(f"segyio is needed for SEG-Y files: pip install 'jaxnets[seismic]' ({error}).") from error
