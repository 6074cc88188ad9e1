"""A conversation about an image or video: questions one after another, with the answers so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lavis.common.arguments import accepted, parameters
from lavis.inference.abilities import cannot, require
from lavis.inference.answering import Answerer
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Answers, Chats, Prompted


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
        prompt: the form of a question, with "{}" for it, of a model that is `Prompted`; None: its own.

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
        prompt: str | None = None,
    ) -> None:
        model = loaded.model
        self.reads_history = isinstance(model, Chats)
        if isinstance(model, Chats):
            model.check_dialogue(caption, candidates)
        elif not isinstance(model, Answers):
            raise ValueError(cannot(loaded.spec, model, Answers))
        if prompt is not None:
            require(loaded, Prompted).check_prompt(prompt, 1)  # type: ignore[type-abstract]
        self.loaded, self.caption, self.prompt = loaded, caption, prompt
        self.candidates = None if candidates is None else list(candidates)
        self._answerer = None if self.reads_history else Answerer(loaded, candidates, prompt=prompt)
        self._media = loaded.prepare(picture)[None].to(model.device)
        self.turns: list[Turn] = []

    def takes(self, options: Iterable[str]) -> list[str]:
        """Which of some options of `ask` the model takes."""
        if not self.reads_history:
            return []
        model: Any = self.loaded.model
        names, takes_any = parameters(model.reply)
        return [name for name in options if takes_any or name in names]

    @torch.no_grad()
    def ask(self, question: str, **options: Any) -> Turn:
        """Answer a question and remember both.

        Args:
            options: of `GenerationOptions`, those that the model's `reply` takes; one that only `Answers` takes none.

        Raises:
            ValueError: the question is empty; an option that the model does not take.
        """
        cleaned = self._cleaned(question)
        if not cleaned.strip():
            raise ValueError("the question is empty")
        if self._answerer is not None:
            if options:
                raise ValueError(self._refused(next(iter(options))))
            found = self._answerer(self._media, [question])
            answer, score = found.texts[0], found.scores[0]
        else:
            with self.loaded.autocast():
                answer, score = self._in_dialogue(cleaned, options)
        self.turns.append(Turn(question, answer.strip(), score))
        return self.turns[-1]

    def _cleaned(self, text: str) -> str:
        # a language model reads what was typed: the clean-up is that of questions of a data set
        return text.strip() if isinstance(self.loaded.model, Prompted) else self.loaded.txt(text)

    def _refused(self, name: str) -> str:
        return f"{self.loaded.spec} replies without the option {name}; leave it out"

    def _in_dialogue(self, question: str, options: Mapping[str, Any]) -> tuple[str, float]:
        model: Any = self.loaded.model
        samples = {
            self.loaded.sees: self._media,
            "caption": [self.loaded.txt(self.caption or "")],
            "text_input": [question],
            "dialog": [[(self._cleaned(t.question), t.answer) for t in self.turns]],
        }
        if self.prompt is not None:
            samples["prompt"] = self.prompt
        found = model.reply(samples, self.candidates, **accepted(model.reply, options, {}, self._refused))
        return found.texts[0], found.scores[0]
