"""Weights in and out: file formats, the rules that turn a foreign checkpoint into ours, strict loading.

After its rules a checkpoint must hold exactly the model's entries, each of the model's shape; anything
else is an error that lists the differences. Nothing in a file is ever executed.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lavis.common.files import default_mode
from lavis.models import pickled, torchscript
from lavis.nn.ema import NO_ID, empty_queue

log = logging.getLogger("lavis")

WEIGHTS_NAME = "model.safetensors"
# of a folder, the first that is there
WEIGHTS_NAMES = (
    WEIGHTS_NAME, f"{WEIGHTS_NAME}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "open_clip_model.safetensors", "open_clip_model.safetensors.index.json", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.bin.index.json",
)  # fmt: skip
# under which others keep a model's tensors, the weights themselves before averages of them
STATE_KEYS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema", "ema")
WRAPPERS = ("module", "model", "net")  # before all names of a model that something else holds
JSON_BYTES = 16 << 20  # of a file, or a file's part, that describes weights
StateDict = dict[str, torch.Tensor]
Formats = torch.dtype | Callable[[str], torch.dtype]  # of all entries, or of each by its name


@dataclass(frozen=True)
class Rules:
    """How the entries of one kind of file become those of one class.

    marker: an entry that only this kind of file has; says which rules a file needs.
    rename: (regular expression, replacement), all applied in order. A new name may end in "#T", then the matrix
        is transposed, or in "#0", "#1", …, parts of one entry that are put together along its first dimension.
    drop: entries the class has no use for (momentum copies, queues, other heads); shell patterns.
    resize: model entry -> function(tensor, wanted shape) that interpolates it.
    copy: (regular expression, replacement): a model entry that the file lacks and that matches is a copy of
        the entry that the replacement names, also one that is dropped (EMA copies of modules, twin
        attentions of the single one).
    make: shell pattern of model entries that the file lacks -> function(wanted shape) that makes them. A queue of
        another size counts as lacking.
    blank: parts of an entry ("#0", "#1", …) that no file has: zeros of the first one's shape; shell patterns with the
        part, such as "*.qkv.bias#1".
    fresh: model entries that the file need not have; they keep their starting values; shell patterns.
    renew: entries of the file that are passed over, so that the model's are fresh; shell patterns.
    external: model entries that the file need not have because they come from the model's parts, see
        `lavis.models.parts`; shell patterns.

    Whatever they say, a number (`SCALARS`) takes the model's shape.
    """

    marker: str = ""
    rename: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    resize: Mapping[str, Callable[[torch.Tensor, torch.Size], torch.Tensor]] = field(default_factory=dict)
    copy: tuple[tuple[str, str], ...] = ()
    make: Mapping[str, Callable[[torch.Size], torch.Tensor]] = field(default_factory=dict)
    blank: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    renew: tuple[str, ...] = ()
    external: tuple[str, ...] = ()

    def is_fresh(self, entry: str) -> bool:
        """Whether a file need not have an entry of the model."""
        return _matches(entry, self.fresh)

    def without_renewed(self, state: StateDict) -> StateDict:
        """The entries of a file that are not passed over."""
        return {k: t for k, t in state.items() if not _matches(k, self.renew)} if self.renew else state


START_TEMPERATURE = 0.07  # of contrast, where a file has none
# Learned numbers: of shape () in official files, (1,) in models, which FSDP can shard.
SCALARS = ("temp", "logit_scale")

# State that only training uses; safe to leave behind, and said in one line when it is.
TRAINING_STATE = ("*_m.*", "*_queue", "*queue_ptr", "temp")

# The same made anew, where training goes on from a file without it: EMA copies start equal, queues at random.
EMA_COPIES = ((r"^(\w+)_m\.", r"\1."),)
NEW_QUEUES: Mapping[str, Callable[[torch.Size], torch.Tensor]] = {
    "image_queue": empty_queue,
    "text_queue": empty_queue,
    "idx_queue": lambda shape: torch.full(shape, NO_ID, dtype=torch.long),
    "queue_ptr": lambda shape: torch.zeros(shape, dtype=torch.long),
}

# transformers' BLIP (BlipForConditionalGeneration, BlipForQuestionAnswering, BlipForImageTextRetrieval): the text side
# has the official names already; what is not a weight there (position ids) is made, what is tied and left out copied.
TRANSFORMERS_BLIP = Rules(
    marker="vision_model.embeddings.class_embedding",
    rename=(
        (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
        (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
        (
            r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.",
            r"visual_encoder.blocks.\1.attn.proj.",
        ),
        (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"visual_encoder.blocks.\1.norm\2."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
        (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    ),
    copy=(
        (
            r"^text_decoder\.cls\.predictions\.decoder\.weight$",
            "text_decoder.bert.embeddings.word_embeddings.weight",
        ),
        (
            r"^text_decoder\.bert\.embeddings\.word_embeddings\.weight$",
            "text_decoder.cls.predictions.decoder.weight",
        ),
        (r"^text_decoder\.cls\.predictions\.decoder\.bias$", "text_decoder.cls.predictions.bias"),
        (r"^text_decoder\.cls\.predictions\.bias$", "text_decoder.cls.predictions.decoder.bias"),
        *EMA_COPIES,
    ),
    make={
        "*.position_ids": lambda shape: torch.arange(shape[-1]).expand(shape).clone(),
        "temp": lambda shape: torch.full(shape, START_TEMPERATURE),
        **NEW_QUEUES,
    },
)


# Starting weights for pre-training (`init:` in a recipe): what a picture encoder takes of DeiT (Touvron et al.
# 2021), and a text transformer, with or without LM head, of BERT.
DEIT = Rules(marker="patch_embed.proj.weight", drop=("head.*", "head_dist.*", "dist_token"))
SPACE_TO_TIME = ((r"\.temporal_attn\.", ".attn."), (r"\.temporal_norm1\.", ".norm1."))  # for a video encoder
_BERT_NORMS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
_BERT_LEFT = ("*pooler.*", "cls.seq_relationship.*", "*token_type_embeddings.*")
_POSITION_IDS = {"*position_ids": lambda shape: torch.arange(shape[-1]).expand(shape).clone()}


def more_rows(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """An embedding (or its bias) with tokens or positions added at the end; new rows start as all its rows
    once did."""
    if tensor.shape[1:] != shape[1:] or tensor.shape[0] > shape[0]:
        return tensor  # another size altogether: the strict comparison says so
    grown = torch.zeros(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
    grown[: tensor.shape[0]] = tensor
    return grown


def part_of(state: StateDict, module: str) -> StateDict:
    """The entries of one module of a model's file; all of a file that is of such a module alone.

    A text encoder may begin as a decoder's transformer, and the other way round.
    """
    text = {"text_encoder": "text_decoder", "text_decoder": "text_encoder"}
    for name in (module, text.get(module, module)):
        part = {k.removeprefix(f"{name}."): t for k, t in state.items() if k.startswith(f"{name}.")}
        if part:
            return {k: t for k, t in part.items() if not k.endswith("position_ids")}  # made anew
    return state


BERT_ENCODER = Rules(
    rename=((r"^bert\.", ""), *_BERT_NORMS),
    drop=(*_BERT_LEFT, "cls.*"),
    resize={
        "embeddings.word_embeddings.weight": more_rows,
        "embeddings.position_embeddings.weight": more_rows,
    },
    make=_POSITION_IDS,
    fresh=("*.crossattention.*",),
)
BERT_LANGUAGE_MODEL = Rules(
    rename=_BERT_NORMS,
    drop=_BERT_LEFT,
    resize={
        "bert.embeddings.word_embeddings.weight": more_rows,
        "bert.embeddings.position_embeddings.weight": more_rows,
        "cls.predictions.decoder.weight": more_rows,
        "cls.predictions.decoder.bias": more_rows,
        "cls.predictions.bias": more_rows,
    },
    # files leave out what is tied
    copy=(
        (r"^cls\.predictions\.decoder\.weight$", "bert.embeddings.word_embeddings.weight"),
        (r"^cls\.predictions\.decoder\.bias$", "cls.predictions.bias"),
    ),
    make=_POSITION_IDS,
    fresh=("*.crossattention.*",),
)

# ------------------------------------------------------------------------------------------ reading


def weights_in(folder: Path) -> Path | None:
    """The file of a folder that holds a model's weights, or the index of several; None: there is none."""
    return next((folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)


def read_state_dict(path: Path | str, dtype: Formats | None = None, wrapped: bool = True) -> StateDict:
    """Tensors of a `.safetensors` file, of what `torch.save` wrote, of a TorchScript archive, or of a folder's files.

    In a folder of transformers, OpenCLIP or this library the file is known by its name, also the index of several. What
    a folder of this library leaves out (parts, the weights that adapters belong to) is read from where it lies. An
    official checkpoint keeps its tensors under "model", others under "state_dict", "model_state_dict" and the like;
    a plain dict of tensors will do, too. What training tools put before all names ("module.", "_orig_mod.", Lightning's
    "model.") is taken off. Nothing in a file is executed, and none takes more memory than its size.

    Args:
        dtype: floating-point tensors are converted to it, or to what it says of their names, as they are read; of
            several files one at a time is held in both formats.
        wrapped: False: names stay as they are; `without_wrappers` may be called later.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, is something else, or holds more than plain data.
    """
    path = Path(path)
    if path.is_dir():
        from lavis.models import folders

        if folders.is_incomplete(path):
            return _in_format(folders.completed(path), dtype)
        found = weights_in(path)
        if found is None:
            raise FileNotFoundError(
                f"no checkpoint at {path}: the folder has none of {', '.join(WEIGHTS_NAMES)}"
            )
        path = found
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.name.endswith(".index.json"):
        state = _read_shards(path, dtype)
    else:
        state = _in_format(_read_file(path), dtype)
    return without_wrappers(state, str(path)) if wrapped else state


def _in_format(state: StateDict, dtype: Formats | None) -> StateDict:
    """Floating-point tensors in a format; nothing else holds the others any more."""
    if dtype is not None:
        for key, tensor in state.items():
            if tensor.is_floating_point():
                state[key] = tensor.to(dtype(key) if callable(dtype) else dtype)
    return state


def _read_file(path: Path) -> StateDict:
    with path.open("rb") as f:
        start = f.read(64)
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and start[:1] != b"P"):
        return _read_safetensors(path)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is the pointer that Git LFS leaves in place of a file; fetch the file with git lfs pull"
        )
    if torchscript.is_archive(path):
        return torchscript.read(path)
    try:
        loaded = pickled.read_zip(path) if zipfile.is_zipfile(path) else pickled.read_legacy(path)
    except pickled.UNREADABLE as e:
        raise ValueError(
            f"{path} could not be read as tensors: {pickled.reason_of(e)}. It is cut short, is no PyTorch checkpoint, "
            "or holds Python objects, which are never executed; download it again, or convert it to safetensors where "
            "it came from"
        ) from e
    return _state_in(loaded, path)


def _state_in(loaded: Any, path: Path, depth: int = 3) -> StateDict:
    """The dict of tensors in what a file holds, under one of the usual keys where there are other things beside."""
    if isinstance(loaded, dict) and depth:
        inner = next((loaded[k] for k in STATE_KEYS if _holds_tensors(loaded.get(k))), None)
        if inner is not None:
            return _state_in(inner, path, depth - 1)
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(
            f"{path} holds no state dict (a dict of names and tensors, or one under the key "
            f"{', '.join(map(repr, STATE_KEYS[:-1]))} or {STATE_KEYS[-1]!r})"
        )
    strange = [k for k, v in loaded.items() if not isinstance(v, torch.Tensor) or not isinstance(k, str)]
    if strange:
        raise ValueError(
            f"{path}: the entry {pickled.shown(strange[0])!r} is no tensor; is this a model's checkpoint?"
        )
    return dict(loaded)


def _holds_tensors(value: Any, depth: int = 2) -> bool:
    if not isinstance(value, dict):
        return False
    if any(isinstance(v, torch.Tensor) for v in value.values()):
        return True
    return depth > 0 and any(_holds_tensors(value.get(k), depth - 1) for k in STATE_KEYS)


def _read_safetensors(path: Path) -> StateDict:
    try:
        with path.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
        if header > min(path.stat().st_size - 8, JSON_BYTES):
            raise ValueError(f"its header is said to have {header} bytes")
        with safe_open(path, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            metadata = f.metadata() or {}
        for alias, key in json.loads(metadata.get("aliases", "{}")).items():
            tensors[alias] = tensors[key]
    except (SafetensorError, *pickled.UNREADABLE) as e:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({pickled.reason_of(e)}); download or save it again"
        ) from e
    return tensors


def _read_shards(path: Path, dtype: Formats | None) -> StateDict:
    """The tensors of several files that an index names, each in the file where the index says it is."""
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path} is no index of weights: it has no 'weight_map' of names and files")
    out: StateDict = {}
    for name in sorted(set(places.values())):
        # files beside the index only; not resolved, as the Hugging Face hub's cache links to where they lie
        if Path(name).name != name or "\\" in name or ":" in name or name in ("", ".", ".."):
            raise ValueError(f"{path} names the file {pickled.shown(name)!r}; it must lie beside the index")
        shard = path.parent / name
        if not shard.is_file():
            raise FileNotFoundError(
                f"{path} names the file {name}, which is not there; download the folder again"
            )
        out.update(_in_format(_read_file(shard), dtype))
    missing = [key for key in places if key not in out]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} entries are not in the files that it names, such as {pickled.shown(missing[0])}"
        )
    return out


def read_json(path: Path) -> Any:
    """The content of a JSON file that lies beside weights.

    Raises:
        ValueError: it is no JSON, or much too large.
    """
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ValueError("it is larger than any description of a model")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged: {pickled.reason_of(e)}") from e


def without_wrappers(state: StateDict, where: str) -> StateDict:
    """The names without what parallel training, compiling and Lightning put into them."""
    out = {re.sub(r"(^|\.)((_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+", r"\1", k): t
           for k, t in state.items()}  # fmt: skip
    while True:
        heads = Counter(key.partition(".")[0] for key in out if "." in key)
        most = max(heads.values(), default=0)
        head = next((h for h in WRAPPERS if heads[h] == most > 0), None)
        if head is None:
            return out
        left = [key for key in out if not key.startswith(f"{head}.")]
        if left:  # of a training's module that has more than the model, such as its loss or a second copy
            log.info("%s: %d entries beside %s are left out (%s, …)", where, len(left), head, left[0])
        out = {k.removeprefix(f"{head}."): t for k, t in out.items() if k.startswith(f"{head}.")}


# ----------------------------------------------------------------------------------------- applying


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, p) for p in patterns)


def apply_rules(
    state: StateDict,
    wanted: Mapping[str, torch.Tensor],
    rules: Rules,
    where: str,
    fill: Callable[[list[str]], StateDict] | None = None,
    tied: Sequence[Sequence[str]] = (),
) -> StateDict:
    """Rename, drop and resize; then check that exactly the wanted entries are there.

    Args:
        fill: gives external entries that the state lacks.
        tied: names of one and the same parameter; the state may lack all of them but one.

    Raises:
        ValueError: listing missing, unexpected and differently shaped entries.
    """
    out: StateDict = {}
    split: dict[str, dict[str, torch.Tensor]] = {}
    dropped: StateDict = {}
    for key, tensor in state.items():
        for old, new in rules.rename:
            key = re.sub(old, new, key)
        name, _, mark = key.partition("#")
        if mark.isdigit():
            split.setdefault(name, {})[mark] = tensor
            continue
        if mark == "T":
            key, tensor = name, tensor.t().contiguous() if tensor.ndim == 2 else tensor
        if key not in wanted and _matches(key, rules.drop):
            dropped[key] = tensor
            continue
        if tensor.ndim == 0 and key in SCALARS and key in wanted:
            tensor = tensor.reshape(wanted[key].shape)
        if key in rules.resize and key in wanted and tensor.shape != wanted[key].shape:
            tensor = rules.resize[key](tensor, wanted[key].shape)
        out[key] = tensor
    _renew_queues(out, wanted, rules, where)
    for key, pieces in split.items():
        first = next(iter(pieces.values()))
        gaps = [mark for mark in map(str, range(1 + max(map(int, pieces)))) if mark not in pieces]
        pieces |= {mark: torch.zeros_like(first) for mark in gaps if _matches(f"{key}#{mark}", rules.blank)}
        tensors = [pieces[part] for part in sorted(pieces)]
        fitting = tensors[0].ndim > 0 and len({t.shape[1:] for t in tensors}) == 1
        out[key] = torch.cat(tensors) if fitting else tensors[0]  # whose shape is reported
    external = [k for k in wanted if k not in out and _matches(k, rules.external)]
    if external and fill is not None:
        out.update(fill(external))
    for names in tied:
        there = next((name for name in names if name in out), None)
        if there is not None:
            out.update({name: out[there] for name in names if name not in out})
    copied: set[str] = set()
    for key in [k for k in wanted if k not in out]:
        source = next((re.sub(old, new, key) for old, new in rules.copy if re.search(old, key)), None)
        if source in out or source in dropped:
            out[key] = (out[source] if source in out else dropped[source]).clone()
            copied.add(source)
            continue
        maker = next((f for pattern, f in rules.make.items() if fnmatch.fnmatchcase(key, pattern)), None)
        if maker is not None:
            out[key] = maker(wanted[key].shape)
    missing = [k for k in wanted if k not in out and not _matches(k, rules.fresh)]
    unexpected = [k for k in out if k not in wanted]
    reshaped = [
        f"{k} is {tuple(out[k].shape)}, the model's is {tuple(wanted[k].shape)}"
        for k in wanted
        if k in out and out[k].shape != wanted[k].shape
    ]
    if missing or unexpected or reshaped:
        parts = [
            f"{len(found)} {label}: {', '.join(found[:4])}{', …' if len(found) > 4 else ''}"
            for label, found in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", reshaped),
            )
            if found
        ]
        raise ValueError(
            f"{where} does not fit this model ({len(wanted)} entries): {'; '.join(parts)}. "
            "Is it for another model name or type, or a pre-trained one (then say so: model.weights: pretrained, "
            "model.pretrained: FILE)?"
        )
    unused = [k for k in dropped if k not in copied]
    if unused:
        log.info(
            "%s: %d entries that this model does not use were left out (%s, …)",
            where,
            len(unused),
            unused[0],
        )
    return out


def _renew_queues(state: StateDict, wanted: Mapping[str, torch.Tensor], rules: Rules, where: str) -> None:
    """Leave a file's queue out if the model's has another size, so that it is made anew."""
    queue = "image_queue"
    if queue in state and queue in wanted and queue in rules.make:
        there, here = state[queue].shape[-1], wanted[queue].shape[-1]
        if there != here:
            log.info("%s: its queue holds %d features, the model's %d; it starts anew", where, there, here)
            for key in NEW_QUEUES:
                state.pop(key, None)


def load_into(
    model: nn.Module,
    state: StateDict,
    rules: Rules,
    where: str,
    fill: Callable[[list[str]], StateDict] | None = None,
) -> list[str]:
    """Put a checkpoint's tensors into a model (also one on the meta device), strictly.

    Floating-point tensors take the model's dtype. What is tied in the model stays so; its `tie_weights`, if any, runs
    afterwards.

    Args:
        fill: gives external entries that the checkpoint lacks, see `Rules.external`.

    Returns:
        The names of entries that keep their starting values.
    """
    wanted = model.state_dict()
    state = _separate(apply_rules(state, wanted, rules, where, fill, tied_names(model)), model)
    fresh = [key for key in wanted if key not in state]
    for key, old in wanted.items():
        if key not in state:
            if old.is_meta:
                raise AssertionError(f"{key} is fresh, but the model has no starting values")
            state[key] = old
        elif state[key].is_floating_point() and state[key].dtype != old.dtype:
            state[key] = state[key].to(old.dtype)
    tied = tied_names(model)
    model.load_state_dict(state, strict=True, assign=True)
    for *others, latest in tied:  # where a file's entries differ, the later one wins
        for name in others:
            place, _, last = name.rpartition(".")
            setattr(model.get_submodule(place), last, model.get_parameter(latest))
    tie = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()
    return fresh


def tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(key)
    return [keys for keys in names.values() if len(keys) > 1]


def _separate(state: StateDict, model: nn.Module) -> StateDict:
    """Entries of a file that share memory get memory of their own, unless the model ties them.

    An EMA copy that was saved while equal to its module would otherwise be the module.
    """
    owners = {k: id(p) for k, p in model.named_parameters(remove_duplicate=False)}
    first: dict[tuple[int, torch.Size], int | str] = {}
    out: StateDict = {}
    for key, tensor in state.items():
        owner = owners.get(key, key)
        shared = first.setdefault((tensor.data_ptr(), tensor.shape), owner) != owner
        out[key] = tensor.clone() if shared and tensor.numel() else tensor
    return out


# ------------------------------------------------------------------------------------------ writing


def write_state_dict(state: StateDict, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Save as safetensors; tied entries are written once, their aliases named in the metadata."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: StateDict = {}
    aliases: dict[str, str] = {}
    for key, tensor in state.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if identity in first:
            aliases[key] = first[identity]
            continue
        first[identity] = key
        tensors[key] = tensor.detach().cpu().contiguous()
    notes = {"format": "pt", **(metadata or {})}
    if aliases:
        notes["aliases"] = json.dumps(aliases)
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata=notes)
    temporary.chmod(default_mode())  # safetensors makes it readable by its owner only
    temporary.replace(path)
