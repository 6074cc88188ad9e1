"""BLIP-2 and InstructBLIP written as folders of transformers, with what its processors need, so that
`AutoProcessor.from_pretrained` and the class's own work offline."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from lavis.common.files import write_json
from lavis.models.blip2_folders import (
    IMAGE_TOKEN,
    INSIDE,
    INSTRUCTED,
    LANGUAGE_ROWS,
    RETRIEVES,
    ROWS,
    starts,
)
from lavis.models.checkpoints import WEIGHTS_NAME, StateDict, write_state_dict
from lavis.models.folders import CONFIG_NAME
from lavis.models.languages import language_tokenizer
from lavis.processors.image import MEAN, STD

# what transformers' classes have no place for: the head that writes, the temperature, numbers that are no weights
_LEFT_OUT = re.compile(r"Qformer\.cls\.|temp$|.*\.position_ids$")


def write(model: Any, folder: Path) -> list[str]:
    """Write config.json, model.safetensors and the tokenizers of a model without adapters.

    Returns:
        The names of the entries that transformers has no place for, such as the head that writes of the first stage.

    Raises:
        ValueError: transformers has no class for this model.
    """
    architecture, kind = model.TRANSFORMERS
    _check(model)
    folder.mkdir(parents=True, exist_ok=True)
    state, config = _entries(model), _description(model)
    queries: int | None = model.config.num_query_token
    if kind:
        tokenizer = language_tokenizer(model.language_source)
        if kind == "llama":
            _begin_with_end(tokenizer)
        if kind == "opt":  # which goes on where its prompt ends; Llama's tokenizers pad there by themselves
            tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        tokenizer.add_tokens([_added(IMAGE_TOKEN)], special_tokens=True)
        tokenizer.save_pretrained(str(folder))
        config["image_token_index"] = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        _with_rows_for(config, state)
    else:
        queries = None  # its texts have no image tokens before them
        _write_bert(model, folder)
    if architecture == INSTRUCTED:
        _write_bert(model, folder / "qformer_tokenizer")
    processor = "InstructBlipProcessor" if architecture == INSTRUCTED else "Blip2Processor"
    size = model.config.image_size
    images = {
        "image_processor_type": "BlipImageProcessor", "processor_class": processor, "do_convert_rgb": True,
        "do_resize": True, "size": {"height": size, "width": size}, "resample": 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(MEAN), "image_std": list(STD),
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", images)
    write_json(folder / "processor_config.json", {"processor_class": processor, "num_query_tokens": queries})
    write_json(folder / CONFIG_NAME, config)
    write_state_dict(state, folder / WEIGHTS_NAME)
    return [key for key in model.state_dict() if _LEFT_OUT.match(key)]


def _check(model: Any) -> None:
    vit, text = model.config.vit, model.config.text
    if vit.pre_norm or vit.final_norm or not vit.class_token or vit.pooling != "none":
        raise ValueError(
            "transformers' BLIP-2 has EVA's image encoder only; this model's is another one, such as CLIP's"
        )
    if text.memories != "one" or text.cross_from or text.token_types:
        raise ValueError("transformers' Q-Former has other layers than this model's")


def _entries(model: Any) -> StateDict:
    """The model's entries under transformers' names."""
    architecture, kind = model.TRANSFORMERS
    names = starts(architecture, *((model.LANGUAGE, model.PROJECTION) if kind else ("", "")))
    out = {}
    for key, tensor in model.state_dict().items():
        if _LEFT_OUT.match(key):
            continue
        for where, theirs, ours in INSIDE:
            key = key.replace(ours, theirs) if key.startswith(where) else key
        old, new = next((old, new) for old, new in names if key.startswith(new))
        out[old + key.removeprefix(new)] = tensor.detach()
    return out


def _description(model: Any) -> dict[str, Any]:
    """config.json"""
    (architecture, kind), config = model.TRANSFORMERS, model.config
    instruct = architecture == INSTRUCTED
    prefix = "instructblip" if instruct else "blip_2"
    vit, text = config.vit, config.text
    found: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "instructblip" if instruct else "blip-2",
        "num_query_tokens": config.num_query_token,
        "image_token_index": None,
        "torch_dtype": str(model.query_tokens.dtype).removeprefix("torch."),
        "vision_config": {
            "model_type": f"{prefix}_vision_model", "hidden_size": vit.width,
            "intermediate_size": int(vit.width * vit.mlp_ratio), "num_hidden_layers": vit.depth,
            "num_attention_heads": vit.heads, "image_size": config.image_size, "patch_size": vit.patch_size,
            "hidden_act": vit.activation, "layer_norm_eps": vit.layer_norm_eps, "qkv_bias": True,
        },
        "qformer_config": {
            "model_type": f"{prefix}_qformer", "vocab_size": text.vocab_size, "hidden_size": text.width,
            "num_hidden_layers": text.depth, "num_attention_heads": text.heads, "intermediate_size": text.hidden,
            "hidden_act": "gelu", "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.attention_dropout, "max_position_embeddings": text.max_positions,
            "layer_norm_eps": text.layer_norm_eps, "cross_attention_frequency": text.cross_every,
            "encoder_hidden_size": vit.width,
        },
    }  # fmt: skip
    if not instruct:
        found["qformer_config"]["use_qformer_text_input"] = architecture == RETRIEVES
    if kind:
        found["text_config"] = {**dict(config.language), "vocab_size": _rows_of(model)}
        found["use_decoder_only_language_model"] = not model.ENCODES
    else:
        found["image_text_hidden_size"] = config.embed_dim
    return found


def _rows_of(model: Any) -> int:
    return int(model.language.get_input_embeddings().weight.shape[0])


def _with_rows_for(config: dict[str, Any], state: StateDict) -> None:
    """Add rows to the language model's vocabulary up to the image token's, where it has none.

    Nothing reads them. So that nothing writes them either, they are copies of padding's, which no text was trained to
    hold. config.json says how many rows there were, and reading takes these only.
    """
    text, wanted = config["text_config"], config["image_token_index"] + 1
    rows = text["vocab_size"]
    if wanted <= rows:
        return
    config[LANGUAGE_ROWS], text["vocab_size"] = rows, wanted
    padding = text.get("pad_token_id") or 0
    grown: dict[int, torch.Tensor] = {}  # of entries that are one
    for name in ROWS:
        key = f"language_model.{name}"
        if key in state:
            old = state[key]
            if old.data_ptr() not in grown:
                grown[old.data_ptr()] = torch.cat([old, old[padding].expand(wanted - rows, -1)])
            state[key] = grown[old.data_ptr()]


def _begin_with_end(tokenizer: Any) -> None:
    """Let texts begin with the end token, as the original made Vicuna read them, and be padded."""
    tokenizer.bos_token, tokenizer.add_bos_token = tokenizer.eos_token, True
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token
    tokenizer.update_post_processor()


def _added(token: str) -> Any:
    from tokenizers import AddedToken

    return AddedToken(token, normalized=False, special=True)


def _write_bert(model: Any, folder: Path) -> None:
    """The files of a BERT tokenizer of transformers with the token that begins a written text."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(model.tokenizer.vocabulary, folder / "vocab.txt")
    token = {
        "content": "[DEC]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
        "special": True,
    }  # fmt: skip
    config = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, "bos_token": "[DEC]",
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
        "truncation_side": "left" if folder.name == "qformer_tokenizer" else "right",
        "added_tokens_decoder": {str(model.tokenizer.id("[DEC]")): token},
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "added_tokens.json", {"[DEC]": model.tokenizer.id("[DEC]")})
