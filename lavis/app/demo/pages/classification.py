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
    needs, task = ("EmbedsBoth", "Ranks"), "classify"
    inputs = (
        PictureInput("picture", "Picture"),
        LinesInput(
            "labels", "Labels", "One a line, at least two.",
            value="red circle\ngreen square\nblue triangle\nyellow star\npurple heart", minimum=2,
        ),
        TextInput("template", "Template", "A sentence with {} in place of the label.", more=True, value="a {}"),
        TextInput(
            "prompt", "Prompt", "What a model with a language model reads before a label; empty: a question.",
            more=True, placeholder="which animal is this?", required=False,
        ),
    )  # fmt: skip
    outputs = (Bars("labels", "Probability of each label"),)
    examples = tuple(EXAMPLES / f"single_{i}.png" for i in range(4))
    order = 50

    def run(
        self, loaded: Any, picture: Any, labels: tuple[str, ...], template: str = "a {}", prompt: str = ""
    ) -> list[Row]:
        """Labels, the likeliest first; the probabilities add up to 1."""
        from lavis.inference import Encoder, RankedLabels, classify
        from lavis.inference.protocols import EmbedsBoth

        if "{}" not in template:
            raise ValueError(f"Template: {template!r} has no {{}}, where the label goes")
        if isinstance(loaded.model, EmbedsBoth):
            if prompt:
                raise ValueError(f"Prompt: {loaded.spec} reads none; write it into the template")
            found = classify(Encoder(loaded), [picture], labels, (template,))
        else:
            found = RankedLabels(loaded, labels, (template,), prompt or None)([picture])
        chances = found[0].tolist()
        order = sorted(range(len(labels)), key=lambda i: -chances[i])
        return [Row(labels[i], chances[i], percent(chances[i])) for i in order]
