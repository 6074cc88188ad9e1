"""Retrieval with BLIP-2's first stage: scores of a gallery, fine-tuning, recipes."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes.layouts import export_pictures
from lavis.models import build_model, gallery, load_model, reranking
from lavis.models.blip2 import Blip2Qformer
from lavis.models.configs import override
from lavis.nn.language_model import LanguageModel
from lavis.nn.losses import similarities
from lavis.runners import evaluate, train
from tests.golden import Gallery
from tests.helpers import blip2_reference as reference
from tests.helpers.blip2_reference import INPUTS, images
from tests.ranks import on_ranks
from tests.small import images as noise
from tests.small import random_model
from tests.test_recipes import ELSEWHERE, data_of, model_of

TEXTS = ["a red star", "two large blue squares above a ring", "a green heart", "one"]


@pytest.mark.parametrize("name", ["blip2", "blip2_image_text_matching"])
def test_scores_equal_the_originals(tmp_path, name):
    described = reference.manifest("qformer")
    model = reference.build(described, reference.write(described, tmp_path / "model.pth"), name)
    wanted = reference.outputs("qformer")
    found = model.compute_sim_matrix(
        Gallery(images(), [*INPUTS["texts"], *INPUTS["same"]]), task_cfg={"k_test": 2}
    )
    for key, scores in zip(("score_i2t", "score_t2i"), found, strict=True):
        np.testing.assert_array_equal(scores == -100, wanted[key] == -100)
        np.testing.assert_allclose(scores, wanted[key], rtol=2e-5, atol=2e-5)


def test_clips_image_encoder_is_used_alike(tmp_path):
    """Every pair is scored with k_test as large as the gallery; maps leave its class token out."""
    described = reference.manifest("clip_l")
    model = reference.build(described, reference.write(described, tmp_path / "model.pth"))
    texts = [*INPUTS["texts"], *INPUTS["same"]]
    i2t, t2i = model.compute_sim_matrix(Gallery(images(), texts), task_cfg={"k_test": 9})
    np.testing.assert_array_equal(t2i, i2t.T)
    states = model.encode_image(images()).detach()
    for i in range(2):
        for t, text in enumerate(texts):
            tokens = model.tokenizer(text, return_tensors="pt", max_length=35, truncation=True)
            fits = model.compute_itm(states[i : i + 1], tokens.input_ids, tokens.attention_mask)
            cosine = similarities(model.embed_queries(images()[i : i + 1]), model.embed_texts([text]))
            assert i2t[i, t] == pytest.approx(float(fits + cosine), abs=1e-4)
    assert model.explain_text({"image": images(1)}, texts[0]).whole.shape == (4, 4)


@pytest.mark.parametrize("k_test", [1, 2, 16])
def test_scores_equal_the_plain_way(k_test):
    model = random_model("blip2_image_text_matching", max_txt_len=35)
    media, texts = noise(4, seed=3), [*TEXTS, "a very " + "very " * 60 + "long text", "a"]
    found = model.compute_sim_matrix(Gallery(media, texts), {"k_test": k_test})
    sims, fits = torch.zeros(4, len(texts)), torch.zeros(4, len(texts))
    for i in range(4):
        for t, text in enumerate(texts):
            one = {"image": media[i : i + 1], "text_input": [text]}
            with torch.no_grad():
                sims[i, t] = model(one, match_head="itc")
                fits[i, t] = model(one)[0, 1]
    for scores, plain, total in zip(found, (sims, sims.T), (sims + fits, (sims + fits).T), strict=True):
        chosen = torch.zeros_like(plain, dtype=torch.bool)
        chosen.scatter_(1, plain.topk(min(k_test, plain.shape[1]), dim=1).indices, True)
        expected = torch.where(chosen, total, torch.tensor(-100.0))
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_two_ranks_give_the_scores_of_one():
    model, loader = random_model("blip2"), Gallery(noise(5, seed=2), TEXTS)
    alone = model.compute_sim_matrix(loader, {"k_test": 2})
    for part in on_ranks(
        2, lambda rank: [m.tolist() for m in model.compute_sim_matrix(loader, {"k_test": 2})]
    ):
        for found, wanted in zip(part, alone, strict=True):
            np.testing.assert_array_equal(np.asarray(found, dtype=np.float32), wanted)


def test_candidates_of_several_images_are_matched_together(monkeypatch):
    """As on a GPU: some images have more candidates than others, one has none."""
    model = random_model("blip2")
    texts, _ = reranking.encode_texts(model, [f"{'very ' * (i % 5)}odd thing number {i}" for i in range(9)])
    which = [torch.tensor(w, dtype=torch.long) for w in ([3, 1, 8], list(range(9)), [], [6])]
    monkeypatch.setattr(reranking, "rows_at_once", lambda device: 6)
    with torch.no_grad():
        embeds = model.encode_image(noise(4))
        together = reranking.match_all(model, embeds, texts, which)
        for b, found in enumerate(together):
            (alone,) = reranking.match_all(model, embeds[b : b + 1], texts, which[b : b + 1])
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_products_of_several_vectors_are_the_largest_whatever_comes_at_once(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    vectors, texts = torch.randn(7, 3, 5, generator=rng), torch.randn(4, 5, generator=rng)
    wanted = torch.stack([(v @ texts.T).amax(dim=0) for v in vectors])
    torch.testing.assert_close(similarities(vectors, texts), wanted)
    for most in (1, 25, 10_000):
        monkeypatch.setattr(gallery, "PRODUCTS_AT_ONCE", most)
        torch.testing.assert_close(gallery.products(vectors, texts), wanted)


def test_models_without_a_matrix_of_their_own_are_compared_by_the_largest():
    model, loader = random_model("blip2"), Gallery(noise(4, seed=6), TEXTS)
    i2t, t2i = gallery.cosine_matrix(model, loader)
    wanted = similarities(model.embed_queries(noise(4, seed=6)), model.embed_texts(TEXTS))
    np.testing.assert_allclose(i2t, wanted.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(t2i, i2t.T)


# ------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("trained", [True, False])
def test_parameter_groups_are_the_originals(tmp_path, trained):
    """Layer-wise decay of an image encoder that is trained; a frozen one is in no group."""
    described = reference.manifest("qformer")
    path = reference.write(described, tmp_path / "model.pth")
    parts = {"visual_encoder": {"frozen": not trained}}
    cfg = {"arch": "blip2", "model_type": "pretrain", "weights": str(path), "parts": parts}
    model = build_model({**cfg, **reference.sizes_of(described)})
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: [group.get("lr_scale", 1), group["weight_decay"]]
        for group in model.get_optimizer_params(0.05, lr_scale=0.9)
        for p in group["params"]
    }
    wanted = json.loads((reference.REFERENCE / "parameter_groups.json").read_text())
    # EVA's biases of queries and values are one tensor here, with the keys' between them
    wanted = {re.sub(r"attn\.[qv]_bias$", "attn.qkv.bias", name): row for name, row in wanted.items()}
    if not trained:
        wanted = {name: row for name, row in wanted.items() if not name.startswith("visual_encoder.")}
    assert found.keys() == wanted.keys()
    for name, row in wanted.items():
        assert found[name] == pytest.approx(row), name


def test_two_ranks_train_as_one():
    """A pair on each of two ranks: its negatives can only be the other's. The losses' means, and gradients, are those
    of both pairs on one."""
    media, texts = noise(2, seed=4), TEXTS[:2]

    def losses(rows: slice) -> dict[str, Any]:
        model = random_model("blip2")
        out = model({"image": media[rows], "text_input": texts[rows]})
        out.loss.backward()
        gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
        return {**{n: float(out[n].detach()) for n in ("loss_itc", "loss_itm", "loss_lm")}, **gradients}

    alone = losses(slice(0, 2))
    parts = on_ranks(2, lambda rank: losses(slice(rank, rank + 1)))
    assert len(alone) > 100
    for name, wanted in alone.items():
        mean = sum(torch.as_tensor(part[name]) for part in parts) / 2
        torch.testing.assert_close(mean, torch.as_tensor(wanted), rtol=1e-3, atol=1e-4, msg=name)


def test_retrieval_is_fine_tuned_with_image_ids_and_accumulated_gradients(tmp_path):
    """By the public runner: all captions of an image belong to it, and each half of a step has negatives."""
    plain = {p: {"name": "blip_image_eval", "image_size": 64} for p in ("train", "eval")}
    seen = []
    forward = Blip2Qformer.forward

    def watched(self, samples):
        seen.append(torch.as_tensor(samples["image_id"]).tolist())
        return forward(self, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blip2Qformer, "forward", watched)
        result = train(
            {
                "model": {"arch": "blip2", "model_type": "tiny", "weights": "none"},
                "datasets": {
                    "shapes_retrieval": {"n_train": 16, "n_val": 6, "n_test": 6, "vis_processor": plain}
                },
                "run": {
                    "task": "retrieval", "max_iters": 4, "batch_size_train": 4, "batch_size_eval": 3,
                    "accum_grad_iters": 2, "init_lr": 1e-4, "k_test": 2, "lr_layer_decay": 0.9,
                    "train_splits": ["train"], "valid_splits": ["val"], "test_splits": ["test"],
                    "output_dir": str(tmp_path), "job_id": "job", "device": "cpu",
                },
            }
        )  # fmt: skip
    assert result.stopped == "finished" and all(len(ids) == 4 for ids in seen) and len(seen) >= 4
    assert {"txt_r1", "img_r1", "r_mean"} <= result.metrics["test"].keys()
    saved = load_model(str(tmp_path / "job" / "checkpoint_last"), is_eval=True)
    assert isinstance(saved, Blip2Qformer)


@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "weights"])
def test_scores_in_bfloat16_are_near(whole):
    model, loader = random_model("blip2"), Gallery(noise(3), TEXTS)
    single = model.compute_sim_matrix(loader, {"k_test": 3})
    if whole:
        model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not whole):
        half = model.compute_sim_matrix(loader, {"k_test": 3})
    for a, b in zip(single, half, strict=True):
        both = (a > -100) & (b > -100)
        assert b.dtype == np.float32 and not np.array_equal(a, b)
        assert both.sum() >= 0.7 * (a > -100).sum()
        assert np.abs(a - b)[both].max() < 0.05 * np.abs(a[both]).max()


# ------------------------------------------------------------------------------------------ recipes
ORIGINALS: dict[str, Any] = json.loads((reference.REFERENCE / "recipes.json").read_text())
OURS = {
    "blip2/eval/ret_coco_eval.yaml": "blip2/retrieval_coco_eval",
    "blip2/eval/ret_flickr_eval.yaml": "blip2/retrieval_flickr_eval",
    "blip2/train/retrieval_coco_ft.yaml": "blip2/retrieval_coco",
    "blip2/train/pretrain_stage1.yaml": "blip2/pretrain_stage1",
}


@pytest.mark.parametrize("original", OURS)
def test_settings_are_those_of_the_original(original):
    theirs, ours = Config.from_dict(ORIGINALS[original]), Config.load(OURS[original])
    (*found, (weights, _), sizes, parts), wanted = model_of(ours), model_of(theirs)
    # what the Q-Former starts from is no key there
    assert (*found, weights, sizes, parts) == (*wanted[:2], wanted[2][0], *wanted[3:])
    assert list(ours.datasets) == list(theirs.datasets)
    for name in theirs.datasets:
        assert data_of(ours, name, theirs.run.evaluate) == data_of(theirs, name, theirs.run.evaluate)
    found, wanted = (
        {**dataclasses.asdict(c.run), **dataclasses.asdict(c.task_config)} for c in (ours, theirs)
    )
    evaluates = theirs.run.evaluate
    ignored = ELSEWHERE | ({"batch_size_train", "train_splits", "valid_splits"} if evaluates else set())
    for settings in (found, wanted):
        for key in ignored:
            settings.pop(key, None)
    assert found == wanted
    assert ours.run.mixed_precision == theirs.run.mixed_precision or evaluates


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A cache root with a few records of the data sets that the recipes name."""
    root = tmp_path_factory.mktemp("cache")
    kinds = {
        "coco_caption": "shapes_caption",
        "coco_retrieval": "shapes_retrieval",
        "flickr30k": "shapes_retrieval",
    }
    for name, shapes in kinds.items():
        for split, dataset in load_dataset(shapes, n_train=6, n_val=3, n_test=3).items():
            if split in ("train", "val", "test"):
                export_pictures(dataset, name, root)
    (root / "vg/images/VG_100K").mkdir(parents=True)
    Image.new("RGB", (40, 50), "red").save(root / "vg/images/VG_100K/2.jpg")
    (root / "vg/annotations").mkdir()
    records = [{"image": "VG_100K/2.jpg", "caption": text} for text in ("a man", "a red door")]
    (root / "vg/annotations/vg_caption.json").write_text(json.dumps(records))
    return root


THIN = {"width": 32, "heads": 2, "depth": 1}
SMALL = {"vit": THIN, "text": {**THIN, "depth": 2, "hidden": 32, "memory_width": 32}}


@pytest.mark.slow
@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "as they are"])
@pytest.mark.parametrize("original", OURS)
def test_recipes_start(tmp_path, monkeypatch, root, original, by_name):
    """On data in their published layouts: trained for an epoch, or evaluated. Only sizes and weights differ."""
    name: Any = OURS[original]
    if not by_name:
        name = tmp_path / "recipe.yaml"
        name.write_text(OmegaConf.to_yaml(OmegaConf.create(ORIGINALS[original])))
    monkeypatch.setenv("LAVIS_CACHE", str(root))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    wanted = Config.load(name)
    cls = registry.get_model_class("blip2")
    model = cls.build(override(cls.preset(wanted.model["model_type"]).config, SMALL, "model"))
    model.reset_parameters()
    model.model_type = wanted.model["model_type"]
    model.save_pretrained(tmp_path / "model", whole=True)
    options: dict[str, Any] = {
        "run.device": "cpu", "run.num_workers": 0, "run.batch_size_eval": 2,
        "run.batch_size_train": 2, "run.output_dir": tmp_path / "runs", "run.job_id": "job",
        **{f"model.{part}.{key}": size for part, sizes in SMALL.items() for key, size in sizes.items()},
    }  # fmt: skip
    sources = ["weights"]
    if wanted.model.get("weights") == "none":  # an image encoder, and what the Q-Former starts from
        sources = ["parts.visual_encoder.source", "init.Qformer"]
    options |= {f"model.{source}": tmp_path / "model" for source in sources}
    if wanted.run.evaluate:
        metrics = evaluate(name, options=[f"{key}={value}" for key, value in options.items()])
        assert "r_mean" in metrics["test"]
        return
    options["run.max_epoch"] = 1
    result = train(name, options=[f"{key}={value}" for key, value in options.items()])
    assert result.stopped == "finished" and result.iterations >= 1


def test_a_q_former_starts_as_bert(tmp_path):
    """The queries' feed-forward parts as those of text, cross-attention fresh, one token more."""
    model = random_model("blip2")
    config = model.config.text
    bert = LanguageModel(
        dataclasses.replace(config, vocab_size=config.vocab_size - 1, cross_from=config.depth)
    )
    bert.reset_parameters()
    bert.tie_weights()
    save_file({k: t.clone() for k, t in bert.state_dict().items()}, tmp_path / "bert.safetensors")
    before = model.Qformer.bert.encoder.layer[0].crossattention.self.key.weight.clone()
    model.start_from({"Qformer": str(tmp_path / "bert.safetensors")})
    layer, theirs = model.Qformer.bert.encoder.layer[1], bert.bert.encoder.layer[1]
    for part in (layer.intermediate, layer.intermediate_query):
        assert torch.equal(part.dense.weight, theirs.intermediate.dense.weight)
    assert torch.equal(layer.output_query.LayerNorm.weight, theirs.output.LayerNorm.weight)
    assert torch.equal(model.Qformer.bert.encoder.layer[0].crossattention.self.key.weight, before)
    words = model.Qformer.bert.embeddings.word_embeddings.weight
    assert torch.equal(words[:-1], bert.bert.embeddings.word_embeddings.weight)
    assert model.Qformer.cls.predictions.decoder.weight is words
