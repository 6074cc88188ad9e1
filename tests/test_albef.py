"""ALBEF on tiny models: batches equal singles, groups equal copies, twins teach and nothing else moves them,
files of the original's kinds load as the original loads them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.models import load_model
from lavis.models.albef import AlbefFeatureExtractor, AlbefPretrain, AlbefRetrieval
from lavis.models.albef_reasoning import AlbefClassification, AlbefNLVR
from lavis.models.albef_vqa import AlbefVQA
from lavis.models.checkpoints import apply_rules
from lavis.nn.losses import (
    IGNORE,
    distilled_language_modelling_loss,
    language_modelling_loss,
    mask_tokens,
    masked_language_modelling_loss,
)
from lavis.nn.text import TextConfig
from lavis.nn.vit import ViTConfig
from tests import golden
from tests.golden import Gallery
from tests.small import images, random_model

TEXTS = [
    "a red circle",
    "two large striped blue stars above a ring",
    "a cat",
    "three green hearts and a cross",
    "a small yellow square",
    "no shapes at all",
    "a ring left of a star",
    "five black triangles",
]
ANSWERS = ["red", "two", "yes", "no", "green circle", "three", "a large striped star", "blue"]
CLASSES = [AlbefFeatureExtractor, AlbefRetrieval, AlbefPretrain, AlbefVQA, AlbefClassification, AlbefNLVR]
# in the third epoch the twins' opinion has its full weight in every model
STEP = {"epoch": 2, "iters": 0, "num_iters_per_epoch": 10}


def samples(name, count=4, groups=1, **more):
    """A training batch for a model: `count` pictures (or pairs) with `groups` texts each."""
    rows = count * groups
    out = {"image": images(count), "text_input": TEXTS[:rows], **STEP}
    if name == "albef_retrieval":
        out["image_id"] = torch.arange(count)
    elif name == "albef_vqa":
        counts = [1 + i % 2 for i in range(rows)]
        out["n_answers"] = torch.tensor(counts)
        out["answer"] = [ANSWERS[i % 8] for i in range(sum(counts))]
        out["weight"] = torch.linspace(0.3, 1.0, sum(counts))
    elif name == "albef_classification":
        out["label"] = [i % 3 for i in range(rows)]
    elif name == "albef_nlvr":
        out["image0"], out["image1"] = out.pop("image"), images(count, seed=1)
        out["label"] = [i % 2 for i in range(rows)]
    return {**out, **more}


TRAINED = ["albef_retrieval", "albef_pretrain", "albef_vqa", "albef_classification", "albef_nlvr"]
PREDICTING = {
    "albef_vqa": lambda m, s: torch.tensor(m.predict_answers(s, ANSWERS, 3, return_scores=True).logprobs),
    "albef_classification": lambda m, s: m.predict(s)["predictions"],
    "albef_nlvr": lambda m, s: m.predict(s)["predictions"],
}


def cut(batch, rows, texts):
    """Some pictures of a batch, with their texts."""
    pictures = {k: v[rows] for k, v in batch.items() if k.startswith("image")}
    return {**pictures, "text_input": batch["text_input"][texts]}


# ------------------------------------------------------------------------------ batches and groups


@pytest.mark.parametrize("name", PREDICTING)
def test_a_batch_gives_what_singles_and_copies_give(name):
    model, predict = random_model(name), PREDICTING[name]
    batch = samples(name, count=3, groups=2)
    together = predict(model, batch)
    assert len(together) == 6
    for i in range(3):
        alone = predict(model, cut(batch, slice(i, i + 1), slice(2 * i, 2 * i + 2)))
        torch.testing.assert_close(alone, together[2 * i : 2 * i + 2], rtol=1e-4, atol=1e-4)
    copies = {k: v.repeat_interleave(2, dim=0) if k.startswith("image") else v for k, v in batch.items()}
    torch.testing.assert_close(predict(model, copies), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PREDICTING)
def test_groups_train_as_copies_do(name):
    losses, gradients = [], []
    for copied in (False, True):
        model = random_model(name)
        batch = samples(name, count=2, groups=2)
        if copied:
            batch = {
                k: v.repeat_interleave(2, dim=0) if k.startswith("image") else v for k, v in batch.items()
            }
        loss = model(batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


def test_features_do_not_depend_on_the_batch():
    model = random_model("albef_feature_extractor")
    image = images(3)
    batch = {"image": image, "text_input": TEXTS[:6]}
    found = model.extract_features(batch)
    assert found.keys() == [
        "image_embeds", "image_embeds_proj", "text_embeds", "text_embeds_proj", "multimodal_embeds",
    ]  # fmt: skip
    for i, text in enumerate(TEXTS[:6]):
        alone = model.extract_features({"image": image[i // 2 : i // 2 + 1], "text_input": text})
        length = alone.text_embeds.shape[1]
        for key, value in alone.items():
            row = (
                found[key][i // 2 : i // 2 + 1] if key.startswith("image") else found[key][i : i + 1, :length]
            )
            torch.testing.assert_close(value, row, rtol=1e-4, atol=1e-4)
    for key in ("image_embeds_proj", "text_embeds_proj"):
        torch.testing.assert_close(found[key].norm(dim=-1), torch.ones(found[key].shape[:2]))
    image_only = model.extract_features({"image": image}, mode="image")
    assert image_only.keys() == ["image_embeds", "image_embeds_proj"]
    both = model.extract_features(batch, mode=["image", "text"])
    assert both.keys() == ["image_embeds", "image_embeds_proj", "text_embeds", "text_embeds_proj"]
    torch.testing.assert_close(both.text_embeds_proj, found.text_embeds_proj)
    torch.testing.assert_close(image_only.image_embeds, found.image_embeds)
    with pytest.raises(ValueError, match="image, text or multimodal"):
        model.extract_features(batch, mode="images")


def test_a_long_text_is_read_whole_by_the_feature_extractor_only():
    text = " ".join(["a red circle"] * 12)
    extractor, retrieval = random_model("albef_feature_extractor"), random_model("albef_retrieval")
    length = len(extractor.tokenizer.encode(text))
    assert length > 30
    assert extractor.extract_features({"text_input": text}, mode="text").text_embeds.shape[1] == length
    out = retrieval(samples("albef_retrieval", count=2, text_input=[text, "a cat"]))
    assert out.intermediate_output.text_embeds.shape[1] == 30


def test_gallery_scores_are_those_of_each_pair():
    model = random_model("albef_retrieval")
    image, texts = images(3), TEXTS[:4]
    found, back = model.compute_sim_matrix(Gallery(image, texts), {"k_test": 10})
    np.testing.assert_array_equal(found, back.T)
    features = random_model("albef_feature_extractor")  # the same weights, where both have them
    features.load_state_dict(
        {
            k: v
            for k, v in {**features.state_dict(), **_as_language_model(model.state_dict())}.items()
            if k in features.state_dict()
        }
    )
    for i in range(3):
        for j, text in enumerate(texts):
            pair = features.extract_features({"image": image[i : i + 1], "text_input": text})
            match = model.itm_head(pair.multimodal_embeds[:, 0])[0, 1]
            similarity = (pair.image_embeds_proj[:, 0] * pair.text_embeds_proj[:, 0]).sum()
            assert found[i, j] == pytest.approx(float((match + similarity).detach()), abs=1e-4)


def _as_language_model(state):
    return {k.replace("text_encoder.", "text_encoder.bert."): v for k, v in state.items()}


@pytest.mark.parametrize("name", ["albef_retrieval", "albef_pretrain"])
def test_a_texts_own_layers_run_once_per_text(name):
    """A matching step reads each text over a right and a wrong picture and each picture with a wrong text, all from
    the same text states."""
    model, rows = random_model(name), {}
    layers = model.bert().encoder.layer
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, args, out, i=i: rows.setdefault(i, []).append(len(out)))
    model(samples(name, count=4))
    masked = [4] if name == "albef_pretrain" else []  # tokens to guess are other texts
    assert rows[0] == rows[1] == [4, *masked]
    assert rows[2] == rows[3] == [8, 4, *masked]


# ------------------------------------------------------------------------------------------ twins


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_reaches_every_parameter_and_moves_the_twins(name):
    model = random_model(name).train()
    with torch.no_grad():
        for p in model.ema_pairs()[0][0].parameters():
            p += 0.01  # the online model has learned since the twins were made
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(samples(name)).loss.backward()
    for key, p in model.named_parameters():
        if "_m." in key:
            assert p.grad is None and not p.requires_grad, key
        else:
            assert p.grad is not None and bool(p.grad.isfinite().all()), key
            if ".self.key.bias" in key:  # softmax doesn't see what is added to all keys alike
                assert float(p.grad.abs().max()) < 1e-4, key
            else:
                assert float(p.grad.norm()) > 0, key
    after = model.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    twins = {k for k, p in model.named_parameters() if k.startswith("visual_encoder_m.")}
    assert twins <= changed
    if name in ("albef_retrieval", "albef_pretrain"):
        assert {"image_queue", "text_queue", "queue_ptr"} <= changed
    for key in changed:
        assert "_m." in key or "queue" in key, key
        if "_m." in key:
            online = before[key.replace("_m.", ".", 1)]
            torch.testing.assert_close(after[key], 0.995 * before[key] + 0.005 * online)


def test_predicting_moves_nothing():
    gallery = Gallery(images(3), TEXTS[:3])
    uses = {
        **PREDICTING,
        "albef_retrieval": lambda m, s: m.compute_sim_matrix(gallery, {"k_test": 2}),
        "albef_feature_extractor": lambda m, s: m.extract_features(s),
    }
    for name, use in uses.items():
        model = random_model(name).train()
        for p in model.parameters():
            if not p.requires_grad:
                p.data += 0.1  # or an update would change nothing
        before = {k: v.clone() for k, v in model.state_dict().items()}
        use(model, samples(name))
        assert model.training
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), (name, key)


@pytest.mark.parametrize("name", TRAINED)
def test_without_distillation_only_the_labels_teach(name, monkeypatch):
    monkeypatch.setattr("lavis.models.pair_losses.mask_tokens", _every_third)
    losses, state = {}, random_model(name).state_dict()
    for kind, config in {
        "off": {"use_distill": False}, "no weight": {"alpha": 0.0}, "early": {}, "full": {},
    }.items():  # fmt: skip
        model = random_model(name, **config)
        with torch.no_grad():
            for key, p in model.state_dict().items():
                p.copy_(state[key])
        for p in model.parameters():
            if not p.requires_grad:
                p.data *= 1.5  # twins of another opinion
        at = {"epoch": 0, "iters": 0} if kind == "early" else {}
        torch.manual_seed(0)
        losses[kind] = model(samples(name, **at)).loss.detach()
    if name not in ("albef_retrieval", "albef_pretrain"):
        assert not any("_m." in key for key in random_model(name, use_distill=False).state_dict())
    torch.testing.assert_close(losses["off"], losses["no weight"])
    torch.testing.assert_close(losses["off"], losses["early"])
    assert abs(losses["off"] - losses["full"]) > 1e-3


def _every_third(ids, *, chance, mask_id, never, vocab_size):
    chosen = (torch.arange(ids.shape[1]) % 3 == 1).expand(ids.shape) & (ids != never[0])
    return torch.where(chosen, mask_id, ids), ids.masked_fill(~chosen, IGNORE)


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("albef_vqa", 1),
        ("albef_classification", 1),
        ("albef_nlvr", 2),
        ("albef_retrieval", 2),
        ("albef_pretrain", 2),
    ],
)
def test_the_twins_weight_rises_over_the_first_epochs(name, epochs):
    model = random_model(name)
    at = {"iters": 5, "num_iters_per_epoch": 10}
    assert model.alpha({"epoch": 0, **at}) == pytest.approx(0.4 * 0.5 / epochs)
    assert model.alpha({"epoch": 3, **at}) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="samples need epoch, iters, num_iters_per_epoch"):
        model({k: v for k, v in samples(name).items() if k not in STEP})


def test_the_twins_opinion_of_answers():
    """(1 - alpha) smoothed loss + alpha cross entropy with the twins' predictions, over the same tokens."""
    model = random_model("albef_vqa", momentum=1.0)
    for p in model.parameters():
        if not p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    batch = samples("albef_vqa")
    with torch.no_grad():
        out = model(batch)
        inner = out.intermediate_output
        questions = model.tokenizer.batch(batch["text_input"], max_length=25)
        memory = model.text_encoder_m.project_memory(model.visual_encoder_m(batch["image"]))
        states = model.text_encoder_m(questions.ids, mask=questions.mask, memory=memory)
        expected = []
        row = 0
        for i, count in enumerate(batch["n_answers"].tolist()):
            for answer in batch["answer"][row : row + count]:
                ids = torch.tensor([model.tokenizer.encode(answer)])
                length = ids.shape[1]
                memory = model.text_decoder_m.project_memory(states[i : i + 1], questions.mask[i : i + 1])
                twin = model.text_decoder_m(ids, memory=memory)[0, :-1].softmax(-1)
                own = inner.decoder_output.logits[row : row + 1, :length]
                soft = -(own[0, :-1].log_softmax(-1) * twin).sum()
                hard = language_modelling_loss(own, ids, smoothing=0.1, per_text=True)[0]
                expected.append(0.6 * hard + 0.4 * soft)
                row += 1
    torch.testing.assert_close(inner.decoder_output.loss, torch.stack(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.loss, (batch["weight"] * torch.stack(expected)).sum() / 4)


def test_the_opinion_on_two_pictures_is_the_text_encoders_own():
    """As the checkpoints were trained: the text encoder's twin has no say."""
    first, second = random_model("albef_nlvr"), random_model("albef_nlvr")
    for p in second.text_encoder_m.parameters():
        p.data += 1.0
    torch.testing.assert_close(first(samples("albef_nlvr")).loss, second(samples("albef_nlvr")).loss)
    for name in ("visual_encoder_m", "cls_head_m"):
        other = random_model("albef_nlvr")
        for p in getattr(other, name).parameters():
            p.data += 0.3
        assert not torch.allclose(
            first(samples("albef_nlvr")).logits_m, other(samples("albef_nlvr")).logits_m
        )


# ----------------------------------------------------------------------------------- masked tokens


def test_masking_follows_bert():
    torch.manual_seed(0)
    ids = torch.randint(5, 1000, (400, 250))
    ids[:, 0], ids[:, 200:], ids[:, 199] = 2, 0, 3
    read, labels = mask_tokens(ids, chance=0.15, mask_id=4, never=(0, 2), vocab_size=1000)
    chosen = labels != IGNORE
    assert not bool(chosen[:, 0].any()) and not bool(chosen[:, 200:].any())
    assert bool(chosen[:, 199].any())  # [SEP] is a token as any other
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(read[~chosen], ids[~chosen])
    near = {"abs": 0.01}  # 80 000 tokens: 8 standard deviations
    assert float(chosen[:, 1:200].float().mean()) == pytest.approx(0.15, **near)
    masked, kept = (read == 4)[chosen].float(), (read == ids)[chosen].float()
    assert float(masked.mean()) == pytest.approx(0.8, abs=0.02)
    assert float(kept.mean()) == pytest.approx(0.1, abs=0.02)
    random = read[chosen & (read != 4) & (read != ids)]
    assert random.min() < 50 and random.max() > 950
    again = mask_tokens(ids, chance=0.15, mask_id=4, never=(0, 2), vocab_size=1000)
    assert not torch.equal(again[0], read)


def test_losses_with_a_twins_opinion():
    torch.manual_seed(0)
    logits, twin = torch.randn(5, 7), torch.randn(5, 7)
    labels = torch.tensor([0, 3, 6, 1, 1])
    target = 0.7 * F.one_hot(labels, 7) + 0.3 * twin.softmax(1)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(masked_language_modelling_loss(logits, twin, labels, 0.3), expected)
    nothing = masked_language_modelling_loss(logits[:0], twin[:0], labels[:0], 0.3)
    assert float(nothing) == 0.0  # a batch may have no token to guess
    logits, twin = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    labels = torch.tensor([[1, 2, 3, IGNORE], [1, 5, IGNORE, IGNORE]])
    each = -(logits.log_softmax(2) * twin.softmax(2)).sum(2)
    expected = torch.stack([each[0, 0] + each[0, 1], each[1, 0]])
    torch.testing.assert_close(distilled_language_modelling_loss(logits, twin, labels), expected)


# --------------------------------------------------------------------------------- files and presets

# As deep as the base models, so that entries have the same names, and otherwise as small as can be.
THIN = {
    "vit": ViTConfig(width=8, depth=12, heads=2, patch_size=16),
    "vocabulary": "tiny",
    "cover": True,
}
THIN_TEXT = TextConfig(
    vocab_size=1600, width=8, depth=12, heads=2, hidden=16, max_positions=16, memory_width=8, cross_from=6
)


def thin(cls, model_type, **config):
    preset = cls.PRESETS[model_type].config
    text = dataclasses.replace(THIN_TEXT, depth=preset.text.depth, memories=preset.text.memories)
    size = {"queue_size": 4, "embed_dim": 4} if hasattr(preset, "queue_size") else {}
    return dataclasses.replace(preset, text=text, **THIN, **size, **config)


@pytest.mark.parametrize(
    ("cls", "model_type"),
    [
        (AlbefFeatureExtractor, "base"),
        (AlbefRetrieval, "coco"),
        (AlbefVQA, "vqav2"),
        (AlbefClassification, "ve"),
        (AlbefNLVR, "nlvr"),
    ],
)
def test_pretrained_weights_arrive_where_the_original_puts_them(cls, model_type, tmp_path):
    with gzip.open(golden.REFERENCE / "golden" / "loader.json.gz", "rt") as f:
        stored = json.load(f)["cases"][f"{cls.registered_name}.{model_type} <- albef_pretrain.base"]
    source = AlbefPretrain.build(thin(AlbefPretrain, "base", image_size=32)).state_dict()
    names = list(golden.manifest("albef_pretrain.base")["state_dict"])
    assert set(source) == set(names)
    # every entry filled with its own number, tied ones too, as the stored case was made
    numbers = {key: float(i + 1) for i, key in enumerate(names) if "position_ids" not in key}
    file = {
        key: torch.full_like(source[key], numbers[key]) if key in numbers else source[key] for key in names
    }
    types = "text_encoder.bert.embeddings.token_type_embeddings.weight"  # in the file of ALBEF's authors only
    path = tmp_path / "pretrained.pth"
    torch.save({"model": {**file, types: torch.zeros(2, 8)}}, path)

    model = cls.from_file(thin(cls, model_type, image_size=48), path, cls.PRETRAINED_RULES)
    state = model.state_dict()
    for key, value in state.items():
        if "position_ids" in key:
            assert torch.equal(value, source["text_encoder.bert.embeddings.position_ids"])
        elif key not in stored["missing"]:
            origin = stored["loaded"].get(key, {}).get("from", key)
            torch.testing.assert_close(value, torch.full_like(value, numbers[origin]), msg=key)
        elif "_m." in key:  # new parts and their twins start alike
            assert torch.equal(value, state[key.replace("_m.", ".", 1)]), key
    if "idx_queue" in state:
        assert state["idx_queue"].tolist() == [[-100] * 4]
    given = apply_rules(file, state, cls.PRETRAINED_RULES, "file")
    assert {key for key in state if key not in given or key == "idx_queue"} == set(stored["missing"])
    # what the original reports as of no use is what the model has no entry for
    renamed = set()
    for key in names:
        for old, new in cls.PRETRAINED_RULES.rename:
            key = re.sub(old, new, key)
        renamed.add(key)
    assert renamed - set(state) == set(stored["unexpected"])


def test_a_text_encoder_pretrained_on_two_pictures_arrives_whole(tmp_path):
    """The file that the preset is fine-tuned from: 18 layers, the fine-tuned models' names, no twins, other heads."""
    source = AlbefNLVR.build(thin(AlbefNLVR, "nlvr", image_size=32))
    shared = {k: v for k, v in source.state_dict().items() if "_m." not in k and "cls_head" not in k}
    others = ("temp", "ta_head.weight", "vision_proj.weight", "text_proj.bias")
    more = {k: torch.zeros(3) for k in (*others, "text_encoder.embeddings.token_type_embeddings.weight")}
    torch.save({"model": {**shared, **more}}, tmp_path / "m.pth")
    config = thin(AlbefNLVR, "nlvr", image_size=32)
    state = AlbefNLVR.from_file(config, tmp_path / "m.pth", AlbefNLVR.PRETRAINED_RULES).state_dict()
    for key, value in shared.items():
        assert torch.equal(state[key], value), key
        twin = key.replace("encoder.", "encoder_m.", 1)
        assert torch.equal(state[twin], value), twin
    assert torch.equal(state["cls_head.0.weight"], state["cls_head_m.0.weight"])


PRESETS = [
    ("albef_feature_extractor", "base"),
    ("albef_retrieval", "coco"),
    ("albef_retrieval", "flickr"),
    ("albef_pretrain", "base"),
    ("albef_vqa", "vqav2"),
    ("albef_classification", "ve"),
    ("albef_nlvr", "nlvr"),
]


@pytest.mark.parametrize(("name", "model_type"), PRESETS)
def test_presets_equal_the_official_ones(name, model_type):
    manifest = golden.manifest(f"{name}.{model_type}")
    cls = registry.get_model_class(name)
    preset, config = cls.PRESETS[model_type], cls.PRESETS[model_type].config
    yaml, resolved = (manifest["config"][k] for k in ("yaml_model_section", "resolved_by_class"))
    model = cls.build(config, empty=True)
    entries = model.state_dict()
    assert set(entries) == set(manifest["state_dict"])
    for key, spec in manifest["state_dict"].items():
        assert list(entries[key].shape) == golden.model_shape(key, spec), key
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key, spec in manifest["state_dict"].items():
        if spec.get("tied_to"):
            assert parameters[key] is parameters[spec["tied_to"]], key
    bert, text = resolved["bert_config"], config.text
    assert (text.dropout, text.attention_dropout) == (
        bert["hidden_dropout_prob"], bert["attention_probs_dropout_prob"],
    )  # fmt: skip
    assert text.cross_from == bert["fusion_layer"] and text.init_std == bert["initializer_range"]
    assert (
        text.layer_norm_eps == bert["layer_norm_eps"]
        and text.max_positions == bert["max_position_embeddings"]
    )
    assert config.image_size == yaml["image_size"] and config.vit.drop_path == yaml.get(
        "vit_drop_path_rate", 0
    )
    assert config.grad_checkpointing == yaml["vit_ckpt_layer"] == 0
    assert (preset.weights, preset.pretrained) == (
        (yaml["finetuned"], yaml["pretrained"]) if "finetuned" in yaml else (yaml["pretrained"], None)
    )
    for ours, theirs in (
        ("max_txt_len", "max_txt_len"), ("momentum", "momentum"), ("alpha", "alpha"), ("use_distill", "use_distill"),
        ("queue_size", "queue_size"), ("mlm_mask_prob", "mlm_probability"),
    ):  # fmt: skip
        if theirs in resolved:
            assert getattr(config, ours) == resolved[theirs], ours
    for key in ("num_classes", "embed_dim"):
        if key in yaml:
            assert getattr(config, key) == yaml[key]
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps in (1e-6, 1e-12)
    assert model.visual_encoder.norm.eps == 1e-6
    model.model_type = model_type
    for kind, phases in manifest["config"]["preprocess"].items():
        for phase, cfg in phases.items():
            ours = model.preprocess_config()[kind][phase]
            if kind == "vis_processor":
                # the original trains albef_pretrain on pictures of 256 px, which its model of 224 px refuses
                size = config.image_size if name == "albef_pretrain" else cfg.get("image_size", 384)
                cfg = {**cfg, "image_size": size}
            assert cfg == ours


@pytest.mark.parametrize("name", [cls.registered_name for cls in CLASSES])
def test_saved_and_loaded_again_it_is_the_same(name, tmp_path):
    model = random_model(name)
    for key, p in model.named_parameters():
        if "_m." in key:
            p.data += 0.1
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert set(again.state_dict()) == set(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    tied = dict(model.named_parameters(remove_duplicate=False))
    for key, p in again.named_parameters(remove_duplicate=False):
        twins = [other for other, q in again.named_parameters(remove_duplicate=False) if q is p]
        assert twins == [other for other in tied if tied[other] is tied[key]]
    predicting = load_model(str(tmp_path), is_eval=True, for_training=False)
    assert not any("_m." in k or "queue" in k for k in predicting.state_dict())
    if not model.EMA:
        return
    with pytest.raises(ValueError, match="loaded for prediction"):
        predicting(samples(name))
    # training from a file without twins: they start as copies
    predicting.save_pretrained(tmp_path / "small")
    path = tmp_path / "small" / "model.safetensors"
    state = load_model(name, "tiny", checkpoint=path).state_dict()
    for key in state:
        if "_m." in key:
            assert torch.equal(state[key], state[key.replace("_m.", ".", 1)]), key


def test_of_tied_projections_the_later_one_wins(tmp_path):
    model = random_model("albef_nlvr")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (f"text_encoder.encoder.layer.{i}.crossattention.self.key.weight" for i in (2, 3))
    state[second] += 1
    torch.save(state, tmp_path / "m.pth")
    again = load_model("albef_nlvr", "tiny", checkpoint=tmp_path / "m.pth").state_dict()
    torch.testing.assert_close(again[first], state[second])
    torch.testing.assert_close(again[second], state[second])


def test_the_number_of_classes_is_the_files(tmp_path):
    model = random_model("albef_classification", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "five.pth")
    again = load_model("albef_classification", "tiny", checkpoint=tmp_path / "five.pth")
    assert again.config.num_classes == 5
    assert again.predict(samples("albef_classification"))["predictions"].shape == (4, 5)
    recipe = {"model_type": "tiny", "weights": str(tmp_path / "five.pth")}
    assert AlbefClassification.from_config(recipe).config.num_classes == 5
    assert AlbefClassification.from_config({**recipe, "num_classes": 5}).config.num_classes == 5
    with pytest.raises(ValueError, match=r"num_classes is 3, but the weights .* tell 5 classes apart"):
        AlbefClassification.from_config({**recipe, "num_classes": 3})
    new = AlbefClassification.from_config({"model_type": "tiny", "weights": "none", "num_classes": 7})
    assert new.cls_head[2].out_features == new.cls_head_m[2].out_features == 7


# ------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "albef_classification",
            {"label": [0, 1, 2, 3]},
            "labels lie between 0 and 3, the model tells 3 classes",
        ),
        ("albef_classification", {"label": [0, 1]}, "2 labels for 4 texts"),
        ("albef_classification", {"label": None}, "samples need label"),
        ("albef_nlvr", {"image1": images(3)}, r"image0 is \(4, 3, 64, 64\), image1 is \(3, 3, 64, 64\)"),
        ("albef_nlvr", {"text_input": ["a"] * 3}, "3 texts for 4 images"),
        ("albef_retrieval", {"text_input": ["a"] * 8}, "8 texts for 4 images; this loss takes one"),
        ("albef_retrieval", {"image_id": torch.zeros(4, dtype=torch.long)}, "no negative to match it with"),
        ("albef_vqa", {"n_answers": [1, 1, 1, 1]}, "do not go together"),
    ],
)
def test_wrong_samples_are_explained(name, change, message):
    with pytest.raises(ValueError, match=message):
        random_model(name)(samples(name, **change))


def test_missing_samples_are_explained():
    for name, key in (("albef_retrieval", "image_id"), ("albef_nlvr", "image1"), ("albef_pretrain", "image")):
        with pytest.raises(ValueError, match=key):
            random_model(name)({k: v for k, v in samples(name).items() if k != key})
    with pytest.raises(ValueError, match="needs answer_list"):
        random_model("albef_vqa").predict_answers(samples("albef_vqa"))
    with pytest.raises(ValueError, match="num_classes is None"):
        random_model("albef_classification", num_classes=None)
    with pytest.raises(ValueError, match="num_classes is 1"):
        random_model("albef_nlvr", num_classes=1)


def test_labels_are_not_needed_to_predict():
    batch = samples("albef_classification")
    del batch["label"]
    assert random_model("albef_classification").predict(batch)["targets"] is None
