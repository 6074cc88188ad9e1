"""What the demo's web server lets through: who asks, how much is sent, and how much lies on the disk.

A request is at most as long as a few files of the largest size. Before one that sends something is taken, the oldest
files of earlier visitors are removed until what is on the disk and on its way stays below the limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lavis.app.door import is_foreign, is_known

FILES_AT_ONCE = 4  # files of the largest size that a request may send
_FORM = 1_000_000  # bytes of a request beside its files


class Gate:
    """An ASGI middleware.

    Args:
        app: what answers. names: see `lavis.app.door.is_known`.
        folder: where uploads and what is made of them lie. What is there already stays.
        file_bytes, disk_bytes: of a file, and of all that lie in the folder.
    """

    def __init__(
        self, app: Any, names: Collection[str], folder: Path, file_bytes: int, disk_bytes: int
    ) -> None:
        self.app, self.names, self.folder = app, names, folder
        self.request_bytes = min(FILES_AT_ONCE * file_bytes, disk_bytes) + _FORM
        self.disk_bytes = disk_bytes
        self._kept = frozenset(_files(folder))
        self._coming = 0  # bytes of requests that are under way

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        host, method = headers.get("host", ""), scope.get("method", "POST")  # a WebSocket sends
        refusal = None
        if not is_known(host, self.names):
            refusal = 400, f"this server has not the name {host!r}; see lavis demo --allow-host"
        elif is_foreign(
            method, host, headers.get("origin"), headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        ):
            refusal = 403, "this server does not answer pages of other sites"
        if refusal is None and method in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
        elif refusal is None and scope["type"] == "http":
            await self._take(scope, receive, send, headers.get("content-length"))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal is not None:
            await self._drain(receive)
            await _refuse(send, *refusal)

    async def _take(self, scope: Any, receive: Any, send: Any, announced: str | None) -> None:
        """A request that sends something."""
        length = int(announced) if announced and announced.isascii() and announced.isdigit() else None
        if length is not None and length > self.request_bytes:
            await self._drain(receive)
            await _refuse(send, 413, f"a request may have {self.request_bytes / 1e6:.0f} MB")
            return
        expected = self.request_bytes if length is None else length
        if not self._make_room(expected):
            await self._drain(receive)
            await _refuse(send, 503, "too much is being sent to this server; try again later")
            return
        self._coming += expected
        taken, begun, cut = 0, False, False

        async def received() -> Any:
            nonlocal taken, cut
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.request_bytes:
                cut = True
                return {"type": "http.disconnect"}
            return message

        async def sent(message: Any) -> None:
            nonlocal begun
            if cut and not begun:
                return
            begun = True
            await send(message)

        try:
            await self.app(scope, received, sent)
        except Exception:
            if not cut or begun:
                raise
        finally:
            self._coming -= expected
        if cut and not begun:
            await _refuse(send, 413, f"a request may have {self.request_bytes / 1e6:.0f} MB")

    async def _drain(self, receive: Any) -> None:
        """Read what is not taken, or a reader who is still sending would see a broken connection and no reason."""
        taken, more = 0, True
        while more and taken <= self.request_bytes:
            message = await receive()
            taken += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    def _make_room(self, size: int) -> bool:
        """Remove the oldest files until `size` bytes more are below the limit; whether that could be done."""
        found = _files(self.folder)
        free = self.disk_bytes - self._coming - sum(bytes_ for _, bytes_ in found.values())
        for path in sorted(found.keys() - self._kept, key=lambda p: found[p][0]):
            if free >= size:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                free += found[path][1]
        return free >= size


def _files(folder: Path) -> dict[Path, tuple[float, int]]:
    """The files of a folder, with the time of their last change and their size."""
    out = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            stat = path.lstat()
            if not path.is_dir():
                out[path] = stat.st_mtime, stat.st_size
    return out


async def _refuse(send: Any, status: int, why: str) -> None:
    body = f"{why}\n".encode("utf-8", "backslashreplace")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
