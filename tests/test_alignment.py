"""Contrast, matching, momentum twins, queues, re-ranking, Grad-CAM: properties on tiny BLIP models."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lavis.common.gradcam import attention_maps, getAttMap, gradcam, patch_grid
from lavis.models import load_model, reranking
from lavis.models.blip_matching import compute_gradcam
from lavis.models.fusion import TextStates
from lavis.models.pair_losses import Candidates, match
from lavis.nn import ema
from lavis.nn.losses import contrastive_targets, distillation_weight, hard_negatives, soft_cross_entropy
from tests.golden import Gallery
from tests.ranks import on_ranks
from tests.small import images, random_model

TEXTS = [
    "a red circle",
    "two large striped blue stars above a ring",
    "a cat",
    "three green hearts and a cross",
]


def samples(count: int = 4, **more):
    return {
        "image": images(count), "text_input": TEXTS[:count], "image_id": torch.arange(count), "epoch": 0,
        "iters": 3, "num_iters_per_epoch": 10, **more,
    }  # fmt: skip


# ------------------------------------------------------------------------------- losses and twins


@given(st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_queue_holds_the_latest_features(size, batches):
    model = nn.Module()
    ema.add_queue(model, 3, size, with_ids=True)
    everything, ids = [], []
    for n in batches:
        feats, new = torch.randn(n, 3), torch.randint(0, 100, (n,))
        ema.enqueue(model, ema.NewFeatures(feats, -feats, new))
        everything += list(feats)
        ids += new.tolist()
    assert int(model.queue_ptr) == len(everything) % size
    for place in range(min(size, len(everything))):
        age = (int(model.queue_ptr) - 1 - place) % size  # how many came after the one in this place
        torch.testing.assert_close(model.image_queue[:, place], everything[-1 - age])
        torch.testing.assert_close(model.text_queue[:, place], -everything[-1 - age])
        assert model.idx_queue[0, place] == ids[-1 - age]


def test_twins_follow_and_hold_no_gradients():
    module = nn.Linear(3, 2)
    twin = ema.make_ema(module)
    before = twin.weight.clone()
    with torch.no_grad():
        module.weight += 1
    ema.update_ema([(module, twin)], 0.9)
    torch.testing.assert_close(twin.weight, 0.9 * before + 0.1 * module.weight)
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in module.parameters())


def test_targets_are_distributions_over_all_that_belong_together():
    same = torch.tensor([[True, False, True], [False, True, False]])
    torch.testing.assert_close(
        contrastive_targets(same, None, 0.0), torch.tensor([[0.5, 0, 0.5], [0, 1.0, 0]])
    )
    soft = contrastive_targets(same, torch.randn(2, 3), 0.4)
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    assert (soft[same] >= 0.3).all()
    logits = torch.randn(2, 3)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(
        soft_cross_entropy(logits, nn.functional.one_hot(index, 3)),
        nn.functional.cross_entropy(logits, index),
    )


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_hard_negatives_never_belong_to_their_row(batch, seed):
    torch.manual_seed(seed)
    ids = torch.randint(0, batch, (batch,))
    ids[0] = batch  # at least two pictures
    same = ids[:, None] == ids[None, :]
    drawn = hard_negatives(torch.randn(batch, batch) * 100, same)
    assert not same[torch.arange(batch), drawn].any()


def test_hard_negatives_prefer_what_is_similar():
    sims = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    drawn = torch.stack([hard_negatives(sims, torch.eye(3, dtype=torch.bool)) for _ in range(200)])
    assert (drawn[:, 0] == 1).float().mean() > 0.9
    assert 0.3 < (drawn[:, 2] == 0).float().mean() < 0.7
    with pytest.raises(ValueError, match="larger batch"):
        hard_negatives(sims, torch.ones(3, 3, dtype=torch.bool))


def test_the_twins_opinion_rises():
    weights = [distillation_weight(0.4, epoch + it / 10, 2) for epoch in range(3) for it in range(10)]
    assert weights[0] == 0 and weights[10] == pytest.approx(0.2) and set(weights[20:]) == {0.4}
    assert weights == sorted(weights)


# --------------------------------------------------------------------------------------- training


def repeated_matching(model, tokens, image_embeds, wrong_image, wrong_text):
    """The three kinds of pairs, each picture copied for each text."""
    states = []
    for rows, pictures in (
        (range(len(wrong_text)), range(len(wrong_text))),
        (range(len(wrong_text)), wrong_image),
        (wrong_text, range(len(wrong_text))),
    ):
        rows, pictures = torch.tensor(list(rows)), torch.tensor(list(pictures))
        text = TextStates(tokens).select(rows)
        states.append(model.fuse(text, model.memorize(image_embeds[pictures])))
    return model.itm_head(torch.cat(states)[:, 0])


def test_grouped_matching_equals_copied_pictures(monkeypatch):
    model = random_model("blip_retrieval")
    tokens = model.tokens(TEXTS, max_length=35, pad=True)
    wrong_image, wrong_text = torch.tensor([1, 3, 1, 0]), torch.tensor([2, 2, 0, 1])
    draws = iter([wrong_image, wrong_text])
    monkeypatch.setattr("lavis.models.pair_losses.hard_negatives", lambda *_: next(draws))
    grads = []
    embeds = model.encode_image(images(4))
    for way in ("grouped", "copied"):
        model.zero_grad()
        states = embeds.detach().clone().requires_grad_()
        if way == "grouped":
            none = torch.zeros(4, 4)
            logits = match(model, TextStates(tokens), states, Candidates(none, none, none.bool())).logits
        else:
            logits = repeated_matching(model, tokens, states, wrong_image.tolist(), wrong_text.tolist())
        logits.pow(2).sum().backward()
        inner = [p.grad.clone() for p in model.text_encoder.parameters() if p.grad is not None]
        grads.append((logits.detach(), states.grad, *inner))
    assert len(grads[0]) == len(grads[1]) > 10
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["blip_retrieval", "blip_pretrain"])
def test_a_training_step_reaches_every_parameter_and_leaves_twins_alone(name):
    model = random_model(name).train()
    queue, twin = model.image_queue.clone(), model.visual_encoder_m.norm.weight.clone()
    out = model(samples())
    out.loss.backward()
    parts = [out[k] for k in out.keys() if k.startswith("loss_")]  # noqa: SIM118
    torch.testing.assert_close(sum(parts), out.loss)
    for key, p in model.named_parameters():
        if "_m." in key:
            assert p.grad is None and not p.requires_grad
        else:
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key
    assert int(model.queue_ptr) == 4
    assert not torch.equal(model.image_queue[:, :4], queue[:, :4])
    torch.testing.assert_close(model.image_queue[:, 4:], queue[:, 4:])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    optimizer.step()
    model(samples())
    assert not torch.equal(model.visual_encoder_m.norm.weight, twin)


def test_equal_ids_belong_together():
    model = random_model("blip_retrieval")
    model.before_step()
    with torch.no_grad():
        out = model(samples(image_id=torch.tensor([7, 8, 7, 9])))
    model.after_step()
    targets = out.sims.sim_i2t_targets[:, :4]
    torch.testing.assert_close(targets[0, [0, 2]].sum(), torch.tensor(1.0), atol=0.15, rtol=0)
    assert (targets[0, [1, 3]] < 0.1).all()
    assert model.idx_queue[0, :4].tolist() == [7, 8, 7, 9]


def test_predicting_changes_nothing():
    model = random_model("blip_retrieval")
    before = copy.deepcopy(model.state_dict())
    model.compute_sim_matrix(Gallery(images(3), TEXTS), {"k_test": 2})
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_training_state_is_left_out_for_prediction_and_made_anew_for_training(tmp_path):
    model = random_model("blip_retrieval")
    model.save_pretrained(tmp_path / "full")
    whole = load_model(str(tmp_path / "full"), is_eval=True)
    assert whole.state_dict().keys() == model.state_dict().keys() and whole(samples()).loss > 0
    light = load_model(str(tmp_path / "full"), is_eval=True, for_training=False)
    assert not any("_m." in k or "queue" in k for k in light.state_dict())
    with pytest.raises(ValueError, match="for_training=True"):
        light(samples())
    light.save_pretrained(tmp_path / "light")
    again = load_model(str(tmp_path / "light"))
    assert torch.equal(again.visual_encoder_m.norm.weight, light.visual_encoder.norm.weight)
    # twins that were made from the file are no aliases of their modules
    with torch.no_grad():
        again.visual_encoder.norm.weight += 1
    assert torch.equal(again.visual_encoder_m.norm.weight, light.visual_encoder.norm.weight)
    again(samples()).loss.backward()


# -------------------------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("k_test", [1, 2, 16])
def test_scores_equal_the_plain_way(k_test):
    model = random_model("blip_image_text_matching")
    pictures, texts = images(5, seed=3), [*TEXTS, "a very " + "very " * 60 + "long text", "a"]
    i2t, t2i = model.compute_sim_matrix(Gallery(pictures, texts), {"k_test": k_test})
    sims, fits = torch.zeros(5, len(texts)), torch.zeros(5, len(texts))
    for i in range(5):
        for t, text in enumerate(texts):
            one = {"image": pictures[i : i + 1], "text_input": [text]}
            with torch.no_grad():
                sims[i, t] = model(one, match_head="itc")
                fits[i, t] = model(one)[0, 1]
    for scores, plain, total in ((i2t, sims, sims + fits), (t2i, sims.T, (sims + fits).T)):
        chosen = torch.zeros_like(plain, dtype=torch.bool)
        chosen.scatter_(1, plain.topk(min(k_test, plain.shape[1]), dim=1).indices, True)
        expected = torch.where(chosen, total, torch.tensor(-100.0))
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_pictures_that_are_matched_side_by_side_get_the_same_scores(precision):
    model = random_model("blip_retrieval")
    gallery = Gallery(images(7, seed=5), [f"a {word} thing" for word in ("red", "green", "blue", "odd")])
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
                found.append(model.compute_sim_matrix(gallery, {"k_test": 3}))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*found):
        np.testing.assert_allclose(one, several, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["blip_retrieval", "albef_retrieval", "alpro_retrieval"])
def test_candidates_of_several_images_are_matched_together(monkeypatch, name):
    """As on a GPU: some images have more candidates than others, one has none."""
    model = random_model(name)
    texts, _ = reranking.encode_texts(model, [f"{'very ' * (i % 5)}odd thing number {i}" for i in range(9)])
    media = images(4) if model.MEDIA == "image" else torch.randn(4, 3, model.config.frames, 64, 64)
    which = [torch.tensor(w, dtype=torch.long) for w in ([3, 1, 8], list(range(9)), [], [6])]
    monkeypatch.setattr(reranking, "rows_at_once", lambda device: 6)
    with torch.no_grad():
        embeds = model.encode_image(media)
        together = reranking.match_all(model, embeds, texts, which)
        for b, found in enumerate(together):
            (alone,) = reranking.match_all(model, embeds[b : b + 1], texts, which[b : b + 1])
            assert found.shape == which[b].shape
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
    gallery = Gallery(media, TEXTS, key=model.MEDIA)
    monkeypatch.setattr(Gallery, "__iter__", lambda self: iter([(range(4), {self.key: self.pictures})]))
    alone = model.compute_sim_matrix(gallery, {"k_test": 2})
    monkeypatch.setattr(reranking, "images_at_once", lambda device: 3)
    for a, b in zip(model.compute_sim_matrix(gallery, {"k_test": 2}), alone):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_goes_wrong_beside_other_pictures_is_raised(monkeypatch):
    model, before = random_model("blip_retrieval"), torch.get_num_threads()

    def broken(*inputs):
        raise ValueError("this picture")

    monkeypatch.setattr(reranking, "match_all", broken)
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="this picture"):
            model.compute_sim_matrix(Gallery(images(3), TEXTS), {"k_test": 2})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["blip_retrieval", "albef_retrieval", "alpro_retrieval", "clip"])
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "weights"])
def test_scores_in_bfloat16_are_near(name, whole):
    model, key = random_model(name), "video" if name.startswith("alpro") else "image"
    media = torch.stack([images(3, seed=i) for i in range(4)], dim=2) if key == "video" else images(3)
    gallery = Gallery(media, ["a red circle", "a blue star", "two cats"], key=key)
    single = model.compute_sim_matrix(gallery, {"k_test": 3})
    if whole:
        model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not whole):
        half = model.compute_sim_matrix(gallery, {"k_test": 3})
    for a, b in zip(single, half):
        assert b.dtype == np.float32 and not np.array_equal(a, b)
        np.testing.assert_allclose(a, b, rtol=0, atol=0.05)  # logits and cosines of order 1


def test_a_picture_may_have_several_texts():
    model = random_model("blip_image_text_matching")
    both = {"image": images(2), "text_input": TEXTS}
    with torch.no_grad():
        logits, sims = model(both), model(both, match_head="itc")
        for i in range(4):
            one = {"image": images(2)[i // 2][None], "text_input": [TEXTS[i]]}
            torch.testing.assert_close(model(one)[0], logits[i], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                model(one, match_head="itc")[0, 0], sims[i // 2, i], rtol=1e-4, atol=1e-5
            )
    with pytest.raises(ValueError, match="match_head is 'both'"):
        model(both, match_head="both")


def test_features_of_one_kind_need_one_kind():
    model = random_model("blip_feature_extractor")
    assert model.extract_features({"image": images(2)}, mode="image").keys() == [
        "image_embeds",
        "image_embeds_proj",
    ]
    text = model.extract_features({"text_input": TEXTS}, mode="text")
    assert text.keys() == ["text_embeds", "text_embeds_proj"]
    torch.testing.assert_close(
        text.text_embeds_proj.norm(dim=-1), torch.ones(text.text_embeds_proj.shape[:2])
    )
    both = model.extract_features({"image": images(2), "text_input": TEXTS})
    assert both.keys() == ["image_embeds", "multimodal_embeds"]
    assert both.multimodal_embeds.shape[0] == 4
    with pytest.raises(ValueError, match="image, text or multimodal"):
        model.extract_features({"image": images(1)}, mode="picture")
    with pytest.raises(ValueError, match="text_input"):
        model.extract_features({"image": images(1)})


# --------------------------------------------------------------------------------------- Grad-CAM


def test_keeping_weights_changes_no_result():
    model = random_model("blip_image_text_matching")
    both = {"image": images(2), "text_input": TEXTS}
    layer = model.text_encoder.encoder.layer[1]
    found = []
    with torch.no_grad():
        plain = model(both)
        modules = [layer.crossattention, layer.attention, model.visual_encoder.blocks[2].attn]
        maps = attention_maps(modules, lambda: found.append(model(both)))
        torch.testing.assert_close(found[0], plain, rtol=1e-5, atol=1e-5)
    assert [m.shape[0] for m in maps] == [4, 4, 2]
    for each in maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:2]), rtol=1e-4, atol=1e-4)
    assert all(m.kept is None for m in modules)


def test_gradcam_of_a_batch_equals_each_alone_and_works_on_frozen_models():
    model = random_model("blip_image_text_matching").requires_grad_(False)
    pictures, texts = images(2), TEXTS[:2]
    maps, logits = compute_gradcam(model, pictures, texts, model.tokenizer.batch(texts), block_num=1)
    assert logits.shape == (2, 2)
    for i in range(2):
        tokens = model.tokenizer(texts[i], return_tensors="pt")
        (alone,), _ = compute_gradcam(model, pictures[i : i + 1], [texts[i]], tokens, block_num=1)
        assert alone.shape == (1 + tokens.input_ids.shape[1], 8, 8)
        torch.testing.assert_close(maps[i][: len(alone)], alone, rtol=1e-3, atol=1e-6)
        count = tokens.input_ids.shape[1] - 2
        torch.testing.assert_close(alone[1], alone[2 : 2 + count].mean(0))
    assert max(m.max() for m in maps) > 0


def test_maps_of_two_pictures_side_by_side():
    """BLIP's twin cross-attention: the left picture's keys first, each half with a softmax of its own."""
    model = random_model("blip_nlvr")
    first, second = (layer.crossattention for layer in model.text_encoder.encoder.layer[:2])
    left, right, other = images(3).unsqueeze(1)
    texts = {"text_input": [TEXTS[0]]}

    def look(right):
        samples = {"image0": left, "image1": right, **texts}
        (maps,) = attention_maps([first], lambda: model.predict(samples))
        (shares,), _ = gradcam([second], lambda: model.fused(samples)[0][:, 0].sum(dim=1))
        return maps, shares

    (maps, shares), (others, _) = look(right), look(other)
    assert maps.shape == shares.shape == (1, len(model.tokenizer.encode(TEXTS[0])), 2 * 65)
    torch.testing.assert_close(maps.unflatten(-1, (2, 65)).sum(-1), torch.ones(*maps.shape[:2], 2))
    torch.testing.assert_close(maps[..., :65], others[..., :65])  # nothing of the right picture is in it
    assert not torch.allclose(maps[..., 65:], others[..., 65:], rtol=1e-3)
    assert shares[..., :65].max() > 0 < shares[..., 65:].max()


def test_gradcam_finds_what_decides():
    """A score that reads one key only has its map there."""
    model = random_model("blip_feature_extractor")
    attention = model.visual_encoder.blocks[-1].attn

    def score():
        states = model.encode_image(images(1))
        return states[:, 0].sum(dim=1)

    (maps,), value = gradcam([attention], score)
    assert maps.shape == (1, 65, 65) and value.shape == (1,)
    assert (maps[:, 1:] == 0).all() and maps[:, 0].sum() > 0  # only the class token's row feeds the score
    with pytest.raises(ValueError, match="not used"):
        gradcam([model.text_encoder.encoder.layer[0].attention], score)


def test_heat_map():
    heat = np.zeros((4, 4))
    heat[1, 2] = 3.0
    picture = np.full((64, 64, 3), 0.5)
    over = getAttMap(picture, heat)
    assert over.shape == (64, 64, 3) and over.min() >= 0 and over.max() <= 1
    redness = over[..., 0] - over[..., 2]
    y, x = np.unravel_index(redness.argmax(), redness.shape)
    assert 16 <= y < 32 and 32 <= x < 48
    with pytest.raises(ValueError, match="shape"):
        getAttMap(np.zeros((3, 8, 8)), heat)
    assert np.isfinite(getAttMap(picture, np.ones((4, 4)), overlap=False)).all()


# ------------------------------------------------------------------------------------ several ranks


@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_ranks_train_as_one(accumulated):
    """Same global batch, no dropout, negatives from all ranks: parameters, EMA and queue agree."""

    def train(rank, ranks):
        # double, as the order of float32 sums differs with the ranks, and not Adam: it would blow up the rounding
        # noise of gradients that are 0 (biases of attention keys)
        keys = {"negative_all_rank": True, "queue_size": 16, "spread": 0.02}
        model = random_model("blip_retrieval", **keys).train().double()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if ranks > 1 else model
        mine = slice(rank, rank + 1) if ranks > 1 else slice(0, 2)
        for step in range(20):
            batch = samples(
                2, image=images(2, seed=step).double(), iters=step, image_id=torch.arange(2) + 2 * step
            )
            batch.update({k: batch[k][mine] for k in ("image", "text_input", "image_id")})
            if accumulated > 1 and step % accumulated == 0:  # else a call is a step by itself
                model.before_step()
            wrapped(batch).loss.backward()
            if (step + 1) % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
                if accumulated > 1:
                    model.after_step()
        assert int(model.queue_ptr) == 40 % 16
        return {k: v.numpy() for k, v in model.state_dict().items()} if rank == 0 else None

    found = [on_ranks(ranks, functools.partial(train, ranks=ranks))[0] for ranks in (1, 2)]
    for key, value in found[0].items():
        np.testing.assert_allclose(value, found[1][key], rtol=0, atol=1e-8, err_msg=key)


def test_gradcam_of_clip():
    model = random_model("clip")
    attention = model.visual.transformer.resblocks[-1].attn
    pair = {"image": images(2), "text_input": TEXTS[:2]}

    def cosine():
        found = model(pair).intermediate_output
        return (found.image_embeds_proj * found.text_embeds_proj).sum(dim=1)

    (maps,), cosines = gradcam([attention], cosine)
    grid = patch_grid(maps[:, 0])
    assert grid.shape == (2, 8, 8) and grid.max() > 0 and cosines.shape == (2,)
    with pytest.raises(ValueError, match="no square"):
        patch_grid(maps[:, 0, :-1])


@pytest.mark.parametrize("name", ["blip_retrieval", "albef_retrieval"])
def test_the_last_layer_for_the_first_token_alone(name):
    """What re-ranking leaves out changes nothing that it reads."""
    model = random_model(name).eval()
    tokens = model.tokens(TEXTS[:4], max_length=35)
    with torch.no_grad():
        text = TextStates(tokens, model.encode_text(tokens) if model.FUSES_STATES else None)
        memory = model.memorize(model.encode_image(images(2)))
        whole, first = (model.fuse(text, memory, only_first=alone) for alone in (False, True))
        assert first.shape[1] == 1 < whole.shape[1]
        torch.testing.assert_close(first[:, 0], whole[:, 0], rtol=1e-5, atol=1e-5)
        begun = TextStates(tokens, model.begin(tokens, model.encode_text(tokens)))
        torch.testing.assert_close(model.fuse(begun, memory), whole, rtol=1e-5, atol=1e-5)
        first = model.fuse(begun, memory, only_first=True)
        torch.testing.assert_close(first[:, 0], whole[:, 0], rtol=1e-5, atol=1e-5)


def test_texts_are_begun_anew_where_memory_is_short(monkeypatch):
    """Re-ranking gives the same scores whether or not what precedes the picture is kept."""
    model = random_model("blip_retrieval").eval()
    loader = Gallery(images(6), [f"a red circle {'and a blue star ' * (i % 3)}" for i in range(9)])
    kept = model.compute_sim_matrix(loader, {"k_test": 4})
    monkeypatch.setattr(reranking, "BEGUN_BYTES", 0)
    anew = model.compute_sim_matrix(loader, {"k_test": 4})
    for a, b in zip(kept, anew, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
