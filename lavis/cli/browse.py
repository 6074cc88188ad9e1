"""`lavis browse`: look at a data set in the web browser."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Annotated

import typer

from lavis.cli import common


def register(app: typer.Typer) -> None:
    app.command("browse")(browse)


def browse(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set (see `lavis datasets`).")],
    options: Annotated[
        list[str] | None,
        typer.Option("--option", "--options", metavar="KEY=VALUE...", help="The data set's own settings."),
    ] = None,
    vis_path: Annotated[
        str | None, typer.Option("--vis-path", metavar="DIR", help="The folder of the pictures or clips.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split. May be repeated.")] = None,
    predictions: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="A run's folder, or a file of its results, to lay beside the truth."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes a free one.")] = 7861,
    show: Annotated[bool, typer.Option("--open", help="Open the web browser.")] = False,
    index_only: Annotated[bool, typer.Option("--index-only", help="Make the index, and stop.")] = False,
) -> None:
    """Look at a data set in the web browser: pictures with their texts, search, statistics, results of a run.

    The first time a data set is indexed; afterwards it opens at once, however large it is. The server answers this
    machine only; of another machine: ssh -L 7861:127.0.0.1:7861 MACHINE.

    \b
    Examples:
      lavis browse shapes_caption
      lavis browse coco_caption --split val --vis-path /data/coco/images
      lavis browse own --options train=train.jsonl images=photos
      lavis browse shapes_vqa --predictions output/20260101_120000
    """
    from PIL import Image

    from lavis.app.browser.collection import open_collection, terminal_progress
    from lavis.app.browser.server import Server
    from lavis.common.config import parse_options

    # pictures are measured before they are decoded, see `media.MOST_PIXELS`
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    started = time.monotonic()
    collection = open_collection(
        name,
        parse_options(list(options or [])),
        vis_path=vis_path,
        splits=split or (),
        predictions=predictions,
        progress=terminal_progress,
    )
    for part, why in collection.problems.items():
        common.note(f"{part} cannot be shown: {why}")
    parts = ", ".join(f"{part} {len(s):,}" for part, s in collection.splits.items())
    common.note(f"{name}: {parts} records, open after {time.monotonic() - started:.1f} s")
    for part, pending in collection.pending.items():
        common.note(f"{part} is indexed in the background, {pending.total:,} records")
    if index_only:
        collection.wait()
        return
    try:
        server = Server(collection, port)
    except OSError as e:
        raise OSError(
            f"port {port} cannot be used ({e.strerror}); choose another with --port, or --port 0"
        ) from e
    print(server.address, flush=True)
    common.note("Ctrl-C ends it")
    if show:
        import webbrowser

        webbrowser.open(server.address)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
        finally:
            collection.close()
