"""CLIP at full size equals the stored outputs of the original, through the public loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lavis.models import load_model
from lavis.models.clip import Clip
from tests import golden

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("all_cores")]
SLOW = pytest.mark.slow


@pytest.fixture(
    scope="module", params=["ViT-B-32", *(pytest.param(t, marks=SLOW) for t in ("ViT-B-16", "RN50"))]
)
def case(request, tmp_path_factory):
    """(name, model with QuickGELU, model with GELU)."""
    name = f"clip.{request.param}"
    path = golden.write_official(name, tmp_path_factory.mktemp("w") / "official.pth")
    quick = load_model("clip", request.param, is_eval=True, checkpoint=path)
    exact = Clip.from_config({"model_type": request.param, "weights": str(path), "quick_gelu": False}).eval()
    path.unlink()
    return name, quick, exact


@pytest.mark.parametrize("prefix", ["", "gelu/"])
@torch.no_grad()
def test_features_logits_and_loss(case, prefix):
    name, model = case[0], case[2 if prefix else 1]
    stored, texts, image = golden.outputs(name), golden.inputs(name)["text_input"], golden.images(name)

    def wanted(key):
        return stored[prefix + key]

    # The last text is longer than 77 tokens. The original cuts its end token off and so reads the start token's
    # state, which says nothing of the text; as ids, that is reproduced here.
    ids = torch.from_numpy(stored["text_ids"])
    assert stored["text_eot_position"].tolist()[-1] == 0 and (ids[-1] == model.tokenizer.sep_id).sum() == 0
    text_embeds = model.encode_text(ids)
    golden.close(text_embeds, wanted("text_embeds"))

    # Given as texts, the others are equal, and the last one keeps its end token and is read there.
    out = model.extract_features({"image": image, "text_input": texts}, mode="multimodal")
    assert out.keys() == ["image_embeds", "image_embeds_proj", "text_embeds", "text_embeds_proj"]
    golden.close(out.image_embeds, wanted("image_embeds"))
    golden.close(out.image_embeds_proj, wanted("image_embeds_proj"))
    golden.close(out.text_embeds[:4], wanted("text_embeds")[:4])
    golden.close(out.text_embeds_proj[:4], wanted("text_embeds_proj")[:4])
    mended = ids[-1:].clone()
    mended[0, -1] = model.tokenizer.sep_id
    torch.testing.assert_close(out.text_embeds[4:], model.encode_text(mended), rtol=1e-4, atol=5e-5)
    assert (out.text_embeds[4] - text_embeds[4]).abs().max() > 0.1

    scale = model.logit_scale.exp()
    golden.close(scale, wanted("logit_scale_exp"), rtol=2e-5, atol=2e-5)
    logits = scale * out.image_embeds_proj @ torch.nn.functional.normalize(text_embeds, dim=-1).t()
    golden.close(logits, wanted("logits_per_image"), rtol=1e-4, atol=5e-5)
    loss = model({"image": image, "text_input": texts[:2]})
    assert loss.keys() == ["intermediate_output", "logit_scale_exp", "loss", "loss_itc"]
    golden.close(loss.loss, wanted("loss_first_two_pairs"), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_one_modality_gives_the_bare_tensor(case):
    name, model, _ = case
    stored, texts, image = golden.outputs(name), golden.inputs(name)["text_input"], golden.images(name)
    for call in (model, model.extract_features):
        golden.close(call({"image": image}), stored["image_only"])
        golden.close(call({"text_input": texts[:4]}), stored["text_only"][:4])


def test_ids_equal_the_originals(case):
    name, model, _ = case
    stored, texts = golden.outputs(name), golden.inputs(name)["text_input"]
    tokens = model.tokenizer.batch(texts, max_length=77, pad_to=77)
    np.testing.assert_array_equal(tokens.ids[:4].numpy(), stored["text_ids"][:4])
    np.testing.assert_array_equal(tokens.ids[4, :-1].numpy(), stored["text_ids"][4, :-1])
    assert tokens.ids[4, -1] == model.tokenizer.sep_id


@pytest.mark.parametrize("case", ["ViT-B-32"], indirect=True)
def test_zero_shot_classification(case):
    name, model, _ = case
    stored, names = golden.outputs(name), golden.inputs(name)["classnames"]

    class DataSet:
        classnames = names

    model.before_evaluation(DataSet(), "multimodal_classification")
    golden.close(model.classifier, stored["classifier"])
    out = model.predict({"image": golden.images(name), "label": torch.tensor([2, 0])}, return_scores=True)
    golden.close(out["predictions"], stored["zero_shot_logits"], rtol=1e-4, atol=5e-5)
    assert out["targets"].tolist() == [2, 0]
    torch.testing.assert_close(out["scores"], out["predictions"].softmax(dim=1))
