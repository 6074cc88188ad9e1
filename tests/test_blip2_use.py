"""BLIP-2's first stage in inference: vectors, matching, zero-shot classification, index, heat maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch.nn import functional as F

from lavis.app.demo.models import choices
from lavis.app.demo.page import EXAMPLES, Settings
from lavis.cli.main import main
from lavis.common.gradcam import gradcam
from lavis.common.registry import registry
from lavis.inference import Encoder, load
from lavis.inference.features import Item, extract
from lavis.inference.zero_shot import classify
from lavis.models import build_model, reranking
from lavis.models.outputs import Texts
from lavis.nn.losses import similarities
from tests.small import images, random_model

TEXTS = [
    "a red star",
    "two large blue squares above a ring",
    "a green heart",
    "one",
    "a very " + "very " * 50,
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    loaded = load("blip2_image_text_matching/tiny", device="cpu")
    for p in loaded.model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return Encoder(loaded)


# ------------------------------------------------------------------------------------------ vectors
def test_vectors_are_those_of_extract_features():
    model, media = random_model("blip2"), images(3)
    wanted = model.extract_features({"image": media}, "image").image_embeds_proj
    torch.testing.assert_close(model.embed_queries(media), wanted)
    torch.testing.assert_close(model.embed_images(media), F.normalize(wanted.mean(dim=1), dim=-1))
    texts = model.extract_features({"text_input": TEXTS[:4]}, "text").text_embeds_proj[:, 0]
    torch.testing.assert_close(model.embed_texts(TEXTS[:4]), texts)
    pairs = model.extract_features({"image": media, "text_input": TEXTS[:3]}).multimodal_embeds
    torch.testing.assert_close(model.embed_pairs(media, TEXTS[:3]), pairs.mean(dim=1))


def test_the_originals_parts_give_what_the_whole_gives():
    """As its `compute_sim_matrix` puts them together."""
    model, media = random_model("blip2_image_text_matching"), images(2)
    texts = model.tokenizer(
        TEXTS[:2], padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    states, image_embeds = model.forward_image(media)
    vectors = F.normalize(model.vision_proj(states), dim=-1)
    cosines = similarities(vectors, F.normalize(model.text_proj(model.forward_text(texts)), dim=-1))
    torch.testing.assert_close(vectors, model.embed_queries(media))
    pairs = {"image": media, "text_input": TEXTS[:2]}
    with torch.no_grad():
        torch.testing.assert_close(
            cosines, model(pairs, match_head="itc", all_pairs=True), rtol=1e-3, atol=1e-4
        )
        logits = model(pairs)[:, 1]
    found = model.compute_itm(image_embeds, texts.input_ids, texts.attention_mask)
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("together", [1, 4, 256])
def test_every_image_is_matched_with_every_text(monkeypatch, together):
    """In chunks of any size, as by `forward` of each pair alone."""
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", together)
    model, media = random_model("blip2_image_text_matching"), images(3)
    found = model.match_texts(media, TEXTS)
    cosines = similarities(found.images, found.texts)
    for b in range(3):
        for t, text in enumerate(TEXTS):
            pair = {"image": media[b : b + 1], "text_input": text}
            with torch.no_grad():
                torch.testing.assert_close(found.logits[b, t], model(pair)[0], rtol=1e-3, atol=1e-4)
                cosine = model(pair, match_head="itc")[0, 0]
            torch.testing.assert_close(cosines[b, t], cosine, rtol=1e-3, atol=1e-4)


def test_an_image_is_encoded_once_for_all_texts(monkeypatch):
    model, seen = random_model("blip2"), []
    whole = model.visual_encoder.forward
    monkeypatch.setattr(model.visual_encoder, "forward", lambda x: (seen.append(len(x)), whole(x))[1])
    model.match_texts(images(3), [f"text number {i}" for i in range(300)])
    assert seen == [3]


# ------------------------------------------------------------------------------------------ commands' ways
def test_cosines_are_the_largest_of_the_queries(encoder):
    media = images(3)
    vectors, texts = encoder.all_vectors(media), encoder.texts(TEXTS)
    assert vectors.shape == (3, 8, 64) and encoder.queries == 8
    wanted = torch.einsum("bqe,ne->bnq", vectors, texts).amax(dim=2)
    _, cosines = encoder.match_all(media, TEXTS)
    torch.testing.assert_close(cosines, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(similarities(vectors, texts), wanted)
    # the mean's cosine is another number
    assert (similarities(encoder.images(media), texts) - wanted).abs().max() > 1e-3
    assert encoder.all_vectors([]).shape == (0, 8, 64)


def test_classes_are_compared_by_the_largest_of_the_queries(encoder):
    media, labels = images(2), ["red star", "blue ring", "heart"]
    templates = ["a picture of a {}", "there is a {}"]
    found = classify(encoder, media, labels, templates)
    mean = torch.stack([encoder.texts([t.format(n) for t in templates]).mean(dim=0) for n in labels])
    cosines = torch.einsum("bqe,le->blq", encoder.all_vectors(media), F.normalize(mean, dim=-1)).amax(dim=2)
    torch.testing.assert_close(found, (encoder.scale * cosines).softmax(dim=1), rtol=1e-3, atol=1e-4)
    by_head = classify(encoder, media, labels, head="itm")
    torch.testing.assert_close(by_head.sum(dim=1), torch.ones(2))


# ------------------------------------------------------------------------------------------ heat maps
def _states(model, patch: int) -> torch.Tensor:
    """Of an image in which all tokens but one patch are zero, and say nothing: (1, N, D)."""
    width, tokens = model.config.vit.width, model.visual_encoder.pos_embed.shape[1]
    states = torch.zeros(1, tokens, width)
    states[0, 1 + patch] = torch.randn(width, generator=torch.Generator().manual_seed(patch))
    for layer in model.Qformer.bert.encoder.layer:
        if layer.crosses:
            layer.crossattention.self.value.bias.data.zero_()
    return states


@pytest.mark.parametrize("patch", [0, 7, 29, 63])
def test_maps_show_the_only_patch_that_says_something(monkeypatch, patch):
    """Of 8 x 8, row by row, with every other patch at exactly zero."""
    model = random_model("blip2", seed=1)
    states = _states(model, patch)
    monkeypatch.setattr(model, "encode_image", lambda image: states)
    found = model.explain_text({"image": images(1)}, "a very small red star")
    assert found.words == ["a", "very", "small", "red", "star"] and found.maps.shape == (5, 8, 8)
    for heat in (*found.maps, found.whole):
        assert heat.flat[patch] > 0 and heat.sum() == heat.flat[patch]


def test_maps_of_all_layers_are_the_sum_of_each_layers():
    model, samples = random_model("blip2", seed=2), {"image": images(1)}
    whole = model.explain_text(samples, "a red star")
    first, second = (model.explain_text(samples, "a red star", layer) for layer in (0, 2))
    np.testing.assert_allclose(whole.maps, first.maps + second.maps, rtol=1e-4, atol=1e-8)
    assert first.maps.sum() > 0 and second.maps.sum() > 0 and not np.allclose(first.maps, second.maps)
    assert not np.allclose(
        whole.maps[1] / whole.maps[1].sum(), whole.maps[2] / whole.maps[2].sum(), rtol=1e-2
    )
    with torch.no_grad():
        logit = model.match_logits(
            model.tokens(["a red star"]), model.memorize(model.encode_image(images(1)))
        )
    assert whole.score == pytest.approx(float(logit[0, 1]), rel=1e-4)
    # a layer whose cross-attention adds nothing has no share
    value = model.Qformer.bert.encoder.layer[2].crossattention.self.value
    value.weight.data.zero_()
    value.bias.data.zero_()
    assert model.explain_text(samples, "a red star", 2).maps.sum() == 0
    for wrong in (1, 3, 4):
        with pytest.raises(ValueError, match=rf"layer {wrong} does not read the image; choose one of 0, 2"):
            model.explain_text(samples, "a red star", wrong)


def test_a_words_map_is_that_of_the_word_by_itself():
    """At its place, whatever stands beside it; and the score is the whole text's."""
    model, samples = random_model("blip2", seed=3), {"image": images(1)}
    first, second = (model.explain_text(samples, text) for text in ("a red star", "a red ring"))
    np.testing.assert_allclose(first.maps[:2], second.maps[:2], rtol=1e-4, atol=1e-9)
    assert not np.allclose(first.maps[2], second.maps[2], rtol=1e-2)
    memory = model.memorize(model.encode_image(images(1)).detach())
    tokens = model.tokens(["red"])
    layers = [layer.crossattention for layer in model.Qformer.bert.encoder.layer if layer.crosses]
    maps, _ = gradcam(layers, lambda: model.match_logits(tokens, memory)[:, 1])
    alone = model.explain_text(samples, "red")
    summed = sum(each[0].sum(dim=0) for each in maps)[1:].view(8, 8)
    np.testing.assert_allclose(alone.maps[0], summed.numpy(), rtol=1e-4, atol=1e-9)


def test_without_a_text_the_own_caption_is_explained(monkeypatch):
    model, samples = random_model("blip2"), {"image": images(1)}
    caption = model.generate(samples)[0]
    for nothing in (None, " "):
        found = model.explain_text(samples, nothing)
        assert found.text == caption and found.words == caption.split()[: len(found.words)]
    given = model.explain_text(samples, caption)
    np.testing.assert_allclose(found.maps, given.maps, rtol=1e-4, atol=1e-8)
    with pytest.raises(ValueError, match="no word to explain"):
        monkeypatch.setattr(model, "generate", lambda *a, **k: Texts([""], [0.0], [0.0]))
        model.explain_text(samples, None)


COLOURS = ("red", "green", "blue", "yellow")


def _coloured(count: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States of images of 8 x 8 patches, two of which have a colour: (count, 65, 128), the two colours and places."""
    fixed = torch.Generator().manual_seed(5)
    rgb = torch.tensor([[1.0, -1, -1, 1], [-1, 1, -1, 1], [-1, -1, 1, 1], [1, 1, -1, 1]])
    codes, places = rgb @ torch.randn(4, 128, generator=fixed), 0.3 * torch.randn(65, 128, generator=fixed)
    which = torch.rand(count, 4, generator=rng).argsort(dim=1)[:, :2]
    where = torch.rand(count, 64, generator=rng).argsort(dim=1)[:, :2]
    states = places + 0.1 * torch.randn(count, 65, 128, generator=rng)
    states[torch.arange(count)[:, None], 1 + where] += codes[which]
    return F.layer_norm(states, (128,)), which, where


def test_after_a_short_training_maps_point_at_the_patch_that_is_named(monkeypatch):
    """The Q-Former learns whether two colours are both there. Then each colour's map peaks at its patch (by chance in
    1.6 % of the images; with four seeds in 54 to 78 %), and more seldom at that of the other one that is named."""
    torch.manual_seed(3)
    text = {"dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.09}
    model = build_model({"arch": "blip2", "model_type": "tiny", "weights": "none", "text": text}).train()
    torch.nn.init.normal_(model.query_tokens)
    trained = [p for name, p in model.named_parameters() if not name.startswith("visual")]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98))
    rng, fits = torch.Generator().manual_seed(1), torch.tensor([1, 1, 0, 0] * 8)

    def said(first: int, second: int) -> str:
        return f"a {COLOURS[first]} and a {COLOURS[second]} square"

    for step in range(250):
        states, which, _ = _coloured(8, rng)
        texts = []
        for a, b in which.tolist():
            c, d = (colour for colour in range(4) if colour not in (a, b))
            texts += [said(a, b), said(b, a), said(a, c), said(d, b)]
        loss = F.cross_entropy(model.match_logits(model.tokens(texts), model.memorize(states)), fits)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 30) * (1 - step / 250)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    model.eval()
    assert float(loss.detach()) < 0.1
    states, which, where = _coloured(40, rng)
    own = other = 0
    for i in range(40):
        monkeypatch.setattr(model, "encode_image", lambda image, i=i: states[i : i + 1])
        found = model.explain_text({"image": images(1)}, said(*which[i].tolist()))
        for word, mine in ((1, 0), (4, 1)):
            peak = int(found.maps[word].argmax())
            own, other = own + int(peak == where[i, mine]), other + int(peak == where[i, 1 - mine])
    assert own > 40 and other < own / 2, (own, other)


# ------------------------------------------------------------------------------------------ as a user
@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of a model, so that every command has the same weights."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    random_model("blip2").save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys) -> Callable[..., list[dict[str, Any]]]:
    """The command in this process: its rows."""

    def call(*arguments: Any) -> list[dict[str, Any]]:
        code = main([*map(str, arguments), "--device", "cpu"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return call


DRAWINGS = [EXAMPLES / f"drawing_{i:02d}.png" for i in range(4)]


def test_commands_agree(run, saved, tmp_path):
    encoder = Encoder(load(str(saved), device="cpu"))
    media = [Image.open(p).convert("RGB") for p in DRAWINGS]
    vectors, text = encoder.all_vectors(media), encoder.texts(["a red star"])
    largest = similarities(vectors, text)[:, 0].tolist()

    rows = run("match", *DRAWINGS, "--text", "a red star", "--model", saved)
    assert [r["cosine"] for r in rows] == pytest.approx(largest, abs=1e-4)
    chances, _ = encoder.match_all(media, ["a red star"])
    assert [r["match"] for r in rows] == pytest.approx(chances[:, 0].tolist(), abs=1e-4)

    (made,) = run("index", *DRAWINGS, "--to", tmp_path / "index", "--model", saved)
    assert made["added"] == 4
    found = run("search", tmp_path / "index", "a red star", "-k", 4)
    by_path = dict(zip(map(str, DRAWINGS), largest, strict=True))
    assert [r["score"] for r in found] == pytest.approx([by_path[r["image"]] for r in found], abs=1e-3)
    assert [r["score"] for r in found] == sorted((r["score"] for r in found), reverse=True)
    ranked = run("search", tmp_path / "index", "a red star", "-k", 4, "--rerank", 2)
    assert ["match" in r for r in ranked] == [True, True, False, False]

    for mode, wanted in (("queries", vectors), ("image", encoder.images(media))):
        (done,) = run("features", *DRAWINGS, "--mode", mode, "--out", tmp_path / mode, "--model", saved)
        assert (done["rows"], done["width"]) == (4, 64)
        stored = np.load(tmp_path / mode / "shard-00000.npy")
        np.testing.assert_allclose(stored, wanted.numpy(), rtol=0, atol=1e-4)

    labels = ["red star", "blue ring"]
    rows = run("classify", *DRAWINGS, "--labels", ",".join(labels), "--model", saved)
    wanted = classify(encoder, media, labels)
    for row, chances in zip(rows, wanted.tolist(), strict=True):
        assert dict(zip(row["labels"], row["probabilities"], strict=True)) == pytest.approx(
            dict(zip(labels, chances, strict=True)), abs=1e-4
        )

    (row,) = run(
        "explain", DRAWINGS[0], "a red star", "--json", "--out", tmp_path / "e.png", "--model", saved
    )
    assert row["words"] == ["a", "red", "star"] and np.asarray(row["maps"]).shape == (3, 8, 8)
    with Image.open(tmp_path / "e.png") as sheet:
        assert sheet.width > sheet.height / 4
    (row,) = run("caption", DRAWINGS[0], "--model", saved)
    assert row["caption"] == encoder.loaded.model.generate({"image": encoder._batch(media[:1])})[0]


def test_queries_go_into_every_format(run, saved, tmp_path):
    import pyarrow.parquet as pq

    for format in ("npy", "safetensors", "parquet"):
        out = tmp_path / format
        run(
            "features",
            *DRAWINGS,
            "--mode",
            "queries",
            "--format",
            format,
            "--out",
            out,
            "--model",
            saved,
            "--half",
        )
    wanted = np.load(tmp_path / "npy" / "shard-00000.npy")
    assert wanted.shape == (4, 8, 64) and wanted.dtype == np.float16
    assert np.array_equal(load_file(tmp_path / "safetensors" / "shard-00000.safetensors")["features"], wanted)
    table = pq.read_table(tmp_path / "parquet" / "shard-00000.parquet")
    assert np.array_equal(np.asarray(table["features"].to_pylist(), dtype=np.float16), wanted)


def test_plain_models_have_no_queries(tmp_path):
    plain = Encoder(load("blip_retrieval/tiny", device="cpu"))
    with pytest.raises(
        ValueError, match="blip_retrieval/tiny can't give several vectors of an image; it can"
    ):
        extract(plain, [Item(DRAWINGS[0])], tmp_path / "out", "queries")


def test_pages_of_the_demo_run_these_models(saved, tmp_path):
    loaded = load(str(saved), device="cpu")
    image = Image.open(DRAWINGS[0]).convert("RGB")
    for name in ("matching", "search", "localization"):
        page = registry.get_page_class(name)
        assert page.can_use(type(loaded.model))
        assert "blip2/coco" in [choice.spec for choice in choices(page)]
        assert str(saved) in [choice.spec for choice in choices(page, [str(saved)])]
    rows = registry.get_page_class("matching")(Settings(tmp_path)).run(loaded, image, ("a star", "a ring"))
    assert {row.text for row in rows} == {"a star", "a ring"} and all("cosine" in row.note for row in rows)
    found = registry.get_page_class("search")(Settings(tmp_path)).run(loaded, "a star", count=3, reranked=5)
    assert len(found) == 3 and all("match" in shown.note for shown in found)
    maps = registry.get_page_class("localization")(Settings(tmp_path)).run(loaded, image, "a red star")
    assert [word for word, _ in maps] == ["all words", "a", "red", "star"]
