"""The dictionaries that `--sae` and `--transcoders` name, beside the base model that they read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from crosstrace.tracer.commands.model_choice import check_device, note_dequantising, parse_dtype, read_chat_template

if TYPE_CHECKING:
    from crosstrace.graphs import FeatureCards
    from crosstrace.replacement_model import BaseModel, SparseDictionary
    from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse


def open_to_read(
    model: str | None,
    saes: Sequence[str] | None,
    transcoders: str | None,
    device: str | None,
    dtype: str | None,
    memory_budget: str | None,
    device_map: str | None,
    exclude_first: int | None,
    chat_template: Path | None = None,
) -> tuple[BaseModel, list[DictionaryInUse]]:
    """Load a base model and every dictionary that is named; if none is, for the demo its SAEs, for `demo-chat` its transcoders.

    Raises:
        typer.BadParameter: No dictionary is named for a model other than the demo.
        ValueError: A file, the device or the dtype cannot be used, or a dictionary does not fit the model.
        OSError: Files are missing.
    """
    from crosstrace.replacement_model import BaseModel, open_transcoders
    from crosstrace.replacement_model.dictionaries.use import in_use
    from crosstrace.replacement_model.embedded import DEMO, embedded_model
    from crosstrace.tracer.attribution.named_saes import open_named_sae

    own = None
    if not saes and not transcoders:
        own = embedded_model(model or "demo")
        if own is None:
            raise typer.BadParameter("--model goes with --sae or --transcoders: what is it to be read with?")
        if own is DEMO:
            saes, own = ["demo"], None
    used_dtype = parse_dtype(dtype)
    check_device(device)
    # The dictionaries first: a wrong path should not cost the wait for a large model.
    readers: list[SparseDictionary] = [open_named_sae(name) for name in saes or ()]
    if transcoders:
        readers.append(open_transcoders(transcoders))
    if own is not None:
        readers.append(open_transcoders(own.transcoders))
        readers[-1].name = own.transcoders_name
    note_dequantising(model)
    base = BaseModel.from_pretrained(
        model or "demo", device, used_dtype, exclude_first, device_map, read_chat_template(chat_template)
    )
    used = [in_use(reader, base.device, used_dtype, memory_budget) for reader in readers]
    for dictionary in used:
        dictionary.check_fits(base.description, base.name)
    return base, used


def cards_of_dictionaries(base: BaseModel, used: Sequence[DictionaryInUse]) -> dict[int, FeatureCards]:
    """Return the feature cards that lie beside dictionaries, by the dictionaries' numbers."""
    from crosstrace.replacement_model.fingerprints import weight_fingerprints
    from crosstrace.tracer.cards.lookup import find_cards
    from crosstrace.tracer.commands.messages import note

    found = {}
    for number, dictionary in enumerate(used):
        cards = find_cards(base.name, dictionary.name, weight_fingerprints(base, dictionary), note=note)
        if cards is not None:
            found[number] = cards
    return found
