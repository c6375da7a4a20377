"""The experiment `fista`: field data in and out, every task, the lesson, and what a user may get wrong."""

import json

import jax
import numpy as np
import pytest

from experiments import fista
from experiments.harness import cli
from experiments.seismic import lesson, noise, survey, tasks
from jaxnets.seismic import modelling, wavelets

TINY = ["--preset", "smoke", "--training-steps", "0"]


@pytest.fixture
def segy_file(tmp_path):
    """A little-endian, 16-bit SEG-Y file of three traces, whose trace headers state a wrong length."""
    segyio = pytest.importorskip("segyio")
    path, spec = tmp_path / "field.sgy", segyio.spec()
    spec.format, spec.samples, spec.tracecount, spec.endian = 3, np.arange(32) * 4, 3, "little"
    with segyio.create(str(path), spec) as file:
        file.bin.update({segyio.BinField.Interval: 4000, segyio.BinField.Format: 3, segyio.BinField.Samples: 32})
        for i in range(3):
            file.header[i] = {
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: 4000,
                segyio.TraceField.TRACE_SAMPLE_COUNT: 462,
                189: 7,
                193: i,
            }
            file.trace[i] = (np.random.default_rng(i).normal(size=32) * 1000).astype(np.int16)
    return path


def without_samples(path):
    """The bytes of all headers of a file of three traces of 32 samples."""
    content = path.read_bytes()
    traces = np.frombuffer(content, np.uint8, offset=3600).reshape(3, -1)
    return content[:3600], traces[:, :240].tobytes()


def test_a_deconvolved_segy_file_has_the_headers_of_the_original_byte_for_byte(segy_file, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["fista", *TINY, "--data", str(segy_file), "--out", str(out)]) == 0
    written = out / "reflectivity.sgy"
    assert without_samples(written) == without_samples(segy_file)
    segyio = pytest.importorskip("segyio")
    with segyio.open(str(written), ignore_geometry=True, endian="little") as file:
        assert np.abs(file.trace.raw[:]).max() > 1000  # scaled to use the 16 bits
    assert "trace headers state 462 samples" in (out / "log.txt").read_text()


@pytest.mark.parametrize("task", ["impedance", "interpolate", "deblend"])
@pytest.mark.slow
def test_every_task_takes_an_array_and_writes_one(task, tmp_path):
    data = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    np.save(tmp_path / "field.npy", data)
    out = tmp_path / "run"
    options = ["--data", str(tmp_path / "field.npy"), "--task", task, "--balance", "0.05", "--out", str(out)]
    assert cli.main(["fista", *TINY, *options]) == 0
    (written,) = out.glob("*.npy")
    assert np.load(written).shape == data.shape
    assert json.loads((out / "summary.json").read_text())["task"] == task


def test_the_lesson_creeps_arrives_bounces_and_depends_on_its_start():
    runs = {name: (points, status) for name, (_, points, status) in lesson.runs().items()}
    minima = np.sort(np.roots([1, 0, -1, lesson.TILT]).real)[[0, 2]]  # of x^4/4 - x^2/2 + tilt x
    assert runs["too small"][0][-1] > minima[1] + 0.1
    assert abs(runs["right"][0][-1] - minima[1]) < 0.02
    assert np.ptp(runs["too large"][0][-4:]) > 0.2
    assert "not descending" in runs["too large"][1]
    ends = [runs[f"from {start:g}"][0][-1] for start in lesson.STARTS]
    assert ends[0] > 0 > ends[1]


def test_the_coarse_impedance_steps_where_the_coarse_spikes_are():
    fine = np.full((1, 64 * survey.FINER), 5e6, np.float32)
    for i, step in ((100, 1.1), (203, 0.8), (400, 1.3)):  # changes at the fine sample after i
        fine[:, i + 1 :] *= step
    truth = survey.modelled(jax.numpy.asarray(fine), jax.random.key(0), 20.0)
    np.testing.assert_allclose(modelling.reflectivity(truth["impedance"]), truth["reflectivity"], atol=1e-6)
    assert np.count_nonzero(truth["reflectivity"]) == 3


def test_the_true_wavelet_models_the_coarse_traces_up_to_the_shift_within_a_sample():
    fine = np.full((1, 64 * survey.FINER), 5e6, np.float32)
    fine[:, 30 * survey.FINER + 1 :] *= 1.2  # a spike that falls on a coarse sample
    truth = survey.modelled(jax.numpy.asarray(fine), jax.random.key(0), 90.0)
    found = modelling.convolutional_model(truth["reflectivity"], truth["wavelet"])
    np.testing.assert_allclose(found, truth["traces"], atol=1e-4)


@pytest.fixture(scope="module")
def synthetic():
    return survey.synthetic(traces=12, samples=96, snr=20.0, seed=0)


def test_the_wells_give_the_wavelet_and_are_not_judged(synthetic):
    assert set(synthetic.wells).isdisjoint(synthetic.judged)
    assert len(synthetic.wells) + len(synthetic.judged) == 12
    wavelet = survey.choose_wavelet(synthetic, "wells", 0.0)
    true = synthetic.wavelet
    assert np.corrcoef(wavelet, true)[0, 1] > 0.9
    ricker = survey.choose_wavelet(synthetic, 25.0, 0.0)
    assert 0.4 < ricker.max() / true.max() < 1.6  # scaled at the wells


def test_a_section_is_inverted_better_with_its_wavelet_than_with_one_turned_by_90_degrees(synthetic):
    solve = fista.make_solver(fista.Config(iterations=30))
    wavelet = survey.choose_wavelet(synthetic, "wells", 0.0)
    scores = []
    for used in (wavelet, wavelets.rotate_phase(wavelet, 90)):
        task = tasks.deconvolve(synthetic, used, tasks.Options())
        result = solve(task)
        scores.append(fista.judge(task, result, result.model))
    right, wrong = scores
    assert right["snr_db"] > wrong["snr_db"] + 4
    assert right["correlation"] > 0.75 > 0.3 > wrong["correlation"]
    assert right["f1"] > wrong["f1"] + 0.1


def test_training_traces_share_the_reflectivity_and_differ_in_noise_as_stated():
    data = noise.traces(count=3, samples=48, seed=1)
    assert data.x.shape == (3, len(noise.LEVELS), 48)
    assert len(np.unique(np.asarray(data.y), axis=0)) == 3  # new earths
    differences = np.sum((np.asarray(data.x) - np.asarray(data.x[:, :1])) ** 2, axis=(0, 2))
    # Each is the sum of two independent noises; level 0 is 20 dB, and the signal is the same.
    shares = 10 ** (-np.array(noise.LEVELS[1:]) / 10) + 10 ** (-noise.LEVELS[0] / 10)
    np.testing.assert_allclose(differences[1:] / differences[-1], shares / shares[-1], rtol=0.3)


def test_balanced_traces_have_even_amplitude_and_the_gain_undoes_it(tmp_path):
    decaying = np.exp(-np.arange(400) / 60) * np.random.default_rng(0).normal(size=(5, 400))
    np.save(tmp_path / "a.npy", decaying)
    data, _ = survey.field(str(tmp_path / "a.npy"), interval=None, balance=0.2)
    early, late = (np.std(data.traces[:, part]) for part in (slice(20, 100), slice(150, 230)))
    assert 0.7 < early / late < 1.4
    np.testing.assert_allclose(data.traces * data.gain, decaying, rtol=1e-4, atol=1e-6)


def test_the_band_of_a_wavelet_section_is_that_of_its_wavelet():
    wavelet = wavelets.ormsby(wavelets.time_axis(127, 0.004), (5.0, 15.0, 45.0, 60.0))
    found = tasks.band(wavelet[None], 0.004)
    assert 5 < found["low_6db"] < 15
    assert 45 < found["high_6db"] < 60
    assert found["low_10db"] <= found["low_6db"]
    assert found["high_10db"] >= found["high_6db"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--weight", "-1"], "--weight must be positive, got -1"),
        (["--weight", "nan"], "--weight must be positive"),
        (["--wavelet", "0"], "--wavelet must be positive"),
        (["--wavelet", "200"], "--wavelet 200: above 125 Hz, the Nyquist frequency of data every 0.004 s"),
        (["--task", "migrate"], "migrate"),
        (["--traces", "2"], "--traces must be at least 4"),
        (["--phase", "30"], "not with --wavelet wells"),
        (["--data", "nowhere.sgy"], "nowhere.sgy"),
        (["--data", "survey.txt"], "expected synthetic, or a file ending in .sgy, .segy or .npy"),
        (["--data", "{text.sgy}"], "not a SEG-Y file"),
        (["--data", "{cut.sgy}"], "truncated"),
        (["--data", "{field.sgy}", "--interval", "0.002"], "--interval 0.002: "),
        (["--data", "{field.sgy}", "--wavelet", "wells"], "field data come without wells"),
        (["--data", "{cube.npy}"], "expected real numbers [trace, time], got float64 of shape (2, 3, 4)"),
        (["--data", "{nan.npy}"], "NaN or infinity in trace 2"),
        (["--data", "{zero.npy}"], "zeros only"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(argv, message, segy_file, tmp_path, capsys):
    (tmp_path / "text.sgy").write_text("no seismic data here\n" * 400)
    (tmp_path / "cut.sgy").write_bytes(segy_file.read_bytes()[:-30])
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "zero.npy", np.zeros((3, 40)))
    bad = np.ones((4, 40))
    bad[2, 5] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    argv = [str(tmp_path / word[1:-1]) if word.startswith("{") else word for word in argv]
    assert cli.main(["fista", *TINY, *argv, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
