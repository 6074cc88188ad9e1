"""BLIP (Li et al. 2022, "BLIP: Bootstrapping Language-Image Pre-training", arXiv 2201.12086).

A picture encoder (ViT) and text transformers that look at its states. Here: what all of BLIP's heads
share, and captioning (section 5.2). Beside it: blip_vqa, blip_matching, blip_reasoning.

B pictures, G texts per picture, T tokens, N image tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from lavis.common.registry import registry
from lavis.models import heat_maps
from lavis.models.base import BaseModel, inference, prepared
from lavis.models.checkpoints import TRAINING_STATE, TRANSFORMERS_BLIP, Rules
from lavis.models.folders import check_heads
from lavis.models.outputs import DecoderOutput, Explanation, IntermediateOutput, LossOutput, Texts
from lavis.models.presets import RESIZE, SMOOTHING
from lavis.models.samples import TextEncoder, media_of
from lavis.models.vision_text import VisionText, VisionTextConfig
from lavis.nn import generation
from lavis.nn.generation import GenerationOptions
from lavis.nn.language_model import TextDecoder
from lavis.nn.losses import IGNORE, language_modelling_loss

# --------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class BlipConfig(VisionTextConfig):
    """The defaults are the base captioner's.

    Attributes:
        prompt: what every caption begins with; not counted in the loss, cut off what is generated.
    """

    prompt: str = "a picture of "


# ------------------------------------------------------------------------------------------ base


class Blip:
    """What BLIP's heads share: two special tokens, [DEC] that begins a decoded text, and [ENC] that begins a
    text that looks at an image. Comes before the network among the bases."""

    EXTRA_TOKENS: tuple[str, ...] = ("[DEC]", "[ENC]")
    START_TOKENS = ("[DEC]", "[ENC]")
    FOREIGN_RULES: ClassVar[tuple[Rules, ...]] = (replace(TRANSFORMERS_BLIP, resize=RESIZE),)

    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        """Refuses a transformers folder with other numbers of attention heads."""
        check_heads(path, {"vision_config": (config.vit.heads, 12), "text_config": (config.text.heads, 8)})
        return super().adapt(config, path)  # type: ignore[misc]


# ------------------------------------------------------------------------------------ captioning


@registry.register_model("blip_caption")
class BlipCaption(Blip, VisionText, BaseModel):
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
        resize=RESIZE,
    )
    # a pre-trained file (model_base_capfilt_large.pth) captions as it is; others with a text encoder do not
    UNTUNED_RULES = replace(PRETRAINED_RULES, marker="itm_head.weight")

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.text_decoder = TextDecoder(config.text)
        self.prompt = config.prompt
        self.prompt_length = len(self.tokenizer.encode(config.prompt)) - 1  # without [SEP]

    def tie_weights(self) -> None:
        self.text_decoder.tie_weights()

    def batch_encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.MEDIA, self.config.max_txt_len, first=self.bos_id)

    def forward_encoder(self, samples: Mapping[str, Any]) -> torch.Tensor:
        """States of the pictures, (B, N, D), or of clips' frames, (B, F·N, D)."""
        return self.visual_encoder(media_of(samples, self.MEDIA, self.device))

    def forward_decoder(
        self, samples: Mapping[str, Any], image_embeds: torch.Tensor
    ) -> tuple[DecoderOutput, torch.Tensor]:
        """Loss and logits of the captions given the pictures' states; and the labels."""
        ids, mask = self.encoded(samples)["tokens"]["text"]
        labels = ids.masked_fill(~mask, IGNORE)
        labels[:, : self.prompt_length] = IGNORE
        memory = self.text_decoder.project_memory(image_embeds)
        logits = self.text_decoder(ids, mask=mask, memory=memory)  # (B·G, T, V)
        loss = language_modelling_loss(logits, labels, smoothing=SMOOTHING)
        return DecoderOutput(loss=loss, logits=logits), labels

    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Language-model loss of captions.

        Args:
            samples: `image` (B, 3, h, w) and `text_input`, B·G captions that begin with the prompt
                (the training text processor puts it there), a picture's captions side by side.

        Returns:
            `loss` = `loss_lm`: mean smoothed cross entropy over the tokens after the prompt (nats);
            `intermediate_output` with image_embeds, decoder_output and decoder_labels.
        """
        samples = self.encoded(samples)
        image_embeds = self.forward_encoder(samples)
        decoder_output, labels = self.forward_decoder(samples, image_embeds)
        return LossOutput(
            loss=decoder_output.loss,
            loss_lm=decoder_output.loss,
            intermediate_output=IntermediateOutput(
                image_embeds=image_embeds, decoder_output=decoder_output, decoder_labels=labels
            ),
        )

    @inference
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = GenerationOptions.use_nucleus_sampling,
        num_beams: int = GenerationOptions.num_beams,
        max_length: int = GenerationOptions.max_length,
        min_length: int = GenerationOptions.min_length,
        top_p: float = GenerationOptions.top_p,
        repetition_penalty: float = GenerationOptions.repetition_penalty,
        num_captions: int = GenerationOptions.num_captions,
        *,
        return_scores: bool = False,
        **more: Any,
    ) -> list[str] | Texts:
        """Caption images.

        Args:
            samples: `image` (B, 3, h, w).
            return_scores: give `Texts` (with log-probabilities) instead of strings.
            more: the others are those of `generation.GenerationOptions`.

        Returns:
            B·num_captions captions without the prompt, an image's next to one another, best first.
        """
        options = GenerationOptions(
            use_nucleus_sampling, num_beams, max_length, min_length, top_p, repetition_penalty, num_captions, **more
        )  # fmt: skip
        image_embeds = self.forward_encoder(samples)
        items = image_embeds.shape[0]
        prompt_ids = [self.bos_id, *self.tokenizer.encode(self.prompt)[1:-1]]
        prompt = torch.tensor([prompt_ids] * items, device=image_embeds.device)
        memory = self.text_decoder.project_memory(image_embeds)
        decoding = self.text_decoder.begin(memory, options.lengths(len(prompt_ids))[0])
        decoded = generation.generate(
            decoding, prompt, options, end=self.tokenizer.sep_id, pad=self.tokenizer.pad_id
        )
        # Cut by characters, as the original does: a caption that begins with a "##" piece is glued
        # to the prompt and loses its first character.
        ids, logprobs, scores = decoded.read(items)
        texts = [self.tokenizer.decode(row, skip_special_tokens=True)[len(self.prompt) :] for row in ids]
        return Texts(texts, logprobs, scores) if return_scores else texts

    @prepared
    def explain_text(
        self, samples: Mapping[str, Any], text: str | None = None, layer: int | None = None
    ) -> Explanation:
        """Each word's log-probability by the row that predicts it."""
        start, longest = self.prompt_length, self.config.max_txt_len
        if text is None:
            written = self.generate(samples, max_new_tokens=longest - start, min_new_tokens=1)
            assert isinstance(written, list)
            text = written[0].strip()
        if not text:
            raise ValueError("there is no caption to explain; give one")
        words, places = heat_maps.words_of(self.tokenizer, text, longest - start + 1)
        ids = self.tokenizer.batch([self.prompt + text], max_length=longest, device=self.device).ids.clone()
        ids[:, 0] = self.bos_id
        # a word's tokens, moved behind the prompt; what predicts a token is the row before it
        rows = [torch.tensor([p + start - 2 for p in place], device=ids.device) for place in places]
        with torch.no_grad():
            image_embeds = self.forward_encoder(samples)

        def likely() -> torch.Tensor:
            memory = self.text_decoder.project_memory(image_embeds)
            logits = self.text_decoder(ids.expand(len(words), -1), memory=memory)  # (W, T, V)
            logs = logits.float().log_softmax(dim=-1)
            return torch.stack([logs[w, row, ids[0, row + 1]].sum() for w, row in enumerate(rows)])

        transformer = heat_maps.encoder_of(self.text_decoder)
        maps, score = heat_maps.maps_of(self, transformer, layer, likely)  # (W, T, P, g, g)
        return heat_maps.explanation(words, [maps[w, row] for w, row in enumerate(rows)], text, score)
