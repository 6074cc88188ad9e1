"""Where in a picture each word of a text has its evidence: Grad-CAM on cross-attention (Selvaraju et al. 2017).

What is explained: that a text fits a picture (models with a matching head; ALBEF paper, section 4), each word of a
caption (captioners), an answer by the words of its question (visual question answering).

W words, T tokens, N image tokens, g x g patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lavis.common.gradcam import getAttMap, gradcam, patch_grid
from lavis.inference.loading import Loaded
from lavis.inference.sheet import Tile, contact_sheet
from lavis.models.alignment import Alignment, TextStates
from lavis.models.answers import Answering
from lavis.models.blip import BlipCaption
from lavis.models.vision_text import VisionTextModel
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import TextTransformer

_OVERLAY_SIDE = 768  # pixels; a finer overlay of 24 x 24 patches shows nothing more


@dataclass(frozen=True)
class Explanation:
    """Heat maps of a text.

    Attributes:
        words: W of them; of a visual question answering model the question's.
        maps: (W, g, g) floats, 0 and above; a word of several pieces has their mean. Larger is more important;
            only values of one map compare.
        whole: (g, g), the mean over words.
        text: what is explained: the text that was given, the caption, or the answer.
        score: what the maps are shares of: the matching logit, or the natural logarithm of the caption's or answer's
            probability.
    """

    words: list[str]
    maps: np.ndarray
    whole: np.ndarray
    text: str
    score: float


def explain(loaded: Loaded, picture: Any, text: str | None = None, layer: int | None = None) -> Explanation:
    """Heat maps of a text's words over a picture.

    Args:
        loaded: a model with a matching head, a captioner, or one that answers questions.
        picture: a Pillow picture, or what `loaded.vis` made of one.
        text: the text, the caption (None: the model's own), or the question.
        layer: whose cross-attention is looked at, from 0; None: one that is known to show places well.

    Raises:
        ValueError: a model without cross-attention from words to a picture; no text where one is needed; no such layer.
    """
    model = loaded.model
    tensor = picture if isinstance(picture, torch.Tensor) else loaded.vis(picture)
    image = tensor[None].to(model.device)
    if loaded.sees == "image" and isinstance(model, Alignment | Answering) and not (text or "").strip():
        raise ValueError(f"{loaded.spec} needs a text to explain")
    with loaded.autocast():
        if loaded.sees == "image" and isinstance(model, Alignment) and model.MATCHES:
            return _matching(model, image, loaded.txt(str(text)), layer)
        if loaded.sees == "image" and isinstance(model, BlipCaption):
            return _caption(model, image, None if text is None else loaded.txt(text), layer)
        if loaded.sees == "image" and isinstance(model, Answering):
            return _answer(model, image, loaded.txt(str(text)), layer)
    raise ValueError(
        f"{loaded.spec} can't be explained word by word; choose a model with a matching head "
        "(blip_image_text_matching/base, albef_retrieval/coco), a captioner (blip_caption/base_coco) or one that "
        "answers questions (blip_vqa/vqav2)"
    )


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """A heat map (g, g) laid over a picture, blue to red; at most 768 pixels wide and high."""
    shown = picture.convert("RGB")
    shown.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    over = getAttMap(np.asarray(shown, dtype=np.float32) / 255, heat)
    return Image.fromarray((over * 255).round().astype(np.uint8))


def explanation_sheet(
    picture: Image.Image, explanation: Explanation, words: Sequence[int] | None = None, side: int = 224
) -> Image.Image:
    """One picture with the map of the whole text, then one for each word (or those at the places `words`)."""
    shown = picture.convert("RGB")
    scale = 2 * side / max(shown.size)
    if scale > 1:  # so that the map is smooth over a small picture
        size = (round(shown.width * scale), round(shown.height * scale))
        shown = shown.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC)
    places = range(len(explanation.words)) if words is None else words
    tiles = [Tile(overlay(shown, explanation.whole), ["(all words)"])] if words is None else []
    tiles += [Tile(overlay(shown, explanation.maps[i]), [explanation.words[i]]) for i in places]
    return contact_sheet(tiles, side=side)


# ------------------------------------------------------------------------------------------ kinds of models


def _matching(model: Alignment, image: torch.Tensor, text: str, layer: int | None) -> Explanation:
    """Of the logit that the text fits, by the words' rows of the matching encoder."""
    encoder: Any = model.text_encoder
    encoder = getattr(encoder, "bert", encoder)  # of ALBEF's with a language-model head
    words, places = _words(model, text, model.config.max_txt_len)
    tokens = model.tokens([text], max_length=model.config.max_txt_len)
    with torch.no_grad():
        image_embeds = model.encode_image(image)

    def fits() -> torch.Tensor:
        states = model.encode_text(tokens) if model.FUSES_STATES else None
        return model.match_logits(TextStates(tokens, states), model.memorize(image_embeds))[:, 1]

    # the head reads the first token, so in the last layer no other word has a share
    maps, score = _gradcam(encoder, layer, fits, last=False)  # (1, T, N)
    return _explanation(words, [maps[0, place] for place in places], text, score)


def _caption(model: BlipCaption, image: torch.Tensor, text: str | None, layer: int | None) -> Explanation:
    """Of each word's log-probability, by the row that predicts it."""
    if text is None:
        room = model.config.max_txt_len - model.prompt_length
        written = model.generate({"image": image}, max_new_tokens=room, min_new_tokens=1)
        assert isinstance(written, list)
        text = written[0].strip()
    if not text:
        raise ValueError("there is no caption to explain; give one")
    start = model.prompt_length
    words, places = _words(model, text, model.config.max_txt_len - start + 1)
    tokens = model.tokenizer([model.prompt + text], max_length=model.config.max_txt_len, device=model.device)
    ids = tokens.ids.clone()
    ids[:, 0] = model.bos_id
    # a word's pieces, moved behind the prompt; what predicts a piece is the row before it
    rows = [torch.tensor([p + start - 2 for p in place], device=ids.device) for place in places]
    with torch.no_grad():
        image_embeds = model.visual_encoder(image)

    def likely() -> torch.Tensor:
        memory = model.text_decoder.project_memory(image_embeds)
        logits = model.text_decoder(ids.expand(len(words), -1), memory=memory)  # (W, T, V)
        logs = logits.float().log_softmax(dim=-1)
        return torch.stack([logs[w, row, ids[0, row + 1]].sum() for w, row in enumerate(rows)])

    maps, score = _gradcam(model.text_decoder.bert, layer, likely)  # (W, T, N)
    return _explanation(words, [maps[w, row] for w, row in enumerate(rows)], text, score)


def _answer(model: Answering, image: torch.Tensor, question: str, layer: int | None) -> Explanation:
    """Of the answer's log-probability, by the words' rows of the question encoder."""
    samples = {"image": image, "text_input": [question]}
    found = Answering.predict_answers(model, samples, inference_method="generate")
    assert isinstance(found, list)
    words, places = _words(model, question, model.config.max_txt_len)
    tokens = model.tokenizer(found, device=model.device)
    tokens.ids[:, 0] = model.bos_id
    labels = tokens.ids.masked_fill(~tokens.mask, IGNORE)

    def likely() -> torch.Tensor:
        states, mask, _ = model.forward_encoder(samples)
        memory = model.text_decoder.project_memory(states, mask)
        logits = model.text_decoder(tokens.ids, mask=tokens.mask, memory=memory)
        return -language_modelling_loss(logits, labels, smoothing=0.0, per_text=True)

    maps, score = _gradcam(model.text_encoder, layer, likely)  # (1, T, N)
    return _explanation(words, [maps[0, place] for place in places], found[0].strip(), score)


# ------------------------------------------------------------------------------------------ parts


def _words(model: VisionTextModel, text: str, longest: int) -> tuple[list[str], list[list[int]]]:
    """Words between spaces, and the places of their pieces after a first token; what is cut off is left out."""
    words, places, at = [], [], 1
    for word in text.split():
        count = len(model.tokenizer.encode(word)) - 2
        place = [i for i in range(at, at + count) if i < longest - 1]
        at += count
        if place:
            words.append(word)
            places.append(place)
    if not words:
        raise ValueError(f"there is no word to explain in {text!r}")
    return words, places


def _gradcam(
    transformer: TextTransformer, layer: int | None, score: Callable[[], torch.Tensor], last: bool = True
) -> tuple[torch.Tensor, float]:
    """Maps (R, T, N) of one layer's cross-attention, and the sum of the scores; `last`: it may be the last."""
    crossing = [i for i, each in enumerate(transformer.encoder.layer) if each.crosses]
    if layer is None:
        layer = _best_layer(crossing)
    useful = crossing if last else crossing[:-1]
    if layer not in useful:
        raise ValueError(f"layer {layer} can't be explained by; choose one from {useful[0]} to {useful[-1]}")
    (maps,), value = gradcam([transformer.encoder.layer[layer].crossattention], score)  # type: ignore[list-item]
    return maps.float(), float(value.sum())


def _best_layer(crossing: Sequence[int]) -> int:
    """The layer whose maps show places best.

    BLIP's notebooks take 7 of its 12 layers, ALBEF's authors 8, the third of six that read the picture.
    """
    return crossing[len(crossing) // 3] if crossing[0] else crossing[len(crossing) * 7 // 12]


def _explanation(words: list[str], maps: Sequence[torch.Tensor], text: str, score: float) -> Explanation:
    """From each word's rows (pieces, N)."""
    grid = patch_grid(torch.stack([each.mean(dim=0) for each in maps])).cpu().numpy()
    return Explanation(words, grid, grid.mean(axis=0), text, score)
