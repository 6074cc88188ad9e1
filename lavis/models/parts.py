"""Weights from several sources: a model's parts that come from files of their own, in their own number format, frozen.

A published file may hold only what was trained: BLIP-2's has the Q-Former, and neither the image encoder nor the
language model. A preset names the rest, `parts={"visual_encoder": Part("https://…/eva_vit_g.pth", "float16", True)}`,
and the class's `Rules.external` which entries a file may lack. A part is fetched only if the file lacks entries of it.

A frozen part that is as its source gave it is left out when the model is saved: config.json then has its source and the
SHA-256 of its entries (`digest`), which loading compares. LoRA does the same with the whole of what it adapts
(`Base`): such a folder holds the adapters and what else was trained.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lavis.common.hub import is_hub_id
from lavis.common.values import suggest, typed
from lavis.models import checkpoints
from lavis.models.folders import locate
from lavis.models.pickled import shown
from lavis.models.tokenizer import ASSETS
from lavis.nn import lora

log = logging.getLogger("lavis")

Format = Literal["float32", "float16", "bfloat16"]
PACKAGED = "packaged:"  # before the folder of packaged weights in a description; where they lie differs
_MOST = 64  # parts of a model
_LONGEST = 4096  # characters of a source
_SAMPLE = 64  # values of an entry that are kept to notice a change
_CHUNK = 1 << 24  # values that are hashed at a time
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """Where a module's weights come from, and how they are kept.

    Attributes:
        source: a path, URL or Hugging Face id of a file, of a folder of transformers, or of a folder of this library,
            of which the module of the same name is taken; None: it has to be given where the file lacks the part.
        dtype: number format in which it is kept; None: the model's. The model casts inputs (`as_input_of`).
        frozen: it is not trained: no gradients, always in evaluation mode, and left out when the model is saved.
        sha256: of its entries in that format, see `digest`; loading refuses others. None: not known.
    """

    source: str | None = None
    dtype: Format | None = None
    frozen: bool = False
    sha256: str | None = None


@dataclass(frozen=True)
class Base:
    """The weights that adapters (LoRA) belong to.

    Attributes:
        source: a path, URL or Hugging Face id.
        kind: by which rules of the class it is read: "finetuned" or "file" (its own), or "pretrained".
        sha256: of the entries that a folder of adapters leaves out.
    """

    source: str
    kind: Literal["finetuned", "pretrained", "file"] = "file"
    sha256: str | None = None


# ------------------------------------------------------------------------------------------ settings
def overridden(parts: Mapping[str, Part], values: Any, where: str) -> dict[str, Part]:
    """Parts with other sources, formats or freezing.

    Args:
        values: {part: source, `Part`, or a mapping with some of source, dtype, frozen}; None changes nothing.
        where: put before names in errors, such as "model.parts".

    Raises:
        ValueError: an unknown part (with the nearest known one), an unknown key or a value of another type.
    """
    if values is not None and not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; a mapping of parts to their sources was expected")
    out = dict(parts)
    for name, value in (values or {}).items():
        if name not in parts:
            known = suggest(name, parts) if parts else " Its weights are in one file."
            raise ValueError(f"{where}: this model has no part {shown(name)!r}.{known}")
        if isinstance(value, Part):
            value = {key: given for key, given in asdict(value).items() if given is not None}
        elif isinstance(value, (str, Path)):
            value = {"source": str(value)}
        elif not isinstance(value, Mapping):
            raise ValueError(
                f"{where}.{name} is {value!r}; a source, or a mapping of source, dtype and frozen, was expected"
            )
        out[name] = typed(Part, {**asdict(parts[name]), **value}, prefix=f"{where}.{name}.")
    return out


def described(values: Any, where: str) -> dict[str, Part]:
    """The parts that a folder's config.json names, which may come from anybody.

    Raises:
        ValueError: it is no such description, or names a source that a file from elsewhere may not choose.
    """
    if not isinstance(values, dict) or len(values) > _MOST:
        raise ValueError(f"{where}: parts is no mapping of parts to their sources")
    out = {}
    for name, value in values.items():
        place = f"{where}: parts.{shown(name)}"
        if not re.fullmatch(r"[A-Za-z_]\w{0,99}", name):
            raise ValueError(f"{place}: that is no name of a module")
        part = _typed(Part, value, place)
        if part.sha256 is not None and part.source is None:
            raise ValueError(f"{place} is left out, and no source is named")
        if part.source is not None:
            _check_source(part.source, place)
        out[name] = part
    return out


def described_base(value: Any, where: str) -> Base:
    """The weights that a folder of adapters belongs to; Raises: as `described`."""
    base = _typed(Base, value, f"{where}: base")
    _check_source(base.source, f"{where}: base")
    if base.sha256 is None:
        raise ValueError(f"{where}: base.sha256 is missing")
    return base


def _typed(kind: Any, value: Any, place: str) -> Any:
    """A `Part` or `Base` of plain values, of which nothing is converted."""
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no mapping of its source, dtype and the like")
    for key, given in value.items():
        if not isinstance(given, (str, bool, type(None))) or (
            isinstance(given, str) and len(given) > _LONGEST
        ):
            raise ValueError(f"{place}.{shown(key)} is neither text nor true nor false")
        if isinstance(given, str) and not given.isprintable():
            raise ValueError(f"{place}.{shown(key)} is {shown(given)!r}, which is not plain text")
    found = typed(kind, value, prefix=f"{place}.")
    if found.sha256 is not None and not _HASH.fullmatch(found.sha256):
        raise ValueError(f"{place}.sha256 is {shown(found.sha256)!r}, which is no SHA-256")
    return found


def may_be_named(source: str) -> bool:
    """Whether a description, which may come from anybody, may name a source: no place in the reader's home or on their
    network, as `~` and shares are."""
    scheme, separator, _ = source.partition("://")
    if separator:
        return scheme in ("http", "https")
    if source.startswith(PACKAGED):
        return re.fullmatch(r"\w+", source.removeprefix(PACKAGED)) is not None
    return (Path(source).is_absolute() and not source.startswith(("//", "\\\\"))) or is_hub_id(source)


def _check_source(source: str, place: str) -> None:
    if not may_be_named(source):
        raise ValueError(
            f"{place}.source is {shown(source)!r}; an absolute path, a http(s) URL or a Hugging Face id was expected"
        )


def portable(source: str) -> str:
    """A source as a description names it: paths are absolute, packaged weights go by their name."""
    path = Path(source).expanduser()
    if path.is_relative_to(ASSETS):
        return PACKAGED + path.relative_to(ASSETS).parts[0]
    return str(path.resolve()) if path.exists() else source


def local(source: str) -> Path:
    """A local file or folder of a source, as `portable` gives it or as people write it."""
    return locate(str(ASSETS / source.removeprefix(PACKAGED)) if source.startswith(PACKAGED) else source)


# ------------------------------------------------------------------------------------------ entries
def digest(
    state: Mapping[str, torch.Tensor], whole: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
) -> str:
    """SHA-256 (hexadecimal) of entries: sorted by name, each one's name, format, shape and little-endian bytes.

    Args:
        whole: gathers a tensor that is spread over processes.
    """
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = whole(state[name].detach())
        found.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\n".encode())
        for chunk in tensor.contiguous().view(-1).split(_CHUNK) if tensor.numel() else ():
            found.update(chunk.cpu().view(torch.uint8).numpy().data)
    return found.hexdigest()


def entries_of(state: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The entries of a module, under its own names, without adapters in it."""
    return {
        key.removeprefix(f"{part}."): tensor
        for key, tensor in state.items()
        if key.startswith(f"{part}.") and not lora.is_adapter(key)
    }


def _sample(tensor: torch.Tensor) -> tuple[torch.Size, torch.Tensor]:
    """An entry's shape and some of its values, spread over it."""
    flat = tensor.detach().reshape(-1)
    return tensor.shape, flat[:: max(1, len(flat) // _SAMPLE)].to("cpu", copy=True)


@dataclass
class Taken:
    """Entries as a source gave them: a sample of the values of each, and digests that were asked for."""

    samples: dict[str, tuple[torch.Size, torch.Tensor]]
    digests: dict[frozenset[str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor], sha256: str | None = None) -> Taken:
        samples = {key: _sample(tensor) for key, tensor in state.items()}
        return cls(samples, {frozenset(state): sha256} if sha256 else {})

    def unchanged(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those entries of a model that are still as they were."""
        return {
            key: state[key]
            for key, before in self.samples.items()
            if key in state and _same(before, _sample(state[key]))
        }

    def digest_of(self, state: Mapping[str, torch.Tensor]) -> str:
        """`digest` of some of the entries, which are as they were; computed once."""
        names = frozenset(state)
        if names not in self.digests:
            self.digests[names] = digest(state)
        return self.digests[names]


def _same(a: tuple[torch.Size, torch.Tensor], b: tuple[torch.Size, torch.Tensor]) -> bool:
    return a[0] == b[0] and a[1].dtype == b[1].dtype and torch.equal(a[1], b[1])


@dataclass(frozen=True)
class Reference:
    """What a folder says of entries that it leaves out: those of a part, or (part "") those under its adapters."""

    part: str
    source: str
    sha256: str

    @property
    def what(self) -> str:
        return f"the part {self.part!r}" if self.part else "the weights under its adapters"

    def digest_in(
        self, model: Any, state: Mapping[str, torch.Tensor], whole: Callable[[torch.Tensor], torch.Tensor]
    ) -> str:
        """The digest of these entries of a model; known already where nobody can have changed them."""
        names = compared(state) if not self.part else state
        entries = {key.removeprefix(f"{self.part}."): state[key] for key in names}
        taken = model.taken.get(self.part)
        known = None if taken is None else taken.digests.get(frozenset(entries))
        if known is not None and not any(tensor.requires_grad for tensor in entries.values()):
            return known
        return digest(entries, whole)


def references(description: Mapping[str, Any], where: str) -> list[Reference]:
    """What a folder's config.json refers to, the parts first; Raises: as `described`."""
    values = description.get("parts")
    parts = {} if values is None else described(values, where)
    found = [
        Reference(name, part.source, part.sha256)
        for name, part in parts.items()
        if part.source is not None and part.sha256 is not None
    ]
    if description.get("base") is not None:
        base = described_base(description["base"], where)
        found.append(Reference("", base.source, str(base.sha256)))
    return found


def compared(names: Iterable[str]) -> list[str]:
    """Those of the entries under adapters that have a digest: no training state, which need not be loaded."""
    return [key for key in names if not any(fnmatch.fnmatchcase(key, p) for p in checkpoints.TRAINING_STATE)]


# ------------------------------------------------------------------------------------------ modules
def as_input_of(module: nn.Module, *tensors: torch.Tensor) -> Any:
    """Tensors in the number format of a module's parameters, for its call; under autocast as they are.

    Returns:
        One tensor for one, else a tuple.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if dtype is not None and not torch.is_autocast_enabled(tensors[0].device.type):
        tensors = tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)
    return tensors[0] if len(tensors) == 1 else tensors


def exact_in(module: nn.Module, dtype: str | None) -> frozenset[str]:
    """Names of modules inside a part that stay in float32 where the part is kept in a number format.

    In float16 those that overflow in it, as transformers says of its classes: T5's feed-forward layers end in one.
    """
    kept = getattr(module, "_keep_in_fp32_modules", None) if dtype == "float16" else None
    return frozenset(kept or ())


def _format_of(dtype: torch.dtype, exact: frozenset[str]) -> Callable[[str], torch.dtype]:
    """The number format of an entry of a part, by its name."""
    return lambda key: torch.float32 if exact.intersection(key.split(".")) else dtype


def settle(model: nn.Module, parts: Mapping[str, Part]) -> None:
    """Give parts their number format and freeze those that are frozen.

    Raises:
        ValueError: the model has no such module.
    """
    for name, part in parts.items():
        module = getattr(model, name, None)
        if not isinstance(module, nn.Module):
            raise ValueError(f"{type(model).__name__} has no module {name!r} for its part of that name")
        if part.dtype is not None:
            module.to(getattr(torch, part.dtype))
            for key, child in module.named_modules():
                if set(key.split(".")) & exact_in(module, part.dtype):
                    child.float()
        if part.frozen:
            module.requires_grad_(False).eval()


class _WithoutWeights(TorchFunctionMode):
    """What `torch.empty` makes has no memory; all else, such as tables of positions, is made on the CPU as ever."""

    REAL = (torch.arange, torch.tensor, torch.zeros, torch.ones, torch.full, torch.linspace)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (func is torch.empty or func in self.REAL) and kwargs.get("device") is None:
            kwargs["device"] = "meta" if func is torch.empty else "cpu"
        return func(*args, **kwargs)


_loaded: ContextVar[frozenset[str] | None] = ContextVar("parts that are loaded", default=frozenset())


@contextlib.contextmanager
def building(name: str) -> Iterator[None]:
    """Around the making of a part's module in a model's constructor: without weights where they will be loaded.

    It takes no memory then, and none of its time for starting weights; tables that no file holds (frequencies of
    rotary positions) are made all the same.
    """
    loaded = _loaded.get()
    with _WithoutWeights() if loaded is None or name in loaded else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def to_be_loaded(parts: frozenset[str] | None) -> Iterator[None]:
    """Inside, `building` leaves these parts without weights; None: all."""
    token = _loaded.set(parts)
    try:
        yield
    finally:
        _loaded.reset(token)


# ------------------------------------------------------------------------------------------ loading
@dataclass
class Sources:
    """The parts of a model that is being loaded; each is fetched and read when an entry of it is missing.

    Args:
        parts: as they are to be kept. rules: of each part's files, told apart by their markers; the last may have none.
        where: the file that lacks them, for messages. recorded: what its description says of those it leaves out.

    Attributes:
        taken: of each part that came from its source as a whole, its digest where it was compared.
        filled: parts of which entries came from their sources.
    """

    parts: Mapping[str, Part]
    rules: Mapping[str, tuple[checkpoints.Rules, ...]] = field(default_factory=dict)
    where: str = "this model"
    recorded: Mapping[str, Part] = field(default_factory=dict)
    taken: dict[str, str | None] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)

    def path(self, name: str) -> Path:
        """The local file or folder of a part.

        Raises:
            ValueError: there is no source of it. FileNotFoundError, OSError: it is not there.
        """
        source = self.parts[name].source
        if source is None:
            raise ValueError(
                f"{self.where} does not hold the part {name!r}, and no source of it is named; give one with "
                f"parts={{{name!r}: PATH}}, in a recipe model.parts.{name}.source, on the command line "
                f"--part {name}=PATH"
            )
        try:
            return local(source)
        except OSError as e:
            raise type(e)(f"{self.where}: its part {name!r} comes from {source}: {e}") from e

    def fill(self, model: nn.Module, lacking: Sequence[str]) -> checkpoints.StateDict:
        """Those of some missing entries that belong to parts, read from their sources.

        Raises:
            ValueError: a source lacks entries, does not fit, or is not what it was.
        """
        out: checkpoints.StateDict = {}
        read: dict[Any, checkpoints.StateDict] = {}  # several parts of one source
        for name, part in self.parts.items():
            mine = [key for key in lacking if key.startswith(f"{name}.")]
            if not mine:
                continue
            path, recorded = self.path(name), self.recorded.get(name, part)
            if recorded.sha256 is None:
                recorded = part
            module = model.get_submodule(name)
            exact = exact_in(module, recorded.dtype)
            kind = (part.source, recorded.dtype or "float32", exact)
            if kind not in read:
                dtype = _format_of(getattr(torch, kind[1]), exact)
                read[kind] = checkpoints.read_state_dict(path, dtype, wrapped=False)
            whole = read[kind]
            state = _module_of(module, name, whole, self.rules.get(name, ()), f"{path} (the part {name!r})")
            if recorded.sha256 is not None:
                self._compare(name, state, recorded.sha256, path)
            if len(mine) == len(state):
                # read in another format than it is to be kept in, it is not what its source gives in that
                self.taken[name] = recorded.sha256
                if recorded.dtype != part.dtype:
                    self.taken.pop(name)
            out.update({key: state[key.removeprefix(f"{name}.")] for key in mine})
            self.filled.add(name)
        return out

    def _compare(self, name: str, state: checkpoints.StateDict, wanted: str, path: Path) -> None:
        found = digest(state)
        if found != wanted:
            raise ValueError(
                f"{path} is not what {self.where} was trained with as its part {name!r}: the SHA-256 of its entries is "
                f"{found}, {wanted} was expected. Name the right file with parts={{{name!r}: PATH}}, in a recipe "
                f"model.parts.{name}.source"
            )

    def load(self, model: nn.Module, names: Sequence[str]) -> None:
        """Put whole parts into a model whose other weights are there."""
        for name in names:
            module = model.get_submodule(name)
            keys = [f"{name}.{key}" for key in module.state_dict()]
            state = {key.removeprefix(f"{name}."): t for key, t in self.fill(model, keys).items()}
            checkpoints.load_into(module, state, checkpoints.Rules(), f"the part {name!r} of {self.where}")


def _module_of(
    module: nn.Module,
    name: str,
    state: checkpoints.StateDict,
    rules: Sequence[checkpoints.Rules],
    where: str,
) -> checkpoints.StateDict:
    """The entries of a part in its source: by the rules of its kind of file, strictly."""
    wanted = {key: tensor for key, tensor in module.state_dict().items() if not lora.is_adapter(key)}
    if wanted.keys().isdisjoint(state):  # a language model's own names may begin as wrappers do ("model.")
        state = checkpoints.without_wrappers(state, where)
    state = checkpoints.part_of(state, name)
    kind = next((r for r in rules if not r.marker or r.marker in state), checkpoints.Rules())
    tied = checkpoints.tied_names(module)
    return checkpoints.apply_rules(state, wanted, kind, where, tied=tied)
