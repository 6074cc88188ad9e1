"""BLIP's classifiers, dialogue models and video models: properties on tiny ones."""

from __future__ import annotations

import dataclasses
import gzip
import json

import pytest
import torch
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.models import load_model
from lavis.models.blip_reasoning import BlipClassification, BlipNLVR
from lavis.models.blip_vqa import BlipVQA
from lavis.models.checkpoints import apply_rules
from lavis.nn.frames import FRAMES_AT_ONCE
from lavis.nn.text import TextConfig, TextTransformer
from tests import golden
from tests.golden import Gallery
from tests.small import images, random_model

TEXTS = [
    "a red circle",
    "two large striped blue stars above a ring",
    "a cat",
    "three green hearts and a cross",
]
WORDS = ["red", "blue", "green", "star", "ring", "cross", "heart", "circle"]
STEP = {"epoch": 2, "iters": 3, "num_iters_per_epoch": 10}
TURNS = [
    [],
    [("is it red", "yes"), ("how many stars are there", "two")],
    [("is it a cat", "no")],
    [("what color is it", "green"), ("is it large", "no"), ("what is left of it", "a small ring")],
]
OPTIONS = [
    ["yes", "no", "a large blue star", "two", "a ring"],
    ["red", "green", "a small striped heart", "no", "three"],
    ["nothing", "one", "yes", "a cat", "large and striped"],
    ["above", "a cross", "blue", "no", "yes"],
]


def videos(count: int, frames: int = 3, size: int = 64) -> torch.Tensor:
    return images(count * frames, size).unflatten(0, (count, frames)).transpose(1, 2)


def nlvr(count: int = 4, **more):
    return {
        "image0": images(count), "image1": images(count, seed=1), "text_input": TEXTS[:count],
        "label": torch.arange(count) % 2, **more,
    }  # fmt: skip


def classification(count: int = 4, **more):
    return {
        "image": images(count),
        "text_input": TEXTS[:count],
        "label": torch.arange(count) % 3,
        **STEP,
        **more,
    }


def dialogue(count: int = 4, *, video: bool = False, **more):
    seen = {"video": videos(count)} if video else {"image": images(count)}
    return {
        **seen,
        "caption": [*reversed(TEXTS)][:count],
        "text_input": ["is it striped", "what is above it", "are they large", "what is it"][:count],
        "dialog": TURNS[:count],
        "answer_options": [o for options in OPTIONS[:count] for o in options],
        "gt_index": torch.tensor([1, 2, 4, 0])[:count],
        "answer": ["no", "a small striped heart", "large and striped", "above"][:count],
        **more,
    }


def video_qa(count: int = 4):
    return {
        "video": videos(count), "text_input": TEXTS[:count], "answer": ["red", "two", "a cat", "no"][:count],
        "n_answers": torch.ones(count, dtype=torch.long), "weight": torch.ones(count),
    }  # fmt: skip


def retrieval(count: int = 4):
    return {
        "video": videos(count), "text_input": TEXTS[:count], "image_id": torch.arange(count), **STEP,
    }  # fmt: skip


def video_captions(count=2):
    return {"video": videos(count), "text_input": [f"a picture of {text}" for text in TEXTS[:count]]}


HEADS = {
    "nlvr": ("blip_nlvr", {}, nlvr),
    "classification": ("blip_classification", {}, classification),
    "plain classification": ("blip_classification", {"use_distill": False}, classification),
    "dialogue, ranking": ("blip_vis_dialogue", {}, dialogue),
    "dialogue, some candidates": ("blip_vis_dialogue", {"candidates": 3}, dialogue),
    "dialogue, writing": ("blip_vis_dialogue", {"answering": "generate"}, dialogue),
    "video dialogue": ("blip_video_dialogue", {}, lambda: dialogue(video=True)),
    "video captions": ("blip_video_caption", {}, video_captions),
    "video questions": ("blip_video_qa", {}, video_qa),
    "video retrieval": ("blip_video_retrieval", {"queue_size": 8}, retrieval),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_training_step_reaches_every_parameter_and_leaves_twins_alone(head):
    name, config, samples = HEADS[head]
    model = random_model(name, **config).train()
    model(samples()).loss.backward()
    for key, p in model.named_parameters():
        if "_m." in key:
            assert p.grad is None, key
        elif head == "video retrieval" and key == "temp":
            assert p.grad is not None and p.grad.isfinite()
        else:
            assert p.grad is not None and bool(p.grad.isfinite().all()), key
            assert float(p.grad.abs().sum()) > 0 or "key.bias" in key, key


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded_again_they_are_the_same(head, tmp_path):
    name, config, _ = HEADS[head]
    model = random_model(name, **config)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.config == dataclasses.replace(model.config, vocabulary=again.config.vocabulary)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)
    predicting = load_model(tmp_path, is_eval=True, for_training=False)
    assert not any("_m." in key or "queue" in key for key in predicting.state_dict())


# ------------------------------------------------------------------------------ classifiers


def plain_twin_encoder(
    state: dict, config: TextConfig, ids: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """One text (T,) over two pictures (N, D), written from figure 5b of the BLIP paper."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(name, x, seen):
        width = config.width // config.heads
        q, k, v = (linear(f"{name}.{n}", y) for n, y in (("query", x), ("key", seen), ("value", seen)))
        found = []
        for h in range(config.heads):
            mine = slice(h * width, (h + 1) * width)
            found.append((q[:, mine] @ k[:, mine].T / width**0.5).softmax(-1) @ v[:, mine])
        return torch.cat(found, dim=-1)

    x = (
        state["embeddings.word_embeddings.weight"][ids]
        + state["embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = norm("embeddings.LayerNorm", x)
    for i in range(config.depth):
        layer = f"encoder.layer.{i}"
        own = linear(f"{layer}.attention.output.dense", attention(f"{layer}.attention.self", x, x))
        x = norm(f"{layer}.attention.output.LayerNorm", own + x)
        cross = f"{layer}.crossattention"
        zero = linear(f"{cross}.output.dense0", attention(f"{cross}.self0", x, left))
        one = linear(f"{cross}.output.dense1", attention(f"{cross}.self1", x, right))
        if i < config.depth // 2:
            merged = (zero + one) / 2
        else:
            merged = linear(f"{cross}.output.merge_layer", torch.cat([zero, one], dim=-1))
        x = norm(f"{cross}.output.LayerNorm", merged + x)
        wide = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", wide) + x)
    return x


def test_twin_cross_attention_equals_a_plain_one():
    config = TextConfig(
        vocab_size=50, width=24, depth=4, heads=3, hidden=40, max_positions=9, memory_width=16, dropout=0.0,
        attention_dropout=0.0, memories="twin",
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = TextTransformer(config)
    for p in encoder.parameters():
        p.data = 0.3 * torch.randn_like(p)
    left, right, ids = torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.randint(50, (6, 7))
    lengths = [7, 4, 2, 7, 5, 6]
    mask = torch.arange(7)[None, :] < torch.tensor(lengths)[:, None]
    states = encoder(ids, mask=mask, memory=encoder.project_memory(left, second=right))
    state = {k: v.detach() for k, v in encoder.state_dict().items()}
    for row, length in enumerate(lengths):
        plain = plain_twin_encoder(state, config, ids[row, :length], left[row // 3], right[row // 3])
        torch.testing.assert_close(states[row, :length], plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="memories"):
        encoder.project_memory(left)


def test_statements_of_a_pair_share_its_states():
    model = random_model("blip_nlvr")
    samples = nlvr(2, text_input=TEXTS, label=torch.tensor([0, 1, 1, 0]))
    copied = samples | {key: samples[key].repeat_interleave(2, dim=0) for key in ("image0", "image1")}
    grads = []
    for each in (samples, copied):
        model.zero_grad()
        out = model(each)
        out.loss.backward()
        grads.append({k: p.grad for k, p in model.named_parameters()} | {"": out.logits.detach()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][key], rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize(("name", "samples"), [("blip_nlvr", nlvr), ("blip_classification", classification)])
def test_classes_do_not_depend_on_the_batch(name, samples):
    model = random_model(name)
    batch = samples()
    together = model.predict(batch, return_scores=True)
    for i in range(4):
        single = {k: v if k in STEP else v[i : i + 1] for k, v in batch.items()}
        alone = model.predict(single, return_scores=True)
        for key in ("predictions", "scores", "targets"):
            torch.testing.assert_close(together[key][i : i + 1], alone[key], rtol=1e-4, atol=1e-5)
    swapped = batch.get("image1", images(4, seed=9))
    other = model.predict({**batch, "image": swapped, "image0": swapped, "image1": batch.get("image0")})
    assert (other["predictions"] - together["predictions"]).abs().max() > 1e-2


def test_statements_are_not_cut():
    model = random_model("blip_nlvr")
    long = " ".join(["red"] * 45)
    a, b = (model.predict(nlvr(1, text_input=[f"{long} {end}"]))["predictions"] for end in ("star", "ring"))
    assert not torch.allclose(a, b)


def test_the_twins_opinion_counts_from_the_second_epoch_in_full():
    model = random_model("blip_classification", momentum=1.0)  # twins stay what they are
    for epoch, iters, weight in ((0, 0, 0.0), (0, 5, 0.5), (1, 0, 1.0), (3, 2, 1.0)):
        out = model(classification(epoch=epoch, iters=iters))
        labels = classification()["label"]
        log = out.logits.log_softmax(1)
        right = -log[torch.arange(4), labels].mean()
        opinion = -(out.logits_m.softmax(1) * log).sum(1).mean()
        alpha = 0.4 * weight
        torch.testing.assert_close(out.loss, (1 - alpha) * right + alpha * opinion)


def test_pairs_need_both_pictures_of_one_size():
    model = random_model("blip_nlvr")
    with pytest.raises(ValueError, match="'image1'"):
        model.predict({k: v for k, v in nlvr().items() if k != "image1"})
    with pytest.raises(ValueError, match="each statement takes one of both"):
        model.predict(nlvr(image1=images(3)))


def test_the_number_of_classes_is_the_files(tmp_path):
    model = random_model("blip_classification", num_classes=5)
    torch.save({"model": model.state_dict()}, tmp_path / "official.pth")
    again = load_model("blip_classification", "tiny", checkpoint=tmp_path / "official.pth")
    assert again.config.num_classes == 5
    torch.testing.assert_close(again.predict(classification()), model.predict(classification()))
    with pytest.raises(ValueError, match=r"model\.num_classes is None"):
        BlipClassification.build(BlipClassification.PRESETS["base"].config, empty=True)


@pytest.mark.parametrize(
    ("cls", "model_type", "classes"), [(BlipNLVR, "nlvr", 2), (BlipClassification, "base", 3)]
)
def test_pretrained_weights_arrive_where_the_original_puts_them(cls, model_type, classes):
    with gzip.open(golden.REFERENCE / "golden" / "loader.json.gz", "rt") as f:
        stored = json.load(f)["cases"][f"{cls.registered_name}.{model_type} <- blip_pretrain.base"]
    source = golden.manifest("blip_pretrain.base")["state_dict"]
    numbers = {key: float(i + 1) for i, key in enumerate(source)}
    state = {k: torch.tensor(n).expand(source[k]["shape"]) for k, n in numbers.items()}
    config = dataclasses.replace(cls.PRESETS[model_type].config, num_classes=classes)
    wanted = cls.build(config, empty=True).state_dict()
    out = apply_rules(state, wanted, cls.PRETRAINED_RULES, "file")
    fresh = set(wanted) - set(out)
    assert fresh == set(stored["missing"])
    assert set(wanted) == set(golden.manifest(f"{cls.registered_name}.{model_type}")["state_dict"])
    for key in set(out) - {k for k in out if "position_ids" in k}:
        origin = stored["loaded"].get(key, {"from": key})["from"]
        assert out[key].shape == wanted[key].shape
        assert float(out[key].flatten()[-1]) == pytest.approx(numbers[origin]), key
    assert any(key not in source for key in out) == (cls is BlipNLVR)


def test_a_new_head_and_its_twin_start_alike(tmp_path):
    source = random_model("blip_pretrain", queue_size=8)
    torch.save({"model": source.state_dict()}, tmp_path / "pretrained.pth")
    rules = BlipClassification.PRETRAINED_RULES
    config = dataclasses.replace(BlipClassification.PRESETS["tiny"].config, num_classes=7)
    model = BlipClassification.from_file(config, tmp_path / "pretrained.pth", rules)
    for own, twin in zip(model.cls_head.parameters(), model.cls_head_m.parameters(), strict=True):
        torch.testing.assert_close(own, twin, rtol=0, atol=0)
    state = model.state_dict()
    for key, value in source.state_dict().items():
        if key in state and "position_ids" not in key:  # the twins are the file's, too
            torch.testing.assert_close(state[key], value, rtol=0, atol=0)


# -------------------------------------------------------------------------------- dialogues


def copied(samples: dict, rounds: int) -> dict:
    """Dialogues of several rounds as one dialogue per round."""
    seen = next(key for key in ("image", "video") if key in samples)
    return samples | {
        seen: samples[seen].repeat_interleave(rounds, dim=0),
        "caption": [c for c in samples["caption"] for _ in range(rounds)],
    }


@pytest.mark.parametrize("answering", ["rank", "generate"])
@pytest.mark.parametrize("name", ["blip_vis_dialogue", "blip_video_dialogue"])
def test_grouped_rounds_and_candidates_equal_repeated_ones(name, answering):
    model = random_model(name, answering=answering)
    samples = dialogue(video="video" in name)
    samples["caption"] = samples["caption"][:2]
    seen = "video" if "video" in name else "image"
    samples[seen] = samples[seen][:2]  # two rounds each
    repeated = copied(samples, 2)
    scores = model.predict(samples)
    torch.testing.assert_close(scores, model.predict(repeated), rtol=1e-4, atol=1e-4)
    for q in range(4):  # each question alone, each candidate alone
        for k in range(5):
            single = {
                seen: repeated[seen][q : q + 1],
                "caption": repeated["caption"][q],
                "text_input": samples["text_input"][q],
                "dialog": [samples["dialog"][q]],
                "answer_options": [samples["answer_options"][5 * q + k]],
            }
            alone = model.predict(single)
            assert alone.shape == (1, 1)
            torch.testing.assert_close(alone[0, 0], scores[q, k], rtol=1e-4, atol=1e-4)
    grads = []
    for each in (samples, repeated):
        model.zero_grad()
        model(each).loss.backward()
        grads.append({k: p.grad for k, p in model.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][key], rtol=1e-3, atol=1e-5, msg=key)


def test_scores_are_the_log_odds_of_the_training_logits():
    model = random_model("blip_vis_dialogue")
    out = model(dialogue())
    logits = out.intermediate_output.itm_logits
    torch.testing.assert_close(
        model.predict(dialogue()).flatten(), logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4
    )
    labels = torch.zeros(4, 5, dtype=torch.long)
    labels[torch.arange(4), torch.tensor([1, 2, 4, 0])] = 1
    assert out.intermediate_output.itm_labels.tolist() == labels.flatten().tolist()
    each = F.cross_entropy(logits, labels.flatten(), reduction="none")
    right, wrong = (each[labels.flatten() == n].mean() for n in (1, 0))
    torch.testing.assert_close(out.loss, (right + wrong) / 2)
    assert out.keys() == ["intermediate_output", "loss", "loss_itm"]


def test_written_answers_do_not_depend_on_the_batch():
    model = random_model("blip_vis_dialogue", answering="generate")
    samples = {k: dialogue()[k] for k in ("image", "caption", "text_input", "dialog")}
    written = model.generate(samples, max_length=6, return_scores=True)
    assert len({*written.texts}) > 1
    for i, text in enumerate(written.texts):
        alone = model.generate(
            {k: v[i : i + 1] for k, v in samples.items()}, max_length=6, return_scores=True
        )
        assert alone.texts == [text]
        assert alone.logprobs[0] == pytest.approx(written.logprobs[i], abs=1e-3)


def test_candidates_come_flat_or_as_lists():
    model = random_model("blip_vis_dialogue")
    flat = model.predict(dialogue())
    torch.testing.assert_close(flat, model.predict(dialogue(answer_options=OPTIONS)), rtol=0, atol=0)
    assert flat.shape == (4, 5)


def test_a_step_with_some_candidates_holds_the_right_ones():
    model = random_model("blip_vis_dialogue", candidates=3)
    torch.manual_seed(1)
    inner = model(dialogue()).intermediate_output
    assert inner.itm_labels.tolist() == [1, 0, 0] * 4
    whole = random_model("blip_vis_dialogue")(dialogue()).intermediate_output
    wanted, found = (
        whole.itm_logits.view(4, 5, 2)[torch.arange(4), torch.tensor([1, 2, 4, 0])],
        inner.itm_logits.view(4, 3, 2),
    )
    torch.testing.assert_close(found[:, 0], wanted, rtol=1e-4, atol=1e-4)
    for q in range(4):  # the others are two of the wrong ones, not the same
        wrong = torch.cat([whole.itm_logits.view(4, 5, 2)[q, i : i + 1] for i in range(5)])
        near = (found[q, 1:, None] - wrong[None]).abs().amax(-1).argmin(1)
        assert len({*near.tolist()}) == 2 and [1, 2, 4, 0][q] not in near.tolist()


def test_likely_answers_are_among_the_candidates_of_a_step():
    """What answers other questions of the batch comes first; each at most once, and the right one is not repeated."""
    model = random_model("blip_vis_dialogue", candidates=3)
    options = ["yes", "no", "red", *(f"it is number {i}" for i in range(97))]
    torch.manual_seed(0)
    encoder = model.batch_encoder()
    # 300 questions are answered with yes, 200 with no, 100 with red
    kept, right = encoder.drawn([options] * 600, [0] * 300 + [1] * 200 + [2] * 100)
    assert right == [0] * 600 and all(len({*some}) == 3 for some in kept)
    assert [some[0] for some in kept] == ["yes"] * 300 + ["no"] * 200 + ["red"] * 100
    assert sum({*some} == {"yes", "no", "red"} for some in kept) > 480
    rare = [encoder.drawn([options], [50])[0][0] for _ in range(50)]
    assert len({text for some in rare for text in some}) > 40


def test_what_was_said_before_counts_and_the_oldest_is_left_out_first():
    model = random_model("blip_vis_dialogue", max_txt_len=40)
    turns = [(f"is it {w}", "no") for w in WORDS]
    asked = dialogue(1, dialog=[turns])
    encoder = model.batch_encoder()
    context = encoder.context("is it striped", turns)
    text = model.tokenizer.decode(context.history, skip_special_tokens=True)
    assert text == " ".join(f"is it {w} no" for w in reversed(WORDS[-3:]))
    assert len(encoder.text(context, "a b c d e f g h i j k l m n o p q r s t u v w x")) <= 40
    older = dialogue(1, dialog=[[("is it a cat", "yes"), *turns[1:]]])
    newer = dialogue(1, dialog=[[*turns[:-1], ("is it a cat", "yes")]])
    torch.testing.assert_close(model.predict(asked), model.predict(older), rtol=0, atol=0)
    assert not torch.allclose(model.predict(asked), model.predict(newer), atol=1e-3)
    # what a question's candidates see of the history does not depend on them
    alone = model.predict(dialogue(1, dialog=[turns], answer_options=["no"], gt_index=[0]))
    torch.testing.assert_close(alone[0, 0], model.predict(asked)[0, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": TEXTS[:3]}, "3 texts for 4 images"),
        ({"caption": TEXTS * 2}, "8 captions for 4 images"),
        ({"caption": None}, "need caption: "),
        ({"dialog": TURNS[:2]}, "`dialog` has 2 lists"),
        ({"dialog": None}, "need dialog"),
        ({"answer_options": None}, "need answer_options"),
        ({"answer_options": ["yes"] * 9}, "9 answer_options for 4 questions"),
        ({"answer_options": [*OPTIONS[:3], ["yes"]]}, "lists of 1 or 5 candidates"),
        ({"answer_options": ["yes"] * 4, "gt_index": torch.zeros(4)}, "must be a wrong one"),
        ({"gt_index": torch.tensor([0, 1, 2, 5])}, "places from 0 to 4"),
        ({"gt_index": torch.tensor([0, 1])}, "for 4 questions"),
        ({"gt_index": None}, "need gt_index"),
        ({"image": None}, "'image'"),
    ],
)
def test_wrong_dialogues_are_explained(change, message):
    samples = {k: v for k, v in dialogue(**change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        random_model("blip_vis_dialogue")(samples)


def test_wrong_settings_of_dialogues_are_explained():
    with pytest.raises(ValueError, match="answering is 'write'"):
        random_model("blip_vis_dialogue", answering="write")
    with pytest.raises(ValueError, match="candidates is 1"):
        random_model("blip_vis_dialogue", candidates=1)
    model = random_model("blip_vis_dialogue")
    with pytest.raises(ValueError, match="answering: generate"):
        model.generate(dialogue())
    with pytest.raises(ValueError, match=r"text\.width is 128, vit\.width is 64"):
        vit = dataclasses.replace(model.config.vit, width=64)
        random_model(
            "blip_vis_dialogue", vit=vit, text=dataclasses.replace(model.config.text, memory_width=64)
        )
    with pytest.raises(ValueError, match="an answer for each of 4 questions"):
        random_model("blip_vis_dialogue", answering="generate")(dialogue(answer=["yes"]))


@pytest.mark.parametrize("answering", ["rank", "generate"])
def test_dialogues_start_from_pretrained_weights(answering, tmp_path):
    source = random_model("blip_pretrain", queue_size=8, text=random_text())
    torch.save({"model": source.state_dict()}, tmp_path / "pretrained.pth")
    for name in ("blip_vis_dialogue", "blip_video_dialogue"):
        cls = registry.get_model_class(name)
        config = dataclasses.replace(cls.PRESETS["tiny"].config, answering=answering)
        model = cls.from_file(config, tmp_path / "pretrained.pth", cls.PRETRAINED_RULES)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, source.state_dict()[key], rtol=0, atol=0)


def random_text() -> TextConfig:
    return registry.get_model_class("blip_vis_dialogue").PRESETS["tiny"].config.text


@pytest.mark.parametrize("whole", [False, True], ids=["rounds", "dialogues"])
@pytest.mark.parametrize(
    ("name", "data"),
    [("blip_vis_dialogue", "shapes_dialogue"), ("blip_video_dialogue", "shapes_video_dialogue")],
)
def test_samples_of_dialogue_data_go_in_as_they_come(name, data, whole):
    model = random_model(name, answering="rank")
    dataset = load_dataset(data, n_train=4, options=6, whole_dialogues=whole, **model.preprocess_config())[
        "train"
    ]
    batch = dataset.collater([dataset[1], dataset[2]])
    rounds = len(batch["text_input"])
    assert rounds == (10 if whole else 2)
    assert model.predict(batch).shape == (rounds, 6)
    assert model(batch).loss.isfinite()
    writer = random_model(name, answering="generate")
    assert writer(batch).loss.isfinite() and len(writer.generate(batch, max_length=4)) == rounds


# ----------------------------------------------------------------------------------- videos


def test_a_video_of_one_frame_is_a_picture():
    image = images(3)
    for name, picture_name, samples in (
        ("blip_video_retrieval", "blip_retrieval", {"text_input": TEXTS[:3]}),
        ("blip_video_qa", "blip_vqa", {"text_input": TEXTS[:3]}),
        ("blip_video_caption", "blip_caption", {}),
    ):
        video, picture = random_model(name), random_model(picture_name)
        assert video.state_dict().keys() == picture.state_dict().keys()
        for key, value in video.state_dict().items():
            torch.testing.assert_close(value, picture.state_dict()[key], rtol=0, atol=0)
        if "caption" in name:
            of_video = video.forward_encoder({"video": image.unsqueeze(2)})
            of_image = picture.forward_encoder({"image": image})
            assert video.generate({"video": image.unsqueeze(2)}) == picture.generate({"image": image})
        elif "qa" in name:
            of_video = video.forward_encoder({"video": image.unsqueeze(2), **samples})
            of_image = picture.forward_encoder({"image": image, **samples})
        else:
            of_video = video.compute_sim_matrix(Gallery(image.unsqueeze(2), TEXTS, "video"), {"k_test": 2})
            of_image = picture.compute_sim_matrix(Gallery(image, TEXTS), {"k_test": 2})
        for a, b in zip(of_video, of_image):
            torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-5)


def test_frames_follow_one_another_and_the_feature_is_their_mean():
    model = random_model("blip_video_retrieval")
    clips = videos(2, frames=FRAMES_AT_ONCE)  # more than are encoded at once
    states = model.encode_image(clips)
    frames = torch.stack(
        [
            super(type(model.visual_encoder), model.visual_encoder).forward(clip.transpose(0, 1))
            for clip in clips
        ]
    )  # (B, F, N, D)
    torch.testing.assert_close(states, frames.flatten(1, 2), rtol=1e-4, atol=1e-5)
    wanted = F.normalize(model.vision_proj(frames[:, :, 0]).mean(1), dim=-1)
    torch.testing.assert_close(model.image_feature(states), wanted, rtol=1e-4, atol=1e-5)


def test_videos_do_not_depend_on_the_batch():
    model = random_model("blip_video_retrieval")
    clips = videos(4)
    i2t, t2i = model.compute_sim_matrix(Gallery(clips, TEXTS, "video"), {"k_test": 4})
    assert (i2t == t2i.T).all()
    loader = Gallery(clips, TEXTS, "video")
    loader.__class__ = type("Together", (Gallery,), {"__iter__": lambda self: iter([{"video": clips}])})
    for a, b in zip((i2t, t2i), model.compute_sim_matrix(loader, {"k_test": 4})):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-4)
    asked = random_model("blip_video_qa")
    samples = {"video": clips, "text_input": TEXTS}
    for method in ("rank", "generate"):
        arguments = {"inference_method": method, "answer_list": WORDS, "return_scores": True}
        together = asked.predict_answers(samples, **arguments)
        for i in range(4):
            alone = asked.predict_answers({"video": clips[i : i + 1], "text_input": TEXTS[i]}, **arguments)
            assert alone.texts == [together.texts[i]]
            assert alone.logprobs[0] == pytest.approx(together.logprobs[i], abs=1e-3)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 3, 0, 64, 64), (2, 4, 3, 64, 64), (2, 3, 4, 32, 64)])
def test_wrong_videos_are_explained(shape):
    with pytest.raises(ValueError, match=r"video has shape|image has shape"):
        random_model("blip_video_qa").predict_answers(
            {"video": torch.zeros(shape), "text_input": "what"}, answer_list=WORDS
        )
    with pytest.raises(ValueError, match="'video'"):
        random_model("blip_video_qa").predict_answers(
            {"image": images(2), "text_input": "what"}, answer_list=WORDS
        )


def test_presets_name_the_official_files():
    nlvr = golden.manifest("blip_nlvr.nlvr")["config"]["yaml_model_section"]
    preset = BlipNLVR.PRESETS["nlvr"]
    assert (preset.weights, preset.pretrained) == (nlvr["finetuned"], nlvr["pretrained"])
    assert (preset.config.image_size, preset.config.num_classes) == (nlvr["image_size"], nlvr["num_classes"])
    classes = golden.manifest("blip_classification.base")["config"]
    config = BlipClassification.PRESETS["base"].config
    for key in ("max_txt_len", "momentum", "alpha", "use_distill"):
        assert getattr(config, key) == classes["resolved_by_class"][key]
    assert config.image_size == classes["yaml_model_section"]["image_size"]


def test_presets_for_videos_are_the_picture_models():
    video, picture = (registry.get_model_class(n) for n in ("blip_video_qa", "blip_vqa"))
    assert picture is BlipVQA
    assert video.PRESETS["vqav2"].weights == picture.PRESETS["vqav2"].weights
    assert video.PRESETS["vqav2"].config == picture.PRESETS["vqav2"].config
    large = registry.get_model_class("blip_video_retrieval").PRESETS["large_coco"]
    assert large.weights.endswith("model_large_retrieval_coco.pth")
