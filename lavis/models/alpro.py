"""ALPRO (Li et al. 2022, "Align and Prompt: Video-and-Language Pre-training with Entity Prompts", arXiv 2112.09583).

A TimeSformer reads the video, the first half of a BERT the text; the second half reads both side by side by
self-attention (section 3.1). Features, retrieval (section 3.5), question answering.

B videos, T frames, G texts per video, R = B·G texts, L text tokens, N = 1 + patches video tokens, D width, E width
of a feature, C classes, W = B x ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lavis.common.registry import registry
from lavis.models.alignment import Alignment
from lavis.models.base import inference, own_step
from lavis.models.checkpoints import Rules, StateDict
from lavis.models.classification import ClassEncoder, Classifier, States, some_names
from lavis.models.fusion import JointFusion, TextStates
from lavis.models.outputs import (
    Features,
    LossOutput,
    OutputWithLogits,
    Texts,
)
from lavis.models.pair_training import Objective
from lavis.models.presets import GS
from lavis.models.samples import media_of
from lavis.models.tokenizer import Tokens
from lavis.models.vision_text import VisionTextConfig
from lavis.nn.text import TextConfig, TextTransformer
from lavis.nn.timesformer import TimeSformer, resize_places, resize_times
from lavis.nn.vit import ViTConfig

TIMESFORMER_BASE = ViTConfig(drop_path=0.1)
BERT_BASE = TextConfig(vocab_size=30522, cross_from=12, token_types=2)


@dataclass(frozen=True)
class AlproConfig(VisionTextConfig):
    """
    Attributes:
        frames: frames of a video; other numbers work too, see `TimeSformer`.
        fuse_from: the text transformer's first layer that reads text and video side by side.
        embed_dim: width of the projected features.
    """

    image_size: int = 224
    vit: ViTConfig = TIMESFORMER_BASE
    text: TextConfig = BERT_BASE
    max_txt_len: int = 35
    frames: int = 8
    fuse_from: int = 6
    embed_dim: int = 256


@dataclass(frozen=True)
class AlproQAConfig(AlproConfig):
    """
    Attributes:
        num_classes: answers to choose from; None: as many as the file that is loaded has.
        classnames: what they are called, in their order; None: unknown.
    """

    max_txt_len: int = 40
    frames: int = 16
    grad_checkpointing: int = 12
    num_classes: int | None = None
    classnames: tuple[str, ...] | None = None


FILES = GS + "LAVIS/models/ALPRO/"
PRETRAINED = FILES + "alpro_pretrain.pt"

RENAME = ((r"^text_encoder\.bert\.", "text_encoder."),)  # pre-trained with an LM head above
_RESIZE = {
    "visual_encoder.model.pos_embed": lambda t, shape: resize_places(t, shape[1]),
    "visual_encoder.model.time_embed": lambda t, shape: resize_times(t, shape[1]),
}
# heads and teacher of pre-training (masked words, entity prompts), and the TimeSformer's own classifier
PRETRAINING = ("text_encoder.cls.*", "mpm_head.*", "prompter.*", "visual_encoder.model.head.*")
MATCHING = ("temp", "vision_proj.*", "text_proj.*", "itm_head.*")


class Alpro:
    """What ALPRO's models share: `video` in samples, the two encoders, the fusion."""

    MEDIA = "video"
    IMAGE_BLOCKS = "visual_encoder.model.blocks"
    explain_text: Any = None  # words don't cross-attend to videos

    part: Any
    config: Any

    def text_reader(self, config: Any) -> TextTransformer:
        if config.text.width != config.vit.width:
            raise ValueError(
                f"text.width is {config.text.width} and vit.width {config.vit.width}; ALPRO lays states of texts and "
                "videos side by side, so they must be equal"
            )
        encoder = TextTransformer(config.text)
        encoder.fusion_layer = config.fuse_from
        return encoder

    def image_encoder(self, config: Any) -> nn.Module:
        return TimeSformer(config.vit, config.image_size, config.frames, config.grad_checkpointing)

    def preprocess_config(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The processors of this model's preset, for its own image size and number of frames."""
        config: dict[str, dict[str, dict[str, Any]]] = super().preprocess_config()  # type: ignore[misc]
        for phase in config["vis_processor"].values():
            phase["n_frms"] = self.config.frames
        return config


# --------------------------------------------------------------------------------------- features


@registry.register_model("alpro_feature_extractor")
class AlproFeatureExtractor(Alpro, JointFusion, Alignment):
    """States and projections of videos, texts, and of both together."""

    registered_name = "alpro_feature_extractor"
    MATCHES = TEMPERATURE = False
    match_texts = None  # type: ignore[assignment]  # for want of that head
    # files of the retrieval models will do, too
    RULES = Rules(rename=RENAME, drop=(*PRETRAINING, "temp", "itm_head.*"), resize=_RESIZE)
    PRETRAINED_RULES = RULES

    @classmethod
    def complete(cls, config: AlproConfig, state: StateDict) -> AlproConfig:
        """The number of frames is the file's."""
        times = state.get("visual_encoder.model.time_embed")
        return config if times is None else replace(config, frames=times.shape[1])

    @inference
    def extract_features(self, samples: Mapping[str, Any], mode: str = "multimodal") -> Features:
        """Features of videos and texts.

        Args:
            samples: `video` (B, 3, T, h, w) and `text_input`, B·G texts; "video" and "text" need only one.
            mode: "video": video_embeds (B, N, D), averaged over frames, and video_embeds_proj (B, N, E). "text":
                text_embeds (R, L, D), text_embeds_proj (R, L, E). "multimodal": all of these, and
                multimodal_embeds (R, L + N, D), texts and videos after they have read each other. Projections
                have length 1; token 0 stands for the whole.

        Returns:
            the fields of the mode. Texts are not cut.
        """
        if mode not in ("video", "text", "multimodal"):
            raise ValueError(f"mode is {mode!r}; it must be video, text or multimodal")
        found = self._features(samples, "image" if mode == "video" else mode)
        return replace(
            found,
            image_embeds=None,
            image_embeds_proj=None,
            video_embeds=found.image_embeds,
            video_embeds_proj=found.image_embeds_proj,
        )


# -------------------------------------------------------------------------------------- retrieval


@registry.register_model("alpro_retrieval")
class AlproRetrieval(Alpro, JointFusion, Alignment):
    """Clips and texts find each other: contrast within the batch, and matching (ALPRO paper, section 3.2)."""

    registered_name = "alpro_retrieval"
    OBJECTIVE = Objective(masked=True)
    RULES = Rules(rename=RENAME, drop=PRETRAINING)
    PRETRAINED_RULES = Rules(rename=RENAME, drop=PRETRAINING, resize=_RESIZE)

    @property
    def reranking_text_length(self) -> int:
        return self.config.max_txt_len

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Contrastive plus matching loss.

        Args:
            samples: `video` (B, 3, T, h, w); `text_input`, B texts.

        Returns:
            loss = loss_vtc + loss_vtm (nats), intermediate_output. The contrast is with the videos and texts of all
            ranks, through which gradients flow; hard negatives are of the own rank.
        """
        out = self.training_loss(self.encoded(samples))
        states = out.intermediate_output
        assert states is not None
        return LossOutput(
            intermediate_output=replace(
                states,
                image_embeds=None,
                itm_logits=None,
                itm_labels=None,
                video_embeds=states.image_embeds,
                vtm_logits=states.itm_logits,
                vtm_labels=states.itm_labels,
            ),
            loss=out.loss,
            loss_vtc=out.loss_itc,
            loss_vtm=out.loss_itm,
        )


# ------------------------------------------------------------------------------ question answering


@registry.register_model("alpro_qa")
class AlproQA(Alpro, JointFusion, Classifier):
    """Answers questions about clips by choosing among C frequent answers (ALPRO paper, section 4.3)."""

    registered_name = "alpro_qa"
    HEAD = "classifier"
    HEAD_WIDTH = 2
    LABELS = "answers"
    RULES = Rules(rename=RENAME, drop=(*PRETRAINING, *MATCHING))
    PRETRAINED_RULES = replace(RULES, resize=_RESIZE, fresh=("classifier.*",))

    def forward(
        self, samples: Mapping[str, Any], is_train: bool = True
    ) -> OutputWithLogits | dict[str, torch.Tensor | None]:
        """Classification loss.

        Args:
            samples: `video` (B, 3, T, h, w); `text_input`, B·G questions, a clip's next to one another; `answers`,
                R integers below C.
            is_train: False gives what `predict` gives, but in the mode that the model is in.

        Returns:
            loss (nats), logits (R, C), intermediate_output.
        """
        return super().forward(samples, is_train)

    def batch_encoder(self) -> ClassEncoder:
        """Questions are filled up to `max_txt_len`."""
        return replace(super().batch_encoder(), pad=True)

    def fused(
        self, samples: Mapping[str, Any], tokens: Tokens | None = None, *, ema: bool = False
    ) -> tuple[torch.Tensor, States]:
        """States (R, L + N, D) of questions and videos that have read each other; and text_embeds, video_embeds."""
        tokens = tokens or self.texts(samples)
        video_embeds = self.visual_encoder(media_of(samples, self.MEDIA, self.device))
        text_embeds = self.encode_text(tokens)
        states = self.fuse(TextStates(tokens, text_embeds), self.memorize(video_embeds))
        return states, {"text_embeds": text_embeds, "video_embeds": video_embeds}

    # ------------------------------------------------------------ abilities, see `lavis.inference.protocols`
    def answers_among(self, answers: Sequence[str] | None) -> list[str]:
        """The answers to choose from, each once: of a model whose answers have no names all of them, in order.

        Raises:
            ValueError: the model was not trained for one of them; names are missing, or are too many or too few.
        """
        classes, names = self.config.num_classes, self.classnames
        if names is not None:
            unknown = [a for a in answers or () if a not in names]
            if unknown:
                raise ValueError(
                    f"{self.registered_name} was not trained to answer {some_names(unknown)}; it knows "
                    f"{some_names(names)}"
                )
            return list(dict.fromkeys(answers or names))
        if not answers:
            raise ValueError(
                f"this {self.registered_name} knows {classes} answers by number only; give their names, in order, as "
                "the file that came with its data has them (such as train_ans2label.json)"
            )
        if len(answers) != classes:
            raise ValueError(
                f"this {self.registered_name} knows {classes} answers, but {len(answers)} names are given; it takes "
                "the file that came with its data, such as train_ans2label.json"
            )
        return list(answers)

    @inference
    def predict_answers(
        self,
        samples: Mapping[str, Any],
        *,
        answer_list: Sequence[str] | None = None,
        inference_method: str = "rank",
        return_scores: bool = False,
    ) -> list[str] | Texts:
        """The likeliest answer to each question of those that the model knows.

        Args:
            samples: `video` (B, 3, T, h, w); `text_input`, B·G questions.
            answer_list: see `answers_among`.
            inference_method: "rank", of answers that are numbered there is no other.
            return_scores: give `Texts`, whose scores are probabilities among them.
        """
        if inference_method != "rank":
            raise ValueError(
                f"inference_method is {inference_method!r}; {self.registered_name} chooses among answers, with 'rank'"
            )
        answers = self.answers_among(answer_list)
        logits = self.predict(samples)["predictions"]
        assert logits is not None
        if self.classnames is not None:
            logits = logits[:, [self.classnames.index(name) for name in answers]]
        best = logits.float().log_softmax(dim=1).max(dim=1)  # (R,)
        chances = best.values.exp().tolist()
        out = Texts([answers[i] for i in best.indices.tolist()], best.values.tolist(), chances)
        return out if return_scores else out.texts
