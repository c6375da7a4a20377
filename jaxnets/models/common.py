"""What the models share: names of shapes, and the check of what a caller gave."""

from typing import Any, TypeAlias

from jaxnets.types import Array, Float

Images: TypeAlias = Float[Array, "batch height width channels"]
Maps: TypeAlias = Float[Array, "batch _ _ _"]
Logits: TypeAlias = Float[Array, "batch classes"]
LogitMaps: TypeAlias = Float[Array, "batch height width classes"]


def require(who: Any, condition: bool, rule: str, value: Any) -> None:
    """Raises `ValueError("who: rule, got value.")` unless the condition holds; `who` is a name, or what has a class's name.

    The condition is a Python bool, known before tracing.
    """
    if not condition:
        raise ValueError(f"{who if isinstance(who, str) else type(who).__name__}: {rule}, got {value}.")
