"""Where in an image each word of a text has its evidence: Grad-CAM on cross-attention (Selvaraju et al. 2017), for
models whose text transformer reads the image.

W words, T tokens, R rows of text, P images (one, two of a pair, a video's frames), N image tokens of each, g x g
patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lavis.common.gradcam import gradcam, patch_grid
from lavis.models.outputs import Explanation
from lavis.models.tokenizer import Tokens
from lavis.nn.text import TextTransformer

_FEW_LAYERS = 6  # that read the image; fewer are looked at together: no single one finds what all find


def explained_text(
    model: Any,
    text: str,
    layer: int | None,
    score: Callable[[], torch.Tensor],
    said: Callable[[], str],
    last: bool = False,
) -> Explanation:
    """Maps of a text's words by the rows of the model's text encoder.

    Args:
        model: has `text_encoder`, `visual_encoder` and `tokenizer`.
        text: what the encoder reads in `score`.
        layer: whose cross-attention is looked at; None: see `maps_of`.
        score: computes what is explained, (1,), by a forward pass.
        said: `Explanation.text`, asked after it.
        last: whether the last layer counts: a head that reads the first token leaves the others no share in it.
    """
    maps, value = maps_of(model, encoder_of(model.text_encoder), layer, score, last)  # (1, T, P, g, g)
    words, places = words_of(model.tokenizer, text, maps.shape[1])
    return explanation(words, [maps[0, place] for place in places], said(), value)


def encoder_of(module: Any) -> TextTransformer:
    """The transformer of a text encoder or decoder, which may have a language-model head."""
    found: TextTransformer = getattr(module, "bert", module)
    return found


def maps_of(
    model: Any,
    transformer: TextTransformer,
    layer: int | None,
    score: Callable[[], torch.Tensor],
    last: bool = True,
) -> tuple[torch.Tensor, float]:
    """Maps of one layer's cross-attention.

    Args:
        transformer: what reads the image.
        layer: from 0; None: one that is known to show places well, of small models all together. Where layers read the
            left and the right image in turn, it stands for itself and its neighbour.
        score: computes what is explained, by a forward pass; of several, their sum.
        last: whether the last layer may be looked at.

    Returns:
        (R, T, P, g, g), and the score.

    Raises:
        ValueError: there is no such layer.
    """
    crossing = [i for i, each in enumerate(transformer.encoder.layer) if each.crosses]
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
    # layers that look at the same image add up, those of a pair's two lie side by side
    added = [torch.stack(list(maps[i::together])).sum(0) for i in range(together)]
    keys = torch.cat(added, dim=-1).float()  # (R, T, P·N)
    images = keys.shape[-1] // model.visual_encoder.pos_embed.shape[1]
    return patch_grid(keys.unflatten(-1, (images, -1))), float(value.sum())


def _best_layer(crossing: Sequence[int]) -> int:
    """The layer of a large model whose maps show places best.

    BLIP's notebooks take 7 of its 12 layers, ALBEF's authors 8, the third of six that read the image.
    """
    return crossing[len(crossing) // 3] if crossing[0] else crossing[len(crossing) * 7 // 12]


def explained_by_queries(
    model: Any,
    transformer: TextTransformer,
    text: str,
    tokens: Tokens,
    layer: int | None,
    score: Callable[[Tokens], torch.Tensor],
) -> Explanation:
    """Maps of a text's words where queries read the image, and words only the queries (a Q-Former).

    Every word changes what all queries look at, so that attention alone does not tell which of it is whose. Each word's
    map is therefore that of the text in which only this word is read (between the first token and the last): Grad-CAM
    on the queries' cross-attention, summed over them and over the layers that have one.

    Args:
        model: has a `tokenizer`.
        transformer: its queries' and text's.
        tokens: of the text, (1, T).
        layer: whose cross-attention is looked at; None: all of them.
        score: of rows of tokens what is explained, (R,), by a forward pass.

    Raises:
        ValueError: no cross-attention in this layer; no word to explain.
    """
    crossing = [i for i, each in enumerate(transformer.encoder.layer) if each.crosses]
    if layer is not None and layer not in crossing:
        named = ", ".join(map(str, crossing))
        raise ValueError(f"layer {layer} does not read the image; choose one of {named}")
    words, places = words_of(model.tokenizer, text, tokens.ids.shape[1])
    seen = tokens.mask.repeat(1 + len(words), 1)  # the whole text, then each word by itself
    seen[1:, 1:-1] = False
    for row, place in enumerate(places, start=1):
        seen[row, place] = True
    rows = Tokens(tokens.ids.expand(len(seen), -1), seen)
    chosen = crossing if layer is None else [layer]
    modules = [transformer.encoder.layer[i].crossattention for i in chosen]
    maps, value = gradcam(modules, lambda: score(rows))  # type: ignore[arg-type]
    heat = torch.stack(maps).float().sum(dim=(0, 2))[1:]  # (W, N), of layers (1 + W, Q, N)
    return explanation(words, list(patch_grid(heat)[:, None, None]), text, float(value[0]))


def words_of(tokenizer: Any, text: str, longest: int) -> tuple[list[str], list[list[int]]]:
    """Words between spaces, and the places of their tokens after a first one; what is cut off is left out.

    Raises:
        ValueError: there is no word.
    """
    words, places, at = [], [], 1
    for word in text.split():
        count = len(tokenizer.encode(word)) - 2
        place = [i for i in range(at, at + count) if i < longest - 1]
        at += count
        if place:
            words.append(word)
            places.append(place)
    if not words:
        raise ValueError(f"there is no word to explain in {text!r}")
    return words, places


def explanation(words: list[str], maps: Sequence[torch.Tensor], text: str, score: float) -> Explanation:
    """From the maps of each word's tokens (tokens, P, g, g)."""
    grid = torch.stack([each.mean(dim=0) for each in maps]).cpu().numpy()
    if grid.shape[1] == 1:  # one image
        grid = grid[:, 0]
    return Explanation(words, grid, grid.mean(axis=0), text, score)
