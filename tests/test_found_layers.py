"""What finds a model's linear layers from outside: adapters, int8 weights, export, and `prepare` in others' models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from lavis.models.fusion import TextStates
from lavis.models.tokenizer import Tokens
from lavis.nn import cpu, language_model
from lavis.nn.lora import LoraConfig, adapted_layers, add_lora, merge_lora
from tests.every_method import assert_same, every_method_model, results, samples_of
from tests.small import images, random_model


def fast_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) in cpu.FAST.values()]


# ----------------------------------------------------------------------------------------- adapters


def peft_lora(model: nn.Module, names: list[str]) -> Callable[[], None]:
    """LoRA of peft on layers of some names, far from its start; gives what merges it into the weights."""
    import peft
    from peft.tuners.lora import LoraLayer

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, init_lora_weights=False)
    torch.manual_seed(1)
    peft.inject_adapter_in_model(config, model)
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert len(layers) >= 3
    return lambda: [layer.merge() for layer in layers]  # type: ignore[func-returns-value,operator,return-value]


def own_lora(model: nn.Module, names: list[str]) -> Callable[[], Any]:
    """Adapters of this library in the layers of these names, with other than starting weights."""
    add_lora(model, LoraConfig(rank=4, alpha=16, targets=names))
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_b, std=0.2)
    return lambda: merge_lora(model)


INJECTED = {"peft": peft_lora, "own": own_lora}  # {library: inject(model, names) -> merge()}
ADAPTED = [  # each of the public methods is among theirs
    "blip_caption", "blip_vqa", "albef_vqa", "blip_retrieval", "albef_retrieval", "alpro_retrieval",
    "blip_feature_extractor", "blip_image_text_matching", "blip_nlvr", "blip_vis_dialogue", "clip",
]  # fmt: skip


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("library", INJECTED)
def test_adapters_give_the_merged_models_results_in_every_path(monkeypatch, library, name):
    monkeypatch.setattr(cpu, "_SMALL", 0)
    monkeypatch.setattr(cpu, "cpu_maker", lambda: "AMD")
    model = every_method_model(name)
    before = results(cpu.prepare(model, pack=True))  # as a model is that has been used
    merge = INJECTED[library](model, ["query", "value", "qkv"])
    adapted = results(model)
    merge()
    assert_same(results(model), adapted, 1e-3)
    for method, found in adapted.items():
        pairs = [
            (torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(found, before[method], strict=True)
            if not isinstance(a, str)
        ]
        changed = any(a.shape != b.shape or not torch.allclose(a, b, 1e-2, 1e-2) for a, b in pairs)
        assert changed, f"{method} skips the adapters"


@pytest.mark.parametrize("library", INJECTED)
def test_adapters_are_trained(library):
    model = random_model("blip_caption")
    samples = {"image": images(2), "text_input": ["a red star", "one"]}
    model.generate(samples)
    INJECTED[library](model, ["query", "value", "qkv"])
    model.train()
    assert not fast_layers(model)
    model(samples).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) > 10 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


# ------------------------------------------------------------------------------------- int8 weights


@pytest.mark.parametrize("packed", [None, False, True])
@pytest.mark.parametrize("name", ["blip_caption", "blip_retrieval", "clip", "blip_vqa"])
def test_int8_weights_quantize_every_linear_layer_and_are_near(name, packed):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = random_model(name, spread=0.02)
    image = samples_of(model)["image"]
    embed = model.embed_images if hasattr(model, "embed_images") else model.visual_encoder
    with torch.no_grad():
        wanted = embed(image)
        if packed is not None:
            cpu.prepare(model, pack=packed)
        quantize_(model, Int8WeightOnlyConfig())
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert len(layers) > 10
        assert all(
            hasattr(layer.weight, "dequantize") and type(layer.weight) is not nn.Parameter for layer in layers
        )
        found = embed(image)
    assert not torch.equal(found, wanted)
    assert nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1)).min() > 0.999
    assert results(model)  # generate, rank, match, explain


# ------------------------------------------------------------------------------------------- export

BATCH, LENGTH = Dim("batch", min=1, max=64), Dim("length", min=2, max=30)


class Called(nn.Module):
    """A function of a model, as the module that `torch.export` asks for."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(self.model, *args)


def media(model: Any, batch: int) -> torch.Tensor:
    size = model.config.image_size
    if getattr(model, "MEDIA", "image") == "video":
        return torch.randn(batch, 3, 4, size, size)
    return torch.randn(batch, 3, size, size)


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(5, 50, (batch, length))


def tokens(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return ids(batch, length), torch.arange(length) < torch.randint(1, length + 1, (batch, 1))


def match(model: Any, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    read = Tokens(text, mask)
    states = model.encode_text(read) if model.FUSES_STATES else None
    return model.match_logits(TextStates(read, states), model.memorize(model.encode_image(image)))


def decoding_step(
    model: Any, last: torch.Tensor, place: torch.Tensor, cache: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    decoder = model.text_decoder
    return language_model._step(decoder, last, place, cache, decoder.project_memory(states))


def step_inputs(model: Any, batch: int, room: int, place: int) -> tuple[torch.Tensor, ...]:
    config = model.text_decoder.bert.config
    cache = torch.randn(config.depth, 2, batch, config.heads, room, config.width // config.heads)
    return ids(batch, 1), torch.tensor([place]), cache, torch.randn(batch, 5 + room, config.memory_width)


IMAGE = (lambda model, image: model.encode_image(image), ({0: BATCH},), lambda m, b, t: (media(m, b),))
TEXT = (
    lambda model, text, mask: model.encode_text(Tokens(text, mask)),
    ({0: BATCH, 1: LENGTH},) * 2,
    lambda m, b, t: tokens(b, t),
)
MATCH = (match, ({0: BATCH}, *TEXT[1]), lambda m, b, t: (media(m, b), *tokens(b, t)))
EXPORTS: dict[str, tuple[str, Callable[..., Any], Any, Callable[..., Any]]] = {
    **{f"{n}, image": (n, *IMAGE) for n in ("blip_retrieval", "albef_retrieval", "alpro_retrieval", "clip")},
    **{f"{n}, text": (n, *TEXT) for n in ("blip_retrieval", "albef_retrieval", "alpro_retrieval")},
    **{f"{n}, matching": (n, *MATCH) for n in ("blip_retrieval", "albef_retrieval", "alpro_retrieval")},
    "clip, text": (
        "clip", lambda model, text: model.encode_text(text), ({0: BATCH, 1: Dim("tokens", min=2, max=16)},),
        lambda m, b, t: (ids(b, t),),
    ),
    "caption, image": (
        "blip_caption", lambda model, image: model.forward_encoder({"image": image}), ({0: BATCH},),
        lambda m, b, t: (media(m, b),),
    ),
    "caption, step": (
        "blip_caption", decoding_step,
        ({0: BATCH}, None, {2: BATCH, 4: Dim("room", min=2, max=40)}, {0: BATCH, 1: Dim("states", min=2, max=600)}),
        lambda m, b, t: step_inputs(m, b, t, t // 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("what", EXPORTS)
def test_exported_programs_of_any_batch_and_length_equal_the_model(what, prepared):
    name, function, shapes, inputs = EXPORTS[what]
    model = random_model(name)
    if prepared:
        cpu.prepare(model, pack=True)
    torch.manual_seed(0)
    module = Called(model, function).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export(module, inputs(model, 3, 7), dynamic_shapes=(shapes,)).module()
        for batch, length in ((3, 7), (1, 4), (5, 16), (2, 9)):
            given = inputs(model, batch, length)
            torch.testing.assert_close(program(*given), module(*given), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------- others' models


def _llama() -> Any:
    import transformers

    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip


def _opt() -> Any:
    import transformers

    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=90, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32,
        )
    )  # fmt: skip


def _gpt2() -> Any:
    import transformers

    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("build", "least"), [(_llama, 15), (_opt, 13), (_gpt2, 1)]
)  # GPT-2's others are no nn.Linear
def test_language_models_of_transformers_are_prepared(monkeypatch, build, least, packed):
    monkeypatch.setattr(cpu, "_SMALL", 0)
    monkeypatch.setattr(cpu, "cpu_maker", lambda: "AMD")
    used = []
    product = cpu._onednn
    monkeypatch.setattr(cpu, "_onednn", lambda *given: used.append(1) or product(*given))
    torch.manual_seed(0)
    model = build().eval()
    text = torch.randint(3, 90, (2, 7))
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    with torch.no_grad():
        wanted, written = model(text).logits, model.generate(text, **how)
        assert not used
        cpu.prepare(model, pack=packed)
        torch.testing.assert_close(model(text).logits, wanted, rtol=1e-5, atol=1e-5)
        assert len(used) == len(fast_layers(model)) >= least
        assert torch.equal(model.generate(text, **how), written)
    cpu.undo(model)
    assert not fast_layers(model)
