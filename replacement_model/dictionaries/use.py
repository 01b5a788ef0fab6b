"""From a reader of files to a dictionary in use, whichever kind it is."""

from __future__ import annotations

import torch

from crosstrace.replacement_model.dictionaries.base import SparseDictionary, TranscoderReader
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders


def in_use(
    dictionary: SparseDictionary | DictionaryInUse,
    device: torch.device,
    dtype: torch.dtype | None = None,
    memory_budget: int | str | None = None,
) -> DictionaryInUse:
    """Return a dictionary in use.

    Args:
        dictionary: What the files hold; what is in use already stays as it is.
        device: Where weights are used.
        dtype: The dtype of encoders and decoders; None: as stored.
        memory_budget: Bytes for weights and rows, or text such as `"8GB"`; None: 80 % of what is free on the device.

    Raises:
        ValueError: The budget is not a size, or the dictionary is of no kind that can be used.
    """
    if isinstance(dictionary, DictionaryInUse):
        return dictionary
    if isinstance(dictionary, TranscoderReader):
        return Transcoders(dictionary, device, dtype, memory_budget)
    return Saes(dictionary, device, dtype, memory_budget)
