"""Files from elsewhere: paths, URLs and Hugging Face ids become local paths, downloaded once and verified.

    fetch("~/weights/model.pth")                          the path itself
    fetch("https://host/model.pth", sha256="…")           downloaded to the cache
    fetch("org/name"), fetch("org/name@v1:model.safetensors")   through huggingface_hub and its cache

A download goes to `<name>.part`, continues where it broke off, is checked (length, sha256 or md5) and only
then takes its name, so a file that exists is complete. What was fetched, and its sha256, is recorded beside
it in `<name>.source.json` and held against the file later.

Environment: LAVIS_CACHE (default ~/.cache/lavis); LAVIS_OFFLINE=1 or HF_HUB_OFFLINE=1 forbid the network;
LAVIS_MIRROR="https://official/=http://mirror/path/,…" replaces prefixes of URLs; the usual proxy variables,
HF_ENDPOINT and HF_HOME work as elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from lavis.common import files, transfer
from lavis.common.files import write_json

logger = logging.getLogger(__name__)

# The original library's public bucket: its checkpoints and annotation files.
GS = "https://storage.googleapis.com/sfr-vision-language-research/"

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*)(?:@(?P<revision>[\w.\-/]+))?(?::(?P<file>[^:\\]+))?"
)
# "folder/model.pth" is a path that does not exist rather than a repository of that name
_FILE_SUFFIXES = frozenset([".pth", ".pt", ".bin", ".safetensors", ".json", ".yaml", ".yml", ".txt", ".zip"])


# ---------------------------------------------------------------- settings
def cache_root() -> Path:
    """The folder that downloads go to: LAVIS_CACHE, or ~/.cache/lavis. It need not exist yet."""
    return Path(os.environ.get("LAVIS_CACHE") or "~/.cache/lavis").expanduser().absolute()


def under_cache_root(storage: str | Path) -> Path:
    """An absolute path as it is, else a path that exists from the current folder, else under the cache."""
    path = Path(storage).expanduser()
    if path.is_absolute() or path.exists():
        return path
    return Path(cache_root()) / path


def is_offline() -> bool:
    """Whether the environment forbids the network (LAVIS_OFFLINE or HF_HUB_OFFLINE)."""
    yes = ("1", "true", "yes", "on")
    return any(
        os.environ.get(name, "").strip().lower() in yes for name in ("LAVIS_OFFLINE", "HF_HUB_OFFLINE")
    )


def mirrored(url: str) -> str:
    """The URL with the longest matching prefix of LAVIS_MIRROR replaced.

    Raises:
        ValueError: LAVIS_MIRROR is malformed.
    """
    best, target = "", ""
    for item in os.environ.get("LAVIS_MIRROR", "").split(","):
        if not item.strip():
            continue
        prefix, equals, replacement = item.strip().partition("=")
        if not equals or "://" not in prefix or "://" not in replacement:
            raise ValueError(
                f"LAVIS_MIRROR: {item.strip()!r} is not of the form https://official.prefix/=https://mirror/path/"
            )
        if url.startswith(prefix) and len(prefix) > len(best):
            best, target = prefix, replacement
    return target + url[len(best) :] if best else url


def is_hub_id(source: str) -> bool:
    """Whether a text has the form of a Hugging Face id: `org/name[@revision][:file]`."""
    return _HUB_ID.fullmatch(source) is not None


# ---------------------------------------------------------------- the one function
def fetch(
    source: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    to: str | Path | None = None,
    progress: transfer.Progress = True,
) -> Path:
    """A local path for a path, a URL or a Hugging Face id, downloading at most once.

    Args:
        source: a local file or folder, which is returned as it is; an http, https or file URL; or
            `org/name[@revision][:file]` on the Hugging Face hub, a folder without `:file`.
        sha256: expected checksum in hexadecimal. Without one the first download's is recorded and
            verified from then on.
        md5: expected checksum, where only that is published.
        to: where a URL's file is to lie: an absolute path, or one relative to `cache_root()`. By default
            it gets a name in the cache that holds a hash of the URL, so equal base names don't collide.
        progress: show a progress bar in a terminal; or a function that is called with the bytes fetched so
            far and the size if it is known, and may raise to stop (the download can then be continued).

    Returns:
        An absolute path for a download, the path as given for a local one.

    Raises:
        FileNotFoundError: no such path, or the server says that there is no such file.
        OSError: the network is forbidden or fails, the disk is full, or the content is wrong.
        ValueError: the source is none of the three kinds, or a setting is malformed.
    """
    text = str(source)
    wanted = {k: v.strip().lower() for k, v in (("sha256", sha256), ("md5", md5)) if v}
    path = Path(text).expanduser()
    if "://" not in text:
        if path.exists():
            if path.is_file():
                _check(path, wanted, str(path))
            return path
        match = _HUB_ID.fullmatch(text)
        if match is not None and (match["file"] or match["revision"] or path.suffix not in _FILE_SUFFIXES):
            if to is not None:
                raise ValueError(
                    f"{text}: files of the Hugging Face hub stay in its cache; leave out to={to!r}"
                )
            return _fetch_from_hub(text, match["repo"], match["revision"], match["file"], wanted)
        raise FileNotFoundError(
            f"there is no file or folder {text!r}; expected a path that exists, an http(s) URL or a "
            "Hugging Face id such as org/name or org/name@revision:file"
        )
    scheme = text.split("://", 1)[0].lower()
    if scheme not in ("http", "https", "file"):
        raise ValueError(f"{text}: cannot fetch {scheme} URLs; expected http, https or file")
    return _fetch_url(text, mirrored(text), wanted, to, progress)


def place_of(url: str, to: str | Path | None = None) -> Path:
    """Where `fetch` puts (or finds) the file of a URL."""
    if to is not None:
        return cache_root() / Path(to).expanduser()  # an absolute `to` stands for itself
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "file"
    name = re.sub(r"[^\w.\-]", "_", name)[-100:]
    stem, dot, suffix = name.partition(".")
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_root() / "downloads" / f"{stem}-{digest}{dot}{suffix}"


def forget(place: Path) -> None:
    """Delete a fetched file and what is recorded about it."""
    place.unlink(missing_ok=True)
    _Record.path(place).unlink(missing_ok=True)


# ---------------------------------------------------------------- checksums and records
@dataclass(frozen=True)
class _Record:
    """What lies beside a fetched file as `<name>.source.json`."""

    url: str
    digests: dict[str, str]  # sha256, and md5 where it was asked for
    size: int  # bytes
    modified_ns: int  # of our copy: the same size and time need no new checksum

    @staticmethod
    def path(file: Path) -> Path:
        return file.with_name(file.name + ".source.json")

    @classmethod
    def read(cls, file: Path) -> _Record | None:
        try:
            content = json.loads(cls.path(file).read_text(encoding="utf-8"))
            return cls(**{k: content[k] for k in ("url", "digests", "size", "modified_ns")})
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None

    @classmethod
    def write(cls, file: Path, url: str, digests: dict[str, str]) -> None:
        state = file.stat()
        write_json(cls.path(file), asdict(cls(url, digests, state.st_size, state.st_mtime_ns)))


def recorded_digests(file: Path) -> dict[str, str]:
    """The checksums that a file had when `fetch` brought it; {} for other files."""
    record = _Record.read(file)
    return {} if record is None else dict(record.digests)


def digest(path: Path, kind: str) -> str:
    """A file's checksum in hexadecimal; `kind` is "sha256" or "md5"."""
    with path.open("rb") as f:
        value = hashlib.new(kind, usedforsecurity=False)
        while chunk := f.read(transfer.CHUNK):
            value.update(chunk)
    return value.hexdigest()


def _mismatch(path: Path, wanted: dict[str, str]) -> str | None:
    for kind, expected in wanted.items():
        found = digest(path, kind)
        if found != expected:
            return f"its {kind} is {found}, expected {expected}"
    return None


def _check(path: Path, wanted: dict[str, str], what: str) -> None:
    problem = _mismatch(path, wanted)
    if problem is not None:
        raise OSError(f"{what} is not the expected file: {problem}")


def _usable(place: Path, wanted: dict[str, str]) -> bool:
    """Whether the file at `place` can be used; False if it is missing, or a damaged download of ours."""
    if not place.is_file():
        return False
    record = _Record.read(place)
    if record is None:  # put there by hand: not ours to replace
        _check(place, wanted, str(place))
        return True
    state = place.stat()
    untouched = (state.st_size, state.st_mtime_ns) == (record.size, record.modified_ns)
    if untouched and wanted.items() <= record.digests.items():
        return True
    problem = _mismatch(place, wanted or record.digests)
    if problem is None:
        _Record.write(place, record.url, {**record.digests, **wanted})
        return True
    if is_offline():
        raise OSError(
            f"{place} is damaged ({problem}), and being offline forbids to fetch {record.url} again"
        )
    logger.warning("%s is damaged (%s); fetching it again", place, problem)
    return False


# ---------------------------------------------------------------- URLs
def _fetch_url(
    url: str, actual: str, wanted: dict[str, str], to: str | Path | None, progress: transfer.Progress
) -> Path:
    if actual.startswith("file:"):
        local = Path(urllib.request.url2pathname(urllib.parse.urlsplit(actual).path))
        if not local.is_file():
            raise FileNotFoundError(f"{actual}: there is no file {local}")
        if to is None:
            _check(local, wanted, actual)
            return local
    place = place_of(url, to)
    if _usable(place, wanted):
        return place
    copied = actual.startswith("file:")
    if is_offline() and not copied:
        raise OSError(
            f"{url} is not in the cache, and LAVIS_OFFLINE or HF_HUB_OFFLINE forbids the network; "
            f"fetch it on a machine with network and put it at {place}"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(url, place):
        if _usable(place, wanted):  # another process was faster
            return place
        record = _Record.read(place)
        if not wanted and record is not None:
            wanted = record.digests  # of the first download
        part = place.with_name(place.name + ".part")
        if copied:
            shutil.copyfile(local, part)
        else:
            transfer.download(actual, part, bool(wanted), progress)
        problem = _mismatch(part, wanted)
        if problem is not None and not copied:
            logger.warning("%s: %s; fetching it once more from the start", actual, problem)
            transfer.discard(part)
            transfer.download(actual, part, False, progress)
            problem = _mismatch(part, wanted)
        if problem is not None:
            transfer.discard(part)
            known = f", or delete {_Record.path(place)} to accept this one" if record is not None else ""
            raise OSError(
                f"{actual} is not the expected file: {problem}. It was changed at its source or on the way; "
                f"get the right one elsewhere and give its path, or set LAVIS_MIRROR{known}"
            )
        transfer.settle(part)
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        digests = {**wanted} if "sha256" in wanted else {**wanted, "sha256": digest(part, "sha256")}
        part.replace(place)
        _Record.write(place, url, digests)
    return place


@contextlib.contextmanager
def locked(url: str, place: Path) -> Iterator[None]:
    """Hold the lock of a place that is being filled; the system frees it when a process dies.

    Args:
        url: what is fetched, for the message of a process that has to wait.
        place: the file or folder; it need not exist.
    """
    name = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    lock = cache_root() / "locks" / f"{name}.lock"
    waits = partial(logger.info, "another process is fetching %s; waiting for it", url)
    with files.locked(lock, on_wait=waits):
        yield


# ---------------------------------------------------------------- Hugging Face
def _needless(names: Sequence[str]) -> list[str]:
    """Those files of a repository that hold its weights once more, for other libraries or in older formats."""
    others: tuple[str, ...] = (".h5", ".msgpack", ".onnx", ".tflite", ".ot")
    if any(Path(name).name.startswith("model") and name.endswith(".safetensors") for name in names):
        others += (".bin", ".pt", ".pth")
    return [name for name in names if name.endswith(others)]


def _fetch_from_hub(
    source: str, repo: str, revision: str | None, file: str | None, wanted: dict[str, str]
) -> Path:
    import huggingface_hub
    import huggingface_hub.errors as errors

    names = (
        "HfHubHTTPError",
        "HTTPError",
        "LocalEntryNotFoundError",
        "EntryNotFoundError",
        "HFValidationError",
    )
    failures = tuple({getattr(errors, n, OSError) for n in names} | {OSError})
    offline = is_offline()
    try:
        if file is not None:
            path = huggingface_hub.hf_hub_download(repo, file, revision=revision, local_files_only=offline)
        else:
            needless = (
                [] if offline else _needless(huggingface_hub.HfApi().list_repo_files(repo, revision=revision))
            )
            path = huggingface_hub.snapshot_download(
                repo, revision=revision, local_files_only=offline, ignore_patterns=needless
            )
    except failures as e:
        reason = str(e).strip().split("\n")[0] or type(e).__name__
        if offline:
            reason = "it is not in the cache, and LAVIS_OFFLINE or HF_HUB_OFFLINE forbids the network"
        raise OSError(
            f"there is no local path {source!r}, and the Hugging Face hub does not give it: {reason}. "
            "Check the name, HF_ENDPOINT for a mirror and HF_TOKEN for gated files, or give a local path"
        ) from e
    result = Path(path)
    if file is not None:
        _check(result, wanted, source)
    return result
