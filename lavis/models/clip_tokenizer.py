"""CLIP's byte-pair tokenization (Radford et al. 2021, section 2.4) and its clean-up of texts.

Built on the `tokenizers` package, from the list of merges; nothing is downloaded.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

from lavis.models.tokenizer import ASSETS, Tokenizer, number_pieces, read_merges

CLIP_MERGES = ASSETS / "clip_bpe_merges.txt"
START, END = "<start_of_text>", "<end_of_text>"
_END_OF_WORD = "</w>"
_ALPHABET = 256  # every byte is a piece, inside a word and at its end
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def _byte_symbols() -> dict[int, str]:
    """One visible character per byte, in the order of their ids: printable bytes stand for themselves, the
    others for the characters from U+0100 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(_ALPHABET):
        if byte not in symbols:
            symbols[byte] = chr(_ALPHABET + len(symbols) - len(printable))
    return symbols


def clean(text: str) -> str:
    """What CLIP's training texts went through: ftfy's repairs, HTML entities, white space, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else the first two change nothing
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


class ClipTokenizer(Tokenizer):
    """Texts to padded ids, [start] pieces [end], and back; no text has an unknown piece.

    A text that is cut keeps its end token, whose state is the text's feature. (The original's loses it.)
    As in the original, a user who types "<start_of_text>" or "<end_of_text>" gets the special id.

    Args:
        vocabulary: a file with one merge per line after a line of heading, the earliest first.
        size: number of ids; the first `size` - 514 merges are used. CLIP's is 49408.
        context_length: ids that a call makes of a text.
    """

    def __init__(
        self, vocabulary: Path | str = CLIP_MERGES, size: int = 49408, context_length: int = 77
    ) -> None:
        self.vocabulary = Path(vocabulary)
        count = size - 2 * _ALPHABET - 2
        merges = read_merges(self.vocabulary, size, count)
        symbols = _byte_symbols()
        pieces = [*symbols.values(), *(s + _END_OF_WORD for s in symbols.values())]
        pieces += ["".join(pair) for pair in merges]
        pieces += [START, END]
        vocab = number_pieces(self.vocabulary, size, count, pieces)
        inner = _Tokenizer(models.BPE(vocab, merges, end_of_word_suffix=_END_OF_WORD))
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (START, END)])
        self._inner = inner
        self._pieces = pieces
        self._bytes = {symbol: byte for byte, symbol in symbols.items()}
        self.pad_id, self.cls_id, self.sep_id = 0, vocab[START], vocab[END]
        self.context_length = context_length
        self._name_specials(vocab, bos=START, eos=END)

    def __call__(  # type: ignore[override]  # the original's tokenizer of CLIP is a function of this form
        self, texts: str | Sequence[str], context_length: int | None = None
    ) -> torch.Tensor:
        """Ids (B, context_length) of texts, cut to that length or filled up with 0."""
        length = context_length or self.context_length
        return self.batch(texts, max_length=length, pad_to=length).ids

    def encode(
        self, text: str, max_length: int | None = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """[start] pieces [end]; cut to `max_length` ids, the end kept."""
        return super().encode(clean(text), max_length, add_special_tokens)

    def decode(
        self,
        token_ids: int | Iterable[int] | torch.Tensor,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of ids up to the first end token, a space after every word, as the original writes it."""
        text = ""
        for i in map(int, torch.as_tensor(token_ids).flatten()):
            if i == self.sep_id:
                break
            if i != self.cls_id:
                text += self._pieces[i]
        data = bytes(self._bytes[c] for c in text)
        return data.decode("utf-8", errors="replace").replace(_END_OF_WORD, " ")
