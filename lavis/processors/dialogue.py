"""Dialogues about videos as one sequence for GPT-2 (VGD-GPT, Le & Hoi 2020, section 3), and features of videos.

The sequence: a feature per time step of the video, caption, question, answer, question, answer, …, question, answer,
each text ended by <eos>. Every place also has a token type: <video>, <cap>, <speaker1> for questions,
<speaker2> for answers. B dialogues, T time steps or tokens, F width of a feature.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from lavis.common.registry import registry
from lavis.models.gpt_tokenizer import ANSWERING, ASKING, CAPTION, GPT2_MERGES, VIDEO, GPTTokenizer
from lavis.processors.base import BaseProcessor
from lavis.processors.image import to_picture
from lavis.processors.video import sample_indices, to_frames

NO_LABEL = -1  # of places that are not to be learnt


@registry.register_processor("gpt_dialogue")
class GPTDialogueProcessor(BaseProcessor):
    """A dialogue to ids, token types and labels.

    Args:
        max_turns: rounds before the question that are read, the latest ones.
        use_caption: False leaves caption and summary out.
        len_tokenizer: number of ids, see `GPTTokenizer`.
        vocabulary: "gpt2", or a file of merges.
    """

    def __init__(
        self,
        max_turns: int = 3,
        use_caption: bool = True,
        len_tokenizer: int = 50264,
        vocabulary: str = "gpt2",
    ) -> None:
        if isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 0:
            raise ValueError(f"max_turns is {max_turns!r}; it should be a number of rounds, 0 or more")
        self.max_turns, self.use_caption = max_turns, use_caption
        self.len_tokenizer, self.vocabulary = len_tokenizer, vocabulary

    @functools.cached_property
    def tokenizer(self) -> GPTTokenizer:
        merges = GPT2_MERGES if self.vocabulary == "gpt2" else self.vocabulary
        return GPTTokenizer(merges, self.len_tokenizer)

    def __call__(self, item: str | Mapping[str, Any], rng: np.random.Generator | None = None) -> Any:
        """Process one dialogue.

        Args:
            item: `question`; `dialog`, the rounds before it, each a mapping with `question` and `answer` or a
                pair; `caption` and, where there is one, `summary`; `answer`, in training.
                Or a text of a dialogue, which stays a text: the model makes ids of samples that hold texts.

        Returns:
            `input_ids`, `token_type_ids` and `labels`, long tensors (T,). Labels are the ids of the answer and of its
            end, -1 elsewhere. Without an answer the sequence ends after the question.
        """
        if isinstance(item, str):
            return item.strip()
        missing = [key for key in ("question", "dialog") if key not in item]
        if missing:
            raise ValueError(
                f"a dialogue needs {' and '.join(missing)}: the question, and the rounds before it, each of a question "
                f"and an answer; it has {', '.join(item)}"
            )
        caption = " ".join(str(item[key]) for key in ("caption", "summary") if item.get(key))
        turns = list(item["dialog"])
        parts = [(CAPTION, caption if self.use_caption else "")]
        for turn in turns[max(len(turns) - self.max_turns, 0) :]:
            asked, answered = _pair(turn)
            parts += [(ASKING, asked), (ANSWERING, answered)]
        parts.append((ASKING, str(item["question"])))
        answer = item.get("answer")
        if answer is not None:
            parts.append((ANSWERING, str(answer)))
        ids, types, labels = [], [], []
        for kind, text in parts:
            pieces = [*self.tokenizer.encode(text), self.tokenizer.eos_id]
            ids += pieces
            types += [self.tokenizer.id(kind)] * len(pieces)
            labels += [NO_LABEL] * len(pieces)
        if answer is not None:
            labels[-len(pieces) :] = pieces
        sequences = {"input_ids": ids, "token_type_ids": types, "labels": labels}
        return {key: torch.tensor(values) for key, values in sequences.items()}

    def padding(self, seq: Sequence[torch.Tensor], pad_token: int = -1) -> torch.Tensor:
        """Sequences (T,) filled up to (B, T) with `pad_token`, or, where that is -1, with the padding token."""
        value = self.tokenizer.pad_id if pad_token == -1 else pad_token
        return pad_sequence(list(seq), batch_first=True, padding_value=value)

    def get_attention_mask(self, seq: torch.Tensor, pad_token: int = -1) -> torch.Tensor:
        """Where a batch has something else than padding, bool."""
        return seq != (self.tokenizer.pad_id if pad_token == -1 else pad_token)

    def collate(
        self, dialogues: Sequence[Mapping[str, torch.Tensor]], videos: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What the model reads, from processed dialogues and their videos' features.

        Args:
            dialogues: B results of this processor. videos: as many (Tv, F), of any numbers of time steps.

        Returns:
            `video_fts` (B, Tv, F); `input_ids` (B, T); and of both together, video first, `token_type_ids`,
            `labels` and `attn_mask` (B, Tv + T), the last bool, True where there is something.
        """
        steps = torch.tensor([len(video) for video in videos])
        video = pad_sequence(list(videos), batch_first=True)
        shown = torch.arange(video.shape[1])[None, :] < steps[:, None]  # (B, Tv)
        ids = self.padding([d["input_ids"] for d in dialogues])
        types = self.padding([d["token_type_ids"] for d in dialogues])
        labels = pad_sequence([d["labels"] for d in dialogues], batch_first=True, padding_value=NO_LABEL)
        return {
            "video_fts": video,
            "input_ids": ids,
            "token_type_ids": torch.cat([torch.full(shown.shape, self.tokenizer.id(VIDEO)), types], dim=1),
            "labels": torch.cat([torch.full(shown.shape, NO_LABEL), labels], dim=1),
            "attn_mask": torch.cat([shown, self.get_attention_mask(ids)], dim=1),
        }


def _pair(turn: Any) -> tuple[str, str]:
    """Question and answer of a round."""
    if isinstance(turn, Mapping) and {"question", "answer"} <= turn.keys():
        return str(turn["question"]), str(turn["answer"])
    if isinstance(turn, tuple | list) and len(turn) == 2:
        return str(turn[0]), str(turn[1])
    raise ValueError(f"a round of a dialogue should be a question and an answer, not {turn!r}")


@registry.register_processor("gpt_video_ft")
class GPTVideoFeatureProcessor(BaseProcessor):
    """Features of a video that were computed before, from files: the kinds side by side, cut to the shortest.

    The features of video V below the folder D are the arrays (time steps, width) in D/<kind>/V.npy. The
    default kinds, with which published figures were made, are 2048 + 2048 + 128 = 4224 wide.

    Args:
        visual_ft: kinds of features of pictures. audio_ft: kinds of features of sound.
    """

    def __init__(
        self, visual_ft: Sequence[str] = ("i3d_rgb", "i3d_flow"), audio_ft: Sequence[str] = ("vggish",)
    ) -> None:
        for name, kinds in (("visual_ft", visual_ft), ("audio_ft", audio_ft)):
            if isinstance(kinds, str):
                raise ValueError(f"{name} is {kinds!r}; it should be a list of names of features")
        self.visual_ft, self.audio_ft = tuple(visual_ft), tuple(audio_ft)
        if not self.visual_ft + self.audio_ft:
            raise ValueError("visual_ft and audio_ft are both empty; name at least one kind of features")

    def __call__(self, item: str | Path, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Read one video's features.

        Args:
            item: folder of the features / name of the video.

        Returns:
            A float tensor (T, F).

        Raises:
            FileNotFoundError, ValueError: a file that is missing, or no array of two dimensions.
        """
        if not isinstance(item, str | Path):
            raise TypeError(
                f"gpt_video_ft takes the path of a video's features, folder/name, not {type(item).__name__}; "
                "for frames there is gpt_frame_ft"
            )
        place = Path(item)
        arrays = [
            self._read(place.parent / kind / f"{place.name}.npy")
            for kind in (*self.visual_ft, *self.audio_ft)
        ]
        steps = min(len(array) for array in arrays)
        return torch.from_numpy(np.concatenate([array[:steps] for array in arrays], axis=1))

    def _read(self, path: Path) -> np.ndarray:
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no features {path}; they should lie in one folder per kind, one file per video"
            )
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as e:
            raise ValueError(f"{path} is damaged or no array of numbers ({e})") from e
        if (
            not isinstance(array, np.ndarray)
            or array.ndim != 2
            or array.dtype.kind not in "fiu"
            or not array.size
        ):
            shape = getattr(array, "shape", None)
            raise ValueError(f"{path} should hold numbers (time steps, width), not an array of shape {shape}")
        return array.astype(np.float32)


@registry.register_processor("gpt_frame_ft")
class GPTFrameFeatureProcessor(BaseProcessor):
    """Features from a clip's own frames, where no network has computed any: each frame averaged down to a small
    picture. Not from the paper; for small clips and tests.

    Args:
        grid: width and height of the small picture; a feature's width is 3 · grid².
        n_frms: evenly spread frames that are taken, fewer where the clip has fewer; None: all.
    """

    def __init__(self, grid: int = 16, n_frms: int | None = None) -> None:
        for name, value in (("grid", grid), ("n_frms", n_frms)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it should be a whole number, 1 or more")
        self.grid, self.n_frms = grid, n_frms

    def __call__(self, item: Any, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Process one clip.

        Args:
            item: its frames, a uint8 array (frames, h, w, 3), RGB, or a list of Pillow pictures of one size.

        Returns:
            A float tensor (frames, 3 · grid²), colours from -1 to 1.
        """
        frames = to_frames(item)
        small = [
            np.asarray(to_picture(frames[i]).resize((self.grid, self.grid), Image.Resampling.BOX))
            for i in sample_indices(len(frames), self.n_frms)
        ]
        return torch.from_numpy(np.stack(small)).flatten(1).float() / 127.5 - 1  # (T, grid · grid · 3)
