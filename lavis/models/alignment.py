"""Image-text contrast and matching: what BLIP, ALBEF and ALPRO share for features, retrieval and pre-training.

A text and a picture are compared in two ways. Contrast (ITC): the product of two projected features,
computed apart. Matching (ITM): a classifier over the text's states after they have read the picture.

B pictures (or clips), G texts per picture, R rows of text, T tokens, N image tokens, D width, E width of a
feature, Q places in the queue, W = B x ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lavis.common import dist
from lavis.models import heat_maps
from lavis.models.base import inference, prepared
from lavis.models.checkpoints import START_TEMPERATURE
from lavis.models.gallery import products, share_of, side_by_side, sum_over_ranks
from lavis.models.outputs import (
    EncoderOutput,
    Explanation,
    Features,
    IntermediateOutput,
    LossOutput,
    Matched,
    Similarity,
)
from lavis.models.samples import require
from lavis.models.tokenizer import Tokens
from lavis.models.vision_text import VisionTextModel
from lavis.nn.ema import NewFeatures, add_queue, enqueue
from lavis.nn.linear import ExactLinear
from lavis.nn.losses import (
    check_negatives,
    contrastive_targets,
    hard_negatives,
    similarities,
    soft_cross_entropy,
)

TEMPERATURE = START_TEMPERATURE  # learned
TEMPERATURE_RANGE = (0.001, 0.5)
RERANKING_TEXT_LENGTH = 35  # tokens, whatever max_txt_len is
PAIRS_AT_ONCE = 256  # of images and texts that `match_texts` matches
RERANKING_ROWS = 64  # texts that are matched with one picture at once
RERANKING_ROWS = 64  # texts that are matched with images at once, on a CPU
BEGUN_BYTES = 2**29  # of texts' states that are kept where they could be computed anew for every picture
_TOGETHER = 4  # statements of a picture that are matched at once
NOT_SCORED = -100.0  # of pairs that were not matched, as in the original


@dataclass(frozen=True)
class TextStates:
    """Tokens, and their states (R, T, D) before they have seen a picture, where fusing goes on from those."""

    tokens: Tokens
    states: torch.Tensor | None = None

    def select(self, index: torch.Tensor) -> TextStates:
        tokens = Tokens(self.tokens.ids[index], self.tokens.mask[index])
        return TextStates(tokens, None if self.states is None else self.states[index])


@dataclass(frozen=True)
class Contrast:
    """loss: scalar. sims: see `Similarity`. negatives_i2t, negatives_t2i: (B, B) similarities over the
    temperature by which hard negatives are drawn. new: what the batch has for the queue."""

    loss: torch.Tensor
    sims: Similarity
    new: NewFeatures
    negatives_i2t: torch.Tensor
    negatives_t2i: torch.Tensor


@dataclass(frozen=True)
class Matching:
    """loss: scalar. logits (3B, 2), labels (3B,): right pairs, wrong picture, wrong text. positive (B, T, D)
    and negative (2B, T, D): the fused states. memory: the B pictures', as `memorize` gave it."""

    loss: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    memory: Any


@dataclass(frozen=True)
class ContrastiveStep:
    """Tokens, states and features of a training batch, the EMA's too, and their contrast."""

    tokens: Tokens
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_embeds_m: torch.Tensor
    text_embeds_m: torch.Tensor
    image_feat: torch.Tensor
    text_feat: torch.Tensor
    contrast: Contrast

    def states(self, matching: Matching) -> IntermediateOutput:
        """What `forward` shows of the step."""
        return IntermediateOutput(
            image_embeds=self.image_embeds,
            text_embeds=self.text_embeds,
            image_embeds_m=self.image_embeds_m,
            text_embeds_m=self.text_embeds_m,
            encoder_output=EncoderOutput(matching.positive),
            encoder_output_neg=EncoderOutput(matching.negative),
            itm_logits=matching.logits,
            itm_labels=matching.labels,
            new_features=self.contrast.new,
        )


class Alignment(VisionTextModel):
    """Projections to the common space, and the matching head.

    A family says how texts are encoded alone (`encode_text`) and how they read pictures (`memorize`,
    `fuse`). MATCHES: whether there is a matching head. QUEUE_IDS: whether the queue knows which picture a
    feature belongs to. NEGATIVE_FLOOR: see `hard_negatives`. FUSES_STATES: whether `fuse` goes on from the
    states of `encode_text` (ALBEF, ALPRO) or reads the tokens anew (BLIP).
    """

    temp: torch.Tensor
    image_queue: torch.Tensor
    text_queue: torch.Tensor
    idx_queue: torch.Tensor
    queue_ptr: torch.Tensor

    MATCHES = True
    FUSES_STATES = True
    QUEUE_IDS = False
    NEGATIVE_FLOOR = 0.0

    def add_heads(self) -> None:
        """Projections, temperature and matching head; for training also EMA copies and queues."""
        config = self.config
        self.vision_proj = ExactLinear(config.vit.width, config.embed_dim)
        self.text_proj = ExactLinear(config.text.width, config.embed_dim)
        if self.MATCHES:
            self.itm_head = ExactLinear(config.text.width, 2)
        self.make_ema()
        if self.EMA and config.for_training and config.queue_size:
            add_queue(self, config.embed_dim, config.queue_size, self.QUEUE_IDS)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "temp"):
            nn.init.constant_(self.temp, TEMPERATURE)

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

    def _picture_ids(self, samples: Mapping[str, Any]) -> torch.Tensor:
        """`image_id` as a tensor (B,)."""
        require(samples, ("image_id",), "integers that say which texts share a picture")
        return torch.as_tensor(samples["image_id"], device=self.device).flatten()

    # ------------------------------------------------------------------------------ the family's part
    def encode_image(self, image: torch.Tensor, *, ema: bool = False) -> torch.Tensor:
        """Pictures (B, 3, h, w) to states (B, N, D)."""
        return self.part("visual_encoder", ema)(image)

    def encode_text(self, tokens: Tokens, *, ema: bool = False) -> torch.Tensor:
        """Tokens (R, T) to states (R, T, D), no picture seen."""
        raise NotImplementedError

    def memorize(self, image_embeds: torch.Tensor, *, ema: bool = False) -> Any:
        """What `fuse` reads of picture states (B, N, D); its `select(index)` picks and repeats items."""
        raise NotImplementedError

    def begin(self, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """States (R, T, D) that `fuse` can go on from, of texts whose `encode_text` gave `states`."""
        return states

    def fuse(
        self, text: TextStates, memory: Any, *, ema: bool = False, only_first: bool = False
    ) -> torch.Tensor:
        """States (R, T, D) after the texts have read the memory of B pictures, or (R, 1, D) with `only_first`; R is a
        multiple of B."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------ features
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
        """States and projections of "image", "text" or "multimodal"; pictures are encoded at most once."""
        if mode not in ("image", "text", "multimodal"):
            raise ValueError(f"mode is {mode!r}; it must be image, text or multimodal")
        image = states = fused = None
        if mode != "text":
            image = self.encode_image(self._image(samples))
        if mode != "image":
            tokens = self.tokens(self._texts(samples, 1 if image is None else image.shape[0]))
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

    # ------------------------------------------------------------ abilities, see `lavis.inference.protocols`
    @property
    def embed_dim(self) -> int:
        """Width of the common space."""
        return int(self.config.embed_dim)

    @property
    def cosine_scale(self) -> float:
        """One over the temperature (the usual one, where none is learned)."""
        return 1 / float(torch.as_tensor(getattr(self, "temp", TEMPERATURE)).detach())

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
        memory, batch = self.memorize(image), len(image)
        logits = torch.zeros(batch, len(texts), 2)
        vectors = torch.zeros(len(texts), self.embed_dim)
        each = max(1, PAIRS_AT_ONCE // batch)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), each):
            columns = order[start : start + each]
            tokens, states = self._read([texts[i] for i in columns])  # (G, T), (G, T, D)
            vectors[columns] = self.text_feature(states).float().cpu()
            text = TextStates(tokens, self.begin(tokens, states))
            rows = text.select(torch.arange(len(columns), device=self.device).repeat(batch))  # (B·G, T)
            found = self.match_logits(rows, memory, only_first=True).float().cpu()
            logits[:, columns] = found.unflatten(0, (batch, len(columns)))
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
    def _one_text_each(self, samples: Mapping[str, Any], pictures: int) -> list[str]:
        texts = self._texts(samples, pictures)
        if len(texts) != pictures:
            raise ValueError(f"{len(texts)} texts for {pictures} pictures; this loss takes one per picture")
        return texts

    @property
    def temperature(self) -> torch.Tensor:
        """(1,) what similarities are divided by; `before_step` keeps the parameter itself within the bounds."""
        return self.temp.clamp(*TEMPERATURE_RANGE)

    def before_step(self, progress: float | None = None) -> None:
        super().before_step(progress)
        if hasattr(self, "temp"):
            with torch.no_grad():
                self.temp.clamp_(*TEMPERATURE_RANGE)

    def after_step(self) -> None:
        batches = self.optimizer_step.new if self.optimizer_step is not None else []
        if batches and hasattr(self, "image_queue"):
            ids = [batch.ids for batch in batches if batch.ids is not None]
            enqueue(
                self,
                NewFeatures(
                    torch.cat([batch.images for batch in batches]),
                    torch.cat([batch.texts for batch in batches]),
                    torch.cat(ids) if ids else None,
                ),
            )
        super().after_step()

    def contrastive_step(
        self, samples: Mapping[str, Any], ids: torch.Tensor | None = None, distill: bool = True
    ) -> ContrastiveStep:
        """Encode a batch, by the EMA too, and contrast; a step of the optimizer takes note of the new features.

        Args:
            samples: `image`, `text_input` (one text per picture), `epoch`, `iters`, `num_iters_per_epoch`.
            ids: (B,) pictures' ids, see `contrast`.
            distill: whether the targets heed the EMA's similarities.
        """
        self.need_ema()
        image = self._image(samples)
        texts = self._one_text_each(samples, image.shape[0])
        alpha = self._alpha(samples) if distill else 0.0
        tokens = self.tokens(texts, max_length=self.config.max_txt_len, pad=True)
        image_embeds, text_embeds = self.encode_image(image), self.encode_text(tokens)
        image_feat, text_feat = self.image_feature(image_embeds), self.text_feature(text_embeds)
        with torch.no_grad():
            image_m, text_m = self.encode_image(image, ema=True), self.encode_text(tokens, ema=True)
            image_feat_m = self.image_feature(image_m, ema=True)
            text_feat_m = self.text_feature(text_m, ema=True)
        contrast = self.contrast(image_feat, text_feat, image_feat_m, text_feat_m, alpha=alpha, ids=ids)
        if self.optimizer_step is not None:
            self.optimizer_step.new.append(contrast.new)
        return ContrastiveStep(
            tokens, image_embeds, text_embeds, image_m, text_m, image_feat, text_feat, contrast
        )

    def contrast(
        self,
        image_feat: torch.Tensor,
        text_feat: torch.Tensor,
        image_feat_m: torch.Tensor,
        text_feat_m: torch.Tensor,
        *,
        alpha: float,
        ids: torch.Tensor | None = None,
    ) -> Contrast:
        """Contrastive loss against the EMA's features of all ranks and the queue (ALBEF paper, eq. 6).

        Args:
            image_feat, text_feat, …_m: (B, E), length 1.
            alpha: weight of the EMA's similarities in the targets.
            ids: (B,) pictures' ids; equal ids belong together. None: each row with its own only.
        """
        batch, rank = image_feat.shape[0], dist.rank()
        images = dist.all_gather(image_feat_m)  # (W, E)
        texts = dist.all_gather(text_feat_m)
        own = torch.arange(batch, device=image_feat.device) + rank * batch
        if ids is None:
            known = torch.arange(len(images), device=own.device)
            wanted = own
        else:
            known, wanted = dist.all_gather(ids), ids
        new = NewFeatures(images, texts, None if ids is None else known)
        if hasattr(self, "image_queue"):
            images = torch.cat([images, self.image_queue.T])  # (W + Q, E)
            texts = torch.cat([texts, self.text_queue.T])
            queued = self.idx_queue[0] if ids is not None else known.new_full((len(images) - len(known),), -1)
            known = torch.cat([known, queued])
        same, temperature = wanted[:, None] == known[None, :], self.temperature  # (B, W + Q), (1,)
        sim_i2t_m = similarities(image_feat_m, texts) / temperature
        sim_t2i_m = similarities(text_feat_m, images) / temperature
        sim_i2t_m, sim_t2i_m = sim_i2t_m.detach(), sim_t2i_m.detach()
        i2t_targets = contrastive_targets(same, sim_i2t_m, alpha)
        t2i_targets = contrastive_targets(same, sim_t2i_m, alpha)
        sim_i2t = similarities(image_feat, texts) / temperature
        sim_t2i = similarities(text_feat, images) / temperature
        loss = (soft_cross_entropy(sim_i2t, i2t_targets) + soft_cross_entropy(sim_t2i, t2i_targets)) / 2
        here = slice(rank * batch, (rank + 1) * batch)
        return Contrast(
            loss=loss,
            sims=Similarity(sim_i2t, sim_t2i, sim_i2t_m, sim_t2i_m, i2t_targets, t2i_targets),
            new=new,
            negatives_i2t=sim_i2t[:, here].detach(),
            negatives_t2i=sim_t2i[:, here].detach(),
        )

    def match(
        self,
        text: TextStates,
        image_embeds: torch.Tensor,
        sims_i2t: torch.Tensor,
        sims_t2i: torch.Tensor,
        same: torch.Tensor,
        *,
        images: torch.Tensor | None = None,
        texts: TextStates | None = None,
    ) -> Matching:
        """Matching loss of each pair, of each text with a hard picture, of each picture with a hard text.

        The pictures are projected once: a picture's right and wrong text are a group over one memory.

        Args:
            text: B texts. image_embeds: (B, N, D) of their pictures.
            sims_i2t, sims_t2i: (B, C), by which the hard ones are drawn.
            same: (B, C) bool, pairs that must not be drawn.
            images, texts: the C to draw from, where they are not the batch itself (all ranks').
        """
        batch, device = image_embeds.shape[0], image_embeds.device
        check_negatives(same, sims_t2i, sims_i2t)
        wrong_image = hard_negatives(sims_t2i, same, self.NEGATIVE_FLOOR, True)
        wrong_text = hard_negatives(sims_i2t, same, self.NEGATIVE_FLOOR, True)
        memory = self.memorize(image_embeds)
        own = self.fuse(interleaved(text, (texts or text).select(wrong_text)), memory)
        own = own.unflatten(0, (batch, 2))  # (B, 2, T, D)
        wrong = memory.select(wrong_image) if images is None else self.memorize(images[wrong_image])
        other = self.fuse(text, wrong)  # (B, T, D)
        states = torch.cat([own[:, 0], other, own[:, 1]])
        logits = self.itm_head(states[:, 0])
        labels = torch.zeros(3 * batch, dtype=torch.long, device=device)
        labels[:batch] = 1
        return Matching(
            F.cross_entropy(logits.float(), labels), logits, labels, states[:batch], states[batch:], memory
        )

    def check_losses(self, *known: str) -> None:
        """Refuse `config.losses` that are none of these."""
        wrong = [name for name in self.config.losses if name not in known]
        if wrong or not self.config.losses:
            raise ValueError(f"losses is {list(self.config.losses)}; name some of {', '.join(known)}")

    def pretraining_output(
        self, losses: Mapping[str, torch.Tensor], sims: Similarity, states: IntermediateOutput
    ) -> LossOutput:
        """With the sum of the losses that `config.losses` names; each is reported."""
        return LossOutput(
            sims=sims,
            intermediate_output=states,
            loss=sum((losses[name] for name in self.config.losses), torch.zeros((), device=self.device)),
            **{f"loss_{name}": loss for name, loss in losses.items()},
        )

    def together(self, samples: Mapping[str, Any], pictures: int) -> torch.Tensor:
        """(B, B) bool: which texts of a batch can't serve as wrong ones: a picture's own, and where `fits` says what is
        true (see `judged`), those that are true of another, or whose picture the other's text is true of."""
        own = torch.eye(pictures, dtype=torch.bool, device=self.device)
        if samples.get("fits") is None:
            return own
        fits = samples["fits"].to(self.device).bool().unflatten(1, (pictures, -1))[:, :, 0]
        return own | fits | fits.T

    def judged(
        self, samples: Mapping[str, Any], step: ContrastiveStep, memory: Any
    ) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Contrast and matching of statements of which it is known whether they are true; 0 where there are none.

        Matched is each picture with its own statements, contrasted are all pictures of this rank with all statements;
        a statement may be true of several pictures or of none. Beside them the learned temperature, at which a text has
        one picture, would be far too sharp.

        Args:
            samples: `statements`, S = B·K texts, a picture's next to one another and its `text_input` first; `fits`
                (B, S) bool, whether they are true. Either both are there or none.
            memory: the B pictures', as `memorize` gave it.

        Returns:
            the two losses (nats).
        """
        if samples.get("statements") is None:
            return 0.0, 0.0
        pictures = step.image_feat.shape[0]
        texts = self._texts(samples, pictures, "statements")
        require(samples, ("fits",), "whether each statement is true of each picture")
        each = len(texts) // pictures
        fits = samples["fits"].to(self.device).bool().unflatten(1, (pictures, each))  # (B, B, K)
        tokens = self.tokens(texts, max_length=self.config.max_txt_len)
        lengths = tokens.mask.sum(dim=1).cpu().unflatten(0, (pictures, each))
        order = lengths.argsort(dim=1, stable=True)  # (B, K), each picture's own from short to long
        fits = fits.gather(2, order.to(fits.device).expand(pictures, -1, -1))
        rows = order + each * torch.arange(pictures)[:, None]
        contrasts = "itc" in self.config.losses
        logits, feats = [], []
        for part in rows.split(_TOGETHER, dim=1):  # G of a picture together, padded to the longest of these
            longest = int(lengths.flatten()[part].max())
            some = part.flatten().to(self.device)
            short = Tokens(tokens.ids[some, :longest], tokens.mask[some, :longest])
            states = self.encode_text(short) if contrasts or self.FUSES_STATES else None
            text = TextStates(short, states if self.FUSES_STATES else None)
            logits.append(self.match_logits(text, memory, only_first=True).unflatten(0, part.shape))
            if contrasts and states is not None:
                feats.append(self.text_feature(states).unflatten(0, part.shape))
        own = fits.diagonal().T.long()  # (B, K)
        loss_itm = F.cross_entropy(torch.cat(logits, dim=1).flatten(0, 1).float(), own.flatten())
        if not contrasts:
            return 0.0, loss_itm
        true = fits.flatten(1)  # (B, B·K)
        sims = step.image_feat @ torch.cat(feats, dim=1).flatten(0, 1).T / TEMPERATURE
        some = true.any(dim=0)  # pictures all have their own text
        loss_i2t = soft_cross_entropy(sims, contrastive_targets(true, None, 0.0))
        loss_t2i = soft_cross_entropy(sims.T[some], contrastive_targets(true.T[some], None, 0.0))
        return (loss_i2t + loss_t2i) / 2, loss_itm

    # ------------------------------------------------------------------------------ retrieval
    @property
    def reranking_text_length(self) -> int:
        """Tokens of a text that `compute_sim_matrix` reads."""
        return RERANKING_TEXT_LENGTH

    @inference
    def compute_sim_matrix(
        self, data_loader: Any, task_cfg: Any = None, **unused: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all pictures with all texts: contrast first, the best `k_test` re-ranked by matching.

        Each pair is matched once, all texts of a picture together at about their true length. The
        pictures are read twice instead of kept, so memory does not grow with the gallery. Ranks share the
        pictures, and all of them get the whole.

        Args:
            data_loader: batches with `image`, in order, or pairs of (indices, batch); `data_loader.dataset`
                has `text`, the texts, and as many items as there are pictures.
            task_cfg: has `k_test` (an attribute or key; 128 if absent).

        Returns:
            (pictures, texts) and (texts, pictures): matching logit + similarity for the best, -100 elsewhere.
        """
        k_test = _k_test(task_cfg)
        texts, text_feats = self._encode_texts(list(data_loader.dataset.text))
        image_feats = torch.zeros(len(data_loader.dataset), text_feats.shape[1])
        for indices, media in share_of(data_loader, self.MEDIA):
            image_feats[indices] = self.image_feature(self.encode_image(media.to(self.device))).float().cpu()
        sims = products(sum_over_ranks(image_feats, self.device), text_feats)
        wanted_i2t, wanted_t2i = torch.zeros_like(sims).bool(), torch.zeros_like(sims).bool()
        wanted_i2t.scatter_(1, sims.topk(min(k_test, sims.shape[1]), dim=1).indices, True)
        wanted_t2i.scatter_(0, sims.topk(min(k_test, sims.shape[0]), dim=0).indices, True)
        wanted = wanted_i2t | wanted_t2i
        matched = torch.zeros_like(sims)

        def match(indices: Sequence[int], embeds: torch.Tensor) -> list[torch.Tensor]:
            return self._match_all(embeds, texts, [wanted[i].nonzero().squeeze(1) for i in indices])

        together = images_at_once(self.device)
        with side_by_side(self.device) as run:
            for indices, media in share_of(data_loader, self.MEDIA):
                embeds = self.encode_image(media.to(self.device)).split(together)
                groups = [indices[i : i + together] for i in range(0, len(indices), together)]
                for group, found in zip(groups, run(match, groups, embeds)):
                    for index, logits in zip(group, found, strict=True):
                        matched[index, wanted[index]] = logits
        scores = sum_over_ranks(matched, self.device) + sims
        i2t = scores.masked_fill(~wanted_i2t, NOT_SCORED)
        t2i = scores.masked_fill(~wanted_t2i, NOT_SCORED).T
        return i2t.numpy(), t2i.contiguous().numpy()

    def _encode_texts(self, texts: list[str], batch: int = 256) -> tuple[RaggedTexts, torch.Tensor]:
        """All texts with what fusing goes on from, on the CPU; and all features (texts, E).

        Without autocast: a text is encoded once and matched with many images, so it costs little, and in bfloat16 most
        of the error of ALBEF's re-ranked scores came from here (2.6 % of the peak against 1.0 %).
        """
        longest = self.reranking_text_length
        lengths = torch.tensor([len(self.tokenizer.encode(t, longest)) for t in texts])
        begins = self.FUSES_STATES or 4 * int(lengths.sum()) * self.config.text.width <= BEGUN_BYTES
        ids, begun, feats = [], [], []
        order = lengths.argsort(stable=True)
        for rows in order.split(batch):
            tokens = self.tokens([texts[i] for i in rows.tolist()], max_length=longest)
            with torch.autocast(self.device.type, enabled=False):
                states = self.encode_text(tokens)
                feats.append(self.text_feature(states).cpu())
                ids.append(tokens.ids[tokens.mask].cpu())
                if begins:
                    begun.append(self.begin(tokens, states)[tokens.mask].cpu())
        starts = torch.empty_like(lengths)
        starts[order] = lengths[order].cumsum(0) - lengths[order]
        ragged = RaggedTexts(torch.cat(ids), torch.cat(begun) if begins else None, starts, lengths)
        return ragged, torch.cat(feats)[order.argsort()]

    def _match_all(
        self, embeds: torch.Tensor, texts: RaggedTexts, which: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Matching logits of images (B, N, D), each with those of the texts that `which` names: (len(which[b]),) each.

        They are matched in chunks of about one length, equally many texts of each image: one that has fewer left
        repeats its last one, and one that has none leaves.
        """
        order = [mine[texts.lengths[mine].argsort()] for mine in which]
        scores = torch.zeros(len(which), len(texts.lengths))
        memory, left, start = self.memorize(embeds), list(range(len(which))), 0
        while going := [place for place, b in enumerate(left) if len(order[b]) > start]:
            if len(going) < len(left):
                memory = memory.select(torch.tensor(going, device=self.device))
                left = [left[place] for place in going]
            each = max(1, rows_at_once(self.device) // len(left))
            end = min(start + each, max(len(order[b]) for b in left))
            columns = torch.arange(start, end)
            rows = torch.stack([order[b][columns.clamp(max=len(order[b]) - 1)] for b in left])  # (b, columns)
            logits = self.match_logits(texts.take(rows.flatten(), self.device), memory, only_first=True)
            scores[torch.tensor(left)[:, None], rows] = logits[:, 1].float().cpu().view(rows.shape)
            start = end
        return [row[mine] for row, mine in zip(scores, which, strict=True)]


@dataclass(frozen=True)
class RaggedTexts:
    """Many texts one after another: ids (tokens,) and, where fusing goes on from them, states (tokens, D); where each
    text starts, and its length."""

    ids: torch.Tensor
    states: torch.Tensor | None
    starts: torch.Tensor
    lengths: torch.Tensor

    def take(self, which: torch.Tensor, device: torch.device) -> TextStates:
        """Some of the texts as one batch (R, T); what the mask leaves out holds their last token."""
        lengths = self.lengths[which, None]
        place = torch.arange(int(lengths.max()))
        at = self.starts[which, None] + place.minimum(lengths - 1)  # (R, T)
        tokens = Tokens(self.ids[at].to(device), (place < lengths).to(device))
        return TextStates(tokens, None if self.states is None else self.states[at].to(device))


def images_at_once(device: torch.device) -> int:
    """Images whose candidates are matched together: on a CPU each has a thread of its own."""
    return 1 if device.type == "cpu" else 64


def rows_at_once(device: torch.device) -> int:
    """Texts that are matched with images at once: a GPU needs more of them to be busy."""
    return RERANKING_ROWS if device.type == "cpu" else 16 * RERANKING_ROWS


def interleaved(first: TextStates, second: TextStates) -> TextStates:
    """Rows first[0], second[0], first[1], second[1], …: two texts a picture."""

    def weave(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([a, b], dim=1).flatten(0, 1)

    tokens = Tokens(weave(first.tokens.ids, second.tokens.ids), weave(first.tokens.mask, second.tokens.mask))
    if first.states is None or second.states is None:
        return TextStates(tokens)
    return TextStates(tokens, weave(first.states, second.states))


def _k_test(task_cfg: Any) -> int:
    if isinstance(task_cfg, Mapping):
        return int(task_cfg.get("k_test", 128))
    return int(getattr(task_cfg, "k_test", 128) or 128)
