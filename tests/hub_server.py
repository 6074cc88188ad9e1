"""A Hugging Face hub on this machine: folders under their ids, by the hub's own addresses."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.served import Handler, Served

COMMIT = "0" * 40


@contextlib.contextmanager
def hub_of(folders: Mapping[str, Path], cache: Path) -> Iterator[Served]:
    """Inside, huggingface_hub finds these folders, {id: folder}, and nothing else; what it fetches goes to `cache`."""
    from huggingface_hub import constants

    with Served() as server, pytest.MonkeyPatch.context() as patch:
        for name, folder in folders.items():
            _serve(server, name, folder)
        here = f"http://127.0.0.1:{server.server_port}"
        patch.setattr(constants, "ENDPOINT", here)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def _serve(server: Served, name: str, folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
    for revision in ("", "/revision/main", f"/revision/{COMMIT}"):
        server.files[f"/api/models/{name}{revision}"] = _json(about)
    tree = [
        {"type": "file", "path": file, "size": path.stat().st_size, "oid": _etag(path)}
        for file, path in files.items()
    ]
    for revision in ("main", COMMIT):
        server.files[f"/api/models/{name}/tree/{revision}"] = _json(tree)
        for file, path in files.items():
            server.files[f"/{name}/resolve/{revision}/{file}"] = _file(path)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def _json(content: object):
    body = json.dumps(content).encode()

    def answer(handler: Handler, seen: int) -> None:
        handler.answer(200, body, Content_Type="application/json")

    return answer


def _file(path: Path):
    body, etag = path.read_bytes(), _etag(path)

    def answer(handler: Handler, seen: int) -> None:
        handler.answer(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT, Accept_Ranges="none")

    return answer
