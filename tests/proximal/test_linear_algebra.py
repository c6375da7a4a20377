"""The algebra of operators, transforms through them, their dot test and singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxnets.proximal import linear

RNG = np.random.default_rng(1)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


A, B, C = draw(3, 5), draw(3, 5), draw(5, 4)
OA, OB, OC = linear.matrix(A), linear.matrix(B), linear.matrix(C)
COMPLEX = linear.matrix(A + 1j * B)
I3 = jnp.eye(3)

LAWS = {
    "composition": (OA @ OC, A @ C),
    "sum": (OA + OB, A + B),
    "difference": (OA - OB, A - B),
    "negative": (-OA, -A),
    "scalar": (2 * OA * np.float32(1.5), 3 * A),
    "complex scalar": ((1 + 2j) * COMPLEX, (1 + 2j) * (A + 1j * B)),
    "adjoint": (COMPLEX.H, (A + 1j * B).conj().T),
    "adjoint of a product": ((OA @ OC).H, C.T @ A.T),
    "normal": (COMPLEX.H @ COMPLEX, (A + 1j * B).conj().T @ (A + 1j * B)),
    "stack": (linear.stack([OA, 2 * OB]), np.concatenate([A, 2 * B])),
    "block row": (linear.block_row([OA, OA @ OC]), np.concatenate([A, A @ C], axis=1)),
    "block diagonal": (linear.block_diagonal([OA, OC]), scipy.linalg.block_diag(A, C)),
    "block diagonal of a dict": (linear.block_diagonal({"b": OC, "a": (OA, OB)}), scipy.linalg.block_diag(A, B, C)),
    "batch": (linear.batch(OA, 3), np.kron(np.eye(3), A)),
    "mapped batch": (
        linear.batch(jax.vmap(linear.matrix)(jnp.stack([A, B])), 2, mapped=True),
        scipy.linalg.block_diag(A, B),
    ),
    "diagonal of a tree": (linear.diagonal({"a": A[0], "b": (B[0], C)}), np.diag(np.concatenate([A[0], B[0], C.ravel()]))),
    "function": (linear.operator(jnp.flip, 5), np.eye(5)[::-1]),
    "function of params": (linear.operator(jnp.multiply, 5, params=A[0], adjoint=jnp.multiply), np.diag(A[0])),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_algebra_is_that_of_matrices(name):
    operator, matrix = LAWS[name]
    dense, adjoint = jax.jit(lambda A: (linear.dense(A), linear.dense(A.H)))(operator)
    np.testing.assert_allclose(dense, matrix, atol=1e-5)
    np.testing.assert_allclose(adjoint, np.conj(matrix).T, atol=1e-5)


def test_numpy_arrays_are_welcome():
    operator = linear.wavelet_transform(4, "haar")
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_allclose(operator.adjoint(np.asarray(operator(x))), x, atol=1e-6)


def test_the_adjoint_of_the_adjoint_is_the_operator():
    assert OA.H.H is OA


def test_a_real_operator_on_declared_complex_numbers():
    operator = linear.gradient(jax.ShapeDtypeStruct((2, 3), jnp.complex64))
    real, imaginary = linear.gradient((2, 3)), draw(2, 3)
    x, y = draw(2, 3), draw(2, 2, 3)
    np.testing.assert_allclose(operator(x + 1j * imaginary), real(x) + 1j * real(imaginary), atol=1e-6)
    np.testing.assert_allclose(operator.adjoint(y + 2j * y), (1 + 2j) * real.adjoint(y), atol=1e-6)


def test_equal_options_do_not_recompile():
    traces = []
    field = (2, 1, 1, 9)

    def apply(operator, x):
        traces.append(None)
        return operator.adjoint(operator(x))

    for wavelet in (draw(5), draw(5)):
        operator = (
            2.0 * linear.convolution(wavelet, (2, 9)) @ linear.patches((2, 9), (1, 9), (1, 9)).H.H.H @ linear.identity(field)
        )
        jax.jit(apply)(operator, jnp.ones(field))
    assert jax.config.jax_disable_jit or len(traces) == 1
    assert linear.fk((4, 5)) == linear.fk((4, 5), axes=(0, 1))
    assert linear.fk((4, 5)) != linear.fk((4, 5), axes=(1, 0))
    assert hash(linear.fk((4, 5)).forward) == hash(linear.fk((4, 5)).forward)


def test_gradients_reach_the_wavelet_through_the_operator_and_its_adjoint():
    x, y, wavelet = draw(9), draw(9), draw(5)
    # d <y, w * x> / dw[j] = sum_i y[i] x[i + 2 - j]
    expected = np.correlate(np.pad(y, 2), x, "valid")
    forward = jax.grad(lambda w: jnp.vdot(y, linear.convolution(w, 9)(x)))(wavelet)
    adjoint = jax.grad(lambda w: jnp.vdot(linear.convolution(w, 9).adjoint(y), x))(wavelet)
    np.testing.assert_allclose(forward, expected, atol=1e-5)
    np.testing.assert_allclose(adjoint, expected, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: linear.linear_radon(p * jnp.array([0.0, 1.0, 2.0]), jnp.array([0.5, 1.1]), 8, 1.0),
        lambda p: linear.interpolation((2, 8), p * jnp.array([1.3, 3.4, 5.7])),
        lambda p: linear.operator(lambda q, x: jnp.exp(q) * x, (2, 8), params=p),  # transposed, with a traced parameter
    ],
    ids=["radon offsets", "interpolation positions", "params of a function"],
)
def test_gradients_reach_physical_parameters_through_the_adjoint(make):
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(2, 8)))

        def energy(p):
            operator = make(p)
            return jnp.sum(operator.adjoint(operator(x)) * x)

        value_and_grad = jax.jit(jax.value_and_grad(energy))
        (above, _), (below, _), (_, slope) = (value_and_grad(jnp.asarray(p)) for p in (1 + 1e-6, 1 - 1e-6, 1.0))
        np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-6)


def test_vmap_over_the_arrays_inside_equals_the_loop():
    wavelets, x, y = draw(3, 5), draw(3, 9), draw(3, 9)
    operators = jax.vmap(lambda w: linear.convolution(w, 9))(wavelets)
    images = jax.jit(jax.vmap(lambda operator, x: operator(x)))(operators, x)
    backs = jax.jit(jax.vmap(lambda operator, y: operator.adjoint(y)))(operators, y)
    for i in range(3):
        one = linear.convolution(wavelets[i], 9)
        np.testing.assert_allclose(images[i], one(x[i]), atol=1e-5)
        np.testing.assert_allclose(backs[i], one.adjoint(y[i]), atol=1e-5)


def default_ones_times_sum(x):
    return jnp.ones(3) * jnp.sum(x)


def test_the_output_follows_the_precision_in_force():
    single = jax.ShapeDtypeStruct((4,), jnp.float32)
    repeat = linear.operator(default_ones_times_sum, single)
    assert repeat.output == linear.Structure.of((3,), jnp.float32)
    assert linear.fk((4, 6)).output == linear.Structure.of((4, 4), jnp.complex64)
    with jax.enable_x64(True):
        assert linear.fk((4, 6)).output == linear.Structure.of((4, 4), jnp.complex128)
        assert repeat.output == linear.Structure.of((3,), jnp.float64)  # not the cached one


REFUSED = {
    "linear: A(x): expected (5,), got (4,)": lambda: OA(jnp.ones(4)),
    "linear: A(x): expected (5,), got {'a': (5,)}": lambda: OA({"a": jnp.ones(5)}),
    "linear: A.adjoint(y): expected (3,), got (5,)": lambda: OA.adjoint(jnp.ones(5)),
    "linear: A(x): expected float32, got complex64": lambda: OA(jnp.ones(5, jnp.complex64)),
    "linear: A @ B: B gives (3,), A takes (5,)": lambda: OA @ OB,
    "linear: A + B: A maps (5,) to (3,), B (4,) to (5,)": lambda: OA + OC,
    "linear: c * A takes a scalar c": lambda: OA * jnp.ones(5),
    "stack: expected operators on one structure, got [(5,), (4,)]": lambda: linear.stack([OA, OC]),
    "block_row: expected operators with one output structure, got [(3,), (5,)]": lambda: linear.block_row([OA, OC]),
    "batch: count must be at least 1, got 0": lambda: linear.batch(OA, 0),
    "largest_singular_value: steps must be at least 1, got 0": lambda: linear.largest_singular_value(OA, start=A[0], steps=0),
    "power_iteration: give either a key or a start": lambda: linear.power_iteration(OA),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_named_with_expected_and_got(message):
    with pytest.raises(ValueError) as error:
        REFUSED[message]()
    assert message in str(error.value)


def test_a_wrong_adjoint_is_reported_by_how_much(key):
    wrong = linear.operator(lambda x: x, 1, adjoint=lambda y: 2 * y)
    # |x y - 2 x y| / max(|x y|, |2 x y|)
    np.testing.assert_allclose(linear.dot_test(wrong, key), 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match=r"must agree to 1e-05 of .*, they differ by 0\.5\."):
        linear.check_adjoint(wrong, key)
    slightly = linear.operator(lambda x: x, 50, adjoint=lambda y: 1.001 * y)
    with pytest.raises(ValueError, match="check_adjoint"):
        linear.check_adjoint(slightly, key)
    linear.check_adjoint(slightly, key, tolerance=0.1)
    not_finite = linear.operator(lambda x: x, 3, adjoint=lambda y: y * jnp.nan)
    with pytest.raises(ValueError, match="nan"):
        linear.check_adjoint(not_finite, key)


def test_a_complex_adjoint_without_its_conjugate_is_found(key):
    a = A + 1j * B
    wrong = linear.operator(lambda x: a @ x, jax.ShapeDtypeStruct((5,), jnp.complex64), adjoint=lambda y: y @ a)
    assert linear.dot_test(wrong, key) > 1e-3


def test_lanczos_finds_the_largest_singular_value_and_never_more(jit, key):
    singular = np.concatenate([[1.0, 0.98], np.linspace(0.01, 0.9, 28)])
    u, v = (np.linalg.qr(RNG.normal(size=(30, 30)))[0] for _ in range(2))
    operator = linear.matrix(jnp.asarray(u * singular @ v.T, jnp.float32))
    lanczos = jit(linear.largest_singular_value)(operator, key)
    power = jit(lambda operator, key: linear.power_iteration(operator, key, steps=20))(operator, key)
    assert abs(lanczos - 1) < 1e-4
    assert 0.9 < power < lanczos < 1 + 1e-5
    start = jnp.ones(30)
    np.testing.assert_allclose(linear.largest_singular_value(operator, start=start, steps=12), 1, atol=1e-2)


def test_singular_values_of_exhausted_zero_and_complex_operators(key):
    zero, tree = linear.matrix(jnp.zeros((3, 5))), {"a": (A[0], 1j * B[0]), "b": A}
    assert linear.largest_singular_value(zero, start=A[0], steps=6) == 0
    assert linear.power_iteration(zero, start=A[0], steps=6) == 0
    np.testing.assert_allclose(linear.largest_singular_value(linear.identity(tree), start=tree, steps=6), 1, rtol=1e-5)
    expected = np.linalg.norm(A + 1j * B, 2)
    np.testing.assert_allclose(linear.largest_singular_value(COMPLEX, start=A[0] + 0j, steps=6), expected, rtol=1e-5)
    np.testing.assert_allclose(linear.largest_singular_value(COMPLEX, key, steps=6), expected, rtol=1e-5)


def test_structures_are_made_of_arrays_shapes_and_lengths():
    assert linear.Structure.of(3) == linear.Structure.of((3,)) == linear.Structure.of(jnp.ones(3))
    assert linear.Structure.of(np.int64(3)) == linear.Structure.of((np.int32(3),)) == linear.Structure.of(3)
    assert linear.Structure.of((3,), jnp.complex64).dtype == jnp.complex64
    structure = linear.Structure.of({"a": jnp.ones(2), "b": 1j * jnp.ones(3)})
    assert structure.dtype == jnp.complex64
    assert structure.shapes() == {"a": (2,), "b": (3,)}
    assert jax.tree.map(jnp.shape, structure.zeros()) == structure.shapes()
