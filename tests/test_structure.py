"""The house: which room may import which, no circles, no overfull folder, and a package list that matches the folders.

Imports are read from the source, those inside functions and those for type checkers alone included.
"""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import networkx as nx
import pytest
from places import ROOT

NAMESPACE = "crosstrace"
PACKAGES = ("kernels", "replacement_model", "graphs", "tracer")
# What each package may import of the others.
BELOW = {
    "kernels": set(),
    "graphs": set(),
    "replacement_model": {"kernels"},
    "tracer": {"kernels", "replacement_model", "graphs"},
}
# Rooms (folders and modules) of each package from the ground up. A room may import its own level and those below.
LEVELS = {
    "kernels": [
        ["activations"],
        ["checks", "dispatch", "decoder_tiles"],
        ["triton_parts", "compiled"],
        ["decoding_triton", "encoding_triton", "scoring_triton"],
        ["decoding", "encoding", "scoring"],
        ["backward"],
    ],
    "replacement_model": [
        ["memory", "prompts", "conversations", "texts", "padding", "hub", "demo", "demo_chat", "embedded"],
        ["architectures"],
        ["dictionaries"],
        ["local"],
        ["interventions"],
        ["base_model", "model"],
        ["readouts", "training", "fingerprints"],
    ],
    "graphs": [
        ["text", "numbers", "files", "sparse_rows", "layout", "notebook", "fingerprints", "conversations", "origins"],
        ["tensor_file", "storage"],
        ["attention"],
        ["graph"],
        ["viewer_ids", "saved_state"],
        ["cards"],
        ["analysis"],
        ["readers"],
        ["aggregates"],
        ["pictures"],
        ["exporters"],
        ["page"],
        ["formats"],
    ],
    "tracer": [
        ["defaults", "progress", "weights"],
        ["samples"],
        ["attribution", "cards", "evaluation", "virtual_weights", "labels"],
        ["probes", "attention"],
        ["reading"],
        ["interventions", "validation"],
        ["chat"],
        ["sweeps"],
        ["server"],
        ["terminal"],
        ["commands"],
    ],
}
MOST_MODULES = 14
UNBOUNDED = {"tracer/commands"}  # one file a verb


def modules_of(root: Path) -> dict[str, Path]:
    """Every module by its dotted name below the namespace: ``graphs.page.export``; a package by its folder's name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py*")):
            if path.suffix in (".py", ".pyi") and "__pycache__" not in path.parts:
                name = ".".join(path.relative_to(root).with_suffix("").parts)
                found[name.removesuffix(".__init__") + (".pyi" if path.suffix == ".pyi" else "")] = path
    return found


def imports_of(name: str, path: Path, modules: Mapping[str, Path]) -> set[str]:
    """The modules that one imports; a name taken from a package is the module of that name, or the package."""
    package = name.removesuffix(".pyi") if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            sources = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                source = ".".join([NAMESPACE, *above, *source.split(".")]).rstrip(".")
            sources = [(source, alias.name) for alias in node.names]
        else:
            continue
        for source, taken in sources:
            if source.startswith(f"{NAMESPACE}."):
                base = source.removeprefix(f"{NAMESPACE}.")
                found.add(f"{base}.{taken}" if f"{base}.{taken}" in modules else base)
    return found


def import_graph(root: Path) -> nx.DiGraph:
    """An edge from each module to each that it imports. A package's own ``__init__`` stands above all of its rooms."""
    modules = modules_of(root)
    graph = nx.DiGraph()
    for name, path in modules.items():
        graph.add_node(name, folder=path.parent.relative_to(root).as_posix())
    for name, path in modules.items():
        graph.add_edges_from((name, other) for other in imports_of(name, path, modules) if other != name)
    return graph


def room_of(module: str) -> tuple[str, str]:
    """The package and the room in it: ("graphs", "page"); a package's own ``__init__`` has the room ""."""
    parts = module.removesuffix(".pyi").split(".")
    return parts[0], parts[1] if len(parts) > 1 else ""


def wrong_directions(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Imports from one package into another, or from a room into one above, that are not allowed."""
    wrong = []
    for importer, imported in edges:
        (package, room), (other, wanted) = room_of(importer), room_of(imported)
        if package != other:
            if other not in BELOW[package]:
                wrong.append(f"{importer} imports {imported}: {package} may not use {other}")
        elif room and (not wanted or level_of(package, room) < level_of(package, wanted)):
            wrong.append(f"{importer} imports {imported}, which stands above it")
    return wrong


def level_of(package: str, room: str) -> int:
    levels = [level for level, rooms in enumerate(LEVELS[package]) if room in rooms]
    assert levels, f"{package}/{room} stands on no level: add it to LEVELS in {Path(__file__).name}"
    return levels[0]


def circles(graph: nx.DiGraph) -> list[list[str]]:
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    return import_graph(ROOT)


def test_no_import_runs_upwards(graph):
    assert graph.number_of_edges() > 300
    assert not wrong_directions(graph.edges)


def test_no_circle_of_modules_or_rooms(graph):
    assert not circles(graph)
    rooms = nx.DiGraph((room_of(a), room_of(b)) for a, b in graph.edges if room_of(a) != room_of(b))
    assert not circles(rooms)
    # A package's own modules count one by one: its ``__init__`` stands above all of its rooms.
    folder = {name: name if place in PACKAGES else place for name, place in graph.nodes(data="folder")}
    folders = nx.DiGraph((folder[a], folder[b]) for a, b in graph.edges if folder[a] != folder[b])
    assert not circles(folders)


@pytest.mark.parametrize(
    ("path", "line", "said"),
    [
        ("graphs/text.py", "from crosstrace.kernels import encode", "graphs may not use kernels"),
        ("kernels/checks.py", "import crosstrace.tracer", "kernels may not use tracer"),
        (
            "replacement_model/local/frozen.py",
            "if TYPE_CHECKING:\n    from crosstrace.replacement_model.model import ReplacementModel",
            "stands above",
        ),
        ("tracer/attribution/batches.py", "def f():\n    from crosstrace.tracer.commands import app", "stands above"),
        ("graphs/analysis/scores.py", "from crosstrace.graphs import prune", "stands above"),
    ],
)
def test_an_import_that_runs_upwards_is_found(tmp_path, path, line, said):
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    (tmp_path / path).write_text(line + "\n", encoding="utf-8")
    wrong = wrong_directions(import_graph(tmp_path).edges)
    assert len(wrong) == 1
    assert said in wrong[0]


def test_a_circle_is_found():
    assert circles(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")])) == [["a", "b", "c"]]


def test_every_level_is_lived_in():
    for package, levels in LEVELS.items():
        rooms = {path.stem if path.suffix == ".py" else path.name for path in (ROOT / package).iterdir()}
        named = [room for level in levels for room in level]
        assert len(named) == len(set(named))
        missing = set(named) - rooms - {"training"}  # to come
        assert not missing, f"{package} has no {missing}"


def test_no_folder_is_overfull():
    for package in PACKAGES:
        for folder_ in (ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())):
            modules = [path for path in folder_.glob("*.py") if path.stem != "__init__"]
            if str(folder_.relative_to(ROOT)) not in UNBOUNDED:
                assert len(modules) <= MOST_MODULES, f"{folder_} holds {len(modules)} modules"


def test_the_package_list_matches_the_folders():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {
        ".".join((NAMESPACE, *path.parent.relative_to(ROOT).parts))
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == folders
    assert len(listed) == len(folders)


def test_package_data_covers_every_file_that_is_no_module():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = sorted(settings["packages"], key=len, reverse=True)
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.split():
        if name.endswith(".py"):
            continue
        dotted = f"{NAMESPACE}." + name.replace("/", ".")
        package = next(package for package in packages if dotted.startswith(f"{package}."))
        inside = dotted_path(name, package)
        patterns = settings["package-data"].get(package, [])
        assert any(fnmatch.fnmatch(inside, pattern) for pattern in patterns), f"{name} is not in package-data"


def dotted_path(name: str, package: str) -> str:
    """A file's path within its package."""
    return str(Path(name).relative_to(Path(*package.split(".")[1:])))


def test_help_does_not_wait_for_heavy_imports():
    script = (
        "import sys\nfrom crosstrace.tracer.commands.app import app\n"
        "heavy = {'torch', 'transformers', 'scipy', 'networkx', 'numpy', 'pydot'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
