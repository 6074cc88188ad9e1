"""How well sentences fit a video."""

from __future__ import annotations

from typing import Any

from lavis.app.demo.page import EXAMPLES, Bars, ClipInput, LinesInput, Page, Row
from lavis.app.demo.pages.matching import compared
from lavis.common.registry import registry


@registry.register_page("video_matching")
class VideoMatching(Page):
    title = "Video and text"
    about = "Says how well sentences fit a short clip, of which evenly spread frames are read."
    button = "Compare"
    needs, sees, task = "EmbedsBoth", "video", "match"
    inputs = (
        ClipInput("clip", "Clip"),
        LinesInput(
            "sentences", "Sentences", "One a line.",
            value="a yellow heart grows and then a pink heart shrinks\n"
            "a yellow square grows while a blue square moves up and a yellow circle stays still\n"
            "a red star disappears",
        ),
    )  # fmt: skip
    outputs = (Bars("sentences", "How well each sentence fits"),)
    examples = tuple(EXAMPLES / f"clip_{i}.webm" for i in range(3))
    order = 70

    def run(self, loaded: Any, clip: Any, sentences: tuple[str, ...]) -> list[Row]:
        """Sentences, the best first."""
        return compared(loaded, clip, sentences)
