"""What reports and the data-set browser share: the page's frame, its colours in light and dark, charts as inline SVG.

Charts take their colours from the style sheet, so they need no script and follow the reader's preference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lavis.common.markup import Markup, tag

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5a6673; --line: #d9dfe5; --paper: #ffffff;
  --card: #f5f7f9; --accent: #1f5fa6; --good: #14683f; --bad: #a52f24; --good-ground: #e3f3ea; --bad-ground: #fbe9e7;
  --mark: #ffe9a8; --mark-ink: #2b2300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --muted: #a3b0bc; --line: #36414c; --paper: #14191e;
  --card: #1d242b; --accent: #7db7f0; --good: #63cc96; --bad: #f2958a; --good-ground: #173326; --bad-ground: #3c211e;
  --mark: #5d4c10; --mark-ink: #fff3cf; } }
* { box-sizing: border-box; }
body { margin: 0 auto; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 2.2rem 0 .8rem; }
a { color: var(--accent); }
a:focus-visible, button:focus-visible, input:focus-visible, select:focus-visible, summary:focus-visible {
  outline: 3px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; } .wide td, .wide th { overflow-wrap: normal; }
dl { margin: 0; } dt { color: var(--muted); font-size: .8rem; } dd { margin: 0 0 .45rem; }
pre { background: var(--card); padding: .9rem; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
.muted { color: var(--muted); } .good { color: var(--good); } .bad { color: var(--bad); }
svg.chart { display: block; width: 100%; height: auto; max-width: 46rem; }
svg.chart text { fill: var(--muted); font: 12px system-ui, sans-serif; }
svg.chart .grid { stroke: var(--line); stroke-width: 1; } svg.chart .curve { stroke: var(--accent); stroke-width: 2;
  fill: none; stroke-linejoin: round; } svg.chart .dot { fill: var(--accent); }
svg.bar { display: block; width: 100%; height: .8rem; min-width: 6rem; } svg.bar rect { fill: var(--accent); }
svg.bar rect.track { fill: var(--line); }
"""


def document(title: str, head: Any, body: Any) -> Markup:
    """A whole page, readable on a small screen."""
    return Markup("<!doctype html>\n") + tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", title),
            head,
        ),
        Markup("\n"),
        tag("body", body),
        Markup("\n"),
        lang="en",
    )


def number(value: float) -> str:
    """A number as tables show it: 0.1234, 12.3, 1,234."""
    if not math.isfinite(value):
        return "not a number"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two, about as many as wanted."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most so many points, each the mean of those it stands for."""
    each = -(-len(points) // most)
    if each <= 1:
        return list(points)
    parts = [points[i : i + each] for i in range(0, len(points), each)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def line_chart(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> Markup:
    """A curve with axes.

    Args:
        points: (x, y) in the order of x; those that are no numbers are left out.
    """
    kept = thinned([(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)])
    if not kept:
        return tag("p", "There is nothing to draw.", class_="muted")
    width, height, left, right, top, bottom = 640.0, 280.0, 56.0, 14.0, 26.0, 44.0
    xs, ys = [x for x, _ in kept], [y for _, y in kept]
    x0, x1 = min(xs), max(xs)
    y0, y1 = min(ys), max(ys)
    pad = 0.06 * (y1 - y0) or abs(y1) * 0.1 or 1.0
    y0, y1 = y0 - pad, y1 + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - y0) / (y1 - y0)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    parts: list[Markup] = []
    for value in ticks(y0, y1):
        _, y = place(x0, value)
        parts.append(tag("line", x1=left, x2=width - right, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        parts.append(tag("text", f"{value:g}", x=left - 8, y=f"{y + 4:.1f}", text_anchor="end"))
    for value in ticks(x0, x1):
        x, _ = place(value, y0)
        parts.append(tag("text", f"{value:g}", x=f"{x:.1f}", y=height - bottom + 18, text_anchor="middle"))
    parts.append(tag("text", x_label, x=(left + width - right) / 2, y=height - 8, text_anchor="middle"))
    parts.append(tag("text", y_label, x=4, y=14))
    drawn = [place(x, y) for x, y in kept]
    if len(drawn) > 1:
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in drawn), class_="curve"))
    if len(drawn) <= 30:
        parts += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_="dot") for x, y in drawn]
    label = f"{y_label} over {x_label}, from {number(ys[0])} to {number(ys[-1])}"
    return tag(
        "svg", parts, viewBox=f"0 0 {width:g} {height:g}", class_="chart", role="img", aria_label=label
    )


def bar(low: float, high: float, track: bool = True) -> Markup:
    """A bar from one share of its row to another, both 0 to 1; never invisible."""
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    wide = max(100 * (high - low), 0.8)
    start = min(100 * low, 100 - wide)
    ground = tag("rect", x=0, y=3, width=100, height=4, class_="track") if track else None
    shown = tag("rect", x=f"{start:.2f}", y=0, width=f"{wide:.2f}", height=10)
    return tag(
        "svg",
        ground,
        shown,
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_="bar",
        aria_hidden="true",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = ()) -> Markup:
    """A table; `numeric` are the places of columns that hold numbers."""

    def kind(column: int) -> str | None:
        return "n" if column in numeric else None

    return tag(
        "table",
        tag("thead", tag("tr", [tag("th", c, class_=kind(i), scope="col") for i, c in enumerate(columns)])),
        tag("tbody", [tag("tr", [tag("td", c, class_=kind(i)) for i, c in enumerate(row)]) for row in rows]),
    )


def facts(rows: Mapping[str, Any]) -> Markup:
    """Names and values, one below the other."""
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in rows.items()])
