"""Checks that the experiments' configs share; the messages name the option."""

import math
from typing import Any


def positive(config: Any, *names: str) -> None:
    """Raises ValueError for a field that is not a positive, finite number; None is left to its default."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")


def within(config: Any, low: float, high: float, *names: str) -> None:
    """Raises ValueError for a field outside [low, high), NaN included."""
    for name in names:
        value = getattr(config, name)
        if not low <= value < high:
            raise ValueError(f"--{name.replace('_', '-')} must be in [{low:g}, {high:g}), got {value}")
