"""Weights as others write them: wrapped, sharded, with ties left out, of other libraries."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lavis.cli.main import main
from lavis.models import load_model
from lavis.models.checkpoints import read_state_dict
from lavis.models.clip import Clip
from tests.small import images, random_model


@pytest.fixture(scope="module")
def model():
    return random_model("blip_caption")


def same(path, model, name="blip_caption", **options):
    again = load_model(name, "tiny", is_eval=True, checkpoint=path, **options).state_dict()
    for key, value in model.state_dict().items():
        if key in again:
            assert torch.equal(again[key], value), key


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.module.",
     "model.net.", "_fsdp_wrapped_module.", "_orig_mod._orig_mod."],
)  # fmt: skip
@pytest.mark.parametrize("key", ["state_dict", None])
def test_prefixes_of_training_tools_are_taken_off(model, tmp_path, prefix, key):
    state = {prefix + k: v for k, v in model.state_dict().items()}
    torch.save({key: state} if key else state, tmp_path / "a.ckpt")
    same(tmp_path / "a.ckpt", model)


def test_prefixes_inside_of_names_are_taken_off(model, tmp_path):
    state = {k.replace(".blocks.", "._orig_mod.blocks.", 1): v for k, v in model.state_dict().items()}
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors", model)


def test_what_lightning_keeps_beside_the_model_is_left_out_and_said(model, tmp_path, caplog):
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    state |= {f"ema_model.{k}": v + 1 for k, v in model.state_dict().items() if v.is_floating_point()}
    state["criterion.weight"] = torch.zeros(3)
    torch.save(
        {"state_dict": state, "pytorch-lightning_version": "2.1", "epoch": 2, "loops": {}},
        tmp_path / "a.ckpt",
    )
    with caplog.at_level(logging.INFO, "lavis"):
        same(tmp_path / "a.ckpt", model)
    assert "entries beside model are left out" in caplog.text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s}, lambda s: {"state_dict": s}, lambda s: {"model_state_dict": s, "epoch": 1},
        lambda s: {"state_dict_ema": s}, lambda s: {"model_ema": s}, lambda s: {"module": s, "optimizer": {}},
        lambda s: {"model": {"state_dict": s}}, lambda s: {"model": {"name": "x"}, "state_dict": s},
        lambda s: {"model": s, "model_ema": {k: v.float() + 1 for k, v in s.items()}},
    ],
)  # fmt: skip
def test_keys_that_tensors_are_kept_under(model, tmp_path, wrap):
    torch.save(wrap(model.state_dict()), tmp_path / "a.pt")
    same(tmp_path / "a.pt", model)


@pytest.mark.parametrize("new", [True, False])
def test_every_kind_of_tensor_survives(tmp_path, new):
    state = {
        "half": torch.randn(3).half(), "b": torch.randn(2, 3).bfloat16(), "long": torch.arange(3),
        "bool": torch.ones(2).bool(),
        "t": torch.randn(3, 4).t(), "part": torch.randn(10)[3:6], "one": torch.tensor(2.0), "none": torch.zeros(0, 3),
        "p": torch.nn.Parameter(torch.randn(2)), "byte": torch.arange(3, dtype=torch.uint8),
        "d": torch.randn(2).double(),
    }  # fmt: skip
    state["tied"] = state["half"]
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = read_state_dict(tmp_path / "a.pth")
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found[key], value) and found[key].dtype == value.dtype, key
    assert found["tied"].data_ptr() == found["half"].data_ptr()
    found["half"][0] = 7.0  # what is changed later is not the file
    assert torch.equal(read_state_dict(tmp_path / "a.pth")["half"], state["half"])


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("described", [True, False])
def test_folders(model, tmp_path, kind, sharded, described):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    name = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind]
    write = torch.save if kind == "bin" else save_file
    if described:
        heads = {"num_attention_heads": 4}
        content = {"architectures": ["x"], "vision_config": heads, "text_config": heads}
        (tmp_path / "config.json").write_text(json.dumps(content))
    if sharded:
        stem, _, suffix = name.rpartition(".")
        keys, places = list(state), {}
        for i, part in enumerate((keys[::2], keys[1::2])):
            file = f"{stem}-{i + 1:05d}-of-00002.{suffix}"
            write({k: state[k] for k in part}, tmp_path / file)
            places |= dict.fromkeys(part, file)
        index = tmp_path / f"{name}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        same(index, model)
    else:
        write(state, tmp_path / name)
        same(tmp_path / name, model)
    same(tmp_path, model)
    if sharded:
        (tmp_path / file).unlink()
        with pytest.raises(FileNotFoundError, match=r"00002-of-00002.*is not there"):
            same(tmp_path, model)


def test_folders_without_weights_and_pointers_say_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model("blip_caption", "tiny", checkpoint=tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_model("blip_caption", "tiny", checkpoint=tmp_path)


# ------------------------------------------------------------------------------ transformers' BLIP


def of_transformers(kind, model):
    transformers = pytest.importorskip("transformers")
    text, vit, tokenizer = model.config.text, model.config.vit, model.tokenizer
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": text.vocab_size, "hidden_size": text.width, "encoder_hidden_size": vit.width,
            "intermediate_size": text.hidden, "num_hidden_layers": text.depth, "num_attention_heads": text.heads,
            "max_position_embeddings": text.max_positions, "bos_token_id": tokenizer.id("[DEC]"),
            "eos_token_id": tokenizer.sep_id, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": vit.width, "intermediate_size": 4 * vit.width, "num_hidden_layers": vit.depth,
            "num_attention_heads": vit.heads, "image_size": 64, "patch_size": vit.patch_size,
        },
        image_text_hidden_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("BlipForConditionalGeneration", ["blip_caption"]),
        ("BlipForQuestionAnswering", ["blip_vqa"]),
        (
            "BlipForImageTextRetrieval",
            ["blip_image_text_matching", "blip_retrieval", "blip_feature_extractor"],
        ),
    ],
)
def test_folders_that_transformers_saves_today(kind, names, tmp_path, model):
    """Their files leave out what is tied."""
    theirs = of_transformers(kind, model)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="2MB")
    state = theirs.state_dict()
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    for name in names:
        for training in (False, True):
            ours = load_model(name, "tiny", is_eval=not training, checkpoint=tmp_path / "hf").state_dict()
            for key in (
                "text_decoder.cls.predictions.decoder.weight",
                "text_decoder.cls.predictions.decoder.bias",
            ):
                assert (key in state) == (key in ours)
            checked = [k for k in ours if k in state and "position_ids" not in k]
            assert len(checked) > 50 and all(torch.equal(ours[k], state[k]) for k in checked)


# ------------------------------------------------------------------------------ pre-trained BLIP


def test_a_pre_trained_file_captions(tmp_path, capsys):
    pretrained = random_model("blip_pretrain", queue_size=16)
    path = tmp_path / "model_base_capfilt_large.pth"
    torch.save({"model": pretrained.state_dict(), "optimizer": {}, "epoch": 3}, path)
    for name in ("blip_caption", "blip_video_caption", "blip_feature_extractor"):
        same(path, pretrained, name)
    captioner = load_model("blip_caption", "tiny", is_eval=True, checkpoint=path)
    assert captioner.generate({"image": images(1)})
    larger = type(captioner).from_file(dataclasses.replace(captioner.config, image_size=96), path)
    assert larger.visual_encoder.pos_embed.shape[1] == 145
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    arguments = [
        "--model",
        "blip_caption/tiny",
        "--checkpoint",
        str(path),
        "--max-new-tokens",
        "5",
        "--min-length",
        "1",
    ]
    assert main(["caption", str(tmp_path / "a.png"), *arguments]) == 0
    assert "caption" in json.loads(capsys.readouterr().out)
    assert main(["convert", str(path), "--model", "blip_caption/tiny", "--out", str(tmp_path / "ours")]) == 0
    same_state = load_model(str(tmp_path / "ours"), is_eval=True).state_dict()
    assert all(torch.equal(v, same_state[k]) for k, v in captioner.state_dict().items())


def test_files_of_other_heads_are_no_captioners(tmp_path):
    for name in ("blip_vqa", "blip_retrieval", "blip_classification"):
        torch.save(random_model(name).state_dict(), tmp_path / "a.pth")
        with pytest.raises(ValueError, match="does not fit this model"):
            load_model("blip_caption", "tiny", checkpoint=tmp_path / "a.pth")


# ------------------------------------------------------------------------------ OpenCLIP


def described(folder, **changes):
    cfg = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 48, "vocab_size": 4610, "width": 128, "heads": 4, "layers": 3}, **changes,
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))


@pytest.mark.parametrize("quick", [True, False, None])
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_open_clips_layout_brings_its_activation(tmp_path, name, quick, caplog):
    model = random_model("clip", quick_gelu=bool(quick))
    write = torch.save if name.endswith("bin") else save_file
    write(model.state_dict(), tmp_path / name)
    described(tmp_path, **({} if quick is None else {"quick_gelu": quick}))
    for source in (tmp_path, tmp_path / name):
        loaded = load_model("clip", "tiny", is_eval=True, checkpoint=source)
        assert loaded.config.quick_gelu is bool(quick)
        torch.testing.assert_close(loaded.encode_image(images(1)), model.encode_image(images(1)))
        other = random_model("clip", quick_gelu=not quick, seed=1)
        other.load_checkpoint(source)
        torch.testing.assert_close(other.encode_image(images(1)), model.encode_image(images(1)))
    assert "activation" not in caplog.text
    described(tmp_path, text_cfg={"heads": 8})
    with pytest.raises(ValueError, match=r"text_cfg\.heads.* is 8, this model type's is 4"):
        load_model("clip", "tiny", checkpoint=tmp_path)
    described(tmp_path, quick_gelu="yes")
    with pytest.raises(ValueError, match="quick_gelu is 'yes'"):
        load_model("clip", "tiny", checkpoint=tmp_path)


def test_a_text_tower_of_its_own(tmp_path):
    model = random_model("clip", quick_gelu=False)
    parts = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    state = {("text." if k.startswith(parts) else "") + k: v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    described(tmp_path)
    same(tmp_path, model, "clip")


def test_an_activation_that_nothing_tells_is_assumed_aloud_or_given(tmp_path, caplog, capsys):
    model = random_model("clip", quick_gelu=False)
    path = tmp_path / "run.pt"
    torch.save({"name": "run", "epoch": 3, "state_dict": model.state_dict()}, path)
    assert load_model("clip", "tiny", checkpoint=path).config.quick_gelu is True
    assert "quick_gelu is assumed" in caplog.text
    caplog.clear()
    loaded = load_model("clip", "tiny", is_eval=True, checkpoint=path, activation="gelu")
    assert loaded.config.quick_gelu is False and not caplog.text
    torch.testing.assert_close(loaded.encode_image(images(1)), model.encode_image(images(1)))
    arguments = [
        "convert",
        str(path),
        "--model",
        "clip/tiny",
        "--out",
        str(tmp_path / "ours"),
        "--activation",
    ]
    assert main([*arguments, "relu"]) == 2
    assert "it must be gelu or quick_gelu" in capsys.readouterr().err
    assert main([*arguments, "gelu"]) == 0
    caplog.clear()
    for source in (tmp_path / "ours", tmp_path / "ours" / "model.safetensors"):
        assert load_model("clip", "tiny", checkpoint=source).config.quick_gelu is False
    assert not caplog.text
    for options, message in (
        ({"name": "blip_caption", "model_type": "tiny", "checkpoint": path}, "one activation only"),
        ({"name": "clip", "model_type": "tiny"}, "is of a checkpoint"),
        ({"name": str(tmp_path / "ours")}, "says which activation"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(**options, activation="gelu")
    assert Clip.PRESETS["tiny"].config.quick_gelu is True
