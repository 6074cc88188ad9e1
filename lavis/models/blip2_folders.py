"""Folders of transformers with BLIP-2 and InstructBLIP (Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval,
InstructBlipForConditionalGeneration): what their config.json says, and the names of their entries, both ways."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lavis.common import hub
from lavis.common.files import write_text
from lavis.models import clip_checkpoints
from lavis.models.checkpoints import START_TEMPERATURE, WEIGHTS_NAMES, Rules, StateDict, read_json
from lavis.models.clip_checkpoints import resize_positions
from lavis.models.folders import CONFIG_NAME, is_of_transformers, read_description
from lavis.models.languages import KNOWN, width_of
from lavis.models.tokenizer import BERT_VOCABULARY
from lavis.nn.vit import VIT_EVA_G

log = logging.getLogger("lavis")

RETRIEVES, WRITES, INSTRUCTED = (
    "Blip2ForImageTextRetrieval",
    "Blip2ForConditionalGeneration",
    "InstructBlipForConditionalGeneration",
)
# (architecture, model_type of the language model) of a folder: the model that reads it
CLASSES = {
    (RETRIEVES, ""): "blip2_image_text_matching",
    (WRITES, "opt"): "blip2_opt",
    (WRITES, "t5"): "blip2_t5",
    (INSTRUCTED, "t5"): "blip2_t5_instruct",
    (INSTRUCTED, "llama"): "blip2_vicuna_instruct",
}
# what a number has where config.json leaves it out, as transformers writes it where it is not the default
_VISION = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
}  # fmt: skip
_QFORMER = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
}  # fmt: skip
# how many rows the language model's embedding had before one for the image token was added; not transformers' key
LANGUAGE_ROWS = "language_model_rows"
IMAGE_TOKEN = "<image>"

# ------------------------------------------------------------------------------------------ names
_STARTS = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision_model.encoder.layers.", "visual_encoder.blocks."),
    ("vision_model.post_layernorm.", "ln_vision."),
    ("qformer.encoder.", "Qformer.bert.encoder."),
    ("query_tokens", "query_tokens"),
)
_NORM = "Qformer.bert.embeddings.LayerNorm."
_TEXT = {  # of the Q-Former's parts that only some have: the longer names first
    RETRIEVES: (
        ("qformer.layernorm.", _NORM),
        ("embeddings.", "Qformer.bert.embeddings."),
        ("vision_projection.", "vision_proj."),
        ("text_projection.", "text_proj."),
        ("itm_head.", "itm_head."),
    ),
    WRITES: (("qformer.layernorm.", _NORM),),
    INSTRUCTED: (
        ("qformer.embeddings.layernorm.", _NORM),
        ("qformer.embeddings.", "Qformer.bert.embeddings."),
    ),
}
# inside of a block of the image encoder, and of a layer of the Q-Former
INSIDE = (
    ("visual_encoder.blocks.", ".self_attn.qkv.", ".attn.qkv."),
    ("visual_encoder.blocks.", ".self_attn.projection.", ".attn.proj."),
    ("visual_encoder.blocks.", ".layer_norm1.", ".norm1."),
    ("visual_encoder.blocks.", ".layer_norm2.", ".norm2."),
    ("Qformer.bert.encoder.", "attention.attention.", "attention.self."),  # crossattention, too
)
# where a language model of one of the kinds has a row for each token of its vocabulary
ROWS = (
    "lm_head.weight", "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
    "model.embed_tokens.weight", "model.decoder.embed_tokens.weight",
)  # fmt: skip


def starts(architecture: str, language: str, projection: str) -> tuple[tuple[str, str], ...]:
    """(their beginning of a name, ours), for a class whose language model and projection have such names."""
    rest = (("language_model.", f"{language}."), ("language_projection.", f"{projection}."))
    return (*_STARTS, *_TEXT[architecture], *(rest if language else ()))


def rules(architecture: str, language: str = "", projection: str = "") -> Rules:
    """How the entries of such a folder are read.

    Args:
        language, projection: modules of ours, of a class with a language model.
    """
    renames = [
        *((f"^{re.escape(old)}", new) for old, new in starts(architecture, language, projection)),
        *((rf"^({re.escape(where)}.*){re.escape(old)}", rf"\1{new}") for where, old, new in INSIDE),
    ]
    resize: dict[str, Any] = {"visual_encoder.pos_embed": resize_positions}
    resize |= {f"{language}.{name}": _first_rows for name in ROWS if language}
    return Rules(
        marker="vision_model.embeddings.class_embedding",
        rename=tuple(renames),
        drop=("*.rotary_emb.inv_freq", "*.EncDecAttention.relative_attention_bias.weight"),
        make={
            "*.position_ids": lambda shape: torch.arange(shape[-1]).expand(shape).clone(),
            "temp": lambda shape: torch.full(shape, START_TEMPERATURE),
        },
        resize=resize,
        # it has no head that writes
        fresh=("Qformer.cls.*",) if architecture == RETRIEVES else (),
    )


def _first_rows(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return tensor[: shape[0]] if tensor.ndim == 2 and tensor.shape[1:] == shape[1:] else tensor


def official(state: StateDict) -> StateDict:
    """A model's entries under the names of the original's files, in their shapes."""
    tower = "visual_encoder."
    if f"{tower}norm_pre.weight" in state:  # CLIP's
        inside = {f"visual.{k.removeprefix(tower)}": t for k, t in state.items() if k.startswith(tower)}
        named = {tower + k.removeprefix("visual."): t for k, t in clip_checkpoints.official(inside).items()}
        return {**{k: t for k, t in state.items() if not k.startswith(tower)}, **named}
    out: StateDict = {}
    for key, tensor in state.items():
        if not (key.startswith(tower) and key.endswith(".attn.qkv.bias")):
            out[key] = tensor
            continue
        queries, keys, values = tensor.chunk(3)
        if keys.any():  # only after training; they change nothing, but our own reader expects them
            log.warning("%s has biases of keys, which the original has not", key)
            out[key] = tensor
            continue
        out[key.replace("qkv.bias", "q_bias")], out[key.replace("qkv.bias", "v_bias")] = queries, values
    return out


# ------------------------------------------------------------------------------------------ reading
def kind_of(folder: Path) -> tuple[str, str] | None:
    """(architecture, model_type of the language model) of a folder; None: it is no such folder."""
    if folder.name in WEIGHTS_NAMES:
        folder = folder.parent  # a file of such a folder
    if not folder.is_dir() or not is_of_transformers(folder):
        return None
    theirs = read_json(folder / CONFIG_NAME)
    named = theirs["architectures"]
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    architecture = {"Blip2Model": WRITES}.get(architecture, architecture)
    if architecture not in _TEXT:
        return None
    text = theirs.get("text_config")
    language = str(text.get("model_type", "opt")) if isinstance(text, dict) else "opt"
    return architecture, "" if architecture == RETRIEVES else language


def class_of(folder: Path) -> str | None:
    """The registered name of the model that reads a folder; None: it is no such folder.

    Raises:
        ValueError: its language model is of none of the kinds.
    """
    kind = kind_of(folder)
    if kind is not None and kind not in CLASSES:
        known = " and ".join(language for architecture, language in CLASSES if architecture == kind[0])
        raise ValueError(f"{folder}: {kind[0]} with a language model {kind[1]!r}; {known} can be read")
    return None if kind is None else CLASSES[kind]


def type_of(path: Path, presets: Mapping[str, Any]) -> str | None:
    """The type among a class's presets whose sizes a folder has, or most of them; None: it is no such folder."""
    if kind_of(path) is None:
        return None
    theirs = read_json((path if path.is_dir() else path.parent) / CONFIG_NAME)
    vision, text = theirs.get("vision_config") or {}, theirs.get("text_config") or {}

    def fitting(name: str) -> tuple[bool, ...]:
        config, parts = presets[name].config, presets[name].parts.items()
        widths = [
            width_of(KNOWN.get(part.source or name, {}))
            for module, part in parts
            if module.endswith("_model")
        ]
        return (
            config.vit.width == vision.get("hidden_size", 1408),
            widths == [width_of(text)],
            config.image_size == vision.get("image_size", 224),
        )

    return max(presets, key=fitting)


def adapted(config: Any, path: Path, kind: tuple[str, str], name: str) -> Any:
    """The config with the sizes, the language model and the vocabularies of a folder; of other files as it is.

    Args:
        kind: what the class reads. name: of the class, for messages.

    Raises:
        ValueError: the folder is of another class, or has what no class here has.
    """
    found = kind_of(path)
    if found is None:
        return config
    folder = path if path.is_dir() else path.parent
    if found != kind:
        raise ValueError(f"{folder} holds a {class_of(folder)}, not a {name}")
    place = folder / CONFIG_NAME
    theirs = read_json(place)
    vision, qformer = (
        _section(theirs, section, known, place)
        for section, known in (("vision_config", _VISION), ("qformer_config", _QFORMER))
    )
    if not vision["qkv_bias"]:
        raise ValueError(f"{place}: vision_config.qkv_bias is false; this library's encoder has biases")
    width = vision["hidden_size"]
    vit = replace(
        VIT_EVA_G,
        width=width,
        depth=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        patch_size=vision["patch_size"],
        mlp_ratio=(vision["intermediate_size"] + 0.5) / width,
        activation=vision["hidden_act"],
        layer_norm_eps=float(vision["layer_norm_eps"]),
        drop_path=config.vit.drop_path,
    )
    text = replace(
        config.text,
        vocab_size=qformer["vocab_size"],
        width=qformer["hidden_size"],
        depth=qformer["num_hidden_layers"],
        heads=qformer["num_attention_heads"],
        hidden=qformer["intermediate_size"],
        max_positions=qformer["max_position_embeddings"],
        layer_norm_eps=float(qformer["layer_norm_eps"]),
        cross_every=qformer["cross_attention_frequency"],
        memory_width=width,
    )
    if vision["image_size"] != config.image_size:
        log.info("%s is for images of %d px, not %d", folder, vision["image_size"], config.image_size)
    queries = _number(theirs, "num_query_tokens", 32, place)
    config = replace(config, image_size=vision["image_size"], vit=vit, text=text, num_query_token=queries)
    if kind[0] != WRITES:  # its Q-Former reads texts
        inner = folder / "qformer_tokenizer" if kind[0] == INSTRUCTED else folder
        config = replace(config, vocabulary=_vocabulary(inner))
    if kind[0] == RETRIEVES:
        log.warning(
            "%s has no head that writes texts, which transformers leaves out: it starts from random weights. Matching "
            "and features need none",
            folder,
        )
        return replace(config, embed_dim=_number(theirs, "image_text_hidden_size", 256, place))
    return replace(config, language=_language(theirs, place), language_source=str(folder))


def _number(section: Mapping[str, Any], key: str, default: int, place: Path) -> int:
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{place}: {key} is {value!r}; a whole number from 1 on was expected")
    return value


def _section(theirs: Mapping[str, Any], name: str, known: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """A section's values, those that are left out by their defaults."""
    section = theirs.get(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"{place}: {name} is no mapping of names and values")
    found = {}
    for key, default in known.items():
        value = section.get(key, default)
        if key.endswith(("_size", "_layers", "_heads", "_frequency", "_embeddings")):
            value = _number(section, key, default, place)
        elif not isinstance(value, type(default)):
            raise ValueError(f"{place}: {name}.{key} is {value!r}; {type(default).__name__} was expected")
        found[key] = value
    if found["hidden_act"] not in ("gelu", "quick_gelu")[: 1 + (name == "vision_config")]:
        raise ValueError(f"{place}: {name}.hidden_act is {found['hidden_act']!r}; gelu was expected")
    if found["hidden_size"] % found["num_attention_heads"]:
        raise ValueError(f"{place}: {name}: {found['hidden_size']} is no multiple of its number of heads")
    return found


def _language(theirs: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """The description of the language model, with as many rows of its vocabulary as it had of its own."""
    text = theirs.get("text_config")
    if not isinstance(text, dict):
        raise ValueError(f"{place} describes no language model: it has no text_config")
    if LANGUAGE_ROWS in theirs:
        text = {**text, "vocab_size": _number(theirs, LANGUAGE_ROWS, 1, place)}
    return text


def untied(language: dict[str, Any], state: StateDict) -> dict[str, Any]:
    """The description of a language model whose head is a matrix of its own, where the entries of a folder say so.

    transformers 5 writes of T5 that they are one, whatever they are.
    """
    head = state.get("language_model.lm_head.weight")
    words = state.get("language_model.shared.weight")
    if head is None or words is None or language.get("tie_word_embeddings") is False:
        return language
    if torch.equal(head, words):
        return language
    return {"scale_decoder_outputs": True, **language, "tie_word_embeddings": False}


def _vocabulary(folder: Path) -> str:
    """What a config names the vocabulary of a folder's BERT tokenizer by: "bert" where it is BERT's own."""
    bert = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()
    if (folder / "vocab.txt").is_file():
        pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    elif (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        model = content.get("model") if isinstance(content, dict) else None
        words = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(words, dict) or sorted(map(repr, words.values())) != sorted(
            map(repr, range(len(words)))
        ):
            raise ValueError(f"{folder / 'tokenizer.json'} has no WordPiece vocabulary")
        pieces = sorted(words, key=words.__getitem__)
    else:
        return "bert"
    if pieces[: len(bert)] == bert:  # the token that begins a written text may stand behind
        return "bert"
    text = "".join(f"{piece}\n" for piece in pieces if piece != "[DEC]")
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = hub.cache_root() / "vocabularies" / f"{name}.txt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return str(path)


# ------------------------------------------------------------------------------------------ tokenizers
TOKENIZER = "language"  # the folder of a language model's tokenizer in a folder of this library
_TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "spiece.model", "tokenizer.model", CONFIG_NAME,
)  # fmt: skip


def copy_tokenizer(source: Path, folder: Path) -> str:
    """Copy the tokenizer of a language model's folder into a folder of this library; gives its place there."""
    place = folder / TOKENIZER
    place.mkdir(exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, place / name)
    return TOKENIZER


def with_tokenizer(config: Any, path: Path) -> Any:
    """The config of a class with a language model, for a folder of this library that holds its tokenizer.

    A folder may come from anybody: the tokenizer is the one in it, or the one of the part's source.
    """
    if kind_of(path) is not None:
        return config
    folder = path.parent if path.name in WEIGHTS_NAMES else path
    if not (folder / TOKENIZER).is_dir() or not (folder / CONFIG_NAME).is_file():
        return replace(config, language_source="")
    language = config.language or read_description(folder)["config"].get("language")
    return replace(config, language=language, language_source=str(folder / TOKENIZER))
