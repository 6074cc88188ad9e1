"""The image transformer in its shapes: grids, class token, pooling, and SigLIP's as a reference."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.nn.transformer import ACTIVATIONS, Block, Blocks, Mlp
from lavis.nn.vit import VisionTransformer, ViTConfig

SMALL = ViTConfig(width=32, depth=2, heads=4, patch_size=8)


def build(config: ViTConfig, size, **options) -> VisionTransformer:
    torch.manual_seed(0)
    module = VisionTransformer(config, size, **options).eval()
    module.reset_parameters()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.booleans(), st.sampled_from(["none", "class", "attention"]), st.booleans()
)  # fmt: skip
def test_any_grid_token_and_pooling(rows, columns, class_token, pooling, pre_norm):
    if pooling == "class" and not class_token:
        with pytest.raises(ValueError, match=r"vit.pooling is 'class', but vit.class_token is false"):
            replace(SMALL, class_token=False, pooling="class")
        return
    config = replace(SMALL, class_token=class_token, pooling=pooling, pre_norm=pre_norm, sincos=0.1)
    module = build(config, (8 * rows, 8 * columns))
    image = torch.randn(3, 3, 8 * rows, 8 * columns)
    with torch.no_grad():
        together = module(image)
        alone = torch.cat([module(image[i : i + 1]) for i in range(3)])
    assert together.shape == ((3, rows * columns + class_token, 32) if pooling == "none" else (3, 32))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=rf"takes \(B, 3, {8 * rows}, {8 * columns}\)"):
        module(torch.randn(1, 3, 8 * rows, 8 * columns + 8))


def test_positions_tell_rows_from_columns():
    module = VisionTransformer(replace(SMALL, sincos=0.1, class_token=False), (16, 32))
    module.reset_parameters()
    places = module.pos_embed[0].detach().unflatten(0, (2, 4))  # (rows, columns, D)
    rows, columns = places.chunk(2, dim=-1)
    assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    assert len({tuple(p.tolist()) for p in places.flatten(0, 1)}) == 8


def test_a_pooled_vector_is_projected():
    module = build(replace(SMALL, pooling="class"), 16, embed_dim=12)
    image = torch.randn(2, 3, 16, 16)
    states = build(SMALL, 16)
    states.load_state_dict({k: v for k, v in module.state_dict().items() if k != "proj"})
    torch.testing.assert_close(module(image), states(image)[:, 0] @ module.proj)
    with pytest.raises(ValueError, match=r"embed_dim is 12, but vit.pooling is none"):
        VisionTransformer(SMALL, 16, embed_dim=12)


def test_states_and_pooling_equal_siglips():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )  # fmt: skip
    theirs = transformers.SiglipVisionModel(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    vit = ViTConfig(
        32, 3, 4, 8, mlp_ratio=2.0, activation="gelu_tanh", class_token=False, pooling="attention", layer_norm_eps=1e-6
    )  # fmt: skip
    ours = VisionTransformer(vit, 32).eval()
    ours.load_state_dict(from_siglip(theirs.state_dict()))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = theirs(image)
        torch.testing.assert_close(ours.norm(ours.blocks(embedded(ours, image))), wanted.last_hidden_state)
        torch.testing.assert_close(ours(image), wanted.pooler_output)


def embedded(module: VisionTransformer, image: torch.Tensor) -> torch.Tensor:
    return module.patch_embed(image) + module.pos_embed


def from_siglip(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    theirs = {key.removeprefix("vision_model."): tensor for key, tensor in theirs.items()}
    state: dict[str, torch.Tensor] = {}
    for key, tensor in theirs.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key)
        if layer:
            parts = [theirs[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
            state[f"blocks.{layer[1]}.attn.qkv.{layer[2]}"] = torch.cat(parts)
        elif key.startswith("head.attention.in_proj_"):
            name = key.removeprefix("head.attention.in_proj_")
            state[f"pool.q.{name}"], state[f"pool.kv.{name}"] = tensor.split([32, 64])
        elif ".k_proj." not in key and ".v_proj." not in key:
            for old, new in (
                (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
                (r"^embeddings\.position_embedding\.weight", "pos_embed"),
                (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
                (r"\.self_attn\.out_proj\.", ".attn.proj."),
                (r"\.layer_norm(\d)\.", r".norm\1."),
                (r"^post_layernorm\.", "norm."),
                (r"^head\.probe", "pool.query"),
                (r"^head\.attention\.out_proj\.", "pool.proj."),
                (r"^head\.layernorm\.", "pool.norm."),
                (r"^head\.mlp\.", "pool.mlp."),
            ):
                key = re.sub(old, new, key)
            state[key] = tensor[None] if key == "pos_embed" else tensor
    return state


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_are_the_same_with_and_without_gradients(activation):
    torch.manual_seed(0)
    mlp, x = Mlp(8, 16, activation), torch.randn(5, 8)
    with torch.no_grad():
        without = mlp(x)
    torch.testing.assert_close(mlp(x), without)


def test_what_a_block_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"activation is 'relu'; it must be one of gelu, gelu_tanh, quick_gelu"
    ):
        Mlp(8, 16, "relu")
    with pytest.raises(ValueError, match="width 30 cannot be shared out evenly among 4 heads"):
        Blocks([Block(30, 4, 60)])
    with pytest.raises(ValueError, match=r"vit.pooling is 'mean'"):
        replace(SMALL, pooling="mean")
