"""What the operations share: pairs of numbers, and padding."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from jax import lax

from jaxnets.types import Array, Float

Images: TypeAlias = Float[Array, "batch height width channels"]
Pair: TypeAlias = int | tuple[int, int]
Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Padding: TypeAlias = int | tuple[int, int] | Sequence[tuple[int, int]] | Literal["SAME", "VALID"]


def pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def pads(size: Sequence[int], span: Sequence[int], stride: Sequence[int], padding: Padding) -> Pads:
    """`((top, bottom), (left, right))` of a number, a pair (rows, columns), the pads themselves, or "SAME" and "VALID"."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, span, stride, padding)
    if isinstance(padding, int):
        padding = (padding, padding)
    rows, columns = ((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)
    return rows, columns
