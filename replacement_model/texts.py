"""Texts from files, one at a time, and their contexts: pieces of a set length, each with `<bos>`.

A `.txt` file has one text per line, a `.jsonl` file one JSON object per line, a `.parquet` file one text per row. Empty
texts are left out and counted. Anything that is not text raises an error that names file and line, unless such lines are
to be skipped; then they are counted too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".jsonl", ".parquet")
# Texts tokenized together; the number changes nothing but the speed.
_TOGETHER = 64
_ROWS = 1024


@dataclass(frozen=True)
class Cursor:
    """How far a corpus has been read.

    Attributes:
        texts: Whole texts.
        pieces: Pieces of the next text.
        digest: A digest of the whole texts.
    """

    texts: int = 0
    pieces: int = 0
    digest: str = ""


@dataclass(frozen=True)
class CorpusContext:
    """A piece of a text, ready for the model.

    Attributes:
        tokens: Its token ids, `<bos>` included.
        after: Where the corpus continues after it.
        read: Bytes of the corpus read so far, for a progress bar.
    """

    tokens: list[int]
    after: Cursor
    read: int


class Corpus:
    """Text files, read in order.

    Attributes:
        paths: The files.
        text_field: The field of a JSON object, or the Parquet column, that holds the text.
        skip_broken: Whether lines that are not text are left out rather than an error.
        names: The names of the files.
        total: Their size in bytes.
        empty: How many empty texts have been left out so far.
        broken: How many broken lines have been left out so far.
        left_out: Where the first few of either are, in words.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], text_field: str = "text", skip_broken: bool = False
    ) -> None:
        """Check that the files can be read.

        Args:
            paths: `.txt`, `.jsonl` or `.parquet` files.
            text_field: The field or column that holds the text.
            skip_broken: Whether to leave out and count lines that are not text.

        Raises:
            FileNotFoundError: A file does not exist.
            ValueError: A file has another suffix, no file is given, or `.parquet` is read without pyarrow.
        """
        self.paths = [Path(path) for path in paths]
        self.text_field, self.skip_broken = text_field, skip_broken
        if not self.paths:
            raise ValueError("no corpus is given; name a .txt, .jsonl or .parquet file")
        for path in self.paths:
            if path.suffix.lower() not in SUFFIXES:
                raise ValueError(f"corpus {path}: unknown suffix {path.suffix!r}; known are {', '.join(SUFFIXES)}")
            if not path.is_file():
                raise FileNotFoundError(f"corpus {path}: {'is a folder' if path.is_dir() else 'no such file'}")
            if path.suffix.lower() == ".parquet":
                pyarrow_for(f"corpus {path}: reading Parquet")
        self.names = [path.name for path in self.paths]
        self.total = sum(path.stat().st_size for path in self.paths)
        self.empty = self.broken = 0
        self.left_out: list[str] = []

    def texts(self) -> Iterator[tuple[str, int]]:
        """Yield every text that is not empty, with how many bytes of the files have been read by then.

        Raises:
            ValueError: A line is not text; the file and the line are named.
        """
        self.empty = self.broken = 0
        self.left_out = []
        before = 0
        for path in self.paths:
            read = _read_parquet if path.suffix.lower() == ".parquet" else _read_lines
            for place, given, bytes_read in read(path, self.text_field):
                try:
                    text = self._text(path, given)
                except ValueError as problem:
                    message = f"{path}, {place}: {problem}"
                    if not self.skip_broken:
                        raise ValueError(f"{message} (--skip-broken leaves such lines out)") from None
                    self.broken += 1
                    self._note(message)
                    continue
                if text.strip():
                    yield text, before + bytes_read
                else:
                    self.empty += 1
                    self._note(f"{path}, {place}: empty")
            before += path.stat().st_size

    def _note(self, message: str) -> None:
        if len(self.left_out) < 3:
            self.left_out.append(message)

    def _text(self, path: Path, given: Any) -> str:
        if isinstance(given, bytes):
            try:
                given = given.decode("utf-8")
            except UnicodeDecodeError as problem:
                raise ValueError(f"not UTF-8 (byte {problem.start + 1} of the line)") from None
            if path.suffix.lower() == ".jsonl" and given.strip():
                given = self._field(given)
        if given is None:
            return ""
        if not isinstance(given, str):
            raise ValueError(f"{self.text_field!r} is {_kind(given)}; expected a string")
        return _whole(given)

    def _field(self, line: str) -> Any:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise ValueError(f"not JSON: {' '.join(str(problem).split())}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{_kind(value)}; expected a JSON object with the key {self.text_field!r}")
        if self.text_field not in value:
            keys = ", ".join(map(repr, list(value)[:8])) or "none"
            raise ValueError(f"no key {self.text_field!r} (keys: {keys}); --text-field names another")
        return value[self.text_field]


class Texts:
    """Texts in memory, as a corpus; empty ones are left out and counted.

    Attributes:
        names: One name for all of the texts.
        total: Their length in characters.
        empty: How many empty texts have been left out so far.
        broken: 0.
        left_out: Nothing.
    """

    def __init__(self, texts: Sequence[str], name: str = "texts") -> None:
        """Take the texts as they are.

        Args:
            texts: The texts.
            name: What to call them.
        """
        self.names, self._texts = [name], list(texts)
        self.total = sum(map(len, self._texts))
        self.empty = self.broken = 0
        self.left_out: list[str] = []

    def texts(self) -> Iterator[tuple[str, int]]:
        """Yield every text that is not empty, with how many characters have been read by then."""
        self.empty = read = 0
        for text in self._texts:
            read += len(text)
            if text.strip():
                yield _whole(text), read
            else:
                self.empty += 1


def as_texts(given: Corpus | Texts | Sequence[str] | str | os.PathLike[str]) -> Corpus | Texts:
    """Return texts to read: a corpus as it is, one file by its path, or texts."""
    if isinstance(given, Corpus | Texts):
        return given
    return Corpus([given]) if isinstance(given, str | os.PathLike) else Texts(given)


def contexts(
    corpus: Corpus | Texts, tokenizer: Any, length: int, shortest: int, start: Cursor
) -> Iterator[CorpusContext]:
    """Cut a corpus into contexts.

    A text is tokenized whole and cut. Every piece starts with `<bos>`, which counts towards the length.

    Args:
        corpus: The texts.
        tokenizer: The tokenizer of `transformers`.
        length: The largest number of tokens in a context.
        shortest: Pieces with fewer tokens are left out.
        start: Where to continue.

    Yields:
        The contexts, in order.

    Raises:
        ValueError: The corpus has changed since `start`, or holds a broken line.
    """
    bos = tokenizer.bos_token_id
    taken = length - (bos is not None)
    texts, digest = corpus.texts(), ""
    for number in range(start.texts):
        text, _ = next(texts, (None, 0))
        if text is None:
            raise ValueError(f"the corpus has only {number:,} texts; {start.texts:,} of it were read before")
        digest = _chained(digest, text)
    if digest != start.digest:
        raise ValueError("the corpus is not the one that was read before: its texts have changed")
    number, skipped = start.texts, start.pieces
    broken: ValueError | None = None
    while broken is None:
        some: list[tuple[str, int]] = []
        try:
            some.extend(islice(texts, _TOGETHER))
        except ValueError as problem:
            broken = problem  # raised only once the texts before it have been yielded
        if not some:
            break
        encoded = tokenizer([text for text, _ in some], add_special_tokens=False, verbose=False)["input_ids"]
        for (text, read), ids in zip(some, encoded, strict=True):
            ids = ids[1:] if bos is not None and ids[:1] == [bos] else ids
            pieces = [ids[i : i + taken] for i in range(0, len(ids), taken)]
            full = [[bos, *piece] if bos is not None else piece for piece in pieces]
            whole = Cursor(number + 1, 0, _chained(digest, text))
            for i, tokens in enumerate(full[skipped:], skipped):
                if len(tokens) >= shortest:
                    yield CorpusContext(tokens, whole if i == len(full) - 1 else Cursor(number, i + 1, digest), read)
            number, digest, skipped = whole.texts, whole.digest, 0
    if broken is not None:
        raise broken


def _whole(text: str) -> str:
    """A text whose halves of surrogate pairs, which JSON can hold but tokenizers do not take, have become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _chained(digest: str, text: str) -> str:
    return hashlib.blake2b(digest.encode() + text.encode(), digest_size=8).hexdigest()


def _read_lines(path: Path, text_field: str) -> Iterator[tuple[str, bytes, int]]:
    read = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            read += len(line)
            yield f"line {number}", (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n"), read


def _read_parquet(path: Path, text_field: str) -> Iterator[tuple[str, Any, int]]:
    pyarrow = pyarrow_for(f"corpus {path}: reading Parquet")
    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                columns = ", ".join(map(repr, file.schema_arrow.names[:8]))
                raise ValueError(
                    f"corpus {path}: no column {text_field!r} (columns: {columns}); --text-field names another"
                )
            rows = file.iter_batches(batch_size=_ROWS, columns=[text_field])
            values = chain.from_iterable(batch.column(0).to_pylist() for batch in rows)
            for number, value in enumerate(values, 1):
                yield f"row {number}", value, size * number // file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as problem:
        raise ValueError(f"corpus {path}: not a whole Parquet file ({' '.join(str(problem).split())})") from None


def pyarrow_for(what: str) -> Any:
    """Return pyarrow with its Parquet module.

    Args:
        what: What needs it, for the message.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{what} needs pyarrow, which is not installed; pip install 'crosstrace[parquet]'") from None
    return pyarrow


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
