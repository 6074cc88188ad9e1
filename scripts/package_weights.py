"""Put a trained small model into the package: half precision, with a card.

    python scripts/package_weights.py output/RUN lavis/models/assets/tiny_shapes
    python scripts/package_weights.py output/RUN lavis/models/assets/blip_shapes --model-type tiny_shapes

RUN is a folder that a training run wrote; its best checkpoint (else its last) is taken, without what only training uses
(EMA copies, queues).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lavis.common.files import existing_folder, read_jsonl
from lavis.models import load_model

LIMIT = 8 * 2**20  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model-type", help="the preset that names them; else the target's name")
    arguments = parser.parse_args()
    run, target = arguments.run, arguments.target
    folder = existing_folder(run / "checkpoint_best") or existing_folder(run / "checkpoint_last")
    if folder is None:
        raise FileNotFoundError(f"{run} has no checkpoint")
    model = load_model(str(folder), is_eval=True, for_training=False)
    model.model_type = arguments.model_type or target.name
    model.half().save_pretrained(target)
    size = sum(p.stat().st_size for p in target.iterdir())
    if size > LIMIT:
        raise ValueError(f"{target} has {size} bytes, more than the {LIMIT} that a packaged model may have")
    history = read_jsonl(run / "log.txt")
    steps = [r for r in history if r.get("event") == "step"]
    tests = list(read_jsonl(run / "evaluate.txt"))
    notes = {
        "parameters": model.show_n_params(False),
        "iterations": steps[-1]["step"] if steps else None,
        "last training loss": round(steps[-1]["loss"], 4) if steps else None,
        "evaluations": [
            {k: (round(v, 4) if isinstance(v, float) else v) for k, v in row.items() if k != "event"}
            for row in tests
        ][-4:],
        "config.yaml": "".join(
            line
            for line in (run / "config.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
            if not line.strip().startswith(
                ("output_dir:", "job_id:", "resume_ckpt_path:", "weights: /")
            )  # of that machine
        ),
        "versions": json.loads((run / "versions.json").read_text(encoding="utf-8")),
    }
    (target / "training.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
