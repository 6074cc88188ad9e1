"""WordPiece tokenization of BERT and BLIP, and of the small presets.

Built on the `tokenizers` package, from a plain vocabulary file; nothing is downloaded. B texts, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

ASSETS = Path(__file__).parent / "assets"
BERT_VOCABULARY = ASSETS / "bert-base-uncased.txt"
TINY_VOCABULARY = ASSETS / "tiny_vocab.txt"

_LONGEST_WORD = 100  # characters; BERT makes longer words [UNK]

# The original's detokenization, applied in this order to the whole text; it decides scores of captions.
_TIGHT = [(f" {mark}", mark) for mark in ".?!,"] + [
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
]


@dataclass(frozen=True)
class Tokens:
    """A padded batch: `ids` (B, T) long and `mask` (B, T) bool, True for tokens."""

    ids: torch.Tensor
    mask: torch.Tensor

    @property
    def input_ids(self) -> torch.Tensor:
        """`ids`, under the name that notebooks of the original use."""
        return self.ids

    @property
    def attention_mask(self) -> torch.Tensor:
        """`mask` as integers, under the name that notebooks of the original use."""
        return self.mask.long()

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device))


def read_merges(path: Path, ids: int, count: int) -> list[tuple[str, str]]:
    """The first `count` merges of a byte-pair vocabulary with `ids` ids.

    Args:
        path: a file with one merge per line after a line of heading, the earliest first.

    Raises:
        ValueError: the file has fewer, or the vocabulary is too small for any.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    halves = [line.split(" ") for line in lines[: max(count, 0)]]
    merges = [(pair[0], pair[1]) for pair in halves if len(pair) == 2]
    if count < 0 or len(merges) < count:
        raise ValueError(
            f"{path}: {ids} ids need {count} merges, one 'left right' per line after a heading; "
            f"the file has {len(merges)} such lines"
        )
    return merges


def number_pieces(path: Path, ids: int, count: int, pieces: Sequence[str]) -> dict[str, int]:
    """{piece: id} of a byte-pair vocabulary that `read_merges` has read.

    Raises:
        ValueError: merges are repeated.
    """
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(vocab) != ids:
        raise ValueError(f"{path}: {ids - len(vocab)} of the first {count} merges are repeated")
    return vocab


class Tokenizer:
    """Texts to padded ids and back.

    Args:
        vocabulary: a file with one piece per line.
        extra: special tokens put after the vocabulary; BLIP's are [DEC], which begins a decoded text,
            and [ENC], which begins a text that attends to a picture. As in the original, a user who
            types one of them gets its special id.
        cover: replace characters that the vocabulary lacks by "?", and read a word of more than 100 characters
            as several, so that nothing becomes [UNK]. For small vocabularies; BERT's own behaviour without.
    """

    def __init__(
        self,
        vocabulary: Path | str = BERT_VOCABULARY,
        extra: Sequence[str] = ("[DEC]", "[ENC]"),
        cover: bool = False,
    ) -> None:
        self.vocabulary = Path(vocabulary)
        self.cover = cover
        pieces = self.vocabulary.read_text(encoding="utf-8").split("\n")
        if pieces and pieces[-1] == "":
            pieces.pop()
        vocab = {piece: i for i, piece in enumerate(pieces)}
        for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
            if token not in vocab:
                raise ValueError(f"{self.vocabulary}: this is no BERT vocabulary, it has no {token}")
        inner = _Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))
        steps: list[normalizers.Normalizer] = [
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
            )
        ]
        if cover:
            known = "".join(re.escape(p) for p in pieces if len(p) == 1)
            steps.append(normalizers.Replace(Regex(rf"[^\s{known}]"), "?"))
        inner.normalizer = normalizers.Sequence(steps)
        words: pre_tokenizers.PreTokenizer = pre_tokenizers.BertPreTokenizer()
        if cover:
            # WordPiece takes time with the cube of a word's length
            cut = pre_tokenizers.Split(Regex(rf".{{{_LONGEST_WORD}}}"), behavior="isolated")
            words = pre_tokenizers.Sequence([words, cut])
        inner.pre_tokenizer = words
        inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        inner.add_special_tokens(
            [
                AddedToken(t, special=True, normalized=False)
                for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
            ]
        )
        inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in extra])
        self._inner = inner
        self.pad_id, self.cls_id, self.sep_id = vocab["[PAD]"], vocab["[CLS]"], vocab["[SEP]"]
        self.mask_id, self.unk_id = vocab["[MASK]"], vocab["[UNK]"]

    def __len__(self) -> int:
        return self._inner.get_vocab_size(with_added_tokens=True)

    def id(self, token: str) -> int:
        """The id of a piece."""
        found = self._inner.token_to_id(token)
        if found is None:
            raise ValueError(f"{self.vocabulary} has no piece {token!r}")
        return found

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """[CLS] pieces [SEP]; cut to `max_length` ids, the [SEP] kept."""
        ids = self._inner.encode(text, add_special_tokens=False).ids
        if max_length is not None:
            ids = ids[: max(max_length - 2, 0)]
        return [self.cls_id, *ids, self.sep_id]

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        max_length: int | None = None,
        pad_to: int | None = None,
        device: torch.device | None = None,
        return_tensors: str = "pt",
    ) -> Tokens:
        """Encode texts and pad them to the longest, or to `pad_to` ids; `return_tensors` can only be "pt"."""
        if return_tensors != "pt":
            raise ValueError(
                f"return_tensors is {return_tensors!r}; this tokenizer gives PyTorch's tensors, 'pt'"
            )
        texts = [texts] if isinstance(texts, str) else texts
        return self.pad([self.encode(text, max_length) for text in texts], pad_to=pad_to, device=device)

    def pad(
        self, rows: Sequence[Sequence[int]], *, pad_to: int | None = None, device: torch.device | None = None
    ) -> Tokens:
        """Ids of several texts as one batch, filled up to the longest, or to `pad_to` ids."""
        width = max([len(r) for r in rows] + [pad_to or 0])
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(r) for r in rows])
        mask = torch.arange(width)[None, :] < lengths[:, None]
        return Tokens(ids.to(device), mask.to(device))

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Text of ids without special tokens, the spaces of tokenization taken out."""
        text = self._inner.decode([int(i) for i in ids], skip_special_tokens=True)
        for spaced, tight in _TIGHT:
            text = text.replace(spaced, tight)
        return text
