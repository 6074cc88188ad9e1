"""Matching with shapes: pictures with statements of every style, each known to be true or false.

**Description.** The pictures of `shapes_caption` and `shapes_retrieval` in turn. A picture has statements in
pairs, a true one and the same with a word or two changed so that it is false: a colour, shape, size, texture,
number, relation or side. They come in three styles: as in `shapes_caption`, as in `shapes_retrieval` (every object
is named), and as one types them: "a green square", "two circles", "a drawing of a star", "red heart at the top
left". Nothing is downloaded.

**Names.** `shapes_matching`.

**Splits.** train, val, test: 40,000, 2,000 and 2,000 pictures. Statements of a training split are drawn anew each
time.

**Task.** Training of models with a matching head; measured by benchmarks/matching.py.

**Samples.** Those of retrieval, `text_input` naming every object; in training also `statements`, an even number of
them, `text_input` first. A batch of B pictures has them flat, with `fits` (B, statements): whether each is true of
each picture, by the scene graph, so that no true statement is ever taken for a false one.

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lavis.common.registry import registry
from lavis.datasets.base import Dataset, Plan, Record
from lavis.datasets.collate import Sample
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.shapes import scene as world
from lavis.datasets.shapes.judging import judge_caption, read_caption
from lavis.datasets.shapes.language import NUMBERS, PLURALS, Statement, make_captions, phrase_for
from lavis.datasets.shapes.made import DrawnWithCaptions, Made
from lavis.datasets.shapes.retrieval import ShapesRetrievalOptions, describe_all, make_rich_scene
from lavis.datasets.shapes.scene import Purpose, Scene, make_scene, pick, shuffled, stream

STYLES = ("retrieval", "caption", "short")
_TRIES = 20
_MOST_OBJECTS = 5

# Words that stand for one another where something is changed, by kind of change.
_GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "color": (world.COLORS,),
    "shape": (world.SHAPES, tuple(PLURALS[s] for s in world.SHAPES)),
    "size": (world.SIZES, ("big", "little"), ("larger", "smaller")),
    "texture": (world.TEXTURES,),
    "number": (NUMBERS[2:],),
    "position": (("left", "right"), ("top", "bottom"), ("above", "below")),
}
CHANGES = tuple(_GROUPS)
_GROUP_OF = {word: group for groups in _GROUPS.values() for group in groups for word in group}
# Of which kind the statements of a training sample are. As they come, a tenth of the changes would be of a position and
# fewer of a number, and a matcher trained on those stays blind to both.
_ASKED = (*CHANGES, "position", "position", "number", "number")

# What a short statement names, the likelier the more often it stands here.
_NAMED = (
    ("shape",), ("shape",), ("color",), ("color", "shape"), ("color", "shape"), ("color", "shape"), ("color", "shape"),
    ("size", "shape"), ("texture", "shape"), ("size", "color", "shape"), ("texture", "color", "shape"),
    ("size", "texture", "color", "shape"),
)  # fmt: skip
_LEADS = ("a drawing of", "a picture of", "a photo of", "an image of", "the picture shows", "there is")


@functools.cache
def words_of(kind: str) -> frozenset[str]:
    """The words that a change of a kind, one of `CHANGES`, is made of."""
    return frozenset(word for group in _GROUPS[kind] for word in group)


# ---------------------------------------------------------------------- writing
def short_statement(scene: Scene, rng: np.random.Generator) -> str:
    """A true phrase as one types it: with or without article and lead, sometimes a number, a place, a second phrase."""
    objects = scene["objects"]
    first = _short_phrase(scene, rng)
    if len(objects) > 1 and rng.random() < 0.12:
        first = f"{first} and {_short_phrase(scene, rng)}"
    bare = first.split()[0] not in ("a", "an", "the", *NUMBERS)
    if not bare and rng.random() < 0.35:
        lead = pick(rng, _LEADS)
        plural = first.split()[0] in NUMBERS[2:]
        first = f"{'there are' if lead == 'there is' and plural else lead} {first}"
    if rng.random() < 0.15:
        first = first.replace("large ", "big ").replace("small ", "little ")
    return first


def _short_phrase(scene: Scene, rng: np.random.Generator) -> str:
    objects = scene["objects"]
    obj = pick(rng, objects)
    phrase = phrase_for(objects, obj, pick(rng, _NAMED))
    u = rng.random()
    if phrase.quantity == "a":
        phrase = replace(phrase, quantity="a" if u < 0.8 else "the" if u < 0.9 else 1)
        place = world.sides(obj) if rng.random() < 0.25 else None
    else:
        phrase = phrase if u < 0.5 else replace(phrase, quantity="a" if u < 0.8 else "many")
        place = None
    text = Statement(phrase, place=place).text()
    if phrase.quantity == "a" and rng.random() < 0.25:
        text = text.split(" ", 1)[1]
    return text


def true_statement(style: str, scene: Scene, rng: np.random.Generator) -> str:
    """A true statement of a style, one of `STYLES`."""
    if style == "retrieval":
        return describe_all(scene, rng, 1)[0]
    if style == "caption":
        captions: str = pick(rng, make_captions(scene, rng))
        return captions
    return short_statement(scene, rng)


def _about(kind: str, style: str, scene: Scene, rng: np.random.Generator) -> str:
    """A true statement with a word that a change of this kind could change, if a few tries find one."""
    words = words_of(kind)
    for _ in range(6):
        text = true_statement(style, scene, rng)
        if not words.isdisjoint(text.split()):
            break
    return text


def false_statement(
    text: str, scene: Scene, rng: np.random.Generator, split: str, changes: int = 1, kind: str | None = None
) -> str | None:
    """A statement with some words changed so that it is false of the scene.

    Args:
        text: a statement. scene: of which it is true. changes: how many words are changed; fewer where there are
            not so many.
        kind: one of `CHANGES`, of which the first change is where the statement has such a word; None: of any kind.
        split: no pair of a colour and a shape is named that its pictures don't have, or models would learn that
            such are never there.

    Returns:
        the statement; None where no change makes it false.
    """
    words = text.split()
    there = {value for o in scene["objects"] for value in (o["color"], o["shape"], PLURALS[o["shape"]])}
    for _ in range(_TRIES):
        changed = list(words)
        places = shuffled(rng, [i for i, word in enumerate(words) if word in _GROUP_OF])
        if kind is not None:
            places.sort(key=lambda i: words[i] not in words_of(kind))  # stable: otherwise as shuffled
        for place in places[:changes]:
            others = [word for word in _GROUP_OF[words[place]] if word != words[place]]
            seen = [word for word in others if word in there]
            changed[place] = pick(rng, seen if seen and rng.random() < 0.5 else others)
        for i, word in enumerate(changed[:-1]):
            if word in ("a", "an"):
                changed[i] = "an" if changed[i + 1][0] in "aeiou" else "a"
        new = " ".join(changed)
        told = read_caption(new)
        phrases = [p for s in told or () for p in (s.subject, s.other) if p is not None]
        allowed = all(
            (p.color, p.shape) in world.ALLOWED_PAIRS[split] for p in phrases if p.color and p.shape
        )
        if told is not None and allowed and not judge_caption(new, scene).true:
            return new
    return None


# ---------------------------------------------------------------------- the data set
@dataclass(frozen=True)
class ShapesMatchingOptions(ShapesRetrievalOptions):
    """See `MadeOptions` and `CaptionOptions`.

    Args:
        statements: how many an image has in a training sample, half of them true.
        most_objects: that are in an image, 2 to 5. From images of two a model learns where things are far sooner.
    """

    n_train: int = 40_000
    n_val: int = 2_000
    n_test: int = 2_000
    statements: int = 6
    most_objects: int = _MOST_OBJECTS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.statements < 2 or self.statements % 2:
            raise ValueError(f"statements is {self.statements}; it should be even, 2 or more")
        if not 2 <= self.most_objects <= _MOST_OBJECTS:
            raise ValueError(f"most_objects is {self.most_objects}; it should be 2 to {_MOST_OBJECTS}")
        if self.captions_per_image != 1:
            raise ValueError(
                f"captions_per_image is {self.captions_per_image}; in shapes_matching it is 1: use `statements`"
            )


def _record(options: Any, split: str, picture: int) -> list[Record]:
    rich = options.most_objects > 2  # scenes of shapes_retrieval have three objects or more
    make = make_rich_scene if rich and picture % 2 else make_scene
    index = picture // 2 if rich else picture
    scene = make(options.seed, split, index)
    while len(scene["objects"]) > options.most_objects:
        index += options.count(split)  # beyond those of all other images
        scene = make(options.seed, split, index)
    rng = stream(options.seed, split, picture, Purpose.MATCHING)
    captions = [true_statement(style, scene, rng) for style in STYLES]
    image = f"matching/{split}/{picture:06d}.png"
    return [{"image": image, "image_id": picture, "caption": captions, "scene": scene}]


@registry.register_dataset("shapes_matching")
class ShapesMatching(DrawnWithCaptions, RetrievalDataset):
    """Pictures with true and false statements; records also hold `scene`."""

    name = "shapes_matching"
    Options = ShapesMatchingOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesMatching:
        return cls(Made(_record, plan.options, split, plan.options.count(split)), split, options=plan.options)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        if not self.training:
            return super().make_sample(index, rng)
        record = self.records[index]
        scene = record["scene"]
        statements: list[str] = []
        while len(statements) < self.options.statements:
            style = STYLES[len(statements) // 2 % len(STYLES)]
            kind = pick(rng, _ASKED)
            true = _about(kind, style, scene, rng)
            changes = 1 if rng.random() < 0.75 else 2
            false = false_statement(true, scene, rng, self.split, changes, kind)
            if false is not None:
                statements += [true, false]
        return {
            "image": Dataset.image(self, record, rng),
            "text_input": Dataset.text(self, statements[0], rng),
            "image_id": self.image_id(index),
            "instance_id": str(index),
            "statements": statements,
            "scene": scene,
        }

    def collater(self, samples: Sequence[Mapping[str, Any] | None]) -> Sample:
        """A batch; of training samples with `fits` in place of `scene`, the statements through the text processor."""
        batch = super().collater(samples)
        if "statements" in batch:
            read = [read_caption(text) for text in batch["statements"]]
            holds = [
                [told is not None and all(s.holds(scene) for s in told) for told in read]
                for scene in batch.pop("scene")
            ]
            batch["fits"] = torch.tensor(holds)
            rng = np.random.default_rng(0)  # the processors of texts draw nothing
            batch["statements"] = [Dataset.text(self, text, rng) for text in batch["statements"]]
        return batch
