"""Starting weights from other models: an image encoder from DeiT, a text transformer or a Q-Former from BERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lavis.models import checkpoints
from lavis.models.base import locate
from lavis.models.tokenizer import ASSETS
from lavis.nn.language_model import LanguageModel
from lavis.nn.qformer import QFormer
from lavis.nn.text import TextTransformer
from lavis.nn.timesformer import TimeSformer
from lavis.nn.vit import VisionTransformer, interpolate_positions

# Both Apache-2.0. DeiT-B/16 at 224 px; BERT base, uncased.
STARTING_WEIGHTS = {
    "deit": "https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
    "bert": "google-bert/bert-base-uncased:model.safetensors",
    "tiny_shapes": str(ASSETS / "tiny_shapes"),  # the packaged captioner
    "tiny_shapes_vqa": str(ASSETS / "blip_vqa_shapes"),  # the packaged model for questions about drawings
}
_ABLE = (LanguageModel, TextTransformer, VisionTransformer, TimeSformer)


def start_from(model: Any, init: Mapping[str, str]) -> None:
    """Start modules of a model from other models' weights; cross-attention stays fresh where those have none.

    A video encoder takes an image encoder's; its attention over time begins as a copy of that over places, without
    effect until it is trained, as in the code published with TimeSformer (Bertasius et al. 2021).

    Args:
        init: {"visual_encoder": source, "text_encoder": source, "text_decoder": source}, of a Q-Former {"Qformer":
            source}; a source is "deit",
            "bert", "tiny_shapes" or "tiny_shapes_vqa" (`STARTING_WEIGHTS`), or a path, URL or Hugging Face id of
            such a file, or of a model of this library, of which the same module is taken.

    Raises:
        ValueError: the model has no such module, or the file's weights don't fit it.
    """
    for name, source in init.items():
        module = getattr(model, name, None)
        if not isinstance(module, _ABLE):
            able = [n for n, m in model.named_children() if isinstance(m, _ABLE) and not n.endswith("_m")]
            raise ValueError(
                f"model.init.{name}: {model.registered_name} can start {', '.join(able)} from a file"
            )
        state = checkpoints.read_state_dict(locate(STARTING_WEIGHTS.get(source, source)))
        state = checkpoints.part_of(state, name)
        rules = _rules(module)
        target = module.model if isinstance(module, TimeSformer) else module
        checkpoints.load_into(target, state, rules, f"model.init.{name} {source}")
    tie = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()


def _rules(module: Any) -> checkpoints.Rules:
    """How a file is read into a module."""
    if isinstance(module, QFormer):
        # queries' feed-forward parts begin as those of text, as in the original
        copy = (*checkpoints.BERT_LANGUAGE_MODEL.copy, (r"^(.*)_query\.", r"\1."))
        return replace(checkpoints.BERT_LANGUAGE_MODEL, copy=copy)
    if isinstance(module, LanguageModel):
        return checkpoints.BERT_LANGUAGE_MODEL
    if isinstance(module, TextTransformer):
        return checkpoints.BERT_ENCODER
    resize = {"pos_embed": lambda t, shape: interpolate_positions(t, shape[1])}
    rules = replace(checkpoints.DEIT, resize=resize)
    if isinstance(module, TimeSformer):
        return replace(rules, copy=checkpoints.SPACE_TO_TIME, fresh=("time_embed", "*.temporal_fc.*"))
    return rules
