"""The pictures of the home page: what each capability gave, on drawings of `shapes`, with the packaged models.

    python docs/pictures.py [NAME ...]

writes docs/_static/pictures/*.png. Chosen by hand are the drawings, the texts and the model; answers stay as they come.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from lavis.datasets.base import Dataset
from lavis.datasets.builders import load_dataset
from lavis.inference import Encoder, classify, explain, load, overlay
from lavis.inference.dialogue import Conversation

OUT = Path(__file__).parent / "_static" / "pictures"
WIDTH, EDGE = 720, 24  # pixels; shown at half of it, so that it is sharp on fine screens
SIDE, COLUMN, GAP = 220, 268, 14
PAPER, INK, SOFT, BAR, TRACK = "#ffffff", "#1f2933", "#5b6672", "#2563a8", "#e3e8ee"


def font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface that comes with Pillow."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


class Sheet:
    """A white sheet that grows downwards."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH, 4000), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y = EDGE

    def text(
        self, words: str, x: int = EDGE, size: int = 26, color: str = INK, width: int | None = None
    ) -> None:
        """Write, broken into lines, and go on below."""
        for line in wrapped(words, font(size), width or WIDTH - x - EDGE):
            self.draw.text((x, self.y), line, color, font(size))
            self.y += round(size * 1.35)

    def beside(self, picture: Image.Image, side: int = SIDE) -> int:
        """A picture on the left, text to follow beside it from COLUMN; gives its top."""
        self.image.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (EDGE, self.y))
        return self.y

    def below(self, top: int, side: int = SIDE) -> None:
        """Go on below both picture and text."""
        self.y = max(self.y, top + side) + 18

    def row(self, pictures: Sequence[Image.Image], labels: Sequence[str]) -> None:
        """Pictures side by side over the whole width, each with a label below."""
        side = (WIDTH - 2 * EDGE + GAP) // len(pictures) - GAP
        for i, picture in enumerate(pictures):
            x = EDGE + i * (side + GAP)
            self.image.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, self.y))
            self.draw.text((x + side / 2, self.y + side + 8), labels[i], INK, font(22), anchor="ma")
        self.y += side + 44

    def bar(self, label: str, share: float, x: int, right: str) -> None:
        """A labelled horizontal bar, share from 0 to 1."""
        self.draw.text((x, self.y), label, INK, font(23))
        self.draw.text((WIDTH - EDGE, self.y), right, SOFT, font(23), anchor="ra")
        top, end = self.y + 32, WIDTH - EDGE
        self.draw.rounded_rectangle((x, top, end, top + 12), 6, TRACK)
        if share > 0.01:
            self.draw.rounded_rectangle((x, top, x + max(12, (end - x) * share), top + 12), 6, BAR)
        self.y += 60

    def save(self, name: str) -> None:
        """Cut to what is used, and write with few colours."""
        OUT.mkdir(parents=True, exist_ok=True)
        page = self.image.crop((0, 0, WIDTH, self.y + EDGE - 14))
        page.quantize(192, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)


def wrapped(words: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def drawings(name: str = "shapes_caption", size: int = 256) -> Dataset:
    """The test drawings, fine enough to be shown; the models see 64 pixels."""
    return load_dataset(name, size=size)["test"]


def captioning() -> None:
    loaded, data, sheet = load("blip_caption/tiny_shapes"), drawings(), Sheet()
    for i in (5, 9):
        image = loaded.vis(data[i]["image"])[None]
        best = loaded.model.generate({"image": image}, max_length=40, min_length=5)
        others = loaded.model.generate(
            {"image": image}, use_nucleus_sampling=True, num_captions=2, max_length=40, min_length=5, seed=1
        )
        top = sheet.beside(data[i]["image"])
        sheet.text(best[0], x=COLUMN, size=27)
        sheet.y += 6
        for other in others:
            sheet.text(other, x=COLUMN, size=21, color=SOFT)
        sheet.below(top)
    sheet.save("captioning")


def questions() -> None:
    loaded, data, fine = load("blip_vqa/tiny_shapes"), drawings(size=64), drawings()
    asked = ["how many objects are there?", "is there a star?", "what shape is at the top?"]
    chosen = (4, 9, 10, 11)
    image = torch.stack([loaded.vis(data[i]["image"]) for i in chosen])
    sheet = Sheet()
    sheet.row([fine[i]["image"] for i in chosen], [""] * len(chosen))
    sheet.y -= 28
    for question in asked:
        samples = {"image": image, "text_input": [question] * len(chosen)}
        sheet.text(question, size=21, color=SOFT)
        for i, answer in enumerate(loaded.model.predict_answers(samples, inference_method="generate")):
            middle = EDGE + (i + 0.5) * (WIDTH - 2 * EDGE) / len(chosen)
            sheet.draw.text((middle, sheet.y), answer, INK, font(25), anchor="ma")
        sheet.y += 42
    sheet.save("questions")


def dialogue() -> None:
    talk = Conversation(load("blip_vqa/tiny_shapes"), drawings(size=64)[11]["image"])
    sheet = Sheet()
    top = sheet.beside(drawings()[11]["image"])
    for question in ("how many objects are there?", "what color is the star?", "is there a heart?"):
        sheet.text(question, x=COLUMN, size=23, color=SOFT)
        sheet.text(talk.ask(question).answer, x=COLUMN, size=27)
        sheet.y += 8
    sheet.below(top)
    sheet.save("dialogue")


def search() -> None:
    encoder, query = Encoder(load("albef_retrieval/tiny_shapes")), "a large yellow star"
    small, fine = drawings(size=64), drawings()
    parts = [[small[i]["image"] for i in range(start, start + 50)] for start in range(0, 400, 50)]
    vectors = torch.cat([encoder.images(part) for part in parts])
    scores = (vectors @ encoder.texts([query]).T)[:, 0]
    sheet = Sheet()
    sheet.text(f"“{query}” among 400 drawings")
    sheet.y += 8
    best = scores.argsort(descending=True)[:8].tolist()
    for part in (best[:4], best[4:]):
        sheet.row([fine[i]["image"] for i in part], [f"{float(scores[i]):.2f}" for i in part])
    sheet.save("search")


def gradcam() -> None:
    data = drawings()
    picture = data[9]["image"]
    found = explain(load("blip_caption/tiny_shapes"), picture, data[9]["text_input"])
    small = ("a", "an", "the", "of", "is", "are", "and", "to", "in", "on", "at", "there", "with")
    shown = [i for i, word in enumerate(found.words) if word not in small][:4]
    sheet = Sheet()
    sheet.text(found.text, size=24)
    sheet.y += 8
    tiles = [picture, *(overlay(picture, found.maps[i]) for i in shown)]
    labels = ["", *(found.words[i] for i in shown)]
    sheet.row(tiles, labels)
    sheet.save("gradcam")


def zero_shot() -> None:
    names, data = ["star", "circle", "square", "heart", "triangle"], drawings()
    single = next(i for i in range(60) if len(data.records[i]["scene"]["objects"]) == 1)
    picture = data[single]["image"]
    encoder = Encoder(load("albef_retrieval/tiny_shapes"))
    chances = classify(encoder, [picture], names, templates=["a {}"])[0].tolist()
    sheet = Sheet()
    top = sheet.beside(picture, 270)
    for name, share in sorted(zip(names, chances), key=lambda pair: -pair[1]):
        sheet.bar(name, share, COLUMN + 50, f"{100 * share:.1f} %")
    sheet.below(top, 270)
    sheet.save("zero_shot")


def matching() -> None:
    encoder, data = Encoder(load("blip_image_text_matching/tiny_shapes")), drawings("shapes_retrieval")
    texts = [data.records[i]["caption"][0] for i in (3, 8, 21)]
    fits, _ = encoder.match(data[3]["image"], texts)
    assert fits is not None
    sheet = Sheet()
    top = sheet.beside(data[3]["image"])
    for text, share in zip(texts, fits.tolist()):
        sheet.text(text, x=COLUMN, size=21)
        sheet.bar("", share, COLUMN, f"{100 * share:.1f} %")
        sheet.y += 6
    sheet.below(top)
    sheet.save("matching")


def video() -> None:
    encoder = Encoder(load("alpro_retrieval/tiny_shapes"))
    data = load_dataset("shapes_video_retrieval", size=128)["test"]
    clips, query = [data[i]["video"] for i in range(100)], data.records[4]["caption"][0]
    vectors = torch.cat([encoder.images(clips[i : i + 20]) for i in range(0, 100, 20)])
    best = int((vectors @ encoder.texts([query]).T)[:, 0].argmax())
    sheet = Sheet()
    sheet.text(f"“{query}” among 100 clips", size=24)
    sheet.y += 8
    frames = [Image.fromarray(clips[best][t]) for t in (0, 2, 5, 7)]
    sheet.row(frames, ["first frame", "", "", "last frame"])
    sheet.save("video")


MAKERS: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (captioning, questions, dialogue, search, gradcam, zero_shot, matching, video)
}


def main(names: Sequence[str]) -> int:
    for name in names or MAKERS:
        MAKERS[name]()
        print(OUT / f"{name}.png", (OUT / f"{name}.png").stat().st_size, "bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
