"""A model from outside whose weights lie in three files: what was trained, a frozen tower, a frozen language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lavis.common.registry import registry
from lavis.models import BaseModel, Output, Part, Preset
from lavis.models.checkpoints import Rules, read_json
from lavis.models.parts import as_input_of, building
from lavis.runners import Result, train
from lavis.tasks.base import Task

NAME, WIDTH, WORDS = "two_parts", 16, 24
TOWER = Part(None, "float16", True)
LANGUAGE = Part(None, None, True)


@dataclass(frozen=True)
class TwoPartsConfig:
    depth: int = 2
    language: Any = None  # config.json of the language model


@dataclass(frozen=True)
class TwoPartsOutput(Output):
    loss: torch.Tensor
    features: torch.Tensor
    scores: torch.Tensor


class Tower(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)  # in no file

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patches(image)).mean((2, 3))
        for block in self.blocks:
            x = x + self.scale * self.dropout(torch.tanh(block(x)))
        return x


class TwoParts(BaseModel):
    registered_name = NAME
    RULES = Rules(external=("visual_encoder.*", "language_model.*"))
    PRETRAINED_RULES = replace(RULES, fresh=("head.*",), renew=("head.*",))
    PART_RULES: ClassVar[dict[str, tuple[Rules, ...]]] = {
        "visual_encoder": (Rules(marker="stem.weight", rename=((r"^stem\.", "patches."),)), Rules()),
    }

    def __init__(self, config: TwoPartsConfig) -> None:
        super().__init__()
        self.config = config
        with building("visual_encoder"):
            self.visual_encoder = Tower(config.depth)
        self.connector = nn.Linear(WIDTH, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WORDS, 2)
        with building("language_model"):
            self.language_model = AutoModelForCausalLM.from_config(GPT2Config(**config.language))

    def reset_parameters(self) -> None:
        """PyTorch's own starting weights will do."""

    @classmethod
    def with_parts(cls, config: TwoPartsConfig, sources: Any) -> TwoPartsConfig:
        if config.language is None:
            found = read_json(sources.path("language_model") / "config.json")
            keys = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
            config = replace(config, language={key: found[key] for key in keys})
        return config

    def forward(self, samples: Any) -> TwoPartsOutput:
        seen = self.visual_encoder(as_input_of(self.visual_encoder, samples["image"]))
        prefix = self.query(self.connector(seen.to(self.connector.weight.dtype))).unsqueeze(1)
        prefix = as_input_of(self.language_model, prefix)
        logits = self.language_model(inputs_embeds=prefix).logits[:, 0].float()
        scores = self.head(logits)
        loss = nn.functional.cross_entropy(scores, samples["label"])
        return TwoPartsOutput(loss, seen, scores)


def batch(seed: int = 0, size: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(size, 3, 8, 8, generator=generator),
        "label": torch.randint(2, (size,), generator=generator),
    }


def write_tower(path: Path, seed: int = 1) -> dict[str, torch.Tensor]:
    """A file of somebody else's, float32, with a name of its own for the first layer."""
    torch.manual_seed(seed)
    state = Tower(2).state_dict()
    state["norm.running_mean"] += torch.randn(WIDTH)
    renamed = {key.replace("patches.", "stem."): tensor for key, tensor in state.items()}
    torch.save({"model": renamed}, path)
    return state


def write_language_model(folder: Path, seed: int = 2) -> GPT2LMHeadModel:
    """A folder of transformers in several files, its head tied and not written."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=WIDTH, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model


def write_trained(path: Path, seed: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    layers = {"connector": (WIDTH, WIDTH), "query": (WIDTH, WIDTH), "head": (WORDS, 2)}
    state = {
        f"{name}.{key}": tensor
        for name, size in layers.items()
        for key, tensor in nn.Linear(*size).state_dict().items()
    }
    save_file(state, path)
    return state


@contextmanager
def registered(folder: Path) -> Iterator[Path]:
    """The model with a preset whose three sources are written to a folder."""
    (
        write_tower(folder / "tower.pth"),
        write_language_model(folder / "language"),
        write_trained(folder / "m.safetensors"),
    )
    parts = {
        "visual_encoder": replace(TOWER, source=str(folder / "tower.pth")),
        "language_model": replace(LANGUAGE, source=str(folder / "language")),
    }
    config = TwoPartsConfig()
    TwoParts.PRESETS = {
        "base": Preset(config, weights=str(folder / "m.safetensors"), parts=parts),
        "without": Preset(
            config, weights=str(folder / "m.safetensors"), parts={**parts, "visual_encoder": TOWER}
        ),
    }
    registry.register_model(NAME)(TwoParts)
    try:
        yield folder
    finally:
        registry.unregister("model", NAME)


class Pictures:
    """Images of noise whose class is the sign of their mean; training samples are moved by their stream."""

    def __init__(self, n: int, seed: int, training: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(n, 3, 8, 8, generator=generator)
        self.images += torch.randn(n, 1, 1, 1, generator=generator)
        self.training = training
        self.records = [{"id": i, "label": int(image.mean() > 0)} for i, image in enumerate(self.images)]

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        image = self.images[index]
        if self.training:
            image = image + 0.1 * torch.from_numpy(rng.normal(size=image.shape).astype(np.float32))
        return {**self.records[index], "image": image}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "image": torch.stack([s["image"] for s in samples]),
            "label": torch.tensor([s["label"] for s in samples]),
            "id": [s["id"] for s in samples],
        }


class Sorting(Task):
    primary = ("accuracy_percent", "max")

    def predict(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any] | None]:
        return [
            {"id": i, "class": c} for i, c in zip(samples["id"], model(samples).scores.argmax(-1).tolist())
        ]

    def score(self, records: Sequence[dict[str, Any]], dataset: Any) -> dict[str, float]:
        hits = [r["class"] == dataset.records[r["id"]]["label"] for r in records]
        return {"accuracy_percent": 100.0 * sum(hits) / len(hits)}


def run(model: dict[str, Any] | None = None, **keys: Any) -> Result:
    """A small training run of the model; `keys` are those of the section run."""
    datasets = {"train": Pictures(40, 1, training=True), "val": Pictures(20, 2)}
    settings = {"max_epoch": 2, "batch_size_train": 4, "init_lr": 1e-2, "log_freq": 3, "num_workers": 0}
    section = {"arch": NAME, "model_type": "base", **(model or {})}
    return train(model=section, datasets=datasets, task=Sorting(), device="cpu", **{**settings, **keys})
