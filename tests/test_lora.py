"""Low-rank adapters: no effect at the start, merged equal to unmerged, folders of adapters alone."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lavis.inference import load
from lavis.inference.convert import convert
from lavis.models import build_model, load_model
from lavis.models.checkpoints import read_state_dict
from lavis.nn.linear import ExactLinear
from lavis.nn.lora import LoraConfig, LoraLinear, add_lora, is_adapter, lora_state, merge_lora, remove_lora
from lavis.runners import train
from tests.small import images

CONFIG = LoraConfig(rank=2, alpha=6, targets=r"[abc]")


class Counting(nn.Linear):
    """Somebody's subclass with a forward of its own."""

    calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(input)


def layers() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.a, model.b, model.c = nn.Linear(6, 4), Counting(6, 4, bias=False), ExactLinear(6, 4)
    model.d = nn.Linear(6, 4)
    return model


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([layer(x) for layer in model.children()])


def stirred(model: Any) -> Any:
    """Adapters as after training, and whatever else is trained."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    for name, child in model.named_children():
        copy_of = getattr(model, f"{name}_m", None)
        if copy_of is not None:
            for slow, own in zip(copy_of.parameters(), child.parameters(), strict=True):
                if own.requires_grad:
                    slow.data.copy_(0.9 * own)
    return model


# ------------------------------------------------------------------------------------------ layers
def test_adapters_begin_without_effect_and_merged_they_give_the_same() -> None:
    model, x = layers(), torch.randn(3, 6)
    names, before = list(model.state_dict()), outputs(model, x)
    assert add_lora(model, CONFIG) is model
    assert torch.equal(outputs(model, x), before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(lora_state(model))
    assert (
        isinstance(model.a, LoraLinear) and isinstance(model.b, LoraLinear) and isinstance(model.b, Counting)
    )
    stirred(model)
    calls = model.b.calls
    found = outputs(model, x)
    assert model.b.calls == calls + 1
    for i, name in enumerate("abc"):
        layer: Any = getattr(model, name)
        update = 3 * (x @ layer.lora_a.t() @ layer.lora_b.t())
        torch.testing.assert_close(found[i], before[i] + update)
        assert update.abs().max() > 1e-3
    assert torch.equal(found[3], before[3])
    for again in (copy.deepcopy(model), reloaded(model)):
        assert torch.equal(outputs(again, x), found)
        assert torch.equal(outputs(remove_lora(again), x), before) and list(again.state_dict()) == names
    merge_lora(model)
    torch.testing.assert_close(outputs(model, x), found, atol=1e-6, rtol=0)
    assert list(model.state_dict()) == names and type(model.b) is Counting and type(model.a) is nn.Linear


def reloaded(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_gradients_are_those_of_the_product() -> None:
    model, x = layers(), torch.randn(3, 6)
    stirred(add_lora(model, CONFIG))
    model.a(x).square().sum().backward()
    a, b = (p.detach().clone().requires_grad_() for p in (model.a.lora_a, model.a.lora_b))
    (x @ (model.a.weight.detach() + 3 * b @ a).t() + model.a.bias.detach()).square().sum().backward()
    torch.testing.assert_close(model.a.lora_a.grad, a.grad)
    torch.testing.assert_close(model.a.lora_b.grad, b.grad)
    assert model.a.weight.grad is None


def test_short_formats_autocast_and_dropout() -> None:
    model, x = layers().half(), torch.randn(3, 6)
    torch.manual_seed(2)
    stirred(add_lora(model, dataclasses.replace(CONFIG, dropout=0.5)))
    assert model.a.lora_a.dtype == torch.float32 and model.a(x.half()).dtype == torch.float16
    wide = layers()
    torch.manual_seed(2)
    stirred(add_lora(wide, dataclasses.replace(CONFIG, dropout=0.5))).eval()
    torch.testing.assert_close(model.eval().a(x.half()).float(), wide.a(x), atol=5e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide.a(x).dtype == torch.bfloat16
        torch.testing.assert_close(wide.a(x).float(), wide.a(x.float()).float())
    wide.train()
    assert not torch.equal(wide.a(x), wide.a(x))
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(wide, CONFIG)


def test_what_is_meant() -> None:
    assert LoraConfig(targets=["query", "b.value"]).means("x.query") and LoraConfig(targets=["query"]).means(
        "query"
    )
    assert not LoraConfig(targets=["query"]).means("x.subquery")
    model = nn.ModuleDict({"outer": nn.ModuleDict({"base_layer": nn.Linear(2, 2)}), "plain": nn.Linear(2, 2)})
    add_lora(model, LoraConfig(targets=r".*"))  # inside somebody else's adapter nothing is adapted
    assert not isinstance(model["outer"]["base_layer"], LoraLinear) and isinstance(model["plain"], LoraLinear)  # type: ignore[index]
    with pytest.raises(ValueError, match=re.escape("names no linear layer; there are a, b, c, d")):
        add_lora(layers(), LoraConfig(targets="e"))


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"rank": 0}, "model.lora.rank is 0"),
        ({"rank": "many"}, "model.lora.rank is 'many'; expected whole number"),
        ({"ranks": 4}, "Did you mean 'rank'"),
        ({"alpha": -1}, "model.lora.alpha is -1"),
        ({"dropout": 1}, "model.lora.dropout is 1"),
        ({"targets": "("}, "no regular expression"),
        ({"targets": "nothing"}, "names no linear layer"),
        (8, "a mapping of rank"),
    ],
)
def test_recipes_are_refused_in_one_line(lora: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as e:
        build_model({"arch": "blip_caption", "model_type": "tiny_shapes", "lora": lora})
    assert "\n" not in str(e.value)


def test_random_weights_are_not_adapted() -> None:
    with pytest.raises(ValueError, match="these are random ones"):
        build_model({"arch": "blip_caption", "model_type": "tiny", "lora": {}})


# ------------------------------------------------------------------------------------------ models
SAMPLES = {
    "image": images(2), "text_input": ["a red circle", "two blue stars"], "label": torch.tensor([0, 2]),
    "image_id": torch.tensor([1, 2]), "answer": ["red", "two"], "answers": torch.tensor([0, 2]),
    "weight": torch.ones(2),
    "n_answers": torch.ones(2, dtype=torch.long), "epoch": 1, "iters": 1, "num_iters_per_epoch": 2,
}  # fmt: skip
NAMES = [
    "blip_caption", "blip_vqa", "blip_retrieval", "blip_pretrain", "blip_classification", "albef_retrieval", "alpro_qa",
]  # fmt: skip


def samples_for(model: Any) -> dict[str, Any]:
    if model.MEDIA == "video":
        return {**SAMPLES, "video": torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))}
    return SAMPLES


def loss_of(model: Any) -> torch.Tensor:
    torch.manual_seed(3)
    model.eval()
    with torch.no_grad():
        return model(samples_for(model)).loss


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_adapters_loads_again(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    plain = build_model({"arch": name, "model_type": "tiny_shapes"})
    torch.manual_seed(0)  # of queues and heads
    model: Any = build_model({"arch": name, "model_type": "tiny_shapes", "lora": {"rank": 2}})
    assert torch.equal(loss_of(model), loss_of(plain))
    stirred(model)
    model.save_pretrained(tmp_path / "adapters")
    kept = load_file(tmp_path / "adapters" / "adapter.safetensors")
    size = sum(t.numel() for n, t in kept.items() if not n.endswith("_queue"))
    assert size < 0.25 * sum(p.numel() for p in plain.parameters())
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    again = load_model(str(tmp_path / "adapters"))
    assert trained == {n for n, p in again.named_parameters(remove_duplicate=False) if p.requires_grad}
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    wanted = loss_of(model)
    assert torch.equal(loss_of(again), wanted)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (
        tmp_path / "adapters" / "config.json"
    ).read_text()
    # merged: for use, as weights to start from, and as a file
    convert(str(tmp_path / "adapters"), tmp_path / "merged", merge=True, for_training=True)
    merged = load_model(str(tmp_path / "merged"))
    assert merged.lora is None and merged.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(loss_of(merged), wanted, atol=2e-6, rtol=2e-6)
    assert load(str(tmp_path / "adapters"), device="cpu").model.lora is None
    start = build_model({"arch": name, "model_type": "tiny_shapes", "weights": str(tmp_path / "adapters")})
    torch.testing.assert_close(loss_of(start), wanted, atol=2e-6, rtol=2e-6)
    convert(str(tmp_path / "adapters"), tmp_path / "whole", whole=True, for_training=True)
    assert not (tmp_path / "whole" / "adapter.safetensors").exists()
    assert torch.equal(loss_of(load_model(str(tmp_path / "whole"))), wanted)


def test_the_ema_follows_adapters_and_leaves_the_rest() -> None:
    model: Any = build_model({"arch": "blip_retrieval", "model_type": "tiny_shapes", "lora": {"rank": 2}})
    stirred(model.train())
    before = copy.deepcopy(model.state_dict())
    model.before_step(1.0)
    for key, tensor in model.state_dict().items():
        moved = not torch.equal(tensor, before[key])
        assert moved == (re.match(r"\w+_m\.", key) is not None and is_adapter(key)), key


def test_a_layer_is_one_graph() -> None:
    model = stirred(add_lora(layers(), CONFIG))
    compiled = torch.compile(model.a, fullgraph=True, backend="eager")
    x = torch.randn(3, 6)
    torch.testing.assert_close(compiled(x), model.a(x))


def test_another_base_is_refused_and_a_folder_that_is_its_own_base(tmp_path: Path) -> None:
    base = load_model("blip_caption", "tiny_shapes")
    base.save_pretrained(tmp_path / "base")
    recipe = {"arch": "blip_caption", "model_type": "tiny_shapes", "weights": str(tmp_path / "base")}
    stirred(build_model({**recipe, "lora": {}})).save_pretrained(tmp_path / "adapters")
    load_model(str(tmp_path / "adapters"))
    base.visual_encoder.cls_token.data += 1
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"is not what .* was trained with") as e:
        load_model(str(tmp_path / "adapters"))
    assert len(re.findall("[0-9a-f]{64}", str(e.value))) == 2 and str(tmp_path / "base") in str(e.value)
    path = tmp_path / "adapters" / "config.json"
    description = json.loads(path.read_text())
    for change, words in (
        ({"base": {**description["base"], "source": str(tmp_path / "adapters")}}, "refers to itself"),
        ({"base": {**description["base"], "source": "~/a"}}, "an absolute path"),
        ({"base": {**description["base"], "kind": "other"}}, "expected one of"),
        ({"base": {**description["base"], "sha256": None}}, "sha256 is missing"),
        ({"base": "x"}, "no mapping"),
        ({"lora": {"rank": 10**9}}, "rank is 1000000000"),
        ({"lora": {"rank": 2, "targets": "("}}, "no regular expression"),
        ({"lora": [1]}, "lora is no mapping"),
        ({"trained": "all"}, "no list of names"),
        ({"trained": ["head\n"]}, "no parameter 'head?'"),
        ({"lora": {**description["lora"], "rank": 3}}, "of another shape"),
    ):
        path.write_text(json.dumps({**description, **change}))
        with pytest.raises(ValueError, match=re.escape(words)) as refused:
            load_model(str(tmp_path / "adapters"))
        assert "\n" not in str(refused.value), str(refused.value)


def test_unpaired_and_unknown_entries_are_refused(tmp_path: Path) -> None:
    model: Any = build_model({"arch": "blip_caption", "model_type": "tiny_shapes", "lora": {}})
    model.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter.safetensors"
    kept = load_file(path)
    some = next(iter(key for key in kept if key.endswith("lora_a")))
    save_file({k: t for k, t in kept.items() if k != some}, path)
    with pytest.raises(ValueError, match="1 missing"):
        load_model(str(tmp_path / "a"))
    save_file({**kept, "elsewhere.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"1 unexpected: elsewhere\.weight"):
        load_model(str(tmp_path / "a"))


def test_a_run_trains_adapters_alone(tmp_path: Path) -> None:
    options = {
        "model.lora.rank": 4, "run.max_epoch": None, "run.max_iters": 5, "run.batch_size_train": 8,
        "run.valid_splits": [], "run.test_splits": [], "run.init_lr": 1e-2, "run.num_workers": 0,
        "run.output_dir": str(tmp_path), "run.warmup_steps": 0, "run.device": "cpu", "run.log_freq": 1,
    }  # fmt: skip
    recipe = {"model.model_type": "tiny_shapes", "model.weights": "finetuned"}
    result = train("blip/caption_shapes", options={**recipe, **options, "run.job_id": "a"})
    broken = {**recipe, **options, "run.job_id": "b"}
    train("blip/caption_shapes", options={**broken, "run.max_iters": 3})
    again = train("blip/caption_shapes", options={**broken, "run.resume_ckpt_path": "auto"})
    kept = [load_file(Path(str(r.checkpoint_last)) / "adapter.safetensors") for r in (result, again)]
    assert kept[0].keys() == kept[1].keys() and all(torch.equal(kept[0][k], kept[1][k]) for k in kept[0])
    assert any(t.abs().max() > 1e-3 for k, t in kept[0].items() if k.endswith("lora_b"))
    base = load_model("blip_caption", "tiny_shapes").state_dict()
    state = read_state_dict(Path(str(result.checkpoint_last)))  # with adapters merged
    changed = {key for key, tensor in state.items() if not torch.equal(tensor, base[key])}
    assert changed and all(re.search(r"(query|value|qkv)\.weight$", key) for key in changed)


# ------------------------------------------------------------------------------------------ peft's folders
@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_of_peft_are_read(tmp_path: Path, rslora: bool) -> None:
    theirs: Any = load_model("blip_vqa", "tiny_shapes", is_eval=True)
    settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=r".*\.(query|qkv|dense)", use_rslora=rslora)
    wrapped = peft.get_peft_model(theirs, settings)
    stirred(wrapped)
    wrapped.save_pretrained(tmp_path / "peft")
    ours: Any = load_model("blip_vqa", "tiny_shapes", checkpoint=tmp_path / "peft")
    assert ours.lora is not None and ours.lora.rank == 3
    wanted = loss_of(theirs)
    torch.testing.assert_close(loss_of(ours), wanted)
    assert (wanted - loss_of(load_model("blip_vqa", "tiny_shapes"))).abs() > 1e-3
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(loss_of(load_model(str(tmp_path / "ours"))), loss_of(ours))
    path = tmp_path / "peft" / "adapter_config.json"
    values = json.loads(path.read_text())
    for change, words in (
        ({"peft_type": "IA3"}, "peft_type is IA3"), ({"use_dora": True}, "use_dora is True"),
        ({"r": "3"}, "r is 3"), ({"r": 0}, "rank is 0"), ({"lora_alpha": 10**400}, "adapter_config.json"),
        ({"modules_to_save": ["x"]}, "modules_to_save"), ({"r": 4}, "of another shape"),
    ):  # fmt: skip
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match=re.escape(words)) as refused:
            load_model("blip_vqa", "tiny_shapes", checkpoint=tmp_path / "peft")
        assert "\n" not in str(refused.value)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="names no linear layer"):
        load_model("gpt_dialogue", "tiny", checkpoint=tmp_path / "peft")
