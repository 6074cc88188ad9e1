"""Tokenization equals the original's, and small vocabularies cover every input."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from lavis.models.clip_tokenizer import ClipTokenizer
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
    assert BERT.batch([case["text"]], max_length=35, pad_to=35).ids[0].tolist() == case["trunc35"]
    assert BERT.decode(case["blip_ids"], skip_special_tokens=True) == case["decoded"]


def test_padding_equals_the_original():
    stored = STORED["padding_longest"]
    tokens = BERT.batch(stored["texts"])
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
    squeezed = "".join(TINY.decode(TINY.encode(text), skip_special_tokens=True).split())
    assert squeezed == "".join(text.split())


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"no \[PAD\]"):
        Tokenizer(path)


# ------------------------------------------------------------------------- the calls of transformers' tokenizer


@pytest.fixture(scope="module")
def theirs():
    tokenizer = BertTokenizer(vocab=str(BERT_VOCABULARY), model_max_length=512)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer


TEXTS = [case["text"] for case in STORED["cases"]]
CALLS = [
    {},
    {"padding": "longest"},
    {"padding": True, "truncation": True, "max_length": 9},
    {"padding": "max_length", "max_length": 12},
    {"padding": "max_length", "truncation": True, "max_length": 12},
    {"padding": "longest", "max_length": 5},
    {"truncation": True, "max_length": 7},
    {"truncation": "longest_first", "max_length": 2},
    {"max_length": 7},
    {"truncation": False, "max_length": 7},
    {"add_special_tokens": False},
    {"add_special_tokens": False, "padding": True, "truncation": True, "max_length": 6},
    {"padding": "max_length", "truncation": True},
]


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_a_call_equals_transformers(theirs, options):
    for texts in (TEXTS, TEXTS[0], [TEXTS[1]]):
        ours, other = BERT(texts, **options), theirs(texts, **options)
        assert dict(ours) == {key: other[key] for key in ours}
        assert set(ours) == {"input_ids", "token_type_ids", "attention_mask"}
    tensors = BERT(TEXTS[0], return_tensors="pt", **options)
    assert torch.equal(tensors.input_ids, theirs(TEXTS[0], return_tensors="pt", **options).input_ids)
    if options.get("padding") in (True, "longest") or {"padding", "truncation"} <= options.keys():
        tensors, other = (t(TEXTS, return_tensors="pt", **options) for t in (BERT, theirs))
        assert torch.equal(tensors.input_ids, other.input_ids)
        assert torch.equal(tensors["attention_mask"], other["attention_mask"])


def test_texts_of_unequal_length_are_no_tensor():
    with pytest.raises(ValueError, match="padding=True"):
        BERT(["a", "a dog"], return_tensors="pt")
    for wrong in ({"padding": "long"}, {"truncation": "left"}, {"return_tensors": "tf"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BERT("a dog", **wrong)


def test_pieces_and_texts_equal_transformers(theirs):
    rows = [BERT(text).input_ids for text in TEXTS]
    for text, row in zip(TEXTS, rows, strict=True):
        assert BERT.tokenize(text) == theirs.tokenize(text)
        assert BERT.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert BERT.encode(text, truncation=True, max_length=5) == theirs.encode(
            text, truncation=True, max_length=5
        )
        assert BERT.convert_ids_to_tokens(row) == theirs.convert_ids_to_tokens(row)
        assert BERT.convert_tokens_to_ids(BERT.tokenize(text)) == BERT.encode(text, add_special_tokens=False)
        for skip in (True, False):
            assert BERT.decode(row, skip_special_tokens=skip) == theirs.decode(
                row, skip_special_tokens=skip, clean_up_tokenization_spaces=True
            )
    padded = BERT(TEXTS, padding=True, return_tensors="pt").input_ids
    assert BERT.batch_decode(padded, skip_special_tokens=True) == [
        BERT.decode(row, skip_special_tokens=True) for row in rows
    ]
    assert BERT.convert_ids_to_tokens(2023) == "this" and BERT.convert_tokens_to_ids("this") == 2023
    assert BERT.convert_tokens_to_ids("no piece") == theirs.convert_tokens_to_ids("no piece") == 100
    assert BERT.decode(2023) == theirs.decode(2023)


def test_special_tokens_have_transformers_names(theirs):
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        for name in (f"{role}_token", f"{role}_token_id"):
            assert getattr(BERT, name) == getattr(theirs, name)
    assert BERT.enc_token_id == BERT.additional_special_tokens_ids[0] == 30523
    assert (BERT.vocab_size, len(BERT)) == (theirs.vocab_size, len(theirs)) == (30522, 30524)
    assert set(BERT.all_special_ids) == set(theirs.all_special_ids)
    assert BERT.get_vocab()["this"] == 2023
    assert PLAIN.bos_token_id is None and len(PLAIN) == PLAIN.vocab_size == 30522


def test_ids_of_a_call_can_be_replaced():
    tokens = BERT(["a dog", "two dogs"], padding=True, return_tensors="pt").to("cpu")
    tokens.input_ids[:, 0] = BERT.enc_token_id
    assert tokens["input_ids"][:, 0].tolist() == [30523, 30523]
    tokens.input_ids = tokens.input_ids[:, 1:]
    assert tokens["input_ids"].shape == tokens.input_ids.shape == (2, 3)
    assert set(dict(**tokens)) == {"input_ids", "token_type_ids", "attention_mask"}
    assert copy.deepcopy(tokens).input_ids.shape == (2, 3)
    with pytest.raises(AttributeError, match="pixel_values"):
        _ = tokens.pixel_values


def test_clip_gives_ids_of_its_context_length():
    tokenizer = ClipTokenizer()
    ids = tokenizer(["a dog", "a cat " * 60])
    assert ids.shape == (2, 77) and ids.dtype == torch.long
    assert tokenizer("a dog", context_length=8).tolist() == [[49406, 320, 1929, 49407, 0, 0, 0, 0]]
