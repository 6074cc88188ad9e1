"""Weights come in and go out whole, or an error says what is wrong; nothing in a file is executed."""

from __future__ import annotations

import gzip
import json
import os
import pickle

import pytest
import torch

from lavis.models import load_model
from lavis.models.blip import BlipCaption, BlipConfig
from lavis.models.blip_vqa import BlipVQA
from lavis.models.checkpoints import apply_rules, read_state_dict
from lavis.models.configs import override
from tests import golden
from tests.small import images, random_model


@pytest.fixture
def model():
    return random_model("blip_caption")


def test_a_saved_folder_restores_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    for again in (load_model(str(tmp_path / "m")), load_model("blip_caption", checkpoint=tmp_path / "m")):
        assert again.model_type == "tiny"
        assert again.generate({"image": images(2)}) == model.generate({"image": images(2)})
        head = again.text_decoder.cls.predictions
        assert head.decoder.weight is again.text_decoder.bert.embeddings.word_embeddings.weight
        assert head.bias is head.decoder.bias
    with pytest.raises(ValueError, match="holds a blip_caption, not a blip_vqa"):
        load_model("blip_vqa", "tiny", checkpoint=tmp_path / "m")


def test_half_precision_files_load_as_single_precision(model, tmp_path):
    wanted = {k: v.half().float() for k, v in model.state_dict().items() if v.is_floating_point()}
    model.half().save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert again.dtype == torch.float32
    for key, value in wanted.items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("wrapped", [True, False])
def test_official_archives_load_strictly(model, tmp_path, wrapped):
    path = tmp_path / "official.pth"
    torch.save({"model": model.state_dict(), "epoch": 3} if wrapped else model.state_dict(), path)
    again = load_model("blip_caption", "tiny", checkpoint=path)
    assert again.generate({"image": images(1)}) == model.generate({"image": images(1)})


def test_a_wrong_checkpoint_says_what_differs(model, tmp_path):
    state = model.state_dict()
    del state["visual_encoder.cls_token"]
    state["surprise.weight"] = torch.zeros(1)
    state["visual_encoder.norm.bias"] = torch.zeros(7)
    path = tmp_path / "bad.pth"
    torch.save(state, path)
    with pytest.raises(ValueError) as e:
        load_model("blip_caption", "tiny", checkpoint=path)
    text = str(e.value)
    assert "bad.pth" in text
    assert "1 missing: visual_encoder.cls_token" in text
    assert "1 unexpected: surprise.weight" in text
    assert "visual_encoder.norm.bias is (7,), the model's is (128,)" in text


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_a_truncated_file_is_explained(model, tmp_path, suffix, kept):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"model": model.state_dict()}, path)
    else:
        model.save_pretrained(tmp_path)
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.truncate(int(kept * size) if kept < 1 else kept)
    with pytest.raises(ValueError, match=f"model{suffix}"):
        load_model("blip_caption", "tiny", checkpoint=path)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [True, False])
def test_pickled_code_is_never_run(tmp_path, legacy):
    path, trace = tmp_path / "evil.pth", tmp_path / "executed"
    if legacy:
        path.write_bytes(pickle.dumps({"model": Bomb(trace)}))
    else:
        torch.save({"model": Bomb(trace)}, path)
    with pytest.raises(ValueError, match="never executed"):
        load_model("blip_caption", "tiny", checkpoint=path)
    assert not trace.exists()


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "number.pth")
    for name in ("text.pth", "list.pth", "number.pth"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        read_state_dict(tmp_path / "missing.pth")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model("blip_caption", "tiny", checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("cls", "model_type", "case"),
    [
        (BlipCaption, "base_coco", "blip_caption.base_coco <- blip_pretrain.base"),
        (BlipVQA, "vqav2", "blip_vqa.vqav2 <- blip_pretrain.base"),
    ],
)
def test_pretrained_weights_arrive_where_the_original_puts_them(cls, model_type, case):
    with gzip.open(golden.REFERENCE / "golden" / "loader.json.gz", "rt") as f:
        stored = json.load(f)["cases"][case]
    source = golden.manifest("blip_pretrain.base")["state_dict"]
    # every entry filled with its own number, tied ones too, as the stored case was made
    numbers = {key: float(i + 1) for i, key in enumerate(source)}
    state = {k: torch.tensor(n).expand(source[k]["shape"]) for k, n in numbers.items()}
    model = cls.build(cls.PRESETS[model_type].config, empty=True)
    wanted = model.state_dict()
    out = apply_rules(state, wanted, cls.PRETRAINED_RULES, "file")
    assert set(out) == set(wanted)
    assert set(source) - set(stored["unexpected"]) == set(wanted)
    for key in wanted:
        if "position_ids" in key:
            continue
        assert float(out[key].flatten()[-1]) == pytest.approx(numbers[key])
    # of tied entries the later one wins, as in the original
    last = stored["loaded"]["text_decoder.bert.embeddings.word_embeddings.weight"]["from"]
    assert last == "text_decoder.cls.predictions.decoder.weight"


def test_of_tied_entries_the_later_one_wins(model, tmp_path):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["text_decoder.cls.predictions.decoder.weight"] += 1
    state["text_decoder.cls.predictions.decoder.bias"] += 1
    torch.save(state, tmp_path / "m.pth")
    again = load_model("blip_caption", "tiny", checkpoint=tmp_path / "m.pth").state_dict()
    for key in (
        "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.cls.predictions.decoder.weight",
    ):
        torch.testing.assert_close(again[key], state["text_decoder.cls.predictions.decoder.weight"])
    torch.testing.assert_close(
        again["text_decoder.cls.predictions.bias"], state["text_decoder.cls.predictions.decoder.bias"]
    )


def test_overriding_a_config_is_typed():
    config = BlipConfig()
    assert override(config, {"vit": {"depth": 2}, "image_size": 64}, "model").vit.depth == 2
    with pytest.raises(ValueError, match=r"model\.vit\.dept: .*'depth'"):
        override(config, {"vit": {"dept": 2}}, "model")
    with pytest.raises(ValueError, match=r"model\.image_size is 'big'"):
        override(config, {"image_size": "big"}, "model")
    with pytest.raises(ValueError, match="mapping"):
        override(config, {"vit": 3}, "model")


def test_recipes_choose_weights(tmp_path, model):
    model.save_pretrained(tmp_path)
    plain = BlipCaption.from_config({"model_type": "tiny", "weights": "none"})
    loaded = BlipCaption.from_config({"model_type": "tiny", "weights": str(tmp_path), "prompt": ""})
    assert loaded.prompt == ""
    torch.testing.assert_close(loaded.visual_encoder.cls_token, model.visual_encoder.cls_token)
    assert not torch.equal(plain.visual_encoder.cls_token, model.visual_encoder.cls_token)
    with pytest.raises(ValueError, match=r"model\.promt: .*'prompt'"):
        BlipCaption.from_config({"model_type": "tiny", "promt": ""})
