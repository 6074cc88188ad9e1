"""NaN and infinity never leave a model as results: an error names the input, and the other inputs go on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lavis.cli.main import main
from lavis.common.gradcam import gradcam
from lavis.inference import Encoder, Loaded, ZeroShot, explain
from lavis.inference.features import Item, extract
from lavis.inference.index import Index
from lavis.models import load_model
from lavis.nn import generation
from lavis.nn.finite import NonFiniteError, check_finite
from lavis.nn.losses import hard_negatives
from tests.small import images, random_model

NAN = float("nan")
TEXTS = ["a red star", "a blue ring"]
DAMAGED = r"weights are damaged \(visual[\w.]*weight holds NaN"


def damaged(name: str, **config):
    model = random_model(name, **config)
    with torch.no_grad():
        vision = model.visual if name == "clip" else model.visual_encoder
        block = getattr(vision, "model", vision).blocks[1].mlp.fc1
        block.weight[0, 0] = NAN
    return model


def one_bad(count: int = 3, bad: int = 1) -> torch.Tensor:
    batch = images(count)
    batch[bad, 0, 3, 3] = NAN
    return batch


def dialogue(image: torch.Tensor) -> dict:
    rows = len(image)
    return {"image": image, "caption": ["a star"] * rows, "text_input": ["what?"] * rows, "dialog": [[]] * rows,
            "answer_options": [["red", "blue"]] * rows}  # fmt: skip


WAYS = [
    ("blip_caption", lambda m, x: m.generate({"image": x})),
    ("blip_caption", lambda m, x: m.generate({"image": x}, num_beams=1)),
    ("blip_caption", lambda m, x: m.generate({"image": x}, num_captions=2, repetition_penalty=1.3)),
    ("blip_caption", lambda m, x: m.generate({"image": x}, use_nucleus_sampling=True, seed=0)),
    ("blip_vqa", lambda m, x: m.predict_answers({"image": x, "text_input": "what?"}, inference_method="generate")),
    ("blip_vqa", lambda m, x: m.predict_answers({"image": x, "text_input": "what?"}, answer_list=["red", "two"])),
    ("albef_vqa", lambda m, x: m.predict_answers({"image": x, "text_input": "what?"}, ["red", "two"])),
    ("blip_vqa", lambda m, x: m.choose({"image": x, "text_input": "what?"}, [["red", "two"]] * len(x))),
    ("blip_feature_extractor", lambda m, x: m.extract_features({"image": x, "text_input": "a"})),
    ("albef_feature_extractor", lambda m, x: m.extract_features({"image": x}, "image")),
    ("clip", lambda m, x: m.extract_features({"image": x}, "image")),
    ("blip_image_text_matching", lambda m, x: m({"image": x, "text_input": "a"}, match_head="itm")),
    ("blip_image_text_matching", lambda m, x: m({"image": x, "text_input": "a"}, match_head="itc")),
    ("blip_image_text_matching", lambda m, x: m.match_scores({"image": x, "text_input": "a"})),
    ("blip_classification", lambda m, x: m.predict({"image": x, "text_input": "a"})),
    ("albef_classification", lambda m, x: m.predict({"image": x, "text_input": "a"}, return_scores=True)),
    ("blip_nlvr", lambda m, x: m.predict({"image0": x, "image1": x, "text_input": "a"})),
    ("blip_vis_dialogue", lambda m, x: m.predict(dialogue(x))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "use"), WAYS)
def test_what_leaves_a_model_is_finite_or_names_the_input(name, use):
    model = random_model(name)
    use(model, images(3))
    with pytest.raises(NonFiniteError, match=r"for image 2 of the 3 of the batch: 'image0?' holds NaN") as e:
        use(model, one_bad())
    assert e.value.places == [1]
    with pytest.raises(ValueError, match=r"for all 3 images of the batch: its " + DAMAGED):
        use(damaged(name), images(3))


def test_of_several_questions_about_an_image_the_image_is_named():
    samples = {"image": one_bad(2), "text_input": ["what?", "how many?", "where?"] * 2}
    for options in ({"inference_method": "generate"}, {"answer_list": ["red", "two"]}):
        with pytest.raises(NonFiniteError, match="for image 2 of the 2"):
            random_model("blip_vqa").predict_answers(samples, **options)


def test_similarities_of_a_gallery_are_finite():
    class Gallery(list):
        dataset = type("D", (), {"text": TEXTS, "__len__": lambda self: 4})()

    for name in ("blip_retrieval", "albef_retrieval", "clip", "blip2"):
        with pytest.raises(NonFiniteError, match="for image 3 of the 4"):
            random_model(name).compute_sim_matrix(Gallery([{"image": one_bad(4, 2)}]), {"k_test": 2})


def test_half_precision_that_overflows_is_said():
    model = random_model("blip_feature_extractor")
    with torch.no_grad():
        for block in model.visual_encoder.blocks:
            block.mlp.fc2.weight *= 1e38
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(NonFiniteError, match="use precision fp32"):
            model.extract_features({"image": images(1)}, "image")


def test_maps_are_finite():
    model = damaged("blip_retrieval")
    with pytest.raises(ValueError, match=DAMAGED):
        explain(Loaded("x", model, lambda x: x, str), images(1)[0], "a red star")
    layer = random_model("blip_retrieval")
    block = layer.visual_encoder.blocks[1].attn
    with pytest.raises(NonFiniteError):
        gradcam([block], lambda: layer.visual_encoder(one_bad()).sum(dim=(1, 2)))


@pytest.mark.parametrize("beams", [1, 3])
def test_nan_that_comes_late_is_seen(beams):
    class Late:
        def __init__(self):
            self.calls = 0

        def step(self, ids):
            self.calls += 1
            logits = torch.randn(len(ids), 20, generator=torch.Generator().manual_seed(self.calls))
            if self.calls == 4:
                logits[len(ids) // 2 :] = NAN
            return logits

        def select(self, index):
            pass

    options = generation.GenerationOptions(max_length=8, min_length=7, num_beams=beams)
    decoded = generation.generate(Late(), torch.full((2, 1), 2), options, end=1, pad=0)
    with pytest.raises(NonFiniteError) as e:
        decoded.read(2)
    assert e.value.places == [1]


def test_places_are_those_of_the_inputs():
    check_finite({"a": torch.zeros(4, 2), "b": np.zeros(3), "c": ["x", 1.0, None]})
    for result, total, places in (
        (torch.tensor([[0.0], [NAN], [0.0], [0.0]]), 2, [0]),
        (torch.tensor([0.0, 1.0, 2.0, float("inf")]), 4, [3]),
        ((torch.zeros(2), np.array([NAN, 0.0])), 2, [0]),
        ([1.0, NAN], None, [0]),
    ):
        with pytest.raises(NonFiniteError) as e:
            check_finite(result, total)
        assert e.value.places == places


def test_negatives_are_not_drawn_by_nan():
    same = torch.eye(3, dtype=torch.bool)
    for value in (NAN, float("inf")):
        sims = torch.zeros(3, 3)
        sims[1, 2] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            hard_negatives(sims, same)
    assert hard_negatives(torch.zeros(3, 3).masked_fill(same, -torch.inf), same).shape == (3,)


# ------------------------------------------------------------------------------------------ commands


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for i, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        Image.new("RGB", (64, 64), colour).save(place / f"{i}.png")
    return place


def encoder(name="blip_retrieval"):
    def prepare(picture):
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1).clone()
        return pixels / (0.0 if pixels[1].mean() > 0.9 else 1.0)  # NaN and infinity of the green one

    return Encoder(Loaded("x", random_model(name), prepare, str))


def test_one_bad_image_is_one_failed_row_of_features_and_index(tmp_path, folder):
    files = sorted(folder.iterdir())
    done = extract(encoder(), [Item(image=f) for f in files], tmp_path / "out", batch_size=3)
    assert done.rows == 2 and len(done.failed) == 1
    assert done.failed[0][0] == str(files[1]) and "NaN or infinity for the image" in done.failed[0][1]
    assert np.isfinite(np.load(tmp_path / "out" / "shard-00000.npy")).all()
    assert json.loads((tmp_path / "out" / "features.json").read_text())["failed"] == 1
    update = (index := Index.create(tmp_path / "index", "x")).update(files, encoder(), batch_size=3)
    assert update.added == len(index) == 2 and [path for path, _ in update.failed] == [files[1]]


def test_vectors_are_checked_again_before_they_are_written(tmp_path, folder, monkeypatch):
    made = encoder()
    monkeypatch.setattr(made, "images", lambda pictures: torch.full((len(pictures), made.width), NAN))
    files = sorted(folder.iterdir())
    with pytest.raises(ValueError, match="NaN or infinity"):
        extract(made, [Item(image=f) for f in files], tmp_path / "out")
    with pytest.raises(ValueError, match="NaN or infinity"):
        Index.create(tmp_path / "index", "x").update(files, made)
    monkeypatch.setattr(made, "images", lambda pictures: torch.full((len(pictures), made.width), 1e6))
    with pytest.raises(ValueError, match="without --half"):
        extract(made, [Item(image=f) for f in files], tmp_path / "half", half=True)


def test_zero_shot_classification_of_nan_is_refused():
    made = encoder()
    chooser = ZeroShot(made, ["a", "b"])
    with pytest.raises(NonFiniteError, match="for image 2 of the 3"):
        chooser(list(one_bad()))
    with pytest.raises(NonFiniteError, match="for image 2 of the 3"):
        ZeroShot(made, ["a", "b"], head="itm")(list(one_bad()))


@pytest.mark.parametrize("command", ["caption", "ask", "match", "classify"])
def test_commands_report_what_could_not_be_computed(command, tmp_path, folder, capsys, monkeypatch):
    name, words = {
        "caption": ("blip_caption", []), "ask": ("blip_vqa", ["--question", "what?"]),
        "match": ("blip_retrieval", ["--text", "a star"]), "classify": ("blip_retrieval", ["--labels", "a,b"]),
    }[command]  # fmt: skip
    read = Loaded.read

    def one_is_bad(self, path):
        found = read(self, path)
        return found * NAN if path.name == "1.png" else found

    monkeypatch.setattr(Loaded, "read", one_is_bad)
    out = tmp_path / "out.jsonl"
    arguments = [command, str(folder), "--model", f"{name}/tiny_shapes", "--out", str(out), *words]
    assert main(arguments) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["image"][-5:] for row in rows} == {"0.png", "2.png"}
    assert "1.png: the model computed NaN or infinity for the image" in capsys.readouterr().err
    model = load_model(name, "tiny_shapes", is_eval=True)
    with torch.no_grad():
        model.visual_encoder.norm.weight.fill_(NAN)
    model.save_pretrained(tmp_path / "damaged")
    arguments[3] = str(tmp_path / "damaged")
    assert main([*arguments, "--overwrite"]) == 2
    assert "visual_encoder.norm.weight holds NaN" in capsys.readouterr().err


def test_a_files_seed_makes_its_draw_whatever_else_is_captioned(folder, capsys):
    def drawn(*arguments):
        assert main(["caption", "--nucleus", "--seed", "3", *arguments]) == 0
        return {row["image"]: row["caption"] for row in map(json.loads, capsys.readouterr().out.splitlines())}

    together = drawn(str(folder))
    for path in sorted(folder.iterdir(), reverse=True):
        assert drawn(str(path), "--batch-size", "1") == {str(path): together[str(path)]}
