"""Making a dialogue: which question comes next, so that little is asked twice and much needs the history.

Yes and no are drawn before the question they answer, and numbers before what is counted, so the wording
tells little. What questions mean is said in `asking.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lavis.datasets.shapes import asking
from lavis.datasets.shapes.asking import Ask, Focus, Reply
from lavis.datasets.shapes.language import Phrase, phrase_for
from lavis.datasets.shapes.scene import (
    ALLOWED_PAIRS,
    ATTRIBUTES,
    OPPOSITE,
    PLACES,
    SIZES,
    TEXTURES,
    Obj,
    Scene,
    pick,
)

_NAMES = (("shape",), ("color", "shape"), ("size", "shape"), ("color",))
_FOLLOW = 0.9  # how often a round stays with what is in focus
_RATHER = 0.8  # how often a question is dropped whose pronoun doesn't matter


class Talk:
    """A dialogue while it is being made.

    Args:
        objects: everything in the picture.
        rng: the stream that questions are chosen with.
        pairs: the (colour, shape) pairs that may be mentioned.
    """

    attributes: tuple[str, ...] = ATTRIBUTES

    def __init__(
        self, objects: list[Obj], rng: np.random.Generator, pairs: Sequence[tuple[str, str]]
    ) -> None:
        self.objects, self.rng, self.pairs = objects, rng, pairs
        self.focus: Focus = ()
        self.told: set[tuple[int, str]] = set()  # (object, attribute) that were said
        self.asked: set[tuple[Ask, Focus]] = set()
        self.openers: list[Callable[[], Ask | None]] = [self.exists, self.count, self.which]
        self.about_one: list[Callable[[], Ask | None]] = [
            self.attribute, self.attribute, self.is_it, self.beside, self.beside, self.place, self.others,
        ]  # fmt: skip
        self.about_group: list[Callable[[], Ask | None]] = [self.of_them, self.of_them, self.all, self.one]

    # ------------------------------------------------------------------ choosing
    def pick(self, options: Sequence[Any]) -> Any:
        return pick(self.rng, options)

    def unknown(self, place: int) -> list[str]:
        """The attributes of an object that nobody has mentioned."""
        return [k for k in self.attributes if (place, k) not in self.told]

    def tried(self, kind: type[asking.Is] | type[asking.All]) -> set[str]:
        """The attributes that questions of a kind have asked for of what is in focus."""
        return {a.attribute for a, focus in self.asked if isinstance(a, kind) and focus == self.focus}

    def compared(self) -> set[Phrase]:
        """What the place of the object in focus was compared with."""
        return {a.phrase for a, focus in self.asked if isinstance(a, asking.Place) and focus == self.focus}

    def unique(self, place: int) -> Phrase | None:
        """ "the red star", in words that fit this object alone."""
        obj = self.objects[place]
        for kinds in _NAMES:
            known = set(kinds) <= set(self.attributes)
            if known and phrase_for(self.objects, obj, kinds).quantity == "a":
                return Phrase("the", **{k: obj[k] for k in kinds})
        return None

    def value(self, attribute: str, besides: str = "") -> str:
        """Some value of an attribute."""
        values = {"size": SIZES, "texture": TEXTURES}.get(attribute)
        if values is None:
            values = tuple(sorted({p[("color", "shape").index(attribute)] for p in self.pairs}))
        return str(self.pick([v for v in values if v != besides]))

    # ------------------------------------------------------------------ questions without pronoun
    def exists(self) -> Ask | None:
        """Yes: something not yet told of an object. No: something like an object of the picture."""
        choices = (("shape",), ("color",), ("color", "shape"))
        news = [
            {k: o[k] for k in kinds}
            for i, o in enumerate(self.objects)
            for kinds in choices
            if any((i, k) not in self.told for k in kinds)
        ]
        if not news:  # then "no" would be the only answer left
            return None
        if self.rng.random() < 0.5:
            return asking.Exists(Phrase("a", **self.pick(news)))
        obj, kinds = self.pick(self.objects), self.pick(choices)
        alike = [
            Phrase("a", color=c, shape=s) for c, s in self.pairs if c == obj["color"] or s == obj["shape"]
        ]
        if len(kinds) == 1:
            alike = [Phrase("a", **{kinds[0]: self.value(kinds[0])}) for _ in range(8)]
        absent = [phrase for phrase in alike if not phrase.matching(self.objects)]
        return asking.Exists(self.pick(absent)) if absent else None

    def count(self) -> Ask | None:
        obj = self.pick(self.objects)
        kind = self.pick(("color", "shape"))
        value = obj[kind] if self.rng.random() < 0.85 else self.value(kind)
        return asking.Count(Phrase("many", **{kind: value}))

    def which(self) -> Ask | None:
        place = int(self.rng.integers(len(self.objects)))
        phrase = self.unique(place)
        if phrase is None:
            return None
        unknown = [k for k in self.unknown(place) if getattr(phrase, k) is None]
        return asking.Which(self.pick(unknown), phrase) if unknown else None

    # ------------------------------------------------------------------ questions about one object
    def attribute(self) -> Ask | None:
        unknown = self.unknown(self.focus[0])
        return asking.Attribute(self.pick(unknown)) if unknown else None

    def is_it(self) -> Ask | None:
        """Asked where objects differ, so that it matters which one "it" is, for yes and for no."""
        differing = [k for k in self.unknown(self.focus[0]) if len({o[k] for o in self.objects}) > 1]
        if not differing:
            return None
        attribute = self.pick(differing)
        right = self.objects[self.focus[0]][attribute]
        wrong = sorted({o[attribute] for o in self.objects} - {right})
        return asking.Is(attribute, right if self.rng.random() < 0.5 else self.pick(wrong))

    def beside(self) -> Ask | None:
        """Mostly where there is something."""
        replies = {r: asking.Beside(r).reply(self.objects, self.focus) for r in PLACES}
        empty = self.rng.random() < 0.08
        fitting = [r for r, reply in replies.items() if reply and (reply[0] == "nothing") == empty]
        return asking.Beside(self.pick(fitting)) if fitting else None

    def place(self) -> Ask | None:
        other = int(self.rng.integers(len(self.objects)))
        phrase = self.unique(other)
        if phrase is None or other == self.focus[0] or phrase in self.compared():
            return None
        yes = self.rng.random() < 0.5
        for relation in (PLACES[int(i)] for i in self.rng.permutation(4)):
            reply = asking.Place(relation, phrase).reply(self.objects, self.focus)
            if reply is not None:
                asked = relation if (reply[0] == "yes") == yes else OPPOSITE[relation]
                return asking.Place(asked, phrase)
        return None

    def others(self) -> Ask | None:
        """The number is drawn first, from those on offer."""
        offers: dict[str, list[Ask]] = {}
        for ask in (asking.Others(k) for k in ("color", "shape", "size") if k in self.attributes):
            reply = ask.reply(self.objects, self.focus)
            offers.setdefault(reply[0] if reply else "", []).append(ask)
        return self.pick(offers[self.pick(sorted(offers))])

    # ------------------------------------------------------------------ questions about a group
    def open_for(self, group: Focus) -> list[str]:
        """Attributes that nobody has mentioned of any member."""
        return [k for k in self.attributes if not any((i, k) in self.told for i in group)]

    def of_them(self) -> Ask | None:
        unknown = self.open_for(self.focus)
        if not unknown:
            return None
        attribute = self.pick(unknown)
        values = {self.objects[i][attribute] for i in self.focus}
        offers: dict[int, list[str]] = {0: [self.value(attribute)]}
        for value in sorted(values):
            number = sum(self.objects[i][attribute] == value for i in self.focus)
            offers.setdefault(number, []).append(value)
        if offers[0][0] in values:
            del offers[0]
        return asking.OfThem(attribute, self.pick(offers[self.pick(sorted(offers))]))

    def all(self) -> Ask | None:
        """Asked where yes is possible, so that the question doesn't give the answer away."""
        unknown = [k for k in self.open_for(self.focus) if k not in self.tried(asking.All)]
        agreed = [k for k in unknown if len({self.objects[i][k] for i in self.focus}) == 1]
        if not agreed:
            return None
        attribute = self.pick(agreed)
        right = self.objects[self.focus[0]][attribute]
        wrong = sorted({o[attribute] for o in self.objects} - {right}) or [self.value(attribute, right)]
        return asking.All(attribute, right if self.rng.random() < 0.5 else self.pick(wrong))

    def one(self) -> Ask | None:
        place, by = self.pick(self.focus), self.pick(("size", "color", "texture"))
        if by not in self.attributes:
            return None
        unknown = [k for k in self.unknown(place) if k != by]
        return asking.One(self.pick(unknown), by, self.objects[place][by]) if unknown else None

    # ------------------------------------------------------------------ the rounds
    def caption(self) -> str:
        """Names one object, which is then in focus, or several of a kind, or two kinds."""
        if self.rng.random() < 0.65:
            for place in self.rng.permutation(len(self.objects)).tolist():
                phrase = phrase_for(self.objects, self.objects[place], ("color", "shape"))
                if phrase.quantity == "a":
                    self.focus = (place,)
                    self.told |= {(place, "color"), (place, "shape")}
                    return phrase.text()
        obj = self.pick(self.objects)
        kind = self.pick(("color", "shape"))
        phrase = phrase_for(self.objects, obj, (kind,))
        self.focus = tuple(i for i, o in enumerate(self.objects) if o[kind] == obj[kind])
        self.told |= {(i, kind) for i in self.focus}
        return phrase.text()

    def next_round(self) -> tuple[Ask, Reply, bool]:
        """A question that was not asked before, its answer, and whether it needs the rounds before."""
        while True:
            follow = self.rng.random() < _FOLLOW
            about = (self.about_group if len(self.focus) > 1 else self.about_one) if self.focus else []
            ask = self.pick(about if follow and about else self.openers)()
            if ask is None:
                continue
            key = (ask, self.focus if ask.pronoun else ())
            reply = None if key in self.asked else ask.reply(self.objects, self.focus)
            if reply is None:
                continue
            needs = asking.needs_history(ask, self.objects, self.focus)
            even = isinstance(ask, asking.All)  # dropping some of these would make yes more frequent
            if ask.pronoun and not needs and not even and self.rng.random() < _RATHER:
                continue
            self.asked.add(key)
            self._learn(ask, reply)
            self.focus = reply[1]
            return ask, reply, needs

    def _learn(self, ask: Ask, reply: Reply) -> None:
        """Remember what the round has said about which object."""
        answer, about = reply
        phrase: Phrase | None = getattr(ask, "phrase", None)
        if phrase is not None:
            named = [k for k in ATTRIBUTES if getattr(phrase, k) is not None]
            for i, o in enumerate(self.objects):
                if phrase.matching([o]):
                    self.told |= {(i, k) for k in named}
        if isinstance(ask, asking.Beside) and answer != "nothing":
            self.told |= {(about[0], k) for k in ("size", "color", "shape")}
        if isinstance(ask, asking.One):
            self.told.add((about[0], ask.by))
        attribute = getattr(ask, "attribute", None)
        partly = isinstance(ask, asking.OfThem) and answer != str(len(about))
        if attribute is not None and answer != "no" and not partly and not isinstance(ask, asking.Others):
            self.told |= {(i, attribute) for i in about}


def make_dialogue(
    scene: Scene, rng: np.random.Generator, rounds: int, split: str = "train"
) -> tuple[str, list[dict[str, Any]]]:
    """Talk about a scene.

    Args:
        scene: what is in the picture; three objects or more.
        rng: the stream that words are chosen with.
        rounds: how many.
        split: decides which colours and shapes may be mentioned.

    Returns:
        The caption, and rounds with `question`, `answer`, `question_type`, `needs_history` and `about`.
    """
    return hold(Talk(scene["objects"], rng, ALLOWED_PAIRS[split]), rounds)


def hold(conversation: Talk, rounds: int) -> tuple[str, list[dict[str, Any]]]:
    """The caption and the rounds of a conversation; see `make_dialogue`."""
    caption = conversation.caption()
    made = []
    for _ in range(rounds):
        ask, (answer, about), needs = conversation.next_round()
        made.append(
            {
                "question": ask.text(),
                "answer": answer,
                "question_type": type(ask).__name__.lower(),
                "needs_history": needs,
                "about": list(about),
            }
        )
    return caption, made


def history_percent(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How many rounds of dialogues need the rounds before, in percent.

    Args:
        records: dialogues.

    Returns:
        `needs_history`: another meaning of the pronoun would give another answer; `pronoun`: there is one.
    """
    rounds = [turn for record in records for turn in record["dialog"]]
    words = re.compile(r"\b(it|that|they|them|one|same)\b")
    pronouns = sum(bool(words.search(turn["question"])) for turn in rounds)
    needed = sum(turn["needs_history"] for turn in rounds)
    share = 100.0 / max(1, len(rounds))
    return {"needs_history": share * needed, "pronoun": share * pronouns}
