"""`lavis browse` as a command: where it is, how it ends, what it says when something is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lavis.cli.main import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "text": "something"}')
    table = tmp_path / "t.jsonl"
    options = ["--port", "0", "--options", f"train={table}", "val_fraction=0"]
    command = [sys.executable, "-m", "lavis", "browse", "own", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell may start background jobs without it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"something" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "train 1 records" in process.stderr.read()  # type: ignore[union-attr]
    finally:
        process.kill()


def test_the_index_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["n_train=10", "n_val=10", "n_test=10", "n_unseen=10", "n_new_train=10", "n_new_test=10"]
    assert main(["browse", "shapes_caption", "--index-only", "--options", *options]) == 0
    assert "train 10, val 10" in capsys.readouterr().err
    assert len(list((tmp_path / "cache" / "indexes" / "browse").glob("*.sqlite"))) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shapes_captions"], "Did you mean 'shapes_caption'"),
        (["shapes_caption", "--split", "vall"], "no split 'vall'"),
        (["shapes_caption", "--options", "sead=1"], "unknown key 'sead'"),
        (["shapes_caption", "--predictions", "/nowhere"], "no such folder or file"),
        (["shapes_caption", "--vis-path", "/nowhere"], "no such folder"),
        (["own"], "name at least one file"),
        (["coco_caption"], "LAVIS_OFFLINE"),
        (["shapes_caption", "--port", "99999"], "65535"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["browse", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and error.count("\n") == 0


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ["n_val=5"]
        assert main(["browse", "shapes_vqa", "--split", "val", "--port", port, "--options", *options]) == 2
    assert "another with --port" in capsys.readouterr().err


def test_where_indexes_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert main(["browse", "shapes_vqa", "--split", "val", "--options", "n_val=5"]) == 2
    assert str(tmp_path / "cache") in capsys.readouterr().err
    assert os.path.isfile(tmp_path / "cache")  # noqa: PTH113
