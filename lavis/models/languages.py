"""Language models of transformers (extra `llm`): their modules from a description, and their tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise ImportError(
            "models with a language model need the package transformers: pip install 'openlavis[llm]'"
        ) from e
    return transformers


_OPT = {
    "model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, "do_layer_norm_before": True,
    "activation_function": "relu", "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
_T5 = {
    "model_type": "t5", "vocab_size": 32128, "d_kv": 64, "num_layers": 24, "num_decoder_layers": 24,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}


def _sizes(common: Mapping[str, Any], width: int, hidden: int, depth: int, heads: int) -> dict[str, Any]:
    if common is _T5:
        return {**_T5, "d_model": width, "d_ff": hidden, "num_heads": heads}
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    if common is _OPT:
        return {**_OPT, **sizes, "ffn_dim": hidden, "word_embed_proj_dim": width}
    return {**_LLAMA, **sizes, "intermediate_size": hidden}


# config.json of the language models that presets name (by source, or by model type where there is none), so that
# sizes are known before anything is fetched. OPT: Zhang et al. 2022, table 1; T5 v1.1: Raffel et al. 2020; LLaMA:
# Touvron et al. 2023, table 2.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "facebook/opt-2.7b": _sizes(_OPT, 2560, 10240, 32, 32),
    "facebook/opt-6.7b": _sizes(_OPT, 4096, 16384, 32, 32),
    "google/flan-t5-xl": _sizes(_T5, 2048, 5120, 24, 32),
    "google/flan-t5-xxl": _sizes(_T5, 4096, 10240, 24, 64),
    "vicuna7b": _sizes(_LLAMA, 4096, 11008, 32, 32),
    "vicuna13b": _sizes(_LLAMA, 5120, 13824, 40, 40),
}
# of a config.json: what says how and where a model is to run, not what it is
_RUNNING = ("dtype", "torch_dtype", "auto_map", "attn_implementation", "quantization_config")


def width_of(description: Mapping[str, Any]) -> Any:
    """The width of the states of a language model."""
    return description.get("hidden_size", description.get("d_model"))


def language_model(description: Mapping[str, Any]) -> Any:
    """The language model that a config.json of transformers describes, with starting weights, in float32.

    Raises:
        ImportError: transformers is not installed.
        ValueError: it describes no language model.
    """
    transformers = _transformers()
    found = {k: v for k, v in description.items() if k not in _RUNNING and not k.startswith("_")}
    kind = found.pop("model_type", None)
    if kind is None:
        raise ValueError("config.json of the language model names no model_type")
    try:
        config = transformers.AutoConfig.for_model(kind, **found)
    except ValueError as e:
        raise ValueError(
            f"config.json of the language model: transformers knows no model_type {kind!r}"
        ) from e
    encodes = bool(getattr(config, "is_encoder_decoder", False))
    kinds = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
    model: Any = kinds.from_config(config, dtype=torch.float32)
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    if description.get("tie_word_embeddings") is False and head is not None and head.weight is words:
        # transformers 5 ties Flan-T5's head all the same, and unties it only in its own loader
        head.weight = nn.Parameter(torch.empty(words.shape, dtype=words.dtype).copy_(words.detach()))
    if head is not None:
        head.register_forward_pre_hook(_side_by_side)
    return model


def _side_by_side(head: nn.Module, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """States cut out of longer rows, copied: of a frozen head PyTorch would copy the matrix instead, at each call."""
    return tuple(part.reshape(-1).view(part.shape) for part in states)


def texts_of_ids(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of rows of ids, without special tokens and blanks at the ends.

    Tokens of single bytes ("<0xE2>") are put together as sentencepiece does: a byte of no character becomes
    U+FFFD, and those around it keep their meaning.
    """
    if tokenizer.convert_tokens_to_ids("<0x00>") in (None, tokenizer.unk_token_id):
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    out = []
    for row in rows:
        pieces = tokenizer.convert_ids_to_tokens([i for i in row if i not in special])
        encoded = b"".join(
            bytes([int(piece[3:5], 16)]) if _BYTE.fullmatch(piece) else piece.replace("\u2581", " ").encode()
            for piece in pieces
        )
        out.append(_decoded(encoded).strip())
    return out


_BYTE = re.compile("<0x[0-9A-F]{2}>")


def _decoded(encoded: bytes) -> str:
    """UTF-8, of which each byte that belongs to no character becomes U+FFFD."""
    text = ""
    while encoded:
        try:
            return text + encoded.decode()
        except UnicodeDecodeError as e:
            text += encoded[: e.start].decode() + "\ufffd"
            encoded = encoded[e.start + 1 :]
    return text


def language_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in a language model's folder. No code of the folder is executed.

    Raises:
        ImportError: transformers, or a package that it needs for this kind of tokenizer, is not installed.
        OSError: there is none.
    """
    return _transformers().AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
