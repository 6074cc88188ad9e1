"""CLIP's and BLIP's features, and matching one picture with many texts, beside transformers: same weights, inputs, run.

    python benchmarks/features.py                      # everything; about 10 minutes on 2 cores
    python benchmarks/features.py clip-text itm        # parts: clip-image, clip-text, blip-image, blip-text,
                                                       # blip-multimodal, itm
    python benchmarks/features.py clip-image --threads 1 --batches 1

A model's parts run in a process of their own; sides take turns; results go to features.<processor>.json in
benchmarks/results. Weights are random (speed does not depend on them): transformers writes them as a folder,
`load_model` reads it. lavis gets texts and tokenizes them within the time measured, transformers gets their ids.
BLIP's texts have 16 tokens; CLIP's fill its 77 places, or have 16 tokens, which transformers pads to 77 and lavis
does not. Packed weights, and transformers in bfloat16, run with the small batch only. 5 rounds each, 3 of matching.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from torch import Tensor

THREADS = 2
TOKENS = 16  # of a text, start and end included
CANDIDATES = 64  # texts that are matched with one picture
BASE = "transformers fp32"
COMPARED = (BASE, "lavis fp32", "lavis bf16")  # in every measurement
# one token each, for CLIP as for BERT
WORDS = (
    "a small brown dog runs across the wet green grass while two people watch red car blue house under big tree "
    "near white horse and old man with young cat on table in front of black door at night"
)
TEXT = {
    "num_attention_heads": 12,  # 8 by default there
    "bos_token_id": 30522,
    "eos_token_id": 102,
    "sep_token_id": 102,
    "pad_token_id": 0,
}

Run = Callable[[], tuple["Tensor", ...]]


# ------------------------------------------------------------------------------------------ both sides


def write_clip(folder: str) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    CLIPModel(CLIPConfig(text_config=ends, vision_config={"patch_size": 16})).save_pretrained(folder)


def write_blip(folder: str, image_size: int) -> None:
    import torch
    from transformers import BlipConfig, BlipForImageTextRetrieval

    torch.manual_seed(0)
    vision = {"image_size": image_size, "patch_size": 16, "layer_norm_eps": 1e-6}
    config = BlipConfig(text_config=TEXT, vision_config=vision, image_text_hidden_size=256)
    BlipForImageTextRetrieval(config).save_pretrained(folder)


def load(model: str, folder: str) -> dict[str, Any]:
    """The sides' models, their weights read from one folder."""
    import torch
    from transformers import BlipForImageTextRetrieval, CLIPModel
    from transformers.utils.logging import disable_progress_bar

    from lavis.models import load_model
    from lavis.nn import cpu

    disable_progress_bar()
    cls: Any = CLIPModel if model == "clip" else BlipForImageTextRetrieval
    if model == "clip":
        write_clip(folder)
        name, model_type = "clip", "ViT-B-16"
    elif model == "blip":
        write_blip(folder, 224)
        name, model_type = "blip_feature_extractor", "base"
    else:
        write_blip(folder, 384)
        name, model_type = "blip_image_text_matching", "base"
    sides: dict[str, Any] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        sides[f"transformers {precision}"] = cls.from_pretrained(folder, dtype=dtype).eval()
        for packed in ("", " packed"):
            ours = load_model(name, model_type, is_eval=True, checkpoint=folder).to(dtype)
            sides[f"lavis {precision}{packed}"] = cpu.prepare(ours, pack=True) if packed else ours
    return sides


def write_texts(count: int, words: int) -> list[str]:
    import random

    chosen, known = random.Random(0), WORDS.split()
    return [" ".join(chosen.choices(known, k=words)) for _ in range(count)]


def pictures(batch: int, size: int) -> Tensor:
    import torch

    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------ the parts


def clip_image(theirs: Any, ours: Any, batch: int) -> tuple[Run, Run]:
    image = pictures(batch, 224)
    theirs_image = image.to(theirs.dtype)
    return (
        lambda: (theirs.get_image_features(pixel_values=theirs_image).pooler_output,),
        lambda: (ours.extract_features({"image": image}),),
    )


def clip_text(theirs: Any, ours: Any, batch: int, tokens: int) -> tuple[Run, Run]:
    texts = write_texts(batch, tokens - 2)
    assert ours.tokenizer.batch(texts).ids.shape == (batch, tokens)
    ids = ours.tokenizer.batch(texts, pad_to=77).ids
    return (
        lambda: (theirs.get_text_features(input_ids=ids).pooler_output,),
        lambda: (ours.extract_features({"text_input": texts}),),
    )


def blip(theirs: Any, ours: Any, batch: int, mode: str) -> tuple[Run, Run]:
    from torch.nn.functional import normalize

    image, texts = pictures(batch, 224), write_texts(batch, TOKENS - 2)
    theirs_image, tokens = image.to(theirs.dtype), ours.tokenizer.batch(texts)
    assert tokens.ids.shape == (batch, TOKENS)
    first = ours.enc_id if mode == "multimodal" else ours.tokenizer.cls_id
    ids, mask = tokens.ids.clone(), tokens.mask.long()
    ids[:, 0] = first
    samples = {"image": image, "text_input": texts}

    def run_theirs() -> tuple[Any, ...]:
        states = None if mode == "text" else theirs.vision_model(pixel_values=theirs_image)[0]
        if mode == "image":
            return states, normalize(theirs.vision_proj(states), dim=-1)
        found = theirs.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states)[0]
        if mode == "multimodal":
            return states, found
        return found, normalize(theirs.text_proj(found), dim=-1)

    def run_ours() -> tuple[Tensor, ...]:
        found = ours.extract_features(samples, mode)
        return tuple(value for _, value in found.items())

    return run_theirs, run_ours


def itm(theirs: Any, ours: Any, batch: int) -> tuple[Run, Run]:
    """Theirs encodes each picture once as well, and repeats its states, which its layers then project again."""
    image, texts = pictures(batch, 384), write_texts(batch * CANDIDATES, TOKENS - 2)
    theirs_image, tokens = image.to(theirs.dtype), ours.tokenizer.batch(texts)
    assert tokens.ids.shape == (batch * CANDIDATES, TOKENS)
    ids, mask = tokens.ids.clone(), tokens.mask.long()
    ids[:, 0] = ours.enc_id

    def run_theirs() -> tuple[Tensor, ...]:
        states = theirs.vision_model(pixel_values=theirs_image)[0].repeat_interleave(CANDIDATES, dim=0)
        found = theirs.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states)[0]
        return (theirs.itm_head(found[:, 0]),)

    return run_theirs, lambda: (ours({"image": image, "text_input": texts}, match_head="itm"),)


Pair = Callable[[Any, Any, int], tuple[Run, Run]]
PARTS: Mapping[str, Mapping[str, Pair]] = {
    "clip-image": {"": clip_image},
    "clip-text": {
        "77 tokens, ": partial(clip_text, tokens=77),
        "16 tokens, padded to 77 by transformers, ": partial(clip_text, tokens=TOKENS),
    },
    "blip-image": {"": partial(blip, mode="image")},
    "blip-text": {"": partial(blip, mode="text")},
    "blip-multimodal": {"": partial(blip, mode="multimodal")},
    "itm": {f"{CANDIDATES} texts a picture, ": itm},
}


# ------------------------------------------------------------------------------------------ measuring


def measure(models: Mapping[str, Any], pair: Pair, batch: int, small: bool, rounds: int) -> dict[str, Any]:
    """Speed and results of the sides on one batch; of all sides if it is a small one, else of those COMPARED."""
    import torch

    from benchmarks.common import interleaved, ratio

    outputs: dict[str, tuple[Tensor, ...]] = {}

    def keeping(name: str, run: Run) -> Callable[[], None]:
        def kept() -> None:
            outputs[name] = run()

        return kept

    runs: dict[str, Callable[[], None]] = {}
    for name, model in models.items():
        if name.startswith("transformers"):
            run, _ = pair(model, models["lavis fp32"], batch)
        else:
            _, run = pair(models[BASE], model, batch)
        if small or name in COMPARED:
            runs[name] = keeping(name, run)
    with torch.no_grad():
        # what a long run warms up is nothing to its length
        seconds = interleaved(runs, rounds, warmup=1 if small else 0)
    wanted = outputs[BASE]
    return {
        "seconds (median, least, greatest)": {
            k: [round(f(v), 4) for f in (statistics.median, min, max)] for k, v in seconds.items()
        },
        f"times as fast as {BASE}": {k: ratio(seconds[BASE], v) for k, v in seconds.items() if k != BASE},
        f"greatest difference from {BASE}": {
            k: max(float((a.float() - b).abs().max()) for a, b in zip(v, wanted, strict=True))
            for k, v in outputs.items()
            if k != BASE
        },
    }


def run_parts(parts: list[str], batches: list[int]) -> dict[str, Any]:
    import torch

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = load(model_of(parts[0]), folder)
        for part in parts:
            results[part] = {"threads": torch.get_num_threads()}
            for what, pair in PARTS[part].items():
                for batch in [1] if part == "itm" else batches:
                    small, rounds = (False, 3) if part == "itm" else (batch == 1, 5)
                    results[part][f"{what}batch {batch}"] = measure(models, pair, batch, small, rounds)
    return results


def model_of(part: str) -> str:
    return part.split("-")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if args.part:
        import torch

        torch.set_num_threads(args.threads)
        print(json.dumps(run_parts(args.parts, args.batches)))
        return

    from benchmarks.common import RESULTS, by_processor, write

    name = by_processor("features")
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for _, parts in itertools.groupby([p for p in PARTS if not args.parts or p in args.parts], key=model_of):
        command = [sys.executable, __file__, *parts, "--part", "--threads", str(args.threads)]
        command += ["--batches", *map(str, args.batches)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(found, indent=1))
        results |= found
        results.pop("machine", None)
        write(name, results)


if __name__ == "__main__":
    main()
