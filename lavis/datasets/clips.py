"""Clips in files: the frames that are wanted, decoded by PyAV, and no others if that is cheaper.

A frame's number is its place in the order of showing, from 0. To number frames, a file's packets are listed
once without decoding, which costs little beside it: each holds the coded picture of one frame, its time, and
whether decoding can start there (a key frame). A container's own count of frames isn't used: some have none,
some count pictures that are never shown, and it doesn't say where key frames are.

From frame to frame, a clip is read on, or, where that decodes less, continued at the last key frame before
the wanted one. Both give the same pictures. Decoding uses one thread: loaders have a process per core.

A file that breaks off, or whose packets can't be decoded up to the wanted frames, is refused as a whole, even
where some of the frames could be had: otherwise evenly spread frames would be those of another clip.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lavis.common.images import UnreadableMediaError, check_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_WORTH_SEEKING = 4  # frames saved; going to a key frame discards those that the decoder holds back
_INTRA = 1  # FFmpeg's AV_PICTURE_TYPE_I, a picture that needs no other
# a packet may say "as before", and give no picture of its own
_REPEATING = ("mpeg4", "msmpeg4v3", "msmpeg4v2")


@dataclass(frozen=True)
class _Index:
    """What a clip's packets say about its frames, in the order of showing.

    Attributes:
        count: of frames.
        times: when each is shown, rising, in units of the stream; None where the container doesn't know.
        keys: the numbers of key frames, rising; none where `times` is None.
        decoding_times: of the key frames; None where unknown.
    """

    count: int
    times: list[int] | None
    keys: list[int]
    decoding_times: list[int | None]


class Clip(Sequence[np.ndarray]):
    """A clip's frames, decoded when they are asked for; the file is open until `close`.

    Args:
        path: the file, of any format that FFmpeg reads. Of several video streams the first is read.

    Frames are (h, w, 3) arrays of uint8, RGB, turned by quarters as the file asks for; the shape of pixels
    that aren't square is not corrected.

    Raises:
        MissingMediaError: there is no such file.
        UnreadableMediaError: it holds no video, is damaged, or breaks off.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        check_file(self.path, what="clip")
        self._container: InputContainer | None = None
        self._frames: Iterator[VideoFrame] | None = None
        self._last: tuple[int, np.ndarray] | None = None  # the frame read last, and its number
        self._began = 0  # number of the frame that decoding began with
        self._passed = -1  # number of the last frame that the decoder gave
        self._kept: VideoFrame | None = None  # that frame
        self._keys_hold = True  # whether decoding from key frames has given the frames so far

    def close(self) -> None:
        """Close the file; asking for frames opens it again."""
        self._frames = self._kept = None
        self._passed = -1
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._index.count

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the coded frames, in pixels, from the file's header: nothing is decoded."""
        with self._decodable("its header can't be read"):
            codec = self._open()[1].codec_context
        return codec.width, codec.height

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self.frames([index])[0]

    def __repr__(self) -> str:
        return f"Clip({str(self.path)!r})"

    def frames(self, numbers: Iterable[int]) -> np.ndarray:
        """Decode frames.

        Args:
            numbers: which, in any order; negative ones count from the end.

        Returns:
            An array (T, h, w, 3) of uint8, RGB, one frame for each number.

        Raises:
            IndexError: there is no such frame.
            UnreadableMediaError: the clip is damaged; the message names the first frame that can't be had.
        """
        given = [operator.index(n) for n in numbers]
        for number in given:
            if not -len(self) <= number < len(self):
                raise IndexError(f"{self.path} has {len(self)} frames; there is no frame {number}")
        wanted = [n % len(self) for n in given]
        found: dict[int, np.ndarray] = {}
        for number in sorted(set(wanted)):
            found[number] = self._read(number)
            if found[number].shape != found[min(found)].shape:
                raise self._unreadable(f"the size of its frames changes before frame {number}")
        if not found:
            raise ValueError(f"no frames of {self.path} are asked for")
        return np.stack([found[n] for n in wanted])

    # ------------------------------------------------------------------ listing
    @functools.cached_property
    def _index(self) -> _Index:
        self.close()
        packets: list[tuple[int | None, int | None, bool]] = []  # time, decoding time, key frame
        begun, first = False, None  # whether there was a key frame, and its time
        with self._decodable("its packets can't be listed"):
            container, stream = self._open()
            if "matroska" in container.format.name:
                self._check_size()
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    raise self._unreadable(f"it breaks off at about frame {len(packets)}")
                if packet.is_keyframe and not begun:
                    begun, first = True, packet.pts
                if begun and _is_shown(packet, stream):
                    packets.append((packet.pts, packet.dts, packet.is_keyframe))
            # AVI has times of decoding only, which mean nothing where frames are shown in another order
            guessed = container.format.name == "avi" and stream.codec_context.has_b_frames
        self.close()
        if not packets:
            raise self._unreadable("it holds no frame that decoding could start from")
        times = [pts for pts, _, _ in packets if pts is not None]
        if first is None or len(set(times)) < len(packets) or (guessed and times == sorted(times)):
            return _Index(len(packets), None, [], [])
        # those shown before the first key frame need pictures that aren't there
        shown = sorted((pts, dts, key) for pts, dts, key in packets if pts is not None and pts >= first)
        keys = [number for number, (_, _, key) in enumerate(shown) if key]
        return _Index(len(shown), [pts for pts, _, _ in shown], keys, [shown[k][1] for k in keys])

    def _check_size(self) -> None:
        """Refuse a file of Matroska or WebM that is shorter than it says: FFmpeg reads it without a word."""
        there, announced = self.path.stat().st_size, _matroska_size(self.path)
        if announced is not None and there < announced:
            raise self._unreadable(f"it breaks off, {there:,} of {announced:,} bytes are there")

    # ------------------------------------------------------------------ decoding
    def _read(self, number: int) -> np.ndarray:
        """One frame as an array."""
        if self._last is None or self._last[0] != number:
            self._last = number, self._upright(self._decode(number))
        return self._last[1]

    def _decode(self, number: int) -> VideoFrame:
        with self._decodable(f"frame {number} can't be decoded"):
            key = self._key_before(number)
            if (
                self._frames is None
                or number < self._passed
                or (key is not None and key - self._passed > _WORTH_SEEKING)
            ):
                self._start(key)
            try:
                frame = self._advance(number)
            except _import_av().FFmpegError:
                if not self._began:
                    raise
                frame = None
            if self._began and (frame is None or frame.is_corrupt):
                self._keys_hold = False
                self._start(None)
                frame = self._advance(number)
            if frame is None or frame.is_corrupt:
                raise self._unreadable(f"frame {number} of {len(self)} is damaged or missing")
        return frame

    def _key_before(self, number: int) -> int | None:
        """The last key frame that is no later than a frame; None where there is none that could be gone to."""
        keys = self._index.keys
        place = bisect_right(keys, number) if self._keys_hold else 0
        return keys[place - 1] if place else None

    def _advance(self, number: int) -> VideoFrame | None:
        """Decode on to a frame; None where it doesn't come."""
        assert self._frames is not None
        while self._passed < number:
            before, frame = self._kept, next(self._frames, None)
            if frame is not None:
                self._passed, self._kept = self._number_of(frame), frame
                if before is None and self._began:
                    if self._passed < self._began:
                        # shown before the key frame, it builds on pictures that aren't there
                        self._kept = None
                    elif self._passed > self._began or int(frame.pict_type) != _INTRA:
                        # where pictures are renewed bit by bit, "key frames" build on those before
                        return None
            if frame is None or self._passed > number:
                return before if self._open()[1].codec_context.name in _REPEATING else None
        return self._kept

    def _number_of(self, frame: VideoFrame) -> int:
        times = self._index.times
        if times is None:
            return self._passed + 1
        return -1 if frame.pts is None else bisect_right(times, frame.pts) - 1

    def _start(self, key: int | None) -> None:
        """Begin to decode at a key frame, or, where that can't be found or is None, at the first frame."""
        self._frames, self._kept, self._passed = None, None, -1
        if key:
            container, stream = self._open()
            place = self._index.keys.index(key)
            assert self._index.times is not None
            # Containers search by time of showing or of decoding; what they find is looked at before it is used.
            for time in (self._index.times[key], self._index.decoding_times[place]):
                if time is None:
                    continue
                container.seek(time, stream=stream)
                packets = container.demux(stream)
                first = next(packets, None)
                number = None if first is None else self._key_number(first)
                if number is not None and number <= key:
                    self._began, self._frames = number, _decoded(first, packets)
                    return
        self.close()
        container, stream = self._open()
        self._began = 0
        self._frames = _decoded(None, container.demux(stream))

    def _key_number(self, packet: Packet) -> int | None:
        """The number of the frame in a packet, if it is a key frame of the clip."""
        times = self._index.times
        if times is None or not packet.is_keyframe or packet.pts is None or packet.pts < times[0]:
            return None
        return bisect_right(times, packet.pts) - 1

    def _open(self) -> tuple[InputContainer, VideoStream]:
        if self._container is None:
            self._container = _open_file(self.path)
        stream = _first_video(self._container)
        if stream is None:
            raise self._unreadable("there is no video in it, or none that can be decoded")
        return self._container, stream

    @staticmethod
    def _upright(frame: VideoFrame) -> np.ndarray:
        pixels: np.ndarray = frame.to_ndarray(format="rgb24")
        quarters = round(frame.rotation / 90) % 4  # against the clock
        return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels

    # ------------------------------------------------------------------ complaints
    def _unreadable(self, why: str) -> UnreadableMediaError:
        message = f"the clip {self.path} cannot be read: {why}; replace it or remove its record"
        return UnreadableMediaError(message, self.path)

    @contextlib.contextmanager
    def _decodable(self, what: str) -> Iterator[None]:
        """Turn PyAV's errors into ours."""
        av = _import_av()
        try:
            yield
        except av.FFmpegError as e:
            self.close()
            raise self._unreadable(f"{what} ({e.strerror or e})") from e


def _import_av() -> Any:
    try:
        import av
    except ImportError as e:
        raise ImportError(
            "reading clips from files needs PyAV, which is not installed: pip install openlavis[video]"
        ) from e
    return av


def _open_file(path: Path) -> InputContainer:
    # "file:" and the whitelist: names with colons are files, and no file can point to the network
    options = {"protocol_whitelist": "file"}
    container: InputContainer = _import_av().open(f"file:{path}", metadata_errors="ignore", options=options)
    return container


def _first_video(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures (not a cover) that there is a decoder for, set to one thread."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            if not stream.codec_context.is_open:
                stream.codec_context.thread_count = 1
            return stream
    return None


def _matroska_size(path: Path) -> int | None:
    """The length that a file of Matroska or WebM says it has (RFC 9559); None where it says none."""

    def number(at: int) -> tuple[int, int]:  # of a length, and the place after it
        length = 9 - head[at].bit_length()
        value = int.from_bytes(head[at : at + length], "big") - (1 << 7 * length)
        return (-1 if value == (1 << 7 * length) - 1 else value), at + length

    with path.open("rb") as file:
        head = file.read(4096)
    try:
        size, start = number(4)  # of the header, after its mark
        segment = start + size
        if head[segment : segment + 4] != b"\x18\x53\x80\x67":
            return None
        size, start = number(segment + 4)
    except IndexError:
        return None
    return None if size < 0 else start + size


def _is_shown(packet: Packet, stream: VideoStream) -> bool:
    """Whether a packet's picture is a frame of the clip, not one that is cut off or only helps others."""
    if packet.is_discard:
        return False
    # VP8 says it in the frame's header: show_frame (RFC 6386, section 9.1)
    return stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _decoded(first: Packet | None, packets: Iterator[Packet]) -> Iterator[VideoFrame]:
    """The frames of packets, in the order of showing."""
    if first is not None:
        yield from first.decode()
    for packet in packets:
        if packet.size or packet.dts is None:  # an empty one in between would end decoding
            yield from packet.decode()
