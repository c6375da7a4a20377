"""What the convolutional networks share."""

from typing import Any, TypeAlias

from jaxnets.types import Array, Float

Images: TypeAlias = Float[Array, "batch height width channels"]
Maps: TypeAlias = Float[Array, "batch _ _ _"]
Logits: TypeAlias = Float[Array, "batch classes"]


def require(condition: bool, name: str, rule: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"{name}: {rule}, got {value}.")
