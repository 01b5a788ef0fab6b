"""The documents of a corpus, of which a share is held out for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from crosstrace.replacement_model.texts import Corpus, Texts

_READ = 1 << 20


@dataclass(frozen=True)
class Documents:
    """A corpus, split into documents that are trained on and held-out ones.

    Which part a document is in depends on its text alone: duplicates stay together, and neither the order of the files nor
    the seed moves one across.

    Attributes:
        corpus: The texts.
        held_out_share: The share of documents that is held out.
    """

    corpus: Corpus | Texts
    held_out_share: float

    def training(self, first: int = 0) -> Iterator[tuple[str, int]]:
        """Yield the documents to train on, each with how many documents of either part have been read by then.

        Args:
            first: Documents of either part to leave out at the beginning.
        """
        for number, (text, _) in enumerate(islice(self.corpus.texts(), first, None), first + 1):
            if not self.holds_out(text):
                yield text, number

    def held_out(self) -> Iterator[str]:
        """Yield the held-out documents."""
        for text, _ in self.corpus.texts():
            if self.holds_out(text):
                yield text

    def some_held_out(self, tokens: int) -> list[str]:
        """Return held-out documents that are long enough together for a number of tokens, in the corpus' order.

        Args:
            tokens: At most; a token is hardly ever longer than 16 characters.
        """
        found: list[str] = []
        room = 16 * tokens
        for text in self.held_out():
            found.append(text)
            room -= len(text)
            if room <= 0:
                break
        return found

    def holds_out(self, text: str) -> bool:
        """Whether a document is held out."""
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.held_out_share * 2**64

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file by its name, or of the texts in memory."""
        if isinstance(self.corpus, Corpus):
            return {str(path): _file_digest(path) for path in self.corpus.paths}
        digest = hashlib.sha256()
        for text, _ in self.corpus.texts():
            digest.update(text.encode() + b"\0")
        return {self.corpus.names[0]: digest.hexdigest()}


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256", _bufsize=_READ).hexdigest()
