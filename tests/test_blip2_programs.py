"""What public programs call of BLIP-2 beyond its methods: its parts, in the call forms of the original.

Each test is a way in which several programs use the models; what they get equals what the methods give.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import blip2_reference as reference

TEXTS = ["a dog on the grass", "two trees"]


def build(tmp_path_factory: pytest.TempPathFactory, name: str) -> Any:
    described = reference.manifest(name)
    folder = tmp_path_factory.mktemp("weights")
    return reference.build(described, reference.write(described, folder / "weights.pth"))


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    return build(tmp_path_factory, "qformer")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    pytest.importorskip("transformers")
    return build(tmp_path_factory, "t5")


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    pytest.importorskip("transformers")
    return build(tmp_path_factory, "vicuna_instruct")


def read_images(model: Any, image: torch.Tensor, **more: Any) -> Any:
    """As nearly all of them do it."""
    with model.maybe_autocast():
        image_embeds = model.ln_vision(model.visual_encoder(image))
    image_embeds = image_embeds.float()
    image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image_embeds.device)
    query_tokens = model.query_tokens.expand(image_embeds.shape[0], -1, -1)
    return model.Qformer.bert(
        query_embeds=query_tokens,
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=image_atts,
        return_dict=True,
        **more,
    )


def read_both(model: Any, image: torch.Tensor, text: Any) -> Any:
    image_embeds = model.ln_vision(model.visual_encoder(image))
    image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long)
    query_tokens = model.query_tokens.expand(image_embeds.shape[0], -1, -1)
    query_atts = torch.ones(query_tokens.size()[:-1], dtype=torch.long)
    attention_mask = torch.cat([query_atts, text.attention_mask], dim=1)
    return model.Qformer.bert(
        text.input_ids,
        query_embeds=query_tokens,
        attention_mask=attention_mask,
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=image_atts,
        return_dict=True,
    )


@torch.no_grad()
def test_features_of_images(former):
    image = reference.images()
    found = read_images(former, image, use_cache=True)
    wanted = former.extract_features({"image": image}, mode="image")
    torch.testing.assert_close(found.last_hidden_state, wanted.image_embeds)
    torch.testing.assert_close(found[0], wanted.image_embeds)
    projected = F.normalize(former.vision_proj(found.last_hidden_state), dim=-1)
    torch.testing.assert_close(projected, wanted.image_embeds_proj)


@torch.no_grad()
def test_features_of_texts(former):
    text = former.tokenizer(TEXTS, return_tensors="pt", padding=True).to(former.device)
    found = former.Qformer.bert(text.input_ids, attention_mask=text.attention_mask, return_dict=True)
    wanted = former.extract_features({"image": [], "text_input": TEXTS}, mode="text")
    torch.testing.assert_close(found.last_hidden_state, wanted.text_embeds)


@torch.no_grad()
def test_features_of_both(former):
    image = reference.images()
    text = former.tokenizer(TEXTS, return_tensors="pt", padding="max_length", truncation=True, max_length=12)
    found = read_both(former, image, text).last_hidden_state[:, : former.query_tokens.size(1), :]
    wanted = former.extract_features({"image": image, "text_input": TEXTS}).multimodal_embeds
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    logits = former.itm_head(found).mean(dim=1)
    embeds = former.ln_vision(former.visual_encoder(image))
    torch.testing.assert_close(
        logits[:, 1], former.compute_itm(embeds, text.input_ids, text.attention_mask), atol=2e-5, rtol=1e-4
    )


@torch.no_grad()
def test_texts_that_are_written_after_queries(former):
    """The third loss of the first stage, by hand; the same queries serve several texts."""
    image = reference.images()
    queries = read_images(former, image, use_cache=True)
    text = former.tokenizer(TEXTS, return_tensors="pt", padding="max_length", truncation=True, max_length=32)
    ids = text.input_ids.clone()
    ids[:, 0] = former.tokenizer.bos_token_id
    labels = ids.masked_fill(ids == former.tokenizer.pad_token_id, -100)
    seen = torch.cat([torch.ones(queries[0].size()[:-1], dtype=torch.long), text.attention_mask], dim=1)
    losses = [
        former.Qformer(
            ids, attention_mask=seen, past_key_values=queries.past_key_values, return_dict=True, labels=labels
        ).loss
        for _ in range(2)
    ]
    wanted = former({"image": image, "text_input": TEXTS}).loss_lm
    assert former.max_txt_len == 32 and [float(loss) for loss in losses] == pytest.approx([float(wanted)] * 2)


@torch.no_grad()
def test_attention_maps(former):
    image = reference.images()
    found = read_images(former, image, output_attentions=True)
    plain = read_images(former, image)
    torch.testing.assert_close(found.last_hidden_state, plain.last_hidden_state)
    config = former.config.text
    count = former.query_tokens.shape[1]
    assert [a.shape for a in found.attentions] == [(2, config.heads, count, count)] * config.depth
    assert [a is not None for a in found.cross_attentions] == [i % 2 == 0 for i in range(config.depth)]
    torch.testing.assert_close(found.cross_attentions[0].sum(dim=-1), torch.ones(2, config.heads, count))
    assert plain.attentions is None and all(
        layer.attention.kept is None for layer in former.Qformer.bert.encoder.layer
    )


def test_wrong_calls_are_refused(former):
    queries = former.query_tokens
    with pytest.raises(ValueError, match="input_ids, query_embeds, or both"):
        former.Qformer.bert(encoder_hidden_states=torch.zeros(1, 4, 64))
    with pytest.raises(ValueError, match=r"\(R, 12\) was expected"):
        former.Qformer.bert(
            torch.ones(1, 4, dtype=torch.long), query_embeds=queries, attention_mask=torch.ones(1, 4)
        )
    with pytest.raises(TypeError, match="encoder_hidden_state"):
        former.Qformer.bert(query_embeds=queries, encoder_hidden_state=torch.zeros(1, 4, 64))


def forward_lm(self: Any, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A method that programs put in the place of the model's own."""
    image = samples["image"]
    query_output = read_images(self, image)
    inputs_t5 = self.t5_proj(query_output.last_hidden_state)
    atts_t5 = torch.ones(inputs_t5.size()[:-1], dtype=torch.long).to(image.device)
    with self.maybe_autocast(dtype=torch.bfloat16):
        input_tokens, output_tokens = (
            self.t5_tokenizer(
                samples[key],
                padding="longest",
                truncation=True,
                max_length=self.max_txt_len,
                return_tensors="pt",
            ).to(image.device)
            for key in ("text_input", "text_output")
        )
        encoder_atts = torch.cat([atts_t5, input_tokens.attention_mask], dim=1)
        targets = output_tokens.input_ids.masked_fill(
            output_tokens.input_ids == self.t5_tokenizer.pad_token_id, -100
        )
        inputs_embeds = self.t5_model.encoder.embed_tokens(input_tokens.input_ids)
        inputs_embeds = torch.cat([inputs_t5, inputs_embeds], dim=1)
        outputs = self.t5_model(
            inputs_embeds=inputs_embeds,
            attention_mask=encoder_atts,
            decoder_attention_mask=output_tokens.attention_mask,
            return_dict=True,
            labels=targets,
        )
        return {"loss": outputs.loss}


@torch.no_grad()
def test_a_loss_of_ones_own(t5):
    samples = {"image": reference.images(), "text_input": ["what is it?", "how many?"], "text_output": TEXTS}
    wanted = t5(samples)["loss"]
    t5.forward_lm = MethodType(forward_lm, t5)
    assert float(t5.forward_lm(samples)["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    del t5.forward_lm


@torch.no_grad()
def test_instructions_and_lengths_are_those_of_the_models_attributes(vicuna):
    assert vicuna.qformer_text_input and vicuna.llm_tokenizer is vicuna.words
    image, long = reference.images(1), " ".join(["what is this, a dog or a tree?"] * 30)
    tokens = vicuna.instruction([long]).ids.shape[1]
    before = vicuna.max_txt_len
    assert tokens == before
    try:
        vicuna.max_txt_len = 2 * before  # as evaluation scripts set it
        assert vicuna.instruction([long]).ids.shape[1] == 2 * before
    finally:
        vicuna.max_txt_len = before
    prompts = ["what is it?", "how many are there in this image?"]
    two = vicuna.generate({"image": image.repeat(2, 1, 1, 1), "prompt": prompts}, max_length=12)
    assert two == [vicuna.generate({"image": image, "prompt": p}, max_length=12)[0] for p in prompts]


@torch.no_grad()
def test_half_precision_as_programs_set_it(vicuna):
    """`model.half()`, or the image encoder alone, and images in float32 or float16."""
    import copy

    half = copy.deepcopy(vicuna)
    half.visual_encoder = half.visual_encoder.to(torch.bfloat16)
    samples = {"image": reference.images(1), "prompt": "what is it?"}
    assert len(half.generate(samples, num_beams=1, max_length=6)) == 1
    half = half.to(torch.bfloat16)
    half.llm_model = half.llm_model.to(dtype=torch.bfloat16)
    samples["image"] = samples["image"].to(torch.bfloat16)
    assert len(half.generate(samples, num_beams=1, max_length=6)) == 1
