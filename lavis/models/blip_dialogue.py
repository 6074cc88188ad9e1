"""BLIP for dialogues about pictures and videos (BLIP paper, section 5.5 and figure 5c).

B pictures, R rounds per picture, Q = B·R questions, K candidates per question, T tokens, N image tokens,
D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.models.answers import write_answers
from lavis.models.base import BaseModel, inference
from lavis.models.blip import Blip, BlipConfig
from lavis.models.checkpoints import TRAINING_STATE, Rules
from lavis.models.outputs import DecoderOutput, EncoderOutput, IntermediateOutput, LossOutput, Texts
from lavis.models.presets import RESIZE, SMOOTHING
from lavis.models.reranking import rows_at_once
from lavis.models.samples import media_of, require, texts_of
from lavis.models.tokenizer import Tokens
from lavis.models.vision_text import VisionText
from lavis.nn import generation
from lavis.nn.generation import GenerationOptions
from lavis.nn.language_model import TextDecoder
from lavis.nn.linear import ExactLinear
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import TextTransformer

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
class Seen:
    """What a dialogue is about: image_embeds (B, N, D), caption_embeds (B, T, D), and both as one memory:
    states (B, N + T, D), mask (B, N + T)."""

    image_embeds: torch.Tensor
    caption_embeds: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Context:
    """A question and as many of the rounds before it as there is room for, as ids without special tokens
    but the [SEP] after each round."""

    question: Ids
    history: Ids


@registry.register_model("blip_vis_dialogue")
class BlipDialogue(Blip, VisionText, BaseModel):
    """Answers questions of a dialogue about a picture (BLIP paper, section 5.5 and figure 5c).

    From the paper: a caption encoder reads the caption after [ENC], the token of texts over a picture; the
    states of picture and caption, one after the other, are what the dialogue encoder's cross-attention
    reads; that encoder reads question, answer and the rounds before, after [ENC]; the matching loss teaches
    it whether the answer is true or false, and candidates are ranked by that.

    Our choice, where the paper is silent: one text encoder (pre-training's) is caption and dialogue encoder;
    the rounds before follow from the latest to the first, each ended by [SEP], so that what is cut is
    the oldest; all candidates of a question are judged in a training step (or `candidates` of them), and
    the right one weighs as much as all wrong ones together, or with 100 candidates "false" would be learnt
    first; the score is the log-odds of "true".

    Not from the paper: `answering: generate` gives the encoder question and rounds only, and adds BLIP's
    decoder over its states, as in visual question answering (figure 5a).

    There are no published weights; training starts from BLIP's pre-trained ones.
    """

    registered_name = "blip_vis_dialogue"
    # of matching head and decoder, the one that `answering` has no use for
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, "vision_proj.*", "text_proj.*", "itm_head.*", "text_decoder.*"), resize=RESIZE
    )

    def __init__(self, config: BlipDialogueConfig) -> None:
        super().__init__(config)
        if config.text.width != config.vit.width:
            raise ValueError(
                f"text.width is {config.text.width}, vit.width is {config.vit.width}; they must be alike, because "
                "captions' and pictures' states are read as one memory"
            )
        self.text_encoder = TextTransformer(config.text)
        if config.answering == "rank":
            self.itm_head = ExactLinear(config.text.width, 2)
        else:
            self.text_decoder = TextDecoder(config.text)

    def tie_weights(self) -> None:
        if self.config.answering == "generate":
            self.text_decoder.tie_weights()

    # ------------------------------------------------------------------------------ samples
    def _contexts(self, samples: Mapping[str, Any], pictures: int) -> list[Context]:
        require(
            samples,
            ("text_input", "dialog"),
            "the questions, and for each the rounds before it, a list of (question, answer)",
        )
        questions, dialogs = texts_of(samples, pictures), samples["dialog"]
        if len(dialogs) != len(questions):
            raise ValueError(
                f"there are {len(questions)} questions, but `dialog` has {len(dialogs)} lists of rounds"
            )
        return [self._context(q, turns) for q, turns in zip(questions, dialogs)]

    def _context(self, question: str, turns: Turns) -> Context:
        room = self.config.max_txt_len - 2  # [ENC] and [SEP]
        if self.config.answering == "rank":
            room -= self.config.max_answer_len
        asked = self._pieces(question)[:room]
        room -= len(asked)
        history: Ids = []
        for before, answer in reversed(turns):
            turn = [*self._pieces(f"{before} {answer}"), self.tokenizer.sep_id]
            if len(history) + len(turn) > room:
                break
            history += turn
        return Context(asked, history)

    def _pieces(self, text: str) -> Ids:
        return self.tokenizer.encode(text)[1:-1]

    def _text(self, context: Context, answer: str | None = None) -> Ids:
        """[ENC] question answer [SEP] rounds, latest first."""
        said = [] if answer is None else self._pieces(answer)[: self.config.max_answer_len]
        return [self.enc_id, *context.question, *said, self.tokenizer.sep_id, *context.history]

    def _options(self, samples: Mapping[str, Any], questions: int) -> list[list[str]]:
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

    def _right(self, samples: Mapping[str, Any], questions: int, options: int) -> list[int]:
        """The place of the right answer among a question's candidates."""
        require(samples, ("gt_index",), "the right candidate's place")
        right = torch.as_tensor(samples["gt_index"]).flatten().tolist()
        if len(right) != questions or not all(0 <= place < options for place in right):
            raise ValueError(
                f"gt_index is {right}; for {questions} questions with {options} candidates it must be as many "
                f"places from 0 to {options - 1}"
            )
        return right

    # ------------------------------------------------------------------------------ encoding
    def look(self, samples: Mapping[str, Any]) -> Seen:
        """Encode pictures, and their captions over them."""
        image_embeds = self.visual_encoder(media_of(samples, self.MEDIA, self.device))
        captions = texts_of(samples, len(image_embeds), "caption")
        if len(captions) != len(image_embeds):
            raise ValueError(
                f"there are {len(captions)} captions for {len(image_embeds)} pictures; give one for each"
            )
        tokens = self.tokenizer.batch(
            captions, max_length=self.config.max_caption_len, device=image_embeds.device
        )
        tokens.ids[:, 0] = self.enc_id
        memory = self.text_encoder.project_memory(image_embeds)
        caption_embeds = self.text_encoder(tokens.ids, mask=tokens.mask, memory=memory)
        everywhere = torch.ones(image_embeds.shape[:2], dtype=torch.bool, device=image_embeds.device)
        return Seen(
            image_embeds,
            caption_embeds,
            torch.cat([image_embeds, caption_embeds], dim=1),
            torch.cat([everywhere, tokens.mask], dim=1),
        )

    def _encode(self, samples: Mapping[str, Any]) -> tuple[torch.Tensor, Tokens, Seen]:
        """States (Q, T, D) and tokens of questions and rounds without answers, and what they are about."""
        seen = self.look(samples)
        tokens = self.tokenizer.pad(
            [self._text(c) for c in self._contexts(samples, len(seen.states))], device=self.device
        )
        memory = self.text_encoder.project_memory(seen.states, seen.mask)
        return self.text_encoder(tokens.ids, mask=tokens.mask, memory=memory), tokens, seen

    # ------------------------------------------------------------------------------ training
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Loss of answers.

        Args:
            samples: `image` (B, 3, h, w); `caption`, B texts; `text_input`, Q questions, a picture's next to
                one another; `dialog`, for each question the (question, answer) rounds before it. To rank:
                `answer_options`, Q·K candidates (or Q lists of K), and `gt_index` (Q,), the right one's place.
                To generate: `answer`, Q texts.

        Returns:
            To rank, loss = loss_itm: mean of the cross entropy of right and that of wrong candidates (nats);
            `intermediate_output` has itm_logits (Q·K, 2) and itm_labels. To generate, loss = loss_lm: mean
            smoothed cross entropy over the answers' tokens (nats).
        """
        return self._ranking_loss(samples) if self.config.answering == "rank" else self._writing_loss(samples)

    def _ranking_loss(self, samples: Mapping[str, Any]) -> LossOutput:
        seen = self.look(samples)
        contexts = self._contexts(samples, len(seen.states))
        options = self._options(samples, len(contexts))
        if len(options[0]) < 2:
            raise ValueError("answer_options has one candidate per question; there must be a wrong one, too")
        right = self._right(samples, len(contexts), len(options[0]))
        common = Counter(o[r] for o, r in zip(options, right))
        drawn = [self._drawn(o, r, common) for o, r in zip(options, right)]
        tokens = self.tokenizer.pad(
            [self._text(c, answer) for c, (kept, _) in zip(contexts, drawn) for answer in kept],
            device=self.device,
        )
        memory = self.text_encoder.project_memory(seen.states, seen.mask)
        states = self.text_encoder(tokens.ids, mask=tokens.mask, memory=memory)  # (Q·K, T, D)
        logits = self.itm_head(states[:, 0])
        kinds = [int(i == place) for kept, place in drawn for i in range(len(kept))]
        labels = torch.tensor(kinds, device=logits.device)
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        right_ones, wrong_ones = (each[[i for i, k in enumerate(kinds) if k == kind]] for kind in (1, 0))
        loss = (right_ones.mean() + wrong_ones.mean()) / 2
        return LossOutput(
            loss=loss,
            loss_itm=loss,
            intermediate_output=IntermediateOutput(
                image_embeds=seen.image_embeds,
                text_embeds=seen.caption_embeds,
                encoder_output=EncoderOutput(states),
                itm_logits=logits,
                itm_labels=labels,
            ),
        )

    def _drawn(self, options: list[str], right: int, common: Mapping[str, int]) -> tuple[list[str], int]:
        """The candidates to train with, and the right one's place among them; `common` counts right answers."""
        if not 0 < self.config.candidates < len(options):
            return options, right
        wrong = [o for i, o in enumerate(options) if i != right]
        weights = torch.tensor([common.get(o, 0) + 1 / len(wrong) for o in wrong])
        order = torch.multinomial(weights, self.config.candidates - 1).tolist()
        return [options[right], *(wrong[i] for i in order)], 0

    def _writing_loss(self, samples: Mapping[str, Any]) -> LossOutput:
        states, tokens, seen = self._encode(samples)
        answers = list(samples.get("answer", ()))
        if len(answers) != len(states):
            raise ValueError(
                f"samples need an answer for each of {len(states)} questions; there are {len(answers)}"
            )
        written = self._answers(answers)
        labels = written.ids.masked_fill(~written.mask, IGNORE)
        memory = self.text_decoder.project_memory(states, tokens.mask)
        logits = self.text_decoder(written.ids, mask=written.mask, memory=memory)
        loss = language_modelling_loss(logits, labels, smoothing=SMOOTHING)
        return LossOutput(
            loss=loss,
            loss_lm=loss,
            intermediate_output=IntermediateOutput(
                image_embeds=seen.image_embeds,
                text_embeds=seen.caption_embeds,
                encoder_output=EncoderOutput(states),
                decoder_output=DecoderOutput(loss=loss, logits=logits),
                decoder_labels=labels,
            ),
        )

    def _answers(self, answers: Sequence[str]) -> Tokens:
        """Answers begun with [DEC], not cut."""
        tokens = self.tokenizer.batch(list(answers), device=self.device)
        tokens.ids[:, 0] = self.bos_id
        return tokens

    # ------------------------------------------------------------------------------ answers
    @inference
    def predict(self, samples: Mapping[str, Any]) -> torch.Tensor:
        """Score candidates, all of a picture's over one memory, at about their true lengths.

        Args:
            samples: as in `forward`, without `gt_index`; `answer_options` in either mode.

        Returns:
            (Q, K), higher is better: log-odds that the answer is true, or, of a model that generates, the
            natural logarithm of the answer's probability.
        """
        if self.config.answering == "generate":
            return self._likelihoods(samples)
        seen = self.look(samples)
        contexts = self._contexts(samples, len(seen.states))
        options = self._options(samples, len(contexts))
        memory = self.text_encoder.project_memory(seen.states, seen.mask)

        def score(tokens: Tokens) -> torch.Tensor:
            states = self.text_encoder(tokens.ids, mask=tokens.mask, memory=memory)
            logits = self.itm_head(states[:, 0]).float()
            return logits[:, 1] - logits[:, 0]

        texts = [
            self._text(c, answer) for c, given in zip(contexts, options, strict=True) for answer in given
        ]
        return self._scored(texts, len(seen.states), score).view(len(contexts), -1)

    def _likelihoods(self, samples: Mapping[str, Any]) -> torch.Tensor:
        states, tokens, _ = self._encode(samples)
        memory = self.text_decoder.project_memory(states, tokens.mask)

        def score(answers: Tokens) -> torch.Tensor:
            return -generation.sequence_losses(self.text_decoder, memory, answers.ids, answers.mask, 0.0)

        texts = [
            [self.bos_id, *self._pieces(answer), self.tokenizer.sep_id]
            for options in self._options(samples, len(states))
            for answer in options
        ]
        return self._scored(texts, len(states), score)

    def _scored(
        self, texts: Sequence[Ids], items: int, score: Callable[[Tokens], torch.Tensor]
    ) -> torch.Tensor:
        """Scores (B, G) of the texts of B items, G each, an item's side by side.

        They are scored in chunks of about one length: `score` gets rows that are c texts of each item.
        """
        rows = [texts[i : i + len(texts) // items] for i in range(0, len(texts), len(texts) // items)]
        order = [sorted(range(len(row)), key=lambda i: len(row[i])) for row in rows]
        out = torch.empty(items, len(rows[0]), device=self.device)
        each = max(1, rows_at_once(self.device) // items)
        for start in range(0, len(rows[0]), each):
            places = [row[start : start + each] for row in order]
            chunk = [row[i] for row, chosen in zip(rows, places, strict=True) for i in chosen]
            found = score(self.tokenizer.pad(chunk, device=self.device)).view(items, -1)
            out.scatter_(1, torch.tensor(places, device=self.device), found.to(out.dtype))
        return out

    @inference
    def generate(
        self,
        samples: Mapping[str, Any],
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 1,
        *,
        return_scores: bool = False,
    ) -> list[str] | Texts:
        """Write an answer to each question with beam search.

        Args:
            samples: `image`, `caption`, `text_input`, `dialog` as in `forward`.
            num_beams, max_length, min_length: see `generation.GenerationOptions`.
            return_scores: give `Texts` instead of strings.

        Raises:
            ValueError: the model only ranks.
        """
        if self.config.answering == "rank":
            raise ValueError(
                f"this {self.registered_name} ranks candidates (predict) and has no decoder to write with; "
                "build or load one with model.answering: generate"
            )
        options = GenerationOptions(num_beams=num_beams, max_length=max_length, min_length=min_length)
        states, tokens, _ = self._encode(samples)
        out = write_answers(self.text_decoder, self.tokenizer, self.bos_id, states, tokens.mask, options)
        return out if return_scores else out.texts

    # ------------------------------------------------------------ abilities, see `lavis.inference.protocols`
    def check_dialogue(self, caption: str | None, candidates: Sequence[str] | None) -> None:
        """
        Raises:
            ValueError: there is no caption, or the model only ranks and there are no candidates.
        """
        if not (caption or "").strip():
            raise ValueError(f"{self.registered_name} reads a caption beside the {self.MEDIA}; give one")
        if self.config.answering == "rank" and not candidates:
            raise ValueError(f"this {self.registered_name} chooses among answers; give some")

    def reply(self, samples: Mapping[str, Any], candidates: Sequence[str] | None = None) -> Texts:
        """The answer to one question: written, or the best of some candidates with its share among them."""
        if candidates is None:
            written = self.generate(samples, return_scores=True)
            assert isinstance(written, Texts)
            return written
        found = self.predict({**samples, "answer_options": [list(candidates)]})[0]  # (K,)
        best = int(found.argmax())
        share = found.softmax(dim=0)[best]
        return Texts([candidates[best]], [float(share.log())], [float(share)])
