"""Full-size models equal those of other libraries on the recipe's weights: where the original recorded no outputs
transformers', from an official .pth; every CLIP OpenCLIP's, from a file as its training writes it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lavis.models.checkpoints import TRANSFORMERS_BLIP, Rules
from lavis.models.clip import Clip
from lavis.models.clip_checkpoints import OFFICIAL_VIT, TRANSFORMERS_CLIP
from tests import golden
from tests.reference import recipe

pytestmark = [pytest.mark.golden, pytest.mark.slow, pytest.mark.usefixtures("all_cores")]

VIT_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
TEXTS = ["a photo of a dog", "two cats asleep on a couch, seen from above"]


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def renamed(key: str, rules: Rules | None) -> str:
    for pattern, replacement in () if rules is None else rules.rename:
        key = re.sub(pattern, replacement, key)
    return key


def fill(peer: Any, name: str, rules: Rules, ours: Rules | None = None) -> Any:
    """Give transformers' model the official weights: our table of its names, read backwards.

    Args:
        ours: by which official names become those of the table, where they differ.
    """
    official = {renamed(key, ours): tensor for key, tensor in golden.state_dict(name).items()}
    state = {}
    for key, old in peer.state_dict().items():
        theirs, _, part = renamed(key, rules).partition("#")  # of a product of several, or transposed
        if theirs not in official:
            assert not old.is_floating_point(), key
            state[key] = old
            continue
        weight = official[theirs]
        weight = weight.T if part == "T" else weight.chunk(3)[int(part)] if part else weight
        assert weight.numel() == old.numel(), key
        state[key] = weight.reshape(old.shape).contiguous()
    peer.load_state_dict(state)
    return peer.eval()


def blip_peer(transformers: Any, kind: str, name: str, size: int) -> Any:
    config = transformers.BlipConfig(
        text_config={"encoder_hidden_size": 1024, "num_attention_heads": 12, "label_smoothing": 0.1,
                     "bos_token_id": 30522, "eos_token_id": 102, "sep_token_id": 102, "pad_token_id": 0},
        vision_config={**VIT_LARGE, "image_size": size, "patch_size": 16, "layer_norm_eps": 1e-6},
        image_text_hidden_size=256,
    )  # fmt: skip
    return fill(getattr(transformers, kind)(config), name, TRANSFORMERS_BLIP)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("model_type", "size"), [("ViT-L-14", 224), ("ViT-L-14-336", 336)])
@torch.no_grad()
def test_clip(transformers, model_type, size, tmp_path):
    name = f"clip.{model_type}"
    model = golden.load(name, tmp_path)
    act = {"hidden_act": "quick_gelu", "projection_dim": 768}
    config = transformers.CLIPConfig(
        text_config={**act, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                     "num_hidden_layers": 12, "eos_token_id": 49407},
        vision_config={**act, **VIT_LARGE, "patch_size": 14, "image_size": size},
        projection_dim=768,
    )  # fmt: skip
    peer = fill(transformers.CLIPModel(config), name, TRANSFORMERS_CLIP, OFFICIAL_VIT)
    image = recipe.make_images(3, size)
    theirs = peer(pixel_values=image, input_ids=model.tokenizer.batch(TEXTS, pad_to=77).ids)
    ours = model.extract_features({"image": image, "text_input": TEXTS})
    assert_near(ours.image_embeds_proj, theirs.image_embeds)
    assert_near(ours.text_embeds_proj, theirs.text_embeds)
    assert_near(model.logit_scale[0].exp(), peer.logit_scale.exp())


@torch.no_grad()
def test_blip_caption(transformers, tmp_path):
    name = "blip_caption.large_coco"
    model = golden.load(name, tmp_path)
    peer = blip_peer(transformers, "BlipForConditionalGeneration", name, 384)
    image = recipe.make_images(3, 384)

    ids = model.tokenizer.batch(["a picture of a red bus on the road"] * 2).ids
    ids[:, 0] = model.bos_id
    labels = ids.clone()
    labels[:, : model.prompt_length] = -100
    theirs = peer(pixel_values=image, input_ids=ids, labels=labels)
    ours = model({"image": image, "text_input": ["a picture of a red bus on the road"] * 2})
    assert_near(ours.loss, theirs.loss)
    assert_near(ours.intermediate_output.decoder_output.logits, theirs.logits)

    # greedy: newer transformers score beams by the number of new tokens, the original by that of all
    prompt = torch.cat([ids[:, : model.prompt_length], ids[:, -1:]], dim=1)  # theirs cuts the end token
    written = peer.generate(
        pixel_values=image, input_ids=prompt, do_sample=False, num_beams=1, max_length=20, min_length=5
    )
    texts = model.tokenizer.batch_decode(written, skip_special_tokens=True)
    texts = [text.removeprefix("a picture of ") for text in texts]
    assert model.generate({"image": image}, num_beams=1, max_length=20, min_length=5) == texts


@torch.no_grad()
def test_blip_matching(transformers, tmp_path):
    name = "blip_image_text_matching.large"
    model = golden.load(name, tmp_path)
    size = model.config.image_size
    peer = blip_peer(transformers, "BlipForImageTextRetrieval", name, size)
    image, tokens = recipe.make_images(3, size), model.tokenizer.batch(TEXTS)
    mask = tokens.mask.long()
    first = tokens.ids.clone()
    first[:, 0] = model.tokenizer.id("[ENC]")
    itm = peer(pixel_values=image, input_ids=first, attention_mask=mask, use_itm_head=True)[0]
    itc = peer(pixel_values=image, input_ids=tokens.ids, attention_mask=mask, use_itm_head=False)[0]
    samples = {"image": image, "text_input": TEXTS}
    assert_near(model(samples, match_head="itm"), itm)
    assert_near(model(samples, match_head="itc"), itc)


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("model_type", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "RN50"])
@torch.no_grad()
def test_every_clip_equals_open_clip(model_type, quick_gelu, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    peer = open_clip.create_model(model_type + ("-quickgelu" if quick_gelu else ""))
    peer.load_state_dict(golden.state_dict(f"clip.{model_type}"))
    path = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in peer.state_dict().items()}}, path)
    model = Clip.from_config(
        {"model_type": model_type, "weights": str(path), "quick_gelu": quick_gelu}
    ).eval()
    path.unlink()
    texts = [*TEXTS, "  Caf\u00e9 \u2116 7, na\u00efve &amp; co."]
    image, ids = recipe.make_images(3, model.config.image_size), open_clip.tokenize(texts)
    assert torch.equal(model.tokenizer.batch(texts, pad_to=77).ids, ids)
    image_embeds, text_embeds, scale = peer.eval()(image, ids)
    ours = model.extract_features({"image": image, "text_input": texts})
    assert_near(ours.image_embeds_proj, image_embeds)
    assert_near(ours.text_embeds_proj, text_embeds)
    assert_near(model.logit_scale[0].exp(), scale)
