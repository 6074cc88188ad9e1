"""`lavis demo`: the web demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lavis.cli import common, options


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="A folder of pictures to search in, or an index that `lavis index` has made of one."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A checkpoint's folder (or <name>/<type>) to offer first, on pages that it fits. Repeatable.",
        ),
    ] = None,
    part: options.Parts = None,
    max_models: Annotated[int, typer.Option(min=1, help="Models kept in memory.")] = 2,
    max_upload_mb: Annotated[
        float, typer.Option(min=0.1, help="Megabytes of an uploaded file, at most.")
    ] = 10,
    max_disk_mb: Annotated[
        float,
        typer.Option(min=1, help="Megabytes of all uploads; the oldest are removed for new ones."),
    ] = 1000,
    download: Annotated[
        bool, typer.Option("--download", help="Let visitors fetch weights that are not on this machine.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name that it is asked by, such as a proxy's. May be repeated."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Default: the first free one from 7860 on; 0: any free one."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    device: Annotated[str, common.DEVICE] = "auto",
    precision: Annotated[str, common.PRECISION] = "auto",
) -> None:
    """Try the models in the browser: captions, questions, conversations, search, heat maps, zero-shot classes,
    matching, clips.

    Needs the extra `app`, for clips also `video`. It works offline with the small packaged models, and makes no
    connection to other machines (with --download only those that fetch weights). Pages of other sites can't use it.
    Uploads are kept in a temporary folder, which is removed at the end. A page of your own: lavis --import my_page
    demo.

    \b
    Examples:
      lavis demo
      lavis demo --gallery photos/ --model output/20260101_120000/checkpoint_best
      lavis demo --download --device cuda
    """
    from lavis.app.demo.server import Options, serve

    serve(
        Options(
            host=host, port=port, gallery=gallery, models=model or (),
            parts=common.read_parts(part) or {}, max_models=max_models,
            max_upload_mb=max_upload_mb, max_disk_mb=max_disk_mb, allow_hosts=allow_host or (), download=download,
            device=device, precision=precision, open_browser=open_browser,
        )
    )  # fmt: skip
