"""Where in a picture each word is seen (paper, section 4.2: text localisation)."""

from __future__ import annotations

from typing import Any

from lavis.app.demo.page import EXAMPLES, Layers, Page, PictureInput, TextInput
from lavis.common.registry import registry


@registry.register_page("localization")
class Localization(Page):
    title = "Text localisation"
    about = (
        "Shows where in the picture each word of a text has its evidence: red is much, blue little (Grad-CAM of the "
        "attention from words to the picture). A captioner is asked what makes the word likely, a matching model what "
        "makes the text fit."
    )
    button = "Locate"
    needs, task = "Explains", "explain"
    inputs = (
        PictureInput("picture", "Picture"),
        TextInput("text", "Text", value="a purple ring above a red triangle and a green square"),
    )
    outputs = (Layers("maps", "Words in the picture"),)
    examples = tuple(EXAMPLES / f"drawing_{i:02d}.png" for i in range(6))
    order = 40

    @classmethod
    def can_use(cls, model_class: type) -> bool:
        """Of those that explain, the ones that take a text which describes the image."""
        from lavis.inference.protocols import Matches, Writes

        return super().can_use(model_class) and issubclass(model_class, (Matches, Writes))

    @classmethod
    def offers(cls, preset: Any) -> bool:
        """None whose maps are known to point elsewhere (benchmarks/pointing.py)."""
        from lavis.inference.explain import LEAST_POINTING

        if preset.pointing is None:
            return super().offers(preset)
        return bool(preset.pointing >= LEAST_POINTING)

    def run(self, loaded: Any, picture: Any, text: str) -> list[tuple[str, Any]]:
        """The picture under each word's map, the mean of all first."""
        from lavis.inference import explain, overlay

        found = explain(loaded, picture, text)
        shown = enlarged(picture)
        maps = [("all words", found.whole), *zip(found.words, found.maps, strict=True)]
        return [(word, overlay(shown, heat)) for word, heat in maps]


def enlarged(picture: Any, side: int = 384) -> Any:
    """A small picture with its longer side at `side` pixels, so that a map over it is smooth."""
    factor = side / max(picture.size)
    return picture if factor <= 1 else picture.resize([round(factor * n) for n in picture.size])
