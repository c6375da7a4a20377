"""Tables from files: CSV and NPZ (without pickle) into datasets. Nothing in a file is executed, sizes are bounded."""

import array
import csv
import dataclasses
import io
import math
import os
import zipfile

import numpy as np

from jaxnets.data import batches, files
from jaxnets.types import InputError

FLOAT32_MAX = float(np.finfo(np.float32).max)


def from_csv(
    path: files.PathLike,
    *,
    label: int | str | None = -1,
    classes: int | None = None,
    header: bool | None = None,
    delimiter: str = ",",
) -> batches.Dataset:
    """Dataset of a table of finite numbers: x float32 [row, column], y the column `label` (by position or header name).

    With `classes`, y is int32 in 0..classes-1, otherwise float32; `label=None` gives y None. `header=None` takes line 1
    as a header if none of its cells is a number. Blank lines are skipped; UTF-8.

    Raises:
      InputError: names the file, the line and the column of the first bad cell; rows of different lengths; no rows.
    """
    values, names, columns = array.array("d"), None, 0
    # A byte that isn't UTF-8 stays in its cell, so that its line is named like that of any other bad cell.
    with files.reading(path), open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter)
        try:
            for row in reader:
                if not row:
                    continue
                where = f"{path}, line {reader.line_num}"
                bad = [column for column, cell in enumerate(row) if not _is_number(cell)]
                if not columns:
                    columns = len(row)
                    if header or (header is None and len(bad) == columns):
                        names = [name.strip() for name in row]
                        continue
                if len(row) != columns:
                    raise InputError(f"{where}: expected {columns} cells, got {len(row)}.")
                if bad:
                    raise InputError(f"{where}, column {bad[0] + 1}: expected a finite number, got {row[bad[0]]!r:.40}.")
                values.extend(map(float, row))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not a text table ({error}).") from error
    table = np.asarray(values).reshape(-1, max(columns, 1))
    if not len(table):
        raise InputError(f"{path}: expected rows of numbers, got none.")
    if label is None:
        return batches.Dataset(table.astype(np.float32), None)
    column = _column(label, names, columns, path)
    x, y = np.delete(table, column, axis=1).astype(np.float32), table[:, column]
    if classes is None:
        return batches.Dataset(x, y.astype(np.float32))
    wrong = np.flatnonzero(y != np.rint(y))
    if len(wrong):
        raise InputError(f"{path}: expected labels 0..{classes - 1}, got {y[wrong[0]]} in row {wrong[0]} of the data.")
    return batches.labeled(x, y.astype(np.int64), classes=classes, source=str(path))


def from_npz(
    path: files.PathLike,
    *,
    x: str = "x",
    y: str | None = "y",
    weight: str | None = None,
    classes: int | None = None,
    limit: int = files.LIMIT,
) -> batches.Dataset:
    """Dataset of the named arrays of an NPZ file, dtypes as stored; with `classes`, y is int32 in 0..classes-1.

    Raises:
      InputError: not an NPZ, an array missing, pickled, corrupt or larger than `limit` bytes, lengths that differ.
    """
    with files.reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = [None if name is None else _member(archive, name, path, limit) for name in (x, y, weight)]
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # foreign, other packing, encrypted
            raise InputError(f"{path}: not a readable NPZ file ({error}).") from error
    lengths = [len(field) for field in arrays if field is not None]
    if len(set(lengths)) > 1:
        raise InputError(f"{path}: expected arrays of one length, got {lengths}.")
    dataset = batches.Dataset(*arrays)
    if classes is None:
        return dataset
    return dataclasses.replace(batches.labeled(dataset.x, dataset.y, classes=classes, source=str(path)), weight=dataset.weight)


def _is_number(cell: str) -> bool:
    try:
        return abs(float(cell)) <= FLOAT32_MAX  # x is float32: 1e39 would become infinite there
    except ValueError:
        return False


def _column(label: int | str, names: list[str] | None, columns: int, path: files.PathLike) -> int:
    if isinstance(label, str):
        if names is None or label not in names:
            raise InputError(f"{path}: expected a column {label!r}, got {names or 'no header'}.")
        return names.index(label)
    if not -columns <= label < columns:
        raise InputError(f"{path}: expected column {label}, got {columns} columns.")
    return label


def _member(archive: zipfile.ZipFile, name: str, path: files.PathLike, limit: int) -> np.ndarray:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        has = ", ".join(os.path.splitext(member)[0] for member in archive.namelist())
        raise InputError(f"{path}: expected an array {name!r}, got {has or 'none'}.") from None
    if info.file_size > limit:
        raise InputError(f"{path}: {name!r} declares {info.file_size} bytes, more than the limit of {limit}.")
    data = archive.read(info)  # never more than the declared size; its CRC is checked
    try:
        # Parsed here because np.load allocates what the header declares before it looks at the length.
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = header(stream)
        if dtype.kind not in "biuf":
            raise ValueError(f"dtype {dtype}, where numbers are expected")
        if not shape or not shape[0]:
            raise ValueError(f"shape {shape}, where at least one example is expected")
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError(f"{shape} of {dtype} declared, {len(data) - stream.tell()} bytes of data")
        values = np.frombuffer(data, dtype, offset=stream.tell())
        return values.reshape(shape, order="F" if fortran_order else "C").astype(dtype.newbyteorder("="))
    except ValueError as error:
        raise InputError(f"{path}: {name!r} is not a readable array ({error}).") from error
