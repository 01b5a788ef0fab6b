"""Plain text from three corpora as their packages hold them: wikitext, tagged words, transcripts.

Markup is read by mwparserfromhell and tokens are joined by NLTK; what is here says what of a page is prose. A document is
one line; long ones are cut at the ends of paragraphs, so that held-out text can be set aside by document.
"""

from __future__ import annotations

import contextlib
import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from typing import Any

WORDS = 1000  # a document ends with the paragraph that reaches this many
LEAST_WORDS = 12  # a shorter line is a heading, a caption or the rest of a list

# Sections of an article that are lists of other works.
NO_PROSE = frozenset(
    (
        "see also",
        "references",
        "external links",
        "notes",
        "further reading",
        "bibliography",
        "footnotes",
        "sources",
        "notes and references",
        "citations",
        "works cited",
        "gallery",
        "filmography",
        "discography",
    )
)
LIST_ITEM = "\N{BULLET}"  # begins a line of a list while markup is taken away
# Tags whose content is not prose.
NO_PROSE_TAGS = frozenset(
    ("ref", "table", "math", "gallery", "timeline", "code", "source", "syntaxhighlight", "imagemap", "hiero", "score")
)
# Templates that stand for one of their arguments, and which; every other template is left out.
SPOKEN = {"lang": -1, "transl": -1, "nowrap": 0, "small": 0, "nobold": 0, "abbr": 0, "sic": 0, "angbr": 0}


def articles(dump: str) -> Iterator[list[str]]:
    """Yield the paragraphs of every article of a MediaWiki export that is long enough to be one.

    Args:
        dump: The export as XML, cut short or not: pages that end are read.
    """
    for page in re.findall(r"<page>.*?</page>", dump, flags=re.S):
        root = ET.fromstring(page)
        wikitext = root.findtext("revision/text")
        if root.find("redirect") is not None or root.findtext("ns") != "0" or not wikitext:
            continue
        paragraphs = prose(wikitext)
        if sum(len(paragraph.split()) for paragraph in paragraphs) >= 200:
            yield paragraphs


def prose(wikitext: str) -> list[str]:
    """Return the paragraphs of an article, without templates, tables, references, lists and headings.

    Example:
        >>> prose("'''Lyon''' is a [[city]] of {{convert|2|km}} in the east of [[France|the French Republic]], on a river.")
        ['Lyon is a city of 2 km in the east of the French Republic, on a river.']
    """
    import mwparserfromhell as wiki

    code = wiki.parse(wikitext)
    kept = []
    for section in code.get_sections(flat=True):
        heading = next(iter(section.filter_headings()), None)
        if heading is None or heading.title.strip_code().strip().lower() not in NO_PROSE:
            _speak(section)
            kept.append(section.strip_code())
    return list(_paragraphs(html.unescape("\n".join(kept)).split("\n")))


def _speak(section: Any) -> None:
    """Replace templates, links and tags of wikitext by what a reader reads, in place."""
    for tag in section.filter_tags(recursive=True):
        name = str(tag.tag).strip().lower()
        if name in NO_PROSE_TAGS:
            _replace(section, tag, "")
        elif name in ("li", "dd", "dt"):
            _replace(section, tag, LIST_ITEM)
    for heading in section.filter_headings():
        _replace(section, heading, "")
    for link in section.filter_wikilinks(recursive=True):
        if ":" in str(link.title):  # files, categories, other languages
            _replace(section, link, "")
    for template in section.filter_templates(recursive=True):
        _replace(section, template, _spoken(template))


def _replace(section: Any, node: Any, text: str) -> None:
    with contextlib.suppress(ValueError):  # it stood in a node that is gone already
        section.replace(node, text)


def _spoken(template: Any) -> str:
    name = str(template.name).strip().lower()
    values = [str(parameter.value).strip() for parameter in template.params if not parameter.showkey]
    if name == "convert" and len(values) > 1:
        return f"{values[0]} {values[1]}"
    if name in ("ndash", "spaced ndash", "snd"):
        return " – "
    if name.startswith("lang-") and values:
        return values[0]
    return values[SPOKEN[name]] if name in SPOKEN and values else ""


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        line = line.strip()
        if not line or line[0] in f"{LIST_ITEM}*#:;|!{{}}=":
            continue
        line = re.sub(r"\(\s*[,;]*\s*\)", "", line)  # what held a pronunciation
        line = re.sub(r"\(\s*[,;]\s*", "(", line)
        line = tidied(line)
        if len(line.split()) >= LEAST_WORDS:
            yield line


def sentences(tagged: str) -> Iterator[str]:
    """Yield the sentences of a text of the Brown corpus, one on each line of its file, as `word/tag` pairs.

    Example:
        >>> list(sentences("``/`` It/pps rains/vbz ''/'' ,/, he/pps said/vbd ;/. ;/."))
        ['"It rains", he said;']
    """
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    joiner = TreebankWordDetokenizer()
    for line in tagged.split("\n"):
        words: list[str] = []
        for pair in line.split():
            word = pair.rpartition("/")[0]
            if not (words and word in (";", "?", "!") and words[-1] == word):  # the corpus doubles them
                words.append(word)
        if words:
            yield tidied(joiner.detokenize(words))


def documents(paragraphs: Iterable[str]) -> Iterator[str]:
    """Join paragraphs into documents of about `WORDS` words; a short rest goes to the last one.

    Example:
        >>> [len(document.split()) for document in documents(["a b c"] * 400)]
        [1200]
    """
    ready: list[str] = []
    current: list[str] = []
    count = 0
    for paragraph in paragraphs:
        current.append(paragraph)
        count += len(paragraph.split())
        if count >= WORDS:
            if ready:
                yield ready.pop()
            ready, current, count = [" ".join(current)], [], 0
    if current and ready and count < WORDS // 5:
        ready[0] += " " + " ".join(current)
    elif current:
        ready.append(" ".join(current))
    yield from ready


def tidied(text: str) -> str:
    """Return a text with single blanks, none before a closing mark, and without doubled full stops."""
    text = re.sub(r"\s+", " ", text.replace("\xa0", " ")).strip()
    text = re.sub(r" ([,.;:?!)])", r"\1", text)
    return re.sub(r"(\w)\.\.(?!\.)", r"\1.", text)
