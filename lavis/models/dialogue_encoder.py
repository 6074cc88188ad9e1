"""The texts of dialogues as tokens, for BLIP.

B images, R rounds per image, Q = B·R questions, K candidates per question, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lavis.models.blip import BlipConfig
from lavis.models.samples import TextEncoder, media_of, require, texts_of
from lavis.models.tokenizer import Tokenizer, Tokens

Ids = list[int]
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class BlipDialogueConfig(BlipConfig):
    """
    Attributes:
        max_txt_len: tokens of question, answer and the rounds before together; the oldest rounds are left
            out where there are more.
        max_caption_len: tokens of a caption that are read.
        max_answer_len: tokens of a candidate that are read, and that are kept free for it.
        answering: "rank": candidates are judged one by one. "generate": a decoder writes answers, and ranks
            candidates by their probability.
        candidates: how many of a question's candidates a training step judges, the right one and others
            drawn at random, first among those that answer other questions of the batch: answers like
            "yes" that often are right, or nothing would be learnt of when they are wrong. 0: all.
    """

    prompt: str = ""
    max_txt_len: int = 200
    max_caption_len: int = 80
    max_answer_len: int = 20
    answering: str = "rank"
    candidates: int = 0

    def __post_init__(self) -> None:
        if self.answering not in ("rank", "generate"):
            raise ValueError(f"model.answering is {self.answering!r}; it must be 'rank' or 'generate'")
        if self.candidates == 1 or self.candidates < 0:
            raise ValueError(f"model.candidates is {self.candidates}; it must be 2 or more, or 0 for all")


@dataclass(frozen=True)
class Context:
    """A question and as many of the rounds before it as there is room for, as ids without special tokens
    but the [SEP] after each round."""

    question: Ids
    history: Ids


@dataclass(frozen=True)
class DialogueEncoder:
    """Makes tokens of dialogues; `BlipDialogue.batch_encoder`.

    `tokens["caption"]` (B, T). To rank: `tokens["candidate"]` (Q·K, T), a question's side by side, each with its
    question and the rounds before, and `right` (Q,), the right one's place among them. To generate:
    `tokens["question"]` (Q, T), with the rounds before, and `tokens["answer"]` (Q, T).

    Attributes:
        media: the key of what the dialogues are about.
        first: begins a text that reads an image. answer_first: begins an answer that is written.
    """

    tokenizer: Tokenizer
    config: BlipDialogueConfig
    media: str
    first: int
    answer_first: int

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        tokens = {"caption": self.captions(samples)}
        contexts = self.contexts(samples)
        if self.config.answering == "generate":
            given = list(samples.get("answer", ()))
            if len(given) != len(contexts):
                raise ValueError(
                    f"samples need an answer for each of {len(contexts)} questions; there are {len(given)}"
                )
            tokens |= {"question": self.questions(contexts), "answer": self.answers(given)}
            return {**samples, "tokens": tokens}
        options = self.options(samples, len(contexts))
        if len(options[0]) < 2:
            raise ValueError("answer_options has one candidate per question; there must be a wrong one, too")
        options, right = self.drawn(options, self.right(samples, len(contexts), len(options[0])))
        texts = [self.text(c, option) for c, given in zip(contexts, options) for option in given]
        tokens["candidate"] = self.tokenizer.pad(texts)
        return {**samples, "tokens": tokens, "right": torch.tensor(right)}

    # ------------------------------------------------------------------------------ samples
    def captions(self, samples: Mapping[str, Any]) -> Tokens:
        """One for each image: (B, T)."""
        images = len(media_of(samples, self.media))
        captions = texts_of(samples, images, "caption")
        if len(captions) != images:
            raise ValueError(f"there are {len(captions)} captions for {images} images; give one for each")
        return self._begun(captions, self.first, self.config.max_caption_len)

    def contexts(self, samples: Mapping[str, Any]) -> list[Context]:
        """The Q questions with the rounds before them."""
        require(
            samples,
            ("text_input", "dialog"),
            "the questions, and for each the rounds before it, a list of (question, answer)",
        )
        questions, dialogs = texts_of(samples, len(media_of(samples, self.media))), samples["dialog"]
        if len(dialogs) != len(questions):
            raise ValueError(
                f"there are {len(questions)} questions, but `dialog` has {len(dialogs)} lists of rounds"
            )
        return [self.context(q, turns) for q, turns in zip(questions, dialogs)]

    def context(self, question: str, turns: Turns) -> Context:
        room = self.config.max_txt_len - 2  # [ENC] and [SEP]
        if self.config.answering == "rank":
            room -= self.config.max_answer_len
        asked = self.pieces(question)[:room]
        room -= len(asked)
        history: Ids = []
        for before, answer in reversed(turns):
            turn = [*self.pieces(f"{before} {answer}"), self.tokenizer.sep_id]
            if len(history) + len(turn) > room:
                break
            history += turn
        return Context(asked, history)

    def pieces(self, text: str) -> Ids:
        return self.tokenizer.encode(text)[1:-1]

    def text(self, context: Context, answer: str | None = None) -> Ids:
        """[ENC] question answer [SEP] rounds, latest first."""
        said = [] if answer is None else self.pieces(answer)[: self.config.max_answer_len]
        return [self.first, *context.question, *said, self.tokenizer.sep_id, *context.history]

    def options(self, samples: Mapping[str, Any], questions: int) -> list[list[str]]:
        """The candidates of each question, equally many."""
        require(samples, ("answer_options",), "the candidates of each question")
        given = list(samples["answer_options"])
        if given and isinstance(given[0], str):
            if len(given) % questions:
                raise ValueError(
                    f"there are {len(given)} answer_options for {questions} questions; each needs the same number"
                )
            each = len(given) // questions
            return [given[i * each : (i + 1) * each] for i in range(questions)]
        counts = sorted({len(options) for options in given})
        if len(given) != questions or len(counts) != 1 or counts[0] == 0:
            raise ValueError(
                f"answer_options are {len(given)} lists of {' or '.join(map(str, counts)) or 'no'} candidates for "
                f"{questions} questions; each question needs a list, and all the same number of candidates"
            )
        return [list(options) for options in given]

    def right(self, samples: Mapping[str, Any], questions: int, options: int) -> list[int]:
        """The place of the right answer among a question's candidates."""
        require(samples, ("gt_index",), "the right candidate's place")
        right = torch.as_tensor(samples["gt_index"]).flatten().tolist()
        if len(right) != questions or not all(0 <= place < options for place in right):
            raise ValueError(
                f"gt_index is {right}; for {questions} questions with {options} candidates it must be as many "
                f"places from 0 to {options - 1}"
            )
        return right

    def drawn(self, options: list[list[str]], right: list[int]) -> tuple[list[list[str]], list[int]]:
        """The candidates to train with, and the right one's place among them; see `config.candidates`."""
        wrong = len(options[0]) - 1
        if not 0 < self.config.candidates <= wrong:
            return options, right
        common = Counter(given[place] for given, place in zip(options, right))
        weights = torch.tensor([[common[option] + 1 / wrong for option in given] for given in options])
        weights[torch.arange(len(right)), torch.tensor(right)] = 0.0
        chosen = torch.multinomial(weights, self.config.candidates - 1).tolist()
        kept = [[g[place], *(g[i] for i in some)] for g, place, some in zip(options, right, chosen)]
        return kept, [0] * len(kept)

    def questions(self, contexts: Sequence[Context]) -> Tokens:
        """Questions and the rounds before them: (Q, T)."""
        return self.tokenizer.pad([self.text(context) for context in contexts])

    def answers(self, answers: Sequence[str]) -> Tokens:
        """Answers to be written (n, T), not cut."""
        return self._begun(answers, self.answer_first)

    def _begun(self, texts: Sequence[str], first: int, max_length: int | None = None) -> Tokens:
        return TextEncoder(self.tokenizer, max_length=max_length, first=first).tokens(texts)
