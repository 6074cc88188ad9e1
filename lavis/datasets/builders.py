"""The data sets' façade: `load_dataset`, `dataset_zoo`, and `build_datasets` for recipes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.common import hub, moved
from lavis.common.registry import registry
from lavis.common.values import suggest, typed
from lavis.datasets.base import ON_ERROR, Dataset, Plan, error_policy
from lavis.datasets.builder_classes import BaseDatasetBuilder, builder_of
from lavis.datasets.sources import Source, is_of_another_machine

logger = logging.getLogger(__name__)

__all__ = ["DatasetZoo", "build_datasets", "dataset_zoo", "load_dataset", "load_dataset_config", "make_plan"]
__path__: list[
    str
] = []  # so that the original's modules below this one can be found, see `lavis.common.moved`
__getattr__ = moved.names_of(__name__)

# What the original's configurations say of LAION's shards and of ImageNet in build_info, and our options.
_OPTIONS_THERE = {"storage": "shards", "splits": "splits"}

# What a recipe's section of a data set may hold besides the data set's own options.
_SECTION_KEYS = (
    "type", "data_type", "build_info", "vis_processor", "text_processor", "on_error", "dataset_card",
)  # fmt: skip


def load_dataset(
    name: str,
    cfg_path: str | Path | None = None,
    vis_path: str | Path | None = None,
    data_type: str | None = None,
    **options: Any,
) -> dict[str, Dataset]:
    """Load a registered data set.

    Args:
        name: one of `dataset_zoo.get_names()`.
        cfg_path: a YAML file with a section `datasets: {name: {…}}`, as in a recipe.
        vis_path: the folder with the pictures, in place of the default one under the cache root.
        data_type: "images" (the default of every picture data set).
        **options: the data set's own settings, as in a recipe (`load_dataset("shapes_caption", seed=1)`).

    Returns:
        {split: Dataset}. Without processors in the configuration, samples hold raw pictures and texts.

    Raises:
        ValueError: unknown name, type, data_type or option; the message suggests a near one.
        FileNotFoundError: an annotation file that is missing and can't be fetched.
    """
    section = _read_section(Path(cfg_path), name) if cfg_path is not None else {}
    section.update(options)
    if data_type is not None:
        section["data_type"] = data_type
    if vis_path is not None:
        kind = str(
            section.get("data_type") or getattr(registry.get_dataset_class(name), "data_type", "images")
        )
        build_info = dict(section.get("build_info") or {})
        build_info[kind] = {"storage": str(vis_path)}
        section["build_info"] = build_info
    return build_datasets(name, section)


def build_datasets(
    name: str, cfg: Mapping[str, Any] | None = None, splits: Sequence[str] | None = None
) -> dict[str, Dataset]:
    """Build a data set from a recipe's section.

    Args:
        name: the registered name.
        cfg: the section: `type`, `data_type`, `build_info` (`annotations.<split>.url|storage|md5|sha256`,
            `images.storage`), `vis_processor` and `text_processor` (`{train: {name: …, …}, eval: {…}}`),
            `on_error` (what a run does about unreadable pictures: raise or skip; by default skip in
            training only), and the data set's own options.
        splits: which splits to build; None builds all.

    Returns:
        {split: Dataset} with the processors set.

    Raises:
        ValueError: an unknown name, key, split or option.
    """
    dataset_class = registry.get_dataset_class(name)
    section = {str(k): v for k, v in (cfg or {}).items()}
    if issubclass(dataset_class, BaseDatasetBuilder):
        return _build_with(dataset_class, name, section, splits)
    plan = make_plan(dataset_class, name, section)
    known = dataset_class.split_names(plan)
    if splits is not None:
        for split in splits:
            if split not in known:
                raise ValueError(f"the data set {name!r} has no split {split!r}.{suggest(split, known)}")
    built: dict[str, Dataset] = {}
    for split in known if splits is None else splits:
        dataset = dataset_class.load(split, plan)
        dataset.on_error = error_policy(plan.on_error, dataset.training)
        when = "train" if dataset.training else "eval"
        dataset.set_processors(
            _processor(section.get("vis_processor"), when, f"{name}.vis_processor"),
            _processor(section.get("text_processor"), when, f"{name}.text_processor"),
        )
        built[split] = dataset
    return built


def _build_with(
    builder: type[BaseDatasetBuilder], name: str, section: Mapping[str, Any], splits: Sequence[str] | None
) -> dict[str, Any]:
    """The same by a builder class of the original's form; the section goes over its own configuration."""
    from omegaconf import OmegaConf

    cfg: Any = section
    if builder.DATASET_CONFIG_DICT:
        own = load_dataset_config(builder.default_config_path(str(section.get("type", "default"))))
        cfg = OmegaConf.merge(own, {key: value for key, value in section.items() if key != "type"})
    built = dict(builder(cfg).build_datasets())
    for split in splits or ():
        if split not in built:
            raise ValueError(f"the data set {name!r} has no split {split!r}.{suggest(split, built)}")
    return {split: built[split] for split in (built if splits is None else splits)}


def make_plan(dataset_class: type[Dataset], name: str, section: Mapping[str, Any]) -> Plan:
    """Merge a recipe's section over what the class says.

    Raises:
        ValueError: an unknown key, type or data_type, with a suggestion.
    """
    fields = {f.name: f for f in dataclasses.fields(dataset_class.Options)}
    for key in section:
        if key not in fields and key not in _SECTION_KEYS:
            raise ValueError(f"{name}: unknown key {key!r}.{suggest(key, [*fields, *_SECTION_KEYS])}")
    kind = str(section.get("type", "default"))
    if kind not in dataset_class.types():
        raise ValueError(f"{name}: there is no type {kind!r}.{suggest(kind, dataset_class.types())}")
    data_type = str(section.get("data_type") or dataset_class.data_type)
    if data_type != dataset_class.data_type:
        raise ValueError(
            f"{name}: there is no data_type {data_type!r}; this data set has {dataset_class.data_type!r}"
        )
    declared = dataset_class.typed_sources.get(kind, dataset_class.sources)
    sources = {split: _as_sources(source) for split, source in declared.items()}
    media = dataset_class.media
    build_info = section.get("build_info") or {}
    if not isinstance(build_info, Mapping):
        raise ValueError(f"{name}.build_info is {build_info!r}; it should map annotations and {data_type}")
    for key, value in build_info.items():
        if key == "annotations" and not isinstance(value, Mapping):
            raise ValueError(f"{name}.build_info.annotations is {value!r}; it should map splits to files")
        if key == "annotations":
            sources = _override_sources(name, sources, value)
        elif _OPTIONS_THERE.get(key) in fields:
            section = {_OPTIONS_THERE[key]: value, **section}
        elif key == data_type:
            where = f"{name}.build_info.{key}"
            storage = _storage_of(where, value)
            if not (media and is_of_another_machine(where, storage, f"{hub.under_cache_root(media)}")):
                media = storage
        elif key == "instance_id_key":  # of the original's questions about videos
            logger.info("%s.build_info.%s has no effect: answers go by question_id", name, key)
        else:
            raise ValueError(
                f"{name}.build_info: unknown key {key!r}.{suggest(key, ['annotations', data_type])}"
            )
    on_error = section.get("on_error")
    if on_error is not None and on_error not in ON_ERROR:
        raise ValueError(f"{name}.on_error is {on_error!r}; it should be {' or '.join(ON_ERROR)}")
    try:
        options: Any = typed(dataset_class.Options, {k: v for k, v in section.items() if k in fields})
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
    vis_root = None if media is None else hub.under_cache_root(media)
    return Plan(name, kind, sources, vis_root, options, on_error)


def _as_sources(value: Source | Sequence[Source]) -> tuple[Source, ...]:
    return (value,) if isinstance(value, Source) else tuple(value)


def _storage_of(where: str, value: Any) -> str:
    if not isinstance(value, Mapping) or set(value) != {"storage"} or value["storage"] is None:
        raise ValueError(f"{where} is {value!r}; it should be {{storage: FOLDER}}")
    return str(value["storage"])


def _override_sources(
    name: str, sources: Mapping[str, tuple[Source, ...]], annotations: Mapping[str, Any]
) -> dict[str, tuple[Source, ...]]:
    """Replace or add splits; a split set to null is left out."""
    out = dict(sources)
    for split, given in annotations.items():
        split = str(split)
        where = f"{name}.build_info.annotations.{split}"
        if given is None:
            out.pop(split, None)
            continue
        if not isinstance(given, Mapping):
            raise ValueError(f"{where} is {given!r}; it should be a mapping with storage and, if any, url")
        columns: dict[str, list[str | None]] = {}
        for key, value in given.items():
            if key not in ("storage", "url", "md5", "sha256"):
                raise ValueError(f"{where}: unknown key {key!r}.{suggest(key, ['storage', 'url', 'md5'])}")
            columns[str(key)] = [value] if isinstance(value, str) or value is None else list(value)
        old = out.get(split, ())
        foreign = [v for key in ("storage", "url") for v in columns.get(key, ()) if v is not None]
        if old and any(
            is_of_another_machine(where, v, str(hub.under_cache_root(old[0].storage))) for v in foreign
        ):
            continue
        if "url" not in columns and "storage" in columns:
            # Another place for the file: the published checksum need not hold for what lies there.
            columns["url"] = [None] * len(columns["storage"])
        storage = columns.get("storage") or [s.storage for s in old]
        if not storage:
            raise ValueError(f"{where}: storage is missing; name the file (relative to the cache root)")
        if any(len(values) != len(storage) for values in columns.values()):
            raise ValueError(f"{where}: {', '.join(columns)} should have equally many entries")
        empty: list[str | None] = [None] * len(storage)
        out[split] = tuple(
            Source(str(path), url, md5, sha256)
            for path, url, md5, sha256 in zip(
                storage,
                columns.get("url", empty),
                columns.get("md5", empty),
                columns.get("sha256", empty),
                strict=True,
            )
        )
    return out


def _processor(cfg: Any, when: str, where: str) -> Any:
    """The processor of one side of `{train: {name: …}, eval: {name: …}}`; None where it isn't named."""
    if cfg is None:
        return None
    if not isinstance(cfg, Mapping):
        raise ValueError(f"{where} is {cfg!r}; it should be {{train: {{name: …}}, eval: {{name: …}}}}")
    for key in cfg:
        if key not in ("train", "eval"):
            raise ValueError(f"{where}: unknown key {key!r}.{suggest(key, ['train', 'eval'])}")
    side = cfg.get(when)
    if side is None:
        return None
    if isinstance(side, str):
        side = {"name": side}
    if not isinstance(side, Mapping) or "name" not in side:
        raise ValueError(
            f"{where}.{when} is {side!r} and has no `name`; name a processor, e.g. name: blip_image_{when}"
        )
    from lavis.processors import load_processor

    return load_processor(side["name"], {k: v for k, v in side.items() if k != "name"})


def load_dataset_config(cfg_path: str | Path) -> dict[str, Any]:
    """The section of the only data set in a YAML file with `datasets: {name: {…}}`."""
    datasets = _read_datasets(Path(cfg_path))
    if len(datasets) != 1:
        raise ValueError(f"{cfg_path} names {len(datasets)} data sets; this call is for files with one")
    return dict(next(iter(datasets.values())) or {})


def _read_section(path: Path, name: str) -> dict[str, Any]:
    datasets = _read_datasets(path)
    if name not in datasets:
        raise ValueError(f"{path} has no section datasets.{name}.{suggest(name, datasets)}")
    return dict(datasets[name] or {})


def _read_datasets(path: Path) -> dict[str, Any]:
    from lavis.common.config import read_resolved

    if not path.is_file():
        raise FileNotFoundError(f"there is no data-set configuration {path}")
    loaded = read_resolved(path)
    if not isinstance(loaded, dict) or not isinstance(loaded.get("datasets"), dict):
        raise ValueError(f"{path} should be a YAML file with a section `datasets: {{name: {{…}}}}`")
    return {str(k): v for k, v in loaded["datasets"].items()}


class DatasetZoo:
    """All registered data sets with their types."""

    @property
    def dataset_zoo(self) -> dict[str, list[str]]:
        """{name: [types]}, sorted by name."""
        return {name: list(builder_of(name).DATASET_CONFIG_DICT) for name in registry.names("dataset")}

    def get_names(self) -> list[str]:
        """The names that `load_dataset` takes, sorted."""
        return list(self.dataset_zoo)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self.dataset_zoo.items())

    def __len__(self) -> int:
        return len(self.dataset_zoo)

    def __str__(self) -> str:
        rule = "=" * 50
        rows = [f"{name:<30} {', '.join(types)}" for name, types in self]
        return "\n".join([rule, f"{'Datasets':<30} Types", rule, *rows])


dataset_zoo = DatasetZoo()
