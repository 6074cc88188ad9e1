"""Questions about a video."""

from __future__ import annotations

from typing import Any

from lavis.app.demo.page import EXAMPLES, Bars, ClipInput, LinesInput, Page, Row, TextInput
from lavis.app.demo.pages.answering import answer, names_its_answers
from lavis.common.registry import registry


@registry.register_page("video_answering")
class VideoAnswering(Page):
    title = "Video questions"
    about = "Answers a question about a short clip, of which evenly spread frames are read."
    button = "Ask"
    needs, sees, task = "Answers", "video", "ask"
    inputs = (
        ClipInput("clip", "Clip"),
        TextInput("question", "Question", value="is there a heart?"),
        LinesInput(
            "answers", "Answers to choose from", "One a line; leave it empty to let the model write.", minimum=0
        ),
    )  # fmt: skip
    outputs = (Bars("answer", "Answer"),)
    examples = tuple(EXAMPLES / f"clip_{i}.webm" for i in range(3))
    order = 80

    @classmethod
    def offers(cls, preset: Any) -> bool:
        """None that knows its answers by number only."""
        return super().offers(preset) and names_its_answers(preset)

    def run(self, loaded: Any, clip: Any, question: str, answers: tuple[str, ...] = ()) -> list[Row]:
        """The answer and its probability."""
        return answer(loaded, loaded.prepare(clip)[None], [question], answers)[0]
