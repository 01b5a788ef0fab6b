"""A reading as JSON and as a page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.page.reading import ReadingPageData, write_reading_html
from crosstrace.tracer.probes.probe import Scores
from crosstrace.tracer.reading.read import Reading

SUFFIXES = (".json", ".html", ".htm")


def reading_as_dict(reading: Reading, scores: Scores | None = None) -> dict[str, Any]:
    """Return a reading as its JSON has it: `tokens`, `latents` at each position, what it was read with, a probe's scores."""
    return {
        "prompt": reading.prompt,
        "model": reading.model_name,
        "tokens": list(reading.tokens),
        "token_ids": list(reading.token_ids),
        "excluded_first": reading.excluded_first,
        "template": sorted(reading.template),
        "latents": [
            {
                "sae": reading.dictionaries[latent.dictionary].name,
                "latent": f"{reading.name(latent.key)}@{latent.position}",
                "layer": latent.layer,
                "position": latent.position,
                "feature": latent.feature,
                "activation": latent.activation,
                "label": latent.label,
            }
            for latent in reading.latents
        ],
        "saes": [
            {
                "name": dictionary.name,
                "site": dictionary.site,
                "layers": [
                    {"layer": layer.layer, "l0": layer.measured, "l0_config": layer.expected}
                    for layer in dictionary.layers
                ],
            }
            for dictionary in reading.dictionaries
        ],
        **({} if scores is None else {"probe": scores.to_dict()}),
    }


def write_reading(reading: Reading, path: str | os.PathLike[str], scores: Scores | None = None) -> None:
    """Write a reading as JSON (`.json`), or as a page (`.html`) on which one points at a token and sees its latents.

    Args:
        reading: The reading.
        path: The file, which is written whole or not at all.
        scores: What a probe says of the tokens; JSON holds it too.

    Raises:
        ValueError: The suffix is neither.
        OSError: The file cannot be written.
    """
    match Path(path).suffix.lower():
        case ".json":
            text = json.dumps(reading_as_dict(reading, scores), indent=1, ensure_ascii=False)
            write_atomically(path, (text + "\n").encode("utf-8", "surrogatepass"))
        case ".html" | ".htm":
            write_reading_html(reading_page_data(reading), path)
        case suffix:
            raise ValueError(
                f"{os.fspath(path)}: a reading is written as .json or .html, not {suffix or 'without suffix'}"
            )


def reading_page_data(reading: Reading) -> ReadingPageData:
    """Return what the page of a reading holds."""
    labels = {latent.key: latent.label for latent in reading.latents}
    numbers = {key: number for number, key in enumerate(reading.activations)}
    positions: list[list[int]] = [[] for _ in reading.tokens]
    for latent in reading.latents:
        positions[latent.position].append(numbers[latent.key])
    return {
        "format": "crosstrace-reading-page",
        "version": 1,
        "prompt": reading.prompt,
        "model": reading.model_name,
        "tokens": reading.names,
        "excluded": reading.excluded_first,
        "dictionaries": [
            {
                "name": dictionary.name,
                "site": dictionary.site,
                "layers": [[layer.layer, layer.measured, layer.expected] for layer in dictionary.layers],
            }
            for dictionary in reading.dictionaries
        ],
        "latents": [
            {
                "name": reading.name(key),
                "dictionary": key[0],
                "layer": key[1],
                "label": labels[key],
                "fires": [[position, value] for position, value in places],
                "card": _card(reading, *key),
            }
            for key, places in reading.activations.items()
        ],
        "positions": positions,
        "notes": reading.notes(),
    }


def _card(reading: Reading, dictionary: int, layer: int, feature: int) -> dict[str, Any] | None:
    cards = reading.cards.get(dictionary)
    return dict(cards[layer, feature]) if cards is not None and (layer, feature) in cards else None
