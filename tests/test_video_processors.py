"""Video processors: the original's frames and statistics in evaluation, one treatment of all frames in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis.processors import load_processor
from lavis.processors.image import MEAN, STD
from lavis.processors.randaugment import OPERATIONS, RandAugment
from lavis.processors.video import sample_indices

PHOTO = Path(__file__).parent / "reference" / "processors" / "china.jpg"


def clip(frames: int, height: int = 36, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth noise, different in every frame."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height))) for f in small])


def still(frames: int) -> np.ndarray:
    """The same photo in every frame."""
    return np.stack([np.asarray(Image.open(PHOTO).convert("RGB").resize((160, 107)))] * frames)


# ------------------------------------------------------------------------------- sampling frames


@given(
    st.integers(1, 400),
    st.integers(1, 64),
    st.sampled_from(["uniform", "random", "headtail"]),
    st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_indices_are_different_and_in_order(total, wanted, method, seed):
    found = sample_indices(total, wanted, method, np.random.default_rng(seed))
    assert len(found) == min(total, wanted)
    assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < total
    again = sample_indices(total, wanted, method, np.random.default_rng(seed))
    np.testing.assert_array_equal(found, again)
    if method == "headtail":
        assert (found < total // 2).sum() == len(found) // 2
    if wanted >= total:
        assert found.tolist() == list(range(total))


def test_uniform_indices_are_the_originals():
    # load_video(sampling="uniform") of version 1.0.2: steps of total / n from 0 on, cut to whole numbers
    assert sample_indices(250, 8).tolist() == [0, 31, 62, 93, 125, 156, 187, 218]
    assert sample_indices(100, 16).tolist() == [0, 6, 12, 18, 25, 31, 37, 43, 50, 56, 62, 68, 75, 81, 87, 93]
    assert sample_indices(5, None).tolist() == [0, 1, 2, 3, 4]
    for total in range(1, 300):
        for n in (4, 8, 16, 32):
            count = min(n, total)
            assert sample_indices(total, n).tolist() == [i * total // count for i in range(count)]


def test_every_frame_can_be_drawn():
    rng = np.random.default_rng(0)
    for method in ("random", "headtail"):
        counts = np.bincount(
            np.concatenate([sample_indices(11, 4, method, rng) for _ in range(3000)]), minlength=11
        )
        expected = np.full(11, 4 / 11) if method == "random" else np.array([2 / 5] * 5 + [2 / 6] * 6)
        np.testing.assert_allclose(counts / 3000, expected, atol=0.04)
    assert sample_indices(30, 4, "random").shape == (4,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "no frames"),
        ((4, 0), "number of frames is 0"),
        ((4, 2, "headtails"), "Did you mean 'headtail'"),
    ],
)
def test_wrong_requests_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_indices(*arguments)


# ------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_the_picture_processor_frame_by_frame():
    frames = clip(30)
    out = load_processor("alpro_video_eval", {"image_size": 48, "n_frms": 8})(frames)
    assert out.shape == (3, 8, 48, 48) and out.dtype == torch.float32
    picture = load_processor("blip_image_eval", {"image_size": 48})
    for t, index in enumerate(sample_indices(30, 8)):
        assert torch.equal(out[:, t], picture(frames[index]))
    as_pictures = load_processor("alpro_video_eval", {"image_size": 48, "n_frms": 8})(
        [Image.fromarray(f) for f in frames]
    )
    assert torch.equal(out, as_pictures)


def test_statistics_are_the_originals():
    white = np.full((2, 10, 20, 3), 255, np.uint8)
    white[..., 2] = 0  # blue: channels are red, green, blue
    out = load_processor("alpro_video_eval", {"image_size": 4})(white)
    for channel, value in enumerate((1.0, 1.0, 0.0)):
        expected = (value - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(out[channel], torch.full((2, 4, 4), expected))


def test_short_clips_are_filled_up_with_their_last_frame():
    frames = clip(3)
    for name in ("alpro_video_eval", "alpro_video_train"):
        out = load_processor(name, {"image_size": 32, "n_frms": 5})(frames, np.random.default_rng(0))
        assert out.shape == (3, 5, 32, 32)
        assert torch.equal(out[:, 2], out[:, 3]) and torch.equal(out[:, 2], out[:, 4])
        assert not torch.equal(out[:, 1], out[:, 2])
    assert load_processor("alpro_video_eval")(frames).shape == (3, 3, 256, 256)


# --------------------------------------------------------------------------------------- training


def test_training_is_a_function_of_clip_and_stream():
    processor, frames = load_processor("alpro_video_train", {"image_size": 40, "n_frms": 6}), clip(20)
    first, again = (processor(frames, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (3, 6, 40, 40) and torch.equal(first, again)
    assert not torch.equal(first, processor(frames, np.random.default_rng(6)))
    assert processor(frames).shape == first.shape


def test_all_frames_are_treated_alike():
    processor, rng = (
        load_processor("alpro_video_train", {"image_size": 40, "n_frms": 4}),
        np.random.default_rng(0),
    )
    kinds = set()
    for _ in range(25):
        out = processor(still(4), rng)
        assert torch.equal(out, out[:, :1].expand_as(out))
        kinds.add(round(float(out.sum()), 3))
    assert len(kinds) > 20


def test_crops_are_drawn_from_the_square():
    """Of a wide clip as of a square one: the share of the area, and the sides' ratio of 3/4 to 4/3, hold for it."""
    x = np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8)[None, None, :, None], (1, 128, 512, 3))
    y = np.broadcast_to(np.linspace(0, 255, 128).astype(np.uint8)[None, :, None, None], (1, 128, 512, 3))
    cfg = {
        "image_size": 32,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "flip": False,
        "augment": False,
        "min_scale": 0.25,
    }
    processor = load_processor("alpro_video_train", cfg)
    sides = []
    for seed in range(200):
        across, down = (processor(np.ascontiguousarray(f), np.random.default_rng(seed))[0, 0] for f in (x, y))
        sides.append((float(across[16, -1] - across[16, 0]), float(down[-1, 16] - down[0, 16])))
    w, h = np.array(sides).T * 32 / 31
    assert 0.2 < (w * h).min() < 0.35 and 0.8 < (w * h).max() < 1.1
    assert 0.65 < (w / h).min() < 0.85 and 1.18 < (w / h).max() < 1.5


def test_flips_half_of_the_clips():
    left = np.zeros((3, 8, 8, 3), np.uint8)
    left[:, :, :4] = 255
    cfg = {"image_size": 8, "min_scale": 1.0, "max_scale": 1.0, "augment": False}
    processor, rng = load_processor("alpro_video_train", cfg), np.random.default_rng(0)
    lit = [(processor(left, rng)[0, :, 4, 0] > 0).tolist() for _ in range(300)]
    assert all(len(set(frames)) == 1 for frames in lit)
    assert abs(np.mean([frames[0] for frames in lit]) - 0.5) < 0.08
    plain = load_processor("alpro_video_train", cfg | {"flip": False})
    assert all(plain(left, rng)[0, 0, 4, 0] > 0 for _ in range(20))


def test_operations_are_the_originals():
    """Two different ones, always applied, any but AutoContrast, signs both ways."""
    augmentation, rng = load_processor("alpro_video_train")._augmentation, np.random.default_rng(0)
    assert augmentation.level == 5
    draws = [augmentation.draw(rng) for _ in range(4000)]
    assert all(len(d) == 2 and d[0][0] != d[1][0] for d in draws)
    names = [name for draw in draws for name, _ in draw]
    for name in OPERATIONS:
        assert abs(names.count(name) / len(names) - (0 if name == "AutoContrast" else 1 / 9)) < 0.02
    signs = [sign for draw in draws for name, sign in draw if name == "ShearX"]
    assert abs(np.mean(signs)) < 0.15


def test_drawing_and_applying_is_calling():
    picture = Image.fromarray(still(1)[0])
    for seed in range(10):
        augmentation = RandAugment(2, 5)
        called = augmentation(picture, np.random.default_rng(seed))
        drawn = augmentation.draw(np.random.default_rng(seed))
        assert np.array_equal(np.asarray(called), np.asarray(augmentation.apply(picture, drawn)))


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["alpro_video_train", "alpro_video_eval"])
@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (Path("clip.mp4"), FileNotFoundError, "there is no clip clip.mp4"),
        (7, TypeError, "should be the path of a file, a uint8 array"),
        (np.zeros((8, 8, 3), np.uint8), ValueError, r"\(frames, h, w, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), ValueError, r"of shape \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.float32), ValueError, "not float32"),
        (np.zeros((0, 8, 8, 3), np.uint8), ValueError, "no frames"),
        (np.zeros((2, 0, 8, 3), np.uint8), ValueError, "0 pixels"),
        ([], ValueError, "no frames"),
        (["a.jpg"], TypeError, "PIL.Image"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], ValueError, "several sizes"),
    ],
)
def test_what_is_no_clip_is_refused(name, item, error, message):
    with pytest.raises(error, match=message):
        load_processor(name, {"image_size": 8})(item)


@pytest.mark.parametrize(
    "bad",
    [
        {"n_frms": 0},
        {"n_frms": 2.5},
        {"n_frms": True},
        {"image_size": 0},
        {"n_frames": 4},
        {"std": [0, 1, 1]},
    ],
)
def test_wrong_settings_are_refused(bad):
    for name in ("alpro_video_train", "alpro_video_eval"):
        with pytest.raises(ValueError):
            load_processor(name, bad)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_any_size_will_do(height, width, frames, seed):
    pixels = np.full((frames, height, width, 3), 200, np.uint8)
    processor = load_processor("alpro_video_train", {"image_size": 16, "min_scale": 0.05, "augment": False})
    out = processor(pixels, np.random.default_rng(seed))
    assert out.shape == (3, frames, 16, 16)
    assert float(out[0].std()) < 1e-3  # nothing from outside the frame
