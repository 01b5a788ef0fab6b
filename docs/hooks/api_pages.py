"""The API reference: one page for each room of each package, made from the docstrings whenever the site is built.

A room is a subpackage; the modules that lie directly in a package share a page of their own.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGES = ("kernels", "replacement_model", "graphs", "tracer")
_OVERVIEW = """# API reference

Made from the docstrings when this site is built. What a package exports by itself, as in
`from crosstrace.graphs import prune`, is the stable way in; the pages go through the modules room by room, so that
everything a name refers to can be found.

| Import from | What it is for |
| --- | --- |
| `crosstrace.replacement_model` | Load a model with its transcoders, run it, intervene, generate |
| `crosstrace.tracer` | Trace a prompt into a graph, make feature cards, validate |
| `crosstrace.graphs` | Read, prune, score, compare, draw and write graphs |
| `crosstrace.kernels` | The sparse operations underneath; tensors only |
"""


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the packages under their namespace, and put the pages into the navigation."""
    # The repository's root is the namespace package: a folder of links looks like it and holds nothing else.
    folder = Path(tempfile.mkdtemp(prefix="crosstrace-api-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "crosstrace").mkdir()
    for package in PACKAGES:
        (folder / "crosstrace" / package).symlink_to(ROOT / package, target_is_directory=True)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    pages = [{package: [{title: path} for title, path, _ in pages_of(package)]} for package in PACKAGES]
    if config.nav is not None:
        config.nav.append({"API": ["api/index.md", *pages]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    files.append(File.generated(config, "api/index.md", content=_OVERVIEW))
    for package in PACKAGES:
        for _, path, content in pages_of(package):
            files.append(File.generated(config, path, content=content))
    return files


def pages_of(package: str) -> list[tuple[str, str, str]]:
    """List a package's pages: title, path in the site, Markdown."""
    folder = ROOT / package
    modules = [file.stem for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")]
    rooms = sorted(
        str(init.parent.relative_to(folder)).replace("/", ".")
        for init in folder.rglob("__init__.py")
        if init.parent != folder
    )
    # A room inside a room is shown on the outer one's page.
    rooms = [room for room in rooms if not any(room.startswith(f"{other}.") for other in rooms)]
    overview = f"# `crosstrace.{package}`\n\n" + "".join(f"::: crosstrace.{package}.{module}\n\n" for module in modules)
    pages = [("Overview", f"api/{package}/index.md", overview)]
    for room in rooms:
        content = f"::: crosstrace.{package}.{room}\n    options:\n      heading_level: 1\n"
        pages.append((room, f"api/{package}/{room}.md", content))
    return pages
