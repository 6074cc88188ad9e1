"""GPT-2's byte-pair tokenization (Radford et al. 2019, section 2.2), with the special tokens of dialogues.

Built on the `tokenizers` package, from the list of merges; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

from lavis.models.tokenizer import ASSETS, Tokenizer, number_pieces, read_merges

GPT2_MERGES = ASSETS / "gpt2_bpe_merges.txt"
END_OF_TEXT = "<|endoftext|>"  # ends a document of GPT-2's training data; the last id of its vocabulary
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
ASKING, ANSWERING, VIDEO, CAPTION = "<speaker1>", "<speaker2>", "<video>", "<cap>"  # token types
DIALOGUE_TOKENS = (BOS, EOS, ASKING, ANSWERING, VIDEO, CAPTION, PAD)  # in the order of their ids


class GPTTokenizer(Tokenizer):
    """Texts to ids and back; no text has an unknown piece, and decoding gives a text back as it was.

    Nothing is put before or after a text: what a dialogue is made of is the processor's to say. Unlike the
    original, special tokens that a user types are text like any other.

    Args:
        vocabulary: a file with one merge per line after a line of heading, the earliest first.
        size: number of ids, the dialogues' special tokens included; the first `size` - 264 merges are used.
            GPT-2's 50,000 make 50264.
    """

    def __init__(self, vocabulary: Path | str = GPT2_MERGES, size: int = 50264) -> None:
        self.vocabulary = Path(vocabulary)
        alphabet = sorted(
            pre_tokenizers.ByteLevel.alphabet()
        )  # one visible character per byte, in GPT-2's order
        count = size - len(alphabet) - 1 - len(DIALOGUE_TOKENS)
        merges = read_merges(self.vocabulary, size, count)
        pieces = [*alphabet, *("".join(pair) for pair in merges), END_OF_TEXT, *DIALOGUE_TOKENS]
        vocab = number_pieces(self.vocabulary, size, count, pieces)
        inner = _Tokenizer(models.BPE(vocab, merges))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t in (END_OF_TEXT, *DIALOGUE_TOKENS)]
        )
        inner.encode_special_tokens = True
        self._inner = inner
        self.pad_id, self.bos_id, self.eos_id = vocab[PAD], vocab[BOS], vocab[EOS]

        self._name_specials(
            vocab, unk=END_OF_TEXT, eos=EOS, bos=BOS, pad=PAD, more=(ASKING, ANSWERING, VIDEO, CAPTION)
        )

    def encode(
        self, text: str, max_length: int | None = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """The pieces' ids, at most `max_length` of them. With more options as a call's `input_ids`."""
        if options:
            return self(text, max_length=max_length, **options).input_ids
        return self._inner.encode(text, add_special_tokens=False).ids[:max_length]

    def decode(
        self,
        token_ids: int | Iterable[int] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of ids, with or without special tokens; spaces stay as they were."""
        ids = [int(i) for i in torch.as_tensor(token_ids).flatten()]
        text: str = self._inner.decode(ids, skip_special_tokens=skip_special_tokens)
        return text
