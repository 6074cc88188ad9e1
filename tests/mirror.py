"""A local server in place of the official hosts, so that published code samples run as they were published."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis.common import hub
from lavis.common.registry import registry
from tests import golden

HOSTS = ("storage.googleapis.com", "openaipublic.azureedge.net")


class Mirror:
    """What is served: `folder`/host/path stands for https://host/path."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch

    def path(self, url: str) -> Path:
        """Where the file lies that is served under an official URL; its folder exists."""
        parts = urllib.parse.urlsplit(url)
        assert parts.netloc in HOSTS, url
        path = self.folder / parts.netloc / parts.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """Serve the regenerated weights of a model ("blip_caption.base_coco") for a while, then delete them all.

        Presets that know the checksum of the published file get the stand-in's.
        """
        arch, model_type = name.split(".", 1)
        url = registry.get_model_class(arch).preset(model_type).weights
        path = golden.write_official(name, self.path(url))
        with pytest.MonkeyPatch.context() as patch:
            for cls in {registry.get_model_class(n) for n in registry.list_models()}:
                for key, preset in cls.PRESETS.items():
                    if preset.weights == url and preset.sha256:
                        patch.setitem(
                            cls.PRESETS, key, dataclasses.replace(preset, sha256=checksum(path, "sha256"))
                        )
            yield
        path.unlink()
        copy = hub.place_of(url)
        copy.unlink(missing_ok=True)
        copy.with_name(f"{copy.name}.source.json").unlink(missing_ok=True)


@contextlib.contextmanager
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    """The library looks for everything official here, keeps it in a cache of its own, and works in a folder that
    looks like the original's repository, with `docs/_static/merlion.png`, the picture of the samples."""
    mirror = Mirror(tmp_path_factory.mktemp("official"), pytest.MonkeyPatch())
    handler = functools.partial(_Quiet, directory=str(mirror.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    patch = mirror.patch
    patch.setenv("LAVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("LAVIS_MIRROR", ",".join(f"https://{host}/={here}/{host}/" for host in HOSTS))
    patch.delenv("LAVIS_OFFLINE", raising=False)
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.chdir(tmp_path_factory.mktemp("work"))
    Path("docs/_static").mkdir(parents=True)
    with Image.open(golden.REFERENCE / "processors" / "china.jpg") as photo:
        photo.save("docs/_static/merlion.png")
    try:
        yield mirror
    finally:
        patch.undo()
        server.shutdown()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def checksum(path: Path, kind: str) -> str:
    return hashlib.new(kind, path.read_bytes()).hexdigest()


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run a sample; its names."""
    exec(compile(code, "sample", "exec"), names)  # noqa: S102  the samples are in the tests
    return names
