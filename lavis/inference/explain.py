"""Where in a picture each word of a text has its evidence: Grad-CAM on cross-attention (Selvaraju et al. 2017).

What is explained: that a text fits a picture or clip (models with a matching head; ALBEF paper, section 4), each word
of a caption (captioners), an answer by the words of its question (visual question answering), a class by the words of
its text (entailment, statements about two pictures).

W words, T tokens, P pictures (one, two of a pair, a clip's frames), N image tokens of each, g x g patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from lavis.models.base import finite_results
from lavis.models.blip import BlipCaption
from lavis.models.classification import Classifier
from lavis.models.vision_text import VisionTextModel
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import TextTransformer

LEAST_POINTING = 60.0  # percent; maps of packaged models that point more rarely are refused
POINTING = ("blip_caption/tiny_shapes", "albef_retrieval/tiny_shapes")  # small models whose maps are better
_OVERLAY_SIDE = 768  # pixels; a finer overlay of 24 x 24 patches shows nothing more
_FEW_LAYERS = 6  # that read the picture; fewer are looked at together: no single one finds what all find
_COLUMNS = 6  # of a sheet of pairs; a clip's frames are one row, however many
_SIDE = 224  # pixels of a picture on a sheet; half of it for those of a clip


@dataclass(frozen=True)
class Explanation:
    """Heat maps of a text.

    Attributes:
        words: W of them; of a visual question answering model the question's.
        maps: (W, g, g) floats, 0 and above, of one picture or frame; (W, P, g, g) of a pair's two or a clip's frames. A
            word of several pieces has their mean. Larger is more important; only values of one word compare.
        whole: (g, g) or (P, g, g), the mean over words.
        text: what is explained: the text that was given, the caption, the answer, or the class: "true" or "false" of
            a statement about two pictures, "class 0" and so on of others.
        score: what the maps are shares of: the logit of matching or of the class, or the natural logarithm of the
            caption's or answer's probability.
    """

    words: list[str]
    maps: np.ndarray
    whole: np.ndarray
    text: str
    score: float


def explain(
    loaded: Loaded, picture: Any, text: str | None = None, layer: int | None = None, check: bool = True
) -> Explanation:
    """Heat maps of a text's words over a picture, a pair of them, or a clip.

    Args:
        loaded: a model in which words read pictures: with a matching head, a captioner, one that answers questions,
            or a classifier of texts over one picture or two.
        picture: what `Loaded.prepare` takes, a Pillow picture or a clip; for a model of pairs the left and the right
            picture.
        text: the text, the caption (None: the model's own), or the question.
        layer: whose cross-attention is looked at, from 0; None: one that is known to show places well, of small models
            all together. Where layers read left and right pictures in turn (ALBEF), it stands for itself and its
            neighbour.
        check: refuse a packaged model whose maps are known to point elsewhere; only where no layer is chosen.

    Raises:
        ValueError: a model without cross-attention from words to a picture, or whose maps point elsewhere; no text
            where one is needed; no such layer; one picture where two are needed.
    """
    model = loaded.model
    method = next((how for kind, how in _KINDS.items() if isinstance(model, kind)), None)
    # of those that compare, only some match; ALPRO's words don't cross-attend
    if method is None or not getattr(model, "MATCHES", True) or not _crossing(_words_encoder(model)):
        raise ValueError(
            f"{loaded.spec} can't be explained word by word; choose a model with a matching head "
            "(blip_image_text_matching/base, albef_retrieval/coco), a captioner (blip_caption/base_coco), one that "
            "answers questions (blip_vqa/vqav2) or a classifier (albef_classification/ve)"
        )
    if method is not _caption and not (text or "").strip():
        raise ValueError(f"{loaded.spec} needs a text to explain")
    if check and layer is None and loaded.pointing is not None and loaded.pointing < LEAST_POINTING:
        raise ValueError(
            f"the maps of {loaded.spec} are misleading: a word's map peaks inside the object that it names in only "
            f"{loaded.pointing:.0f} of 100 drawings; choose {' or '.join(POINTING)}, or a layer to look at"
        )
    samples = _samples(loaded, picture)
    with loaded.autocast(), finite_results(model, samples):
        return method(model, samples, None if text is None else loaded.txt(text), layer)


def reads_pairs(model: Any) -> bool:
    """Whether a model's texts are about two pictures."""
    return isinstance(model, Classifier) and _words_encoder(model).config.memories != "one"


def overlay(picture: Image.Image, heat: np.ndarray, top: float | None = None) -> Image.Image:
    """A heat map (g, g) laid over a picture, blue to red; at most 768 pixels wide and high.

    Args:
        top: what is all red, where several maps are to be compared; None: the map's own greatest value.
    """
    shown = picture.convert("RGB")
    shown.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    over = getAttMap(np.asarray(shown, dtype=np.float32) / 255, heat, top=top)
    return Image.fromarray((over * 255).round().astype(np.uint8))


def explanation_sheet(
    pictures: Image.Image | Sequence[Image.Image],
    explanation: Explanation,
    words: Sequence[int] | None = None,
) -> Image.Image:
    """A picture with the map of the whole text, then one for each word (or those at the places `words`).

    Args:
        pictures: of a pair or clip both, or its frames: each word has a row of them, and its maps have one range.
            Maps beyond the last of them, which are of padding, are left out.
    """
    several = not isinstance(pictures, Image.Image)
    given = [pictures] if isinstance(pictures, Image.Image) else pictures
    side = _SIDE if len(given) <= 2 else _SIDE // 2
    shown = [_enlarged(p.convert("RGB"), 2 * side) for p in given]
    places = range(len(explanation.words)) if words is None else words
    rows = [("(all words)", explanation.whole)] if words is None else []
    rows += [(explanation.words[i], explanation.maps[i]) for i in places]
    tiles = [
        Tile(overlay(below, heat, heats.max()), [word if i == 0 else ""])
        for word, heats in rows
        for i, (below, heat) in enumerate(zip(shown, heats.reshape(-1, *heats.shape[-2:])))
    ]
    together = min(len(rows), max(1, _COLUMNS // len(shown)))  # words in a row of the sheet
    columns = len(shown) * together if several else None
    return contact_sheet(tiles, columns=columns, side=side)


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    """With its longer side at least `side` pixels, so that a map over it is smooth."""
    scale = side / max(picture.size)
    if scale <= 1:
        return picture
    kind = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), kind)


# ------------------------------------------------------------------------------------------ kinds of models


def _matching(model: Alignment, samples: Samples, text: str, layer: int | None) -> Explanation:
    """Of the logit that the text fits, by the words' rows of the matching encoder."""
    tokens = model.tokens([text], max_length=model.config.max_txt_len)
    with torch.no_grad():
        image_embeds = model.encode_image(samples[model.MEDIA])

    def fits() -> torch.Tensor:
        states = model.encode_text(tokens) if model.FUSES_STATES else None
        return model.match_logits(TextStates(tokens, states), model.memorize(image_embeds))[:, 1]

    # the head reads the first token, so in the last layer no other word has a share
    maps, score = _gradcam(model, layer, fits, last=False)  # (1, T, P, g, g)
    return _explanation(*_of_words(model, text, maps), text, score)


def _classes(model: Classifier, samples: Samples, text: str, layer: int | None) -> Explanation:
    """Of the greatest logit, by the words' rows of the text encoder."""
    found: list[int] = []

    def greatest() -> torch.Tensor:
        out: Any = model.forward({**samples, "text_input": [text]}, is_train=False)
        logits = out["predictions"]  # (1, C)
        found.append(int(logits.argmax()))
        return logits[:, found[-1]]

    maps, score = _gradcam(model, layer, greatest, last=False)
    words, rows = _of_words(model, text, maps)
    named = ("false", "true")[found[-1]] if reads_pairs(model) else f"class {found[-1]}"
    return _explanation(words, rows, named, score)


def _caption(model: BlipCaption, samples: Samples, text: str | None, layer: int | None) -> Explanation:
    """Of each word's log-probability, by the row that predicts it."""
    if text is None:
        room = model.config.max_txt_len - model.prompt_length
        written = model.generate(samples, max_new_tokens=room, min_new_tokens=1)
        assert isinstance(written, list)
        text = written[0].strip()
    if not text:
        raise ValueError("there is no caption to explain; give one")
    start = model.prompt_length
    words, places = _words(model, text, model.config.max_txt_len - start + 1)
    tokens = model.tokenizer.batch(
        [model.prompt + text], max_length=model.config.max_txt_len, device=model.device
    )
    ids = tokens.ids.clone()
    ids[:, 0] = model.bos_id
    # a word's pieces, moved behind the prompt; what predicts a piece is the row before it
    rows = [torch.tensor([p + start - 2 for p in place], device=ids.device) for place in places]
    with torch.no_grad():
        image_embeds = model.forward_encoder(samples)

    def likely() -> torch.Tensor:
        memory = model.text_decoder.project_memory(image_embeds)
        logits = model.text_decoder(ids.expand(len(words), -1), memory=memory)  # (W, T, V)
        logs = logits.float().log_softmax(dim=-1)
        return torch.stack([logs[w, row, ids[0, row + 1]].sum() for w, row in enumerate(rows)])

    maps, score = _gradcam(model, layer, likely)  # (W, T, P, g, g)
    return _explanation(words, [maps[w, row] for w, row in enumerate(rows)], text, score)


def _answer(model: Answering, samples: Samples, question: str, layer: int | None) -> Explanation:
    """Of the answer's log-probability, by the words' rows of the question encoder."""
    samples = {**samples, "text_input": [question]}
    found = Answering.predict_answers(model, samples, inference_method="generate")
    assert isinstance(found, list)
    tokens = model.tokenizer.batch(found, device=model.device)
    tokens.ids[:, 0] = model.bos_id
    labels = tokens.ids.masked_fill(~tokens.mask, IGNORE)

    def likely() -> torch.Tensor:
        states, mask, _ = model.forward_encoder(samples)
        memory = model.text_decoder.project_memory(states, mask)
        logits = model.text_decoder(tokens.ids, mask=tokens.mask, memory=memory)
        return -language_modelling_loss(logits, labels, smoothing=0.0, per_text=True)

    maps, score = _gradcam(model, layer, likely)  # (1, T, P, g, g)
    return _explanation(*_of_words(model, question, maps), found[0].strip(), score)


Samples = Mapping[str, Any]
_KINDS: dict[type, Callable[[Any, Samples, Any, int | None], Explanation]] = {
    Alignment: _matching, BlipCaption: _caption, Answering: _answer, Classifier: _classes
}  # fmt: skip


# ------------------------------------------------------------------------------------------ parts


def _samples(loaded: Loaded, picture: Any) -> dict[str, torch.Tensor]:
    """What the model takes: `image` (1, 3, h, w), `video` (1, 3, P, h, w), or `image0` and `image1`."""
    device = loaded.model.device
    if not reads_pairs(loaded.model):
        return {loaded.sees: loaded.prepare(picture)[None].to(device)}
    if not isinstance(picture, Sequence) or len(picture) != 2:
        raise ValueError(
            f"{loaded.spec} judges statements about two pictures; give the left and the right one"
        )
    return {f"image{i}": loaded.prepare(each)[None].to(device) for i, each in enumerate(picture)}


def _words_encoder(model: Any) -> TextTransformer:
    """What reads the pictures: the text encoder, or a captioner's decoder."""
    found: Any = model.text_decoder if isinstance(model, BlipCaption) else model.text_encoder
    return getattr(found, "bert", found)  # of one with a language-model head


def _crossing(transformer: TextTransformer) -> list[int]:
    return [i for i, each in enumerate(transformer.encoder.layer) if each.crosses]


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


def _of_words(model: VisionTextModel, text: str, maps: torch.Tensor) -> tuple[list[str], list[torch.Tensor]]:
    """Words, and the maps (pieces, P, g, g) of each, from those of tokens (1, T, P, g, g)."""
    words, places = _words(model, text, maps.shape[1])
    return words, [maps[0, place] for place in places]


def _gradcam(
    model: Any, layer: int | None, score: Callable[[], torch.Tensor], last: bool = True
) -> tuple[torch.Tensor, float]:
    """Maps (R, T, P, g, g) of one layer's cross-attention, and the sum of the scores; `last`: it may be the last."""
    transformer = _words_encoder(model)
    crossing = _crossing(transformer)
    together = 2 if transformer.config.memories == "alternate" else 1  # layers
    useful = crossing if last else crossing[:-together]
    if layer is None and len(crossing) < _FEW_LAYERS:
        chosen = useful
    else:
        layer = _best_layer(crossing) if layer is None else layer
        if layer not in useful:
            raise ValueError(
                f"layer {layer} can't be explained by; choose one from {useful[0]} to {useful[-1]}"
            )
        first = layer - (layer - crossing[0]) % together
        chosen = list(range(first, first + together))
    modules = [transformer.encoder.layer[i].crossattention for i in chosen]
    maps, value = gradcam(modules, score)  # type: ignore[arg-type]
    # layers that look at the same picture add up, those of a pair's two lie side by side
    added = [torch.stack(list(maps[i::together])).sum(0) for i in range(together)]
    keys = torch.cat(added, dim=-1).float()  # (R, T, P·N)
    pictures = keys.shape[-1] // model.visual_encoder.pos_embed.shape[1]
    return patch_grid(keys.unflatten(-1, (pictures, -1))), float(value.sum())


def _best_layer(crossing: Sequence[int]) -> int:
    """The layer of a large model whose maps show places best.

    BLIP's notebooks take 7 of its 12 layers, ALBEF's authors 8, the third of six that read the picture.
    """
    return crossing[len(crossing) // 3] if crossing[0] else crossing[len(crossing) * 7 // 12]


def _explanation(words: list[str], maps: Sequence[torch.Tensor], text: str, score: float) -> Explanation:
    """From each word's rows (pieces, P, g, g)."""
    grid = torch.stack([each.mean(dim=0) for each in maps]).cpu().numpy()
    if grid.shape[1] == 1:  # one picture
        grid = grid[:, 0]
    return Explanation(words, grid, grid.mean(axis=0), text, score)
