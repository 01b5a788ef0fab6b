"""Feature cards as the JSON that public viewers read: one file per feature.

Viewers in the style of Anthropic's attribution-graphs frontend, circuit-tracer's among them, ask for
`features/SCAN/NUMBER.json`. SCAN is the graph's; NUMBER is the Cantor pairing of layer and feature, which the graph's nodes
hold as `feature`. Each file holds `index` (the same number), `top_logits`, `bottom_logits` (tokens) and
`examples_quantiles`: a list of {`quantile_name`, `examples`}, each example with `tokens`, `tokens_acts_list`,
`train_token_ind` (the peak) and `is_repeated_datapoint`. It also holds `act_min` and `act_max` (the range of the colours),
`activation_frequency` and `histogram`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crosstrace.graphs.cards.feature_cards import FeatureCards, Key
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.viewer_ids import cantor_pairing, scan_name

_QUANTILE = "Top activations"


def export_cards(
    cards: FeatureCards, folder: str | os.PathLike[str], features: Iterable[Key] | None = None, scan: str | None = None
) -> int:
    """Write `FOLDER/features/SCAN/NUMBER.json` for every feature that has a card.

    Args:
        cards: An open file of cards.
        folder: Made if it does not exist; its parent must exist.
        features: Only these (layer, feature); all if None.
        scan: Name of the model in viewers, as in `write_json`; from the model's name if None.

    Returns:
        Number of files written.

    Raises:
        KeyError: A feature has no card.
        OSError: The folder cannot be made, or a file cannot be written.
        ValueError: `scan` holds more than letters, digits, `_`, `.` and `-`.

    Example:
        >>> export_cards(cards, "site", [(3, 417)])
        1
    """
    target = Path(folder) / "features" / scan_name(cards.model_name, scan)
    if not Path(folder).absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {folder}: folder {Path(folder).absolute().parent} does not exist")
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    for key in cards if features is None else features:
        content = json.dumps(card_as_json(cards, key), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        write_atomically(target / f"{cantor_pairing(*key)}.json", content.encode("ascii"))
        count += 1
    return count


def card_as_json(cards: FeatureCards, key: Key) -> dict[str, Any]:
    """Return what `export_cards` writes for one feature, as plain Python values.

    Raises:
        KeyError: The feature has no card.
    """
    card = cards[key]
    return {
        "index": cantor_pairing(*key),
        "examples_quantiles": [
            {
                "quantile_name": _QUANTILE,
                "examples": [
                    {
                        "tokens": context["tokens"],
                        "tokens_acts_list": context["activations"],
                        "train_token_ind": context["peak"],
                        "is_repeated_datapoint": False,
                    }
                    for context in card["contexts"]
                ],
            }
        ],
        "top_logits": [token for token, _ in card["promoted"]],
        "bottom_logits": [token for token, _ in card["suppressed"]],
        "act_min": 0.0,
        "act_max": card["max_activation"],
        "activation_frequency": card["firing_rate"],
        "histogram": card["histogram"]["counts"],
    }
