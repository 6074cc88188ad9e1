"""BLIP base captioning, training and loading beside transformers' BLIP: same weights, inputs, threads, run.

    python benchmarks/blip_caption.py                 # everything, about 25 minutes on 2 cores
    python benchmarks/blip_caption.py generate train  # parts: generate, train, load, memory

Each part runs in a process of its own; sides take turns; results go to blip_caption.<processor>.json in
benchmarks/results.
Weights are random (speed does not depend on them), the text side's larger than at the start of training, so that no two
tokens are about equally likely and both sides must write the same captions. Each has 20 new tokens, with 3 beams.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
THREADS = 2
PROMPT = "a picture of "


def theirs() -> Any:
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(0)
    config = BlipConfig(
        text_config={
            "bos_token_id": 30522,
            "eos_token_id": 102,
            "sep_token_id": 102,
            "pad_token_id": 0,
            "encoder_hidden_size": 768,
            "label_smoothing": 0.1,
            "num_attention_heads": 12,
        },
        vision_config={"image_size": 384, "patch_size": 16, "layer_norm_eps": 1e-6},
    )
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.text_decoder.parameters():
            if parameter.ndim == 2:
                parameter *= 4
    return model


def ours(state: Any = None) -> Any:
    import torch

    from lavis.models.blip import BlipCaption
    from lavis.models.checkpoints import TRANSFORMERS_BLIP, load_into

    config = BlipCaption.PRESETS["base_coco"].config
    if state is None:
        torch.manual_seed(0)
        model = BlipCaption.build(config)
    else:
        model = BlipCaption.build(config, empty=True)
        load_into(model, dict(state), TRANSFORMERS_BLIP, "transformers")
    model.model_type = "base_coco"
    return model.eval()


def run_theirs(model: Any, image: Any) -> Any:
    import torch

    ids = torch.tensor([[30522, 1037, 3861, 1997, 102]] * image.shape[0])  # their generate cuts the end token
    with torch.no_grad():
        return model.generate(
            pixel_values=image,
            input_ids=ids,
            num_beams=3,
            do_sample=False,
            max_new_tokens=20,
            min_new_tokens=20,
        )


def run_ours(model: Any, image: Any) -> Any:
    return model.generate({"image": image}, num_beams=3, max_new_tokens=20, min_new_tokens=20)


def part_generate() -> dict[str, Any]:
    import torch

    from benchmarks.common import interleaved, ratio
    from lavis.nn import cpu

    peer = theirs()
    plain, packed = ours(peer.state_dict()), cpu.prepare(ours(peer.state_dict()), pack=True)
    half = cpu.prepare(ours(peer.state_dict()).to(torch.bfloat16), pack=True)
    peer_half = theirs().to(torch.bfloat16)
    out: dict[str, Any] = {}
    for batch in (1, 8):
        image = torch.randn(batch, 3, 384, 384, generator=torch.Generator().manual_seed(0))
        tokens = run_theirs(peer, image)
        mine = run_ours(plain, image)
        same = [
            plain.tokenizer.decode(row, skip_special_tokens=True)[len(PROMPT) :] for row in tokens.tolist()
        ] == mine
        seconds = interleaved(
            {
                "transformers fp32": lambda image=image: run_theirs(peer, image),
                "lavis fp32": lambda image=image: run_ours(plain, image),
                "lavis fp32 packed": lambda image=image: run_ours(packed, image),
                "lavis bf16 packed": lambda image=image: run_ours(half, image),
                "transformers bf16": lambda image=image: run_theirs(peer_half, image.bfloat16()),
            }
        )
        base = seconds["transformers fp32"]
        out[f"batch {batch}"] = {
            "same captions in fp32": same,
            "seconds (median)": {k: round(statistics.median(v), 3) for k, v in seconds.items()},
            "times as fast as transformers fp32": {
                k: ratio(base, v) for k, v in seconds.items() if k != "transformers fp32"
            },
        }
    return out


def part_train() -> dict[str, Any]:
    import torch

    from benchmarks.common import interleaved, ratio

    peer = theirs()
    mine = ours(peer.state_dict())
    peer.train(), mine.train()
    image = torch.randn(4, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    texts = [
        PROMPT + t
        for t in ("a small brown dog runs across the wet grass", "two people", "a red car", "a cat")
    ]
    tokens = mine.tokenizer.batch(texts)
    tokens.ids[:, 0] = 30522
    labels = tokens.ids.masked_fill(~tokens.mask, -100)
    labels[:, :4] = -100
    optimizers = {id(m): torch.optim.AdamW(m.parameters(), lr=1e-5) for m in (peer, mine)}

    def step(model: Any, loss: Any) -> None:
        loss.backward()
        optimizers[id(model)].step()
        optimizers[id(model)].zero_grad(set_to_none=True)

    def step_theirs() -> None:
        out = peer(pixel_values=image, input_ids=tokens.ids, attention_mask=tokens.mask.long(), labels=labels)
        step(peer, out.loss)

    def step_ours() -> None:
        step(mine, mine({"image": image, "text_input": texts}).loss)

    seconds = interleaved({"transformers": step_theirs, "lavis": step_ours})
    return {
        "batch 4, fp32, AdamW": {
            "seconds (median)": {k: round(statistics.median(v), 2) for k, v in seconds.items()},
            "times as fast": ratio(seconds["transformers"], seconds["lavis"]),
        }
    }


def part_load() -> dict[str, Any]:
    import torch
    from transformers import BlipForConditionalGeneration

    from benchmarks.common import interleaved, ratio
    from lavis.models import load_model

    with tempfile.TemporaryDirectory() as folder:
        peer = theirs()
        peer.save_pretrained(f"{folder}/theirs")
        mine = ours(peer.state_dict())
        mine.save_pretrained(f"{folder}/ours")
        torch.save({"model": mine.state_dict()}, f"{folder}/official.pth")
        del peer, mine
        gc.collect()
        seconds = interleaved(
            {
                "transformers safetensors": lambda: BlipForConditionalGeneration.from_pretrained(
                    f"{folder}/theirs"
                ),
                "lavis safetensors": lambda: load_model(f"{folder}/ours"),
                "lavis official .pth": lambda: load_model(
                    "blip_caption", "base_coco", checkpoint=f"{folder}/official.pth"
                ),
            }
        )
    return {
        "seconds (median)": {k: round(statistics.median(v), 3) for k, v in seconds.items()},
        "safetensors, times as fast": ratio(
            seconds["transformers safetensors"], seconds["lavis safetensors"]
        ),
    }


def peak(side: str, batch: int) -> float:
    """Peak resident memory in MiB of loading a saved model and captioning once (a process of its own)."""
    import torch

    folder = sys.argv[4]
    image = torch.randn(batch, 3, 384, 384)
    if side == "transformers":
        from transformers import BlipForConditionalGeneration

        run_theirs(BlipForConditionalGeneration.from_pretrained(f"{folder}/theirs").eval(), image)
    else:
        from lavis.models import load_model
        from lavis.nn import cpu

        model = load_model(f"{folder}/ours", is_eval=True)
        if side == "lavis packed":
            cpu.prepare(model, pack=True)
        run_ours(model, image)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def part_memory() -> dict[str, Any]:
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = theirs()
        peer.save_pretrained(f"{folder}/theirs")
        ours(peer.state_dict()).save_pretrained(f"{folder}/ours")
        for batch in (1, 8):
            peaks = {
                side: json.loads(
                    subprocess.run(
                        [sys.executable, __file__, "--peak", side, str(batch), folder],
                        check=True, capture_output=True, text=True,
                    ).stdout.splitlines()[-1]
                )
                for side in ("transformers", "lavis", "lavis packed")
            }  # fmt: skip
            out[f"batch {batch}, peak MiB"] = {k: round(v) for k, v in peaks.items()}
            out[f"batch {batch}, share of transformers"] = {
                k: round(v / peaks["transformers"], 3) for k, v in peaks.items()
            }
    return out


PARTS = {"generate": part_generate, "train": part_train, "load": part_load, "memory": part_memory}


def main() -> None:
    import torch

    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["--peak"]:
        sys.argv[3:] = [sys.argv[3], *sys.argv[4:]]
        print(json.dumps(peak(sys.argv[2], int(sys.argv[3]))))
    elif sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]]()))
    else:
        from benchmarks.common import run_parts

        run_parts(__file__, "blip_caption", sys.argv[1:] or list(PARTS), THREADS)


if __name__ == "__main__":
    main()
