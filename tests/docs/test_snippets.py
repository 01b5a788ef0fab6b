"""The commands and the Python of README and docs run as they are written, page by page, each page in an empty folder.

A comment on the line before a block says what it needs:

- `<!-- skip: why -->`: the block is not run (it downloads, makes an environment, or trains for minutes);
- `<!-- needs: dot -->`: it is run where that program is installed.
- `<!-- quoted from: FILE -->`: lines of a source file; `test_references.py` checks that they are there.

The Python blocks of a page share their names, as the cells of a notebook do. Blocks run in the order of the page, so that
one may use a file that an earlier one wrote. `extending.md` registers things for good, so it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LANGUAGES = ("sh", "python")
_FENCE = re.compile(r"( *)```(\w*)")
_NOTE = re.compile(r" *<!-- (skip|needs|quoted from): (.+?) -->")
# What *Save* on the page of the Dallas graph writes, for a group of three features of Texas.
_STATE = "bos-the-capital-of-the-state-containing-dallas-is.state.json"
_GROUP = ["0_120_7", "0_468_7", "2_183_8"]
# What the command line alone can do runs in this process: loading torch anew for each of them would take minutes.
_SHELL_SYNTAX = re.compile(r"[|<>$;&`]|\bsource\b")


class Snippet(NamedTuple):
    """A block of code: where it stands, what it is, and what its comment says."""

    page: Path
    line: int
    language: str
    code: str
    note: str = ""
    said: str = ""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets_of(page: Path) -> list[Snippet]:
    """The shell and Python blocks of a page, in order."""
    found: list[Snippet] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    i = 0
    while i < len(lines):
        fence = _FENCE.fullmatch(lines[i])
        if fence is None:
            i += 1
            continue
        end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == "```")
        note = _NOTE.fullmatch(lines[i - 1]) if i else None
        if fence[2] in _LANGUAGES:
            code = textwrap.dedent("\n".join(lines[i + 1 : end]))
            found.append(Snippet(page, i + 1, fence[2], code, *(note.groups() if note else ())))
        i = end + 1
    return found


def commands_of(code: str) -> list[str]:
    """The command lines of a shell block, continued lines joined, comments left out."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_command(command: str) -> None:
    """Run one command line; fails if the command does."""
    from crosstrace.tracer.commands.app import app

    words = shlex.split(command, comments=True)
    if words[0] == "crosstrace" and not _SHELL_SYNTAX.search(re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", command)):
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        return
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


_OF_ITS_OWN = ROOT / "docs" / "extending.md"
_SHARED = [page for page in PAGES if page != _OF_ITS_OWN and snippets_of(page)]


@pytest.mark.parametrize("page", _SHARED, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run_as_they_are_written(page, tmp_path, monkeypatch, subtests):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROWSER", "true")  # what --open starts
    for folder in ("examples", "benchmarks", "viewer"):  # pages name files of the repository as seen from its root
        (tmp_path / folder).symlink_to(ROOT / folder)
    saved = {"qParams": {"pinnedIds": [*_GROUP, "7_455_8"], "supernodes": [["my states", *_GROUP]]}}
    (tmp_path / _STATE).write_text(json.dumps(saved))
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets_of(page):
        if snippet.note == "quoted from":
            continue
        with subtests.test(snippet.name):
            if snippet.note == "skip":
                pytest.skip(f"{snippet.name}: {snippet.said}")
            if snippet.note == "needs" and shutil.which(snippet.said) is None:
                pytest.skip(f"{snippet.name}: needs {snippet.said}")
            if snippet.language == "python":
                exec(compile(snippet.code, snippet.name, "exec"), names)
            else:
                for command in commands_of(snippet.code):
                    run_command(command)


def test_what_the_page_on_extending_adds_works(tmp_path):
    snippets = [snippet for snippet in snippets_of(_OF_ITS_OWN) if not snippet.note]
    assert {snippet.language for snippet in snippets} == {"python"}
    script = "\n".join(snippet.code for snippet in snippets)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 Dallas" in done.stdout
    assert (tmp_path / "dallas.tsv").is_file()


def test_a_snippet_that_fails_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="no such graph file"):
        run_command("crosstrace show missing.safetensors")
    with pytest.raises(AssertionError, match="false"):
        run_command("true | false")


def test_blocks_are_found_in_tabs_with_their_notes(tmp_path):
    page = ROOT / "docs" / "quickstart.md"
    found = snippets_of(page)
    assert found[0].note == "skip"
    assert {snippet.language for snippet in found} == set(_LANGUAGES)
    assert all(not snippet.code.startswith(" ") for snippet in found)


def test_every_comment_belongs_to_a_block():
    for page in PAGES:
        comments = len(
            re.findall(r"^ *<!-- (?:skip|needs|quoted from):", page.read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert comments == sum(bool(snippet.note) for snippet in snippets_of(page)), page
