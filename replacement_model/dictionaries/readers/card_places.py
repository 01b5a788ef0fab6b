"""Where the feature cards of transcoders are kept: beside them."""

from __future__ import annotations

from pathlib import Path

from crosstrace.replacement_model import demo
from crosstrace.replacement_model.dictionaries.readers.opening import local_place
from crosstrace.replacement_model.embedded import embedded_transcoders


def cards_path(transcoders: str | Path) -> Path:
    """Return where the feature cards of transcoders are kept.

    That is `cards.safetensors` in the transcoders' folder, or `NAME.cards.safetensors` beside a family of per-layer
    folders.

    Args:
        transcoders: As for `crosstrace.replacement_model.open_transcoders`, or as a graph names them; for those on the
            hub only the local cache is looked at.

    Raises:
        FileNotFoundError: The transcoders are not on this machine.

    Example:
        >>> cards_path("org/repo/clt/width_262k_l0_medium").name
        'cards.safetensors'
    """
    if own := embedded_transcoders(transcoders):
        return own.cards
    place = local_place(demo.SAES_DIR if str(transcoders) == demo.SAES_NAME else transcoders)
    name = demo.CARDS_FILE.name
    return place / name if place.is_dir() else place.with_name(f"{place.name}.{name}")
