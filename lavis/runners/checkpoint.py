"""Checkpoints: a folder with the model's weights and, for resuming, `training_state.pt`.

The weights are written by the model's `save_pretrained`, so the folder is a model checkpoint too. Entries
that it leaves out because only training needs them go into `extra.safetensors`; those that it leaves out because they
are as their source gave them (frozen parts, weights under adapters) are not written, and compared by their digests when
a run is resumed. `training_state.pt` holds plain data only (tensors, numbers, text, lists, dicts) and is read as such:
nothing in it can be executed.
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lavis.common import dist
from lavis.common.files import existing_folder, replace_folder
from lavis.models import parts
from lavis.models.folders import CONFIG_NAME, read_description
from lavis.nn.lora import is_adapter
from lavis.runners import parallel, provenance

LAST, BEST = "checkpoint_last", "checkpoint_best"
STATE_NAME = "training_state.pt"
EXTRA_NAME = "extra.safetensors"
WEIGHTS_NAME = "model.safetensors"
FORMAT = 1
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


# ------------------------------------------------------------------------------------------ weights
def _identity(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What tied entries have in common; None for empty tensors, which have no storage to share."""
    if parallel.is_spread(tensor):
        return (id(tensor),)
    if tensor.numel() == 0:
        return None
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))


def _first_names(state: dict[str, torch.Tensor], written: set[str]) -> dict[str, str]:
    """Each entry's name in the file: itself, or for tied entries the one that was written."""
    named = {_identity(t): k for k, t in state.items() if k in written and _identity(t) is not None}
    return {k: k if k in written else named.get(_identity(t), k) for k, t in state.items()}


def _unique(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies to write, tied entries once: safetensors refuses shared storage."""
    first: dict[Any, str] = {}
    return {
        k: t.detach().cpu().contiguous().clone()
        for k, t in state.items()
        if first.setdefault(_identity(t) or k, k) == k
    }


def _layout(folder: Path) -> dict[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a folder, without reading the tensors."""
    layout = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as f:
            for key in f.keys():  # noqa: SIM118
                part = f.get_slice(key)
                layout[key] = (_DTYPES.get(part.get_dtype()), tuple(part.get_shape()))
    return layout


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder; those of `extra.safetensors` come last and win."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors"), key=lambda p: (p.name == EXTRA_NAME, p.name)):
        try:
            with safe_open(path, framework="pt") as f:
                tensors.update({key: f.get_tensor(key) for key in f.keys()})  # noqa: SIM118
        except SafetensorError as e:
            raise ValueError(f"{path} is damaged ({e}); resume from another checkpoint") from e
    return tensors


def write_weights(model: nn.Module, folder: Path, gathered: dict[str, torch.Tensor] | None = None) -> None:
    """Write a model so that `load_weights` restores every entry of its state_dict bit for bit.

    Args:
        gathered: the entries of a model that is spread over processes.
    """
    state = model.state_dict() if gathered is None else gathered
    own = getattr(model, "save_pretrained", None)
    if own is not None:
        own(folder) if gathered is None else own(folder, state_dict=gathered)
    else:
        save_file(_unique(state), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    # what save_pretrained left out, or stored in another number format, is kept beside it
    layout = _layout(folder)
    whole = {k for k, t in state.items() if layout.get(k) == (t.dtype, tuple(t.shape))}
    names = _first_names(state, whole)
    unwritten = [k for k in state if names[k] not in layout]
    elsewhere = {key for _, held in _left_out(model, folder, unwritten) for key in held}
    extra = _unique({k: t for k, t in state.items() if names[k] not in whole and k not in elsewhere})
    if extra:
        save_file(extra, folder / EXTRA_NAME)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into a model, in place, strictly.

    Raises:
        ValueError: an entry is missing or has another shape; the model is then of another kind. Or a classifier's
            classes are others.
    """
    check_folder = getattr(model, "check_folder", None)
    if check_folder is not None:
        check_folder(folder)
    stored = _stored(folder)
    state = model.state_dict(keep_vars=True)
    names = _first_names(state, set(stored))
    missing = [k for k in state if names[k] not in stored]
    elsewhere = _compared(model, folder, state, missing)
    missing = [k for k in missing if k not in elsewhere]
    other = [k for k in state if names[k] in stored and stored[names[k]].shape != state[k].shape]
    if missing or other:
        key = (missing or other)[0]
        problem = "is missing" if missing else f"has shape {tuple(stored[names[key]].shape)}"
        raise ValueError(
            f"{folder} does not fit {type(model).__name__}: {key} {problem} "
            f"({len(missing)} entries missing, {len(other)} of another shape); use the model of that run"
        )
    for key, tensor in state.items():
        if names[key] in stored:
            tensor.copy_(parallel.part_like(stored[names[key]], tensor))


def _left_out(
    model: nn.Module, folder: Path, keys: Sequence[str]
) -> Iterator[tuple[parts.Reference, list[str]]]:
    """What a folder of the model refers to, and which of some entries, not in the folder's files, are there.

    Args:
        keys: their names.
    """
    if not hasattr(model, "taken") or not (folder / CONFIG_NAME).is_file():  # no model of this library
        return
    rest = list(keys)
    for reference in parts.references(read_description(folder), str(folder / CONFIG_NAME)):
        prefix = f"{reference.part}." if reference.part else ""
        held = [key for key in rest if key.startswith(prefix) and not is_adapter(key)]
        rest = [key for key in rest if key not in held]
        yield reference, held


def _compared(
    model: nn.Module, folder: Path, state: Mapping[str, torch.Tensor], keys: Sequence[str]
) -> set[str]:
    """Those of some entries that a folder leaves out; the model has to hold what the folder's run did.

    Raises:
        ValueError: it holds something else.
    """
    out: set[str] = set()
    for reference, held in _left_out(model, folder, keys):
        found = reference.digest_in(model, {key: state[key] for key in held}, parallel.full)
        if found != reference.sha256:
            raise ValueError(
                f"{folder} was trained with other weights as {reference.what} than {reference.source} has now: the "
                f"SHA-256 of its entries is {found}, {reference.sha256} was expected"
            )
        out |= set(held)
    return out


# ------------------------------------------------------------------------------------------ random streams
def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random stream of this process, as plain data."""
    numpy_state: Any = np.random.get_state(legacy=False)
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` gave. A stream of another kind of device is left as it is."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if state["mps"] is not None and device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
    numpy_state = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["pos"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))


def seed_all(seed: int) -> None:
    """Start every global random stream of this process from a seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ------------------------------------------------------------------------------------------ folders
def save(
    folder: Path, model: nn.Module, state: dict[str, Any] | None, recipe: provenance.Recipe | None = None
) -> None:
    """Write a checkpoint folder in place of an earlier one; a kill leaves one of the two complete.

    Called by every rank; rank 0 writes, and all know how it ended.

    Args:
        folder: its place. model: the weights. state: training state (plain data), None for weights only.
        recipe: of the run, for the comparison when it is resumed.

    Raises:
        OSError: it cannot be written, as on a full disk; the earlier one is there.
    """

    gathered = parallel.full_state(model)
    dist.from_main(lambda: _write(folder, model, gathered, state, recipe))


def _write(
    folder: Path,
    model: nn.Module,
    gathered: dict[str, torch.Tensor] | None,
    state: dict[str, Any] | None,
    recipe: provenance.Recipe | None,
) -> None:
    def write(new: Path) -> None:
        write_weights(model, new, gathered)
        if state is not None:
            torch.save({"format": FORMAT, **state}, new / STATE_NAME)
        if recipe is not None:
            provenance.write(new, recipe)

    try:
        replace_folder(folder, write)
    except (OSError, RuntimeError, SafetensorError) as e:
        number, reason = _why_not_written(e)
        if number is None:
            raise
        kept = "; the one before it is kept" if folder.exists() else ""
        raise OSError(number, f"{folder} cannot be written: {reason}{kept}") from e


def _why_not_written(error: Exception) -> tuple[int | None, str]:
    """The number and the words of a failed write; torch and safetensors raise errors of their own for it."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error)
    text = str(error)
    found = re.search(r"os error (\d+)", text)
    if found is not None:
        return int(found[1]), os.strerror(int(found[1]))
    cause = error.__context__ or error.__cause__
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno, cause.strerror or str(cause)
    if "inline_container" in text or "PytorchStreamWriter" in text or "file write failed" in text:
        return errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, most likely"  # torch does not say
    return None, ""


def state_file(folder: Path) -> Path:
    """The file with the training state of a checkpoint folder.

    Raises:
        FileNotFoundError: the folder has none: it holds weights only.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {STATE_NAME}, so a run cannot be resumed from it; "
            "to start a new run from its weights, set model.weights to this folder"
        )
    return path


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint folder.

    Raises:
        FileNotFoundError: the folder has none: it holds weights only.
        ValueError: the file is damaged, of another version, or holds anything but plain data.
    """
    path = state_file(folder)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as e:  # whatever a damaged or forged file makes the reader do
        reason = (str(e) or type(e).__name__).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"{path} is refused: it is damaged or holds more than plain data ({reason}). "
            "Nothing of it was executed; resume from another checkpoint"
        ) from e
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no training state of this library (format {FORMAT})")
    return state


def find(path: str | Path) -> Path | None:
    """The checkpoint folder meant by a path: itself, or `checkpoint_last` in a run's folder.

    Returns None if there is none. A swap that a kill cut short is finished first.
    """
    path = Path(path).expanduser()
    inside = existing_folder(path / LAST)
    if inside is not None:
        return inside
    found = existing_folder(path)
    return found if found is not None and found.is_dir() and any(found.glob("*.safetensors")) else None
