"""Names for models, data sets, tasks, processors, schedules and runners.

`registry` is one object. A decorator puts a class under a name; a look-up first imports the
modules of the room that the kind lives in, then the entry points of the group `lavis.plugins`,
so importing the library registers nothing and costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lavis.common import elsewhere
from lavis.common.values import suggest

T = TypeVar("T", bound=type | Callable[..., Any])

# kind -> the package whose modules register it
_ROOMS = {
    "model": "lavis.models",
    "dataset": "lavis.datasets",
    "task": "lavis.tasks",
    "processor": "lavis.processors",
    "runner": "lavis.runners",
    "lr_scheduler": "lavis.common.optims",
    "page": "lavis.app.demo.pages",  # of the web demo
}
PLUGIN_GROUP = "lavis.plugins"


def _broken(what: str, error: BaseException) -> ImportError:
    """An error that names a piece of somebody else's code, its file and line, and what it raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    at = f" at {own[-1].filename}, line {own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        at = f" at {error.filename}, line {error.lineno}"
    reason = " ".join(str(error).split())
    return ImportError(
        f"{what} cannot be loaded: {type(error).__name__}{at}" + (f": {reason}" if reason else "")
    )


def _load_plugin(entry: importlib.metadata.EntryPoint) -> None:
    try:
        entry.load()
    except (Exception, SystemExit) as e:
        package = entry.dist.name if entry.dist is not None else ""
        source = f" of the package {package}" if package else ""
        remedy = f"; mend it, or remove it: pip uninstall {package}" if package else "; mend it or remove it"
        error = _broken(f"the plugin {entry.name} ({entry.value}){source}", e)
        raise ImportError(f"{error}{remedy}") from e


class Registry:
    """The paper's registry: `@registry.register_model("blip_caption")`, `registry.get_model_class(...)`."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Any]] = {kind: {} for kind in _ROOMS}
        self._paths: dict[str, str] = {}
        self._state: dict[str, Any] = {}
        self._imported: set[str] = set()
        self._plugins_loaded = False

    # ------------------------------------------------------------------ registering
    def _add(self, kind: str, name: str) -> Callable[[T], T]:
        def wrap(obj: T) -> T:
            old = self._entries[kind].get(name)
            if old is not None and (old.__module__, old.__qualname__) != (obj.__module__, obj.__qualname__):
                raise KeyError(
                    f"{kind} name {name!r} is already taken by {old.__module__}.{old.__qualname__}; "
                    f"choose another name for {obj.__module__}.{obj.__qualname__}"
                )
            self._entries[kind][name] = obj
            return obj

        return wrap

    def register_model(self, name: str) -> Callable[[T], T]:
        """The class's `registered_name` is this one, unless it says another itself."""

        def wrap(cls: T) -> T:
            self._add("model", name)(cls)
            if not hasattr(cls, "registered_name"):
                cls.registered_name = name  # type: ignore[union-attr]
            return cls

        return wrap

    def register_dataset(self, name: str) -> Callable[[T], T]:
        return self._add("dataset", name)

    register_builder = register_dataset  # the paper's name for it

    def register_task(self, name: str) -> Callable[[T], T]:
        return self._add("task", name)

    def register_processor(self, name: str) -> Callable[[T], T]:
        return self._add("processor", name)

    def register_runner(self, name: str) -> Callable[[T], T]:
        return self._add("runner", name)

    def register_lr_scheduler(self, name: str) -> Callable[[T], T]:
        return self._add("lr_scheduler", name)

    def register_page(self, name: str) -> Callable[[T], T]:
        return self._add("page", name)

    def register_path(self, name: str, path: str) -> None:
        """Remember a path under a name; a second value replaces the first."""
        self._paths[name] = str(path)

    def register(self, name: str, obj: Any) -> None:
        """Remember any object under a dotted name."""
        self._state[name] = obj

    # ------------------------------------------------------------------ looking up
    def import_module(self, name: str) -> None:
        """Import a user's module so that its decorators run (the command line's `--import`)."""
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name is not None and (name == e.name or name.startswith(e.name + ".")):
                raise ValueError(
                    f"--import {name}: there is no such module; give a dotted name that Python can import "
                    "from the current folder or the environment"
                ) from e
            raise _broken(f"the module {name} (--import)", e) from e
        except (Exception, SystemExit) as e:
            raise _broken(f"the module {name} (--import)", e) from e

    def _load(self, kind: str) -> dict[str, Any]:
        room = _ROOMS[kind]
        if room not in self._imported:
            module = importlib.import_module(room)
            for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{room}.{info.name}")
            self._imported.add(room)
        if not self._plugins_loaded:
            self._plugins_loaded = True  # first: a plugin may look names up while it is loaded
            try:
                for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP):
                    _load_plugin(entry)
            except BaseException:
                self._plugins_loaded = False  # a later call does not go on without it
                raise
        return self._entries[kind]

    def _get(self, kind: str, name: str) -> Any:
        entries = self._load(kind)
        if name not in entries:
            known_elsewhere = elsewhere.where(name)
            if known_elsewhere:
                raise ValueError(f"there is no {kind.replace('_', ' ')} named {name!r}: {known_elsewhere}")
            raise ValueError(f"there is no {kind.replace('_', ' ')} named {name!r}.{suggest(name, entries)}")
        return entries[name]

    def get_model_class(self, name: str) -> Any:
        return self._get("model", name)

    def get_dataset_class(self, name: str) -> Any:
        return self._get("dataset", name)

    def get_builder_class(self, name: str) -> Any:
        """A class with `build_datasets`, as the original's; `get_dataset_class` gives what was registered."""
        from lavis.datasets.builder_classes import builder_of

        return builder_of(name)

    def get_task_class(self, name: str) -> Any:
        return self._get("task", name)

    def get_processor_class(self, name: str) -> Any:
        return self._get("processor", name)

    def get_runner_class(self, name: str) -> Any:
        return self._get("runner", name)

    def get_lr_scheduler_class(self, name: str) -> Any:
        return self._get("lr_scheduler", name)

    def get_page_class(self, name: str) -> Any:
        return self._get("page", name)

    def names(self, kind: str) -> list[str]:
        """All registered names of a kind, sorted."""
        return sorted(self._load(kind))

    def list_models(self) -> list[str]:
        return self.names("model")

    def list_datasets(self) -> list[str]:
        return self.names("dataset")

    def list_tasks(self) -> list[str]:
        return self.names("task")

    def list_processors(self) -> list[str]:
        return self.names("processor")

    def list_runners(self) -> list[str]:
        return self.names("runner")

    def list_lr_schedulers(self) -> list[str]:
        return self.names("lr_scheduler")

    def list_pages(self) -> list[str]:
        return self.names("page")

    @property
    def mapping(self) -> dict[str, dict[str, Any]]:
        """All that is registered, under the original's keys: `mapping["model_name_mapping"]["blip_caption"]`."""
        kinds = {
            "builder" if kind == "dataset" else kind: dict(self._load(kind))
            for kind in _ROOMS
            if kind != "page"
        }
        named = {f"{kind}_name_mapping": entries for kind, entries in kinds.items()}
        return {**named, "state": dict(self._state), "paths": dict(self._paths)}

    def get_path(self, name: str) -> str | None:
        """A registered path; "library_root", "repo_root" and "cache_root" are there from the start."""
        if name in self._paths:
            return self._paths[name]
        package = Path(__file__).parent.parent
        if name == "cache_root":
            from lavis.common import hub

            return str(hub.cache_root())
        return {"library_root": str(package), "repo_root": str(package.parent)}.get(name)

    def get(self, name: str, default: Any = None, no_warning: bool = True) -> Any:
        """What `register` remembered under a dotted name, or a part of it."""
        if name in self._state:
            return self._state[name]
        return {"MAX_INT": sys.maxsize, "SPLIT_NAMES": ["train", "val", "test"]}.get(name, default)

    def unregister(self, kind: str, name: str) -> Any:
        """Take a name out again (tests and notebooks that redefine a class)."""
        return self._entries[kind].pop(name, None)


registry = Registry()
