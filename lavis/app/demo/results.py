"""Outputs of pages, as HTML: ranked texts with bars, pictures, pictures behind words.

Plain elements with the page's own styles (style.css): readable by a screen reader, usable by keyboard, and the same in
light and dark. Every text is escaped; pictures are inside the page, so nothing is served as a file.
"""

from __future__ import annotations

import base64
import io
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

from PIL import Image

LARGEST_SIDE = 512  # pixels of a picture that is shown


@dataclass(frozen=True)
class Row:
    """A text of a ranking: its bar's share from 0 to 1 (None: no bar), and what stands beside it."""

    text: str
    share: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture, what stands below it, and a second, smaller line."""

    picture: Image.Image
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What all outputs have: a label, and what is there before the first call."""

    name: str
    label: str
    empty: str = "The result appears here."
    stays: ClassVar[bool] = False  # as it is, where a call fails

    def render(self, value: Any) -> str:
        """HTML of what a page's `run` returned."""
        raise NotImplementedError

    def placeholder(self) -> str:
        return self._framed(f'<p class="lv-empty">{escape(self.empty)}</p>')

    def _framed(self, inside: str) -> str:
        label = escape(self.label)
        return f'<section class="lv-result" aria-label="{label}"><h2>{label}</h2>{inside}</section>'


@dataclass(frozen=True)
class Bars(Result):
    """Ranked texts. Value: rows, best first."""

    def render(self, value: Sequence[Row]) -> str:
        return self._framed(f'<ol class="lv-bars">{"".join(_bar(row) for row in value)}</ol>')


def _bar(row: Row) -> str:
    bar = ""
    if row.share is not None:
        percent = 100 * min(max(row.share, 0.0), 1.0)
        fill = f'<span class="lv-fill" style="width:{percent:.1f}%"></span>'
        bar = f'<span class="lv-track" aria-hidden="true">{fill}</span>'
    note = f'<span class="lv-note">{escape(row.note)}</span>' if row.note else ""
    return f'<li><span class="lv-text">{escape(row.text)}</span>{note}{bar}</li>'


@dataclass(frozen=True)
class Pictures(Result):
    """A grid of pictures. Value: `Shown`, best first."""

    def render(self, value: Sequence[Shown]) -> str:
        return self._framed(f'<ol class="lv-grid">{"".join(_figure(shown) for shown in value)}</ol>')


def _figure(shown: Shown) -> str:
    title = f'<span class="lv-title">{escape(shown.title)}</span>' if shown.title else ""
    note = f'<span class="lv-note">{escape(shown.note)}</span>' if shown.note else ""
    return f"<li><figure>{_image(shown.picture, shown.title)}<figcaption>{title}{note}</figcaption></figure></li>"


@dataclass(frozen=True)
class Layers(Result):
    """Words of which one is chosen, and that word's picture. Value: pairs of word and picture.

    Radio buttons and styles only: the arrow keys go from word to word, and no word needs the server.
    """

    def render(self, value: Sequence[tuple[str, Image.Image]]) -> str:
        group = f"lv{uuid.uuid4().hex[:8]}"
        chips, pictures, rules = [], [], []
        for i, (word, picture) in enumerate(value):
            key, checked = f"{group}-{i}", " checked" if i == 0 else ""
            chips.append(
                f'<span class="lv-chip"><input type="radio" name="{group}" id="{key}"{checked}>'
                f'<label for="{key}">{escape(word)}</label></span>'
            )
            pictures.append(
                f'<div class="lv-layer" data-layer="{key}">{_image(picture, f"where “{word}” is seen")}</div>'
            )
            rules.append(f'#{group}:has(#{key}:checked) [data-layer="{key}"]{{display:block}}')
        return self._framed(
            f'<style>{"".join(rules)}</style><div id="{group}" class="lv-layers">'
            f'<div class="lv-chips" role="radiogroup" aria-label="Words">{"".join(chips)}</div>'
            f"{''.join(pictures)}</div>"
        )


@dataclass(frozen=True)
class Talk(Result):
    """A conversation. Value: pairs of question and answer, the first one first."""

    empty: str = "The conversation appears here."
    stays: ClassVar[bool] = True

    def render(self, value: Sequence[tuple[str, str]]) -> str:
        rounds = "".join(
            f'<li class="lv-asked"><span class="lv-who">You</span><p>{escape(question)}</p></li>'
            f'<li class="lv-said"><span class="lv-who">Model</span><p>{escape(answer) or "(no answer)"}</p></li>'
            for question, answer in value
        )
        return self._framed(f'<ol class="lv-talk" aria-live="polite" tabindex="0">{rounds}</ol>')


@dataclass(frozen=True)
class Rounds(Result):
    """The same for the page's `HistoryInput`, from which the next call has it; visitors don't see it."""

    stays: ClassVar[bool] = True

    def render(self, value: Sequence[tuple[str, str]]) -> str:
        return json.dumps([list(each) for each in value])

    def placeholder(self) -> str:
        return "[]"


def message(kind: str, text: str) -> str:
    """A line above the results; what stands in backquotes is code. kind: "error", "done" or "" (nothing is shown)."""
    role = "alert" if kind == "error" else "status"
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    # a number of its own: a message that is said again is shown, and read out, again
    return (
        f'<p class="lv-message lv-{kind}" role="{role}" data-call="{uuid.uuid4().hex}">{shown}</p>'
        if kind
        else ""
    )


def _image(picture: Image.Image, text: str) -> str:
    """<img> with the picture inside."""
    shown = picture.convert("RGB")
    if max(shown.size) > LARGEST_SIDE:
        shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=90)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img src="{source}" width="{shown.width}" height="{shown.height}" alt="{escape(text)}">'
