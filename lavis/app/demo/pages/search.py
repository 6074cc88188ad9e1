"""Pictures of a gallery that fit a text, look like a picture, or both (paper, section 4.2: multimodal search)."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

from PIL import Image

from lavis.app.demo.page import (
    EXAMPLES,
    NumberInput,
    Page,
    PictureInput,
    Pictures,
    Progress,
    Settings,
    Shown,
    TextInput,
    percent,
    silent,
)
from lavis.app.demo.results import LARGEST_SIDE
from lavis.common.files import PICTURES, media_in
from lavis.common.registry import registry


@registry.register_page("search")
class Search(Page):
    title = "Multimodal search"
    about = (
        "Finds pictures of a gallery by a text, by a picture, or by both added. All are compared by their vectors; "
        "where there is a text, the nearest are read again by the matching head and put in its order."
    )
    button = "Search"
    needs, task = "EmbedsBoth", "match"
    inputs = (
        TextInput("text", "Text", value="a purple ring above a red triangle and a green square", required=False),
        PictureInput("picture", "Picture", "To find similar ones; may be left out.", required=False),
        NumberInput("count", "Pictures shown", value=6, minimum=1, maximum=24, more=True),
        NumberInput(
            "reranked", "Re-ranked", "How many of the nearest the matching head reads; 0: none.",
            value=12, minimum=0, maximum=48, more=True,
        ),
    )  # fmt: skip
    outputs = (Pictures("found", "Pictures, the best first"),)
    examples = tuple(EXAMPLES / f"drawing_{i:02d}.png" for i in range(4))
    order = 30
    reports = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._building = threading.Lock()
        self._built: dict[str, Any] = {}  # indexes by the model's spec
        gallery = settings.gallery
        if gallery is not None:
            if not gallery.is_dir():
                raise FileNotFoundError(f"--gallery {gallery}: there is no such folder")
            self.about = f"{self.about} The gallery is {gallery.name}."
            from lavis.inference import Index

            if Index.exists(gallery):
                index = Index.open(gallery)
                self.models = (index.spec,)
                self._built[index.spec] = index
            elif next(media_in(gallery), None) is None:
                raise FileNotFoundError(
                    f"--gallery {gallery}: there are no pictures in this folder ({', '.join(PICTURES)})"
                )

    def run(
        self,
        loaded: Any,
        text: str = "",
        picture: Any = None,
        count: int = 6,
        reranked: int = 12,
        progress: Progress = silent,
    ) -> list[Shown]:
        """Pictures with their scores, the best first."""
        from lavis.inference import Encoder

        encoder = Encoder(loaded)
        hits = self._index(encoder, progress).search(
            encoder,
            text=text or None,
            picture=picture,
            k=count,
            rerank=max(reranked, count) if text and reranked and encoder.matches else 0,
        )
        return [_shown(hit, loaded.sees) for hit in hits]

    def _index(self, encoder: Any, progress: Progress) -> Any:
        """The gallery's index for a model, built at its first search."""
        from lavis.inference import Index

        spec = encoder.loaded.spec
        with self._building:
            if spec not in self._built:
                folder = self.settings.work / f"index-{hashlib.sha256(spec.encode()).hexdigest()[:16]}"
                begun = Index.exists(folder)  # and not finished, else it would be in _built
                index = Index.open(folder) if begun else Index.create(folder, spec)
                index.update(
                    sorted(media_in(self.settings.gallery or EXAMPLES)),
                    encoder,
                    lambda done, total: progress(done, total, "reading the gallery, once"),
                )
                self._built[spec] = index
            return self._built[spec]


def _shown(hit: Any, sees: str) -> Shown:
    from lavis.datasets.shown import preview

    match = "" if hit.match is None else f"match {percent(hit.match)}\n"
    note = f"{match}cosine {hit.score:.3f}"
    try:
        return Shown(preview(hit.path, sees, LARGEST_SIDE), hit.path.name, note)
    except OSError:  # it was there when the index was built
        return Shown(Image.new("RGB", (64, 64), "grey"), hit.path.name, f"{note}; can't be read any more")
