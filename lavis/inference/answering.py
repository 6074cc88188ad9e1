"""Answers to questions about images and videos, by every model that gives answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lavis.common.arguments import accepted
from lavis.inference.abilities import require
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Answers, AnswersFromList, Prompted
from lavis.models.answers import WRITTEN
from lavis.models.outputs import Texts
from lavis.nn.generation import GenerationOptions


def _arguments(options: GenerationOptions) -> dict[str, int]:
    """By their names in the original's `predict_answers`."""
    return {"num_beams": options.num_beams, "max_len": options.max_length, "min_len": options.min_length}


class Answerer:
    """Answers questions: in the model's own words, or with one of some answers.

    Args:
        loaded: the model, one that `Answers`.
        answers: to choose from; None: the model writes, or chooses among all that it was trained for
            (`AnswersFromList`).
        options: how answers are written.
        prompt: the form of a question, with "{}" for it, of a model that is `Prompted`; None: its own.

    Raises:
        ValueError: the model does not answer questions; answers that are missing or don't fit; an option that it does
            not take.
    """

    def __init__(
        self,
        loaded: Loaded,
        answers: Sequence[str] | None = None,
        options: GenerationOptions = WRITTEN,
        prompt: str | None = None,
    ) -> None:
        self.model = require(loaded, Answers)  # type: ignore[type-abstract]
        if isinstance(loaded.model, AnswersFromList):
            try:
                answers = loaded.model.answers_among(answers)
            except ValueError as e:
                raise ValueError(f"{loaded.spec}: {e}") from e
        self.loaded, self.answers = loaded, list(answers) if answers else None
        self.options: dict[str, Any] = accepted(
            self.model.predict_answers,
            _arguments(options),
            _arguments(WRITTEN),
            lambda name: f"{loaded.spec} answers without the option {name}; leave it out",
        )
        if prompt is not None:
            require(loaded, Prompted).check_prompt(prompt, 1)  # type: ignore[type-abstract]
            self.options["prompt"] = prompt
        elif isinstance(loaded.model, Prompted):
            self.options["prompt"] = loaded.model.question_prompt

    @torch.no_grad()
    def __call__(self, media: torch.Tensor, questions: Sequence[str]) -> Texts:
        """Answer.

        Args:
            media: images (B, 3, h, w) or videos (B, 3, T, h, w), as `Loaded.prepare` makes them.
            questions: B·G, those about an image next to one another.

        Returns:
            B·G answers; `scores` are probabilities among the given answers, or of written ones logprob per token.
        """
        samples = {
            self.loaded.sees: media.to(self.loaded.model.device),
            "text_input": [self.loaded.txt(q) for q in questions],
        }
        with self.loaded.autocast():
            found = self.model.predict_answers(
                samples,
                answer_list=self.answers,
                inference_method="rank" if self.answers else "generate",
                return_scores=True,
                **self.options,
            )
        assert isinstance(found, Texts)
        return found
