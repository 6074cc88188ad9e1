"""Weights out of a TorchScript archive, which OpenAI published CLIP as, without executing anything in it.

An archive is a zip of the pickled tree of modules (data.pkl), the raw numbers (data/0, data/1, …) and source code.
The pickle is read by an unpickler that knows tensors, containers and inert stand-ins for modules, and refuses
everything else. Of the code only the lists of parameters' and buffers' names are read, as text.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lavis.models.pickled import UNREADABLE, Archive, Inert, Unpickler, reason_of

_TYPED_LISTS = ("build_intlist", "build_boollist", "build_doublelist", "build_tensorlist", "restore_type_tag")
_MODULES = 100_000  # of a model, at most
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n +__parameters__ = \[(.*?)\]\n +__buffers__ = \[(.*?)\]", re.MULTILINE
)


class _Module(Inert):
    """Stands in for a module of the archive: attributes without behaviour."""

    qualified_name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def take_state(self, state: Any) -> None:
        self.attributes = dict(state)


class _Reader(Unpickler):
    """Builds the tree of modules, and knows less than other files hold."""

    def known(self, module: str, name: str) -> Any:
        if module == "torch.jit._pickle" and name in _TYPED_LISTS:
            return lambda values, *unused: values
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Module,), {"qualified_name": f"{module}.{name}"})
        plain = (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"))
        if (module, name) in plain or (module == "torch" and name.endswith("Storage")):
            return super().known(module, name)
        return None


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip of one folder with both a pickle and TorchScript's constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    folders = {name.partition("/")[0] for name in names}
    return any({f"{f}/data.pkl", f"{f}/constants.pkl"} <= names for f in folders)


def _declared(archive: Archive) -> dict[str, set[str]]:
    """For each class of module the names of its parameters and buffers; its other tensors are no weights."""
    found, prefix = {}, archive.prefix
    for name in archive.members:
        if name.startswith(f"{prefix}code/") and name.endswith(".py"):
            module = name[len(f"{prefix}code/") : -len(".py")].replace("/", ".")
            for match in _CLASS.finditer(archive.file.read(name).decode("utf-8")):
                found[f"{module}.{match[1]}"] = set(re.findall(r'"([^"]+)"', match[2] + match[3]))
    return found


def _weights(
    module: _Module, declared: dict[str, set[str]], prefix: str = "", visits: Iterator[int] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    visits = iter(range(_MODULES)) if visits is None else visits
    if next(visits, None) is None:
        raise ValueError("its modules hold one another again and again")
    names = declared.get(module.qualified_name)
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _weights(value, declared, f"{prefix}{name}.", visits)
        elif isinstance(value, torch.Tensor) and (names is None or name in names):
            yield prefix + name, value


def read(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a TorchScript archive: parameters and buffers under their dotted names.

    Raises:
        ValueError: the archive is damaged, or holds more than modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as file:
            archive = Archive(path, file)
            if archive.prefix is None:
                raise ValueError("it has no data.pkl beside a constants.pkl")
            root = archive.unpickler(_Reader).load()
            if not isinstance(root, _Module):
                raise ValueError(f"its content is a {type(root).__name__}, not a module")
            return dict(_weights(root, _declared(archive)))
    except UNREADABLE as e:
        raise ValueError(
            f"{path} could not be read as a TorchScript archive: {reason_of(e)}. It is damaged, or holds Python "
            "objects, which are never executed; download it again, or convert it to safetensors where it came from"
        ) from e
