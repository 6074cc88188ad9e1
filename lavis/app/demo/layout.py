"""Pages as Gradio components: picker, inputs, button, results, examples; the same for every page."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lavis import __version__
from lavis.app.demo.calls import Caller
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
from lavis.app.demo.models import AWAY, PACKAGED, Choice
from lavis.app.demo.page import Page
from lavis.app.demo.results import Rounds

STYLE = Path(__file__).parent / "style.css"
# Gradio's examples are buttons with a picture and no words; a screen reader needs a name. A list of choices
# that is long enough to scroll would be a stop of its own for the keyboard. A conversation is shown from its end.
NAMES = """
new MutationObserver(() => {
  document.querySelectorAll("button.gallery-item:not([aria-label])").forEach(
    button => button.setAttribute("aria-label", "Example " + (1 + [...button.parentNode.children].indexOf(button))));
  document.querySelectorAll("ul[role=listbox]:not([tabindex])").forEach(list => { list.tabIndex = -1; });
  document.querySelectorAll(".lv-talk:not([data-shown])").forEach(
    talk => { talk.dataset.shown = ""; talk.scrollTop = talk.scrollHeight; });
}).observe(document, {childList: true, subtree: true});
"""
WAITING = 200  # calls in the queue; more are refused
AT_ONCE = 16  # calls of a page that are taken from the queue; see `calls` for what they wait for


@dataclass(frozen=True)
class Ready:
    """A page with its address, the models that it offers, and what answers its calls."""

    name: str
    page: Page
    offered: Sequence[Choice]
    caller: Caller


def build(pages: Sequence[Ready]) -> gr.Blocks:
    """The app: a start page at /, each page at /<name>.

    Raises:
        ValueError: a page's name is that of one of Gradio's own addresses, such as "config".
    """
    with gr.Blocks(title="LAVIS", analytics_enabled=False, delete_cache=(600, 3600)) as app:
        _html(_head(pages, ""))
        _html(_start(pages))
        _html(_foot())
    for ready in pages:
        with app.route(ready.page.title, f"/{ready.name}", show_in_navbar=False):
            _page(pages, ready)
    return app.queue(max_size=WAITING)


def _page(pages: Sequence[Ready], ready: Ready) -> None:
    page = ready.page
    _html(_head(pages, ready.name))
    _html(f'<div class="lv-about"><h1>{escape(page.title)}</h1><p>{escape(page.about)}</p></div>')
    given: list[Any] = []
    shown: dict[str, Any] = {}
    below = {"message"} if page.talks else set()  # the conversation
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=290):
            if page.uses_models:
                given.append(_picker(ready))
            for field in page.inputs:
                if not field.more and field.name not in below:
                    shown[field.name] = _component(field, page)
                    _examples(field, page, shown[field.name])
            folded = [field for field in page.inputs if field.more]
            if folded:
                with gr.Accordion("More settings", open=False):
                    shown |= {field.name: _component(field, page) for field in folded}
            button = None if page.talks else gr.Button(page.button, variant="primary")
        with gr.Column(scale=6, min_width=290, elem_classes="lv-results"):
            said = _html("")
            results = [
                _html(output.placeholder()) for output in page.outputs if not isinstance(output, Rounds)
            ]
            shown |= {field.name: _component(field, page) for field in page.inputs if field.name in below}
            buttons = _talk_buttons(page) if page.talks else []
    given += [shown[field.name] for field in page.inputs]
    _html(_foot())
    if button is None:
        _talking(ready, given, shown, said, results[0], buttons)
        return
    triggers = [button.click]
    triggers += [shown[field.name].submit for field in page.inputs if isinstance(field, TextInput)]
    gr.on(
        triggers,
        _reporting(ready.caller) if page.reports else ready.caller,
        inputs=given,
        outputs=[said, *results],
        show_progress_on=results[0],
        preprocess=False,  # `fields` check what comes, and open no file but uploads
        concurrency_limit=AT_ONCE,
        api_name=ready.name,
        scroll_to_output=True,
    )


def _talk_buttons(page: Page) -> list[Any]:
    buttons = [gr.Button(page.button, variant="primary")]
    with gr.Row():
        return buttons + [gr.Button(name, size="md", min_width=80) for name in ("Retry", "Stop", "Clear")]


def _talking(
    ready: Ready, given: list[Any], shown: dict[str, Any], said: Any, talk: Any, buttons: Sequence[Any]
) -> None:
    """What the buttons of a conversation do."""
    send, retry, stop, clear = buttons
    talks = _Talks(ready.caller, 1 + [field.name for field in ready.page.inputs].index("retry"))
    message, history, empty = shown["message"], shown["history"], ready.page.outputs[0].placeholder()
    shared: dict[str, Any] = {
        "inputs": given, "outputs": [said, talk, history, message], "show_progress_on": talk, "preprocess": False,
        "concurrency_limit": AT_ONCE,
    }  # fmt: skip
    gr.on([send.click, message.submit], talks.send, api_name=ready.name, **shared)
    gr.on([retry.click], talks.retry, api_name=f"{ready.name}_retry", **shared)
    stop.click(talks.stop, None, None, queue=False, show_progress="hidden", api_visibility="private")
    begin = [clear.click, shown["picture"].change, *([given[0].change] if ready.page.uses_models else [])]
    gr.on(
        begin, lambda: ["", empty, "[]"], None, [said, talk, history], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip


class _Talks:
    """Calls of a page that talks, and the answers that are being written, by visitor, so that they can be stopped.

    Args:
        place: of the input "retry" among a call's values.
    """

    def __init__(self, caller: Caller, place: int) -> None:
        self._caller, self._place = caller, place
        self._running: defaultdict[str | None, set[threading.Event]] = defaultdict(set)
        self._guard = threading.Lock()

    def send(self, request: gr.Request, *values: Any) -> list[Any]:
        return self._call(request, values, "no")

    def retry(self, request: gr.Request, *values: Any) -> list[Any]:
        return self._call(request, values, "yes")

    def stop(self, request: gr.Request) -> None:
        """Stop what the visitor waits for; nobody else's."""
        with self._guard:
            for event in self._running.get(request.session_hash, ()):
                event.set()

    def _call(self, request: gr.Request, values: Sequence[Any], retry: str) -> list[Any]:
        event, visitor = threading.Event(), request.session_hash
        with self._guard:
            self._running[visitor].add(event)
        try:
            changed = [*values[: self._place], retry, *values[self._place + 1 :]]
            told, talk, rounds = self._caller(*changed, stop=event.is_set)
        finally:
            with self._guard:
                self._running[visitor].discard(event)
                if not self._running[visitor]:
                    del self._running[visitor]
        if talk is None:  # it went wrong, and what was said before stays
            return [told, gr.skip(), gr.skip(), gr.skip()]
        return [told, talk, rounds, gr.skip() if retry == "yes" else ""]


def _reporting(caller: Caller) -> Callable[..., list[str | None]]:
    """A caller whose progress Gradio shows over the results; Gradio finds the parameter by its default."""

    def call(progress: gr.Progress = gr.Progress(), *values: Any) -> list[str | None]:  # noqa: B008
        return caller(
            *values,
            progress=lambda done, total, what: progress(
                done / max(total, 1), f"{what}: {done:,} of {total:,}"
            ),
        )

    return call


def _picker(ready: Ready) -> gr.Dropdown:
    by_spec = {choice.spec: choice for choice in ready.offered}
    first = ready.offered[0].spec
    picker = gr.Dropdown(
        [(choice.label, choice.spec) for choice in ready.offered],
        value=first,
        label="Model",
        filterable=False,
    )
    note = _html(_model_note(by_spec[first], ready.offered))
    picker.change(
        lambda spec: _model_note(by_spec[spec], ready.offered) if spec in by_spec else "",
        picker,
        note,
        show_progress="hidden",
        api_visibility="private",
    )
    return picker


def _model_note(choice: Choice, offered: Sequence[Choice]) -> str:
    """What a model is; of a packaged one what it can't do, and where to find one that can."""
    about = choice.note.removeprefix("in the package; ")
    note = f"<p>{escape(about[:1].upper() + about[1:])}.</p>" if about else ""
    if choice.where == AWAY:
        note += (
            '<p class="lv-small">Its weights are not on this machine. <code>lavis demo --download</code> fetches '
            "them when the model is first used.</p>"
        )
    if choice.where == PACKAGED:
        real = next((c.spec for c in offered if c.where != PACKAGED), None)
        better = f" For those choose a model such as <code>{escape(real)}</code>." if real else ""
        note += (
            '<p class="lv-small">This is a small model for demonstration, and what it says of photographs means '
            f"nothing.{better}</p>"
        )
    return f'<div class="lv-model">{note}</div>'


def _component(field: Field, page: Page) -> Any:
    about: dict[str, Any] = {"label": field.label, "info": field.info or None}
    if isinstance(field, PictureInput):
        value = str(page.examples[0]) if field.required and page.examples else None
        return gr.Image(
            value,
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            label=field.label,
            height=260,
        )
    if isinstance(field, ClipInput):
        return gr.Video(
            str(page.examples[0]) if page.examples else None,
            sources=["upload"],
            label=field.label,
            height=260,
        )
    if isinstance(field, HistoryInput):
        return gr.Textbox("[]", visible="hidden", label=field.label)
    if page.talks and field.name == "retry":
        return gr.Textbox("no", visible="hidden", label=field.label)
    if isinstance(field, LinesInput):
        return gr.Textbox(field.value, lines=4, max_lines=8, placeholder=field.placeholder, **about)
    if isinstance(field, TextInput):
        return gr.Textbox(field.value, max_lines=1, placeholder=field.placeholder, **about)
    if isinstance(field, ChoiceInput):
        return gr.Radio(list(field.choices), value=field.choices[0], **about)
    if isinstance(field, NumberInput):
        return gr.Slider(field.minimum, field.maximum, value=field.value, step=field.step, **about)
    raise TypeError(f"{type(page).__name__}: there is no component for {type(field).__name__}")


def _examples(field: Field, page: Page, component: Any) -> None:
    """The page's examples, below the first input that they are for."""
    first = next((f for f in page.inputs if isinstance(f, PictureInput | ClipInput)), None)
    if field is first and page.examples:
        gr.Examples(
            [[str(path)] for path in page.examples], [component], label="Examples", examples_per_page=12
        )


def _html(content: str) -> gr.HTML:
    return gr.HTML(content, padding=False)


def _head(pages: Sequence[Ready], current: str) -> str:
    links = "".join(
        f'<li><a href="/{ready.name}"{" aria-current=page" if ready.name == current else ""}>'
        f"{escape(ready.page.title)}</a></li>"
        for ready in pages
    )
    return (
        '<header class="lv-head"><a class="lv-name" href="/">LAVIS</a><span>language and vision</span></header>'
        f'<nav class="lv-nav" aria-label="Pages"><ul>{links}</ul></nav>'
    )


def _start(pages: Sequence[Ready]) -> str:
    cards = "".join(
        f'<li><a href="/{ready.name}"><h2>{escape(ready.page.title)}</h2><p>{escape(ready.page.about)}</p></a></li>'
        for ready in pages
    )
    return (
        '<div class="lv-about"><h1>What should a model do with a picture?</h1><p>Everything runs on this machine. '
        "The models that come with the package are small and know drawings of coloured shapes; published ones can be "
        f'chosen on each page.</p></div><ul class="lv-cards">{cards}</ul>'
    )


def _foot() -> str:
    return (
        f'<footer class="lv-foot">openlavis {__version__}. Uploads stay on this machine and are deleted when the demo '
        "ends.</footer>"
    )


def head() -> str:
    """What is added to the head of each page; styles go here, because Gradio rewrites those it is given."""
    return f"<style>{STYLE.read_text(encoding='utf-8')}</style><script>{NAMES}</script>"


def theme() -> gr.themes.Base:
    """Gradio's base theme in one blue, with the system's fonts (none is fetched) and readable greys."""
    blue = gr.themes.Color(
        c50="#eef5fa", c100="#d7e8f3", c200="#b0d2e8", c300="#7cbbe4", c400="#4d9acb", c500="#2f7db0", c600="#1f5f8b",
        c700="#194d71", c800="#143c58", c900="#0f2d42", c950="#0a1e2c", name="lavis",
    )  # fmt: skip
    base = gr.themes.Base(
        primary_hue=blue,
        secondary_hue=blue,
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_300",
        button_primary_background_fill_hover_dark="*primary_200",
        button_primary_text_color="white",
        button_primary_text_color_dark="*primary_950",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        slider_color="*primary_600",
        slider_color_dark="*primary_300",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
    )
