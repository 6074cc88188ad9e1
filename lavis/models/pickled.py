"""Tensors out of PyTorch's files (`torch.save`), without executing anything in them and without trusting their sizes.

A file is a pickle that describes tensors, and raw numbers: a zip of both, or, before PyTorch 1.6, one after the other.
The pickle is read by an unpickler in Python that knows tensors and containers. Settings that are often saved beside
the weights (argparse's and OmegaConf's, paths, numbers of NumPy) become inert stand-ins; everything else is refused.
The numbers of a zip are mapped into memory, not read.

A file of a few megabytes can describe, or compress, a terabyte. Nothing here takes more memory than the file's size
allows: members are stored uncompressed and lie in the file, a tensor has no more numbers than its storage.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch

DTYPES = {
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
# What is saved beside weights and never is one: a stand-in without behaviour takes its place.
_INERT = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|collections\.(Counter|defaultdict|deque)|copyreg\._reconstructor"
    r"|_codecs\.encode|(pathlib|datetime|typing|decimal|enum)\.[\w.]+|numpy\.[\w.]+"
    r"|builtins\.(set|frozenset|dict|list|tuple|str|int|float|bool|bytes|complex|slice|range|object|type|NoneType)"
    r"|__builtin__\.(set|frozenset|dict|list|tuple|str|unicode|int|long|float|bool|complex|slice|xrange|object)"
    r"|(omegaconf|yacs|fvcore\.common\.config|easydict|addict|ml_collections|antlr4)\.[\w.]+"
    r"|(pytorch_lightning|lightning|lightning_fabric|transformers|accelerate)\.[\w.]+"
    r"|torch\.(Size|device|torch_version\.TorchVersion|serialization\._get_layout)|torch\.(cuda\.)?amp\.[\w.]+"
)
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of a file before PyTorch 1.6
_PICKLE_BYTES = 4 << 20  # that a small file may have; of a large one an eighth
_CODE_BYTES = 32 << 20  # of a TorchScript archive's source code, which is compressed
_TIED = 4  # times its size that a file's tensors may have together, as some share their storage


class UnsafeFileError(ValueError):
    """A file holds what is no plain data, or claims to be larger than it is."""


# what reading a damaged or hostile file raises
UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, ValueError, RuntimeError, TypeError, LookupError, AttributeError,
    EOFError, OverflowError, RecursionError, MemoryError, NotImplementedError, struct.error,
)  # fmt: skip


def reason_of(error: BaseException) -> str:
    """An error's first line, for a message."""
    lines = str(error).splitlines()
    if isinstance(error, LookupError):  # says what was not found, and nothing else
        return f"{shown(lines[0])} is not there" if lines else "a part of it is not there"
    return shown(lines[0]) if lines else type(error).__name__


def shown(text: object) -> str:
    """A name out of a file for a message: no escape sequences, not long."""
    clean = "".join(c if c.isprintable() else "?" for c in str(text))
    return clean if len(clean) <= 200 else clean[:200] + "…"


class Inert:
    """Stands in for an object of a class that is not known: takes everything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def take_state(self, state: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Bounded:
    """A stream for the unpickler that ends after some bytes, and asks for no more memory than those."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.left = stream, limit

    def _take(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= self.left:
            raise UnsafeFileError("its pickled part is larger than that of any checkpoint, or is cut short")
        return self._take(self.stream.read(count))

    def readline(self) -> bytes:
        return self._take(self.stream.readline(self.left))


def _refuse(self: Any) -> None:
    raise pickle.UnpicklingError("it holds raw buffers, which are no part of a model's weights")


def _build(self: Any) -> None:
    state, inst = self.stack.pop(), self.stack[-1]
    if isinstance(inst, Inert):
        inst.take_state(state)  # attributes of anything else, such as an OrderedDict's, are not needed


def _newobj(self: Any) -> None:
    args, cls = self.stack.pop(), self.stack.pop()
    if not (isinstance(cls, type) and issubclass(cls, (Inert, OrderedDict))):
        raise pickle.UnpicklingError(f"it makes objects of {shown(cls)}")
    self.append(cls() if issubclass(cls, OrderedDict) else cls(*args))


def _newobj_ex(self: Any) -> None:
    self.stack.pop()
    _newobj(self)


class Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """The unpickler in Python, whose tables grow with the file (a pickle of ten bytes makes the one in C take 30 GB),
    with fresh classes and functions for each name, so that whatever a pickle sets on them ends with it.

    Args:
        stream: the pickle. limit: its bytes, at most.
        storage: (dtype, key, count) -> the numbers, one-dimensional.
        budget: bytes that all tensors together may have.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.BYTEARRAY8[0]: _refuse,
        pickle.NEXT_BUFFER[0]: _refuse,
        pickle.READONLY_BUFFER[0]: _refuse,
        pickle.EXT1[0]: _refuse,
        pickle.EXT2[0]: _refuse,
        pickle.EXT4[0]: _refuse,
        pickle.BUILD[0]: _build,
        pickle.NEWOBJ[0]: _newobj,
        pickle.NEWOBJ_EX[0]: _newobj_ex,
    }

    def __init__(
        self,
        stream: BinaryIO,
        limit: int,
        storage: Callable[[torch.dtype, Any, int], torch.Tensor],
        budget: int,
    ) -> None:
        super().__init__(_Bounded(stream, limit), encoding="latin1")
        self._storage, self._budget = storage, budget

    def find_class(self, module: str, name: str) -> Any:
        known = self.known(module, name)
        if known is None:
            raise pickle.UnpicklingError(
                f"it holds {shown(f'{module}.{name}')}, which is no part of a model's weights"
            )
        return known

    def known(self, module: str, name: str) -> Any:
        """What a name stands for; None: it is refused."""
        if module in ("torch", "torch.cuda") and name in DTYPES:
            return DTYPES[name]
        if module == "torch.storage" and name in ("UntypedStorage", "_UntypedStorage"):
            return torch.uint8
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            return lambda storage, offset, size, stride, *unused: self.tensor(storage, offset, size, stride)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            return lambda storage, offset, size, stride, grad, hooks, dtype, *unused: self.tensor(
                storage.view(dtype), offset, size, stride
            )
        if module == "torch._utils" and name in (
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
        ):
            return lambda data, *unused: data
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return lambda function, kind, args, state: function(*args)
        if (module, name) in (("torch.nn.parameter", "Parameter"), ("torch", "Tensor")):
            return type("Kind", (Inert,), {})
        if _INERT.fullmatch(f"{module}.{name}"):
            return type("Settings", (Inert,), {})
        return None

    def tensor(self, storage: torch.Tensor, offset: Any, size: Any, stride: Any) -> torch.Tensor:
        """A view of a storage that has no more numbers than it."""
        sizes, strides = tuple(size), tuple(stride)
        if not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *sizes, *strides)):
            raise UnsafeFileError("the shape of a tensor is none")
        count = math.prod(sizes)
        if count > storage.numel():
            raise UnsafeFileError(f"a tensor claims {count} numbers, of which {storage.numel()} are stored")
        self._budget -= count * storage.element_size()
        if self._budget < 0:
            raise UnsafeFileError("its tensors together are many times larger than the file")
        return storage.as_strided(sizes, strides, offset)  # torch checks that this stays inside the storage

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to a {shown(kind)!r} where numbers are expected")
        if type(count) is not int or count < 0 or any(part is not None for part in view):
            raise UnsafeFileError("a storage is of no known kind")
        return self._storage(dtype, key, count)


def pickle_limit(size: int) -> int:
    """Bytes that the pickled part of a file may have; Python objects take much more memory than their pickle."""
    return max(_PICKLE_BYTES, size // 8)


# ------------------------------------------------------------------------------------------ zip files


class Archive:
    """The members of a zip that PyTorch wrote, mapped into memory.

    Raises:
        UnsafeFileError: a member is compressed (but for TorchScript's source code), encrypted, or not in the file.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.size = path.stat().st_size
        self.file, self.members = file, {info.filename: info for info in file.infolist()}
        self.prefix = next(
            (
                n.removesuffix("data.pkl")
                for n in self.members
                if n.count("/") == 1 and n.endswith("/data.pkl")
            ),
            None,
        )
        self.is_script = f"{self.prefix}constants.pkl" in self.members
        code = 0
        for name, info in self.members.items():
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                if info.file_size != info.compress_size or info.header_offset + info.file_size > self.size:
                    raise UnsafeFileError(f"its member {shown(name)} is larger than the file")
            elif self.is_script and name.startswith(f"{self.prefix}code/") and not info.flag_bits & 1:
                code += info.file_size
            else:
                raise UnsafeFileError(f"its member {shown(name)} is compressed, which PyTorch never does")
        if code > _CODE_BYTES:
            raise UnsafeFileError("its source code is larger than that of any model")
        self._map = torch.UntypedStorage.from_file(str(path), False, self.size)
        self._storages: dict[tuple[Any, torch.dtype], torch.Tensor] = {}

    def unpickler(self, kind: type[Unpickler] = Unpickler) -> Unpickler:
        """For data.pkl."""
        limit, name = pickle_limit(self.size), f"{self.prefix}data.pkl"
        if self.members[name].file_size > limit:
            raise UnsafeFileError("its pickled part is larger than that of any checkpoint")
        return kind(io.BytesIO(self.file.read(name)), limit, self.storage, _TIED * self.size)

    def storage(self, dtype: torch.dtype, key: Any, count: int) -> torch.Tensor:
        """Numbers of one member, (count,)."""
        if (key, dtype) in self._storages:
            return self._storages[key, dtype]
        info = self.members[f"{self.prefix}data/{key}"]
        if count * dtype.itemsize > info.file_size:
            raise UnsafeFileError(f"data/{shown(key)} is said to hold {count} numbers and holds fewer")
        file: Any = self.file.fp
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member is not where it should be")
        name, extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name + extra
        if start + info.file_size > self.size:
            raise UnsafeFileError(f"data/{shown(key)} is larger than the file")
        raw = self._map[start : start + count * dtype.itemsize]
        if start % dtype.itemsize:
            raw = raw.clone()  # numbers lie at multiples of their size
        numbers = torch.empty(0, dtype=dtype).set_(raw, 0, (count,)) if count else torch.empty(0, dtype=dtype)
        self._storages[key, dtype] = numbers
        return numbers


def read_zip(path: Path) -> Any:
    """What `torch.save` was given."""
    with zipfile.ZipFile(path) as file:
        archive = Archive(path, file)
        if archive.prefix is None:
            raise UnsafeFileError("it is a zip of other things")
        order = archive.members.get(f"{archive.prefix}byteorder")
        if order is not None and order.file_size < 16 and file.read(order) != b"little":
            raise UnsafeFileError("its numbers are big-endian; save it again on a usual machine")
        return archive.unpickler().load()


# ------------------------------------------------------------------------------------------ older files


def read_legacy(path: Path) -> Any:
    """What `torch.save` was given, before PyTorch 1.6."""
    size = path.stat().st_size
    storages: dict[Any, torch.Tensor] = {}
    with path.open("rb") as file:
        if file.read(265)[257:262] == b"ustar":
            raise UnsafeFileError("it is a tar archive, as PyTorch wrote before 0.1.10; save it again")
        file.seek(0)
        left = size

        def storage(dtype: torch.dtype, key: Any, count: int) -> torch.Tensor:
            nonlocal left
            if key not in storages:
                left -= count * dtype.itemsize
                if left < 0:
                    raise UnsafeFileError("its tensors are larger than the file")
                storages[key] = torch.empty(count, dtype=dtype)
            if storages[key].dtype != dtype or storages[key].numel() != count:
                raise UnsafeFileError("one storage has two kinds of numbers")
            return storages[key]

        def load() -> Any:
            return Unpickler(file, pickle_limit(size), storage, _TIED * size).load()

        if load() != _MAGIC or load() != _PROTOCOL:
            raise UnsafeFileError("it is no checkpoint of PyTorch's")
        machine = load()
        if isinstance(machine, Mapping) and machine.get("little_endian") is False:
            raise UnsafeFileError("its numbers are big-endian; save it again on a usual machine")
        content, keys = load(), load()
        if not isinstance(keys, list) or set(keys) != set(storages):
            raise UnsafeFileError("it does not hold the numbers of its tensors")
        for key in keys:
            target = storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != target.numel():
                raise UnsafeFileError("it does not hold the numbers of its tensors")
            if count and file.readinto(memoryview(target.view(torch.uint8).numpy())) != target.nbytes:
                raise EOFError("it is cut short")
        return content
