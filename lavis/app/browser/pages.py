"""The browser's pages as HTML: what all share, the card, the export. Others: `listing`, `record`, `numbers`.

They work without scripts and load nothing but this server's own files.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lavis.app.browser.collection import Collection, Filters, Pending, Split
from lavis.app.browser.export import why_not
from lavis.common.markup import Markup, escape, tag
from lavis.common.page import document, table

PER_PAGE = (24, 48, 96)
MOST = 2000  # characters of a text elsewhere


@dataclass(frozen=True)
class Place:
    """Where a reader is: what was asked for, the page, and records per page."""

    filters: Filters
    page: int = 1
    per: int = PER_PAGE[0]

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Place:
        """From the parameters of a page.

        Raises:
            ValueError: one is not what it should be.
        """
        per = _whole(given, "per", PER_PAGE[0])
        if per not in PER_PAGE:
            raise ValueError(f"per is {per}; it should be {', '.join(map(str, PER_PAGE))}")
        return cls(Filters.of(given), max(1, _whole(given, "page", 1)), per)

    def query(self, **changes: Any) -> str:
        """The parameters of a link, changed; those that say nothing are left out."""
        values: dict[str, Any] = dict(self.filters.parameters())
        values |= {
            "page": self.page if self.page > 1 else "",
            "per": self.per if self.per != PER_PAGE[0] else "",
        }
        values |= changes
        kept = {k: v for k, v in values.items() if v not in ("", None)}
        return "?" + urllib.parse.urlencode(kept) if kept else ""


def _whole(given: Mapping[str, str], key: str, default: int) -> int:
    text = given.get(key, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"{key} is {text!r}; it should be a whole number")
    return int(text)


def at(split: str, rest: str = "") -> str:
    """The address of a split, or of something in it."""
    return f"/split/{urllib.parse.quote(split, safe='')}/{rest}"


# ---------------------------------------------------------------------------------------- the frame
def page(collection: Collection, title: str, body: Any, split: str | None = None, now: str = "") -> str:
    """A whole page. now: which of the views it is."""
    tabs = [
        tag(
            "a",
            name,
            " ",
            tag("span", f"{len(s):,}", class_="muted"),
            href=at(name),
            aria_current="page" if name == split else None,
        )
        for name, s in collection.splits.items()
    ]
    tabs += [
        tag("a", name, " ", tag("span", "being indexed", class_="muted"), href=at(name))
        for name in collection.pending
    ]
    views = [("records", ""), ("statistics", "statistics"), ("export", "export")]
    here = split if split in collection.splits else collection.first
    links = [
        tag("a", name, href=at(here, rest), aria_current="page" if now == name else None)
        for name, rest in views
    ]
    links.append(tag("a", "card", href="/card", aria_current="page" if now == "card" else None))
    header = tag(
        "header",
        tag("a", "To the content", href="#content", class_="skip"),
        tag("p", tag("a", collection.name, href="/"), class_="name"),
        tag("nav", tabs, aria_label="splits"),
        tag("nav", links, aria_label="views"),
    )
    head = [
        tag("link", rel="icon", href="/icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href="/style.css"),
        tag("script", src="/browse.js", defer=True),
    ]
    where = f"{title}, {split}" if split else title
    return document(
        f"{where} · {collection.name}", head, [header, "\n", tag("main", body, id="content", tabindex="-1")]
    )


def message(collection: Collection, title: str, text: str) -> str:
    """A page that says what is wrong."""
    back = tag("p", tag("a", "Back to the records", href="/"))
    return page(collection, title, [tag("h1", title), tag("p", text), back])


def pending_page(collection: Collection, name: str, pending: Pending) -> str:
    """How far the index of a split is."""
    text = pending.failed or f"{pending.done:,} of {pending.total:,} records are indexed; this page follows."
    return page(collection, name, [tag("h1", f"{name} is being indexed"), tag("p", text)], name)


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


# ---------------------------------------------------------------------------------------- card, export
def card_page(collection: Collection) -> str:
    """The data set's card."""
    return page(
        collection, "Card", [tag("h1", f"Card of {collection.name}"), _markdown(collection.card)], now="card"
    )


def _markdown(text: str) -> Markup:
    """The little Markdown that cards use: paragraphs, tables, bold words, code, bare addresses as text."""
    blocks: list[Any] = []
    for part in text.split("\n\n"):
        lines = part.strip().split("\n")
        if lines[0].startswith("|") and len(lines) > 1:
            cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
            rows = [[_inline(c) for c in row] for row in cells[2:]]
            blocks.append(tag("div", table(cells[0], rows), class_="wide"))
        else:
            blocks.append(tag("p", _inline(" ".join(lines))))
    return tag("div", blocks, class_="card")


def _inline(text: str) -> Markup:
    out: list[Any] = []
    for i, code in enumerate(text.split("`")):
        if i % 2:
            out.append(tag("code", code))
        else:
            out += [tag("strong", bold) if k % 2 else bold for k, bold in enumerate(code.split("**"))]
    return escape(out)


def export_page(collection: Collection, split: Split, place: Place) -> str:
    """What can be taken along of what was found."""
    found = split.find(place.filters)
    query = place.query(page="", per="")
    asked = ", ".join(f"{k}: {v}" for k, v in place.filters.parameters().items()) or "all records"
    why = why_not(split)
    own: list[Any]
    if why:
        own = [tag("p", f"A table for training is not possible: {why}.")]
    else:
        root = split.dataset.vis_root
        where = (
            f"lie in {root} (--images)"
            if root is not None
            else "are drawn, so there are none without the archive"
        )
        own = [
            tag("h2", "A table for training"),
            tag(
                "p",
                "One row per record, as ",
                tag("code", "lavis card own"),
                " describes it. Train on it with",
            ),
            tag("pre", f"lavis train --data {split.name}.jsonl --images images"),
            tag(
                "ul",
                tag(
                    "li",
                    _download(split, "zip", query, f"{split.name}.zip"),
                    ": the table and its pictures or clips",
                ),
                tag(
                    "li",
                    _download(split, "jsonl", query, f"{split.name}.jsonl"),
                    f": the table alone; its files {where}",
                ),
                class_="plain",
            ),
        ]
    body = [
        tag("h1", f"Export of {split.name}"),
        tag("p", f"{len(found):,} records ({asked}). Search first to export a selection; a search with a seed and "
            "the number below give a random sample."),
        None if why else _first(split, place),
        own,
        tag("h2", "Records as they are"),
        tag("p", _download(split, "records", query, f"{split.name}-records.jsonl"), ": JSON, one record a line"),
    ]  # fmt: skip
    return page(collection, "Export", body, split.name, "export")


def _download(split: Split, form: str, query: str, name: str) -> Markup:
    return tag("a", name, href=at(split.name, f"export.{form}") + query, download=name)


def _first(split: Split, place: Place) -> Markup:
    kept = [tag("input", type="hidden", name=k, value=v) for k, v in place.filters.parameters().items()]
    return tag(
        "form",
        kept,
        tag(
            "label",
            tag("span", "only the first"),
            tag("input", type="number", name="n", min=1, required=True),
        ),
        tag("button", "Download the table", formaction=at(split.name, "export.jsonl")),
        tag("button", "with pictures", formaction=at(split.name, "export.zip")),
        class_="go",
    )
