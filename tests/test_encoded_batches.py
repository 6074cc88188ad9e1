"""Texts become tokens in the processes that load data, and a training step on tensors compiles in one graph."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lavis.models.samples import TextEncoder
from lavis.models.tokenizer import Tokenizer, Tokens
from lavis.runners import train
from lavis.runners.data import Order, TrainLoader
from lavis.runners.skipped import Skipped
from tests.compiled import trained
from tests.small import images, random_model
from tests.test_blip_heads import STEP, TEXTS
from tests.toy_training import ToyData, ToyModel, ToyTask

CPU = torch.device("cpu")


def captioned(texts: list[str], seed: int) -> dict[str, Any]:
    return {"image": images(4, seed=seed), "text_input": [f"a picture of {text}" for text in texts]}


def pairs(texts: list[str], seed: int) -> dict[str, Any]:
    return {"image": images(4, seed=seed), "text_input": texts}


# model, config, samples of texts and a seed
LOSSES = {
    "captions": ("blip_caption", {}, captioned),
    "contrast": ("clip", {}, pairs),
}


def batches(kind: str) -> list[dict[str, Any]]:
    """Three of one padded length, with where training is, as the runner writes it."""
    _, _, samples = LOSSES[kind]
    given = [samples(texts, seed) for seed, texts in enumerate((TEXTS, TEXTS[::-1], TEXTS[2:] + TEXTS[:2]))]
    return [{**batch, **STEP, "iters": i} for i, batch in enumerate(given)]


def model_of(kind: str) -> Any:
    name, config, _ = LOSSES[kind]
    return random_model(name, spread=0.02, **config)


# ------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("kind", LOSSES)
def test_a_step_compiles_in_one_graph_once(kind: str) -> None:
    encoded = [model_of(kind).encode_batch(batch) for batch in batches(kind)]
    plain, weights = trained(model_of(kind), encoded, compiled=False)
    compiled, compiled_weights = trained(model_of(kind), encoded, compiled=True)
    assert len(set(plain)) == len(plain)
    assert compiled == pytest.approx(plain, rel=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(compiled_weights[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("kind", LOSSES)
def test_an_encoder_of_another_process_gives_what_the_model_reads(kind: str) -> None:
    model, batch = model_of(kind).train(), batches(kind)[0]
    data = pickle.dumps(model.batch_encoder())
    assert len(data) < len(pickle.dumps(model.tokenizer)) + 2000  # so no weights
    encoded = pickle.loads(data)(batch)  # noqa: S301  our own
    assert {k: v for k, v in encoded.items() if k in batch} == batch  # tasks may want the strings
    assert encoded["tokens"] and all(isinstance(t, Tokens) for t in encoded["tokens"].values())
    losses = []
    for samples in (batch, encoded, {k: v for k, v in encoded.items() if k not in TEXT_KEYS}):
        torch.manual_seed(0)
        losses.append(model(samples).loss)
    assert losses[0] == losses[1] == losses[2]


TEXT_KEYS = ("text_input", "answer", "caption", "dialog", "answer_options")


def test_the_largest_vocabulary_is_no_burden_to_a_process() -> None:
    assert len(pickle.dumps(TextEncoder(Tokenizer()))) < 1_000_000  # BERT's 30522 pieces


# ------------------------------------------------------------------------------------ loaders
class Doubling:
    """Encodes numbers of a toy's batch, and says in which process."""

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        if max(samples["id"]) == self.limit:
            raise ValueError("sample 59 is too long;\nshorten it")
        main = multiprocessing.parent_process() is None
        tokens = Tokens(2 * samples["y"][:, None], torch.full((len(samples["id"]), 1), main))
        return {**samples, "tokens": {"text": tokens}, "drawn": torch.rand(1)}

    limit = -1


class Strict(Doubling):
    limit = 59


class Encoded(ToyModel):
    """A toy that reads what its encoder makes; a model of somebody else, which is no BaseModel."""

    encoder: Any = Doubling()

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def batch_encoder(self) -> Any:
        return self.encoder

    def forward(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        self.seen.append(samples)
        return super().forward(samples)


def run(model: ToyModel, tmp_path: Any, task: Any = None, **keys: Any) -> list[dict[str, Any]]:
    """The batches that a model of a short run was given."""
    datasets = {"train": ToyData(60, 1, training=True)}
    keys = {"batch_size_train": 4, "max_epoch": 1, "num_workers": 0, "accum_grad_iters": 2, **keys}
    train(model=model, datasets=datasets, task=task or ToyTask(), device="cpu", output_dir=tmp_path, **keys)
    return model.seen  # type: ignore[return-value]


def test_workers_encode_and_what_they_draw_does_not_depend_on_them(tmp_path: Any) -> None:
    here, there = (run(Encoded(), tmp_path, num_workers=n) for n in (0, 2))
    assert len(here) == len(there) == 15
    for one, other in zip(here, there):
        assert torch.equal(one["tokens"]["text"].ids, 2 * one["y"][:, None])
        assert torch.equal(other["tokens"]["text"].ids, 2 * other["y"][:, None])
        assert one["drawn"] == other["drawn"] and one["id"] == other["id"]
        assert one["tokens"]["text"].mask.all() and not other["tokens"]["text"].mask.any()
    assert len({float(batch["drawn"]) for batch in here}) == 15


def test_an_encoder_goes_to_processes_that_are_started(tmp_path: Any) -> None:
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        (first, *_) = run(Encoded(), tmp_path, num_workers=1, max_iters=2, max_epoch=None)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert not first["tokens"]["text"].mask.any()


def test_models_without_an_encoder_and_tasks_with_a_step_of_their_own_get_batches_as_they_are(
    tmp_path: Any,
) -> None:
    class Plain(Encoded):
        encoder = None

    class Own(ToyTask):
        def train_step(self, model: Any, samples: Any) -> Any:
            samples["y"] = samples["y"].flip(0)
            return super().train_step(model, samples)

    assert all("tokens" not in batch for batch in run(Plain(), tmp_path))
    assert all("tokens" not in batch for batch in run(Encoded(), tmp_path, Own()))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_an_encoder_refuses_is_said_in_its_words(workers: int, tmp_path: Any) -> None:
    class Careful(Encoded):
        encoder = Strict()

    with pytest.raises(ValueError, match=r"^sample 59 is too long;\nshorten it$"):
        run(Careful(), tmp_path, num_workers=workers)


def test_a_batch_of_each_of_several_sets_is_encoded() -> None:
    sets = [ToyData(8, 1, training=True), ToyData(12, 2, training=True)]
    order = Order([8, 12], 4, seed=1, ratios=[1, 1])
    loader = TrainLoader(sets, order, 1, 0, 5, CPU, Skipped(sets), Doubling())
    found = list(loader.batches(0, 5))
    loader.close()
    assert len(found) == 5 and all(torch.equal(b["tokens"]["text"].ids, 2 * b["y"][:, None]) for b in found)


def test_tokenizers_do_not_complain_of_processes(tmp_path: Any) -> None:
    options = [
        "datasets.shapes_caption.n_train=8", "datasets.shapes_caption.cache=false", "run.max_iters=2",
        "run.max_epoch=null", "run.batch_size_train=2", "run.valid_splits=[]", "run.test_splits=[]", "run.device=cpu",
        "run.num_workers=1", f"run.output_dir={tmp_path}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "lavis", "train", "blip/caption_shapes", "--options", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "huggingface/tokenizers" not in done.stderr and "TOKENIZERS_PARALLELISM" not in done.stderr
