"""The one network of images and texts that are compared: BLIP's, ALBEF's and ALPRO's features, scores, retrieval and
pre-training.

A text and an image are compared in two ways. Contrast (ITC): the product of two projected features, computed apart.
Matching (ITM): a classifier over the text's states after they have read the image.

B images (or videos), G texts per image, R = B·G rows of text, T tokens, N image tokens, D width, E width of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lavis.models import heat_maps
from lavis.models.base import BaseModel, inference, prepared
from lavis.models.checkpoints import START_TEMPERATURE
from lavis.models.fusion import TextStates
from lavis.models.outputs import Explanation, Features, LossOutput, Matched
from lavis.models.pair_encoder import PairEncoder
from lavis.models.pair_training import Objective, training_loss
from lavis.models.reranking import TEXT_LENGTH, match_every, rerank
from lavis.models.samples import media_of, texts_of
from lavis.models.tokenizer import Tokens
from lavis.models.vision_text import VisionText
from lavis.nn.ema import NewFeatures, add_queue, enqueue
from lavis.nn.language_model import LanguageModel
from lavis.nn.linear import ExactLinear
from lavis.nn.losses import check_negatives
from lavis.nn.text import TextTransformer

TEMPERATURE_RANGE = (0.001, 0.5)  # of a learned one
ENCODERS = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")  # what has EMA copies in training


class Alignment(VisionText, BaseModel):
    """Image encoder, text encoder, projections to the common space, a matching head; in training EMA copies and queues.

    How texts read images is said by the class of `lavis.models.fusion` that comes before it among a model's bases.

    MATCHES: whether there is a matching head. TEMPERATURE: whether the contrast's temperature is learned.
    ENCODER: `LanguageModel` where the text encoder also guesses masked tokens, or a file's encoder could.
    OBJECTIVE: what it is trained on; None: it isn't.
    """

    MATCHES = True
    TEMPERATURE = True
    ENCODER: ClassVar[type[TextTransformer] | type[LanguageModel]] = TextTransformer
    OBJECTIVE: ClassVar[Objective | None] = None

    # of the fusion
    FUSES_STATES: bool
    bert: Any
    encode_text: Any
    memorize: Any
    begin: Any
    fuse: Any

    text_encoder: Any
    text_decoder: Any
    temp: nn.Parameter
    image_queue: torch.Tensor
    text_queue: torch.Tensor
    idx_queue: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.losses = self._chosen_losses()
        self.text_encoder = self.text_reader(config)
        self.add_decoder(config)
        if self.TEMPERATURE:
            self.temp = nn.Parameter(torch.empty(1))
        self.vision_proj = ExactLinear(config.vit.width, config.embed_dim)
        self.text_proj = ExactLinear(config.text.width, config.embed_dim)
        if self.MATCHES:
            self.itm_head = ExactLinear(config.text.width, 2)
        self.make_ema()
        if self.EMA and config.for_training and config.queue_size:
            assert self.OBJECTIVE is not None
            add_queue(self, config.embed_dim, config.queue_size, self.OBJECTIVE.by_id)

    def text_reader(self, config: Any) -> TextTransformer | LanguageModel:
        """The family's text encoder."""
        return self.ENCODER(config.text)

    def add_decoder(self, config: Any) -> None:
        """For networks that also write."""

    def _chosen_losses(self) -> tuple[str, ...]:
        """Those that training takes the sum of.

        Raises:
            ValueError: `config.losses` names none of this network's, or one that its family has not.
        """
        if self.OBJECTIVE is None:
            return ()
        able = self.OBJECTIVE.losses
        wanted, known = getattr(self.config, "losses", able), getattr(type(self.config), "losses", able)
        chosen = tuple(name for name in able if name in wanted)
        if not chosen or not set(wanted) <= set(known):
            raise ValueError(f"losses is {list(wanted)}; name some of {', '.join(able)}")
        return chosen

    def tie_weights(self) -> None:
        """Make heads' matrices the words' embeddings again (after weights were assigned)."""
        for child in self.children():
            if isinstance(child, LanguageModel):
                child.tie_weights()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "temp"):
            nn.init.constant_(self.temp, START_TEMPERATURE)

    def set_temperature(self, temperature: float) -> None:
        if not hasattr(self, "temp"):
            super().set_temperature(temperature)
        low, high = TEMPERATURE_RANGE
        if not low <= temperature <= high:
            raise ValueError(f"model.temperature is {temperature}; it must lie between {low} and {high}")
        nn.init.constant_(self.temp, temperature)

    def chance_losses(self, batch: int) -> dict[str, float]:
        """The losses (nats) of features and of a matching head that know nothing, on `batch` pairs of all ranks."""
        candidates = batch + (self.image_queue.shape[1] if hasattr(self, "image_queue") else 0)
        contrast = math.log(candidates)
        matching = math.log(3) - 2 / 3 * math.log(2)  # a third of what is matched belongs together
        return {"loss_itc": contrast, "loss_vtc": contrast, "loss_itm": matching, "loss_vtm": matching}

    # ------------------------------------------------------------------------------ features
    def encode_image(self, image: torch.Tensor, *, ema: bool = False) -> torch.Tensor:
        """Images (B, 3, h, w) to states (B, N, D)."""
        return self.part("visual_encoder", ema)(image)

    def image_feature(self, states: torch.Tensor, *, ema: bool = False) -> torch.Tensor:
        """Projected class token, length 1: (B, E)."""
        return F.normalize(self.part("vision_proj", ema)(states[:, 0]), dim=-1)

    def text_feature(self, states: torch.Tensor, *, ema: bool = False) -> torch.Tensor:
        return F.normalize(self.part("text_proj", ema)(states[:, 0]), dim=-1)

    def tokens(self, texts: Sequence[str], *, max_length: int | None = None, pad: bool = False) -> Tokens:
        """Padded to the longest, or to `max_length`."""
        return self.tokenizer.batch(
            list(texts), max_length=max_length, pad_to=max_length if pad else None, device=self.device
        )

    def _features(self, samples: Mapping[str, Any], mode: str) -> Features:
        """States and projections of "image", "text" or "multimodal"; images are encoded at most once."""
        if mode not in ("image", "text", "multimodal"):
            raise ValueError(f"mode is {mode!r}; it must be image, text or multimodal")
        image = states = fused = None
        if mode != "text":
            image = self.encode_image(media_of(samples, self.MEDIA, self.device))
        if mode != "image":
            tokens = self.tokens(texts_of(samples, 1 if image is None else image.shape[0]))
            if mode == "text" or self.FUSES_STATES:
                states = self.encode_text(tokens)
            if image is not None:
                fused = self.fuse(TextStates(tokens, states), self.memorize(image))
        project = mode != "multimodal" or self.FUSES_STATES
        return Features(
            image_embeds=image,
            image_embeds_proj=F.normalize(self.vision_proj(image), dim=-1)
            if image is not None and project
            else None,
            text_embeds=states,
            text_embeds_proj=None if states is None else F.normalize(self.text_proj(states), dim=-1),
            multimodal_embeds=fused,
        )

    def match_logits(self, text: TextStates, memory: Any, only_first: bool = False) -> torch.Tensor:
        """(R, 2): log-odds of "does not fit" and "fits".

        Args:
            only_first: leave out what the head does not read; maps then have the first token's row only.
        """
        return self.itm_head(self.fuse(text, memory, only_first=only_first)[:, 0])

    def head_logits(self, text: TextStates, memory: Any) -> torch.Tensor:
        """`match_logits` without what the head does not read."""
        return self.match_logits(text, memory, only_first=True)

    # ------------------------------------------------------------ abilities, see `lavis.inference.protocols`
    @property
    def embed_dim(self) -> int:
        """Width of the common space."""
        return int(self.config.embed_dim)

    @property
    def cosine_scale(self) -> float:
        """One over the temperature (the usual one, where none is learned)."""
        return 1 / float(torch.as_tensor(getattr(self, "temp", START_TEMPERATURE)).detach())

    def _read(self, texts: Sequence[str]) -> tuple[Tokens, torch.Tensor]:
        """Tokens of texts, cut to the length that the model was trained with, and their states (n, T, D)."""
        tokens = self.tokens(texts, max_length=self.config.max_txt_len)
        return tokens, self.encode_text(tokens)

    @prepared
    @torch.no_grad()
    def embed_images(self, media: torch.Tensor) -> torch.Tensor:
        """Features of images or videos, (B, E)."""
        return self.image_feature(self.encode_image(media))

    @prepared
    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features of texts, (n, E)."""
        return self.text_feature(self._read(texts)[1])

    @prepared
    @torch.no_grad()
    def match_texts(self, media: torch.Tensor, texts: Sequence[str]) -> Matched:
        """Every image with every text; each image is encoded once. All is on the CPU."""
        image = self.encode_image(media)  # (B, N, D)
        logits, vectors = match_every(self, self.memorize(image), len(image), texts, self.config.max_txt_len)
        return Matched(logits, self.image_feature(image).float().cpu(), vectors)

    @prepared
    @torch.no_grad()
    def embed_pairs(self, media: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """States of B texts that have read their images, the first token's: (B, D)."""
        memory = self.memorize(self.encode_image(media))
        tokens, states = self._read(texts)
        return self.fuse(TextStates(tokens, self.begin(tokens, states)), memory, only_first=True)[:, 0]

    @prepared
    def explain_text(
        self, samples: Mapping[str, Any], text: str | None, layer: int | None = None
    ) -> Explanation:
        """The logit that a text fits, by its words."""
        given = text or ""
        tokens = self.tokens([given], max_length=self.config.max_txt_len)
        with torch.no_grad():
            image_embeds = self.encode_image(samples[self.MEDIA])

        def fits() -> torch.Tensor:
            states = self.encode_text(tokens) if self.FUSES_STATES else None
            return self.match_logits(TextStates(tokens, states), self.memorize(image_embeds))[:, 1]

        return heat_maps.explained_text(self, given, layer, fits, lambda: given)

    # ------------------------------------------------------------------------------ training
    def batch_encoder(self) -> PairEncoder | None:
        if self.OBJECTIVE is None:
            return None
        return PairEncoder(self.tokenizer, self.MEDIA, self.config.max_txt_len, by_id=self.OBJECTIVE.by_id)

    @property
    def temperature(self) -> torch.Tensor:
        """(1,) what similarities are divided by; `before_step` keeps the parameter itself within the bounds."""
        return self.temp.clamp(*TEMPERATURE_RANGE)

    def before_step(self, progress: float | None = None) -> None:
        super().before_step(progress)
        if hasattr(self, "temp"):
            with torch.no_grad():
                self.temp.clamp_(*TEMPERATURE_RANGE)

    def training_loss(self, batch: Mapping[str, Any]) -> LossOutput:
        """See `lavis.models.pair_training.training_loss`."""
        return training_loss(self, batch)

    def check_step(self) -> None:
        """Whether each batch had negatives to match with."""
        step = self.optimizer_step
        noted = step.noted() if step is not None and not step.checked else []
        check_negatives([(lacking, columns) for _, lacking, columns in noted])
        super().check_step()

    def after_step(self) -> None:
        self.check_step()
        new = [] if self.optimizer_step is None else [new for new, _, _ in self.optimizer_step.noted()]
        if new and hasattr(self, "image_queue"):
            ids = [batch.ids for batch in new if batch.ids is not None]
            images, texts = (torch.cat([getattr(b, kind) for b in new]) for kind in ("images", "texts"))
            enqueue(self, NewFeatures(images, texts, torch.cat(ids) if ids else None))
        super().after_step()

    # ------------------------------------------------------------------------------ retrieval
    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of an image's feature."""
        return (self.embed_dim,)

    @property
    def reranking_text_length(self) -> int:
        """Tokens of a text that `compute_sim_matrix` reads."""
        return TEXT_LENGTH

    @inference
    def compute_sim_matrix(
        self, data_loader: Any, task_cfg: Any = None, **unused: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all images with all texts: contrast first, the best `k_test` re-ranked by matching.

        Each pair is matched once, all texts of an image together at about their true length. The images are read twice
        instead of kept, so memory does not grow with the gallery. Ranks share the images, and all of them get the
        whole.

        Args:
            data_loader: batches with `image`, in order, or pairs of (indices, batch); `data_loader.dataset`
                has `text`, the texts, and as many items as there are images.
            task_cfg: has `k_test` (an attribute or key; 128 if absent).

        Returns:
            (images, texts) and (texts, images): matching logit + similarity for the best, -100 elsewhere.
        """
        return rerank(self, data_loader, task_cfg)
