"""The calls that programs written for the original make of a model's text encoder and decoder, those of transformers'
BERT with `mode` (the original's `med.py`).

`attention_mask` is 1 for tokens; `encoder_hidden_states` are the states that cross-attention reads, of two images a
list. R texts, T tokens, D width, N tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lavis.nn import generation
from lavis.nn.losses import language_modelling_loss
from lavis.nn.outputs import DecoderOutput, EncoderOutput

if TYPE_CHECKING:
    from lavis.nn.language_model import TextDecoder
    from lavis.nn.text import Memory, TextTransformer

SMOOTHING = 0.1  # of labels, in every loss of the original's decoder
_UNUSED = (
    "output_attentions",
    "output_hidden_states",
    "use_cache",
    "token_type_ids",
    "head_mask",
    "return_dict",
)


def encode(
    transformer: TextTransformer,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    *,
    encoder_embeds: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | Sequence[torch.Tensor] | None = None,
    encoder_attention_mask: torch.Tensor | Sequence[torch.Tensor] | None = None,
    is_decoder: bool = False,
    mode: str = "multimodal",
    **unused: Any,
) -> EncoderOutput:
    """States of texts.

    Args:
        input_ids: (R, T). encoder_embeds: states (R, T, D) to go on from, in their place.
        mode: "text" reads no image and ends before the layers that fuse, where there are such; "fusion" is those
            layers; "multimodal" is both.

    Raises:
        ValueError: an unknown mode. TypeError: an argument that has no meaning here.
    """
    _refuse(unused)
    if mode not in ("text", "fusion", "multimodal"):
        raise ValueError(f"mode is {mode!r}; it should be text, fusion or multimodal")
    fusing = transformer.fusion_layer
    states = encoder_embeds
    if states is None:
        if input_ids is None:
            raise ValueError("a text encoder needs input_ids or encoder_embeds")
        states = transformer.embeddings(input_ids)
    memory = None
    if mode != "text" and encoder_hidden_states is not None:
        memory = _memory(transformer, encoder_hidden_states, encoder_attention_mask)
    return EncoderOutput(
        transformer.run(
            states,
            mask=None if attention_mask is None else attention_mask.bool(),
            memory=memory,
            causal=is_decoder,
            first=fusing if mode == "fusion" else 0,
            last=fusing if mode == "text" and fusing else None,
        )
    )


def decode(
    decoder: TextDecoder,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None = None,
    *,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    reduction: str = "mean",
    return_logits: bool = False,
    mode: str = "multimodal",
    **unused: Any,
) -> DecoderOutput | torch.Tensor:
    """Logits (R, T, V) of the next tokens, and with `labels` (R, T) the loss of a language model.

    Args:
        labels: -100 where a place doesn't count. reduction: "mean" over tokens, or "none" for each text's sum.
        return_logits: give the logits alone, without the last place's.
    """
    _refuse(unused)
    if input_ids is None:
        raise ValueError("a text decoder needs input_ids")
    memory = None
    if mode != "text" and encoder_hidden_states is not None:
        memory = _memory(decoder.bert, encoder_hidden_states, encoder_attention_mask)
    logits = decoder(input_ids, mask=None if attention_mask is None else attention_mask.bool(), memory=memory)
    if return_logits:
        return logits[:, :-1]
    loss = None
    if labels is not None:
        loss = language_modelling_loss(logits, labels, smoothing=SMOOTHING, per_text=reduction == "none")
    return DecoderOutput(loss=loss, logits=logits)


def write(
    decoder: TextDecoder,
    tokenized_prompt: Any,
    visual_embeds: torch.Tensor,
    sep_token_id: int,
    pad_token_id: int,
    *args: Any,
    **options: Any,
) -> torch.Tensor:
    """Ids (B, longest) of texts written about images, prompt included.

    Args:
        tokenized_prompt: its `input_ids` (B, T) begin the texts. visual_embeds: (B, N, D) of the images.
        args, options: those of `generation.GenerationOptions`, in its order, which is the original's, or by name.
    """
    chosen = generation.GenerationOptions(*args, **options)
    prompt = tokenized_prompt.input_ids
    longest, _ = chosen.lengths(prompt.shape[1])
    memory = decoder.project_memory(visual_embeds)
    with torch.no_grad():
        decoding = decoder.begin(memory, longest)
        ids = generation.generate(decoding, prompt, chosen, end=sep_token_id, pad=pad_token_id).ids
    used = (ids != pad_token_id).any(dim=0).nonzero()
    return ids[:, : int(used.max()) + 1]


def _memory(transformer: TextTransformer, states: Any, mask: Any) -> Memory:
    """The memory of one image's states, or of two images'."""
    states, masks = (list(v) if isinstance(v, (list, tuple)) else [v] for v in (states, mask))
    first = masks[0]
    return transformer.project_memory(
        states[0],
        None if first is None or bool(first.all()) else first.bool(),
        second=states[1] if len(states) > 1 else None,
    )


def _refuse(arguments: dict[str, Any]) -> None:
    for name in arguments:
        if name not in _UNUSED:
            raise TypeError(f"the text transformer has no argument {name!r}")
    if arguments.get("output_attentions") or arguments.get("output_hidden_states"):
        raise ValueError(
            "attention maps and states of every layer are not returned; put a hook on the layers that you need"
        )
    if arguments.get("return_dict") is False:
        raise ValueError("return_dict is False; outputs have names here: .to_tuple() gives the values")
