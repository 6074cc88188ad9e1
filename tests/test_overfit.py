"""Every head that trains learns eight samples by heart: the public runner trains it on the embedded data; loaded from
the checkpoint that the run left, its loss is within 0.05 of the least possible, and it answers all eight correctly.

The least possible loss (the floor) is the entropy of what the loss compares with: of a smoothed label, of a label mixed
with the momentum twins' opinion, of the pictures in the queue that belong together; 0 where labels are hard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.datasets.base import Dataset
from lavis.datasets.builders import load_dataset
from lavis.datasets.dialogue import DialogueDataset
from lavis.models import load_model, load_preprocess
from lavis.nn.losses import IGNORE
from lavis.runners import evaluate, train

EIGHT = 8
SIZE, FRAMES = 32, 2  # pixels, frames of a clip: fewer than usual, to be quick
NEAR = 0.05  # nats
DRAWS = 10  # steps whose loss is averaged: wrong pairs and masked tokens are drawn anew in each
WORDS = ["red", "blue", "green", "star", "ring", "cross", "heart", "circle"]

Records = list[dict[str, Any]]
Choice = Callable[[Sequence[dict[str, Any]]], Records]


@dataclass(frozen=True)
class Head:
    """
    Attributes:
        arch, task, data: registered names.
        choose: which records of the data. options: how they are made.
        floor: the least possible loss of (model, batch, output), nats.
        right: metrics that are 100 when all answers are right. also: a check of (model, batch) beyond them.
        asked_by: the task that asks, where the one that trains cannot.
        iterations, rate: of the training. model, run: further keys of these sections.
    """

    arch: str
    task: str
    data: str
    choose: Choice
    floor: Callable[[Any, Any, Any], float]
    iterations: int
    right: tuple[str, ...] = ()
    also: Callable[[Any, Any], None] | None = None
    asked_by: str | None = None
    rate: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------ samples


def one_each(records: Sequence[dict[str, Any]]) -> Records:
    """Eight pictures (or pairs) with one sentence each; every sentence has each of its labels."""
    found = {r["image_id"]: r for r in reversed(records)}
    return [found[i] for i in sorted(found)][:EIGHT]


def described(records: Sequence[dict[str, Any]]) -> Records:
    """Eight pictures with one caption each, or a picture's five would all be right."""
    chosen = [r | {"caption": r["caption"][:1]} for r in records[:EIGHT]]
    assert len({r["caption"][0] for r in chosen}) == EIGHT
    return chosen


def paired(records: Sequence[dict[str, Any]]) -> Records:
    """Eight pictures or clips with one caption each, the shortest there are: padding takes most of the time."""
    shortest = [r | {"caption": [min(r["caption"], key=len)]} for r in records]
    chosen = sorted(shortest, key=lambda r: len(r["caption"][0]))[:EIGHT]
    assert len({r["caption"][0] for r in chosen}) == EIGHT  # or two texts would be right
    return chosen


def same_question(question: str) -> Choice:
    """The same question about eight pictures or clips, so that these decide."""

    def choose(records: Sequence[dict[str, Any]]) -> Records:
        chosen = [r for r in records if r["question"] == question][:EIGHT]
        assert len(chosen) == len({r["image_id"] for r in chosen}) == EIGHT
        assert len({str(r.get("answers", r.get("answer"))) for r in chosen}) > 2
        return chosen

    return choose


def same_question_in_dialogues(records: Sequence[dict[str, Any]]) -> Records:
    """A question with eight answers: picture, caption and the round before together say which is right."""

    def rounds(i: int) -> list[dict[str, Any]]:
        options = WORDS[i - i % 4 :][:4]
        before = {"question": "is it red?", "answer": "yes" if i & 4 else "no", "gt_index": 0}
        asked = {"question": "what is it?", "answer": WORDS[i], "gt_index": i % 4}
        return [turn | {"answer_options": options} for turn in (before, asked)]

    captions = ["a small ring", "a large star"]
    return [
        records[i & 1] | {"image_id": i, "caption": captions[i >> 1 & 1], "dialog": rounds(i)}
        for i in range(EIGHT)
    ]


class SecondRounds(DialogueDataset):
    """An item is the second round of a dialogue; comes before the data set among the bases."""

    def _round_at(self, index: int) -> tuple[int, int]:
        return index, 1

    def _count_rounds(self) -> int:
        return len(self.records)


def eight_samples(head: Head) -> dict[str, Dataset]:
    """Eight samples of an embedded data set, not augmented: to train on, and the same to be asked about."""
    preset = registry.get_model_class(head.arch).preset("tiny")
    vision = dict(preset.vis_processor["eval"])
    if head.arch != "gpt_dialogue":  # its processor has a grid of its own
        vision |= {"image_size": SIZE}
        vision |= {"n_frms": FRAMES} if "video" in head.data else {}
    vis, txt = load_preprocess({"vis_processor": {"eval": vision}, "text_processor": preset.text_processor})
    whole = load_dataset(head.data, size=SIZE, n_train=100, **head.options)["train"]
    kind = type(whole)
    if "dialogue" in head.data:
        kind = type("Eight", (SecondRounds, kind), {})
    answers = {"answer_list": whole.answer_list} if hasattr(whole, "answer_list") else {}
    records = head.choose(whole.records)
    splits = {
        split: kind(
            records, split, options=whole.options, vis_processor=vis["eval"], text_processor=txt[phase], **answers
        )
        for split, phase in (("train", "train"), ("test", "eval"))
    }  # fmt: skip
    assert [len(split) for split in splits.values()] == [EIGHT, EIGHT]
    return splits


def batch_of(dataset: Dataset) -> dict[str, Any]:
    """All eight, at the end of a training run."""
    samples = [dataset.sample(i, np.random.default_rng(0)) for i in range(EIGHT)]
    return {**dataset.collater(samples), "epoch": 1000, "iters": 0, "num_iters_per_epoch": 1}


# ------------------------------------------------------------------------------------------ floors


def entropy(targets: torch.Tensor) -> float:
    """Mean over rows of the least cross entropy with (R, C) distributions, in nats."""
    return float(-(targets * targets.clamp(min=1e-30).log()).sum(dim=1).mean())


def smoothed(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Labels (R,) as distributions (R, C), smoothed by 0.1."""
    return 0.9 * F.one_hot(labels, classes) + 0.1 / classes


def zero(model: Any, batch: Any, out: Any) -> float:
    """Each sample, or pair of text and picture, has one right label."""
    return 0.0


def of_tokens(model: Any, batch: Any, out: Any) -> float:
    """Smoothed labels; the loss is a mean over tokens."""
    return entropy(smoothed(torch.zeros(1, dtype=torch.long), model.config.text.vocab_size))


def of_texts(model: Any, batch: Any, out: Any) -> float:
    """Smoothed labels; the loss is a sum over each text's tokens."""
    tokens = int((out.intermediate_output.decoder_labels[:, 1:] != IGNORE).sum())
    return of_tokens(model, batch, out) * tokens / EIGHT


def of_texts_and_opinion(model: Any, batch: Any, out: Any) -> float:
    """The same, smoothed labels mixed with what the twins would write."""
    labels = out.intermediate_output.decoder_labels
    states, mask, _ = model.forward_encoder(batch, ema=True)
    memory = model.text_decoder_m.project_memory(states, mask)
    ids = labels.masked_fill(labels == IGNORE, model.tokenizer.pad_id)
    twin = model.text_decoder_m(ids, mask=labels != IGNORE, memory=memory)[:, :-1]
    counted, alpha = labels[:, 1:] != IGNORE, model.config.alpha
    right = smoothed(labels[:, 1:][counted], twin.shape[-1])
    mixed = (1 - alpha) * right + alpha * twin[counted].softmax(dim=1)
    return entropy(mixed) * int(counted.sum()) / EIGHT


def of_opinion(model: Any, batch: Any, out: Any) -> float:
    """Labels mixed with the twins' opinion."""
    alpha, labels = model.config.alpha, F.one_hot(batch["label"], out.logits.shape[1])
    return entropy((1 - alpha) * labels + alpha * out.logits_m.softmax(dim=1))


def of_contrast(model: Any, batch: Any, out: Any) -> float:
    """What belongs together, in the queue too, mixed with the twins' similarities. Matching has hard labels."""
    return (entropy(out.sims.sim_i2t_targets) + entropy(out.sims.sim_t2i_targets)) / 2


def of_contrast_and_tokens(model: Any, batch: Any, out: Any) -> float:
    return of_contrast(model, batch, out) + of_tokens(model, batch, out)


# ---------------------------------------------------------------------- answers that no metric shows


def captions(model: Any, batch: Any) -> None:
    written = model.generate(batch, min_length=1)
    assert written == [text.removeprefix(model.prompt) for text in batch["text_input"]]


def writes(model: Any, batch: Any) -> None:
    """Answers to questions are also right when they are written instead of chosen."""
    assert model.predict_answers(batch, inference_method="generate") == batch["answer"]


def writes_and_ranks(model: Any, batch: Any) -> None:
    writes(model, batch)
    assert model.rank_answers(batch, sorted(set(batch["answer"])), 2) == batch["answer"]


def ranks(model: Any, batch: Any) -> None:
    """A model that writes also ranks, by the probability of what it would write."""
    scores, written = model.predict(batch), model.generate(batch, return_scores=True)
    assert scores.argmax(dim=1).tolist() == batch["gt_index"].tolist()
    torch.testing.assert_close(scores.amax(dim=1), torch.tensor(written.logprobs), rtol=1e-3, atol=1e-4)


def tells_on(model: Any, batch: Any) -> None:
    """After each word of a picture's text the next one is the likeliest."""
    out = model(batch).intermediate_output
    labels, guesses = out.decoder_labels[:, 1:], out.decoder_output.logits[:, :-1].argmax(dim=-1)
    assert torch.equal(guesses[labels != IGNORE], labels[labels != IGNORE])


def guesses(model: Any, batch: Any) -> None:
    """Each word is guessed from the rest of the text and the picture."""
    tokens = model.tokens(batch["text_input"])
    memory = model.memorize(model.encode_image(batch["image"]))
    for place in range(1, tokens.ids.shape[1]):
        ids = tokens.ids.clone()
        ids[:, place] = model.tokenizer.mask_id
        states = model.bert()(ids, mask=tokens.mask, memory=memory)
        found = model.text_encoder.cls(states[:, place]).argmax(dim=1)
        there = tokens.mask[:, place]
        assert torch.equal(found[there], tokens.ids[there, place])


# ------------------------------------------------------------------------------------------- heads

FALLING = {"lr_sched": "linear_warmup_cosine_lr"}  # where losses of single steps differ much to the end
QUICK_TWINS = {"momentum": 0.9}  # they follow within tens of steps
RETRIEVED = ("txt_r1", "img_r1")
WRITTEN: dict[str, Any] = {"right": ("exact_percent",), "run": {"inference_method": "generate"}}
HOW_MANY = same_question("how many objects are there?")
HOW_MANY_LEFT = same_question("how many objects are there at the end?")
IN_DIALOGUE: dict[str, Any] = {
    "task": "dialogue",
    "choose": same_question_in_dialogues,
    "options": {"options": 4},
}
ACCURATE: dict[str, Any] = {"right": ("accuracy_percent",)}
CLASSES: dict[str, Any] = {"task": "multimodal_classification", **ACCURATE}

HEADS = {
    "blip_caption": Head(
        "blip_caption", "captioning", "shapes_caption", described, of_tokens, 80, also=captions,
    ),
    "blip_vqa": Head("blip_vqa", "vqa", "shapes_vqa", HOW_MANY, of_texts, 60, also=writes, **ACCURATE),
    "blip_retrieval": Head(
        "blip_retrieval", "retrieval", "shapes_retrieval", paired, of_contrast, 140, RETRIEVED, rate=5e-4,
        model={"max_txt_len": 16, "queue_size": 16, **QUICK_TWINS},
    ),
    "blip_pretrain": Head(
        "blip_pretrain", "image_text_pretrain", "shapes_retrieval", paired, of_contrast_and_tokens, 120, RETRIEVED,
        asked_by="retrieval", also=tells_on, run=FALLING,
        model={"max_txt_len": 16, "queue_size": 0, **QUICK_TWINS},
    ),
    "blip_nlvr": Head(
        "blip_nlvr", data="shapes_nlvr", choose=one_each, floor=zero, iterations=60, options={"flip": False}, **CLASSES,
    ),
    "blip_classification": Head(
        "blip_classification", data="shapes_entailment", choose=one_each, floor=of_opinion, iterations=60,
        model=QUICK_TWINS, **CLASSES,
    ),
    "blip_vis_dialogue, ranking": Head(
        "blip_vis_dialogue", data="shapes_dialogue", floor=zero, iterations=200, right=("r1_percent",), rate=3e-4,
        **IN_DIALOGUE,
    ),
    "blip_vis_dialogue, writing": Head(
        "blip_vis_dialogue", data="shapes_dialogue", floor=of_tokens, iterations=80, also=ranks,
        model={"answering": "generate"}, **WRITTEN, **IN_DIALOGUE,
    ),
    "blip_video_caption": Head(
        "blip_video_caption", "captioning", "shapes_video_caption", described, of_tokens, 80, also=captions,
    ),
    "blip_video_qa": Head(
        "blip_video_qa", "vqa", "shapes_video_qa", HOW_MANY_LEFT, of_texts, 60, also=writes,
        options={"words": True}, **ACCURATE,
    ),
    "blip_video_retrieval": Head(
        "blip_video_retrieval", "retrieval", "shapes_video_retrieval", paired, of_contrast, 150, RETRIEVED, rate=5e-4,
        model={"max_txt_len": 18, "queue_size": 0, **QUICK_TWINS},
    ),
    "blip_video_dialogue": Head(
        "blip_video_dialogue", data="shapes_video_dialogue", floor=of_tokens, iterations=80, also=ranks, **WRITTEN,
        **IN_DIALOGUE,
    ),
    "albef_vqa": Head(
        "albef_vqa", "vqa", "shapes_vqa", HOW_MANY, of_texts_and_opinion, 110, also=writes_and_ranks, run=FALLING,
        model=QUICK_TWINS, **ACCURATE,
    ),
    "albef_retrieval": Head(
        "albef_retrieval", "retrieval", "shapes_retrieval", paired, of_contrast, 100, RETRIEVED, run=FALLING,
        model={"max_txt_len": 16, "queue_size": 16, **QUICK_TWINS},
    ),
    # without the twins: the output does not tell which words were masked, so nothing could be mixed for the floor
    "albef_pretrain": Head(
        "albef_pretrain", "image_text_pretrain", "shapes_retrieval", paired, of_contrast, 140, RETRIEVED,
        asked_by="retrieval", also=guesses, rate=1.5e-3, run=FALLING,
        model={"max_txt_len": 16, "queue_size": 0, "use_distill": False, "mlm_mask_prob": 0.5},
    ),
    "albef_nlvr": Head(
        "albef_nlvr", data="shapes_nlvr", choose=one_each, floor=of_opinion, iterations=40, options={"flip": False},
        model=QUICK_TWINS, **CLASSES,
    ),
    "albef_classification": Head(
        "albef_classification", data="shapes_entailment", choose=one_each, floor=of_opinion, iterations=60,
        model=QUICK_TWINS, **CLASSES,
    ),
    "alpro_qa": Head(
        "alpro_qa", data="shapes_video_qa", choose=HOW_MANY_LEFT, floor=zero, iterations=60,
        model={"frames": FRAMES}, **CLASSES,
    ),
    "alpro_retrieval": Head(
        "alpro_retrieval", "retrieval", "shapes_video_retrieval", paired, zero, 120, RETRIEVED, run=FALLING,
        model={"max_txt_len": 18, "frames": FRAMES},
    ),
    "clip": Head("clip", "retrieval", "shapes_retrieval", paired, zero, 40, RETRIEVED),
    # The regression's floor is 0, too: what comes before a frame tells which clip it is.
    "gpt_dialogue": Head(
        "gpt_dialogue", data="shapes_video_dialogue", floor=zero, iterations=80, rate=2e-3,
        **IN_DIALOGUE, **WRITTEN | {"run": WRITTEN["run"] | FALLING},
    ),
}  # fmt: skip


def test_the_list_is_complete():
    """Heads that are not in the list have no training loss."""
    only_predict = {
        "albef_feature_extractor", "alpro_feature_extractor", "blip_feature_extractor", "clip_feature_extractor",
        "blip_image_text_matching", "blip2_image_text_matching",
    }  # fmt: skip
    elsewhere = {
        "blip2",
        "blip2_feature_extractor",
        "blip2_opt",
        "blip2_t5",
        "blip2_t5_instruct",
        "blip2_vicuna_instruct",
    }
    assert {head.arch for head in HEADS.values()} | only_predict | elsewhere == set(registry.list_models())


@pytest.mark.parametrize("name", HEADS)
def test_eight_samples_are_learnt_by_heart(tmp_path, name):
    head = HEADS[name]
    data = eight_samples(head)
    size = {} if head.arch == "gpt_dialogue" else {"image_size": SIZE}
    recipe = {
        "model": {"arch": head.arch, "model_type": "tiny", "weights": "none", **size, **head.model},
        "run": {
            "task": head.task, "max_iters": head.iterations, "iters_per_inner_epoch": 10, "batch_size_train": EIGHT,
            "init_lr": head.rate, "warmup_lr": 0.0, "warmup_steps": 10, "lr_sched": "constant_lr",
            "max_grad_norm": 1.0, "save_freq": 0, "train_splits": ["train"], "output_dir": str(tmp_path),
            "device": "cpu", **head.run,
        },
    }  # fmt: skip
    result = train(recipe, datasets={"train": data["train"]})

    model, batch = load_model(str(result.checkpoint_last)).train(), batch_of(data["train"])
    torch.manual_seed(0)
    above, floors = [], []
    with torch.no_grad():
        for _ in range(DRAWS):
            out = model(batch)
            floors.append(head.floor(model, batch, out))
            above.append(float(out.loss) - floors[-1])
    assert -1e-4 < np.mean(above) < NEAR
    last = [row for row in result.history if row["event"] == "epoch"][-1]
    assert last["loss"] < np.mean(floors) + NEAR  # as the run itself reported it

    if head.also is not None:
        with torch.no_grad():
            head.also(model, batch)
    if head.right:
        asked = load_model(str(result.checkpoint_last), is_eval=True)
        metrics = evaluate(
            model=asked, datasets={"test": data["test"]}, task=head.asked_by or head.task, splits=["test"],
            output_dir=str(tmp_path), device="cpu", **head.run,
        )  # fmt: skip
        assert {key: metrics["test"][key] for key in head.right} == dict.fromkeys(head.right, 100.0)
