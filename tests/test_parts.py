"""Weights of several sources: assembled, frozen, left out when saved, compared when loaded; hostile descriptions."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lavis.common.config import Config
from lavis.inference.convert import convert
from lavis.models import Part, build_model, checkpoints, load_model
from lavis.models.checkpoints import read_state_dict
from lavis.models.parts import as_input_of, digest
from tests.two_parts import NAME, batch, registered, write_language_model, write_tower


@pytest.fixture
def files(tmp_path):
    with registered(tmp_path / "sources" if (tmp_path / "sources").mkdir() is None else tmp_path) as folder:
        yield folder


def same(a: Any, b: Any) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype and torch.equal(tensor, theirs[key]), key


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(batch()).scores


def steps(model: Any, count: int = 3) -> Any:
    model.train()
    optimizer = torch.optim.AdamW(model.get_optimizer_params(0.1), lr=0.01)
    for i in range(count):
        optimizer.zero_grad()
        model(batch(i)).loss.backward()
        optimizer.step()
    return model


# ------------------------------------------------------------------------------------------ assembling
def test_a_model_is_put_together_from_three_files(files):
    model = load_model(NAME, "base")
    tower, trained = write_tower(files / "again.pth"), load_file(files / "m.safetensors")
    for key, tensor in tower.items():
        kept = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(model.state_dict()[f"visual_encoder.{key}"], kept)
    assert torch.equal(model.connector.weight, trained["connector.weight"])
    theirs = write_language_model(files / "language again")
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(model.language_model.state_dict()[key], tensor)
    assert model.language_model.lm_head.weight is model.language_model.transformer.wte.weight
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))  # also what no file holds
    with torch.no_grad():
        wanted = theirs.eval()(inputs_embeds=torch.ones(1, 1, 16)).logits
        found = model.eval().language_model(inputs_embeds=torch.ones(1, 1, 16)).logits
    torch.testing.assert_close(found, wanted)


def test_frozen_parts_are_not_trained(files):
    model = load_model(NAME, "base")
    before = copy.deepcopy(model.state_dict())
    assert {p.dtype for p in model.visual_encoder.parameters()} == {torch.float16}
    trained = [p for group in model.get_optimizer_params(0.1) for p in group["params"]]
    assert {id(p) for p in trained} == {
        id(p) for module in (model.connector, model.query, model.head) for p in module.parameters()
    }
    steps(model)
    assert not any(m.training for m in model.visual_encoder.modules()) and model.connector.training
    assert not any(m.training for m in model.language_model.modules())
    for key, tensor in model.state_dict().items():
        frozen = key.startswith(("visual_encoder.", "language_model."))
        assert torch.equal(tensor, before[key]) == frozen, key
    assert all(p.grad is None for p in model.visual_encoder.parameters())
    free = load_model(NAME, "base", parts={"visual_encoder": {"frozen": False, "dtype": "float32"}}).train()
    assert free.visual_encoder.training and all(p.requires_grad for p in free.visual_encoder.parameters())
    assert torch.equal(free.visual_encoder.patches.weight, write_tower(files / "tower.pth")["patches.weight"])


def test_a_part_that_the_file_holds_is_taken_from_it_and_not_fetched(files, caplog):
    whole = {k: t.clone() for k, t in load_model(NAME, "base").state_dict().items()}
    whole["visual_encoder.patches.weight"] += 1
    torch.save({"model": whole}, files / "whole.pth")
    (files / "tower.pth").rename(files / "moved.pth")
    model = load_model(NAME, "base", checkpoint=files / "whole.pth")
    assert torch.equal(model.visual_encoder.patches.weight, whole["visual_encoder.patches.weight"])
    model.save_pretrained(files / "saved")  # what no source gives is written
    same(load_model(str(files / "saved")), model)
    # neither is one that is named, as by the recipe that a run's checkpoint is evaluated with; that is said
    caplog.clear()
    parts = {"visual_encoder": str(files / "moved.pth")}
    named = load_model(NAME, "base", checkpoint=files / "whole.pth", parts=parts)
    assert torch.equal(named.visual_encoder.patches.weight, whole["visual_encoder.patches.weight"])
    assert "holds the part 'visual_encoder' itself" in caplog.text and "moved.pth is not read" in caplog.text
    caplog.clear()
    section = {"arch": NAME, "model_type": "base", "weights": str(files / "saved"), "parts": parts}
    same(build_model(section), model)
    assert "holds the part 'visual_encoder' itself" in caplog.text


def test_parts_of_random_and_of_pretrained_weights_and_of_a_module_of_ours(files):
    started = build_model({"arch": NAME, "model_type": "base", "weights": "none"})
    loaded = load_model(NAME, "base")
    assert torch.equal(started.visual_encoder.patches.weight, loaded.visual_encoder.patches.weight)
    assert not torch.equal(started.connector.weight, loaded.connector.weight)
    path = str(files / "m.safetensors")
    tuned = build_model({"arch": NAME, "model_type": "base", "weights": "pretrained", "pretrained": path})
    assert torch.equal(tuned.connector.weight, loaded.connector.weight)
    assert not torch.equal(tuned.head.weight, loaded.head.weight)
    assert torch.equal(tuned.language_model.lm_head.weight, loaded.language_model.lm_head.weight)
    loaded.save_pretrained(files / "folder", whole=True)
    write_tower(files / "tower.pth", seed=9)
    same(load_model(NAME, "base", parts={"visual_encoder": str(files / "folder")}), loaded)


def test_what_no_file_holds_must_be_made(files, monkeypatch):
    monkeypatch.setattr("tests.two_parts.building", lambda name: contextlib.nullcontext())
    with pytest.raises(ValueError, match=r"lavis\.models\.parts\.building"):
        load_model(NAME, "base")


def test_overrides_and_their_errors(files):
    recipe = {"arch": NAME, "model_type": "base"}
    other = write_tower(files / "other.pth", seed=7)
    model = build_model({**recipe, "parts": {"visual_encoder": {"source": str(files / "other.pth")}}})
    assert torch.equal(model.visual_encoder.patches.weight, other["patches.weight"].half())
    option = [
        f"model.parts.visual_encoder.source={files / 'other.pth'}",
        "model.parts.language_model.frozen=false",
    ]
    model = build_model(Config.from_dict({"model": recipe}, option).model)
    assert torch.equal(model.visual_encoder.patches.weight, other["patches.weight"].half())
    assert all(p.requires_grad for p in model.language_model.parameters())
    for values, words in (
        ({"visual_encoders": "x"}, "no part 'visual_encoders'. Did you mean 'visual_encoder'?"),
        ({"visual_encoder": {"sauce": "x"}}, "Did you mean 'source'"),
        ({"visual_encoder": {"dtype": "float8"}}, "one of float32, float16, bfloat16"),
        ({"visual_encoder": {"frozen": "maybe"}}, "expected true or false"),
        ({"visual_encoder": 3}, "a source, or a mapping"),
        ("visual_encoder", "a mapping of parts"),
        ({"visual_encoder": "not there.pth"}, "its part 'visual_encoder' comes from not there.pth"),
    ):
        with pytest.raises((ValueError, OSError), match=re.escape(words)) as e:
            build_model({**recipe, "parts": values})
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="no source of it is named; give one with"):
        load_model(NAME, "without")
    source = {"visual_encoder": Part(str(files / "tower.pth"))}
    assert load_model(NAME, "without", parts=source).visual_encoder.patches.weight.dtype == torch.float16
    with pytest.raises(ValueError, match="no part 'visual_encoder'"):
        build_model({"arch": "blip_caption", "model_type": "tiny", "parts": {"visual_encoder": "x"}})
    state = torch.load(files / "tower.pth")["model"]
    del state["blocks.1.bias"]
    torch.save(state, files / "cut.pth")
    with pytest.raises(ValueError, match=r"cut.pth \(the part 'visual_encoder'\).*1 missing: blocks.1.bias"):
        load_model(NAME, "base", parts={"visual_encoder": str(files / "cut.pth")})


# ------------------------------------------------------------------------------------------ saving
def test_frozen_parts_are_left_out_and_load_again(files):
    model = steps(load_model(NAME, "base"))
    model.save_pretrained(files / "saved")
    names = {key.partition(".")[0] for key in load_file(files / "saved" / "model.safetensors")}
    assert names == {"connector", "query", "head"}
    parts = json.loads((files / "saved" / "config.json").read_text())["parts"]
    entries = {k.removeprefix("visual_encoder."): t for k, t in model.state_dict().items() if "visual" in k}
    assert parts["visual_encoder"] == {
        "source": str(files / "tower.pth"), "dtype": "float16", "frozen": True, "sha256": digest(entries)
    }  # fmt: skip
    again = load_model(str(files / "saved"))
    same(again, model)
    assert torch.equal(scores(again), scores(model))
    assert again.train().visual_encoder.training is False
    # and so on: saved again, as weights of a recipe, and as a whole
    again.save_pretrained(files / "twice")
    assert (files / "twice" / "config.json").read_text() == (files / "saved" / "config.json").read_text()
    tuned = build_model({"arch": NAME, "model_type": "base", "weights": str(files / "saved")})
    same(tuned, model)
    tuned.save_pretrained(files / "third")
    assert (files / "third" / "model.safetensors").stat().st_size == (
        files / "twice" / "model.safetensors"
    ).stat().st_size
    assert read_state_dict(files / "saved").keys() == model.state_dict().keys()
    convert(str(files / "saved"), files / "whole", whole=True)
    convert(str(files / "saved"), files / "half", half=True)
    (files / "tower.pth").unlink()
    same(load_model(str(files / "whole")), model)
    with pytest.raises(FileNotFoundError, match="its part 'visual_encoder' comes from"):
        load_model(str(files / "saved"))


def test_a_changed_part_is_written_with_the_rest(files):
    model = load_model(NAME, "base", parts={"visual_encoder": {"dtype": "float32"}})
    model.visual_encoder.requires_grad_(True)
    steps(model)
    model.requires_grad_(False)
    model.save_pretrained(files / "saved")
    assert (
        json.loads((files / "saved" / "config.json").read_text())["parts"]["visual_encoder"]["sha256"] is None
    )
    same(load_model(str(files / "saved")), model)


@pytest.mark.parametrize("part", ["visual_encoder", "language_model"])
def test_a_source_that_has_changed_is_refused(files, part):
    load_model(NAME, "base").save_pretrained(files / "saved")
    wanted = json.loads((files / "saved" / "config.json").read_text())["parts"][part]["sha256"]
    write_tower(files / "tower.pth", seed=4 if part == "visual_encoder" else 1)
    write_language_model(files / "language", seed=4 if part == "language_model" else 2)
    with pytest.raises(ValueError) as e:
        load_model(str(files / "saved"))
    text = str(e.value)
    assert (
        wanted in text and part in text and str(files) in text and len(re.findall("[0-9a-f]{64}", text)) == 2
    )
    write_tower(files / "moved.pth")  # the right ones, elsewhere
    write_language_model(files / "moved")
    moved = {"visual_encoder": str(files / "moved.pth"), "language_model": str(files / "moved")}
    load_model(str(files / "saved"), parts=moved)


def test_a_source_may_be_a_url(files, monkeypatch):
    monkeypatch.setenv("LAVIS_MIRROR", f"https://weights.example/={files.as_uri()}/")
    url = "https://weights.example/tower.pth"
    model = load_model(NAME, "base", parts={"visual_encoder": url})
    same(model, load_model(NAME, "base"))
    model.save_pretrained(files / "saved")
    assert (
        json.loads((files / "saved" / "config.json").read_text())["parts"]["visual_encoder"]["source"] == url
    )
    same(load_model(str(files / "saved")), model)
    near = load_model(NAME, "base", parts={"visual_encoder": (files / "tower.pth").as_uri()})
    near.save_pretrained(files / "near")  # a description may not name it, so it is written
    same(load_model(str(files / "near")), model)


def test_parts_of_one_source_are_read_once(files, monkeypatch):
    whole = load_model(NAME, "base", parts={"visual_encoder": {"dtype": "float32"}})
    state = {k: t for k, t in whole.state_dict().items() if not k.startswith(("connector", "query", "head"))}
    torch.save(state, files / "language" / "pytorch_model.bin")
    for path in files.glob("language/*.safetensors*"):
        path.unlink()
    read = []
    monkeypatch.setattr(
        checkpoints, "_read_file", lambda path, old=checkpoints._read_file: read.append(path) or old(path)
    )
    both = {name: str(files / "language") for name in ("visual_encoder", "language_model")}
    same(
        load_model(NAME, "base", parts={**both, "visual_encoder": Part(both["visual_encoder"], "float32")}),
        whole,
    )
    assert [path.name for path in read] == ["m.safetensors", "pytorch_model.bin"]


def test_inputs_are_cast_at_the_border_in_one_graph():
    layer, x = torch.nn.Linear(3, 2).half(), torch.randn(4, 3)
    wanted = layer(x.half())
    cast = torch.compile(lambda t: layer(as_input_of(layer, t)), fullgraph=True, backend="eager")
    assert torch.equal(cast(x), wanted)
    tokens, floats = as_input_of(layer, torch.arange(3), x)
    assert tokens.dtype == torch.long and floats.dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert as_input_of(layer, x) is x


# ------------------------------------------------------------------------------------------ hostile descriptions
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "~/.ssh/id_rsa"}, "an absolute path"),
        ({"source": "file:///etc/passwd"}, "an absolute path"),
        ({"source": "ftp://host/a"}, "an absolute path"),
        ({"source": "//host/share/a"}, "an absolute path"),
        ({"source": "\\\\host\\share"}, "an absolute path"),
        ({"source": "../../secret.pth"}, "an absolute path"),
        ({"source": "packaged:../.."}, "an absolute path"),
        ({"source": "a" * 5000}, "neither text"),
        ({"source": "/tmp/a\x1b[31m\nb"}, "not plain text"),
        ({"source": 10**400}, "neither text"),
        ({"source": None}, "no source is named"),
        ({"source": ["/a"]}, "neither text"),
        ({"dtype": "complex128"}, "one of float32"),
        ({"dtype": 16}, "neither text"),
        ({"frozen": "yes"}, "true or false"),
        ({"sha256": "00"}, "no SHA-256"),
        ({"sha256": 1e300}, "neither text"),
        ({"code": "import os"}, "no known key"),
    ],
)
def test_hostile_descriptions_are_refused_in_one_line(files, change, words):
    load_model(NAME, "base").save_pretrained(files / "saved")
    path = files / "saved" / "config.json"
    description = json.loads(path.read_text())
    description["parts"]["visual_encoder"].update(change)
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=re.escape(words)) as e:
        load_model(str(files / "saved"))
    text = str(e.value)
    assert "\n" not in text and "\x1b" not in text and len(text) < 1000 and str(files) in text


@pytest.mark.parametrize(
    "parts", [[], "x", {"a" * 200: {}}, {"a.b": {}}, {"x": 1}, {"x": {}}, {"__init__": {"source": "/a"}}]
)
def test_hostile_parts_are_refused(files, parts):
    load_model(NAME, "base").save_pretrained(files / "saved", whole=True)
    path = files / "saved" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parts": parts}))
    with pytest.raises(ValueError) as e:
        load_model(str(files / "saved"))
    assert "\n" not in str(e.value) and len(str(e.value)) < 1000


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_part_is_executed(files):
    load_model(NAME, "base").save_pretrained(files / "saved")
    (files / "tower.pth").write_bytes(pickle.dumps({"model": Evil(files / "executed")}))
    with pytest.raises(ValueError, match="never executed"):
        load_model(str(files / "saved"))
    assert not (files / "executed").exists()


def test_a_description_of_more_layers_than_any_file_is_refused(files):
    load_model(NAME, "base").save_pretrained(files / "saved")
    path = files / "saved" / "config.json"
    description = json.loads(path.read_text())
    description["config"]["depth"] = 10**7
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="depth is 10000000"):
        load_model(str(files / "saved"))


def test_the_digest_is_of_names_formats_shapes_and_bytes():
    state = {"b": torch.arange(6.0), "a": torch.ones(2, 3)}
    assert digest(state) == digest(dict(reversed(state.items())))
    others = [
        {**state, "b": state["b"].half()},
        {**state, "b": state["b"].view(2, 3)},
        {**state, "b": state["b"] + 1},
        {"b": state["a"], "a": state["b"]},
    ]
    assert len({digest(s) for s in (state, *others)}) == 5
    assert digest({"a": torch.ones(3, 2).t()}) == digest({"a": torch.ones(2, 3)})
