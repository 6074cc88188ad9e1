"""The browser's server: pages, thumbnails, files with ranges; for people on this machine only.

It answers requests of this machine that name it as such (a page of another site that resolves to 127.0.0.1 does not),
changes nothing, and lets pages load nothing but its own files.
"""

from __future__ import annotations

import html
import http.server
import logging
import re
import socket
import sys
import traceback
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lavis.app.browser import export, listing, numbers, pages, record
from lavis.app.browser.collection import Collection, Split
from lavis.app.browser.media import (
    PLAYED_AS_THEY_ARE,
    PREVIEW,
    SHOWN_AS_THEY_ARE,
    THUMBNAIL,
    Kept,
    encoded,
    media_of,
    moving,
    picture,
)
from lavis.app.browser.pages import Place
from lavis.app.door import is_foreign, is_known, names_of
from lavis.common.page import STYLE
from lavis.datasets.base import UnreadableMediaError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_CHUNK = 1 << 18  # bytes sent at a time
_STATIC = Path(__file__).parent / "static"
_NAMES = names_of(HOST)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; "
    "script-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1f5fa6"/>'
    '<path d="M3 3h4v4H3zM9 3h4v4H9zM3 9h4v4H3zM9 9h4v4H9z" fill="#fff"/></svg>'
)
_SPLIT = re.compile(r"/split/([^/]+)/(.*)")
_RECORD = re.compile(r"(\d{1,12})(?:/(thumb|picture|play|file)/(\d{1,3}))?")


class NotFound(Exception):  # noqa: N818 (an answer, not a failure)
    """There is no such page."""


class Server(http.server.ThreadingHTTPServer):
    """Shows a collection.

    Args:
        collection: what is shown. port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, collection: Collection, port: int = 0) -> None:
        super().__init__((HOST, port), Handler)
        self.collection = collection
        self.kept = Kept()

    @property
    def address(self) -> str:
        """Where it is, as a URL."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # a reader who went away
            super().handle_error(request, client_address)

    @cached_property
    def style(self) -> bytes:
        return (STYLE + (_STATIC / "browse.css").read_text(encoding="utf-8")).encode()

    @cached_property
    def script(self) -> bytes:
        return (_STATIC / "browse.js").read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "lavis"
    sys_version = ""
    timeout = 60  # seconds a connection may be idle
    server: Server

    def setup(self) -> None:
        super().setup()
        # answers are written in two pieces; without this the second waits for the first's acknowledgement
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s " + format, self.address_string(), *args)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if not self._is_ours(url.path):
            self._send(
                403, b"this server answers people on its own machine only\n", "text/plain; charset=utf-8"
            )
            return
        self._begun = False
        try:
            given = dict(urllib.parse.parse_qsl(url.query, max_num_fields=20))
            self._answer(url.path, given)
        except NotFound as e:
            self._fail(404, "Not found", str(e))
        except ValueError as e:
            self._fail(400, "That cannot be shown", str(e))
        except ConnectionError:
            self.close_connection = True
        except Exception:  # noqa: BLE001 (whatever a record does, the server goes on; the traceback is for its terminal)
            traceback.print_exc()
            self.close_connection = True
            self._fail(500, "Something went wrong", "The terminal says what.")

    def _fail(self, status: int, title: str, text: str) -> None:
        """A page that says what is wrong; where an answer has begun, its end stays out, which tells its reader."""
        if self._begun:
            logger.warning("the answer to %s breaks off: %s", self.path, text)
            self.close_connection = True
        else:
            self._page(pages.message(self.server.collection, title, text), status)

    def _is_ours(self, path: str) -> bool:
        """Whether the request names this machine, and is not made by a page of another site."""
        host, headers = self.headers.get("Host", ""), self.headers
        return is_known(host, _NAMES) and not is_foreign(
            self.command, host, headers.get("Origin"), headers.get("Sec-Fetch-Site"), headers.get("Sec-Fetch-Mode"),
            reads_much="/export." in path,
        )  # fmt: skip

    # ------------------------------------------------------------------ which answer
    def _answer(self, path: str, given: dict[str, str]) -> None:
        collection = self.server.collection
        fixed: dict[str, Callable[[], None]] = {
            "/": lambda: self._redirect(pages.at(collection.first)),
            "/card": lambda: self._page(pages.card_page(collection)),
            "/style.css": lambda: self._send(200, self.server.style, "text/css; charset=utf-8", 300),
            "/browse.js": lambda: self._send(200, self.server.script, "text/javascript; charset=utf-8", 300),
            "/icon.svg": lambda: self._send(200, _ICON.encode(), "image/svg+xml", 300),
        }
        if path in fixed:
            fixed[path]()
            return
        match = _SPLIT.fullmatch(path)
        name = urllib.parse.unquote(match[1]) if match else ""
        pending = collection.pending.get(name)
        if pending is not None:
            self._page(pages.pending_page(collection, name, pending), refresh=2)
            return
        if match is None or name not in collection.splits:
            raise NotFound("There is no such page.")
        split = collection.splits[name]
        rest = match[2]
        if rest == "":
            self._page(listing.records_page(collection, split, Place.of(given)))
        elif rest == "statistics":
            content, waiting = numbers.statistics_page(collection, split)
            self._page(content, refresh=2 if waiting else 0)
        elif rest == "export":
            self._page(pages.export_page(collection, split, Place.of(given)))
        elif rest == "go":
            self._go(split, given.get("to", ""))
        elif rest in ("export.jsonl", "export.zip", "export.records"):
            self._export(split, Place.of(given), rest.partition(".")[2], given.get("n", ""))
        else:
            self._record(split, rest, given)

    def _go(self, split: Split, text: str) -> None:
        place = split.jump(text)
        if place is None:
            raise NotFound(
                f"{split.name} has no record with the id {text!r}, nor at this place; it has {len(split):,}."
            )
        self._redirect(pages.at(split.name, str(place)))

    def _record(self, split: Split, rest: str, given: dict[str, str]) -> None:
        match = _RECORD.fullmatch(rest)
        if match is None:
            raise NotFound("There is no such page.")
        position = int(match[1])
        if position >= len(split):
            raise NotFound(f"{split.name} has {len(split):,} records; there is no record {position:,}.")
        if match[2] is None:
            ordinal = given.get("i", "")
            number = int(ordinal) if ordinal.isascii() and ordinal.isdecimal() and len(ordinal) < 12 else None
            self._page(record.record_page(self.server.collection, split, Place.of(given), position, number))
            return
        number = int(match[3])
        media = media_of(split.dataset, split.record(position))
        if number >= len(media):
            raise NotFound(f"Record {position:,} has {len(media)} pictures or clips.")
        if match[2] == "file":
            path = media[number].path
            kind = (
                None if path is None else {**SHOWN_AS_THEY_ARE, **PLAYED_AS_THEY_ARE}.get(path.suffix.lower())
            )
            if path is None or kind is None or not path.is_file():
                raise NotFound("There is no such file, or none that a web browser can show.")
            self._file(path, kind)
        else:
            self._picture(split, position, match[2], number)

    def _picture(self, split: Split, position: int, what: str, number: int) -> None:
        def make() -> tuple[bytes, str]:
            found = split.record(position)
            if what == "play":
                return moving(split.dataset, found, number)
            side = THUMBNAIL if what == "thumb" else PREVIEW
            return encoded(picture(split.dataset, found, number, side))

        key = (split.name, position, what, number)
        try:
            content, kind = self.server.kept.get(key, make) if what != "picture" else make()
        except (UnreadableMediaError, ImportError) as e:
            self._send(200, _placeholder(str(e)), "image/svg+xml")
        else:
            self._send(200, content, kind, 60)

    # ------------------------------------------------------------------ sending
    def _start(self, status: int, kind: str, length: int | None, seconds: int = 0, **more: str) -> None:
        """The headers; an answer of unknown length is sent in chunks."""
        self._begun = True
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", f"private, max-age={seconds}" if seconds else "no-store")
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _send(self, status: int, content: bytes, kind: str, seconds: int = 0, **more: str) -> None:
        self._start(status, kind, len(content), seconds, **more)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _page(self, content: str, status: int = 200, refresh: int = 0) -> None:
        more = {"Refresh": str(refresh)} if refresh else {}
        self._send(status, content.encode("utf-8", "replace"), "text/html; charset=utf-8", 0, **more)

    def _redirect(self, to: str) -> None:
        self._send(303, b"", "text/plain", Location=to)

    def _file(self, path: Path, kind: str) -> None:
        """A file, or the part of it that is asked for."""
        size = path.stat().st_size
        start, end, partial = 0, size, False
        match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", self.headers.get("Range", "").strip())
        if match and (match[1] or match[2]):
            partial = True
            if match[1]:
                start = int(match[1])
                end = min(size, int(match[2]) + 1) if match[2] else size
            else:
                start = max(0, size - int(match[2]))
            if start >= size or start >= end:
                self._send(416, b"", kind, Content_Range=f"bytes */{size}")
                return
        more = {"Accept_Ranges": "bytes"}
        if partial:
            more["Content_Range"] = f"bytes {start}-{end - 1}/{size}"
        self._start(206 if partial else 200, kind, end - start, 60, **more)
        if self.command == "HEAD":
            return
        with path.open("rb") as f:
            f.seek(start)
            left = end - start
            while left and (piece := f.read(min(_CHUNK, left))):
                self.wfile.write(piece)
                left -= len(piece)
            if left:  # the file has become shorter: the reader must not wait for the rest
                self.close_connection = True

    def _export(self, split: Split, place: Place, form: str, first: str) -> None:
        found = split.find(place.filters)
        if first:
            if not (first.isascii() and first.isdecimal() and 0 < int(first) < 10**12):
                raise ValueError(f"n is {first!r}; it should be a whole number, 1 or more")
            found = found[: int(first)]
        why = export.why_not(split) if form != "records" else ""
        if why:
            raise ValueError(f"{split.name} cannot be written as a table for training: {why}")
        names = {
            "zip": f"{split.name}.zip",
            "jsonl": f"{split.name}.jsonl",
            "records": f"{split.name}-records.jsonl",
        }
        safe = re.sub(r"[^\w.\-]", "_", names[form], flags=re.ASCII)
        kind = "application/zip" if form == "zip" else "application/jsonl"
        self._start(200, kind, None, Content_Disposition=f'attachment; filename="{safe}"')
        if self.command == "HEAD":
            return
        pieces: Iterable[bytes] = (
            export.archive(split, found)
            if form == "zip"
            else export.lines(split, found, "own" if form == "jsonl" else form)
        )
        for block in _blocks(pieces):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
        self.wfile.write(b"0\r\n\r\n")


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces joined to about `_CHUNK` bytes; none is empty."""
    held, size = [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


def _placeholder(text: str) -> bytes:
    """A picture that says why there is no picture."""
    words, rows = text.split(), [""]
    for word in words:
        if len(rows[-1]) + len(word) > 26:
            rows.append("")
        rows[-1] = f"{rows[-1]} {word[:26]}".strip()
    shown = rows[:8]
    spans = "".join(
        f'<text x="12" y="{32 + 21 * i}">{html.escape(_printable(row))}</text>' for i, row in enumerate(shown)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 240 190" font-family="sans-serif" font-size="15" '
        f'fill="#7a8694"><rect width="240" height="190" fill="#8883"/>{spans}</svg>'
    ).encode()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
