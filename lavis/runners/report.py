"""A page about a captioning run: metrics before and after, the loss curve, pictures with their captions.

Two files: `report.html`, self-contained, and `report.png`. Needs matplotlib (extra `report`). A page about one
evaluation of any task: `lavis.runners.evaluation_report`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lavis.common.files import write_bytes, write_text
from lavis.common.markup import Markup, tag
from lavis.common.page import STYLE, document, line_chart, table

INK, MUTED, BLUE, GREEN, RED = "#1f2933", "#6b7785", "#2563a8", "#1b7f4d", "#b3372b"
SIDE = 224  # pixels, the longer side of pictures in a page

PAGE_STYLE = (
    STYLE
    + """
body { max-width: 64rem; padding: 2rem 1.2rem 4rem; }
p.lead { color: var(--muted); margin: 0; max-width: 46rem; }
.wide { margin-bottom: .8rem; }
.wide td:has(svg) { vertical-align: middle; }
@media (max-width: 34rem) { th, td { padding-right: .8rem; } .wide td:has(svg), .wide svg.bar { display: none; } }
ul.cases { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
ul.cases li { background: var(--card); border-radius: 10px; padding: .9rem; display: flex; gap: .9rem; }
ul.cases li.many { flex-direction: column; }
ul.cases .pictures { display: flex; gap: .4rem; flex: none; flex-wrap: wrap; align-content: flex-start; }
ul.cases img { width: 112px; height: 112px; object-fit: contain; border-radius: 6px; }
ul.cases .many .pictures img { width: 96px; height: 96px; }
ul.cases .none { width: 112px; height: 112px; border: 1px dashed var(--line); border-radius: 6px; padding: .4rem;
  color: var(--muted); font-size: .75rem; overflow: hidden; }
ul.cases dl { font-size: .92rem; min-width: 0; }
"""
)


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
    curve = loss_curve(history)
    picture, page = folder / "report.png", folder / "report.html"
    write_bytes(picture, _figure(title, metrics, curve, cases))
    write_text(page, _page(title, introduction, metrics, curve, cases))
    return page, picture


def loss_curve(history: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(step, loss) of the log lines of steps."""
    return [(r["step"], r["loss"]) for r in history if r.get("event") == "step" and r.get("loss") is not None]


# ------------------------------------------------------------------------------------- picture


def _draw_curve(axes: Any, curve: Sequence[tuple[float, float]]) -> None:
    axes.plot([s for s, _ in curve], [v for _, v in curve], color=BLUE, linewidth=1.8)
    axes.set_xlabel("iterations", color=MUTED)
    axes.set_ylabel("training loss (nats per token, smoothed labels)", color=MUTED)
    axes.tick_params(colors=MUTED)
    axes.grid(color="#e3e7eb", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c6cdd4")


def _figure(
    title: str,
    metrics: Mapping[str, tuple[float, float]],
    curve: Sequence[tuple[float, float]],
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


def data_url(image: Image.Image, side: int = SIDE) -> str:
    """A picture for a self-contained page, made smaller if it is larger than `side` pixels; small ones stay exact."""
    small = image.convert("RGB")
    exact = max(small.size) <= side // 2
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if exact:
        small.save(out, "PNG")
    else:
        small.save(out, "JPEG", quality=82)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def report_page(title: str, body: Any) -> str:
    """A page that needs nothing else and may load nothing else."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = [
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("style", Markup(PAGE_STYLE)),
    ]
    return document(title, head, body)


def _caption(label: str, text: str, right: bool | None) -> Markup:
    mark = None if right is None else tag("span", " true" if right else " not true", class_=_kind(right))
    return tag("dt", label, mark) + tag("dd", text or "(empty)")


def _kind(right: bool) -> str:
    return "good" if right else "bad"


def _page(
    title: str,
    introduction: str,
    metrics: Mapping[str, tuple[float, float]],
    curve: Sequence[tuple[float, float]],
    cases: Sequence[Case],
) -> str:
    items = [
        tag(
            "li",
            tag("img", src=data_url(c.image), alt=c.reference),
            tag(
                "dl",
                _caption("before", c.before, c.before_right),
                _caption("after", c.after, c.after_right),
                _caption("reference", c.reference, None),
            ),
        )
        for c in cases
    ]
    rows = [(name, f"{before:.3g}", f"{after:.3g}") for name, (before, after) in metrics.items()]
    body = [
        tag("h1", title),
        tag("p", introduction, class_="lead"),
        tag("h2", "Held-out pictures, before and after"),
        tag("div", table(["metric", "before", "after"], rows, numeric=(1, 2)), class_="wide"),
        tag("h2", "Training loss"),
        line_chart(curve, "iterations", "loss (nats per token, smoothed labels)"),
        tag("h2", "Captions"),
        tag("ul", items, class_="cases"),
    ]
    return report_page(title, body)
