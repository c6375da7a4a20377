"""SEG-Y files against segyio, which also writes the small ones; the F3 crop where it is; files that disappoint."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.seismic import inversion, metrics, segy, wavelets
from jaxnets.types import InputError

segyio = pytest.importorskip("segyio")
DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "seismic"
F3 = DATA / "f3-lsb.sgy"
LINES, SAMPLES = (3, 4), 25  # inlines x crosslines
HEADERS = 3600


def make(path, code=5, endian="big", interval=4000, crossline_sorted=False, traces=None):
    """A survey of 3 x 4 traces with ramps of real numbers (integers for integer formats)."""
    spec = segyio.spec()
    spec.format, spec.samples, spec.tracecount, spec.endian = code, np.arange(SAMPLES) * 4.0, 12, endian
    ramp = np.arange(12 * SAMPLES, dtype=np.float32).reshape(12, SAMPLES) / 8 - 10
    traces = (np.rint(ramp) if code in (2, 3, 8) else ramp) if traces is None else traces
    with segyio.create(str(path), spec) as file:
        file.text[0] = segyio.tools.create_text_header({1: "SYNTHETIC", 2: "FOR A TEST"})
        file.bin.update({segyio.BinField.Interval: interval, segyio.BinField.JobID: 42})
        for i in range(12):
            slow, fast = divmod(i, LINES[0] if crossline_sorted else LINES[1])
            inline, crossline = (fast, slow) if crossline_sorted else (slow, fast)
            file.header[i] = {
                segyio.TraceField.INLINE_3D: 100 + inline,
                segyio.TraceField.CROSSLINE_3D: 500 + 2 * crossline,
                segyio.TraceField.offset: 0,
                segyio.TraceField.CDP_X: 1000 * i,
                segyio.TraceField.CDP_Y: -7,
                segyio.TraceField.SourceGroupScalar: -10,
                segyio.TraceField.DelayRecordingTime: 8,
                segyio.TraceField.TRACE_SAMPLE_COUNT: SAMPLES,
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval,
            }
        file.trace[:] = traces.astype(file.dtype)
    return traces


def headers(path, sample_bytes):
    """All bytes that are not samples."""
    data = pathlib.Path(path).read_bytes()
    step = 240 + SAMPLES * sample_bytes
    return data[:HEADERS], [data[i : i + 240] for i in range(HEADERS, len(data), step)]


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("code", [1, 2, 3, 5, 8])
def test_every_sample_format_and_byte_order_is_read(tmp_path, code, endian):
    """IBM floats (1) hold these eighths exactly."""
    expected = make(tmp_path / "a.sgy", code, endian)
    survey = segy.read(tmp_path / "a.sgy")
    np.testing.assert_array_equal(survey.traces, expected)
    assert survey.traces.dtype == np.float32
    assert (survey.sample_format, survey.interval, survey.delay) == (code, 0.004, 0.008)


def test_headers_become_geometry(tmp_path):
    traces = make(tmp_path / "a.sgy")
    survey = segy.read(tmp_path / "a.sgy")
    assert (survey.grid, survey.sorting, survey.notes) == ((3, 4, 1), "inline", ())
    np.testing.assert_array_equal(survey.inlines, np.repeat([100, 101, 102], 4))
    np.testing.assert_array_equal(survey.crosslines, np.tile([500, 502, 504, 506], 3))
    np.testing.assert_allclose(survey.x, 100.0 * np.arange(12))
    np.testing.assert_allclose(survey.y, -0.7)
    assert survey.text.startswith("C 1 SYNTHETIC\nC 2 FOR A TEST")
    np.testing.assert_array_equal(survey.cube(), traces.reshape(3, 4, SAMPLES))
    make(tmp_path / "b.sgy", crossline_sorted=True)
    other = segy.read(tmp_path / "b.sgy")
    assert (other.grid, other.sorting) == ((3, 4, 1), "crossline")
    np.testing.assert_array_equal(other.cube(), traces.reshape(4, 3, SAMPLES).swapaxes(0, 1))
    byte_swapped = segy.read(tmp_path / "a.sgy", inline=193, crossline=193)
    assert byte_swapped.grid is None
    with pytest.raises(InputError, match="expected a complete grid"):
        byte_swapped.cube()


@pytest.mark.parametrize("code", [1, 2, 3, 5, 8])
def test_written_files_keep_every_header_byte_and_are_readable_by_segyio(tmp_path, code):
    make(tmp_path / "a.sgy", code, "little" if code == 2 else "big")
    result = np.random.default_rng(0).normal(size=(12, SAMPLES)).astype(np.float32)
    scale = segy.write(tmp_path / "b.sgy", result, template=tmp_path / "a.sgy")
    assert headers(tmp_path / "b.sgy", segy.BYTES[code]) == headers(tmp_path / "a.sgy", segy.BYTES[code])
    with segyio.open(str(tmp_path / "b.sgy"), endian="little" if code == 2 else "big") as file:
        step = {1: 1e-6 * np.abs(result), 2: 0.5, 3: 0.5, 5: 0, 8: 0.5}[code]
        assert (np.abs(file.trace.raw[:] - scale * result) <= step).all()
    if code in segy.INTEGERS:
        largest = np.abs(result).max() * scale
        assert np.iinfo(segy.INTEGERS[code]).max / 2 <= largest <= np.iinfo(segy.INTEGERS[code]).max
    else:
        assert scale == 1
    assert sorted(os.listdir(tmp_path)) == ["a.sgy", "b.sgy"]


def test_float32_output_changes_two_header_bytes(tmp_path):
    make(tmp_path / "a.sgy", 3)
    result = np.random.default_rng(0).normal(size=(12, SAMPLES)).astype(np.float32)
    assert segy.write(tmp_path / "b.sgy", result, template=tmp_path / "a.sgy", sample_format="float32") == 1
    (file, traces), (file_before, traces_before) = headers(tmp_path / "b.sgy", 4), headers(tmp_path / "a.sgy", 2)
    assert traces == traces_before
    assert [i for i in range(HEADERS) if file[i] != file_before[i]] == [3225]
    survey = segy.read(tmp_path / "b.sgy")
    np.testing.assert_array_equal(survey.traces, result)
    assert survey.sample_format == 5


@pytest.mark.skipif(not F3.exists(), reason="the F3 crop is not here")
def test_the_f3_crop_round_trips_bit_for_bit(tmp_path):
    """Little-endian int16, 23 inlines x 18 crosslines x 75 samples; trace headers still state the 462 from before."""
    survey = segy.read(F3)
    assert (survey.grid, survey.sorting, survey.traces.shape) == ((23, 18, 1), "inline", (414, 75))
    assert (survey.interval, survey.sample_format) == (0.004, 3)
    assert "462" in survey.notes[0]
    segy.write(tmp_path / "same.sgy", survey.traces, template=F3, scale=1)
    assert (tmp_path / "same.sgy").read_bytes() == F3.read_bytes()


@pytest.mark.skipif(not F3.exists(), reason="the F3 crop is not here")
def test_the_f3_crop_deconvolved_is_wider_and_keeps_its_headers(tmp_path):
    """One inline, a zero-phase wavelet from the data. Measured: misfit 0.23, band 7 to 73 Hz before, 3 to 123 Hz after."""
    survey = segy.read(F3)
    traces = jnp.asarray(survey.traces[survey.inlines == survey.inlines[0]])
    wavelet = wavelets.estimate_statistical(jnp.asarray(survey.traces), 31)
    problem = inversion.spikes(traces, wavelet)
    with jax.disable_jit(False):
        result = jax.jit(lambda: inversion.solve(problem, inversion.relative(0.05), max_steps=100))()
    misfit = jnp.linalg.norm(result.residual) / jnp.linalg.norm(traces)
    bands = [wavelets.bandwidth(wavelets.spectrum(x, survey.interval), -10.0) for x in (traces, result.model)]
    (low, high), (new_low, new_high) = bands
    assert misfit < 0.4
    assert new_high - new_low > high - low

    section = np.where((survey.inlines == survey.inlines[0])[:, None], 0, survey.traces)
    section[survey.inlines == survey.inlines[0]] = result.model
    segy.write(tmp_path / "a.sgy", section, template=F3)
    old, new = (
        np.frombuffer(path.read_bytes()[HEADERS:], [("header", "V240"), ("samples", "V150")])
        for path in (F3, tmp_path / "a.sgy")
    )
    assert (tmp_path / "a.sgy").read_bytes()[:HEADERS] == F3.read_bytes()[:HEADERS]
    assert new["header"].tobytes() == old["header"].tobytes()
    with segyio.open(str(tmp_path / "a.sgy"), endian="little", ignore_geometry=True) as file:
        written = file.trace.raw[:18].astype(np.float64)
    assert metrics.correlation(jnp.asarray(written, jnp.float32), result.model) > 0.999


def test_a_fault_while_writing_costs_no_file(tmp_path, monkeypatch):
    traces = make(tmp_path / "a.sgy")
    (tmp_path / "b.sgy").write_text("an earlier result")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"b\.sgy: No space left on device"):
        segy.write(tmp_path / "b.sgy", traces, template=tmp_path / "a.sgy")
    assert (tmp_path / "b.sgy").read_text() == "an earlier result"
    assert sorted(os.listdir(tmp_path)) == ["a.sgy", "b.sgy"]


def test_the_template_is_never_overwritten(tmp_path):
    traces = make(tmp_path / "a.sgy")
    before = (tmp_path / "a.sgy").read_bytes()
    os.link(tmp_path / "a.sgy", tmp_path / "same.sgy")
    for path in ("a.sgy", "same.sgy"):
        with pytest.raises(InputError, match="expected another file than the template"):
            segy.write(tmp_path / path, traces, template=tmp_path / "a.sgy")
    assert (tmp_path / "a.sgy").read_bytes() == before


def test_unwritable_traces_are_named(tmp_path):
    traces = make(tmp_path / "a.sgy", 3)
    template, out = tmp_path / "a.sgy", tmp_path / "b.sgy"
    with pytest.raises(ValueError, match=r"traces must be \(12, 25\) like .*a\.sgy, got \(11, 25\)"):
        segy.write(out, traces[1:], template=template)
    with pytest.raises(ValueError, match="got NaN or infinity in trace 7"):
        segy.write(out, np.where(np.arange(12)[:, None] == 7, np.nan, traces), template=template)
    with pytest.raises(ValueError, match="scale must keep samples within -32768 to 32767, got 10000"):
        segy.write(out, traces, template=template, scale=1e4)
    with pytest.raises(InputError, match="No such file"):
        segy.write(tmp_path / "nowhere" / "b.sgy", traces, template=template)
    assert segy.write(out, np.where(traces == -10, -32768, traces), template=template, scale=1) == 1
    assert segy.read(out).traces.min() == -32768
    assert segy.write(out, 0 * traces, template=template) == 1
    assert not segy.read(out).traces.any()


def edited(position, new):
    """Bytes of a file with some replaced from `position` (counted from 0) on."""
    return lambda data: data[:position] + new + data[position + len(new) :]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda data: data[:-1],
            r"truncated .* whole traces of 340 bytes \(25 samples\) after byte 3600, got 11 and 339 bytes more",
        ),
        (lambda data: data[:3600], "expected headers of 3840 bytes, got 3600"),
        (lambda data: b"", "expected headers of 3840 bytes, got 0"),
        (
            lambda data: b"%PDF-1.7 " * 1000,
            r"not a SEG-Y file: expected a sample format code of \[1, 2, 3, 5, 8\] at byte 3225",
        ),
        (edited(3220, b"\0\0"), "got 0 and 0"),
        (edited(3220, b"\xff\xff"), "truncated or not a SEG-Y file"),  # 65535 samples stated
        (edited(3504, b"\xff\xff"), "got 25 and -1"),
        (edited(3216, b"\x07\xd0"), "expected one sample interval in its headers, got 2000, 4000 µs"),
        (edited(3600 + 340 + 114, b"\0\x18"), "traces of one length, got headers that state 24 to 25 samples"),
        (edited(3600 + 5 * 340 + 240, b"\x7f\xc0\0\0"), r"NaN or infinity in trace 5 \(1 such traces\)"),
    ],
    ids=["cut", "headers", "empty", "other", "samples", "many", "extended", "interval", "lengths", "nan"],
)
def test_bad_files_are_refused_by_name(tmp_path, edit, message):
    make(tmp_path / "a.sgy")
    bad = tmp_path / "bad.sgy"
    bad.write_bytes(edit((tmp_path / "a.sgy").read_bytes()))
    with pytest.raises(InputError, match=rf"bad\.sgy: .*{message}"):
        segy.read(bad)


def test_sample_intervals_come_from_the_headers_or_the_caller(tmp_path):
    make(tmp_path / "none.sgy", interval=0)
    with pytest.raises(InputError, match=r"expected one sample interval in its headers, got none; state it by `interval`"):
        segy.read(tmp_path / "none.sgy")
    assert segy.read(tmp_path / "none.sgy", interval=0.002).interval == 0.002
    with pytest.raises(ValueError, match="interval must be positive"):
        segy.read(tmp_path / "none.sgy", interval=0.0)


def test_times_have_their_scalar(tmp_path):
    """Bytes 215-216 scale the delay, 8 ms in the file; what is no power of 10 there is not of revision 1."""
    make(tmp_path / "a.sgy")
    for scalar, delay in ((-10, 0.0008), (10, 0.08), (0, 0.008), (77, 0.008)):
        with segyio.open(str(tmp_path / "a.sgy"), "r+", ignore_geometry=True) as file:
            for header in file.header:
                header.update({segyio.TraceField.ScalarTraceHeader: scalar})
        survey = segy.read(tmp_path / "a.sgy")
        np.testing.assert_allclose(survey.delay, delay)
        assert survey.notes == ()


def test_textual_headers_in_ascii_are_read(tmp_path):
    make(tmp_path / "a.sgy")
    data = (tmp_path / "a.sgy").read_bytes()
    (tmp_path / "b.sgy").write_bytes(data[:3200].decode("cp037").encode("ascii") + data[3200:])
    assert segy.read(tmp_path / "b.sgy").text == segy.read(tmp_path / "a.sgy").text


def test_lengths_and_intervals_beyond_32767_are_not_negative(tmp_path):
    samples, spec = 40_000, segyio.spec()
    spec.format, spec.samples, spec.tracecount = 8, np.arange(samples), 1
    with segyio.create(str(tmp_path / "long.sgy"), spec) as file:
        file.trace[0] = np.zeros(samples, np.int8)
    data = bytearray((tmp_path / "long.sgy").read_bytes())
    for place, value in ((3216, samples), (3600 + 114, samples), (3600 + 116, samples)):
        data[place : place + 2] = value.to_bytes(2, "big")
    (tmp_path / "long.sgy").write_bytes(data)
    survey = segy.read(tmp_path / "long.sgy")
    assert (survey.traces.shape, survey.interval, survey.notes) == ((1, samples), 0.04, ())


def test_sizes_and_places_are_checked_first(tmp_path):
    make(tmp_path / "a.sgy")
    with pytest.raises(InputError, match="more than the limit of 1000"):
        segy.read(tmp_path / "a.sgy", limit=1000)
    with pytest.raises(InputError, match="No such file"):
        segy.read(tmp_path / "b.sgy")
    with pytest.raises(InputError, match="Is a directory"):
        segy.read(tmp_path)


def test_without_segyio_the_extra_is_named(tmp_path, monkeypatch):
    make(tmp_path / "a.sgy")
    monkeypatch.setitem(__import__("sys").modules, "segyio", None)
    with pytest.raises(InputError, match=r"pip install 'jaxnets\[seismic\]'"):
        segy.read(tmp_path / "a.sgy")


def test_npy_sections_are_read_without_pickle(tmp_path):
    section = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "a.npy", section)
    survey = segy.load_npy(tmp_path / "a.npy", interval=0.004)
    np.testing.assert_array_equal(survey.traces, section)
    assert survey.traces.dtype == np.float32
    assert type(survey.traces) is np.ndarray
    assert survey.interval == 0.004

    def refused(message, **options):
        with pytest.raises(InputError, match=rf"\.npy: .*{message}"):
            segy.load_npy(tmp_path / "bad.npy", **{"interval": 0.004, **options})

    refused("No such file")
    np.save(tmp_path / "bad.npy", np.array([[{}]], object), allow_pickle=True)
    refused("not a readable .npy file")
    np.save(tmp_path / "bad.npy", section[0])
    refused(r"expected real numbers \[trace, time\], got float64 of shape \(4,\)")
    np.save(tmp_path / "bad.npy", section * 1j)
    refused("got complex128")
    np.save(tmp_path / "bad.npy", np.where(section == 5, np.nan, section))
    refused("NaN or infinity in trace 1")
    np.save(tmp_path / "bad.npy", section * 1e300)
    refused("NaN or infinity in trace 0")
    refused("more than the limit of 10", limit=10)
    (tmp_path / "bad.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    refused("not a readable .npy file")
    (tmp_path / "bad.npy").write_bytes(b"")
    refused("not a readable .npy file")
    with pytest.raises(ValueError, match="interval must be positive"):
        segy.load_npy(tmp_path / "a.npy", interval=0.0)
