"""The web demo: `lavis demo`. One page a capability, one file a page.

    page        what a page is; the pages of a file are found by the registry, as models are
    fields      its inputs and how they are checked; `uploads` opens files that visitors send
    results     its outputs, as HTML
    models      which models a page offers, and the few that are kept in memory
    calls       a visitor's call: check, group with others, run, render
    layout      the above as Gradio components (the only file, with `server`, that knows Gradio)
    server      the process: privacy, temporary folder, address

A page of one's own is a file with a registered subclass of `Page`, made known with `lavis --import my_page demo`
or an entry point of the group `lavis.plugins`:

    from lavis.app.demo.page import Page, Pictures, Shown, TextInput
    from lavis.common.registry import registry

    @registry.register_page("text_to_image")
    class TextToImage(Page):
        title = "Text to image"
        about = "Draws what a text says."
        models = ("my_generator/base",)
        inputs = (TextInput("text", "Text", value="a red circle"),)
        outputs = (Pictures("drawn", "Drawings"),)

        def run(self, loaded, text):
            return [Shown(picture) for picture in loaded.model.generate(text)]
"""
