"""Faults of the machine and of other people's code: one line each, and nothing half-written."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.cli import main as command
from lavis.common import files
from lavis.common.files import append_jsonl, existing_folder, read_jsonl, replace_folder
from lavis.common.registry import Registry
from lavis.runners import checkpoint
from tests.toy_training import ToyModel, ToyTask, run

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------------------------ a full disk
def test_a_line_that_finds_no_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.txt"
    append_jsonl(path, {"i": 0})
    before = path.read_bytes()
    usual = Path.open

    class Short:
        """A disk with room for three more bytes."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: Any) -> int:
            if len(data) < 10:
                raise FULL
            return int(self.file.write(data[:3]))

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Short(usual(self, *a, **k)))
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        append_jsonl(path, {"i": 1})
    monkeypatch.undo()
    assert path.read_bytes() == before
    append_jsonl(path, {"i": 2})
    assert [r["i"] for r in read_jsonl(path)] == [0, 2]


@pytest.mark.parametrize("which", ["weights", "state"])
def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    from safetensors import SafetensorError

    place = tmp_path / "checkpoint_last"
    checkpoint.save(place, ToyModel(seed=1), {"x": 1})
    before = {p.name: p.read_bytes() for p in place.iterdir()}

    def weights(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def state(content: Any, path: Path) -> None:
        path.write_bytes(b"a half")
        raise RuntimeError(
            "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"
        )

    if which == "weights":
        monkeypatch.setattr(checkpoint, "save_file", weights)
    else:
        monkeypatch.setattr(torch, "save", state)
    with pytest.raises(
        OSError, match=r"checkpoint_last cannot be written: No space left on device.*is kept"
    ) as e:
        checkpoint.save(place, ToyModel(seed=2), {"x": 2})
    assert e.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_last"]
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before


def test_a_run_on_a_full_disk_goes_on_from_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(output_dir=tmp_path, job_id="whole")
    usual, calls = torch.save, []

    def full(content: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        usual(content, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot be written"):
        run(output_dir=tmp_path, job_id="a", save_every_iters=5)
    monkeypatch.undo()
    assert not list((tmp_path / "a").glob("*.new"))
    rest = run(output_dir=tmp_path, job_id="a", save_every_iters=5, resume_ckpt_path="auto")
    assert rest.metrics == whole.metrics


# ------------------------------------------------------------------------------------------ folders of several writers
def test_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    place, together = tmp_path / "model", threading.Barrier(4)

    def write(number: int) -> None:
        def fill(folder: Path) -> None:
            for name in "abc":
                (folder / name).write_text(str(number))
                together.wait(30)

        replace_folder(place, fill)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({(place / name).read_text() for name in "abc"}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    place = tmp_path / "model"

    def fill(folder: Path) -> None:
        (folder / "a").write_text("1")

    pid = os.fork()
    if pid == 0:
        replace_folder(place, lambda folder: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(pid, 0)
    assert len(list(tmp_path.glob("model.*.new"))) == 1
    living = tmp_path / f"model.{files._HOST}-{os.getppid()}-0123abcd.new"
    other = tmp_path / "model.backup.old"
    for folder in (living, other):
        folder.mkdir()
    replace_folder(place, fill)
    assert {p.name for p in tmp_path.iterdir()} == {"model", living.name, other.name}


def test_a_swap_that_an_earlier_version_was_killed_in_is_finished(tmp_path: Path) -> None:
    for name in ("model.old", "model.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    assert existing_folder(tmp_path / "model") == tmp_path / "model"
    assert (tmp_path / "model" / "a").read_text() == "model.new"


# ------------------------------------------------------------------------------------------ memory
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                     "tried to allocate 160000000000 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)  # fmt: skip
def test_no_memory_is_one_line_that_names_the_batch(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr("lavis.cli.runs._train", fail)
    assert command.main(["train", "blip/caption_shapes"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("lavis: out of memory") and "--batch-size" in said and "\n" not in said


def test_a_loaders_worker_that_was_killed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr("lavis.cli.runs._train", fail)
    assert command.main(["train", "blip/caption_shapes"]) == 2
    assert "run.num_workers" in capsys.readouterr().err


def test_programming_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("lavis.cli.runs._train", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        command.main(["train", "blip/caption_shapes"])


# ------------------------------------------------------------------------------------------ plugins
@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a plugin with the given source."""

    def install(source: str, value: str = "broken_plugin") -> Registry:
        (tmp_path / "broken_plugin.py").write_text(source)
        entry = importlib.metadata.EntryPoint("mine", value, "lavis.plugins")
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
        monkeypatch.syspath_prepend(str(tmp_path))
        return Registry()

    return install


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import os\n1 / 0\n", r"ZeroDivisionError at .*broken_plugin\.py, line 2: division by zero"),
        ("def f(:\n", r"SyntaxError at .*broken_plugin\.py, line 1"),
        ("import there_is_no_such_module\n", r"ModuleNotFoundError at .*broken_plugin\.py, line 1"),
        ("raise SystemExit(3)\n", r"SystemExit at .*broken_plugin\.py, line 1"),
        ("class E(Exception): pass\nraise E\n", r"E at .*broken_plugin\.py, line 2"),
    ],
)
def test_a_plugin_that_raises_is_named_every_time(plugin: Any, source: str, message: str) -> None:
    registry = plugin(source)
    for _ in range(2):
        with pytest.raises(ImportError, match=rf"the plugin mine \(broken_plugin\).*{message}"):
            registry.list_lr_schedulers()


def test_a_plugin_without_its_attribute_is_named(plugin: Any) -> None:
    registry = plugin("x = 1\n", "broken_plugin:absent")
    for _ in range(2):
        with pytest.raises(ImportError, match=r"the plugin mine \(broken_plugin:absent\).*AttributeError"):
            registry.list_lr_schedulers()


def test_a_module_that_raises_while_it_is_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_extension.py").write_text("\n{}['key']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command.main(["--import", "my_extension", "models"]) == 2
    said = capsys.readouterr().err.strip()
    assert "my_extension.py, line 2" in said and "KeyError" in said and "\n" not in said


def test_a_task_that_raises_leaves_no_lock(tmp_path: Path) -> None:
    class Failing(ToyTask):
        def train_step(self, model: Any, samples: Any) -> Any:
            raise KeyError("a bug")

    from lavis.runners import train
    from tests.toy_training import ToyData

    keys: dict[str, Any] = {"datasets": {"train": ToyData(20, 1)}, "output_dir": tmp_path, "job_id": "a",
                            "batch_size_train": 4, "max_epoch": 1, "device": "cpu"}  # fmt: skip
    with pytest.raises(KeyError, match="a bug"):
        train(model=ToyModel(), task=Failing(), **keys)
    with files.locked(tmp_path / "a" / ".lock", busy="held"):
        pass
