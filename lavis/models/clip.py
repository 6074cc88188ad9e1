"""CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020).

A picture tower and a text tower that put what belongs together close to one another. Here: training by contrast
(section 2.3), features, retrieval, and zero-shot classification (section 3.1).

B pictures, R texts, C classes, T tokens, D width, E width of the shared space.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.models.base import BaseModel, Output, inference, own_step, prepared
from lavis.models.checkpoints import Rules, StateDict
from lavis.models.clip_checkpoints import OFFICIAL, OFFICIAL_VIT, TRANSFORMERS_CLIP, adapted, official
from lavis.models.clip_tokenizer import CLIP_MERGES, ClipTokenizer
from lavis.models.gallery import TEXTS_AT_ONCE, cosine_matrix
from lavis.models.outputs import Features
from lavis.models.samples import checked_batch
from lavis.models.tokenizer import Tokens
from lavis.models.zero_shot import Template, fill, imagenet_templates
from lavis.nn.finite import check_finite
from lavis.nn.losses import contrastive_loss, similarities
from lavis.nn.resnet import ResNet, ResNetConfig
from lavis.nn.transformer import Block, Blocks, Mlp
from lavis.nn.vit import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger("lavis")

START_SCALE = 1 / 0.07  # what cosines are multiplied with at the start of training (section 2.5)
MAX_SCALE = 100.0  # and at most; also the factor of `predict`
_CLASSES_AT_ONCE = 64  # of encoding many texts

# --------------------------------------------------------------------------------- configuration


def clip_vit(width: int = 768, depth: int = 12, heads: int = 12, patch_size: int = 32) -> ViTConfig:
    """CLIP's image transformer: normalised before its first block, too, and pooled to its class token."""
    return ViTConfig(
        width, depth, heads, patch_size, layer_norm_eps=1e-5, patch_bias=False, pre_norm=True, pooling="class"
    )


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of CLIP's text transformer; the defaults are those of the base models."""

    width: int = 512
    depth: int = 12
    heads: int = 8
    context_length: int = 77  # tokens of a text, start and end included
    vocab_size: int = 49408


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP model; the defaults are ViT-B/32's.

    Attributes:
        image_size: pixels; images are squares. Position embeddings of a checkpoint for another size are resized.
        embed_dim: width of the space that both towers project to.
        vision: the image encoder, a transformer (`clip_vit`) or a `ResNetConfig`.
        quick_gelu: x·sigmoid(1.702 x) in both encoders, as OpenAI's models were trained with, instead of the exact
            GELU. OpenCLIP's models have one or the other; their names say "quickgelu" where it is this one.
        vocabulary: "clip", or the path of a file of merges.
    """

    image_size: int = 224
    embed_dim: int = 512
    vision: ViTConfig | ResNetConfig = field(default_factory=clip_vit)
    text: ClipTextConfig = field(default_factory=ClipTextConfig)
    quick_gelu: bool = True
    vocabulary: str = "clip"


# ----------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class ClipOutput(Output):
    """What `forward` returns: the loss (nats), the features, and what cosines were multiplied with."""

    intermediate_output: Features | None = None
    logit_scale_exp: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None


@dataclass(frozen=True)
class ClipPrediction(Output):
    """What `predict` returns: predictions, logits (B, C); targets, the labels given; scores, probabilities (B, C)."""

    predictions: torch.Tensor
    targets: Any = None
    scores: torch.Tensor | None = None


# ----------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class ClipEncoder:
    """Makes `tokens["text"]` of `text_input`, where there is one; see `BaseModel.batch_encoder`."""

    tokenizer: ClipTokenizer
    context_length: int

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        image, text = samples.get("image"), samples.get("text_input")
        if image is None and text is None:
            raise ValueError(
                f"samples need an 'image', a 'text_input' or both; they have {', '.join(samples)}"
            )
        if image is not None:
            checked_batch(image, "image", "(B, 3, h, w)")
        return {**samples, "tokens": {} if text is None else {"text": self.tokens(text)}}

    def tokens(self, text: torch.Tensor | str | Sequence[str]) -> Tokens:
        """Tokens (R, T) of texts; of ids, which stay as they are, too."""
        if isinstance(text, torch.Tensor):
            return Tokens(text, torch.ones_like(text, dtype=torch.bool))
        texts = [text] if isinstance(text, str) else list(text)
        return self.tokenizer.batch(texts, max_length=self.context_length)


# ------------------------------------------------------------------------------------------- model


@registry.register_model("clip")
@registry.register_model("clip_feature_extractor")
class Clip(BaseModel):
    """CLIP with a transformer or a ResNet for images (paper, section 2.4 and figure 1)."""

    registered_name = "clip"
    IMAGE_BLOCKS = "visual.blocks"
    RULES = OFFICIAL
    PRETRAINED_RULES = OFFICIAL
    FOREIGN_RULES = (TRANSFORMERS_CLIP, OFFICIAL_VIT)

    config: ClipConfig
    tokenizer: ClipTokenizer
    classifier: torch.Tensor | None

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        merges = CLIP_MERGES if config.vocabulary == "clip" else config.vocabulary
        self.tokenizer = ClipTokenizer(merges, text.vocab_size, text.context_length)
        self.positional_embedding = nn.Parameter(torch.zeros(text.context_length, text.width))
        self.text_projection = nn.Parameter(torch.zeros(text.width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor([math.log(START_SCALE)]))
        activation = "quick_gelu" if config.quick_gelu else "gelu"
        if isinstance(config.vision, ResNetConfig):
            self.visual: nn.Module = ResNet(config.vision, config.image_size, config.embed_dim)
        else:
            vision = replace(config.vision, activation=activation)
            self.visual = VisionTransformer(vision, config.image_size, embed_dim=config.embed_dim)
        self.transformer = Blocks(
            Block(text.width, text.heads, 4 * text.width, activation=activation, eps=1e-5)
            for _ in range(text.depth)
        )
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.ln_final = nn.LayerNorm(text.width)
        self.register_buffer("classifier", None, persistent=False)  # (E, C), see `before_evaluation`

    def reset_parameters(self) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.config.text.width**-0.5)
        nn.init.constant_(self.logit_scale, math.log(START_SCALE))
        if isinstance(self.visual, VisionTransformer):
            for parameter in (self.visual.cls_token, self.visual.pos_embed, self.visual.proj):
                nn.init.normal_(parameter, std=self.visual.config.width**-0.5)
            _start_blocks(self.visual.blocks, self.visual.config.width)
        else:
            self.visual.reset_parameters()  # type: ignore[operator]
        _start_blocks(self.transformer, self.config.text.width)

    def set_temperature(self, temperature: float) -> None:
        if not 1 / MAX_SCALE <= temperature <= 1:
            raise ValueError(f"model.temperature is {temperature}; it must lie between {1 / MAX_SCALE} and 1")
        nn.init.constant_(self.logit_scale, -math.log(temperature))

    def chance_losses(self, batch: int) -> dict[str, float]:
        """The loss (nats) of features that know nothing, on `batch` pairs of all ranks."""
        return {"loss_itc": math.log(batch)}

    # ------------------------------------------------------------------------------ weights
    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        """The config with the activation that a transformers folder names."""
        return adapted(config, path)

    def load_file(self, path: Path, rules: Rules | None = None, name: str | None = None) -> None:
        super().load_file(path, rules, name)
        for module in self.modules():
            if isinstance(module, Mlp):
                module.activation = "quick_gelu" if self.config.quick_gelu else "gelu"

    def official_state(self) -> StateDict:
        return official(super().official_state())

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Train the text tower only (LiT, Zhai et al. 2021).

        Args:
            unlocked_groups: 0; no part of the picture tower can be left unlocked.
            freeze_bn_stats: keep a ResNet's batch statistics as well.
        """
        if unlocked_groups != 0:
            raise ValueError(
                f"unlocked_groups is {unlocked_groups}; only the whole tower can be locked, with 0"
            )
        self.visual.lock(freeze_bn_stats)  # type: ignore[operator]

    # ------------------------------------------------------------------------------ features
    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Vectors of pictures (B, 3, h, w), not normalised: (B, E)."""
        return self.visual(checked_batch(image, "image", "(B, 3, h, w)").to(self.device, non_blocking=True))

    def encode_text(self, text: torch.Tensor | str | Sequence[str]) -> torch.Tensor:
        """Vectors of texts, not normalised: (R, E).

        Args:
            text: strings, or ids (R, T) that begin with the start token. A text's vector is the state of its
                first end token, or of its start token if it has no end.
        """
        ids = text if isinstance(text, torch.Tensor) else self.batch_encoder().tokens(text).ids
        ids = ids.to(self.device)
        if ids.ndim != 2 or ids.shape[1] > self.config.text.context_length:
            raise ValueError(
                f"ids have shape {tuple(ids.shape)}; (texts, tokens) with at most "
                f"{self.config.text.context_length} tokens was expected"
            )
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]  # (R, T, D)
        # No token sees a later one, so what comes after the end does not matter.
        x = self.transformer(x, "causal")
        end = (ids == self.tokenizer.sep_id).int().argmax(dim=1)  # (R,) the first, 0 if there is none
        return self.ln_final(x[torch.arange(x.shape[0], device=x.device), end]) @ self.text_projection

    def batch_encoder(self) -> ClipEncoder:
        return ClipEncoder(self.tokenizer, self.config.text.context_length)

    def _features(self, samples: Mapping[str, Any]) -> Features:
        """What there is in encoded samples, raw and of length 1 (in float32)."""
        image, text = samples.get("image"), samples["tokens"].get("text")
        images = None if image is None else self.encode_image(image)
        texts = None if text is None else self.encode_text(text.ids)
        return Features(
            image_embeds=images,
            image_embeds_proj=None if images is None else _unit(images),
            text_embeds=texts,
            text_embeds_proj=None if texts is None else _unit(texts),
        )

    @inference
    def extract_features(
        self, samples: Mapping[str, Any], mode: str | None = None
    ) -> Features | torch.Tensor:
        """Vectors of pictures, texts or both.

        Args:
            samples: `image` (B, 3, h, w), `text_input` R texts.
            mode: "image", "text", or "multimodal" for both. Without it both are given if both are there; of one
                alone the bare tensor, as the original returns it.

        Returns:
            `image_embeds` (B, E) and `text_embeds` (R, E) as projected; `image_embeds_proj`, `text_embeds_proj` the
            same with length 1, whose products are cosines. CLIP has no fused features.
        """
        wanted = {"image": ("image",), "text": ("text_input",), "multimodal": ("image", "text_input")}
        if mode is not None:
            if mode not in wanted:
                raise ValueError(f"mode is {mode!r}; it must be image, text or multimodal")
            for key in wanted[mode]:
                if samples.get(key) is None:
                    raise ValueError(f"mode {mode!r} needs samples[{key!r}]; there are {', '.join(samples)}")
            samples = {key: samples[key] for key in wanted[mode]}
        found = self._features(self.encoded({k: v for k, v in samples.items() if k != "tokens"}))
        if mode is None and found.image_embeds is None:
            assert found.text_embeds is not None
            return found.text_embeds
        if mode is None and found.text_embeds is None:
            assert found.image_embeds is not None
            return found.image_embeds
        return found

    # ------------------------------------------------------------ abilities, see `lavis.inference.protocols`
    @property
    def embed_dim(self) -> int:
        """Width of the common space."""
        return self.config.embed_dim

    @property
    def cosine_scale(self) -> float:
        """What was learned to multiply cosines with."""
        return math.exp(float(self.logit_scale.detach()))

    @prepared
    @torch.no_grad()
    def embed_images(self, media: torch.Tensor) -> torch.Tensor:
        """As `encode_image`."""
        return self.encode_image(media)

    @prepared
    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """As `encode_text`."""
        return self.encode_text(texts)

    # ------------------------------------------------------------------------------ training
    def before_step(self, progress: float | None = None) -> None:
        super().before_step(progress)
        with torch.no_grad():  # section 2.5
            self.logit_scale.clamp_(0.0, math.log(MAX_SCALE))

    def forward(self, samples: Mapping[str, Any]) -> ClipOutput | torch.Tensor:
        """Contrastive loss of pictures and their texts; on several ranks against the pictures and texts of all.

        Args:
            samples: `image` (B, 3, h, w), `text_input` B texts, the b-th one the b-th picture's.

        Returns:
            `loss` = `loss_itc`, `intermediate_output` with the features, `logit_scale_exp`. If image or text is
            missing, the bare vectors of the other, as in the original.
        """
        found = self._features(self.encoded(samples))
        if found.image_embeds is None or found.text_embeds is None:
            return found.image_embeds if found.text_embeds is None else found.text_embeds  # type: ignore[return-value]
        if len(found.image_embeds) != len(found.text_embeds):
            raise ValueError(
                f"there are {len(found.text_embeds)} texts for {len(found.image_embeds)} images; the loss needs "
                "one text for each image"
            )
        return self._loss(found)

    @own_step
    def _loss(self, found: Features) -> ClipOutput:
        scale = self.logit_scale[0].exp()
        loss, _, _ = contrastive_loss(found.image_embeds_proj, found.text_embeds_proj, scale.float())  # type: ignore[arg-type]
        return ClipOutput(intermediate_output=found, loss=loss, loss_itc=loss, logit_scale_exp=scale)

    # ------------------------------------------------------------------------------ classification
    @inference
    def zero_shot_classifier(
        self, classnames: Sequence[str], templates: Sequence[Template] | None = None
    ) -> torch.Tensor:
        """Weights of a classifier made of texts (section 3.1.4): each class the mean of its filled-in templates.

        Args:
            classnames: C names.
            templates: strings with "{}", or functions of a name; OpenAI's 80 for ImageNet by default.

        Returns:
            (E, C), columns of length 1.
        """
        templates = imagenet_templates() if templates is None else list(templates)
        if not classnames or not templates or isinstance(classnames, str):
            raise ValueError("a zero-shot classifier needs a list of class names and at least one template")
        columns = []
        for start in range(0, len(classnames), _CLASSES_AT_ONCE):
            names = classnames[start : start + _CLASSES_AT_ONCE]
            each = self._encode_texts([fill(t, name) for name in names for t in templates])
            columns.append(_unit(each.unflatten(0, (len(names), len(templates))).mean(dim=1)))
        found = torch.cat(columns)
        check_finite(found, kind="class")
        return found.t().contiguous()

    def before_evaluation(self, dataset: Any = None, task_type: Any = None, **unused: Any) -> None:
        """Make `classifier` out of `dataset.classnames`, if it has any, for `predict`."""
        classnames = getattr(dataset, "classnames", None)
        if classnames is not None:
            self.classifier = self.zero_shot_classifier(list(classnames))

    @inference
    def predict(self, samples: Mapping[str, Any], return_scores: bool = False) -> ClipPrediction:
        """Classify pictures with `classifier`, what `zero_shot_classifier` makes.

        Args:
            samples: `image` (B, 3, h, w); `label`, if any, comes back as `targets`.
            return_scores: also give the probabilities of the classes.
        """
        if self.classifier is None:
            raise ValueError(
                "there are no classes to choose from; set model.classifier = "
                "model.zero_shot_classifier(classnames), or call before_evaluation with a data set that has classnames"
            )
        if samples.get("image") is None:
            raise ValueError(f"samples need an 'image', (B, 3, h, w); they have {', '.join(samples)}")
        logits = MAX_SCALE * similarities(
            _unit(self.encode_image(samples["image"])), self.classifier.T
        )  # (B, C)
        return ClipPrediction(logits, samples.get("label"), logits.softmax(dim=1) if return_scores else None)

    @inference
    def zero_shot_predict(
        self, image_path: str | Path | Image.Image, categories: Sequence[str]
    ) -> dict[str, float]:
        """Which of some texts fits a picture.

        Args:
            image_path: a file, or a picture.
            categories: the texts, used as they are ("a photo of a dog" does better than "dog").

        Returns:
            each text's probability (0 to 1) among them, in their order.
        """
        from PIL import Image

        from lavis.common.images import open_image
        from lavis.processors import ClipImageEvalProcessor

        if isinstance(categories, str) or not categories or len(set(categories)) != len(categories):
            raise ValueError(f"categories are {categories!r}; a list of texts, each once, was expected")
        if isinstance(image_path, Image.Image):
            picture = image_path
        else:
            picture = open_image(image_path)
        image = ClipImageEvalProcessor(self.config.image_size)(picture).unsqueeze(0)
        cosines = similarities(_unit(self.encode_image(image)), self._encode_texts(list(categories)))
        return dict(zip(categories, (MAX_SCALE * cosines)[0].softmax(dim=0).tolist(), strict=True))

    # ------------------------------------------------------------------------------ retrieval
    @inference
    def compute_sim_matrix(
        self, data_loader: Any, task_cfg: Any = None, **unused: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosines of all pictures with all texts. Ranks share the work, and all of them get the whole.

        Args:
            data_loader: batches with `image`, in order, or pairs of (indices, batch); `data_loader.dataset` has
                `text`, the texts, and as many items as there are pictures.

        Returns:
            (pictures, texts) and (texts, pictures), float32.
        """
        return cosine_matrix(self, data_loader)

    def _encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors of length 1 of any number of texts (R, E), texts of similar length in one batch."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.zeros(len(texts), self.config.embed_dim, device=self.device)
        for start in range(0, len(order), TEXTS_AT_ONCE):
            rows = order[start : start + TEXTS_AT_ONCE]
            out[rows] = _unit(self.encode_text([texts[i] for i in rows]))
        return out


def _start_blocks(blocks: Blocks, width: int) -> None:
    """Starting weights: the original's, which shrink what each residual branch adds with the depth."""
    outer = (2 * width * len(blocks)) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        attention, mlp = block.attn, block.mlp
        for layer, std in (
            (attention.qkv, width**-0.5), (attention.proj, outer), (mlp.fc1, (2 * width) ** -0.5), (mlp.fc2, outer)
        ):  # fmt: skip
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """The same directions with length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)
