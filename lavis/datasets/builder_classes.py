"""Data sets in the original's form: a builder class, and data set classes that read annotation files.

For programs that were written for the original. A new data set of this library is one class, see
`lavis.datasets.base.Dataset`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.utils.data

from lavis.common import dist, hub
from lavis.common.registry import registry
from lavis.datasets.base import open_picture
from lavis.datasets.tables import read_records, read_table
from lavis.processors.base import BaseProcessor

log = logging.getLogger("lavis")


class BaseDatasetBuilder:
    """Builds the splits of a data set from a configuration: `data_type`, `build_info.annotations.<split>.storage` and
    `url`, `build_info.<data_type>.storage`, `vis_processor` and `text_processor`.

    A subclass names its data set classes, which are called with `vis_processor`, `text_processor`, `vis_root` and
    `ann_paths`, and its configuration files; it may replace `build` and the other methods.

    Args:
        cfg: the configuration, or a path to its file; None takes DATASET_CONFIG_DICT["default"].
    """

    train_dataset_cls: Any = None
    eval_dataset_cls: Any = None
    DATASET_CONFIG_DICT: ClassVar[dict[str, str]] = {}

    def __init__(self, cfg: Any = None) -> None:
        if cfg is None:
            cfg = self.default_config_path()
        if isinstance(cfg, (str, Path)):
            from lavis.datasets.builders import load_dataset_config

            cfg = load_dataset_config(cfg)
        from omegaconf import OmegaConf  # importing the room stays quick

        self.config = cfg if OmegaConf.is_config(cfg) else OmegaConf.create(dict(cfg))
        self.data_type = self.config.get("data_type", "images")
        self.vis_processors: dict[str, Any] = {"train": BaseProcessor(), "eval": BaseProcessor()}
        self.text_processors: dict[str, Any] = {"train": BaseProcessor(), "eval": BaseProcessor()}

    @classmethod
    def default_config_path(cls, type: str = "default") -> str:
        """The file of one of its types: a path, from the current folder or from this package."""
        if type not in cls.DATASET_CONFIG_DICT:
            known = ", ".join(cls.DATASET_CONFIG_DICT) or "none"
            raise ValueError(f"{cls.__name__}.DATASET_CONFIG_DICT has no {type!r}; it has {known}")
        path = Path(cls.DATASET_CONFIG_DICT[type]).expanduser()
        packaged = Path(__file__).parent.parent / path
        return str(path if path.exists() or not packaged.exists() else packaged)

    @classmethod
    def types(cls) -> tuple[str, ...]:
        """Its choices of configuration."""
        return tuple(cls.DATASET_CONFIG_DICT) or ("default",)

    @classmethod
    def card(cls) -> str:
        """What people should know of the data set."""
        return (cls.__doc__ or "").strip()

    def build_datasets(self) -> dict[str, Any]:
        """{split: data set}; annotations are fetched first, once for all ranks."""
        if dist.is_main():
            self._download_data()
        dist.barrier()
        return self.build()

    def build_processors(self) -> None:
        """Make `vis_processors` and `text_processors` of the configuration; what it leaves out changes nothing."""
        for processors, key in (
            (self.vis_processors, "vis_processor"),
            (self.text_processors, "text_processor"),
        ):
            for phase, cfg in (self.config.get(key) or {}).items():
                processors[phase] = self._build_proc_from_cfg(cfg)

    @staticmethod
    def _build_proc_from_cfg(cfg: Any) -> Any:
        return None if cfg is None else registry.get_processor_class(cfg["name"]).from_config(cfg)

    def _download_data(self) -> None:
        self._download_ann()
        self._download_vis()

    def _download_ann(self) -> None:
        for info in self.config.build_info.annotations.values():
            places = self._paths(info.storage)
            urls = _as_list(info.get("url")) or [None] * len(places)
            if len(urls) != len(places):
                raise ValueError(
                    f"{type(self).__name__}: {len(urls)} urls for {len(places)} files of annotations"
                )
            for url, place in zip(urls, places, strict=True):
                if url and not place.is_file():
                    source = Path(url).expanduser()
                    hub.fetch(url, to=place) if "://" in url else _copy(source, place)

    def _download_vis(self) -> None:
        folder = self._media_root()
        if folder is not None and not folder.exists():
            log.warning("there is no folder %s, where the %s are expected", folder, self.data_type)

    def build(self) -> dict[str, Any]:
        """{"train" | "val" | "test": data set}, of the splits that the configuration has."""
        self.build_processors()
        built = {}
        for split, info in self.config.build_info.annotations.items():
            if split not in ("train", "val", "test"):
                continue
            phase = "train" if split == "train" else "eval"
            cls = self.train_dataset_cls if split == "train" else self.eval_dataset_cls
            if cls is None:
                raise ValueError(f"{type(self).__name__}.{phase}_dataset_cls is not set")
            root = self._media_root()
            built[split] = cls(
                vis_processor=self.vis_processors[phase],
                text_processor=self.text_processors[phase],
                ann_paths=[str(path) for path in self._paths(info.storage)],
                vis_root=None if root is None else str(root),
            )
        return built

    def _media_root(self) -> Path | None:
        info = self.config.build_info.get(self.data_type)
        return None if info is None else hub.under_cache_root(info.storage)

    @staticmethod
    def _paths(storage: Any) -> list[Path]:
        return [hub.under_cache_root(path) for path in _as_list(storage)]


class PublishedBuilder(BaseDatasetBuilder):
    """The builder of one of this library's data sets, `name`; made by `builder_of`."""

    name: ClassVar[str]

    def __init__(self, cfg: Any = None) -> None:
        if cfg is not None:
            super().__init__(cfg)
            return
        data_type = registry.get_dataset_class(self.name).data_type
        super().__init__({"data_type": data_type, "build_info": {data_type: {}}})

    @classmethod
    def default_config_path(cls, type: str = "default") -> str:
        """A YAML file of the data set's sources, written to the cache."""
        from lavis.common.files import write_text
        from lavis.datasets.builders import make_plan

        dataset_class = registry.get_dataset_class(cls.name)
        plan = make_plan(dataset_class, cls.name, {"type": type})
        annotations = {
            split: {"url": [s.url for s in sources], "storage": [s.storage for s in sources]}
            for split, sources in plan.sources.items()
        }
        build_info: dict[str, Any] = {"annotations": annotations} if annotations else {}
        if plan.vis_root is not None:
            build_info[dataset_class.data_type] = {"storage": str(plan.vis_root)}
        section: dict[str, Any] = {"data_type": dataset_class.data_type, "build_info": build_info}
        path = Path(hub.cache_root()) / "configs" / "datasets" / f"{cls.name}_{type}.yaml"
        from omegaconf import OmegaConf  # importing the room stays quick

        write_text(path, OmegaConf.to_yaml(OmegaConf.create({"datasets": {cls.name: section}})))
        return str(path)

    def build_datasets(self) -> dict[str, Any]:
        from omegaconf import OmegaConf  # importing the room stays quick

        from lavis.datasets.builders import build_datasets

        section: Any = OmegaConf.to_container(self.config, resolve=True)
        info = {key: value for key, value in (section.get("build_info") or {}).items() if value}
        return dict(build_datasets(self.name, {**section, "build_info": info}))


def builder_of(name: str, class_name: str = "") -> type[BaseDatasetBuilder]:
    """The builder class of a registered data set: its own, or one made for it."""
    found = registry.get_dataset_class(name)
    if issubclass(found, BaseDatasetBuilder):
        return found
    types = {kind: f"{name}_{kind}.yaml" for kind in found.types()}
    return type(
        class_name or f"{found.__name__}Builder",
        (PublishedBuilder,),
        {"name": name, "DATASET_CONFIG_DICT": types, "__module__": __name__, "__doc__": f"Builds {name}."},
    )


# ------------------------------------------------------------------------------------------ data sets


class BaseDataset(torch.utils.data.Dataset[Any]):
    """Records of annotation files, one list after another, as `annotation`; each has its place as `instance_id`.

    Args:
        vis_processor, text_processor: what `__getitem__` of a subclass applies. vis_root: the media's folder.
        ann_paths: JSON, JSON lines, CSV or TSV files.
    """

    def __init__(
        self,
        vis_processor: Callable[..., Any] | None = None,
        text_processor: Callable[..., Any] | None = None,
        vis_root: str | None = None,
        ann_paths: Sequence[str | Path] = (),
    ) -> None:
        self.vis_root = vis_root
        self.annotation: list[dict[str, Any]] = [
            dict(record) for path in ann_paths for record in _read(Path(path))
        ]
        self._add_instance_ids()
        self.set_processors(vis_processor, text_processor)

    def __len__(self) -> int:
        return len(self.annotation)

    def set_processors(self, vis_processor: Any, text_processor: Any) -> None:
        self.vis_processor, self.text_processor = vis_processor, text_processor

    def collater(self, samples: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
        """Samples side by side: tensors stacked, anything else a list; missing samples are left out."""
        kept = [sample for sample in samples if sample is not None]
        columns = {key: [sample[key] for sample in kept] for key in (kept[0] if kept else ())}
        return {k: torch.stack(v) if isinstance(v[0], torch.Tensor) else v for k, v in columns.items()}

    def _add_instance_ids(self, key: str = "instance_id") -> None:
        for place, record in enumerate(self.annotation):
            record[key] = str(place)

    def _image(self, record: Mapping[str, Any]) -> Any:
        picture = open_picture(Path(self.vis_root or "") / str(record["image"]))
        return picture if self.vis_processor is None else self.vis_processor(picture)

    def _text(self, text: str) -> Any:
        return text if self.text_processor is None else self.text_processor(text)


class ImageTextPairDataset(BaseDataset):
    """Records with `image` and `caption`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.annotation[index]
        return {"image": self._image(record), "text_input": self._text(record["caption"])}


class CaptionDataset(ImageTextPairDataset):
    """The same with `image_id`, which `img_ids` numbers from 0 in the order of appearance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ids = dict.fromkeys(record["image_id"] for record in self.annotation)
        self.img_ids = {image: number for number, image in enumerate(ids)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "image_id": self.img_ids[self.annotation[index]["image_id"]]}


class CaptionEvalDataset(BaseDataset):
    """Images to caption, with their ids."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.annotation[index]
        return {
            "image": self._image(record), "image_id": record["image_id"], "instance_id": record["instance_id"],
        }  # fmt: skip


class VQADataset(BaseDataset):
    """Questions with their answers and weights side by side: `answer`, `weight` and `n_answers`."""

    def collater(self, samples: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
        kept = [sample for sample in samples if sample is not None]
        return {
            "image": torch.stack([s["image"] for s in kept]),
            "text_input": [s["text_input"] for s in kept],
            "answer": [answer for s in kept for answer in s["answers"]],
            "weight": torch.tensor([weight for s in kept for weight in s["weights"]], dtype=torch.float32),
            "n_answers": torch.tensor([len(s["answers"]) for s in kept]),
        }


class ConcatDataset(torch.utils.data.ConcatDataset[Any]):
    """Data sets one after another; a batch keeps the keys that all of its samples have."""

    def collater(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        shared = set.intersection(*(set(s) for s in samples))
        kept = [{key: value for key, value in s.items() if key in shared} for s in samples]
        return self.datasets[0].collater(kept)  # type: ignore[attr-defined]


def _read(path: Path) -> Iterable[Mapping[str, Any]]:
    """The records of an annotation file: a table's rows, a JSON list or lines, or a JSON object's values by their
    keys, `sample_id`."""
    if path.suffix in (".csv", ".tsv"):
        return [row for _, row in read_table(path)]
    if path.suffix == ".json" and path.read_text(encoding="utf-8").lstrip().startswith("{"):
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            {"sample_id": key, **value} if isinstance(value, dict) else {"sample_id": key, "data": value}
            for key, value in content.items()
        ]
    return read_records(path)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, (str, Path)) else list(value)


def _copy(source: Path, place: Path) -> None:
    """A local annotation file in its place, atomically."""
    from lavis.common.files import write_bytes

    if not source.is_file():
        raise FileNotFoundError(f"there is no annotation file {place}, nor {source}")
    write_bytes(place, source.read_bytes())
