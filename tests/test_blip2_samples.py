"""The tests of BLIP-2 and the three notebooks of the original, typed as they are there.

A local server stands for the official host and another for the Hugging Face hub; they serve small weights in the
layout of the published ones: the trained part, the image encoder and the language model in files of their own. So the
model types have small sizes here, and what is printed differs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.registry import registry
from lavis.common.values import typed
from tests.helpers import blip2_reference as reference
from tests.hub_server import hub_of
from tests.mirror import Mirror, run, serving

TYPES = {  # model and type: (the small weights, whether the file holds the image encoder)
    "blip2_opt/pretrain_opt2.7b": ("opt", False),
    "blip2_opt/pretrain_opt6.7b": ("opt", False),
    "blip2_opt/caption_coco_opt2.7b": ("opt", True),
    "blip2_opt/caption_coco_opt6.7b": ("opt", True),
    "blip2_t5/pretrain_flant5xl": ("t5", False),
    "blip2_t5/pretrain_flant5xxl": ("t5", False),
    "blip2_feature_extractor/pretrain": ("qformer", False),
    "blip2_image_text_matching/pretrain": ("qformer", False),
}
LANGUAGES = {
    "facebook/opt-2.7b": "opt", "facebook/opt-6.7b": "opt", "google/flan-t5-xl": "t5", "google/flan-t5-xxl": "t5"
}  # fmt: skip


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    with serving(tmp_path_factory) as mirror:
        folders = {}
        for name, kind in LANGUAGES.items():
            folder = tmp_path_factory.mktemp("hub") / "language"
            folders[name] = reference.write_language_model(reference.manifest(kind), folder)
        for spec, (kind, whole) in TYPES.items():
            publish(mirror, spec, kind, whole)
        Path("examples").mkdir()
        with hub_of(folders, tmp_path_factory.mktemp("hub_cache")) as hub:
            yield hub


def publish(mirror: Mirror, spec: str, kind: str, whole: bool) -> None:
    """Serve small weights as those of a model type, whose sizes become theirs."""
    pytest.importorskip("transformers")
    name, model_type = spec.split("/")
    described = reference.manifest(kind)
    state = reference.state_dict(described)
    cls = registry.get_model_class(name)
    preset = cls.PRESETS[model_type]
    encoder = {k.removeprefix("visual_encoder."): v for k, v in state.items() if "visual_encoder." in k}
    if not whole:
        torch.save(encoder, mirror.path(preset.parts["visual_encoder"].source))
        state = {k: v for k, v in state.items() if not k.startswith("visual_encoder.")}
    state = {k: v for k, v in state.items() if not k.startswith(("opt_model.", "t5_model."))}
    torch.save({"model": state}, mirror.path(preset.weights or preset.pretrained))
    sizes = reference.sizes_of(described)
    config = dataclasses.replace(
        preset.config,
        **{
            key: typed(
                type(getattr(preset.config, key)),
                {**dataclasses.asdict(getattr(preset.config, key)), **value},
            )
            if isinstance(value, dict)
            else value
            for key, value in sizes.items()
        },
    )
    vis = {phase: {**cfg, "image_size": sizes["image_size"]} for phase, cfg in preset.vis_processor.items()}
    mirror.patch.setitem(
        cls.PRESETS, model_type, dataclasses.replace(preset, config=config, vis_processor=vis)
    )


TESTS = """
import torch
from lavis.models import load_model, load_model_and_preprocess
from PIL import Image

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
raw_image = Image.open("docs/_static/merlion.png").convert("RGB")
model, vis_processors, _ = load_model_and_preprocess(
    name="{name}", model_type="{model_type}", is_eval=True, device=device
)
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
caption = model.generate({{"image": image}})
assert len(caption) == 1 and isinstance(caption[0], str)
captions = model.generate({{"image": image}}, num_captions=3)
assert len(captions) == 3
"""


@pytest.mark.parametrize("spec", [spec for spec in TYPES if "opt" in spec or "t5" in spec])
def test_the_original_tests(official, spec):
    name, model_type = spec.split("/")
    run(TESTS.format(name=name, model_type=model_type))


PICTURE = """
import torch
from PIL import Image

from lavis.models import load_model_and_preprocess

raw_image = Image.open("docs/_static/merlion.png").convert("RGB")
display(raw_image.resize((596, 437)))
device = torch.device("cuda") if torch.cuda.is_available() else "cpu"
"""


def notebook(code: str) -> dict[str, Any]:
    return run(PICTURE + code, display=lambda image: None)


def test_notebook_of_features(official, capsys):
    names = notebook(
        """
caption = "a large fountain spewing water into the air"
model, vis_processors, txt_processors = load_model_and_preprocess(name="blip2_feature_extractor", model_type="pretrain", is_eval=True, device=device)
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
text_input = txt_processors["eval"](caption)
sample = {"image": image, "text_input": [text_input]}
features_multimodal = model.extract_features(sample)
print(features_multimodal.multimodal_embeds.shape)
features_image = model.extract_features(sample, mode="image")
features_text = model.extract_features(sample, mode="text")
print(features_image.image_embeds.shape)
print(features_text.text_embeds.shape)
print(features_image.image_embeds_proj.shape)
print(features_text.text_embeds_proj.shape)
similarity = (features_image.image_embeds_proj @ features_text.text_embeds_proj[:,0,:].t()).max()
print(similarity)
"""  # noqa: E501
    )
    described = reference.manifest("qformer")["sizes"]
    queries, width, space = described["query_tokens"], described["qformer_width"], described["embed_dim"]
    assert capsys.readouterr().out.splitlines()[:5] == [
        f"torch.Size([1, {queries}, {width}])",
        f"torch.Size([1, {queries}, {width}])",
        f"torch.Size([1, 12, {width}])",
        f"torch.Size([1, {queries}, {space}])",
        f"torch.Size([1, 12, {space}])",
    ]
    assert -1 <= float(names["similarity"]) <= 1


def test_notebook_of_matching(official, capsys):
    notebook(
        """
from lavis.processors import load_processor
caption = "merlion in Singapore"
model, vis_processors, text_processors = load_model_and_preprocess("blip2_image_text_matching", "pretrain", device=device, is_eval=True)
img = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
txt = text_processors["eval"](caption)
itm_output = model({"image": img, "text_input": txt}, match_head="itm")
itm_scores = torch.nn.functional.softmax(itm_output, dim=1)
print(f'The image and text are matched with a probability of {itm_scores[:, 1].item():.3%}')
itc_score = model({"image": img, "text_input": txt}, match_head='itc')
print('The image feature and text feature has a cosine similarity of %.4f'%itc_score)
"""  # noqa: E501
    )
    printed = capsys.readouterr().out
    assert "are matched with a probability of" in printed and "a cosine similarity of" in printed


def test_notebook_of_instructed_generation(official, capsys):
    names = notebook(
        """
model, vis_processors, _ = load_model_and_preprocess(
    name="blip2_t5", model_type="pretrain_flant5xxl", is_eval=True, device=device
)
vis_processors.keys()
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
found = [model.generate({"image": image})]
found += [model.generate({"image": image}, use_nucleus_sampling=True, num_captions=3)]
found += [model.generate({"image": image, "prompt": "Question: which city is this? Answer:"})]
found += [model.generate({
    "image": image,
    "prompt": "Question: which city is this? Answer: singapore. Question: why?"})]
context = [
    ("which city is this?", "singapore"),
    ("why?", "it has a statue of a merlion"),
]
question = "where is the name merlion coming from?"
template = "Question: {} Answer: {}."

prompt = " ".join([template.format(context[i][0], context[i][1]) for i in range(len(context))]) + " Question: " + question + " Answer:"

print(prompt)
found += [model.generate(
    {
    "image": image,
    "prompt": prompt
    },
    use_nucleus_sampling=False,
)]
"""  # noqa: E501
    )
    assert [len(texts) for texts in names["found"]] == [1, 3, 1, 1, 1]
    assert capsys.readouterr().out.startswith(
        "Question: which city is this? Answer: singapore. Question: why?"
    )


def test_each_part_comes_from_its_own_place(official):
    """The language model from the hub, its tokenizer with it, and nothing of it twice."""
    files = [path for path, count in official.asked.items() if "/resolve/" in path]
    assert files and {path.split("/resolve/")[0].lstrip("/") for path in files} <= set(LANGUAGES)
    assert all(official.asked[path] == 1 for path in files if path.endswith(".safetensors"))
