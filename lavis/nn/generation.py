"""Decoding: greedy, beam search, nucleus sampling, and ranking given texts by likelihood.

Works with anything that has `step(ids) -> logits` and `select(index)` (`nn.language_model.Decoding`); knows no
tokenizer and no model family. R rows = B items x G hypotheses or samples, K beams, T tokens, V vocabulary.

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
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lavis.common.arguments import accepted
from lavis.nn.finite import check_logprobs
from lavis.nn.losses import IGNORE, language_modelling_loss

if TYPE_CHECKING:
    from lavis.nn.language_model import TextDecoder
    from lavis.nn.text import Memory

log = logging.getLogger("lavis")

# numbers (128 MiB in float32) that are computed at once where given texts are scored
LOGITS_AT_ONCE = 1 << 25


class Decoder(Protocol):
    """Texts being decoded, see `nn.language_model.Decoding`."""

    def step(self, ids: torch.Tensor) -> torch.Tensor: ...

    def select(self, index: torch.Tensor) -> None: ...


_ALWAYS = ("num_beams", "max_length", "min_length")  # models of the original have other defaults of their own
_RECIPE_NAMES = {"max_length": "max_len", "min_length": "min_len"}  # of options, as keys of `run`


@dataclass(frozen=True)
class GenerationOptions:
    """How texts are written, for every model, task, command and page; the names are those of the original's `generate`.

    Attributes:
        use_nucleus_sampling: draw from the likeliest tokens (`top_p`, `top_k`, `temperature`) instead of searching.
        num_beams: of the search; 1 is greedy.
        max_length, min_length: tokens of the whole text, start token and prompt included.
        top_p: the smallest set of likely tokens that holds this share of the probability is drawn from.
        repetition_penalty: above 1 makes tokens that have occurred less likely.
        num_captions: texts per item; with beams, the best ones found, and at least as many beams.
        max_new_tokens, min_new_tokens: lengths without start token and prompt; they win.
        length_penalty: exponent of the length that scores are divided by.
        temperature: logits are divided by it before drawing.
        top_k: tokens to draw from at most; 0: all (50 is what the original's generator did without saying).
        lookahead: how many tokens longer an unfinished text is taken to be when a search asks whether it can still
            win: 0 as in the transformers that BLIP and ALBEF were published with, 1 as in BLIP-2's (since 4.31).
        stop: asked once a step; once it says so, nothing more is written: a text ends where it is.
        seed: makes a draw repeatable; None draws from torch's global stream. An item draws in a batch what it draws
            alone: a sequence has a seed for each. A single seed is the first item's, the others' follow from it and
            their places, see `seed_of`.

    Raises:
        ValueError: a value with which nothing can be written.
    """

    use_nucleus_sampling: bool = False
    num_beams: int = 3
    max_length: int = 30
    min_length: int = 10
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    num_captions: int = 1
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 50
    lookahead: int = 0
    seed: int | Sequence[int] | None = None
    stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("num_beams", 1), ("num_captions", 1), ("max_length", 1), ("min_length", 0), ("top_k", 0)
        ):  # fmt: skip
            value = getattr(self, name)
            _need(value >= least, f"{name} is {value}; it must be {least} or more")
        for name in ("repetition_penalty", "temperature"):
            value = getattr(self, name)
            _need(value > 0, f"{name} is {value}; it must be above 0")
        _need(0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.max_new_tokens is None and self.min_new_tokens is None:  # else the prompt's length decides
            self.lengths(0)

    def lengths(self, prompt: int) -> tuple[int, int]:
        """The greatest and the least length of a text that begins with `prompt` tokens, these included."""
        most = self.max_length if self.max_new_tokens is None else prompt + self.max_new_tokens
        least = self.min_length if self.min_new_tokens is None else prompt + self.min_new_tokens
        _need(
            least <= most,
            f"min_length is {least} and max_length {most}, in tokens with the prompt; the least length must not be "
            "above the greatest",
        )
        return most, least

    @classmethod
    def of_run(cls, settings: object) -> GenerationOptions:
        """The options among a task's settings, the keys of `run`; lengths are `max_len` and `min_len` there.

        None stands for the model's own default.
        """
        keys = {field.name: _RECIPE_NAMES.get(field.name, field.name) for field in fields(cls)}
        try:
            given = {name: getattr(settings, key, None) for name, key in keys.items()}
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValueError as e:
            text = functools.reduce(lambda text, names: text.replace(*names), _RECIPE_NAMES.items(), str(e))
            raise ValueError(f"run.{text}") from e

    @classmethod
    def run_arguments(cls, settings: Any, generate: Callable[..., Any]) -> dict[str, Any]:
        """`arguments` of the options among a task's settings, see `of_run`; those that have the task's default are left
        out where a model's `generate` doesn't take them."""
        given, plain = cls.of_run(settings), cls.of_run(type(settings)())

        def refuse(name: str) -> str:
            key, method = _RECIPE_NAMES.get(name, name), getattr(generate, "__qualname__", generate)
            return f"run.{key}={getattr(given, name)!r}: {method} takes no {name}; remove the key"

        same = [f.name for f in fields(cls) if getattr(given, f.name) == getattr(plain, f.name)]
        optional = {f.name for f in fields(type(settings)) if f.default is None}
        asked = [f.name for f in fields(cls) if f.name in optional and getattr(settings, f.name) is not None]
        return given.arguments(generate, refuse, [n for n in same if n not in asked], asked)

    def arguments(
        self,
        generate: Callable[..., Any],
        refuse: Callable[[str], str] | None = None,
        optional: Collection[str] = (),
        given: Collection[str] = (),
    ) -> dict[str, Any]:
        """What a model's `generate` is called with: beams, lengths, and every other option that is not the default.

        So a model written for the original, or one of one's own, which takes fewer of them, can be called, too.

        Args:
            refuse: what to tell a person who set an option (its name) that this `generate` does not take.
            optional: options that are left out in any case where it does not take them.
            given: options that were asked for, which are handed over also where they have their defaults, since a
                model may have others.

        Raises:
            ValueError: such an option.
        """
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: getattr(self, name) for name in defaults}
        asked = {n: v for n, v in values.items() if n in _ALWAYS or n in given or v != defaults[n]}

        def plainly(name: str) -> str:
            method = getattr(generate, "__qualname__", generate)
            return f"{name} is {values[name]!r}, but {method} takes no such option; leave it out"

        left_out = {**defaults, **{name: values[name] for name in optional}}
        return accepted(generate, asked, left_out, refuse or plainly)


def _need(right: bool, otherwise: str) -> None:
    if not right:
        raise ValueError(otherwise)


@dataclass(frozen=True)
class Decoded:
    """`num_captions` texts per item, best first, items in order.

    ids: (R, T) with the prompt, padded with `pad`; T is as many as were looked at, and the longest text may be shorter.
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


def _uniform(options: GenerationOptions, items: int, steps: int, device: torch.device) -> torch.Tensor | None:
    """Numbers from 0 to 1 to sample with, one stream per text: (R, steps); None without a seed.

    Streams do not depend on the rest of the batch, so that an item draws in it what it would draw alone.
    """
    if options.seed is None:
        return None
    if isinstance(options.seed, int):
        seeds = [options.seed, *(seed_of(options.seed, place) for place in range(1, items))]
    else:
        seeds = [int(seed) for seed in options.seed]
        if len(seeds) != items:
            raise ValueError(f"seed has {len(seeds)} numbers for {items} inputs; give one, or one for each")
    streams = [
        torch.Generator(device="cpu").manual_seed((seed * 1000003 + copy) % 2**63)
        for seed in seeds
        for copy in range(options.num_captions)
    ]
    return torch.stack([torch.rand(steps, generator=stream) for stream in streams]).to(device)


def generate(
    decoder: Decoder, prompt: torch.Tensor, options: GenerationOptions, *, end: int, pad: int
) -> Decoded:
    """Go on from `prompt` (B, T), one row per item, with all prompts of one length.

    Args:
        end: id of the token that ends a text. pad: id put after it.
    """
    most, _ = options.lengths(prompt.shape[1])
    if prompt.shape[1] >= most:
        raise ValueError(
            f"max_length is {most} tokens and counts the prompt, which has {prompt.shape[1]} already; "
            "raise it, or give max_new_tokens"
        )
    if not options.use_nucleus_sampling and options.num_captions > options.num_beams:
        _say_beams(options.num_captions, options.num_beams)
        options = replace(options, num_beams=options.num_captions)
    if options.num_beams > 1 and not options.use_nucleus_sampling:
        return _beam_search(decoder, prompt, options, end, pad)
    return _one_by_one(decoder, prompt, options, end, pad)


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


def _one_by_one(
    decoder: Decoder, prompt: torch.Tensor, options: GenerationOptions, end: int, pad: int
) -> Decoded:
    """Greedy or sampled: every row is on its own."""
    items, length = prompt.shape
    most, least = options.lengths(length)
    device = prompt.device
    logits = decoder.step(prompt)  # (B, V)
    copies = options.num_captions
    if copies > 1:
        index = torch.arange(items, device=device).repeat_interleave(copies)
        decoder.select(index)
        logits, prompt = logits[index], prompt[index]
    rows = items * copies
    ids = prompt.new_full((rows, most), pad)
    ids[:, :length] = prompt
    going = torch.ones(rows, dtype=torch.bool, device=device)
    logprobs = torch.zeros(rows, device=device)
    lengths = torch.full((rows,), length, device=device)
    uniform = _uniform(options, items, most - length, device) if options.use_nucleus_sampling else None
    while True:
        scores = _penalise(logits, ids[:, :length], options.repetition_penalty)
        if length < least:
            scores = _without(scores, end)
        if options.use_nucleus_sampling:
            numbers = None if uniform is None else uniform[:, length - prompt.shape[1]]
            chosen = _draw(scores, options, numbers)
        else:
            chosen = scores.argmax(dim=-1)
        step_logprobs = logits.log_softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1)
        logprobs += torch.where(going, step_logprobs, 0.0)
        chosen = torch.where(going, chosen, pad)
        ids[:, length] = chosen
        length += 1
        going &= chosen != end
        lengths += going
        if length >= most or not bool(going.any()) or (options.stop is not None and options.stop()):
            break
        logits = decoder.step(chosen[:, None])
    scores_out = logprobs / lengths**options.length_penalty
    if copies > 1:  # best first
        order = scores_out.view(items, copies).argsort(dim=1, descending=True, stable=True)
        flat = (order + torch.arange(items, device=device)[:, None] * copies).flatten()
        ids, logprobs, scores_out = ids[flat], logprobs[flat], scores_out[flat]
    return Decoded(ids[:, :length], logprobs, scores_out)


def _draw(scores: torch.Tensor, options: GenerationOptions, uniform: torch.Tensor | None) -> torch.Tensor:
    """Sample a token per row from the smallest set of likely tokens that holds `top_p` (Holtzman et al. 2020).

    Args:
        uniform: (R,) numbers from 0 to 1; None: torch's global stream gives them.
    """
    scores = scores / options.temperature
    keep = min(options.top_k or scores.shape[-1], scores.shape[-1])
    top, tokens = scores.topk(keep, dim=-1)  # sorted, likeliest first
    probs = top.softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier ones
    probs = probs.masked_fill(before >= options.top_p, 0.0)
    probs[:, 0] = probs[:, 0].clamp(min=torch.finfo(probs.dtype).tiny)
    if uniform is None:
        uniform = torch.rand(scores.shape[0], device=probs.device)
    cumulative = probs.cumsum(dim=-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(dim=-1)
    place = place.clamp(max=keep - 1)
    return tokens.gather(1, place[:, None]).squeeze(1)


# ---------------------------------------------------------------------------- beam search


class _Finished:
    """The K best finished hypotheses of each of B items, in the order in which they came.

    Attributes:
        scores: (B, K), by which they are compared; -inf where there is none yet.
        logprobs: (B, K), sums of the model's own log-probabilities.
        lengths: (B, K). beams: (B, K), in which beam each was when it had that length.
    """

    def __init__(self, sums: torch.Tensor, length: int, length_penalty: float) -> None:
        device = sums.device
        precise = torch.float32 if device.type == "mps" else torch.float64  # which that device does not have
        self.length_penalty = length_penalty
        self.scores = torch.full_like(sums, -torch.inf, dtype=precise)
        self.logprobs = torch.zeros_like(sums)
        self.lengths = torch.full_like(sums, length, dtype=torch.long)
        self.beams = torch.zeros_like(self.lengths)
        self.places = torch.arange(sums.shape[1], device=device)
        self.before = self.places[:, None] > self.places  # (K, K): [i, j], whether j came before i

    def add(
        self,
        there: torch.Tensor,
        sums: torch.Tensor,
        logprobs: torch.Tensor,
        beams: torch.Tensor,
        length: int,
    ) -> None:
        """Take in those that are among their item's K best. Of equals the one that was there first stays, but of those
        that were there the one that came last.

        Args:
            there: (B, K), whether there is one.
            sums, logprobs: (B, K), of what the search compares, best first, and of the model's own log-probabilities.
            beams: (B, K), which beams they are in. length: of their tokens.
        """
        old, new = self.scores[:, :, None], (sums.to(self.scores.dtype) / length**self.length_penalty)
        new = new.masked_fill(~there, -torch.inf)
        # One gets in if it is better than as many old ones as there are new ones up to it.
        comes = ((old < new[:, None, :]).sum(dim=1) >= there.cumsum(dim=1)) & there  # (B, K)
        other = self.scores[:, None, :]
        worse = (other < old) | ((other == old) & self.before)  # (B, K, K): [i, j], whether j leaves before i
        stays = worse.sum(dim=2) >= comes.sum(dim=1, keepdim=True)
        kept = _first(torch.cat([stays, comes], dim=1), stays.shape[1])
        self.scores = torch.cat([self.scores, new], dim=1).gather(1, kept)
        self.logprobs = torch.cat([self.logprobs, logprobs], dim=1).gather(1, kept)
        self.beams = torch.cat([self.beams, beams], dim=1).gather(1, kept)
        self.lengths = torch.cat([self.lengths, torch.full_like(beams, length)], dim=1).gather(1, kept)

    def settled(self, best_running: torch.Tensor, length: int) -> torch.Tensor:
        """Whether no running beam, of which the best has the sum `best_running` (B,), can still get in: (B,).

        `length`: by which such a beam's sum is divided.
        """
        worst = self.scores.amin(dim=1)
        best = best_running.to(worst.dtype) / length**self.length_penalty
        return (worst > -torch.inf) & (worst >= best)


def _first(flags: torch.Tensor, count: int) -> torch.Tensor:
    """Where each row's first `count` True are, of rows (R, N) that have as many: (R, count)."""
    return flags.byte().argsort(dim=1, descending=True, stable=True)[:, :count]


def _beam_search(
    decoder: Decoder, prompt: torch.Tensor, options: GenerationOptions, end: int, pad: int
) -> Decoded:
    items, start = prompt.shape
    most, least = options.lengths(start)
    beams, device, length = options.num_beams, prompt.device, start
    # All beams of an item start alike: read the prompt once per item, then copy the cache.
    logits = decoder.step(prompt)  # (B, V)
    vocabulary = logits.shape[-1]
    alike = torch.arange(items, device=device).repeat_interleave(beams)
    decoder.select(alike)
    logits = logits.index_select(0, alike)  # (B·K, V)
    first_row = torch.arange(items, device=device)[:, None] * beams  # (B, 1): of each item
    # of each step the beams' tokens, and which beams they went on from, (B, K) each
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    sums = logits.new_zeros(items, beams)
    sums[:, 1:] = -1e9  # so that the first step does not pick the same token in every beam
    own_sums = sums  # of the model's own log-probabilities
    penalised = options.repetition_penalty != 1.0
    seen = prompt.index_select(0, alike)  # (B·K, T): tokens that have occurred, kept up to date if penalised
    finished = _Finished(sums, length, options.length_penalty)
    done = torch.zeros(items, dtype=torch.bool, device=device)
    failed = done

    while True:
        # 1. The 2K best continuations of each item, best first: at most K of them end.
        own = logits.log_softmax(dim=-1)
        scores = _penalise(own, seen, options.repetition_penalty)
        if length < least:
            scores = _without(scores, end)
        scores = (scores.view(items, beams, vocabulary) + sums[:, :, None]).flatten(1)
        top, place = scores.topk(2 * beams, dim=1)  # (B, 2K)
        beam = place // vocabulary
        token = place - beam * vocabulary
        own_top = top
        if penalised:
            own_top = own.view(items, -1).gather(1, place) + own_sums.gather(1, beam)
        failed = failed | (top[:, 0].isnan() & ~done)  # NaN is sorted first
        done = done | failed
        # 2. Those of the K best that end are finished.
        ends = token == end
        finished.add(
            ends[:, :beams] & ~done[:, None], top[:, :beams], own_top[:, :beams], beam[:, :beams], length
        )
        # 3. The K best of the others go on, also those of an item that is done, which nobody looks at.
        going = _first(~ends, beams)  # (B, K)
        sums = top.gather(1, going)
        own_sums = own_top.gather(1, going) if penalised else sums
        beam, token = beam.gather(1, going), token.gather(1, going)
        steps.append((token, beam))
        done = done | finished.settled(top[:, 0], length + options.lookahead)
        length += 1
        if length >= most or bool(done.all()):  # the one wait for the device in a step
            break
        if options.stop is not None and options.stop():
            break
        rows = (first_row + beam).flatten()
        if penalised:
            seen = torch.cat([seen.index_select(0, rows), token.view(-1, 1)], dim=1)
        decoder.select(rows)
        logits = decoder.step(token.view(-1, 1))

    # At the greatest length the beams that are left are texts, too.
    left = ~done[:, None].expand(-1, beams)
    finished.add(left, sums, own_sums, finished.places.expand(items, -1), length)
    scores, order = finished.scores.sort(dim=1, descending=True, stable=True)
    order, lost = order[:, : options.num_captions], failed[:, None]  # (B, G), (B, 1)
    lengths = finished.lengths.gather(1, order).masked_fill(lost, start)
    # Read each text from its last token back to its first.
    beam = finished.beams.gather(1, order)
    ids = prompt.new_full((*order.shape, length + 1), pad)  # (B, G, T + 1): with room for an end
    ids[:, :, :start] = prompt[:, None]
    for at, (token, parent) in reversed(list(enumerate(steps, start))):
        written = at < lengths
        ids[:, :, at] = torch.where(written, token.gather(1, beam), pad)
        beam = torch.where(written, parent.gather(1, beam), beam)
    ids.scatter_(2, lengths[:, :, None], end)
    return Decoded(
        ids.flatten(0, 1)[:, :length],
        finished.logprobs.gather(1, order).masked_fill(lost, torch.nan).flatten(),
        scores[:, : options.num_captions].masked_fill(lost, torch.nan).flatten().float(),
    )


# ---------------------------------------------------------------------------- ranking given texts


def sequence_losses(
    decoder: TextDecoder, memory: Memory, ids: torch.Tensor, mask: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Smoothed loss (nats, summed over tokens) of given texts, (R,).

    They are read in chunks, so that the memory that their logits take does not grow with their number.

    Args:
        decoder: a causal text decoder.
        memory: of B items; item b's texts are rows b·G … b·G+G-1 and share it without a copy.
        ids, mask: (R, T), start token first; columns that are padding in every row cost nothing.
        smoothing: label smoothing, as in training.
    """
    longest, items = int(mask.sum(1).max()), len(memory)
    ids, mask = (x[:, :longest].unflatten(0, (items, -1)) for x in (ids, mask))  # (B, G, T)
    rows = max(1, LOGITS_AT_ONCE // (longest * decoder.bert.config.vocab_size))
    found = torch.empty(ids.shape[:2], device=ids.device)
    for first in range(0, items, rows):  # all of them, unless they are very many
        some = slice(first, first + rows)
        read = memory.part(some)
        each = max(1, rows // len(read))  # texts of each item
        for start in range(0, ids.shape[1], each):
            here = some, slice(start, start + each)
            own, real = ids[here].flatten(0, 1), mask[here].flatten(0, 1)
            logits = decoder(own, mask=real, memory=read)
            labels = own.masked_fill(~real, IGNORE)
            losses = language_modelling_loss(logits, labels, smoothing=smoothing, per_text=True)
            found[here] = losses.view(len(read), -1)
    return found.flatten()
