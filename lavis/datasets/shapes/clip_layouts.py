"""Drawn clips as files, in the layouts of published data sets: whatever reads those, reads these.

Clips are encoded, so they differ a little from those that are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.datasets.base import Dataset, Record
from lavis.datasets.sources import Source

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9"}
FRAMES_PER_SECOND = 8


def export_clips(dataset: Any, name: str, root: str | Path, suffix: str = ".mp4") -> Path:
    """Write a split in the layout of a published data set of clips, clips included.

    Args:
        dataset: a split of `shapes_video_caption` for captions, of `shapes_video_retrieval`, `shapes_video_qa` (with
            classes) or `shapes_video_dialogue` for the others.
        name: the data set's, e.g. "msrvtt_qa"; of `avsd_dialogue` the videos are written, no features.
        root: the cache root; annotation files and clips go where the data set looks for them below it.
        suffix: ".mp4", ".mkv", ".avi" or ".webm". A clip that is there already isn't written again.

    Returns:
        The path of the annotation file. Training splits have one record per caption, others one per clip.

    Raises:
        ValueError: another suffix, or a data set without a layout here.
        ImportError: PyAV is not installed.
    """
    if suffix not in CODECS:
        raise ValueError(f"suffix is {suffix!r}; it should be one of {', '.join(CODECS)}")
    if name not in _LAYOUTS:
        raise ValueError(f"there is no layout of {name!r} for clips.{suggest(name, _LAYOUTS)}")
    root, published = Path(root), registry.get_dataset_class(name)
    folder = root / (published.media if published.data_type == "videos" else "avsd/videos")
    for record in dataset.records:
        path = folder / _file_name(dataset, record, suffix)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(dataset.clip(record), path)
    rows = _LAYOUTS[name](dataset, suffix)
    source = published.sources[dataset.split]
    first, *others = (source,) if isinstance(source, Source) else source
    for classes in others:
        _write(root / classes.storage, {answer: label for label, answer in enumerate(dataset.answer_list)})
    return _write(root / first.storage, rows)


def write_clip(frames: np.ndarray, path: str | Path, rate: int = FRAMES_PER_SECOND) -> None:
    """Encode frames as a video file.

    Args:
        frames: (T, h, w, 3) uint8, RGB; sides should be even.
        path: its suffix decides container and codec (`CODECS`).
        rate: frames per second.

    Raises:
        ImportError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as e:
        raise ImportError(
            "writing clips needs PyAV, which is not installed: pip install openlavis[video]"
        ) from e
    path = Path(path)
    codec = CODECS[path.suffix]
    quality = {"libx264": {"crf": "12"}, "libvpx-vp9": {"crf": "12", "deadline": "realtime"}}.get(codec, {})
    with av.open(f"file:{path}", "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=quality)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        stream.codec_context.thread_count = 1
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _file_name(dataset: Dataset, record: Mapping[str, Any], suffix: str) -> str:
    return f"{dataset.split}{record['image_id']}{suffix}"


def _captions(dataset: Dataset, suffix: str, *, keys: tuple[str, ...] = ("image_id",)) -> list[Record]:
    rows: list[Record] = []
    for record in dataset.records:
        row = {"video": _file_name(dataset, record, suffix)}
        row |= {key: record[key] for key in keys}
        texts = record["caption"] if dataset.training else [record["caption"]]
        rows += [{**row, "caption": text} for text in texts]
    return rows


def _retrieval(dataset: Dataset, suffix: str) -> list[Record]:
    return _captions(dataset, suffix, keys=())


def _paragraphs(dataset: Dataset, suffix: str) -> list[Record]:
    return [
        {"video": _file_name(dataset, record, suffix), "caption": ". ".join(record["caption"])}
        for record in dataset.records
    ]


def _questions(dataset: Dataset, suffix: str) -> list[Record]:
    return [
        {"video": _file_name(dataset, r, suffix), **{k: r[k] for k in ("question", "answer", "question_id")}}
        for r in dataset.records
    ]


def _dialogues(dataset: Dataset, suffix: str) -> dict[str, list[Record]]:
    return {
        "dialogs": [
            {
                "image_id": Path(_file_name(dataset, record, suffix)).stem,
                "caption": record["caption"],
                "summary": "",
                "dialog": [{key: turn[key] for key in ("question", "answer")} for turn in record["dialog"]],
            }
            for record in dataset.records
        ]
    }


_LAYOUTS: Mapping[str, Callable[[Any, str], Any]] = {
    "msrvtt_caption": _captions,
    "msrvtt_qa": _questions,
    "msrvtt_retrieval": _retrieval,
    "msvd_caption": _captions,
    "msvd_qa": _questions,
    "didemo_retrieval": _paragraphs,
    "vatex_caption": _retrieval,  # no image_id
    "avsd_dialogue": _dialogues,
}


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
