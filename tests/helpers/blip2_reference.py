"""Small BLIP-2 models with the weights that the stored outputs of the original were made with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lavis.models import build_model, model_zoo
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

    def matching(pattern: str) -> list[torch.Tensor]:
        """Each tensor once, of all entries whose name (of tied ones the first's) matches."""
        names = {key: entry.get("tied_to", key) for key, entry in described["state_dict"].items()}
        found = {t.data_ptr(): t for key, t in state.items() if re.search(pattern, names[key])}
        return list(found.values())

    for pattern, gain in described["gains"]:
        for tensor in matching(pattern):
            tensor *= gain
    for pattern, row, gain in described["rows"]:
        for tensor in matching(pattern):
            tensor[row] *= gain
    return state


def write(described: dict[str, Any], path: Path, trimmed: bool = False) -> Path:
    """A .pth with all entries; trimmed: without the language model, as the original publishes it."""
    left_out = tuple(f"{part}." for part in LANGUAGES.values()) if trimmed else ()
    torch.save(
        {"model": {k: t for k, t in state_dict(described).items() if not k.startswith(left_out)}}, path
    )
    return path


def sizes_of(described: dict[str, Any]) -> dict[str, Any]:
    """The config's keys that a manifest tells."""
    sizes = described["sizes"]
    vit = {"width": sizes["vit_width"], "depth": sizes["vit_depth"], "heads": sizes["vit_heads"]}
    text = {
        "vocab_size": 30523,
        "width": sizes["qformer_width"],
        "depth": sizes["qformer_depth"],
        "heads": sizes["qformer_heads"],
        "hidden": sizes["qformer_hidden"],
        "memory_width": sizes["vit_width"],
    }
    found = {
        "image_size": sizes["image_size"],
        "vit": {**vit, "patch_size": sizes["patch"]},
        "text": text,
        "num_query_token": sizes["query_tokens"],
        "max_txt_len": described["max_txt_len"],
    }
    if "llm" not in described:
        found["embed_dim"] = sizes["embed_dim"]
    if "max_output_txt_len" in described:
        found["max_output_txt_len"] = described["max_output_txt_len"]
    return found


LANGUAGES = {"opt": "opt_model", "t5": "t5_model", "llama": "llm_model"}


def write_language_model(described: dict[str, Any], folder: Path) -> Path:
    """A folder of transformers with a manifest's language model: its description, weights and tokenizer."""
    kind = described["tokenizer"]
    shutil.copytree(REFERENCE / "tokenizers" / kind, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **described["llm"]}))
    part = LANGUAGES[kind] + "."
    state = {
        k.removeprefix(part): t.contiguous().clone()
        for k, t in state_dict(described).items()
        if k.startswith(part)
    }
    save_file({k: t for k, t in state.items() if not k.endswith("inv_freq")}, folder / "model.safetensors")
    return folder


def build(manifest: dict[str, Any], checkpoint: Path, name: str | None = None) -> Any:
    """The model of a manifest with the weights of an official file, through the public loader.

    Args:
        checkpoint: a .pth; a language model's folder is written beside it.
        name: of the model; the manifest's first by default.
    """
    name = name or manifest["names"][0]
    cfg: dict[str, Any] = {"arch": name, "weights": str(checkpoint), **sizes_of(manifest)}
    cfg["model_type"] = (
        "pretrain_vitL" if manifest.get("vit_model") == "clip_L" else model_zoo.model_zoo[name][0]
    )
    if "llm" in manifest:
        folder = checkpoint.parent / "language"
        cfg[LANGUAGES[manifest["tokenizer"]]] = str(
            folder if folder.is_dir() else write_language_model(manifest, folder)
        )
    return build_model(cfg).eval()


def images(count: int = 2) -> torch.Tensor:
    return recipe.make_images(INPUTS["seed"], 56, count)
