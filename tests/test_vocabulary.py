"""A model with a small vocabulary becomes one with BERT's, and stays what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.registry import registry
from lavis.models import build_model, load_model
from lavis.models.fusion import TextStates
from lavis.models.tokenizer import BERT_VOCABULARY, TINY_VOCABULARY, Tokenizer
from lavis.models.vocabulary import rows_for, share_of_split_words, split_piece
from tests.small import images, random_model

WHOLE = ["a red square and a green circle", "a blue triangle"]  # no word is split by either vocabulary


def swapped(folder: Path, name: str) -> Any:
    """The model of a folder, with BERT's vocabulary."""
    extra = registry.get_model_class(name).EXTRA_TOKENS
    text = {"vocab_size": len(Tokenizer(BERT_VOCABULARY, extra=extra))}
    section = json.loads((folder / "config.json").read_text())["config"]
    section = {**section, "vocabulary": "bert", "cover": False, "text": {**section["text"], **text}}
    model = build_model({"arch": name, "model_type": "tiny", **section, "weights": str(folder)})
    return model.eval()


def pair(name: str, folder: Path, **config: Any) -> tuple[Any, Any]:
    model = random_model(name, **config)
    model.save_pretrained(folder)
    return load_model(str(folder), is_eval=True), swapped(folder, name)


def test_a_piece_is_split_as_wordpiece_splits_it() -> None:
    tokenizer = Tokenizer(TINY_VOCABULARY, extra=(), cover=True)
    pieces = tokenizer.pieces()
    known = {piece: i for i, piece in enumerate(pieces)}
    for word in ("dog", "elephant", "red", "squares", "unbelievable"):
        assert [known[p] for p in split_piece(word, known)] == tokenizer.encode(word)[1:-1], word
    assert all(piece.startswith("##") for piece in split_piece("##dog", known))
    assert split_piece("é", {"a": 0, "[UNK]": 1}) == ["[UNK]"]


def test_new_rows_are_means_and_shared_rows_are_kept() -> None:
    rows, starts = rows_for(["cat", "dog", "##s"], ["##g", "do", "cat", "##s"], cover=False)
    assert rows.tolist() == [2, 1, 0, 3] and starts.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "name",
    ["blip_retrieval", "albef_retrieval", "blip_pretrain", "albef_pretrain", "blip_image_text_matching"],
)
def test_features_and_matching_stay_what_they_were(name: str, tmp_path: Path) -> None:
    old, new = pair(name, tmp_path)
    image = images(2)
    for text in WHOLE:
        both = []
        for model in (old, new):
            with torch.no_grad():
                tokens = model.tokens([text])
                states = model.encode_text(tokens)
                memory = model.memorize(model.encode_image(image))
                alone = states if model.FUSES_STATES else None
                logits = model.match_logits(TextStates(tokens, alone).select(torch.tensor([0, 0])), memory)
                both.append((states, model.text_feature(states), logits))
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["blip_caption", "blip_vqa", "albef_vqa"])
def test_what_is_written_greedily_stays_what_it_was(name: str, tmp_path: Path) -> None:
    """A new piece's logit is the mean of its pieces', so it is never the largest."""
    old, new = pair(name, tmp_path)
    decoder_old, decoder_new = old.text_decoder, new.text_decoder
    head = "cls.predictions.decoder.weight"
    assert (
        decoder_new.state_dict()[head].data_ptr()
        == decoder_new.bert.embeddings.word_embeddings.weight.data_ptr()
    )
    states = torch.randn(3, 5, old.config.vit.width, generator=torch.Generator().manual_seed(0))
    before, after = old.tokenizer.pieces(), new.tokenizer.pieces()
    ids = torch.tensor([old.tokenizer.encode(WHOLE[0])] * 3)
    there = torch.tensor([[after.index(before[i]) for i in row] for row in ids.tolist()])
    with torch.no_grad():
        logits_old = decoder_old(ids, memory=decoder_old.project_memory(states))
        logits_new = decoder_new(there, memory=decoder_new.project_memory(states))
    shared = [i for i, piece in enumerate(before) if piece in set(after)]
    again = torch.tensor([after.index(before[i]) for i in shared])
    torch.testing.assert_close(logits_new[..., again], logits_old[..., shared], rtol=0, atol=1e-5)
    assert bool((logits_new.amax(-1) <= logits_old.amax(-1) + 1e-5).all())


@pytest.mark.parametrize(
    "name", ["blip_retrieval", "albef_pretrain", "alpro_retrieval", "blip_vqa", "albef_vqa"]
)
def test_it_is_saved_and_loaded_with_its_vocabulary(name: str, tmp_path: Path) -> None:
    _, new = pair(name, tmp_path / "small")
    assert len(new.tokenizer) == new.config.text.vocab_size > 30000
    new.save_pretrained(tmp_path / "large")
    again = load_model(str(tmp_path / "large"))
    assert again.tokenizer.pieces() == new.tokenizer.pieces() and not again.tokenizer.cover
    state, loaded = new.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, loaded[key]), key


def test_the_ema_gets_the_same_rows(tmp_path: Path) -> None:
    _, new = pair("albef_pretrain", tmp_path)
    old = load_model(str(tmp_path))  # with its EMA
    small, large = old.state_dict(), new.state_dict()
    before, after = old.tokenizer.pieces(), new.tokenizer.pieces()
    for key in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        for part in ("text_encoder", "text_encoder_m"):
            a, b = small[f"{part}.{key}"], large[f"{part}.{key}"]
            assert torch.equal(b[after.index("red")], a[before.index("red")])
            dog = torch.stack([a[before.index(p)] for p in ("do", "##g")]).mean(0)
            torch.testing.assert_close(b[after.index("dog")], dog)


def test_share_of_split_words() -> None:
    tokenizer = Tokenizer(TINY_VOCABULARY, cover=True)
    assert share_of_split_words(WHOLE, tokenizer) == 0
    assert share_of_split_words(["a dog", "a red dog"], tokenizer) == pytest.approx(2 / 5)
    assert share_of_split_words([], tokenizer) == 0
