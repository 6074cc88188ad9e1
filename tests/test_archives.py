"""Unpacking: hostile and damaged archives leave nothing behind, and a kill in the middle loses nothing."""

from __future__ import annotations

import gzip
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lavis.common import archives
from lavis.common.archives import Limits, unpack, unpacked
from lavis.common.members import STATE, ArchiveError, Member, UnsafeArchiveError, safe_parts

Entry = tuple[str, bytes]
FILES: list[Entry] = [("a.txt", b"one"), ("pictures/b.jpg", b"two" * 1000), ("pictures/deep/c.jpg", b"")]


def make_tar(
    path: Path, files: list[Entry], mode: str = "w", extra: list[tarfile.TarInfo] | None = None
) -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra or []:
            tar.addfile(info)
    return path


def make_zip(path: Path, files: list[Entry], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as pack:
        for name, content in files:
            pack.writestr(zipfile.ZipInfo(name) if name.endswith("/") else name, content)
    return path


MAKERS: dict[str, Callable[[Path, list[Entry]], Path]] = {
    "x.zip": make_zip,
    "x.tar": make_tar,
    "x.tar.gz": lambda path, files: make_tar(path, files, "w:gz"),
}


def content_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but our own state."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and STATE not in p.relative_to(folder).parts
    }


def untouched(folder: Path) -> bool:
    return not folder.exists() or {p.name for p in folder.iterdir()} <= {STATE}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "outer" / "media"


# ---------------------------------------------------------------- what should work
@pytest.mark.parametrize("name", MAKERS)
def test_all_kinds_are_unpacked_once(name: str, tmp_path: Path, target: Path) -> None:
    archive = MAKERS[name](tmp_path / name, FILES)
    seen: list[tuple[int, int]] = []
    done = unpack(archive, target, progress=lambda at, total: seen.append((at, total)))
    assert content_of(target) == dict(FILES)
    assert done.files == 3 and done.size == 3003
    assert len(seen) == 3 and seen[-1][1] == archive.stat().st_size
    assert [p.suffix for p in (target / STATE).iterdir()] == [".json"]
    (target / "a.txt").unlink()
    assert unpack(archive, target) == done and not (target / "a.txt").exists()  # not repeated


def test_the_mark_outlives_the_archive_and_can_be_removed(tmp_path: Path, target: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", FILES)
    assert unpacked(target, "url") is None
    unpack(archive, target, identity="url")
    archive.unlink()
    assert unpacked(target, "url") is not None and unpacked(target, "another") is None
    archives.forget(target, "url")
    assert unpacked(target, "url") is None


def test_archives_share_a_folder(tmp_path: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "mine.txt").write_bytes(b"mine")
    unpack(make_zip(tmp_path / "x.zip", [("p/a", b"1"), ("p/q/b", b"2")]), target)
    unpack(make_tar(tmp_path / "y.tar", [("p/q/c", b"3"), ("p/a", b"4")]), target)
    assert content_of(target) == {"mine.txt": b"mine", "p/a": b"4", "p/q/b": b"2", "p/q/c": b"3"}


def test_a_later_member_of_the_same_name_wins(tmp_path: Path, target: Path) -> None:
    unpack(make_tar(tmp_path / "x.tar", [("a", b"old"), ("a", b"new!")]), target)
    assert content_of(target) == {"a": b"new!"}


def test_modes_are_not_taken_over(tmp_path: Path, target: Path) -> None:
    info = tarfile.TarInfo("run.sh")
    info.mode = 0o4777
    unpack(make_tar(tmp_path / "x.tar", [], extra=[info]), target)
    assert stat.S_IMODE((target / "run.sh").stat().st_mode) & 0o7111 == 0


def test_names_from_windows(tmp_path: Path, target: Path) -> None:
    unpack(make_zip(tmp_path / "x.zip", [("p\\a.jpg", b"1")]), target)
    assert content_of(target) == {"p/a.jpg": b"1"}


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def test_links_that_stay_inside(tmp_path: Path, target: Path) -> None:
    extra = [
        link("one", "two"), link("two", "pictures/b.jpg"), link("pictures/up", "../a.txt"),
        link("folder", "pictures"), link("twin", "a.txt", tarfile.LNKTYPE),
    ]  # fmt: skip
    unpack(make_tar(tmp_path / "x.tar", FILES, extra=extra), target)
    assert (target / "one").read_bytes() == b"two" * 1000
    assert (target / "pictures" / "up").read_bytes() == b"one"
    assert (target / "folder" / "b.jpg").exists()
    (target / "twin").write_bytes(b"changed")
    assert (target / "a.txt").read_bytes() == b"one"


# ---------------------------------------------------------------- what must not work
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "C:evil", ".lavis/x.json", "a/\x01b",
             "x" * 300],
)  # fmt: skip
def test_names_that_leave(maker: str, name: str, tmp_path: Path, target: Path) -> None:
    archive = MAKERS[maker](tmp_path / maker, [*FILES, (name, b"evil")])
    with pytest.raises(UnsafeArchiveError, match=r"its name|is taken") as e:
        unpack(archive, target)
    assert str(archive) in str(e.value)
    assert untouched(target) and not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "extra",
    [
        [link("l", "/etc/passwd")],
        [link("l", "../../outside")],
        [link("l", "nothing")],
        [link("l", "l")],
        [link("l", "m"), link("m", "l")],
        [link("d", "pictures"), link("d/l", "b.jpg")],
        [link("pictures/l", "../x/../../outside")],
        [link("l", "../../outside", tarfile.LNKTYPE)],
        [link("l", "nothing", tarfile.LNKTYPE)],
        [link("a.txt", "pictures/b.jpg")],
        [link("l", "C:\\Windows")],
    ],
)
def test_links_that_leave(extra: list[tarfile.TarInfo], tmp_path: Path, target: Path) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "outer" / "outside").write_text("secret")
    with pytest.raises(UnsafeArchiveError):
        unpack(make_tar(tmp_path / "x.tar", FILES, extra=extra), target)
    assert untouched(target)


def test_writing_through_a_link(tmp_path: Path, target: Path) -> None:
    """First a link to a folder outside, then a file below it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(link("l", str(outside)))
        info = tarfile.TarInfo("l/evil")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(UnsafeArchiveError):
        unpack(tmp_path / "x.tar", target)
    assert not list(outside.iterdir()) and untouched(target)


def test_links_in_zips(tmp_path: Path, target: Path) -> None:
    for to, fits in (("a.txt", True), ("../../../etc", False)):
        path = tmp_path / f"{fits}.zip"
        with zipfile.ZipFile(path, "w") as pack:
            pack.writestr("a.txt", b"one")
            info = zipfile.ZipInfo("l")
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            pack.writestr(info, to)
        if fits:
            unpack(path, target)
            assert (target / "l").read_bytes() == b"one"
        else:
            with pytest.raises(UnsafeArchiveError, match="is a link to"):
                unpack(path, target)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices(kind: bytes, tmp_path: Path, target: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match="device or pipe"):
        unpack(make_tar(tmp_path / "x.tar", FILES, extra=[link("d", "", kind)]), target)
    assert untouched(target)


def test_a_name_for_a_file_and_a_folder(tmp_path: Path, target: Path) -> None:
    for number, names in enumerate((["a", "a/b"], ["a/b", "a"])):
        with pytest.raises(UnsafeArchiveError, match="folder"):
            unpack(make_tar(tmp_path / f"{number}.tar", [(n, b"x") for n in names]), target)


def test_a_folder_of_the_user_is_in_the_way(tmp_path: Path, target: Path) -> None:
    (target / "a.txt").mkdir(parents=True)
    with pytest.raises(ArchiveError, match="move it away"):
        unpack(make_zip(tmp_path / "x.zip", FILES), target)
    (target / "a.txt").rmdir()
    unpack(tmp_path / "x.zip", target)  # goes on from where it stood
    assert content_of(target) == dict(FILES)


# ---------------------------------------------------------------- bombs
@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_bombs_by_ratio(name: str, tmp_path: Path, target: Path) -> None:
    archive = MAKERS[name](tmp_path / name, [("zeros", bytes(80 << 20))])
    with pytest.raises(UnsafeArchiveError, match="200 times its"):
        unpack(archive, target)
    assert untouched(target)
    assert not list(target.rglob("zeros")) and not list(target.rglob("part"))  # refused before it was written


def test_bombs_by_size_and_number(tmp_path: Path, target: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", [(f"{i}", b"x" * 100) for i in range(20)])
    with pytest.raises(UnsafeArchiveError, match="more than 19 entries"):
        unpack(archive, target, limits=Limits(entries=19))
    with pytest.raises(UnsafeArchiveError, match="unpacks to more than"):
        unpack(archive, target, limits=Limits(size=1999))
    unpack(archive, target, limits=Limits(entries=20, size=2000))


def test_bombs_by_copies(tmp_path: Path, target: Path) -> None:
    extra = [link(f"l{i}", "a.txt", tarfile.LNKTYPE) for i in range(20)]
    archive = make_tar(tmp_path / "x.tar", [("a.txt", b"x" * 100)], extra=extra)
    with pytest.raises(UnsafeArchiveError, match="unpacks to more than"):
        unpack(archive, target, limits=Limits(size=2000))


def test_a_full_disk_is_noticed_before(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2000}))
    archive = make_zip(tmp_path / "x.zip", [("b", b"two" * 1000)])
    with pytest.raises(OSError, match="goes on from here"):
        unpack(archive, target)
    monkeypatch.undo()
    unpack(archive, target)
    assert content_of(target) == {"b": b"two" * 1000}


def test_headers_that_claim_to_be_huge(tmp_path: Path, target: Path) -> None:
    """A long name of 100 MB in a small gzip file: tarfile would read it into memory in one piece."""
    raw = io.BytesIO()
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 100 << 20
    raw.write(info.tobuf(tarfile.GNU_FORMAT))
    raw.write(bytes(100 << 20))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(raw.getvalue(), 1))
    with pytest.raises(ArchiveError, match="header"):
        unpack(path, target)


# ---------------------------------------------------------------- damage
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_cut_archives(name: str, part: float, tmp_path: Path, target: Path) -> None:
    archive = MAKERS[name](tmp_path / name, [(f"{i}.jpg", os.urandom(3000)) for i in range(8)])
    archive.write_bytes(archive.read_bytes()[: int(part * archive.stat().st_size)])
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive, target)
    assert untouched(target)


def test_a_flipped_bit_is_noticed(tmp_path: Path, target: Path) -> None:
    for name in ("x.zip", "x.tar.gz"):
        archive = MAKERS[name](tmp_path / name, [("a", os.urandom(3000))])
        data = bytearray(archive.read_bytes())
        data[1500] ^= 1
        archive.write_bytes(data)
        with pytest.raises(ArchiveError, match="damaged"):
            unpack(archive, target)
    assert untouched(target)


def test_a_broken_header_is_not_the_end(tmp_path: Path, target: Path) -> None:
    archive = make_tar(tmp_path / "x.tar", [("a", b"x" * 512), ("b", b"y" * 512)])
    data = bytearray(archive.read_bytes())
    data[1024 + 150] ^= 0xFF  # the second header's checksum
    archive.write_bytes(data)
    with pytest.raises(ArchiveError, match="ends in the middle"):
        unpack(archive, target)


def test_other_files(tmp_path: Path, target: Path) -> None:
    (tmp_path / "x.zip").write_text("<html>please log in</html>")
    with pytest.raises(ArchiveError, match=r"no \.zip, \.tar or \.tar\.gz archive: it begins with b'<html>"):
        unpack(tmp_path / "x.zip", target)


def test_encrypted_zips(tmp_path: Path, target: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", [("a", b"secret")])
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(ArchiveError, match="encrypted"):
        unpack(archive, target)


# ---------------------------------------------------------------- any names, any bytes
_PART = st.one_of(
    st.sampled_from(["..", ".", "", "a", "b", "...", ".lavis", "C:", "~", "\\", "a\\..", "con"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8),
)
_NAME = st.builds(lambda parts, start: start + "/".join(parts), st.lists(_PART, min_size=1, max_size=5),
                  st.sampled_from(["", "/", "./", "//", "\\\\"]))  # fmt: skip


@given(_NAME)
@example("a/../b")
def test_a_safe_name_stays_below(name: str) -> None:
    try:
        parts = safe_parts(name)
    except ValueError:
        return
    assert all(p not in ("", ".", "..") and "/" not in p and "\\" not in p for p in parts)
    assert os.path.normpath(os.path.join("/x", *parts)).startswith("/x")  # noqa: PTH118


@settings(max_examples=60)
@given(st.lists(st.tuples(_NAME, st.sampled_from(["file", "link", "twin", "folder"]), _NAME), max_size=6))
def test_no_archive_writes_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, str]]
) -> None:
    root = tmp_path_factory.mktemp("any")
    target = root / "outer" / "media"
    kinds = {
        "file": tarfile.REGTYPE,
        "link": tarfile.SYMTYPE,
        "twin": tarfile.LNKTYPE,
        "folder": tarfile.DIRTYPE,
    }
    extra = [link(name, to, kinds[kind]) for name, kind, to in members]
    archive = make_tar(root / "x.tar", [], extra=extra)
    try:
        unpack(archive, target)
    except OSError:
        assert untouched(target)
    inside = [p for p in root.rglob("*") if target in p.parents]
    assert {p.name for p in root.iterdir()} <= {"outer", "x.tar"}
    assert {p.name for p in (root / "outer").iterdir()} <= {"media"}
    for path in inside:
        assert path.resolve().is_relative_to(target.resolve())


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(MAKERS)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
)
def test_damaged_bytes_give_our_errors(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("bytes")
    archive = MAKERS[name](root / name, FILES)
    data = bytearray(archive.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    archive.write_bytes(data)
    try:
        unpack(archive, root / "media")
    except OSError:
        assert untouched(root / "media")
    assert {p.name for p in root.iterdir()} <= {name, "media"}


# ---------------------------------------------------------------- interruption
_UNPACK = """
import sys, time
from lavis.common import archives
def slowly(at, total):
    print(at, flush=True)
    time.sleep(0.002)
archives.unpack(sys.argv[1], sys.argv[2], progress=slowly)
"""


@pytest.mark.parametrize("name", MAKERS)
def test_kill_and_go_on(name: str, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(f"p{i % 7}/{i}.jpg", os.urandom(200)) for i in range(900)]
    archive = MAKERS[name](tmp_path / name, files)
    with subprocess.Popen(
        [sys.executable, "-c", _UNPACK, str(archive), str(target)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(600):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert untouched(target)  # nothing is in its place before all is sound
    written = 0
    original = archives._Work._write

    def counting(self: archives._Work, member: Member, place: Path) -> None:
        nonlocal written
        written += 1
        original(self, member, place)

    monkeypatch.setattr(archives._Work, "_write", counting)
    unpack(archive, target)
    assert content_of(target) == dict(files)
    assert written <= 900 - 512  # the journal counted at least the first 512


def test_a_cut_while_moving_goes_on(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_tar(tmp_path / "x.tar", [(f"p{i}/{i}.jpg", b"%d" % i) for i in range(10)])
    monkeypatch.setattr(archives, "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, target)
    monkeypatch.undo()
    tree = next((target / STATE).glob("*/tree"))
    (tree / "p3").rename(target / "p3")  # one was moved already
    monkeypatch.setattr(archives._Work, "_write", lambda *_: pytest.fail("it is all unpacked"))
    unpack(archive, target)
    assert content_of(target) == {f"p{i}/{i}.jpg": b"%d" % i for i in range(10)}


def test_another_version_of_the_archive_begins_anew(tmp_path: Path, target: Path) -> None:
    archive = make_tar(tmp_path / "x.tar", [("a", b"old"), ("../b", b"")])
    with pytest.raises(UnsafeArchiveError):
        unpack(archive, target, identity="url")
    time.sleep(0.01)
    make_tar(archive, [("b", b"new")])
    unpack(archive, target, identity="url")
    assert content_of(target) == {"b": b"new"}
