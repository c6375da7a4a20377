"""Type aliases used in every signature: shapes are jaxtyping's, trees are plain pytrees."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Inexact, Int, Integer, Key, Num, PyTree, Shaped


class InputError(ValueError):
    """A file, folder, checkpoint or option that a user supplied can't be used; the message says what was expected.

    The command line shows it without a traceback; every other exception is a bug of ours and keeps its own.
    """


Params: TypeAlias = Any  # pytree of floating arrays
Carry: TypeAlias = Any  # pytree: mutable Flax collections, or recurrent state
Batch: TypeAlias = Any  # registered dataclass or pytree with one leading batch axis
Metrics: TypeAlias = dict[str, Any]  # name -> scalar (or [member] array under vmap)

# loss_fn(params, carry, batch, key) -> (loss_sum, (weight_sum, metric_sums, carry)); key None means evaluation.
LossFn: TypeAlias = Callable[..., tuple[Any, tuple[Any, Metrics, Carry]]]
# step(state, batch) -> (state, metrics)
Step: TypeAlias = Callable[..., tuple[Any, Metrics]]

__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Carry",
    "Float",
    "Inexact",
    "InputError",
    "Int",
    "Integer",
    "Key",
    "LossFn",
    "Metrics",
    "Num",
    "Params",
    "PyTree",
    "Shaped",
    "Step",
]
