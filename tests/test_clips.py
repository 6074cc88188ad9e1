"""Clips in files: the frames of a sequential decoding, whichever way they are read; what is broken is refused."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis.datasets import clips
from lavis.datasets.base import MissingMediaError, UnreadableMediaError
from lavis.datasets.clips import Clip
from lavis.models import load_model_and_preprocess
from lavis.processors import load_processor
from lavis.processors.video import choose_frames, sample_indices

av = pytest.importorskip("av")

H264 = {"g": "8", "bf": "3", "preset": "ultrafast", "sc_threshold": "0"}
OPEN = H264 | {
    "preset": "fast",
    "x264-params": "open-gop=1:scenecut=0:keyint=8:min-keyint=8:bframes=3:b-adapt=0",
}
REFRESH = {"g": "8", "preset": "ultrafast", "x264-params": "intra-refresh=1:keyint=8"}
HEVC = {"preset": "ultrafast", "x265-params": "keyint=8:min-keyint=8:bframes=3:log-level=none"}
VP9 = {"g": "8", "deadline": "realtime", "cpu-used": "8"}

# file, codec, options, whether decoding can start at other frames than the first
KINDS = [
    ("h264.mp4", "libx264", H264, True),
    ("h264.mkv", "libx264", H264, True),
    ("h264.mov", "libx264", H264, True),
    ("h264.ts", "libx264", H264, True),
    ("open.mp4", "libx264", OPEN, True),
    ("open.mkv", "libx264", OPEN, True),
    ("refresh.mp4", "libx264", REFRESH, True),
    ("hevc.mp4", "libx265", HEVC, True),
    ("mpeg4.mp4", "mpeg4", {"g": "8", "bf": "2"}, True),
    ("mpeg4.avi", "mpeg4", {"g": "8", "bf": "2"}, True),
    ("plain.avi", "mpeg4", {"g": "8"}, True),
    ("vp9.webm", "libvpx-vp9", VP9, True),
    ("vp8.webm", "libvpx", VP9 | {"auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "good"}, True),
    ("mpeg2.mpg", "mpeg2video", {"g": "8", "bf": "2"}, True),
    ("h264.avi", "libx264", H264, False),  # AVI doesn't tell when a frame is shown
    ("raw.h264", "libx264", H264, False),
    ("colours.gif", "gif", {}, True),
]
FRAMES = 30


def pixels(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A pattern that moves, (T, h, w, 3), with something new in every frame."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    base = np.asarray(small.resize((width, height)))
    out = np.stack([np.roll(base, 3 * i, axis=1) for i in range(frames)])
    for i in range(frames):
        out[i, : height // 4, : max(1, width * (i + 1) // frames)] ^= 255
    return out


def encode(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    frames: int = FRAMES,
    size: tuple[int, int] = (36, 48),
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    sound_first: bool = False,
    faststart: bool = False,
) -> Path:
    """Write a clip; `times` in hundredths of a second instead of 25 frames per second."""
    base = Fraction(1, 100) if times is not None else Fraction(1, 25)
    layout = {"movflags": "faststart"} if faststart else {}
    with av.open(f"file:{path}", "w", options=layout) as container:
        sound: Any = container.add_stream("aac", rate=16000) if sound_first else None
        stream: Any = container.add_stream(codec, rate=25, options=options or H264)
        stream.height, stream.width = size
        stream.pix_fmt = "rgb8" if codec == "gif" else pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = base
        if sound is not None:
            noise = np.random.default_rng(0).normal(size=(1, 16000)).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            heard.sample_rate, heard.pts = 16000, 0
            container.mux(sound.encode(heard))
            container.mux(sound.encode())
        for number, shown in enumerate(pixels(frames, *size)):
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sequentially(path: Path) -> np.ndarray:
    """All frames, decoded from the first to the last."""
    with av.open(f"file:{path}") as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, codec, options, _ in KINDS:
        # x265 corrupts memory where a picture is smaller than its blocks of 64 pixels
        encode(folder / name, codec, options, size=(64, 96) if codec == "libx265" else (36, 48))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, np.ndarray]:
    return {name: sequentially(folder / name) for name, *_ in KINDS}


# ------------------------------------------------------------------------------- the right frames
@pytest.mark.parametrize(("name", "seekable"), [(name, seekable) for name, *_, seekable in KINDS])
def test_frames_are_those_of_a_sequential_decoding(folder, whole, name, seekable):
    with Clip(folder / name) as clip:
        assert len(clip) == len(whole[name]) == FRAMES
        assert (clip._index.times is not None) == seekable
        np.testing.assert_array_equal(clip.frames(range(FRAMES)), whole[name])
        for number in reversed(range(FRAMES)):  # every frame is gone back to
            np.testing.assert_array_equal(clip[number], whole[name][number])
        if seekable and name not in ("colours.gif", "refresh.mp4"):
            assert len(clip._index.keys) > 2
    for number in range(FRAMES):  # and is the first that is read
        with Clip(folder / name) as clip:
            np.testing.assert_array_equal(clip[number], whole[name][number])


@given(
    st.sampled_from([name for name, *_ in KINDS]),
    st.lists(st.integers(-FRAMES, FRAMES - 1), min_size=1, max_size=8),
    st.sampled_from([0, clips._WORTH_SEEKING, 10**6]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_seeking_and_reading_on_give_the_same(folder, whole, name, numbers, worth_seeking):
    """Going to a key frame wherever there is one, never, and as chosen; in any order, and again."""
    with pytest.MonkeyPatch.context() as patch, Clip(folder / name) as clip:
        patch.setattr(clips, "_WORTH_SEEKING", worth_seeking)
        np.testing.assert_array_equal(clip.frames(numbers), whole[name][numbers])
        np.testing.assert_array_equal(clip[numbers[0]], whole[name][numbers[0]])


def test_it_goes_to_a_key_frame_where_that_saves_decoding(folder, monkeypatch):
    decoded = []
    original = clips._decoded
    monkeypatch.setattr(clips, "_decoded", lambda *a: (decoded.append(f.pts) or f for f in original(*a)))
    with Clip(folder / "h264.mp4") as clip:  # key frames 0, 8, 16, 24
        clip.frames([1, 17, 25])
    assert len(decoded) == 6
    decoded.clear()
    with Clip(folder / "h264.mp4") as clip:
        clip.frames(range(0, FRAMES, 4))  # too close to one another: read on
    assert len(decoded) == 29


def test_what_is_not_asked_for_is_not_kept_nor_decoded_twice(folder, monkeypatch):
    starts = []
    original = Clip._start
    monkeypatch.setattr(Clip, "_start", lambda self, key: (starts.append(key), original(self, key))[1])
    with Clip(folder / "h264.mp4") as clip:
        np.testing.assert_array_equal(clip.frames([5, 5, 5])[0], clip[5])
        assert list(clip)[5].shape == (36, 48, 3) and len(starts) == 2  # frame 5, then from the start


@pytest.mark.parametrize(
    "keywords",
    [
        {"times": np.cumsum(np.random.default_rng(1).integers(1, 30, FRAMES)).tolist()},
        {"times": [50 + 4 * i for i in range(FRAMES)]},
        {"size": (37, 51), "pixel_format": "yuv444p"},
        {"frames": 1},
        {"frames": 2},
        {"sound_first": True},
        {"size": (16, 200)},
    ],
    ids=["variable rate", "late start", "odd sides", "one frame", "two frames", "sound first", "wide"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_unusual_clips(tmp_path, keywords, suffix):
    path = encode(tmp_path / f"clip{suffix}", **keywords)
    expected = sequentially(path)
    assert len(expected) == keywords.get("frames", FRAMES)
    with Clip(path) as clip:
        assert len(clip) == len(expected)
        for number in [*range(len(expected))][::-1]:
            np.testing.assert_array_equal(clip[number], expected[number])


@pytest.mark.parametrize("codec", ["mpeg4", "libvpx-vp9"])
def test_odd_sides_of_other_codecs(tmp_path, codec):
    path = encode(tmp_path / "clip.mkv", codec, VP9 if codec != "mpeg4" else {"g": "8"}, size=(35, 47))
    assert Clip(path).frames([0, 9, 20]).shape == (3, 35, 47, 3)
    np.testing.assert_array_equal(Clip(path).frames([20, 0]), sequentially(path)[[20, 0]])


def test_colours_are_red_green_blue(tmp_path):
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        red = np.zeros((32, 32, 3), np.uint8)
        red[..., 0] = 250
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    shown = Clip(path)[0].reshape(-1, 3).mean(axis=0)
    assert shown[0] > 240 and shown[1] < 15 and shown[2] < 15
    assert Clip(path)[0].dtype == np.uint8


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_frames_are_turned_as_the_file_asks_for(tmp_path, turns):
    """The matrix of an MP4's track, as cameras that are held upright write it."""
    path = encode(tmp_path / "clip.mp4")
    data = bytearray(path.read_bytes())
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]  # clockwise
    matrix = [cos * 65536, sin * 65536, 0, -sin * 65536, cos * 65536, 0, 0, 0, 1 << 30]
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in matrix)
    plain = sequentially(path)
    path.write_bytes(data)
    with Clip(path) as clip:
        for number in (20, 3, 4):
            np.testing.assert_array_equal(clip[number], np.rot90(plain[number], -turns))
        assert clip.frames([2]).shape == ((1, 48, 36, 3) if turns % 2 else (1, 36, 48, 3))


def test_any_name_will_do(tmp_path):
    name = "a: видео 動画 %20 'x' é.mp4"
    source = encode(tmp_path / "clip.mp4")
    (tmp_path / name).write_bytes(source.read_bytes())
    np.testing.assert_array_equal(Clip(tmp_path / name)[-1], Clip(source)[-1])
    np.testing.assert_array_equal(Clip(str(tmp_path / name))[7], Clip(source)[7])


def test_a_cover_is_no_clip(tmp_path):
    """The picture in a music file is a video stream, too."""
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuvj420p")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        if not container.streams.video[0].disposition & av.stream.Disposition.attached_pic:
            pytest.skip("this FFmpeg writes covers as clips")
    with pytest.raises(UnreadableMediaError, match="no video in it"):
        len(Clip(path))


def test_frames_before_the_first_key_frame_are_none(tmp_path):
    path = encode(tmp_path / "clip.mp4")
    cut = tmp_path / "cut.mkv"
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if (
                number >= 3 and packet.size
            ):  # the first key frame is gone: nothing up to the next can be decoded
                packet.stream = copied
                target.mux(packet)
    with Clip(cut) as clip:
        assert len(clip) == FRAMES - 8
        expected = sequentially(path)[8:]
        np.testing.assert_array_equal(clip.frames(range(len(clip))), expected)
        np.testing.assert_array_equal(clip[11], expected[11])


def test_frames_that_an_edit_list_leaves_out_are_none(tmp_path):
    """Players and FFmpeg begin to show such a clip, cut without encoding, after its first key frame."""
    path = encode(tmp_path / "clip.mp4")
    cut = tmp_path / "cut.mp4"
    with (
        av.open(str(path)) as source,
        av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as target,
    ):
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        shift = 5 * round(1 / (25 * stream.time_base))
        for packet in source.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copied
                target.mux(packet)
    expected = sequentially(cut)
    np.testing.assert_array_equal(expected, sequentially(path)[5:])
    with Clip(cut) as clip:
        assert len(clip) == FRAMES - 5
        for number in reversed(range(FRAMES - 5)):
            np.testing.assert_array_equal(clip[number], expected[number])


def test_numbers_outside_are_refused(folder):
    with Clip(folder / "h264.mp4") as clip:
        for number in (FRAMES, -FRAMES - 1):
            with pytest.raises(IndexError, match=f"has 30 frames; there is no frame {number}"):
                clip.frames([0, number])
        with pytest.raises(ValueError, match="no frames"):
            clip.frames([])
        assert len(clip[3:6]) == 3 and clip[5:5] == [] and "h264.mp4" in repr(clip)


# ------------------------------------------------------------------------------------- broken files
@pytest.mark.parametrize(
    "content", [b"", b"this is a text, not a clip\n" * 40, b"\x00" * 5000, b"#EXTM3U\nhttp://x/y.ts"]
)
def test_what_is_no_clip_is_named(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(UnreadableMediaError, match=r"clip\.mp4 cannot be read.*replace it or remove") as e:
        len(Clip(path))
    assert e.value.path == str(path) and not isinstance(e.value, MissingMediaError)
    copied = copy.copy(e.value)  # by the means of pickle, as loaders' workers send it
    assert (copied.path, str(copied)) == (e.value.path, str(e.value))
    with pytest.raises(UnreadableMediaError):
        load_processor("alpro_video_eval", {"image_size": 8, "n_frms": 2})(path)


def test_missing_clips_and_folders(tmp_path):
    for path, kind, said in (
        (tmp_path / "no.mp4", MissingMediaError, "there is no clip"),
        (tmp_path, UnreadableMediaError, "it is a folder, not a file"),
    ):
        with pytest.raises(kind, match=said) as e:
            Clip(path)
        assert e.value.path == str(path)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UnreadableMediaError, match="it is a pipe, not a file"):
        Clip(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg4.avi", "vp9.webm", "h264.mov"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_a_clip_that_breaks_off_is_refused_as_a_whole(folder, tmp_path, name, share):
    _, codec, options, _ = next(kind for kind in KINDS if kind[0] == name)
    whole = encode(
        tmp_path / f"whole{Path(name).suffix}", codec, options, faststart=name.endswith(("mp4", "mov"))
    )
    path = tmp_path / name
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableMediaError, match=f"{name} cannot be read"):
        Clip(path).frames([0])


def test_the_place_where_a_clip_breaks_off_is_named(tmp_path):
    whole = encode(tmp_path / "whole.mp4", faststart=True)
    data = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * 0.7)])
    with pytest.raises(UnreadableMediaError, match=r"breaks off at about frame \d\d;"):
        Clip(tmp_path / "cut.mp4").frames([0, 1])


@given(st.sampled_from(["h264.mp4", "mpeg4.avi", "vp9.webm", "h264.mkv", "h264.ts"]), st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_frames_or_our_error(folder, tmp_path, name, data):
    """Whatever bytes are changed, no other exception, and no other shape."""
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        with Clip(path) as clip:
            found = clip.frames(sample_indices(len(clip), 4))
    except UnreadableMediaError as e:
        assert e.path == str(path)
    else:
        assert found.dtype == np.uint8 and found.ndim == 4 and len(found) <= 4


def test_without_the_package_the_extra_is_named(folder):
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from lavis.processors import load_processor\n"
        f"load_processor('alpro_video_eval', {{'n_frms': 2}})({str(folder / 'h264.mp4')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and "pip install openlavis[video]" in last


# ------------------------------------------------------------------------------------- processors
@pytest.mark.parametrize("name", ["alpro_video_eval", "alpro_video_train"])
def test_a_processor_of_a_path_is_one_of_its_frames(folder, whole, name):
    processor = load_processor(name, {"image_size": 24, "n_frms": 6})
    for file in ("h264.mp4", "open.mkv", "h264.avi"):
        expected = processor(whole[file], np.random.default_rng(3))
        for item in (folder / file, str(folder / file)):
            assert torch.equal(processor(item, np.random.default_rng(3)), expected)
        with Clip(folder / file) as clip:
            assert torch.equal(processor(clip, np.random.default_rng(3)), expected)


def test_a_model_answers_about_a_file(folder):
    """As in the paper, with a path where pictures are opened first."""
    model, vis, txt = load_model_and_preprocess("alpro_qa", "tiny", is_eval=True)
    sample = {
        "video": vis["eval"](str(folder / "h264.mp4"))[None],
        "text_input": [txt["eval"]("What moves?")],
    }
    assert model.predict(sample)["predictions"].shape == (1, 33)


def test_short_clips_are_filled_up(tmp_path):
    path = encode(tmp_path / "clip.mp4", frames=3)
    out = load_processor("alpro_video_eval", {"image_size": 8, "n_frms": 5})(path)
    assert out.shape == (3, 5, 8, 8) and torch.equal(out[:, 2], out[:, 4])
    assert load_processor("alpro_video_eval", {"image_size": 8})(path).shape == (3, 3, 8, 8)


def test_files_are_closed(folder, monkeypatch):
    opened = []
    original = clips._open_file
    monkeypatch.setattr(clips, "_open_file", lambda path: opened.append(original(path)) or opened[-1])
    assert len(choose_frames(folder / "h264.mp4", 4)) == 4
    assert opened
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            container.seek(0)


def test_features_of_frames_from_a_file(folder, whole):
    processor = load_processor("gpt_frame_ft", {"grid": 4, "n_frms": 5})
    assert torch.equal(processor(folder / "h264.mp4"), processor(whole["h264.mp4"]))
