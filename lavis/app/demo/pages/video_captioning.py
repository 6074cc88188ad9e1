"""Captions of a video."""

from __future__ import annotations

from typing import Any

from lavis.app.demo.page import EXAMPLES, Bars, ClipInput, NumberInput, Page, Row
from lavis.app.demo.pages.captioning import describe
from lavis.common.registry import registry


@registry.register_page("video_captioning")
class VideoCaptioning(Page):
    title = "Video captions"
    about = (
        "Describes a short clip, of which evenly spread frames are read. The models were trained on pictures, so they "
        "tell what is there rather than what happens."
    )
    button = "Describe"
    needs, sees, task = "Writes", "video", "caption"
    inputs = (
        ClipInput("clip", "Clip"),
        NumberInput("captions", "Captions", value=3, minimum=1, maximum=5),
    )
    outputs = (Bars("captions", "Captions"),)
    examples = tuple(EXAMPLES / f"clip_{i}.webm" for i in range(3))
    order = 75

    def run(self, loaded: Any, clip: Any, captions: int = 3) -> list[Row]:
        """Captions, best first."""
        return describe(loaded, [clip], captions, num_beams=5)[0]
