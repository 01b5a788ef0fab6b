"""The page of a reading: one points at a token and sees the latents that are active there, each with its card.

`viewer/src/reading.ts` draws it.
"""

from __future__ import annotations

import os
from typing import Any, Literal, TypedDict

from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.page.export import page
from crosstrace.graphs.text import short


class ReadDictionary(TypedDict):
    """A dictionary that the prompt was read with."""

    name: str
    site: str
    layers: list[list[Any]]
    """Of every layer its number, the L0 on this prompt, and that of the config or None."""


class ReadLatent(TypedDict):
    """A latent that is among the strongest somewhere."""

    name: str
    dictionary: int
    layer: int
    label: str
    fires: list[list[float]]
    """[position, activation] wherever it is active."""
    card: dict[str, Any] | None


class ReadingPageData(TypedDict):
    """The JSON value inside the page of a reading."""

    format: Literal["crosstrace-reading-page"]
    version: int
    prompt: str
    model: str
    tokens: list[str]
    excluded: int
    """How many first positions carry no latents."""
    dictionaries: list[ReadDictionary]
    latents: list[ReadLatent]
    positions: list[list[int]]
    """Of every position its latents, by their number, in the order to show them in."""
    notes: list[str]


def write_reading_html(data: ReadingPageData, path: str | os.PathLike[str]) -> None:
    """Write the page of a reading: one `.html` file that opens offline.

    Args:
        data: What it holds.
        path: The file.

    Raises:
        ValueError: The content is too large for a page.
        OSError: The file cannot be written; nothing is left behind.
    """
    title = short(data["prompt"] or "".join(data["tokens"]), 80)
    write_atomically(path, page(data, "reading.html", title))
