"""How large models are, known without weights; loads that can't fit say so before they start."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lavis.cli.main import main
from lavis.common import memory
from lavis.common.registry import registry
from lavis.models import checkpoints, load_model, sizes
from tests.helpers import blip2_reference as reference

pytest.importorskip("transformers")

# of the language models, as their publishers count them
LANGUAGES = {
    "blip2_opt/pretrain_opt2.7b": 2_651_596_800,
    "blip2_opt/caption_coco_opt6.7b": 6_658_473_984,
    "blip2_t5/pretrain_flant5xl": 2_849_757_184,
    "blip2_t5_instruct/flant5xxl": 11_135_332_352,
    "blip2_vicuna_instruct/vicuna7b": 6_738_415_616,
    "blip2_vicuna_instruct/vicuna13b": 13_015_864_320,
}


@pytest.mark.parametrize("spec", LANGUAGES)
def test_published_sizes(spec):
    name, _, model_type = spec.partition("/")
    tower, language, rest = sizes.sizes_of(registry.get_model_class(name), model_type)
    assert language.parameters == LANGUAGES[spec] and rest.name == sizes.REST
    assert 985e6 < tower.parameters < 988e6
    for size in (tower, language, rest):
        assert size.bytes["float32"] == 4 * size.parameters
        assert size.bytes["bfloat16"] == 2 * size.parameters <= size.bytes["float16"]
    if "t5" not in name:  # a part of which stays in float32
        assert language.bytes["float16"] == language.bytes["bfloat16"]


def test_sizes_are_those_of_a_loaded_model(tmp_path):
    described = reference.manifest("t5")
    model = reference.build(described, reference.write(described, tmp_path / "model.pth"))
    preset = replace(model.preset("pretrain_flant5xl"), config=model.config)
    cls = type("Small", (type(model),), {"PRESETS": {"small": preset}})
    found = sizes.sizes_of(cls, "small")
    assert sum(size.parameters for size in found) == sum(p.numel() for p in model.parameters())
    assert found[1].parameters == sum(p.numel() for p in model.t5_model.parameters())


def test_models_with_parts_are_listed_part_by_part(capsys):
    assert main(["models", "blip2_opt", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    row = rows["blip2_opt/pretrain_opt2.7b"]
    assert row["commercial"] is False
    parts = {part["part"]: part for part in row["parts"]}
    assert parts["opt_model"]["commercial"] is False and "OPT-175B" in parts["opt_model"]["licence"]
    assert parts["visual_encoder"]["frozen"] and parts["opt_model"]["bytes"]["bfloat16"] == 2 * 2_651_596_800
    assert main(["models", "blip2_t5_instruct"]) == 0
    out = capsys.readouterr().out
    assert "Apache-2.0" in out and "12,230 M" not in out and "loaded as it is" in out
    assert main(["models", "--json"]) == 0  # of all of them, no sizes
    assert not any("parts" in row for row in json.loads(capsys.readouterr().out))


def test_a_load_that_can_not_fit_says_so_before_it_starts(tmp_path, monkeypatch):
    described = reference.manifest("opt")
    checkpoint = reference.write(described, tmp_path / "model.pth")
    model = reference.build(described, checkpoint)
    model.save_pretrained(tmp_path / "whole", whole=True)
    needed = sum(p.numel() * 4 for p in model.parameters())
    trained = {k: t for k, t in reference.state_dict(described).items() if not k.startswith("opt_model.")}
    torch.save({"model": trained}, checkpoint)  # the rest is still to be read
    language = sum(p.numel() * 4 for p in model.opt_model.parameters())
    read = []
    original = checkpoints.read_state_dict
    monkeypatch.setattr(
        checkpoints, "read_state_dict", lambda path, *a, **k: read.append(path) or original(path, *a, **k)
    )
    monkeypatch.setattr(memory, "available", lambda device: language + (1 << 20))
    reference.build(described, checkpoint)
    assert tmp_path / "language" in read
    read.clear()
    monkeypatch.setattr(memory, "available", lambda device: language // 2)
    with pytest.raises(
        ValueError, match=r"does not fit into memory: its weights take .* \(visual_encoder"
    ) as e:
        reference.build(described, checkpoint)
    message = str(e.value)
    assert f"{memory.shown(language // 2)} are free on cpu" in message and "\n" not in message
    assert memory.shown(needed)[:3] in message and "'opt_model': {'dtype': 'bfloat16'}" in message
    assert read == [checkpoint]
    # all of it is in memory already: nothing more is needed
    monkeypatch.setattr(memory, "available", lambda device: 1 << 16)
    load_model(str(tmp_path / "whole"))


def test_another_device_has_memory_of_its_own(tmp_path, monkeypatch):
    described = reference.manifest("opt")
    model = reference.build(described, reference.write(described, tmp_path / "model.pth"))
    monkeypatch.setattr(memory, "available", lambda device: None if device.type == "cpu" else 1000)
    with (
        sizes.going_to(torch.device("cuda", 0)),
        pytest.raises(ValueError, match=r"0\.0 MB are free on cuda:0"),
    ):
        sizes.check_fits(model, model.parts, 0, "it")
    sizes.check_fits(model, model.parts, 0, "it")


def test_memory_of_this_machine_and_of_a_container(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    (tmp_path / "meminfo").write_text(
        "MemTotal: 900 kB\nMemAvailable:  500 kB\nSwapFree: 24 kB\nHugePages_Total: 0\n"
    )
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert memory.available(cpu) == 524 * 1024
    (tmp_path / "memory.max").write_text("300000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 2000\nactive_file 1000\n")
    assert memory.available(cpu) == 203_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available(cpu) == 524 * 1024
    (tmp_path / "meminfo").write_text("nothing of use\n")
    assert memory.available(cpu) is None
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "missing")
    assert memory.available(cpu) is None
