"""Weights of a model with one WordPiece vocabulary for the same model with another.

The packaged models know 1,600 pieces, so that "dog" is "do ##g". Fine-tuned on texts of the world they get BERT's
30,522: what both vocabularies have keeps its weights, and a new piece starts as the mean of the pieces that it was
written with.

V pieces, D width.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence

import torch

from lavis.models.tokenizer import Tokenizer

log = logging.getLogger("lavis")

# Entries with a row per piece, in a model and in its EMA: word embeddings, and heads that write or guess words.
ROWS = (
    "*word_embeddings.weight",
    "*predictions.decoder.weight",
    "*predictions.decoder.bias",
    "*predictions.bias",
)
TOO_MANY_SPLIT = 0.05  # of a text's words


def split_piece(piece: str, known: Mapping[str, int], unknown: str = "[UNK]") -> list[str]:
    """A piece as WordPiece writes it with other pieces: greedily, the longest first.

    Args:
        piece: such as "dog" or "##dog". known: the pieces to write it with.
        unknown: what stands for a character that no piece has.
    """
    prefix, rest = ("##", piece[2:]) if piece.startswith("##") and len(piece) > 2 else ("", piece)
    out = []
    while rest:
        end = next((n for n in range(len(rest), 0, -1) if prefix + rest[:n] in known), 0)
        out.append(prefix + rest[:end] if end else unknown)
        prefix, rest = "##", rest[max(end, 1) :]
    return out


def rows_for(new: Sequence[str], old: Sequence[str], cover: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Which old rows a new vocabulary's rows are the mean of.

    Args:
        new, old: the pieces by id. cover: of the old tokenizer, see `Tokenizer`.

    Returns:
        old rows, all new ones' one after another, and where each new one's begin (V,): for `embedding_bag`.
    """
    known = {piece: i for i, piece in enumerate(old)}
    unknown = "?" if cover and "?" in known else "[UNK]"
    rows: list[int] = []
    starts = []
    for piece in new:
        starts.append(len(rows))
        rows += [known[piece]] if piece in known else [known[p] for p in split_piece(piece, known, unknown)]
    return torch.tensor(rows), torch.tensor(starts)


def converted(
    state: Mapping[str, torch.Tensor], old: Tokenizer, new: Tokenizer, where: str
) -> dict[str, torch.Tensor]:
    """The entries of a model with the vocabulary `old`, for one with `new`; `state` itself where they are alike.

    The logits of a new piece are the mean of those of the pieces that it was written with, so they never exceed
    the largest, and what a model would write first stays what it was.
    """
    before, after = old.pieces(), new.pieces()
    if before == after:
        return dict(state)
    rows, starts = rows_for(after, before, old.cover)
    out = dict(state)
    for key, tensor in state.items():
        if any(fnmatch.fnmatchcase(key, p) for p in ROWS) and tensor.shape[0] == len(before):
            table = tensor.float().reshape(len(before), -1)
            means = torch.nn.functional.embedding_bag(rows, table, starts, mode="mean")
            out[key] = means.reshape(len(after), *tensor.shape[1:]).to(tensor.dtype)
    shared = len(set(before) & set(after))
    log.info(
        "%s: its vocabulary of %d pieces becomes one of %d; %d are in both and keep their weights",
        where, len(before), len(after), shared,
    )  # fmt: skip
    return out


def share_of_split_words(texts: Iterable[str], tokenizer: Tokenizer) -> float:
    """The share of the texts' words and marks that a vocabulary has not in one piece."""
    known = set(tokenizer.pieces())
    words = [word for text in texts for word in tokenizer.words(text)]
    return sum(word not in known for word in words) / max(len(words), 1)
