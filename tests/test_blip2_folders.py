"""BLIP-2 and InstructBLIP from folders of transformers and back, as official files, as folders that need no other."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lavis.cli.main import main
from lavis.inference.convert import convert
from lavis.models import Part, Preset, build_model, load_model, load_preprocess, zoo
from lavis.models.blip2_language import Blip2LanguageConfig
from lavis.nn.lora import LoraConfig
from tests import served
from tests.helpers import blip2_reference as reference
from tests.helpers.blip2_reference import images

transformers = pytest.importorskip("transformers")
from tests.helpers import blip2_transformers as folders  # noqa: E402

PROMPT = "a photo of"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of each kind, as transformers saves it."""
    made = {}

    def of(name: str):
        if name not in made:
            made[name] = folders.save(folders.peer(name), name, tmp_path_factory.mktemp(name) / "theirs")
        return made[name]

    return of


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A model of each kind from an official file and a folder of its language model."""
    made = {}

    def of(kind: str):
        if kind not in made:
            described, folder = reference.manifest(kind), tmp_path_factory.mktemp(kind)
            made[kind] = reference.build(described, reference.write(described, folder / "model.pth"))
        return made[kind]

    return of


def same(a, b, without=()):
    a, b = ({k: t for k, t in m.state_dict().items() if not k.startswith(without or "\0")} for m in (a, b))
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert torch.equal(tensor, b[key]), key


def says(model):
    """Something that depends on all of a model."""
    if hasattr(model, "words"):
        return model.generate({"image": images(), "prompt": PROMPT}, num_beams=3, max_length=8)
    return model({"image": images(), "text_input": ["a dog", "a tree in the field"]}).tolist()


# ------------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["blip2_image_text_matching", "blip2_t5", "blip2_vicuna_instruct"])
def test_sharded_folders_in_half_precision(name, dtype, tmp_path):
    theirs = folders.peer(name).to(dtype)
    folders.save(theirs, name, tmp_path / "half", max_shard_size="100KB")
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 2
    model = load_model(str(tmp_path / "half"), is_eval=True)
    folders.save(theirs.float(), name, tmp_path / "float")
    same(model, load_model(str(tmp_path / "float")), ("Qformer.cls.",))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", folders.KINDS)
def test_a_registered_name_reads_it_whatever_the_sizes_of_its_types(published, name):
    generic = load_model(str(published(name)), is_eval=True)
    assert generic.registered_name == name
    for model_type in generic.types()[:2]:
        model = load_model(name, model_type, is_eval=True, checkpoint=published(name))
        same(model, generic, ("Qformer.cls.",))
        assert says(model) == says(generic)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parts_of_a_folder_are_kept_in_a_format(published, dtype):
    model = load_model(
        str(published("blip2_t5")), parts={"t5_model": {"dtype": dtype}, "visual_encoder": {"dtype": dtype}}
    )
    exact = load_model(str(published("blip2_t5"))).state_dict()
    for key, tensor in model.state_dict().items():
        kept = not key.startswith(("t5_model", "visual_encoder")) or (".wo." in key and dtype == "float16")
        wanted = exact[key] if kept else exact[key].to(getattr(torch, dtype))
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), key


def test_commands_read_a_folder(published, tmp_path, capsys):
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--max-new-tokens", "9"]
    assert main([*command, "--model", str(published("blip2_opt"))]) == 0
    first = json.loads(capsys.readouterr().out)["caption"]
    assert (
        main(
            [
                *command,
                "--model",
                "blip2_opt/caption_coco_opt6.7b",
                "--checkpoint",
                str(published("blip2_opt")),
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["caption"] and first


def test_recipes_begin_with_a_folder(published):
    section = {"arch": "blip2_opt", "model_type": "pretrain_opt2.7b", "weights": str(published("blip2_opt"))}
    model = build_model(section)
    same(model, load_model(str(published("blip2_opt"))))
    assert not any(p.requires_grad for p in model.opt_model.parameters())


def test_the_type_of_a_folder_is_the_one_with_its_sizes(published, tmp_path):
    folder = shutil.copytree(published("blip2_opt"), tmp_path / "opt")
    description = json.loads((folder / "config.json").read_text())
    cls = type(load_model(str(folder)))
    for width, size, wanted in (
        (2560, 224, "pretrain_opt2.7b"), (4096, 224, "pretrain_opt6.7b"), (4096, 364, "caption_coco_opt6.7b")
    ):  # fmt: skip
        description["text_config"]["hidden_size"] = width
        description["vision_config"].update(hidden_size=1408, image_size=size)
        (folder / "config.json").write_text(json.dumps(description))
        assert cls.type_of(folder) == wanted


def test_the_first_stage_has_no_head_that_writes_and_says_so(published, caplog):
    with caplog.at_level(logging.WARNING, "lavis"):
        model = load_model(
            "blip2_feature_extractor", "pretrain", checkpoint=published("blip2_image_text_matching")
        )
    assert "has no head that writes" in caplog.text
    assert all(name.startswith("Qformer.cls.") for name in model.fresh_entries) and model.fresh_entries
    assert model.temp.item() == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["vision_config"].update(num_attention_heads=0), r"num_attention_heads is 0"),
        (lambda c: c["vision_config"].update(hidden_size="64"), r"hidden_size is '64'"),
        (lambda c: c["vision_config"].update(num_hidden_layers=10**6), r"depth is 1000000"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), r"hidden_act is 'relu'"),
        (lambda c: c["vision_config"].update(qkv_bias=False), r"qkv_bias is false"),
        (lambda c: c.update(qformer_config=3), r"qformer_config is no mapping"),
        (lambda c: c.update(num_query_tokens=True), r"num_query_tokens is True"),
        (lambda c: c["vision_config"].update(num_hidden_layers=2), r"unexpected: visual_encoder\.blocks\.2"),
        (lambda c: c["text_config"].update(model_type="gpt2"), r"language model 'gpt2'; opt and t5 can be read"),
        (lambda c: c["text_config"].update(num_hidden_layers=10**6), r"num_hidden_layers is 1000000"),
    ],
)  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(published, tmp_path, change, message):
    folder = shutil.copytree(published("blip2_opt"), tmp_path / "opt")
    description = json.loads((folder / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["blip2_opt", "blip2_t5_instruct", "blip2_vicuna_instruct"])
def test_descriptions_as_older_versions_wrote_them(published, tmp_path, name):
    """With options of generation, of training and of saving in every section; in another format than is loaded."""
    folder = shutil.copytree(published(name), tmp_path / "old")
    description = json.loads((folder / "config.json").read_text())
    older = {
        "torch_dtype": "float16", "do_sample": False, "early_stopping": False, "length_penalty": 1.0, "max_length": 20,
        "num_beams": 1, "bad_words_ids": None, "pruned_heads": {}, "return_dict": True, "tf_legacy_loss": False,
        "torchscript": False, "use_bfloat16": False, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
        "task_specific_params": {"summarization": {"num_beams": 4}}, "transformers_version": "4.27.0.dev0",
        "chunk_size_feed_forward": 0, "_name_or_path": "elsewhere", "prefix": "</s>",
    }  # fmt: skip
    for section in ("text_config", "vision_config", "qformer_config"):
        description[section] = {**older, **description[section], "torch_dtype": "float16"}
    for key in ("image_token_index", "transformers_version", "dtype"):
        description.pop(key, None)
    (folder / "config.json").write_text(json.dumps(description))
    model = load_model(str(folder), is_eval=True)
    same(model, load_model(str(published(name))))
    assert model.language.dtype == torch.float32


def test_another_class_is_named(published):
    with pytest.raises(ValueError, match="holds a blip2_opt, not a blip2_t5"):
        load_model("blip2_t5", "pretrain_flant5xl", checkpoint=published("blip2_opt"))


def test_a_tokenizer_of_another_vocabulary_is_read(published, tmp_path):
    """Of InstructBLIP's Q-Former; transformers writes tokenizer.json, older folders have vocab.txt."""
    folder = shutil.copytree(published("blip2_t5_instruct"), tmp_path / "t5")
    inner = folder / "qformer_tokenizer"
    content = json.loads((inner / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["dog"], words["cat"] = words["cat"], words["dog"]
    (inner / "tokenizer.json").write_text(json.dumps(content))
    ids = load_model(str(folder)).tokenizer.encode("dog")
    assert ids == load_model(str(published("blip2_t5_instruct"))).tokenizer.encode("cat")
    pieces = sorted((word for word in words if word != "[DEC]"), key=words.__getitem__)
    (inner / "vocab.txt").write_text("\n".join(pieces))
    (inner / "tokenizer.json").unlink()
    assert load_model(str(folder)).tokenizer.encode("dog") == ids


@pytest.mark.parametrize("status", [404, 410, 403])
def test_weights_that_are_gone_are_taken_from_elsewhere(published, monkeypatch, tmp_path, caplog, status):
    import huggingface_hub

    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    for name in ("LAVIS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision: [])
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **_: str(published(repo.partition("/")[2]))
    )
    with served.Served() as server:
        server.files["/gone.pth"] = lambda handler, _: handler.answer(status, b"")
        row = Preset(
            Blip2LanguageConfig(qformer_text_input=False), pretrained=server.url("/gone.pth"),
            elsewhere="someone/blip2_opt", parts={"opt_model": Part("facebook/opt-2.7b", frozen=True)},
        )  # fmt: skip
        monkeypatch.setitem(zoo._BY_NAME["blip2_opt"], "gone", row)
        if status == 403:  # it may be back tomorrow
            with pytest.raises(OSError, match="403"):
                load_model("blip2_opt", "gone")
            return
        model = load_model("blip2_opt", "gone", is_eval=True)
        with pytest.raises(FileNotFoundError):
            load_model("blip2_opt", "gone", checkpoint=server.url("/gone.pth"))
    assert "taking the same weights from someone/blip2_opt" in caplog.text
    same(model, load_model(str(published("blip2_opt"))))


@pytest.mark.parametrize(("kind", "extra"), [
    ("vicuna_instruct", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ("t5", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
])  # fmt: skip
def test_older_files_of_language_models_hold_more(published, tmp_path, kind, extra):
    """Such as Vicuna 1.1's and the first T5's."""
    described = reference.manifest(kind)
    language = reference.write_language_model(described, tmp_path / "language")
    state = load_file(language / "model.safetensors")
    save_file({**state, extra: torch.ones(5)}, language / "model.safetensors")
    own = {
        k: t for k, t in reference.state_dict(described).items() if ".".join(k.split(".")[1:]) not in state
    }
    torch.save({"model": own}, tmp_path / "model.pth")
    module = reference.LANGUAGES[described["tokenizer"]]
    found = reference.build(described, tmp_path / "model.pth").get_submodule(module).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    name = {"t5": "blip2_t5", "vicuna_instruct": "blip2_vicuna_instruct"}[kind]
    folder = shutil.copytree(published(name), tmp_path / "theirs")
    state = load_file(folder / "model.safetensors")
    save_file({**state, f"language_model.{extra}": torch.ones(5)}, folder / "model.safetensors")
    same(load_model(str(folder)), load_model(str(published(name))))


# ------------------------------------------------------------------------------------------ writing
@pytest.mark.parametrize("kind", ["qformer", "opt", "t5", "t5_instruct", "vicuna_instruct"])
def test_what_is_written_loads_in_transformers_and_comes_back(official, tmp_path, kind):
    model = official(kind)
    architecture, language = model.TRANSFORMERS
    left_out = model.save_transformers(tmp_path / "theirs")
    assert set(left_out) <= {key for key in model.state_dict() if key.startswith(("Qformer", "temp"))}
    theirs, notes = getattr(transformers, architecture).from_pretrained(
        str(tmp_path / "theirs"), output_loading_info=True
    )
    theirs.eval()
    assert not notes["missing_keys"] and not notes["unexpected_keys"] and not notes["mismatched_keys"]
    processor = transformers.AutoProcessor.from_pretrained(str(tmp_path / "theirs"))
    image = Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    text = ["a photo of", "what is it in the field ?"]
    given = processor(images=[image] * 2, text=text, padding=True, return_tensors="pt")
    vis, _ = load_preprocess(model.preprocess_config())
    media = torch.stack([vis["eval"](image)] * 2)
    assert given.pixel_values.shape == media.shape and (given.pixel_values - media).abs().max() < 0.05
    given = {**given, "pixel_values": media}
    with torch.no_grad():
        if not language:
            wanted = theirs(**given, use_image_text_matching_head=True).logits_per_image
            memory = model.memorize(model.encode_image(media))
            torch.testing.assert_close(
                model.match_logits(model.tokens(text), memory), wanted, rtol=1e-4, atol=1e-4
            )
        else:
            image_ids = given["input_ids"] == theirs.config.image_token_index
            assert image_ids.sum(dim=1).tolist() == [model.config.num_query_token] * 2
            assert processor.tokenizer.padding_side == ("right" if model.ENCODES else "left")
            ids = model._padded(model._rows(text), processor.tokenizer.padding_side)
            read = given["attention_mask"][:, model.config.num_query_token :].bool()
            found = given["input_ids"][:, model.config.num_query_token :]
            assert torch.equal(read, ids.mask) and torch.equal(found[read], ids.ids[ids.mask])
            if model.INSTRUCT:
                asked = model.instruction(text)
                assert torch.equal(given["qformer_input_ids"], asked.ids)
                prefix = theirs.get_image_features(
                    media, given["qformer_input_ids"], given["qformer_attention_mask"]
                ).pooler_output
                torch.testing.assert_close(model.prefix(media, asked), prefix, rtol=1e-4, atol=1e-4)
            head = theirs.language_model.get_output_embeddings().weight
            own = model.language.get_output_embeddings().weight
            torch.testing.assert_close(head[: len(own)], own, rtol=0, atol=0)
    again = load_model(str(tmp_path / "theirs"), is_eval=True)
    same(again, model, tuple(left_out))
    if language:
        assert says(again) == says(model)
    again.save_transformers(tmp_path / "second")
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        first, second = (json.loads((tmp_path / f / name).read_text()) for f in ("theirs", "second"))
        assert first == second


def test_a_tower_that_transformers_has_not_is_refused(official, tmp_path):
    with pytest.raises(ValueError, match="EVA's image encoder only"):
        official("clip_l").save_transformers(tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(ValueError, match="blip_caption can't be written as a folder of transformers"):
        load_model("blip_caption", "tiny").save_transformers(tmp_path / "theirs")


@pytest.mark.parametrize("base", ["ours", "theirs"])
def test_adapters_are_merged(official, published, tmp_path, base):
    official("opt").save_pretrained(tmp_path / "whole", whole=True)
    source = str(tmp_path / "whole" if base == "ours" else published("blip2_opt"))
    model = load_model(source, is_eval=True)
    model.add_lora(LoraConfig(rank=2, targets=("qkv", "q_proj")))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapters")
    assert says(load_model(str(tmp_path / "adapters"), is_eval=True)) == says(model)
    convert(str(tmp_path / "adapters"), tmp_path / "theirs", form="transformers")
    again = load_model(str(tmp_path / "theirs"), is_eval=True)
    torch.testing.assert_close(again.prefix(images()), model.prefix(images()), rtol=1e-4, atol=1e-4)
    assert (again.prefix(images()) - load_model(source, is_eval=True).prefix(images())).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["opt", "t5_instruct"])
def test_convert_both_ways(official, tmp_path, capsys, kind):
    model = official(kind)
    model.save_pretrained(tmp_path / "ours", whole=True)
    assert (
        main(["convert", str(tmp_path / "ours"), "--to", "transformers", "--out", str(tmp_path / "theirs")])
        == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["largest_difference"] == 0.0
    assert main(["convert", str(tmp_path / "theirs"), "--out", str(tmp_path / "back")]) == 0
    same(load_model(str(tmp_path / "back")), model)
    name = f"{model.registered_name}/{model.model_type}"
    assert main(["convert", str(tmp_path / "theirs"), "--model", name, "--out", str(tmp_path / "named")]) == 0
    half = [
        "convert",
        str(tmp_path / "ours"),
        "--half",
        "--to",
        "transformers",
        "--out",
        str(tmp_path / "half"),
    ]
    assert main(half) == 0
    small, large = ((tmp_path / f / "model.safetensors").stat().st_size for f in ("half", "theirs"))
    assert small < 0.6 * large
    smaller = ["--part", f"{model.LANGUAGE}=dtype=bfloat16", "--part", "visual_encoder=dtype=bfloat16"]
    for form in ("lavis", "transformers"):
        command = ["convert", str(tmp_path / "theirs"), "--to", form, "--out", str(tmp_path / form)]
        assert main([*command, "--whole", *smaller]) == 0
        state = load_file(tmp_path / form / "model.safetensors")
        assert {t.dtype for t in state.values()} >= {torch.float32, torch.bfloat16}
    assert main(["convert", str(tmp_path / "ours"), "--to", "elsewhere"]) == 2
    assert "it must be lavis, transformers or official" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ official
@pytest.mark.parametrize("kind", ["qformer", "clip_l", "opt", "t5", "t5_instruct", "vicuna_instruct"])
def test_the_official_state_is_that_of_the_official_file(official, kind):
    wanted = {
        key: tensor for key, tensor in reference.state_dict(reference.manifest(kind)).items()
        if "inv_freq" not in key
    }  # fmt: skip
    found = official(kind).official_state()
    missing = {key for key in wanted.keys() - found.keys() if "position_ids" not in key}
    assert not missing and not found.keys() - wanted.keys()
    for key, tensor in found.items():
        assert tensor.shape == wanted[key].shape and torch.equal(tensor, wanted[key]), key


def test_an_official_file_is_trimmed_as_the_published_are(official, tmp_path):
    described = reference.manifest("opt")
    source = reference.write(described, tmp_path / "model.pth")
    model = reference.build(described, source)
    state = reference.state_dict(described)
    tower = {
        k.removeprefix("visual_encoder."): t for k, t in state.items() if k.startswith("visual_encoder.")
    }
    torch.save(tower, tmp_path / "eva.pth")
    parts = {"visual_encoder": str(tmp_path / "eva.pth"), "opt_model": str(tmp_path / "language")}
    own = {k: t for k, t in state.items() if not k.startswith(("visual_encoder.", "opt_model."))}
    torch.save({"model": own}, tmp_path / "trimmed.pth")
    config = reference.sizes_of(described)
    trimmed = build_model(
        {"arch": "blip2_opt", "model_type": "pretrain_opt2.7b", "weights": str(tmp_path / "trimmed.pth"),
         "parts": parts, **config}
    )  # fmt: skip
    same(trimmed, model)
    trimmed.save_pretrained(tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "official", form="official")
    written = torch.load(tmp_path / "official" / "checkpoint.pth", weights_only=True)["model"]
    assert written.keys() == own.keys() and all(torch.equal(written[k], own[k]) for k in own)
    convert(str(tmp_path / "ours"), tmp_path / "theirs", form="transformers")
    same(load_model(str(tmp_path / "theirs")), model)
    convert(str(tmp_path / "ours"), tmp_path / "whole", form="official", whole=True)
    written = torch.load(tmp_path / "whole" / "checkpoint.pth", weights_only=True)["model"]
    assert {key for key in written if "position_ids" not in key} == {
        key for key in state if "position_ids" not in key
    }


# ------------------------------------------------------------------------------------------ whole folders
@pytest.mark.parametrize("kind", ["opt", "t5", "t5_instruct", "vicuna_instruct"])
def test_a_whole_folder_needs_no_other(tmp_path, kind):
    described = reference.manifest(kind)
    model = reference.build(described, reference.write(described, tmp_path / "model.pth"))
    wanted = says(model)
    model.save_pretrained(tmp_path / "whole", whole=True)
    shutil.rmtree(tmp_path / "language")
    (tmp_path / "model.pth").unlink()
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    description = (tmp_path / "moved" / "config.json").read_text()
    again = load_model(str(tmp_path / "moved"), is_eval=True)
    same(again, model)
    assert says(again) == wanted
    assert json.loads(description)["config"]["language_source"] == "language"
    again.save_pretrained(tmp_path / "twice", whole=True)
    assert says(load_model(str(tmp_path / "twice"), is_eval=True)) == wanted


def test_a_folder_may_not_name_a_tokenizer_elsewhere(official, tmp_path):
    official("opt").save_pretrained(tmp_path / "whole", whole=True)
    path = tmp_path / "whole" / "config.json"
    description = json.loads(path.read_text())
    description["config"]["language_source"] = str(tmp_path / "elsewhere")
    path.write_text(json.dumps(description))
    assert load_model(str(tmp_path / "whole")).language_source == str(tmp_path / "whole" / "language")
    shutil.rmtree(tmp_path / "whole" / "language")
    (tmp_path / "elsewhere").mkdir()
    model = load_model(str(tmp_path / "whole"))  # its part's source is still there
    assert model.language_source == model.parts["opt_model"].source
