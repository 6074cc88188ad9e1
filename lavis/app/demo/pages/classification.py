"""Which of some labels fits a picture, without training (paper, section 4.2: zero-shot classification)."""

from __future__ import annotations

from typing import Any

from lavis.app.demo.page import EXAMPLES, Bars, LinesInput, Page, PictureInput, Row, TextInput, percent
from lavis.common.registry import registry


@registry.register_page("classification")
class Classification(Page):
    title = "Zero-shot classification"
    about = "Chooses among labels that you write, without having been trained for them."
    button = "Classify"
    needs, task = "EmbedsBoth", "classify"
    inputs = (
        PictureInput("picture", "Picture"),
        LinesInput(
            "labels", "Labels", "One a line, at least two.",
            value="red circle\ngreen square\nblue triangle\nyellow star\npurple heart", minimum=2,
        ),
        TextInput("template", "Template", "A sentence with {} in place of the label.", more=True, value="a {}"),
    )  # fmt: skip
    outputs = (Bars("labels", "Probability of each label"),)
    examples = tuple(EXAMPLES / f"single_{i}.png" for i in range(4))
    order = 50

    def run(self, loaded: Any, picture: Any, labels: tuple[str, ...], template: str = "a {}") -> list[Row]:
        """Labels, the likeliest first; the probabilities add up to 1."""
        from lavis.inference import Encoder, classify

        if "{}" not in template:
            raise ValueError(f"Template: {template!r} has no {{}}, where the label goes")
        chances = classify(Encoder(loaded), [picture], labels, (template,))[0].tolist()
        order = sorted(range(len(labels)), key=lambda i: -chances[i])
        return [Row(labels[i], chances[i], percent(chances[i])) for i in order]
