"""Answering questions about pictures: what BLIP's and ALBEF's models share.

A text encoder reads the question over the picture, a decoder writes or scores answers over the question's
states. B pictures, G questions per picture, Q = B·G questions, T tokens, A answers, K candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lavis.models import heat_maps
from lavis.models.base import BaseModel, inference, own_step, prepared
from lavis.models.outputs import (
    DecoderOutput,
    EncoderOutput,
    Explanation,
    IntermediateOutput,
    LossOutput,
    Texts,
)
from lavis.models.presets import SMOOTHING
from lavis.models.samples import TextEncoder, media_of, require
from lavis.models.tokenizer import Tokenizer, Tokens
from lavis.models.vision_text import VisionText
from lavis.nn import generation
from lavis.nn.finite import check_finite
from lavis.nn.generation import GenerationOptions
from lavis.nn.language_model import TextDecoder
from lavis.nn.losses import IGNORE, distilled_language_modelling_loss, language_modelling_loss
from lavis.nn.text import Memory, TextTransformer

# how answers are written unless somebody says otherwise
WRITTEN = GenerationOptions(max_length=10, min_length=1)


def write_answers(
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    bos_id: int,
    states: torch.Tensor,
    mask: torch.Tensor,
    options: GenerationOptions,
) -> Texts:
    """Write an answer to each question, whose states are (Q, T, D)."""
    start = torch.full((len(states), 1), bos_id, dtype=torch.long, device=states.device)
    decoding = decoder.begin(decoder.project_memory(states, mask), options.lengths(1)[0])
    decoded = generation.generate(decoding, start, options, end=tokenizer.sep_id, pad=tokenizer.pad_id)
    ids, logprobs, scores = decoded.read(len(states))
    return Texts([tokenizer.decode(row, skip_special_tokens=True) for row in ids], logprobs, scores)


@dataclass(frozen=True)
class AnswerEncoder:
    """Makes `tokens["question"]` (Q, T) and `tokens["answer"]` (A, T), which is never cut; `Answering.batch_encoder`.

    `question_of` (A,) says which question each answer is of, None where all questions have equally many.
    """

    questions: TextEncoder
    answers: TextEncoder

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        require(
            samples,
            ("answer", "n_answers", "weight"),
            "answers, how many belong to each question, and what each weighs",
        )
        questions, answers = self.questions.read(samples), self.answers.tokens(samples["answer"])
        counts: list[int] = torch.as_tensor(samples["n_answers"]).tolist()  # the loader's, so on the host
        weight = torch.as_tensor(samples["weight"], dtype=torch.float32)
        asked, given = len(questions.ids), len(answers.ids)
        if len(counts) != asked or sum(counts) != given or len(weight) != given:
            raise ValueError(
                f"{asked} questions, n_answers for {len(counts)} of them with the sum {sum(counts)}, "
                f"{given} answers and {len(weight)} weights do not go together"
            )
        question_of = [question for question, count in enumerate(counts) for _ in range(count)]
        return {
            **samples,
            "weight": weight,
            "question_of": None if len(set(counts)) == 1 else torch.tensor(question_of),
            "tokens": {"question": questions, "answer": answers},
        }


class Answering(VisionText, BaseModel):
    """Question encoder and answer decoder (BLIP paper, figure 5a; ALBEF paper, section 5).

    A family says with which tokens answers and questions begin (START_TOKENS), and whether EMA copies teach (EMA,
    which then name the three encoders and decoders).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        text = config.text
        self.text_encoder = TextTransformer(text)
        # The decoder has as many layers as the encoder has that cross-attend; it reads the question's states.
        depth = text.depth - text.cross_from
        self.text_decoder = TextDecoder(replace(text, depth=depth, cross_from=0, memory_width=text.width))
        if self.distilled:
            self.make_ema()

    @property
    def distilled(self) -> bool:
        """Whether EMA copies teach."""
        return bool(self.EMA) and self.config.use_distill

    def tie_weights(self) -> None:
        self.text_decoder.tie_weights()
        if self.has_ema:
            self.part("text_decoder", ema=True).tie_weights()

    # ------------------------------------------------------------------------------ texts
    def batch_encoder(self) -> AnswerEncoder:
        return AnswerEncoder(
            TextEncoder(self.tokenizer, self.MEDIA, self.config.max_txt_len, first=self.enc_id),
            TextEncoder(self.tokenizer, first=self.bos_id),
        )

    def _answers(self, answers: Sequence[str]) -> Tokens:
        """Answers (A, T) with their start token, never cut."""
        return self.batch_encoder().answers.tokens(answers).to(self.device)

    def forward_encoder(
        self, samples: Mapping[str, Any], tokens: Tokens | None = None, *, ema: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode images once and their questions over them; with `ema`, by the EMA copies.

        Args:
            tokens: of the questions, where they are known.

        Returns:
            question states (B·G, T, D), their mask (B·G, T), picture states (B, N, D).
        """
        ids, mask = tokens or self.batch_encoder().questions.read(samples).to(self.device)
        image_embeds = self.part("visual_encoder", ema)(media_of(samples, self.MEDIA, self.device))
        encoder = self.part("text_encoder", ema)
        return encoder(ids, mask=mask, memory=encoder.project_memory(image_embeds)), mask, image_embeds

    def _start(self, rows: int, device: torch.device) -> torch.Tensor:  # (rows, 1)
        return torch.full((rows, 1), self.bos_id, dtype=torch.long, device=device)

    # ------------------------------------------------------------------------------ training
    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Loss of answers given pictures and questions.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B·G questions; `answer`, a flat list;
                `n_answers` (B·G,), how many belong to each question; `weight`, one per answer; with EMA
                copies also `epoch`, `iters`, `num_iters_per_epoch`.

        Returns:
            `loss`: sum over answers of weight x smoothed sequence loss (nats), per question; with EMA copies, alpha of
            the sequence loss is the cross entropy with theirs. `intermediate_output` with image_embeds,
            encoder_output, decoder_output, decoder_labels.
        """
        samples = self.encoded(samples)
        if self.distilled:
            self.need_ema()
        alpha = self.alpha(samples) if self.distilled else 0.0
        tokens = samples["tokens"]
        states, mask, image_embeds = self.forward_encoder(samples, tokens["question"])
        ids, answer_mask = tokens["answer"]
        question_of = samples["question_of"]
        labels = ids.masked_fill(~answer_mask, IGNORE)
        memory = self._question_memory(states, mask, question_of)
        logits = self.text_decoder(ids, mask=answer_mask, memory=memory)
        each = language_modelling_loss(logits, labels, smoothing=SMOOTHING, per_text=True)  # (A,)
        image_embeds_m = states_m = None
        if self.distilled:
            with torch.no_grad():
                states_m, _, image_embeds_m = self.forward_encoder(samples, tokens["question"], ema=True)
                memory_m = self._question_memory(states_m, mask, question_of, ema=True)
                logits_m = self.part("text_decoder", ema=True)(ids, mask=answer_mask, memory=memory_m)
            each = (1 - alpha) * each + alpha * distilled_language_modelling_loss(logits, logits_m, labels)
        loss = (samples["weight"] * each).sum() / len(states)
        return LossOutput(
            loss=loss,
            intermediate_output=IntermediateOutput(
                image_embeds=image_embeds,
                image_embeds_m=image_embeds_m,
                encoder_output=EncoderOutput(states),
                encoder_output_m=None if states_m is None else EncoderOutput(states_m),
                decoder_output=DecoderOutput(loss=each, logits=logits),
                decoder_labels=labels,
            ),
        )

    def _question_memory(
        self, states: torch.Tensor, mask: torch.Tensor, question_of: torch.Tensor | None, *, ema: bool = False
    ) -> Memory:
        """The questions' memory, as a view where all have as many answers, else copied."""
        memory = self.part("text_decoder", ema).project_memory(states, mask)
        return memory if question_of is None else memory.select(question_of)

    # ------------------------------------------------------------------------------ answers
    @inference
    def predict_answers(
        self,
        samples: Mapping[str, Any],
        num_beams: int = WRITTEN.num_beams,
        inference_method: str = "rank",
        max_len: int = WRITTEN.max_length,
        min_len: int = WRITTEN.min_length,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        *,
        return_scores: bool = False,
    ) -> list[str] | Texts:
        """Answer questions about pictures.

        Args:
            samples: `image` (B, 3, h, w) and `text_input`: a question, or B·G of them.
            num_beams, max_len, min_len: of "generate"; lengths in tokens, start token included.
            inference_method: "rank" chooses from `answer_list`: the `num_ans_candidates` answers whose
                first tokens are likeliest, then the one with the smallest smoothed loss; answers that the model
                reads alike ("Yes" and "yes") are one. "generate" writes an answer with beam search.
            return_scores: give `Texts` instead of strings.

        Returns:
            one answer per question, in the questions' order.
        """
        if inference_method not in ("rank", "generate"):
            raise ValueError(f"inference_method is {inference_method!r}; it must be 'rank' or 'generate'")
        states, mask, _ = self.forward_encoder(samples)
        if inference_method == "generate":
            options = GenerationOptions(num_beams=num_beams, max_length=max_len, min_length=min_len)
            out = write_answers(self.text_decoder, self.tokenizer, self.bos_id, states, mask, options)
        else:
            if not answer_list:
                raise ValueError("inference_method 'rank' needs answer_list, the answers to choose from")
            out = self._rank_answers(states, mask, list(answer_list), num_ans_candidates)
        return out if return_scores else out.texts

    def _rank_answers(
        self, states: torch.Tensor, mask: torch.Tensor, answers: list[str], candidates: int
    ) -> Texts:
        if candidates < 1:
            raise ValueError(f"num_ans_candidates is {candidates}; it must be at least 1")
        questions, device = states.shape[0], states.device
        ids, answer_mask = self._answers(answers)  # (A, T)
        # twins would take one another's places and halve one another's probability
        alone = [i for i, twin in enumerate(_repeated(ids)) if not twin]
        if len(alone) < len(answers):
            answers, ids, answer_mask = [answers[i] for i in alone], ids[alone], answer_mask[alone]
        candidates = min(candidates, len(answers))
        memory = self.text_decoder.project_memory(states, mask)
        first = self.text_decoder(self._start(questions, device), memory=memory)[:, 0]  # (Q, V)
        chances = first.float().softmax(dim=-1).index_select(1, ids[:, 1])  # (Q, A) of the first token
        top = chances.topk(candidates, dim=1).indices  # (Q, K)
        return self._best(
            [[answers[i] for i in row] for row in top.tolist()], memory, ids[top], answer_mask[top]
        )

    @inference
    def choose(
        self, samples: Mapping[str, Any], choices: Sequence[Sequence[str]], *, return_scores: bool = False
    ) -> list[str] | Texts:
        """Answer questions that come with answers to choose from, as A-OKVQA's do.

        Args:
            samples: as for `predict_answers`. choices: K answers for each of the Q questions.
            return_scores: give `Texts` instead of strings.

        Returns:
            the answer with the smallest smoothed loss, for each question.

        Raises:
            ValueError: there are not as many lists as questions, or they are not equally long.
        """
        states, mask, _ = self.forward_encoder(samples)
        lengths = {len(c) for c in choices}
        if len(choices) != len(states) or len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"choices has {len(choices)} lists of {sorted(lengths)} answers for {len(states)} questions; each "
                "question needs a list, all of them equally long"
            )
        ids, answer_mask = self._answers([a for given in choices for a in given])
        shape = (len(states), -1, ids.shape[1])  # (Q, K, T)
        memory = self.text_decoder.project_memory(states, mask)
        ids = ids.view(shape)
        twins = torch.tensor([_repeated(row) for row in ids], device=ids.device)  # (Q, K)
        out = self._best([list(c) for c in choices], memory, ids, answer_mask.view(shape), twins)
        return out if return_scores else out.texts

    def _best(
        self,
        candidates: list[list[str]],
        memory: Memory,
        ids: torch.Tensor,
        mask: torch.Tensor,
        twins: torch.Tensor | None = None,
    ) -> Texts:
        """Of each question's K candidates, whose ids are (Q, K, T), the one with the smallest loss; those that are told
        to be `twins` (Q, K) of earlier ones don't count."""
        losses = generation.sequence_losses(
            self.text_decoder, memory, ids.flatten(0, 1), mask.flatten(0, 1), SMOOTHING
        ).view(len(candidates), -1)  # (Q, K)
        if twins is not None:
            losses = losses.masked_fill(twins, torch.inf)
        lowest, best = losses.min(dim=1)
        share = (-losses).softmax(dim=1).gather(1, best[:, None]).squeeze(1)
        found = torch.stack([best.float(), -lowest, share]).cpu()
        check_finite(found.T)
        places, logprobs, shares = found.tolist()
        chosen = [given[int(i)] for given, i in zip(candidates, places, strict=True)]
        return Texts(chosen, logprobs, shares)

    @prepared
    def explain_text(
        self, samples: Mapping[str, Any], text: str | None, layer: int | None = None
    ) -> Explanation:
        """The log-probability of the model's answer, by the words of the question."""
        samples = {**samples, "text_input": [text]}
        found = Answering.predict_answers(self, samples, inference_method="generate")
        assert isinstance(found, list)
        ids, mask = self._answers(found)
        labels = ids.masked_fill(~mask, IGNORE)

        def likely() -> torch.Tensor:
            states, question_mask, _ = self.forward_encoder(samples)
            memory = self.text_decoder.project_memory(states, question_mask)
            logits = self.text_decoder(ids, mask=mask, memory=memory)
            return -language_modelling_loss(logits, labels, smoothing=0.0, per_text=True)

        # the decoder reads every word's state, so the last layer counts
        said = found[0].strip()
        return heat_maps.explained_text(self, text or "", layer, likely, lambda: said, last=True)


def _repeated(ids: torch.Tensor) -> list[bool]:
    """Of texts as padded ids (A, T), which are the same as an earlier one."""
    seen: set[tuple[int, ...]] = set()
    out = []
    for row in map(tuple, ids.tolist()):
        out.append(row in seen)
        seen.add(row)
    return out
