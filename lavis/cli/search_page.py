"""What was found, as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from lavis.common.files import printable
from lavis.common.markup import Markup, tag
from lavis.common.page import STYLE, document

if TYPE_CHECKING:
    from lavis.inference.index import Hit

_STYLE = """
body { max-width: 76rem; padding: 1.2rem; }
ul { list-style: none; margin: 1rem 0 0; padding: 0; display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
  height: 100%; }
figure img, figure .none { display: block; width: 100%; height: 10rem; object-fit: contain; background: var(--paper); }
figure .none { display: grid; place-items: center; color: var(--muted); }
figcaption { padding: .5rem .6rem .6rem; font-size: .8rem; line-height: 1.35; }
figcaption strong { font-variant-numeric: tabular-nums; }
figcaption a, figcaption span { display: block; }
"""


def search_page(query: str, hits: Sequence[Hit], pictures: Sequence[Image.Image | None]) -> str:
    """The page.

    Args:
        query: what was looked for. hits: what was found. pictures: their thumbnails, None where one can't be read.
    """
    cards = [_card(i, hit, p) for i, (hit, p) in enumerate(zip(hits, pictures, strict=True), start=1)]
    order = (
        "as the matching head orders them"
        if any(h.match is not None for h in hits)
        else "by likeness (cosine)"
    )
    how = tag("p", f"The best {len(cards)}, {order}.", class_="muted")
    body = [tag("h1", printable(query)), how, tag("ul", cards)]
    return str(
        document(printable(f"Search: {query}"), tag("style", Markup(STYLE + _STYLE)), tag("main", body))
    )


def _card(number: int, hit: Hit, picture: Image.Image | None) -> Markup:
    if picture is None:
        shown = tag("div", "can't be read", class_="none")
    else:
        shown = tag("img", src=_embedded(picture), alt=printable(hit.path.name), loading="lazy")
    match = None if hit.match is None else f", fits {100 * hit.match:.0f} %"
    words = tag(
        "figcaption",
        tag("strong", f"{number}. {hit.score:.3f}"),
        match,
        tag("a", printable(hit.path.name), href=hit.path.as_uri()),
        tag("span", printable(str(hit.path.parent)), class_="muted"),
    )
    return tag("li", tag("figure", shown, words))


def _embedded(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
