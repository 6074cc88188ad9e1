"""Image files of every kind: their pixels as a viewer shows them, and one error for all that can't be read."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis.cli.common import find_media
from lavis.common import images
from lavis.common.files import IMAGE_FORMATS, PICTURES
from lavis.common.images import (
    MissingMediaError,
    TooManyPixelsError,
    UnknownFormatError,
    UnreadableMediaError,
    image_size,
    open_image,
)
from lavis.datasets.builders import load_dataset

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of any depth and colour type, with chunks before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    size = len(rows) // height
    lines = b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(height))
    body = b"".join(chunk(*c) for c in chunks) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def grey(image: Image.Image) -> np.ndarray:
    """The levels of an image that should be grey."""
    pixels = np.asarray(image)
    assert image.mode == "RGB" and (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


# ------------------------------------------------------------------------------------- depth
LEVELS = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_divided_by_257(kind: str) -> None:
    out = grey(open_image(encoded(Image.fromarray(LEVELS), kind)))
    assert np.array_equal(out, np.round(LEVELS / 257))
    dark = encoded(Image.fromarray((LEVELS // 8).astype(np.uint16)), kind)  # not stretched
    assert grey(open_image(dark)).max() == 32


def test_16_bit_colour_keeps_its_levels() -> None:
    wide = np.stack([LEVELS, LEVELS.T, LEVELS[::-1]], axis=2).astype(">u2")
    out = np.asarray(open_image(png(16, 16, 16, 2, wide.tobytes())))
    assert np.abs(out - wide / 257).max() <= 1


def test_a_tiff_of_12_bits() -> None:
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    data = b"II*\0\x0c\0\0\0" + b"\x80\x0f\xff\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert grey(open_image(data)).tolist() == [[128, 255]]  # 0x800 and 0xfff


def test_a_tiff_in_which_white_is_zero() -> None:
    wide = Image.fromarray(LEVELS)  # whose levels Pillow leaves as they are
    assert np.array_equal(
        grey(open_image(encoded(wide, "TIFF", tiffinfo={262: 0}))), 255 - np.round(LEVELS / 257)
    )
    narrow = Image.fromarray((LEVELS >> 8).astype(np.uint8))  # which it turns around, both ways
    assert np.array_equal(grey(open_image(encoded(narrow, "TIFF", tiffinfo={262: 0}))), LEVELS >> 8)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@given(low=st.integers(-(2**20), 2**20), span=st.integers(1, 2**20))
@settings(max_examples=20)
def test_wide_numbers_are_scaled_by_their_own_range(dtype: type, low: int, span: int) -> None:
    values = np.linspace(low, low + span, 64).astype(dtype).reshape(8, 8)
    out = grey(open_image(encoded(Image.fromarray(values), "TIFF"))).astype(float)
    expected = (values.astype(float) - values.min()) * 255 / (float(values.max()) - float(values.min()))
    assert np.abs(out - expected).max() <= 0.51 and out.min() == 0 and out.max() == 255


def test_unsigned_numbers_of_32_bits() -> None:
    values = np.array([[0, 2**31], [2**31 + 2**30, 2**32 - 1]], dtype=np.uint32)
    data = bytearray(encoded(Image.fromarray(values.view(np.int32)), "TIFF"))
    # Pillow writes them as signed; the tag of the sample format becomes "unsigned"
    place = data.index(struct.pack("<HHI", 339, 3, 1)) + 8
    assert data[place] == 2
    data[place] = 1
    assert grey(open_image(bytes(data))).tolist() == [[0, 128], [191, 255]]


def test_what_is_no_finite_number() -> None:
    values = np.array([[np.nan, 1, 2], [3, np.inf, -np.inf]], dtype=np.float32)
    assert grey(open_image(encoded(Image.fromarray(values), "TIFF"))).tolist() == [[0, 0, 128], [255, 255, 0]]
    for constant in (0.0, 7.5, np.nan, np.inf):
        data = encoded(Image.new("F", (4, 4), constant), "TIFF")
        assert np.unique(grey(open_image(data))).size == 1


# ------------------------------------------------------------------------------------- transparency
WITH_ALPHA = [
    *(("RGBA", kind) for kind in ("PNG", "TIFF", "WEBP", "GIF", "QOI", "JPEG2000")),
    *(("LA", kind) for kind in ("PNG", "TIFF", "WEBP")),
    *(("PA", kind) for kind in ("TIFF", "WEBP")),
    *(("P", kind) for kind in ("PNG", "WEBP")),
]


@pytest.mark.parametrize(("mode", "kind"), WITH_ALPHA)
def test_what_lies_under_transparency_is_not_seen(mode: str, kind: str) -> None:
    seen = []
    for hidden in ((0, 0, 0, 0), (255, 0, 255, 0), (9, 99, 200, 0)):
        image = Image.new("RGBA", (16, 16), hidden)
        image.paste((*GREEN, 255), (4, 4, 12, 12))
        data = encoded(image.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
        seen.append(np.asarray(open_image(data)))
    assert all(np.array_equal(seen[0], other) for other in seen[1:])
    assert seen[0][0, 0].tolist() == [255, 255, 255] and seen[0][8, 8].max() < 255


def test_half_transparent_and_opaque() -> None:
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 255))
    image.putpixel((1, 0), (200, 100, 0, 51))
    out = open_image(encoded(image))
    assert out.getpixel((0, 0)) == (200, 100, 0)
    assert np.abs(np.array(out.getpixel((1, 0))) - [244, 224, 204]).max() <= 1


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "clear", "expected"),
    [
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (1, 0, b"\x40", b"\0\0", [255, 255]),
        (2, 0, b"\x60", b"\0\1", [255, 170]),  # levels 1 and 2 of 3
        (4, 0, b"\x5a", b"\0\5", [255, 170]),  # 5 and 10 of 15
        (8, 0, b"\x05\x55", b"\0\5", [255, 85]),
        (16, 0, b"\x12\x34\x55\x55", b"\x12\x34", [255, 85]),
        (16, 0, b"\x12\x35\x55\x55", b"\x12\x34", [18, 85]),
        (8, 2, b"\1\2\3\7\7\7", b"\0\1\0\2\0\3", [255, 7]),
        (16, 2, b"\1\0\2\0\3\0" + b"\7\7" * 3, b"\1\0\2\0\3\0", [255, 7]),
    ],
)
def test_one_colour_that_is_transparent(
    depth: int, colour: int, rows: bytes, clear: bytes, expected: list[int]
) -> None:
    out = open_image(png(2, 1, depth, colour, rows, (b"tRNS", clear)))
    assert grey(out)[0].tolist() == expected


def test_a_palette_with_degrees_of_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 100, 100, 100, 100, 100, 100])
    for x in range(3):
        image.putpixel((x, 0), x)
    out = open_image(encoded(image, transparency=b"\0\x80\xff"))
    assert np.abs(grey(out)[0].astype(int) - [255, 177, 100]).max() <= 1


def test_published_data_are_read_as_pillow_converts_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (8, 4), (255, 0, 255, 0))
    image.save(tmp_path / "a.png", exif=exif)
    assert open_image(tmp_path / "a.png", plain=True).getpixel((0, 0)) == (255, 0, 255)
    assert open_image(tmp_path / "a.png", plain=True).size == (8, 4)
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == WHITE
    assert open_image(tmp_path / "a.png").size == (4, 8)
    assert open_image(tmp_path / "a.png", upright=False).size == (8, 4)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("CMYK", "TIFF"), ("1", "PNG")]
)
def test_other_modes_are_converted_by_pillow(mode: str, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels).convert(mode), kind)
    with Image.open(io.BytesIO(data)) as image:
        assert open_image(data).tobytes() == image.convert("RGB").tobytes()


# ------------------------------------------------------------------------------------- orientation
CORNERS = {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}  # which corner what is stored top left gets to


def corner(image: Image.Image) -> int:
    """Where the only dark quarter is: 0 top left, then clockwise."""
    w, h = image.width - 1, image.height - 1
    places = [(0, 0), (w, 0), (w, h), (0, h)]
    return [image.getpixel(p)[0] < 128 for p in places].index(True)  # type: ignore[index]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_obeyed(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (64, 32), "white")
    image.paste("black", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = open_image(encoded(image, kind, exif=exif))
    assert out.size == ((64, 32) if orientation < 5 else (32, 64)) and corner(out) == CORNERS[orientation]


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4abcd\0\0\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0" + bytes(range(256)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_leaves_the_pixels(kind: str, exif: bytes) -> None:
    data = encoded(Image.new("RGB", (8, 4), "red"), kind, exif=exif)
    assert open_image(data).size == (8, 4)


def test_the_first_frame_of_many() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        out = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert np.abs(np.array(out.getpixel((4, 4)), int) - RED).max() < 8, kind


# ------------------------------------------------------------------------------------- what is refused
def whole_files() -> dict[str, bytes]:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 24, 3), dtype=np.uint8))
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "QOI", "JPEG2000")
    files = {kind: encoded(image, kind) for kind in kinds}
    files["TIFF, compressed"] = encoded(image, "TIFF", compression="tiff_lzw")
    files["TIFF, JPEG"] = encoded(image, "TIFF", compression="jpeg")
    files["PNG, 16 bits"] = encoded(Image.fromarray(LEVELS))
    return files


WHOLE = whole_files()


@pytest.mark.parametrize("kind", list(WHOLE))
def test_every_format_of_the_list_is_decoded(kind: str) -> None:
    assert open_image(WHOLE[kind]).size in ((24, 24), (16, 16))


@given(kind=st.sampled_from(list(WHOLE)), data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_gives_an_image_or_the_one_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        assert open_image(bytes(content), name="a file", limit=1_000_000).mode == "RGB"
    except UnreadableMediaError as e:
        assert "the image a file cannot be decoded" in str(e) and "<_io" not in str(e)


@pytest.mark.parametrize(
    "error", [SyntaxError, struct.error, ValueError, IndexError, KeyError, OSError, MemoryError, RuntimeError]
)
def test_whatever_a_decoder_raises(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(self: Any) -> None:
        raise error("inside")

    (tmp_path / "a.qoi").write_bytes(WHOLE["QOI"])
    from PIL.QoiImagePlugin import QoiDecoder

    monkeypatch.setattr(QoiDecoder, "decode", load)
    with pytest.raises(UnreadableMediaError, match=r"a\.qoi cannot be decoded \(") as e:
        open_image(tmp_path / "a.qoi")
    assert e.value.path == str(tmp_path / "a.qoi") and "\n" not in str(e.value)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.eps"])
def test_no_other_program_is_started(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr(os, "system", lambda *a: started.append(a))
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(UnknownFormatError, match="it has no known format"):
        open_image(tmp_path / name)
    assert not started


@pytest.mark.parametrize("kind", ["PDF", "ICO", "TGA", "PCX", "SGI", "IM", "ICNS"])
def test_formats_that_are_not_in_the_list(kind: str) -> None:
    with pytest.raises(UnknownFormatError):
        open_image(encoded(Image.new("RGB", (32, 32)), kind))


def test_a_limit_of_pixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restored afterwards
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(
        TooManyPixelsError, match=r"200 megapixels, at most 179 .* decompression bomb, or set LAVIS_MAX"
    ):
        open_image(tmp_path / "bomb.png")
    with pytest.raises(TooManyPixelsError):
        image_size(tmp_path / "bomb.png")
    monkeypatch.setenv(images.MOST_PIXELS_VARIABLE, str(20_000 * 10_000))
    assert image_size(tmp_path / "bomb.png") == (20_000, 10_000)
    monkeypatch.setenv(images.MOST_PIXELS_VARIABLE, "100")
    assert open_image(encoded(Image.new("L", (10, 10)))).size == (10, 10)
    with pytest.raises(TooManyPixelsError):
        open_image(encoded(Image.new("L", (10, 11))))
    for bad in ("many", "-1", "0", "1e6"):
        monkeypatch.setenv(images.MOST_PIXELS_VARIABLE, bad)
        with pytest.raises(ValueError, match="LAVIS_MAX_PIXELS is"):
            open_image(encoded(Image.new("L", (10, 11))))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer."""
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.png"))
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "link.png").symlink_to("pipe.png")
        for path, kind in (
            (tmp_path / "pipe.png", "a pipe"), (tmp_path / "link.png", "a pipe"), (Path("/dev/zero"), "a device"),
            (tmp_path / "folder.png", "a folder"), (tmp_path / "socket.png", "a socket"),
        ):  # fmt: skip
            with pytest.raises(UnreadableMediaError, match=f"it is {kind}") as e:
                open_image(path)
            assert not isinstance(e.value, MissingMediaError)
    (tmp_path / "broken.png").symlink_to("nothing.png")
    for missing in ("nothing.png", "broken.png", "a.png/b.png"):
        with pytest.raises(MissingMediaError, match=r"there is no image .*; look elsewhere"):
            open_image(tmp_path / missing, "look elsewhere")
    (tmp_path / "circle.png").symlink_to("circle.png")
    for bad in (tmp_path / "circle.png", "a\0.png", tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(UnreadableMediaError, match="cannot be read"):
            open_image(bad)


def test_a_command_goes_on_after_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for kind in ("AVIF", "QOI", "JPEG2000"):
        (tmp_path / f"half.{kind.lower()}").write_bytes(WHOLE[kind][: len(WHOLE[kind]) // 2])
    (tmp_path / "eps.jpg").write_bytes(EPS)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "whole.png")
    bad = ["pipe.png", "half.avif", "half.qoi", "half.jpeg2000", "eps.jpg"]
    done = subprocess.run(
        [sys.executable, "-m", "lavis", "caption", *(str(tmp_path / name) for name in [*bad, "whole.png"])],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout.count("\n") == 1 and "whole.png" in done.stdout
    assert all(f"{name} cannot be" in done.stderr for name in bad) and "Traceback" not in done.stderr


def test_own_data_pass_over_what_cannot_be_decoded(tmp_path: Path) -> None:
    for kind in ("AVIF", "QOI"):
        (tmp_path / f"{kind}.png").write_bytes(WHOLE[kind][:60])
    (tmp_path / "t.csv").write_text("image,caption\nAVIF.png,a\nQOI.png,b\n")
    data = load_dataset("own", train=str(tmp_path / "t.csv"), val_fraction=0)["train"]
    for index, kind in enumerate(("AVIF", "QOI")):
        with pytest.raises(UnreadableMediaError, match=rf"{kind}\.png cannot be decoded"):
            data.sample(index)


# ------------------------------------------------------------------------------------- which files are found
def names(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in find_media([str(folder)])[0]]


def test_every_suffix_that_is_opened_is_found(tmp_path: Path) -> None:
    assert set(PICTURES) >= {".jfif", ".jpe", ".avif", ".qoi", ".pgm", ".tif", ".webp", ".jp2"}
    Image.init()
    for form, suffixes in IMAGE_FORMATS.items():
        for suffix in suffixes:
            assert Image.registered_extensions()[suffix] in (form, "MPO")
            (tmp_path / f"a{suffix.upper()}").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"x")
    assert len(names(tmp_path)) == len(PICTURES)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    top, far = tmp_path / "top", tmp_path / "far"
    for path in (top / "a.png", top / "z" / "b.png", far / "deep" / "c.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (top / "again").symlink_to("z")  # sorts before z, whose own name is the one that is kept
    (top / "link").symlink_to(far)
    (top / "z" / "up").symlink_to(top)
    (far / "back").symlink_to(top)
    (far / "deep" / "round").symlink_to(far)
    (top / "self").symlink_to("self")
    (top / "gone").symlink_to("nowhere")
    (top / "file.png").symlink_to("a.png")
    assert names(top) == ["a.png", "file.png", "link/deep/c.png", "z/b.png"]
    assert names(top / "link") == ["back/a.png", "back/file.png", "back/z/b.png", "deep/c.png"]


def test_what_macos_leaves_is_no_image(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", "__MACOSX/b.png", "sub/._c.png", "sub/c.png", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == [".hidden/d.png", "a.png", "sub/c.png"]
    assert [p.name for p in find_media([str(tmp_path / "*.png"), str(tmp_path / "*" / "c.png")])[0]] == [
        "a.png", "c.png",
    ]  # fmt: skip


def test_a_folder_that_may_not_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert names(tmp_path) == ["a.png"] and "closed cannot be read (Permission denied)" in caplog.text
