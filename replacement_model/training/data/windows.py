"""Windows of tokens in random order, for as long as they are wanted.

A corpus is read a block of documents at a time. A block's documents are cut into windows, which are shuffled; a corpus that
fits into one block is therefore shuffled as a whole. Where the corpus ends it starts again with other windows: each document
is cut at another place.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.replacement_model.training.data.documents import Documents

# Characters of a block: about 4 M tokens of English, which take some seconds to tokenize and 16 MB.
_BLOCK_CHARACTERS = 16_000_000
# Documents tokenized together; the number changes nothing but the speed.
_TOGETHER = 64

Window = NDArray[np.int32]
Notice = Callable[[str], None]


class WindowReader:
    """Windows of a corpus in an order that the seed decides.

    Attributes:
        length: The most tokens of a window, `<bos>` included.
        epoch: How often the corpus has been used up.
        read: Tokens handed out so far, `<bos>` included.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Any,
        length: int,
        shortest: int,
        seed: int,
        purpose: str,
        notice: Notice = lambda line: None,
        block_characters: int = _BLOCK_CHARACTERS,
    ) -> None:
        """Prepare to read.

        Args:
            documents: The corpus.
            tokenizer: The tokenizer of `transformers`.
            length: The most tokens of a window, `<bos>` included.
            shortest: Windows with fewer tokens are left out.
            seed: Decides the order and where documents are cut.
            purpose: Two readers with different purposes have different orders.
            notice: Told when the corpus starts again.
            block_characters: Characters of the documents that are shuffled together.
        """
        self._documents, self._tokenizer = documents, tokenizer
        self.length, self._shortest = length, shortest
        self._seed, self._purpose, self._notice = seed, list(purpose.encode()), notice
        self._block_characters = block_characters
        self.epoch = self.read = 0
        self._block = self._first = self._after = self._next = 0
        self._windows: list[Window] | None = None

    def take(self, tokens: int) -> list[Window]:
        """Return the next windows, of at least this many tokens in all.

        Raises:
            ValueError: The corpus has nothing to train on, or a line is broken.
        """
        taken: list[Window] = []
        while tokens > 0:
            window = self._one()
            taken.append(window)
            tokens -= len(window)
        return taken

    def take_windows(self, count: int) -> list[Window]:
        """Return the next `count` windows.

        Raises:
            ValueError: The corpus has nothing to train on, or a line is broken.
        """
        return [self._one() for _ in range(count)]

    def state(self) -> dict[str, int]:
        """Return where the reader is; small."""
        return {
            "epoch": self.epoch,
            "block": self._block,
            "first_document": self._first,
            "next_window": self._next,
            "read": self.read,
        }

    def restore(self, state: dict[str, int]) -> None:
        """Go to where a reader of the same corpus and settings was."""
        self.epoch, self._block, self._first = state["epoch"], state["block"], state["first_document"]
        self._next, self.read = state["next_window"], state["read"]
        self._windows = None

    def _one(self) -> Window:
        fruitless = self.epoch
        while self._windows is None or self._next >= len(self._windows):
            if self._windows is not None:
                self._block, self._first, self._next = self._block + 1, self._after, 0
            self._windows = self._read_block()
            if self._after == self._first:  # the end of the corpus
                if self.epoch > fruitless:
                    raise ValueError(
                        f"the corpus {', '.join(self._documents.corpus.names)} has no document of {self._shortest} tokens "
                        "or more to train on"
                    )
                if self.read:
                    self._notice(
                        f"the corpus is used up after {self.read:,} tokens; it is read again, cut into other windows"
                    )
                self.epoch, self._block, self._first, self._next, self._windows = self.epoch + 1, 0, 0, 0, None
        window = self._windows[self._next]
        self._next += 1
        self.read += len(window)
        return window

    def _read_block(self) -> list[Window]:
        """The shuffled windows of the block that begins at the document `_first`."""
        texts: list[str] = []
        characters, self._after = 0, self._first
        for text, number in self._documents.training(self._first):
            texts.append(text)
            characters, self._after = characters + len(text), number
            if characters >= self._block_characters:
                break
        random = np.random.default_rng([self._seed, *self._purpose, self.epoch, self._block])
        windows: list[Window] = []
        for start in range(0, len(texts), _TOGETHER):
            some = texts[start : start + _TOGETHER]
            for ids in self._tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
                windows += self._cut(np.asarray(ids, np.int32), random)
        return [windows[place] for place in random.permutation(len(windows))]

    def _cut(self, ids: Window, random: np.random.Generator) -> list[Window]:
        """The windows of one document; after the first time through the corpus, cut at another place."""
        bos = self._tokenizer.bos_token_id
        head = np.array([] if bos is None else [bos], np.int32)
        ids = ids[1:] if bos is not None and len(ids) and ids[0] == bos else ids
        step = self.length - len(head)
        first = int(random.integers(1, step)) if self.epoch and step > 1 else step
        cuts = [0, *range(first, len(ids), step), len(ids)]
        pieces = [np.concatenate([head, ids[a:b]]) for a, b in pairwise(cuts)]
        return [piece for piece in pieces if len(piece) >= self._shortest]
