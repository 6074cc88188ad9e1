"""BLIP for dialogues about pictures and videos (BLIP paper, section 5.5 and figure 5c).

B pictures, R rounds per picture, Q = B·R questions, K candidates per question, T tokens, N image tokens,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.models.answers import write_answers
from lavis.models.base import BaseModel, inference
from lavis.models.blip import Blip
from lavis.models.checkpoints import TRAINING_STATE, Rules
from lavis.models.dialogue_encoder import BlipDialogueConfig, DialogueEncoder, Ids
from lavis.models.outputs import DecoderOutput, EncoderOutput, IntermediateOutput, LossOutput, Texts
from lavis.models.presets import RESIZE, SMOOTHING
from lavis.models.reranking import rows_at_once
from lavis.models.samples import media_of
from lavis.models.tokenizer import Tokens
from lavis.models.vision_text import VisionText
from lavis.nn import generation
from lavis.nn.generation import GenerationOptions
from lavis.nn.language_model import TextDecoder
from lavis.nn.linear import ExactLinear
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import TextTransformer


@dataclass(frozen=True)
class Seen:
    """What a dialogue is about: image_embeds (B, N, D), caption_embeds (B, T, D), and both as one memory:
    states (B, N + T, D), mask (B, N + T)."""

    image_embeds: torch.Tensor
    caption_embeds: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor


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

    # ------------------------------------------------------------------------------ encoding
    def batch_encoder(self) -> DialogueEncoder:
        return DialogueEncoder(self.tokenizer, self.config, self.MEDIA, self.enc_id, self.bos_id)

    def look(self, samples: Mapping[str, Any], captions: Tokens) -> Seen:
        """Encode images, and their captions (B, T) over them."""
        image_embeds = self.visual_encoder(media_of(samples, self.MEDIA, self.device))
        ids, mask = captions
        memory = self.text_encoder.project_memory(image_embeds)
        caption_embeds = self.text_encoder(ids, mask=mask, memory=memory)
        everywhere = torch.ones(image_embeds.shape[:2], dtype=torch.bool, device=image_embeds.device)
        return Seen(
            image_embeds,
            caption_embeds,
            torch.cat([image_embeds, caption_embeds], dim=1),
            torch.cat([everywhere, mask], dim=1),
        )

    def _asked(self, seen: Seen, questions: Tokens) -> torch.Tensor:
        """States (Q, T, D) of questions and rounds without answers."""
        memory = self.text_encoder.project_memory(seen.states, seen.mask)
        return self.text_encoder(questions.ids, mask=questions.mask, memory=memory)

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
        samples = self.encoded(samples)
        return self._ranking_loss(samples) if self.config.answering == "rank" else self._writing_loss(samples)

    def _ranking_loss(self, samples: Mapping[str, Any]) -> LossOutput:
        tokens, right = samples["tokens"], samples["right"]  # (Q,)
        seen = self.look(samples, tokens["caption"])
        ids, mask = tokens["candidate"]
        memory = self.text_encoder.project_memory(seen.states, seen.mask)
        states = self.text_encoder(ids, mask=mask, memory=memory)  # (Q·K, T, D)
        logits = self.itm_head(states[:, 0])
        places = torch.arange(len(ids) // len(right), device=right.device)
        labels = (places == right[:, None]).long()  # (Q, K)
        each = F.cross_entropy(logits.float(), labels.flatten(), reduction="none").view(labels.shape)
        right_ones, wrong_ones = (each.masked_fill(labels != kind, 0.0).sum(dim=1) for kind in (1, 0))
        loss = (right_ones.mean() + (wrong_ones / (labels.shape[1] - 1)).mean()) / 2
        return LossOutput(
            loss=loss,
            loss_itm=loss,
            intermediate_output=IntermediateOutput(
                image_embeds=seen.image_embeds,
                text_embeds=seen.caption_embeds,
                encoder_output=EncoderOutput(states),
                itm_logits=logits,
                itm_labels=labels.flatten(),
            ),
        )

    def _writing_loss(self, samples: Mapping[str, Any]) -> LossOutput:
        tokens = samples["tokens"]
        seen = self.look(samples, tokens["caption"])
        states = self._asked(seen, tokens["question"])
        ids, mask = tokens["answer"]
        labels = ids.masked_fill(~mask, IGNORE)
        memory = self.text_decoder.project_memory(states, tokens["question"].mask)
        logits = self.text_decoder(ids, mask=mask, memory=memory)
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
        encoder = self.batch_encoder()
        seen = self.look(samples, encoder.captions(samples).to(self.device))
        contexts = encoder.contexts(samples)
        options = encoder.options(samples, len(contexts))
        memory = self.text_encoder.project_memory(seen.states, seen.mask)

        def score(tokens: Tokens) -> torch.Tensor:
            states = self.text_encoder(tokens.ids, mask=tokens.mask, memory=memory)
            logits = self.itm_head(states[:, 0]).float()
            return logits[:, 1] - logits[:, 0]

        texts = [
            encoder.text(c, answer) for c, given in zip(contexts, options, strict=True) for answer in given
        ]
        return self._scored(texts, len(seen.states), score).view(len(contexts), -1)

    def _read(self, samples: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (Q, T, D) of questions and rounds, and their mask (Q, T)."""
        encoder = self.batch_encoder()
        seen = self.look(samples, encoder.captions(samples).to(self.device))
        questions = encoder.questions(encoder.contexts(samples)).to(self.device)
        return self._asked(seen, questions), questions.mask

    def _likelihoods(self, samples: Mapping[str, Any]) -> torch.Tensor:
        states, mask = self._read(samples)
        memory = self.text_decoder.project_memory(states, mask)
        encoder = self.batch_encoder()

        def score(answers: Tokens) -> torch.Tensor:
            return -generation.sequence_losses(self.text_decoder, memory, answers.ids, answers.mask, 0.0)

        texts = [
            [self.bos_id, *encoder.pieces(answer), self.tokenizer.sep_id]
            for options in encoder.options(samples, len(states))
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
        states, mask = self._read(samples)
        out = write_answers(self.text_decoder, self.tokenizer, self.bos_id, states, mask, options)
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
