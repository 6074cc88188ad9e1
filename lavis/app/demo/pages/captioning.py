"""Captions of a picture (paper, section 4.2)."""

from __future__ import annotations

import math
from typing import Any

from lavis.app.demo.page import (
    EXAMPLES,
    Bars,
    ChoiceInput,
    NumberInput,
    Page,
    PictureInput,
    Row,
    TextInput,
    percent,
)
from lavis.common.registry import registry

BEAMS, NUCLEUS = "Beam search", "Nucleus sampling"


@registry.register_page("captioning")
class Captioning(Page):
    title = "Captioning"
    about = (
        "Describes a picture. Beam search gives the likeliest sentences, nucleus sampling varied ones. "
        "Beside each stands its probability per token."
    )
    button = "Describe"
    needs, task = "Writes", "caption"
    inputs = (
        PictureInput("picture", "Picture"),
        ChoiceInput("method", "Method", choices=(BEAMS, NUCLEUS)),
        NumberInput("captions", "Captions", value=3, minimum=1, maximum=5),
        NumberInput("beams", "Beams", "Of beam search; at least as many as captions.", more=True, value=5),
        NumberInput(
            "top_p", "Top p", "Of nucleus sampling; small: only the likeliest words.", more=True,
            value=0.9, minimum=0.05, maximum=1.0, step=0.05,
        ),
        NumberInput(
            "seed", "Seed", "Of nucleus sampling; the same seed gives the same captions.", more=True,
            value=0, minimum=0, maximum=999,
        ),
        NumberInput("longest", "Longest caption, in tokens", more=True, value=40, minimum=5, maximum=60),
        TextInput(
            "prompt", "Prompt", "What a model with a language model reads first; empty: the model's own.", more=True,
            placeholder="a photo of", required=False,
        ),
    )  # fmt: skip
    outputs = (Bars("captions", "Captions"),)
    examples = tuple(EXAMPLES / f"drawing_{i:02d}.png" for i in range(6))
    order = 10
    batched = ("picture",)

    def run(
        self,
        loaded: Any,
        picture: list[Any],
        method: str = BEAMS,
        captions: int = 3,
        beams: int = 5,
        top_p: float = 0.9,
        seed: int = 0,
        longest: int = 40,
        prompt: str = "",
    ) -> list[list[Row]]:
        """Captions of each picture of a batch, best first."""
        nucleus = method == NUCLEUS
        return describe(
            loaded, picture, captions, longest, use_nucleus_sampling=nucleus, num_beams=max(beams, captions),
            top_p=top_p, seed=seed, prompt=prompt or None,
        )  # fmt: skip


def describe(
    loaded: Any, media: list[Any], captions: int, longest: int = 40, prompt: str | None = None, **others: Any
) -> list[list[Row]]:
    """Captions of each image or video of a batch, best first, with their probability per token.

    Args:
        longest: tokens of a caption, at most. prompt: see `Writer`.
        others: of `GenerationOptions`. Those that the model does not take are
            left out.
    """
    import torch

    from lavis.inference.writing import Writer
    from lavis.nn.generation import GenerationOptions

    options = {"max_new_tokens": longest, "min_new_tokens": min(5, longest), **others}
    writer = Writer(
        loaded, GenerationOptions(num_captions=captions, **options), optional=options, prompt=prompt
    )
    found = writer(torch.stack([loaded.prepare(m) for m in media]))
    # of both methods the score is a log-probability per token
    rows = [
        Row(text.strip(), math.exp(score), percent(math.exp(score)))
        for text, score in zip(found.texts, found.scores, strict=True)
    ]
    return [
        sorted(rows[i : i + captions], key=lambda row: -(row.share or 0))
        for i in range(0, len(rows), captions)
    ]
