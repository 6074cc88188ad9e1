"""The page of statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lavis.app.browser.collection import Collection, Filters, Split
from lavis.app.browser.pages import Place, at, page, sentence, shortened
from lavis.common.markup import Markup, escape, tag
from lavis.common.page import bar, facts, number, table


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
    return tag("a", shortened(value, 60), href=at(split.name) + Place(Filters(**filters)).query())


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
        out.append(tag("ul", [tag("li", shortened(name, 200)) for name in files.examples]))
        out.append(tag("p", sentence(collection.advice or "name their folder with --vis-path")))
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
