"""Language models of transformers: what is written and scored equals transformers' own way, of any kind of decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis.nn import generation
from lavis.nn.causal_lm import CausalDecoding, EncoderDecoding
from lavis.nn.generation import GenerationOptions

transformers = pytest.importorskip("transformers")

V, D = 61, 32
SIZES: dict[str, Any] = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODERS = {
    "opt": lambda: transformers.OPTConfig(
        **SIZES, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=D
    ),
    "llama, shared heads": lambda: transformers.LlamaConfig(
        **SIZES, intermediate_size=64, num_key_value_heads=2
    ),
    "mistral, sliding window": lambda: transformers.MistralConfig(
        **SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=6
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=V, n_embd=D, n_layer=3, n_head=4, n_positions=64),
}
START, END, PAD = 1, 2, 0


def decoder(kind: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(DECODERS[kind]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 6  # so that tokens are not about equally likely
    return model


def encoder_decoder(depth: int = 2) -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=8, d_ff=64, num_layers=depth, num_decoder_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.fixture
def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three embedded prompts, of 9, 5 and 7 tokens."""
    mask = torch.arange(9) >= 9 - torch.tensor([9, 5, 7])[:, None]
    return torch.randn(3, 9, D, generator=torch.Generator().manual_seed(1)), mask


def begin(model: Any, prompt: torch.Tensor, mask: torch.Tensor) -> Any:
    return (EncoderDecoding if model.config.is_encoder_decoder else CausalDecoding)(model, prompt, mask)


def written(model: Any, prompt: torch.Tensor, mask: torch.Tensor, **options: Any) -> list[list[int]]:
    found = generation.generate(
        begin(model, prompt, mask), torch.full((len(prompt), 1), START),
        GenerationOptions(lookahead=1, min_length=1, max_new_tokens=12, **options), end=END, pad=PAD,
    )  # fmt: skip
    return [row.tolist() for row in found.ids]


@torch.no_grad()
def log_probabilities(model: Any, prompt: torch.Tensor, mask: torch.Tensor, text: list[int]) -> float:
    """Of one text after one prompt, all of it read anew."""
    real = prompt[:, mask[0]]
    if model.config.is_encoder_decoder:
        logits = model(inputs_embeds=real, decoder_input_ids=torch.tensor([[START, *text[:-1]]])).logits[0]
    else:
        words = model.get_input_embeddings()(torch.tensor([text]))
        logits = model(inputs_embeds=torch.cat([real, words], dim=1)).logits[0, real.shape[1] - 1 : -1]
    return float(logits.log_softmax(dim=-1)[torch.arange(len(text)), torch.tensor(text)].sum())


KINDS = [*DECODERS, "t5"]


def model_of(kind: str) -> Any:
    return encoder_decoder() if kind == "t5" else decoder(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 4])
@torch.no_grad()
def test_a_batch_writes_what_each_prompt_alone_does(
    kind: str, beams: int, prompts: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model, (prompt, mask) = model_of(kind), prompts
    together = written(model, prompt, mask, num_beams=beams)
    for i, row in enumerate(together):
        real = mask[i]
        [alone] = written(model, prompt[i : i + 1, real], mask[i : i + 1, real], num_beams=beams)
        assert row[: len(alone)] == alone and not any(row[len(alone) :])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 4])
@torch.no_grad()
def test_what_is_written_is_what_transformers_writes(
    kind: str, beams: int, prompts: tuple[torch.Tensor, torch.Tensor]
) -> None:
    # transformers' own cache of T5 takes the encoder's depth for the decoder's
    model, (prompt, mask) = encoder_decoder(3) if kind == "t5" else decoder(kind), prompts
    for i in range(len(prompt)):
        some, seen = prompt[i : i + 1, mask[i]], mask[i : i + 1, mask[i]]
        # lengths are not compared: of decoder-only models the original counts a start token
        [mine] = written(model, some, seen, num_beams=beams, length_penalty=0.0)
        theirs = model.generate(
            inputs_embeds=some, attention_mask=seen.long(), num_beams=beams, do_sample=False, max_new_tokens=12,
            eos_token_id=END, pad_token_id=PAD, early_stopping=False, length_penalty=0.0,
        )[0].tolist()  # fmt: skip
        theirs = theirs if model.config.is_encoder_decoder else [START, *theirs]
        assert [x for x in mine if x != PAD] == [x for x in theirs if x != PAD]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [{}, {"AT_ONCE": V * 4 * 2}, {"CACHE_AT_ONCE": 1}])
@torch.no_grad()
def test_given_texts_are_scored_as_if_each_was_read_alone(
    kind: str,
    at_once: dict[str, int],
    prompts: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lavis.nn import causal_lm

    for name, most in at_once.items():
        monkeypatch.setattr(causal_lm, name, most)
    model, (prompt, mask) = model_of(kind), prompts
    texts = [[5, 6, 7, 8, 9], [11], [5, 6, 20], [33, 34, 35, 36], [40, 41]]
    items = torch.tensor([0, 2, 1, 1, 0])
    ids = torch.tensor([[*text, *[PAD] * (5 - len(text))] for text in texts])
    real = torch.arange(5) < torch.tensor([len(text) for text in texts])[:, None]
    decoding = begin(model, prompt, mask)
    found = decoding.log_probabilities(torch.full((3, 1), START), ids, real, items)
    for text, item, value in zip(texts, items.tolist(), found.tolist()):
        assert value == pytest.approx(
            log_probabilities(model, prompt[item : item + 1], mask[item : item + 1], text), abs=2e-4
        )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_steps_beyond_the_first_room_read_what_was_read(
    kind: str, prompts: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache grows several times, and beams go on from one another."""
    from lavis.nn import causal_lm

    monkeypatch.setattr(causal_lm, "ROOM", 2)
    model, (prompt, mask) = model_of(kind), prompts
    one, seen = prompt[:1], mask[:1]
    decoding = begin(model, one, seen)
    logits = decoding.step(torch.full((1, 1), START))
    decoding.select(torch.zeros(3, dtype=torch.long))
    texts = [[10], [20], [30]]
    generator = torch.Generator().manual_seed(3)
    for _ in range(8):
        logits = decoding.step(torch.tensor([[text[-1]] for text in texts]))
        parents = torch.randint(3, (3,), generator=generator)
        decoding.select(parents)
        new = torch.randint(3, V, (3,), generator=generator).tolist()
        logits = logits[parents]
        for row, (parent, token) in enumerate(zip(parents.tolist(), new)):
            before = texts[parent]
            whole = log_probabilities(model, one, seen, [*before, token])
            part = log_probabilities(model, one, seen, before)
            assert float(logits[row].log_softmax(dim=0)[token]) == pytest.approx(whole - part, abs=2e-4)
        texts = [[*texts[parent], token] for parent, token in zip(parents.tolist(), new)]


@torch.no_grad()
def test_reordering_beams_moves_nothing_of_the_prompt(prompts: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, (prompt, mask) = decoder("opt"), prompts
    decoding = begin(model, prompt, mask)
    decoding.step(torch.full((3, 1), START))
    decoding.select(torch.arange(3).repeat_interleave(4))
    decoding.step(torch.full((12, 1), 5))
    [layer, *_] = decoding.cache.layers
    layer.data[:, :, :, : layer.prompt] = torch.nan  # whoever reads or moves it would show it
    before = layer.data.data_ptr()
    decoding.select(torch.arange(12).flip(0))
    assert (
        layer.data.data_ptr() == before
        and not layer.data[:, :, :, layer.prompt : layer.keys.shape[2]].isnan().any()
    )


def test_no_warning_of_names_that_transformers_gave_up(
    prompts: tuple[torch.Tensor, torch.Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    prompt, mask = prompts
    for kind in KINDS:
        with torch.no_grad():
            written(model_of(kind), prompt, mask, num_beams=2)
    assert not [str(w.message) for w in recwarn if "past_key_values" in str(w.message)]
