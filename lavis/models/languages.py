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


def language_model(description: Mapping[str, Any], **changes: Any) -> Any:
    """The language model that a config.json of transformers describes, with starting weights.

    Args:
        changes: entries of the description to replace.

    Raises:
        ImportError: transformers is not installed.
        ValueError: it describes no language model.
    """
    transformers = _transformers()
    found = {**description, **changes}
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
    model: Any = kinds.from_config(config)
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    if description.get("tie_word_embeddings") is False and head is not None and head.weight is words:
        # transformers 5 ties Flan-T5's head all the same, and unties it only in its own loader
        head.weight = nn.Parameter(torch.empty(words.shape, dtype=words.dtype).copy_(words.detach()))
    return model


def texts_of_ids(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of rows of ids, without special tokens and blanks at the ends.

    Tokens of single bytes ("<0xE2>") are put together as sentencepiece does: a byte of no character becomes
    U+FFFD, and those around it keep their meaning.
    """
    if tokenizer.convert_tokens_to_ids("<0x00>") in (None, tokenizer.unk_token_id):
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    special = set(tokenizer.all_special_ids)
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
