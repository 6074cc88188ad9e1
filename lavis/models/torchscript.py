"""Weights out of a TorchScript archive, which OpenAI published CLIP as, without executing anything in it.

An archive is a zip of the pickled tree of modules (data.pkl), the raw numbers (data/0, data/1, …) and source code.
The pickle is read by an unpickler that knows tensors, containers and inert stand-ins for modules, and refuses
everything else. Of the code only the lists of parameters' and buffers' names are read, as text.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TYPED_LISTS = ("build_intlist", "build_boollist", "build_doublelist", "build_tensorlist", "restore_type_tag")
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n +__parameters__ = \[(.*?)\]\n +__buffers__ = \[(.*?)\]", re.MULTILINE
)


class _Module:
    """Stands in for a module of the archive: attributes without behaviour."""

    qualified_name = ""
    attributes: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = dict(state)


def _rebuild(storage: torch.Tensor, offset: int, size: Any, stride: Any, *unused: Any) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)  # torch checks that this stays inside the storage


def _plain(values: Any, *unused: Any) -> Any:
    return values


class _Reader(pickle.Unpickler):
    """Builds the tree of modules. The pickle is handed fresh functions and classes only, so whatever it sets on
    them ends with it."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(BytesIO(archive.read(f"{prefix}data.pkl")))
        self.archive, self.prefix = archive, prefix
        self.storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *parts: _rebuild(*parts)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _TYPED_LISTS:
            return lambda *parts: _plain(*parts)
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Module,), {"qualified_name": f"{module}.{name}"})
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no part of a model's weights")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to a {kind!r} where numbers are expected")
        if (key, dtype) not in self.storages:
            data = bytearray(self.archive.read(f"{self.prefix}data/{key}"))
            numbers = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
            self.storages[key, dtype] = numbers
        return self.storages[key, dtype]


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _prefix(archive) is not None


def _prefix(archive: zipfile.ZipFile) -> str | None:
    """The archive's one folder, "name/", if it holds both a pickle and TorchScript's constants."""
    names = set(archive.namelist())
    for name in names:
        folder, slash, rest = name.partition("/")
        if rest == "constants.pkl" and f"{folder}/data.pkl" in names:
            return folder + slash
    return None


def _declared(archive: zipfile.ZipFile, prefix: str) -> dict[str, set[str]]:
    """For each class of module the names of its parameters and buffers; its other tensors are no weights."""
    found = {}
    for name in archive.namelist():
        if name.startswith(f"{prefix}code/") and name.endswith(".py"):
            module = name[len(f"{prefix}code/") : -len(".py")].replace("/", ".")
            for match in _CLASS.finditer(archive.read(name).decode("utf-8")):
                found[f"{module}.{match[1]}"] = set(re.findall(r'"([^"]+)"', match[2] + match[3]))
    return found


def _weights(
    module: _Module, declared: dict[str, set[str]], prefix: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    names = declared.get(module.qualified_name)
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _weights(value, declared, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor) and (names is None or name in names):
            yield prefix + name, value


def read(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a TorchScript archive: parameters and buffers under their dotted names.

    Raises:
        ValueError: the archive is damaged, or holds more than modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            prefix = _prefix(archive)
            if prefix is None:
                raise ValueError("it has no data.pkl beside a constants.pkl")
            root = _Reader(archive, prefix).load()
            if not isinstance(root, _Module):
                raise ValueError(f"its content is a {type(root).__name__}, not a module")
            return dict(_weights(root, _declared(archive, prefix)))
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, ValueError, RuntimeError, TypeError, KeyError, IndexError,
        AttributeError, EOFError,
    ) as e:  # fmt: skip
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(
            f"{path} could not be read as a TorchScript archive: {reason}. It is damaged, or holds Python objects, "
            "which are never executed; download it again, or convert it to safetensors where it came from"
        ) from e
