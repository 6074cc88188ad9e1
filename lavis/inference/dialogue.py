"""A conversation about an image or video: questions one after another, with the answers so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lavis.inference.abilities import cannot
from lavis.inference.answering import Answerer
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Answers, Chats


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        score: of a written answer the log-probability per token; of a chosen one its probability among the candidates.
    """

    question: str
    answer: str
    score: float


class Conversation:
    """Questions about one image or video.

    A model that `Chats` reads the rounds before each question. One that `Answers` takes each question by itself.

    Args:
        loaded: the model.
        picture: a Pillow image, a video's file or frames, or what `loaded.prepare` made of one.
        caption: what a dialogue model may read beside the image; unused by others.
        candidates: answers to choose from; None: the model writes them.

    Attributes:
        turns: what was asked and answered so far.
        reads_history: whether the model heeds it.

    Raises:
        ValueError: the model does neither; no caption or no candidates where they are needed.
    """

    def __init__(
        self,
        loaded: Loaded,
        picture: Any,
        caption: str | None = None,
        candidates: Sequence[str] | None = None,
    ) -> None:
        model = loaded.model
        self.reads_history = isinstance(model, Chats)
        if isinstance(model, Chats):
            model.check_dialogue(caption, candidates)
        elif not isinstance(model, Answers):
            raise ValueError(cannot(loaded.spec, model, Answers))
        self.loaded, self.caption = loaded, caption
        self.candidates = None if candidates is None else list(candidates)
        self._answerer = None if self.reads_history else Answerer(loaded, candidates)
        self._media = loaded.prepare(picture)[None].to(model.device)
        self.turns: list[Turn] = []

    @torch.no_grad()
    def ask(self, question: str) -> Turn:
        """Answer a question and remember both.

        Raises:
            ValueError: the question is empty.
        """
        cleaned = self.loaded.txt(question)
        if not cleaned.strip():
            raise ValueError("the question is empty")
        if self._answerer is not None:
            found = self._answerer(self._media, [question])
            answer, score = found.texts[0], found.scores[0]
        else:
            with self.loaded.autocast():
                answer, score = self._in_dialogue(cleaned)
        self.turns.append(Turn(question, answer.strip(), score))
        return self.turns[-1]

    def _in_dialogue(self, question: str) -> tuple[str, float]:
        model: Any = self.loaded.model
        samples = {
            self.loaded.sees: self._media,
            "caption": [self.loaded.txt(self.caption or "")],
            "text_input": [question],
            "dialog": [[(self.loaded.txt(t.question), t.answer) for t in self.turns]],
        }
        found = model.reply(samples, self.candidates)
        return found.texts[0], found.scores[0]
