"""Classifying texts over pictures: what ALBEF's and BLIP's classification and NLVR2 models share.

B pictures, G texts per picture, R = B·G texts, T tokens, N image tokens, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lavis.models import heat_maps
from lavis.models.base import BaseModel, inference, own_step, prepared
from lavis.models.checkpoints import Rules, StateDict
from lavis.models.folders import CONFIG_NAME, read_description
from lavis.models.loading import PartSettings
from lavis.models.outputs import EncoderOutput, Explanation, IntermediateOutput, OutputWithLogits
from lavis.models.samples import TextEncoder, media_of, require
from lavis.models.tokenizer import Tokens
from lavis.models.vision_text import VisionText, VisionTextConfig
from lavis.nn.losses import soft_cross_entropy
from lavis.nn.text import TextTransformer

States = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ClassifierConfig(VisionTextConfig):
    """
    Attributes:
        num_classes: None: as many as the file that is loaded has.
        classnames: what the classes are called, in their order; None: unknown, as of published weights.
        use_distill: whether the EMA copies teach, in the families that have them.
    """

    num_classes: int | None = None
    classnames: tuple[str, ...] | None = None
    use_distill: bool = True


@dataclass(frozen=True)
class ClassEncoder(TextEncoder):
    """Also checks the labels, whole numbers below `classes`, one per text, and makes them a tensor (R,)."""

    labels: str = "label"
    classes: int = 2

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        encoded = super().__call__(samples)
        require(samples, (self.labels,), "a class number per text")
        labels = _labels(samples[self.labels], len(encoded["tokens"]["text"].ids))
        if not bool(((labels >= 0) & (labels < self.classes)).all()):  # the loader's, so on the host
            raise ValueError(
                f"labels lie between {int(labels.min())} and {int(labels.max())}, the model tells {self.classes} "
                f"classes apart, 0 to {self.classes - 1}; set model.num_classes"
            )
        return {**encoded, self.labels: labels}


class Classifier(VisionText, BaseModel):
    """A two-layer head over the first of a text's states, after the text has read its image or its two images.

    With EMA copies (EMA then names "cls_head" too) the loss heeds the EMA's opinion (ALBEF paper, section 3.3).
    HEAD: the head's name. HEAD_WIDTH: its hidden units, in widths of the states. LABELS: the samples' classes.
    PAIRS: whether texts are about two images, `image0` and `image1`.
    TEXT_EMA: whether the EMA's opinion is made by the EMA of the text encoder, or by the text encoder itself.
    """

    HEAD = "cls_head"
    HEAD_WIDTH = 1
    LABELS = "label"
    PAIRS = False
    TEXT_EMA = True

    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.text_encoder = self.text_reader(config)
        num_classes = config.num_classes
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"model.num_classes is {num_classes}; {self.registered_name} needs to know how many classes there are, "
                "2 or more, unless the weights that are loaded say it"
            )
        width = config.text.width
        hidden = self.HEAD_WIDTH * width
        head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        setattr(self, self.HEAD, head)
        if self.EMA and self.config.use_distill:
            self.make_ema()

    def text_reader(self, config: Any) -> TextTransformer:
        """The family's text encoder."""
        return TextTransformer(config.text)

    # ------------------------------------------------------------------------------ names of classes
    @property
    def classnames(self) -> tuple[str, ...] | None:
        """What the classes are called, in their order; None: unknown."""
        names: tuple[str, ...] | None = self.config.classnames
        return names

    def name_classes(self, names: Sequence[str]) -> None:
        """Say what the classes are called; checkpoints then hold it.

        Raises:
            ValueError: there are as many names as classes only if each is another.
        """
        if len(set(names)) != self.config.num_classes:
            raise ValueError(
                f"the model tells {self.config.num_classes} classes apart, and {len(set(names))} names are given"
            )
        self.config = replace(self.config, classnames=tuple(names))

    def check_folder(self, folder: Path) -> None:
        """Compare the classes with those of a checkpoint whose weights are about to be taken; take its names where the
        model has none.

        Raises:
            ValueError: they are others, or in another order.
        """
        stored = _stored_names(folder)
        if stored is None:
            return
        if self.classnames is None and len(stored) == self.config.num_classes:
            self.name_classes(stored)
        elif self.classnames != stored:
            ours = "unknown names" if self.classnames is None else some_names(self.classnames)
            raise ValueError(
                f"{folder} is of a model with the classes {some_names(stored)}; here they are {ours}, so its weights "
                "would mean something else"
            )

    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        """The config with the names of classes that a folder of ours holds."""
        config, stored = super().adapt(config, path), _stored_names(path)
        return config if stored is None else replace(config, classnames=stored)

    @classmethod
    def from_file(
        cls,
        config: Any,
        path: Path,
        rules: Rules | None = None,
        name: str | None = None,
        activation: str | None = None,
        parts: PartSettings | None = None,
    ) -> BaseModel:
        """As `BaseModel.from_file`; where a classifier of this kind is fine-tuned from, by rules with a fresh head, its
        head is left behind."""
        head = f"{cls.HEAD}.2.weight"
        there = _description(path)
        if rules is None or not rules.is_fresh(head) or not there or there["arch"] != cls.registered_name:
            return super().from_file(config, path, rules, name, activation, parts)
        heads = (f"{cls.HEAD}.*", f"{cls.HEAD}_m.*")
        fresh = replace(cls.RULES, fresh=heads, renew=heads)
        model = super().from_file(config, path, fresh, name, activation, parts)
        model.config = replace(model.config, classnames=config.classnames)
        return model

    @classmethod
    def complete(cls, config: Any, state: StateDict) -> Any:
        """The number of classes is the file's, where it has a head."""
        last = f"{cls.HEAD}.2.weight"  # (C, hidden units)
        return replace(config, num_classes=state[last].shape[0]) if last in state else config

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> Classifier:
        """As `BaseModel.from_config`; a `num_classes` that the loaded weights contradict is an error."""
        model = super().from_config(cfg)
        assert isinstance(model, Classifier)
        wanted, found = cfg.get("num_classes"), model.config.num_classes
        if wanted is not None and wanted != found:
            raise ValueError(
                f"model.num_classes is {wanted}, but the weights that were loaded tell {found} classes apart; "
                "leave it out, or start from weights: pretrained, whose head is new"
            )
        return model

    def chance_losses(self, batch: int) -> dict[str, float]:
        """The loss (nats) of a head for which all classes are alike."""
        return {"loss": math.log(self.config.num_classes)}

    # ------------------------------------------------------------------------------ encoding
    def batch_encoder(self) -> ClassEncoder:
        return ClassEncoder(
            self.tokenizer,
            "image0" if self.PAIRS else self.MEDIA,
            self.config.max_txt_len,
            labels=self.LABELS,
            classes=self.config.num_classes,
        )

    def texts(self, samples: Mapping[str, Any]) -> Tokens:
        """Tokens (R, T) of the samples' texts."""
        return self.batch_encoder().read(samples).to(self.device)

    def fused(
        self, samples: Mapping[str, Any], tokens: Tokens | None = None, *, ema: bool = False
    ) -> tuple[torch.Tensor, States]:
        """Encode images, and texts over them.

        Args:
            samples: `image` (B, 3, h, w), or `image0` and `image1`, the left and the right ones of pairs; `text_input`,
                B·G texts, see `batch_encoder`.
            tokens: of the texts, where they are known.
            ema: encode by the EMA copies.

        Returns:
            fused states (R, T, D); and what was encoded, by its name in `IntermediateOutput`: image_embeds (B, N, D),
            or (2, B, N, D) of pairs.
        """
        tokens, encode = tokens or self.texts(samples), self.part("visual_encoder", ema)
        encoder = self.part("text_encoder", ema and self.TEXT_EMA)
        if self.PAIRS:
            left, right = (media_of(samples, key, self.device) for key in ("image0", "image1"))
            if left.shape != right.shape:
                raise ValueError(
                    f"image0 is {tuple(left.shape)}, image1 is {tuple(right.shape)}; each statement takes one of both"
                )
            image_embeds = encode(torch.cat([left, right])).unflatten(0, (2, len(left)))  # (2, B, N, D)
            memory = encoder.project_memory(image_embeds[0], second=image_embeds[1])
        else:
            image_embeds = encode(media_of(samples, self.MEDIA, self.device))
            memory = encoder.project_memory(image_embeds)
        return encoder(tokens.ids, mask=tokens.mask, memory=memory), {"image_embeds": image_embeds}

    # ------------------------------------------------------------------------------ training
    def forward(
        self, samples: Mapping[str, Any], is_train: bool = True
    ) -> OutputWithLogits | dict[str, torch.Tensor | None]:
        """Classification loss.

        Args:
            samples: what `fused` reads; `label`, R integers below C; with EMA copies also `epoch`, `iters`,
                `num_iters_per_epoch`.
            is_train: False gives what `predict` gives, but in the mode that the model is in.

        Returns:
            loss (nats): (1 - alpha) cross entropy with the labels + alpha cross entropy with the EMA's opinion,
            where there are EMA copies; logits (R, C), logits_m (R, C), intermediate_output.
        """
        if is_train:
            return self._loss(self.encoded(samples))
        logits = self.part(self.HEAD, ema=False)(self.fused(samples)[0][:, 0])
        targets = samples.get(self.LABELS)
        if targets is not None:
            targets = _labels(targets, len(logits)).to(self.device)
        return {"predictions": logits, "targets": targets}

    @own_step
    def _loss(self, samples: Mapping[str, Any]) -> OutputWithLogits:
        distilled = bool(self.EMA) and self.config.use_distill
        if distilled:
            self.need_ema()
        alpha = self.alpha(samples) if distilled else 0.0
        tokens = samples["tokens"]["text"]
        states, encoded = self.fused(samples, tokens)
        logits = self.part(self.HEAD, ema=False)(states[:, 0])  # (R, C)
        loss = F.cross_entropy(logits.float(), samples[self.LABELS])
        shown: dict[str, Any] = {**encoded, "encoder_output": EncoderOutput(states)}
        logits_m = None
        if distilled:
            with torch.no_grad():
                states_m, encoded_m = self.fused(samples, tokens, ema=True)
                logits_m = self.part(self.HEAD, ema=True)(states_m[:, 0])
            opinion = logits_m.float().softmax(dim=1)
            loss = (1 - alpha) * loss + alpha * soft_cross_entropy(logits, opinion)
            shown |= {f"{key}_m": value for key, value in encoded_m.items()}
            shown["encoder_output_m"] = EncoderOutput(states_m)
        return OutputWithLogits(
            intermediate_output=IntermediateOutput(**shown), loss=loss, logits=logits, logits_m=logits_m
        )

    # ------------------------------------------------------------------------------ prediction
    @inference
    def predict(
        self, samples: Mapping[str, Any], *, return_scores: bool = False
    ) -> dict[str, torch.Tensor | None]:
        """Classify texts over their pictures.

        Args:
            samples: what `fused` reads; `label` may be absent.
            return_scores: also give probabilities.

        Returns:
            "predictions": logits (R, C), whose greatest is the answer; "targets": `label` as a tensor (R,), or None;
            "scores", if asked for: probabilities (R, C), the softmax of the logits.
        """
        out = self.forward(samples, is_train=False)
        assert isinstance(out, dict)
        if return_scores:
            logits = out["predictions"]
            assert logits is not None
            out["scores"] = logits.float().softmax(dim=1)
        return out

    @prepared
    def explain_text(
        self, samples: Mapping[str, Any], text: str | None, layer: int | None = None
    ) -> Explanation:
        """The logit of the likeliest class, by the words of a text."""
        found: list[int] = []

        def greatest() -> torch.Tensor:
            out: Any = self.forward({**samples, "text_input": [text]}, is_train=False)
            logits = out["predictions"]  # (1, C)
            found.append(int(logits.argmax()))
            return logits[:, found[-1]]

        def said() -> str:
            return ("false", "true")[found[-1]] if self.PAIRS else f"class {found[-1]}"

        return heat_maps.explained_text(self, text or "", layer, greatest, said)


def _labels(given: Any, texts: int) -> torch.Tensor:
    """Classes of as many texts, as a tensor (R,)."""
    labels = torch.as_tensor(given).flatten()
    if len(labels) != texts:
        raise ValueError(f"there are {len(labels)} labels for {texts} texts")
    return labels


def some_names(names: Sequence[str]) -> str:
    """The first of some names, for messages."""
    return ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")


def _description(path: Path) -> dict[str, Any] | None:
    """What the config.json of a folder of ours says; None of anything else."""
    if not (path / CONFIG_NAME).is_file():
        return None
    try:
        return read_description(path)
    except ValueError:  # transformers'
        return None


def _stored_names(path: Path) -> tuple[str, ...] | None:
    """The names of classes that a folder of ours holds; None where it has none."""
    description = _description(path)
    names = None if description is None else description["config"].get("classnames")
    return None if names is None else tuple(map(str, names))
