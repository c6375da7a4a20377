"""States to save, and checkpointers that hold some, for the tests of checkpoints."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

from jaxnets.training import checkpoint


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: Any
    opt_state: Any
    key: Any
    step: Any
    ema: Any = None


def make_state(seed: int = 0) -> State:
    """Leaves whose bytes differ from seed to seed, of each kind that a training state may hold."""
    rng = np.random.default_rng(seed)
    params = {
        "Dense_0": {"kernel": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), "bias": jnp.full(5, -0.0)},
        "half": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "special / key.with [signs]": jnp.asarray([jnp.nan, jnp.inf, -0.0, 1e-45, seed], jnp.float32),
    }
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), mask))
    ema = {
        "python": (seed, 0.1 + seed, True, 1j * seed, None),
        "numpy": [np.arange(4, dtype=np.int64) + seed, np.float16(seed), rng.integers(0, 2, 3).astype(bool)],
        "narrow": [rng.integers(0, 16, 7).astype(ml_dtypes.uint4), jnp.asarray(rng.normal(size=4), jnp.float8_e4m3fn)],
        "weak": [jnp.asarray(1.5 + seed), jnp.broadcast_to(jnp.asarray(3 + seed), 2)],
        "complex": jnp.asarray([1 + 2j * seed], jnp.complex64),
        "nothing": ((), {}, []),
        "keys": [jax.random.split(jax.random.key(seed), (2, 3)), jax.random.key(seed, impl="rbg")],
    }
    return State(params, optimizer.init(params), jax.random.key(seed), jnp.asarray(seed, jnp.int32), ema)


def assert_same(got, expected):
    """Equal structure, leaf types, dtypes, weak types, shapes and bytes."""
    got_leaves, expected_leaves = (jax.tree_util.tree_leaves_with_path(t, is_leaf=lambda x: x is None) for t in (got, expected))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), (_, b) in zip(got_leaves, expected_leaves, strict=True):
        assert type(a) is type(b), path
        if b is None:
            continue
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None), path
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


def small(seed: int) -> dict[str, Any]:
    return {"w": jnp.arange(300, dtype=jnp.float32) + seed, "key": jax.random.key(seed), "step": jnp.asarray(seed)}


def saver(directory, **options) -> checkpoint.Checkpointer:
    return checkpoint.Checkpointer(directory, **{"asynchronous": False, **options})


def saved(directory, *steps, **options) -> checkpoint.Checkpointer:
    """A checkpointer with `small(step)` saved at each step."""
    checkpointer = saver(directory, **options)
    for step in steps:
        checkpointer.save(step, small(step))
    return checkpointer


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}
