"""What is reported is what the model computes: log-probabilities, adapters, similarities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lavis.inference import Encoder, Loaded
from lavis.models.fusion import TextStates
from lavis.models.pair_losses import Pairs, contrast_with_ema
from lavis.nn import generation
from lavis.nn.losses import contrastive_loss, similarities
from tests.small import images, random_model

TEXTS = ["a red star", "two large blue squares above a ring", "a green heart", "one"]
HOWS = [
    {"num_beams": 1},
    {"num_beams": 1, "repetition_penalty": 1.8},
    {"num_beams": 3},
    {"num_beams": 3, "num_captions": 3, "repetition_penalty": 1.8},
    {"num_beams": 4, "length_penalty": 2.0},
    {"use_nucleus_sampling": True, "seed": 4, "top_p": 0.7, "temperature": 1.7},
    {"use_nucleus_sampling": True, "seed": 4, "repetition_penalty": 1.8, "num_captions": 2},
]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("min_length", [1, 14])
def test_log_probabilities_are_the_models_own(how, min_length, monkeypatch):
    """Whatever chose the tokens: lengths, penalties, sampling."""
    model = random_model("blip_caption")
    kept = []
    decode = generation.Decoded.read
    monkeypatch.setattr(
        generation.Decoded, "read", lambda self, items: kept.append(self.ids) or decode(self, items)
    )
    with torch.no_grad():  # the end is likely, so that a least length matters
        model.text_decoder.cls.predictions.decoder.bias[model.tokenizer.sep_id] = 6.0
    image = images(2)
    found = model.generate({"image": image}, min_length=min_length, max_length=18, return_scores=True, **how)
    (ids,) = kept
    start = len(model.tokenizer.encode(model.prompt)) - 1
    with torch.no_grad():
        memory = model.text_decoder.project_memory(model.forward_encoder({"image": image}))
        logs = model.text_decoder(ids, memory=memory).log_softmax(dim=-1)
    each = logs[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)[:, start - 1 :]
    own = ids[:, start:]
    after = (own == model.tokenizer.sep_id).cumsum(dim=1)
    real = (after == 0) | ((after == 1) & (own == model.tokenizer.sep_id))
    wanted = each.masked_fill(~real, 0.0).sum(dim=1)
    np.testing.assert_allclose(found.logprobs, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert max(found.logprobs) < 0


class Adapter(nn.Module):
    """As LoRA's libraries put them: another module in the place of a layer, without its weight."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


def adapt(model: nn.Module, names: tuple[str, ...]) -> int:
    torch.manual_seed(1)
    places = [
        (parent, name)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if name in names and isinstance(child, nn.Linear)
    ]
    for parent, name in places:
        setattr(parent, name, Adapter(getattr(parent, name)))
    return len(places)


def scores(model, packed: bool):
    """Matching logits by re-ranking, by the encoder of commands, and plainly, with autograd: (images, texts)."""

    class Gallery(list):
        dataset = type("D", (), {"text": TEXTS, "__len__": lambda self: 3})()

    if packed:
        model.pack_weights()
    image = images(3)
    i2t, _ = model.compute_sim_matrix(Gallery([{"image": image}]), {"k_test": len(TEXTS)})
    tokens = model.tokens(TEXTS, max_length=35)
    states = model.encode_text(tokens) if model.FUSES_STATES else None
    plain, cosines = [], []
    for one in image.split(1):
        embeds = model.encode_image(one)
        plain.append(model.match_logits(TextStates(tokens, states), model.memorize(embeds))[:, 1])
        cosines.append(
            similarities(model.image_feature(embeds), model.text_feature(model.encode_text(tokens)))[0]
        )
    wanted = (torch.stack(plain) + torch.stack(cosines)).detach().numpy()
    logits, _ = Encoder(Loaded("x", model, lambda x: x, str)).match_logits(list(image), TEXTS)
    return i2t, logits[..., 1].numpy(), wanted, torch.stack(plain).detach().numpy()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "names", [("key",), ("query", "value"), ("dense",), ("key", "value", "query", "dense")]
)
@pytest.mark.parametrize("name", ["blip_retrieval", "albef_retrieval"])
def test_adapters_change_re_ranking_as_they_change_plain_matching(name, names, packed):
    model = random_model(name)
    before = scores(model, packed)
    np.testing.assert_allclose(before[0], before[2], rtol=1e-3, atol=1e-3)
    assert adapt(model.text_encoder, names) > 4  # packed weights stay in the layers that are adapted
    model.eval()
    after = scores(model, False)
    np.testing.assert_allclose(after[0], after[2], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(after[1], after[3], rtol=1e-3, atol=1e-3)
    assert np.abs(after[3] - before[3]).max() > 1e-2


def test_hooks_on_projections_are_called_in_re_ranking():
    model, seen = random_model("blip_retrieval"), []
    layer = model.text_encoder.encoder.layer[-1].attention.self
    for projection in (layer.query, layer.key, layer.value):
        projection.register_forward_hook(lambda module, inputs, output: seen.append(module))
    model.pack_weights()
    Encoder(Loaded("x", model, lambda x: x, str)).match_logits(list(images(1)), TEXTS)
    assert set(seen) == {layer.query, layer.key, layer.value}


def test_adapters_around_embeddings_are_called():
    class Shifted(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, ids):
            return self.layer(ids) + 1.0

    model = random_model("alpro_retrieval")
    embeddings, tokens, inner = model.text_encoder.embeddings, model.tokens(TEXTS), []
    embeddings.LayerNorm.register_forward_pre_hook(lambda module, args: inner.append(args[0]))
    with torch.no_grad():
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            plain = getattr(embeddings, name)
            embeddings(tokens.ids)
            setattr(embeddings, name, Shifted(plain))
            embeddings(tokens.ids)
            setattr(embeddings, name, plain)
            torch.testing.assert_close(inner[-1], inner[-2] + 1.0)


def test_autocast_does_not_round_similarities():
    torch.manual_seed(0)
    rows, columns = (F.normalize(torch.randn(n, 64), dim=-1) for n in (5, 7))
    wanted = rows @ columns.T
    scale = torch.tensor(1 / 0.01)
    exact = contrastive_loss(rows, columns[:5], scale)
    with torch.autocast("cpu", torch.bfloat16):
        found = similarities(rows, columns)
        assert found.dtype == torch.float32 and torch.equal(found, wanted)
        for a, b in zip(contrastive_loss(rows, columns[:5], scale), exact, strict=True):
            assert torch.equal(a, b)
    assert similarities(rows.double(), columns.double()).dtype == torch.float64


@pytest.mark.parametrize("name", ["blip_retrieval", "albef_retrieval", "albef_pretrain"])
def test_autocast_does_not_round_a_training_steps_similarities(name):
    model = random_model(name, queue_size=16)
    feats = [F.normalize(torch.randn(4, model.config.embed_dim), dim=-1) for _ in range(4)]
    none = torch.zeros(0)  # states, which contrast does not read
    own, slow = Pairs(none, none, *feats[:2]), Pairs(none, none, *feats[2:])
    exact = contrast_with_ema(model, own, slow, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast_with_ema(model, own, slow, 0.4)
    assert torch.equal(found.loss, exact.loss) and torch.equal(found.by_image, exact.by_image)


def test_seeds_of_names_and_places_do_not_meet():
    seeds = [
        generation.seed_of(s, what) for s, what in itertools.product(range(20), ["a.png", "b.png", 1, 2, 12])
    ]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**63 for s in seeds)
    assert generation.seed_of(3, "a.png") == generation.seed_of(3, "a.png")
