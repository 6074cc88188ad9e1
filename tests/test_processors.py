"""Processors: equal to the original in evaluation, the same distribution in training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from lavis.processors import BaseProcessor, load_processor
from lavis.processors.image import MEAN, STD, random_crop_box, resize, to_picture
from lavis.processors.randaugment import OPERATIONS, RandAugment, apply

REFERENCE = Path(__file__).parent / "reference"
GOLDEN = np.load(REFERENCE / "processors" / "eval_images.npz")
CASES = sorted({key.rsplit("/", 1)[0] for key in GOLDEN if key.startswith(("china", "flower"))})
IMAGE_PROCESSORS = (
    "blip_image_train", "blip_image_eval", "blip2_image_train", "clip_image_train", "clip_image_eval",
)  # fmt: skip


def _photo(name: str, crop: str = "full") -> Image.Image:
    picture = Image.open(REFERENCE / "processors" / name).convert("RGB")
    if crop == "portrait":
        return picture.crop((100, 0, 340, 427))
    return picture.resize((97, 60), Image.Resampling.BICUBIC) if crop == "small" else picture


@pytest.mark.parametrize("case", CASES)
def test_evaluation_equals_the_original(case: str) -> None:
    name, crop, processor, size = case.split("/")
    out = load_processor(processor).build(image_size=int(size))(_photo(name, crop))
    assert list(out.shape) == GOLDEN[f"{case}/shape"].tolist() and out.dtype == torch.float32
    positions = json.loads((REFERENCE / "processors" / "eval_images.json").read_text())
    rows, cols = np.array(positions["pixel_positions_row_col"]).T
    np.testing.assert_allclose(out[:, rows, cols].numpy(), GOLDEN[f"{case}/pixels"], atol=1e-6, rtol=0)
    blocks = torch.nn.functional.avg_pool2d(out[None], 8)[0].numpy()
    # These means were stored after summing 64 values in float32, which costs the sixth decimal.
    np.testing.assert_allclose(blocks, GOLDEN[f"{case}/block_mean8"], atol=3e-6, rtol=0)
    np.testing.assert_allclose(out.double().mean((1, 2)), GOLDEN[f"{case}/mean"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        out.double().std((1, 2), correction=0), GOLDEN[f"{case}/std"], atol=1e-5, rtol=0
    )


def test_texts_equal_the_original() -> None:
    cases = json.loads((REFERENCE / "tokenization" / "text_processors.json").read_text())["cases"]
    caption, question = load_processor("blip_caption"), load_processor("blip_question")
    made = {
        "blip_caption": caption,
        "blip_caption_prompt": caption.build(prompt="a picture of "),
        "blip_caption_max5": caption.build(max_words=5),
        "blip_question": question,
        "blip_question_max3": question.build(max_words=3),
    }
    assert len(cases) > 40
    for case in cases:
        for key, processor in made.items():
            assert processor(case["text"]) == case[key], (key, case["text"])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("blip_image_train", {"image_size": 384, "min_scale": 0.5, "max_scale": 1.0, "fast_resize": True}),
        ("blip2_image_train", {"image_size": 364, "min_scale": 0.5, "max_scale": 1.0}),
        ("clip_image_train", {"image_size": 224, "min_scale": 0.9, "max_scale": 1.0}),
        ("blip_image_eval", {"image_size": 384, "mean": MEAN, "std": STD, "fast_resize": False}),
        ("clip_image_eval", {"image_size": 224}),
        ("blip_caption", {"prompt": "", "max_words": 50}),
        ("blip_question", {"max_words": 50}),
    ],
)
def test_defaults(name: str, expected: dict) -> None:
    processor = load_processor(name)
    assert {key: getattr(processor, key) for key in expected} == expected


def test_settings_from_every_side() -> None:
    cfg = OmegaConf.create({"name": "blip_image_eval", "image_size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]})
    out = load_processor("blip_image_eval", cfg)(np.full((10, 12, 3), 255, np.uint8))
    assert out.shape == (3, 64, 64) and torch.equal(out, torch.ones(3, 64, 64))
    assert type(load_processor("blip_image_eval")).build(image_size=8).image_size == 8
    assert load_processor("base_processor")("x") == "x"
    assert "image_size=8" in repr(load_processor("blip_image_eval").build(image_size=8))
    with pytest.raises(ValueError, match=r"unknown setting 'img_size'.*'image_size'"):
        load_processor("blip_image_eval", {"img_size": 64})
    with pytest.raises(ValueError, match="no settings"):
        load_processor("base_processor", {"x": 1})
    with pytest.raises(ValueError, match="blip_image_eval"):
        load_processor("blip_image_val")
    for bad in ({"image_size": 0}, {"image_size": "x"}, {"mean": [1]}, {"std": [1, 0, 1]}):
        with pytest.raises(ValueError):
            load_processor("blip_image_eval", bad)
    with pytest.raises(ValueError, match="min_scale"):
        load_processor("blip_image_train", {"min_scale": 2.0})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "F", "YCbCr"])
def test_any_mode_becomes_rgb_as_pillow_does_it(mode: str) -> None:
    picture = _photo("china.jpg", "small").convert(mode)
    processor = load_processor("blip_image_eval", {"image_size": 32})
    assert torch.equal(processor(picture), processor(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bits_keep_their_levels(mode: str) -> None:
    grey = np.asarray(_photo("china.jpg", "small").convert("L"))
    wide = (grey.astype(np.uint16) * 257).astype("<u2" if mode == "I;16" else ">u2")
    picture = Image.frombytes(mode, grey.shape[::-1], wide.tobytes())
    assert np.array_equal(np.asarray(to_picture(picture)), np.repeat(grey[..., None], 3, axis=2))
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.unique(np.asarray(to_picture(Image.fromarray(levels)))).size == 256


def test_arrays_and_what_is_refused() -> None:
    photo = _photo("flower.jpg", "small")
    processor = load_processor("clip_image_eval", {"image_size": 32})
    assert torch.equal(processor(np.array(photo)), processor(photo))
    assert to_picture(np.zeros((4, 5), np.uint8)).size == (5, 4)
    for bad, error in (
        ("china.jpg", TypeError), (None, TypeError), (torch.zeros(3, 4, 4), TypeError),
        (np.zeros((4, 4, 3), np.float32), ValueError), (np.zeros((3, 4, 4), np.uint8), ValueError),
        (Image.new("RGB", (0, 4)), ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            processor(bad)
    for name in ("blip_caption", "blip_question"):
        with pytest.raises(TypeError, match="one text"):
            load_processor(name)(["a", "b"])


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
def test_a_function_of_item_and_stream(name: str) -> None:
    # Square, because no crop of 90 % fits into 640 x 427 with these ratios: CLIP's would always be central.
    photo = _photo("china.jpg").crop((0, 0, 400, 400))
    processor = load_processor(name, {"image_size": 48})
    first, again = (processor(photo, rng=np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (3, 48, 48)
    others = [processor(photo, rng=np.random.default_rng(seed)) for seed in range(4)]
    unequal = sum(not torch.equal(first, o) for o in others if o is not others[3])
    assert unequal == (3 if "train" in name else 0)
    assert processor(photo).shape == (3, 48, 48)


def test_fast_resize_is_near_pillow() -> None:
    photo = _photo("china.jpg")
    slow, fast = (np.asarray(resize(photo, 384, 384, fast=f)).astype(int) for f in (False, True))
    assert np.abs(slow - fast).max() <= 2 and 0 < np.abs(slow - fast).mean() < 0.01
    assert resize(photo, *photo.size, fast=True) is photo


# ---------------------------------------------------------------------- random crops
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**31))
def test_crops_fit(width: int, height: int, seed: int) -> None:
    left, top, w, h = random_crop_box(width, height, (0.5, 1.0), np.random.default_rng(seed))
    assert w >= 1 and h >= 1 and left >= 0 and top >= 0 and left + w <= width and top + h <= height


def test_crops_have_the_stated_distribution() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(1000, 1000, (0.08, 0.3), rng) for _ in range(4000)], float)
    area, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 2] / boxes[:, 3])
    assert area.min() > 0.079 and area.max() < 0.301 and abs(area.mean() - 0.19) < 0.004
    limit = np.log(4 / 3)
    assert np.abs(ratio).max() < limit + 0.005 and abs(ratio.mean()) < 0.01
    assert abs(ratio.var() - limit**2 / 3) < 0.002  # uniform in the logarithm
    place = boxes[:, 0] / (1000 - boxes[:, 2])
    assert abs(place.mean() - 0.5) < 0.02 and abs(place.var() - 1 / 12) < 0.01


def test_crops_fall_back_to_the_centre() -> None:
    rng = np.random.default_rng(0)
    assert random_crop_box(100, 20, (1.0, 1.0), rng) == (36, 0, 27, 20)  # 20 · 4/3 wide
    assert random_crop_box(20, 100, (1.0, 1.0), rng) == (0, 36, 20, 27)
    assert random_crop_box(100, 100, (3.0, 3.0), rng) == (0, 0, 100, 100)


# ---------------------------------------------------------------------- RandAugment
def _warped(pixels: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear reading at inverse @ (x, y, 1), pixel centres at integers; and where that is well inside."""
    h, w = pixels.shape[:2]
    y, x = np.mgrid[0:h, 0:w]
    sx, sy = np.tensordot(inverse, np.stack([x, y, np.ones_like(x)]).astype(float), axes=1)
    inside = (sx >= 0) & (sx <= w - 1) & (sy >= 0) & (sy <= h - 1)
    outside = (sx < -0.51) | (sx > w - 0.49) | (sy < -0.51) | (sy > h - 0.49)
    x0, y0 = np.clip(np.floor(sx), 0, w - 2).astype(int), np.clip(np.floor(sy), 0, h - 2).astype(int)
    fx, fy = (sx - x0)[..., None], (sy - y0)[..., None]
    p = pixels.astype(float)
    upper = p[y0, x0] * (1 - fx) + p[y0, x0 + 1] * fx
    lower = p[y0 + 1, x0] * (1 - fx) + p[y0 + 1, x0 + 1] * fx
    out = upper * (1 - fy) + lower * fy
    out[outside] = 128
    return out, inside | outside


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
def test_geometric_operations(name: str, sign: int) -> None:
    photo = _photo("china.jpg").resize((90, 70))
    w, h = photo.size
    angle = np.radians(15 * sign)
    c, s = np.cos(angle), np.sin(angle)
    # As OpenCV documents them: the forward matrices, counter-clockwise positive with y down.
    forward = {
        "ShearX": [[1, 0.15 * sign, 0], [0, 1, 0]],
        "ShearY": [[1, 0, 0], [0.15 * sign, 1, 0]],
        "TranslateX": [[1, 0, -5 * sign], [0, 1, 0]],
        "TranslateY": [[1, 0, 0], [0, 1, -5 * sign]],
        "Rotate": [[c, s, (1 - c) * w / 2 - s * h / 2], [-s, c, s * w / 2 + (1 - c) * h / 2]],
    }[name]
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    expected, comparable = _warped(np.asarray(photo), inverse)
    got = np.asarray(apply(name, photo, 5, sign)).astype(float)
    assert comparable.mean() > 0.95
    assert np.abs(got - expected)[comparable].max() < 1.01
    assert (got[~comparable] >= 0).all()


def test_tonal_operations() -> None:
    photo = _photo("flower.jpg").resize((60, 50))
    for name in ("Identity", "Brightness", "Sharpness"):
        assert np.array_equal(np.asarray(apply(name, photo, 5)), np.asarray(photo)), name
    dim = Image.fromarray((np.asarray(photo) // 2 + 30).astype(np.uint8))
    stretched = np.asarray(apply("AutoContrast", dim, 5))
    assert all(stretched[..., c].min() == 0 and stretched[..., c].max() >= 254 for c in range(3))
    flat = np.asarray(apply("Equalize", dim, 5)).reshape(-1, 3)
    assert abs(flat.mean() - 127.5) < 12
    assert np.asarray(apply("Brightness", photo, 0)).mean() < 0.2 * np.asarray(photo).mean()
    with pytest.raises(ValueError, match="'ShearX'"):
        apply("Shear", photo, 5)
    with pytest.raises(ValueError, match="Solarize"):
        RandAugment(operations=["Solarize"])


def test_operations_are_drawn_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float, int]] = []
    monkeypatch.setattr(
        "lavis.processors.randaugment.apply",
        lambda name, picture, level, sign=1: calls.append((name, level, sign)) or picture,
    )
    rng, n = np.random.default_rng(0), 5000
    for _ in range(n):
        RandAugment(2, 5)(Image.new("RGB", (2, 2)), rng)
    assert abs(len(calls) / (2 * n) - 0.5) < 0.02
    assert {level for _, level, _ in calls} == {5}
    for operation in OPERATIONS:
        assert abs(sum(c[0] == operation for c in calls) / len(calls) - 0.1) < 0.02
    signs = [sign for name, _, sign in calls if name == "Rotate"]
    assert abs(np.mean(signs)) < 0.15 and {sign for name, _, sign in calls if name == "Equalize"} == {1}


def test_flips_half_of_the_time() -> None:
    left = np.zeros((8, 8, 3), np.uint8)
    left[:, :4] = 255
    cfg = {"image_size": 8, "min_scale": 1.0, "max_scale": 1.0}
    processor = load_processor("blip2_image_train", cfg)
    rng = np.random.default_rng(0)
    flipped = [bool(processor(left, rng)[0, 4, 0] < processor.to_tensor(to_picture(left))[0, 4, 0])
               for _ in range(400)]  # fmt: skip
    assert abs(np.mean(flipped) - 0.5) < 0.08
    plain = load_processor("blip_image_train", cfg | {"flip": False, "augment": False})
    assert all(plain(left, rng)[0, 4, 0] > 0 for _ in range(20))


def test_a_new_processor_is_one_class() -> None:
    from lavis.common.registry import registry

    @registry.register_processor("shout")
    class Shout(BaseProcessor):
        def __init__(self, mark: str = "!") -> None:
            self.mark = mark

        def __call__(self, item: str, rng: np.random.Generator | None = None) -> str:
            return item.upper() + self.mark

    try:
        assert load_processor("shout", {"mark": "?"})("hey") == "HEY?"
    finally:
        registry.unregister("processor", "shout")
