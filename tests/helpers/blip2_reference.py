"""Small BLIP-2 models with the weights that the stored outputs of the original were made with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis.models.blip2 import Blip2Config, Blip2ITM, Blip2Qformer, tower
from lavis.nn.text import TextConfig
from tests.reference import recipe

REFERENCE = Path(__file__).parent.parent / "reference" / "blip2"
INPUTS = json.loads((REFERENCE / "inputs.json").read_text())


def manifest(name: str) -> dict[str, Any]:
    return recipe.load_manifest(REFERENCE / "manifests" / f"blip2_{name}.json.gz")


def outputs(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "golden" / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def state_dict(described: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a manifest, as its README says."""
    state = recipe.make_state_dict(described["state_dict"])
    for pattern, gain in described["gains"]:
        done = set()
        for key, tensor in state.items():
            tied = described["state_dict"][key].get("tied_to", key)
            if re.search(pattern, tied) and tensor.data_ptr() not in done:
                done.add(tensor.data_ptr())
                tensor.mul_(gain)
    for pattern, row, number in described["rows"]:
        for key, tensor in state.items():
            if re.search(pattern, key):
                tensor[row] = number
    return state


def write(described: dict[str, Any], path: Path) -> Path:
    """A .pth as the original publishes it."""
    torch.save({"model": state_dict(described)}, path)
    return path


def config(described: dict[str, Any]) -> Blip2Config:
    sizes = described["sizes"]
    vit = tower(
        described.get("vit_model", "eva_clip_g"),
        width=sizes["vit_width"],
        depth=sizes["vit_depth"],
        heads=sizes["vit_heads"],
        patch_size=sizes["patch"],
    )
    text = TextConfig(
        vocab_size=30523,
        width=sizes["qformer_width"],
        depth=sizes["qformer_depth"],
        heads=sizes["qformer_heads"],
        hidden=sizes["qformer_hidden"],
        memory_width=sizes["vit_width"],
        cross_every=2,
    )
    return Blip2Config(
        image_size=sizes["image_size"],
        vit=vit,
        text=text,
        num_query_token=sizes["query_tokens"],
        embed_dim=sizes["embed_dim"],
        max_txt_len=described["max_txt_len"],
    )


def build(described: dict[str, Any], checkpoint: Path, matching: bool = False) -> Any:
    """The model of a manifest with the weights of an official file."""
    model_class = Blip2ITM if matching else Blip2Qformer
    return model_class.from_file(config(described), checkpoint).eval()


def images(count: int = 2) -> torch.Tensor:
    return recipe.make_images(INPUTS["seed"], 56, count)
