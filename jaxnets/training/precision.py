"""Mixed precision as a function of functions: bfloat16 inside, float32 parameters, gradients and losses outside."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnets.types import Any, PyTree


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Casts the floating leaves of a tree; integers, keys and booleans stay."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)


def mixed(apply: Callable, compute: Any = jnp.bfloat16, output: Any = jnp.float32) -> Callable:
    """`apply` with parameters and floating inputs cast to `compute`, and everything it returns cast to `output`.

    Gradients with respect to the parameters arrive in the parameters' own dtype, and the loss sees `output`. Other
    collections (batch statistics) go in uncast, because their running averages need the digits. bfloat16 has float32's
    range, so no loss scaling. Use: `steps.supervised(precision.mixed(model.apply), loss)`.

    Source: Micikevicius et al. (2018), arXiv:1710.03740; Kalamkar et al. (2019), arXiv:1905.12322.
    """

    def mixed_apply(variables, *inputs, **options):
        variables = {**variables, "params": cast(variables["params"], compute)}
        return cast(apply(variables, *cast(inputs, compute), **options), output)

    return mixed_apply
