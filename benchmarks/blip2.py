"""BLIP-2 and InstructBLIP beside transformers': same weights, inputs, threads, run.

    python benchmarks/blip2.py               # everything, about 25 minutes on 2 cores
    python benchmarks/blip2.py itm classes   # parts: captions, itm, classes, features, memory

Image encoder of width 768 with 12 blocks at 224 px, Q-Former of BERT base's size, language models of OPT-125m's,
Flan-T5-base's and a LLaMA of OPT-125m's size. The weights are random, language models' larger than at the start of
training, so that no two tokens are about equally likely and both sides must write the same tokens. transformers loads
its folder, this library the same one. Each part runs in a process of its own; sides take turns; results go to
blip2.<processor>.json in benchmarks/results.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
THREADS = 2
IMAGE, TOKENS, BEAMS = 224, 20, 5
PROMPT = "a photo of"
VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": IMAGE, "patch_size": 14,
}  # fmt: skip
LANGUAGES: dict[str, dict[str, Any]] = {
    "opt": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "ffn_dim": 3072, "word_embed_proj_dim": 768, "bos_token_id": 2, "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "t5": {
        "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12,
        "num_decoder_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    },
    "llama": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048,
        "num_hidden_layers": 12, "num_attention_heads": 12, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    },
}  # fmt: skip
NAMES = {
    ("opt", False): "blip2_opt", ("t5", False): "blip2_t5", ("t5", True): "blip2_t5_instruct",
    ("llama", True): "blip2_vicuna_instruct", (None, False): "blip2_image_text_matching",
}  # fmt: skip


# ------------------------------------------------------------------------------------------ the two sides
def peer(language: str | None, instruct: bool = False) -> Any:
    import torch
    import transformers

    config: dict[str, Any] = {"vision_config": VISION, "num_query_tokens": 32}
    config["qformer_config"] = {"vocab_size": 30523, "encoder_hidden_size": 768}
    if language is None:
        config["qformer_config"]["use_qformer_text_input"] = True
        config["image_token_index"] = None
        kind, description = "Blip2ForImageTextRetrieval", transformers.Blip2Config
    else:
        text = LANGUAGES[language]
        config |= {"text_config": text, "image_token_index": text["vocab_size"] - 1}
        kind = "InstructBlipForConditionalGeneration" if instruct else "Blip2ForConditionalGeneration"
        description = transformers.InstructBlipConfig if instruct else transformers.Blip2Config
    torch.manual_seed(0)
    model = getattr(transformers, kind)(description(**config)).eval()
    with torch.no_grad():
        if language is not None:
            for parameter in model.language_model.parameters():
                if parameter.ndim == 2:
                    parameter *= 3
        # states of the size that trained ones have: the norm after them has another epsilon there than in the original
        model.vision_model.embeddings.position_embedding.normal_()
        for block in model.vision_model.encoder.layers:  # the published encoders have none of keys
            block.self_attn.qkv.bias.view(3, -1)[1] = 0
    return model


def mine(folder: str, language: str | None, instruct: bool = False) -> tuple[Any, Any]:
    """The model with its layers prepared, as it does itself, and with a second copy of the weights, packed."""
    from lavis.nn import cpu

    plain, packed = loaded(folder, language, instruct), loaded(folder, language, instruct)
    return plain, cpu.prepare(packed, pack=True)


def loaded(folder: str, language: str | None, instruct: bool = False) -> Any:
    from lavis.models import load_model

    model = load_model(NAMES[language, instruct], checkpoint=folder, is_eval=True)
    if language is not None:
        model.__dict__["words"] = Words(LANGUAGES[language]["vocab_size"])
    return model


class Words:
    """In place of a tokenizer: a token for each word, and for each token its number."""

    truncation_side = "right"
    unk_token_id = 3

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, texts: Sequence[str] | str, **options: Any) -> Any:
        if isinstance(texts, str):
            return _Encoded(self.ids(texts))
        return _Encoded([self.ids(text) for text in texts])

    def ids(self, text: str) -> list[int]:
        return [2, *(10 + zlib.crc32(word.encode()) % (self.size - 20) for word in text.split())]

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.unk_token_id

    def batch_decode(self, rows: Sequence[Sequence[int]], **options: Any) -> list[str]:
        return [" ".join(str(int(i)) for i in row) for row in rows]


class _Encoded:
    def __init__(self, input_ids: Any) -> None:
        self.input_ids = input_ids


def images(batch: int) -> Any:
    import torch

    return torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))


def compared(sides: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, Any]:
    """Seconds of all sides, and how many times as fast as each of the others ours are."""
    from benchmarks.common import interleaved, ratio

    seconds = interleaved(sides, rounds)
    ours = [name for name in sides if name.startswith("lavis")]
    return {
        "seconds (median)": {k: round(statistics.median(v), 3) for k, v in seconds.items()},
        **{
            f"{own}, times as fast as": {
                k: ratio(v, seconds[own]) for k, v in seconds.items() if k not in ours
            }
            for own in ours
        },
    }


# ------------------------------------------------------------------------------------------ captions
def write_theirs(model: Any, language: str, image: Any) -> Any:
    import torch

    place = LANGUAGES[language]["vocab_size"] - 1
    ids = torch.tensor([[place] * 32 + Words(place + 1).ids(PROMPT)] * len(image))
    with torch.no_grad():
        return model.generate(
            pixel_values=image, input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=BEAMS, do_sample=False,
            max_new_tokens=TOKENS, min_new_tokens=TOKENS, length_penalty=0.0, repetition_penalty=1.0,
        )  # fmt: skip


def write_ours(model: Any, image: Any) -> Any:
    return model.generate(
        {"image": image, "prompt": PROMPT}, num_beams=BEAMS, max_new_tokens=TOKENS, min_new_tokens=TOKENS,
        length_penalty=0.0,
    )  # fmt: skip


def part_captions() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for language in ("opt", "t5"):
        theirs = peer(language)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours, packed = mine(folder, language)
        for batch in (1, 8):
            image = images(batch)
            tokens = write_theirs(theirs, language, image)[:, -TOKENS:].tolist()
            same = [" ".join(map(str, row)) for row in tokens] == [
                text.split(" ", 1)[1] if len(text.split()) > TOKENS else text
                for text in write_ours(ours, image)
            ]
            out[f"{language}, batch {batch}"] = {
                "same tokens": same,
                **compared(
                    {
                        "transformers": lambda image=image, theirs=theirs, language=language: write_theirs(
                            theirs, language, image
                        ),
                        "lavis": lambda image=image, ours=ours: write_ours(ours, image),
                        "lavis packed": lambda image=image, packed=packed: write_ours(packed, image),
                    }
                ),
            }
    return out


# ------------------------------------------------------------------------------------------ matching
TEXTS = [
    f"a photo of {count} {colour} {thing} on the table"
    for count in ("one", "two", "three", "four")
    for colour in ("red", "green", "blue", "white")
    for thing in ("cups", "books", "apples", "small wooden boxes")
]


def part_itm() -> dict[str, Any]:
    import torch

    theirs = peer(None)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours, packed = mine(folder, None)
    image = images(1)
    tokens = ours.tokens(TEXTS)
    ids, mask = tokens.ids, tokens.mask.long()

    @torch.no_grad()
    def repeated() -> Any:
        return theirs(
            pixel_values=image.expand(len(TEXTS), -1, -1, -1), input_ids=ids, attention_mask=mask,
            use_image_text_matching_head=True,
        ).logits_per_image  # fmt: skip

    @torch.no_grad()
    def documented() -> Any:
        pairs = ([part[:, : seen.sum()] for part in (own[None], seen[None])] for own, seen in zip(ids, mask))
        return torch.cat(
            [
                theirs(
                    pixel_values=image, input_ids=own, attention_mask=seen, use_image_text_matching_head=True
                ).logits_per_image
                for own, seen in pairs
            ]
        )

    @torch.no_grad()
    def encoded_once() -> Any:
        states = theirs.vision_model(image).last_hidden_state.expand(len(TEXTS), -1, -1)
        queries = theirs.query_tokens.expand(len(TEXTS), -1, -1)
        words = theirs.embeddings(input_ids=ids, query_embeds=queries)
        seen = torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)
        found = theirs.qformer(
            query_embeds=words,
            query_length=queries.shape[1],
            attention_mask=seen,
            encoder_hidden_states=states,
        )
        return theirs.itm_head(found.last_hidden_state[:, : queries.shape[1]]).mean(dim=1)

    @torch.no_grad()
    def in_this_library(model: Any = ours) -> Any:
        return model({"image": image, "text_input": TEXTS}, match_head="itm")

    peak = documented().abs().max()
    return {
        "1 image, 64 texts": {
            "furthest apart, share of the peak": float((documented() - in_this_library()).abs().max() / peak),
            "its image encoded once equals its documented way": bool(
                torch.allclose(documented(), encoded_once(), atol=1e-4)
            ),
            **compared(
                {
                    "transformers, image encoded once": encoded_once,
                    "transformers, as documented, a pair a call": documented,
                    "transformers, image repeated in one batch": repeated,
                    "lavis": in_this_library,
                    "lavis packed": lambda: in_this_library(packed),
                },
                rounds=3,
            ),
        }
    }


# ------------------------------------------------------------------------------------------ candidates
CANDIDATES = [
    f"{colour} {thing}"
    for colour in ("a red", "a dark green", "a very old white", "two blue")
    for thing in (
        "car", "house", "fishing boat", "dog", "cat", "wooden chair", "table", "cup of tea", "book", "apple", "tree",
        "horse", "train", "bicycle", "street lamp", "bird", "sheep", "shoe", "hat", "bottle", "clock", "kite", "bench",
        "umbrella", "vase",
    )
]  # fmt: skip
QUESTION = "what is in the middle of this image, and what is it made of?"


def classes_theirs(model: Any, language: str, reader: Any, image: Any) -> Any:
    """The original's `predict_class` on transformers' model: each candidate behind the image and the prompt.

    The image passes its encoder and the Q-Former once; the candidates go through the language model as one batch.
    """
    import torch

    words = Words(LANGUAGES[language]["vocab_size"])
    model_of_words, count = model.language_model, len(CANDIDATES)
    with torch.no_grad():
        states = model.vision_model(image).last_hidden_state
        read = reader(QUESTION)
        queries = model.query_tokens
        seen = torch.cat([read.mask.new_ones(1, queries.shape[1]), read.mask], dim=1).long()
        found = model.qformer(
            input_ids=read.ids, attention_mask=seen, query_embeds=queries, encoder_hidden_states=states
        ).last_hidden_state[:, : queries.shape[1]]
        prefix = model.language_projection(found)
        prompt = torch.tensor([words.ids(QUESTION)])
        rows = [words.ids(text) for text in CANDIDATES]
        longest = max(map(len, rows))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        embed = model_of_words.get_input_embeddings()
        if language == "t5":
            states = model_of_words.get_encoder()(inputs_embeds=torch.cat([prefix, embed(prompt)], dim=1))
            states.last_hidden_state = states.last_hidden_state.expand(count, -1, -1)
            labels = ids.masked_fill(mask == 0, -100)
            logits = model_of_words(encoder_outputs=states, labels=labels).logits
        else:
            ids, mask = ids[:, 1:], mask[:, 1:]  # without beginnings
            before = torch.cat([prefix, embed(prompt)], dim=1).expand(count, -1, -1)
            seen = torch.cat([mask.new_ones(before.shape[:2]), mask], dim=1)
            whole = torch.cat([before, embed(ids)], dim=1)
            logits = model_of_words(inputs_embeds=whole, attention_mask=seen).logits
            logits = logits[:, before.shape[1] - 1 : -1]
        logs = logits.log_softmax(dim=-1).gather(2, ids[:, :, None])[:, :, 0]
        return (logs * mask).sum(dim=1)


def part_classes() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for language in ("llama", "t5"):
        theirs = peer(language, instruct=True)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours, packed = mine(folder, language, instruct=True)
        image = images(1)

        def in_transformers(theirs: Any = theirs, language: str = language, ours: Any = ours) -> Any:
            return classes_theirs(theirs, language, lambda text: ours.instruction([text]), images(1))

        def in_this_library(model: Any = ours, image: Any = image) -> Any:
            return model.predict_class(
                {"image": image, "prompt": QUESTION}, CANDIDATES, return_scores=True
            )[1][0]  # fmt: skip

        expected = in_transformers()
        out[f"{language}, 1 image, {len(CANDIDATES)} candidates"] = {
            "furthest apart, share of the peak": float(
                (expected - in_this_library()).abs().max() / expected.abs().max()
            ),
            **compared(
                {
                    "the original's way on transformers": in_transformers,
                    "lavis": in_this_library,
                    "lavis packed": lambda run=in_this_library, packed=packed: run(packed),
                }
            ),
        }
    return out


# ------------------------------------------------------------------------------------------ features
def part_features() -> dict[str, Any]:
    import torch

    theirs = peer(None)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours, packed = mine(folder, None)
    out: dict[str, Any] = {}
    for batch in (1, 8):
        image = images(batch)

        @torch.no_grad()
        def image_theirs(image: Any = image) -> Any:
            states = theirs.vision_model(image).last_hidden_state
            found = theirs.qformer(
                query_embeds=theirs.query_tokens.expand(len(image), -1, -1), encoder_hidden_states=states
            ).last_hidden_state
            return torch.nn.functional.normalize(theirs.vision_projection(found), dim=-1)

        def image_ours(model: Any = ours, image: Any = image) -> Any:
            return model.extract_features({"image": image}, mode="image").image_embeds_proj

        out[f"images, batch {batch}"] = {
            "furthest apart": float((image_theirs() - image_ours()).abs().max()),
            **compared(
                {
                    "transformers": image_theirs,
                    "lavis": image_ours,
                    "lavis packed": lambda run=image_ours: run(packed),
                }
            ),
        }
    for count in (1, 64):
        texts = TEXTS[:count]
        tokens = ours.tokens(texts)

        @torch.no_grad()
        def text_theirs(tokens: Any = tokens) -> Any:
            words = theirs.embeddings(input_ids=tokens.ids)
            found = theirs.qformer(query_embeds=words, query_length=0, attention_mask=tokens.mask.long())
            return torch.nn.functional.normalize(theirs.text_projection(found.last_hidden_state), dim=-1)

        def text_ours(model: Any = ours, texts: Any = texts) -> Any:
            return model.extract_features({"text_input": texts}, mode="text").text_embeds_proj

        apart = (text_theirs() - text_ours())[tokens.mask].abs().max()
        out[f"texts, batch {count}"] = {
            "furthest apart": float(apart),
            **compared(
                {
                    "transformers": text_theirs,
                    "lavis": text_ours,
                    "lavis packed": lambda run=text_ours: run(packed),
                }
            ),
        }
    return out


# ------------------------------------------------------------------------------------------ memory
def peak(side: str, language: str, batch: int, folder: str) -> float:
    """Peak resident memory in MiB of loading a saved model and captioning once (a process of its own)."""
    image = images(batch)
    if side == "transformers":
        import transformers

        model = transformers.Blip2ForConditionalGeneration.from_pretrained(folder).eval()
        write_theirs(model, language, image)
    else:
        from lavis.nn import cpu

        write_ours(cpu.prepare(loaded(folder, language), pack=side == "lavis packed"), image)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def part_memory() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for language in ("opt", "t5"):
        with tempfile.TemporaryDirectory() as folder:
            peer(language).save_pretrained(folder)
            for batch in (1, 8):
                peaks = {
                    side: json.loads(
                        subprocess.run(
                            [sys.executable, __file__, "--peak", side, language, str(batch), folder],
                            check=True, capture_output=True, text=True,
                        ).stdout.splitlines()[-1]
                    )
                    for side in ("transformers", "lavis", "lavis packed")
                }  # fmt: skip
                out[f"{language}, batch {batch}"] = {
                    "peak MiB": {k: round(v) for k, v in peaks.items()},
                    "share of transformers": {
                        k: round(v / peaks["transformers"], 3) for k, v in peaks.items()
                    },
                }
    return out


PARTS = {
    "captions": part_captions, "itm": part_itm, "classes": part_classes, "features": part_features,
    "memory": part_memory,
}  # fmt: skip


def main() -> None:
    import torch

    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["--peak"]:
        side, language, batch, folder = sys.argv[2:]
        print(json.dumps(peak(side, language, int(batch), folder)))
    elif sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]]()))
    else:
        from benchmarks.common import run_parts

        run_parts(__file__, "blip2", sys.argv[1:] or list(PARTS), THREADS)


if __name__ == "__main__":
    main()
