"""Retrieval with shapes: pictures of three to five objects and captions that tell them apart.

**Description.** Each picture has five captions, and each caption names every object of its picture, so a
caption fits its own picture and, in a gallery of 1,000, next to no other. Words mean what they mean in
`shapes_caption`. Nothing is downloaded: a picture and its captions are functions of (seed, split, index).

**Names.** `shapes_retrieval`.

**Splits.** train, val, test: 20,000, 1,000 and 1,000 pictures, none of them in `shapes_caption`.

**Task.** Retrieval of pictures by text and of texts by picture.

**Metrics.** Recall at 1, 5 and 10. What a perfect reader could reach follows from `ceiling_percent`,
the share of captions that are true of no other picture of the gallery: 99.5 % in `test` with seed 0.
Captions have 20 words on average, 32 at most.

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavis.common.registry import registry
from lavis.datasets.base import Plan, Record
from lavis.datasets.captioning import CaptionOptions
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.shapes.judging import own_percent, read_caption
from lavis.datasets.shapes.language import Phrase, Statement, phrase_for
from lavis.datasets.shapes.made import DrawnWithCaptions, Made, MadeOptions
from lavis.datasets.shapes.scene import PLACES, Obj, Purpose, Scene, clearly, draw_scene, shuffled, stream

CAPTIONS_PER_PICTURE = 5


@dataclass(frozen=True)
class ShapesRetrievalOptions(CaptionOptions, MadeOptions):
    """See `MadeOptions` and `CaptionOptions`."""

    def __post_init__(self) -> None:
        CaptionOptions.__post_init__(self)
        MadeOptions.__post_init__(self)


# ---------------------------------------------------------------------- writing
def _describe(objects: Sequence[Obj], obj: Obj, kinds: Sequence[str]) -> Phrase:
    """A true phrase that names `kinds` and the texture, unless all objects of that description are solid."""
    alike = phrase_for(objects, obj, kinds)
    plain = all(o["texture"] == "solid" for o in alike.matching(objects))
    return alike if plain else phrase_for(objects, obj, (*kinds, "texture"))


def _phrases(rng: np.random.Generator, objects: Sequence[Obj], kinds: Sequence[str]) -> list[Phrase]:
    """Phrases that together name every object once, in random order."""
    phrases: list[Phrase] = []
    for obj in shuffled(rng, objects):
        phrase = _describe(objects, obj, kinds)
        if phrase not in phrases:
            phrases.append(phrase)
    return phrases


def _related(rng: np.random.Generator, objects: Sequence[Obj], phrases: list[Phrase]) -> Statement | None:
    """Two single objects that stand clearly to each other, as a statement."""
    single = [(p, p.matching(objects)[0]) for p in phrases if p.quantity == "a"]
    for first, a in single:
        for second, b in shuffled(rng, single):
            for relation in shuffled(rng, PLACES):
                if a is not b and clearly(relation, a, b):
                    return Statement(first, relation, second)
    return None


def describe_all(scene: Scene, rng: np.random.Generator, count: int = CAPTIONS_PER_PICTURE) -> list[str]:
    """Write different captions that each name all objects of a scene.

    Args:
        scene: what is in the picture; two objects or more.
        rng: the stream that words are chosen with.
        count: how many.

    Returns:
        Captions such as "a large striped red star and two small blue circles" and "a red star above a dotted
        pink heart and a blue circle"; the first names every size.
    """
    objects = scene["objects"]
    captions: list[str] = []
    attempt = 0
    while len(captions) < count:
        sizes = attempt == 0 or rng.random() < 0.5
        phrases = _phrases(rng, objects, ("size", "color", "shape") if sizes else ("color", "shape"))
        told = _related(rng, objects, phrases) if not sizes or rng.random() < 0.3 else None
        parts = [p.text() for p in phrases if told is None or p not in (told.subject, told.other)]
        if told is not None:
            parts.insert(0, told.text())
        caption = " and ".join(parts)
        if caption not in captions:
            captions.append(caption)
        attempt += 1
        if attempt > 40 * count:
            raise ValueError(f"a scene of {len(objects)} objects has no {count} different captions")
    return captions


def ceiling_percent(pairs: Sequence[tuple[Sequence[str], Scene]]) -> float:
    """The share of captions that are true of their own picture and of no other, in percent.

    Args:
        pairs: the gallery: each picture's captions and its scene.

    Raises:
        ValueError: a caption that can't be read; it is named.
    """

    def test_of(caption: str) -> Callable[[Scene], bool]:
        statements = read_caption(caption)
        if statements is None:
            raise ValueError(f"the caption {caption!r} leaves the grammar of shapes")
        return lambda scene: all(s.holds(scene) for s in statements)

    return own_percent(pairs, test_of)


# ---------------------------------------------------------------------- the data set
def make_rich_scene(seed: int, split: str, picture: int) -> Scene:
    """The scene of one picture: three to five objects, three kinds of them or more to tell it apart by."""
    rng = stream(seed, split, picture, Purpose.RETRIEVAL_SCENE)
    scene: Scene = {"objects": []}
    while len({(o["color"], o["shape"]) for o in scene["objects"]}) < 3:
        scene = draw_scene(rng, split, int(rng.integers(3, 6)))
    return scene


def _record(options: Any, split: str, picture: int) -> list[Record]:
    scene = make_rich_scene(options.seed, split, picture)
    captions = describe_all(scene, stream(options.seed, split, picture, Purpose.RETRIEVAL_CAPTIONS))
    image = f"retrieval/{split}/{picture:06d}.png"
    return [{"image": image, "image_id": picture, "caption": captions, "scene": scene}]


@registry.register_dataset("shapes_retrieval")
class ShapesRetrieval(DrawnWithCaptions, RetrievalDataset):
    """Pictures with captions that tell them apart; records also hold `scene`."""

    name = "shapes_retrieval"
    Options = ShapesRetrievalOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesRetrieval:
        records = Made(_record, plan.options, split, plan.options.count(split))
        return cls(records, split, options=plan.options)
