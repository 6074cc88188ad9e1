"""What the networks of an image encoder and a WordPiece text transformer share (BLIP, ALBEF, ALPRO)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lavis.models import starting
from lavis.models.ema import EmaCopies
from lavis.models.tokenizer import BERT_VOCABULARY, TINY_VOCABULARY, Tokenizer
from lavis.nn.frames import FrameTransformer
from lavis.nn.text import TextConfig
from lavis.nn.vit import VIT_BASE, VisionTransformer, ViTConfig

VOCABULARIES = {"bert": BERT_VOCABULARY, "tiny": TINY_VOCABULARY}


@dataclass(frozen=True)
class VisionTextConfig:
    """Sizes and text rules.

    Attributes:
        image_size: pixels; images are squares.
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


class VisionText(EmaCopies):
    """The parts that every such network has; before BaseModel among its bases.

    A family says with its class attributes what differs, in a class that comes before the network:
    MEDIA: the samples' key of what texts are about, "image" or "video".
    EXTRA_TOKENS: special tokens that the family adds to BERT's vocabulary.
    START_TOKENS: the token that begins a text to be written, and the one of a text that reads an image.
    """

    MEDIA = "image"
    EXTRA_TOKENS: tuple[str, ...] = ()
    START_TOKENS = ("[CLS]", "[CLS]")

    config: Any

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
        self.bos_id, self.enc_id = map(self.tokenizer.id, self.START_TOKENS)
        self.visual_encoder = self.image_encoder(config)

    @classmethod
    def init_tokenizer(cls) -> Tokenizer:
        """The family's tokenizer with BERT's vocabulary."""
        return Tokenizer(extra=cls.EXTRA_TOKENS)

    def image_encoder(self, config: Any) -> nn.Module:
        """The encoder of images, or of videos frame by frame."""
        encoder = FrameTransformer if self.MEDIA == "video" else VisionTransformer
        return encoder(config.vit, config.image_size, config.grad_checkpointing)

    def start_from(self, init: Mapping[str, str]) -> None:
        """See `lavis.models.starting.start_from`."""
        starting.start_from(self, init)
        self.start_ema()
