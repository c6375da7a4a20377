"""Values and gradients against PyTorch's over a grid of sizes: golden arrays that tests/golden/torch_ops.py made."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import ops

FOLDER = pathlib.Path(__file__).parent.parent / "golden"
GRID = runpy.run_path(str(FOLDER / "torch_ops.py"))
GOLDEN = dict(np.load(FOLDER / "torch_ops.npz"))
image, kernel = GRID["image"], GRID["kernel"]


def check(name, operation, *inputs):
    """In one compiled program: the grid is about numbers; that all runs without jit, test_convolution and others say."""
    with jax.disable_jit(False):
        y, pullback = jax.vjp(jax.jit(operation), *(jnp.asarray(a, jnp.float32) for a in inputs))
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        results = {name: y, **{f"{name}/gradient{i}": g for i, g in enumerate(jax.jit(pullback)(weights))}}
    for key, value in results.items():
        expected = GOLDEN[key]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=key)


@pytest.mark.parametrize("index", range(len(GRID["CONVOLUTIONS"])))
def test_convolution_is_torchs(index):
    size, window, stride, padding, dilation, groups = GRID["CONVOLUTIONS"][index]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    check(
        f"convolution{index}", functools.partial(ops.convolution, **options), image(*size, 4), kernel(*window, 4 // groups, 8)
    )


@pytest.mark.parametrize("index", range(len(GRID["TRANSPOSED"])))
def test_transposed_convolution_is_torchs(index):
    size, window, stride, padding, extra, dilation = GRID["TRANSPOSED"][index]
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
    check(
        f"transposed{index}", functools.partial(ops.transposed_convolution, **options), image(*size, 3), kernel(*window, 3, 2)
    )


@pytest.mark.parametrize("index", range(len(GRID["POOLS"])))
def test_pools_are_torchs_with_ceil_padding_and_ties(index):
    size, window, stride, padding, ceil = GRID["POOLS"][index]
    options = {"stride": stride, "padding": padding, "ceil": ceil}
    x = image(*size, 2)
    check(f"max{index}", lambda x: ops.max_pool(x, window, **options), x)
    for count in (True, False):
        check(f"average{index}/{count}", lambda x, count=count: ops.average_pool(x, window, count_padding=count, **options), x)


@pytest.mark.parametrize("index", range(len(GRID["ADAPTIVE"])))
def test_adaptive_pools_are_torchs_at_any_size(index):
    size, bins = GRID["ADAPTIVE"][index]
    check(f"adaptive_average{index}", lambda x: ops.adaptive_average_pool(x, bins), image(*size, 2))
    check(f"adaptive_max{index}", lambda x: ops.adaptive_max_pool(x, bins), image(*size, 2, levels=101))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("index", range(len(GRID["RESIZES"])))
def test_resize_is_torchs(index, corners):
    size, to = GRID["RESIZES"][index]
    check(f"resize{index}/{corners}", lambda x: ops.resize(x, to, align_corners=corners), image(*size, 2))
