"""One URL into one file: continued where it broke off, retried, never from https down to http.

`download(url, part)` brings the whole content into `part`. The version it was begun with (ETag or date) is
noted beside it in `<part>.json`, so that a later process can continue it and never joins two versions.
"""

from __future__ import annotations

import http.client
import json
import logging
import shutil
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
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, has_checksum, progress)
            return
        except (_BrokenOffError, http.client.HTTPException, ConnectionError, TimeoutError) as e:
            reason: Exception = e
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


def _transfer(url: str, part: Path, has_checksum: bool, progress: Progress) -> None:
    """One request. Raises _BrokenOffError, or what urllib raises, if the content is not complete."""
    offset, headers = 0, dict(_HEADERS)
    validator = _validator(part, url)
    if part.exists() and (validator or has_checksum):
        offset = part.stat().st_size
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:  # the rest is only sent if the server's file is still the same
            headers["If-Range"] = validator
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
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
        total_size = _expected_size(response, offset)
        if response.status != 206 or not _continues(response, offset):
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


# ---------------------------------------------------------------- without a file
def size_of(url: str, timeout_s: float = 10.0) -> int | None:
    """The size in bytes that a server gives for a URL; None if it gives none, refuses or is silent."""
    request = urllib.request.Request(url, method="HEAD", headers=dict(_HEADERS))
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=timeout_s) as response:
            length = response.headers.get("Content-Length", "")
            page = response.headers.get_content_type() == "text/html"
            return int(length) if length.isdigit() and not page else None
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
        deadline_s: seconds for all of it, for servers that drip.

    Raises:
        TemporaryError: it may work later.
        OSError: the server refuses, or sends too much.
        ValueError: no web address.
    """
    end = time.monotonic() + deadline_s
    request = urllib.request.Request(_quoted(url), headers=dict(_HEADERS))
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=timeout_s) as response:
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and int(length) > largest:
                raise OSError(f"{int(length)} bytes, more than {largest}")
            data = bytearray()
            while chunk := response.read1(1 << 16):  # returns what is there: a drip is noticed
                data += chunk
                if len(data) > largest:
                    raise OSError(f"more than {largest} bytes")
                if time.monotonic() > end:
                    raise TemporaryError(f"not finished after {deadline_s:g} s")
            if length.isdigit() and len(data) < int(length):
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


def _continues(response: Any, offset: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def _expected_size(response: Any, offset: int) -> int | None:
    """Size of the whole file in bytes, as far as the server tells."""
    if response.status == 206 and _continues(response, offset):
        total = response.headers["Content-Range"].rpartition("/")[2]
        if total.isdigit():
            return int(total)
    else:
        offset = 0
    length = response.headers.get("Content-Length", "")
    return int(length) + offset if length.isdigit() else None


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
