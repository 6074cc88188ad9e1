"""BLIP-2's first stage (Li et al. 2023, "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders
and Large Language Models", arXiv 2301.12597, section 3): a Q-Former that learns to read a frozen image encoder.

B images, G texts per image, R = B·G rows of text, T tokens, N image tokens, Q queries, D width, E width of a feature,
W = B x ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lavis.common import dist
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.models import blip2_folders, heat_maps, starting
from lavis.models.base import BaseModel, finite_results, inference, own_step, prepared
from lavis.models.checkpoints import START_TEMPERATURE, Rules, StateDict
from lavis.models.clip import clip_vit
from lavis.models.clip_checkpoints import reshaped, resize_positions, tower_names
from lavis.models.fusion import TextStates
from lavis.models.outputs import Explanation, Features, LossOutput, Matched, Similarity, Texts
from lavis.models.parts import as_input_of, building
from lavis.models.reranking import TEXT_LENGTH, match_every, rerank
from lavis.models.samples import TextEncoder, media_of, require, texts_of
from lavis.models.tokenizer import Tokenizer, Tokens
from lavis.models.vision_text import VOCABULARIES
from lavis.nn import generation
from lavis.nn.generation import GenerationOptions
from lavis.nn.linear import ExactLinear
from lavis.nn.losses import (
    IGNORE,
    check_negatives,
    contrastive_targets,
    hard_negatives,
    language_modelling_loss,
    negatives_lacking,
    similarities,
    soft_cross_entropy,
)
from lavis.nn.qformer import Prefix, QFormer
from lavis.nn.text import Memory, TextConfig
from lavis.nn.vit import VIT_EVA_G, VisionTransformer, ViTConfig

SMOOTHING = 0.1  # of all three losses' targets (contrast without image ids, writing)

# Official names of the two image encoders. EVA's attention has biases of queries and values only.
OFFICIAL = Rules(
    rename=(
        (r"^(visual_encoder\..*)\.attn\.q_bias$", r"\1.attn.qkv.bias#0"),
        (r"^(visual_encoder\..*)\.attn\.v_bias$", r"\1.attn.qkv.bias#2"),
        *tower_names("visual_encoder."),
    ),
    blank=("visual_encoder.*.attn.qkv.bias#1",),
    external=("visual_encoder.*",),
    resize={"visual_encoder.cls_token": reshaped, "visual_encoder.pos_embed": resize_positions},
)


# The encoders' own files (eva_vit_g.pth, clip_vit_L.pth), of which the last block and what follows is left out.
EVA_FILE = Rules(
    marker="blocks.0.attn.q_bias",
    rename=((r"\.attn\.q_bias$", ".attn.qkv.bias#0"), (r"\.attn\.v_bias$", ".attn.qkv.bias#2")),
    blank=("*.attn.qkv.bias#1",),
    drop=("blocks.39.*", "norm.*", "fc_norm.*", "head.*", "mask_token", "lm_head.*"),
    resize={"pos_embed": resize_positions},
)
CLIP_FILE = Rules(
    marker="class_embedding",
    rename=tower_names(""),
    drop=("blocks.23.*", "norm.*", "proj"),
    resize={"cls_token": reshaped, "pos_embed": resize_positions},
)


def tower(name: str, **sizes: Any) -> ViTConfig:
    """The image encoder of a name of the original's `vit_model`, "eva_clip_g" or "clip_L".

    CLIP's ViT-L/14 is read without its last block.

    Args:
        sizes: fields of `ViTConfig` to replace.

    Raises:
        ValueError: an unknown name.
    """
    towers = {"eva_clip_g": VIT_EVA_G, "clip_L": replace(clip_vit(1024, 23, 16, 14), **_STATES)}
    if name not in towers:
        raise ValueError(
            f"vit_model is {name!r}; it must be one of {', '.join(towers)}.{suggest(name, towers)}"
        )
    return replace(towers[name], **sizes)


_STATES: dict[str, Any] = {"pooling": "none", "final_norm": False, "activation": "quick_gelu"}


@dataclass(frozen=True)
class Blip2Config:
    """Sizes; the defaults are the published model's with EVA's ViT-g.

    Attributes:
        image_size: pixels; images are squares.
        vit: the image encoder. text: the Q-Former.
        num_query_token: Q.
        embed_dim: E.
        max_txt_len: tokens of a text that losses and matching read.
        grad_checkpointing: how many of the image encoder's last blocks recompute their activations.
        vocabulary: "bert", or the path of a WordPiece vocabulary file.
    """

    image_size: int = 224
    vit: ViTConfig = VIT_EVA_G
    text: TextConfig = field(
        default_factory=lambda: TextConfig(vocab_size=30523, cross_every=2, memory_width=VIT_EVA_G.width)
    )
    num_query_token: int = 32
    embed_dim: int = 256
    max_txt_len: int = 32
    grad_checkpointing: int = 0
    vocabulary: str = "bert"


class WithTower:
    """What both stages share: an image encoder whose states are normalised in float32. Comes before the network among
    the bases."""

    MEDIA = "image"
    PART_RULES: ClassVar[Mapping[str, tuple[Rules, ...]]] = {"visual_encoder": (EVA_FILE, CLIP_FILE)}
    # of transformers' folders: (architecture, model_type of the language model)
    TRANSFORMERS: ClassVar[tuple[str, str]] = (blip2_folders.RETRIEVES, "")

    registered_name: ClassVar[str]
    PRESETS: ClassVar[Mapping[str, Any]]
    visual_encoder: VisionTransformer
    ln_vision: nn.LayerNorm

    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        return blip2_folders.adapted(config, path, cls.TRANSFORMERS, cls.registered_name)

    @classmethod
    def type_of(cls, path: Path) -> str | None:
        return blip2_folders.type_of(path, cls.PRESETS)

    def official_state(self) -> StateDict:
        return blip2_folders.official(super().official_state())  # type: ignore[misc]

    def save_transformers(self, folder: Path) -> list[str]:
        from lavis.models import blip2_export

        return blip2_export.write(self, folder)

    def add_tower(self, config: Blip2Config) -> None:
        with building("visual_encoder"):
            self.visual_encoder = VisionTransformer(config.vit, config.image_size, config.grad_checkpointing)
        self.ln_vision = nn.LayerNorm(config.vit.width)

    def maybe_autocast(self, dtype: torch.dtype = torch.float16) -> AbstractContextManager[Any]:
        """Mixed precision but on a CPU, as the original's method of that name."""
        device: torch.device = self.device  # type: ignore[attr-defined]
        return nullcontext() if device.type == "cpu" else torch.autocast(device.type, dtype=dtype)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """States of images (B, 3, h, w), normalised in float32: (B, N, vit.width)."""
        states = self.visual_encoder(as_input_of(self.visual_encoder, image))
        with torch.autocast(states.device.type, enabled=False):
            return self.ln_vision(states.to(self.ln_vision.weight.dtype))


@registry.register_model("blip2")
@registry.register_model("blip2_feature_extractor")
class Blip2Qformer(WithTower, BaseModel):
    """Image encoder and Q-Former with all heads of the first stage: contrast, matching, writing."""

    registered_name = "blip2"
    RULES = OFFICIAL
    PRETRAINED_RULES = OFFICIAL
    FOREIGN_RULES = (blip2_folders.rules(blip2_folders.RETRIEVES),)
    # of `lavis.models.reranking`
    FUSES_STATES = False
    begin = None  # queries and text read one another from the first layer on
    reranking_text_length = TEXT_LENGTH

    config: Blip2Config
    tokenizer: Tokenizer

    def __init__(self, config: Blip2Config) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = self.init_tokenizer(config.vocabulary)
        self.max_txt_len = config.max_txt_len
        self.bos_id = self.tokenizer.id("[DEC]")
        width = config.text.width
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_token, width))
        self.temp = nn.Parameter(torch.tensor([START_TEMPERATURE]))
        self.add_tower(config)
        self.Qformer = QFormer(config.text)
        self.vision_proj = ExactLinear(width, config.embed_dim)
        self.text_proj = ExactLinear(width, config.embed_dim)
        self.itm_head = ExactLinear(width, 2)

    @classmethod
    def init_tokenizer(cls, vocabulary: str = "bert") -> Tokenizer:
        """BERT's tokenizer with the token that begins a written text."""
        return Tokenizer(VOCABULARIES.get(vocabulary, vocabulary), extra=("[DEC]",))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.query_tokens, std=self.config.text.init_std)
        nn.init.constant_(self.temp, START_TEMPERATURE)
        self.visual_encoder.reset_parameters()
        self.Qformer.reset_parameters()

    def tie_weights(self) -> None:
        self.Qformer.tie_weights()

    def start_from(self, init: Mapping[str, str]) -> None:
        """Start modules from other models' weights: {"Qformer": "bert"}, or a path, URL or Hugging Face id in place of
        "bert"; the queries' feed-forward parts begin as those of text."""
        starting.start_from(self, init)

    # ------------------------------------------------------------------------------ the parts
    def memorize(self, image_embeds: torch.Tensor) -> Memory:
        """What queries read of images' states (B, N, vit.width)."""
        return self.Qformer.bert.project_memory(image_embeds)

    def query(self, memory: Memory, cache: Any = None) -> torch.Tensor:
        """States of queries that have read the images: (B, Q, D)."""
        return self.Qformer.bert(queries=self.query_tokens, memory=memory, cache=cache)

    def fuse(self, tokens: Tokens, memory: Memory) -> torch.Tensor:
        """States of queries that have read the images and the texts: (R, Q, D), R a multiple of the images."""
        return self.Qformer.bert(
            tokens.ids, queries=self.query_tokens, mask=tokens.mask, memory=memory, only_queries=True
        )

    def query_features(self, states: torch.Tensor) -> torch.Tensor:
        """Of queries' states (B, Q, D), each projected, length 1: (B, Q, E)."""
        return F.normalize(self.vision_proj(states), dim=-1)

    def image_feature(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Of images' states (B, N, vit.width): (B, Q, E)."""
        return self.query_features(self.query(self.memorize(image_embeds)))

    def encode_text(self, tokens: Tokens) -> torch.Tensor:
        """States of texts alone: (R, T, D)."""
        return self.Qformer.bert(tokens.ids, mask=tokens.mask)

    def text_feature(self, states: torch.Tensor) -> torch.Tensor:
        """Of texts' states (R, T, D) the first token's, projected, length 1: (R, E)."""
        return F.normalize(self.text_proj(states[:, 0]), dim=-1)

    def match_logits(self, tokens: Tokens, memory: Memory) -> torch.Tensor:
        """(R, 2): log-odds of "does not fit" and "fits", the mean over the queries'."""
        return self.itm_head(self.fuse(tokens, memory)).mean(dim=1)

    def tokens(self, texts: Sequence[str], max_length: int | None = None) -> Tokens:
        return self.tokenizer.batch(list(texts), max_length=max_length, device=self.device)

    # ------------------------------------------------------------------------------ training
    def batch_encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.MEDIA, self.max_txt_len, pad=True)

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """The three losses of the first stage.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts; for retrieval `image_id` (B,), integers: equal ones
                belong together.

        Returns:
            loss = loss_itc + loss_itm + loss_lm (nats), sims.
        """
        samples = self.encoded(samples)
        image_embeds = self.encode_image(media_of(samples, self.MEDIA, self.device))
        tokens = samples["tokens"]["text"]
        memory, cache = self.memorize(image_embeds), Prefix()
        states = self.query(memory, cache)
        cache.length = states.shape[1]
        ids = None
        if samples.get("image_id") is not None:
            ids = torch.as_tensor(samples["image_id"], device=self.device).flatten()
        sims, loss_itc, same = self._contrast(
            self.query_features(states), self.text_feature(self.encode_text(tokens)), ids, len(states)
        )
        loss_itm = self._matching(tokens, image_embeds, sims, same)
        loss_lm = self._writing(tokens, cache)
        return LossOutput(
            sims=sims, loss=loss_itc + loss_itm + loss_lm, loss_itc=loss_itc, loss_itm=loss_itm, loss_lm=loss_lm
        )  # fmt: skip

    def _contrast(
        self, images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor | None, batch: int
    ) -> tuple[Similarity, torch.Tensor, torch.Tensor]:
        """Similarities over the temperature with all ranks' features, their loss, and which pairs belong together.

        Args:
            images: (B, Q, E). texts: (B, E). ids: (B,), see `forward`.
        """
        all_images, all_texts = dist.all_gather_with_grad(images), dist.all_gather_with_grad(texts)
        # the query that fits best decides
        sim_i2t = similarities(images, all_texts) / self.temp  # (B, W)
        sim_t2i = similarities(all_images, texts).T / self.temp
        own = torch.arange(batch, device=texts.device) + dist.rank() * batch
        known = torch.arange(len(all_texts), device=texts.device)
        same = (
            own[:, None] == known[None, :] if ids is None else ids[:, None] == dist.all_gather(ids)[None, :]
        )
        targets = contrastive_targets(same, None, 0.0)
        targets = (1 - SMOOTHING) * targets + SMOOTHING / targets.shape[1]
        loss = (soft_cross_entropy(sim_i2t, targets) + soft_cross_entropy(sim_t2i, targets)) / 2
        return Similarity(sim_i2t=sim_i2t, sim_t2i=sim_t2i), loss, same

    def _matching(
        self, tokens: Tokens, image_embeds: torch.Tensor, sims: Similarity, same: torch.Tensor
    ) -> torch.Tensor:
        """Cross entropy of right pairs, of texts with a hard image, of images with a hard text, from all ranks."""
        batch = len(image_embeds)
        assert sims.sim_i2t is not None and sims.sim_t2i is not None
        # whether there were negatives is asked at the end of the step, so that nothing waits here
        lacking = (negatives_lacking(same, sims.sim_t2i, sims.sim_i2t), same.shape[1])
        if self.optimizer_step is not None:
            self.note(lacking)
        elif not torch.compiler.is_compiling():
            check_negatives([lacking])
        wrong_image = hard_negatives(sims.sim_t2i, same, checked=True)
        wrong_text = hard_negatives(sims.sim_i2t, same, checked=True)
        ids, mask = dist.all_gather(tokens.ids)[wrong_text], dist.all_gather(tokens.mask)[wrong_text]
        texts = Tokens(torch.cat([tokens.ids, tokens.ids, ids]), torch.cat([tokens.mask, tokens.mask, mask]))
        others = dist.all_gather_with_grad(image_embeds)[wrong_image]
        logits = self.match_logits(texts, self.memorize(torch.cat([image_embeds, others, image_embeds])))
        labels = torch.zeros(3 * batch, dtype=torch.long, device=logits.device)
        labels[:batch] = 1
        return F.cross_entropy(logits.float(), labels)

    def _writing(self, tokens: Tokens, cache: Prefix) -> torch.Tensor:
        """Cross entropy of the texts after the queries, which are read from the cache."""
        ids = tokens.ids.clone()
        ids[:, 0] = self.bos_id
        states = self.Qformer.bert(ids, mask=tokens.mask, causal=True, cache=cache)
        labels = ids.masked_fill(~tokens.mask, IGNORE)
        return language_modelling_loss(self.Qformer.cls(states), labels, smoothing=SMOOTHING)

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1) -> list[dict[str, Any]]:
        """As of other models, but that the temperature decays: the original exempts tensors of one dimension, and there
        it has none."""
        groups = super().get_optimizer_params(weight_decay, lr_scale)
        for group in groups:
            group["params"] = [p for p in group["params"] if p is not self.temp]
        if self.temp.requires_grad:
            groups.append({"params": [self.temp], "weight_decay": weight_decay, "lr_scale": 1.0})
        return [group for group in groups if group["params"]]

    def check_step(self) -> None:
        """Whether each batch had negatives to match with."""
        step = self.optimizer_step
        check_negatives(step.noted() if step is not None and not step.checked else [])
        super().check_step()

    def after_step(self) -> None:
        self.check_step()
        super().after_step()

    # ------------------------------------------------------------------------------ use
    @inference
    def extract_features(self, samples: Mapping[str, Any], mode: str = "multimodal") -> Features:
        """Features of images and texts.

        Args:
            samples: `image` (B, 3, h, w) and `text_input`, B·G texts; "image" and "text" need only one.
            mode: "image": image_embeds (B, Q, D), image_embeds_proj (B, Q, E). "text": text_embeds (R, T, D),
                text_embeds_proj (R, T, E). "multimodal": multimodal_embeds (R, Q, D), the queries' states over image
                and text. Projections have length 1.

        Returns:
            the fields of the mode. Texts are not cut.
        """
        if mode not in ("image", "text", "multimodal"):
            raise ValueError(f"mode is {mode!r}; it must be image, text or multimodal")
        if mode == "text":
            require(samples, ("text_input",), "a text or a list of texts")
            tokens = self.tokens(texts_of(samples, 1))
            states = self.encode_text(tokens)
            return Features(text_embeds=states, text_embeds_proj=F.normalize(self.text_proj(states), dim=-1))
        memory = self.memorize(self.encode_image(media_of(samples, self.MEDIA, self.device)))
        if mode == "image":
            states = self.query(memory)
            return Features(image_embeds=states, image_embeds_proj=self.query_features(states))
        tokens = self.tokens(texts_of(samples, len(memory)))
        return Features(multimodal_embeds=self.fuse(tokens, memory))

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
            B·num_captions captions, an image's next to one another, best first.
        """
        options = GenerationOptions(
            use_nucleus_sampling, num_beams, max_length, min_length, top_p, repetition_penalty, num_captions, **more
        )  # fmt: skip
        memory = self.memorize(self.encode_image(media_of(samples, self.MEDIA, self.device)))
        items = len(memory)
        decoding = self.Qformer.begin(self.query_tokens, memory, items, options.lengths(1)[0])
        prompt = torch.full((items, 1), self.bos_id, device=self.device)
        decoded = generation.generate(
            decoding, prompt, options, end=self.tokenizer.sep_id, pad=self.tokenizer.pad_id
        )
        ids, logprobs, scores = decoded.read(items)
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        return Texts(texts, logprobs, scores) if return_scores else texts

    # three methods under the original's names
    @inference
    def forward_image(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of images (B, 3, h, w) the queries' states (B, Q, D), and their own (B, N, vit.width)."""
        image_embeds = self.encode_image(image)
        return self.query(self.memorize(image_embeds)), image_embeds

    @inference
    def forward_text(self, text_tokens: Any) -> torch.Tensor:
        """Of texts as `tokenizer` gives them (`input_ids`, `attention_mask`) the first token's state, (R, D)."""
        ids, mask = text_tokens.input_ids, text_tokens.attention_mask
        return self.encode_text(Tokens(ids.to(self.device), mask.to(self.device).bool()))[:, 0]

    @inference
    def compute_itm(
        self, image_inputs: torch.Tensor, text_ids: torch.Tensor, text_atts: torch.Tensor
    ) -> torch.Tensor:
        """Log-odds that texts fit images' states: (R,).

        Args:
            image_inputs: (B, N, vit.width), as `encode_image` gives them. text_ids, text_atts: (R, T).
        """
        return self.match_logits(Tokens(text_ids, text_atts.bool()), self.memorize(image_inputs))[:, 1]

    # ------------------------------------------------------------ abilities, see `lavis.inference.protocols`
    @property
    def embed_dim(self) -> int:
        """Width of the common space."""
        return self.config.embed_dim

    @property
    def num_queries(self) -> int:
        """Vectors of an image."""
        return self.config.num_query_token

    @property
    def cosine_scale(self) -> float:
        """One over the temperature."""
        return 1 / float(self.temp.detach())

    @prepared
    @torch.no_grad()
    def embed_queries(self, media: torch.Tensor) -> torch.Tensor:
        """Features of images' queries, (B, Q, E), of length 1. A text is compared with the one that fits it best."""
        return self.image_feature(self.encode_image(media))

    @prepared
    @torch.no_grad()
    def embed_images(self, media: torch.Tensor) -> torch.Tensor:
        """The mean of images' query features, (B, E), of length 1: one vector to search by, or to compare images by.

        For a first search only: by the largest similarity images come in another order.
        """
        return F.normalize(self.image_feature(self.encode_image(media)).mean(dim=1), dim=-1)

    @prepared
    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features of texts, (n, E)."""
        return self.text_feature(self.encode_text(self.tokens(texts, self.max_txt_len)))

    @prepared
    @torch.no_grad()
    def match_texts(self, media: torch.Tensor, texts: Sequence[str]) -> Matched:
        """Every image with every text; each image is encoded once. All is on the CPU."""
        memory = self.memorize(self.encode_image(media))
        logits, vectors = match_every(self, memory, len(media), texts, self.max_txt_len)
        return Matched(logits, self.query_features(self.query(memory)).float().cpu(), vectors)

    @prepared
    @torch.no_grad()
    def embed_pairs(self, media: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """States of B images' queries that have read their texts, the mean of the Q: (B, D)."""
        tokens = self.tokens(texts, self.max_txt_len)
        return self.fuse(tokens, self.memorize(self.encode_image(media))).mean(dim=1)

    @prepared
    def explain_text(
        self, samples: Mapping[str, Any], text: str | None, layer: int | None = None
    ) -> Explanation:
        """The logits that the words of a text (or else of the own caption) fit; `score` is the whole text's."""
        said = text or ""
        if not said.strip():
            captions: Any = self.generate({self.MEDIA: samples[self.MEDIA]}, return_scores=True)
            said = captions.texts[0]
        tokens = self.tokens([said], self.max_txt_len)
        with torch.no_grad():
            image_embeds = self.encode_image(samples[self.MEDIA])

        def fits(rows: Tokens) -> torch.Tensor:
            return self.match_logits(rows, self.memorize(image_embeds))[:, 1]

        return heat_maps.explained_by_queries(self, self.Qformer.bert, said, tokens, layer, fits)

    # ------------------------------------------------------------------------------ retrieval
    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of an image's feature."""
        return self.num_queries, self.embed_dim

    def head_logits(self, text: TextStates, memory: Memory) -> torch.Tensor:
        """`match_logits`, as re-ranking calls it."""
        return self.match_logits(text.tokens, memory)

    @inference
    def compute_sim_matrix(
        self, data_loader: Any, task_cfg: Any = None, **unused: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all images with all texts: contrast first, the best `k_test` re-ranked by matching.

        Arguments and result are those of `Alignment.compute_sim_matrix`; an image's contrast with a text is the largest
        of its queries'. Of images only the queries' features are kept.
        """
        return rerank(self, data_loader, task_cfg)


@registry.register_model("blip2_image_text_matching")
class Blip2ITM(Blip2Qformer):
    """How well texts fit images."""

    registered_name = "blip2_image_text_matching"

    @prepared
    def forward(  # type: ignore[override]
        self, samples: Mapping[str, Any], match_head: str = "itm", all_pairs: bool = False
    ) -> torch.Tensor:
        """Compare images and texts.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B·G texts, an image's next to one another.
            match_head: "itm": logits (B·G, 2) of "does not fit" and "fits" for each text with its image; "itc": the
                largest cosine similarity of its image's queries (B·G, 1).
            all_pairs: of "itc", every image with every text, (B, B·G).

        Returns:
            the logits or similarities.
        """
        if match_head not in ("itm", "itc"):
            raise ValueError(f"match_head is {match_head!r}; it must be 'itm' or 'itc'")
        with finite_results(self, samples) as check:
            memory = self.memorize(self.encode_image(media_of(samples, self.MEDIA, self.device)))
            tokens = self.tokens(texts_of(samples, len(memory)), self.max_txt_len)
            if match_head == "itm":
                return check(self.match_logits(tokens, memory))
            images = self.query_features(self.query(memory))
            texts = self.text_feature(self.encode_text(tokens))
            if all_pairs:
                return check(similarities(images, texts))
            groups = texts.unflatten(0, (len(images), -1))  # (B, G, E)
            return check((groups @ images.transpose(1, 2)).amax(dim=2).reshape(-1, 1))
