"""`init:` starts a model for pre-training from a picture model's and BERT's weights, `pretrained:` one for fine-tuning
from a pre-trained one's."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.models import build_model
from lavis.models.blip_matching import BlipPretrain, BlipRetrieval
from lavis.nn.ema import NO_ID
from lavis.nn.vit import VisionTransformer
from lavis.runners import train
from tests.small import random_model

CONFIG = BlipPretrain.PRESETS["tiny"].config
TEXT = CONFIG.text


def bert(path, vocab: int = TEXT.vocab_size - 2, old_names: bool = False):
    """A file as the hub has it: BERT with both of its heads."""
    torch.manual_seed(5)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=vocab, hidden_size=TEXT.width, num_hidden_layers=TEXT.depth,
            num_attention_heads=TEXT.heads, intermediate_size=TEXT.hidden,
            max_position_embeddings=TEXT.max_positions,
        )
    ).eval()  # fmt: skip
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    state = model.state_dict()
    if old_names:
        state = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in state.items()
        }
    torch.save(state, path)
    return model


def deit(path, size: int = 48):
    torch.manual_seed(6)
    model = VisionTransformer(CONFIG.vit, size)
    model.reset_parameters()
    head = {"head.weight": torch.zeros(10, CONFIG.vit.width), "head.bias": torch.zeros(10)}
    torch.save({"model": {**model.state_dict(), **head}}, path)
    return model


@pytest.mark.parametrize("old_names", [False, True])
def test_pretraining_starts_from_other_models(tmp_path, old_names):
    theirs, vit = bert(tmp_path / "bert.pth", old_names=old_names), deit(tmp_path / "deit.pth")
    init = {
        "visual_encoder": str(tmp_path / "deit.pth"),
        "text_encoder": str(tmp_path / "bert.pth"),
        "text_decoder": str(tmp_path / "bert.pth"),
    }
    model = BlipPretrain.from_config({"model_type": "tiny", "weights": "none", "init": init}).eval()
    assert torch.equal(model.visual_encoder.blocks[2].mlp.fc1.weight, vit.blocks[2].mlp.fc1.weight)
    assert model.visual_encoder.pos_embed.shape[1] == 65  # from a grid of 6 to 8
    # without a picture the text encoder is BERT
    tokens = model.tokenizer.batch(["a red circle above two stars", "a cat"])
    with torch.no_grad():
        ours = model.encode_text(tokens)
        ids = tokens.ids
        words = theirs.bert.embeddings.word_embeddings(ids)
        places = theirs.bert.embeddings.position_embeddings.weight[: ids.shape[1]]
        embedded = theirs.bert.embeddings.LayerNorm(words + places)  # no token types, as in BLIP
        mask = torch.zeros(tokens.mask.shape).masked_fill(~tokens.mask, torch.finfo(torch.float32).min)
        wanted = theirs.bert.encoder(embedded, attention_mask=mask[:, None, None, :])[0]
    torch.testing.assert_close(ours[tokens.mask], wanted[tokens.mask], rtol=1e-4, atol=1e-4)
    # the decoder starts from the same self-attention and head; shared parts stay shared, twins are equal
    layer, shared = model.text_decoder.bert.encoder.layer[0], model.text_encoder.encoder.layer[0]
    assert torch.equal(layer.attention.self.query.weight, shared.attention.self.query.weight)
    assert layer.attention.self.query.weight is not shared.attention.self.query.weight
    assert layer.intermediate.dense.weight is shared.intermediate.dense.weight
    head = model.text_decoder.cls.predictions
    assert torch.equal(head.transform.dense.weight, theirs.cls.predictions.transform.dense.weight)
    assert head.decoder.weight is model.text_encoder.embeddings.word_embeddings.weight
    assert head.bias is head.decoder.bias and head.bias.shape == (TEXT.vocab_size,)
    assert torch.equal(
        model.text_encoder_m.embeddings.word_embeddings.weight,
        model.text_encoder.embeddings.word_embeddings.weight,
    )


def test_pretraining_starts_from_a_captioner(tmp_path):
    """A model of this library gives the module of the same name, cross-attention included; more positions grow."""
    captioner = random_model("blip_caption")
    captioner.save_pretrained(tmp_path / "captioner")
    init = dict.fromkeys(("visual_encoder", "text_encoder", "text_decoder"), str(tmp_path / "captioner"))
    text = {"max_positions": TEXT.max_positions + 8}
    model = BlipPretrain.from_config({"model_type": "tiny", "weights": "none", "init": init, "text": text})
    theirs, ours = captioner.state_dict(), model.state_dict()
    places = "bert.embeddings.position_embeddings.weight"
    for key, tensor in theirs.items():
        if not key.endswith(("position_ids", places)):
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=0)
    grown = ours[f"text_decoder.{places}"]
    assert torch.equal(grown[: TEXT.max_positions], theirs[f"text_decoder.{places}"])
    assert len(grown) == TEXT.max_positions + 8 and bool(grown[TEXT.max_positions :].abs().sum() > 0)
    own, decoder = "text_encoder.encoder.layer.1.", "text_decoder.bert.encoder.layer.1."
    for part in ("attention.self.query.weight", "crossattention.self.key.weight", "output.dense.bias"):
        assert torch.equal(ours[own + part], theirs[decoder + part])


def test_a_video_encoder_starts_as_a_picture_encoder(tmp_path):
    """A clip that stands still has the states of its picture; attention over time begins as that over places."""
    theirs = deit(tmp_path / "deit.pth", size=64).eval()
    init = {"visual_encoder": str(tmp_path / "deit.pth")}
    cfg = {"model_type": "tiny", "weights": "none", "vit": {"drop_path": 0.0}, "init": init}
    model = registry.get_model_class("alpro_retrieval").from_config(cfg).eval()
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.visual_encoder(picture[:, :, None].expand(-1, -1, 8, -1, -1))
        torch.testing.assert_close(found, theirs(picture), rtol=1e-4, atol=1e-5)
    block = model.visual_encoder.model.blocks[1]
    assert torch.equal(block.temporal_attn.qkv.weight, theirs.blocks[1].attn.qkv.weight)
    assert block.temporal_attn.qkv.weight is not block.attn.qkv.weight


def test_wrong_starting_weights_are_refused(tmp_path):
    bert(tmp_path / "bert.pth", vocab=TEXT.vocab_size + 5)
    with pytest.raises(ValueError, match="of another shape"):
        BlipPretrain.from_config(
            {"model_type": "tiny", "weights": "none", "init": {"text_encoder": str(tmp_path / "bert.pth")}}
        )
    with pytest.raises(
        ValueError, match=r"model\.init\.itm_head: .* visual_encoder, text_encoder, text_decoder"
    ):
        BlipPretrain.from_config({"model_type": "tiny", "weights": "none", "init": {"itm_head": "bert"}})
    with pytest.raises(ValueError, match="it has no use"):
        BlipPretrain.from_config({"model_type": "tiny", "weights": "x.pth", "init": {"text_encoder": "bert"}})


# ------------------------------------------------------------------------------------ pre-trained weights


def pretrained(path, **config):
    """A pre-trained model, and its file as the original publishes such files."""
    model = random_model("blip_pretrain", **config)
    model.queue_ptr.fill_(8)
    torch.save({"model": model.state_dict()}, path)
    return model


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_a_recipe_names_pretrained_weights(tmp_path, legacy, folder):
    source = tmp_path / "pretrained.pth"
    theirs = pretrained(source, image_size=48)
    if folder:
        source = tmp_path / "run"
        theirs.save_pretrained(source)
    said = {"load_finetuned": False} if legacy else {"weights": "pretrained"}
    section = {"arch": "blip_retrieval", "model_type": "tiny", "pretrained": str(source), **said}
    model = build_model(Config.from_dict({"model": section}).model)
    for name in ("text_encoder", "vision_proj", "text_encoder_m", "itm_head"):
        ours, wanted = getattr(model, name).state_dict(), getattr(theirs, name).state_dict()
        assert all(torch.equal(ours[key], wanted[key]) for key in wanted), name
    assert model.visual_encoder.pos_embed.shape[1] == 65  # from a grid of 6 to 8
    assert torch.equal(model.image_queue, theirs.image_queue) and int(model.queue_ptr) == 8


HEADS = {
    "blip_pretrain": "blip_retrieval blip_image_text_matching blip_feature_extractor blip_vqa blip_nlvr blip_caption "
    "blip_classification blip_vis_dialogue blip_video_caption blip_video_qa blip_video_retrieval blip_video_dialogue",
    "albef_pretrain": "albef_retrieval albef_feature_extractor albef_vqa albef_classification albef_nlvr",
    "alpro_retrieval": "alpro_qa alpro_feature_extractor",
}


@pytest.mark.parametrize("source", HEADS)
def test_every_small_head_starts_from_its_familys_pre_training(tmp_path, source):
    """The packaged weights and the heads' presets of the same name belong to models of these sizes."""
    theirs = random_model(source)
    theirs.save_pretrained(tmp_path)
    for name in HEADS[source].split():
        model_type = "tiny" if name.endswith("_caption") else "tiny_shapes"
        cfg = {"model_type": model_type, "weights": "pretrained", "pretrained": str(tmp_path)}
        ours = registry.get_model_class(name).from_config(cfg)
        wanted, got = theirs.state_dict(), ours.state_dict()
        same = [k for k in wanted if k.startswith("visual_encoder.") and "pos_embed" not in k]
        assert same and all(torch.equal(got[k], wanted[k]) for k in same), name
        if not name.endswith("_caption"):
            words = re.compile(r"text_encoder\.(bert\.)?embeddings\.word_embeddings\.weight")
            (there,), (here,) = ([k for k in state if words.fullmatch(k)] for state in (wanted, got))
            assert torch.equal(got[here], wanted[there]), name


@pytest.mark.parametrize(
    ("name", "prefix", "first"),
    [
        ("albef_nlvr", "text_encoder.encoder.layer.", (0, 1, 2, 2, 3, 3)),
        ("albef_vqa", "text_decoder.bert.encoder.layer.", (2, 3)),
    ],
)
def test_small_albefs_fusion_layers_begin_others(tmp_path, name, prefix, first):
    """As in the paper: one for each picture of a pair (section 5), and the decoder's."""
    theirs = random_model("albef_pretrain")
    theirs.save_pretrained(tmp_path)
    cfg = {"model_type": "tiny_shapes", "pretrained": str(tmp_path), "weights": "pretrained"}
    ours, wanted = registry.get_model_class(name).from_config(cfg).state_dict(), theirs.state_dict()
    for layer, source in enumerate(first):
        for part in ("attention.self.query.weight", "output.dense.weight", "crossattention.self.value.bias"):
            key = f"text_encoder.bert.encoder.layer.{source}.{part}"
            assert (key in wanted) == (f"{prefix}{layer}.{part}" in ours)
            if key in wanted:
                assert torch.equal(ours[f"{prefix}{layer}.{part}"], wanted[key]), (layer, part)


def test_pretrained_weights_must_be_called_so(tmp_path):
    pretrained(tmp_path / "pretrained.pth")
    path = str(tmp_path / "pretrained.pth")
    with pytest.raises(ValueError, match=r"model\.weights: pretrained, model\.pretrained: FILE"):
        BlipRetrieval.from_config({"model_type": "tiny", "weights": path})
    with pytest.raises(
        ValueError, match=r"pretrained\.pth.*model\.weights is 'finetuned'.*set model\.weights"
    ):
        BlipRetrieval.from_config({"model_type": "coco", "pretrained": path})
    with pytest.raises(ValueError, match=r"knows none.*model\.pretrained"):
        BlipRetrieval.from_config({"model_type": "tiny", "weights": "pretrained"})
    # a preset without finished weights has only these
    model = BlipRetrieval.from_config({"model_type": "tiny", "pretrained": path})
    assert int(model.queue_ptr) == 8


@pytest.mark.parametrize("size", [8, 1024])
def test_a_queue_of_another_size_starts_anew(tmp_path, caplog, size):
    theirs = pretrained(tmp_path / "pretrained.pth")
    cfg = {"model_type": "tiny", "weights": "pretrained", "pretrained": str(tmp_path / "pretrained.pth")}
    with caplog.at_level("INFO", logger="lavis"):
        model = BlipRetrieval.from_config({**cfg, "queue_size": size})
    assert f"its queue holds 512 features, the model's {size}; it starts anew" in caplog.text
    assert model.image_queue.shape == model.text_queue.shape == (64, size)
    torch.testing.assert_close(model.image_queue.norm(dim=0), torch.ones(size))
    assert int(model.queue_ptr) == 0 and bool((model.idx_queue == NO_ID).all())
    assert torch.equal(
        model.text_encoder_m.embeddings.LayerNorm.weight, theirs.text_encoder_m.embeddings.LayerNorm.weight
    )
    # other entries of another shape are errors still
    with pytest.raises(ValueError, match=r"vision_proj\.weight is"):
        BlipRetrieval.from_config({**cfg, "embed_dim": 32, "queue_size": size})


def test_a_run_from_pretrained_weights_is_continued_without_them(tmp_path):
    path = tmp_path / "pretrained.pth"
    pretrained(path)
    recipe = {
        "model": {"arch": "blip_retrieval", "model_type": "tiny", "weights": "pretrained", "pretrained": str(path),
                  "queue_size": 64},
        "datasets": {"shapes_retrieval": {"n_train": 8, "n_val": 4, "n_test": 4}},
        "run": {"task": "retrieval", "max_epoch": 1, "batch_size_train": 4, "init_lr": 1e-4, "train_splits": ["train"],
                "output_dir": str(tmp_path), "job_id": "job", "resume_ckpt_path": "auto"},
    }  # fmt: skip
    first = train(recipe).iterations
    path.unlink()
    recipe["run"]["max_epoch"] = 2
    assert train(recipe).iterations == 2 * first
