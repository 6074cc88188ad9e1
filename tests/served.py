"""A web server on this machine that does what a test says: files by path, or functions that misbehave."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

Answer = bytes | Callable[["Handler", int], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Bytes are served with ranges; a function is called with the handler and how often the path was asked for."""

    protocol_version = "HTTP/1.1"
    server: Served

    def log_message(self, *_: object) -> None:
        return None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        with self.server.guard:
            if self.command == "GET":
                self.server.asked[path] += 1
            seen = self.server.asked[path]
            self.server.agents.add(self.headers.get("User-Agent", ""))
        answer = self.server.files.get(path)
        if answer is None:
            self.answer(404, b"not here")
        elif isinstance(answer, bytes):
            self.file(answer)
        else:
            answer(self, seen)

    def answer(self, status: int, body: bytes, sent: int | None = None, **headers: str) -> None:
        """An answer whose body may break off after `sent` bytes."""
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if sent is None else body[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True

    def file(self, content: bytes, sent: int | None = None) -> None:
        """A file, from where the Range header says, breaking off after `sent` bytes."""
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start and start >= len(content):
            self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
        elif start:
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], sent, Content_Range=place, ETag='"v1"')
        else:
            self.answer(200, content, sent, ETag='"v1"')


class Served(http.server.ThreadingHTTPServer):
    """`files`: answers by path. `asked`: how often each path was asked for (HEAD not counted)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.guard = threading.Lock()
        self.stop = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, *_: Any) -> None:
        return None  # clients that go away are part of the tests

    def __enter__(self) -> Served:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()
