"""Training steps of images with their texts run on tensors: one graph, compiled once, at most one wait."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lavis.nn.losses import IGNORE, mask_tokens, masked_places
from lavis.runners import train
from tests.compiled import trained
from tests.small import images, random_model
from tests.test_blip_heads import STEP, TEXTS, videos
from tests.toy_training import ToyData, ToyTask
from tests.waits import host_waits

ORDERS = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]]
STATEMENTS = ["a red star", "no ring", "two cats and a very long tail", "a", "a green heart or a cross"]


def pairs(seed: int, **more: Any) -> dict[str, Any]:
    """Four images with a text each, in another order for each seed, so that all batches have one padded length."""
    order = ORDERS[seed]
    return {
        "image": images(4, seed=seed), "text_input": [TEXTS[i] for i in order],
        "image_id": torch.tensor(order) // 2 * 2, **STEP, "iters": seed, **more,
    }  # fmt: skip


def clips(seed: int, frames: int = 8) -> dict[str, Any]:
    return pairs(seed, image=None, video=videos(4, frames) * (seed + 1))


def judged(seed: int) -> dict[str, Any]:
    texts = [TEXTS[i] for i in ORDERS[seed]]
    fits = torch.rand(4, 24, generator=torch.Generator().manual_seed(seed)) < 0.3
    return pairs(seed, statements=[s for text in texts for s in (text, *STATEMENTS)], fits=fits)


# model, config, samples of a step
STEPS: dict[str, tuple[str, dict[str, Any], Callable[[int], dict[str, Any]]]] = {
    "BLIP, retrieval": ("blip_retrieval", {"queue_size": 16}, pairs),
    "BLIP, pre-training": ("blip_pretrain", {"queue_size": 16}, pairs),
    "BLIP, judged": ("blip_pretrain", {"queue_size": 16}, judged),
    "BLIP, matching alone": ("blip_pretrain", {"queue_size": 0, "losses": ("itm",)}, judged),
    "BLIP, videos": ("blip_video_retrieval", {"queue_size": 16}, lambda s: clips(s, 2)),
    "ALBEF, retrieval": ("albef_retrieval", {"queue_size": 16}, pairs),
    "ALBEF, pre-training": ("albef_pretrain", {"queue_size": 16}, pairs),
    "ALBEF, judged": ("albef_pretrain", {"queue_size": 16, "use_distill": False}, judged),
    "ALPRO, retrieval": ("alpro_retrieval", {}, clips),
}


def model_of(kind: str) -> Any:
    name, config, _ = STEPS[kind]
    return random_model(name, spread=0.02, **config)


def batches(kind: str) -> list[dict[str, Any]]:
    model = model_of(kind)
    return [model.encode_batch(STEPS[kind][2](i)) for i in range(3)]


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_compiles_in_one_graph_once(kind: str) -> None:
    plain, weights = trained(model_of(kind), batches(kind), compiled=False)
    compiled, compiled_weights = trained(model_of(kind), batches(kind), compiled=True)
    assert len(set(plain)) == 3
    assert compiled == pytest.approx(plain, rel=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(compiled_weights[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("kind", ["BLIP, retrieval", "ALPRO, retrieval"])
def test_accumulated_batches_need_no_other_graph(kind: str) -> None:
    """However many batches a step has."""
    torch._dynamo.reset()
    model = model_of(kind).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for step in range(2):
        model.before_step(step / 10)
        for i, batch in enumerate(batches(kind) * 4):
            with torch._dynamo.config.patch(error_on_recompile=step + i > 0):
                compiled(batch).loss.backward()
        model.after_step()
    if hasattr(model, "queue_ptr"):
        assert int(model.queue_ptr) == 2 * 12 * 4 % 16


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_waits_for_the_device_once(kind: str) -> None:
    """To know whether there was a negative for each; not in the loss, and once for all of its batches."""
    model, given = model_of(kind).train(), batches(kind)
    model.before_step(0.5)
    with host_waits() as waits:
        for batch in given:
            model(batch).loss.backward()
        assert waits == []
        model.check_step()
        model.after_step()
    assert len(waits) == 1


@pytest.mark.parametrize("kind", STEPS)
def test_an_encoder_of_another_process_gives_what_the_model_reads(kind: str) -> None:
    model, samples = model_of(kind), STEPS[kind][2](0)
    data = pickle.dumps(model.batch_encoder())
    assert len(data) < len(pickle.dumps(model.tokenizer)) + 2000  # so no weights
    encoded = pickle.loads(data)(samples)  # noqa: S301  our own
    strings = {"text_input", "statements"} & samples.keys()
    assert all(encoded[key] == samples[key] for key in strings)  # tasks may want them
    losses = []
    for batch in (samples, encoded, {k: v for k, v in encoded.items() if k not in strings}):
        torch.manual_seed(0)
        losses.append(model(batch).loss)
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("blip_retrieval", {"image_id": None}, "image_id: integers"),
        ("blip_retrieval", {"text_input": TEXTS[:4] * 2}, "8 texts for 4 images; this loss takes one"),
        ("albef_pretrain", {"statements": TEXTS[:3], "fits": None}, "fits: whether each"),
        ("albef_pretrain", {"statements": TEXTS[:3], "fits": torch.eye(4)}, "3 texts for 4 images"),
        ("alpro_retrieval", {}, "samples need 'video'"),
    ],
)
def test_an_encoder_refuses_what_no_loss_can_be_of(name: str, wrong: Any, message: str) -> None:
    encode = random_model(name).batch_encoder()
    with pytest.raises(ValueError, match=message):
        encode(pairs(0, **wrong))


# ------------------------------------------------------------------------------------ negatives


@pytest.mark.parametrize("how", ["alone", "a step", "evaluation", "compiled"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_id": torch.zeros(4, dtype=torch.long)}, "all 4 samples .* sample 0, .* larger batch"),
        ({"image": torch.full((4, 3, 64, 64), float("nan"))}, "NaN or infinite, so no negative"),
    ],
)
def test_without_negatives_no_weights_move(how: str, wrong: dict[str, Any], message: str) -> None:
    model = random_model("blip_retrieval", queue_size=16).train(how != "evaluation")
    queue = model.image_queue.clone()

    def step() -> None:
        if how in ("alone", "evaluation"):
            model(pairs(0, **wrong))
            return
        loss = torch.compile(model, fullgraph=True, backend="eager") if how == "compiled" else model
        model.before_step(0.5)
        loss(model.encode_batch(pairs(0))).loss.backward()
        loss(model.encode_batch(pairs(1, **wrong))).loss.backward()
        model.check_step()

    with pytest.raises(ValueError, match=message):
        step()
    assert torch.equal(model.image_queue, queue)


def test_a_run_ends_before_a_batch_without_negatives_moves_weights(tmp_path: Any) -> None:
    model = random_model("blip_retrieval", queue_size=16)
    before = model.itm_head.weight.clone()

    class Same(ToyData):
        """Every sample is of one image."""

        def sample(self, index: int, rng: Any) -> dict[str, Any]:
            return {"image": images(1, seed=index)[0], "text_input": TEXTS[index % 4], "image_id": 7}

        def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
            found = {key: [s[key] for s in samples] for key in samples[0]}
            return {**found, "image": torch.stack(found["image"])}

    class Task(ToyTask):
        def train_step(self, model: Any, samples: Any) -> Any:
            return model(samples)

    with pytest.raises(ValueError, match="larger batch"):
        train(
            model=model, datasets={"train": Same(8, 1, training=True)}, task=Task(), device="cpu",
            output_dir=tmp_path, batch_size_train=4, max_epoch=1, num_workers=0,
        )  # fmt: skip
    assert torch.equal(model.itm_head.weight, before)


# -------------------------------------------------------------------------------- masked tokens


@pytest.mark.parametrize("tokens", [1, 7, 60, 2000])
def test_places_of_masked_tokens_hold_all_of_them(tokens: int) -> None:
    torch.manual_seed(0)
    most = None
    for _ in range(100):
        ids = torch.randint(5, 1000, (1, tokens))
        _, labels = mask_tokens(ids, chance=0.15, mask_id=4, never=(0, 2), vocab_size=1000)
        labels = labels.flatten()
        places = masked_places(labels, 0.15)
        chosen = (labels != IGNORE).nonzero().flatten()
        assert torch.equal(places[: len(chosen)], chosen) and len(set(places.tolist())) == len(places)
        assert most in (None, len(places))
        most = len(places)
    assert most is not None and most <= max(0.3 * tokens, min(tokens, 40))
