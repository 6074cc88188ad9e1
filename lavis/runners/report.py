"""A page about a captioning run: metrics before and after, the loss curve, pictures with their captions.

Two files: `report.html`, self-contained, and `report.png`. Needs matplotlib (extra `report`).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lavis.common.files import write_bytes, write_text

INK, MUTED, BLUE, GREEN, RED = "#1f2933", "#6b7785", "#2563a8", "#1b7f4d", "#b3372b"


@dataclass(frozen=True)
class Case:
    """One picture of the report.

    Attributes:
        image: the picture. before, after: captions. reference: one of the true ones.
        before_right, after_right: whether the captions are true; None if nobody can tell.
    """

    image: Image.Image
    before: str
    after: str
    reference: str
    before_right: bool | None = None
    after_right: bool | None = None


def write_report(
    folder: str | Path,
    title: str,
    introduction: str,
    metrics: Mapping[str, tuple[float, float]],
    history: Sequence[Mapping[str, Any]],
    cases: Sequence[Case],
) -> tuple[Path, Path]:
    """Write report.html and report.png.

    Args:
        folder: where to. title: headline. introduction: a sentence or two under it.
        metrics: {name with unit: (before, after)}.
        history: a run's log lines; those with "event": "step" give the curve.
        cases: pictures with captions.

    Returns:
        The paths of page and picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as e:
        raise ImportError("a report needs matplotlib: pip install 'openlavis[report]'") from e
    matplotlib.use("Agg")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    curve = [(r["step"], r["loss"]) for r in history if r.get("event") == "step" and "loss" in r]
    picture, page = folder / "report.png", folder / "report.html"
    write_bytes(picture, _figure(title, metrics, curve, cases))
    write_text(page, _page(title, introduction, metrics, _curve(curve), cases))
    return page, picture


# ------------------------------------------------------------------------------------- picture


def _draw_curve(axes: Any, curve: Sequence[tuple[int, float]]) -> None:
    axes.plot([s for s, _ in curve], [v for _, v in curve], color=BLUE, linewidth=1.8)
    axes.set_xlabel("iterations", color=MUTED)
    axes.set_ylabel("training loss (nats per token, smoothed labels)", color=MUTED)
    axes.tick_params(colors=MUTED)
    axes.grid(color="#e3e7eb", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c6cdd4")


def _curve(curve: Sequence[tuple[int, float]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), dpi=130, layout="constrained")
    _draw_curve(figure.subplots(), curve)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _figure(
    title: str,
    metrics: Mapping[str, tuple[float, float]],
    curve: Sequence[tuple[int, float]],
    cases: Sequence[Case],
) -> bytes:
    """Curve and metrics on top, pictures with captions below, three in a row."""
    import textwrap

    from matplotlib.figure import Figure

    columns = 3
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(13, 4.2 + 3.1 * rows), dpi=100, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[4.2, max(3.1 * rows, 0.1)])
    top, bottom = parts
    figure.suptitle(title, color=INK, fontsize=15, fontweight="bold")
    left, right = top.subplots(1, 2, width_ratios=[1.5, 1])
    _draw_curve(left, curve)
    right.axis("off")
    table = right.table(
        [[name, f"{before:.3g}", f"{after:.3g}"] for name, (before, after) in metrics.items()],
        colLabels=["test metric", "before", "after"],
        colWidths=[0.56, 0.22, 0.22],
        loc="center",
        cellLoc="left",
        edges="horizontal",
    )
    table.scale(1, 1.6)
    table.auto_set_font_size(False)
    table.set_fontsize(10.5)
    for cell in table.get_celld().values():
        cell.set_edgecolor("#d5dbe1")
        cell.get_text().set_color(INK)
    grid = bottom.subplots(rows, columns * 2, squeeze=False, width_ratios=[1, 1.5] * columns)
    for place in range(rows * columns):
        show, text = (
            grid[place // columns][2 * (place % columns)],
            grid[place // columns][2 * (place % columns) + 1],
        )
        show.axis("off")
        text.axis("off")
        if place >= len(cases):
            continue
        case = cases[place]
        show.imshow(case.image)
        y = 0.98
        for label, caption, right_ in (
            ("before", case.before, case.before_right),
            ("after", case.after, case.after_right),
            ("reference", case.reference, None),
        ):
            mark = {True: " — true", False: " — not true", None: ""}[right_]
            color = {True: GREEN, False: RED, None: MUTED}[right_]
            lines = textwrap.wrap(caption, 34) or ["(empty)"]
            text.text(0, y, label + mark, color=color, fontsize=9, va="top", fontweight="bold")
            text.text(0, y - 0.085, "\n".join(lines), color=INK, fontsize=10, va="top")
            y -= 0.16 + 0.085 * len(lines)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white")
    return out.getvalue()


# ---------------------------------------------------------------------------------------- page

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5d6976; --line: #d9dfe5; --paper: #ffffff;
  --card: #f6f8fa; --good: #1b7f4d; --bad: #b3372b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --muted: #9aa7b4; --line: #38434e; --paper: #14191e;
  --card: #1d242b; --good: #58c28c; --bad: #ef8a7e; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .8rem; }
p.lead { color: var(--muted); margin: 0; max-width: 44rem; }
table { border-collapse: collapse; min-width: min(26rem, 100%); }
th, td { text-align: left; padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img.curve { width: 100%; max-width: 46rem; border-radius: 8px; background: #fff; }
ul.cases { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); }
ul.cases li { background: var(--card); border-radius: 10px; padding: .9rem; display: flex; gap: .9rem; }
ul.cases img { width: 112px; height: 112px; border-radius: 6px; image-rendering: auto; flex: none; }
dl { margin: 0; font-size: .92rem; } dt { color: var(--muted); font-size: .78rem; } dd { margin: 0 0 .45rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
"""


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _thumbnail(image: Image.Image) -> str:
    out = io.BytesIO()
    image.convert("RGB").resize((224, 224), Image.Resampling.LANCZOS).save(out, "PNG")
    return _data_url(out.getvalue())


def _caption(label: str, text: str, right: bool | None) -> str:
    mark = {True: ' <span class="good">true</span>', False: ' <span class="bad">not true</span>', None: ""}[
        right
    ]
    return f"<dt>{label}{mark}</dt><dd>{html.escape(text) or '(empty)'}</dd>"


def _page(
    title: str,
    introduction: str,
    metrics: Mapping[str, tuple[float, float]],
    curve: bytes,
    cases: Sequence[Case],
) -> str:
    rows = "\n".join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{before:.3g}</td><td class="n">{after:.3g}</td></tr>'
        for name, (before, after) in metrics.items()
    )
    items = "\n".join(
        f'<li><img src="{_thumbnail(c.image)}" alt="{html.escape(c.reference, quote=True)}"><dl>'
        + _caption("before", c.before, c.before_right)
        + _caption("after", c.after, c.after_right)
        + _caption("reference", c.reference, None)
        + "</dl></li>"
        for c in cases
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(title)}</h1>
<p class="lead">{html.escape(introduction)}</p>
<h2>Held-out pictures, before and after</h2>
<table><thead><tr><th>metric</th><th class="n">before</th><th class="n">after</th></tr></thead>
<tbody>{rows}</tbody></table>
<h2>Training loss</h2>
<img class="curve" src="{_data_url(curve)}" alt="training loss over iterations">
<h2>Captions</h2>
<ul class="cases">{items}</ul>
</body></html>
"""
