"""Tables from CSV and NPZ: values come back, and every bad cell or array is named."""

import contextlib
import io
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxnets.data import tables
from jaxnets.types import InputError


def text(tmp_path, content, encoding="utf-8"):
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize("head", ["", "a,b,c\n", "\ufeffa,b,c\r\n"], ids=["none", "header", "bom"])
def test_csv_gives_the_columns_and_the_label(tmp_path, head):
    path = text(tmp_path, head + "1,2.5,3\n\n-1e-3, 0,4\n")
    data = tables.from_csv(path)
    np.testing.assert_array_equal(data.x, np.array([[1, 2.5], [-1e-3, 0]], np.float32))
    np.testing.assert_array_equal(data.y, np.array([3, 4], np.float32))
    assert data.x.dtype == data.y.dtype == np.float32


def test_csv_label_by_position_name_or_not_at_all(tmp_path):
    path = text(tmp_path, "kind;width;height\n1;10;20\n0;11;21\n")
    for label in (0, -3, "kind"):
        data = tables.from_csv(path, label=label, classes=2, delimiter=";")
        np.testing.assert_array_equal(data.y, [1, 0])
        assert data.y.dtype == np.int32
        np.testing.assert_array_equal(data.x, [[10, 20], [11, 21]])
    data = tables.from_csv(path, label=None, delimiter=";")
    assert data.y is None
    assert data.x.shape == (2, 3)


def test_csv_numbers_as_column_names_need_to_be_announced(tmp_path):
    path = text(tmp_path, "2020,2021\n1,2\n")
    assert len(tables.from_csv(path)) == 2
    assert len(tables.from_csv(path, header=True, label="2021")) == 1


def test_csv_reads_what_numpy_reads(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 4))
    np.savetxt(tmp_path / "a.csv", values, delimiter=",")
    data = tables.from_csv(tmp_path / "a.csv")
    np.testing.assert_array_equal(data.x, values[:, :3].astype(np.float32))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b\n1,2\n3,x\n", {}, "line 3, column 2: expected a finite number, got 'x'"),
        ("a,b\n1,2\n\n3,\n", {}, "line 4, column 2: expected a finite number, got ''"),
        ("1,2\n3,nan\n", {}, "line 2, column 2: .*'nan'"),
        ("1,2\n1e39,0\n", {}, "line 2, column 1: .*'1e39'"),
        ("1,b\n3,4\n", {}, "line 1, column 2: .*'b'"),
        ("a,b\n1,2\n", {"header": False}, "line 1, column 1: .*'a'"),
        ("1,2\n3,4,5\n", {}, "line 2: expected 2 cells, got 3"),
        ('"a\nb",c\n1,2\n3\n', {}, "line 4: expected 2 cells, got 1"),
        ("a,b\n", {}, "expected rows of numbers, got none"),
        ("", {}, "expected rows of numbers, got none"),
        ("1,\0\n", {}, "line 1"),
        ("1," + "2" * 200_000, {}, "line 1: not a text table"),
        ("1,2\n", {"label": "y"}, "expected a column 'y', got no header"),
        ("a,b\n1,2\n", {"label": "y"}, r"expected a column 'y', got \['a', 'b'\]"),
        ("1,2\n", {"label": 2}, "expected column 2, got 2 columns"),
        ("1,2\n3,0.5\n", {"classes": 3}, r"expected labels 0\.\.2, got 0.5 in row 1"),
        ("1,2\n3,3\n", {"classes": 3}, r"expected labels 0\.\.2, got 3 at example 1"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, options, message):
    path = text(tmp_path, content)
    with pytest.raises(InputError, match=f"{path}.*{message}"):
        tables.from_csv(path, **options)


def test_foreign_and_missing_csv_are_named(tmp_path):
    with pytest.raises(InputError, match=r"line 2, column 1: expected a finite number, got '\\udce9'"):
        tables.from_csv(text(tmp_path, "1,1\né,1\n", "latin-1"))
    with pytest.raises(InputError, match="line 1, column 1: expected a finite number"):
        tables.from_csv(text(tmp_path, "1,1\n2,1\n", "utf-16"), header=False)
    with pytest.raises(InputError, match="nowhere: No such file"):
        tables.from_csv(tmp_path / "nowhere")


# --- NPZ -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["u1", ">f4", "f8", "?"])
def test_npz_gives_back_what_numpy_saved(tmp_path, save, dtype):
    x = np.asfortranarray(np.arange(24).reshape(2, 3, 4) % 5).astype(dtype)
    save(tmp_path / "a.npz", x=x, y=np.array([1.5, 2.5]), w=np.array([0.0, 1.0]))
    data = tables.from_npz(tmp_path / "a.npz", weight="w")
    np.testing.assert_array_equal(data.x, x)
    assert data.x.dtype == x.dtype.newbyteorder("=")
    np.testing.assert_array_equal(data.y, [1.5, 2.5])
    np.testing.assert_array_equal(data.weight, [0, 1])


def test_npz_other_names_and_classes(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 2)), labels=np.array([2, 0, 1], np.int64))
    data = tables.from_npz(tmp_path / "a.npz", x="images", y="labels", classes=3)
    assert data.y.dtype == np.int32
    assert tables.from_npz(tmp_path / "a.npz", x="images", y=None).y is None
    with pytest.raises(InputError, match=r"expected labels 0\.\.1, got 2 at example 0"):
        tables.from_npz(tmp_path / "a.npz", x="images", y="labels", classes=2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "expected an array 'y', got x"),
        ({"x": np.zeros(3), "y": np.zeros(2)}, r"expected arrays of one length, got \[3, 2\]"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, "'x' .*at least one example"),
        ({"x": np.float32(1), "y": np.zeros(1)}, "'x' .*at least one example"),
        ({"x": np.array(["a", "b"]), "y": np.zeros(2)}, "'x' is not a readable array .*where numbers are expected"),
        ({"x": np.array([{}, {}]), "y": np.zeros(2)}, "'x' is not a readable array .*object, where numbers"),
    ],
)
def test_npz_that_does_not_fit_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=f"{tmp_path / 'a.npz'}: .*{message}"):
        tables.from_npz(tmp_path / "a.npz")


def member(header, data=b""):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


class Payload:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an array",
        member("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n", bytes(8)),
        member("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }\n", bytes(8)),
        member("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n", bytes(17)),
        member("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps(Payload())),
        member("__import__('pathlib').Path('executed').touch()\n"),
    ],
    ids=["empty", "text", "huge", "negative", "longer", "pickle", "code"],
)
def test_npz_members_are_never_trusted(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a\.npz: 'x' is not a readable array"):
            tables.from_npz("a.npz", y=None)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert not pathlib.Path("executed").exists()


def test_npz_bombs_are_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="'x' declares 16000128 bytes, more than the limit of 1000000"):
            tables.from_npz(tmp_path / "a.npz", y=None, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_every_truncation_and_every_flipped_byte_of_an_npz_is_an_input_error_or_harmless(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(6.0))
    data, path = buffer.getvalue(), tmp_path / "a.npz"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(InputError):
            tables.from_npz(path, y=None)
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        with contextlib.suppress(InputError):  # a time or an attribute may change unseen, never a value
            np.testing.assert_array_equal(tables.from_npz(path, y=None).x, np.arange(6.0))
