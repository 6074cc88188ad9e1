"""ALPRO on tiny models: attention over space and time, batches, groups, losses, loading, learning."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lavis.common import dist
from lavis.models import load_model, pair_losses
from lavis.models.alpro import PRETRAINED, AlproFeatureExtractor, AlproQA, AlproRetrieval
from lavis.models.checkpoints import apply_rules
from lavis.models.fusion import TextStates
from lavis.nn.timesformer import SpaceTimeBlock, TimeSformer, resize_places, resize_times
from lavis.nn.vit import ViTConfig
from tests import golden
from tests.golden import Gallery
from tests.ranks import on_ranks
from tests.reference import recipe
from tests.small import random_model

TEXTS = [
    "a red circle",
    "two large striped blue stars above a ring",
    "a cat",
    "three green hearts and a cross",
    "what moves to the left",
    "nothing at all",
    "one yellow square",
    "the ring is above the star",
]


def clips(count: int, frames: int = 8, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, frames, size, size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------- divided space-time attention


def plain_attention(module, x):
    """One sequence (N, D), head by head."""
    q, k, v = F.linear(x, module.qkv.weight, module.qkv.bias).chunk(3, dim=-1)
    heads = []
    for qh, kh, vh in zip(*(t.chunk(module.heads, dim=-1) for t in (q, k, v))):
        heads.append((qh @ kh.T / qh.shape[-1] ** 0.5).softmax(dim=-1) @ vh)
    return F.linear(torch.cat(heads, dim=-1), module.proj.weight, module.proj.bias)


def plain_block(block, token, grid):
    """token (D,), grid (T, P, D): as the paper's figure 2 draws it, one row of attention after the other."""
    times, places, _ = grid.shape
    moved = grid.clone()
    for p in range(places):
        found = plain_attention(block.temporal_attn, block.temporal_norm1(grid[:, p]))
        moved[:, p] = grid[:, p] + block.temporal_fc(found)
    seen, tokens = moved.clone(), []
    for t in range(times):
        found = plain_attention(block.attn, block.norm1(torch.cat([token[None], moved[t]])))
        tokens.append(found[0])
        seen[t] = moved[t] + found[1:]
    token = token + torch.stack(tokens).mean(dim=0)
    return token + block.mlp(block.norm2(token)), seen + block.mlp(block.norm2(seen))


def plain_encoder(model, clip):
    """clip (3, T, h, w) -> (1 + P, D)."""
    size, frames = model.patch_embed.proj.kernel_size[0], clip.shape[1]
    rows = clip.shape[2] // size
    weight, bias = model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias
    grid = torch.zeros(frames, rows * rows, weight.shape[0])
    for t in range(frames):
        for p in range(rows * rows):
            y, x = size * (p // rows), size * (p % rows)
            patch = clip[:, t, y : y + size, x : x + size].flatten()
            grid[t, p] = weight @ patch + bias + model.pos_embed[0, 1 + p] + model.time_embed[0, t]
    token = model.cls_token[0, 0] + model.pos_embed[0, 0]
    for block in model.blocks:
        token, grid = plain_block(block, token, grid)
    return torch.cat([model.norm(token)[None], model.norm(grid).mean(dim=0)])


def timesformer(checkpoint_blocks: int = 0, **more) -> TimeSformer:
    config = ViTConfig(width=32, depth=2, heads=4, patch_size=16, **more)
    model = TimeSformer(config, 48, 3, checkpoint_blocks)
    for key, p in model.named_parameters():
        p.data = recipe.make_tensor(key, {"shape": p.shape, "dtype": "float32"})
    model.model.time_embed.data *= 10
    return model


def test_space_time_attention_equals_the_plain_way():
    model, video = timesformer().eval(), clips(2, frames=3, size=48)
    with torch.no_grad():
        found = model(video)
        assert found.shape == (2, 10, 32)
        for i in range(2):
            torch.testing.assert_close(found[i], plain_encoder(model.model, video[i]), rtol=1e-4, atol=1e-5)


def test_order_and_number_of_frames():
    model, video = timesformer().eval(), clips(1, frames=3, size=48)
    with torch.no_grad():
        assert not torch.allclose(model(video), model(video.flip(2)), atol=1e-2)
        stretched = timesformer().eval()
        stretched.model.time_embed.data = resize_times(stretched.model.time_embed, 5)
        longer = clips(1, frames=5, size=48)
        torch.testing.assert_close(model(longer), stretched(longer))
        assert model(video[:, :, :1]).shape == (1, 10, 32)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointed_blocks_give_the_same_gradients(drop_path):
    results = []
    for blocks in (0, 1, 2):
        model = timesformer(blocks, drop_path=drop_path).train()
        runs = []
        for block in model.model.blocks:
            block.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(1)
        model(clips(2, frames=3, size=48)).square().sum().backward()
        assert len(runs) == 2 + blocks  # recomputed in the backward pass
        results.append([p.grad for p in model.parameters()])
    for others in results[1:]:
        for a, b in zip(results[0], others):
            torch.testing.assert_close(a, b)


def test_attention_over_time_begins_without_effect():
    torch.manual_seed(0)
    model = TimeSformer(ViTConfig(width=32, depth=2, heads=4, patch_size=16), 48, 3)
    model.reset_parameters()
    video = clips(1, frames=3, size=48)
    torch.testing.assert_close(model(video), model(video.flip(2)))
    for block in model.model.blocks:
        assert isinstance(block, SpaceTimeBlock) and not block.temporal_fc.weight.any()


def test_embeddings_are_resized_as_by_the_original():
    with np.load(golden.REFERENCE / "golden" / "loader_interpolation.npz") as stored:
        times = recipe.make_tensor(
            "visual_encoder.model.time_embed", {"shape": [1, 8, 768], "dtype": "float32"}
        )
        for frames in (4, 12, 16):
            expected = stored[f"time_embed_8_to_{frames}_dim0"]
            np.testing.assert_array_equal(resize_times(times, frames)[0, :, 0].numpy(), expected)
        places = recipe.make_tensor("visual_encoder.pos_embed", {"shape": [1, 197, 768], "dtype": "float32"})
        for patches in (49, 400):
            expected = stored[f"alpro_pos_embed_196_to_{patches}_dim0"]
            np.testing.assert_array_equal(resize_places(places, patches + 1)[0, :, 0].numpy(), expected)
    assert resize_places(places, 197).equal(places)


# ------------------------------------------------------------------------------------- batches and groups


@pytest.fixture(scope="module")
def answerer():
    return random_model("alpro_qa", num_classes=5)


@pytest.fixture(scope="module")
def finder():
    return random_model("alpro_retrieval")


@pytest.fixture(scope="module")
def extractor():
    return random_model("alpro_feature_extractor")


def test_a_batch_gives_what_single_clips_give(answerer, extractor):
    video = clips(3)
    logits = answerer.predict({"video": video, "text_input": TEXTS[:3]})["predictions"]
    together = extractor.extract_features({"video": video, "text_input": TEXTS[:3]})
    for i in range(3):
        one = {"video": video[i : i + 1], "text_input": [TEXTS[i]]}
        alone = extractor.extract_features(one)
        torch.testing.assert_close(answerer.predict(one)["predictions"][0], logits[i], rtol=1e-4, atol=1e-5)
        for key in ("video_embeds", "text_embeds_proj", "multimodal_embeds"):
            torch.testing.assert_close(alone[key][0, 0], together[key][i, 0], rtol=1e-4, atol=1e-5)


def test_texts_of_a_clip_share_its_states(answerer):
    """Values and gradients, against clips repeated for each question."""
    video, answers, found = clips(2), [0, 4, 2, 1], []
    for way in ("grouped", "repeated"):
        answerer.zero_grad()
        given = video if way == "grouped" else video.repeat_interleave(2, dim=0)
        out = answerer({"video": given, "text_input": TEXTS[:4], "answers": answers})
        out.loss.backward()
        assert out.intermediate_output.video_embeds.shape[0] == len(given)
        found.append([out.logits.detach(), *(p.grad.clone() for p in answerer.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def repeated_matching(model, tokens, states, embeds, wrong_clip, wrong_text):
    """The three kinds of pairs, each clip copied for each text."""
    same = torch.arange(len(embeds))
    fused = []
    for rows, videos in ((same, same), (same, wrong_clip), (wrong_text, same)):
        text = TextStates(tokens, states).select(rows)
        fused.append(model.fuse(text, model.memorize(embeds[videos])))
    return model.itm_head(torch.cat(fused)[:, 0])


def test_grouped_matching_equals_copied_clips(finder, monkeypatch):
    tokens = finder.tokens(TEXTS[:4], max_length=35, pad=True)
    wrong_clip, wrong_text = torch.tensor([1, 3, 1, 0]), torch.tensor([2, 2, 0, 1])
    draws = iter([wrong_clip, wrong_text])
    monkeypatch.setattr("lavis.models.pair_losses.hard_negatives", lambda *_: next(draws))
    with torch.no_grad():
        states, embeds = finder.encode_text(tokens), finder.encode_image(clips(4))
        none = torch.zeros(4, 4)
        candidates = pair_losses.Candidates(none, none, none.bool())
        matching = pair_losses.match(finder, TextStates(tokens, states), embeds, candidates)
        expected = repeated_matching(finder, tokens, states, embeds, wrong_clip, wrong_text)
    torch.testing.assert_close(matching.logits, expected, rtol=1e-4, atol=1e-5)
    assert matching.labels.tolist() == [1] * 4 + [0] * 8
    torch.testing.assert_close(matching.loss, F.cross_entropy(expected, matching.labels))


# --------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", ["alpro_retrieval", "alpro_qa"])
def test_a_training_step_reaches_every_parameter(name):
    model = random_model(name, grad_checkpointing=1).train()
    out = model({"video": clips(3), "text_input": TEXTS[:3], "answers": [0, 1, 2]})
    out.loss.backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key
    parts = [out[k] for k in out.keys() if k.startswith("loss_")]  # noqa: SIM118
    assert not parts or torch.equal(sum(parts), out.loss)


def test_contrast_is_within_the_batch_and_the_temperature_stays_in_range(finder):
    samples = {"video": clips(3), "text_input": TEXTS[:3]}
    with torch.no_grad():
        for temp, used in ((0.07, 0.07), (0.0, 0.001), (3.0, 0.5)):
            finder.temp.fill_(temp)
            loss = finder(samples).loss_vtc
            assert float(finder.temp) == pytest.approx(temp)  # predicting moves nothing
            finder.before_step()
            out = finder(samples)
            finder.after_step()
            assert float(finder.temp) == pytest.approx(used)
            torch.testing.assert_close(out.loss_vtc, loss)
        video = finder.image_feature(out.intermediate_output.video_embeds)
        text = finder.text_feature(out.intermediate_output.text_embeds)
        sims, own = video @ text.T / 0.5, torch.arange(3)
        expected = (F.cross_entropy(sims, own) + F.cross_entropy(sims.T, own)) / 2
        torch.testing.assert_close(out.loss_vtc, expected)
        finder.temp.fill_(0.07)


def test_hard_negatives_are_hard_beside_near_perfect_pairs(finder, monkeypatch):
    """A similarity of 0.9 over the smallest temperature is 900: nothing else would be left of a softmax."""
    drawn, draw = [], pair_losses.hard_negatives
    monkeypatch.setattr(pair_losses, "hard_negatives", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    sims = torch.tensor([[900.0, 10.0, 60.0], [70.0, 900.0, 5.0], [0.0, 80.0, 900.0]])
    tokens = finder.tokens(TEXTS[:3], max_length=35)
    with torch.no_grad():
        text = TextStates(tokens, finder.encode_text(tokens))
        embeds = finder.encode_image(clips(3, frames=2))
        for _ in range(5):
            own = torch.eye(3, dtype=torch.bool)
            pair_losses.match(finder, text, embeds, pair_losses.Candidates(sims, sims.T, own).masked())
    by_clip, by_text = sims.clone().fill_diagonal_(-1), sims.T.clone().fill_diagonal_(-1)
    for wrong_clip, wrong_text in zip(drawn[::2], drawn[1::2]):
        assert wrong_clip.tolist() == by_text.argmax(1).tolist()
        assert wrong_text.tolist() == by_clip.argmax(1).tolist()


def test_two_ranks_contrast_as_one():
    """The features of all ranks are compared, and gradients flow back to each."""

    def gradients(rank, ranks):
        # double, as the order of float32 sums differs with the ranks
        model = random_model("alpro_retrieval").train().double()
        mine = slice(2 * rank, 2 * rank + 2) if ranks > 1 else slice(0, 4)
        out = model({"video": clips(4, frames=2).double()[mine], "text_input": TEXTS[:4][mine]})
        out.loss_vtc.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        return float(dist.mean_over_ranks(out.loss_vtc)), [dist.mean_over_ranks(g).numpy() for g in grads]

    found = [on_ranks(ranks, functools.partial(gradients, ranks=ranks))[0] for ranks in (1, 2)]
    (loss, grads), (loss2, grads2) = found
    assert loss == pytest.approx(loss2, rel=1e-6)
    assert sum(float(np.abs(g).sum()) for g in grads) > 1
    largest = max(float(np.abs(g).max()) for g in grads)
    for a, b in zip(grads, grads2, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest)  # the loss itself is float32


# --------------------------------------------------------------------------------- features and retrieval


def test_features(extractor):
    both = {"video": clips(2), "text_input": TEXTS[:4]}
    found = {mode: extractor.extract_features(both, mode=mode) for mode in ("video", "text", "multimodal")}
    assert found["video"].keys() == ["video_embeds", "video_embeds_proj"]
    assert found["text"].keys() == ["text_embeds", "text_embeds_proj"]
    assert set(found["multimodal"].keys()) == {
        "video_embeds", "video_embeds_proj", "text_embeds", "text_embeds_proj", "multimodal_embeds",
    }  # fmt: skip
    for mode in ("video", "text"):
        for key, value in found[mode].items():
            torch.testing.assert_close(found["multimodal"][key], value)
    length = found["text"].text_embeds.shape[1]
    assert found["multimodal"].multimodal_embeds.shape == (4, length + 65, 128)
    assert found["video"].video_embeds_proj.shape == (2, 65, 64)
    torch.testing.assert_close(found["video"].video_embeds_proj.norm(dim=-1), torch.ones(2, 65))
    assert extractor.extract_features({"text_input": "a cat"}, mode="text").text_embeds.shape[0] == 1
    with pytest.raises(ValueError, match="video, text or multimodal"):
        extractor.extract_features(both, mode="image")
    with pytest.raises(ValueError, match="text_input"):
        extractor.extract_features({"video": clips(1)})


@pytest.mark.parametrize("k_test", [1, 8])
@pytest.mark.parametrize("max_txt_len", [35, 50])
def test_scores_equal_the_plain_way(k_test, max_txt_len):
    model = random_model("alpro_retrieval", max_txt_len=max_txt_len)
    video, texts = clips(3, frames=2), [*TEXTS[:4], "a " + "very " * 60 + "long text"]
    v2t, t2v = model.compute_sim_matrix(Gallery(video, texts, key="video"), {"k_test": k_test})
    sims, fits = torch.zeros(3, 5), torch.zeros(3, 5)
    with torch.no_grad():
        for i in range(3):
            for t, text in enumerate(texts):
                tokens = model.tokens([text], max_length=max_txt_len, pad=True)
                states, embeds = model.encode_text(tokens), model.encode_image(video[i : i + 1])
                sims[i, t] = model.image_feature(embeds) @ model.text_feature(states).T
                fits[i, t] = model.match_logits(TextStates(tokens, states), model.memorize(embeds))[0, 1]
    for scores, plain, total in ((v2t, sims, sims + fits), (t2v, sims.T, (sims + fits).T)):
        chosen = torch.zeros_like(plain, dtype=torch.bool)
        chosen.scatter_(1, plain.topk(min(k_test, plain.shape[1]), dim=1).indices, True)
        expected = torch.where(chosen, total, torch.tensor(-100.0))
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize(
    "name", ["alpro_qa.msrvtt", "alpro_qa.msvd", "alpro_retrieval.msrvtt", "alpro_retrieval.didemo"]
)
def test_presets_equal_the_official_ones(name):
    manifest = golden.manifest(name)
    arch, model_type = name.split(".")
    cls = {"alpro_qa": AlproQA, "alpro_retrieval": AlproRetrieval}[arch]
    preset, yaml = cls.PRESETS[model_type], manifest["config"]["yaml_model_section"]
    model = cls.build(preset.config, empty=True)
    entries = model.state_dict()
    assert {k: list(v.shape) for k, v in entries.items()} == {
        k: golden.model_shape(k, spec) for k, spec in manifest["state_dict"].items()
    }
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]
    # a file with exactly the official entries loads strictly
    assert set(apply_rules(dict(entries), entries, cls.RULES, "file")) == set(entries)
    config, resolved = preset.config, manifest["config"]["resolved_by_class"]
    bert, video = resolved["bert_config"], yaml["timesformer"]
    assert config.max_txt_len == resolved["max_txt_len"]
    assert (config.text.dropout, config.text.attention_dropout) == (
        bert["hidden_dropout_prob"], bert["attention_probs_dropout_prob"],
    )  # fmt: skip
    assert config.text.init_std == bert["initializer_range"] and config.fuse_from == bert["fusion_layer"]
    assert (config.frames, config.image_size) == (video["n_frms"], video["image_size"])
    assert config.grad_checkpointing == (video["ckpt_layer"] if video["use_grad_ckpt"] else 0)
    rates = [block.drop.rate for block in model.visual_encoder.model.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, video["drop_path_rate"], 12))
    for module in model.visual_encoder.modules():
        assert not isinstance(module, torch.nn.LayerNorm) or module.eps == 1e-6
    for module in model.text_encoder.modules():
        assert not isinstance(module, torch.nn.LayerNorm) or module.eps == bert["layer_norm_eps"] == 1e-12
    assert getattr(config, "num_classes", None) == yaml.get("num_classes")
    assert preset.weights == yaml["finetuned"] and preset.pretrained == yaml["pretrained"] == PRETRAINED
    model.model_type = model_type
    for kind in ("vis_processor", "text_processor"):
        for phase, cfg in manifest["config"]["preprocess"][kind].items():
            assert model.preprocess_config()[kind][phase] == cfg


def test_pretrained_weights_arrive_where_the_original_puts_them():
    with gzip.open(golden.REFERENCE / "golden" / "loader.json.gz", "rt") as f:
        case = json.load(f)["cases"]["alpro_qa.msvd <- alpro_retrieval.msrvtt"]
    source = golden.manifest("alpro_retrieval.msrvtt")["state_dict"]
    named = {k.replace(*case["source_rename"].split(" -> ")): spec for k, spec in source.items()}
    numbers = {key: float(i + 1) for i, key in enumerate(named)}
    state = {k: torch.tensor(n).expand(named[k]["shape"]) for k, n in numbers.items()}
    # what else pre-training leaves in its file
    state |= {f"{k}.weight": torch.zeros(1) for k in ("text_encoder.cls.predictions.decoder", "mpm_head.0")}
    state |= {"prompter.temp": torch.zeros(1), "prompter.text_encoder.bert.x": torch.zeros(1)}
    wanted = AlproQA.build(AlproQA.PRESETS["msvd"].config, empty=True).state_dict()
    out = apply_rules(state, wanted, AlproQA.PRETRAINED_RULES, "file")
    assert set(wanted) - set(out) == set(case["missing"])  # the fresh head
    for key, value in out.items():
        assert value.shape == wanted[key].shape
        if "position_ids" not in key:
            origin = case["loaded"][key]["from"] if key in case["loaded"] else key
            assert float(value.flatten()[-1]) == numbers[origin]
    assert len(out) == len(named) - len(case["unexpected"])


def test_a_file_decides_the_number_of_classes(tmp_path):
    model = random_model("alpro_qa", num_classes=7)
    torch.save({"model": model.state_dict()}, tmp_path / "seven.pth")
    again = load_model("alpro_qa", "tiny", is_eval=True, checkpoint=tmp_path / "seven.pth")
    assert again.config.num_classes == 7
    samples = {"video": clips(1), "text_input": "what"}
    torch.testing.assert_close(again.predict(samples)["predictions"], model.predict(samples)["predictions"])
    assert again.predict(samples)["targets"] is None
    model.save_pretrained(tmp_path / "folder")
    assert load_model(str(tmp_path / "folder")).config.num_classes == 7
    with pytest.raises(ValueError, match="num_classes is 4, but the weights"):
        AlproQA.from_config({"model_type": "tiny", "weights": str(tmp_path / "seven.pth"), "num_classes": 4})
    torch.save(random_model("alpro_retrieval").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="4 missing: classifier"):  # a head that is not there is no answer
        load_model("alpro_qa", "tiny", checkpoint=tmp_path / "other.pth")


def test_features_come_from_pretraining_or_retrieval_files(finder, tmp_path):
    finder.save_pretrained(tmp_path / "folder")
    state = {k.replace("text_encoder.", "text_encoder.bert."): v for k, v in finder.state_dict().items()}
    state["visual_encoder.model.time_embed"] = state["visual_encoder.model.time_embed"][:, :4].clone()
    state["text_encoder.cls.predictions.bias"] = torch.zeros(1600)
    torch.save(state, tmp_path / "pretrained.pt")
    model = load_model("alpro_feature_extractor", "tiny", is_eval=True, checkpoint=tmp_path / "pretrained.pt")
    assert model.config.frames == 4
    assert model.preprocess_config()["vis_processor"]["eval"] == {
        "name": "alpro_video_eval", "n_frms": 4, "image_size": 64,
    }  # fmt: skip
    with torch.no_grad():
        found = model.extract_features({"text_input": TEXTS[:2]}, mode="text").text_embeds
        torch.testing.assert_close(found, finder.encode_text(finder.tokens(TEXTS[:2])))
    assert AlproFeatureExtractor.PRESETS["base"].weights == PRETRAINED


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"text_input": "a"}, "need 'video'"),
        ({"video": clips(1)[0], "text_input": "a"}, r"unsqueeze\(0\)"),
        ({"video": clips(1).transpose(1, 2), "text_input": "a"}, r"takes \(B, 3, frames, 64, 64\)"),
        ({"video": clips(1, size=32), "text_input": "a"}, r"takes \(B, 3, frames, 64, 64\)"),
        ({"video": clips(2), "text_input": ["a"] * 3}, "3 texts for 2 images"),
    ],
)
def test_wrong_samples_are_explained(answerer, samples, message):
    with pytest.raises(ValueError, match=message):
        answerer.predict(samples)


def test_wrong_training_samples_are_explained(answerer, finder):
    two = {"video": clips(2, frames=2), "text_input": TEXTS[:2]}
    with pytest.raises(ValueError, match="need answers"):
        answerer(two)
    with pytest.raises(ValueError, match="labels lie between 1 and 5, the model tells 5 classes"):
        answerer({**two, "answers": [1, 5]})  # an answer that is not in the list has the list's length
    assert answerer.predict({**two, "answers": [1, 5]})["targets"].tolist() == [1, 5]
    with pytest.raises(ValueError, match="takes one per image"):
        finder({**two, "text_input": TEXTS[:4]})
    with pytest.raises(ValueError, match="larger batch"):
        finder({"video": clips(1, frames=2), "text_input": ["a"]})


def test_wrong_configurations_are_explained():
    with pytest.raises(ValueError, match="num_classes is None"):
        AlproQA.build(replace(AlproQA.PRESETS["tiny"].config, num_classes=None))
    config = AlproRetrieval.PRESETS["tiny"].config
    with pytest.raises(ValueError, match="side by side"):
        AlproRetrieval.build(replace(config, text=replace(config.text, width=64)))
