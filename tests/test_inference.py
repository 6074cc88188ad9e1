"""What one does with a loaded model: vectors, matching, classes, explanations, conversations, conversion."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavis.common.files import read_jsonl
from lavis.datasets.base import open_picture
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes.render import render
from lavis.datasets.shapes.scene import COLORS, SHAPES, Scene, draw_scene
from lavis.inference import Encoder, Loaded, ZeroShot, classify, explain, load, overlay
from lavis.inference.convert import convert
from lavis.inference.dialogue import Conversation
from lavis.inference.explain import explanation_sheet
from lavis.inference.features import Item, extract
from lavis.inference.reading import read_batches
from lavis.inference.sheet import Tile, contact_sheet
from lavis.models import build_model, checkpoints, load_model
from lavis.models.blip_matching import compute_gradcam
from lavis.models.heat_maps import words_of
from tests.small import random_model
from tests.test_clip import archive

TEXTS = ["a large red circle", "two small blue stars and a green heart", "a ring", "a striped pink cross"]


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    data = load_dataset("shapes_retrieval")["test"]
    return [data.picture(data.records[i]) for i in range(32)]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    data = load_dataset("shapes_retrieval")["test"]
    return [data.records[i]["caption"][0] for i in range(32)]


@pytest.fixture(scope="module")
def blip() -> Encoder:
    return Encoder(load("blip_retrieval/tiny_shapes", device="cpu"))


@pytest.fixture(scope="module")
def albef() -> Encoder:
    return Encoder(load("albef_retrieval/tiny_shapes", device="cpu"))


def _single(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, "test", 1) for _ in range(count)]


# ------------------------------------------------------------------------------------ encoding and matching


def test_vectors_are_the_models_own(drawings: list[Image.Image]) -> None:
    extractor = Encoder(load("blip_feature_extractor/tiny_shapes", device="cpu"))
    image = torch.stack([extractor.loaded.vis(p) for p in drawings[:3]])
    wanted = extractor.model.extract_features({"image": image}, mode="image").image_embeds_proj[:, 0]
    torch.testing.assert_close(extractor.images(drawings[:3]), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor.images(list(image)), wanted, rtol=1e-5, atol=1e-5)  # prepared before
    texts = extractor.model.extract_features({"text_input": TEXTS}, mode="text").text_embeds_proj[:, 0]
    torch.testing.assert_close(extractor.texts(TEXTS), texts, rtol=1e-4, atol=1e-5)
    fused = extractor.model.extract_features({"image": image, "text_input": TEXTS[:3]}).multimodal_embeds[
        :, 0
    ]
    torch.testing.assert_close(extractor.multimodal(drawings[:3], TEXTS[:3]), fused, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["blip", "albef"])
def test_matching_is_the_models_own_whatever_is_batched(
    name: str, request: pytest.FixtureRequest, drawings: list[Image.Image], captions: list[str]
) -> None:
    encoder: Encoder = request.getfixturevalue(name)
    chances, cosines = encoder.match_all(drawings[:6], captions[:70])
    assert chances is not None and chances.shape == cosines.shape == (6, 32)
    for i in (0, 5):
        alone, cosine = encoder.match(drawings[i], captions[3:5])
        torch.testing.assert_close(alone, chances[i, 3:5], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(cosine, cosines[i, 3:5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        cosines, encoder.images(drawings[:6]) @ encoder.texts(captions).T, rtol=1e-4, atol=1e-5
    )
    assert (cosines.argmax(dim=1) == torch.arange(6)).all() and (
        chances.argmax(dim=1) == torch.arange(6)
    ).all()
    if name == "blip":
        model = load_model("blip_image_text_matching", "tiny_shapes", is_eval=True)
        image = torch.stack([encoder.loaded.vis(drawings[2])])
        wanted, _ = model.match_scores({"image": image, "text_input": captions[:4]})
        torch.testing.assert_close(chances[2, :4], wanted, rtol=1e-3, atol=1e-5)


def test_more_pairs_than_fit_at_once(
    monkeypatch: pytest.MonkeyPatch, blip: Encoder, drawings: list[Image.Image], captions: list[str]
) -> None:
    whole, cosines = blip.match_logits(drawings[:3], captions)
    monkeypatch.setattr("lavis.models.reranking.PAIRS_AT_ONCE", 10)
    parts, again = blip.match_logits(drawings[:3], captions)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again, cosines, rtol=1e-4, atol=1e-5)


def test_every_family_with_a_common_space(drawings: list[Image.Image]) -> None:
    for spec, matches, random in (
        ("clip/tiny", False, True), ("alpro_retrieval/tiny_shapes", True, False),
        ("blip_pretrain/tiny_shapes", True, False), ("albef_feature_extractor/tiny_shapes", False, False),
    ):  # fmt: skip
        loaded = load(spec, device="cpu")
        encoder = Encoder(loaded)
        assert encoder.matches is matches and loaded.is_random is random and encoder.scale > 10
        images, texts = encoder.images(drawings[:2]), encoder.texts(TEXTS)
        assert images.shape == (2, encoder.width) and texts.shape == (4, encoder.width)
        for vectors in (images, texts):
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        chances, _ = encoder.match(drawings[0], TEXTS)
        assert (chances is not None) is matches
    with pytest.raises(
        ValueError,
        match=r"can't match images with texts by a matching head; .* Models that can: albef_retrieval",
    ):
        encoder.match_logits(drawings[:1], TEXTS)


def test_models_without_a_common_space_are_refused() -> None:
    with pytest.raises(ValueError, match="can't put images and texts into one space; it can write captions"):
        Encoder(load("blip_caption/tiny_shapes", device="cpu"))


def test_nothing_to_encode(blip: Encoder) -> None:
    assert blip.images([]).shape == (0, 64) and blip.texts([]).shape == (0, 64)
    with pytest.raises(ValueError, match="give a list of texts"):
        blip.texts("a red circle")


def test_a_fresh_context_each_time_and_bf16(drawings: list[Image.Image], blip: Encoder) -> None:
    low = Encoder(load("blip_retrieval/tiny_shapes", device="cpu", precision="bf16"))
    assert low.loaded.autocast() is not low.loaded.autocast()
    vectors = low.images(drawings[:4])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    cosines = (vectors * blip.images(drawings[:4])).sum(dim=1)
    assert vectors.dtype == torch.float32 and cosines.min() > 0.99


def test_fingerprints_tell_weights_apart(tmp_path: Path) -> None:
    first = load("blip_retrieval/tiny_shapes", device="cpu")
    assert first.fingerprint() == load("blip_retrieval/tiny_shapes", device="cpu").fingerprint()
    other = load("blip_retrieval/tiny_shapes", device="cpu")
    with torch.no_grad():
        other.model.vision_proj.bias[3] += 0.001
    assert first.fingerprint() != other.fingerprint()
    assert first.fingerprint() != load("blip_feature_extractor/tiny_shapes", device="cpu").fingerprint()


# ------------------------------------------------------------------------------------ classification


def test_zero_shot_names_single_shapes(albef: Encoder) -> None:
    """64 classes: chance is 1.6 %."""
    scenes = _single(50)
    labels = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    truth = [labels.index("{color} {shape}".format(**s["objects"][0])) for s in scenes]
    chances = classify(albef, [render(s) for s in scenes], labels)
    assert chances.shape == (50, 64)
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(50))
    assert (chances.argmax(dim=1) == torch.tensor(truth)).float().mean() > 0.85
    shapes = ZeroShot(albef, list(SHAPES), ["a {}", "a large {}", "a small {}"], head="itm")
    found = shapes([render(s) for s in scenes]).argmax(dim=1)
    right = torch.tensor([SHAPES.index(s["objects"][0]["shape"]) for s in scenes])
    assert (found == right).float().mean() > 0.4  # chance is 12.5 %


def test_zero_shot_is_clips(drawings: list[Image.Image]) -> None:
    encoder = Encoder(load("clip/tiny", device="cpu"))
    templates = ["a {}", "the {} here"]
    weights = encoder.model.zero_shot_classifier(["cat", "dog", "tree"], templates)  # (E, 3)
    wanted = (encoder.scale * encoder.images(drawings[:3]) @ weights).softmax(dim=1)
    torch.testing.assert_close(classify(encoder, drawings[:3], ["cat", "dog", "tree"], templates), wanted)
    assert math.isclose(encoder.scale, 1 / 0.07, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("labels", "templates", "head", "expected"),
    [
        ([], ["a {}"], "itc", "no labels"),
        (["a", "b", "a"], ["a {}"], "itc", "'a' is there twice"),
        (["a"], [], "itc", "no template"),
        (["a"], ["a thing"], "itc", "has no {}"),
        (["a"], ["a {}"], "itx", "must be itc"),
    ],
)
def test_wrong_classes(
    blip: Encoder, labels: list[str], templates: list[str], head: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        ZeroShot(blip, labels, templates, head)


# ------------------------------------------------------------------------------------ explanations


def _near(obj: dict[str, float], side: int) -> np.ndarray:
    """The patches (g, g) whose centre is in or at the object."""
    centres = (np.arange(side) + 0.5) / side
    across, down = centres[None, :] - obj["x"], centres[:, None] - obj["y"]
    return np.hypot(across, down) <= 1.3 * obj["r"]


@pytest.mark.parametrize(
    ("spec", "least", "peaks"),
    [
        # spread widely, with peaks at the right place
        ("albef_retrieval/tiny_shapes", 0.25, 0.75),
        ("blip_caption/tiny_shapes", 0.55, 0.9),
    ],
)
def test_words_look_at_the_object(spec: str, least: float, peaks: float) -> None:
    """The share of a map near the only object, and how often all words' map peaks there; by chance both are the
    object's share of the image, about 0.17."""
    loaded = load(spec, device="cpu")
    shares, areas, hits = [], [], []
    for scene in _single(15, seed=5):
        obj = scene["objects"][0]
        found = explain(loaded, render(scene), f"a {obj['size']} {obj['color']} {obj['shape']}")
        assert found.words == ["a", obj["size"], obj["color"], obj["shape"]]
        assert found.maps.shape == (4, 8, 8) and found.maps.min() >= 0
        np.testing.assert_allclose(found.whole, found.maps.mean(axis=0))
        near = _near(obj, 8)
        shares += [m[near].sum() / m.sum() for m in found.maps[2:]]
        areas.append(near.mean())
        hits.append(near.flat[int(found.whole.argmax())])
    assert np.mean(areas) < 0.2 and np.mean(shares) > least and np.mean(hits) > peaks


def test_of_two_objects_a_words_map_is_at_its_own() -> None:
    loaded = load("blip_caption/tiny_shapes", device="cpu")
    rng = np.random.default_rng(3)
    own, other = [], []
    while len(own) < 40:
        scene = draw_scene(rng, "test", 2)
        a, b = scene["objects"]
        if a["shape"] == b["shape"] or a["color"] == b["color"]:
            continue
        text = " and ".join(f"a {o['color']} {o['shape']}" for o in (a, b))
        found = explain(loaded, render(scene), text)
        for word, heat in zip(found.words, found.maps, strict=True):
            for mine, its in ((a, b), (b, a)):
                if word in (mine["color"], mine["shape"]):
                    own.append(heat[_near(mine, 8)].sum() / heat.sum())
                    other.append(heat[_near(its, 8)].sum() / heat.sum())
    assert np.mean(own) > 0.5 and np.mean(other) < 0.25


def test_a_captioner_explains_its_own_caption(drawings: list[Image.Image]) -> None:
    loaded = load("blip_caption/tiny_shapes", device="cpu")
    found = explain(loaded, drawings[0])
    assert found.text and found.words == found.text.split() and len(found.maps) == len(found.words)
    again = explain(loaded, loaded.vis(drawings[0]), found.text)
    np.testing.assert_allclose(again.maps, found.maps)
    assert found.score < 0 and again.score == pytest.approx(found.score)
    worse = explain(loaded, drawings[0], "a green elephant")
    assert worse.score < found.score


def test_an_answer_by_the_words_of_its_question(drawings: list[Image.Image]) -> None:
    loaded = load("blip_vqa/tiny_easy_vqa", device="cpu")
    found = explain(loaded, drawings[0], "What colour is the shape?")
    assert found.words == ["what", "colour", "is", "the", "shape?"] and found.maps.shape == (5, 8, 8)
    assert found.maps.reshape(5, -1).sum(axis=1).min() > 0 and found.text and found.score < 0


def test_maps_of_words_are_those_of_their_pieces(blip: Encoder, drawings: list[Image.Image]) -> None:
    model, text = blip.model, "a striped xylophone, and a heart"
    words, places = words_of(model.tokenizer, text, 35)
    assert words == text.split() and max(map(len, places)) > 1
    assert [p for place in places for p in place] == list(range(1, len(model.tokenizer.encode(text)) - 1))
    found = explain(blip.loaded, drawings[0], text, layer=1)
    # the published function, which keeps punctuation's cleaning to its caller
    cleaned = blip.loaded.txt(text)
    matcher = load_model("blip_image_text_matching", "tiny_shapes", is_eval=True)
    image = blip.loaded.vis(drawings[0])[None]
    (maps,), _ = compute_gradcam(matcher, image, [cleaned], matcher.tokenizer.batch([cleaned]), block_num=1)
    for place, heat in zip(places, found.maps, strict=True):
        wanted = torch.stack([maps[p + 1] for p in place]).mean(dim=0)
        np.testing.assert_allclose(heat, wanted.numpy(), rtol=1e-3, atol=1e-7)


def test_words_look_at_the_object_in_every_frame() -> None:
    """The packaged retrieval model on clips, unchanged: an object that moves is found where it is at the moment."""
    loaded = load("blip_video_retrieval/tiny_shapes", device="cpu")
    shares = []
    for scene in _single(6, seed=7):
        obj = scene["objects"][0]
        moments = [{**obj, "x": 0.25 + 0.5 * i / 7} for i in range(8)]
        frames = [render({**scene, "objects": [moment]}) for moment in moments]
        found = explain(loaded, frames, f"a {obj['color']} {obj['shape']}")
        assert found.maps.shape == (3, 8, 8, 8) and found.whole.shape == (8, 8, 8)
        for word in found.maps[1:]:
            shares += [
                heat[_near(moment, 8)].sum() / heat.sum() for heat, moment in zip(word, moments, strict=True)
            ]
    assert np.mean(shares) > 0.4  # 0.17 by chance


def test_a_clip_in_which_nothing_moves_has_a_pictures_maps(
    blip: Encoder, drawings: list[Image.Image]
) -> None:
    """Frames share one softmax, so each has its part of a map of the picture alone, and all parts are alike."""
    video = load("blip_video_retrieval/tiny_shapes", device="cpu")
    moving = explain(video, drawings[0], "a red heart")  # eight times the same frame
    still = explain(blip.loaded, drawings[0], "a red heart", check=False)
    assert moving.maps.shape == (3, 8, 8, 8) and still.maps.shape == (3, 8, 8)
    np.testing.assert_allclose(moving.maps, moving.maps[:, :1].repeat(8, axis=1), rtol=1e-3, atol=1e-8)
    alone = explain(video, video.vis([drawings[0]])[:, :1], "a red heart")  # a clip of one frame
    np.testing.assert_allclose(alone.maps, still.maps, rtol=1e-3, atol=1e-7)
    assert explanation_sheet([drawings[0]], alone).width > explanation_sheet([drawings[0]], alone, [1]).width
    assert alone.score == pytest.approx(still.score, abs=1e-3)


def test_an_answer_about_a_clip(drawings: list[Image.Image]) -> None:
    found = explain(load("blip_video_qa/tiny_shapes", device="cpu"), drawings[:8], "is there a heart?")
    assert found.words == ["is", "there", "a", "heart?"] and found.maps.shape == (4, 8, 8, 8) and found.text


@pytest.mark.parametrize("name", ["blip_classification", "albef_classification"])
def test_a_class_by_the_words_of_its_text(name: str, drawings: list[Image.Image]) -> None:
    loaded = load(f"{name}/tiny_shapes", device="cpu")
    found = explain(loaded, drawings[0], "A red heart.")
    samples = {"image": loaded.vis(drawings[0])[None], "text_input": ["a red heart"]}
    (logits,) = loaded.model.predict(samples)["predictions"]  # type: ignore[operator]
    assert found.text == f"class {int(logits.argmax())}" and found.score == pytest.approx(
        float(logits.max()), abs=1e-4
    )
    assert found.words == ["a", "red", "heart"] and found.maps.shape == (3, 8, 8) and found.maps.max() > 0


@pytest.mark.parametrize("name", ["blip_nlvr", "albef_nlvr"])
def test_a_statement_about_two_pictures(name: str, drawings: list[Image.Image]) -> None:
    loaded = load(f"{name}/tiny_shapes", device="cpu")
    assert loaded.pairs
    found = explain(loaded, drawings[:2], "The left picture has a star.")
    samples = {f"image{i}": loaded.vis(drawings[i])[None] for i in range(2)}
    (logits,) = loaded.model.predict({**samples, "text_input": ["the left picture has a star"]})[
        "predictions"
    ]  # type: ignore[operator]
    assert found.text == ("false", "true")[int(logits.argmax())] and len(found.words) == 6
    assert found.score == pytest.approx(float(logits.max()), abs=1e-4)
    assert found.maps.shape == (6, 2, 8, 8) and found.maps[:, 0].max() > 0 < found.maps[:, 1].max()
    sheet, one = explanation_sheet(drawings[:2], found), explanation_sheet(drawings[:2], found, [5])
    assert sheet.width == 3 * one.width - 24 and sheet.height > 2 * one.height  # three words a row
    # where what is found in the right picture counts for nothing, no word has evidence there
    for at, layer in enumerate(loaded.model.text_encoder.encoder.layer):  # type: ignore[union-attr, arg-type]
        if name == "blip_nlvr":
            idle = [layer.crossattention.output.dense1]  # type: ignore[union-attr]
        else:
            idle = [layer.crossattention.output.dense] if layer.crosses and at % 2 else []  # type: ignore[union-attr]
        for part in idle:
            part.weight.data.zero_()  # type: ignore[union-attr, operator]
    again = explain(loaded, drawings[:2], "the left picture has a star")
    assert again.maps[:, 0].max() > 0 == again.maps[:, 1].max()
    for wrong in (drawings[0], drawings[:3]):
        with pytest.raises(ValueError, match="two images; give the left and the right one"):
            explain(loaded, wrong, "a star")


def test_what_can_not_be_explained(blip: Encoder, drawings: list[Image.Image]) -> None:
    with pytest.raises(
        ValueError, match=r"clip/tiny can't explain the words of a text; it can put .* Models that can: "
    ):
        explain(load("clip/tiny", device="cpu"), drawings[0], "a cat")
    with pytest.raises(ValueError, match="needs a text"):
        explain(blip.loaded, drawings[0])
    with pytest.raises(ValueError, match="layer 2 can't be explained by; choose one from 0 to 1"):
        explain(blip.loaded, drawings[0], "a cat", layer=2)
    with pytest.raises(ValueError, match="layer 0 can't be explained by; choose one from 2 to 2"):
        explain(load("albef_retrieval/tiny_shapes", device="cpu"), drawings[0], "a cat", layer=0)


def test_pictures_of_explanations(blip: Encoder, drawings: list[Image.Image]) -> None:
    found = explain(blip.loaded, drawings[0], "a red circle", check=False)
    heat = np.zeros((8, 8))
    heat[6, 1] = 1
    over = np.asarray(overlay(Image.new("RGB", (2000, 1000), "white"), heat)).astype(int)
    assert over.shape == (384, 768, 3)
    y, x = np.unravel_index((over[..., 0] - over[..., 2]).argmax(), over.shape[:2])
    assert 6 / 8 <= y / 384 <= 7 / 8 and 1 / 8 <= x / 768 <= 2 / 8
    whole, one = explanation_sheet(drawings[0], found), explanation_sheet(drawings[0], found, [2])
    assert whole.width > one.width


def test_sheets_keep_the_ends_of_long_names() -> None:
    tiles = [
        Tile(Image.new("RGB", (30 + 10 * i, 20), "red"), ["a/very/long/" * 9 + "name.png"]) for i in range(7)
    ]
    sheet = contact_sheet(tiles, columns=3, side=100)
    assert sheet.width == 3 * 112 + 12 and sheet.height == 3 * (112 + 17) + 12
    with pytest.raises(ValueError, match="nothing to show"):
        contact_sheet([])


# ------------------------------------------------------------------------------------ conversations


def test_a_question_answering_model_talks(drawings: list[Image.Image]) -> None:
    loaded = load("blip_vqa/tiny_easy_vqa", device="cpu")
    talk = Conversation(loaded, drawings[0])
    first = talk.ask("what color is the shape?")
    assert not talk.reads_history and first.answer and talk.turns == [first]
    chosen = Conversation(loaded, drawings[0], candidates=["seven", "eight"]).ask("what color is the shape?")
    assert chosen.answer in ("seven", "eight") and 0.5 <= chosen.score <= 1
    with pytest.raises(ValueError, match="the question is empty"):
        talk.ask("  ")
    with pytest.raises(
        ValueError, match=r"can't answer questions; it can write captions; .* Models that can: blip_vqa"
    ):
        Conversation(load("blip_caption/tiny_shapes", device="cpu"), drawings[0])


@pytest.mark.parametrize("answering", ["rank", "generate"])
def test_a_dialogue_model_reads_what_was_said(
    answering: str, tmp_path: Path, drawings: list[Image.Image]
) -> None:
    torch.manual_seed(0)
    model = build_model(
        {"arch": "blip_vis_dialogue", "model_type": "tiny", "weights": "none", "answering": answering}
    )
    model.save_pretrained(tmp_path)
    loaded = load(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="reads a caption"):
        Conversation(loaded, drawings[0], candidates=["yes", "no"])
    candidates = ["yes", "no", "two", "red", "a circle"] if answering == "rank" else None
    if answering == "rank":
        with pytest.raises(ValueError, match="chooses among answers"):
            Conversation(loaded, drawings[0], "a drawing")
    talk = Conversation(loaded, drawings[0], "a drawing", candidates)
    assert talk.reads_history
    fresh = Conversation(loaded, drawings[0], "a drawing", candidates).ask("is it red?")
    talk.ask("how many shapes are there?")
    assert talk.ask("is it red?").score != fresh.score
    assert [t.question for t in talk.turns] == ["how many shapes are there?", "is it red?"]


# ------------------------------------------------------------------------------------ reading, features, converting


def test_pictures_are_read_in_order_and_only_as_many_as_are_needed(tmp_path: Path) -> None:
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (2, 2), (i, 0, 0)).save(paths[-1])
    paths[7].write_bytes(b"no picture")
    taken = []

    def value_of(path: Path) -> int:
        return open_picture(path).getpixel((0, 0))[0]

    def source():
        for path in paths:
            taken.append(path)
            yield path

    reading = read_batches(source(), value_of, 4)
    first = next(reading)
    assert [value for _, value in first] == [0, 1, 2, 3] and len(taken) <= 12
    second = next(reading)
    assert isinstance(second[3][1], OSError) and str(paths[7]) in str(second[3][1])
    assert [value for batch in reading for _, value in batch] == list(range(8, 40))
    reading.close()
    with pytest.raises(ValueError, match="1 or more"):
        next(read_batches(paths, value_of, 0))


@pytest.mark.parametrize("format", ["npy", "safetensors", "parquet"])
def test_features_of_pictures_in_every_format(
    format: str, tmp_path: Path, blip: Encoder, drawings: list[Image.Image]
) -> None:
    items = []
    for i, drawing in enumerate(drawings[:10]):
        drawing.save(tmp_path / f"{i}.png")
        items.append(Item(image=tmp_path / f"{i}.png"))
    (tmp_path / "4.png").write_bytes(b"broken")
    out = tmp_path / "out"
    done = extract(blip, items, out, format=format, shard_size=4, batch_size=3)
    assert done.rows == 9 and done.kept == 0 and [Path(p).name for p, _ in done.failed] == ["4.png"]
    summary = json.loads((out / "features.json").read_text())
    assert summary["complete"] and summary["rows"] == 9 and summary["width"] == 64
    rows, names = [], []
    for shard in summary["shards"]:
        path = out / shard["file"]
        if format == "npy":
            rows.append(np.load(path))
        elif format == "safetensors":
            from safetensors.numpy import load_file

            rows.append(load_file(path)["features"])
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            rows.append(np.stack([np.array(v, dtype=np.float32) for v in table["features"].to_pylist()]))
            assert table["image"].to_pylist() == [r["image"] for r in read_jsonl(out / shard["list"])]
        names += [Path(r["image"]).stem for r in read_jsonl(out / shard["list"])]
    assert [len(r) for r in rows] == [4, 3, 2] and names == [str(i) for i in range(10) if i != 4]
    wanted = blip.images([drawings[i] for i in range(10) if i != 4]).numpy()
    np.testing.assert_allclose(np.concatenate(rows), wanted, rtol=1e-4, atol=1e-5)


def test_features_keep_what_is_complete_and_of_the_same_inputs(
    tmp_path: Path, blip: Encoder, drawings: list[Image.Image]
) -> None:
    items = []
    for i, drawing in enumerate(drawings[:9]):
        drawing.save(tmp_path / f"{i}.png")
        items.append(Item(image=tmp_path / f"{i}.png"))
    out = tmp_path / "out"
    extract(blip, items, out, shard_size=3)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    (out / "shard-00001.npy").write_bytes(b"damaged")
    drawings[20].save(tmp_path / "8.png")
    (out / "shard-00000.json").unlink()
    progress: list[tuple[int, int]] = []
    done = extract(blip, items, out, shard_size=3, progress=lambda n, all: progress.append((n, all)))
    assert done.kept == 0 and progress[-1] == (9, 9)
    after = {p.name: p.read_bytes() for p in out.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"shard-00002.npy", "shard-00002.json"}
    assert extract(blip, items, out, shard_size=3).kept == 9
    with pytest.raises(ValueError, match="holds features of another list: 5 of the 9 inputs"):
        extract(blip, items[:4], out, shard_size=3)
    assert extract(blip, items, out, shard_size=3).kept == 9
    fewer = extract(blip, items[:4], out, shard_size=3, overwrite=True)
    assert fewer.rows == 4 and fewer.kept == 3 and not (out / "shard-00002.npy").exists()
    other = Encoder(load("albef_retrieval/tiny_shapes", device="cpu"))
    with pytest.raises(
        ValueError, match="holds features of model 'blip_retrieval/tiny_shapes', not 'albef_retr"
    ):
        extract(other, items, out, shard_size=3)
    with pytest.raises(ValueError, match="holds features of mode 'image', not 'text'"):
        extract(blip, [Item(text="a")], out, mode="text", shard_size=3)
    with pytest.raises(ValueError, match="is not empty and holds no features"):
        extract(blip, items, tmp_path)


def test_features_of_texts_and_of_pairs(tmp_path: Path, blip: Encoder, drawings: list[Image.Image]) -> None:
    extract(blip, [Item(text=t) for t in TEXTS], tmp_path / "texts", mode="text", half=True)
    found = np.load(tmp_path / "texts" / "shard-00000.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, blip.texts(TEXTS).numpy(), atol=1e-3)
    assert [r["text"] for r in read_jsonl(tmp_path / "texts" / "shard-00000.jsonl")] == TEXTS
    for i in range(4):
        drawings[i].save(tmp_path / f"{i}.png")
    pairs = [Item(tmp_path / f"{i}.png", TEXTS[i]) for i in range(4)]
    extract(blip, pairs, tmp_path / "pairs", mode="multimodal")
    fused = np.load(tmp_path / "pairs" / "shard-00000.npy")
    np.testing.assert_allclose(fused, blip.multimodal(drawings[:4], TEXTS).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("arch", ["blip_retrieval", "clip", "albef_vqa"])
def test_conversion_gives_back_what_was_read(arch: str, half: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build_model({"arch": arch, "model_type": "tiny", "weights": "none"})
    torch.save({"model": model.official_state()}, tmp_path / "official.pth")
    done = convert(str(tmp_path / "official.pth"), tmp_path / "new", arch, "tiny", half=half)
    again = load_model(str(tmp_path / "new"), is_eval=True, for_training=False)
    official = tmp_path / "official.pth"
    wanted = load_model(arch, "tiny", checkpoint=official, for_training=False).state_dict()
    assert done.tensors == len(wanted) and done.arch == arch
    written = checkpoints.read_state_dict(tmp_path / "new")
    shapes = {key: tensor.shape for key, tensor in model.official_state().items() if key in written}
    assert {key: tensor.shape for key, tensor in written.items()} == shapes
    for name, tensor in again.state_dict().items():
        if half:
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(tensor, wanted[name]), name
    assert (done.largest_difference > 0) == half
    full = sum(t.numel() * t.element_size() for t in wanted.values())
    assert done.bytes < 0.6 * full if half else done.bytes > 0.8 * full
    with pytest.raises(ValueError, match="is there already"):
        convert(str(tmp_path / "official.pth"), tmp_path / "new", arch, "tiny")


def test_what_does_not_fit_into_half_is_refused(tmp_path: Path) -> None:
    model = build_model({"arch": "blip_retrieval", "model_type": "tiny", "weights": "none"})
    with torch.no_grad():
        model.vision_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "old")
    with pytest.raises(ValueError, match=r"vision_proj\.weight has values beyond float16"):
        convert(str(tmp_path / "old"), tmp_path / "new", half=True)
    assert not (tmp_path / "new").exists()


def _transformers_folder(place: Path) -> Path:
    """A CLIP of transformers, of the sizes of our tiny one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
            "vocab_size": 4610, "max_position_embeddings": 48, "bos_token_id": 4608, "eos_token_id": 4609,
            "hidden_act": "gelu",
        },
        vision_config={
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
            "image_size": 64, "patch_size": 8, "hidden_act": "gelu",
        },
        projection_dim=128,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(place)
    return place


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["openclip", "openai", "transformers"])
def test_checkpoints_of_others_are_converted(kind: str, tmp_path: Path, drawings: list[Image.Image]) -> None:
    model = random_model("clip")
    source = tmp_path / "model.pt"
    if kind == "openclip":
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.official_state().items()}}, source
        )
    elif kind == "openai":
        archive(model, source, "script")
    else:
        source = _transformers_folder(tmp_path / "theirs")
    convert(str(source), tmp_path / "new", "clip", "tiny")
    first = load_model("clip", "tiny", is_eval=True, checkpoint=source)
    again = load_model(str(tmp_path / "new"), is_eval=True, for_training=False)
    assert (
        again.config.quick_gelu == first.config.quick_gelu == (kind != "transformers")
    )  # what shapes don't tell
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    one, two = (
        Encoder(Loaded("x", m, load("clip/tiny").vis, str)).images(drawings[:2]) for m in (first, again)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize(("left", "packed"), [(1 << 40, True), (10 << 20, False), (None, True)])
def test_weights_are_copied_only_where_there_is_room(left, packed, monkeypatch):
    """A language model of 11 GB must not become 22 GB unasked; these weights are 7.4 MB."""
    from lavis.common import memory
    from lavis.nn import cpu

    seen = []
    monkeypatch.setattr(memory, "available", lambda device: left)
    monkeypatch.setattr(cpu, "prepare", lambda model, pack=False: seen.append(pack) or model)
    load("blip_caption/tiny_shapes", device="cpu", precision="fp32")
    assert seen == [packed]
