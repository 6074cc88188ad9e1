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
from lavis.nn.outputs import DecoderOutput, EncoderOutput, QueryOutput

if TYPE_CHECKING:
    from lavis.nn.language_model import TextDecoder
    from lavis.nn.qformer import QFormer, QueryTransformer
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
    return _predicted(logits, labels, reduction, return_logits)


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


def read_queries(
    transformer: QueryTransformer,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    *,
    query_embeds: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool = False,
    is_decoder: bool = False,
    output_attentions: bool = False,
    **unused: Any,
) -> QueryOutput:
    """States of queries and texts, the call of a Q-Former's `bert`.

    Args:
        input_ids: (R, T). attention_mask: (R, Q + T) of queries and text, or (R, T) of a text alone.
        query_embeds: (R or 1, Q, D).
        encoder_hidden_states: (B, N, D), R a multiple of B.
        past_key_values: those of queries, which a text comes after. use_cache: whether to give them.
        is_decoder: whether a token of the text sees only itself and earlier ones.

    Raises:
        ValueError: nothing to read, or a mask of another length. TypeError: an argument that has no meaning here.
    """
    from lavis.nn.qformer import Prefix

    _refuse(unused)
    if input_ids is None and query_embeds is None:
        raise ValueError("a Q-Former needs input_ids, query_embeds, or both")
    before = 0 if past_key_values is None else past_key_values.length
    queries = before + (0 if query_embeds is None else query_embeds.shape[1])
    mask = None
    if attention_mask is not None:
        length = queries + (0 if input_ids is None else input_ids.shape[1])
        if attention_mask.ndim != 2 or attention_mask.shape[1] != length:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; (R, {length}) was expected, for {queries} "
                "queries and the text"
            )
        if not bool(attention_mask[:, :queries].all()):
            raise ValueError("attention_mask hides queries; every query is read here")
        mask = None if input_ids is None else attention_mask[:, queries:].bool()
    memory = None
    if encoder_hidden_states is not None:
        memory = _memory(transformer, encoder_hidden_states, encoder_attention_mask)
    cache = Prefix() if use_cache and past_key_values is None else past_key_values
    layers: list[Any] = list(transformer.encoder.layer)
    reading = [layer.attention for layer in layers]
    looking = [getattr(layer, "crossattention", None) for layer in layers]
    readers = [reader for reader in (*reading, *looking) if reader is not None] if output_attentions else []
    for reader in readers:
        reader.kept = []
    try:
        states = transformer(
            input_ids, queries=query_embeds, mask=mask, memory=memory, causal=is_decoder, cache=cache
        )
        # a layer that looked at nothing has kept nothing
        kept = {id(reader): reader.kept[-1] for reader in readers if reader.kept}
    finally:
        for reader in readers:
            reader.kept = None
    if past_key_values is not None:
        past_key_values.length = before  # other texts may come after the same queries
    return QueryOutput(
        last_hidden_state=states,
        past_key_values=cache if use_cache else None,
        attentions=tuple(kept[id(reader)] for reader in reading) if output_attentions else None,
        cross_attentions=tuple(kept.get(id(reader)) for reader in looking) if output_attentions else None,
    )


def write_after_queries(
    former: QFormer,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    labels: torch.Tensor | None = None,
    reduction: str = "mean",
    return_logits: bool = False,
    is_decoder: bool = True,
    **given: Any,
) -> DecoderOutput | torch.Tensor:
    """Logits (R, T, V) of the next tokens of texts, and with `labels` (R, T) the loss of a language model; the call
    of a Q-Former with its head. The rest as in `decode` and `read_queries`."""
    found = read_queries(former.bert, input_ids, attention_mask, is_decoder=is_decoder, **given)
    assert found.last_hidden_state is not None
    logits = former.cls(found.last_hidden_state[:, -input_ids.shape[1] :])
    return _predicted(logits, labels, reduction, return_logits)


def _predicted(
    logits: torch.Tensor, labels: torch.Tensor | None, reduction: str, return_logits: bool
) -> DecoderOutput | torch.Tensor:
    """What `decode` and `write_after_queries` give of logits (R, T, V)."""
    if return_logits:
        return logits[:, :-1]
    loss = None
    if labels is not None:
        loss = language_modelling_loss(logits, labels, smoothing=SMOOTHING, per_text=reduction == "none")
    return DecoderOutput(loss=loss, logits=logits)


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
