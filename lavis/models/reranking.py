"""Retrieval by contrast, re-ranked by matching: scores of a whole gallery with all texts.

Each wanted pair is matched once, all texts of an image together at about their true length. What does not depend on
the image runs once per text.

T tokens, N image tokens, D width, E width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lavis.models.fusion import TextStates
from lavis.models.gallery import products, share_of, side_by_side, sum_over_ranks
from lavis.models.tokenizer import Tokens

TEXT_LENGTH = 35  # tokens of a text that are read, whatever max_txt_len is
ROWS = 64  # texts that are matched with images at once, on a CPU
PAIRS_AT_ONCE = 256  # of images and texts in `match_every`
BEGUN_BYTES = 2**29  # of texts' states that are kept where they could be computed anew for every image
NOT_SCORED = -100.0  # of pairs that were not matched, as in the original


@dataclass(frozen=True)
class RaggedTexts:
    """Many texts one after another: ids (tokens,) and, where fusing goes on from them, states (tokens, D); where each
    text starts, and its length."""

    ids: torch.Tensor
    states: torch.Tensor | None
    starts: torch.Tensor
    lengths: torch.Tensor

    def take(self, which: torch.Tensor, device: torch.device) -> TextStates:
        """Some of the texts as one batch (R, T); what the mask leaves out holds their last token."""
        lengths = self.lengths[which, None]
        place = torch.arange(int(lengths.max()))
        at = self.starts[which, None] + place.minimum(lengths - 1)  # (R, T)
        tokens = Tokens(self.ids[at].to(device), (place < lengths).to(device))
        return TextStates(tokens, None if self.states is None else self.states[at].to(device))


def images_at_once(device: torch.device) -> int:
    """Images whose candidates are matched together: on a CPU each has a thread of its own."""
    return 1 if device.type == "cpu" else 64


def rows_at_once(device: torch.device) -> int:
    """Texts that are matched with images at once: a GPU needs more of them to be busy."""
    return ROWS if device.type == "cpu" else 16 * ROWS


def rerank(network: Any, data_loader: Any, task_cfg: Any) -> tuple[np.ndarray, np.ndarray]:
    """What `Alignment.compute_sim_matrix` gives, of such a network.

    Args:
        network: encodes images (`encode_image`) and texts (`encode_text`), gives their features (`image_feature` in the
            `feature_shape` (E,) or (Q, E), `text_feature`), and matches them (`memorize`, `head_logits`). What of a
            text does not depend on the image is `begin`'s; None where everything does.
    """
    k_test, device = _k_test(task_cfg), network.device
    texts, text_feats = encode_texts(network, list(data_loader.dataset.text))
    image_feats = torch.zeros(len(data_loader.dataset), *network.feature_shape)
    for indices, media in share_of(data_loader, network.MEDIA):
        states = network.encode_image(media.to(device))
        image_feats[indices] = network.image_feature(states).float().cpu()
    sims = products(sum_over_ranks(image_feats, device), text_feats)
    wanted_i2t, wanted_t2i = torch.zeros_like(sims).bool(), torch.zeros_like(sims).bool()
    wanted_i2t.scatter_(1, sims.topk(min(k_test, sims.shape[1]), dim=1).indices, True)
    wanted_t2i.scatter_(0, sims.topk(min(k_test, sims.shape[0]), dim=0).indices, True)
    wanted = wanted_i2t | wanted_t2i
    matched = torch.zeros_like(sims)

    def match(indices: Sequence[int], embeds: torch.Tensor) -> list[torch.Tensor]:
        return match_all(network, embeds, texts, [wanted[i].nonzero().squeeze(1) for i in indices])

    together = images_at_once(device)
    with side_by_side(device) as run:
        for indices, media in share_of(data_loader, network.MEDIA):
            embeds = network.encode_image(media.to(device)).split(together)
            groups = [indices[i : i + together] for i in range(0, len(indices), together)]
            for group, found in zip(groups, run(match, groups, embeds)):
                for index, logits in zip(group, found, strict=True):
                    matched[index, wanted[index]] = logits
    scores = sum_over_ranks(matched, device) + sims
    i2t = scores.masked_fill(~wanted_i2t, NOT_SCORED)
    t2i = scores.masked_fill(~wanted_t2i, NOT_SCORED).T
    return i2t.numpy(), t2i.contiguous().numpy()


def encode_texts(network: Any, texts: list[str], batch: int = 256) -> tuple[RaggedTexts, torch.Tensor]:
    """All texts with what fusing goes on from, on the CPU; and all features (texts, E).

    Without autocast: a text is encoded once and matched with many images, so it costs little, and in bfloat16 most
    of the error of ALBEF's re-ranked scores came from here (2.6 % of the peak against 1.0 %).
    """
    longest = network.reranking_text_length
    lengths = torch.tensor([len(network.tokenizer.encode(t, longest)) for t in texts])
    begins = network.FUSES_STATES or (
        network.begin is not None and 4 * int(lengths.sum()) * network.config.text.width <= BEGUN_BYTES
    )
    ids, begun, feats = [], [], []
    order = lengths.argsort(stable=True)
    for rows in order.split(batch):
        tokens = network.tokens([texts[i] for i in rows.tolist()], max_length=longest)
        with torch.autocast(network.device.type, enabled=False):
            states = network.encode_text(tokens)
            feats.append(network.text_feature(states).cpu())
            ids.append(tokens.ids[tokens.mask].cpu())
            if begins:
                begun.append(network.begin(tokens, states)[tokens.mask].cpu())
    starts = torch.empty_like(lengths)
    starts[order] = lengths[order].cumsum(0) - lengths[order]
    ragged = RaggedTexts(torch.cat(ids), torch.cat(begun) if begins else None, starts, lengths)
    return ragged, torch.cat(feats)[order.argsort()]


def match_all(
    network: Any, embeds: torch.Tensor, texts: RaggedTexts, which: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Matching logits of images (B, N, D), each with those of the texts that `which` names: (len(which[b]),) each.

    They are matched in chunks of about one length, equally many texts of each image: one that has fewer left
    repeats its last one, and one that has none leaves.
    """
    device = network.device
    order = [mine[texts.lengths[mine].argsort()] for mine in which]
    scores = torch.zeros(len(which), len(texts.lengths))
    memory, left, start = network.memorize(embeds), list(range(len(which))), 0
    while going := [place for place, b in enumerate(left) if len(order[b]) > start]:
        if len(going) < len(left):
            memory = memory.select(torch.tensor(going, device=device))
            left = [left[place] for place in going]
        each = max(1, rows_at_once(device) // len(left))
        end = min(start + each, max(len(order[b]) for b in left))
        columns = torch.arange(start, end)
        rows = torch.stack([order[b][columns.clamp(max=len(order[b]) - 1)] for b in left])  # (b, columns)
        logits = network.head_logits(texts.take(rows.flatten(), device), memory)
        scores[torch.tensor(left)[:, None], rows] = logits[:, 1].float().cpu().view(rows.shape)
        start = end
    return [row[mine] for row, mine in zip(scores, which, strict=True)]


def match_every(
    network: Any, memory: Any, batch: int, texts: Sequence[str], longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every image of a memory of B = `batch` images with every text, in chunks of bounded memory.

    Args:
        longest: tokens of a text that are read.

    Returns:
        logits (B, n, 2) and the texts' features (n, E), on the CPU.
    """
    device = network.device
    logits = torch.zeros(batch, len(texts), 2)
    vectors = torch.zeros(len(texts), network.embed_dim)
    each = max(1, PAIRS_AT_ONCE // batch)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), each):
        columns = order[start : start + each]
        tokens = network.tokens([texts[i] for i in columns], max_length=longest)
        states = network.encode_text(tokens)  # (G, T, D)
        vectors[columns] = network.text_feature(states).float().cpu()
        text = TextStates(tokens, None if network.begin is None else network.begin(tokens, states))
        rows = text.select(torch.arange(len(columns), device=device).repeat(batch))  # (B·G, T)
        found = network.head_logits(rows, memory).float().cpu()
        logits[:, columns] = found.unflatten(0, (batch, len(columns)))
    return logits, vectors


def _k_test(task_cfg: Any) -> int:
    if isinstance(task_cfg, Mapping):
        return int(task_cfg.get("k_test", 128))
    return int(getattr(task_cfg, "k_test", 128) or 128)
