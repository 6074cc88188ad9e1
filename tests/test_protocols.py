"""What models can do is asked by protocols: who has which, what messages say, and that nobody asks by family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.registry import registry
from lavis.inference import load
from lavis.inference.abilities import (
    ABILITIES,
    abilities,
    ability_named,
    default,
    examples,
    models_with,
    needed,
    require,
)
from lavis.inference.protocols import (
    Answers,
    AnswersFromList,
    Chats,
    Classifies,
    EmbedsBoth,
    EmbedsPairs,
    EmbedsQueries,
    Explains,
    Matches,
    Prompted,
    Ranks,
    Writes,
    lacking,
)
from lavis.models.folders import PACKAGED, PUBLISHED, origin_of
from tests.small import random_model

ROOT = Path(__file__).parent.parent
FEATURES = {EmbedsBoth, EmbedsPairs}
MATCHING = FEATURES | {Matches}
QUERIES = MATCHING | {EmbedsQueries, Explains, Writes}
WITH_LANGUAGE = {Writes, Answers, Chats, Prompted}
EXPECTED: dict[str, set[type]] = {
    "albef_classification": {Classifies, Explains},
    "albef_feature_extractor": FEATURES,
    "albef_nlvr": {Classifies, Explains},
    "albef_pretrain": MATCHING | {Explains},
    "albef_retrieval": MATCHING | {Explains},
    "albef_vqa": {Answers, Explains},
    "alpro_feature_extractor": FEATURES,
    "alpro_qa": {Answers, AnswersFromList, Classifies},
    "alpro_retrieval": MATCHING,
    "blip_caption": {Writes, Explains},
    "blip_classification": {Classifies, Explains},
    "blip_feature_extractor": FEATURES,
    "blip_image_text_matching": MATCHING | {Explains},
    "blip_nlvr": {Classifies, Explains},
    "blip_pretrain": MATCHING | {Explains},
    "blip_retrieval": MATCHING | {Explains},
    "blip_video_caption": {Writes, Explains},
    "blip2": QUERIES,
    "blip2_feature_extractor": QUERIES,
    "blip2_image_text_matching": QUERIES,
    "blip2_opt": WITH_LANGUAGE,
    "blip2_t5": WITH_LANGUAGE,
    "blip2_t5_instruct": WITH_LANGUAGE | {Ranks},
    "blip2_vicuna_instruct": WITH_LANGUAGE | {Ranks},
    "blip_video_dialogue": {Chats},
    "blip_video_qa": {Answers, Explains},
    "blip_video_retrieval": MATCHING | {Explains},
    "blip_vis_dialogue": {Chats},
    "blip_vqa": {Answers, Explains},
    "clip": {EmbedsBoth},
    "clip_feature_extractor": {EmbedsBoth},
    "gpt_dialogue": set(),
}
ALL = {*ABILITIES, AnswersFromList}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_classes_and_models_have_the_same_abilities(name: str) -> None:
    model_class = registry.get_model_class(name)
    assert {a for a in ALL if issubclass(model_class, a)} == EXPECTED[name]
    if "tiny" not in model_class.PRESETS:  # it needs a language model, see test_blip2_language
        return
    sizes = {"num_classes": 3} if hasattr(model_class.PRESETS["tiny"].config, "num_classes") else {}
    model = random_model(name, **sizes)
    assert {a for a in ALL if isinstance(model, a)} == EXPECTED[name]


def test_every_packaged_model_is_in_the_list() -> None:
    own = {n for n in registry.list_models() if registry.get_model_class(n).__module__.startswith("lavis.")}
    assert own == set(EXPECTED)


class Captioner(torch.nn.Module):
    def generate(self, samples: Any, *, num_captions: int = 1, return_scores: bool = False) -> list[str]:
        return ["a"] * num_captions


class Open(torch.nn.Module):
    def generate(self, samples: Any, **options: Any) -> list[str]:
        return ["a"]


class Replies(torch.nn.Module):
    def generate(self, samples: Any, return_scores: bool = False) -> list[str]:
        return ["a"]


class Space(torch.nn.Module):
    embed_dim: int

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = self.cosine_scale = 4

    def embed_images(self, media: Any) -> Any: ...

    def embed_texts(self, texts: Any) -> Any: ...


def test_methods_count_with_their_arguments() -> None:
    assert isinstance(Captioner(), Writes) and issubclass(Captioner, Writes) and isinstance(Open(), Writes)
    assert not isinstance(Replies(), Writes) and not issubclass(Replies, Writes)
    assert lacking(Replies(), Writes) == "its generate takes no num_captions"
    assert lacking(Captioner, Explains) == "it has no explain_text"
    assert lacking(Captioner(), EmbedsBoth) == (
        "it has no embed_dim and no cosine_scale and no embed_images and no embed_texts"
    )
    assert issubclass(Writes, Writes) and abilities(Captioner()) == ["write captions"]


def test_properties_of_a_class_are_to_be_announced() -> None:
    assert isinstance(Space(), EmbedsBoth) and not issubclass(Space, EmbedsBoth)
    assert lacking(Space, EmbedsBoth) == "it has no cosine_scale"  # embed_dim is annotated


def test_a_protocol_may_be_inherited() -> None:
    class Own(Captioner, Writes):
        pass

    assert isinstance(Own(), Writes) and isinstance(Own(), Own) and issubclass(Own, Own)
    assert not isinstance(Captioner(), Own)


def test_what_is_lacking_is_said_with_what_is_there_and_who_can() -> None:
    clip = load("clip/tiny", device="cpu")
    with pytest.raises(ValueError) as e:
        require(clip, Writes)
    assert str(e.value) == (
        "clip/tiny can't write captions; it can put images and texts into one space. Models that can: "
        "blip_caption/base_coco, blip_caption/tiny_shapes, blip2/pretrain, blip2_image_text_matching/pretrain, "
        "blip2_opt/pretrain_opt2.7b, blip2_t5/pretrain_flant5xl, …"
    )
    dialogue = load("blip_video_dialogue/tiny", device="cpu")
    with pytest.raises(
        ValueError, match=r"\(its generate takes no num_captions\); it can hold a dialogue. Models "
    ):
        require(dialogue, Writes)
    with pytest.raises(
        ValueError, match=r"Models that can: alpro_retrieval/msrvtt, alpro_retrieval/tiny_shapes"
    ):
        require(dialogue, Matches)  # of those for videos
    with pytest.raises(ValueError, match="Did you mean 'Writes'"):
        ability_named("Write")


def test_each_class_is_named_once_and_by_its_own_name() -> None:
    assert "clip" in models_with(EmbedsBoth) and "clip_feature_extractor" not in models_with(EmbedsBoth)
    assert set(models_with(EmbedsBoth, "video")) == {
        "alpro_feature_extractor", "alpro_retrieval", "blip_video_retrieval"
    }  # fmt: skip


# -------------------------------------------------------------------------------------- defaults
TASKS = ("caption", "ask", "match", "classify", "features", "explain")
TRAINING = ("captioning", "vqa", "retrieval", "classification")
ABLE = {
    "caption": Writes, "ask": Answers, "match": Matches, "classify": EmbedsBoth, "features": EmbedsPairs,
    "explain": Explains, "captioning": Writes, "vqa": Answers, "retrieval": Matches, "classification": Classifies,
}  # fmt: skip


def test_a_task_has_one_packaged_and_one_published_default() -> None:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name in registry.list_models():
        model_class = registry.get_model_class(name)
        if model_class.registered_name != name:
            continue
        second_names = {"clip": ("base",)}.get(name, ())
        for model_type, preset in model_class.PRESETS.items():
            if model_type in second_names:
                continue
            for task in preset.default_for:
                assert issubclass(model_class, ABLE[task])
                origin = origin_of(preset.weights or preset.pretrained)
                key = (task, getattr(model_class, "MEDIA", "image"), origin)
                rows.setdefault(key, []).append(f"{name}/{model_type}")
    assert all(len(specs) == 1 for specs in rows.values()), rows
    image = {(task, origin) for task, media, origin in rows if media == "image"}
    assert image == {(task, origin) for task in (*TASKS, *TRAINING) for origin in (PACKAGED, PUBLISHED)}
    video = {(task, origin) for task, media, origin in rows if media == "video"}
    assert video >= {(task, origin) for task in TRAINING for origin in (PACKAGED, PUBLISHED)}
    assert default("classify") == "albef_retrieval/tiny_shapes"
    assert default("classify", origin=PUBLISHED) == "clip/ViT-B-32"
    assert needed("retrieval", "video") == "alpro_retrieval/tiny_shapes"


def test_a_task_without_a_default_is_an_error() -> None:
    assert default("draw") is None
    with pytest.raises(ValueError, match="no packaged model is for draw of videos; name one with --model"):
        needed("draw", "video")


def test_examples_are_defaults_first_and_one_of_each_class() -> None:
    found = examples(Matches)
    assert found[:3] == ["albef_retrieval/tiny_shapes", "blip_retrieval/coco", "blip_retrieval/tiny_shapes"]
    assert "blip_image_text_matching/base" in found and len(found) == len(set(found))


# --------------------------------------------------------------------------------- no family by name
def test_inference_app_and_commands_know_no_family() -> None:
    families = r"\b(ALBEF|BLIP|CLIP|ALPRO|GPT|VGD)\b|\b([Bb]lip|[Aa]lbef|[Aa]lpro)|\bclip/|\bgpt_"
    names = {n for n in registry.list_models() if registry.get_model_class(n).__module__.startswith("lavis.")}
    modules = {registry.get_model_class(name).__module__ for name in names}
    classes = {registry.get_model_class(name).__name__ for name in names} - {
        "Clip"
    }  # a video of lavis.datasets, too
    forbidden = [families, *(rf"\b{re.escape(word)}\b" for word in modules | classes | names - {"clip"})]
    pattern = re.compile("|".join(forbidden))
    assert pattern.search('model = "clip/ViT-B-32"') and pattern.search("isinstance(model, AlproQA)")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for room in ("inference", "app", "cli")
        for path in sorted((ROOT / "lavis" / room).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
