"""The code samples of the original's notebooks and documents, families ALBEF, BLIP and CLIP, typed as they are there.

`tests/mirror.py` serves regenerated full-size checkpoints under the official addresses, one at a time, so that only
what the samples print differs. Where a notebook names a large model, its line for the base model is taken.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import golden
from tests.mirror import run, serving
from tests.test_golden_matching import check_features

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """Run in a folder beside `docs`, as the notebooks do."""
    with serving(tmp_path_factory) as found:
        Path("examples").mkdir()
        found.patch.chdir("examples")
        yield found


@pytest.fixture(scope="module")
def weights(mirror, request):
    """One served checkpoint; pytest keeps the tests that share it together."""
    with mirror.weights(request.param):
        yield request.param


def reads(name: str):
    return pytest.mark.parametrize("weights", [name], indirect=True)


# What the notebooks begin with, and how they show pictures.
PICTURE = """
import torch
from PIL import Image

from lavis.models import load_model_and_preprocess

raw_image = Image.open("../docs/_static/merlion.png").convert("RGB")
display(raw_image.resize((596, 437)))

# setup device to use
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""


def notebook(*cells: str) -> dict:
    return run("\n".join([PICTURE, *cells]), display=lambda picture: None)


# ----------------------------------------------------------------------------------------- features
FEATURES = """
caption = "a large fountain spewing water into the air"
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
text_input = txt_processors["eval"](caption)
sample = {"image": image, "text_input": [text_input]}

features_multimodal = model.extract_features(sample)
print(features_multimodal.keys())
print(features_multimodal.multimodal_embeds.shape)

features_image = model.extract_features(sample, mode="image")
features_text = model.extract_features(sample, mode="text")
print(features_image.keys())
print(features_image.image_embeds.shape)
print(features_text.keys())
print(features_text.text_embeds.shape)

# low-dimensional projected features
print(features_image.image_embeds_proj.shape)
print(features_text.text_embeds_proj.shape)
similarity = features_image.image_embeds_proj[:,0,:] @ features_text.text_embeds_proj[:,0,:].t()
print(similarity)
"""
ZERO_SHOT = """
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)

sample = {"image": image, "text_input": cls_names}

image_features = model.extract_features(sample, mode="image").image_embeds_proj[:, 0]
text_features = model.extract_features(sample, mode="text").text_embeds_proj[:, 0]

sims = (image_features @ text_features.t())[0] / model.temp
probs = torch.nn.Softmax(dim=0)(sims).tolist()

for cls_nm, prob in zip(cls_names, probs):
    print(f"{cls_nm}: \\t {prob:.3%}")
"""


def check_probabilities(names, printed):
    assert len(names["probs"]) == 5 and sum(names["probs"]) == pytest.approx(1.0)
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines] == ["merlion", "sky", "giraffe", "fountain", "marina bay"]
    assert all(line.endswith("%") for line in lines)


@reads("blip_pretrain.base")
def test_blip_features(weights, capsys):
    names = notebook(
        """
model, vis_processors, txt_processors = load_model_and_preprocess(name="blip_feature_extractor", model_type="base", is_eval=True, device=device)
""",
        FEATURES,
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [
        "['image_embeds', 'multimodal_embeds']",
        "torch.Size([1, 12, 768])",
        "['image_embeds', 'image_embeds_proj']",
        "torch.Size([1, 197, 768])",
        "['text_embeds', 'text_embeds_proj']",
        "torch.Size([1, 12, 768])",
        "torch.Size([1, 197, 256])",
        "torch.Size([1, 12, 256])",
    ]
    assert names["similarity"].shape == (1, 1) and names["similarity"].abs().item() < 1
    check_features("blip_feature_extractor.base", names["model"])


@reads("blip_pretrain.base")
def test_blip_zero_shot(weights, capsys):
    names = notebook(
        """
model, vis_processors, _ = load_model_and_preprocess("blip_feature_extractor", model_type="base", is_eval=True, device=device)
cls_names = ["merlion", "sky", "giraffe", "fountain", "marina bay"]

# (optional) add prompt when we want to use the model for zero-shot classification
from lavis.processors.blip_processors import BlipCaptionProcessor
text_processor = BlipCaptionProcessor(prompt="A picture of ")

cls_prompt = [text_processor(cls_nm) for cls_nm in cls_names]
""",
        ZERO_SHOT,
    )
    assert names["cls_prompt"][4] == "A picture of marina bay"
    check_probabilities(names, capsys.readouterr().out)


@reads("albef_pretrain.base")
def test_albef_features(weights, capsys):
    names = notebook(
        """
model, vis_processors, txt_processors = load_model_and_preprocess(name="albef_feature_extractor", model_type="base", is_eval=True, device=device)
""",
        FEATURES,
    )
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("torch")] == [
        f"torch.Size([1, {n}, {width}])"
        for n, width in ((12, 768), (197, 768), (12, 768), (197, 256), (12, 256))
    ]
    assert names["similarity"].shape == (1, 1) and names["similarity"].abs().item() < 1
    check_features("albef_feature_extractor.base", names["model"])


@reads("albef_pretrain.base")
def test_albef_zero_shot(weights, capsys):
    names = notebook(
        """
model, vis_processors, txt_processors = load_model_and_preprocess("albef_feature_extractor", model_type="base", is_eval=True, device=device)
cls_names = ["merlion", "sky", "giraffe", "fountain", "marina bay"]
cls_names = [txt_processors["eval"](cls_nm) for cls_nm in cls_names]
""",
        ZERO_SHOT,
    )
    check_probabilities(names, capsys.readouterr().out)


# --------------------------------------------------------------------------------------------- CLIP
@reads("clip.ViT-B-16")
def test_clip_features(weights):
    names = notebook(
        """
# model, vis_processors, txt_processors = load_model_and_preprocess("clip_feature_extractor", model_type="ViT-B-32", is_eval=True, device=device)
model, vis_processors, txt_processors = load_model_and_preprocess("clip_feature_extractor", model_type="ViT-B-16", is_eval=True, device=device)
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
text = "merlion, a landmark in Singapore"
sample = {"image": image, "text_input": text}

clip_features = model.extract_features(sample)

image_features = clip_features.image_embeds_proj
text_features = clip_features.text_embeds_proj
sims = (image_features @ text_features.t())[0] / 0.01
probs = torch.nn.Softmax(dim=0)(sims).tolist()
"""
    )
    assert names["image_features"].shape == names["text_features"].shape == (1, 512)
    assert names["probs"] == [1.0]


@reads("clip.ViT-B-16")
def test_clip_zero_shot(weights, capsys):
    names = notebook(
        """
model, vis_processors, txt_processors = load_model_and_preprocess("clip_feature_extractor", model_type="ViT-B-16", is_eval=True, device=device)
cls_names = ["merlion", "sky", "giraffe", "fountain", "marina bay"]
# Optional to use prompts to guide the model
cls_names = [txt_processors["eval"](cls_nm) for cls_nm in cls_names]
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
sample = {"image": image, "text_input": cls_names}

clip_features = model.extract_features(sample)

image_features = clip_features.image_embeds_proj
text_features = clip_features.text_embeds_proj
sims = (image_features @ text_features.t())[0] / 0.01
probs = torch.nn.Softmax(dim=0)(sims).tolist()

for cls_nm, prob in zip(cls_names, probs):
    print(f"{cls_nm}: \\t {prob:.3%}")
"""
    )
    check_probabilities(names, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("weights", "line", "width"),
    [
        (
            "clip.ViT-B-32",
            'model, vis_processors, txt_processors = load_model_and_preprocess(name="clip_feature_extractor", model_type="base", is_eval=True, device=device)',
            512,
        ),
        (
            "clip.RN50",
            'model, vis_processors, txt_processors = load_model_and_preprocess(name="clip_feature_extractor", model_type="RN50", is_eval=True, device=device)',
            1024,
        ),
    ],
    indirect=["weights"],
    ids=["base", "RN50"],
)
def test_clip_in_the_unified_interface(weights, line, width):
    """The documents say that "one only needs to change" this line. CLIP has one feature for a picture or a text,
    so there is no token to pick."""
    names = notebook(
        line,
        """
caption = "a large fountain spewing water into the air"
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
text_input = txt_processors["eval"](caption)
sample = {"image": image, "text_input": [text_input]}

features_multimodal = model.extract_features(sample)
features_image = model.extract_features(sample, mode="image")
features_text = model.extract_features(sample, mode="text")
similarity = features_image.image_embeds_proj @ features_text.text_embeds_proj.t()
""",
    )
    image, text = names["features_image"], names["features_text"]
    assert image.keys() == ["image_embeds", "image_embeds_proj"] and image.image_embeds.shape == (1, width)
    assert text.keys() == ["text_embeds", "text_embeds_proj"] and text.text_embeds.shape == (1, width)
    both = names["features_multimodal"]
    for key in ("image_embeds", "image_embeds_proj", "text_embeds", "text_embeds_proj"):
        torch.testing.assert_close(both[key], (image if key.startswith("image") else text)[key])
    assert names["similarity"].abs().item() < 1
    stored = golden.outputs(weights)
    found = names["model"].extract_features({"image": golden.images(weights)}, mode="image")
    golden.close(found.image_embeds, stored["image_embeds"])


# ----------------------------------------------------------------------------------------- matching
@reads("blip_image_text_matching.base")
def test_blip_matching(weights, capsys):
    names = notebook(
        """
from lavis.processors import load_processor

caption = "merlion in Singapore"
model, vis_processors, text_processors = load_model_and_preprocess("blip_image_text_matching", "base", device=device, is_eval=True)
img = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
txt = text_processors["eval"](caption)

itm_output = model({"image": img, "text_input": txt}, match_head="itm")
itm_scores = torch.nn.functional.softmax(itm_output, dim=1)
print(f'The image and text are matched with a probability of {itm_scores[:, 1].item():.3%}')

itc_score = model({"image": img, "text_input": txt}, match_head='itc')
print('The image feature and text feature has a cosine similarity of %.4f'%itc_score)
"""
    )
    assert names["itm_output"].shape == (1, 2) and names["itc_score"].shape == (1, 1)
    assert names["itm_scores"].sum().item() == pytest.approx(1.0) and names["itc_score"].abs().item() < 1
    probability, cosine = capsys.readouterr().out.splitlines()
    assert probability.endswith("%") and cosine.endswith(f"{names['itc_score'].item():.4f}")
    fits, similarity = names["model"].match_scores({"image": names["img"], "text_input": names["txt"]})
    torch.testing.assert_close(fits, names["itm_scores"][:, 1])
    torch.testing.assert_close(similarity, names["itc_score"][0])


@reads("blip_image_text_matching.base")
def test_blip_text_localisation(weights, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = notebook(
        """
from lavis.processors import load_processor

caption = "Merlion near marina bay."
model, vis_processors, text_processors = load_model_and_preprocess("blip_image_text_matching", "base", device=device, is_eval=True)

from matplotlib import pyplot as plt
from lavis.common.gradcam import getAttMap
from lavis.models.blip_models.blip_image_text_matching import compute_gradcam
import numpy as np

dst_w = 720
w, h = raw_image.size
scaling_factor = dst_w / w

resized_img = raw_image.resize((int(w * scaling_factor), int(h * scaling_factor)))
norm_img = np.float32(resized_img) / 255

img = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
txt = text_processors["eval"](caption)

txt_tokens = model.tokenizer(txt, return_tensors="pt").to(device)
gradcam, _ = compute_gradcam(model, img, txt, txt_tokens, block_num=7)
maps = gradcam

avg_gradcam = getAttMap(norm_img, gradcam[0][1], blur=True)

fig, ax = plt.subplots(1, 1, figsize=(10, 10))
ax.imshow(avg_gradcam)

num_image = len(txt_tokens.input_ids[0]) - 2
fig, ax = plt.subplots(num_image, 1, figsize=(15, 5 * num_image))

gradcam_iter = iter(gradcam[0][2:-1])
token_id_iter = iter(txt_tokens.input_ids[0][1:-1])

for i, (gradcam, token_id) in enumerate(zip(gradcam_iter, token_id_iter)):
    word = model.tokenizer.decode([token_id])
    gradcam_image = getAttMap(norm_img, gradcam, blur=True)
    ax[i].imshow(gradcam_image)
    ax[i].set_yticks([])
    ax[i].set_xticks([])
    ax[i].set_xlabel(word)
"""
    )
    words = names["num_image"]
    (maps,) = names["maps"]
    assert maps.shape == (words + 3, 24, 24)  # [ENC], the mean, the words, [SEP]
    assert (maps >= 0).all() and maps[1].max() > 0
    torch.testing.assert_close(maps[1], maps[2:-1].mean(dim=0))
    heat = names["avg_gradcam"]
    assert heat.shape == names["norm_img"].shape == (480, 720, 3)
    assert heat.min() >= 0 and heat.max() <= 1
    assert names["i"] == words - 1 and names["word"] == "bay"
    names["plt"].close("all")


# ---------------------------------------------------------------------------------------- questions
@reads("albef_vqa.vqav2")
def test_albef_question_answering(weights):
    names = notebook(
        """
model, vis_processors, txt_processors = load_model_and_preprocess(name="albef_vqa", model_type="vqav2", is_eval=True, device=device)
keys = vis_processors.keys(), txt_processors.keys()
question = "Which city is this photo taken?"

# use "eval" processors for inference
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
question = txt_processors["eval"](question)

samples = {"image": image, "text_input": question}

# rank answer candidates by their likelihood and return the best answer
answer_candidates = ["Singapore", "London", "Palo Alto", "Tokyo"]

answers = model.predict_answers(samples, answer_list=answer_candidates, inference_method="rank")

# as in the docstring
again = model.predict_answers({"image": image, "text_input": [question]}, answer_list=answer_candidates)
"""
    )
    assert all(set(keys) == {"train", "eval"} for keys in names["keys"])
    assert len(names["answers"]) == 1 and names["answers"][0] in names["answer_candidates"]
    assert names["again"] == names["answers"]
    case = golden.inputs(weights)
    samples = {"image": golden.images(weights), "text_input": case["text_input"]}
    found = names["model"].predict_answers(samples, answer_list=case["answer_list"], inference_method="rank")
    assert found == golden.outputs(weights)["rank/answers"].tolist()


@reads("blip_vqa.vqav2")
def test_blip_question_answering(weights):
    names = notebook(
        """
model, vis_processors, txt_processors = load_model_and_preprocess(name="blip_vqa", model_type="vqav2", is_eval=True, device=device)
question = "Which city is this photo taken?"

# use "eval" processors for inference
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
question = txt_processors["eval"](question)

samples = {"image": image, "text_input": question}
answers = model.predict_answers(samples=samples, inference_method="generate")

# rank answer candidates by their likelihood and return the best answer
answer_candidates = ["Singapore", "London", "Palo Alto", "Tokyo"]

ranked = model.predict_answers(samples, answer_list=answer_candidates, inference_method="rank")

batch_size = 3

# create a batch of samples, could be multiple images or copies of the same image
image_batch = image.repeat(batch_size, 1, 1, 1)

# create a batch of questions, make sure the number of questions matches the number of images
question_1 = txt_processors["eval"]("Which city is this photo taken?")
question_2 = txt_processors["eval"]("What time is this during the day?")
question_3 = txt_processors["eval"]("Is it Singapore or London?")

question_batch = [question_1, question_2, question_3]

batch = model.predict_answers(samples={"image": image_batch, "text_input": question_batch}, inference_method="generate")
"""
    )
    assert len(names["answers"]) == 1 and names["ranked"][0] in names["answer_candidates"]
    assert len(names["batch"]) == 3 and names["batch"][0] == names["answers"][0]


# ---------------------------------------------------------------------------- docstrings of `forward`
@reads("blip_caption.base_coco")
def test_blip_caption_loss(weights):
    names = notebook(
        """
model, vis_processors, txt_processors = load_model_and_preprocess("blip_caption", "base_coco")
image = vis_processors["eval"](raw_image).unsqueeze(0)
text_input = ["a large statue of a person spraying water from a fountain"]
samples = {"image": image, "text_input": text_input}
output = model(samples)
"""
    )
    output, model = names["output"], names["model"]
    assert output.keys() == ["intermediate_output", "loss", "loss_lm"]
    assert output.intermediate_output.image_embeds.shape == (1, 577, 768)
    labels = output.intermediate_output.decoder_labels
    assert labels.tolist() == [[-100] * 4 + [1997, 1037, 2711, 29035, 2300, 2013, 1037, 9545, 102]]
    assert output.loss.requires_grad and output["loss"] is output.loss
    model.eval()
    case = golden.inputs(weights)
    with torch.no_grad():
        same = model({"image": golden.images(weights), "text_input": case["text_input"]})
    golden.close(same.loss, golden.outputs(weights)["loss"], rtol=2e-5, atol=2e-5)


PICTURES = """
import torch
from lavis.models import load_model
model = load_model({name}, {kind})
images = torch.randn(4, 3, {size}, {size})
text_input = ["caption of image 1", "another caption of image 1", "caption of image 2", "caption of image 3"]
image_id = torch.tensor([1, 1, 2, 3])
samples = {{"image": images, "text_input": text_input, "image_id": image_id, "epoch": 0, "iters": 0, "num_iters_per_epoch": 100}}
output = model(samples)
"""
PAIRS = """
import torch
from lavis.models import load_model
model = load_model({name}, {kind})
samples = {{
    "image0": torch.randn(2, 3, {size}, {size}),
    "image1": torch.randn(2, 3, {size}, {size}),
    "text_input": ["there is a ferret in tall grass", "there are lips in one of the images"],
    "label": torch.tensor([0, 1]),
}}
output = model(samples)
"""
QUESTIONS = """
import torch
from lavis.models import load_model
model = load_model({name}, {kind})
samples = {{
    "image": torch.rand(2, 3, {size}, {size}),
    "text_input": ["What is this?", "What is that?"],
    "answer": ["cat", "cat", "dog"],
    "weight": torch.tensor([1.0, 1.0, 1.0]),
    "n_answers": torch.tensor([2, 1]),
}}
output = model(samples)
"""
# what momentum twins need to know; ALBEF's docstring on pairs has forgotten it
STEP = 'samples |= {"epoch": 0, "iters": 0, "num_iters_per_epoch": 1000}\noutput = '
ALIGNMENT = {"sims", "intermediate_output", "loss", "loss_itc", "loss_itm"}
STEPS = {
    "blip_pretrain.base": (PICTURES, 224, ALIGNMENT | {"loss_lm"}),
    "albef_pretrain.base": (PICTURES, 224, ALIGNMENT | {"loss_mlm"}),
    "blip_retrieval.coco": (PICTURES, 384, ALIGNMENT),
    "albef_retrieval.coco": (PICTURES, 384, ALIGNMENT),
    "blip_vqa.vqav2": (QUESTIONS, 480, {"intermediate_output", "loss"}),
    "albef_vqa.vqav2": (QUESTIONS, 384, {"intermediate_output", "loss"}),
    "blip_nlvr.nlvr": (PAIRS, 384, {"intermediate_output", "loss"}),
    "albef_nlvr.nlvr": (PAIRS, 384, {"intermediate_output", "loss"}),
}


@pytest.mark.parametrize("weights", STEPS, indirect=True)
def test_forward(weights):
    template, size, keys = STEPS[weights]
    name, kind = weights.split(".")
    torch.manual_seed(0)
    code = template.format(name=repr(name), kind=repr(kind), size=size)
    if name in ("albef_vqa", "albef_nlvr"):
        code = code.replace("output = ", STEP)
    with torch.no_grad():  # the docstrings look at keys and shapes
        names = run(code)
    output = names["output"]
    assert set(output.keys()) - {"logits", "logits_m"} == keys  # classifiers here show their logits, too
    assert bool(torch.isfinite(output.loss))
    if weights == "blip_pretrain.base":
        inner = output.intermediate_output
        assert inner.image_embeds.shape == inner.image_embeds_m.shape == (4, 197, 768)
        assert inner.text_embeds.shape == inner.text_embeds_m.shape == (4, 30, 768)
        assert inner.encoder_output.last_hidden_state.shape == (4, 30, 768)
        assert inner.itm_logits.shape == (12, 2) and inner.itm_labels.shape == (12,)
        assert inner.decoder_output.logits.shape == (4, 30, 30524)
        assert inner.decoder_labels.shape == (4, 30)
    if weights == "blip_vqa.vqav2":
        wanted = {"image_embeds", "encoder_output", "decoder_output", "decoder_labels"}
        assert set(output.intermediate_output.keys()) == wanted
