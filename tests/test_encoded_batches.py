"""Texts become tokens in the processes that load data, and a training step on tensors compiles in one graph."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from lavis.common.registry import registry
from lavis.models.samples import TextEncoder
from lavis.models.tokenizer import Tokenizer, Tokens
from lavis.runners import parallel, train
from lavis.runners.data import Order, TrainLoader
from lavis.runners.skipped import Skipped
from tests.compiled import trained
from tests.pages import ROOT, blocks
from tests.ranks import on_ranks
from tests.small import images, random_model
from tests.test_blip_heads import OPTIONS, STEP, TEXTS, WORDS, dialogue, videos
from tests.toy_training import ToyData, ToyModel, ToyTask
from tests.waits import host_waits

CPU = torch.device("cpu")


def step(seed: int) -> list[int]:
    """Another order of four samples for each step, so that all have one padded length."""
    return [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]][seed]


def texts(seed: int, start: str = "") -> list[str]:
    return [start + TEXTS[i] for i in step(seed)]


def about(seed: int, **more: Any) -> dict[str, Any]:
    return {"image": images(4, seed=seed), "text_input": texts(seed), **more}


def about_videos(seed: int, frames: int = 3, **more: Any) -> dict[str, Any]:
    return {"video": videos(4, frames) * (seed + 1), "text_input": texts(seed), **more}


def about_pairs(seed: int) -> dict[str, Any]:
    left, right = images(8, seed=seed).chunk(2)
    return {"image0": left, "image1": right, "text_input": texts(seed), "label": torch.tensor(step(seed)) % 2}


def answered(counts: Sequence[int] = (1, 2, 1, 1)) -> dict[str, Any]:
    given = ["yes", "no", "two", "red", "a"][: sum(counts)]
    return {"answer": given, "weight": torch.rand(len(given)), "n_answers": torch.tensor(counts)}


def said(seed: int, **more: Any) -> dict[str, Any]:
    given = dialogue(**{"answer_options": OPTIONS, **more})
    for key in ("caption", "text_input", "dialog", "answer_options", "answer"):
        given[key] = [given[key][i] for i in step(seed)]
    return {**given, "gt_index": given["gt_index"][step(seed)]}


def with_features(seed: int) -> dict[str, Any]:
    given = {
        key: value for key, value in said(seed).items() if key not in ("image", "answer_options", "gt_index")
    }
    features = torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(seed))
    return {**given, "video": [features[i, : 2 + i] for i in step(seed)]}


def labelled(seed: int) -> torch.Tensor:
    return torch.tensor(step(seed)) % 3


# model, config, samples of a step
LOSSES: dict[str, tuple[str, dict[str, Any], Callable[[int], dict[str, Any]]]] = {
    "captions": ("blip_caption", {}, lambda s: about(s, text_input=texts(s, "a picture of "))),
    "contrast": ("clip", {}, about),
    "questions": ("blip_vqa", {}, lambda s: about(s, **answered())),
    "questions, an answer each": ("blip_vqa", {}, lambda s: about(s, **answered((1, 1, 1, 1)))),
    "ALBEF, questions": ("albef_vqa", {}, lambda s: about(s, **answered())),
    "pairs": ("blip_nlvr", {}, about_pairs),
    "ALBEF, pairs": ("albef_nlvr", {}, about_pairs),
    "classes": ("blip_classification", {}, lambda s: about(s, label=labelled(s))),
    "ALBEF, classes": ("albef_classification", {}, lambda s: about(s, label=labelled(s))),
    "ALPRO, questions": ("alpro_qa", {"num_classes": 3}, lambda s: about_videos(s, 8, answers=labelled(s))),
    "ranked dialogue": ("blip_vis_dialogue", {}, said),
    "ranked dialogue, some candidates": (
        "blip_vis_dialogue", {"candidates": 3}, lambda s: said(s, answer_options=[WORDS[:5]] * 4)
    ),
    "written dialogue": ("blip_vis_dialogue", {"answering": "generate"}, said),
    "video captions": (
        "blip_video_caption", {}, lambda s: about_videos(s, text_input=texts(s, "a picture of "))
    ),
    "video questions": ("blip_video_qa", {}, lambda s: about_videos(s, **answered())),
    "video dialogue": ("blip_video_dialogue", {}, lambda s: said(s, video=True)),
    "GPT, dialogue": ("gpt_dialogue", {"len_video_ft": 12}, with_features),
}  # fmt: skip


def batches(kind: str) -> list[dict[str, Any]]:
    """Three, with where training is, as the runner writes it."""
    torch.manual_seed(0)
    return [{**LOSSES[kind][2](i), **STEP, "iters": i} for i in range(3)]


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
def test_a_step_on_an_encoded_batch_never_waits_for_the_device(kind: str) -> None:
    model, (batch, *_) = model_of(kind).train(), batches(kind)
    encoded = model.encode_batch(batch)
    model.before_step(0.5)
    with host_waits() as waits:
        model(encoded).loss.backward()
        model.after_step()
    assert waits == []


@pytest.mark.parametrize("kind", LOSSES)
def test_an_encoder_of_another_process_gives_what_the_model_reads(kind: str) -> None:
    batch = batches(kind)[0]
    data = pickle.dumps(model_of(kind).batch_encoder())
    assert len(data) < len(pickle.dumps(model_of(kind).tokenizer)) + 2000  # so no weights
    torch.manual_seed(0)
    encoded = pickle.loads(data)(batch)  # noqa: S301  our own
    strings = {key: batch[key] for key in TEXT_KEYS if key in batch}
    assert {key: encoded[key] for key in strings} == strings  # tasks may want them
    added = [t for tokens in encoded.get("tokens", {}).values() for t in tokens]
    media = batch.get("image", batch.get("image0", batch.get("video")))
    assert kind == "GPT, dialogue" or sum(t.nbytes for t in added) < media.nbytes / 20
    losses = []
    for samples in (batch, encoded, {k: v for k, v in encoded.items() if k not in TEXT_KEYS}):
        model = model_of(kind)
        torch.manual_seed(0)
        losses.append(model(samples).loss)
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_processes_that_share_a_model_take_encoded_batches(how: str) -> None:
    """Its wrappers hand tokens on as they are, and each rank has its own."""

    def losses(rank: int) -> list[float]:
        model: Any = random_model("albef_vqa", spread=0.02, momentum=1.0).train()
        if how == "fsdp":
            parallel.shard(model, CPU)
        wrapped = parallel.replicated(model, CPU, find_unused=False)
        batch = batches("ALBEF, questions")[rank]
        found = []
        for samples in (batch, model.encode_batch(batch)):
            torch.manual_seed(rank)
            model.before_step(0.5)
            loss = wrapped(samples).loss
            loss.backward()
            model.after_step()
            found.append(loss.item())
        return found

    one, two = on_ranks(2, losses)
    assert one[0] == one[1] and two[0] == two[1] and one != two


PREDICTIONS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "contrast": lambda m, s: m.extract_features(s).text_embeds,
    "questions": lambda m, s: m.predict_answers(s, answer_list=["yes", "no", "red"]),
    "classes": lambda m, s: m.predict(s)["predictions"],
    "ALPRO, questions": lambda m, s: m.predict(s)["predictions"],
    "ranked dialogue": lambda m, s: m.predict(s),
}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_read_the_texts_that_are_there_now(kind: str) -> None:
    model, (batch, other, _) = model_of(kind), batches(kind)
    encoded = {**model.encode_batch(other), **batch}  # the tokens are of other texts
    wanted, found, differing = (PREDICTIONS[kind](model, s) for s in (batch, encoded, other))
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert not torch.equal(differing, wanted)
    else:
        assert found == wanted


# The texts that samples hold
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


def test_the_guides_model_from_outside_reads_tokens() -> None:
    (source,) = (b.code for b in blocks(ROOT / "docs/guides/extend.md") if b.file == "my_words.py")
    module = types.ModuleType("my_words")
    sys.modules["my_words"] = module  # dataclasses look there
    try:
        exec(compile(source, "my_words.py", "exec"), module.__dict__)  # noqa: S102  the guide's code
        batch = {**about(0), "label": labelled(0)}
        model = module.Words(module.WordsConfig())
        encoded = model.encode_batch(batch)
        losses, weights = trained(copy.deepcopy(model), [encoded] * 3, compiled=False)
        assert losses[0] == float(model(batch).loss.detach()) and losses[2] < losses[0]
        compiled, compiled_weights = trained(model, [encoded] * 3, compiled=True)
        assert compiled == losses and torch.equal(compiled_weights["bag.weight"], weights["bag.weight"])
    finally:
        registry.unregister("model", "my_words")
        del sys.modules["my_words"]


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
