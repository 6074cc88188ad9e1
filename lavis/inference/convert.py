"""Any checkpoint that `load_model` can read, written as a folder of this library, of transformers, or as an official
file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lavis.common.files import existing_folder, replace_folder
from lavis.models import BaseModel, load_model
from lavis.models.loading import PartSettings

Form = Literal["lavis", "transformers", "official"]
FORMS: tuple[Form, ...] = ("lavis", "transformers", "official")
OFFICIAL_NAME = "checkpoint.pth"
_HALF_LIMIT = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        arch, model_type: the model. tensors: how many entries its state has. bytes: of its weights.
        half: whether matrices are stored as float16, and the largest difference that this made.
        left_out: entries of the model that the form has no place for.
        licence: of the preset's weights, as far as it is stated.
    """

    arch: str
    model_type: str | None
    tensors: int
    bytes: int
    half: bool
    largest_difference: float
    licence: str
    left_out: tuple[str, ...] = ()


def convert(
    source: str,
    out: str | Path,
    name: str | None = None,
    model_type: str | None = None,
    half: bool = False,
    for_training: bool = False,
    activation: str | None = None,
    whole: bool = False,
    merge: bool = False,
    form: Form = "lavis",
    parts: Mapping[str, Any] | None = None,
) -> Converted:
    """Write a model's weights in one of three forms, and compare them with what was read.

    Args:
        source: a file, folder, URL or Hugging Face id; see `load_model`.
        out: the folder to write; it must not exist, or be empty.
        name, model_type: of the model; not needed for a folder of this library.
        half: store matrices as float16 (they are read as float32); vectors and single numbers stay as they are.
        for_training: keep EMA copies and queues, where the source has them.
        activation: of a checkpoint that does not say it; see `load_model`.
        whole: leave nothing out: frozen parts, and the weights that adapters belong to, are written, too.
        merge: add adapters (LoRA) to the weights; then all of these are written.
        form: "lavis": config.json, model.safetensors and the vocabulary, with the official names and shapes where all
            is in one file. "transformers": a whole folder that its class for the model loads, with its processors'
            files. "official": `checkpoint.pth` for the original library; frozen parts that are as their sources gave
            them are left out, as in the published files.
        parts: where parts come from that the source does not hold; see `load_model`.

    Raises:
        ValueError: weights that do not fit the model, the form or float16; the folder is in use.
        OSError: the source is not there.
    """
    folder = Path(out).expanduser()
    if folder.is_file() or (existing_folder(folder) is not None and any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; choose another folder, or delete it")
    if name is None:
        model = load_model(source, activation=activation, for_training=for_training, parts=parts)
    else:
        model = load_model(
            name, model_type, checkpoint=source, activation=activation, for_training=for_training, parts=parts
        )
    if merge and model.lora is None:
        raise ValueError(f"{source} has no adapters that could be merged")
    if merge or form != "lavis":
        model.merge_lora()
    before = _state(model)
    if half and model.lora is not None:
        raise ValueError(
            f"{source} holds adapters, which stay as they are; add them to the weights with merge"
        )
    whole = whole or form == "transformers"
    if half:
        _halve(model, () if whole else tuple(f"{name}." for name in model.taken))
    left_out: list[str] = []
    replace_folder(folder, partial(_write, model, form=form, whole=whole, left_out=left_out))
    cls, model_type, config, parts = type(model), model.model_type, model.config, dict(model.parts)
    del model
    try:
        if form == "official":
            again = cls.from_file(config, folder / OFFICIAL_NAME, parts=PartSettings(parts))
            again.model_type = model_type
        else:
            formats = {part: {"dtype": known.dtype} for part, known in parts.items() if known.dtype}
            again = load_model(str(folder), for_training=for_training, parts=formats or None)
        kept = {key: tensor for key, tensor in before.items() if key not in left_out}
        after = {key: tensor for key, tensor in _state(again).items() if key not in left_out}
        largest = _compare(kept, after, half, folder)
    except Exception:
        shutil.rmtree(folder)  # it was made here, and is not what it should be
        raise
    preset = again.preset(again.model_type) if again.model_type else None
    return Converted(
        arch=again.registered_name,
        model_type=again.model_type,
        tensors=len(kept),
        bytes=sum(
            path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".pth")
        ),
        half=half,
        largest_difference=largest,
        licence=preset.licence if preset else "not stated",
        left_out=tuple(left_out),
    )


def _write(model: BaseModel, folder: Path, form: Form, whole: bool, left_out: list[str]) -> None:
    """Write a folder in a form.

    Args:
        left_out: takes the names of entries that the form has no place for.
    """
    if form == "transformers":
        left_out.extend(model.save_transformers(folder))
        return
    # what is left out goes by the names of its own source
    official = form == "official" or (model.lora is None and (whole or not model.taken))
    state = model.official_state() if official else None
    if form == "lavis" or state is None:
        model.save_pretrained(folder, state_dict=state, whole=whole)
        return
    folder.mkdir(parents=True, exist_ok=True)
    parts = () if whole else tuple(f"{name}." for name in model.taken)
    trimmed = {key: tensor.cpu() for key, tensor in state.items() if not key.startswith(parts)}
    torch.save({"model": trimmed}, folder / OFFICIAL_NAME)


def _state(model: BaseModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _halve(model: BaseModel, left_out: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or parameter.dtype != torch.float32 or name.startswith(left_out):
            continue
        if not parameter.isfinite().all() or float(parameter.detach().abs().max()) > _HALF_LIMIT:
            raise ValueError(f"{name} has values beyond float16's range; convert without half")
        parameter.data = parameter.data.half()


def _compare(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], half: bool, folder: Path
) -> float:
    """The largest difference.

    Raises:
        ValueError: there is one that there should not be.
    """
    largest = 0.0
    wrong = sorted(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        wanted = old.half().float() if half and old.ndim >= 2 and old.dtype == torch.float32 else old
        if not torch.equal(wanted, new) and not torch.equal(old, new):
            wrong.append(name)
        elif half and old.is_floating_point() and old.numel():
            largest = max(largest, float((old.float() - new.float()).abs().max()))
    if wrong:
        raise ValueError(f"{folder} does not give back what was read: {', '.join(sorted(wrong)[:4])} differ")
    return largest
