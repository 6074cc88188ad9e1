"""Small random models of transformers' BLIP-2 and InstructBLIP, and folders of them as they are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertTokenizer

from lavis.models.tokenizer import BERT_VOCABULARY
from tests.helpers import blip2_reference as reference

KINDS = {  # ours: (transformers' class, the manifest that has its language model's sizes and tokenizer)
    "blip2_image_text_matching": ("Blip2ForImageTextRetrieval", None),
    "blip2_opt": ("Blip2ForConditionalGeneration", "opt"),
    "blip2_t5": ("Blip2ForConditionalGeneration", "t5"),
    "blip2_t5_instruct": ("InstructBlipForConditionalGeneration", "t5_instruct"),
    "blip2_vicuna_instruct": ("InstructBlipForConditionalGeneration", "vicuna_instruct"),
}
IMAGE, PATCH, QUERIES = 56, 14, 8
VISION = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": IMAGE,
    "patch_size": PATCH,
}  # fmt: skip
QFORMER = {
    "vocab_size": 30523, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96,
    "encoder_hidden_size": 64,
}  # fmt: skip


def peer(name: str, seed: int = 0, spread: float = 0.15) -> Any:
    """A random model of transformers, whose language model's vocabulary has a row for the image token."""
    kind, manifest = KINDS[name]
    instruct = kind.startswith("Instruct")
    config: dict[str, Any] = {"vision_config": dict(VISION), "qformer_config": dict(QFORMER)}
    if manifest is None:
        config["qformer_config"]["use_qformer_text_input"] = True
        config |= {"num_query_tokens": QUERIES, "image_text_hidden_size": 32, "image_token_index": None}
    else:
        described = reference.manifest(manifest)
        text = {"model_type": described["tokenizer"], **described["llm"]}
        text["vocab_size"] = max(text["vocab_size"], len(language_tokenizer(name)))
        config |= {
            "text_config": text, "num_query_tokens": QUERIES, "image_token_index": len(language_tokenizer(name)) - 1,
        }  # fmt: skip
    torch.manual_seed(seed)
    configured = getattr(transformers, "InstructBlipConfig" if instruct else "Blip2Config")(**config)
    model = getattr(transformers, kind)(configured)
    for parameter in model.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    for block in model.vision_model.encoder.layers:  # what the original has not
        block.self_attn.qkv.bias.data.view(3, -1)[1] = 0
    return model.eval()


def language_tokenizer(name: str) -> Any:
    """The language model's tokenizer with the image token last."""
    described = reference.manifest(KINDS[name][1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        reference.REFERENCE / "tokenizers" / described["tokenizer"]
    )
    tokenizer.add_tokens(
        [transformers.AddedToken("<image>", normalized=False, special=True)], special_tokens=True
    )
    return tokenizer


def bert_tokenizer(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(BERT_VOCABULARY, folder / "vocab.txt")
    tokenizer = BertTokenizer.from_pretrained(str(folder), truncation_side="left")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    (folder / "vocab.txt").unlink()
    return tokenizer


def save(model: Any, name: str, folder: Path, **options: Any) -> Path:
    """A folder as transformers publishes it: weights, config.json, tokenizers."""
    model.save_pretrained(folder, **options)
    if KINDS[name][1] is None:
        bert_tokenizer(folder).save_pretrained(folder)
        return folder
    language_tokenizer(name).save_pretrained(folder)
    if "instruct" in name:
        bert_tokenizer(folder / "qformer_tokenizer").save_pretrained(folder / "qformer_tokenizer")
    description = json.loads((folder / "config.json").read_text())
    assert description["num_query_tokens"] == QUERIES
    return folder
