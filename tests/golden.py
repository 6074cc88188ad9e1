"""Regenerates the weights and inputs that the stored outputs of the original were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis.models.checkpoints import SCALARS
from tests.reference import recipe

REFERENCE = Path(__file__).parent / "reference"


def manifest(name: str) -> dict[str, Any]:
    return recipe.load_manifest(REFERENCE / "manifests" / f"{name}.json.gz")


def state_dict(name: str, **kwargs: Any) -> dict[str, torch.Tensor]:
    return recipe.make_state_dict(manifest(name), **kwargs)


def model_shape(key: str, spec: dict[str, Any]) -> list[int]:
    """The shape that a model here has for an official entry: learned numbers are vectors of one."""
    return [1] if key in SCALARS else spec["shape"]


def write_official(name: str, path: Path) -> Path:
    """A .pth as the original publishes it: the state dict under "model"."""
    torch.save({"model": state_dict(name)}, path)
    return path


def outputs(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "golden" / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def inputs(name: str) -> dict[str, Any]:
    return json.loads((REFERENCE / "golden" / "inputs.json").read_text())[name]


def images(name: str) -> torch.Tensor:
    case = inputs(name)
    return recipe.make_images(case["image_seed"], case["image_size"])


def close(actual: torch.Tensor, expected: np.ndarray, rtol: float = 1e-4, atol: float = 5e-5) -> None:
    np.testing.assert_allclose(actual.detach().float().numpy(), expected, rtol=rtol, atol=atol)


def close_digest(actual: torch.Tensor, stored: dict[str, np.ndarray], name: str) -> None:
    """Compare a big tensor with the stored shape, statistics and sample."""
    shape, stats, sample = recipe.digest(actual)
    np.testing.assert_array_equal(shape, stored[f"{name}/shape"])
    np.testing.assert_allclose(stats, stored[f"{name}/stats"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sample, stored[f"{name}/sample"], rtol=1e-4, atol=5e-5)


def load(name: str, folder: Path, *, is_eval: bool = True, **recipe_options: Any) -> Any:
    """The model `name` ("blip_retrieval.coco") through the public loader, from an official file."""
    from lavis.models import load_model

    path = folder / f"{name}.pth"
    torch.save({"model": state_dict(name, **recipe_options)}, path)
    arch, model_type = name.split(".", 1)
    try:
        return load_model(arch, model_type, is_eval=is_eval, checkpoint=path).eval()
    finally:
        path.unlink()


def step_samples(name: str) -> dict[str, Any]:
    """Samples of a training step: pictures or clips, texts, labels, and where in training it stands."""
    case = inputs(name)
    plain = ("text_input", "answer", "answers", "epoch", "iters", "num_iters_per_epoch")
    samples = {key: case[key] for key in plain if key in case}
    samples |= {
        key: torch.tensor(case[key]) for key in ("image_id", "label", "weight", "n_answers") if key in case
    }
    for key in ("image", "image0", "image1"):
        if f"{key}_seed" in case:
            samples[key] = recipe.make_images(case[f"{key}_seed"], case["image_size"])
    if "video_seed" in case:
        samples["video"] = recipe.make_video(case["video_seed"], case["frames"], case["image_size"])
    return samples


def train_step(model: Any, samples: dict[str, Any]) -> Any:
    """A step of the optimizer up to its loss and its queue, in the mode that the model is in; gives the output."""
    place = [samples.get(key) for key in ("epoch", "iters", "num_iters_per_epoch")]
    progress = None if None in place else (place[0] * place[2] + place[1]) / place[2]
    model.before_step(progress)
    out = model({k: v for k, v in samples.items() if k not in ("epoch", "iters", "num_iters_per_epoch")})
    model.after_step()
    return out


def check_alignment_step(model: Any, name: str, prefix: str = "") -> Any:
    """A step of contrast and matching, and the state it leaves, equal the stored ones; gives the output."""
    stored = {k[len(prefix) :]: v for k, v in outputs(name).items() if k.startswith(prefix)}
    with torch.no_grad():
        out = train_step(model, step_samples(name))
    for loss in ("loss", "loss_itc", "loss_itm", "loss_lm", "loss_mlm"):
        if loss in stored:
            close(out[loss], stored[loss], rtol=2e-5, atol=2e-5)
    for key, sims in out.sims.items():
        assert sims.shape == tuple(stored[f"sims/{key}/shape"]), key
        rtol, atol = (1e-3, 1e-9) if key.endswith("targets") else (2e-5, 2e-5)
        close(sims[:, :8], stored[f"sims/{key}_first8"], rtol=rtol, atol=atol)
        if not key.endswith("targets"):
            close_digest(sims, stored, f"sims/{key}")
    inner = out.intermediate_output
    for key in ("image_embeds", "text_embeds", "image_embeds_m", "text_embeds_m"):
        close_digest(inner[key], stored, key)
        close(inner[key][:, 0], stored[f"{key}_cls"])
    close(inner.encoder_output.last_hidden_state[:, 0], stored["fusion_cls"])
    close(inner.encoder_output_neg.last_hidden_state[:, 0], stored["fusion_neg_cls"])
    close(inner.itm_logits, stored["itm_logits"])
    if "itm_labels" in stored:
        np.testing.assert_array_equal(inner.itm_labels.numpy(), stored["itm_labels"])
    state = model.state_dict()
    for key in stored:
        if key.startswith("after/"):
            entry = key[len("after/") :]
            if entry.endswith("_first4"):
                close(state[entry.removesuffix("_first4")][:, :4], stored[key])
            else:
                close(state[entry], stored[key])
    return out


class Gallery:
    """A loader over stored pictures, with texts, as `compute_sim_matrix` reads it."""

    def __init__(self, pictures: torch.Tensor, texts: list[str], key: str = "image") -> None:
        self.dataset = self
        self.pictures, self.text, self.key = pictures, texts, key

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Any:
        return iter({self.key: self.pictures[i : i + 1]} for i in range(len(self.pictures)))


def check_scores(model: Any, name: str, names: tuple[str, str] = ("score_i2t", "score_t2i")) -> None:
    case, stored = inputs(name), outputs(name)
    found = model.compute_sim_matrix(Gallery(images(name), case["sim_texts"]), {"k_test": case["k_test"]})
    for key, scores in zip(names, found):
        expected = stored[key]
        np.testing.assert_array_equal(scores == -100, expected == -100)
        np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=2e-5)
