"""BLIP (Li et al. 2022, "BLIP: Bootstrapping Language-Image Pre-training", arXiv 2201.12086).

A picture encoder (ViT) and text transformers that look at its states. Here: captioning (section 5.2)
and visual question answering (section 5.3).

B pictures, G texts per picture, T tokens, N image tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from lavis.common.registry import registry
from lavis.models.base import BaseModel, Output, Preset
from lavis.models.checkpoints import TRAINING_STATE, TRANSFORMERS_BLIP, Rules
from lavis.models.tokenizer import ASSETS, Tokenizer
from lavis.nn import generation
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import Memory, TextConfig, TextDecoder, TextTransformer
from lavis.nn.vit import VIT_BASE, VIT_LARGE, VisionTransformer, ViTConfig, interpolate_positions

SMOOTHING = 0.1  # label smoothing of the language-model loss, in training and when answers are ranked

F = TypeVar("F", bound=Callable[..., Any])


def inference(method: F) -> F:
    """Run without autograd and without dropout, whatever mode the model is in; the mode is put back."""

    @wraps(method)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        training = self.training
        if training:
            self.eval()
        try:
            with torch.no_grad():
                return method(self, *args, **kwargs)
        finally:
            if training:
                self.train()

    return wrapped  # type: ignore[return-value]


# --------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class BlipConfig:
    """Sizes and text rules of a BLIP model; the defaults are the base captioner's.

    Attributes:
        image_size: pixels; pictures are squares.
        prompt: what every caption begins with; not counted in the loss, cut off what is generated.
        max_txt_len: tokens of a caption or question that are read, [CLS] and [SEP] included.
        vocabulary: "bert", "tiny", or the path of a WordPiece vocabulary file.
        cover: for small vocabularies, see `Tokenizer`.
        grad_checkpointing: how many of the ViT's last blocks recompute their activations.
    """

    image_size: int = 384
    vit: ViTConfig = VIT_BASE
    text: TextConfig = field(default_factory=TextConfig)
    prompt: str = "a picture of "
    max_txt_len: int = 40
    vocabulary: str = "bert"
    cover: bool = False
    grad_checkpointing: int = 0


# 1.9 million parameters as a captioner: for tests, for the embedded data, for a first try on own small data.
# Narrow layers start from larger weights than 0.02, or a picture's signal drowns for hundreds of steps.
TINY_VIT = ViTConfig(width=128, depth=4, heads=4, patch_size=8, init_std=0.06)
TINY_TEXT = TextConfig(
    vocab_size=1602,
    width=128,
    depth=3,
    heads=4,
    hidden=512,
    max_positions=64,
    memory_width=128,
    dropout=0.0,
    attention_dropout=0.0,
    init_std=0.06,
)

_GS = "https://storage.googleapis.com/sfr-vision-language-research/"
_IMAGES = {"train": {"name": "blip_image_train"}, "eval": {"name": "blip_image_eval"}}
_CAPTIONS = {
    "train": {"name": "blip_caption", "prompt": "a picture of "},
    "eval": {"name": "blip_caption"},
}
_QUESTIONS = {"train": {"name": "blip_question"}, "eval": {"name": "blip_question"}}
_OFFICIAL = "BSD-3-Clause (the official repository's; none is stated for the weights themselves)"


# --------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class DecoderOutput(Output):
    """loss: scalar, or (texts,) before weighting; logits: (texts, T, V)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class BlipIntermediateOutput(Output):
    """States on the way: image_embeds (B, N, D), encoder_output (B·G, T, D), decoder_labels (texts, T)."""

    image_embeds: torch.Tensor | None = None
    encoder_output: torch.Tensor | None = None
    decoder_output: DecoderOutput | None = None
    decoder_labels: torch.Tensor | None = None


@dataclass(frozen=True)
class BlipOutput(Output):
    """What `forward` returns: `loss`, its parts, and the states on the way."""

    sims: Any = None
    intermediate_output: BlipIntermediateOutput | None = None
    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    loss_lm: torch.Tensor | None = None


@dataclass(frozen=True)
class Texts:
    """Generated texts or answers with their confidence, in the order of the pictures.

    texts: strings. logprobs: natural logarithm of each text's probability. scores: what they were
    ranked by (beam search and sampling: logprob per token; ranked answers: probability among the
    candidates).
    """

    texts: list[str]
    logprobs: list[float]
    scores: list[float]


# ------------------------------------------------------------------------------------------ base


class Blip(BaseModel):
    """What BLIP's heads share: the picture encoder, the tokenizer, reading of samples."""

    config: BlipConfig
    tokenizer: Tokenizer
    FOREIGN_RULES = (TRANSFORMERS_BLIP,)

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        named = {"bert": "bert-base-uncased.txt", "tiny": "tiny_vocab.txt"}
        vocabulary = ASSETS / named[config.vocabulary] if config.vocabulary in named else config.vocabulary
        self.tokenizer = Tokenizer(vocabulary, cover=config.cover)
        if len(self.tokenizer) != config.text.vocab_size:
            raise ValueError(
                f"text.vocab_size is {config.text.vocab_size}, but the vocabulary {self.tokenizer.vocabulary.name} "
                f"with [DEC] and [ENC] has {len(self.tokenizer)} tokens; set the two alike"
            )
        if config.text.memory_width != config.vit.width:
            raise ValueError(
                f"text.memory_width is {config.text.memory_width}, but the pictures' states are {config.vit.width} wide"
            )
        self.bos_id, self.enc_id = self.tokenizer.id("[DEC]"), self.tokenizer.id("[ENC]")
        self.visual_encoder = VisionTransformer(config.vit, config.image_size, config.grad_checkpointing)

    def reset_parameters(self) -> None:
        for child in self.children():
            child.reset_parameters()  # type: ignore[operator]

    def _image(self, samples: Mapping[str, Any]) -> torch.Tensor:  # (B, 3, h, w)
        if "image" not in samples:
            raise ValueError(f"samples need an 'image', (B, 3, h, w); they have {', '.join(samples)}")
        return samples["image"].to(self.device, non_blocking=True)

    def _texts(self, texts: str | Sequence[str], pictures: int) -> list[str]:
        """A list whose length is a multiple of the number of pictures; one text serves all of them."""
        texts = [texts] * pictures if isinstance(texts, str) else list(texts)
        if not texts or len(texts) % pictures:
            raise ValueError(
                f"there are {len(texts)} texts for {pictures} pictures; give one per picture, or the same number "
                "for each, a picture's texts next to one another"
            )
        return texts

    def _start(self, rows: int, device: torch.device) -> torch.Tensor:  # (rows, 1)
        return torch.full((rows, 1), self.bos_id, dtype=torch.long, device=device)


# ------------------------------------------------------------------------------------ captioning


@registry.register_model("blip_caption")
class BlipCaption(Blip):
    """BLIP captioner: ViT and a causal text decoder over its states (BLIP paper, figure 2, LM)."""

    registered_name = "blip_caption"
    RULES = Rules(drop=TRAINING_STATE)
    PRETRAINED_RULES = Rules(
        drop=(
            *TRAINING_STATE,
            "text_encoder.*",
            "vision_proj.*",
            "text_proj.*",
            "itm_head.*",
        ),
        resize={"visual_encoder.pos_embed": lambda t, shape: interpolate_positions(t, shape[1])},
    )
    PRESETS: ClassVar[dict[str, Preset]] = {
        "base_coco": Preset(
            config=BlipConfig(),
            weights=_GS + "LAVIS/models/BLIP/blip_coco_caption_base.pth",
            pretrained=_GS + "BLIP/models/model_base_capfilt_large.pth",
            vis_processor=_IMAGES,
            text_processor=_CAPTIONS,
            licence=_OFFICIAL,
            note="ViT-B/16 at 384 px, fine-tuned on COCO captions",
        ),
        "large_coco": Preset(
            config=BlipConfig(
                vit=VIT_LARGE, text=TextConfig(memory_width=VIT_LARGE.width), grad_checkpointing=5
            ),
            weights=_GS + "BLIP/models/model_large_caption.pth",
            pretrained=_GS + "BLIP/models/model_large.pth",
            vis_processor=_IMAGES,
            text_processor=_CAPTIONS,
            licence=_OFFICIAL,
            note="ViT-L/16 at 384 px, fine-tuned on COCO captions",
        ),
        "tiny": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, max_txt_len=48, vocabulary="tiny", cover=True
            ),
            vis_processor=_IMAGES,
            text_processor=_CAPTIONS,
            licence="none needed: no weights",
            commercial=True,
            note="random starting weights, 64 px; for tests and small data",
        ),
        "tiny_shapes": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, max_txt_len=48, vocabulary="tiny", cover=True
            ),
            weights=str(ASSETS / "tiny_shapes"),
            vis_processor=_IMAGES,
            text_processor=_CAPTIONS,
            licence="BSD-3-Clause",
            commercial=True,
            note="in the package; knows drawings of coloured shapes and nothing else",
        ),
    }

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.text_decoder = TextDecoder(config.text)
        self.prompt = config.prompt
        self.prompt_length = len(self.tokenizer.encode(config.prompt)) - 1  # without [SEP]

    def tie_weights(self) -> None:
        self.text_decoder.tie_weights()

    def forward_encoder(self, samples: Mapping[str, Any]) -> torch.Tensor:
        """States of the pictures, (B, N, D)."""
        return self.visual_encoder(self._image(samples))

    def forward_decoder(
        self, samples: Mapping[str, Any], image_embeds: torch.Tensor
    ) -> tuple[DecoderOutput, torch.Tensor]:
        """Loss and logits of the captions given the pictures' states; and the labels."""
        texts = self._texts(samples["text_input"], image_embeds.shape[0])
        tokens = self.tokenizer(texts, max_length=self.config.max_txt_len, device=image_embeds.device)
        ids = tokens.ids
        ids[:, 0] = self.bos_id
        labels = ids.masked_fill(~tokens.mask, IGNORE)
        labels[:, : self.prompt_length] = IGNORE
        memory = self.text_decoder.project_memory(image_embeds)
        logits = self.text_decoder(ids, mask=tokens.mask, memory=memory)  # (B·G, T, V)
        loss = language_modelling_loss(logits, labels, smoothing=SMOOTHING)
        return DecoderOutput(loss=loss, logits=logits), labels

    def forward(self, samples: Mapping[str, Any]) -> BlipOutput:
        """Language-model loss of captions.

        Args:
            samples: `image` (B, 3, h, w) and `text_input`, B·G captions that begin with the prompt
                (the training text processor puts it there), a picture's captions side by side.

        Returns:
            `loss` = `loss_lm`: mean smoothed cross entropy over the tokens after the prompt (nats);
            `intermediate_output` with image_embeds, decoder_output and decoder_labels.
        """
        image_embeds = self.forward_encoder(samples)
        decoder_output, labels = self.forward_decoder(samples, image_embeds)
        return BlipOutput(
            loss=decoder_output.loss,
            loss_lm=decoder_output.loss,
            intermediate_output=BlipIntermediateOutput(
                image_embeds=image_embeds, decoder_output=decoder_output, decoder_labels=labels
            ),
        )

    @inference
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        num_captions: int = 1,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        length_penalty: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 50,
        seed: int | None = None,
        return_scores: bool = False,
    ) -> list[str] | Texts:
        """Caption pictures.

        Args:
            samples: `image` (B, 3, h, w).
            use_nucleus_sampling: draw from the likeliest tokens (`top_p`, `top_k`, `temperature`)
                instead of beam search; `seed` makes the draw repeatable, batched or not.
            num_beams: 1 is greedy.
            max_length, min_length: tokens of the whole text, start token and prompt included.
            max_new_tokens, min_new_tokens: the same without start token and prompt; they win.
            top_p, top_k, temperature: of nucleus sampling; top_k 0 is off (50 is what the original's
                generator did without saying).
            repetition_penalty: above 1 makes tokens that have occurred less likely.
            length_penalty: exponent of the length that beam scores are divided by.
            num_captions: texts per picture; with beams, the best ones found.
            return_scores: give `Texts` (with log-probabilities) instead of strings.

        Returns:
            B·num_captions captions without the prompt, a picture's next to one another, best first.
        """
        image_embeds = self.forward_encoder(samples)
        items = image_embeds.shape[0]
        prompt_ids = [self.bos_id, *self.tokenizer.encode(self.prompt)[1:-1]]
        rules = generation.Rules(
            max_length=max_length if max_new_tokens is None else len(prompt_ids) + max_new_tokens,
            min_length=min_length if min_new_tokens is None else len(prompt_ids) + min_new_tokens,
            end=self.tokenizer.sep_id,
            pad=self.tokenizer.pad_id,
            num_beams=num_beams,
            num_return=num_captions,
            repetition_penalty=repetition_penalty,
            length_penalty=length_penalty,
            sample=use_nucleus_sampling,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        prompt = torch.tensor([prompt_ids] * items, device=image_embeds.device)
        memory = self.text_decoder.project_memory(image_embeds)
        decoded = generation.generate(self.text_decoder.begin(memory, items, rules.max_length), prompt, rules)
        # Cut by characters, as the original does: a caption that begins with a "##" piece is glued
        # to the prompt and loses its first character.
        texts = [self.tokenizer.decode(row)[len(self.prompt) :] for row in decoded.ids.tolist()]
        if return_scores:
            return Texts(texts, decoded.logprobs.tolist(), decoded.scores.tolist())
        return texts


# --------------------------------------------------------------------- visual question answering


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
            weights=_GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            pretrained=_GS + "BLIP/models/model_base_capfilt_large.pth",
            vis_processor=_IMAGES,
            text_processor=_QUESTIONS,
            licence=_OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on VQAv2 (validation split included)",
        ),
        "okvqa": Preset(
            config=_CONFIG,
            weights=_GS + "LAVIS/models/BLIP/blip_okvqa.pth",
            pretrained=_GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            vis_processor=_IMAGES,
            text_processor=_QUESTIONS,
            licence=_OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on OK-VQA",
        ),
        "aokvqa": Preset(
            config=_CONFIG,
            weights=_GS + "LAVIS/models/BLIP/blip_aokvqa.pth",
            pretrained=_GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            vis_processor=_IMAGES,
            text_processor=_QUESTIONS,
            licence=_OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on A-OKVQA",
        ),
        "tiny": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, prompt="", vocabulary="tiny", cover=True
            ),
            vis_processor=_IMAGES,
            text_processor=_QUESTIONS,
            licence="none needed: no weights",
            commercial=True,
            note="random starting weights, 64 px; for tests and small data",
        ),
        "tiny_easy_vqa": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, prompt="", vocabulary="tiny", cover=True
            ),
            weights=str(ASSETS / "tiny_easy_vqa"),
            vis_processor=_IMAGES,
            text_processor=_QUESTIONS,
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

    def forward(self, samples: Mapping[str, Any]) -> BlipOutput:
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
        return BlipOutput(
            loss=loss,
            loss_lm=loss,
            intermediate_output=BlipIntermediateOutput(
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
