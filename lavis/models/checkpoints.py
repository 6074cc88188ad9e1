"""Weights in and out: file formats, the rules that turn a foreign checkpoint into ours, strict loading.

After its rules a checkpoint must hold exactly the model's entries, each of the model's shape; anything
else is an error that lists the differences. Nothing in a file is ever executed.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lavis.common.files import default_mode
from lavis.models import torchscript
from lavis.nn.momentum import NO_ID, empty_queue

log = logging.getLogger("lavis")

WEIGHTS_NAME = "model.safetensors"
StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rules:
    """How the entries of one kind of file become those of one class.

    marker: an entry that only this kind of file has; says which rules a file needs.
    rename: (regular expression, replacement), all applied in order. A new name may end in "#T", then the matrix
        is transposed, or in "#0", "#1", …, parts of one entry that are put together along its first dimension.
    drop: entries the class has no use for (momentum copies, queues, other heads); shell patterns.
    resize: model entry -> function(tensor, wanted shape) that interpolates it.
    copy: (regular expression, replacement): a model entry that the file lacks and that matches is a copy of
        the entry that the replacement names, also one that is dropped (momentum twins of their modules, twin
        attentions of the single one).
    make: shell pattern of model entries that the file lacks -> function(wanted shape) that makes them. A queue of
        another size counts as lacking.
    fresh: model entries that the file need not have; they keep their starting values; shell patterns.
    renew: entries of the file that are passed over, so that the model's are fresh; shell patterns.
    """

    marker: str = ""
    rename: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    resize: Mapping[str, Callable[[torch.Tensor, torch.Size], torch.Tensor]] = field(default_factory=dict)
    copy: tuple[tuple[str, str], ...] = ()
    make: Mapping[str, Callable[[torch.Size], torch.Tensor]] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    renew: tuple[str, ...] = ()

    def is_fresh(self, entry: str) -> bool:
        """Whether a file need not have an entry of the model."""
        return _matches(entry, self.fresh)

    def without_renewed(self, state: StateDict) -> StateDict:
        """The entries of a file that are not passed over."""
        return {k: t for k, t in state.items() if not _matches(k, self.renew)} if self.renew else state


# State that only training uses; safe to leave behind, and said in one line when it is.
TRAINING_STATE = ("*_m.*", "*_queue", "*queue_ptr", "temp")

# The same made anew, where training goes on from a file without it: twins start as copies, queues at random.
TWIN_COPIES = ((r"^(\w+)_m\.", r"\1."),)
NEW_QUEUES: Mapping[str, Callable[[torch.Size], torch.Tensor]] = {
    "image_queue": empty_queue,
    "text_queue": empty_queue,
    "idx_queue": lambda shape: torch.full(shape, NO_ID, dtype=torch.long),
    "queue_ptr": lambda shape: torch.zeros(shape, dtype=torch.long),
}

# transformers' BLIP (BlipForConditionalGeneration, BlipForQuestionAnswering): the text side has the
# official names already; what is not a weight there (position ids) is made.
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
    make={"*.position_ids": lambda shape: torch.arange(shape[-1]).expand(shape)},
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


def read_state_dict(path: Path | str) -> StateDict:
    """Tensors of a `.safetensors` file (or a folder's), or of a `.pth`/`.pt`/`.bin` archive of tensors.

    An official checkpoint keeps its tensors under "model", OpenCLIP's under "state_dict"; a plain dict of tensors
    will do too, and so will a TorchScript archive (OpenAI's CLIP). Archives are read without executing what they hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, is something else, or holds more than plain data.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as f:
                tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
                metadata = f.metadata() or {}
        except SafetensorError as e:
            raise ValueError(
                f"{path} is damaged or no safetensors file ({e}); download or save it again"
            ) from e
        for alias, key in json.loads(metadata.get("aliases", "{}")).items():
            tensors[alias] = tensors[key]
        return tensors
    if torchscript.is_archive(path):
        return torchscript.read(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, KeyError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(
            f"{path} could not be read as tensors: {reason}. It is cut short, is no PyTorch checkpoint, or holds "
            "Python objects, which are never executed; download it again, or convert it to safetensors where it "
            "came from"
        ) from e
    state = loaded.get("model", loaded.get("state_dict", loaded)) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not state:
        raise ValueError(
            f"{path} holds no state dict (a dict of names and tensors, or one under the key 'model' or 'state_dict')"
        )
    strange = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if strange:
        raise ValueError(f"{path}: the entry {strange[0]!r} is no tensor; is this a model's checkpoint?")
    return dict(state)


# ----------------------------------------------------------------------------------------- applying


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, p) for p in patterns)


def apply_rules(state: StateDict, wanted: Mapping[str, torch.Tensor], rules: Rules, where: str) -> StateDict:
    """Rename, drop and resize; then check that exactly the wanted entries are there.

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
        if key in rules.resize and key in wanted and tensor.shape != wanted[key].shape:
            tensor = rules.resize[key](tensor, wanted[key].shape)
        out[key] = tensor
    _renew_queues(out, wanted, rules, where)
    for key, pieces in split.items():
        tensors = [pieces[part] for part in sorted(pieces)]
        fitting = tensors[0].ndim > 0 and len({t.shape[1:] for t in tensors}) == 1
        out[key] = torch.cat(tensors) if fitting else tensors[0]  # whose shape is reported
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


def load_into(model: nn.Module, state: StateDict, rules: Rules, where: str) -> None:
    """Put a checkpoint's tensors into a model (also one on the meta device), strictly.

    Floating-point tensors take the model's dtype. The model's `tie_weights`, if any, runs afterwards.
    """
    wanted = model.state_dict()
    state = _separate(apply_rules(state, wanted, rules, where), model)
    for key, old in wanted.items():
        if key not in state:
            if old.is_meta:
                raise AssertionError(f"{key} is fresh, but the model has no starting values")
            state[key] = old
        elif state[key].is_floating_point() and state[key].dtype != old.dtype:
            state[key] = state[key].to(old.dtype)
    model.load_state_dict(state, strict=True, assign=True)
    tie = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()


def _separate(state: StateDict, model: nn.Module) -> StateDict:
    """Entries of a file that share memory get memory of their own, unless the model ties them.

    A twin that was saved while equal to its module would otherwise be the module.
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


def write_state_dict(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Save as safetensors; tied entries are written once, their aliases named in the metadata."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: StateDict = {}
    aliases: dict[str, str] = {}
    for key, tensor in model.state_dict().items():
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
