"""What models of a picture encoder and a WordPiece text transformer share (BLIP, ALBEF, ALPRO).

B pictures (or clips), G texts per picture, N image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lavis.models import checkpoints
from lavis.models.base import BaseModel
from lavis.models.folders import locate
from lavis.models.samples import checked_batch, require
from lavis.models.tokenizer import ASSETS, BERT_VOCABULARY, TINY_VOCABULARY, Tokenizer
from lavis.nn import ema as averages
from lavis.nn.language_model import LanguageModel
from lavis.nn.losses import distillation_weight
from lavis.nn.text import TextConfig, TextTransformer
from lavis.nn.timesformer import TimeSformer
from lavis.nn.vit import VIT_BASE, VisionTransformer, ViTConfig, interpolate_positions

# Both Apache-2.0. DeiT-B/16 at 224 px; BERT base, uncased.
STARTING_WEIGHTS = {
    "deit": "https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
    "bert": "google-bert/bert-base-uncased:model.safetensors",
    "tiny_shapes": str(ASSETS / "tiny_shapes"),  # the packaged captioner
    "tiny_shapes_vqa": str(ASSETS / "blip_vqa_shapes"),  # the packaged model for questions about drawings
}
VOCABULARIES = {"bert": BERT_VOCABULARY, "tiny": TINY_VOCABULARY}


@dataclass(frozen=True)
class VisionTextConfig:
    """Sizes and text rules.

    Attributes:
        image_size: pixels; pictures are squares.
        max_txt_len: tokens of a text that are read, [CLS] and [SEP] included.
        vocabulary: "bert", "tiny", or the path of a WordPiece vocabulary file.
        cover: for small vocabularies, see `Tokenizer`.
        grad_checkpointing: how many of the ViT's last blocks recompute their activations.
        momentum: how slowly the EMA copies follow, per step.
        alpha: greatest weight of the EMA's opinion in the losses.
        for_training: whether EMA copies and queues exist, where the class has any; predicting needs none.
    """

    image_size: int = 384
    vit: ViTConfig = VIT_BASE
    text: TextConfig = field(default_factory=TextConfig)
    max_txt_len: int = 40
    vocabulary: str = "bert"
    cover: bool = False
    grad_checkpointing: int = 0
    momentum: float = 0.995
    alpha: float = 0.4
    for_training: bool = True


class VisionTextModel(BaseModel):
    """The picture encoder, the tokenizer, reading of samples, EMA copies.

    MEDIA: the samples' key of what texts are about.
    EXTRA_TOKENS: special tokens that the family adds to BERT's vocabulary.
    EMA: names of the modules that have an EMA copy, kept as `<name>_m`.
    RAMP_EPOCHS: epochs over which the EMA's weight rises to `alpha`.
    """

    MEDIA = "image"
    EXTRA_TOKENS: tuple[str, ...] = ()
    EMA: tuple[str, ...] = ()
    RAMP_EPOCHS = 2

    config: Any
    tokenizer: Tokenizer

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        vocabulary = VOCABULARIES.get(config.vocabulary, config.vocabulary)
        self.tokenizer = Tokenizer(vocabulary, extra=self.EXTRA_TOKENS, cover=config.cover)
        if len(self.tokenizer) != config.text.vocab_size:
            extra = f" with {' and '.join(self.EXTRA_TOKENS)}" if self.EXTRA_TOKENS else ""
            raise ValueError(
                f"text.vocab_size is {config.text.vocab_size}, but the vocabulary {self.tokenizer.vocabulary.name}"
                f"{extra} has {len(self.tokenizer)} tokens; set the two alike"
            )
        if config.text.memory_width != config.vit.width:
            raise ValueError(
                f"text.memory_width is {config.text.memory_width}, but the pictures' states are {config.vit.width} wide"
            )
        self.visual_encoder = self._vision()

    @classmethod
    def init_tokenizer(cls) -> Tokenizer:
        """The family's tokenizer with BERT's vocabulary."""
        return Tokenizer(extra=cls.EXTRA_TOKENS)

    def _vision(self) -> nn.Module:
        return VisionTransformer(self.config.vit, self.config.image_size, self.config.grad_checkpointing)

    def reset_parameters(self) -> None:
        for child in self.children():
            reset = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()
        averages.copy_weights(self.ema_pairs())

    def start_from(self, init: Mapping[str, str]) -> None:
        """Start modules from other models' weights; cross-attention stays fresh where those have none.

        A video encoder takes an image encoder's; its attention over time begins as a copy of that over places,
        without effect until it is trained, as in the code published with TimeSformer (Bertasius et al. 2021).

        Args:
            init: {"visual_encoder": source, "text_encoder": source, "text_decoder": source}; a source is "deit",
                "bert", "tiny_shapes" or "tiny_shapes_vqa" (`STARTING_WEIGHTS`), or a path, URL or Hugging Face id of
                such a file, or of a model of this library, of which the same module is taken.
        """
        for name, source in init.items():
            module = getattr(self, name, None)
            if isinstance(module, LanguageModel):
                rules = checkpoints.BERT_LANGUAGE_MODEL
            elif isinstance(module, TextTransformer):
                rules = checkpoints.BERT_ENCODER
            elif isinstance(module, (VisionTransformer, TimeSformer)):
                resize = {"pos_embed": lambda t, shape: interpolate_positions(t, shape[1])}
                rules = replace(checkpoints.DEIT, resize=resize)
                if isinstance(module, TimeSformer):
                    module = module.model
                    rules = replace(
                        rules, copy=checkpoints.SPACE_TO_TIME, fresh=("time_embed", "*.temporal_fc.*")
                    )
            else:
                able = [
                    n
                    for n, m in self.named_children()
                    if isinstance(m, (LanguageModel, TextTransformer, VisionTransformer, TimeSformer))
                    and not n.endswith("_m")
                ]
                raise ValueError(
                    f"model.init.{name}: {self.registered_name} can start {', '.join(able)} from a file"
                )
            state = checkpoints.read_state_dict(locate(STARTING_WEIGHTS.get(source, source)))
            state = checkpoints.part_of(state, name)
            checkpoints.load_into(module, state, rules, f"model.init.{name} {source}")
        tie = getattr(self, "tie_weights", None)
        if tie is not None:
            tie()
        averages.copy_weights(self.ema_pairs())

    # ------------------------------------------------------------------------------ samples
    def _image(self, samples: Mapping[str, Any], key: str | None = None) -> torch.Tensor:
        """The pictures (B, 3, h, w) or clips (B, 3, T, h, w) under a key, MEDIA by default."""
        key = key or self.MEDIA
        shape = "(B, 3, frames, h, w)" if self.MEDIA == "video" else "(B, 3, h, w)"
        if key not in samples:
            raise ValueError(f"samples need {key!r}, {shape}; they have {', '.join(samples) or 'nothing'}")
        return checked_batch(samples[key], key, shape).to(self.device, non_blocking=True)

    def _texts(self, samples: Mapping[str, Any], pictures: int, key: str = "text_input") -> list[str]:
        """The texts under a key, in a multiple of the number of pictures; one text serves all of them."""
        require(samples, (key,), "a text or a list of texts")
        texts = samples[key]
        texts = [texts] * pictures if isinstance(texts, str) else list(texts)
        if not texts or len(texts) % pictures:
            raise ValueError(
                f"there are {len(texts)} texts for {pictures} pictures; give one per picture, or the same number "
                "for each, a picture's texts next to one another"
            )
        return texts

    # ------------------------------------------------------------------------------ EMA
    def make_ema(self) -> None:
        """Add `<name>_m` for every name in EMA; to be called when the modules are there."""
        if self.config.for_training:
            for name in self.EMA:
                setattr(self, f"{name}_m", averages.make_ema(getattr(self, name)))

    @property
    def has_ema(self) -> bool:
        return bool(self.EMA) and hasattr(self, f"{self.EMA[0]}_m")

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        if not self.has_ema:
            return []
        return [(getattr(self, name), getattr(self, f"{name}_m")) for name in self.EMA]

    def need_ema(self) -> None:
        """Refuse a loss that the EMA copies take part in, where there are none."""
        if not self.has_ema:
            raise ValueError(
                f"this {self.registered_name} was loaded for prediction, without its EMA copies, so its "
                "training loss can't be computed; load it with for_training=True"
            )

    def before_step(self, progress: float | None = None) -> None:
        super().before_step(progress)
        averages.update_ema(self.ema_pairs(), self.config.momentum)

    def part(self, name: str, ema: bool) -> Any:
        """A module, or its EMA copy."""
        return getattr(self, f"{name}_m" if ema else name)

    def _alpha(self, samples: Mapping[str, Any]) -> float:
        """Weight of the EMA's opinion at this point of training (0 at the very start)."""
        progress = None if self.optimizer_step is None else self.optimizer_step.progress
        if progress is None:
            require(
                samples,
                ("epoch", "iters", "num_iters_per_epoch"),
                "where training is, from which the weight of the EMA copies follows; the runner sets them",
            )
            each = int(samples["num_iters_per_epoch"])
            progress = (int(samples["epoch"]) * each + int(samples["iters"])) / each
        return distillation_weight(self.config.alpha, progress, self.RAMP_EPOCHS)
