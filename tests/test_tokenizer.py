"""Tokenization equals the original's, and small vocabularies cover every input."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis.models.tokenizer import BERT_VOCABULARY, TINY_VOCABULARY, Tokenizer
from tests.golden import REFERENCE

STORED = json.loads((REFERENCE / "tokenization" / "bert.json").read_text())
BERT = Tokenizer()
PLAIN = Tokenizer(extra=())
TINY = Tokenizer(TINY_VOCABULARY, cover=True)


def test_the_vocabulary_is_the_standard_one():
    digest = hashlib.sha256(BERT_VOCABULARY.read_bytes()).hexdigest()
    assert digest == STORED["vocab_sha256_of_vocab_txt"]
    special = STORED["blip_special"]
    assert len(BERT) == special["len"]
    assert BERT.id("[DEC]") == special["bos_token_id"] and BERT.id("[ENC]") == special["enc_token_id"]
    assert (BERT.pad_id, BERT.unk_id, BERT.cls_id, BERT.sep_id, BERT.mask_id) == (0, 100, 101, 102, 103)


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda c: repr(c["text"][:20]))
def test_ids_and_texts_equal_the_original(case):
    assert BERT.encode(case["text"]) == case["blip_ids"]
    assert PLAIN.encode(case["text"]) == case["bert_ids"]
    assert BERT([case["text"]], max_length=35, pad_to=35).ids[0].tolist() == case["trunc35"]
    assert BERT.decode(case["blip_ids"]) == case["decoded"]


def test_padding_equals_the_original():
    stored = STORED["padding_longest"]
    tokens = BERT(stored["texts"])
    assert tokens.ids.tolist() == stored["input_ids"]
    assert tokens.mask.long().tolist() == stored["attention_mask"]


def test_the_tiny_vocabulary_is_small():
    assert len(TINY) <= 2000


@given(st.text(max_size=60))
def test_nothing_is_unknown_to_the_tiny_vocabulary(text):
    ids = TINY.encode(text)
    typed = sum(text.count(t) for t in ("[UNK]",))
    assert ids.count(TINY.unk_id) <= typed


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789 ,.?!", max_size=40))
def test_the_tiny_vocabulary_loses_no_letter(text):
    squeezed = "".join(TINY.decode(TINY.encode(text)).split())
    assert squeezed == "".join(text.split())


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"no \[PAD\]"):
        Tokenizer(path)


def test_long_words_are_read_in_bounded_pieces():
    """WordPiece takes time with the cube of a word's length, so no word that it is given may be long."""
    for text in ("a" * 10_000, "é" * 10_000, "ab1" * 5_000, "a" * 101 + " b"):
        normal = TINY._inner.normalizer.normalize_str(text)
        pieces = TINY._inner.pre_tokenizer.pre_tokenize_str(normal)
        assert max(len(piece) for piece, _ in pieces) <= 100
        assert "".join(piece for piece, _ in pieces) == normal.replace(" ", "")
        assert TINY.unk_id not in TINY.encode(text)
        assert (
            BERT.encode(text).count(BERT.unk_id) == 1
        )  # as the original's, of words of more than 100 characters
    word = "ab" * 50
    assert BERT.unk_id not in BERT.encode(word) and BERT.encode(word + "a")[1:-1] == [BERT.unk_id]


def test_words_that_are_not_long_are_read_as_ever():
    from tokenizers.models import WordPiece

    plain = WordPiece(TINY._inner.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100_000)
    for word in ("a" * 100, "circle" * 16, "xylophone", "12345678901234567890"):
        assert TINY.encode(word)[1:-1] == [token.id for token in plain.tokenize(word)]
