"""Text: what is read, which id a character has, and that consecutive batches of windows are contiguous."""

import dataclasses
import json
import pathlib
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.data import batches, text
from jaxnets.types import InputError

SHAKESPEARE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "text" / "tinyshakespeare.txt"


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        (b"\xef\xbb\xbfa", "a"),
        ("床前明月光 नमस्ते \U0001f600\x0c\x85".encode(), "床前明月光 नमस्ते \U0001f600\x0c\x85"),
    ],
    ids=["line ends", "byte order mark", "any script"],
)
def test_a_file_is_read_with_its_line_ends_as_newlines(tmp_path, data, expected):
    assert text.read(write(tmp_path / "a.txt", data)) == expected


@pytest.mark.parametrize(
    ("data", "limit", "message"),
    [
        (b"\xef\xbb\xbfab\xffc", 99, r"a\.txt: expected UTF-8 text, got byte 0xff at offset 5 \(invalid start byte\)"),
        ("é".encode()[:1], 99, "byte 0xc3 at offset 0 .unexpected end of data"),
        (b"", 99, r"a\.txt: expected text, got an empty file"),
        (b"\xef\xbb\xbf", 99, "got an empty file"),
        (b"abcd", 3, r"a\.txt: more than the limit of 3 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, data, limit, message):
    with pytest.raises(InputError, match=message):
        text.read(write(tmp_path / "a.txt", data), limit=limit)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            text.read(path)


def test_ids_follow_the_code_points_and_decoding_undoes_encoding():
    words = "zebra 床前 \U0001f600 zebra\n"
    vocabulary = text.vocabulary(words)
    assert vocabulary.symbols == "".join(sorted(set(words)))
    ids = vocabulary.encode(words)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [1 + vocabulary.symbols.index(character) for character in words])
    assert vocabulary.decode(ids) == words
    assert vocabulary.decode(jnp.asarray(ids[3:5])) == words[3:5]


def test_characters_outside_have_the_id_0_and_rare_ones_can_be_outside():
    vocabulary = text.vocabulary("aaabbc\ufffd\ufffd", min_count=2)
    assert (vocabulary.symbols, len(vocabulary)) == ("ab", 3)
    np.testing.assert_array_equal(vocabulary.encode("cab\U0010ffff\ud800"), [0, 1, 2, 0, 0])
    assert vocabulary.decode(np.array([2, 0, 1])) == "b\ufffda"


def test_a_vocabulary_survives_json():
    vocabulary = text.vocabulary('"床\\\n\u2028\x00')
    assert text.Vocabulary(**json.loads(json.dumps(dataclasses.asdict(vocabulary)))) == vocabulary


def test_a_document_begins_at_every_separator_line():
    poems = "one\n%\ntwo %\n% \n%\n%three\n%"
    starts = text.document_starts(poems)
    assert starts.dtype == bool
    assert np.flatnonzero(starts).tolist() == [0, 4, 12, 15, 24]
    assert np.flatnonzero(text.document_starts("a\n.*\nb", ".*")).tolist() == [0, 2]  # not a pattern


def test_escape_codes_are_stripped_and_nothing_else():
    assert text.strip_ansi("\x1b[32m李白\x1b[0;1m\x1b[m \x1b(B[1m] \x1b[?25lx\x1bcy") == "李白 [1m] xy"


def test_a_split_keeps_the_order_and_what_belongs_together():
    words = "abcdefghijk"
    assert text.split(words) == ("abcdefghi", "jk")
    assert [part.tolist() for part in text.split(np.arange(4), 0.5)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("size", "batch", "time"), [(25, 2, 3), (24, 2, 3), (7, 1, 6), (30, 3, 1), (2, 1, 1)])
def test_consecutive_batches_continue_every_stream(size, batch, time):
    """Put side by side, row s of all batches is one piece of the text, its targets the same piece one later."""
    ids = np.arange(size)
    data = text.streams(ids, batch, time)
    length = len(data) // batch * time
    assert batch * length + 1 <= size < batch * (length + time) + 1  # no further window fits
    rows = batches.indices(0, 0, len(data) // batch, len(data), batch, shuffle=False)
    x, y, reset = (np.concatenate([getattr(data[row], name) for row in rows], axis=1) for name in ("x", "y", "reset"))
    np.testing.assert_array_equal(x, ids[: batch * length].reshape(batch, length))
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(reset, np.arange(length)[None] == np.zeros((batch, 1)))
    assert (data.x.dtype, data.y.dtype, data.reset.dtype) == (np.int32, np.int32, bool)
    assert data.weight is None


def test_the_state_starts_anew_where_a_document_does():
    starts = np.zeros(13, bool)
    starts[[0, 4, 8, 12]] = True  # 12 is only a target
    data = text.streams(np.arange(13), 2, 3, starts=starts)
    np.testing.assert_array_equal(np.sort(data.x[data.reset]), [0, 4, 6, 8])
    given = starts.copy()
    given[0] = False
    assert text.streams(np.arange(13), 1, 3, starts=given).reset[0, 0]
    assert not given[0]  # the caller's array is left alone


def test_streams_are_a_pytree_inside_jit_and_scan(jit):
    data = jax.tree.map(jnp.asarray, text.streams(np.arange(13), 2, 3))
    rows = jnp.arange(4).reshape(2, 2)
    _, last = jit(lambda d: jax.lax.scan(lambda end, row: (d[row].y[:, -1], end), jnp.zeros(2, jnp.int32), rows))(data)
    np.testing.assert_array_equal(last[1], data.x[2:, 0])  # the last target of a window is the first input of the next


def test_the_standard_library_is_a_mixture_of_python_sources():
    corpus = text.standard_library(60_000)
    assert len(corpus) == 60_000
    assert corpus == text.standard_library(60_000)
    assert text.standard_library(2_000) == corpus[:2_000]
    assert all(part.count("def ") > 3 for part in (corpus[:30_000], corpus[30_000:]))
    assert "\r" not in corpus


def test_the_standard_library_leaves_out_tests_packages_and_what_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.get)
    with pytest.raises(InputError, match=r"expected sources of Python in .*, got none"):
        text.standard_library()
    for name in (
        "a.py",
        "b/c.py",
        "b/test/d.py",
        "site-packages/e.py",
        "b/tests/f.py",
        "encodings/g.py",
        "_sysconfigdata_h.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    write(tmp_path / "latin.py", b"# coding: latin-1\r\n#\xe9\r\n")
    write(tmp_path / "wrong.py", b"# \xe9\n")
    write(tmp_path / "late.py", b"#\n#\n#\xe9\n")
    write(tmp_path / "unknown.py", b"# coding: no-such\n")
    lines = text.standard_library().splitlines()
    # In the order of the CRC-32 of the paths: 24fa2c93 (latin.py), 96eb94fe, aac9344e.
    assert lines == ["# coding: latin-1", "#é", "# a.py", "# b/c.py"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text.streams(np.arange(6), 2, 3), r"needs batch \* time \+ 1 = 2 \* 3 \+ 1 = 7 symbols, got 6"),
        (lambda: text.streams(np.arange(0), 1, 1), "= 2 symbols, got 0"),
        (lambda: text.streams(np.arange(9), 0, 3), "batch and time must be at least 1, got 0, 3"),
        (lambda: text.streams(np.arange(9), 2, 0), "batch and time must be at least 1, got 2, 0"),
        (lambda: text.streams(np.arange(9.0), 2, 3), r"streams: expected one axis of integer ids, got float64\[9\]"),
        (lambda: text.streams(np.zeros((3, 3), int), 2, 3), r"one axis of integer ids, got int64\[3, 3\]"),
        (lambda: text.streams(np.array([0, -1]), 1, 1), r"streams: expected ids 0\.\.2147483647, got -1 at position 1"),
        (lambda: text.streams(np.arange(9), 2, 3, starts=np.ones(8, bool)), r"as many starts as ids, got \(8,\) for \(9,\)"),
        (lambda: text.Vocabulary("ab").decode(np.array([2, 3])), r"decode: expected ids 0\.\.2, got 3 at position 1"),
        (lambda: text.Vocabulary("ab").decode(np.array([1.0])), r"decode: expected one axis of integer ids, got float64\[1\]"),
        (lambda: text.Vocabulary("aba"), "Vocabulary: expected different symbols and no U.FFFD, got 'aba'"),
        (lambda: text.Vocabulary("a\ufffd"), "no U.FFFD"),
        (lambda: text.vocabulary(""), "seen 1 times, got 0 characters"),
        (lambda: text.vocabulary("ab", min_count=2), "seen 2 times, got 2 characters"),
        (lambda: text.document_starts("a %\n"), "expected lines '%' in the text, got none"),
        (lambda: text.split("ab", 0.0), r"fraction must be in \(0, 1\) and leave two parts, got 0.0 of 2 symbols"),
        (lambda: text.split("ab", 0.9), "leave two parts, got 0.9 of 2"),
        (lambda: text.standard_library(0), "limit must be at least 1, got 0"),
    ],
)
def test_impossible_requests_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="no ../shared/data/text")
def test_tinyshakespeare_has_65_symbols_and_the_usual_split():
    """1,003,854 and 111,540 characters: the counts that nanoGPT's data/shakespeare_char reports."""
    words = text.read(SHAKESPEARE)
    vocabulary = text.vocabulary(words)
    assert len(vocabulary.symbols) == 65
    ids = vocabulary.encode(words)
    assert vocabulary.decode(ids) == words
    assert [len(part) for part in text.split(ids)] == [1003854, 111540]
