"""Model families of the original that are not here, and where to get them."""

from __future__ import annotations

import re

_OWN = "in an environment of its own"
_ORIGINAL = "the original's repository has it (github.com/salesforce/LAVIS), " + _OWN
INSTRUCT = f"what InstructBLIP was trained with (its data sets and processors of instructions) is not here; {_ORIGINAL}"
X_INSTRUCT = f"X-InstructBLIP, with audio and 3D, is not here; {_ORIGINAL}"
DIFFUSION = f"BLIP-Diffusion is not here; diffusers has it (BlipDiffusionPipeline), and {_ORIGINAL}"
PNP_VQA = f"PNP-VQA is not here; {_ORIGINAL}"
IMG2LLM = f"Img2LLM (img2prompt_vqa) is not here; {_ORIGINAL}"
ULIP = "ULIP, of point clouds, is not here; its authors have it (github.com/salesforce/ULIP)"

# Names of models, recipes' `model.arch` and modules; the first expression that matches tells.
_FAMILIES = (
    (r"xinstruct|blip2_vicuna_x|discrn|beats|clip_vit_g", X_INSTRUCT),
    (r"diffusion", DIFFUSION),
    (r"pnp", PNP_VQA),
    (r"img2prompt|img2llm", IMG2LLM),
    (r"ulip", ULIP),
)


def where(name: object) -> str:
    """Where a family is that a name belongs to; "" for other names."""
    return next((answer for pattern, answer in _FAMILIES if re.search(pattern, str(name).lower())), "")
