"""Temperatures, EMA and queues move at steps of the optimizer, in `before_step` and `after_step`, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lavis.inference.convert import convert
from lavis.models import load_model
from lavis.models.checkpoints import SCALARS, write_state_dict
from tests.small import images, random_model

TEXTS = ["a red circle", "two large striped blue stars above a ring", "a cat", "three green hearts"]
PLACE = {"epoch": 2, "iters": 3, "num_iters_per_epoch": 10}
QUEUED = ["blip_retrieval", "blip_pretrain", "albef_retrieval", "albef_pretrain", "blip_video_retrieval"]
AVERAGED = [*QUEUED, "albef_vqa", "albef_classification", "albef_nlvr", "blip_classification"]
CLAMPED = ["alpro_retrieval", "clip"]


def batch(name: str, count: int = 2, seed: int = 0, **more):
    """A batch of a training step."""
    video = torch.randn(count, 3, 8, 64, 64, generator=torch.Generator().manual_seed(seed))
    media = (
        {"video": video}
        if "video" in name or name.startswith("alpro")
        else {"image": images(count, seed=seed)}
    )
    if name.endswith("nlvr"):
        media = {"image0": images(count, seed=seed), "image1": images(count, seed=seed + 100)}
    return {
        **media, "text_input": [TEXTS[(i + seed) % 4] for i in range(count)],
        "image_id": torch.arange(count) + 10 * seed,
        "label": torch.arange(count) % 2, "answer": ["red", "two", "a cat", "ring"][:count],
        "n_answers": torch.ones(count, dtype=torch.long), "weight": torch.ones(count), **PLACE, **more,
    }  # fmt: skip


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def with_another_ema(name: str, **config):
    """A model whose EMA copies are not what they follow, or moving them would change nothing."""
    model = random_model(name, **config)
    for p in model.parameters():
        if not p.requires_grad:
            p.data += 0.1
    return model


# ------------------------------------------------------------------------------------- what a step is


@pytest.mark.parametrize("name", ["blip_retrieval", "albef_pretrain"])
@given(sizes=st.lists(st.integers(2, 3), min_size=1, max_size=4))
@settings(max_examples=5, deadline=None)
def test_several_batches_are_one_step_of_the_ema_and_all_in_the_queue(name, sizes):
    model = with_another_ema(name, queue_size=16).train()
    before = state_of(model)
    model.before_step(2.3)
    moved = state_of(model)
    for key, value in moved.items():
        if "_m." in key and value.is_floating_point():
            online = before[key.replace("_m.", ".", 1)]
            torch.testing.assert_close(value, 0.995 * before[key] + 0.005 * online)
        else:
            assert torch.equal(value, before[key]), key
    new = []
    for seed, count in enumerate(sizes):
        out = model(batch(name, count, seed))
        out.loss.backward()
        new.append(out.intermediate_output.new_features)
    assert all(torch.equal(value, moved[key]) for key, value in model.state_dict().items())
    model.after_step()
    total = sum(sizes)
    assert int(model.queue_ptr) == total % 16
    torch.testing.assert_close(model.image_queue[:, :total].T, torch.cat([n.images for n in new]))
    torch.testing.assert_close(model.text_queue[:, :total].T, torch.cat([n.texts for n in new]))
    assert torch.equal(model.image_queue[:, total:], before["image_queue"][:, total:])
    if model.OBJECTIVE.by_id:
        wanted = [i + 10 * seed for seed, count in enumerate(sizes) for i in range(count)]
        assert model.idx_queue[0, :total].tolist() == wanted
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in moved.items() if "queue" not in key)
    assert model.optimizer_step is None


@pytest.mark.parametrize("name", [*AVERAGED, *CLAMPED])
def test_in_evaluation_mode_a_loss_moves_nothing(name):
    model = with_another_ema(name)
    if name in CLAMPED:
        getattr(model, "temp" if name.startswith("alpro") else "logit_scale").data.fill_(7.0)
    before = state_of(model)
    assert model(batch(name)).loss > 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", [*AVERAGED, *CLAMPED])
def test_a_loop_that_knows_of_no_steps_gives_the_same_numbers(name):
    """In train mode `model(samples)` alone is before_step, forward, after_step."""
    alone, driven = with_another_ema(name).train(), with_another_ema(name).train()
    losses = []
    for model in (alone, driven):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        torch.manual_seed(1)
        for i in range(3):
            if model is driven:
                model.before_step(2.3)
            loss = model(batch(name, seed=i)).loss
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            if model is driven:
                model.after_step()
        assert model.optimizer_step is None
    assert losses[:3] == losses[3:]
    for key, value in driven.state_dict().items():
        assert torch.equal(value, alone.state_dict()[key]), key


@pytest.mark.parametrize("name", ["albef_classification", "blip_classification"])
def test_predictions_of_a_training_model_move_nothing(name):
    model = with_another_ema(name).train()
    before = state_of(model)
    model(batch(name), is_train=False)
    model.predict(batch(name))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_opinion_of_the_ema_weighs_what_the_step_says():
    model = random_model("albef_vqa", momentum=1.0)
    early = {**batch("albef_vqa"), "epoch": 0, "iters": 0}
    late = model(batch("albef_vqa")).loss
    model.before_step(2.3)
    torch.testing.assert_close(model(early).loss, late)
    model.after_step()
    assert abs(float(model(early).loss - late)) > 1e-3


def test_a_loss_that_fails_leaves_no_step_behind():
    model = random_model("blip_retrieval").train()
    with pytest.raises(ValueError, match="one per image"):
        model(batch("blip_retrieval", text_input=TEXTS))
    assert model.optimizer_step is None
    model(batch("blip_retrieval"))
    assert int(model.queue_ptr) == 2


# ------------------------------------------------------------------------------------------ scalars


@pytest.mark.parametrize(
    ("name", "key"), [("albef_retrieval", "temp"), ("alpro_retrieval", "temp"), ("clip", "logit_scale")]
)
def test_learned_numbers_are_vectors_of_one_here_and_numbers_in_official_files(name, key, tmp_path):
    assert key in SCALARS
    model = random_model(name)
    assert dict(model.named_parameters())[key].shape == (1,)
    official = copy.deepcopy(model)
    number = dict(official.named_parameters())[key]
    number.data = number.data.reshape(())
    write_state_dict(official.state_dict(), tmp_path / "official.safetensors")
    assert load_file(tmp_path / "official.safetensors")[key].shape == ()
    read = load_model(name, "tiny", checkpoint=tmp_path / "official.safetensors")
    assert torch.equal(read.state_dict()[key], model.state_dict()[key])
    # there and back: a folder of ours, converted, has the official shapes, and is read as it was
    model.save_pretrained(tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "converted", for_training=True)
    ours, converted = (load_file(tmp_path / f / "model.safetensors") for f in ("ours", "converted"))
    assert ours[key].shape == (1,) and converted[key].shape == ()
    again = load_model(str(tmp_path / "converted"))
    for entry, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[entry], value), entry
