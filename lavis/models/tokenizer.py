"""WordPiece tokenization of BERT and BLIP, and of the small presets.

Built on the `tokenizers` package, from a plain vocabulary file; nothing is downloaded. Models use `batch`, which gives
padded tensors; called, a tokenizer answers as transformers' BertTokenizer. B texts, T tokens.
"""

from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

ASSETS = Path(__file__).parent / "assets"
BERT_VOCABULARY = ASSETS / "bert-base-uncased.txt"
TINY_VOCABULARY = ASSETS / "tiny_vocab.txt"
BERT_LENGTH = 512  # tokens that BERT has places for

_LONGEST_WORD = 100  # characters; BERT makes longer words [UNK]

# The original's detokenization, applied in this order to the whole text; it decides scores of captions.
_TIGHT = [(f" {mark}", mark) for mark in ".?!,"] + [
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
]


class Tokens(NamedTuple):
    """A padded batch: `ids` (B, T) long and `mask` (B, T) bool, True for tokens.

    A tuple, so that loaders, wrappers and compilers see the tensors in it.
    """

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


class Encoding(UserDict[str, Any]):
    """What a call of a tokenizer gives, as transformers' BatchEncoding: `input_ids`, `token_type_ids` and
    `attention_mask`, lists or tensors, read and replaced as items or as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:  # copying and unpickling ask before there is any
            raise AttributeError(f"the tokens have no {name!r}")
        return self.data[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            super().__setattr__(name, value)
        else:
            self.data[name] = value

    def to(self, device: torch.device | str) -> Encoding:
        """The same object with its tensors on a device."""
        self.data = {k: v.to(device) if hasattr(v, "to") else v for k, v in self.data.items()}
        return self


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

    As transformers' tokenizers it names its special tokens and their ids (`sep_token`, `sep_token_id`; the roles are
    bos, eos, unk, sep, pad, cls, mask), and counts its vocabulary (`vocab_size`; `len()` with added tokens).

    Args:
        vocabulary: a file with one piece per line.
        extra: special tokens put after the vocabulary; BLIP's are [DEC], which begins a decoded text,
            and [ENC], which begins a text that attends to a picture. As in the original, a user who
            types one of them gets its special id.
        cover: replace characters that the vocabulary lacks by "?", and read a word of more than 100 characters
            as several, so that nothing becomes [UNK]. For small vocabularies; BERT's own behaviour without.
    """

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str | None
    pad_token: str | None
    cls_token: str | None
    mask_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int | None
    cls_token_id: int | None
    mask_token_id: int | None

    def __init__(
        self,
        vocabulary: Path | str = BERT_VOCABULARY,
        extra: Sequence[str] = ("[DEC]", "[ENC]"),
        cover: bool = False,
    ) -> None:
        self.vocabulary = Path(vocabulary)
        self.cover, self.extra = cover, tuple(extra)
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
        self._words, self._splitter = steps[0], pre_tokenizers.BertPreTokenizer()
        if cover:
            known = "".join(re.escape(p) for p in pieces if len(p) == 1)
            steps.append(normalizers.Replace(Regex(rf"[^\s{known}]"), "?"))
        inner.normalizer = normalizers.Sequence(steps)
        words: pre_tokenizers.PreTokenizer = self._splitter
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
        self._name_specials(
            vocab,
            bos="[DEC]" if "[DEC]" in extra else None,
            unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]",
            more=[token for token in extra if token != "[DEC]"],
        )  # fmt: skip
        if "[ENC]" in extra:
            self.enc_token_id = self.id("[ENC]")  # not transformers', but BLIP's

    def _name_specials(
        self, vocab: Mapping[str, int], more: Sequence[str] = (), **tokens: str | None
    ) -> None:
        """Special tokens and their ids under transformers' names; None where the tokenizer has none.

        Args:
            vocab: the vocabulary without what was added to it. more: special tokens without a role of their own.
            tokens: of the roles bos, eos, unk, sep, pad, cls and mask.
        """
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            token = tokens.get(role)
            setattr(self, f"{role}_token", token)
            setattr(self, f"{role}_token_id", None if token is None else self.id(token))
        self.additional_special_tokens = list(more)
        self.additional_special_tokens_ids = [self.id(token) for token in more]
        self.all_special_tokens = [*dict.fromkeys([*filter(None, tokens.values()), *more])]
        self.all_special_ids = [self.id(token) for token in self.all_special_tokens]
        self.vocab_size = len(vocab)  # len() counts what was added, too

    def __len__(self) -> int:
        return self._inner.get_vocab_size(with_added_tokens=True)

    def pieces(self) -> list[str]:
        """The vocabulary by id, special tokens included."""
        by_piece = self._inner.get_vocab(with_added_tokens=True)
        return sorted(by_piece, key=by_piece.__getitem__)

    def words(self, text: str) -> list[str]:
        """The words and marks of a text, before they are split into pieces: lower case, without accents."""
        normalized = self._words.normalize_str(text)
        return [word for word, _ in self._splitter.pre_tokenize_str(normalized)]

    def id(self, token: str) -> int:
        """The id of a piece."""
        found = self._inner.token_to_id(token)
        if found is None:
            raise ValueError(f"{self.vocabulary} has no piece {token!r}")
        return found

    # ------------------------------------------------------------------------------ for models
    def encode(
        self, text: str, max_length: int | None = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """[CLS] pieces [SEP]; cut to `max_length` ids, the [SEP] kept. With more options as a call's `input_ids`."""
        if options:
            return self(
                text, max_length=max_length, add_special_tokens=add_special_tokens, **options
            ).input_ids
        ids = self._inner.encode(text, add_special_tokens=False).ids
        if max_length is not None:
            ids = ids[: max(max_length - 2 * add_special_tokens, 0)]
        return [self.cls_id, *ids, self.sep_id] if add_special_tokens else ids

    def batch(
        self,
        texts: str | Sequence[str],
        *,
        max_length: int | None = None,
        pad_to: int | None = None,
        device: torch.device | None = None,
    ) -> Tokens:
        """Encode texts, cut them to `max_length` ids, and pad them to the longest, or to `pad_to` ids."""
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

    # ------------------------------------------------------------------------------ as transformers
    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_token_type_ids: bool = True,
        return_attention_mask: bool = True,
    ) -> Encoding:
        """Encode a text or several, as transformers' BertTokenizer does.

        Args:
            padding: True or "longest", "max_length", or False.
            truncation: True cuts to `max_length`. Left out, a `max_length` without padding cuts, too.
            max_length: ids of a text; BERT's 512 where padding or truncation needs one and none is given.
            add_special_tokens: whether a text stands between [CLS] and [SEP].
            return_tensors: "pt" for PyTorch's, "np" for NumPy's; None gives lists, of one text a flat one.

        Raises:
            ValueError: an option that isn't one of these, or tensors of texts of unequal length.
        """
        pads = {True: "longest", False: "", "do_not_pad": ""}.get(padding, padding)
        if pads not in ("", "longest", "max_length"):
            raise ValueError(f"padding is {padding!r}; it should be True, 'longest', 'max_length' or False")
        if truncation not in (None, True, False, "longest_first", "only_first", "do_not_truncate"):
            raise ValueError(f"truncation is {truncation!r}; it should be True, 'longest_first' or False")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}; it should be 'pt', 'np' or None")
        cuts = truncation not in (None, False, "do_not_truncate")
        cuts = cuts or (truncation is None and max_length is not None and not pads)
        longest = max_length or BERT_LENGTH
        single = isinstance(text, str)
        rows = [
            self.encode(t, longest if cuts else None, add_special_tokens)
            for t in ([text] if isinstance(text, str) else text)
        ]
        width = 0
        if pads:
            width = longest if pads == "max_length" else max(map(len, rows), default=0)
        columns = {
            "input_ids": [row + [self.pad_id] * (width - len(row)) for row in rows],
            "token_type_ids": [[0] * max(width, len(row)) for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (width - len(row)) for row in rows],
        }
        wanted = {"token_type_ids": return_token_type_ids, "attention_mask": return_attention_mask}
        columns = {key: value for key, value in columns.items() if wanted.get(key, True)}
        if return_tensors is None:
            return Encoding({key: value[0] if single else value for key, value in columns.items()})
        lengths = {len(row) for row in columns["input_ids"]}
        if len(lengths) > 1:
            raise ValueError(
                f"the texts have {min(lengths)} to {max(lengths)} tokens, which are no one tensor; pad them with "
                "padding=True"
            )
        tensors = {key: torch.tensor(value, dtype=torch.long) for key, value in columns.items()}
        if return_tensors == "np":
            return Encoding({key: value.numpy() for key, value in tensors.items()})
        return Encoding(tensors)

    def decode(
        self,
        token_ids: int | Iterable[int] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = True,
    ) -> str:
        """Text of ids; the spaces that tokenization put before marks and endings are taken out again."""
        ids = torch.as_tensor(token_ids).flatten().tolist()
        if not skip_special_tokens:
            kept = [self._inner.id_to_token(int(i)) for i in ids]
            text = self.convert_tokens_to_string([piece for piece in kept if piece is not None])
        else:
            text = self._inner.decode([int(i) for i in ids], skip_special_tokens=True)
        if clean_up_tokenization_spaces:
            for spaced, tight in _TIGHT:
                text = text.replace(spaced, tight)
        return text

    def batch_decode(
        self, sequences: Iterable[Any], skip_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, skip_special_tokens, **options) for row in sequences]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, without [CLS] and [SEP]."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int] | torch.Tensor, skip_special_tokens: bool = False
    ) -> Any:
        """The piece of an id, or of each of several, as written in the vocabulary."""
        if isinstance(ids, int):
            return self._inner.id_to_token(ids)
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._inner.id_to_token(int(i)) for i in ids if int(i) not in special]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a piece, or of each of several; that of the unknown piece where there is none."""
        if isinstance(tokens, str):
            found = self._inner.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Pieces joined: with spaces, but those that continue a word."""
        return " ".join(tokens).replace(" ##", "").strip()

    def get_vocab(self) -> dict[str, int]:
        """{piece: id}, special tokens included."""
        return self._inner.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> Mapping[str, int]:
        return self.get_vocab()
