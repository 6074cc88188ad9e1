"""Decoding: greedy, beam search, nucleus sampling, and ranking given texts by likelihood.

Works with anything that has `step(ids) -> logits` and `select(index)` (`nn.language_model.Decoding`); knows no
tokenizer and no model family. R rows = B items x G hypotheses or samples, T tokens, V vocabulary.

The rules are those that the official checkpoints were evaluated with (transformers 4.26): a finished
beam scores its sum of log-probabilities, that of the end token included, divided by its length, which
counts the prompt but not the end token; `max_length` and `min_length` count the prompt; the repetition
penalty acts on log-probabilities in beam search and on logits otherwise, prompt tokens included.
Those rules choose; the log-probabilities that are reported are the model's own.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Protocol

import torch

from lavis.nn.finite import check_logprobs
from lavis.nn.language_model import TextDecoder
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import Memory

log = logging.getLogger("lavis")


class Decoder(Protocol):
    """Texts being decoded, see `nn.language_model.Decoding`."""

    def step(self, ids: torch.Tensor) -> torch.Tensor: ...

    def select(self, index: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class Rules:
    """How to decode. Lengths are in tokens and count the prompt, its start token included."""

    max_length: int
    min_length: int
    end: int  # id of the token that ends a text
    pad: int  # id put after the end
    num_beams: int = 1
    num_return: int = 1  # texts per item
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0  # beam search divides by length ** length_penalty
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    # of the sampler; None draws from torch's global stream. A list has one for each item; a single one is the first
    # item's, the others' follow from it and their places, see `seed_of`.
    seed: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        def need(ok: bool, text: str) -> None:
            if not ok:
                raise ValueError(text)

        need(self.num_beams >= 1, f"num_beams is {self.num_beams}; it must be at least 1")
        need(self.num_return >= 1, f"num_captions is {self.num_return}; it must be at least 1")
        need(
            self.min_length <= self.max_length,
            f"the least length ({self.min_length}) is above the greatest ({self.max_length}), in tokens with prompt",
        )
        need(
            self.repetition_penalty > 0,
            f"repetition_penalty is {self.repetition_penalty}; it must be above 0",
        )
        need(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0")
        need(0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0 and at most 1")
        need(self.top_k >= 0, f"top_k is {self.top_k}; it must be 0 (all) or more")


@dataclass(frozen=True)
class Decoded:
    """`num_return` texts per item, best first, items in order.

    ids: (R, T) with the prompt, padded with `pad`.
    logprobs: (R,) sum of the log-probabilities of the generated tokens, the model's own, whatever rules chose them.
    scores: (R,) logprobs / length ** length_penalty, by which texts are ranked; in beam search of the log-probabilities
        with the repetition penalty.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    scores: torch.Tensor

    def read(self, items: int) -> tuple[list[list[int]], list[float], list[float]]:
        """ids, logprobs and scores as lists, in one copy from the device; `items`: how many were decoded.

        Raises:
            NonFiniteError: the model computed NaN or infinity for some of them.
        """
        numbers = torch.stack([self.logprobs, self.scores], dim=1).float().view(torch.int32)  # (R, 2)
        packed = torch.cat([self.ids, numbers.long()], dim=1).cpu()
        logprobs, scores = packed[:, -2:].int().view(torch.float32).unbind(dim=1)
        out = packed[:, :-2].tolist(), logprobs.tolist(), scores.tolist()
        check_logprobs(out[1], items)
        return out


def seed_of(seed: int, what: str | int) -> int:
    """The seed of one of many things that share a seed: of its name (a file's path), or its place."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {what}".encode(), digest_size=8).digest(), "big") >> 1


def _uniform(rules: Rules, items: int, steps: int, device: torch.device) -> torch.Tensor | None:
    """Numbers from 0 to 1 to sample with, one stream per text: (R, steps); None without a seed.

    Streams do not depend on the rest of the batch, so that an item draws in it what it would draw alone.
    """
    if rules.seed is None:
        return None
    if isinstance(rules.seed, int):
        seeds = [rules.seed, *(seed_of(rules.seed, place) for place in range(1, items))]
    else:
        seeds = [int(seed) for seed in rules.seed]
        if len(seeds) != items:
            raise ValueError(f"seed has {len(seeds)} numbers for {items} inputs; give one, or one for each")
    streams = [
        torch.Generator(device="cpu").manual_seed((seed * 1000003 + copy) % 2**63)
        for seed in seeds
        for copy in range(rules.num_return)
    ]
    return torch.stack([torch.rand(steps, generator=stream) for stream in streams]).to(device)


def generate(decoder: Decoder, prompt: torch.Tensor, rules: Rules) -> Decoded:
    """Go on from `prompt` (B, T), one row per item, with all prompts of one length."""
    if prompt.shape[1] >= rules.max_length:
        raise ValueError(
            f"max_length is {rules.max_length} tokens and counts the prompt, which has {prompt.shape[1]} already; "
            "raise it, or give max_new_tokens"
        )
    if not rules.sample and rules.num_return > rules.num_beams:
        _say_beams(rules.num_return, rules.num_beams)
        rules = replace(rules, num_beams=rules.num_return)
    if rules.num_beams > 1 and not rules.sample:
        return _beam_search(decoder, prompt, rules)
    return _one_by_one(decoder, prompt, rules)


@functools.cache
def _say_beams(texts: int, beams: int) -> None:
    """Said once of each pair of numbers."""
    log.warning(
        "%d texts per image were asked for, and a search with %d beams finds only that many; it takes %d beams",
        texts, beams, texts,
    )  # fmt: skip


def _penalise(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make tokens that were seen less likely (Keskar et al. 2019): divide above 0, multiply below."""
    if penalty == 1.0:
        return scores
    old = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


def _without(scores: torch.Tensor, token: int) -> torch.Tensor:
    """A copy in which a token can't be chosen; the scores themselves stay true."""
    scores = scores.clone()
    scores[:, token] = -torch.inf
    return scores


# ---------------------------------------------------------------------------- greedy and sampling


def _one_by_one(decoder: Decoder, prompt: torch.Tensor, rules: Rules) -> Decoded:
    """Greedy or sampled: every row is on its own."""
    items, length = prompt.shape
    device = prompt.device
    logits = decoder.step(prompt)  # (B, V)
    copies = rules.num_return
    if copies > 1:
        index = torch.arange(items, device=device).repeat_interleave(copies)
        decoder.select(index)
        logits, prompt = logits[index], prompt[index]
    rows = items * copies
    ids = prompt.new_full((rows, rules.max_length), rules.pad)
    ids[:, :length] = prompt
    going = torch.ones(rows, dtype=torch.bool, device=device)
    logprobs = torch.zeros(rows, device=device)
    lengths = torch.full((rows,), length, device=device)
    uniform = _uniform(rules, items, rules.max_length - length, device) if rules.sample else None
    while True:
        scores = _penalise(logits, ids[:, :length], rules.repetition_penalty)
        if length < rules.min_length:
            scores = _without(scores, rules.end)
        if rules.sample:
            numbers = None if uniform is None else uniform[:, length - prompt.shape[1]]
            chosen = _draw(scores, rules, numbers)
        else:
            chosen = scores.argmax(dim=-1)
        step_logprobs = logits.log_softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1)
        logprobs += torch.where(going, step_logprobs, 0.0)
        chosen = torch.where(going, chosen, rules.pad)
        ids[:, length] = chosen
        length += 1
        going &= chosen != rules.end
        lengths += going
        if length >= rules.max_length or not bool(going.any()):
            break
        logits = decoder.step(chosen[:, None])
    scores_out = logprobs / lengths**rules.length_penalty
    if copies > 1:  # best first
        order = scores_out.view(items, copies).argsort(dim=1, descending=True, stable=True)
        flat = (order + torch.arange(items, device=device)[:, None] * copies).flatten()
        ids, logprobs, scores_out = ids[flat], logprobs[flat], scores_out[flat]
    return Decoded(ids[:, :length], logprobs, scores_out)


def _draw(scores: torch.Tensor, rules: Rules, uniform: torch.Tensor | None) -> torch.Tensor:
    """Sample a token per row from the smallest set of likely tokens that holds `top_p` (Holtzman et al. 2020).

    Args:
        uniform: (R,) numbers from 0 to 1; None: torch's global stream gives them.
    """
    scores = scores / rules.temperature
    keep = min(rules.top_k or scores.shape[-1], scores.shape[-1])
    top, tokens = scores.topk(keep, dim=-1)  # sorted, likeliest first
    probs = top.softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier ones
    probs = probs.masked_fill(before >= rules.top_p, 0.0)
    probs[:, 0] = probs[:, 0].clamp(min=torch.finfo(probs.dtype).tiny)
    if uniform is None:
        uniform = torch.rand(scores.shape[0], device=probs.device)
    cumulative = probs.cumsum(dim=-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(dim=-1)
    place = place.clamp(max=keep - 1)
    return tokens.gather(1, place[:, None]).squeeze(1)


# ---------------------------------------------------------------------------- beam search


@dataclass
class _Finished:
    """The best finished hypotheses of one item."""

    wanted: int
    length_penalty: float
    items: list[tuple[float, float, torch.Tensor]] = field(default_factory=list)  # score, logprob, ids
    worst: float = 1e9

    def add(self, ids: torch.Tensor, value: float, logprob: float) -> None:
        """`value`: sum of what the search compares; `logprob`: that of the model's own log-probabilities."""
        score = value / ids.shape[0] ** self.length_penalty
        if len(self.items) >= self.wanted and score <= self.worst:
            return
        self.items.append((score, logprob, ids))
        if len(self.items) > self.wanted:
            self.items.remove(min(self.items, key=lambda item: item[0]))
        self.worst = min(item[0] for item in self.items)

    def settled(self, best_running: float, length: int) -> bool:
        """Whether no running beam can still get in; `length` counts the tokens before this step."""
        return len(self.items) >= self.wanted and self.worst >= best_running / length**self.length_penalty


def _beam_search(decoder: Decoder, prompt: torch.Tensor, rules: Rules) -> Decoded:
    items, length = prompt.shape
    beams, device = rules.num_beams, prompt.device
    # All beams of an item start alike: read the prompt once per item, then copy the cache.
    logits = decoder.step(prompt)  # (B, V)
    start = torch.arange(items, device=device).repeat_interleave(beams)
    decoder.select(start)
    logits = logits[start]  # (B·beams, V)
    vocabulary = logits.shape[-1]
    ids = prompt.new_full((items * beams, rules.max_length), rules.pad)
    ids[:, :length] = prompt[start]
    sums = logits.new_zeros(items, beams)
    sums[:, 1:] = -1e9  # so that the first step does not pick the same token in every beam
    finished = [_Finished(beams, rules.length_penalty) for _ in range(items)]
    done, failed = [False] * items, [False] * items
    penalised = rules.repetition_penalty != 1.0
    own_sums = sums  # of the model's own log-probabilities

    while True:
        own = logits.log_softmax(dim=-1)
        scores = _penalise(own, ids[:, :length], rules.repetition_penalty)
        if length < rules.min_length:
            scores = _without(scores, rules.end)
        scores = (scores.view(items, beams, vocabulary) + sums[:, :, None]).flatten(1)
        top, place = scores.topk(2 * beams, dim=1)  # (B, 2·beams), best first
        found = top
        if penalised:
            found = own.view(items, -1).gather(1, place) + own_sums.gather(1, place // vocabulary)
        next_sums, next_own, next_tokens, next_rows = [], [], [], []
        read = zip(top.tolist(), found.tolist() if penalised else repeat(()), place.tolist())
        for b, (values, owns, places) in enumerate(read):
            owns = owns or values
            if not done[b] and values[0] != values[0]:  # NaN is sorted first
                done[b] = failed[b] = True
            if done[b]:
                next_sums += [0.0] * beams
                next_own += [0.0] * beams
                next_tokens += [rules.pad] * beams
                next_rows += [b * beams] * beams
                continue
            kept = 0
            for rank, (value, where) in enumerate(zip(values, places)):
                row, token = b * beams + where // vocabulary, where % vocabulary
                if token == rules.end:
                    if rank < beams:
                        finished[b].add(ids[row, :length].clone(), value, owns[rank])
                    continue
                next_sums.append(value)
                next_own.append(owns[rank])
                next_tokens.append(token)
                next_rows.append(row)
                kept += 1
                if kept == beams:
                    break
            done[b] = finished[b].settled(values[0], length)
        rows = torch.tensor(next_rows, device=device)
        tokens = torch.tensor(next_tokens, device=device)
        sums = torch.tensor(next_sums, device=device, dtype=sums.dtype).view(items, beams)
        own_sums = torch.tensor(next_own, device=device).view(items, beams) if penalised else sums
        ids = ids[rows]
        ids[:, length] = tokens
        length += 1
        if all(done) or length >= rules.max_length:
            break
        decoder.select(rows)
        logits = decoder.step(tokens[:, None])

    out_ids = prompt.new_full((items * rules.num_return, rules.max_length), rules.pad)
    longest, scores_out, logprobs_out = 0, [], []
    running = list(zip(sums.tolist(), own_sums.tolist()))
    for b, (values, owns) in enumerate(running):
        if failed[b]:
            finished[b].items = [(math.nan, math.nan, prompt[b])] * rules.num_return
        elif not done[b]:
            for beam in range(beams):
                finished[b].add(ids[b * beams + beam, :length].clone(), values[beam], owns[beam])
        best = sorted(finished[b].items, key=lambda item: item[0], reverse=True)[: rules.num_return]
        for i, (score, logprob, text) in enumerate(best):
            row, n = b * rules.num_return + i, text.shape[0]
            out_ids[row, :n] = text
            if n < rules.max_length:
                out_ids[row, n] = rules.end
                n += 1
            longest = max(longest, n)
            scores_out.append(score)
            logprobs_out.append(logprob)
    return Decoded(
        out_ids[:, :longest],
        torch.tensor(logprobs_out, device=device),
        torch.tensor(scores_out, device=device),
    )


# ---------------------------------------------------------------------------- ranking given texts


def sequence_losses(
    decoder: TextDecoder, memory: Memory, ids: torch.Tensor, mask: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Smoothed loss (nats, summed over tokens) of given texts, (R,).

    Args:
        decoder: a causal text decoder.
        memory: of B items; item b's texts are rows b·G … b·G+G-1 and share it without a copy.
        ids, mask: (R, T), start token first; columns that are padding in every row cost nothing.
        smoothing: label smoothing, as in training.
    """
    longest = int(mask.sum(1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    logits = decoder(ids, mask=mask, memory=memory)
    labels = ids.masked_fill(~mask, IGNORE)
    return language_modelling_loss(logits, labels, smoothing=smoothing, per_text=True)
