"""SAEs as command lines name them."""

from __future__ import annotations

from collections.abc import Sequence

from crosstrace.replacement_model import SparseDictionary, demo, open_sae
from crosstrace.replacement_model.dictionaries.latents import parse_latent


def open_named_sae(name: str | Sequence[str]) -> SparseDictionary:
    """Open an SAE as `--sae` names it: `demo`, a folder, or a reference on the hub; or the layers of one, by a name each.

    Raises:
        ValueError: The files are damaged, or hold something else.
        OSError: There are none.
    """
    names = [name] if isinstance(name, str) else list(name)
    if names not in (["demo"], [demo.SAES_NAME]):
        return open_sae(names)
    reader = open_sae(demo.SAES_DIR)
    reader.name = demo.SAES_NAME
    return reader


def named_saes(saes: Sequence[str] | None, references: Sequence[str], loaded_demo: bool) -> list[SparseDictionary]:
    """Open the SAEs whose latents references name.

    Args:
        saes: As `--sae` names them.
        references: What may refer to latents.
        loaded_demo: Whether the model is the demo, whose own SAEs are opened where a reference is to a latent.

    Raises:
        ValueError: The files are damaged, or hold something else.
        OSError: There are none.
    """
    if not saes and loaded_demo and any(parse_latent(text.partition("@")[0]) for text in references):
        saes = ["demo"]
    return [open_named_sae(name) for name in saes or ()]
