"""Which models have an ability, which of them is meant where a user names none, and how messages say it.

The default of a task is a column of the presets, `Preset.default_for`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.inference.protocols import (
    Answers,
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

A = TypeVar("A")
_NAMED = 6  # models that a message names

# how messages say it
ABILITIES: dict[type, str] = {
    Writes: "write captions",
    Answers: "answer questions",
    Chats: "hold a dialogue",
    Ranks: "rank any given texts",
    Prompted: "read a prompt",
    EmbedsBoth: "put images and texts into one space",
    Matches: "match images with texts by a matching head",
    EmbedsPairs: "read image and text together",
    EmbedsQueries: "give several vectors of an image",
    Explains: "explain the words of a text",
    Classifies: "tell classes apart that it was trained for",
}


def ability_named(name: str) -> type:
    """The protocol of a name.

    Raises:
        ValueError: there is none; near names are suggested.
    """
    known = {ability.__name__: ability for ability in ABILITIES}
    if name not in known:
        raise ValueError(f"there is no ability {name!r}.{suggest(name, known)}")
    return known[name]


def abilities(model: Any) -> list[str]:
    """What a model or a class of models can do, in words."""
    return [words for ability, words in ABILITIES.items() if not lacking(model, ability)]


def models_with(ability: type, sees: str | None = None) -> dict[str, Any]:
    """Registered names of the classes that have an ability, each class once.

    Args:
        sees: only those of "image" or of "video".
    """
    found: dict[str, Any] = {}
    for name in registry.list_models():
        model_class = registry.get_model_class(name)
        own_name = getattr(model_class, "registered_name", name)
        if issubclass(model_class, ability) and sees in (None, getattr(model_class, "MEDIA", "image")):
            found.setdefault(own_name, model_class)
    return found


def require(loaded: Any, ability: type[A]) -> A:
    """The model of a `Loaded`, as one that has an ability.

    Raises:
        ValueError: it has not; the message says what the model can do, and which models can do what was asked.
    """
    reason = lacking(loaded.model, ability)
    if reason:
        raise ValueError(cannot(loaded.spec, loaded.model, ability, reason))
    return cast(A, loaded.model)


def cannot(spec: str, model: Any, ability: type, reason: str = "") -> str:
    """The message that a model or a class of models lacks an ability: what it can do, and which models have it.

    Args:
        spec: how the message calls it. reason: what `lacking` gave.
    """
    why = (
        f" ({reason})" if "takes no" in reason else ""
    )  # that a method is not there at all goes without saying
    able = abilities(model)
    instead = f"it can {'; '.join(able)}" if able else "it can do nothing that commands ask for"
    others = examples(ability, getattr(model, "MEDIA", "image"))
    more = ", …" if len(others) > _NAMED else ""
    named = f". Models that can: {', '.join(others[:_NAMED])}{more}" if others else ""
    return f"{spec} can't {ABILITIES[ability]}{why}; {instead}{named}"


# ------------------------------------------------------------------------------------------ defaults
def default(task: str, sees: str = "image", origin: str = "packaged") -> str | None:
    """The preset whose `default_for` names a task, as <name>/<type>.

    Args:
        task: see `Preset.default_for`.
        sees: "image" or "video", what the model is for.
        origin: "packaged": what is used; "published": what messages recommend for photographs and real videos.

    Returns:
        None where there is none; of several the one whose name comes first.
    """
    from lavis.models.folders import origin_of

    for spec, preset in _rows(sees):
        if task in preset.default_for and origin_of(preset.weights or preset.pretrained) == origin:
            return spec
    return None


def needed(task: str, sees: str = "image") -> str:
    """The packaged default of a task that has one.

    Raises:
        ValueError: no preset is a default for it.
    """
    spec = default(task, sees)
    if spec is None:
        raise ValueError(f"no packaged model is for {task} of {sees}s; name one with --model")
    return spec


def examples(ability: type, sees: str = "image") -> list[str]:
    """A preset of each class of models that has an ability: defaults first, then one of each other class by name, those
    from outside the library before its own."""
    first: list[str] = []
    rest: dict[str, tuple[str, bool]] = {}  # name to spec, and whether it has weights
    for spec, preset in _rows(sees, ability):
        if preset.default_for:
            first.append(spec)
        else:
            trained, name = bool(preset.weights or preset.pretrained), spec.partition("/")[0]
            if name not in rest or (trained and not rest[name][1]):
                rest[name] = (spec, trained)
    known = {spec.partition("/")[0] for spec in first}
    names = [name for name in rest if name not in known]
    names.sort(key=lambda name: registry.get_model_class(name).__module__.startswith("lavis."))
    return first + [rest[name][0] for name in names]


def _rows(sees: str, ability: type = object) -> Iterator[tuple[str, Any]]:
    """<name>/<type> and preset of all models, by name."""
    for name, model_class in models_with(ability, sees).items():
        for model_type, preset in getattr(model_class, "PRESETS", {}).items():
            yield f"{name}/{model_type}", preset
