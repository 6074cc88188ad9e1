"""BLIP for visual question answering (BLIP paper, section 5.3).

B pictures, G questions per picture, T tokens, A answers, Q = B·G questions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from lavis.common.registry import registry
from lavis.models.base import Preset, inference
from lavis.models.blip import GS, IMAGES, OFFICIAL, SMOOTHING, TINY_TEXT, TINY_VIT, Blip, BlipConfig
from lavis.models.checkpoints import TRAINING_STATE, Rules
from lavis.models.outputs import DecoderOutput, IntermediateOutput, LossOutput, Texts
from lavis.models.tokenizer import ASSETS
from lavis.nn import generation
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import Memory, TextConfig, TextDecoder, TextTransformer
from lavis.nn.vit import ViTConfig, interpolate_positions

QUESTIONS = {"train": {"name": "blip_question"}, "eval": {"name": "blip_question"}}


@registry.register_model("blip_vqa")
class BlipVQA(Blip):
    """BLIP for VQA: an image-grounded question encoder and an answer decoder over its states
    (BLIP paper, figure 5a)."""

    registered_name = "blip_vqa"
    RULES = Rules(drop=TRAINING_STATE)
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, "vision_proj.*", "text_proj.*", "itm_head.*"),
        resize={"visual_encoder.pos_embed": lambda t, shape: interpolate_positions(t, shape[1])},
    )
    _CONFIG = BlipConfig(image_size=480, vit=ViTConfig(drop_path=0.1), prompt="", max_txt_len=35)
    PRESETS: ClassVar[dict[str, Preset]] = {
        "vqav2": Preset(
            config=_CONFIG,
            weights=GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            pretrained=GS + "BLIP/models/model_base_capfilt_large.pth",
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence=OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on VQAv2 (validation split included)",
        ),
        "okvqa": Preset(
            config=_CONFIG,
            weights=GS + "LAVIS/models/BLIP/blip_okvqa.pth",
            pretrained=GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence=OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on OK-VQA",
        ),
        "aokvqa": Preset(
            config=_CONFIG,
            weights=GS + "LAVIS/models/BLIP/blip_aokvqa.pth",
            pretrained=GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence=OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on A-OKVQA",
        ),
        "tiny": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, prompt="", vocabulary="tiny", cover=True
            ),
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence="none needed: no weights",
            commercial=True,
            note="random starting weights, 64 px; for tests and small data",
        ),
        "tiny_easy_vqa": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, prompt="", vocabulary="tiny", cover=True
            ),
            weights=str(ASSETS / "tiny_easy_vqa"),
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence="BSD-3-Clause; trained on easy-VQA (MIT)",
            commercial=True,
            note="in the package; knows easy-VQA's questions about one coloured shape",
        ),
    }

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.text_encoder = TextTransformer(config.text)
        # the decoder reads the question's states, not the picture's
        answer = TextConfig(**{**vars(config.text), "memory_width": config.text.width})
        self.text_decoder = TextDecoder(answer)

    def tie_weights(self) -> None:
        self.text_decoder.tie_weights()

    # ------------------------------------------------------------------------------ questions
    def forward_encoder(self, samples: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode pictures once and their questions over them.

        Returns:
            question states (B·G, T, D), their mask (B·G, T), picture states (B, N, D).
        """
        image_embeds = self.visual_encoder(self._image(samples))
        questions = self._texts(samples["text_input"], image_embeds.shape[0])
        tokens = self.tokenizer(questions, max_length=self.config.max_txt_len, device=image_embeds.device)
        tokens.ids[:, 0] = self.enc_id
        memory = self.text_encoder.project_memory(image_embeds)
        states = self.text_encoder(tokens.ids, mask=tokens.mask, memory=memory)
        return states, tokens.mask, image_embeds

    def _answers(self, answers: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (A, T), begun with [DEC], and their mask; answers are never cut."""
        tokens = self.tokenizer(list(answers), device=device)
        tokens.ids[:, 0] = self.bos_id
        return tokens.ids, tokens.mask

    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Loss of answers given pictures and questions.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B·G questions; `answer`, a flat list;
                `n_answers` (B·G,), how many belong to each question; `weight`, one per answer.

        Returns:
            `loss`: sum over answers of weight x smoothed sequence loss (nats), per question;
            `intermediate_output` with image_embeds, encoder_output, decoder_output, decoder_labels.
        """
        states, mask, image_embeds = self.forward_encoder(samples)
        questions, device = states.shape[0], states.device
        counts = torch.as_tensor(samples["n_answers"], device=device)
        weight = torch.as_tensor(samples["weight"], device=device, dtype=torch.float32)
        ids, answer_mask = self._answers(samples["answer"], device)
        if counts.shape[0] != questions or int(counts.sum()) != len(ids) or weight.shape[0] != len(ids):
            raise ValueError(
                f"{questions} questions, n_answers for {counts.shape[0]} of them with the sum {int(counts.sum())}, "
                f"{len(ids)} answers and {weight.shape[0]} weights do not go together"
            )
        memory = self._question_memory(states, mask, counts)
        labels = ids.masked_fill(~answer_mask, IGNORE)
        logits = self.text_decoder(ids, mask=answer_mask, memory=memory)
        each = language_modelling_loss(logits, labels, smoothing=SMOOTHING, per_text=True)  # (A,)
        loss = (weight * each).sum() / questions
        return LossOutput(
            loss=loss,
            loss_lm=loss,
            intermediate_output=IntermediateOutput(
                image_embeds=image_embeds,
                encoder_output=states,
                decoder_output=DecoderOutput(loss=each, logits=logits),
                decoder_labels=labels,
            ),
        )

    def _question_memory(self, states: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor) -> Memory:
        """The questions' memory, as a view where all have as many answers, else copied."""
        memory = self.text_decoder.project_memory(states, mask)
        if bool((counts == counts[0]).all()):
            return memory
        return memory.repeat(counts)

    # ------------------------------------------------------------------------------ answers
    @inference
    def predict_answers(
        self,
        samples: Mapping[str, Any],
        num_beams: int = 3,
        inference_method: str = "rank",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        *,
        return_scores: bool = False,
        **unused: Any,
    ) -> list[str] | Texts:
        """Answer questions about pictures.

        Args:
            samples: `image` (B, 3, h, w) and `text_input`: a question, or B·G of them.
            num_beams, max_len, min_len: of "generate"; lengths in tokens, start token included.
            inference_method: "rank" chooses from `answer_list`: the `num_ans_candidates` answers whose
                first tokens are likeliest, then the one with the smallest smoothed loss. "generate"
                writes an answer with beam search.
            return_scores: give `Texts` instead of strings.

        Returns:
            one answer per question, in the questions' order.
        """
        if inference_method not in ("rank", "generate"):
            raise ValueError(f"inference_method is {inference_method!r}; it must be 'rank' or 'generate'")
        states, mask, _ = self.forward_encoder(samples)
        if inference_method == "generate":
            out = self._generate_answers(states, mask, num_beams, max_len, min_len)
        else:
            if not answer_list:
                raise ValueError("inference_method 'rank' needs answer_list, the answers to choose from")
            out = self._rank_answers(states, mask, list(answer_list), num_ans_candidates)
        return out if return_scores else out.texts

    def _generate_answers(
        self, states: torch.Tensor, mask: torch.Tensor, num_beams: int, max_len: int, min_len: int
    ) -> Texts:
        rules = generation.Rules(
            max_length=max_len,
            min_length=min_len,
            end=self.tokenizer.sep_id,
            pad=self.tokenizer.pad_id,
            num_beams=num_beams,
        )
        memory = self.text_decoder.project_memory(states, mask)
        decoding = self.text_decoder.begin(memory, states.shape[0], max_len)
        decoded = generation.generate(decoding, self._start(states.shape[0], states.device), rules)
        texts = [self.tokenizer.decode(row) for row in decoded.ids.tolist()]
        return Texts(texts, decoded.logprobs.tolist(), decoded.scores.tolist())

    def _rank_answers(
        self, states: torch.Tensor, mask: torch.Tensor, answers: list[str], candidates: int
    ) -> Texts:
        if candidates < 1:
            raise ValueError(f"num_ans_candidates is {candidates}; it must be at least 1")
        questions, device = states.shape[0], states.device
        candidates = min(candidates, len(answers))
        ids, answer_mask = self._answers(answers, device)  # (A, T)
        memory = self.text_decoder.project_memory(states, mask)
        first = self.text_decoder(self._start(questions, device), memory=memory)[:, 0]  # (Q, V)
        chances = first.float().softmax(dim=-1).index_select(1, ids[:, 1])  # (Q, A) of the first token
        top = chances.topk(candidates, dim=1).indices  # (Q, K)
        losses = generation.sequence_losses(
            self.text_decoder, memory, ids[top].flatten(0, 1), answer_mask[top].flatten(0, 1), SMOOTHING
        ).view(questions, candidates)
        best = losses.argmin(dim=1)
        chosen = top.gather(1, best[:, None]).squeeze(1)
        lowest = losses.gather(1, best[:, None]).squeeze(1)
        share = (-losses).softmax(dim=1).gather(1, best[:, None]).squeeze(1)
        return Texts([answers[i] for i in chosen.tolist()], (-lowest).tolist(), share.tolist())
