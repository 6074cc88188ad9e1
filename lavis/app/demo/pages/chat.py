"""A conversation about an image."""

from __future__ import annotations

import secrets
from typing import Any

from lavis.app.demo.page import (
    EXAMPLES,
    ChoiceInput,
    HistoryInput,
    LinesInput,
    NumberInput,
    Page,
    PictureInput,
    Rounds,
    Stop,
    Talk,
    TextInput,
)
from lavis.app.demo.pages.answering import names_its_answers
from lavis.common.registry import registry


@registry.register_page("chat")
class Chat(Page):
    title = "Chat"
    about = (
        "Talks about a picture. A model with a language model, or one for dialogues, heeds what was said before; one "
        "that answers questions takes each by itself. The conversation is kept in your browser."
    )
    button = "Send"
    needs, task = ("Chats", "Answers"), "ask"
    inputs = (
        PictureInput("picture", "Picture"),
        TextInput("message", "Message", value="what color is the triangle?", required=False),
        HistoryInput("history", "Conversation"),
        ChoiceInput("retry", "Retry", choices=("no", "yes")),
        TextInput(
            "prompt", "Prompt", "The form of a message, with {} in its place; empty: the model's own.", more=True,
            placeholder="Question: {} Answer:", required=False,
        ),
        NumberInput("beams", "Beams", "Of the search; 1 is the fastest.", more=True, value=3),
        NumberInput("longest", "Longest answer, in tokens", more=True, value=60, minimum=5, maximum=250),
        TextInput(
            "caption", "Caption", "What the picture shows; some models for dialogues need it.", more=True,
            required=False,
        ),
        LinesInput("answers", "Answers to choose from", "One a line, for models that choose.", more=True, minimum=0),
    )  # fmt: skip
    outputs = (Talk("talk", "Conversation"), Rounds("rounds", "Rounds"))
    examples = tuple(EXAMPLES / f"drawing_{i:02d}.png" for i in range(6))
    order = 25
    talks = True

    @classmethod
    def offers(cls, preset: Any) -> bool:
        """None that knows its answers by number only."""
        return super().offers(preset) and names_its_answers(preset)

    def run(
        self,
        loaded: Any,
        picture: Any,
        message: str = "",
        history: tuple[tuple[str, str], ...] = (),
        retry: str = "no",
        prompt: str = "",
        beams: int = 3,
        longest: int = 60,
        caption: str = "",
        answers: tuple[str, ...] = (),
        stop: Stop = lambda: False,
        seed: int | None = None,
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """The conversation with the answer to a message, or with another answer to the last one, drawn with a seed
        (None: one that nobody knows)."""
        from lavis.inference.dialogue import Conversation, Turn

        again = retry == "yes"
        if again and not history:
            raise ValueError("Retry: there is no answer yet")
        if not again and not message:
            raise ValueError("Message: write something first")
        if again:
            message, history = history[-1][0], history[:-1]
        talk = Conversation(loaded, picture, caption or None, answers or None, prompt or None)
        talk.turns += [Turn(question, answer, 0.0) for question, answer in history]
        options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": longest, "stop": stop}
        if again:
            options |= {"use_nucleus_sampling": True, "num_beams": 1}
            options["seed"] = secrets.randbits(31) if seed is None else seed
        known = talk.takes(options)
        if again and (answers or "seed" not in known):
            raise ValueError(f"Retry: {loaded.spec} always gives the same answer")
        talk.ask(message, **({} if answers else {name: options[name] for name in known}))
        rounds = [(turn.question, turn.answer) for turn in talk.turns]
        return rounds, rounds
