"""The documentation site: its code runs, its generated pages are complete, it builds without a warning or a request."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser

import pytest
import yaml

from tests.pages import ROOT, blocks, run

DOCS = ROOT / "docs"
PAGES = sorted(
    p.relative_to(DOCS).as_posix()
    for pattern in ("*.md", "guides/*.md")
    for p in DOCS.glob(pattern)
    if p.name not in ("architecture.md", "log.md")
)


@pytest.fixture(scope="module")
def generated():
    """{page: text} of the generated pages."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("_generate").pages()
    finally:
        sys.path.remove(str(DOCS))


# ------------------------------------------------------------------------------------------ code
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs_in_order(page, tmp_path):
    ran = run(DOCS / page, tmp_path)
    assert ran or page == "moving.md", "no block was run"


@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_can_be_read(page):
    for block in blocks(DOCS / page):
        if block.mark:
            assert re.match(r"(not run|not checked|file): \S|output$|messages$", block.mark), block
        if block.language == "python":
            compile(block.code, page, "exec")
        elif block.language == "bash":
            done = subprocess.run(
                ["bash", "-n"], input=block.code, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block.code}\n{done.stderr}"
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.code), dict), block.code
        else:
            assert block.language in ("text", "toml", "{toctree}"), block


def test_commands_and_options_in_the_pages_exist(generated):
    """Also of blocks that are not run: each `lavis COMMAND --option` is one that there is."""
    from _generate.cli import commands

    known = {
        words: {
            o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)
        }
        for words, command in commands().items()
    }
    everywhere = {"--import", "--debug", "--version", "--help", "-h"}
    notebooks = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
    for page in [*(DOCS / p for p in PAGES), *notebooks]:
        text = page.read_text(encoding="utf-8")
        if page in notebooks:
            text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        lines = [line for b in blocks(page) if b.language == "bash" for line in b.code.splitlines()]
        lines += re.findall(r"`((?:lavis|torchrun)\s[^`]+)`", text)
        for line in lines:
            found = re.search(r"(?:^|\s)lavis ((?:--import \S+ )*)([a-z]+)( [a-z]+)?", " ".join(line.split()))
            if found is None:
                continue
            words = next((w for w in (f"{found[2]}{found[3] or ''}", found[2]) if w in known), None)
            assert words is not None, f"{page}: {line}"
            for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", re.split(r"[|<>]", line[found.end() :])[0]):
                assert option in known[words] | everywhere, f"{page}: lavis {words} has no {option}"


def test_recipes_and_models_in_the_pages_exist():
    from lavis.common.config import recipe_names
    from lavis.models import model_zoo

    recipes, zoo = set(recipe_names()), dict(model_zoo)
    for page in PAGES:
        for word in re.findall(
            r"(?<![\w/.])((?:blip|albef|alpro|clip|gpt)[\w]*)/([\w-]+(?:\.\d[\w-]*)*)",
            (DOCS / page).read_text(),
        ):
            name, kind = word
            assert f"{name}/{kind}" in recipes or kind in zoo.get(name, ()), f"{page}: {name}/{kind}"


# ------------------------------------------------------------------------------------- completeness
def test_every_command_has_its_help(generated):
    from _generate.cli import commands

    page = generated["reference/cli"]
    for words, command in commands().items():
        assert f"\n## lavis {words}\n" in page
        section = page.split(f"\n## lavis {words}\n")[1].split("\n## ")[0]
        assert "```bash" in section, f"lavis {words} has no example"
        for parameter in command.params:
            if parameter.param_type_name == "option" and "--help" not in parameter.opts:
                assert parameter.help and f"`{max(parameter.opts, key=len)}" in section, (
                    words,
                    parameter.name,
                )


def test_every_model_is_in_the_zoo(generated):
    from lavis.models import model_zoo

    page = generated["reference/models"]
    for name, types in model_zoo:
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for model_type in types:
            preset = model_zoo.preset(name, model_type)
            assert f"| `{model_type}` |" in section
            assert preset.weights is None or "://" not in preset.weights or f"<{preset.weights}>" in section
        assert "**Checked.**" in section


def test_sizes_in_the_zoo_are_those_of_the_models(generated):
    from _generate.zoo import parameters

    from lavis.models import load_model

    for name in ("blip_caption", "albef_feature_extractor"):
        model = load_model(name, "tiny_shapes", is_eval=True)
        assert parameters(type(model), model.config) == sum(p.numel() for p in model.parameters())


def test_every_data_set_has_a_card(generated):
    from _generate.cards import page_of
    from _generate.markdown import described

    from lavis.common.registry import registry

    index = generated["reference/datasets/index"]
    for name in registry.list_datasets():
        cls = registry.get_dataset_class(name)
        page = page_of(cls.__module__)
        assert f"[`{name}`]({page}.md)" in index
        card = generated[f"reference/datasets/{page}"]
        assert f"`{name}`" in card and "**Description.**" in card
        meanings = described(cls.Options, sys.modules[cls.__module__].__doc__ or "")
        for field in dataclasses.fields(cls.Options):
            assert f"\n`{field.name}`\n: " in card, (name, field.name)
            assert meanings.get(field.name), f"no docstring explains the option {field.name} of {name}"


def test_every_key_of_a_run_is_explained(generated):
    from _generate.markdown import described

    from lavis.common.config import recipe_names
    from lavis.common.registry import registry
    from lavis.runners import RunConfig

    page = generated["reference/recipes"]
    meanings = described(RunConfig)
    for field in dataclasses.fields(RunConfig):
        assert f"\n`{field.name}`\n: " in page
        assert meanings.get(field.name), f"RunConfig's docstring does not explain {field.name}"
    for task in registry.list_tasks():
        assert f"`task: {task}`" in page
    for recipe in recipe_names():
        assert f"| `{recipe}` |" in page


def test_public_names_are_documented(generated):
    """Everything that a room exports stands in the reference, and has a docstring."""
    from _generate.api import public

    from lavis.common.registry import registry

    listed = {name.rsplit(".", 1)[1] for _, names in public().values() for name in names}
    for room in (
        "lavis.models",
        "lavis.processors",
        "lavis.tasks",
        "lavis.metrics",
        "lavis.runners",
        "lavis.inference",
    ):
        module = importlib.import_module(room)
        for name in module.__all__:
            if callable(getattr(module, name)) and name not in ("RunnerBase", "RunnerIter", "RunnerIters"):
                assert name in listed, f"{room}.{name}"
                assert (getattr(module, name).__doc__ or "").strip(), f"{room}.{name} has no docstring"
    assert {registry.get_model_class(n).__name__ for n in registry.list_models()} <= listed


# ------------------------------------------------------------------------------ moving from the original
def _rows(mark: str) -> list[tuple[str, list[str]]]:
    table = (DOCS / "moving.md").read_text().split(f"<!-- {mark} -->\n")[1].split("\n\n")[0]
    cells = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return [(re.findall(r"`([^`]+)`", a)[0], re.findall(r"`([^`]+)`", b)) for a, b in cells]


def test_import_paths_of_the_original():
    rows = _rows("paths that stay")
    assert len(rows) > 20
    for path, names in rows:
        module = importlib.import_module(path)
        for name in names:
            assert hasattr(module, name), f"{path}.{name}"


def test_a_module_that_is_not_there_is_named_as_ever():
    with pytest.raises(ImportError, match=r"No module named 'lavis\.nonsense'"):
        importlib.import_module("lavis.nonsense")


def test_keys_without_effect_are_those_that_recipes_accept():
    from lavis.common.config import LEGACY_MODEL_KEYS, LEGACY_RUN_KEYS

    text = (DOCS / "moving.md").read_text().split("<!-- legacy run keys -->")[1].split("\n## ")[0]
    for key in (*LEGACY_RUN_KEYS, *LEGACY_MODEL_KEYS):
        assert re.search(rf"`{key}\b", text), key


# ------------------------------------------------------------------------------------------- the site
class _Page(HTMLParser):
    """What a page requests by itself, where it links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.untold: list[str] = []  # pictures without a description
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        self.anchors |= {given[k] for k in ("id", "name") if k in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.requests.append(given["href"])
        elif tag in ("script", "img", "iframe", "source", "video", "audio") and "src" in given:
            self.requests.append(given["src"])
            if tag == "img" and not given.get("alt"):
                self.untold.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-n",
        "-b",
        "html",
        "-d",
        str(out / "trees"),
    ]
    done = subprocess.run(
        [*command, str(DOCS), str(out / "html")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return out / "html"


@pytest.mark.slow
def test_links_and_anchors_inside_the_site(site):
    pages = {p: _Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    assert len(pages) > 50
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            fragment = urllib.parse.unquote(parts.fragment)
            known = pages[target].anchors if target in pages else {fragment}
            if not target.exists() or (fragment and fragment not in known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, broken


@pytest.mark.slow
def test_pages_request_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        page = _Page(path.read_text(encoding="utf-8"))
        assert not [r for r in page.requests if "//" in r], path
        assert not page.untold, f"{path}: pictures without alt text"
    for path in site.rglob("*.css"):
        addresses = re.findall(r"url\(\s*['\"]?([^'\")]+)", path.read_text(encoding="utf-8"))
        assert not [a for a in addresses if a.startswith(("http", "//"))], path


@pytest.mark.slow
def test_fine_tuning_is_one_click_from_everywhere(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="guides/fine-tune.html"' in home.split("<article")[1]
    for path in site.rglob("*.html"):
        if path.name not in ("search.html", "genindex.html"):
            sidebar = path.read_text(encoding="utf-8").split("sidebar-tree")[1]
            assert "Fine-tune on your own data" in sidebar or path.parent.name == "guides", path


def test_pictures_are_small_and_used():
    folder = DOCS / "_static" / "pictures"
    pictures = sorted(folder.iterdir())
    assert sum(p.stat().st_size for p in pictures) < 500_000
    text = "".join((DOCS / p).read_text() for p in PAGES)
    for picture in pictures:
        assert f"_static/pictures/{picture.name}" in text, picture


def test_pages_name_no_path_of_a_machine():
    for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.py")]:
        if "_build" not in path.parts:
            assert not re.search(r"/(home|work|Users|root|tmp)/\w", path.read_text(encoding="utf-8")), path


def test_docs_target_and_extra_exist():
    assert re.search(r"^docs:", (ROOT / "Makefile").read_text(), flags=re.M)
    assert re.search(r"^docs = ", (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert (
        "docs/_build/" in (ROOT / ".gitignore").read_text() or "_build/" in (ROOT / ".gitignore").read_text()
    )


def test_the_tree_of_the_guides_is_in_the_table_of_contents():
    contents = (DOCS / "index.md").read_text()
    for page in PAGES:
        if page != "index.md":
            assert re.search(rf"^{re.escape(page.removesuffix('.md'))}$", contents, flags=re.M), page
