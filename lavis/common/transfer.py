"""One URL into one file: continued where it broke off, retried, never from https down to http.

`download(url, part)` brings the whole content into `part`. The version it was begun with (ETag or date) is
noted beside it in `<part>.json`, so that a later process can continue it and never joins two versions.
"""

from __future__ import annotations

import functools
import http.client
import io
import json
import logging
import math
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis import __version__
from lavis.common.files import write_json

logger = logging.getLogger(__name__)

# whether to show a bar, or who is told (bytes so far, bytes in all if known)
Progress = bool | Callable[[int, int | None], None]

TIMEOUT_S = 30.0  # silence on a connection
HEADERS_S = 60.0  # for all headers of an answer, redirects included: a server may drip them
ATTEMPTS = 6  # in a row without a single new byte
BACKOFF_S = 0.5  # doubled after each of them
LONGEST_BACKOFF_S = 16.0
CHUNK = 1 << 20  # bytes
_HEADERS = {"User-Agent": f"openlavis/{__version__}", "Accept-Encoding": "identity"}
_RETRIED = frozenset([408, 425, 429, 500, 502, 503, 504])


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def settle(part: Path) -> None:
    """Drop the notes of a download that is complete."""
    _notes(part).unlink(missing_ok=True)


def discard(part: Path) -> None:
    """Forget an unfinished download."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, 308 included, but never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise OSError(f"{req.full_url} redirects to {newurl}, which is not encrypted; refused")
        if not newurl.startswith(("http://", "https://")):
            raise OSError(f"{req.full_url} redirects to {newurl}, which is no web address; refused")
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


class _BrokenOffError(Exception):
    """A transfer that may be continued."""


class _OtherRangeError(Exception):
    """The server sends another part than the one that was asked for; the whole may still be had."""


# ---------------------------------------------------------------- a limit for all of an answer
class _Clock:
    """When an answer has to be there. `end`: by `time.monotonic`; infinity: no limit."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds.

        Raises:
            TimeoutError: none.
        """
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not finished after {self.seconds:g} s")
        return left

    def stop(self) -> None:
        self.end = math.inf


class _Timed(io.RawIOBase):
    """What comes over a connection, until the clock runs out: every read waits for no longer than that."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, clock: _Clock) -> None:
        self._raw, self._connection, self._clock = raw, connection, clock
        self._silence = connection.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._clock.left()
        silence = self._silence
        if math.isfinite(left):
            self._connection.settimeout(left if silence is None else min(left, silence))
        else:
            self._connection.settimeout(silence)
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            self._clock.left()  # says so if it was the clock
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose headers and body are read through `_Timed`."""

    def __init__(self, clock: _Clock, connection: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_Timed(raw, connection, clock))


class _TimedHTTP(urllib.request.HTTPHandler):
    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_connections(http.client.HTTPConnection, self._clock), req)


class _TimedHTTPS(urllib.request.HTTPSHandler):
    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def https_open(self, req: urllib.request.Request) -> Any:
        context = getattr(self, "_context", None)  # None: http.client makes the default one
        return self.do_open(_connections(http.client.HTTPSConnection, self._clock), req, context=context)


def _connections(kind: type[http.client.HTTPConnection], clock: _Clock) -> Any:
    """Makes connections whose answers have to come before the clock runs out."""

    def connect(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        kwargs["timeout"] = min(kwargs.get("timeout") or math.inf, clock.left())
        connection = kind(*args, **kwargs)
        connection.response_class = functools.partial(_Response, clock)  # type: ignore[assignment]
        return connection

    return connect


def _open(request: urllib.request.Request, timeout_s: float, clock: _Clock) -> Any:
    """The answer to a request, its headers read.

    Args:
        timeout_s: silence on the connection, in seconds. clock: for the headers, and for the body unless it is stopped.
    """
    opener = urllib.request.build_opener(_Redirects, _TimedHTTP(clock), _TimedHTTPS(clock))
    return opener.open(request, timeout=timeout_s)


def download(url: str, part: Path, has_checksum: bool, progress: Progress) -> None:
    """Bring the whole content of a URL into `part`, continuing what is there.

    Args:
        url: http or https. part: the file to write.
        has_checksum: the content will be checked, so a beginning of unknown version may be continued.
        progress: show a progress bar in a terminal, or a function that is told; what it raises ends the download,
            which can be continued later.

    Raises:
        FileNotFoundError: the server says that there is no such file.
        OSError: it refuses, cannot be reached, sends something else, or the disk is full.
    """
    reason: Exception
    failures, whole = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, has_checksum, progress, whole)
            return
        except _OtherRangeError as e:
            if whole:
                raise OSError(f"{url}: {e}; the server sends a part where the whole was asked for") from e
            whole, reason = True, e
        except (_BrokenOffError, http.client.HTTPException, ConnectionError, TimeoutError) as e:
            reason = e
        except urllib.error.HTTPError as e:
            e.close()
            if e.code not in _RETRIED:
                raise _refusal(url, e) from e
            reason = e
        except urllib.error.URLError as e:
            reason = e
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise OSError(
                f"{url} could not be fetched after {ATTEMPTS} attempts: {_short(reason)}. Check network and "
                "proxy, set LAVIS_MIRROR to a mirror, or fetch the file by other means and give its path"
            ) from reason
        pause = 0.0 if failures == 0 else min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (failures - 1))
        logger.warning("%s: %s after %d bytes; trying again", url, _short(reason), after)
        time.sleep(pause)


def _short(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code} ({error.reason})"
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(reason).__name__


def _refusal(url: str, error: urllib.error.HTTPError) -> OSError:
    kind = FileNotFoundError if error.code in (404, 410) else OSError
    why = {
        401: "it asks for a login",
        403: "it refuses access",
        404: "the file is not there",
        410: "it is gone",
    }
    return kind(
        f"{url}: HTTP status {error.code}, {why.get(error.code, error.reason)}. Set LAVIS_MIRROR to a mirror "
        "that has the file, or fetch it by other means and give its local path instead of the URL"
    )


def _transfer(url: str, part: Path, has_checksum: bool, progress: Progress, whole: bool) -> None:
    """One request, for the whole or for what is missing.

    Raises:
        _BrokenOffError, or what urllib raises: the content is not complete.
        _OtherRangeError: the server sends another part than was asked for.
    """
    offset, headers = 0, dict(_HEADERS)
    validator = _validator(part, url)
    if not whole and part.exists() and (validator or has_checksum):
        offset = part.stat().st_size
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:  # the rest is only sent if the server's file is still the same
            headers["If-Range"] = validator
    clock = _Clock(HEADERS_S)
    try:
        response = _open(urllib.request.Request(url, headers=headers), TIMEOUT_S, clock)
    except urllib.error.HTTPError as e:
        if e.code != 416:
            raise
        e.close()
        total = (e.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(offset):
            return  # the part was complete already
        discard(part)
        raise _BrokenOffError("the server's file is shorter than what was fetched before") from e
    with response:
        clock.stop()  # large files take their time
        _check_status(url, response, offset, validator)
        total_size = _expected_size(response)
        if response.status == 200:
            offset = 0  # the server sends everything (again)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise OSError(f"{url}: the server sends it compressed although it was asked not to")
        page = response.headers.get_content_type() == "text/html"
        if page and Path(urllib.parse.urlsplit(url).path).suffix.lower() not in ("", ".html", ".htm"):
            raise OSError(
                f"{url}: the server answers with a web page instead of the file (a login or an error page?); "
                "set LAVIS_MIRROR, or fetch it by other means and give its path"
            )
        note = response.headers.get("ETag", "")
        note = note if note and not note.startswith("W/") else response.headers.get("Last-Modified", "")
        write_json(_notes(part), {"url": url, "validator": note})
        if total_size is not None:
            _need_room(part, total_size - offset, url)
        with part.open("r+b" if offset else "wb") as f, _bar(url, offset, total_size, progress) as bar:
            f.seek(offset)
            while chunk := response.read(CHUNK):
                f.write(chunk)
                bar.update(len(chunk))
            size = f.tell()
            f.truncate()
    if total_size is not None and size < total_size:
        raise _BrokenOffError(f"the connection broke off at {size} of {total_size} bytes")
    if total_size is not None and size > total_size:
        discard(part)
        raise OSError(f"{url}: the server sends {size} bytes and says that they are {total_size}")


def _check_status(url: str, response: Any, offset: int, validator: str) -> None:
    """Let only the whole file pass, and the part that was asked for.

    Raises:
        _OtherRangeError, _BrokenOffError: see `_transfer`.
        OSError: an answer that is no file.
    """
    if response.status == 206:
        start, _, _ = _range_of(response)
        if start is None or start != offset or not offset:
            raise _OtherRangeError(
                f"the range is {response.headers.get('Content-Range', 'not named')!r}, and bytes from {offset} on were "
                "asked for"
            )
        mark = response.headers.get("ETag" if validator.startswith('"') else "Last-Modified")
        if validator and mark and mark != validator:
            raise _OtherRangeError("the rest that the server sends is of another version of the file")
    elif response.status == 202:
        raise _BrokenOffError("HTTP status 202: the server does not have it ready yet")
    elif response.status != 200:
        raise OSError(
            f"{url}: HTTP status {response.status} ({response.reason}) instead of the file; set LAVIS_MIRROR, or "
            "fetch it by other means and give its path"
        )


# ---------------------------------------------------------------- without a file
def size_of(url: str, timeout_s: float = 10.0) -> int | None:
    """The size in bytes that a server gives for a URL; None if it gives none, refuses or is silent."""
    request = urllib.request.Request(url, method="HEAD", headers=dict(_HEADERS))
    try:
        with _open(request, timeout_s, _Clock(timeout_s)) as response:
            length = response.headers.get("Content-Length", "")
            page = response.headers.get_content_type() == "text/html"
            return int(length) if response.status == 200 and _is_number(length) and not page else None
    except (OSError, http.client.HTTPException):  # what is wrong will be said when it is fetched
        return None


@dataclass(frozen=True)
class Reply:
    """What a server sent: content, the address it came from after redirects, and its headers."""

    data: bytes
    url: str
    headers: Any


class TemporaryError(OSError):
    """A request that may succeed later. `after_s`: how long the server asks to wait, 0 if it doesn't say."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


def read(url: str, largest: int, timeout_s: float, deadline_s: float) -> Reply:
    """One request for something small, into memory.

    Args:
        url: http or https.
        largest: bytes; more are refused.
        timeout_s: silence on the connection, in seconds.
        deadline_s: seconds for all of it, headers and redirects included, for servers that drip.

    Raises:
        TemporaryError: it may work later.
        OSError: the server refuses, or sends too much.
        ValueError: no web address.
    """
    request = urllib.request.Request(_quoted(url), headers=dict(_HEADERS))
    clock = _Clock(deadline_s)
    try:
        with _open(request, timeout_s, clock) as response:
            if response.status == 202:
                raise TemporaryError("HTTP status 202")
            if response.status != 200:
                raise OSError(f"HTTP status {response.status}")
            length = response.headers.get("Content-Length", "")
            if _is_number(length) and int(length) > largest:
                raise OSError(f"{int(length)} bytes, more than {largest}")
            data = bytearray()
            while chunk := response.read1(1 << 16):  # returns what is there: a drip is noticed
                data += chunk
                if len(data) > largest:
                    raise OSError(f"more than {largest} bytes")
                clock.left()
            if _is_number(length) and len(data) < int(length):
                raise TemporaryError(f"broke off at {len(data)} of {length} bytes")
            return Reply(bytes(data), response.geturl(), response.headers)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code not in _RETRIED:
            raise OSError(f"HTTP status {e.code}") from e
        after = e.headers.get("Retry-After", "")
        raise TemporaryError(f"HTTP status {e.code}", float(after) if after.isdigit() else 0.0) from e
    except (http.client.InvalidURL, UnicodeError) as e:
        raise ValueError(f"no valid address ({e})") from e
    except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as e:
        if isinstance(e, urllib.error.URLError) and type(e.reason) is OSError:
            raise OSError(str(e.reason)) from e  # a redirect that was refused
        raise TemporaryError(_short(e)) from e


def _quoted(url: str) -> str:
    """An address as it goes over the wire; lists have many with blanks and letters of any script."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    except (ValueError, UnicodeError) as e:
        raise ValueError(f"no valid address ({e})") from e
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise ValueError("no http or https address")
    path, query = (urllib.parse.quote(p, safe="%/:=&?~+!$,;'@()*[]") for p in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _validator(part: Path, url: str) -> str:
    """The mark of the version that `part` was begun with, "" if it is not known."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
        return str(notes["validator"]) if notes["url"] == url else ""
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return ""


def _range_of(response: Any) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and size of the whole, as far as Content-Range names them."""
    text = str(response.headers.get("Content-Range", ""))
    found = re.fullmatch(r"\s*bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\s*", text, re.ASCII)
    if found is None:
        return None, None, None
    first, last, total = int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])
    return (first, last, total) if first <= last and (total is None or last < total) else (None, None, None)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _expected_size(response: Any) -> int | None:
    """Size of the whole file in bytes, as far as the server tells."""
    length = response.headers.get("Content-Length", "")
    if response.status == 206:
        _, last, total = _range_of(response)
        return total if total is not None or last is None else last + 1
    return int(length) if _is_number(length) else None


def _need_room(part: Path, size: int, url: str) -> None:
    free = shutil.disk_usage(part.parent).free
    if size > free:
        raise OSError(
            f"{url} needs {size / 1e9:.2f} GB more and {part.parent} has {free / 1e9:.2f} GB free; "
            "make room, or set LAVIS_CACHE to another folder"
        )


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: int) -> None:
        return None


class _Told:
    """Passes on how far a download is."""

    def __init__(self, tell: Callable[[int, int | None], None], offset: int, total: int | None) -> None:
        self._tell, self._done, self._total = tell, offset, total

    def __enter__(self) -> _Told:
        self._tell(self._done, self._total)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: int) -> None:
        self._done += n
        self._tell(self._done, self._total)


def _bar(url: str, offset: int, total: int | None, progress: Progress) -> Any:
    if not isinstance(progress, bool):
        return _Told(progress, offset, total)
    name = Path(urllib.parse.urlsplit(url).path).name or url
    size = f" ({total / 1e6:.1f} MB)" if total else ""
    if not progress or not sys.stderr.isatty():
        logger.info("fetching %s%s", url, size)
        return _NoBar()
    from tqdm import tqdm

    return tqdm(desc=name, initial=offset, total=total, unit="B", unit_scale=True, file=sys.stderr)
