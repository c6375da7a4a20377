"""Tasks with a known answer, drawn from a key: pure functions, usable under jit and vmap."""

import jax
import jax.numpy as jnp

from jaxnets.data import batches
from jaxnets.types import Array, Key


def adding(key: Key[Array, ""], examples: int, time: int) -> batches.Dataset:
    """The sum `y` [example] of the two marked numbers of each sequence `x` [example, time, 2]: a number in [0, 1), its mark.

    One mark is in the first half, one in the second. Knowing nothing, the best answer is 1, of mean squared error 1/6.

    Raises:
      ValueError: `time` below 2, `examples` below 1.
    Source: Hochreiter & Schmidhuber (1997), section 5.4, doi:10.1162/neco.1997.9.8.1735, in the form of Le et al. (2015),
      section 4.1, arXiv:1504.00941.
    """
    if time < 2 or examples < 1:
        raise ValueError(f"adding: time must be at least 2 and examples at least 1, got {time}, {examples}.")
    key_numbers, key_first, key_second = jax.random.split(key, 3)
    numbers = jax.random.uniform(key_numbers, (examples, time))
    first = jax.random.randint(key_first, (examples, 1), 0, time // 2)
    second = jax.random.randint(key_second, (examples, 1), time // 2, time)
    steps = jnp.arange(time)[None]
    marks = ((steps == first) | (steps == second)).astype(numbers.dtype)
    return batches.Dataset(jnp.stack([numbers, marks], axis=-1), (numbers * marks).sum(axis=1))


def copying(key: Key[Array, ""], examples: int, lag: int, *, symbols: int = 8, length: int = 10) -> batches.Dataset:
    """Symbols to be said again after `lag` steps: `x` and `y` [example, lag + 2 * length] of int32 ids below symbols + 2.

    `x` is `length` ids below `symbols`, then blanks (id `symbols`), of which the one at step lag + length - 1 is the signal
    (id symbols + 1) to begin; `y` is blank, and at the last `length` steps those ids. Remembering nothing, the best answer
    has the cross entropy `length log(symbols) / (lag + 2 length)` nats per step.

    Raises:
      ValueError: `lag`, `symbols`, `length` or `examples` below 1.
    Source: Arjovsky, Shah & Bengio (2016), section 5.1, arXiv:1511.06464.
    """
    if min(lag, symbols, length, examples) < 1:
        counts = f"{lag}, {symbols}, {length}, {examples}"
        raise ValueError(f"copying: lag, symbols, length and examples must be at least 1, got {counts}.")
    shown = jax.random.randint(key, (examples, length), 0, symbols, jnp.int32)
    blank = jnp.full((examples, lag + length), symbols, jnp.int32)
    x = jnp.concatenate([shown, blank.at[:, lag - 1].set(symbols + 1)], axis=1)
    return batches.Dataset(x, jnp.concatenate([blank, shown], axis=1))
