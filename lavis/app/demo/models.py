"""Which models a page offers, and the few that are kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis.app.demo.page import Page

PACKAGED, HERE, AWAY = "in the package", "on this machine", "not here"


@dataclass(frozen=True)
class Choice:
    """A model that a visitor can choose.

    Attributes:
        spec: <name>/<type>, or a checkpoint's folder.
        where: PACKAGED, HERE or AWAY.
        note: what it is, one line.
    """

    spec: str
    where: str
    note: str = ""

    @property
    def label(self) -> str:
        """What the picker shows."""
        return f"{self.spec} ({AWAY})" if self.where == AWAY else self.spec


def choices(page: Page | type[Page], own: Sequence[str] = ()) -> list[Choice]:
    """The models of a page: those that are on this machine first, packaged ones before others, defaults before all.

    Args:
        page: what they are for.
        own: specs that the person who starts the demo has named; those that the page can use come first.

    Raises:
        ValueError: there is no such model.
        FileNotFoundError: a folder of `own` holds no model.
    """
    from lavis.inference.abilities import models_with

    named = {architecture(spec) for spec in page.models}
    fit = [s for s in own if (architecture(s) in named if named else page.can_use(_class(s)))]
    first = [_choice(spec) for spec in fit]
    rest = [_choice(spec) for spec in page.models]
    if not page.models and page.needs:
        found = [
            (f"{name}/{model_type}", preset)
            for name, model_class in {
                k: v for a in page.abilities() for k, v in models_with(a).items()
            }.items()
            if page.can_use(model_class)
            for model_type, preset in model_class.PRESETS.items()
            if page.offers(preset)
        ]
        found.sort(key=lambda item: page.task not in item[1].default_for)
        seen = set()
        for spec, preset in found:
            source = (architecture(spec), preset.weights or preset.pretrained or spec)
            rest += [] if source in seen else [_choice(spec)]  # a type may have a second name
            seen.add(source)
    known = {choice.spec for choice in first}
    order = (PACKAGED, HERE, AWAY)
    return first + [c for c in sorted(rest, key=lambda c: order.index(c.where)) if c.spec not in known]


def _class(spec: str) -> type:
    from lavis.common.registry import registry

    found: type = registry.get_model_class(architecture(spec))
    return found


def architecture(spec: str) -> str:
    """The registered name of a spec: of <name>/<type> its first part, of a folder what its config.json says."""
    from lavis.models.folders import read_description

    folder = Path(spec).expanduser()
    return str(read_description(folder)["arch"]) if folder.is_dir() else spec.partition("/")[0]


def _choice(spec: str) -> Choice:
    from lavis.common import hub
    from lavis.common.registry import registry
    from lavis.models.tokenizer import ASSETS

    if Path(spec).expanduser().is_dir():
        return Choice(spec, HERE, f"your own {architecture(spec)}")
    name, _, model_type = spec.partition("/")
    preset = registry.get_model_class(name).preset(model_type)
    source = preset.weights or preset.pretrained
    if source is None:
        return Choice(spec, PACKAGED, preset.note)
    if "://" in source:
        where = HERE if hub.place_of(source).is_file() else AWAY
    else:
        packaged = Path(source).is_relative_to(ASSETS)
        where = (PACKAGED if packaged else HERE) if Path(source).exists() else AWAY
    return Choice(spec, where, preset.note)


class _Place:
    """A model, once it is loaded, and the lock of whoever loads or uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loaded: Any = None


class Pool:
    """The models used last, each loaded at its first use.

    Args:
        limit: how many are kept.
        load: makes a `lavis.inference.Loaded` of a spec.
    """

    def __init__(self, limit: int, load: Callable[[str], Any]) -> None:
        if limit < 1:
            raise ValueError(f"--max-models is {limit}; at least one model has to be kept")
        self._limit, self._load = limit, load
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._guard = threading.Lock()

    @contextmanager
    def use(self, spec: str) -> Iterator[Any]:
        """The model of a spec, for one user at a time; it is loaded if need be, and the one used longest ago let go.

        A model that is let go while it is used goes when that use ends.
        """
        with self._guard:
            place = self._places.setdefault(spec, _Place())
            self._places.move_to_end(spec)
            while len(self._places) > self._limit:
                self._places.popitem(last=False)
        with place.lock:
            if place.loaded is None:
                try:
                    place.loaded = self._load(spec)
                except BaseException:
                    self._forget(spec, place)
                    raise
            yield place.loaded

    def _forget(self, spec: str, place: _Place) -> None:
        with self._guard:
            if self._places.get(spec) is place:
                del self._places[spec]

    def kept(self) -> list[str]:
        """The specs of loaded models, the one used last at the end."""
        with self._guard:
            return [spec for spec, place in self._places.items() if place.loaded is not None]
