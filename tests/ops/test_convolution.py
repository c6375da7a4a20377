"""Formulation against formulation, closed forms, and every transformation."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import ops

module = importlib.import_module("jaxnets.ops.convolution")  # the package's attribute is the function
common = importlib.import_module("jaxnets.ops.common")

# One for each branch of `formulation`: image, kernel, options.
BRANCHES = {
    "one": ((2, 4, 5, 3), (1, 1, 3, 4), {"stride": 2}),
    "minimal filtering": ((2, 17, 16, 96), (3, 3, 96, 96), {"padding": 2, "dilation": 2}),
    "too small for it": ((2, 17, 16, 96), (3, 3, 96, 96), {"padding": 1}),
    "small image": ((1, 3, 4, 128), (2, 2, 128, 2), {"padding": 1}),
    "one channel": ((2, 5, 6, 1), (3, 3, 1, 4), {"padding": 2}),
    "few channels": ((2, 5, 6, 2), (3, 3, 2, 4), {"padding": ((1, 0), (2, 1)), "stride": (2, 1)}),
    "middle": ((2, 4, 5, 16), (3, 2, 16, 4), {"padding": "SAME"}),
    "depthwise": ((2, 5, 6, 4), (3, 3, 1, 4), {"padding": 1, "stride": 2, "groups": 4}),
    "large depthwise": ((2, 6, 7, 4), (5, 4, 1, 4), {"padding": (2, 1), "dilation": (1, 2), "groups": 4}),
    "multiplied depthwise": ((2, 5, 6, 4), (3, 3, 1, 8), {"padding": 1, "groups": 4}),
    "grouped": ((2, 5, 6, 6), (3, 3, 2, 9), {"padding": 1, "dilation": 2, "groups": 3}),
    "large grouped": ((1, 9, 9, 60), (2, 2, 20, 6), {"padding": 1, "groups": 3}),
}


def problem(name, dtype=jnp.float32):
    """Image, kernel, the operation, and the same in its plain form."""
    image, kernel, options = BRANCHES[name]
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), dtype) for shape in (image, kernel))
    x = x * float(np.sqrt(np.prod(image[:-1])))
    window = common.window(
        "test", x, kernel[:2], options.get("stride", 1), options.get("dilation", 1), options.get("padding", 0)
    )
    plain = functools.partial(module._plain, window=window, groups=options.get("groups", 1))
    return x, k, functools.partial(ops.convolution, **options), plain


def close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, float(jnp.abs(b).max(initial=0))))


def derivatives(f, x, k):
    """Value, both modes' derivatives, and a second derivative."""
    y, forward = jax.jvp(f, (x, k), (jnp.sin(x), jnp.cos(k)))
    weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    gradient = jax.grad(lambda x, k: (f(x, k) ** 2 * weights).sum(), argnums=(0, 1))
    return y, forward, jax.vjp(f, x, k)[1](weights), jax.jvp(gradient, (x, k), (jnp.sin(x), jnp.cos(k)))[1]


@pytest.mark.parametrize("name", BRANCHES)
def test_every_choice_equals_the_plain_form_in_value_and_derivatives(name):
    x, k, chosen, plain = problem(name)
    with jax.disable_jit(False):
        close(*(jax.jit(functools.partial(derivatives, f))(x, k) for f in (chosen, plain)))


@pytest.mark.parametrize("name", ["one", "small image", "few channels", "large depthwise", "grouped"])
def test_it_runs_with_and_without_jit(jit, name):
    x, k, chosen, plain = problem(name)
    gradient = jax.grad(lambda x, k: (chosen(x, k) ** 2).sum(), argnums=(0, 1))
    expected = jax.grad(lambda x, k: (plain(x, k) ** 2).sum(), argnums=(0, 1))
    close(jit(gradient)(x, k), expected(x, k))


@pytest.mark.parametrize("form", ["_product", "_shifted", "_blocks"])
@pytest.mark.parametrize("name", ["few channels", "middle", "grouped", "multiplied depthwise"])
def test_formulations_equal_the_plain_form_where_they_are_not_chosen(name, form):
    if form == "_shifted" and name == "grouped":
        pytest.skip("shifted is for one group, or as many as channels")
    x, k, _, plain = problem(name)
    other = functools.partial(getattr(module, form), **plain.keywords)
    with jax.disable_jit(False):
        close(*(jax.jit(functools.partial(derivatives, f))(x, k) for f in (other, plain)))


@pytest.mark.parametrize(
    ("image", "dilation", "padding"), [((3, 4), 1, 0), ((5, 6), 1, ((0, 2), (1, 0))), ((11, 8), (3, 2), (3, 2)), ((5, 5), 4, 5)]
)
def test_minimal_filtering_is_exact_at_any_size_dilation_and_padding(image, dilation, padding):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True), jax.disable_jit(False):
        x, k = jnp.asarray(rng.standard_normal((2, *image, 3))), jnp.asarray(rng.standard_normal((3, 3, 3, 2)))
        window = common.window("test", x, (3, 3), 1, dilation, padding)
        plain = functools.partial(module._plain, window=window, groups=1)
        other = functools.partial(module.winograd, window=window)
        close(*(jax.jit(functools.partial(derivatives, f))(x, k) for f in (other, plain)), 1e-12)


@pytest.mark.parametrize("name", ["one", "few channels", "depthwise"])
def test_vmap_over_kernels_is_a_loop_over_them(name):
    x, k, chosen, _ = problem(name)
    kernels = jnp.stack([k, -2 * k, k[::-1]])
    gradient = jax.grad(lambda k, x: (chosen(x, k) ** 2).sum())
    with jax.disable_jit(False):
        step = jax.jit(gradient)
        close(jax.jit(jax.vmap(gradient, (0, None)))(kernels, x), jnp.stack([step(k, x) for k in kernels]))
        both = jax.jit(jax.vmap(gradient))(kernels, jnp.stack([x, x + 1, -x]))
        close(both, jnp.stack([step(k, x) for k, x in zip(kernels, [x, x + 1, -x], strict=True)]))


@pytest.mark.parametrize("name", BRANCHES)
def test_the_backward_pass_keeps_the_arguments_and_no_slices(name):
    x, k, chosen, _ = problem(name)
    kept = jax.eval_shape(lambda x, k: jax.vjp(chosen, x, k)[1], x, k)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(kept))
    assert sum(sizes) <= 2 * (x.size + k.size)
    assert max(sizes) == max(x.size, k.size)


def test_a_delta_moves_the_image_and_dilation_moves_it_further():
    x = jnp.arange(2.0 * 4 * 5).reshape(2, 4, 5, 1)
    delta = jnp.zeros((3, 3, 1, 1)).at[0, 2].set(1)  # sees one row above, one column to the right
    for dilation in (1, 2):
        y = ops.convolution(x, delta, padding=dilation, dilation=dilation)
        np.testing.assert_array_equal(y[:, dilation:, :-dilation], x[:, :-dilation, dilation:])
        assert not y[:, :dilation].any()
        assert not y[:, :, -dilation:].any()


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(2, 1, 1), (3, 0, 2), (1, 1, 1)])
def test_transposed_convolution_is_the_adjoint(stride, padding, dilation):
    """`<conv x, y> = <x, conv^T y>`, with the kernel's inputs and outputs exchanged."""
    rng = np.random.default_rng(1)
    x, k = jnp.asarray(rng.standard_normal((2, 8, 7, 3))), jnp.asarray(rng.standard_normal((3, 2, 3, 4)))
    y = ops.convolution(x, k, stride=stride, padding=padding, dilation=dilation)
    z = jnp.asarray(rng.standard_normal(y.shape))
    size = [
        s - (stride * (n - 1) + dilation * (m - 1) + 1 - 2 * padding)
        for s, n, m in zip((8, 7), y.shape[1:3], (3, 2), strict=True)
    ]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": (size[0], size[1])}
    back = ops.transposed_convolution(z, k.swapaxes(2, 3), **options)
    np.testing.assert_allclose(jnp.vdot(y, z), jnp.vdot(x, back), rtol=1e-4)


@pytest.mark.parametrize(("factor", "size"), [(2, None), (3, None), (4, 6)])
def test_bilinear_upsampling_is_the_transposed_convolution_with_its_kernel(factor, size):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, 4, 2)), jnp.float32)
    kernel = ops.bilinear_kernel(2 * factor - factor % 2 if size is None else size)
    kernel = kernel[:, :, None, None] * jnp.eye(2)[None, None]
    close(ops.bilinear_upsample(x, factor, size), ops.transposed_convolution(x, kernel, stride=factor))


def test_bilinear_upsampling_keeps_a_constant_inside_and_a_line_straight():
    line = jnp.broadcast_to(jnp.arange(6.0)[None, :, None, None], (1, 6, 5, 1))
    y = ops.bilinear_upsample(line, 4)[0, 6:-6, 10, 0]
    np.testing.assert_allclose(jnp.diff(y), 1 / 4, rtol=1e-5)
    np.testing.assert_allclose(ops.bilinear_kernel(4)[0], np.array([1, 3, 3, 1]) / 16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_dtype_follows_the_inputs(dtype):
    with jax.enable_x64(dtype == "float64"), jax.disable_jit(False):
        for name in ("one", "few channels", "depthwise"):
            x, k, chosen, plain = problem(name, dtype)
            assert chosen(x, k).dtype == chosen(x, k.astype(jnp.bfloat16)).dtype == dtype
            close(chosen(x, k).astype(float), plain(x, k).astype(float), 1e-12 if dtype == "float64" else 0.02)
        x, k = jnp.ones((1, 3, 3, 2), dtype), jnp.ones((2, 2, 2, 1), dtype)
        assert ops.transposed_convolution(x, k, stride=2).dtype == ops.bilinear_upsample(x, 2).dtype == dtype


def test_one_exported_program_serves_every_platform():
    x, k, chosen, _ = problem("few channels")

    def gradient(x, k):
        y = ops.transposed_convolution(ops.max_pool(chosen(x, k), 2), k.swapaxes(2, 3), stride=2)
        return ops.average_pool(y, 2).sum()

    with jax.disable_jit(False):
        program = jax.export.export(jax.jit(jax.grad(gradient, argnums=(0, 1))), platforms=("cpu", "cuda", "tpu"))(x, k)
        close(program.call(x, k), jax.grad(gradient, argnums=(0, 1))(x, k))


def test_an_empty_batch_gives_an_empty_batch():
    empty, kernel = jnp.zeros((0, 5, 5, 2)), jnp.ones((3, 3, 2, 4))
    assert ops.convolution(empty, kernel, padding=1).shape == (0, 5, 5, 4)
    gradient = jax.grad(lambda k: ops.convolution(empty, k).sum())(kernel)
    assert gradient.shape == kernel.shape
    assert not gradient.any()
    assert ops.transposed_convolution(empty, kernel, stride=2).shape == (0, 11, 11, 4)


def test_a_program_may_leave_the_number_of_images_open():
    with jax.disable_jit(False):
        kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
        of_any = jax.jit(lambda x: ops.convolution(x, kernel))
        open_ = jax.ShapeDtypeStruct(jax.export.symbolic_shape("images, 5, 5, 2"), jnp.float32)
        exported = jax.export.export(of_any)(open_)
        x = jax.random.normal(jax.random.key(1), (3, 5, 5, 2))
        np.testing.assert_allclose(exported.call(x), of_any(x), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_said(unchecked):
    x, k = jnp.zeros((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4))
    for options, words in [
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"dilation": (1, 0)}, "dilation must be at least 1"),
        ({"dilation": 3}, r"window of \[7, 7\] does not fit into an image of \(5, 5\)"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"padding": "same"}, "numbers, 'SAME' or 'VALID', got 'same'"),
        ({"groups": 3}, "groups must divide the 4 outputs of the kernel, got 3"),
        ({"groups": 2}, r"\[3, 3, 2, 4\] in 2 groups takes 4 channels, got 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            ops.convolution(x, k, **options)
    for options, words in [
        ({"output_padding": 2, "stride": 2}, "output_padding must be below the stride or the dilation, got 2"),
        ({"padding": 4}, "leaves an output of"),
        ({"padding": -1}, "padding must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            ops.transposed_convolution(x, k, **options)
    with pytest.raises(ValueError, match=r"transposed_convolution: expected a kernel .* got \[3, 3, 2\]"):
        ops.transposed_convolution(x, jnp.ones((3, 3, 2)))
    with pytest.raises(ValueError, match="takes 4 channels, got 2"):
        ops.transposed_convolution(x, k.swapaxes(2, 3))
    with pytest.raises(ValueError, match="at least 1, got 0 and 0"):
        ops.bilinear_upsample(x, 0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        ops.bilinear_kernel(0)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"floating images .* got int32"):
        common.check_images.__wrapped__("resize", jnp.ones((1, 3, 3, 1), int))
