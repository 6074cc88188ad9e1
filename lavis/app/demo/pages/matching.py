"""How well sentences fit a picture (paper, section 4.2: image-text matching)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavis.app.demo.page import EXAMPLES, Bars, LinesInput, Page, PictureInput, Row, percent
from lavis.common.registry import registry


@registry.register_page("matching")
class Matching(Page):
    title = "Image-text matching"
    about = (
        "Says how well sentences fit a picture: the probability by the matching head (ITM), which reads sentence and "
        "picture together, and the cosine of their two vectors (ITC), which are computed apart."
    )
    button = "Compare"
    needs, task = "EmbedsBoth", "match"
    inputs = (
        PictureInput("picture", "Picture"),
        LinesInput(
            "sentences", "Sentences", "One a line.",
            value="a purple ring above a red triangle and a green square\n"
            "a blue ring above a red triangle and a green square\n"
            "a yellow star and a pink heart\na photograph of a cat",
        ),
    )  # fmt: skip
    outputs = (Bars("sentences", "How well each sentence fits"),)
    examples = tuple(EXAMPLES / f"drawing_{i:02d}.png" for i in range(6))
    order = 60

    def run(self, loaded: Any, picture: Any, sentences: tuple[str, ...]) -> list[Row]:
        """Sentences, the best first."""
        return compared(loaded, picture, sentences)


def compared(loaded: Any, media: Any, sentences: Sequence[str]) -> list[Row]:
    """Sentences with a picture or clip, the best first, with the cosine alone where there is no matching head."""
    from lavis.inference import Encoder

    chances, cosines = Encoder(loaded).match(media, sentences)
    rows = []
    for i, (sentence, cosine) in enumerate(zip(sentences, cosines.tolist(), strict=True)):
        chance = None if chances is None else float(chances[i])
        beside = f"cosine {cosine:.3f}"
        rows.append(
            Row(sentence, max(cosine, 0.0), beside)
            if chance is None
            else Row(sentence, chance, f"{percent(chance)}, {beside}")
        )
    return sorted(rows, key=lambda row: -(row.share or 0))
