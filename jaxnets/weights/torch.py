"""PyTorch's state_dicts as NumPy arrays, and the strict match of their names and shapes; PyTorch itself is optional."""

import contextlib
import importlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxnets.types import InputError

PathLike: TypeAlias = str | os.PathLike[str]
StateDict: TypeAlias = Mapping[str, Any]  # name -> array or tensor

LIMIT = 2**32  # bytes that a file may unpack to, unless the caller says otherwise: 4 GiB
SHOWN = 6  # names of each kind that a message lists


def read(source: StateDict | PathLike, *, limit: int = LIMIT) -> dict[str, np.ndarray]:
    """A state_dict as NumPy arrays: of a mapping of arrays or tensors by name, or a `.safetensors`, `.pth` or `.pt` file.

    The last two need PyTorch and are read with `weights_only=True`, so nothing in them is executed. bfloat16 tensors of
    PyTorch come as float32, which holds them exactly.

    Raises:
      InputError: no such file, of another kind, corrupt, of more than `limit` bytes, or not tensors by name.
    """
    if isinstance(source, Mapping):
        return _arrays("read: source", source)
    name = os.fspath(source)
    reader = {".safetensors": _safetensors, ".pth": _pickled, ".pt": _pickled}.get(os.path.splitext(name)[1])
    if reader is None:
        raise InputError(f"{name}: expected a .safetensors, .pth or .pt file.")
    with _reading(name):
        _require_size(name, _unpacked(name), limit)
        arrays = _arrays(name, reader(name))
    _require_size(name, sum(array.nbytes for array in arrays.values()), limit)  # a broadcast tensor is larger than its storage
    return arrays


def match(state_dict: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], *, name: str) -> None:
    """Raises one `InputError` with every missing, unused and wrongly shaped name, unless names and shapes are `shapes`.

    `name` says in the message who asked.
    """
    wrong = [
        f"{key} is {state_dict[key].shape}, not {shape}"
        for key, shape in shapes.items()
        if key in state_dict and state_dict[key].shape != shape
    ]
    missing = [key for key in shapes if key not in state_dict]
    unused = [key for key in state_dict if key not in shapes]
    found = {"missing": missing, "unused": unused, "of another shape": wrong}
    if any(found.values()):
        report = "; ".join(f"{what}: {_some(names)}" for what, names in found.items() if names)
        raise InputError(f"{name}: the state_dict is of another architecture; {report}.")


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the packages raise what they like on a corrupt file
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{name}: can't be read as a state_dict: {reason}.") from error


def _require_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise InputError(f"{name}: unpacks to {size} bytes, more than limit={limit}.")


def _unpacked(path: str) -> int:
    """The bytes that a file says it unpacks to; PyTorch's are zip archives, and were pickles before 1.6."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    return os.path.getsize(path)


def _safetensors(path: str) -> Any:
    return _optional("safetensors.numpy", "jaxnets[weights]").load_file(path)


def _pickled(path: str) -> Any:
    return _optional("torch", "torch").load(path, map_location="cpu", weights_only=True)


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is needed to read this file: pip install '{package}' ({error}).") from error


def _arrays(name: str, tensors: Any) -> dict[str, np.ndarray]:
    if not isinstance(tensors, Mapping):
        raise InputError(f"{name}: expected tensors by name, got {type(tensors).__name__}.")
    strange = [
        f"{key!r}: {type(v).__name__}" for key, v in tensors.items() if not (isinstance(key, str) and hasattr(v, "shape"))
    ]
    if strange:
        raise InputError(f"{name}: expected tensors by name, got {_some(strange)}; pass the inner state_dict.")
    return {key: _array(value) for key, value in tensors.items()}


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)
