"""What every reader shares: files that disappoint become one named error, and sizes are bounded before they are trusted."""

import contextlib
import importlib
import os
import zlib
from collections.abc import Iterator
from typing import Any, TypeAlias

from jaxnets.types import InputError

PathLike: TypeAlias = str | os.PathLike[str]

LIMIT = 2**32  # bytes one file may unpack to, unless the caller says otherwise: 4 GiB


@contextlib.contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Turns a missing, unreadable, truncated or corrupt file into an `InputError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{os.fspath(path)}: {getattr(error, 'strerror', None) or error}.") from error


def optional(module: str, package: str) -> Any:
    """Imports a module of the extra `experiments`, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{package} is needed here: pip install 'jaxnets[experiments]' ({error}).") from error
