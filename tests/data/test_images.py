"""Images from files: what is written is read, and no bad file goes further than a named error."""

import functools
import gzip
import hashlib
import http.server
import os
import struct
import sys
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from jaxnets.data import images
from jaxnets.types import InputError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(values, *, shape=None):
    values = np.asarray(values)
    shape = values.shape if shape is None else shape
    head = bytes([0, 0, CODES[values.dtype.str[1:]], len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def written(path, data, *, pack=False):
    path.write_bytes(gzip.compress(data) if pack else data)
    return path


def write_mnist(folder, *, pack=True, labels=(3, 9), shape=(2, 4, 5)):
    folder.mkdir(exist_ok=True)
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    for prefix in ("train", "t10k"):
        suffix = ".gz" if pack else ""
        written(folder / f"{prefix}-images-idx3-ubyte{suffix}", idx_bytes(pixels), pack=pack)
        written(folder / f"{prefix}-labels-idx1-ubyte{suffix}", idx_bytes(np.array(labels, np.uint8)), pack=pack)
    return pixels


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("dtype", CODES)
def test_idx_gives_back_what_was_written(tmp_path, dtype, pack):
    values = np.array([[[0, 1, 2], [-3, 4, 5]]]).astype(dtype)
    read = images.idx(written(tmp_path / "a", idx_bytes(values), pack=pack))
    np.testing.assert_array_equal(read, values)
    assert read.dtype == values.dtype
    assert read.flags.writeable


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD[:-1], "expected 24 bytes .*got only 23"),
        (GOOD + b"\0", "expected 24 bytes .*got more"),
        (GOOD[:9], "expected 3 lengths after the magic number, got 5 bytes"),
        (GOOD[:3], "expected an IDX file .*got 00 00 08"),
        (b"", "expected an IDX file .*got nothing"),
        (b"\x89PNG" + GOOD, "expected an IDX file .*got 89 50 4e 47"),
        (b"\0\0\x0a\x03" + GOOD[4:], "expected an IDX file"),
        (b"\0\0\x08\x00" + GOOD[4:], "expected an IDX file"),
        (b"\0\0\x08\xff" + GOOD[4:] + bytes(2000), "expected an IDX file"),
        (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "more than the limit of 4294967296 bytes"),
    ],
)
def test_bad_idx_is_named(tmp_path, data, message, pack):
    path = written(tmp_path / "bad", data, pack=pack)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        images.idx(path)


def test_every_truncation_and_every_flipped_bit_of_a_gzip_file_is_an_input_error(tmp_path):
    data = gzip.compress(GOOD, mtime=0)
    path = tmp_path / "a.gz"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(InputError):
            images.idx(path)
    expected = images.idx(written(path, data))
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:  # gzip may ignore a hint (text), the time, the compressor and the system; the CRC covers all else
            np.testing.assert_array_equal(images.idx(path), expected)
            assert 3 <= position <= 9
        except InputError:
            pass


def test_a_bomb_is_neither_unpacked_nor_allocated(tmp_path):
    tracemalloc.start()
    try:
        longer = written(tmp_path / "longer.gz", idx_bytes(np.zeros(4, np.uint8)) + bytes(30_000_000), pack=True)
        header = written(tmp_path / "header.gz", idx_bytes(np.zeros(0, np.uint8), shape=(2**31,)), pack=True)
        tracemalloc.reset_peak()
        for path, message in ((longer, "got more"), (header, "got only 0")):
            with pytest.raises(InputError, match=message):
                images.idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(InputError, match="more than the limit of 3 bytes"):
        images.idx(longer, limit=3)


@pytest.mark.parametrize("read", [images.idx, images.cifar10_file, images.folder, images.mnist, images.cifar10])
def test_a_missing_path_is_named(tmp_path, read):
    with pytest.raises(InputError, match=rf"{tmp_path / 'nowhere'}.*(no such|No such)"):
        read(tmp_path / "nowhere")


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        images.idx(tmp_path)
    with pytest.raises(InputError, match="Not a directory"):
        images.folder(written(tmp_path / "file", b""))


@pytest.mark.parametrize("pack", [False, True])
def test_mnist_reads_its_four_files_scaled_to_one(tmp_path, pack):
    pixels = write_mnist(tmp_path / "set", pack=pack)
    for part in images.mnist(tmp_path / "set"):
        assert part.x.dtype == np.float32
        np.testing.assert_allclose(part.x[..., 0] * 255, pixels, atol=1e-4)
        np.testing.assert_array_equal(part.y, [3, 9])
        assert part.y.dtype == np.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (3, 10)}, r"train-labels-idx1-ubyte.gz: expected labels 0\.\.9, got 10 at example 1"),
        ({"labels": (3, 9, 1)}, "train-labels-idx1-ubyte.gz: expected as many labels as inputs.* 2 inputs, 3 labels"),
        ({"shape": (2, 4)}, r"train-images-idx3-ubyte.gz: expected uint8 \[image, row, column\], got uint8\[2, 4\]"),
        ({"shape": (0, 4, 4), "labels": ()}, "at least 1, got 0 inputs"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_named(tmp_path, change, message):
    write_mnist(tmp_path / "set", **change)
    with pytest.raises(InputError, match=message):
        images.mnist(tmp_path / "set")


def test_a_missing_file_of_the_four_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\[.gz\]: no such file; expected the four IDX files"):
        images.fashion_mnist(tmp_path)


def test_labels_of_fewer_classes_are_checked_against_those(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(InputError, match=r"expected labels 0\.\.4, got 9"):
        images.mnist(tmp_path, classes=5)


# --- Fashion-MNIST -------------------------------------------------------------------------------------------------

needs_package = pytest.mark.skipif(not images.FASHION_MNIST_DEBIAN.is_dir(), reason="needs dataset-fashion-mnist")
ORIGINAL_TIMES = {"train": 1504176606, "t10k": 1504176627}  # 2017-08-31, in the gzip headers of the original files


@needs_package
def test_the_debian_package_holds_the_original_files():
    """Debian drops name and time from the gzip headers; with them back, the hashes are the published ones."""
    for name, digest in images.FASHION_MNIST_SHA256.items():
        data = (images.FASHION_MNIST_DEBIAN / name).read_bytes()
        time = struct.pack("<I", ORIGINAL_TIMES[name.partition("-")[0]])
        header = b"\x1f\x8b\x08\x08" + time + data[8:9] + b"\x03" + name.removesuffix(".gz").encode() + b"\0"
        assert hashlib.sha256(header + data[10:]).hexdigest() == digest


@needs_package
def test_fashion_mnist_is_the_published_set():
    """10 balanced classes; mean and standard deviation of the training pixels are 0.2860 and 0.3530."""
    train, test = images.fashion_mnist()
    assert train.x.shape == (60000, 28, 28, 1)
    assert test.x.shape == (10000, 28, 28, 1)
    assert (np.bincount(train.y) == 6000).all()
    assert (np.bincount(test.y) == 1000).all()
    assert train.x.min() == 0
    assert train.x.max() == 1
    pixels = train.x.ravel()
    mean = pixels.mean(dtype=np.float64)
    assert mean == pytest.approx(0.2860, abs=1e-4)
    assert np.sqrt(pixels @ pixels / pixels.size - mean**2) == pytest.approx(0.3530, abs=1e-4)
    assert train.y[:8].tolist() == [9, 0, 0, 3, 0, 2, 7, 2]


@pytest.fixture
def no_package(tmp_path, monkeypatch):
    """Neither Debian's files nor a cache; the network ends at a port where nobody listens."""
    monkeypatch.setattr(images, "FASHION_MNIST_DEBIAN", tmp_path / "none")
    monkeypatch.setattr(images, "FASHION_MNIST_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("JAXNETS_DATA", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_offline_says_how_to_get_fashion_mnist(no_package):
    with pytest.raises(InputError, match=r"apt install dataset-fashion-mnist.*folder with its four IDX files.*network"):
        images.fashion_mnist()


def test_a_download_is_checked_and_kept(no_package, tmp_path, monkeypatch):
    served = tmp_path / "served"
    pixels = write_mnist(served)
    handler = functools.partial(QuietHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(images, "FASHION_MNIST_URL", f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(InputError, match=r"not downloaded .*hash"):
            images.fashion_mnist()
        assert not list((tmp_path / "cache").glob("*.gz"))
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in served.iterdir()}
        monkeypatch.setattr(images, "FASHION_MNIST_SHA256", digests)
        train, _ = images.fashion_mnist()
        server.shutdown()
    np.testing.assert_allclose(train.x[..., 0] * 255, pixels, atol=1e-4)
    np.testing.assert_array_equal(images.fashion_mnist()[0].x, train.x)  # the server is gone: from the cache


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


# --- digits, CIFAR-10, folders -------------------------------------------------------------------------------------


def test_digits_are_split_by_class_and_seed():
    train, test = images.digits()
    assert train.x.shape == (1258, 8, 8, 1)
    assert test.x.shape == (539, 8, 8, 1)
    assert train.x.dtype == np.float32
    assert train.y.dtype == np.int32
    assert (train.x.min(), train.x.max()) == (0, 1)
    counts = np.bincount(train.y) + np.bincount(test.y)
    assert np.abs(np.bincount(test.y) - 0.3 * counts).max() < 1
    everything = np.concatenate([train.x, test.x]).reshape(1797, 64)
    source = sklearn.datasets.load_digits().data / 16
    np.testing.assert_array_equal(np.sort(everything @ np.arange(64)), np.sort(source @ np.arange(64)))
    assert not np.array_equal(images.digits(seed=1)[1].x, test.x)


@pytest.mark.parametrize(
    ("module", "call"), [("sklearn", images.digits), ("PIL", lambda: images.folder(".")), ("pooch", images.fashion_mnist)]
)
def test_a_missing_extra_is_named(module, call, no_package, monkeypatch):
    for name in ("sklearn.datasets", "PIL.Image", "pooch"):
        if name.startswith(module):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'jaxnets\[experiments\]'"):
        call()


def cifar_records(count, *, label=None):
    records = np.arange(count * 3073, dtype=np.uint32).astype(np.uint8).reshape(count, 3073)
    records[:, 0] = np.arange(count) % 10 if label is None else label
    return records


def test_cifar_planes_become_channels(tmp_path):
    records = cifar_records(3)
    for i in range(1, 6):
        written(tmp_path / f"data_batch_{i}.bin", records.tobytes())
    written(tmp_path / "test_batch.bin", records[:1].tobytes())
    train, test = images.cifar10(tmp_path)
    assert train.x.shape == (15, 32, 32, 3)
    assert test.x.shape == (1, 32, 32, 3)
    assert train.x.dtype == np.float32
    np.testing.assert_array_equal(train.y, np.tile([0, 1, 2], 5))
    for channel, row, column in ((0, 0, 0), (1, 0, 1), (2, 31, 30)):
        byte = records[2, 1 + 1024 * channel + 32 * row + column]
        assert train.x[2, row, column, channel] == pytest.approx(byte / 255)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected CIFAR-10 records of 3073 bytes each, got 0 bytes"),
        (cifar_records(2).tobytes()[:-1], "expected CIFAR-10 records .*got 6145 bytes"),
        (cifar_records(2, label=10).tobytes(), r"expected labels 0\.\.9, got 10 at example 0 \(2 wrong\)"),
    ],
)
def test_bad_cifar_is_named(tmp_path, data, message):
    path = written(tmp_path / "bad.bin", data)
    with pytest.raises(InputError, match=f"{path}: {message}"):
        images.cifar10_file(path)


def picture(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)


def test_a_folder_of_pictures_gives_classes_in_order(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    picture(tmp_path / "dog" / "b.png", pixels[0])
    picture(tmp_path / "cat" / "z.bmp", pixels[1])
    picture(tmp_path / "dog" / "a.PNG", pixels[2])
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    data, classes = images.folder(tmp_path)
    assert classes == ("cat", "dog")
    np.testing.assert_array_equal(data.y, [0, 1, 1])
    np.testing.assert_allclose(data.x * 255, pixels[[1, 2, 0]], atol=1e-4)
    gray, _ = images.folder(tmp_path, channels=1)
    luma = pixels[[1, 2, 0]] @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, pillow's own
    np.testing.assert_allclose(gray.x[..., 0] * 255, luma, atol=1)


def test_pictures_are_resized_to_one_size_and_palettes_resolved(tmp_path):
    picture(tmp_path / "a" / "1.png", np.full((4, 6, 3), 51, np.uint8))
    picture(tmp_path / "a" / "2.png", np.full((9, 9), 102, np.uint8))
    image = Image.new("P", (3, 3), 1)
    image.putpalette([0, 0, 0, 153, 0, 255])
    image.save(tmp_path / "a" / "3.png")
    data, _ = images.folder(tmp_path, size=(2, 3))
    assert data.x.shape == (3, 2, 3, 3)
    np.testing.assert_allclose(data.x[:, 0, 0], [[0.2] * 3, [0.4] * 3, [0.6, 0, 1]], atol=1e-6)


def truncated(path):
    picture(path, np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path):
    picture(path, np.zeros((8, 8, 3), np.uint8))
    data = bytearray(path.read_bytes())
    data[45] ^= 0xFF
    path.write_bytes(data)


def bomb(path):
    """A PNG that declares 30,000 x 30,000 pixels."""
    picture(path, np.zeros((8, 8), np.uint8))
    data = path.read_bytes()
    head = b"IHDR" + struct.pack(">II", 30_000, 30_000) + data[24:29]
    path.write_bytes(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "not a readable picture"),
        (flipped, "not a readable picture"),
        (bomb, "not a readable picture .*decompression bomb"),
        (postscript, "not a readable picture .*cannot identify"),
        (lambda path: path.write_bytes(b""), "not a readable picture"),
        (lambda path: picture(path, np.zeros((8, 8), np.uint16)), "mode I;16, where 8 bits per channel are expected"),
        (lambda path: picture(path, np.zeros((8, 9, 3), np.uint8)), r"expected 8x8 pixels as in 0.png, got 8x9; pass size="),
    ],
    ids=["truncated", "flipped", "bomb", "postscript", "empty", "16 bit", "size"],
)
def test_a_bad_picture_is_named(tmp_path, make, message):
    picture(tmp_path / "class" / "0.png", np.zeros((8, 8, 3), np.uint8))
    make(tmp_path / "class" / "1.png")
    with pytest.raises(InputError, match=f"{tmp_path / 'class' / '1.png'}: .*{message}"):
        images.folder(tmp_path)


def test_folders_without_classes_or_pictures_or_with_too_many_are_named(tmp_path):
    with pytest.raises(InputError, match="expected one subfolder of pictures per class, got none"):
        images.folder(tmp_path)
    picture(tmp_path / "full" / "0.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="as float32 is more than the limit of 767 bytes"):
        images.folder(tmp_path, limit=767)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{os.sep}empty: expected pictures .*got none"):
        images.folder(tmp_path)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        images.folder(tmp_path, channels=4)
    with pytest.raises(InputError, match=r"size must be .*got \(0, 8\)"):
        images.folder(tmp_path, size=(0, 8))
