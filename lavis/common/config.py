"""Recipes: defaults < recipe file(s) < options, typed and checked before anything is built.

A recipe is YAML with three sections. `model` names an `arch` and a `model_type` and overrides keys of its
config; `datasets` maps names to their settings; `run` says what to do. `base` beside them names a recipe
over which this one goes. The defaults of `run` are those of
`lavis.runners.RunConfig` and of the task's `Config`; the two other sections are checked by the
rooms that they belong to. Recipes of the original library load unchanged: see `LEGACY_RUN_KEYS` and
`LEGACY_MODEL_KEYS`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis.common import elsewhere, moved
from lavis.common.files import write_text
from lavis.common.registry import registry
from lavis.common.values import convert, suggest, type_name, typed

__getattr__ = moved.names_of(__name__)

if typing.TYPE_CHECKING:
    from lavis.runners.settings import RunConfig

logger = logging.getLogger(__name__)

D = TypeVar("D")

SECTIONS = ("model", "datasets", "run")
RECIPES = Path(__file__).parent.parent / "recipes"

# keys of the original's `run` that are accepted and have no effect here, with the reason
LEGACY_RUN_KEYS = {
    "world_size": "the number of processes comes from torchrun",
    "dist_url": "the meeting point comes from torchrun",
    "distributed": "a process group is joined whenever torchrun started one",
    "rank": "the rank comes from torchrun",
    "gpu": "the device number comes from torchrun",
    "dist_backend": "nccl on CUDA, gloo elsewhere",
    "use_dist_eval_sampler": "every evaluation is sharded and gives the same records on any number of ranks",
}

# keys of the original's `model` that have another name or no effect here
LEGACY_MODEL_KEYS = {
    "load_finetuned": "weights: finetuned, or pretrained when it is false",
    "load_pretrained": "weights: none when it is false",
    "finetuned": "weights: <path>",
    "vit_grad_ckpt": "grad_checkpointing: 0 when it is false",
    "vit_ckpt_layer": "grad_checkpointing: the same number, when vit_grad_ckpt is true",
    "timesformer": "frames, image_size, grad_checkpointing",
    "vit_type": "model_type: one of that size",
    "vit_drop_path_rate": "vit.drop_path",
    "vit_layer_norm_epsilon": "vit.layer_norm_eps",
    "temp": "ignored: every temperature starts at 0.07 and is learned",
    "med_config_path": "text: the sizes in that file, where it is one of your own",
    "use_grad_checkpoint": "grad_checkpointing: every block when it is true, else 0",
    "freeze_vit": "parts.visual_encoder.frozen",
    "vit_precision": "parts.visual_encoder.dtype: float16 of fp16, float32 of fp32",
    "drop_path_rate": "vit.drop_path",
    "vit_model": "model_type: one with that image encoder",
}
# of these the types tell what they are; the others are of any section
_FLAGS: dict[str, Any] = {
    "load_finetuned": bool,
    "load_pretrained": bool,
    "vit_grad_ckpt": bool,
    "vit_ckpt_layer": int,
    "vit_drop_path_rate": float,
    "vit_layer_norm_epsilon": float,
    "use_grad_checkpoint": bool,
    "freeze_vit": bool,
    "drop_path_rate": float,
}
_FORMATS = {"fp16": "float16", "fp32": "float32"}  # of vit_precision
_VIT_KEYS = {
    "vit_drop_path_rate": "drop_path",
    "drop_path_rate": "drop_path",
    "vit_layer_norm_epsilon": "layer_norm_eps",
}
_BERT_KEYS = {
    "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
    "intermediate_size": "hidden", "max_position_embeddings": "max_positions", "encoder_width": "memory_width",
    "hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "layer_norm_eps", "initializer_range": "init_std",
}  # fmt: skip
# keys that only the original's own model files have, which don't name their model type
_ORIGINAL_ONLY = {
    "finetuned",
    "vit_type",
    "med_config_path",
    "timesformer",
    "len_tokenizer",
    "load_finetuned",
}

# model types that recipes of the original name and its own registry lacks
LEGACY_MODEL_TYPES = {("blip_caption", "large"): "large_coco"}

_TIMESFORMER_KEYS = {
    "n_frms": "frames", "image_size": "image_size", "use_grad_ckpt": "vit_grad_ckpt", "ckpt_layer": "vit_ckpt_layer",
    "drop_path_rate": "vit_drop_path_rate",
}  # fmt: skip
_TIMESFORMER_FIXED = {"patch_size": 16, "attn_drop_rate": 0.0, "drop_rate": 0.0}
_EVERY_BLOCK = 1000  # more than any transformer has


# ------------------------------------------------------------------------------------------ reading
def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as "blip/caption_coco"."""
    return sorted(p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: an existing path, or the name of a packaged recipe.

    Raises:
        FileNotFoundError: neither; near names are suggested.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    packaged = RECIPES / f"{name}.yaml"
    if not path.is_absolute() and packaged.is_file():
        return packaged
    hint = suggest(Path(name).with_suffix("").as_posix(), recipe_names())
    if re.match(r"\w+(\.\w+)+=", str(name)):  # run.max_iters=5, but not the folder lr=1e-4
        hint = f" To change a key of a recipe: --options {name}"
    raise FileNotFoundError(
        f"there is no recipe file {str(name)!r} and no packaged recipe of that name.{hint}"
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML file as a dict of plain values (interpolations such as ${run.seed} not yet resolved).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no valid YAML, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: expected a mapping with the sections {', '.join(SECTIONS)}")
    content = OmegaConf.to_container(config, resolve=False)
    if not content:
        raise ValueError(f"{path}: the file is empty; expected the sections {', '.join(SECTIONS)}")
    return typing.cast(dict[str, Any], content)


_REFERENCE = re.compile(r"\$\{\s*[\w.\-\[\]]+\s*\}")


def read_layers(name: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """(file, content) of a recipe and, before it, of the recipes that it goes over by its key `base`.

    Raises:
        FileNotFoundError: there is no such recipe. ValueError: as `read_yaml`; a recipe goes over itself.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    above: Any = name
    while above is not None:
        path = find_recipe(above)
        if str(path) in dict(layers):
            raise ValueError(f"{path}: the recipe goes over itself, by its key base")
        content = read_yaml(path)
        above = content.pop("base", None)
        if above is not None and not isinstance(above, str):
            raise ValueError(f"{path}: base is {above!r}; the name or path of a recipe was expected")
        layers.insert(0, (str(path), content))
    return layers


def calls(text: str) -> bool:
    """Whether a text has interpolations that do more than name a key, such as ${oc.env:HOME}, however nested."""
    while "${" in text:
        shorter = _REFERENCE.sub("_", text)
        if shorter == text:
            return True
        text = shorter
    return False


def home(text: str) -> str:
    """A path that begins with ~ or ~somebody as one that begins with the home folder; other texts as they are."""
    if not re.match(r"~[\w.-]*(/|\\|$)", text):
        return text
    return str(Path(text).expanduser()) if os.path.expanduser(text) != text else text  # noqa: PTH111


def without_doors(source: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping whose `~/` are home folders, and whose interpolations name nothing but other keys.

    Raises:
        ValueError: an interpolation that calls something, such as ${oc.env:HOME}. What it gives would be written
            into config.yaml, checkpoints and logs, and a recipe may come from anybody.
    """

    def walk(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {k: walk(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(v, f"{key}[{i}]") for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value
        if calls(value):
            raise ValueError(
                f"{source + ': ' if source else ''}{key} is {value[:80]!r}; an interpolation may only name another "
                "key, such as ${run.seed}: neither the environment nor anything else is read. Give the value as an "
                "option instead"
            )
        return home(value)

    return typing.cast(dict[str, Any], walk(content, ""))


def read_resolved(path: Path) -> dict[str, Any]:
    """`read_yaml` with interpolations resolved.

    Raises:
        ValueError: as `read_yaml`, or an interpolation names no key, or more than a key.
    """
    try:
        resolved = OmegaConf.to_container(
            OmegaConf.create(without_doors(str(path), read_yaml(path))), resolve=True
        )
    except OmegaConfBaseException as e:
        raise ValueError(f"{path}: {' '.join(str(e).split())}") from e
    return typing.cast(dict[str, Any], resolved)


_KEY = re.compile(r"[A-Za-z_][\w\-]*(\.[\w\-]+)*")


def parse_options(options: Sequence[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    """Command-line options as a flat mapping from dotted key to value.

    Args:
        options: `["run.max_epoch=5", "model.load_finetuned=False"]`, the paper's pairs
            `["run.max_epoch", "5", …]`, both mixed, or a mapping of dotted keys. Values are YAML: numbers,
            true, null, [lists], {maps} and 'quoted text'.

    Raises:
        ValueError: a key without a value, a malformed key, or a value that is no YAML.
    """
    if not options:
        return {}
    if isinstance(options, Mapping):
        return {str(k): v for k, v in options.items()}
    if isinstance(options, str):
        raise ValueError(f"options must be a list such as ['run.max_epoch=5'], not the text {options!r}")
    flat: dict[str, Any] = {}
    tokens = [str(t) for t in options]
    i = 0
    while i < len(tokens):
        key, equals, text = tokens[i].partition("=")
        i += 1
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"option {tokens[i - 1]!r}: expected key=value or key value, such as run.max_epoch=5; "
                "put values with spaces in quotes: 'run.test_splits=[val, test]'"
            )
        if not equals:
            if i == len(tokens):
                raise ValueError(f"option {key!r} has no value; write {key}=value")
            text = tokens[i]
            i += 1
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        except (yaml.YAMLError, OmegaConfBaseException) as e:
            raise ValueError(f"option {key}: the value {text!r} is not valid YAML") from e
        flat[key] = typing.cast(dict[str, Any], value)["value"]
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for dotted, value in flat.items():
        node = out
        *parents, last = dotted.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"option {dotted}: {parent!r} was given a plain value by another option")
        node[last] = value
    return out


def _dotted(value: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield f"{prefix}{k}"
            yield from _dotted(v, f"{prefix}{k}.")


def _of_timesformer(section: Mapping[str, Any]) -> dict[str, Any]:
    """The original's sub-section of ALPRO's models as keys of the model."""
    known = {**_TIMESFORMER_KEYS, **dict.fromkeys(_TIMESFORMER_FIXED)}
    if not isinstance(section, Mapping) or set(section) - set(known):
        raise ValueError(
            f"model.timesformer is {section!r}; expected a mapping with some of {', '.join(known)}"
        )
    for key, value in section.items():
        if key in _TIMESFORMER_FIXED and float(value) != _TIMESFORMER_FIXED[key]:
            raise ValueError(
                f"model.timesformer.{key} is {value!r}; here it is always {_TIMESFORMER_FIXED[key]}"
            )
    return {_TIMESFORMER_KEYS[key]: value for key, value in section.items() if key in _TIMESFORMER_KEYS}


def _of_bert(path: str) -> dict[str, Any]:
    """A file that the original's `med_config_path` names as keys of `model.text`; its own files tell nothing new."""
    file = Path(path).expanduser()
    if not file.is_file():
        if path.startswith("configs/models/"):
            return {}
        raise FileNotFoundError(f"model.med_config_path: there is no file {path}")
    content = json.loads(file.read_text(encoding="utf-8"))
    return {ours: content[theirs] for theirs, ours in _BERT_KEYS.items() if theirs in content}


def translate_model(section: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A recipe's section `model` with the original's keys put into ours; the rest is for the model's own config.

    Args:
        section: the keys, the original's or ours. sources: dotted key to the file or option that set it, for errors.

    Raises:
        ValueError: a value of another type than its key has. FileNotFoundError: a file that a key names.
    """
    if _is_of_original(section.get("arch")):
        return dict(section)
    section = {**section, **_of_timesformer(section.get("timesformer") or {})}
    model = {k: v for k, v in section.items() if k not in LEGACY_MODEL_KEYS}
    known = LEGACY_MODEL_TYPES.get((str(model.get("arch")), str(model.get("model_type"))))
    if known is not None:
        model["model_type"] = known
    flags: dict[str, Any] = {}
    for key, kind in _FLAGS.items():
        if section.get(key) is not None:
            try:
                flags[key] = convert(section[key], kind)
            except ValueError as e:
                place = (sources or {}).get(f"model.{key}", "config")
                expected = type_name(kind)
                raise ValueError(f"{place}: model.{key} is {section[key]!r}; expected {expected}") from e
    if "weights" not in model:
        finetuned = flags.get("load_finetuned", flags.get("load_pretrained", True))
        if finetuned and section.get("finetuned"):
            model["weights"] = section["finetuned"]
        elif finetuned and "load_finetuned" in flags:
            model["weights"] = "finetuned"
        elif not finetuned and not flags.get("load_pretrained", True):
            model["weights"] = "none"
        elif not finetuned:
            model["weights"] = "pretrained"
        if model.get("weights", "pretrained") != "pretrained":
            model.pop("pretrained", None)  # named in the original's recipes whether it is read or not
    if "vit_grad_ckpt" in flags:
        blocks = flags.get("vit_ckpt_layer", _EVERY_BLOCK) if flags["vit_grad_ckpt"] else 0
        model.setdefault("grad_checkpointing", blocks)
    elif "use_grad_checkpoint" in flags:
        model.setdefault("grad_checkpointing", _EVERY_BLOCK if flags["use_grad_checkpoint"] else 0)
    tower: dict[str, Any] = {"frozen": flags["freeze_vit"]} if "freeze_vit" in flags else {}
    if section.get("vit_precision") is not None:
        precision = section["vit_precision"]
        if precision not in _FORMATS:
            raise ValueError(f"model.vit_precision is {precision!r}; it should be {' or '.join(_FORMATS)}")
        tower["dtype"] = _FORMATS[precision]
    if tower:
        parts = dict(model.get("parts") or {})
        given = parts.get("visual_encoder") or {}
        parts["visual_encoder"] = tower | ({"source": given} if isinstance(given, str) else dict(given))
        model["parts"] = parts
    vit = {ours: flags[theirs] for theirs, ours in _VIT_KEYS.items() if theirs in flags}
    if vit:
        model["vit"] = {**vit, **(model.get("vit") or {})}
    text = _of_bert(str(section["med_config_path"])) if section.get("med_config_path") else {}
    if text:
        model["text"] = {**text, **(model.get("text") or {})}
    if "model_type" not in model and section.keys() & _ORIGINAL_ONLY:
        guessed = _type_of(section)
        if guessed is not None:
            model["model_type"] = guessed
    return model


def _is_of_original(arch: Any) -> bool:
    """Whether a model class is one of a program's own that reads the original's keys itself."""
    return arch in registry.list_models() and not getattr(
        registry.get_model_class(str(arch)), "PRESETS", None
    )


def _type_of(section: Mapping[str, Any]) -> str | None:
    """Which model type a section of the original's own model files means; they don't name it.

    Those with the same weights first, else the first of the same size.
    """
    if "arch" not in section:
        return None
    presets = getattr(registry.get_model_class(str(section["arch"])), "PRESETS", {})
    official = {name: p for name, p in presets.items() if not name.startswith("tiny")}
    if section.get("vit_type"):
        width = {"base": 768, "large": 1024}.get(str(section["vit_type"]))
        if width is None:
            raise ValueError(f"model.vit_type is {section['vit_type']!r}; it should be base or large")
        official = {name: p for name, p in official.items() if p.config.vit.width == width}
    for key in ("finetuned", "pretrained"):
        for name, preset in official.items():
            if section.get(key) and section[key] in (preset.weights, preset.pretrained):
                return str(name)
    return next(iter(official), None)


# ------------------------------------------------------------------------------------------ the config
class Config:
    """A resolved, checked configuration.

    Attributes:
        run: `RunConfig`, typed.
        task_config: the task's own `Config`, typed; None where no task is named.
        model: dict for `lavis.models.build_model`. datasets: name to settings.
        sources: dotted key to the file or option that set it.
    """

    def __init__(self, args: Any = None, *, layers: Sequence[tuple[str, dict[str, Any]]] = ()) -> None:
        """The paper's constructor; elsewhere use `load` or `from_dict`.

        Args:
            args: has `cfg_path` and `options`, as the parsed command line of a script.
            layers: (source, content) pairs, later ones over earlier ones, in place of `args`.
        """
        if args is not None:
            layers = self._read(args.cfg_path, getattr(args, "options", None))
        self.sources: dict[str, str] = {}
        self._check_family(layers)
        for source, content in layers:
            self._check_sections(source, content)
            self.sources.update(dict.fromkeys(_dotted(content), source))
        merged = self._merge(layers)
        self.model = self._model_section(merged.get("model") or {})
        self.datasets = self._datasets_section(merged.get("datasets") or {})
        self.run: RunConfig
        self.task_config: Any
        self.run, self.task_config = self._run_section(merged.get("run") or {})

    @classmethod
    def load(
        cls,
        recipe: str | Path | Sequence[str | Path],
        options: Sequence[str] | Mapping[str, Any] | None = None,
    ) -> Config:
        """Read one or several recipes, later ones over earlier ones, and options over all.

        Args:
            recipe: path of a YAML file, name of a packaged recipe such as "blip/caption_shapes", or several.
            options: see `parse_options`.

        Raises:
            FileNotFoundError: there is no such recipe.
            ValueError: a file or option is malformed, or a key or value is not known.
        """
        return cls(layers=cls._read(recipe, options))

    @staticmethod
    def _read(
        recipe: str | Path | Sequence[str | Path], options: Sequence[str] | Mapping[str, Any] | None
    ) -> list[tuple[str, dict[str, Any]]]:
        names = [recipe] if isinstance(recipe, (str, Path)) else list(recipe)
        layers = [layer for name in names for layer in read_layers(name)]
        if options:
            layers.append(("options", _nested(parse_options(options))))
        return layers

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], options: Sequence[str] | Mapping[str, Any] | None = None
    ) -> Config:
        """The same from a mapping with the sections `model`, `datasets` and `run`."""
        layers = [("config", dict(content))]
        if options:
            layers.append(("options", _nested(parse_options(options))))
        return cls(layers=layers)

    # ------------------------------------------------------------------ checks
    @staticmethod
    def _check_family(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Refuse a recipe of a family that is not here before its keys, none of which would be known."""
        for source, content in layers:
            model = content.get("model")
            arch = model.get("arch") if isinstance(model, Mapping) else None
            answer = elsewhere.where(arch) if arch is not None else ""
            if answer and arch not in registry.list_models():
                raise ValueError(f"{source}: model.arch is {arch!r}: {answer}")

    @staticmethod
    def _check_sections(source: str, content: Mapping[str, Any]) -> None:
        place = f"{source}: " if source else ""
        for name, value in content.items():
            if name not in SECTIONS:
                from lavis.runners.settings import RunConfig

                known = [f.name for f in dataclasses.fields(RunConfig)]
                hint = f" Did you mean run.{name}?" if name in known else suggest(name, SECTIONS)
                raise ValueError(f"{place}there is no section {name!r}.{hint}")
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"{place}section {name} is {value!r}; expected a mapping of keys to values")

    @staticmethod
    def _merge(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        contents = [{k: v for k, v in without_doors(s, c).items() if v is not None} for s, c in layers]
        try:
            merged = OmegaConf.merge(*map(OmegaConf.create, contents)) if contents else OmegaConf.create({})
            return typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
        except OmegaConfBaseException as e:
            places = ", ".join(s for s, _ in layers if s)
            raise ValueError(f"{places}: {' '.join(str(e).split())}") from e

    def _model_section(self, section: dict[str, Any]) -> dict[str, Any]:
        """The section with the original's keys put into ours; the rest is for the model's own config."""
        return translate_model(section, self.sources)

    def _datasets_section(self, section: dict[str, Any]) -> dict[str, dict[str, Any]]:
        for name, settings in section.items():
            if settings is not None and not isinstance(settings, Mapping):
                place = self.sources.get(f"datasets.{name}", "config")
                raise ValueError(
                    f"{place}: datasets.{name} is {settings!r}; expected a mapping of its settings"
                )
        return {str(name): dict(settings or {}) for name, settings in section.items()}

    def _run_section(self, section: dict[str, Any]) -> tuple[RunConfig, Any]:
        from lavis.runners.settings import RunConfig

        ignored = [k for k in section if k in LEGACY_RUN_KEYS]
        if ignored:
            logger.info("run keys without effect here: %s", ", ".join(ignored))
        section = {k: v for k, v in section.items() if k not in LEGACY_RUN_KEYS}
        if section.get("val_freq", 1) is None:  # left empty in two of the original's recipes
            del section["val_freq"]
        run_keys = {f.name for f in dataclasses.fields(RunConfig)}
        name = section.get("task")
        task_class: Any = None
        task_keys: set[str] = set()
        if name is not None:
            if name not in registry.list_tasks():
                place = self.sources.get("run.task", "config")
                raise ValueError(f"{place}: run.task is {name!r}.{suggest(name, registry.list_tasks())}")
            task_class = registry.get_task_class(name).Config
            task_keys = {f.name for f in dataclasses.fields(task_class)}
            without = getattr(registry.get_task_class(name), "LEGACY_KEYS", {})
            told = [k for k in section if k in without and k not in task_keys]
            if told:
                logger.info("run keys without effect on the task %s: %s", name, ", ".join(told))
            section = {k: v for k, v in section.items() if k not in told}
        for key in section:
            if key not in run_keys | task_keys:
                place = self.sources.get(f"run.{key}", "config")
                hint = f" There is model.{key}." if key in self.model else suggest(key, run_keys | task_keys)
                raise ValueError(f"{place}: run.{key} is no known key.{hint}")
        run = typed(RunConfig, {k: v for k, v in section.items() if k in run_keys}, self.sources, "run.")
        if task_class is None:
            return run, None
        rest = {k: v for k, v in section.items() if k not in run_keys}
        return run, typed(task_class, rest, self.sources, "run.")

    # ------------------------------------------------------------------ writing
    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default of `run` included; `Config.from_dict` gives an equal config back."""
        run = dataclasses.asdict(self.run)
        run.update({} if self.task_config is None else dataclasses.asdict(self.task_config))
        datasets = {name: dict(section) for name, section in self.datasets.items()}
        return {"model": dict(self.model), "datasets": datasets, "run": run}

    def to_yaml(self) -> str:
        """The same as YAML: a recipe that repeats the run."""
        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))

    def save(self, path: str | Path) -> Path:
        """Write `to_yaml()` to a file, atomically."""
        return write_text(path, self.to_yaml())

    def pretty_print(self) -> None:
        """Print the resolved configuration."""
        print(self.to_yaml(), end="")

    # ------------------------------------------------------------------ the paper's names
    @property
    def config(self) -> DictConfig:
        """The whole configuration with attribute access."""
        return OmegaConf.create(self.to_dict())

    @property
    def run_cfg(self) -> DictConfig:
        """Section `run` with attribute access and `.get`."""
        return typing.cast(DictConfig, self.config.run)

    @property
    def model_cfg(self) -> DictConfig:
        """Section `model` with attribute access and `.get`."""
        return typing.cast(DictConfig, self.config.model)

    @property
    def datasets_cfg(self) -> DictConfig:
        """Section `datasets` with attribute access and `.get`."""
        return typing.cast(DictConfig, self.config.datasets)
