"""The page of one record, with everything that is known of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from lavis.app.browser.collection import Collection, Filters, Split
from lavis.app.browser.export import plain
from lavis.app.browser.listing import LONGEST, predicted
from lavis.app.browser.media import PLAYED_AS_THEY_ARE, SHOWN_AS_THEY_ARE, Media, media_of, problem
from lavis.app.browser.pages import MOST, Place, at, page, sentence, shortened
from lavis.app.browser.words import Query, highlighted
from lavis.common.markup import Markup, escape, tag
from lavis.common.page import facts
from lavis.datasets.base import Record
from lavis.datasets.shown import rounds_of, texts_of


def record_page(
    collection: Collection, split: Split, place: Place, position: int, ordinal: int | None
) -> str:
    """One record with everything that is known of it."""
    record = split.record(position)
    name, kind = split.index.items([position])[position]
    query = Query.parse(place.filters.q)
    media = [_large(collection, split, position, i, m) for i, m in enumerate(media_of(split.dataset, record))]
    truth = [
        t for c in (split.predictions.cases.get(position, ()) if split.predictions else ()) for t in c.truth
    ]
    known = {text for _, text in texts_of(record)}
    beside = [t for t in dict.fromkeys(truth) if t not in known and t.split(" (×")[0] not in known]
    parts: list[Any] = [_texts(record, query)]
    if split.predictions is not None:
        parts += [tag("h2", "Prediction"), predicted(split, position)]
        if beside:
            parts.append(facts({"truth": "; ".join(shortened(t, LONGEST) for t in beside[:20])}))
    parts += _others(split, place, position)
    raw = json.dumps(record, indent=1, ensure_ascii=False, default=plain)
    rows: dict[str, Any] = {"place": f"#{position} of {len(split):,}", "id": name}
    if kind:
        rows["kind"] = tag("a", kind, href=at(split.name) + Place(Filters(kind=kind)).query())
    body = [
        _neighbours(split, place, position, ordinal),
        tag("h1", f"Record #{position}"),
        tag(
            "div",
            tag("div", media or tag("p", "no picture", class_="none"), class_="media"),
            tag("div", parts, facts(rows), class_="about"),
            class_="record",
        ),
        tag("details", tag("summary", "the record as it is stored"), tag("pre", shortened(raw, 20_000))),
    ]
    return page(collection, f"#{position}", body, split.name)


def _texts(record: Record, query: Query) -> Markup:
    rounds = rounds_of(record)
    out: list[Any] = []
    texts = [(n, t) for n, t in texts_of(record) if not (rounds and n in ("question", "answer"))]
    for i, (label, text) in enumerate(texts):
        if i == 0 or texts[i - 1][0] != label:
            several = sum(n == label for n, _ in texts) > 1
            out.append(tag("dt", f"{label}s" if several else label))
        out.append(tag("dd", highlighted(shortened(text, MOST), query)))
    turns = [
        tag(
            "li",
            tag("p", highlighted(q, query), class_="question"),
            tag("p", highlighted(a, query) if a else "not public"),
        )
        for q, a in rounds
    ]
    return escape([tag("dl", out), tag("ol", turns, class_="dialogue") if turns else None])


def _large(collection: Collection, split: Split, position: int, i: int, media: Media) -> Markup:
    why = problem(split.dataset, media)
    if why:
        advice = collection.advice or "name the folder with --vis-path"
        return tag("p", shortened(f"{why}. {sentence(advice)}", MOST), class_="none")
    address = at(split.name, str(position))
    suffix = "" if media.path is None else media.path.suffix.lower()
    what = f"{'clip' if media.clip else 'picture'} of record #{position}"
    if media.clip and suffix in PLAYED_AS_THEY_ARE:
        shown = tag(
            "video", tag("a", "the clip as a file", href=f"{address}/file/{i}"), src=f"{address}/file/{i}",
            poster=f"{address}/thumb/{i}", controls=True, loop=True, muted=True, preload="metadata", aria_label=what,
        )  # fmt: skip
        # a browser may lack a codec that a file's suffix promises
        note = tag(
            "p", tag("a", "show it as moving pictures instead", href=f"{address}/play/{i}"), class_="muted"
        )
        return tag("figure", shown, note)
    if media.clip:
        return tag("figure", tag("img", src=f"{address}/play/{i}", alt=what, class_="small"))
    shown = tag("img", src=f"{address}/picture/{i}", alt=what, class_="small" if media.path is None else None)
    caption: Any = media.name
    if suffix in SHOWN_AS_THEY_ARE:
        caption = tag("a", media.name, href=f"{address}/file/{i}")
    return tag("figure", shown, tag("figcaption", caption))


def _others(split: Split, place: Place, position: int) -> list[Markup]:
    others = [p for p in split.index.about(position, 24) if p != position]
    if not others:
        return []
    items = []
    for other in others[:23]:
        texts = texts_of(split.record(other))
        text = next((t for _, t in texts), f"#{other}")
        items.append(
            tag("li", tag("a", shortened(text, 120), href=at(split.name, str(other)) + place.query(page="")))
        )
    return [
        tag(
            "h2", "Also about this picture" if not hasattr(split.dataset, "clip") else "Also about this clip"
        ),
        tag("ul", items, class_="plain"),
    ]


def _neighbours(split: Split, place: Place, position: int, ordinal: int | None) -> Markup:
    """Links to the record before and after in what was found, and back to the list."""
    found = split.find(place.filters)
    if ordinal is None or not (0 <= ordinal < len(found) and int(found[ordinal]) == position):
        found, ordinal, place = range(len(split)), position, replace(place, filters=Filters())

    def link(label: str, to: int, rel: str) -> Markup:
        if not 0 <= to < len(found):
            return tag("span", label, class_="muted")
        address = at(split.name, str(int(found[to]))) + place.query(i=to, page="")
        return tag("a", label, href=address, rel=rel)

    back = at(split.name) + place.query(page=ordinal // place.per + 1 if ordinal >= place.per else "")
    return tag(
        "nav",
        link("← previous", ordinal - 1, "prev"),
        tag("a", f"{ordinal + 1:,} of {len(found):,}, back to the list", href=back, rel="up"),
        link("next →", ordinal + 1, "next"),
        class_="pager",
        aria_label="records",
    )
