"""The code samples of the paper (section 4.2) and of the original's README, typed as they are there.

A local server stands for the official hosts: it serves regenerated full-size checkpoints and `shapes` in
the layout of COCO captions, under the official paths. Only what the samples print differs.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.mirror import Mirror, checksum, run, serving

pytestmark = pytest.mark.slow

ANNOTATIONS = "https://storage.googleapis.com/sfr-vision-language-research/datasets/"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Two models' weights and data under the official addresses."""
    from lavis.datasets.builders import load_dataset
    from lavis.datasets.shapes import ShapesCaption, export_coco

    small = {"n_train": 12, "n_val": 4, "n_test": 4, "size": 128}
    shapes = load_dataset("shapes_caption", **small)
    with serving(tmp_path_factory) as mirror:
        for split in ("train", "val", "test"):
            assert isinstance(shapes[split], ShapesCaption)
            annotation = export_coco(shapes[split], Path(os.environ["LAVIS_CACHE"]) / "coco", suffix=".jpg")
            annotation.rename(mirror.path(ANNOTATIONS + annotation.name))
        _expect_other_checksums(mirror)
        with mirror.weights("blip_caption.base_coco"), mirror.weights("blip_vqa.vqav2"):
            yield


def _expect_other_checksums(mirror: Mirror):
    """The stand-ins have other checksums than the published annotation files."""
    from lavis.common.registry import registry

    cls = registry.get_dataset_class("coco_caption")
    sources = {
        split: tuple(
            dataclasses.replace(s, md5=checksum(mirror.path(ANNOTATIONS + Path(s.storage).name), "md5"))
            for s in (given if isinstance(given, tuple) else (given,))
        )
        for split, given in cls.sources.items()
    }
    mirror.patch.setattr(cls, "sources", sources)


def test_paper_listing_1_data_sets(official, capsys):
    names = run(
        """
from lavis.datasets.builders import load_dataset
coco_dataset = load_dataset("coco_caption")
print(coco_dataset.keys())
print(len(coco_dataset["train"]))
print(coco_dataset["train"][0])
"""
    )
    printed = capsys.readouterr().out
    assert printed.startswith(
        "dict_keys(['train', 'val', 'test'])\n60\n{'image': <PIL.Image.Image image mode=RGB size=128x128"
    )
    first = names["coco_dataset"]["train"][0]
    assert first["image_id"] == 0 and isinstance(first["text_input"], str)


def test_paper_listing_2_captions(official):
    names = run(
        """
from lavis.datasets.builders import load_dataset
from lavis.models import load_model_and_preprocess
coco_dataset = load_dataset("coco_caption")
model, vis_procs, _ = load_model_and_preprocess(name="blip_caption", model_type="base_coco")
raw_image = coco_dataset["test"][0]["image"]
image = vis_procs["eval"](raw_image).unsqueeze(0)
captions = model.generate({"image": image})
text = coco_dataset["test"][0]["text_input"]
"""
    )
    assert len(names["captions"]) == 1 and isinstance(names["captions"][0], str)
    assert isinstance(names["text"], str)
    assert names["model"].generate({"image": names["image"]}) == names["captions"]  # no dropout in use


def test_readme_captioning(official):
    names = run(
        """
import torch
from PIL import Image
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
raw_image = Image.open("docs/_static/merlion.png").convert("RGB")

from lavis.models import load_model_and_preprocess
model, vis_processors, _ = load_model_and_preprocess(name="blip_caption", model_type="base_coco", is_eval=True, device=device)
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
captions = model.generate({"image": image})
more = model.generate({"image": image}, use_nucleus_sampling=True, num_captions=3)
"""
    )
    assert len(names["captions"]) == 1 and len(names["more"]) == 3
    assert not names["model"].training


def test_readme_question_answering(official):
    names = run(
        """
import torch
from PIL import Image
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
raw_image = Image.open("docs/_static/merlion.png").convert("RGB")

from lavis.models import load_model_and_preprocess
model, vis_processors, txt_processors = load_model_and_preprocess(name="blip_vqa", model_type="vqav2", is_eval=True, device=device)
question = "Which city is this photo taken?"
image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
question = txt_processors["eval"](question)
answers = model.predict_answers(samples={"image": image, "text_input": question}, inference_method="generate")
ranked = model.predict_answers({"image": image, "text_input": question}, answer_list=["Singapore", "London", "Palo Alto", "Tokyo"], inference_method="rank")
"""
    )
    assert len(names["answers"]) == 1
    assert names["ranked"][0] in ["Singapore", "London", "Palo Alto", "Tokyo"]


def test_docs_processors_and_load_model(official):
    names = run(
        """
from PIL import Image
raw_image = Image.open("docs/_static/merlion.png").convert("RGB")
device = "cpu"
from lavis.processors import load_processor
from lavis.models import load_model
vis_processor = load_processor("blip_image_eval").build(image_size=384)
model = load_model(name="blip_caption", model_type="base_coco", is_eval=True, device=device)
image = vis_processor(raw_image).unsqueeze(0).to(device)
captions = model.generate(samples={"image": image}, use_nucleus_sampling=True)
"""
    )
    assert len(names["captions"]) == 1


def test_readme_zoos(official, capsys):
    run(
        """
from lavis.models import model_zoo
print(model_zoo)
from lavis.datasets.builders import dataset_zoo
dataset_names = dataset_zoo.get_names()
print(dataset_names)
"""
    )
    printed = capsys.readouterr().out
    assert "blip_caption                   base_coco, large_coco" in printed
    assert "'coco_caption'" in printed


def test_readme_local_pictures(official, tmp_path):
    (tmp_path / "elsewhere").symlink_to(Path(os.environ["LAVIS_CACHE"]) / "coco" / "images")
    names = run(
        """
from lavis.datasets.builders import load_dataset
coco_dataset = load_dataset("coco_caption", vis_path=YOUR_LOCAL_PATH)
first = coco_dataset["val"][0]
""",
        YOUR_LOCAL_PATH=str(tmp_path / "elsewhere"),
    )
    assert names["first"]["image"].size == (128, 128)
