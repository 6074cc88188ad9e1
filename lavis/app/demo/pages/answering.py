"""Questions about a picture (paper, section 4.2)."""

from __future__ import annotations

import math
from typing import Any

from lavis.app.demo.page import EXAMPLES, Bars, LinesInput, Page, PictureInput, Row, TextInput, percent
from lavis.common.registry import registry


@registry.register_page("answering")
class Answering(Page):
    title = "Question answering"
    about = (
        "Answers a question about a picture: in its own words, or with one of the answers that you list. "
        "Beside the answer stands how sure the model is of it."
    )
    button = "Ask"
    needs, task = "Answers", "ask"
    inputs = (
        PictureInput("picture", "Picture"),
        TextInput("question", "Question", value="what color is the triangle?"),
        LinesInput(
            "answers", "Answers to choose from", "One a line; leave it empty to let the model write.",
            placeholder="red\ngreen\nblue", minimum=0,
        ),
        TextInput(
            "prompt", "Prompt", "Of a model with a language model, with {} for the question; empty: the model's own.",
            more=True, placeholder="Question: {} Short answer:", required=False,
        ),
    )  # fmt: skip
    outputs = (Bars("answer", "Answer"),)
    examples = tuple(EXAMPLES / f"drawing_{i:02d}.png" for i in range(6))
    order = 20
    batched = ("picture", "question")

    @classmethod
    def offers(cls, preset: Any) -> bool:
        """None that knows its answers by number only."""
        return super().offers(preset) and names_its_answers(preset)

    def run(
        self,
        loaded: Any,
        picture: list[Any],
        question: list[str],
        answers: tuple[str, ...] = (),
        prompt: str = "",
    ) -> list[list[Row]]:
        """The answer to each question of a batch, about its picture."""
        import torch

        return answer(loaded, torch.stack([loaded.prepare(p) for p in picture]), question, answers, prompt)


def names_its_answers(preset: Any) -> bool:
    """Whether a preset writes its answers, or has names for those that it chooses among."""
    chooses = hasattr(preset.config, "classnames")
    return not chooses or preset.config.classnames is not None


def answer(
    loaded: Any, media: Any, questions: list[str], answers: tuple[str, ...], prompt: str = ""
) -> list[list[Row]]:
    """One row a question: the answer and its probability (among the listed ones, or of all that could be written)."""
    from lavis.inference.answering import Answerer

    found = Answerer(loaded, answers, prompt=prompt or None)(media, questions)
    shares = found.scores if answers else [math.exp(value) for value in found.logprobs]
    return [
        [Row(text.strip() or "(no answer)", share, percent(share))]
        for text, share in zip(found.texts, shares, strict=True)
    ]
