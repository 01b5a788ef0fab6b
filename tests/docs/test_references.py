"""What the documentation says of the code is there: files, names in them, and lines that it quotes.

A file is written `kernels/scoring.py`, a name in it `kernels/scoring.py:scores_torch`, a folder `graphs/page/`, each in
backticks. `<!-- quoted from: FILE -->` before a code block says that its lines stand in that file.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FOLDERS = "kernels|replacement_model|graphs|tracer|viewer|examples|benchmarks|docs|tests"
_REFERENCE = re.compile(rf"`((?:{_FOLDERS})/[\w./-]*?)(?::([\w.]+))?`")
_QUOTE = re.compile(r"<!-- quoted from: (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)


def names_in(path: Path) -> set[str]:
    """Functions, classes, methods (`Class.method`) and top-level variables of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_names_that_a_page_mentions_exist(page):
    wrong = []
    for path, name in _REFERENCE.findall(page.read_text(encoding="utf-8")):
        if not (ROOT / path).exists():
            wrong.append(path)
        elif name and name not in names_in(ROOT / path):
            wrong.append(f"{path}:{name}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_that_a_page_quotes_stand_in_the_file(page):
    for path, quoted in _QUOTE.findall(page.read_text(encoding="utf-8")):
        lines = {line.strip() for line in (ROOT / path).read_text(encoding="utf-8").splitlines()}
        missing = [line.strip() for line in quoted.splitlines() if line.strip() and line.strip() not in lines]
        assert not missing, path


def test_the_route_of_an_edge_names_where_things_happen():
    """Where an edge's value is computed, where a threshold is compared, where -o picks a format, and every room."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = {f"{path}:{name}" for path, name in _REFERENCE.findall(page)}
    assert found >= {
        "kernels/scoring.py:scores_torch",
        "replacement_model/local/adjoint.py:Adjoint.rows",
        "kernels/encoding.py:encode_torch",
        "graphs/formats.py:write_graph",
    }
    assert {path for path, _ in _QUOTE.findall(page)} >= {
        "kernels/scoring.py",
        "kernels/encoding.py",
        "graphs/formats.py",
    }
    for package in ("kernels", "replacement_model", "graphs", "tracer"):
        for room in (ROOT / package).rglob("__init__.py"):
            assert f"`{room.parent.relative_to(ROOT)}/`" in page


@pytest.mark.parametrize("page", PAGES[:3], ids=lambda page: page.stem)
def test_links_of_a_page_outside_of_the_site_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
