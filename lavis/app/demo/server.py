"""The demo's process: pages and models put together, a temporary folder, the web server and what it lets through."""

from __future__ import annotations

import socket
import tempfile
import warnings
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis.app.demo import privacy
from lavis.app.demo.models import AWAY, Choice, Pool, choices
from lavis.app.demo.page import Settings
from lavis.app.demo.uploads import Limits
from lavis.common.values import suggest

FIRST_PORT, PORTS = 7860, 100

# The page and what it loads come from this server alone. Gradio's own scripts need the two "unsafe" ones.
POLICY = (
    "default-src 'self'; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


@dataclass(frozen=True)
class Options:
    """What `lavis demo` can be told; see there."""

    host: str = "127.0.0.1"
    port: int | None = None
    gallery: Path | None = None
    models: Sequence[str] = ()
    # of models that have them, see `lavis.inference.load`
    parts: Mapping[str, Any] = field(default_factory=dict)
    max_models: int = 2
    max_upload_mb: float = 10
    max_disk_mb: float = 1000
    allow_hosts: Sequence[str] = ()
    download: bool = False
    device: str = "auto"
    precision: str = "auto"
    open_browser: bool = False


def serve(options: Options) -> None:
    """Run the demo until it is interrupted.

    Raises:
        ValueError, OSError: options that cannot be met. ImportError: Gradio is not installed.
    """
    with _socket(options.host, options.port) as listening, application(options) as app:
        import uvicorn

        host, port = listening.getsockname()[:2]
        address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
        print(f"The demo is at {address} (Ctrl+C ends it)", flush=True)
        if options.open_browser:
            webbrowser.open(address)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def application(options: Options) -> Iterator[Any]:
    """The demo as an ASGI app; on leaving, its temporary folder is removed and the process is as it was before."""
    with ExitStack() as stack:
        stack.enter_context(privacy.settings(privacy.SETTINGS))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lavis-demo-"))).resolve()
        stack.enter_context(
            privacy.settings({"GRADIO_TEMP_DIR": str(folder / "files"), "TMPDIR": str(folder)})
        )
        stack.enter_context(_temporary_files_in(folder))
        if not options.download:
            stack.enter_context(privacy.settings(privacy.OFFLINE))
        _need_gradio()
        app = _app(options, folder)
        if not options.download:
            stack.enter_context(privacy.no_connections())
        yield app


def _need_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as e:
        raise ImportError("the demo needs Gradio, which is not installed: pip install openlavis[app]") from e


def _app(options: Options, folder: Path) -> Any:
    from fastapi import FastAPI

    from lavis.app.demo import layout
    from lavis.app.demo.calls import Caller
    from lavis.app.demo.gate import Gate
    from lavis.app.door import names_of
    from lavis.common.registry import registry

    for name in ("files", "work"):
        (folder / name).mkdir()
    limits = Limits(folder / "files", options.max_upload_mb)
    settings = Settings(folder / "work", options.gallery)
    classes = {name: registry.get_page_class(name) for name in registry.list_pages()}
    pages = {
        name: cls(settings)
        for name, cls in sorted(classes.items(), key=lambda item: (item[1].order, item[0]))
    }
    offered = {name: choices(page, options.models) for name, page in pages.items()}
    _check_all_used(options.models, offered)
    pool = Pool(options.max_models, _loader(options, offered))
    ready = [
        layout.Ready(name, page, offered[name], Caller(page, offered[name], pool, limits))
        for name, page in pages.items()
    ]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode is not supported")  # it is not asked for
        _mount(app, layout, ready, options)
    app.add_middleware(
        Gate,
        names=names_of(options.host, options.allow_hosts),
        folder=folder / "files",
        file_bytes=int(options.max_upload_mb * 1e6),
        disk_bytes=int(max(options.max_disk_mb, options.max_upload_mb) * 1e6),
    )
    app.add_middleware(_Headers)
    return app


def _mount(app: Any, layout: Any, ready: Sequence[Any], options: Options) -> None:
    import gradio as gr

    blocks = layout.build(ready)
    # `launch` would set these. Without the first, Gradio takes any file of the machine that a request names for an
    # upload; without the second it shows uploaded SVG files, scripts included, as parts of the app.
    blocks.has_launched = blocks.is_running = True
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=options.host,
        allowed_paths=[],
        show_error=False,
        max_file_size=int(options.max_upload_mb * 1e6),
        ssr_mode=False,
        theme=layout.theme(),
        head=layout.head(),
        footer_links=[],
    )


def _check_all_used(models: Sequence[str], offered: dict[str, list[Choice]]) -> None:
    known = {choice.spec for each in offered.values() for choice in each}
    for spec in models:
        if spec not in known:
            raise ValueError(f"--model {spec}: no page of the demo can use it; {_can(spec)}")


def _parts_of(spec: str) -> set[str]:
    """The names of the parts of a model."""
    from lavis.app.demo.models import architecture
    from lavis.common.registry import registry

    presets = getattr(registry.get_model_class(architecture(spec)), "PRESETS", {})
    return {name for preset in presets.values() for name in preset.parts}


def _can(spec: str) -> str:
    """What a model can do, for a message."""
    from lavis.app.demo.models import architecture
    from lavis.common.registry import registry
    from lavis.inference.abilities import abilities

    found = abilities(registry.get_model_class(architecture(spec)))
    return f"it can {'; '.join(found)}" if found else "it has none of the abilities that pages need"


def _loader(options: Options, offered: dict[str, list[Choice]]) -> Any:
    where = {choice.spec: choice.where for each in offered.values() for choice in each}
    known = {name for spec in where for name in _parts_of(spec)} if options.parts else set()
    for name in options.parts:
        if name not in known:
            raise ValueError(f"--part {name}: no model of the demo has such a part.{suggest(name, known)}")

    def load(spec: str) -> Any:
        from lavis.inference import load

        if where.get(spec) == AWAY and not options.download:
            raise OSError(
                f"The weights of {spec} are not on this machine; start the demo with `lavis demo --download` to fetch "
                "them, or choose another model"
            )
        own = {name: part for name, part in options.parts.items() if name in _parts_of(spec)}
        return load(spec, device=options.device, precision=options.precision, parts=own or None)

    return load


class _Headers:
    """Sets headers that keep browsers from asking other machines and from guessing types."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = {
                    b"content-security-policy": POLICY.encode(),
                    b"x-content-type-options": b"nosniff",
                    b"referrer-policy": b"no-referrer",
                }
                kept = [(k, v) for k, v in message["headers"] if k.lower() not in added]
                message = {**message, "headers": [*kept, *added.items()]}
            await send(message)

        await self.app(scope, receive, sent)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _socket(host: str, port: int | None) -> socket.socket:
    """A listening socket: on the port that was asked for, else on the first free one from 7860 on.

    Raises:
        OSError: the port is taken, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tries = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    for number in tries:
        try:
            return socket.create_server((host, number), family=family)
        except OSError as e:
            problem = e
    what = (
        f"port {port} of {host}"
        if port is not None
        else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of {host}"
    )
    raise OSError(
        f"{what}: the demo can't listen there ({problem.strerror}); try --port 0, which takes a free one"
    )
