"""The browser's pages as HTML: the records of a split, one record, statistics, the card, the export.

They work without scripts and load nothing but this server's own files.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lavis.app.browser.collection import FILES, Collection, Filters, Pending, Split
from lavis.app.browser.export import why_not
from lavis.app.browser.media import PLAYED_AS_THEY_ARE, SHOWN_AS_THEY_ARE, Media, media_of, problem
from lavis.app.browser.predictions import VERDICTS
from lavis.app.browser.words import Query, highlighted
from lavis.common.markup import Markup, escape, tag
from lavis.common.page import bar, document, facts, number, table
from lavis.datasets.base import Record
from lavis.datasets.shown import rounds_of, texts_of
from lavis.tasks.base import Case

PER_PAGE = (24, 48, 96)
_TEXTS = 6  # of a record in the list
_ROUNDS = 3  # of a dialogue in the list
_LONGEST = 220  # characters of a text in the list
_MOST = 2000  # characters of a text elsewhere


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


# ---------------------------------------------------------------------------------------- records
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
                f"The folder {root} does not exist, so no picture can be shown. {_sentence(advice)}",
                class_="note",
            )
        )
    return out


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


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
            highlighted(_cut(text, _LONGEST), query),
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
        _predicted(split, position, 2),
    )


def _thumbnail(split: Split, position: int, i: int, media: Media) -> Markup:
    why = problem(split.dataset, media)
    if why:
        return tag("span", _cut(why, 120), class_="none")
    mark = tag("span", "▶ clip", class_="clip") if media.clip else None
    picture = tag(
        "img", src=at(split.name, f"{position}/thumb/{i}"), alt=f"{'clip' if media.clip else 'picture'} of #{position}",
        loading="lazy",
    )  # fmt: skip
    return tag("span", picture, mark, class_="frame")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _predicted(split: Split, position: int, most: int | None = None) -> Markup | None:
    if split.predictions is None:
        return None
    cases = split.predictions.cases.get(position, ())
    if not cases:
        return tag("div", tag("p", "no prediction", class_="muted"), class_="predicted")
    shown = [_case(split, case, _MOST if most is None else _LONGEST) for case in cases[:most]]
    if most is not None and len(cases) > most:
        right = sum((c.verdict or 0) >= 0.5 for c in cases)
        shown.append(tag("p", f"{right} of {len(cases)} right", class_="muted"))
    worst = min((c.verdict for c in cases if c.verdict is not None), default=None)
    kind = "predicted" if worst is None else "predicted right" if worst >= 0.5 else "predicted wrong"
    return tag("div", shown, class_=kind)


def _case(split: Split, case: Case, most: int) -> Markup:
    mark = None
    if case.verdict is not None:
        word = (
            "✓ right"
            if case.verdict == 1
            else "✗ wrong"
            if case.verdict == 0
            else f"{100 * case.verdict:.0f} %"
        )
        mark = tag("span", f" {word}", class_="good" if case.verdict >= 0.5 else "bad")
    elif case.score is not None:
        mark = tag("span", f" CIDEr {case.score:.2f}", class_="muted")
    about = tag("p", _cut(case.about, _LONGEST), class_="muted") if case.about else None
    said: Any = _cut(case.prediction, most) or "(empty)"
    if case.found is not None:
        said = tag("a", said, href=at(split.name, str(case.found)))
    return tag("div", about, tag("p", tag("span", "predicted ", class_="label"), said, mark))


# ---------------------------------------------------------------------------------------- one record
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
        parts += [tag("h2", "Prediction"), _predicted(split, position)]
        if beside:
            parts.append(facts({"truth": "; ".join(_cut(t, _LONGEST) for t in beside[:20])}))
    parts += _others(split, place, position)
    raw = json.dumps(record, indent=1, ensure_ascii=False, default=_plain)
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
        tag("details", tag("summary", "the record as it is stored"), tag("pre", _cut(raw, 20_000))),
    ]
    return page(collection, f"#{position}", body, split.name)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _texts(record: Record, query: Query) -> Markup:
    rounds = rounds_of(record)
    out: list[Any] = []
    texts = [(n, t) for n, t in texts_of(record) if not (rounds and n in ("question", "answer"))]
    for i, (label, text) in enumerate(texts):
        if i == 0 or texts[i - 1][0] != label:
            several = sum(n == label for n, _ in texts) > 1
            out.append(tag("dt", f"{label}s" if several else label))
        out.append(tag("dd", highlighted(_cut(text, _MOST), query)))
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
        return tag("p", _cut(f"{why}. {_sentence(advice)}", _MOST), class_="none")
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
            tag("li", tag("a", _cut(text, 120), href=at(split.name, str(other)) + place.query(page="")))
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


# ---------------------------------------------------------------------------------------- statistics
def statistics_page(collection: Collection, split: Split) -> tuple[str, bool]:
    """Numbers about a split; whether some are still being counted."""
    meta = split.index.meta
    different = meta["different"]
    rows: dict[str, Any] = {"records": f"{len(split):,}"}
    if different["media"]:
        each = len(split) / different["media"]
        more = f", {number(each)} records for each on average" if different["media"] != len(split) else ""
        rows["different pictures or clips"] = f"{different['media']:,}{more}"
    body: list[Any] = [tag("h1", f"Statistics of {split.name}"), facts(rows)]
    waiting = False
    if split.dataset.vis_root is not None:
        files, sizes = split.files.look(), split.sizes.look()
        failed = split.files.failed or split.sizes.failed
        waiting = (files is None or sizes is None) and not failed
        body += [tag("h2", "Files"), *_files(collection, split, files, failed)]
        if not hasattr(split.dataset, "clip"):
            body += [tag("h2", "Sizes of pictures"), _sizes(sizes, failed)]
    if split.predictions is not None:
        counts = split.predictions.counts()
        total = sum(counts.values())
        links = [(_filtered(split, verdict=v), n) for v, n in counts.items()]
        body += [
            tag("h2", "Predictions"),
            tag("p", str(split.predictions.path), class_="muted"),
            _bars(links, total),
        ]
    for column, headline in (("answers", "Answers and labels"), ("kinds", "Kinds")):
        top = meta[column]
        if not top:
            continue
        key = column.removesuffix("s")
        shown = [(_filtered(split, **{key: name}), count) for name, count in top[:30]]
        more = f" The {len(shown)} most frequent are shown." if different[key] > len(shown) else ""
        body += [
            tag("h2", headline),
            tag("p", f"{different[key]:,} different ones.{more}", class_="muted"),
            _bars(shown, len(split)),
        ]
    for label, counts in meta["lengths"].items():
        body += _lengths(label, {int(k): v for k, v in counts.items()})
    return page(collection, "Statistics", body, split.name, "statistics"), waiting


def _filtered(split: Split, **filters: str) -> Markup:
    (value,) = filters.values()
    return tag("a", _cut(value, 60), href=at(split.name) + Place(Filters(**filters)).query())


def _bars(rows: Sequence[tuple[Any, int]], total: int, what: str = "records") -> Markup:
    most = max((count for _, count in rows), default=1) or 1
    shown = [
        (name, f"{count:,}", f"{100 * count / max(total, 1):.1f} %", bar(0, count / most, track=False))
        for name, count in rows
    ]
    return tag("div", table(["", what, "share", ""], shown, numeric=(1, 2)), class_="bars")


def _lengths(label: str, counts: Mapping[int, int]) -> list[Markup]:
    """A histogram of numbers of words."""
    total = sum(counts.values())
    values = np.array(sorted(counts))
    weights = np.array([counts[int(v)] for v in values])
    mean = float((values * weights).sum() / total)
    median = int(values[np.searchsorted(weights.cumsum(), total / 2)])
    width = max(1, -(-int(values[-1]) // 20))
    rows = []
    for start in range(int(values[0]) // width * width, int(values[-1]) + 1, width):
        count = int(weights[(values >= start) & (values < start + width)].sum())
        rows.append((f"{start}" if width == 1 else f"{start} to {start + width - 1}", count))
    text = f"{total:,} texts, {mean:.1f} words on average, median {median}, {values[0]} to {values[-1]}"
    text += " or more." if values[-1] >= 100 else "."
    return [tag("h2", f"Words in each {label}"), tag("p", text, class_="muted"), _bars(rows, total, "texts")]


def _files(collection: Collection, split: Split, files: Any, failed: str) -> list[Markup]:
    if failed:
        return [tag("p", f"They cannot be counted: {failed}", class_="note")]
    if files is None:
        return [tag("p", "Files are being counted; this page will show them in a moment.", class_="muted")]
    lost = int(files.missing.sum())
    text = f"{files.named:,} files are named, {files.absent:,} of them are missing"
    out = [tag("p", text + (f", which {lost:,} records need." if lost else "."))]
    if lost:
        out.append(tag("p", _filtered(split, files="missing"), ", for example:"))
        out.append(tag("ul", [tag("li", _cut(name, 200)) for name in files.examples]))
        out.append(tag("p", _sentence(collection.advice or "name their folder with --vis-path")))
    return out


def _sizes(sizes: Any, failed: str) -> Markup:
    if failed:
        return tag("p", f"They cannot be measured: {failed}", class_="note")
    if sizes is None:
        return tag("p", "Pictures are being measured.", class_="muted")
    if not len(sizes.widths):
        return tag("p", "There is no picture to measure.", class_="muted")
    rows = []
    for name, values in (("width", sizes.widths), ("height", sizes.heights)):
        q = np.percentile(values, [0, 25, 50, 75, 100])
        rows.append((name, *(f"{int(v):,}" for v in q)))
    note = f"Pixels, of a sample of {len(sizes.widths):,} pictures"
    note += f"; {sizes.unreadable:,} more could not be read." if sizes.unreadable else "."
    columns = ["", "min", "25 %", "50 %", "75 %", "max"]
    return escape(
        [tag("p", note, class_="muted"), tag("div", table(columns, rows, numeric=range(1, 6)), class_="wide")]
    )


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
