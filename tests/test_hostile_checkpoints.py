"""Files that describe, or compress, more than they hold are refused in one line, before any memory is taken."""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import pickle
import struct
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lavis.models import load_model
from lavis.models.checkpoints import read_state_dict

resource = pytest.importorskip("resource")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def little_memory():
    """No more than 2 GiB beyond what is taken: the test fails where a file's claim is believed."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * GIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(path, *words):
    with pytest.raises(ValueError) as e:
        read_state_dict(path)
    text = str(e.value)
    assert path.name in text and "\n" not in text and "\x1b" not in text
    for word in words:
        assert word in text, text


class Storage:
    def __init__(self, count, kind=torch.FloatStorage):
        self.pid = ("storage", kind, "0", "cpu", count)


class Tensor:
    def __init__(self, size, stride, count, offset=0):
        self.parts = Storage(count), offset, size, stride, False, OrderedDict()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.parts


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


def pickled(content):
    out = io.BytesIO()
    Pickler(out, protocol=2).dump(content)
    return out.getvalue()


def zipped(path, data, numbers=b"\0" * 16, method=zipfile.ZIP_STORED, **others):
    with zipfile.ZipFile(path, "w", method) as z:
        z.writestr("a/data.pkl", data)
        z.writestr("a/version", "3")
        z.writestr("a/data/0", numbers)
        for name, content in others.items():
            z.writestr(f"a/{name}", content)
    return path


def legacy(path, content, counts=(4,), numbers=b"\0" * 16):
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts += [pickle.dumps({"little_endian": True}, 2), pickled(content)]
    parts += [pickle.dumps([str(i) for i in range(len(counts))], 2)]
    path.write_bytes(b"".join(parts) + b"".join(struct.pack("<q", n) + numbers for n in counts))
    return path


def test_the_files_of_these_tests_are_right_where_nothing_is_wrong(tmp_path):
    content = {"w": Tensor((2, 2), (2, 1), 4)}
    numbers = np.arange(4, dtype=np.float32).tobytes()
    for path in (
        zipped(tmp_path / "a.pth", pickled(content), numbers),
        legacy(tmp_path / "b.pth", content, numbers=numbers),
    ):
        assert read_state_dict(path)["w"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("name", ["bomb.pth", "bomb.pt", "bomb.bin"])
def test_compressed_members(tmp_path, name):
    path = zipped(tmp_path / name, pickled({"w": Tensor((4,), (1,), 4)}), method=zipfile.ZIP_DEFLATED)
    refused(path, "is compressed")
    count = 32 << 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.writestr("a/data.pkl", pickled({"w": Tensor((count,), (1,), count)}))
        with z.open("a/data/0", "w") as f:
            for _ in range(count >> 20):
                f.write(b"\0" * (4 << 20))
    assert path.stat().st_size < 1 << 20 < 4 * count
    refused(path, "is compressed")


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize(
    ("size", "stride", "count", "words"),
    [
        ((10**10,), (0,), 4, "claims 10000000000 numbers, of which 4 are stored"),
        ((10**5, 10**5), (0, 0), 4, "numbers, of which 4 are stored"),
        ((4,), (1,), 10**10, "said to hold 10000000000 numbers"),
        ((10**10,), (1,), 10**10, "said to hold 10000000000 numbers"),
        ((4,), (1,), -4, "of no known kind"),
        ((2,), (4,), 4, "could not be read"),
        ((2**63, 2**63), (0, 0), 4, "the shape of a tensor is none"),
        ((-1, -4), (1, 1), 4, "the shape of a tensor is none"),
    ],
)
def test_tensors_larger_than_what_is_stored(tmp_path, monkeypatch, size, stride, count, words, script):
    content, others = {"w": Tensor(size, stride, count)}, {}
    if script:
        module = types.ModuleType("__torch__")
        module.M = type("M", (), {"__module__": "__torch__"})
        monkeypatch.setitem(__import__("sys").modules, "__torch__", module)
        root = module.M()
        root.__dict__.update(content)
        content, others = root, {"constants.pkl": pickle.dumps(())}
    refused(zipped(tmp_path / "a.pt", pickled(content), **others), words)
    if not script and count >= 0:
        refused(legacy(tmp_path / "old.pth", content))


def test_many_views_of_one_storage(tmp_path):
    storage = Storage(1 << 18)
    content = {f"w{i}": Tensor((1 << 18,), (1,), 1 << 18) for i in range(2000)}
    for tensor in content.values():
        tensor.parts = (storage, *tensor.parts[1:])
    refused(
        zipped(tmp_path / "a.pth", pickled(content), b"\0" * (1 << 20)), "many times larger than the file"
    )


def test_members_that_are_not_in_the_file(tmp_path):
    path = zipped(tmp_path / "a.pth", pickled({"w": Tensor((4,), (1,), 4)}))
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")  # of the last member, data/0, the sizes in the directory
    for offset in (20, 24):
        content = content[: at + offset] + struct.pack("<I", 3 << 30) + content[at + offset + 4 :]
    path.write_bytes(content)
    refused(path)


def test_pickles_that_take_more_memory_than_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("lavis.models.pickled._PICKLE_BYTES", 1 << 16)
    memo = b"\x80\x02Nr\xff\xff\xff\x7f."  # puts None into place 2 147 483 647 of the memo
    refused(zipped(tmp_path / "memo.pth", memo), "no state dict")
    for data in (
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # a bytearray of a terabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x02\x8b" + struct.pack("<I", (1 << 31) - 1) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x02(" + b"]" * (1 << 17) + b"l.",
    ):
        refused(zipped(tmp_path / "a.pth", data))
        path = tmp_path / "old.pth"
        path.write_bytes(data)
        refused(path)


def test_modules_that_hold_one_another(tmp_path, monkeypatch):
    module = types.ModuleType("__torch__")
    module.M = type("M", (), {"__module__": "__torch__"})
    monkeypatch.setitem(__import__("sys").modules, "__torch__", module)
    root = module.M()
    for _ in range(60):
        above = module.M()
        above.a = above.b = root
        root = above
    path = zipped(tmp_path / "a.pt", pickle.dumps(root, protocol=2), **{"constants.pkl": pickle.dumps(())})
    refused(path, "again and again")


def test_headers_of_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"

    def write(header, length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 16)
        return path

    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    assert read_state_dict(write({"w": entry}))["w"].shape == (2, 2)
    refused(write({"w": entry}, 1 << 40), "header")
    refused(write({"w": entry}, 2**64 - 1), "header")
    refused(write({"w": {**entry, "shape": [10**10]}}))
    refused(write({"w": {**entry, "shape": [2**40, 2**40]}}))
    refused(write({"w": {**entry, "data_offsets": [0, 1 << 40], "shape": [1 << 38]}}))
    refused(write({"w": {**entry, "data_offsets": [16, 0]}}))
    refused(write({"w": entry, "__metadata__": {"aliases": "[" * 100_000}}))
    refused(write({"w": entry, "__metadata__": {"aliases": '{"a": "b"}'}}))
    refused(write({"w": entry, "__metadata__": {"aliases": "3"}}))
    refused(write(b"[" * 100_000))


@pytest.mark.parametrize(
    "name", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "..", "c:x", "a\\b", ""]
)
def test_an_index_names_files_beside_it_only(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"w": torch.zeros(1)}, tmp_path / "secret.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ValueError, match="must lie beside the index"):
        read_state_dict(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"weight_map": 3}', "[]", '{"a": ' + "1" * 6000 + "}", '"\\ud800', "\xff"]
)
def test_damaged_descriptions(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("latin1"))
    refused(path)
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(str(tmp_path))


def test_a_description_of_a_model_that_its_file_can_not_hold(tmp_path):
    load_model("blip_caption", "tiny").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for section, key, value in (
        ("vit", "depth", 10**9),
        ("text", "vocab_size", 10**12),
        ("text", "depth", 400),
    ):
        changed = json.loads(json.dumps(content))
        changed["config"][section][key] = value
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"{key} is {value}"):
            load_model(str(tmp_path))


# ------------------------------------------------------------------------------ what stands beside weights


class Settings:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return Global(self.name), ()


class Global:
    def __init__(self, name):
        self.module, _, self.name = name.rpartition(".")


def named(name):
    """A pickle of {"model": {}, "args": what is made by calling the global `name`}."""
    module, _, name = name.rpartition(".")
    return b"\x80\x02}U\x04argsc" + module.encode() + b"\n" + name.encode() + b"\n)R}U\x01aK\x01sbs."


def test_settings_beside_the_weights_are_passed_over(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    state = {"w": torch.arange(4.0)}
    args = argparse.Namespace(
        lr=0.1, out=pathlib.Path("x"), sizes={1, 2}, best=np.float64(0.5), grid=np.zeros(3)
    )
    beside = {
        "args": args, "config": omegaconf.OmegaConf.create({"a": {"b": [1, "${c}"]}, "c": 2}), "epoch": 3,
        "best": np.float32(1.5), "generator": torch.Generator().get_state(),
    }  # fmt: skip
    for new in (True, False):
        torch.save({"model": state, **beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        assert read_state_dict(tmp_path / "a.pth")["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "builtins.getattr", "torch.load", "__main__.Net", "argparse.Namespace.__init__",
     "torch.storage._load_from_bytes", "x\x1b[31m.red", "subprocess.Popen", "numpy\n.a"],
)  # fmt: skip
def test_what_is_not_known_is_named_in_one_line(tmp_path, name):
    refused(zipped(tmp_path / "a.pth", named(name)), "never executed" if "\n" not in name else "")


def test_stand_ins_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(argparse.Namespace, "__init__", None)
    refused(zipped(tmp_path / "a.pth", named("argparse.Namespace")), "is no tensor")
