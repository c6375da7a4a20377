"""PyTorch's state_dicts as variables of our models and back, strict in names and shapes; PyTorch itself is optional.

variables = weights.torch.load("torchvision/resnet50", "resnet50.pth")
logits = resnet.resnet50().apply(variables, images)
"""

import contextlib
import difflib
import functools
import importlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxnets.types import InputError
from jaxnets.weights import diffusion_names, names, segmentation_names

PathLike: TypeAlias = str | os.PathLike[str]
StateDict: TypeAlias = Mapping[str, Any]  # name -> array or tensor

ARCHITECTURES: dict[str, names.Architecture] = {
    **names.ARCHITECTURES,
    **segmentation_names.ARCHITECTURES,
    **diffusion_names.ARCHITECTURES,
}
LIMIT = 2**32  # bytes that a file may unpack to, unless the caller says otherwise: 4 GiB
SHOWN = 6  # names of each kind that a message lists


def load(name: str, source: StateDict | PathLike, *, limit: int = LIMIT) -> dict[str, Any]:
    """The variables, NumPy arrays, of the model that `name` names ("torchvision/resnet50"); `source` as for `read`.

    The number of classes is that of the last layer. Arrays keep their dtype; `num_batches_tracked` is left out, as
    `layers.BatchNorm` doesn't count.

    Raises:
      InputError: an unknown name; as `read`; names missing, unused or of another shape, all of them in one message.
    """
    arrays = {key: array for key, array in read(source, limit=limit).items() if not key.endswith("num_batches_tracked")}
    if arrays and all(key.startswith("module.") for key in arrays):  # saved from DataParallel
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    entries = _architecture("load", name)({key: array.shape for key, array in arrays.items()})
    match(arrays, {entry.name: entry.shape for entry in entries}, name=f"load: {name}")
    variables: dict[str, Any] = {}
    for entry in entries:
        array = arrays[entry.name].reshape(entry.view).transpose(entry.order).reshape(entry.target)
        *modules, leaf = entry.path
        functools.reduce(lambda tree, key: tree.setdefault(key, {}), modules, variables)[leaf] = np.array(array, order="C")
    return variables


def export(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state_dict, NumPy arrays, of the PyTorch model that computes what ours with `variables` does.

        model.load_state_dict({key: torch.from_numpy(array) for key, array in export(name, variables).items()})

    Raises:
      InputError: an unknown name; as `load`, with the paths of `variables` as names.
    """
    architecture, arrays = _architecture("export", name), dict(_flat(variables))
    if isinstance(architecture, diffusion_names.Inferred):
        entries = architecture.of_variables({"/".join(path): array.shape for path, array in arrays.items()})
    else:  # the number of classes is read off PyTorch's shapes: those of the default number, with our numbers of outputs
        defaults = [entry for entry in architecture({}) if entry.path in arrays]
        entries = architecture({entry.name: arrays[entry.path].shape[-1:] + entry.shape[1:] for entry in defaults})
    shapes = {"/".join(entry.path): entry.target for entry in entries}
    match({"/".join(path): array for path, array in arrays.items()}, shapes, name=f"export: {name}")
    state_dict = {}
    for entry in entries:
        view = [entry.view[axis] for axis in entry.order]
        array = arrays[entry.path].reshape(view).transpose(np.argsort(entry.order)).reshape(entry.shape)
        state_dict[entry.name] = np.array(array, order="C")
    return state_dict


def _architecture(function: str, name: str) -> names.Architecture:
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(name, ARCHITECTURES)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(ARCHITECTURES)}."
        raise InputError(f"{function}: no architecture {name!r}; {hint}")
    return ARCHITECTURES[name]


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, key))
        else:
            yield (*path, key), np.asarray(value)


def read(source: StateDict | PathLike, *, limit: int = LIMIT) -> dict[str, np.ndarray]:
    """A state_dict as NumPy arrays: of a mapping of arrays or tensors by name, or a `.safetensors`, `.pth` or `.pt` file.

    The last two need PyTorch and are read with `weights_only=True`, so nothing in them is executed. bfloat16 tensors of
    PyTorch come as float32, which holds them exactly. A checkpoint's inner "state_dict" or "model" is taken.

    Raises:
      InputError: no such file, of another kind, corrupt, of more than `limit` bytes, or not tensors by name.
    """
    if isinstance(source, Mapping):
        return {key: _array(value) for key, value in _tensors("read: source", source).items()}
    name = os.fspath(source)
    reader = {".safetensors": _safetensors, ".pth": _pickled, ".pt": _pickled}.get(os.path.splitext(name)[1])
    if reader is None:
        raise InputError(f"{name}: expected a .safetensors, .pth or .pt file.")
    with _reading(name):
        _require_size(name, _unpacked(name), limit)
        tensors = _tensors(name, reader(name))
        _require_size(name, sum(map(_size, tensors.values())), limit)  # a broadcast tensor is larger than its storage
        return {key: _array(value) for key, value in tensors.items()}


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


def _tensors(name: str, tensors: Any) -> StateDict:
    for inner in ("state_dict", "model"):  # of a checkpoint, as semseg and torchvision's reference scripts save it
        if isinstance(tensors, Mapping) and isinstance(tensors.get(inner), Mapping):
            tensors = tensors[inner]
    if not isinstance(tensors, Mapping):
        raise InputError(f"{name}: expected tensors by name, got {type(tensors).__name__}.")
    strange = [
        f"{key!r}: {type(v).__name__}" for key, v in tensors.items() if not (isinstance(key, str) and hasattr(v, "shape"))
    ]
    if strange:
        raise InputError(f"{name}: expected tensors by name, got {_some(strange)}; pass the inner state_dict.")
    return tensors


def _size(value: Any) -> int:
    """The bytes of the array that a value becomes."""
    return math.prod(value.shape) * (4 if _is_bfloat16(value) else value.dtype.itemsize)


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu()
        value = (value.float() if _is_bfloat16(value) else value).numpy()
    return np.asarray(value)


def _is_bfloat16(value: Any) -> bool:
    return str(value.dtype) == "torch.bfloat16"
