"""How models come from files: recipes' sections, presets, folders, parts and adapters become a loaded model.

`BaseModel` has these functions as its class methods; what a class of models says about its files is there.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis.common.values import suggest, typed
from lavis.models import checkpoints, peft_folders, vocabulary
from lavis.models.configs import Preset, check_sizes, override, set_for_training
from lavis.models.folders import (
    ADAPTER_NAME,
    CONFIG_NAME,
    VOCABULARY_NAME,
    is_foreign,
    is_incomplete,
    load,
    locate,
    origin_of,
    read_description,
)
from lavis.models.parts import (
    Base,
    Part,
    Sources,
    Taken,
    compared,
    described,
    described_base,
    digest,
    entries_of,
    local,
    overridden,
    portable,
    settle,
    to_be_loaded,
)
from lavis.models.pickled import shown
from lavis.models.sizes import check_fits
from lavis.models.tokenizer import Tokenizer
from lavis.nn.lora import LoraConfig, add_lora, is_adapter, merge_lora

if TYPE_CHECKING:
    from lavis.models.base import BaseModel

log = logging.getLogger("lavis")

_ENTRIES = 1024  # at most so many layers of a part that the file at hand does not hold
_deep: ContextVar[tuple[Path, ...]] = ContextVar("folders that are being read", default=())


@dataclass(frozen=True)
class PartSettings:
    """A model type's parts, and what a caller wants of them; see `overridden`."""

    preset: Mapping[str, Part] = field(default_factory=dict)
    given: Any = None
    where: str = "model.parts"

    def resolved(self, folder: Mapping[str, Part]) -> tuple[dict[str, Part], dict[str, Part]]:
        """(the parts as they are to be kept, as they are known), with what a folder's description says of them."""
        known = {**self.preset, **folder}
        kept = overridden(known, self.given, self.where)
        for name, part in self.preset.items():
            if name not in folder and kept[name].source != part.source:  # its digest is not the other's
                known[name] = replace(known[name], sha256=None)
        return {name: replace(part, sha256=None) for name, part in kept.items()}, known


# ------------------------------------------------------------------------------------------ files
def from_file(
    cls: type[BaseModel],
    config: Any,
    path: Path,
    rules: checkpoints.Rules | None,
    name: str | None,
    activation: str | None,
    settings: PartSettings | None,
) -> BaseModel:
    """See `BaseModel.from_file`."""
    config = cls.adapt(config, path) if activation is None else cls.with_activation(config, activation)
    settings, where = settings or PartSettings(), name or str(path)
    theirs: dict[str, Part] = {}
    taken: Mapping[str, Taken] = {}
    if (path / CONFIG_NAME).is_file() and not is_foreign(path):
        description = checkpoints.read_json(path / CONFIG_NAME)
        found = _parts_of(description, path) if isinstance(description, dict) else {}
        theirs = {
            name: part for name, part in found.items() if name in settings.preset
        }  # it may be another class's
    kept, known = settings.resolved(theirs)
    if path.is_dir() and is_incomplete(path):
        whole = load(path, parts={n: v for n, v in (settings.given or {}).items() if n in theirs})
        state, taken = dict(merge_lora(whole).state_dict()), whole.taken
    else:
        state = checkpoints.read_state_dict(path)
    rules = cls.rules_for(state, rules)
    state = rules.without_renewed(state)
    model = _assembled(
        cls, cls.complete(config, state), lambda m: _in_vocabulary_of(m, state, path), len(state), _bytes(state),
        rules, where, kept, known,
    )  # fmt: skip
    own = model.state_dict()
    for part, before in taken.items():  # what is still as the folder's own sources gave it
        entries = entries_of(own, part)
        if part in kept and kept[part].frozen and len(before.unchanged(entries)) == len(entries):
            model.taken = {part: before, **model.taken}
    return model


def _assembled(
    cls: type[BaseModel],
    config: Any,
    state_for: Any,
    entries: int,
    held: int,
    rules: checkpoints.Rules,
    where: str,
    kept: Mapping[str, Part],
    known: Mapping[str, Part],
) -> BaseModel:
    """A model of a file's entries, and of its parts' where those lack some.

    Args:
        state_for: gives the entries for the model. entries: their number. held: the bytes that they take.
        kept, known: see `PartSettings.resolved`.
    """
    sources = Sources(kept, cls.PART_RULES, where, known)
    config = cls.with_parts(config, sources)
    check_sizes(dataclasses.asdict(config), entries, Path(where), _ENTRIES * len(kept))
    left_out = tuple(f"{name}.*" for name, part in known.items() if part.sha256 is not None)
    rules = replace(rules, external=rules.external + left_out)
    with to_be_loaded(frozenset(n for n, p in kept.items() if p.source) if rules.fresh else None):
        model = cls.build(config, empty=not rules.fresh)
    settle(model, kept)
    check_fits(model, kept, held, where)
    model.fresh_entries = checkpoints.load_into(
        model, state_for(model), rules, where, partial(sources.fill, model)
    )
    for name, part in kept.items():
        if part.source != known[name].source and name not in sources.filled:
            log.warning("%s holds the part %r itself; %s is not read", where, name, part.source)
    _remember(model, kept, sources)
    return model


def _bytes(state: checkpoints.StateDict) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _remember(model: BaseModel, kept: Mapping[str, Part], sources: Sources) -> None:
    """Note the parts of a loaded model, and those that are frozen as their sources gave them.

    Raises:
        ValueError: something was made without memory that no file holds.
    """
    empty = next((name for name, buffer in model.named_buffers() if buffer.is_meta), None)
    if empty is not None:
        raise ValueError(
            f"{type(model).__name__}: {empty} is in no file; make the module that has it inside "
            "lavis.models.parts.building"
        )
    model.parts = dict(kept)
    state = model.state_dict()
    model.taken = {
        name: Taken.of(entries_of(state, name), sha256)
        for name, sha256 in sources.taken.items()
        if kept[name].frozen
    }
    model.train(model.training)  # frozen parts stay in evaluation mode


def _in_vocabulary_of(model: BaseModel, state: checkpoints.StateDict, path: Path) -> checkpoints.StateDict:
    """The entries of a folder that `save_pretrained` wrote, where this model has another vocabulary than it."""
    theirs = path / VOCABULARY_NAME
    if (
        not isinstance(model.tokenizer, Tokenizer)
        or not theirs.is_file()
        or not (path / CONFIG_NAME).is_file()
    ):
        return state
    if theirs.read_bytes() == model.tokenizer.vocabulary.read_bytes():
        return state
    cover = bool(read_description(path)["config"].get("cover", False))
    old = Tokenizer(theirs, extra=model.tokenizer.extra, cover=cover)
    return vocabulary.converted(state, old, model.tokenizer, str(path))


def load_file(model: BaseModel, path: Path, rules: checkpoints.Rules | None, name: str | None) -> None:
    """See `BaseModel.load_file`."""
    config = model.adapt(model.config, path)
    state = checkpoints.read_state_dict(path)
    checkpoints.load_into(model, state, model.rules_for(state, rules), name or str(path))
    model.config, model.taken = config, {}


# ------------------------------------------------------------------------------------------ recipes
def from_config(cls: type[BaseModel], cfg: Mapping[str, Any]) -> BaseModel:
    """See `BaseModel.from_config`."""
    from lavis.common.config import translate_model

    cfg = translate_model({"arch": cls.registered_name, **plain(cfg)})
    kind, source = cls.source_of(cfg)
    cfg.pop("arch", None)
    model_type = cfg.pop("model_type")
    preset = cls.preset(model_type)
    if kind == "file" and source == preset.weights:
        kind = "finetuned"  # whose checksum may be known
    init, pretrained = cfg.pop("init", None), cfg.pop("pretrained", None)
    weights, temperature = cfg.pop("weights", "finetuned"), cfg.pop("temperature", None)
    settings, adapters = PartSettings(preset.parts, cfg.pop("parts", None)), _adapters(cfg.pop("lora", None))
    if pretrained and kind != "pretrained":
        raise ValueError(
            f"model.pretrained is {pretrained!r}, but model.weights is {weights!r}; to fine-tune from that file, "
            "set model.weights to pretrained"
        )
    if adapters is not None and source is None:
        raise ValueError("model.lora adapts weights, but these are random ones; name some with model.weights")
    config = override(preset.config, cfg, "model")
    if source is None:
        model = _started(cls, config, settings)
        model.start_from(init or {})
    elif init:
        raise ValueError(f"model.init is for starting weights; with model.weights {weights!r} it has no use")
    else:
        sha256 = preset.sha256 if kind == "finetuned" else None
        try:
            path = locate(source, sha256=sha256)
        except FileNotFoundError as e:
            source, kind = _elsewhere(preset, source, kind, e)
            path = locate(source)
        model = cls.from_file(config, path, _rules_of(cls, model_type, kind), name=source, parts=settings)
        model.weights_from = Base(portable(source), kind)  # type: ignore[arg-type]
    model.model_type, model.origin = model_type, origin_of(source)
    if adapters is not None:
        model.add_lora(adapters)
    if temperature is not None:
        model.set_temperature(temperature)
    return model


def _elsewhere(preset: Preset, source: str, kind: str, gone: FileNotFoundError) -> tuple[str, str]:
    """Where else a preset's weights are, and by which rules they are read, once their first source has them no more.

    Raises:
        FileNotFoundError: nowhere, or the source is not the preset's.
    """
    if preset.elsewhere is None or source != (preset.weights or preset.pretrained) or "://" not in source:
        raise gone
    log.warning("%s: taking the same weights from %s of the Hugging Face hub", gone, preset.elsewhere)
    return preset.elsewhere, "file"


def _adapters(values: Any) -> LoraConfig | None:
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise ValueError(
            f"model.lora is {values!r}; a mapping of rank, alpha, dropout and targets was expected"
        )
    try:
        return typed(LoraConfig, values, prefix="model.lora.")
    except ValueError as e:
        raise ValueError(str(e) if "model.lora" in str(e) else f"model.lora.{e}") from e


def _rules_of(cls: type[BaseModel], model_type: str, kind: str) -> checkpoints.Rules | None:
    """By which rules weights of a kind are read; None: by the class's own."""
    if kind != "pretrained":
        return None
    return cls.preset(model_type).pretrained_rules or cls.PRETRAINED_RULES


def _started(cls: type[BaseModel], config: Any, settings: PartSettings) -> BaseModel:
    """A model with starting weights; parts that have sources are loaded."""
    kept, known = settings.resolved({})
    sources = Sources(kept, cls.PART_RULES, cls.registered_name, known)
    config = cls.with_parts(config, sources)
    names = [name for name, part in kept.items() if part.source is not None]
    with to_be_loaded(frozenset(names)):
        model = cls.build(config)
    settle(model, kept)
    check_fits(model, kept, 0, cls.registered_name)
    sources.load(model, names)
    _remember(model, kept, sources)
    return model


def plain(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A section as plain values, of OmegaConf too."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
    return {str(key): value for key, value in values.items()}  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------ folders
def from_folder(
    cls: type[BaseModel], folder: Path, for_training: bool = True, given: Any = None
) -> BaseModel:
    """See `BaseModel.from_folder`."""
    description, where = read_description(folder), folder / CONFIG_NAME
    model_type = str(description.get("model_type"))
    if model_type not in cls.PRESETS:
        raise ValueError(
            f"{where}: {cls.registered_name} has no model type {shown(model_type)!r}."
            f"{suggest(model_type, cls.PRESETS)}"
        )
    if not isinstance(description["config"], dict):
        raise ValueError(f"{where}: config is no mapping of names and values")
    config = override(cls.PRESETS[model_type].config, description["config"], f"{where}: config")
    if getattr(config, "vocabulary", None) == VOCABULARY_NAME:
        config = replace(config, vocabulary=str(folder / VOCABULARY_NAME))
    config = set_for_training(config, for_training)
    theirs = _parts_of(description, folder)
    preset = cls.PRESETS[model_type].parts
    strange = next((name for name in theirs if name not in preset), None)
    if strange is not None:
        raise ValueError(f"{where}: parts: {cls.registered_name} has no part {strange!r}")
    settings = PartSettings({**preset, **theirs}, given, "parts")
    with _once(folder):
        if description.get("lora") is not None:
            model = _with_adapters(cls, config, model_type, description, folder, settings)
        elif is_incomplete(folder):
            model = _from_own_file(cls, config, folder / checkpoints.WEIGHTS_NAME, folder, settings, theirs)
        else:
            model = cls.from_file(config, folder, parts=settings)
    model.model_type, model.origin = model_type, origin_of(folder)
    if model.lora is None:
        model.weights_from = Base(portable(str(folder)))
    return model


def _from_own_file(
    cls: type[BaseModel],
    config: Any,
    path: Path,
    folder: Path,
    settings: PartSettings,
    theirs: Mapping[str, Part],
    leave: bool = False,
) -> BaseModel:
    """A model of the file of a folder of ours, and of what it refers to.

    Args:
        leave: adapters of the file are passed over.
    """
    state = checkpoints.read_state_dict(path)
    if leave:
        state = {key: tensor for key, tensor in state.items() if not is_adapter(key)}
    kept, known = settings.resolved(theirs)
    config = cls.adapt(config, folder)
    return _assembled(
        cls, config, lambda _: state, len(state), _bytes(state), cls.RULES, str(folder), kept, known
    )


def _with_adapters(
    cls: type[BaseModel],
    config: Any,
    model_type: str,
    description: Mapping[str, Any],
    folder: Path,
    settings: PartSettings,
) -> BaseModel:
    """A model with adapters: of a file that holds all of it, or of the weights that the folder refers to."""
    where = str(folder / CONFIG_NAME)
    adapters, trained = _described_adapters(description, where)
    if description.get("base") is None:
        path = folder / checkpoints.WEIGHTS_NAME
        model = _from_own_file(cls, config, path, folder, settings, settings.preset, leave=True)
        model.add_lora(adapters, trained)
        model.weights_from = None
        _put(model, {k: t for k, t in checkpoints.read_state_dict(path).items() if is_adapter(k)}, path)
        return model
    base, path = described_base(description["base"], where), folder / ADAPTER_NAME
    own = checkpoints.read_state_dict(path)
    found = local(base.source)
    model = cls.from_file(config, found, _rules_of(cls, model_type, base.kind), base.source, parts=settings)
    # what the folder knows better than the weights that it refers to: names of classes, for example
    model.config, model.weights_from = config, replace(base, sha256=None)
    model.add_lora(adapters, trained)
    _put(model, own, path)
    state = model.state_dict()
    sha256 = digest({key: state[key] for key in compared(model.taken[""].samples.keys() - own.keys())})
    if sha256 != base.sha256:
        raise ValueError(
            f"{found} is not what {folder} was trained with: the SHA-256 of the entries that it takes of it is "
            f"{sha256}, {base.sha256} was expected"
        )
    return model


def put_adapters(model: BaseModel, folder: Path) -> None:
    """Give a model the adapters of a folder that peft wrote.

    Raises:
        ValueError: they are of another model, or no plain LoRA.
    """
    config, entries = peft_folders.read(folder)
    model.add_lora(config, [])
    _put(model, entries, folder)


def _described_adapters(description: Mapping[str, Any], where: str) -> tuple[LoraConfig, list[str]]:
    values, trained = description["lora"], description.get("trained") or []
    if not isinstance(values, dict):
        raise ValueError(f"{where}: lora is no mapping of rank, alpha, dropout and targets")
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        raise ValueError(f"{where}: trained is no list of names of parameters")
    try:
        return typed(LoraConfig, values, prefix="lora."), trained
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where}: {shown(e)}") from e


@torch.no_grad()
def _put(model: BaseModel, entries: checkpoints.StateDict, path: Path) -> None:
    """Copy a file's entries into a model whose other weights are there, and into their EMA copies.

    Training state that the model does not have is passed over.

    Raises:
        ValueError: an entry that the model does not have, one of another shape, or an adapter is missing.
    """
    (pattern, replacement), *_ = checkpoints.EMA_COPIES
    state = model.state_dict()
    wanted = {
        key: tensor
        for key, tensor in state.items()
        if key in entries or is_adapter(key) or re.sub(pattern, replacement, key) in entries
    }
    rules = checkpoints.Rules(drop=checkpoints.TRAINING_STATE, copy=checkpoints.EMA_COPIES)
    for key, tensor in checkpoints.apply_rules(entries, wanted, rules, str(path)).items():
        state[key].copy_(tensor)


def adapt(model: BaseModel, config: LoraConfig, trained: Sequence[str] | None) -> None:
    """See `BaseModel.add_lora`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in trained or () if name not in parameters]
    if unknown:
        raise ValueError(f"there is no parameter {shown(unknown[0])!r} to be trained beside adapters")
    if trained is None:
        fresh = [name for name in model.fresh_entries if name in parameters]
        trained = [name for name in fresh if parameters[name].requires_grad]  # no EMA
    ema = {name: f"{name}_m" for name, _ in model.named_children() if hasattr(model, f"{name}_m")}
    add_lora(model, config, trained, ema)
    parts = tuple(f"{name}." for name in model.taken)
    rest = {
        name: p
        for name, p in parameters.items()
        if name not in trained and not name.startswith(parts or ("\0",))
    }
    model.taken = {**model.taken, "": Taken.of(rest)}
    model.lora, model.lora_trained = config, trained
    model.train(model.training)


def _parts_of(description: Mapping[str, Any], folder: Path) -> dict[str, Part]:
    values = description.get("parts")
    return {} if values is None else described(values, str(folder / CONFIG_NAME))


@contextmanager
def _once(folder: Path) -> Iterator[None]:
    """Refuse a folder that refers to itself, or to one that does."""
    place = folder.resolve()
    if place in _deep.get():
        raise ValueError(f"{folder / CONFIG_NAME} refers to itself as the weights that it belongs to")
    token = _deep.set((*_deep.get(), place))
    try:
        yield
    finally:
        _deep.reset(token)
