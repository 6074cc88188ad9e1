"""The page of a split: the search, and the records that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lavis.app.browser.collection import FILES, Collection, Split
from lavis.app.browser.media import Media, media_of, problem
from lavis.app.browser.pages import MOST, PER_PAGE, Place, at, page, sentence, shortened
from lavis.app.browser.predictions import VERDICTS
from lavis.app.browser.words import Query, highlighted
from lavis.common.markup import Markup, tag
from lavis.datasets.shown import rounds_of, texts_of
from lavis.tasks.base import Case

_TEXTS = 6  # of a record in the list
_ROUNDS = 3  # of a dialogue in the list
LONGEST = 220  # characters of a text in the list


def records_page(collection: Collection, split: Split, place: Place) -> str:
    """The records that fit, some to a page."""
    found = split.find(place.filters)
    pages = max(1, -(-len(found) // place.per))
    place = replace(place, page=min(place.page, pages))
    start = (place.page - 1) * place.per
    shown = [int(p) for p in found[start : start + place.per]]
    ids = split.index.items(shown)
    query = Query.parse(place.filters.q)
    cards = [
        _card(split, place, query, position, ids[position][0], start + i) for i, position in enumerate(shown)
    ]
    if shown:
        whole = f", {len(split):,} in all" if len(found) != len(split) else ""
        summary = f"{start + 1:,} to {start + len(shown):,} of {len(found):,} records{whole}"
    else:
        summary = "No record fits. A search needs all of its words; word* takes any ending."
    pager = _pager(split, place, pages)
    body = [
        tag("h1", f"{collection.name}, {split.name}", class_="hidden"),
        _search_form(split, place),
        _notes(collection, split),
        tag("p", summary, class_="summary", role="status"),
        tag("ul", cards, class_="cards"),
        pager,
    ]
    return page(collection, "Records", body, split.name, "records")


def _notes(collection: Collection, split: Split) -> list[Markup]:
    out = [
        tag("p", f"{name} cannot be shown: {why}", class_="note") for name, why in collection.problems.items()
    ]
    root = split.dataset.vis_root
    if root is not None and not root.is_dir():
        advice = collection.advice or "name the folder with --vis-path"
        out.append(
            tag(
                "p",
                f"The folder {root} does not exist, so no picture can be shown. {sentence(advice)}",
                class_="note",
            )
        )
    return out


def _options(name: str, chosen: str, values: Sequence[tuple[str, str]]) -> Markup:
    return tag(
        "select",
        [tag("option", label, value=value, selected=value == chosen) for value, label in values],
        name=name,
    )


def _search_form(split: Split, place: Place) -> Markup:
    f, meta = place.filters, split.index.meta
    fields: list[Any] = [
        tag(
            "label",
            tag("span", "search"),
            tag(
                "input", type="search", name="q", value=f.q, id="search", maxlength=500,
                placeholder='words, "a phrase", begin*, -without', autocomplete="off",
            ),
            class_="wide",
        )
    ]  # fmt: skip
    if meta["answers"]:
        options = [tag("option", value=name) for name, _ in meta["answers"]]
        field = tag("input", name="answer", value=f.answer, list="answers", autocomplete="off", size=12)
        fields.append(
            tag("label", tag("span", "answer or label"), field, tag("datalist", options, id="answers"))
        )
    if len(meta["kinds"]) > 1 or f.kind:
        kinds = [("", "any"), *((name, f"{name} ({count:,})") for name, count in meta["kinds"])]
        fields.append(tag("label", tag("span", "kind"), _options("kind", f.kind, kinds)))
    if split.dataset.vis_root is not None:
        files = [("", "any"), *((v, v) for v in FILES)]
        fields.append(tag("label", tag("span", "files"), _options("files", f.files, files)))
    if split.predictions is not None:
        counts = split.predictions.counts()
        words = {"unjudged": "not judged", "missing": "no prediction"}
        verdicts = [("", "any"), *((v, f"{words.get(v, v)} ({counts.get(v, 0):,})") for v in VERDICTS)]
        fields.append(tag("label", tag("span", "prediction"), _options("verdict", f.verdict, verdicts)))
    seed = tag(
        "input", type="number", name="shuffle", value=f.shuffle, min=0, step=1, placeholder="none", size=6
    )
    fields.append(tag("label", tag("span", "shuffle with seed"), seed))
    per = _options("per", str(place.per), [(str(n), str(n)) for n in PER_PAGE])
    fields.append(tag("label", tag("span", "per page"), per))
    go = tag(
        "form",
        tag(
            "label",
            tag("span", "go to #place or id"),
            tag("input", name="to", required=True, size=10, autocomplete="off"),
        ),
        tag("button", "Go"),
        action=at(split.name, "go"),
        class_="go",
    )
    clear = tag("a", "clear", href=at(split.name)) if f.parameters() else None
    form = tag(
        "form", fields, tag("button", "Search"), clear, action=at(split.name), class_="search", role="search"
    )
    return tag("div", form, go, class_="forms")


def _pager(split: Split, place: Place, pages: int) -> Markup | None:
    if pages == 1:
        return None

    def link(label: str, to: int, rel: str | None = None) -> Markup:
        if not 1 <= to <= pages or to == place.page:
            return tag("span", label, class_="muted")
        return tag("a", label, href=at(split.name) + place.query(page=to if to > 1 else ""), rel=rel)

    hidden = [
        tag("input", type="hidden", name=k, value=v)
        for k, v in {**place.filters.parameters(), "per": place.per}.items()
    ]
    choose = tag(
        "form",
        hidden,
        tag("label", "page ", tag("input", type="number", name="page", value=place.page, min=1, max=pages)),
        tag("span", f" of {pages:,} "),
        tag("button", "Go"),
        action=at(split.name),
    )
    return tag(
        "nav",
        link("first", 1),
        link("← previous", place.page - 1, "prev"),
        choose,
        link("next →", place.page + 1, "next"),
        link("last", pages),
        class_="pager",
        aria_label="pages",
    )


def _card(split: Split, place: Place, query: Query, position: int, name: str, ordinal: int) -> Markup:
    record = split.record(position)
    link = at(split.name, str(position)) + place.query(i=ordinal, page="")
    media = media_of(split.dataset, record)
    pictures = [_thumbnail(split, position, i, m) for i, m in enumerate(media)]
    texts = texts_of(record)
    if rounds_of(record):
        rest = [(n, t) for n, t in texts if n not in ("question", "answer")]
        texts = rest + [
            pair for q, a in rounds_of(record)[:_ROUNDS] for pair in (("question", q), ("answer", a))
        ]
    alike = len({label for label, _ in texts}) == 1
    shown = [
        tag(
            "p",
            None if alike else tag("span", f"{label} ", class_="label"),
            highlighted(shortened(text, LONGEST), query),
        )
        for label, text in (texts[: 2 * _ROUNDS + 1] if rounds_of(record) else texts[:_TEXTS])
    ]
    left = len(texts_of(record)) - len(shown)
    if left > 0:
        shown.append(tag("p", f"and {left} more", class_="muted"))
    heading = tag(
        "span",
        f"#{position}",
        tag("span", f" {name}", class_="muted") if name != str(position) else None,
        class_="place",
    )
    return tag(
        "li",
        tag(
            "a",
            tag("span", pictures or tag("span", "no picture", class_="none"), class_="pictures"),
            heading,
            href=link,
            class_="open",
        ),
        tag("div", shown, class_="texts"),
        predicted(split, position, 2),
    )


def _thumbnail(split: Split, position: int, i: int, media: Media) -> Markup:
    why = problem(split.dataset, media)
    if why:
        return tag("span", shortened(why, 120), class_="none")
    mark = tag("span", "▶ clip", class_="clip") if media.clip else None
    picture = tag(
        "img", src=at(split.name, f"{position}/thumb/{i}"), alt=f"{'clip' if media.clip else 'picture'} of #{position}",
        loading="lazy",
    )  # fmt: skip
    return tag("span", picture, mark, class_="frame")


def predicted(split: Split, position: int, most: int | None = None) -> Markup | None:
    if split.predictions is None:
        return None
    cases = split.predictions.cases.get(position, ())
    if not cases:
        return tag("div", tag("p", "no prediction", class_="muted"), class_="predicted")
    shown = [_case(split, case, MOST if most is None else LONGEST) for case in cases[:most]]
    if most is not None and len(cases) > most:
        right = sum(bool(c.is_right) for c in cases)
        shown.append(tag("p", f"{right} of {len(cases)} right", class_="muted"))
    judged = [c.is_right for c in cases if c.is_right is not None]
    kind = "" if not judged else " right" if all(judged) else " wrong"
    return tag("div", shown, class_=f"predicted{kind}")


def _case(split: Split, case: Case, most: int) -> Markup:
    word = {"right": "✓ right", "wrong": "✗ wrong"}.get(case.mark, case.mark)
    kind = {True: "good", False: "bad", None: "muted"}[case.is_right]
    mark = tag("span", f" {word}", class_=kind) if word else None
    about = tag("p", shortened(case.about, LONGEST), class_="muted") if case.about else None
    said: Any = shortened(case.prediction, most) or "(empty)"
    if case.found is not None:
        said = tag("a", said, href=at(split.name, str(case.found)))
    return tag("div", about, tag("p", tag("span", "predicted ", class_="label"), said, mark))
