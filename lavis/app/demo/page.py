"""What a page is, and all that a file with a page needs to import.

A page says which models it can use, names its inputs and outputs, and has a function from one to the other. It knows
neither the browser nor Gradio, so it is tested by calling `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lavis.app.demo.fields import (
    ChoiceInput,
    ClipInput,
    Field,
    HistoryInput,
    LinesInput,
    NumberInput,
    PictureInput,
    TextInput,
)
from lavis.app.demo.results import Bars, Layers, Pictures, Result, Rounds, Row, Shown, Talk

__all__ = [
    "EXAMPLES", "Bars", "ChoiceInput", "ClipInput", "Field", "HistoryInput", "Layers", "LinesInput", "NumberInput",
    "Page", "PictureInput", "Pictures", "Progress", "Result", "Rounds", "Row", "Settings", "Shown", "Stop", "Talk",
    "TextInput", "percent", "silent",
]  # fmt: skip

Progress = Callable[[int, int, str], None]  # told (done, of how many, what is being done)
Stop = Callable[[], bool]  # whether the visitor has had enough
EXAMPLES = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Settings:
    """What pages are told about the server.

    Attributes:
        work: a folder for what a page has to write; it is removed when the server ends.
        gallery: the folder of pictures to search in; None: the drawings in the package.
    """

    work: Path
    gallery: Path | None = None


class Page:
    """One page of the demo. Subclasses are registered with `registry.register_page(name)`.

    Attributes:
        title: of the page, two or three words.
        about: what it does, a sentence or two.
        button: what is on the button.
        needs: the ability that a model must have to be offered, the name of a protocol of lavis.inference.protocols
            such as "Writes", or several, of which one will do; "": the page needs no model, unless it names some in
            `models`.
        sees: "image" or "video", what the offered models are for.
        task: the presets that are the default for this task come first, see `Preset.default_for`.
        models: the only ones that it can use, as <name>/<type> or folders, where that does not follow from `needs`.
        inputs, outputs: in the order in which they are shown.
        examples: files for the first input that takes a picture or a clip.
        order: of pages, smallest first.
        batched: names of inputs that may differ between calls which are computed together; all other inputs are
            equal in a batch. Not empty: `run` gets a list for each of these and returns a list of results.
        largest_batch: calls computed together, at most.
        reports: `run` can take minutes and is also given `progress` (`Progress`), which the visitor sees.
        talks: the page holds a conversation: among its inputs are "message", "history" (`HistoryInput`) and "retry", a
            choice of "no" and "yes", which the page's buttons say; its outputs are `Talk` and `Rounds`. `run` is also
            given `stop` (`Stop`), and returns early once that says so.
    """

    title: ClassVar[str]
    about: str = ""
    button: ClassVar[str] = "Run"
    needs: ClassVar[str | tuple[str, ...]] = ""
    sees: ClassVar[str] = "image"
    task: ClassVar[str] = ""
    models: Sequence[str] = ()
    inputs: ClassVar[Sequence[Field]] = ()
    outputs: ClassVar[Sequence[Result]] = ()
    examples: ClassVar[Sequence[Path]] = ()
    order: ClassVar[int] = 100
    batched: ClassVar[Sequence[str]] = ()
    largest_batch: ClassVar[int] = 8
    reports: ClassVar[bool] = False
    talks: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def uses_models(self) -> bool:
        """Whether a visitor chooses a model."""
        return bool(self.models) or bool(self.needs)

    @classmethod
    def abilities(cls) -> list[type]:
        """The protocols of which a model needs one."""
        from lavis.inference.abilities import ability_named

        names = (cls.needs,) if isinstance(cls.needs, str) else cls.needs
        return [ability_named(name) for name in names if name]

    @classmethod
    def can_use(cls, model_class: type) -> bool:
        """Whether the page can work with a class of models."""
        return (
            any(issubclass(model_class, ability) for ability in cls.abilities())
            and getattr(model_class, "MEDIA", "image") == cls.sees
            and not getattr(model_class, "PAIRS", False)
        )

    @classmethod
    def offers(cls, preset: Any) -> bool:
        """Whether a preset of such a class is to be offered: one with finished weights (a language model's are, though
        its Q-Former is called pre-trained), or the default for `task`."""
        return bool(preset.weights or preset.parts) or cls.task in preset.default_for

    def run(self, loaded: Any, *args: Any, **inputs: Any) -> Any:
        """Inputs to outputs.

        Args:
            loaded: the chosen model (`lavis.inference.Loaded`), used by nobody else meanwhile; None if there are no
                models.
            inputs: by the names of `inputs`, checked.

        Returns:
            the value of the output, or a tuple of as many as there are outputs; see `results`. With `batched`, a list
            of these, one a call.

        Raises:
            ValueError, OSError, ImportError: what the visitor should read, as one sentence.
        """
        raise NotImplementedError


def silent(done: int, total: int, what: str) -> None:
    """Progress that nobody sees."""


def percent(share: float) -> str:
    """0.123 as "12.3 %"."""
    return f"{100 * share:.1f} %"


def values_of(page: type[Page] | Page, result: Any) -> Sequence[Any]:
    """The values of a page's outputs, for what its `run` returned."""
    return result if len(page.outputs) != 1 else (result,)
