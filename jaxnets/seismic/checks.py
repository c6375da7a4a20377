"""What the seismic functions share: the type of an option, and its check."""

from typing import TypeAlias

import jax
import numpy as np

from jaxnets.types import Array, Bool, Num

Scalar: TypeAlias = int | float | Num[Array, ""]  # an option that may be learned, or mapped over


def option(function: str, rule: str, value: object, holds: bool | np.bool_ | Bool[Array, "..."]) -> None:
    """Raises where `holds`, a comparison of `value`, is a plain False; that of an array may be traced and isn't looked at."""
    if isinstance(holds, bool | np.bool_) and not holds:
        raise ValueError(f"{function}: {rule}, got {value}.")


def known(x: Array) -> np.ndarray | None:
    """The values of `x` in float64, where they are known before the program runs; None while it is traced."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x, np.float64)
