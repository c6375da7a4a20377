"""Every operator against an independent oracle, its adjoint against the conjugate transpose; what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from jaxnets.proximal import linear

RNG = np.random.default_rng(0)
A, W, W4, LONG = RNG.normal(size=(3, 5)), RNG.normal(size=5), RNG.normal(size=4), RNG.normal(size=201)
AC, WC, WT = A + 1j * RNG.normal(size=A.shape), W + 1j * RNG.normal(size=5), RNG.normal(size=(3, 5))
D, KEEP = RNG.normal(size=(3, 5)) + 1j * RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5)) > 0
POSITIONS = np.array([0.0, 0.5, 2.25, 4.0])
OFFSETS, SAMPLING = np.array([0.0, 1.0, 2.0, 3.0]) * 100, 0.004


def draw(structure):
    """A normal draw of this structure, the same for each test."""
    rng = np.random.default_rng(1)
    real, imaginary = rng.normal(size=(2, *structure.shape))
    return (real + 1j * imaginary if jnp.issubdtype(structure.dtype, jnp.complexfloating) else real).astype(structure.dtype)


def along(function, axis=-1):
    return lambda x: np.apply_along_axis(function, axis, x)


def array(x, *, complex=False):
    """An array in the precision in force."""
    return jnp.asarray(x) + 0j if complex else jnp.asarray(x)


def twins(n):
    """sqrt(2) for the frequencies that stand for their negative twins."""
    return np.where((np.arange(n // 2 + 1) == 0) | (2 * np.arange(n // 2 + 1) == n), 1, np.sqrt(2))


def windows(x, size, stride):
    counts = [-(-(n - width) // step) + 1 for n, width, step in zip(x.shape, size, stride, strict=True)]
    pads = [(count - 1) * step + width - n for n, width, step, count in zip(x.shape, size, stride, counts, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, pad) for pad in pads]), size)
    return view[tuple(slice(None, None, step) for step in stride)]


def delayed(x, delays):
    """Sum of the rows of a model, each delayed by whole samples: `delays[offset, row]`."""
    full = np.zeros((len(delays), 3 * x.shape[1]))
    for trace, row in zip(full, delays, strict=True):
        for m, delay in zip(x, row, strict=True):
            trace[x.shape[1] + delay : 2 * x.shape[1] + delay] += m
    return full[:, x.shape[1] : 2 * x.shape[1]]


def two_level_haar(x):
    low, high = (x[::2] + x[1::2]) / np.sqrt(2), (x[::2] - x[1::2]) / np.sqrt(2)
    return np.concatenate([(low[::2] + low[1::2]) / np.sqrt(2), (low[::2] - low[1::2]) / np.sqrt(2), high])


# name: (operator, the same by numpy or scipy)
OPERATORS = {
    "identity": (lambda: linear.identity((3, 5)), lambda x: x),
    "matrix": (lambda: linear.matrix(array(A)), lambda x: A @ x),
    "matrix, complex": (lambda: linear.matrix(array(AC, complex=True)), lambda x: AC @ x),
    "matrix along an axis": (lambda: linear.matrix(array(AC, complex=True), (2, 5, 3), axis=1), along(lambda x: AC @ x, 1)),
    "diagonal": (lambda: linear.diagonal(array(D, complex=True)), lambda x: D * x),
    "mask": (lambda: linear.mask(jnp.asarray(KEEP)), lambda x: KEEP * x),
    "restriction": (lambda: linear.restriction((3, 5), [0, 3, -1, 3]), lambda x: x[:, [0, 3, 4, 3]]),
    "restriction to a slice": (lambda: linear.restriction((5, 3), slice(None, None, -2), axis=0), lambda x: x[::-2]),
    "difference": (lambda: linear.difference((4, 3), axis=0), lambda x: np.diff(x, axis=0, append=x[-1:])),
    "gradient": (
        lambda: linear.gradient((3, 4)),
        lambda x: np.stack([np.diff(x, axis=0, append=x[-1:]), np.diff(x, axis=1, append=x[:, -1:])]),
    ),
    "cumulative_sum": (lambda: linear.cumulative_sum((4, 3), axis=0), lambda x: np.cumsum(x, axis=0)),
    "interpolation": (
        lambda: linear.interpolation((2, 5), array(POSITIONS)),
        along(lambda x: np.interp(POSITIONS, np.arange(5), x)),
    ),
    "resample": (
        lambda: linear.resample((5, 2), 8, axis=0, kernel="sinc"),
        lambda x: np.sinc(np.linspace(0, 4, 8)[:, None] - np.arange(5)) @ x,
    ),
    "convolution": (lambda: linear.convolution(array(W), (2, 3, 70)), along(lambda x: np.convolve(x, W, "same"))),
    "convolution, full": (
        lambda: linear.convolution(array(W4), (6, 3), mode="full", axis=0),
        along(lambda x: np.convolve(x, W4), 0),
    ),
    "convolution, valid": (
        lambda: linear.convolution(array(WC, complex=True), 9, mode="valid"),
        lambda x: np.convolve(x, WC, "valid"),
    ),
    "convolution, origin": (
        lambda: linear.convolution(array(W4), 7, origin=0),
        lambda x: np.convolve(x, W4)[:7],
    ),
    "convolution, per trace": (
        lambda: linear.convolution(array(WT), (3, 6)),
        lambda x: np.stack([np.convolve(x, w, "same") for x, w in zip(x, WT, strict=True)]),
    ),
    "convolution, long": (
        lambda: linear.convolution(array(LONG), (2, 7), origin=100),
        along(lambda x: np.convolve(x, LONG)[100:107]),
    ),
    "convolution, long and complex": (
        lambda: linear.convolution(array(1j * LONG, complex=True), 8, mode="full"),
        lambda x: np.convolve(x, 1j * LONG),
    ),
    "fft": (lambda: linear.fft((3, 4), axes=(0, 1)), lambda x: np.fft.fft2(x, norm="ortho")),
    "fft of reals": (
        lambda: linear.fft(jax.ShapeDtypeStruct((5,), jnp.result_type(float))),
        lambda x: np.fft.fft(x, norm="ortho"),
    ),
    "rfft": (lambda: linear.rfft((5, 2), axis=0), lambda x: twins(5)[:, None] * np.fft.rfft(x, axis=0, norm="ortho")),
    "fk": (lambda: linear.fk((2, 3, 4)), lambda x: twins(4) * np.fft.fft(np.fft.rfft(x, norm="ortho"), axis=-2, norm="ortho")),
    "dct": (lambda: linear.dct((4, 5), axes=(0, 1)), lambda x: scipy.fft.dctn(x, norm="ortho")),
    "wavelet_transform": (lambda: linear.wavelet_transform((2, 8), "haar", levels=2), along(two_level_haar)),
    "patches": (lambda: linear.patches((7, 9), (4, 3), (3, 3)), lambda x: windows(x, (4, 3), (3, 3))),
    "linear_radon": (
        lambda: linear.linear_radon(array(OFFSETS), array([-4e-5, 0, 8e-5]), 9, SAMPLING),
        lambda x: delayed(x, np.arange(4)[:, None] * np.array([-1, 0, 2])),
    ),
    "parabolic_radon": (
        lambda: linear.parabolic_radon(array(OFFSETS), array([0, 4e-7]), 8, SAMPLING),
        lambda x: delayed(x, np.array([0, 1, 4, 8])[:, None] * np.array([0, 1])),  # 9 samples leave the record, as do 8
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("bits", [32, 64])
def test_an_operator_is_the_oracles_matrix_and_its_adjoint_the_conjugate_transpose(name, bits):
    make, function = OPERATORS[name]
    with jax.enable_x64(bits == 64):
        operator = make()
        x, y = draw(operator.structure), draw(operator.output)
        image, back = jax.jit(lambda A, x, y: (A(x), A.adjoint(y)))(operator, x, y)
    columns = [function(e.reshape(x.shape)).ravel() for e in np.eye(x.size)]
    matrix, tolerance = np.stack(columns, axis=1), {32: 1e-5, 64: 1e-12}[bits]
    transposed = (matrix.conj().T @ y.ravel()).reshape(x.shape)
    if not np.iscomplexobj(x):
        transposed = transposed.real
    scale = np.linalg.norm(matrix)
    np.testing.assert_allclose(image, (matrix @ x.ravel()).reshape(y.shape), atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(back, transposed, atol=tolerance * scale, rtol=0)
    difference = np.vdot(image, np.asarray(y, complex)).real - np.vdot(x, np.asarray(back, complex)).real
    assert abs(difference) <= tolerance * np.linalg.norm(image) * np.linalg.norm(y)
    assert (image.dtype, back.dtype) == (y.dtype, x.dtype)
    assert jnp.finfo(image.dtype).bits == jnp.finfo(back.dtype).bits == bits


def structures(*shapes, complex=False):
    return [jax.ShapeDtypeStruct(shape, jnp.result_type(1j if complex else 1.0)) for shape in shapes]


def odd_and_even():
    """Operators on complex numbers of odd lengths and on real ones of even lengths (where the code differs, both of both)."""
    real = structures((3, 5), (4, 6))
    both = structures((3, 5), complex=True) + real[1:]
    halved = [jax.ShapeDtypeStruct((s.shape[0], 2 * s.shape[1]), s.dtype) for s in both]  # a level halves a length
    w, w4, long = array(W), array(W4), array(LONG)
    return {
        "matrix": [linear.matrix(array(A[:, [0, 1, 2, 3, 4, 0][: s.shape[1]]]), s) for s in both],
        "restriction": [linear.restriction(s, [0, 3, -1, 3]) for s in both],
        "restriction to a slice": [linear.restriction(s, slice(None, None, -2)) for s in both],
        "difference": [linear.difference(s) for s in both],
        "gradient": [linear.gradient(s) for s in both],
        "cumulative_sum": [linear.cumulative_sum(s) for s in both],
        "interpolation": [linear.interpolation(s, array(POSITIONS)) for s in both],
        "resample": [linear.resample(s, 7, kernel="sinc") for s in real],
        "convolution": [linear.convolution(w, s) for s in real + both[:1]]
        + [linear.convolution(w4, s, origin=1) for s in real],
        "convolution, full": [linear.convolution(taps, s, mode="full") for s in real for taps in (w, w4)],
        "convolution, valid": [linear.convolution(taps, s, mode="valid") for s in real for taps in (w, w4)],
        "convolution, long": [linear.convolution(long, s) for s in real + both[:1]]
        + [linear.convolution(long[1:], real[1], origin=9)],
        "convolution, per trace": [linear.convolution(array(WT), s) for s in (real[0], both[0])],
        "fft": [linear.fft(s, axes=(0, 1)) for s in both],
        "rfft": [linear.rfft(s) for s in real],
        "fk": [linear.fk(s) for s in real],
        "dct": [linear.dct(s, axes=(0, 1)) for s in both],
        "wavelet_transform": [linear.wavelet_transform(s, "db2") for s in halved],
        "patches": [linear.patches(s, (2, 3), (1, 2), window="sine") for s in both],
        "linear_radon": [linear.linear_radon(array(OFFSETS), array([-3e-5, 5e-5]), n, SAMPLING) for n in (5, 6)],
        "parabolic_radon": [linear.parabolic_radon(array(OFFSETS), array([0, 3e-7, 4e-7]), n, SAMPLING) for n in (5, 6)],
    }


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (64, 1e-12)])
def test_dot_test_at_odd_and_even_lengths_of_real_and_complex_numbers(bits, tolerance):
    with jax.enable_x64(bits == 64):
        operators = odd_and_even()
        draws = {name: [(draw(a.structure), draw(a.output)) for a in each] for name, each in operators.items()}

        def both(operators, draws):  # all in one program: a compilation for each takes far longer
            return {
                name: [(a(x), a.adjoint(y)) for a, (x, y) in zip(operators[name], draws[name], strict=True)] for name in draws
            }

        with jax.disable_jit(False):
            results = jax.jit(both)(operators, draws)
    wrong = {}
    for name, pairs in draws.items():
        for operator, (x, y), (image, back) in zip(operators[name], pairs, results[name], strict=True):
            error = abs(np.vdot(image, y).real - np.vdot(x, back).real) / (np.linalg.norm(image) * np.linalg.norm(y))
            if not error <= tolerance or (image.dtype, back.dtype) != (y.dtype, x.dtype):
                wrong[f"{name}, {operator.structure.leaves[0]}"] = error
    assert not wrong


def test_a_real_transform_takes_complex_numbers_apart():
    x = draw(jax.ShapeDtypeStruct((3, 4), jnp.complex64))
    for make in (linear.dct, linear.difference, linear.cumulative_sum, linear.wavelet_transform):
        real = make((3, 4))
        y = make(jax.ShapeDtypeStruct((3, 4), jnp.complex64))(x)
        np.testing.assert_allclose(y, np.asarray(real(x.real)) + 1j * np.asarray(real(x.imag)), atol=1e-6)


def test_booleans_select():
    keep = [True, False, True, False, True]
    for index in (keep, np.array(keep), jnp.array(keep)):
        np.testing.assert_array_equal(linear.restriction(5, index)(jnp.arange(5.0)), [0, 2, 4])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_convolution_in_16_bits(dtype):
    wavelets = jnp.asarray(RNG.normal(size=(2, 3)), dtype)
    x = jnp.asarray(RNG.normal(size=(2, 6)), dtype)
    operator = linear.convolution(wavelets, (2, 6))
    y = operator(x)
    assert (y.dtype, operator.adjoint(y).dtype) == (x.dtype, x.dtype)
    expected = [np.convolve(a, w, "same") for a, w in zip(np.asarray(x, float), np.asarray(wavelets, float), strict=True)]
    np.testing.assert_allclose(np.asarray(y, float), expected, atol=0.03)


def test_integers_become_floats(key):
    for operator in (
        linear.matrix(jnp.array([[1, 2], [3, 4]])),
        linear.diagonal(jnp.array([1, 2])),
        linear.convolution(jnp.array([1, 2, 1]), 4),
    ):
        linear.check_adjoint(operator, key)
    norm = linear.largest_singular_value(linear.matrix(jnp.array([[3, 0], [0, 4]])), key)
    np.testing.assert_allclose(norm, 4, rtol=1e-5)


ISOMETRIES = {
    **{name: OPERATORS[name][0] for name in ("fft", "rfft", "fk", "dct", "wavelet_transform")},
    "rfft, even": lambda: linear.rfft(6),
    "fk, odd": lambda: linear.fk((4, 5)),
    "db4": lambda: linear.wavelet_transform(16, "db4", levels=2),
    "haar, two axes": lambda: linear.wavelet_transform((4, 4), "haar", axes=(0, 1)),
    "patches, flat": lambda: linear.patches((7, 9), (4, 3), (3, 2), window="flat"),
    "patches, sine": lambda: linear.patches((2, 7, 9), (4, 3), (2, 3), window="sine"),
}


@pytest.mark.parametrize("name", ISOMETRIES)
def test_the_adjoint_of_an_isometry_undoes_it(name):
    operator = ISOMETRIES[name]()
    x = draw(operator.structure)
    np.testing.assert_allclose(jax.jit(lambda A, x: A.adjoint(A(x)))(operator, x), x, atol=2e-6)


@pytest.mark.parametrize("order", [2, 4, 9])
def test_daubechies_filters_are_orthonormal_with_vanishing_moments(order):
    h = np.array(linear.transforms.daubechies(order))
    assert len(h) == 2 * order
    autocorrelation = np.correlate(h, h, "full")[2 * order - 1 :: 2]
    np.testing.assert_allclose(autocorrelation, np.eye(1, order)[0], atol=1e-11)
    # The high-pass filter kills polynomials of degree below the order.
    high = (-1) ** np.arange(2 * order) * h[::-1]
    moments = [(high * np.linspace(-1, 1, 2 * order) ** degree).sum() for degree in range(order)]
    np.testing.assert_allclose(moments, 0, atol=1e-9)


@pytest.mark.parametrize(
    ("wavelet", "shape", "axes"), [("db2", (6, 16), (1,)), ("db4", (16, 32), (0, 1)), ("haar", (12, 4), (0, 1))]
)
def test_wavelet_transform_and_its_default_levels_are_those_of_pywavelets(wavelet, shape, axes):
    pywt = pytest.importorskip("pywt")
    x = RNG.normal(size=shape)
    with jax.enable_x64(True):
        y = jax.jit(linear.wavelet_transform(shape, wavelet, axes=axes).__call__)(jnp.asarray(x))
    coefficients = pywt.wavedecn(x, wavelet, "periodization", axes=axes)
    np.testing.assert_allclose(y, pywt.coeffs_to_array(coefficients, axes=axes)[0], atol=1e-9)


def test_radon_delays_between_samples_are_band_limited_and_nothing_wraps_around():
    n, delay = 64, 2.5
    time = np.arange(n)
    model = np.exp(-(((time - 30) / 4) ** 2))[None]
    with jax.enable_x64(True):
        operator = linear.linear_radon(jnp.array([1.0, 20.0, 50.0]), jnp.array([delay]), n, 1.0)
        data = operator(jnp.asarray(model))
    np.testing.assert_allclose(data[0], np.exp(-(((time - 30 - delay) / 4) ** 2)), atol=1e-6)
    np.testing.assert_allclose(data[1], 0, atol=1e-4)  # 50 samples: all but a tail has left the record
    np.testing.assert_array_equal(data[2], 0)  # 125 samples: beyond the record


def test_a_mask_removes_what_is_not_finite():
    y = linear.mask(jnp.array([True, False]))(jnp.array([1.0, jnp.nan]))
    np.testing.assert_array_equal(y, [1, 0])


f = jnp.ones
BAD = {
    "matrix: expected 5 entries along axis -1, got the shape (5, 3)": lambda: linear.matrix(f((3, 5)), (5, 3)),
    "matrix: axes must be different ones of the 1 axes of (5,), got (1,)": lambda: linear.matrix(f((3, 5)), 5, axis=1),
    "mask: expected a mask of shape (3,), got (2,)": lambda: linear.mask(f(2) > 0, 3),
    "restriction: index 5 is beyond an axis of 5 entries": lambda: linear.restriction((3, 5), [0, 5]),
    "restriction: expected 5 booleans, one per entry, got the shape (3,)": lambda: linear.restriction(
        (3, 5), [True, False, True]
    ),
    "restriction: booleans must not be traced": lambda: jax.make_jaxpr(lambda keep: linear.restriction(2, keep)(f(2)))(
        f(2) > 0
    ),
    "interpolation: kernel must be one of ['linear', 'sinc'], got 'cubic'": lambda: linear.interpolation(
        5, f(2), kernel="cubic"
    ),
    "resample: length must be at least 1, got 0": lambda: linear.resample(5, 0),
    "a wavelet of even length (4) has no center; give its origin": lambda: linear.convolution(f(4), 9),
    "origin must be within the wavelet of 5 samples, got 5": lambda: linear.convolution(f(5), 9, origin=5),
    "origin goes with mode 'same', got mode 'full'": lambda: linear.convolution(f(5), 9, mode="full", origin=2),
    "mode 'valid' needs at least 5 samples, the wavelet's length, got 4": lambda: linear.convolution(f(5), 4, mode="valid"),
    "mode must be 'same', 'full' or 'valid', got 'circular'": lambda: linear.convolution(f(5), 9, mode="circular"),
    "one for each of the traces (3,), got (2, 5)": lambda: linear.convolution(f((2, 5)), (3, 9)),
    "convolution: axes must be different ones of the 1 axes of (9,), got (1,)": lambda: linear.convolution(f(5), 9, axis=1),
    "fft: axes must be different ones of the 2 axes of (3, 4), got (0, -2)": lambda: linear.fft((3, 4), axes=(0, -2)),
    "rfft: expected real input, got complex64": lambda: linear.rfft(jax.ShapeDtypeStruct((5,), jnp.complex64)),
    "each length must be divisible by 2^2 (levels), got (6,)": lambda: linear.wavelet_transform(6, "haar", levels=2),
    "each length must be divisible by 2^1 (levels), got (5,)": lambda: linear.wavelet_transform(5),
    "wavelet must be 'haar' or 'db1' to 'db12', got 'sym4'": lambda: linear.wavelet_transform(8, "sym4"),
    "must have 1 <= stride <= size <= shape, got stride (3,), size (2,), shape (5,)": lambda: linear.patches(5, (2,), (3,)),
    "expected one size and stride per axis": lambda: linear.patches((5, 5), (2, 2), (1,)),
    "window must be None or one of ['flat', 'sine'], got 'hann'": lambda: linear.patches(5, (2,), (1,), window="hann"),
    "linear_radon: samples must be at least 1, got 0": lambda: linear.linear_radon(f(2), f(2), 0, 0.004),
    "expected the structure of one array, got {'a': (2,)}": lambda: linear.difference({"a": f(2)}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)


def test_every_operator_lowers_for_every_platform():
    operators = [make() for make, _ in OPERATORS.values()]

    def both(operators):
        # A sum over all, so that nothing is dropped; traced arrays, so that nothing is folded.
        images = [operator(operator.structure.zeros()) for operator in operators]
        backs = [operator.adjoint(image) for operator, image in zip(operators, images, strict=True)]
        singular = linear.largest_singular_value(operators[1], start=jnp.ones(5))
        return images, backs, singular

    exported = jax.export.export(jax.jit(both), platforms=("cpu", "cuda", "tpu"))(operators)
    assert exported.platforms == ("cpu", "cuda", "tpu")
