"""What models return. One set of classes for all families: `.keys()` names only the fields that are set.

B pictures (or clips), G texts per picture, R = B·G texts, T tokens, N image tokens, D width, V vocabulary,
C classes, E width of a projected feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lavis.nn.ema import NewFeatures
from lavis.nn.outputs import DecoderOutput as DecoderOutput
from lavis.nn.outputs import EncoderOutput as EncoderOutput
from lavis.nn.outputs import Output


@dataclass(frozen=True)
class Similarity(Output):
    """Similarities over the temperature, images to texts and back, and what they should be.

    `*_m` are the EMA's, `*_targets` the distributions that the loss compares with; columns are the
    batch of all ranks, then the queue. `sim_i2t` and `sim_t2i` of retrieval are within the batch only.
    """

    sim_i2t: torch.Tensor | None = None
    sim_t2i: torch.Tensor | None = None
    sim_i2t_m: torch.Tensor | None = None
    sim_t2i_m: torch.Tensor | None = None
    sim_i2t_targets: torch.Tensor | None = None
    sim_t2i_targets: torch.Tensor | None = None


@dataclass(frozen=True)
class IntermediateOutput(Output):
    """States on the way.

    video_embeds of a clip, or image_embeds (B, N, D), or two pictures' (2, B, N, D); text_embeds (R, T, D);
    encoder_output and encoder_output_neg: fused states of right and of wrong pairs; `*_m` the EMA's;
    itm_logits (3B, 2) and itm_labels (3B,), of clips vtm_logits and vtm_labels: right pairs, texts with a wrong
    picture, pictures with a wrong text; decoder_output, decoder_labels (texts, T); new_features: what the queue is
    to take, `after_step` puts it there.
    """

    video_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds_m: torch.Tensor | None = None
    text_embeds_m: torch.Tensor | None = None
    encoder_output: EncoderOutput | None = None
    encoder_output_m: EncoderOutput | None = None
    encoder_output_neg: EncoderOutput | None = None
    itm_logits: torch.Tensor | None = None
    itm_labels: torch.Tensor | None = None
    vtm_logits: torch.Tensor | None = None
    vtm_labels: torch.Tensor | None = None
    decoder_output: DecoderOutput | None = None
    decoder_labels: torch.Tensor | None = None
    new_features: NewFeatures | None = None


@dataclass(frozen=True)
class LossOutput(Output):
    """What `forward` returns: `loss`, its parts (nats), and the states on the way."""

    sims: Similarity | None = None
    intermediate_output: IntermediateOutput | None = None
    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    loss_lm: torch.Tensor | None = None
    loss_mlm: torch.Tensor | None = None
    loss_vtc: torch.Tensor | None = None
    loss_vtm: torch.Tensor | None = None


@dataclass(frozen=True)
class OutputWithLogits(Output):
    """What `forward` of a classifier returns: the loss, logits (R, C), the EMA's logits."""

    intermediate_output: IntermediateOutput | None = None
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    logits_m: torch.Tensor | None = None


@dataclass(frozen=True)
class Features(Output):
    """What `extract_features` returns: states (B, N, D), (R, T, D) and projections of length 1 (…, E)."""

    image_embeds: torch.Tensor | None = None
    image_embeds_proj: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    text_embeds_proj: torch.Tensor | None = None
    multimodal_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    video_embeds_proj: torch.Tensor | None = None


@dataclass(frozen=True)
class Texts:
    """Generated texts or answers with their confidence, in the order of the pictures.

    texts: strings. logprobs: natural logarithm of each text's probability by the model itself, whatever rules of
    length or repetition chose it; of ranked answers minus the smoothed loss. scores: what they were ranked by (beam
    search and sampling: logprob per token, in beam search with the repetition penalty; ranked answers: probability
    among the candidates).
    """

    texts: list[str]
    logprobs: list[float]
    scores: list[float]


@dataclass(frozen=True)
class Matched:
    """Every image with every text.

    Attributes:
        logits: (B, n, 2), log-odds of "does not fit" and "fits".
        images, texts: their vectors in the common space, (B, E) and (n, E); (B, Q, E) of images that have several.
    """

    logits: torch.Tensor
    images: torch.Tensor
    texts: torch.Tensor


@dataclass(frozen=True)
class Explanation:
    """Heat maps of a text.

    Attributes:
        words: W of them; of a question its own, whatever the answer.
        maps: (W, g, g) floats, 0 and above, of one image; (W, P, g, g) of a pair's two or a video's P frames. A word of
            several tokens has their mean. Larger is more important; only values of one word compare.
        whole: (g, g) or (P, g, g), the mean over words.
        text: what is explained: the text that was given, the caption, the answer, or the class: "true" or "false" of
            a statement about two images, "class 0" and so on of others.
        score: what the maps are shares of: the logit of matching or of the class, or the natural logarithm of the
            caption's or answer's probability.
    """

    words: list[str]
    maps: np.ndarray
    whole: np.ndarray
    text: str
    score: float
